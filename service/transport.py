"""What every request passes before a route sees it, as pure ASGI: who calls; size, encoding and type of the body; strict JSON.

    room (503) ──> path (400) ──> key (401), rate (429) ──> size (413) ──> encoding, type (415) ──> room (503) ──> route

Strangers are turned away before a byte of their body is read. Bodies are collected here, bounded, because the framework would
turn a failure while reading into an error of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import TENANT_HEADER, Gate
from service.errors import Problem
from service.json_bodies import check_structure, parse_json
from service.metrics import Meter
from service.targets import check_target

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "start.js")
PUBLIC = ("/healthz", "/readyz", "/openapi.json", "/docs", "/redoc", *(f"/docs/{name}" for name in ASSETS))
"""What needs no key: probes, and people who read the documentation. (Metrics name every bandit: a scraper has a key.)"""

ALWAYS_SERVED = ("/healthz", "/readyz", "/metrics")
"""Whoever looks after an overloaded server must still see it."""

LARGE_BODY = 2**18
"""Bytes beyond which a body is measured in a thread, and parsed in an iteration of the event loop that parses no other such body:
between two of them, others are answered.
"""

TELL_EVERY_S = 10.0
"""Between two lines of the log about refused requests."""

TENANT = TENANT_HEADER.lower().encode()
HEADERS = (b"authorization", b"content-length", b"content-encoding", b"content-type", TENANT)

logger = logging.getLogger("nextarm.http")


class Doorkeeper:
    """Lets in who may call and what can be read; counts every request, and writes one log line per failed one."""

    def __init__(self, app: ASGIApp, *, gate: Gate, meter: Meter, max_body_bytes: int, max_concurrent: int) -> None:
        self._app = app
        self._room = max_concurrent
        self._gate = gate
        self._meter = meter
        self._limit = max_body_bytes
        refusal = Problem("overloaded", "too many requests are being worked on; try again, or ask another replica").response()
        self._refusal_head = {"type": "http.response.start", "status": refusal.status_code, "headers": refusal.raw_headers}
        self._refusal_body = {"type": "http.response.body", "body": refusal.body}
        self._tell_after = 0.0
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._is_full(scope):  # before anything else is done for it
            await self._refuse(scope, send)
            return
        started = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = {name: value for name, value in scope["headers"] if name in HEADERS}
        try:
            self._admit(scope, headers)
            body = scope["nextarm.body"] = await self._collect(headers, receive)
        except Problem as problem:
            scope["nextarm.problem"] = problem.code
            await problem.response()(scope, receive, watch)
        else:
            if body is None:
                return
            if len(body) > LARGE_BODY:
                await self._take_turn()
            if self._is_full(scope):  # others came while it was read
                await self._refuse(scope, send)
                return
            await self._work_on(body, scope, receive, watch)
        self._tell(scope, status, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        check_target(scope.get("raw_path") or quote(scope["path"]).encode())
        path = scope["path"]
        if path not in PUBLIC or (path == "/readyz" and b"authorization" in headers):  # it says more to who may know more
            address = scope["client"][0] if scope.get("client") else ""
            authorization, tenant = (headers.get(name, b"").decode("latin-1") for name in (b"authorization", TENANT))
            scope["nextarm.caller"] = self._gate.enter(authorization=authorization, address=address, tenant=tenant)

    async def _work_on(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        self._room -= 1
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._room += 1

    def _is_full(self, scope: Scope) -> bool:
        return self._room <= 0 and scope["path"] not in ALWAYS_SERVED

    async def _refuse(self, scope: Scope, send: Send) -> None:
        """At the price of little more than a bare route: the answer was written before, and of many one is logged."""
        await send(self._refusal_head)
        await send(self._refusal_body)
        self._meter.count(route="", method=scope["method"], status=503, seconds=0.0)
        self._meter.count_problem("overloaded")
        if (now := time.monotonic()) >= self._tell_after:
            self._tell_after = now + TELL_EVERY_S
            logger.warning("requests are refused: as many are worked on as NEXTARM_MAX_CONCURRENT allows")

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(scope.get("nextarm.route") or getattr(scope.get("route"), "path_format", ""))
        self._meter.count(route=route, method=scope["method"], status=status, seconds=seconds)
        if "nextarm.problem" in scope:
            self._meter.count_problem(scope["nextarm.problem"])
        if status >= 500 or logger.isEnabledFor(logging.DEBUG):
            logger.log(
                logging.ERROR if status >= 500 else logging.DEBUG,
                "request",
                extra={"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)},
            )

    async def _collect(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None where the client went away in the middle of it: half a request is none."""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._limit:
            raise self._too_large()
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._limit:
                raise self._too_large()
            more = message.get("more_body", False)
        body = b"".join(chunks)
        if size > LARGE_BODY:
            await asyncio.to_thread(check_structure, body)
        else:
            check_structure(body)
        if size:
            _check_type(headers, body)
        return body

    async def _take_turn(self) -> None:
        """Return in an iteration of the loop of its own. What follows, up to the parser, does not wait for anything."""
        await self._parsing.acquire()
        asyncio.get_running_loop().call_soon(self._parsing.release)

    def _too_large(self) -> Problem:
        # The rest of the body is not read: the connection cannot be used for another request.
        return Problem("payload_too_large", f"a body may have {self._limit} bytes", headers={"Connection": "close"})


def _check_type(headers: Mapping[bytes, bytes], body: bytes) -> None:
    """JSON that is not declared as JSON is refused, too: a web page can make a browser send any other type to this server
    without asking.
    """
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


class StrictRequest(Request):
    """Reads JSON by `parse_json`, as the hot path does."""

    async def json(self) -> Any:
        try:
            return parse_json(await self.body())
        except Problem as problem:
            # The framework turns any other exception of a body into its own 400; `errors.install` answers with the cause.
            raise HTTPException(problem.status) from problem


class StrictRoute(APIRoute):
    """Routes whose bodies are read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly
