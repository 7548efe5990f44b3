"""Serializers of responses: bandits, arms, decisions and receipts as JSON values."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from fastapi import Response

from service.api.requests import SCORER_FIELDS, YOUNGER
from service.engine.events import Cancelled, Created, Decided, Expired, Observed
from service.engine.learner import Learner, Recorded


def answer(content: Any, *, status: int = 200) -> Response:
    """A JSON response; NaN has become null long before."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def time_text(at: datetime) -> str:
    """RFC 3339, UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


FULL_TABLE = 64
"""Arms up to which an answer shows the weights and scores of all: a batch of 1,024 decisions over 1,000 arms would be 60 MB."""
BEST_SHOWN = 16
"""Arms that an answer shows of more than that."""
_INDEX = ("estimate", "bonus")
"""Scores whose sum most policies choose by."""


def decision_json(
    learner: Learner, decided: Decided, *, offset: int, dry_run: bool = False, full: bool = False
) -> dict[str, Any]:
    """A decision as the contract says. full: with the weights and scores of every arm, however many there are."""
    names = [arm.name for arm in learner.arms]
    stop = decided.arm < 0
    allowed = set(decided.allowed)
    shown: Sequence[int] = range(len(decided.weights)) if decided.present is msgspec.UNSET else decided.present
    if not full and len(shown) > FULL_TABLE:
        shown = _best_arms(decided)
    return {
        "id": None if dry_run else decided.id,
        "bandit": learner.created.bandit,
        "episode": None if dry_run else decided.episode,
        "attempt": decided.attempt,
        "arm": None if stop else names[decided.arm],
        "stop": stop,
        "propensity": decided.propensity,
        "weights": {names[i]: decided.weights[i] for i in shown},
        "scores": {names[i]: {score: values[i] for score, values in decided.scores.items()} for i in shown if i in allowed},
        "offset": offset,
    }


def _best_arms(decided: Decided) -> list[int]:
    """The arm that was chosen and those of the highest weight; among equal weights, those whose index is nearest to its own:
    whether a policy looks for the highest or the lowest one, these were nearly chosen.
    """
    terms = [decided.scores[name] for name in _INDEX if name in decided.scores] if decided.arm >= 0 else []

    def distance(arm: int) -> float:
        return abs(sum((values[arm] or 0.0) - (values[decided.arm] or 0.0) for values in terms))

    best = heapq.nsmallest(BEST_SHOWN, decided.allowed, key=lambda arm: (-decided.weights[arm], distance(arm)))
    return sorted({*best, decided.arm} - {-1})


def closed_json(closing: Recorded | None, *, stop: bool) -> dict[str, Any]:
    """What became of a decision. A stop has no outcome to wait for: it counts as observed."""
    event = None if closing is None else closing.event
    state = "observed" if stop else "open"
    reward = cost = None
    match event:
        case Observed():
            state, reward, cost = "observed", event.reward, event.cost
        case Expired():
            state, reward = "expired", event.reward
        case Cancelled():
            state = "cancelled"
    return {"state": state, "reward": reward, "cost": cost, "closed_at": None if event is None else time_text(event.at)}


def receipt_json(recorded: Recorded, *, following: dict[str, Any] | None) -> dict[str, Any]:
    """The receipt of an outcome."""
    event: Observed = recorded.event
    return {
        "decision": event.id,
        "reward": event.reward,
        "offset": recorded.offset,
        "duplicate": recorded.is_duplicate,
        "next": following,
    }


def arm_json(learner: Learner, index: int, *, chosen: Counter[int] | None = None) -> dict[str, Any]:
    """What is known of an arm. chosen: how often each was, of late (counted here where it is not given)."""
    arm = learner.arms[index]
    chosen = Counter(learner.ledger.recent) if chosen is None else chosen
    return {
        "name": arm.name,
        "price": arm.price,
        "metadata": arm.metadata,
        "active": arm.active,
        "pulls": arm.pulls,
        "outcomes": arm.outcomes,
        "pending": arm.pending,
        "mean_reward": arm.reward_sum / arm.rewards if arm.rewards else None,
        "total_cost": arm.cost_sum,
        "share": chosen[index] / chosen.total() if chosen else 0.0,
    }


def _embedder_json(created: Created, part: Literal["prompt", "output"]) -> dict[str, Any] | None:
    """How prompts or outputs are embedded; the younger fields only where they were given."""
    embedder, dim, version = (
        (created.prompt_embedder, created.dim, created.prompt_version)
        if part == "prompt"
        else (created.output_embedder, created.output_dim, created.output_version)
    )
    given = created.request.get(part) or {}
    younger = {name: given[name] for name in YOUNGER[part] if given.get(name) is not None}
    return {"embedder": embedder, "dim": dim, "version": version, **younger} if embedder else None


async def bandit_json(learner: Learner, of_embedders: Sequence[str]) -> dict[str, Any]:
    """A bandit with its configuration, arms and report. of_embedders: notices about its embedders."""
    created = learner.created
    report = await learner.report()
    per_arm = [*report.pop("arms"), *({} for _ in learner.arms)]  # an arm that came just now has no report yet
    chosen = Counter(learner.ledger.recent)
    asked = created.request.get("reward", {})
    scorer: dict[str, Any] = {"override": True} if asked.get("override") else {}
    scorer |= {name: value for name in SCORER_FIELDS if (value := asked.get(name)) is not None}
    arms = [{**per_arm[i], **arm_json(learner, i, chosen=chosen)} for i in range(len(learner.arms))]  # fields of the ledger win
    return {
        "name": created.bandit,
        "created_at": time_text(created.at),
        "policy": {"kind": created.policy, **created.hyperparameters},
        "arms": arms,
        "prompt": _embedder_json(created, "prompt"),
        "output": _embedder_json(created, "output"),
        "reward": {**scorer, "source": created.reward_source, "default": created.default_reward, "timeout_s": created.timeout_s},
        "seed": created.seed,
        "offset": learner.offset,
        "decisions": learner.ledger.decided,
        "open": len(learner.ledger.open),
        "references": learner.ledger.referenced,
        "notices": [*await learner.notices(), *of_embedders],
        "report": report,
    }
