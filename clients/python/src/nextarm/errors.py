"""Errors of the client. All of them have `status`, `code`, `request_id` and `errors`; where no answer came these are empty.

NextarmError
├── APIConnectionError          no answer: the connection failed
│   └── APITimeoutError         no answer in time
├── UnexpectedAnswerError       an answer that is not of a nextarm service
└── APIStatusError              a problem document
    ├── BadRequestError         400
    ├── AuthenticationError     401
    ├── PermissionDeniedError   403
    ├── NotFoundError           404
    ├── ConflictError           409   the same id with other content
    ├── GoneError               410   expired, cancelled or trimmed
    ├── InvalidRequestError     422   `errors` names each wrong field and the fix
    ├── RateLimitError          429
    └── ServerError             5xx
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nextarm.models import FieldProblem, Problem

if TYPE_CHECKING:
    import httpx2

SHOWN = 200
"""Characters of an answer that is no problem document, in a message."""


class NextarmError(Exception):
    """Base of every failure that the client raises.

    status: HTTP, 0 without an answer.  code: the stable code of the problem document.  request_id: as in the server's log.
    errors: wrong fields, each with `path` and `message`.  retry_after_s: what the service asked to wait, if it did.
    is_transient: the same request may succeed later.
    """

    is_transient = False

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        errors: Sequence[FieldProblem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.errors = list(errors)
        self.retry_after_s = retry_after_s


class APIConnectionError(NextarmError):
    """The service could not be reached, or the connection broke before its answer was complete."""

    is_transient = True


class APITimeoutError(APIConnectionError):
    """The service did not answer in time."""


class UnexpectedAnswerError(NextarmError):
    """An answer that this client cannot read: of another server, of a proxy, or of an incompatible version."""


class APIStatusError(NextarmError):
    """The service refused the request."""


class BadRequestError(APIStatusError):
    """400: the body is not JSON, or the path is malformed."""


class AuthenticationError(APIStatusError):
    """401: no key, or an unknown one."""


class PermissionDeniedError(APIStatusError):
    """403: the role or the tenant of the key does not allow this."""


class NotFoundError(APIStatusError):
    """404: no such bandit, arm or decision."""


class ConflictError(APIStatusError):
    """409: the same id with other content, or not possible in the present state; `code` says which."""


class GoneError(APIStatusError):
    """410: the decision expired or was cancelled, or that part of the log is gone."""


class InvalidRequestError(APIStatusError):
    """422: `errors` names every wrong field and the fix."""


class RateLimitError(APIStatusError):
    """429: more requests than the key may send."""

    is_transient = True


class ServerError(APIStatusError):
    """5xx: the store cannot be written or read, the service is overloaded, or a proxy before it is."""

    is_transient = True


class RequestTimeoutError(APIStatusError):
    """408: the service did not receive the whole request in time."""

    is_transient = True


BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    410: GoneError,
    422: InvalidRequestError,
    429: RateLimitError,
}


def of_problem(problem: Problem, *, retry_after_s: float | None = None) -> APIStatusError:
    """The error of a problem document."""
    kind = BY_STATUS.get(problem.status, ServerError if problem.status >= 500 else APIStatusError)
    detail = problem.detail or problem.title
    wrong = "; ".join(f"{field.path}: {field.message}" for field in problem.errors)
    said = f"{problem.status}: " + " ".join(filter(None, (problem.code, detail)))
    return kind(
        said if wrong in detail else f"{said} ({wrong})",
        status=problem.status,
        code=problem.code,
        request_id=problem.request_id,
        errors=problem.errors,
        retry_after_s=retry_after_s,
    )


def of_response(response: httpx2.Response) -> APIStatusError:
    """The error of an answer that is no success; a proxy's page becomes one too."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValueError:
        text = " ".join(response.text[:SHOWN].split()) or response.reason_phrase
        problem = Problem(title=response.reason_phrase, status=response.status_code, code="", detail=text)
    problem.status = response.status_code
    problem.request_id = problem.request_id or response.headers.get("x-request-id", "")
    return of_problem(problem, retry_after_s=_seconds(response.headers.get("retry-after", "")))


def of_transport(error: httpx2.RequestError, url: str) -> NextarmError:
    """The error of a request without an answer. url: of the service."""
    import httpx2

    said = str(error) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        return APITimeoutError(f"{url} did not answer in time: {said}")
    failure = APIConnectionError(f"cannot reach {url}: {said}")
    # A wrong scheme, or a request that HTTP has no form for, stays wrong.
    failure.is_transient = not isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError)
    return failure


def _seconds(retry_after: str) -> float | None:
    """Retry-After in seconds; None where it is missing or a date, which no nextarm service sends."""
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        return None
