"""Room for the requests of one process: how many are worked on at once, and the 503 of those beyond, which is written before.

Taken where a request has come whole (connections.py), or else by the middleware, and given back by the middleware.
"""

from __future__ import annotations

import logging
import os
import re

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api.access_log import ACCEPTED, REQUEST_ID_HEADER
from service.api.metrics import Meter
from service.api.problems import Problem
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.http")

TAKEN = "nextarm.room_taken"
"""In the scope of a request that has its room."""

_LINE = re.compile(rb"(GET|PUT|POST|PATCH|DELETE) /v1/bandits[\x21-\x7e]* HTTP/1\.1\r\n")
_FIELDS = re.compile(
    rb"\r\n((?:content-length|transfer-encoding|connection|expect|upgrade|x-request-id)[^\w:\r\n-]*):[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)
"""Names as they are, or with something behind them, which the parser refuses, that another server may pass over."""
_OWN_ROOM = b"/events"
"""In the target of a stream (event_streams.py), which may pass where others may not."""


class PreparedRefusal:
    """A 503 into which only the id of the request is put; the id has only characters that JSON and headers take as they are."""

    def __init__(self, what: str, *, setting: str) -> None:
        self.line = f"requests are refused: as many {what} as {setting} allows"
        """Of the log."""
        answer = Problem("overloaded", f"too many {what}; try again, or ask another replica").response()
        self._headers = [item for item in answer.raw_headers if item[0] != b"content-length"]
        self._body = bytes(answer.body).removesuffix(b"}") + b',"request_id":"%s"}'
        self._dated: list[tuple[bytes, bytes]] = []
        self._head = b""

    def messages(self, request_id: str) -> tuple[Message, Message]:
        """For the server to send."""
        named = request_id.encode()
        body = self._body % named
        headers = [*self._headers, (b"content-length", b"%d" % len(body)), (REQUEST_ID_HEADER, named)]
        return {"type": "http.response.start", "status": 503, "headers": headers}, {"type": "http.response.body", "body": body}

    def wire(self, request_id: bytes, *, is_last: bool, server_headers: list[tuple[bytes, bytes]]) -> bytes:
        """As it goes over the wire. is_last: of its connection.  server_headers: a new list each second, with the date."""
        if server_headers is not self._dated:
            self._dated = server_headers
            self._head = STATUS_LINE[503] + b"".join(b"%s: %s\r\n" % item for item in (*server_headers, *self._headers))
        body = self._body % request_id
        closing = b"connection: close\r\n" if is_last else b""
        return b"%s%scontent-length: %d\r\nx-request-id: %s\r\n\r\n%s" % (self._head, closing, len(body), request_id, body)


class RequestRoom:
    """Room for the requests of one process. left: how many more may be worked on."""

    def __init__(self, limit: int, meter: Meter) -> None:
        self.left = limit
        self._meter = meter
        self._log = ThrottledLogger(logger)
        self.busy = PreparedRefusal("requests are being worked on", setting="NEXTARM_MAX_CONCURRENT")
        self.too_many_connections = PreparedRefusal("connections are open", setting="NEXTARM_MAX_CONNECTIONS")

    def count_refused(self, refusal: PreparedRefusal, *, method: str) -> None:
        """One that was refused; of many one is logged."""
        self._meter.count_refused(method)
        self._log.warning(refusal.line)

    def takes(self, target: bytes) -> bool:
        """Whether a request takes room: not what must stay observable, waits elsewhere, or has room of its own."""
        return self.left > 0 and target.startswith((b"/v1/bandits", b"/adapters/")) and _OWN_ROOM not in target

    def refuse(self, data: bytes, server_headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bool] | None:
        """The 503, and whether it ends the connection, where `data` is plainly one whole request that takes room. None for
        anything else, which the parser shall judge.
        """
        line = _LINE.match(data)
        end = data.find(b"\r\n\r\n")
        if line is None or end < 0 or _OWN_ROOM in line[0]:
            return None
        if data.count(b"\n", 0, end) != data.count(b"\r\n", 0, end):
            return None
        length, request_id, is_last = -1, b"", False
        for name, value in _FIELDS.findall(data, line.end() - 2, end):
            match name.lower():
                case b"content-length" if length < 0 and value.isdigit() and len(value) < 16:
                    length = int(value)
                case b"x-request-id":
                    request_id = value.rstrip()
                case b"connection" if value.lower() in (b"close", b"keep-alive"):
                    is_last = is_last or value.lower() == b"close"
                case _:
                    return None
        if end + 4 + max(length, 0) != len(data):
            return None
        if not ACCEPTED.fullmatch(request_id):
            request_id = os.urandom(16).hex().encode()
        self.count_refused(self.busy, method=line[1].decode())
        return self.busy.wire(request_id, is_last=is_last, server_headers=server_headers), is_last
