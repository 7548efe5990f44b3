"""The one table from the failures of every layer to problem documents, and its handlers in the framework."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from bandits.errors import FieldError, ReferenceMissing
from service.api.access_log import REQUEST_ID
from service.api.facade.errors import PATHS, FacadeError
from service.api.problems import Problem, invalid
from service.api.validation import models_in, validation_problem
from service.embedders.base import EmbedderError, QueueFull
from service.engine.errors import (
    AmendmentConflictError,
    BanditDamagedError,
    BanditNewerError,
    BanditNotFoundError,
    DecisionCancelledError,
    DecisionConflictError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionOpenError,
    DecisionPartialError,
    DecisionWasStopError,
    EpisodeFinishedError,
    EvaluationConflictError,
    EvaluationNotFoundError,
    ImportConflictError,
    LogNewerError,
    NotAmendableError,
    NotCloneableError,
    NotReadyError,
    OffsetBeyondEndError,
    OpenDecisionLimitError,
    OutcomeConflictError,
    ReferenceConflictError,
    ReplicaBehindError,
    ShadowBehindError,
    TooLateToAmendError,
    TooManyEvaluationsError,
)
from service.storage.base import ArchiveGapError, EntryTrimmedError, LogCompactedError, LogNotFoundError, StorageError
from service.storage.throttling import ThrottledLogger

NO_UPSTREAMS = (
    "this server calls no models, since it has no upstreams: name a file of them in NEXTARM_UPSTREAMS (docs/openai.md "
    "describes it), and start it again"
)

logger = logging.getLogger("nextarm.errors")
throttled = ThrottledLogger(logger)


class _Answer(NamedTuple):
    """What a client gets for a failure.

    detail:        the text, or a function from the error to it; `str` is the error's own text.
    retry_after_s: when to try again, of a failure that takes longer than `problems.RETRY_AFTER_S` to mend.
    logged:        the line for the operator, who alone can mend it; "" = none.
    """

    code: str
    detail: str | Callable[[Any], str] = str
    retry_after_s: int | None = None
    logged: str = ""


OF_BANDITS = "GET /v1/bandits lists those that are there, PUT /v1/bandits/{name} creates one"
OPERATOR_S = 60
"""Seconds after which a client may ask again where an operator must act first."""
_NEWER = _Answer(
    "storage_unavailable",
    "the log of this bandit was written by a newer version of nextarm; upgrade this server",
    retry_after_s=OPERATOR_S,
)

ANSWERS: dict[type[Exception], _Answer] = {
    BanditNotFoundError: _Answer("bandit_not_found", f"bandit not found; {OF_BANDITS}"),
    LogNotFoundError: _Answer("bandit_not_found", f"the bandit was deleted; {OF_BANDITS}"),
    BanditNewerError: _NEWER,
    LogNewerError: _NEWER,
    BanditDamagedError: _Answer(
        "storage_unavailable",
        "the log of this bandit is damaged; ask the operator of this server to look at GET /readyz and at its log",
        retry_after_s=OPERATOR_S,
    ),
    DecisionNotFoundError: _Answer(
        "decision_not_found",
        "decision not found; send the `id` that a decision of this bandit was answered with, and the name of that bandit",
    ),
    DecisionConflictError: _Answer("decision_conflict", "this id was used for another request; choose a new id"),
    ReferenceConflictError: _Answer("reference_conflict", "this id was used for other reference material; choose a new id"),
    NotReadyError: _Answer("not_ready", lambda error: f"this bandit is a clone that still learns: {error}; try again"),
    NotCloneableError: _Answer("not_cloneable", lambda error: f"this log cannot be cloned so: {error}"),
    ImportConflictError: _Answer(
        "import_conflict",
        lambda error: f"{error}, which stays; nothing of this request was learned: send the first content again, or another id",
    ),
    EvaluationNotFoundError: _Answer(
        "evaluation_not_found",
        "evaluation not found; GET /v1/bandits/{name}/evaluations lists the newest 100 of the last 30 days",
    ),
    EvaluationConflictError: _Answer("evaluation_conflict", "this id was used for another evaluation; choose a new id"),
    TooManyEvaluationsError: _Answer("rate_limited", lambda error: f"{error}; wait for one, or delete one"),
    OutcomeConflictError: _Answer(
        "outcome_conflict",
        "this decision has another outcome already, which stays; GET .../decisions/{decision} shows it, "
        "and a further call needs a decision of its own",
    ),
    AmendmentConflictError: _Answer(
        "outcome_conflict",
        lambda error: f"the amendment {str(error)!r} of this decision has other values, which stay; choose a new `id`",
    ),
    DecisionPartialError: _Answer(
        "outcome_conflict",
        "parts of this decision's outcome are learned already, so it cannot be cancelled; it stays open until its reward comes "
        "or its time is over",
    ),
    DecisionWasStopError: _Answer(
        "outcome_conflict", "this decision was a stop: no arm was played, so it has no outcome; post none"
    ),
    EpisodeFinishedError: _Answer("episode_finished", "this episode is over; start a new one by leaving `episode` out"),
    DecisionExpiredError: _Answer(
        "decision_expired",
        "the decision expired before its outcome came; ask for a new decision, and where outcomes take longer create a "
        "bandit with a larger reward.timeout_s",
    ),
    DecisionOpenError: _Answer(
        "decision_open", "the decision has no outcome yet, so there is nothing to amend; PUT its outcome, or a part of it"
    ),
    NotAmendableError: _Answer("not_amendable"),
    TooLateToAmendError: _Answer(
        "decision_expired", lambda error: f"{error}; a bandit that is created with a larger amend_until_s gives more time"
    ),
    DecisionCancelledError: _Answer(
        "decision_cancelled", "the decision was cancelled, so it takes no outcome; ask for a new decision"
    ),
    OpenDecisionLimitError: _Answer(
        "rate_limited", lambda error: f"{error}; post outcomes, cancel, or set a shorter reward.timeout_s"
    ),
    ReferenceMissing: _Answer("reference_missing"),
    ReplicaBehindError: _Answer("replica_behind"),
    ShadowBehindError: _Answer("shadow_behind"),
    LogCompactedError: _Answer(
        "log_trimmed", lambda error: f"events before offset {error.first} are kept in snapshots only; read from there on"
    ),
    ArchiveGapError: _Answer("log_trimmed", logged="the archive lacks entries"),
    EntryTrimmedError: _Answer(
        "decision_archived",
        "this id is taken by an event that was trimmed from the store, and this service has no archive of it "
        "(NEXTARM_ARCHIVE); nothing was accepted",
    ),
    EmbedderError: _Answer(
        "overloaded", lambda error: f"the content cannot be embedded now: {error}", logged="an embedder failed"
    ),
    StorageError: _Answer(
        "storage_unavailable",
        "the log cannot be written or read now; nothing was accepted, try again",
        logged="the store refused",
    ),
}
"""Failure -> answer. The entry of the nearest base class holds for a class without one."""


def to_problem(error: BaseException) -> Problem:
    """The problem that the client gets for a failure of any layer."""
    match error:
        case Problem():
            return error
        case FieldError():
            return invalid(error.field, error.message)
        case OffsetBeyondEndError():
            return invalid("min_offset", str(error))
        case QueueFull():
            return Problem("overloaded", str(error), headers={"Retry-After": str(error.retry_after_s)})
    answer = next((ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS), None)
    if answer is None:
        logger.error("unexpected failure", exc_info=error, extra={"request_id": REQUEST_ID.get()})
        return Problem(
            "internal_error", "an unexpected failure, which was logged; give its request_id to the operator of this server"
        )
    if answer.logged:
        throttled.error(answer.logged, reason=str(error), request_id=REQUEST_ID.get())
    detail = answer.detail if isinstance(answer.detail, str) else answer.detail(error)
    return Problem(answer.code, detail, headers={"Retry-After": str(answer.retry_after_s)} if answer.retry_after_s else None)


def body_error_to_problem(error: Exception) -> Problem:
    """`to_problem` for bodies that are validated outside of the framework."""
    return validation_problem(error) if isinstance(error, ValidationError) else to_problem(error)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every failure of a route with its problem document."""

    def answered(request: Request, problem: Problem) -> Response:
        request.scope["nextarm.problem"] = problem.code  # counted by the middleware
        return problem.response()

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        field = getattr(request.scope.get("route"), "body_field", None)
        body = next(models_in(field.field_info.annotation), None) if field is not None else None
        return answered(request, validation_problem(error, body))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, Problem):
            return answered(request, error.__cause__)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        if code is None:
            return answered(request, Problem("invalid_request", str(error.detail)))
        if code == "not_found" and request.url.path.startswith(PATHS) and not app.state.services.settings.upstreams:
            request.scope["nextarm.problem"] = code
            return FacadeError(404, code, NO_UPSTREAMS).response()  # OpenAI's SDK shows the message of no other form
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
    for kind in (Problem, FieldError, OffsetBeyondEndError, *ANSWERS, Exception):
        app.add_exception_handler(kind, on_failure)
