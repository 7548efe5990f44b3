"""Every error that a client can see: RFC 9457 problem documents with a stable `code`, and the one table from failures to them.

An error names the field and the fix. It never carries a prompt, a key or a trace.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from bandits.errors import FieldError, ReferenceMissing
from bandits.registry import POLICIES
from service.api import hints
from service.api.access_log import REQUEST_ID
from service.api.requests import EXAMPLES, ID, MESSAGE_CONTENT, NAME
from service.embedders.base import EmbedderError, QueueFull
from service.engine.errors import (
    BanditConflictError,
    BanditDamagedError,
    BanditNewerError,
    BanditNotFoundError,
    DecisionCancelledError,
    DecisionConflictError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionWasStopError,
    EngineError,
    EpisodeFinishedError,
    OffsetBeyondEndError,
    OpenDecisionLimitError,
    OutcomeConflictError,
    ReferenceConflictError,
    ReplicaBehindError,
)
from service.engine.projection import LogNewerError
from service.storage.base import LogCompactedError, LogNotFoundError, StorageError
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.errors")
throttled = ThrottledLogger(logger)

RETRY_AFTER_S = 1
LISTED = 50
"""Wrong fields that one answer lists."""
NAMED = 64
"""Characters of a field's name that an answer repeats."""

CODES: dict[str, int] = {
    "malformed_json": 400,
    "malformed_path": 400,
    "malformed_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "bandit_not_found": 404,
    "arm_not_found": 404,
    "decision_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "bandit_exists": 409,
    "outcome_conflict": 409,
    "decision_conflict": 409,
    "reference_conflict": 409,
    "reference_missing": 409,
    "reference_frozen": 409,
    "episode_finished": 409,
    "decision_expired": 410,
    "decision_cancelled": 410,
    "log_trimmed": 410,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "host_not_allowed": 421,
    "invalid_request": 422,
    "rate_limited": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "storage_unavailable": 503,
    "replica_behind": 503,
    "overloaded": 503,
}
"""Every code with its status."""


class Problem(Exception):
    """An error on its way to the client."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = CODES[code]
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        if self.status in (429, 503):
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))

    def document(self) -> dict[str, Any]:
        """The body."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = [{"path": path, "message": message} for path, message in self.errors]
        return body

    def response(self) -> Response:
        """The answer to the request that this task works on."""
        document = self.document()
        if request_id := REQUEST_ID.get():
            document["request_id"] = request_id
        return Response(msgspec.json.encode(document), self.status, headers=self.headers, media_type="application/problem+json")


OF_BANDITS = "GET /v1/bandits lists those that are there, PUT /v1/bandits/{name} creates one"


def arm_not_found(path: str = "") -> Problem:
    """A 404 about an arm. path: where the request names it, unless that is the URL."""
    where = f"{path}: " if path else ""
    return Problem(
        "arm_not_found",
        f"{where}arm not found; GET /v1/bandits/{{name}} lists the arms, PUT /v1/bandits/{{name}}/arms/{{arm}} adds one",
    )


def invalid(path: str, message: str) -> Problem:
    """A 422 about one field."""
    return Problem("invalid_request", f"{path}: {message}", errors=[(path, message)])


def invalid_fields(wrong: Sequence[tuple[str, str]]) -> Problem:
    """A 422 about several fields. wrong: the path of each, and its message."""
    shown = "; ".join(f"{path}: {message}" for path, message in wrong[:3])
    return Problem("invalid_request", shown, errors=wrong[:LISTED])


