"""The log and its digest: what was learned, for replicas, audits and off-policy evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from service.api.dependencies import ReadLearner, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.responses import DigestAnswer, answer
from service.api.routes import problems
from service.engine import events
from service.engine.learner import Learner, digest_of

router = APIRouter(tags=["log"], route_class=StrictJSONRoute)

PAGE = 500


@router.get(
    "/v1/bandits/{name}/log",
    summary="The events, one JSON object per line",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "description": "One event per line."},
        **problems("bandit_not_found", "log_trimmed"),
    },
)
async def stream_log(
    learner: ReadLearner,
    after: Annotated[int, Query(ge=0, description="Events with a greater offset.")] = 0,
    limit: Annotated[int | None, Query(ge=1, description="At most so many; null = to the end as it is now.")] = None,
) -> Response:
    """Vectors are base64 of little-endian float32. Prompts are not in the log."""
    end = learner.versions.committed.offset
    last = end if limit is None else min(end, after + limit)
    first = await learner.entries(after=after, limit=min(PAGE, max(last - after, 0)))  # fail before the answer has begun
    return StreamingResponse(_lines(learner, first, after=after, last=last), media_type="application/x-ndjson")


async def _lines(learner: Learner, entries: list[tuple[int, bytes]], *, after: int, last: int) -> AsyncIterator[bytes]:
    while entries:
        yield b"".join(events.line(offset, payload) for offset, payload in entries)
        after = entries[-1][0]
        entries = await learner.entries(after=after, limit=min(PAGE, last - after))


@router.get(
    "/v1/bandits/{name}/digest",
    summary="sha256 of the folded state",
    response_model=DigestAnswer,
    responses=problems("bandit_not_found", "replica_behind", "shadow_behind"),
)
async def show_digest(
    learner: ReadLearner,
    services: Shared,
    min_offset: Annotated[int, Query(ge=0, description="Answer from at least this offset, or 503 `replica_behind`.")] = 0,
) -> Response:
    """Equal on every replica at the same offset, after a restart, and after a replay from the first event. Shadows are part of
    it, by name.
    """
    await learner.projection.wait_for_offset(min_offset, timeout_s=services.settings.min_offset_wait_s)
    offset, sha256 = await asyncio.to_thread(digest_of, *learner.projection.learned())
    return answer({"offset": offset, "sha256": sha256})
