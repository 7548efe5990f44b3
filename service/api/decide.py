"""Deciding and observing over HTTP: parse, check and embed a body, call the learner, write the response. Shared by all routes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from uuid_utils.compat import uuid7

from bandits.errors import FieldError, ReferenceMissing
from bandits.types import Context, Observation
from service.api.content import PostedContent, embed_outputs, output_matrix, prompt_vector, read_outputs
from service.api.dependencies import Services
from service.api.problems import Problem, arm_not_found, invalid
from service.api.requests import ArmChoice, Content, DecisionBody, OutcomeBody, RewardSpec
from service.api.serialize import decision_json, receipt_json
from service.engine import events
from service.engine.errors import EpisodeFinishedError, OpenDecisionLimitError
from service.engine.events import Created, Matrix, Observed
from service.engine.learner import DecisionRequest, Learner, OutcomeReport, Recorded, body_digest
from service.engine.ledger import Ledger
from service.scorers import registry as scorers
from service.scorers.base import CLIENT, CannotScore, Sample, ScorerError
from service.storage.base import StorageError


async def decide(services: Services, learner: Learner, body: DecisionBody, *, brief: bool = False) -> tuple[dict[str, Any], int]:
    """The decision and its status: 201 new, 200 repeated or dry run. brief: of many arms, a dry run shows the best few, too."""
    try:
        request = await parse_decision_request(services, learner, body)
        if body.dry_run:
            preview = await learner.preview(request)
            return decision_json(learner, preview, offset=learner.offset, dry_run=True, full=not brief), 200
        recorded = await learner.decide(request)
    except StorageError:
        raise
    except Exception:
        # What would be refused by now may have been decided before: an arm was retired meanwhile, an episode has ended.
        earlier = await learner.find_decision(body.id, _digest(body)) if body.id and not body.dry_run else None
        if earlier is None:
            raise
        recorded = earlier
    return decision_json(learner, recorded.event, offset=recorded.offset), 200 if recorded.is_duplicate else 201


async def parse_decision_request(services: Services, learner: Learner, body: DecisionBody) -> DecisionRequest:
    """The validated `DecisionRequest` of a body. With a vector as prompt it returns without waiting, as a rule."""
    features = await _features(services, learner, body)
    if any(learner.ledger.index(choice.name) is None for choice in body.arms or ()):
        await learner.refresh()
    request = DecisionRequest(
        id=body.id or str(uuid7()),
        features=features,
        allowed=_allowed(learner.ledger, body.arms),  # after the embedding, which takes a while: arms come and go
        episode=body.episode or "",
        body=_digest(body),
    )
    await _check(learner, request)
    return request


def _digest(body: DecisionBody) -> str:
    return body_digest(*body.canonical()) if body.id else ""


async def _features(services: Services, learner: Learner, body: DecisionBody) -> bytes:
    """The features of the prompt. An episode is about one prompt: later attempts may leave it out, and cannot change it."""
    if body.episode:
        await learner.refresh()  # the attempt before may have been made by another replica
    known = learner.ledger.episodes.get(body.episode) if body.episode else None
    if known is not None and known.finished:
        raise EpisodeFinishedError
    if not learner.policy.episodic or known is None:
        required = learner.policy.contextual or _compares_prompts(learner)
        return await prompt_vector(services, learner.created, body.prompt, required=required)
    if body.prompt is not None:
        given = await prompt_vector(services, learner.created, body.prompt)
        if given != known.features:
            raise invalid("prompt", "is not the one that this episode began with; leave it out, or start a new episode")
    return known.features


def _allowed(ledger: Ledger, arms: list[ArmChoice] | None) -> dict[int, float | None]:
    """Arm index -> price for this decision alone; empty = every active arm."""
    if not _any_active(ledger):
        raise invalid("arms", "the bandit has no active arm; add one first")
    allowed: dict[int, float | None] = {}
    for position, choice in enumerate(arms or ()):
        index = ledger.index(choice.name)
        if index is None:
            raise arm_not_found(f"arms.{position}")
        if not ledger.arms[index].active:
            raise invalid(f"arms.{position}", "this arm is retired; bring it back, or leave it out")
        allowed[index] = choice.price
    return allowed


def _any_active(ledger: Ledger) -> bool:
    return any(arm.active for arm in ledger.arms)


async def _check(learner: Learner, request: DecisionRequest) -> None:
    """Raise what the policy refuses, before anything is logged."""
    try:
        learner.policy.check_ready(learner.state)
    except ReferenceMissing:
        await learner.refresh()
        learner.policy.check_ready(learner.state)
    if request.features:
        learner.policy.check_context(Context(allowed=(True,), features=events.vector_tensor(request.features)))


async def observe(services: Services, learner: Learner, decision_id: str, body: OutcomeBody) -> dict[str, Any]:
    """The receipt; with `next`, the decision that follows."""
    if body.next and not learner.policy.episodic and (learner.policy.contextual or _compares_prompts(learner)):
        raise invalid("next", f"{learner.policy.kind} decides by the prompt, and here is none; ask for a decision")
    recorded = await learner.observe(decision_id, await parse_outcome_report(services, learner, decision_id, body))
    following = await _following(learner, recorded) if body.next else None
    return receipt_json(recorded, following=following)


async def parse_outcome_report(services: Services, learner: Learner, decision_id: str, body: OutcomeBody) -> OutcomeReport:
    """The validated `OutcomeReport` of a body. With a posted reward alone it returns without waiting, as a rule."""
    features = await _features_of(learner, decision_id) if learner.created.reward_source != CLIENT else b""
    if features is None:  # nothing is embedded or scored twice
        return OutcomeReport(reward=body.reward, body=body_digest(*body.canonical()))
    return await _outcome(services, learner, body, features=features)


def _compares_prompts(learner: Learner) -> bool:
    """Whether rewards come from a scorer that needs the prompt of each decision, whatever the policy does with it."""
    source = learner.created.reward_source
    return source != CLIENT and source in scorers.SCORERS and scorers.SCORERS[source].in_space


async def _features_of(learner: Learner, decision_id: str) -> bytes | None:
    """The features of an open decision; None where it is closed already."""
    decided, closing = await learner.look_up(decision_id)
    features: bytes = decided.event.features
    return features if closing is None and decided.event.arm >= 0 else None


async def _outcome(services: Services, learner: Learner, body: OutcomeBody, *, features: bytes) -> OutcomeReport:
    """Check, embed and score an outcome. features: of the decision, which a scorer may compare with the output.

    Three rounds of checks, cheapest first: that the fields fit the bandit, before anything is embedded; the embedded output,
    before the scorer runs; the scorer's reward, before anything is logged.
    """
    policy, created = learner.policy, learner.created
    scored = _is_scored(learner, body)
    if "reward" in policy.needs and body.reward is None and not scored:
        raise invalid("reward", f"is missing; send a number, which {policy.kind} learns from")
    if "output" in policy.needs and body.output is None:
        raise invalid("output", f"is missing; send what the model returned, which {policy.kind} learns from")
    index = None
    if body.arm is not None:
        if (index := learner.ledger.index(body.arm)) is None:
            await learner.refresh()
            index = learner.ledger.index(body.arm)
        if index is None:
            raise arm_not_found("arm")
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
    policy.check_observation(seen, state=learner.state)
    reward = body.reward
    if scored:
        reward = await _score(services, created, given, output, reference=body.reference, features=features, paths=paths)
        seen = Observation(arm=0, reward=reward, output=seen.output, reference=seen.reference)
        policy.check_observation(seen, state=learner.state)
    return OutcomeReport(
        reward=reward,
        source="" if created.reward_source == CLIENT else created.reward_source if scored else CLIENT,
        cost=body.cost,
        arm=index,
        output=output,
        reference=reference,
        body=body_digest(*body.canonical()),
    )


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
    if already := await learner.find_decision(following_id, ""):
        return decision_json(learner, already.event, offset=already.offset)
    features, episode = b"", ""
    if learner.policy.episodic:
        decided = (await learner.look_up(observed.id))[0].event
        features, episode = decided.features, decided.episode
        known = learner.ledger.episodes.get(episode)
        if known is None or known.finished:
            return None
    if not _any_active(learner.ledger):
        return None
    try:
        decision = await learner.decide(DecisionRequest(id=following_id, features=features, episode=episode))
    except (OpenDecisionLimitError, FieldError):  # too many are open, or the last arm was retired just now
        return None
    return decision_json(learner, decision.event, offset=decision.offset)


def _successor(decision_id: str, at: datetime) -> str:
    """A UUIDv7 with the time of the outcome and 74 bits of the hash of the decision's id in place of chance."""
    millis = int(at.timestamp() * 1000) & (2**48 - 1)
    chance = int.from_bytes(hashlib.sha256(f"next/{decision_id}".encode()).digest()[:10], "big")
    value = millis << 80 | 7 << 76 | (chance >> 64 & 0xFFF) << 64 | 2 << 62 | chance & (2**62 - 1)
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