def to_problem(error: BaseException) -> Problem:  # noqa: PLR0912 (one table)
    """Map a failure of any layer to the problem that the client gets."""
    match error:
        case Problem():
            return error
        case BanditNotFoundError():
            return Problem("bandit_not_found", f"bandit not found; {OF_BANDITS}")
        case LogNotFoundError():
            return Problem(
                "bandit_not_found",
                f"the bandit was deleted; {OF_BANDITS}",
            )
        case BanditConflictError():
            return Problem(
                "bandit_exists",
                "a bandit of this name exists with another configuration; delete it first, or choose another name",
            )
        case BanditNewerError() | LogNewerError():
            return Problem(
                "storage_unavailable",
                "the log of this bandit was written by a newer version of nextarm; upgrade this server",
                headers={"Retry-After": "60"},
            )
        case BanditDamagedError():
            return Problem(
                "storage_unavailable",
                "the log of this bandit is damaged; ask the operator of this server to look at GET /readyz and at its log",
                headers={"Retry-After": "60"},
            )
        case DecisionNotFoundError():
            return Problem(
                "decision_not_found",
                "decision not found; send the `id` that a decision of this bandit was answered with, and the name of that bandit",
            )
        case DecisionConflictError():
            return Problem("decision_conflict", "this id was used for another request; choose a new id")
        case ReferenceConflictError():
            return Problem("reference_conflict", "this id was used for other reference material; choose a new id")
        case OutcomeConflictError():
            return Problem(
                "outcome_conflict",
                "this decision has another outcome already, which stays; GET .../decisions/{decision} shows it, "
                "and a further call needs a decision of its own",
            )
        case DecisionWasStopError():
            return Problem("outcome_conflict", "this decision was a stop: no arm was played, so it has no outcome; post none")
        case EpisodeFinishedError():
            return Problem("episode_finished", "this episode is over; start a new one by leaving `episode` out")
        case DecisionExpiredError():
            return Problem(
                "decision_expired",
                "the decision expired before its outcome came; ask for a new decision, and where outcomes take longer create a "
                "bandit with a larger reward.timeout_s",
            )
        case DecisionCancelledError():
            return Problem("decision_cancelled", "the decision was cancelled, so it takes no outcome; ask for a new decision")
        case OpenDecisionLimitError():
            return Problem("rate_limited", f"{error}; post outcomes, cancel, or set a shorter reward.timeout_s")
        case ReferenceMissing():
            return Problem("reference_missing", str(error))
        case FieldError():
            return invalid(error.field, error.message)
        case QueueFull():
            return Problem("overloaded", str(error), headers={"Retry-After": str(error.retry_after_s)})
        case EmbedderError():
            throttled.error("an embedder failed", reason=str(error), request_id=REQUEST_ID.get())
            return Problem("overloaded", f"the content cannot be embedded now: {error}")
        case LogCompactedError():
            return Problem("log_trimmed", f"events before offset {error.first} are kept in snapshots only; read from there on")
        case OffsetBeyondEndError():
            return invalid("min_offset", str(error))
        case ReplicaBehindError():
            return Problem("replica_behind", str(error))
        case StorageError():
            throttled.error("the store refused", reason=str(error), request_id=REQUEST_ID.get())
            return Problem("storage_unavailable", "the log cannot be written or read now; nothing was accepted, try again")
        case _:
            logger.error("unexpected failure", exc_info=error, extra={"request_id": REQUEST_ID.get()})
            return Problem(
                "internal_error", "an unexpected failure, which was logged; give its request_id to the operator of this server"
            )


def body_error_to_problem(error: Exception) -> Problem:
    """`to_problem` for bodies that are validated outside of the framework."""
    return validation_problem(error) if isinstance(error, ValidationError) else to_problem(error)


def validation_problem(error: RequestValidationError | ValidationError, body: type[BaseModel] | None = None) -> Problem:
    """A 422 that lists every wrong field by its path, without echoing any value. body: the model of the request's body, where the
    error does not name it.
    """
    root = hints.model_named(error.title) if isinstance(error, ValidationError) else body
    listed = []
    for item in error.errors()[:LISTED]:
        if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            near = hints.closest(str(item["ctx"].get("tag", ""))[:NAMED], POLICIES)
            listed.append(("policy.kind", f"must be one of {', '.join(POLICIES)}{near}"))
        else:
            listed.append((_path(item["loc"]) or "body", _message(item, root)))
    return invalid_fields(listed)


WHOLE_NUMBER = "must be a whole number"
MESSAGES = {
    "extra_forbidden": "is not a field here",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object, e.g. {}",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text",
    "bool_type": "must be true or false",
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_type": "must be a number; for yes and no send 1 and 0, without quotes",
    "finite_number": "must be a finite number",
    "none_required": "is not taken here; leave it out",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "message_content": 'must be a string or a list of parts, e.g. [{"type": "text", "text": "..."}]',
}
"""By type of error, with what pydantic knows of it. Its own words speak of Python, so no client gets them."""
HINTS = {
    "extra_forbidden": hints.fields_hint,
    "model_attributes_type": hints.object_hint,
    "model_type": hints.object_hint,
    "list_type": hints.list_hint,
}
"""By type of error: what follows, from the schema of the place."""
OTHERWISE = "is not what is taken here; GET /openapi.json describes the field"
"""For a type of error that the table lacks."""


