"""Observing over HTTP: a body becomes an `OutcomeReport`, its outputs embedded and scored, and the receipt is written.

Shared by all routes. With `next`, the decision that follows is made, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from msgspec import UNSET

from bandits.errors import FieldError
from bandits.objective import REWARD
from bandits.types import Observation
from service.api.content import PostedContent, embed_outputs, output_matrix, read_outputs
from service.api.decide import any_active, compares_prompts
from service.api.dependencies import Services
from service.api.problems import Problem, arm_not_found, invalid
from service.api.requests import AmendmentBody, Content, OutcomeBody, RewardSpec
from service.api.responses import amendment_json, decision_json, receipt_json
from service.engine import events
from service.engine.commit import Recorded
from service.engine.decisions import DecisionRequest
from service.engine.errors import DecisionNotFoundError, OpenDecisionLimitError
from service.engine.events import Created, Decided, Matrix, Observed, body_digest
from service.engine.learner import Learner
from service.engine.outcomes import AmendmentReport, OutcomeReport
from service.scorers import registry as scorers
from service.scorers.base import CLIENT, CannotScore, Sample, ScorerError
from service.storage.base import EntryTrimmedError


async def observe(services: Services, learner: Learner, decision_id: str, body: OutcomeBody) -> dict[str, Any]:
    """The receipt; with `next`, the decision that follows."""
    if body.next and _is_partial(learner, body):
        raise invalid("next", "needs the whole outcome, and here is no reward; leave it out, and ask with the reward")
    if body.next and not learner.policy.episodic and (learner.policy.contextual or compares_prompts(learner)):
        raise invalid("next", f"{learner.policy.kind} decides by the prompt, and here is none; ask for a decision")
    recorded = await learner.outcomes.submit(decision_id, await parse_outcome_report(services, learner, decision_id, body))
    following = await _following(learner, recorded) if body.next else None
    return receipt_json(recorded, following=following)


async def parse_outcome_report(services: Services, learner: Learner, decision_id: str, body: OutcomeBody) -> OutcomeReport:
    """The validated `OutcomeReport` of a body. With a posted reward alone it returns without waiting, as a rule."""
    if body.error is not None and body.reward is None:
        return await _failure(learner, body)
    if _is_partial(learner, body):
        if body.metadata is not None:
            raise invalid("metadata", "is kept with the whole outcome, and here is no reward; send it with the reward")
        return OutcomeReport(
            reward=None,
            cost=body.cost,
            signals=body.signals or {},
            arm=await _arm_index(learner, body.arm),
            body=body_digest(*body.canonical()),
            is_partial=True,
        )
    features = await _features_of(learner, decision_id) if learner.created.reward_source != CLIENT else b""
    if features is None:  # nothing is embedded or scored twice
        return OutcomeReport(reward=body.reward, body=body_digest(*body.canonical()))
    return await checked_outcome(services, learner, body, features=features)


async def _failure(learner: Learner, body: OutcomeBody) -> OutcomeReport:
    """The outcome of a call that failed: there is nothing to embed, to score or to learn."""
    for name in ("output", "reference"):
        if getattr(body, name) is not None:
            raise invalid(name, "is not learned from a call that failed; leave it out, or post a reward with it")
    return OutcomeReport(
        reward=None,
        cost=body.cost,
        signals=body.signals or {},
        arm=await _arm_index(learner, body.arm),
        error=body.error or "",
        metadata=body.metadata,
        body=body_digest(*body.canonical()),
    )


def _is_partial(learner: Learner, body: OutcomeBody) -> bool:
    """Whether it comes before the reward that the policy needs, or before the output that a scorer makes it of."""
    is_given = body.reward is not None or body.output is not None or body.reference is not None
    return (
        not is_given and body.error is None and "reward" in learner.policy.needs and (body.cost is not None or bool(body.signals))
    )


async def amend(learner: Learner, decision_id: str, body: AmendmentBody) -> dict[str, Any]:
    """The receipt of an amendment."""
    policy, source = learner.policy, learner.created.reward_source
    values = body.values()
    if REWARD in values and source != CLIENT and not learner.created.request["reward"].get("override"):
        raise invalid("reward", f"comes from {source!r} here; leave it out, or create the bandit with reward.override")
    if REWARD in values and "reward" in policy.needs and "output" not in policy.needs:
        policy.check_observation(Observation(arm=0, reward=values[REWARD]))
    report = AmendmentReport(values=values, id=body.id or "", body=body_digest(*body.canonical()))
    return amendment_json(await learner.outcomes.amend(decision_id, report))


async def _features_of(learner: Learner, decision_id: str) -> bytes | None:
    """The features of an open decision; None where it is closed already."""
    decided, closing = await learner.outcomes.look_up(decision_id)
    features: bytes = decided.event.features
    return features if closing is None and decided.event.arm >= 0 else None


async def checked_outcome(services: Services, learner: Learner, body: OutcomeBody, *, features: bytes) -> OutcomeReport:
    """Check, embed and score an outcome. features: of its prompt, which a scorer may compare with the output.

    Three rounds of checks, cheapest first: that the fields fit the bandit, before anything is embedded; the embedded output,
    before the scorer runs; the scorer's reward, before anything is logged.
    """
    policy, created = learner.policy, learner.created
    scored = _is_scored(learner, body)
    if "reward" in policy.needs and body.reward is None and not scored:
        raise invalid("reward", f"is missing; send a number, which {policy.kind} learns from")
    if "output" in policy.needs and body.output is None:
        raise invalid("output", f"is missing; send what the model returned, which {policy.kind} learns from")
    index = await _arm_index(learner, body.arm)
    output = reference = events.EMPTY
    given: list[PostedContent] = []
    paths = _paths(body.output or [])
    if body.output is not None:
        if created.output_embedder or not scored:
            _check_takes_outputs(created)
        given = await read_outputs(services, created, body.output, paths=paths)
        if created.output_embedder:
            output = await embed_outputs(services, created, given, paths=paths)
    if body.reference is not None and (learner.takes_reference or not scored):
        reference = await output_matrix(services, created, [body.reference], paths=["reference"])
    seen = Observation(arm=0, reward=body.reward or 0.0, output=output.tensor(), reference=reference.tensor())
    policy.check_observation(seen, state=learner.versions.committed.state)
    reward = body.reward
    if scored:
        reward = await _score(services, created, given, output, reference=body.reference, features=features, paths=paths)
        seen = Observation(arm=0, reward=reward, output=seen.output, reference=seen.reference)
        policy.check_observation(seen, state=learner.versions.committed.state)
    return OutcomeReport(
        reward=reward,
        source="" if created.reward_source == CLIENT else created.reward_source if scored else CLIENT,
        cost=body.cost,
        signals=body.signals or {},
        arm=index,
        output=output,
        reference=reference,
        error=body.error or "",
        metadata=body.metadata,
        body=body_digest(*body.canonical()),
    )


async def _arm_index(learner: Learner, name: str | None) -> int | None:
    """Of the arm that was called, None where it is the suggested one."""
    if name is None:
        return None
    index = learner.ledger.index(name)
    if index is None:
        await learner.projection.refresh()
        index = learner.ledger.index(name)
    if index is None:
        raise arm_not_found("arm")
    return index


def _paths(outputs: Sequence[Content]) -> list[str]:
    return [f"output.{i}" if len(outputs) > 1 else "output" for i in range(len(outputs))]


def _check_takes_outputs(created: Created) -> None:
    if not created.output_embedder:
        raise invalid("output", "this bandit takes no outputs; create it with `output`, or post a reward alone")


def _is_scored(learner: Learner, body: OutcomeBody) -> bool:
    """Whether the bandit's scorer gives the reward of this outcome: a posted one wins where the bandit allows it."""
    source = learner.created.reward_source
    if source == CLIENT:
        return False
    if body.reward is not None:
        if not learner.created.request["reward"].get("override"):
            raise invalid("reward", f"comes from {source!r} here; leave it out, or create the bandit with reward.override")
        return False
    if body.output is None:
        raise invalid("output", f"is missing; send what the model returned, which {source!r} makes the reward from")
    return True


