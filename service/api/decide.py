"""Deciding over HTTP: a body becomes a `DecisionRequest`, the engine decides, and the answer is written. Shared by all routes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from uuid_utils import uuid7  # an eighth of the time of one of the standard library's type

from bandits.errors import ReferenceMissing
from bandits.types import Context
from service.api.content import prompt_vector
from service.api.dependencies import Services
from service.api.problems import arm_not_found, invalid
from service.api.requests import ArmChoice, DecisionBody
from service.api.responses import decision_json
from service.engine import events
from service.engine.decisions import DecisionRequest
from service.engine.errors import EpisodeFinishedError
from service.engine.events import body_digest
from service.engine.learner import Learner
from service.engine.ledger import Ledger
from service.scorers import registry as scorers
from service.scorers.base import CLIENT
from service.storage.base import StorageError


async def decide(services: Services, learner: Learner, body: DecisionBody, *, brief: bool = False) -> tuple[dict[str, Any], int]:
    """The decision and its status: 201 new, 200 repeated or dry run. brief: of many arms, a dry run shows the best few, too."""
    try:
        request = await parse_decision_request(services, learner, body)
        if body.dry_run:
            preview = await learner.decisions.preview(request)
            return decision_json(learner, preview, offset=learner.versions.committed.offset, dry_run=True, full=not brief), 200
        recorded = await learner.decisions.submit(request)
    except StorageError:
        raise
    except Exception:
        # What would be refused by now may have been decided before: an arm was retired meanwhile, an episode has ended.
        earlier = await learner.decisions.find(body.id, _digest(body)) if body.id and not body.dry_run else None
        if earlier is None:
            raise
        recorded = earlier
    return decision_json(learner, recorded.event, offset=recorded.offset), 200 if recorded.is_duplicate else 201


async def parse_decision_request(services: Services, learner: Learner, body: DecisionBody) -> DecisionRequest:
    """The validated `DecisionRequest` of a body. With a vector as prompt it returns without waiting, as a rule."""
    features = await _features(services, learner, body)
    vector = events.vector_tensor(features) if features else None  # once: the engine scores by the same tensor
    if any(learner.ledger.index(choice.name) is None for choice in body.arms or ()):
        await learner.projection.refresh()
    request = DecisionRequest(
        id=body.id or str(uuid7()),
        features=features,
        vector=vector,
        allowed=_allowed(learner.ledger, body.arms),  # after the embedding, which takes a while: arms come and go
        exclude=body.exclude or (),
        max_price=body.max_price,
        episode=body.episode or "",
        session=body.session or "",
        metadata=body.metadata,
        body=_digest(body),
    )
    await _check(learner, vector)
    return request


def _digest(body: DecisionBody) -> str:
    return body_digest(*body.canonical()) if body.id else ""


async def _features(services: Services, learner: Learner, body: DecisionBody) -> bytes:
    """The features of the prompt. An episode is about one prompt: later attempts may leave it out, and cannot change it."""
    if body.episode:
        await learner.projection.refresh()  # the attempt before may have been made by another replica
    known = learner.ledger.episodes.get(body.episode) if body.episode else None
    if known is not None and known.finished:
        raise EpisodeFinishedError
    if not learner.policy.episodic or known is None:
        required = learner.policy.contextual or compares_prompts(learner)
        return await prompt_vector(services, learner.created, body.prompt, required=required)
    if body.prompt is not None:
        given = await prompt_vector(services, learner.created, body.prompt)
        if known.finished:  # meanwhile
            raise EpisodeFinishedError
        if given != known.features:
            raise invalid("prompt", "is not the one that this episode began with; leave it out, or start a new episode")
    return known.features


def _allowed(ledger: Ledger, arms: list[ArmChoice] | None) -> dict[int, float | None]:
    """Arm index -> price for this decision alone; empty = every active arm."""
    if not any_active(ledger):
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


def any_active(ledger: Ledger) -> bool:
    """Whether there is an arm to choose."""
    return any(arm.active for arm in ledger.arms)


async def _check(learner: Learner, vector: Tensor | None) -> None:
    """Raise what the policy refuses, before anything is logged. vector: (d,) the features, if there are any."""
    try:
        learner.policy.check_ready(learner.versions.committed.state)
    except ReferenceMissing:
        await learner.projection.refresh()
        learner.policy.check_ready(learner.versions.committed.state)
    if vector is not None:
        learner.policy.check_context(Context(allowed=(True,), features=vector))


def compares_prompts(learner: Learner) -> bool:
    """Whether rewards come from a scorer that needs the prompt of each decision, whatever the policy does with it."""
    source = learner.created.reward_source
    return source != CLIENT and source in scorers.SCORERS and scorers.SCORERS[source].in_space
