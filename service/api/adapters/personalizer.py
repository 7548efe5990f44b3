"""Azure Personalizer's Rank, Reward and Activate for one bandit: an SDK works with the endpoint `.../adapters/personalizer/NAME`.

    rank ──> a decision whose arms are the actions       contextFeatures ──> the prompt
    reward ──> its outcome                               activate ──> from then on the reward of a deferred event counts

An event with `deferActivation` is a decision that notes so in its metadata. Its activation, and a reward that came before that,
are in the log as partial outcomes, so that every replica knows of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Response
from pydantic import Field, FiniteFloat

from service.api.adapters.route import AdapterRoute, ForeignBody, decision_id
from service.api.decide import decide
from service.api.dependencies import RoutedLearner, Services, Shared
from service.api.observe import observe
from service.api.problems import Problem, invalid
from service.api.requests import MAX_ARMS, DecisionBody, OutcomeBody
from service.engine.errors import OutcomeConflictError
from service.engine.events import Created
from service.engine.learner import Learner
from service.engine.outcomes import DecisionHistory

CODES = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "ResourceNotFound", 429: "TooManyRequests"}
"""Status -> code of Personalizer's errors."""
ACTIVATED, HELD = "personalizer_activated", "personalizer_reward"
"""Signals of a deferred event: 1 where it was activated; the reward that came before."""
DEFERRED, EVENT = "personalizer_deferred", "personalizer_event"
"""In the metadata of a decision: true where its activation is deferred; the event id, where that cannot be the decision's."""


class PersonalizerRoute(AdapterRoute):
    """A route whose errors are Personalizer's."""

    @staticmethod
    def failure(problem: Problem) -> Response:
        """`{"error": {"code", "message"}}`."""
        status = 400 if problem.status == 422 else problem.status
        error = {"code": CODES.get(status, problem.code), "message": problem.detail}
        return Response(msgspec.json.encode({"error": error}), status, headers=problem.headers, media_type="application/json")


router = APIRouter(
    prefix="/adapters/personalizer/{name}/personalizer/{version}", route_class=PersonalizerRoute, include_in_schema=False
)

Version = Annotated[str, Path(pattern=r"^v1\.(0|1-preview\.[0-9])$")]
EventId = Annotated[str, Path(min_length=1, max_length=256)]


class Action(ForeignBody):
    """An action that may be ranked."""

    id: Annotated[str, Field(min_length=1, max_length=128)]


class RankBody(ForeignBody):
    """The request of Rank."""

    actions: Annotated[list[Action], Field(min_length=1, max_length=MAX_ARMS)]
    context_features: list[dict[str, Any]] = Field([], alias="contextFeatures")
    excluded_actions: list[str] = Field([], alias="excludedActions")
    event_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(None, alias="eventId")
    defer_activation: bool = Field(False, alias="deferActivation")


class RewardBody(ForeignBody):
    """The request of Reward."""

    value: FiniteFloat


@router.post("/rank")
async def rank(learner: RoutedLearner, services: Shared, version: Version, body: RankBody) -> Response:
    """Choose among the actions that are not excluded."""
    if body.defer_activation:
        _check_can_defer(learner)
    ranked = [action.id for action in body.actions if action.id not in body.excluded_actions]
    if not ranked:
        raise invalid("excludedActions", "excludes every action; leave one")
    asked: dict[str, Any] = {"arms": ranked}
    if prompt := prompt_of(learner.created, body.context_features):
        asked["prompt"] = prompt
    metadata: dict[str, Any] = {DEFERRED: True} if body.defer_activation else {}
    if body.event_id is not None:
        asked["id"] = decision_id(body.event_id)
        metadata |= {} if asked["id"] == body.event_id else {EVENT: body.event_id}
    if metadata:
        asked["metadata"] = metadata
    try:
        decision, _ = await decide(services, learner, DecisionBody.model_validate(asked))
    except Problem as problem:
        raise _about_actions(problem, body, ranked) from None
    if decision["stop"]:
        raise invalid("actions", f"{learner.policy.kind} chose to play none of them, which Rank cannot answer")
    weights = decision["weights"]
    ranking = [
        {"id": action.id, "probability": weights.get(action.id, 0.0) if action.id in ranked else 0.0} for action in body.actions
    ]
    answer = {"ranking": ranking, "eventId": body.event_id or decision["id"], "rewardActionId": decision["arm"]}
    return Response(msgspec.json.encode(answer), 201, media_type="application/json")


