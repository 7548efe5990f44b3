"""The hot path: the two requests of every prompt, a decision and its outcome, answered without the framework.

    AdmissionMiddleware ──> HotPath ──> decide / observe ──> response
                      └── any other request ──> the application's routes

Same bodies, same models, same failures as the routes of routes/decisions.py and routes/outcomes.py, which document them and take
what is rare: a wanted offset, an empty body, a query. What is saved is the framework's routing, its dependency injection and its
response object: half of the CPU time of a decision (docs/performance.md).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.auth import check_role
from service.api.decide import decide
from service.api.dependencies import Services
from service.api.error_mapping import body_error_to_problem
from service.api.json_bodies import parse_json
from service.api.middleware import MIN_OFFSET
from service.api.observe import observe
from service.api.requests import ID, NAME, DecisionBody, OutcomeBody

DECISIONS = re.compile(f"/v1/bandits/(?P<name>{NAME.strip('^$')})/decisions")
OUTCOME = re.compile(f"{DECISIONS.pattern}/(?P<decision>{ID.strip('^$')})/outcome")
ROLE = "router"
_encode = msgspec.json.Encoder().encode

Answered = tuple[Any, int]
"""What is answered as JSON, and the status."""
Handle = Callable[[Services, Scope, "re.Match[str]", Any], Awaitable[Answered]]


class HotPath:
    """ASGI app that answers decisions and outcomes, and passes every other request on."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _route(scope)
        body = scope.get("nextarm.body", b"")
        if found is None or not body:
            await self._app(scope, receive, send)
            return
        template, match, handle = found
        scope["nextarm.route"] = template
        scope["path_params"] = match.groupdict()  # for the access log, as the framework's router does
        try:
            content, status = await handle(self._services, scope, match, parse_json(body))
        except Exception as error:
            problem = body_error_to_problem(error)
            scope["nextarm.problem"] = problem.code
            await problem.response()(scope, receive, send)
            return
        payload = _encode(content)
        headers = [(b"content-length", b"%d" % len(payload)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})


def _route(scope: Scope) -> tuple[str, re.Match[str], Handle] | None:
    for method, path, template, handle in ROUTES:
        if scope["method"] == method and (found := path.fullmatch(scope["path"])):
            is_rare = scope["query_string"] or MIN_OFFSET in scope["nextarm.headers"]
            return None if is_rare else (template, found, handle)
    return None


async def _decide(services: Services, scope: Scope, match: re.Match[str], body: Any) -> Answered:
    caller = scope["nextarm.caller"]
    check_role(caller, ROLE)
    learner = await services.repository.get(caller.tenant, match["name"])
    return await decide(services, learner, DecisionBody.model_validate(body))


async def _observe(services: Services, scope: Scope, match: re.Match[str], body: Any) -> Answered:
    caller = scope["nextarm.caller"]
    check_role(caller, ROLE)
    learner = await services.repository.get(caller.tenant, match["name"])
    return await observe(services, learner, match["decision"], OutcomeBody.model_validate(body)), 200


ROUTES: tuple[tuple[str, re.Pattern[str], str, Handle], ...] = (
    ("POST", DECISIONS, "/v1/bandits/{name}/decisions", _decide),
    ("PUT", OUTCOME, "/v1/bandits/{name}/decisions/{decision}/outcome", _observe),
)