PATTERNS = {
    NAME: "must be 1 to 63 characters of a-z 0-9 _ -, the first a letter or digit",
    ID: "must be 1 to 64 characters of A-Z a-z 0-9 _ -",
    r"\S": "must not be empty or blank",
}
"""In words, what each regular expression asks for."""


def _message(item: Any, root: type[BaseModel] | None) -> str:
    known: dict[str, Any] = item.get("ctx", {})
    match item["type"]:
        case "value_error":
            return str(known["error"])
        case "missing":
            name = item["loc"][-1] if item["loc"] else "body"
            if name in EXAMPLES:
                return f"is missing; send it, e.g. {_example(name)}"
            return f"is missing; send a JSON object{hints.object_hint(root, ())}"
        case "string_pattern_mismatch":
            return PATTERNS.get(known["pattern"], OTHERWISE)
        case "string_too_short" | "string_too_long":
            return _bounded(known, "character")
        case "too_short" | "too_long":
            return _bounded(known, "item")
        case kind:
            message = MESSAGES.get(kind, OTHERWISE)
            for name, value in known.items():
                message = message.replace(f"{{{name}}}", _number(value))
            return message + HINTS[kind](root, _within_body(item["loc"])) if kind in HINTS else message


def _bounded(known: Mapping[str, Any], what: str) -> str:
    side, bound = ("least", known["min_length"]) if "min_length" in known else ("most", known["max_length"])
    return f"must have at {side} {bound:,} {what}{'' if bound == 1 else 's'}"


def _number(value: Any) -> str:
    """9007199254740992 and 65536 in full, 1e+12 short."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _example(name: str) -> str:
    return f'"{name}": {msgspec.json.encode(EXAMPLES[name]).decode()}'


def _within_body(location: Sequence[int | str]) -> Sequence[int | str]:
    """Without the part of the request, which the framework puts before."""
    return location[1:] if location and location[0] in ("body", "query", "path", "header") else location


def _path(location: Sequence[int | str]) -> str:
    """`policy.exploration` from what pydantic says; the name of the policy's kind, which it adds, is left out. Unknown names come
    from the client: they are cut, as everything that is repeated.
    """
    parts = list(_within_body(location))
    if len(parts) > 1 and parts[0] == "policy" and parts[1] in POLICIES:
        del parts[1]
    parts = [part for part in parts if part not in MESSAGE_CONTENT]
    return ".".join(str(part)[:NAMED] for part in parts)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every failure of a route with its problem document."""

    def answered(request: Request, problem: Problem) -> Response:
        request.scope["nextarm.problem"] = problem.code  # counted by the middleware
        return problem.response()

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        field = getattr(request.scope.get("route"), "body_field", None)
        body = next(hints.models_in(field.field_info.annotation), None) if field is not None else None
        return answered(request, validation_problem(error, body))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, Problem):
            return answered(request, error.__cause__)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        if code is None:
            return answered(request, Problem("invalid_request", str(error.detail)))
        if code == "not_found":
            return answered(request, Problem(code, "not found; GET /openapi.json and /docs list every path"))
        # every method that the path takes: the framework knows those of the first route that matches it
        takes = [route for route in routes if isinstance(route, Route) and route.path_regex.match(request.url.path)]
        methods = {method for route in takes for method in route.methods or ()}
        if "GET" in methods:
            methods.add("HEAD")  # the middleware turns it into GET
        allowed = ", ".join(sorted(methods)) or (error.headers or {}).get("Allow", "")
        if request.method == "POST" and request.url.path == "/v1/bandits":
            hint = "create a bandit with PUT /v1/bandits/{name}; GET lists them"
            return answered(request, Problem(code, hint, headers={"Allow": allowed}))
        return answered(request, Problem(code, f"this takes {allowed}; see /docs", headers={"Allow": allowed}))

    async def on_failure(request: Request, error: Exception) -> Response:
        return answered(request, to_problem(error))

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    for kind in (
        Problem,
        EngineError,
        ReferenceMissing,
        FieldError,
        EmbedderError,
        StorageError,
        Exception,
    ):
        app.add_exception_handler(kind, on_failure)