async def _score(
    services: Services,
    created: Created,
    given: Sequence[PostedContent],
    output: Matrix,
    *,
    reference: Content | None,
    features: bytes,
    paths: Sequence[str],
) -> float:
    """The reward of an outcome's samples: their mean."""
    try:
        spec = scorers.spec(created.reward_source)
        for content, path in zip(given, paths, strict=True):
            kind = "text" if isinstance(content, str) else "image" if isinstance(content, bytes) else "vector"
            if kind not in spec.reads:
                raise invalid(path, f"is {'an image' if kind == 'image' else 'a vector'}; the scorer {spec.name!r} reads text")
        prompt = np.frombuffer(features, dtype="<f4")
        vectors = np.frombuffer(output.data, dtype="<f4").reshape(output.rows, output.columns)
        samples = [
            Sample(
                output=content if isinstance(content, str | bytes) else "",
                vector=vectors[i] if output.rows else vectors.ravel(),
                prompt=prompt,
                reference=(reference.text or "") if reference is not None else "",
            )
            for i, content in enumerate(given)
        ]
        parameters = RewardSpec.model_validate(created.request["reward"]).parameters()
        return await services.scoring.reward(spec.name, parameters, samples)
    except CannotScore as error:
        raise invalid(error.field, str(error)) from None
    except ScorerError as error:
        raise Problem("overloaded", f"the outcome cannot be scored now: {error}") from error


async def _following(learner: Learner, recorded: Recorded) -> dict[str, Any] | None:
    """The decision after an outcome, None if there can be none: the outcome is in the log by now, so this must not fail.

    Its id is derived from the outcome's, so that a repeated request gets the same decision.
    """
    observed: Observed = recorded.event
    following_id = _successor(observed.id, observed.at)
    try:
        if already := await learner.decisions.find(following_id, ""):
            return decision_json(learner, already.event, offset=already.offset)
        decided: Decided = (await learner.outcomes.look_up(observed.id))[0].event
    except (DecisionNotFoundError, EntryTrimmedError):  # so old that its entry was trimmed: what it asked for is not known
        return None
    features, episode = b"", ""
    if learner.policy.episodic:
        features, episode = decided.features, decided.episode
        known = learner.ledger.episodes.get(episode)
        if known is None or known.finished:
            return None
    if not any_active(learner.ledger):
        return None
    request = DecisionRequest(
        id=following_id,
        features=features,
        exclude=decided.exclude or (),
        max_price=None if decided.max_price is UNSET else decided.max_price,
        episode=episode,
        session=decided.session or "",
    )
    try:
        decision = await learner.decisions.submit(request)
    except (OpenDecisionLimitError, FieldError):  # too many are open, or no arm is left to choose
        return None
    return decision_json(learner, decision.event, offset=decision.offset)


def _successor(decision_id: str, at: datetime) -> str:
    """A UUIDv7 with the time of the outcome and 74 bits of the hash of the decision's id in place of chance."""
    millis = int(at.timestamp() * 1000) & (2**48 - 1)
    chance = int.from_bytes(hashlib.sha256(f"next/{decision_id}".encode()).digest()[:10], "big")
    value = millis << 80 | 7 << 76 | (chance >> 64 & 0xFFF) << 64 | 2 << 62 | chance & (2**62 - 1)
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
