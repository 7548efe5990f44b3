"""Bandits and their arms: create, look, change, delete."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Header, Query, Response
from starlette.convertors import Convertor, register_url_convertor
from uuid_utils.compat import uuid7

from bandits.hyperparameters import declared
from bandits.registry import POLICIES
from service.api.change import check_same, configured_event
from service.api.create import check_size, check_spelling, created_event
from service.api.dependencies import Admin, ArmPath, BanditName, ManagedLearner, Reader, ReadLearner, Services, Shared
from service.api.embedder_choice import load_for, notices
from service.api.error_mapping import to_problem
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import Problem, arm_not_found, invalid
from service.api.requests import MAX_ARMS, MAX_ARMS_EVER, POLICY_MODELS, ArmBody, BanditBody, BanditPatch, Time, check_arm_name
from service.api.responses import (
    ArmReceipt,
    BanditAnswer,
    BanditHealthAnswer,
    BanditsAnswer,
    PoliciesAnswer,
    SeriesAnswer,
    answer,
    arm_json,
    bandit_json,
    faulty_json,
    health_json,
    series_json,
    summary_json,
)
from service.api.routes import problems
from service.engine import events
from service.engine.errors import BanditNotFoundError
from service.engine.events import ArmAdded, ArmChanged, ArmRetired
from service.engine.learner import Learner
from service.storage.base import LogNotFoundError


class _ArmConvertor(Convertor[str]):
    """The rest of a path is the name of an arm, slashes and all. (The framework's `path` ends at a line feed.)"""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("arm", _ArmConvertor())

TAGGED: dict[str, Any] = {
    "headers": {
        "ETag": {
            "description": "The bandit's `offset`, for `If-Match`.",
            "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
            "example": '"4711"',
        }
    }
}
"""Of responses that show a bandit, in the OpenAPI document."""

router = APIRouter(tags=["bandits"], route_class=StrictJSONRoute)

LOADING_WAIT_S = 2.0
"""For bandits that are being loaded, when they are listed."""


@router.get(
    "/v1/policies",
    summary="Every policy, with the JSON schema of its hyperparameters",
    response_model=PoliciesAnswer,
    responses=problems(),
)
async def list_policies(caller: Reader) -> Response:
    """kind, what it is for, what an outcome must carry, and its hyperparameters with defaults, ranges and meaning."""
    return answer({"policies": [_policy_json(kind) for kind in POLICIES]})


def _policy_json(kind: str) -> dict[str, Any]:
    policy = POLICIES[kind]
    needs = policy.needs
    return {
        "kind": kind,
        "summary": policy.summary,
        "needs": sorted(needs),
        "reference_when": policy.reference_when,
        "contextual": "features" in needs or policy.uses_prompt,
        "episodic": policy.episodic,
        "hyperparameters": [item.name for item in declared(policy)],
        "schema": POLICY_MODELS[kind].model_json_schema(),
    }


@router.put(
    "/v1/bandits/{name}",
    summary="Create a bandit",
    status_code=201,
    responses={
        201: {"model": BanditAnswer, "description": "Created.", **TAGGED},
        200: {"model": BanditAnswer, "description": "It exists, with the same configuration.", **TAGGED},
        **problems("bandit_exists", body=True),
    },
)
async def create_bandit(name: BanditName, body: BanditBody, caller: Admin, services: Shared) -> Response:
    """201 creates; the same body again is a 200; another body a 409. The first bandit of an embedder is answered when that is
    loaded, which takes seconds: its first decision then does not.
    """
    try:
        learner, is_new = await services.repository.get_newest(caller.tenant, name), False
    except BanditNotFoundError:
        learner, is_new = await _create(name, body, caller.tenant, services)
    if not is_new:
        check_same(learner, body)
    return await _shown(learner, services, status=201 if is_new else 200)


async def _create(name: str, body: BanditBody, tenant: str, services: Services) -> tuple[Learner, bool]:
    created = await asyncio.to_thread(
        created_event,
        name,
        tenant,
        body,
        default_timeout_s=services.settings.default_timeout_s,
        max_bytes=services.settings.max_state_bytes,
        clock=services.repository.clock,
        sources=services.settings.sources(),
    )
    check_spelling(body)
    await load_for(services.embeddings, created)
    return await services.repository.create(created)  # another request may have come first


@router.get("/v1/bandits", summary="Every bandit, in short", response_model=BanditsAnswer, responses=problems())
async def list_bandits(
    caller: Reader,
    services: Shared,
    after: Annotated[str, Query(max_length=63, description="Continue behind this name.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="Bandits in a page.")] = 100,
) -> Response:
    """In the order of their names, a page at a time; `next` is the `after` of the next page, null on the last. All of it is read
    off what this process has folded. Of a bandit that is not in memory it is what was kept when it was: `as_of` is that offset.
    One that was not kept and is still being loaded, or cannot be served, says so in `fault`.
    """
    names = [name for name in await services.repository.names(caller.tenant) if name > after]
    page = names[:limit]
    asked = {name: asyncio.ensure_future(_look(caller.tenant, name, services)) for name in page}
    if asked:
        await asyncio.wait(asked.values(), timeout=LOADING_WAIT_S)
    items = []
    for name, found in asked.items():
        items.append(await _summary(name, found, services))
        await asyncio.sleep(0)  # a summary takes up to a millisecond; decisions do not wait for a thousand of them
    return answer({"bandits": [item for item in items if item], "next": page[-1] if len(names) > limit else None})


async def _look(tenant: str, name: str, services: Services) -> Learner | dict[str, Any]:
    """The bandit if it is loaded, else its summary; it is loaded only where there is none. A list is no use of a bandit."""
    if (learner := services.repository.peek(tenant, name)) is not None:
        return learner
    if (kept := await services.repository.summary(tenant, name)) is not None:
        summary: dict[str, Any] = msgspec.json.decode(kept)
        return summary
    return await services.repository.get(tenant, name)


async def _summary(name: str, found: asyncio.Future[Learner | dict[str, Any]], services: Services) -> dict[str, Any] | None:
    """A bandit in the list; None where it was deleted meanwhile."""
    if not found.done():
        found.cancel()
        return faulty_json(name, "it is still being loaded; ask again")
    try:
        learner = found.result()
        if isinstance(learner, dict):
            return learner
        return await summary_json(learner, services.repository.clock(), notices(services.embeddings, learner.created))
    except (BanditNotFoundError, LogNotFoundError):
        return None
    except Exception as error:
        return faulty_json(name, to_problem(error).detail)


@router.get(
    "/v1/bandits/{name}",
    summary="Configuration and what was learned",
    response_model=BanditAnswer,
    responses={200: TAGGED, **problems("bandit_not_found")},
)
async def show_bandit(learner: ReadLearner, services: Shared) -> Response:
    """Per arm: pulls, outcomes, pending, mean reward, total cost, share of the last 1,000 decisions; and the policy's report."""
    return await _shown(learner, services)


async def _shown(learner: Learner, services: Services, *, status: int = 200) -> Response:
    """A bandit, with its offset as the entity tag."""
    shown = await bandit_json(learner, notices(services.embeddings, learner.created))
    response = answer(shown, status=status)
    response.headers["etag"] = f'"{shown["offset"]}"'
    return response


@router.patch(
    "/v1/bandits/{name}",
    summary="Change what can change while the bandit lives",
    response_model=BanditAnswer,
    responses={200: TAGGED, **problems("bandit_not_found", "not_live", "offset_conflict", body=True)},
)
async def change_bandit(
    learner: ManagedLearner,
    body: BanditPatch,
    services: Shared,
    if_match: Annotated[
        str | None,
        Header(
            description="An `ETag` of this bandit, or its offset: change only if nothing was logged behind it, else 412. Also a "
            "list of them, or `*`.",
            examples=['"4711"'],
        ),
    ] = None,
) -> Response:
    """Objective, budget, default reward and time, and hyperparameters that no statistic depends on. All of it or nothing; values
    that are so already append nothing to the log.
    """
    await learner.projection.catch_up()
    _check_offset(learner, if_match)
    event = configured_event(learner, body, services.repository.clock())
    if event is not None:
        await learner.committer.record(event, key=f"configured/{uuid7()}", check=lambda: _check_offset(learner, if_match))
    return await _shown(learner, services)


_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|[0-9]+'
_TAGS = re.compile(rf"[ \t]*(?:{_TAG})(?:[ \t]*,[ \t]*(?:{_TAG}))*[ \t]*")


def _check_offset(learner: Learner, if_match: str | None) -> None:
    """Raise `offset_conflict` where the log has grown behind the offset that the client knows (RFC 9110, 13.1.1: any of the tags
    may be it, and a weak one never is).
    """
    if if_match is None or if_match.strip() == "*":
        return
    if not _TAGS.fullmatch(if_match):
        raise invalid("If-Match", 'must be an offset, as answers have it, an ETag such as "4711", a list of them, or *')
    now = learner.versions.committed.offset
    if f"{now}" not in (tag.strip('"') for tag in re.findall(_TAG, if_match)):
        raise Problem("offset_conflict", f"the log is at offset {now}, not at {if_match[:64]}; look at the bandit again")


@router.get(
    "/v1/bandits/{name}/health",
    summary="Does it do well? Checks, each with its fix",
    response_model=BanditHealthAnswer,
    responses=problems("bandit_not_found"),
)
async def show_health(learner: ReadLearner, services: Shared) -> Response:
    """Whether outcomes come, rewards and signals can be learned from, arms changed, a budget is held, the prompt pays, and how
    much is gained over the best fixed arm. `status` is the worst of the checks.
    """
    return answer(await health_json(learner, services.repository.clock()))


@router.get(
    "/v1/bandits/{name}/series",
    summary="What happened over time, per arm",
    response_model=SeriesAnswer,
    responses=problems("bandit_not_found"),
)
async def show_series(
    learner: ReadLearner,
    services: Shared,
    *,
    since: Annotated[Time | None, Query(description="RFC 3339; left out, as far back as is known.")] = None,
    until: Annotated[Time | None, Query(description="RFC 3339; left out, now.")] = None,
    buckets: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 120,
) -> Response:
    """Decisions, outcomes, sums of signals, and what the last decision weighed, by the times of the log. An hour is kept in
    buckets of 10 seconds, 30 hours in those of 5 minutes, and 90 days in those of 6 hours; the answer is made of the smallest
    that reach back to `since`.
    """
    if since is not None and until is not None and since >= until:
        raise invalid("until", "must be later than since")
    ledger, tallies, begin = learner.ledger, learner.ledger.tallies, learner.created.at
    now = max(services.repository.clock(), begin, *(at for at in (tallies.last_decision, tallies.last_outcome) if at))
    end = now + timedelta(microseconds=1)  # what happens now is before it
    first, last = (min(max(at, begin), end) for at in (since or begin, until or end))
    selection = ledger.series.select(first.timestamp(), last.timestamp(), rows=buckets)
    names, offset = [arm.name for arm in ledger.arms], ledger.offset
    return answer(await asyncio.to_thread(series_json, selection, names=names, offset=offset))


@router.delete(
    "/v1/bandits/{name}",
    summary="Delete a bandit with its log",
    status_code=204,
    response_class=Response,
    responses=problems("bandit_not_found"),
)
async def delete_bandit(name: BanditName, caller: Admin, services: Shared) -> Response:
    """Open decisions go too: their outcomes will be answered with 404."""
    await services.repository.delete(caller.tenant, name)
    return Response(status_code=204)


@router.put(
    "/v1/bandits/{name}/arms/{arm:arm}",
    summary="Add an arm, bring one back, or change price and metadata",
    responses={
        200: {"model": ArmReceipt, "description": "The arm was there."},
        201: {"model": ArmReceipt, "description": "A new arm."},
        **problems("bandit_not_found", body=True),
    },
)
async def put_arm(
    learner: ManagedLearner, arm: ArmPath, services: Shared, body: Annotated[ArmBody | None, Body()] = None
) -> Response:
    """What the body leaves out stays as it is. A new arm is tried first; one that comes back keeps what was learned of it."""
    wanted, now = body or ArmBody(), services.repository.clock()
    if learner.ledger.index(arm) is None:
        added = ArmAdded(at=now, name=arm, price=wanted.price, metadata=wanted.metadata)
        with contextlib.suppress(_Known):
            receipt = await learner.committer.record(
                added, key=events.added_key(arm), check=lambda: _check_new(learner, arm, services)
            )
            if receipt.first is None:
                return answer(_arm_receipt(learner, arm), status=201)
    await learner.projection.catch_up()
    index = _index(learner, arm)
    kept = learner.versions.committed.arms[index]
    price = wanted.price if "price" in wanted.model_fields_set else kept.price
    metadata = wanted.metadata if "metadata" in wanted.model_fields_set else kept.metadata

    def check() -> None:
        current = learner.ledger.arms[index]
        if (price, metadata, True) == (current.price, current.metadata, current.active):
            raise _Known
        if current.is_gone:
            _check_room(learner)

    with contextlib.suppress(_Known):
        event = ArmChanged(at=now, arm=index, price=price, metadata=metadata)
        await learner.committer.record(event, key=f"arm/{arm}/{uuid7()}", check=check)
    return answer(_arm_receipt(learner, arm))


class _Known(Exception):
    """The arm is as the request wants it, maybe by another request of this moment: nothing is appended."""


def _check_new(learner: Learner, arm: str, services: Services) -> None:
    if learner.ledger.index(arm) is not None:
        raise _Known
    try:
        check_arm_name(arm)
    except ValueError as error:
        raise invalid("arm", str(error)) from None
    _check_room(learner)
    if len(learner.ledger.arms) >= MAX_ARMS_EVER:
        raise invalid(
            "arm", f"a bandit has at most {MAX_ARMS_EVER:,} arms in its life; bring a retired one back, or create a new bandit"
        )
    arms = len(learner.ledger.arms) + 1
    check_size(learner.policy, learner.ledger.live.hyperparameters, arms=arms, max_bytes=services.settings.max_state_bytes)


def _check_room(learner: Learner) -> None:
    if sum(not arm.is_gone for arm in learner.ledger.arms) >= MAX_ARMS:
        raise invalid(
            "arm", f"a bandit has at most {MAX_ARMS:,} arms at a time; retire one (it counts until nothing of it is open)"
        )


def _index(learner: Learner, arm: str) -> int:
    index = learner.ledger.index(arm)
    if index is None:
        raise arm_not_found()
    return index


def _arm_receipt(learner: Learner, arm: str) -> dict[str, Any]:
    return {**arm_json(learner, _index(learner, arm)), "offset": learner.versions.committed.offset}


@router.delete(
    "/v1/bandits/{name}/arms/{arm:arm}",
    summary="Retire an arm",
    status_code=204,
    response_class=Response,
    responses=problems("bandit_not_found", "arm_not_found"),
)
async def retire_arm(learner: ManagedLearner, arm: ArmPath, services: Shared) -> Response:
    """It is no longer chosen; its history stays, and outcomes of its open decisions are still learned. When nothing of it is
    open it leaves answers, metrics and the limit of arms.
    """
    await learner.projection.refresh()
    index = _index(learner, arm)

    def check() -> None:
        if not learner.ledger.arms[index].active:
            raise _Known

    with contextlib.suppress(_Known):
        await learner.committer.record(
            ArmRetired(at=services.repository.clock(), arm=index), key=f"arm/{arm}/{uuid7()}", check=check
        )
    return Response(status_code=204)
