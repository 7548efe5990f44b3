"""Connections: uvicorn's protocol, bounded. What a client holds without having sent a request is limited.

    accepted ──> head (10 s, 64 KiB) ──> body (60 s) ──> answer ──> idle (75 s) ──> head ...

At most so many connections are open as `NEXTARM_MAX_CONNECTIONS` and the limit of file descriptors allow. One more takes the
place of the one that has waited longest for a request: unfinished heads first, then idle connections. Where every connection has
a request under way, a few more are accepted, on which only probes and metrics are answered.

Where there is no room for another request (request_room.py), one that comes whole is refused before it is parsed, and its
connection stays: a new one costs thrice the refusal. A client that repeats on it before `Retry-After` is answered later.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
from enum import Enum
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.access_log import REQUEST_ID_HEADER, request_id
from service.api.metrics import Meter
from service.api.middleware import ABORT, NO_CONNECTION_LEFT
from service.api.problems import RETRY_AFTER_S, Problem
from service.api.request_room import TAKEN, RequestRoom
from service.settings import Settings
from service.storage.throttling import ThrottledLogger

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("nextarm.http")

MAX_HEAD_BYTES = 2**16
PROBE_CONNECTIONS = 8
"""Accepted when every other connection has a request under way."""
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?P<authority>[^/?#]*)")
"""A request target with its scheme and host."""
SPARE_DESCRIPTORS = 16
"""For the store, models and pictures, beyond those that are open when the server begins to listen."""
LINGER_S, LINGER_BYTES = 5.0, 2**26
"""How long, and for how much, a connection is read after an answer that came before the request's end. To close it at once would
make the operating system reset it, and the client would lose the answer.
"""

HOLD_S, MAX_HELD = 0.1, 256
"""How long a refusal is held back from a client that was refused on the same connection less than `Retry-After` ago, and how many
are at once. One that repeats at once would otherwise take the time of those who are served.
"""


class _Part(Enum):
    """What of a message is being read."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


REFUSALS = {
    "malformed_request": "this is not HTTP/1.1",
    "headers_too_large": f"the request line and the headers may have {MAX_HEAD_BYTES} bytes",
    "request_timeout": "the request did not arrive in time",
}


class ConnectionLimits:
    """What the connections of one process share.

    Args:
        connections: how many may be open at once.
    """

    def __init__(self, settings: Settings, *, connections: int, meter: Meter, room: RequestRoom) -> None:
        self.connections = connections
        self.room = room
        self.held = 0
        self.head_timeout_s = settings.head_timeout_s
        self.body_timeout_s = settings.body_timeout_s
        self.unfinished: dict[BoundedProtocol, None] = {}
        """Connections on which no request has been finished yet and none is under way, the oldest first."""
        self.idle: dict[BoundedProtocol, None] = {}
        """Connections between two requests, the one idle for longest first."""
        self._meter = meter
        self.log = ThrottledLogger(logger)

    def make_room(self) -> None:
        """Close the connection that has waited longest for a request, if one waits."""
        for connection in self.unfinished or self.idle:
            connection.give_way()
            self.log.warning("connections are closed: as many are open as NEXTARM_MAX_CONNECTIONS and file descriptors allow")
            break

    def refused(self, code: str) -> None:
        """Count and log what was refused before it was a request."""
        self._meter.count(route="", method="", status=Problem(code, "").status, seconds=0.0)
        self._meter.count_problem(code)
        self.log.warning(f"connections are refused: {REFUSALS[code]}")


