"""Calls of upstreams: bytes out and in over one pool of connections, and every way to fail as one exception."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

import httpx2

from service.api.facade.sse import Event, EventReader, EventTooLargeError
from service.api.facade.upstreams import Upstream

CONNECT_S = 5.0
"""Longest time to reach an upstream."""
KEEP_ALIVE_S = 4.0
"""Less than any server keeps an idle connection: a call on one that the other side closes just now is lost."""
TIMEOUT = httpx2.Timeout(None, connect=CONNECT_S).as_dict()
MAX_ANSWER_BYTES = 64 * 2**20
RETRY_AFTER = re.compile(r"[A-Za-z0-9,:. -]{1,64}")
"""Seconds, or a date."""
ARM_AT_FAULT = (401, 402, 403, 404, 405, 408, 429)
"""4xx that speak of the arm: its key, its model, its limits. Others speak of the request, which no other arm would take."""


class CallFailedError(Exception):
    """The arm failed. The text is ours: what an upstream says may hold a part of a prompt, or of a key.

    status: what the client is answered where no other arm is left.  retry_after: of the upstream.
    """

    def __init__(self, reason: str, *, status: int = 502, retry_after: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after


class RequestRefusedError(Exception):
    """The upstream refused the request for what it says."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


class UpstreamClient:
    """The connections to all upstreams. connections: how many at most."""

    def __init__(self, *, connections: int) -> None:
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line per call
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_ALIVE_S)
        self._http = httpx2.AsyncClient(limits=limits)
        self._address = functools.lru_cache(1024)(_address)  # to read a URL takes as long as to decide

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def call(self, upstream: Upstream, path: str, body: bytes, *, streams: bool) -> Call:
        """A call whose answer has begun. Raises `CallFailedError` and `RequestRefusedError`."""
        url, headers = self._address(f"{upstream.base_url}{path}", upstream.key)
        request = httpx2.Request("POST", url, headers=headers, content=body, extensions={"timeout": TIMEOUT})
        call = Call(upstream.timeout_s)
        try:
            async with call.watched():
                call.response = await self._http.send(request, stream=True)
                await call.check(streams=streams)
        except BaseException:
            await call.close()
            raise
        return call


def _address(url: str, key: str) -> tuple[httpx2.URL, list[tuple[str, str]]]:
    """Where a call goes, and its headers."""
    read = httpx2.URL(url)
    headers = [
        ("host", read.netloc.decode("ascii")),
        ("accept", "application/json, text/event-stream"),
        ("accept-encoding", "identity"),  # events have to come one by one
        ("content-type", "application/json"),
        ("user-agent", f"nextarm/{version('nextarm')}"),
    ]
    return read, [*headers, ("authorization", f"Bearer {key}")] if key else headers


class Call:
    """One call. timeout_s: for a whole answer, of a stream for its first event and then from one to the next."""

    response: httpx2.Response

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """A part of the call: until the deadline, with every failure as `CallFailedError`."""
        try:
            async with asyncio.timeout_at(self._deadline):
                yield
        except TimeoutError as error:
            raise CallFailedError(f"no answer within {self._timeout_s:g} s", status=504) from error
        except httpx2.TimeoutException as error:
            raise CallFailedError("no connection in time", status=504) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise CallFailedError(f"the connection failed ({type(error).__name__})") from error

    async def check(self, *, streams: bool) -> None:
        """Raise what the status and the type of the answer mean."""
        status = self.response.status_code
        if 200 <= status < 300:
            kind = self.response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if streams != (kind == "text/event-stream"):
                raise CallFailedError(f"status {status} with {'no stream of events' if streams else 'a stream of events'}")
            return
        if 400 <= status < 500 and status not in ARM_AT_FAULT:
            raise RequestRefusedError(status, await self._read())
        reason = f"status {status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else f"status {status}"
        limited = status == 429
        wait = self.response.headers.get("retry-after", "") if limited or status == 503 else ""
        retry_after = wait if RETRY_AFTER.fullmatch(wait) else ""
        raise CallFailedError(reason, status=429 if limited else 502, retry_after=retry_after)

    async def read(self) -> bytes:
        """The whole answer."""
        async with self.watched():
            return await self._read()

    async def _read(self) -> bytes:
        found = bytearray()
        async for piece in self.response.aiter_bytes():
            found += piece
            if len(found) > MAX_ANSWER_BYTES:
                raise CallFailedError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return bytes(found)

    async def events(self) -> AsyncGenerator[list[Event]]:
        """The events of the answer, those of a piece together, each until `timeout_s` after the one before."""
        reader, clock = EventReader(), asyncio.get_running_loop().time
        pieces = self.response.aiter_bytes()
        try:
            while True:
                async with self.watched():
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                events = list(reader.feed(piece))
                if any(event.data is not None for event in events):  # a comment says that the server is there, no more
                    self._deadline = clock() + self._timeout_s
                if events:
                    handed_over = clock()
                    yield events
                    self._deadline += clock() - handed_over  # how slowly a client reads is not the upstream's time
        except EventTooLargeError as error:
            raise CallFailedError("an event without an end") from error
        if (last := reader.rest()) is not None:
            yield [last]

    async def close(self) -> None:
        """Give the connection back, or close it where the answer has not ended."""
        if hasattr(self, "response"):
            await self.response.aclose()
