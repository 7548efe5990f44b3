"""Admission of requests as pure ASGI middleware: host, path, caller, rate, and the size, encoding and type of the body.

    id ──> room (503) ──> host (421) ──> path (400) ──> key (401), rate (429) ──> size (413)
       ──> parts (413), encoding, type (415) ──> room (503) ──> route

Strangers are turned away before a byte of their body is read. Bodies are collected here, bounded, because the framework would
turn a failure while reading into an error of its own.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote, unquote_to_bytes

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import access_log
from service.api.access_log import REQUEST_ID, REQUEST_ID_HEADER, AccessLog
from service.api.auth import TENANT_HEADER, Authenticator
from service.api.json_bodies import check_structure, parse_json
from service.api.metrics import Meter
from service.api.pages import FILES
from service.api.problems import Problem
from service.api.request_room import TAKEN, RequestRoom
from service.api.requests import NAME
from service.settings import Settings
from service.storage.throttling import ThrottledLogger

PUBLIC = frozenset(("/healthz", "/readyz", "/openapi.json", *FILES))
"""What needs no key: probes, documentation, the dashboard, which asks for one. (Metrics name bandits: a scraper has a key.)"""

ALWAYS_SERVED = ("/healthz", "/readyz", "/metrics")
"""An overloaded server must remain observable."""

LARGE_BODY = 2**18
"""Bytes beyond which a body is measured in a thread, and parsed in an iteration of the event loop that parses no other such body:
between two of them, others are answered.
"""

TENANT = TENANT_HEADER.lower().encode()
ADAPTERS, SUBSCRIPTION_KEY = "/adapters/", b"ocp-apim-subscription-key"
"""Where other services' clients come in, and the header in which one of them sends its key."""
MIN_OFFSET = b"x-nextarm-min-offset"
HEADERS = frozenset(
    (
        SUBSCRIPTION_KEY,
        MIN_OFFSET,
        REQUEST_ID_HEADER,
        TENANT,
        b"authorization",
        b"content-length",
        b"content-encoding",
        b"content-type",
    )
)
"""Those that are looked at on the way to a route, in the scope as `nextarm.headers`."""
LONGEST_NAME = 64
"""Characters of a bandit's name in a log line; there is none longer."""

LOGGED_ELSEWHERE = (502, 503, 504)
"""Statuses whose cause is logged where it is found, once for many requests."""

NO_CONNECTION_LEFT = "nextarm.no_connection_left"
"""In the scope of a request whose connection was only accepted for probes (connections.py)."""

ABORT = "nextarm.abort"
"""In the scope, where the server is ours: drops the connection with what it has not sent yet (connections.py)."""

BEGAN = "nextarm.began"
"""In the scope of a stream: when its answer began. How long it stays says nothing of the service."""

EVENTS = re.compile(f"/v1/bandits/{NAME.strip('^$')}/events")
"""Streams stay for hours. They have room of their own (event_streams.py), and are no requests that are worked on."""

logger = logging.getLogger("nextarm.http")


