"""Shadows: policies that learn beside the one that decides, and can take its place."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

from fastapi import APIRouter, Path, Response
from uuid_utils.compat import uuid7

from service.api.dependencies import ManagedLearner, ReadLearner, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import Problem
from service.api.requests import NAME, PromotionBody, ShadowBody
from service.api.responses import PromotionAnswer, ShadowAnswer, ShadowsAnswer, answer, shadow_json
from service.api.routes import problems
from service.api.shadows import check_promotable, check_same, is_known, shadow_event, shadow_not_found
from service.engine import events
from service.engine.commit import Recorded
from service.engine.events import ShadowDeleted, ShadowPromoted
from service.engine.learner import Learner
from service.storage.base import Receipt

router = APIRouter(tags=["shadows"], route_class=StrictJSONRoute)

ShadowName = Annotated[str, Path(pattern=NAME, description="Name of the shadow.", examples=["candidate"])]


@router.get(
    "/v1/bandits/{name}/shadows",
    summary="The shadows of a bandit",
    response_model=ShadowsAnswer,
    responses=problems("bandit_not_found"),
)
async def list_shadows(learner: ReadLearner) -> Response:
    """Each with its report."""
    return answer({"shadows": [await shadow_json(learner, name) for name in sorted(learner.ledger.shadows)]})


@router.get(
    "/v1/bandits/{name}/shadows/{shadow}",
    summary="What a shadow has learned, and would have chosen",
    response_model=ShadowAnswer,
    responses=problems("bandit_not_found", "shadow_not_found"),
)
async def show_shadow(learner: ReadLearner, shadow: ShadowName) -> Response:
    """Its weights at each decision are in the log."""
    return answer(await _shown(learner, shadow))


async def _shown(learner: Learner, shadow: str) -> dict[str, object]:
    if shadow not in learner.ledger.shadows:
        await learner.projection.refresh()
    if shadow not in learner.ledger.shadows:
        raise shadow_not_found()
    return await shadow_json(learner, shadow)


@router.put(
    "/v1/bandits/{name}/shadows/{shadow}",
    summary="Let a policy learn beside the one that decides",
    status_code=201,
    responses={
        201: {"model": ShadowAnswer, "description": "Created."},
        200: {"model": ShadowAnswer, "description": "It is there, with the same policy."},
        **problems("bandit_not_found", "shadow_conflict", "log_trimmed", body=True),
    },
)
async def put_shadow(learner: ManagedLearner, shadow: ShadowName, body: ShadowBody, services: Shared) -> Response:
    """It sees the same decisions and outcomes and answers nothing. Its weights are computed with each decision and logged with
    it; one that takes longer than 5 ms is left out of that event. At most four.
    """
    learner.ledger.check_ready()
    await learner.projection.catch_up()
    event = await asyncio.to_thread(
        shadow_event, learner, shadow, body, services.repository.clock(), max_bytes=services.settings.max_state_bytes
    )

    def check() -> None:
        if is_known(learner, event):
            raise _Known

    with contextlib.suppress(_Known):
        if event.learns_from == "start":
            await learner.entries(after=1, limit=1)  # 410 where the log was trimmed
        await learner.committer.record(event, key=f"shadow/{shadow}/{uuid7()}", check=check)
        return answer(await _shown(learner, shadow), status=201)
    return answer(await _shown(learner, shadow))


class _Known(Exception):
    """Nothing is to be appended: the log says so already."""


@router.delete(
    "/v1/bandits/{name}/shadows/{shadow}",
    summary="Delete a shadow",
    status_code=204,
    response_class=Response,
    responses=problems("bandit_not_found", "shadow_not_found"),
)
async def delete_shadow(learner: ManagedLearner, shadow: ShadowName, services: Shared) -> Response:
    """What it learned is gone; what it would have chosen stays in the log."""

    def check() -> None:
        if shadow not in learner.ledger.shadows:
            raise shadow_not_found()

    event = ShadowDeleted(at=services.repository.clock(), shadow=shadow)
    await learner.committer.record(event, key=f"shadow/{shadow}/{uuid7()}", check=check)
    return Response(status_code=204)


@router.post(
    "/v1/bandits/{name}/shadows/{shadow}/promote",
    summary="Let the shadow decide from the next decision on",
    response_model=PromotionAnswer,
    responses=problems(
        "bandit_not_found", "shadow_not_found", "shadow_conflict", "shadow_behind", "reference_missing", body=True
    ),
)
async def promote_shadow(learner: ManagedLearner, shadow: ShadowName, body: PromotionBody, services: Shared) -> Response:
    """The policy that decided becomes the shadow of this name, and learns on. Open decisions stay pending for both; an episode
    ends under the policy that began it. The same id again answers the first receipt.
    """
    learner.ledger.check_ready()
    first = await _found(learner, shadow, body)
    if first is None:
        event = ShadowPromoted(at=services.repository.clock(), id=body.id, shadow=shadow, shadow_offset=body.shadow_offset)
        try:
            receipt = await learner.committer.record(
                event, key=events.promoted_key(body.id), check=lambda: check_promotable(learner, event)
            )
        except Problem:
            first = await _found(learner, shadow, body)  # the same request may have come first
            if first is None:
                raise
        else:
            first = _recorded(event, receipt)
            check_same(body, shadow, first.event)
    learner.committer.duplicates += first.is_duplicate
    return answer({"id": body.id, "shadow": shadow, "offset": first.offset, "duplicate": first.is_duplicate})


def _recorded(event: ShadowPromoted, receipt: Receipt) -> Recorded:
    return Recorded(event if receipt.first is None else events.decode(receipt.first), receipt.offset, receipt.first is not None)


async def _found(learner: Learner, shadow: str, body: PromotionBody) -> Recorded | None:
    """The promotion that has this id already, if there is one."""
    entry = await learner.find(events.promoted_key(body.id))
    if entry is None:
        return None
    found = Recorded(events.decode(entry.payload), entry.offset, True)
    check_same(body, shadow, found.event)
    return found