@router.post("/events/{event:path}/reward")
async def reward(learner: RoutedLearner, services: Shared, version: Version, event: EventId, body: RewardBody) -> Response:
    """The reward of an event. The first one stays; that of a deferred event waits for its activation."""
    decision = decision_id(event)
    found = await learner.outcomes.look_up_all(decision)
    if _waits(found):
        if HELD not in _noted(found):
            await _note(services, learner, decision, {HELD: body.value})
        await _conclude(services, learner, decision)
    else:
        await _observe(services, learner, decision, body.value)
    return Response(status_code=204)


@router.post("/events/{event:path}/activate")
async def activate(learner: RoutedLearner, services: Shared, version: Version, event: EventId) -> Response:
    """The action was shown: from here on the event has a reward, or waits for one."""
    decision = decision_id(event)
    if _waits(await learner.outcomes.look_up_all(decision)):
        await _note(services, learner, decision, {ACTIVATED: 1.0})
        await _conclude(services, learner, decision)
    return Response(status_code=204)


def _about_actions(problem: Problem, body: RankBody, ranked: list[str]) -> Problem:
    """A problem with an arm of the decision, named as the action of the request that it was."""
    found = re.match(r"arms\.(\d+)", problem.detail)
    if found is None:
        return problem
    place = [action.id for action in body.actions].index(ranked[int(found[1])])
    detail = f"actions.{place}.id{problem.detail[found.end() :]}"
    return Problem(problem.code, detail, headers=problem.headers)


def _check_can_defer(learner: Learner) -> None:
    if "reward" not in learner.policy.needs:
        raise invalid(
            "deferActivation", f"{learner.policy.kind} learns from outputs, which an event without reward cannot hold back"
        )
    if learner.ledger.live.default_reward is not None:
        message = "needs a bandit without reward.default: an event that is never activated would be learned as that reward"
        raise invalid("deferActivation", message)


def _waits(found: DecisionHistory) -> bool:
    """Whether a reward does not count yet."""
    metadata = found.decided.event.metadata
    is_deferred = metadata is not msgspec.UNSET and metadata.get(DEFERRED) is True
    return is_deferred and found.closing is None and ACTIVATED not in _noted(found)


def _noted(found: DecisionHistory) -> dict[str, float]:
    """What came before the reward; of several values the first."""
    noted: dict[str, float] = {}
    for partial in found.partials:
        noted = partial.event.values | noted
    return noted


async def _note(services: Services, learner: Learner, decision: str, signals: Mapping[str, float]) -> None:
    with contextlib.suppress(OutcomeConflictError):  # of two rewards at once the other one came first
        await observe(services, learner, decision, OutcomeBody(signals=dict(signals)))


async def _conclude(services: Services, learner: Learner, decision: str) -> None:
    """Observe the reward that was held back, where the event was activated: of two requests at once the later one sees both."""
    noted = _noted(await learner.outcomes.look_up_all(decision))
    if ACTIVATED in noted and HELD in noted:
        await _observe(services, learner, decision, noted[HELD])


async def _observe(services: Services, learner: Learner, decision: str, value: float) -> None:
    with contextlib.suppress(OutcomeConflictError):  # another reward came first, and Personalizer keeps the earliest
        await observe(services, learner, decision, OutcomeBody(reward=value))


# -- context features as a prompt ----------------------------------------------------------------------------------------------


def prompt_of(created: Created, features: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The prompt that context features make; None where there are none, or the bandit reads none.

    Features are named by their paths, in the order of these: for an embedder of texts a line each, `device.kind: phone`; for the
    embedder `vector` the numbers alone, true as 1.
    """
    if not created.prompt_embedder or not features:
        return None
    named = sorted(_flattened("", features))
    if created.prompt_embedder != "vector":
        return {"text": "\n".join(f"{path}: {value if isinstance(value, str) else _json(value)}" for path, value in named)}
    for path, value in named:
        if not isinstance(value, bool | int | float):
            raise invalid(f"contextFeatures.{path}", "must be a number: this bandit takes vectors")
    return {"vector": [float(value) for _, value in named]}


def _flattened(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of every feature; namespaces of a list are those of one object."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flattened(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list) and (not path or any(isinstance(item, dict) for item in value)):
        for item in value:
            yield from _flattened(path, item)
    else:
        yield path, value


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