class AdmissionMiddleware:
    """Admits requests, or answers why not; gives each an id, counts it, and writes one log line about it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        meter: Meter,
        room: RequestRoom,
        settings: Settings,
        hosts: AllowedHosts,
        unlimited: tuple[str, ...] = (),
        failures: Mapping[str, Callable[[Problem], Response]] | None = None,
    ) -> None:
        self._app = app
        self._room = room
        self._authenticator = authenticator
        self._hosts = hosts
        self._failures = failures or {}  # beginning of a path -> the form in which its clients read problems
        self._unlimited = unlimited  # beginnings of paths whose requests mostly wait for others, and have a limit of their own
        self._meter = meter
        self._limit = settings.max_body_bytes
        self._bodies_room = settings.max_bodies_bytes or 8 * settings.max_body_bytes
        self._throttled = ThrottledLogger(logger)
        self._access_log = AccessLog()
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901 - one request from end to end
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["nextarm.headers"] = {name: value for name, value in scope["headers"] if name in HEADERS}
        request_id = scope["nextarm.id"] = access_log.request_id(headers.get(REQUEST_ID_HEADER))
        REQUEST_ID.set(request_id)  # a request is a task of its own
        if self._is_full(scope):  # before anything else is done for it
            try:
                await self._refuse(scope, send)
            finally:
                if TAKEN in scope:  # its body came while the refusal waited for a client that did not read
                    self._room.left += 1
            return
        started = time.perf_counter()
        received = scope  # in which the connection notes, perhaps later, that room was taken
        status = 500
        is_head = scope["method"] == "HEAD"
        if is_head:  # what GET answers, without its body; the server's own scope stays as it is
            scope = {**scope, "method": "GET", "nextarm.is_head": True}

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, request_id.encode())]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        held = 0
        try:
            self._admit(scope, headers)
            body = await self._collect(headers, receive)
            if body is None:
                return
            held = len(body)
            await self._check(headers, body)
        except Problem as problem:
            scope["nextarm.problem"] = problem.code
            await self._answer(scope["path"], problem)(scope, receive, watch)
        else:
            if TAKEN not in received and self._is_full(scope):  # others came while it was read
                await self._refuse(scope, send)
                return
            if _is_stream(scope):  # which may stay for hours: a body that nothing reads does not
                self._bodies_room += held
                held, body = 0, b""
            scope["nextarm.body"] = body
            await self._work_on(body, scope, receive, watch, is_counted=TAKEN in received)
        finally:
            self._bodies_room += held
            if TAKEN in received:
                self._room.left += 1
        self._log_request(scope, status, scope.get(BEGAN, time.perf_counter()) - started)

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        self._hosts.check(scope["headers"])
        check_target(scope.get("raw_path") or quote(scope["path"]).encode())
        path = scope["path"]
        if path not in PUBLIC or (path == "/readyz" and b"authorization" in headers):  # it says more to who may know more
            address = scope["client"][0] if scope.get("client") else ""
            authorization = headers.get(b"authorization", b"")
            if not authorization and SUBSCRIPTION_KEY in headers and path.startswith(ADAPTERS):
                authorization = b"Bearer " + headers[SUBSCRIPTION_KEY]
            scope["nextarm.caller"] = self._authenticator.authenticate(
                authorization=authorization.decode("latin-1"),
                address=address,
                tenant=headers.get(TENANT, b"").decode("latin-1"),
            )

    async def _work_on(self, body: bytes, scope: Scope, receive: Receive, send: Send, *, is_counted: bool) -> None:
        has_own_room = _is_stream(scope) or (self._unlimited and scope["path"].startswith(self._unlimited))
        taken = 0 if has_own_room or is_counted else 1
        self._room.left -= taken
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._room.left += taken

    def _is_full(self, scope: Scope) -> bool:
        if TAKEN in scope or (self._room.left > 0 and NO_CONNECTION_LEFT not in scope):
            return False
        return scope["path"] not in ALWAYS_SERVED and (NO_CONNECTION_LEFT in scope or not _is_stream(scope))

    def _answer(self, path: str, problem: Problem) -> Response:
        for beginning, failure in self._failures.items():
            if path.startswith(beginning):
                return failure(problem)
        return problem.response()

    async def _refuse(self, scope: Scope, send: Send) -> None:
        """What its connection has not refused before: a body that came late, or a form that is rare."""
        refusal = self._room.too_many_connections if NO_CONNECTION_LEFT in scope else self._room.busy
        for message in refusal.messages(scope["nextarm.id"]):
            await send(message)
        self._room.count_refused(refusal, method=_method(scope))

    def _log_request(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(scope.get("nextarm.route") or getattr(scope.get("route"), "path_format", ""))
        method = _method(scope)
        self._meter.count(route=route, method=method, status=status, seconds=seconds)
        if "nextarm.problem" in scope:
            self._meter.count_problem(scope["nextarm.problem"])
        is_failure = status >= 500 and status not in LOGGED_ELSEWHERE
        if not (is_failure or logger.isEnabledFor(logging.INFO)):
            return
        fields = {
            "request_id": scope["nextarm.id"],
            "method": method,
            "route": route,
            "bandit": (scope.get("nextarm.bandit") or scope.get("path_params", {}).get("name", ""))[:LONGEST_NAME],
            "status": status,
            "ms": round(1e3 * seconds, 2),
        }
        if is_failure:
            logger.error("request", extra=fields)
        else:
            self._access_log.write(fields)

    async def _collect(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body, for which room was taken; None where the client went away in the middle of it: half a request is none.
        Bodies are limited one by one and all together, from the first byte that is kept of them.
        """
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._limit:
            raise self._too_large()
        chunks, size, more = [], 0, True
        is_whole = False
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                chunk = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                self._bodies_room -= len(chunk)
                if size > self._limit:
                    raise self._too_large()
                if self._bodies_room < 0:
                    raise self._no_room_for_bodies()
                more = message.get("more_body", False)
            is_whole = True
        finally:
            if not is_whole:
                self._bodies_room += size
        return b"".join(chunks)

    async def _check(self, headers: Mapping[bytes, bytes], body: bytes) -> None:
        if len(body) > LARGE_BODY:
            await asyncio.to_thread(check_structure, body)
            await self._wait_for_parser()
        else:
            check_structure(body)
        if body:
            _check_type(headers, body)

    async def _wait_for_parser(self) -> None:
        """Return in an iteration of the loop of its own. What follows, up to the parser, does not wait for anything."""
        await self._parsing.acquire()
        asyncio.get_running_loop().call_soon(self._parsing.release)

    def _too_large(self) -> Problem:
        # The rest of the body is not read: the connection cannot be used for another request.
        return Problem("payload_too_large", f"a body may have {self._limit} bytes", headers={"Connection": "close"})

    def _no_room_for_bodies(self) -> Problem:
        self._throttled.warning("requests are refused: their bodies fill NEXTARM_MAX_BODIES_BYTES")
        detail = "the bodies of other requests fill the memory that there is for them; try again, or ask another replica"
        return Problem("overloaded", detail, headers={"Connection": "close"})


