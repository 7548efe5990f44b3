"""The log and its digest: what was learned, for replicas, audits and off-policy evaluation."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.dependencies import ReadLearner, Shared
from service.api.event_streams import EventStream
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import NAMED, invalid
from service.api.responses import DigestAnswer, answer
from service.api.routes import problems
from service.engine import events
from service.engine.learner import Learner, digest_of
from service.settings import listed
from service.storage.base import PAGE

router = APIRouter(tags=["log"], route_class=StrictJSONRoute)

LEVEL = 3
"""Of gzip: beyond, a log of vectors takes twice the time for a percent of the bytes."""
_NO_QUALITY = re.compile(r"q\s*=\s*0(\.0*)?")


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
    *,
    request: Request,
    after: Annotated[int, Query(ge=0, description="Events with a greater offset.")] = 0,
    limit: Annotated[int | None, Query(ge=1, description="At most so many; null = to the end as it is now.")] = None,
    fields: Annotated[
        str | None, Query(description="Names of fields with commas, e.g. `at,arm,reward`; beside them `offset` and `event`.")
    ] = None,
    vectors: Annotated[bool, Query(description="0 leaves out features, outputs and reference material.")] = True,
) -> Response:
    """Vectors are base64 of little-endian float32. Prompts are not in the log. Answers gzip where that is accepted."""
    chosen = None if fields is None else _fields_named(fields)
    if chosen is None and vectors:
        written = events.line
    else:
        written = partial(events.selected_line, fields=events.FIELDS if chosen is None else chosen, vectors=vectors)
    end = learner.versions.committed.offset
    last = end if limit is None else min(end, after + limit)
    first = await learner.entries(after=after, limit=min(PAGE, max(last - after, 0)))  # fail before the answer has begun
    pages = _pages(learner, first, written, after=after, last=last)
    headers = {"vary": "accept-encoding"}
    if _takes_gzip(request.headers.getlist("accept-encoding")):
        headers["content-encoding"] = "gzip"
        pages = _gzipped(pages)
    return StreamingResponse(pages, media_type="application/x-ndjson", headers=headers)


def _fields_named(text: str) -> frozenset[str]:
    names = listed(text)
    unknown = [name for name in names if name not in events.FIELDS]
    if unknown or not names:
        what = f"no event has a field {unknown[0][:NAMED]!r}" if unknown else "names no field"
        raise invalid("fields", f"{what}; they are {', '.join(sorted(events.FIELDS))}")
    return frozenset(names)


async def _pages(
    learner: Learner,
    entries: list[tuple[int, bytes]],
    written: Callable[[int, bytes], bytes],
    *,
    after: int,
    last: int,
) -> AsyncIterator[bytes]:
    while entries:
        yield b"".join(written(offset, payload) for offset, payload in entries)
        after = entries[-1][0]
        entries = await learner.entries(after=after, limit=min(PAGE, last - after))


def _takes_gzip(accepted: list[str]) -> bool:
    """Whether Accept-Encoding names gzip, or any coding, with a quality that is not 0."""
    for item in ",".join(accepted).lower().split(","):
        coding, _, quality = item.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return not _NO_QUALITY.fullmatch(quality.strip())
    return False


async def _gzipped(pages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    compressor = zlib.compressobj(LEVEL, wbits=zlib.MAX_WBITS | 16)
    async for page in pages:
        if packed := await asyncio.to_thread(compressor.compress, page):
            yield packed
    yield compressor.flush()


@router.get(
    "/v1/bandits/{name}/events",
    summary="The events as they come, as server-sent events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "One message per event."},
        **problems("bandit_not_found", "log_trimmed", "overloaded"),
    },
)
async def stream_events(
    learner: ReadLearner,
    services: Shared,
    since: Annotated[int | None, Query(ge=0, description="Events with a greater offset; null = what comes from now on.")] = None,
    last_event_id: Annotated[
        int | None, Header(ge=0, description="The same, from a client that connects again; it comes first.")
    ] = None,
) -> Response:
    """`id` is the offset, `event` the kind, `data` the line of the log without its vectors; a comment breaks 15 s of silence.
    The last message is `end`, with a problem document, where the bandit was deleted or its log cannot be read on. 64 streams may
    be open, 32 of one tenant; more are a 503.
    """
    learner.demand.release(asyncio.current_task())  # a stream lasts for days, and asks the store alone
    if last_event_id is None:
        return EventStream(services.event_streams, learner, after=since, name="since")
    return EventStream(services.event_streams, learner, after=last_event_id, name="Last-Event-ID")


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
    return answer({"offset": offset, "sha256": sha256, "layout": learner.ledger.layout})
