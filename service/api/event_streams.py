"""Event streams: the log of a bandit as server-sent events, while it grows.

    EventStream ──> first page, or a problem ──> entries . comments ──> end: the client leaves, the server stops, the log is gone

A stream holds its offset and at most one page of entries. What its reader has not taken yet stays in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from service.api.error_mapping import to_problem
from service.api.middleware import ABORT, BEGAN
from service.api.problems import Problem, invalid
from service.engine import events
from service.engine.learner import Learner
from service.storage.base import Entry, StorageError, StorageUnavailableError

MAX_STREAMS = 64
PAGE = 64
LARGE_PAGE = 2**18
"""Bytes beyond which a page is written in a thread."""
COMMENT_S = 15.0
"""Silence after which a comment is sent, so that proxies and clients know that the stream is alive."""
PAUSE_S = 0.05
"""Between the news of an entry and its reading: entries that come together are read together."""
STALLED_S = 60.0
"""How long a reader may take nothing until its connection is closed."""
PARTING_S = 1.0
"""What a reader has to take the end when the server stops."""
RETRY_S = 1.0
"""Pause after a store could not be reached, and until a client asks again when a stream has ended."""

LAST = {"type": "http.response.body", "body": b"", "more_body": False}
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""No proxy may keep the stream, or collect it before it passes it on."""


class EventStreams:
    """The open streams of one process. room: how many there may be; one tenant may have half of them."""

    def __init__(self, room: int = MAX_STREAMS) -> None:
        self.open = 0
        self._by_tenant: Counter[str] = Counter()
        self.closing = asyncio.Event()
        self._room = room

    @contextlib.contextmanager
    def place(self, tenant: str = "") -> Iterator[None]:
        """Room for a stream; `Problem` where there is none. tenant: "" = none."""
        instead = "try again, ask another replica, or read the log"
        if self.open >= self._room:
            raise Problem("overloaded", f"{self._room} event streams are open; {instead}")
        if tenant and self._by_tenant[tenant] >= self._room // 2:
            raise Problem("overloaded", f"{self._room // 2} event streams of your tenant are open, its share of them; {instead}")
        self.open += 1
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._by_tenant[tenant] -= 1
            self._by_tenant += Counter()  # tenants without any are forgotten

    def close(self) -> None:
        """End every stream; the server stops."""
        self.closing.set()


class EventStream(Response):
    """The answer that streams. after: the offset behind which it begins, None = what comes from now on.

    name: of the parameter or header that `after` is from.
    """

    media_type = "text/event-stream"

    def __init__(self, streams: EventStreams, learner: Learner, *, after: int | None, name: str) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._streams = streams
        self._log = learner.log
        self._storage = learner.projection.storage
        self._after = after
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until one of the ends."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if "nextarm.is_head" in scope:
            await send(start)
            await send(LAST)
            return
        abort: Callable[[], None] = scope.get(ABORT, lambda: None)
        with self._streams.place(self._log.name.rpartition("/")[0]):
            after, page = await self._begin()
            scope[BEGAN] = time.perf_counter()
            await send(start)
            closing = asyncio.create_task(self._streams.closing.wait())
            leaving = asyncio.create_task(left(receive))
            streaming = asyncio.create_task(self._stream(send, after, page))
            tasks: list[asyncio.Task[object]] = [streaming, closing, leaving]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if streaming.cancelled():
                if leaving.cancelled():  # the server stops
                    await _part(send, receive, abort)
            elif isinstance(streaming.exception(), TimeoutError):
                await drop(abort, receive)
            else:
                streaming.result()

    async def _begin(self) -> tuple[int, list[Entry]]:
        """The first offset and page, before the answer begins: what is wrong then is a problem."""
        end = await self._storage.end(self._log)
        if self._after is None:
            return end, []
        if self._after > end:
            raise invalid(self._name, f"the log ends at offset {end}; GET /v1/bandits/{{name}}/log reads it from its start")
        return self._after, await self._storage.read(self._log, after=self._after, limit=PAGE)

    async def _stream(self, send: Send, after: int, page: list[Entry]) -> None:
        """Entries and comments, until the log is gone. TimeoutError: the reader takes nothing."""
        clock = asyncio.get_running_loop().time
        await _write(send, b"retry: %d\nid: %d\n\n" % (1e3 * RETRY_S, after))  # a client without any event knows where it is, too
        spoken = clock()
        while True:
            if page:
                after, is_whole = page[-1].offset, len(page) == PAGE
                text = await _written(page)
                page = []
                await _write(send, text)
                spoken = clock()
            else:
                is_whole = False
            if clock() - spoken >= COMMENT_S:
                await _write(send, b":\n\n")
                spoken = clock()
            try:
                if not is_whole:
                    end = await self._storage.wait(self._log, after=after, timeout_s=max(0.0, spoken + COMMENT_S - clock()))
                    if end <= after:
                        continue
                    await asyncio.sleep(PAUSE_S)
                page = await self._storage.read(self._log, after=after, limit=PAGE)
            except StorageUnavailableError:
                await asyncio.sleep(RETRY_S)
            except StorageError as error:
                await _write(send, b"event: end\ndata: %s\n\n" % msgspec.json.encode(to_problem(error).document()))
                async with asyncio.timeout(STALLED_S):
                    await send(LAST)
                return


async def _written(page: list[Entry]) -> bytes:
    if sum(len(entry.payload) for entry in page) > LARGE_PAGE:
        return await asyncio.to_thread(_text, page)
    return _text(page)


def _text(page: list[Entry]) -> bytes:
    return b"".join(_event(entry) for entry in page)


def _event(entry: Entry) -> bytes:
    """An entry as one server-sent event; JSON has no line break."""
    line = events.selected_line(entry.offset, entry.payload, vectors=False)
    return b"id: %d\nevent: %s\ndata: %s\n" % (entry.offset, events.kind_of(entry.payload).encode(), line)


async def _write(send: Send, text: bytes) -> None:
    async with asyncio.timeout(STALLED_S):
        await send({"type": "http.response.body", "body": text, "more_body": True})


async def _part(send: Send, receive: Receive, abort: Callable[[], None]) -> None:
    """The end of the answer, for a server that waits for this connection, but not for a reader that takes nothing."""
    try:
        async with asyncio.timeout(PARTING_S):
            await send(LAST)
    except TimeoutError:
        await drop(abort, receive)
    else:
        asyncio.get_running_loop().call_later(PARTING_S, abort)


async def drop(abort: Callable[[], None], receive: Receive) -> None:
    """Drop the connection, and return when the server knows that it is gone: else the answer would be one that was forgotten."""
    abort()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PARTING_S):
            await left(receive)


async def left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