def _is_stream(scope: Scope) -> bool:
    return scope["path"].endswith("/events") and EVENTS.fullmatch(scope["path"]) is not None


def _method(scope: Scope) -> str:
    return "HEAD" if "nextarm.is_head" in scope else str(scope["method"])


def _check_type(headers: Mapping[bytes, bytes], body: bytes) -> None:
    """JSON that is not declared as JSON is refused, too: a web page can make a browser send any other type to this server
    without asking.
    """
    if headers.get(b"content-type") == b"application/json" and b"content-encoding" not in headers:  # nearly every request
        return
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise Problem("unsupported_media_type", "compressed bodies are not read; send the JSON as it is")
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")):
        return
    parse_json(body)
    raise Problem("unsupported_media_type", "send the header `content-type: application/json`")


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


# -- where a request says that it goes -------------------------------------------------------------------------------------------

ANY = "*"
_HOST = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@/\s]+))(?::[0-9]{1,5})?", re.IGNORECASE)


class AllowedHosts:
    """Names by which this server may be addressed; checks Host headers.

    A web page whose name is made to point at this machine (DNS rebinding) is, to the browser, of the same origin as a server on
    loopback, and could use one that asks for no key. Its name is in the Host header, which a page cannot change.

    Args:
        names: besides loopback's names; `*` = any.
        are_addresses_allowed: whether any address in figures will do. No name stands behind one, so that no page can claim it.
    """

    def __init__(self, names: Iterable[str], *, are_addresses_allowed: bool) -> None:
        self._names = frozenset(names)
        self._are_addresses_allowed = are_addresses_allowed
        self._is_allowed = functools.lru_cache(1024)(self._look_at)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """A `Problem` where a Host header names another host. None at all passes: browsers always send one."""
        if ANY in self._names:
            return
        for name, value in headers:
            if name == b"host" and not self._is_allowed(value[:300]):
                raise Problem(
                    "host_not_allowed",
                    "the Host header names a host that this server does not answer for; address it as localhost, or list the "
                    "name in NEXTARM_ALLOWED_HOSTS",
                )

    def _look_at(self, value: bytes) -> bool:
        match = _HOST.fullmatch(value.decode("latin-1").strip())
        if match is None:
            return False
        host = (match["literal"] or match["name"]).lower().removesuffix(".")
        if host in self._names or host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return self._are_addresses_allowed or (mapped or address).is_loopback


_SUSPECT = re.compile(rb"%|//|/\.|/$|[^\x21-\x7e]")
_HALF_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_FOLDED = ("", ".", "..")
"""Segments that clients and proxies leave out or resolve: `DELETE .../arms/..` becomes the deletion of the bandit."""


def check_target(raw: bytes) -> None:
    """400 `malformed_path` for a path that a client or a proxy could read as another one than this server does.

    Encoded as it was sent: with an empty, `.` or `..` segment (encoded or not), a broken escape, or bytes that are not UTF-8.
    """
    if raw == b"/" or not _SUSPECT.search(raw):  # nearly every request: one scan, nothing is decoded
        return
    if _HALF_ESCAPE.search(raw):
        raise Problem(
            "malformed_path", "the path holds a % that two hexadecimal digits do not follow; send a percent sign as %25"
        )
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Problem("malformed_path", "the path is not UTF-8; encode names as UTF-8, then percent-encode them") from None
    segments = path.split("/")[1:]
    if segments[-1] == "" and not {*segments[:-1]} & {*_FOLDED}:
        raise Problem("malformed_path", "the path ends with a slash; send it without")
    if {*segments} & {*_FOLDED}:
        raise Problem("malformed_path", "the path holds an empty segment, `.` or `..`; send it without, and percent-encode names")