def available_connections(wanted: int) -> int:
    """As many as are wanted, or as the limit of file descriptors allows; where the system permits, that limit is raised."""
    if resource is None:
        return wanted
    spare = PROBE_CONNECTIONS + SPARE_DESCRIPTORS + len(os.listdir("/dev/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + spare:
        raised = wanted + spare if hard == resource.RLIM_INFINITY else min(hard, wanted + spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= wanted + spare:
        return wanted
    fewer = max(1, soft - spare)
    logger.warning("the limit of file descriptors allows %d connections, not %d as NEXTARM_MAX_CONNECTIONS says", fewer, wanted)
    return fewer


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **named: Any) -> None:
        super().__init__(*args, **named)
        self._limits = limits
        self._part = _Part.NOTHING
        self._head_bytes = 0  # of the head that is read, or was read last
        self._body_bytes = 0  # of the message's body, as far as the parser passed it on
        self._message_bytes = 0  # as they came, since the end of the head
        self._chunk_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_part = _Part.NOTHING
        self._refusal = ""
        self._is_for_probes = False
        self._is_lingering = False
        self._refused_at = -math.inf  # of the loop's clock, for want of room
        self._held: asyncio.TimerHandle | None = None
        self._held_answer: tuple[bytes, bool] = (b"", False)

    # -- the connection ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._closing = _Closing(self)
        limits = self._limits
        if len(self.connections) > limits.connections:
            limits.make_room()
            self._is_for_probes = len(self.connections) > limits.connections
            if len(self.connections) > limits.connections + PROBE_CONNECTIONS:
                limits.log.warning("connections are refused: each of NEXTARM_MAX_CONNECTIONS has a request under way")
                self._abort()
                return
        limits.unfinished[self] = None
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._part = _Part.NOTHING
        self._leave_waiting()
        self._drop_held()
        self._drop_deadline()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def give_way(self) -> None:
        """Close: another connection takes the place."""
        self._leave_waiting()
        self.connections.discard(self)
        self._abort()

    def _leave_waiting(self) -> None:
        self._limits.unfinished.pop(self, None)
        self._limits.idle.pop(self, None)

    def _abort(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    # -- what comes ----------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._discard(len(data))
            return
        if self._held is not None:  # it does not wait for its answer
            self._send_held()
        if self._limits.room.left <= 0 and self._is_refused(data):
            return
        size = len(data)
        before = self._part
        # A head that begins in this chunk has at most its bytes. One that begins behind another message is counted from the next
        # chunk on; what it may have beyond is one chunk.
        self._chunk_bytes = size if before is _Part.NOTHING else 0
        if before is _Part.HEAD:
            self._head_bytes += size
        elif before is _Part.BODY:
            self._message_bytes += size
        super().data_received(data)
        if self._part is _Part.NOTHING:
            if self._deadline is not None:
                self._drop_deadline()
        elif not self.transport.is_closing() and not self._is_lingering:
            self._look_at_unfinished()

    def _look_at_unfinished(self) -> None:
        """A message of which more has to come."""
        if self._part is _Part.HEAD and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse("headers_too_large")
        elif self._message_bytes > MAX_HEAD_BYTES + 8 * self._body_bytes:  # extensions and trailers, hardly a body
            self._refuse("malformed_request")
        elif self._message_bytes > LINGER_BYTES and self.cycle.response_complete:
            self._abort()
        elif self._deadline_part is not self._part:
            self._drop_deadline()
            self._deadline_part = self._part
            in_head = self._part is _Part.HEAD
            seconds = self._limits.head_timeout_s if in_head else self._limits.body_timeout_s
            self._deadline = self.loop.call_later(seconds, self._refuse, "request_timeout")

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._deadline_part = _Part.NOTHING

    # -- no room -------------------------------------------------------------------------------------------------------------

    def _is_refused(self, data: bytes) -> bool:
        """Refuse what has come, if it is one whole request behind nothing else. The parser does not learn of it."""
        is_between = self._part is _Part.NOTHING and (self.cycle is None or self.cycle.response_complete)
        if not is_between or self._is_for_probes or self.transport.is_closing():
            return False
        answer = self._limits.room.refuse(data, self.server_state.default_headers)
        if answer is None:
            return False
        now = self.loop.time()
        is_early, self._refused_at = now - self._refused_at < RETRY_AFTER_S, now
        if is_early and self._limits.held < MAX_HELD:
            self._limits.held += 1
            self._held, self._held_answer = self.loop.call_later(HOLD_S, self._send_held), answer
        else:
            self._write_refusal(*answer)
        return True

    def _write_refusal(self, answer: bytes, is_last: bool) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            if is_last:
                self.transport.close()

    def _send_held(self) -> None:
        answer = self._held_answer
        self._drop_held()
        self._write_refusal(*answer)

    def _drop_held(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held, self._held_answer = None, (b"", False)
            self._limits.held -= 1

    def timeout_keep_alive_handler(self) -> None:
        """Close what is idle. A refusal does not move the timer: here is seen how long it is ago."""
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server stops."""
        if self._held is not None:
            self._send_held()
        super().shutdown()

    # -- what the parser says ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._part = _Part.HEAD
        self._head_bytes, self._chunk_bytes = self._chunk_bytes, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is _Part.HEAD:  # else it is a trailer, which nothing reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            self._refusal = "headers_too_large"
            raise ValueError(self._refusal)  # the parser stops, and `send_400_response` is called
        self._leave_waiting()
        self._take_host_of_target()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]
        if self._is_for_probes:
            self.scope[NO_CONNECTION_LEFT] = True  # type: ignore[literal-required]
        super().on_headers_complete()  # raises where the target has no path, as that of CONNECT: it is refused as a head
        self._part = _Part.BODY
        self._message_bytes = self._body_bytes = 0
        self.cycle.transport = self._closing  # type: ignore[assignment]
        if self._is_for_probes:
            self.cycle.keep_alive = False

    def _take_host_of_target(self) -> None:
        """Of `GET http://name/path` the name is the host that is addressed, whatever the Host header says (RFC 9112, 3.2.2)."""
        if match := _ABSOLUTE.match(self.url):
            others = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers[:] = [*others, (b"host", match["authority"])]  # in place: the scope holds the list

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = _Part.NOTHING
        super().on_message_complete()
        if self.cycle.response_complete:  # which came before its request's end
            self._wait_for_next()
        elif not self.pipeline and not self._is_for_probes and self._limits.room.takes(self.url):
            # Now, not when its task runs: of all that has come by then, no more are parsed than there is room for.
            self._limits.room.left -= 1
            self.scope[TAKEN] = True  # type: ignore[literal-required]

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._part is _Part.NOTHING and self.cycle.response_complete:  # of the last request that came, behind others or not
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        if self.transport.is_closing() or self._is_lingering:
            return
        self._limits.idle[self] = None
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    # -- answers that are not the application's ------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the parser refuses."""
        self._refuse(self._refusal or "malformed_request")

    def _refuse(self, code: str) -> None:
        """A problem document, and the end of the connection. Not in the middle of another answer, nor ahead of one."""
        self._limits.refused(code)
        cycle = self.cycle
        is_body = self._part is _Part.BODY
        is_answered = cycle is None or cycle.response_complete
        if self.pipeline or (cycle.response_started if is_body else not is_answered):
            self._abort()
            return
        if is_body:
            cycle.disconnected = True  # what is still to be answered by the application is not
            cycle.message_event.set()
        self.transport.write(_answer(code, self._given_id(), self.server_state.default_headers))
        if code == "request_timeout":
            self.transport.close()
        else:
            self._linger()

    def _given_id(self) -> bytes | None:
        return next((value for name, value in self.headers or () if name == REQUEST_ID_HEADER), None)

    # -- the end -------------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Close after the last answer."""
        if self._part is _Part.NOTHING:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        if self._is_lingering or self.transport.is_closing():
            return
        self._is_lingering = True
        self.pipeline.clear()
        self._message_bytes = 0
        self._drop_deadline()
        self._unset_keepalive_if_required()
        self._leave_waiting()
        self._limits.unfinished[self] = None  # the first to give way
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline = self.loop.call_later(LINGER_S, self._abort)

    def _discard(self, size: int) -> None:
        self._message_bytes += size
        if self._message_bytes > LINGER_BYTES:
            self._abort()


class _Closing:
    """The transport of an answer that ends a connection: what is left of the request is read before, within bounds."""

    __slots__ = ("_protocol", "write")

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write

    def close(self) -> None:
        """After the last byte of the answer."""
        self._protocol.end()


def _answer(code: str, given_id: bytes | None, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    problem = Problem(code, REFUSALS[code])
    named = request_id(given_id)
    body = msgspec.json.encode({**problem.document(), "request_id": named})
    headers = [
        *default_headers,
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (REQUEST_ID_HEADER, named.encode()),
    ]
    return b"".join([STATUS_LINE[problem.status], *(b"%s: %s\r\n" % header for header in headers), b"\r\n", body])
