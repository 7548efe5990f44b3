"""The problem document of RFC 9457 with its stable codes: what every error of the API answers.

An error names the field and the fix. It never carries a prompt, a key or a trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Response

from service.api.access_log import REQUEST_ID

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
    "shadow_not_found": 404,
    "evaluation_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "bandit_exists": 409,
    "not_live": 409,
    "import_conflict": 409,
    "not_cloneable": 409,
    "evaluation_conflict": 409,
    "outcome_conflict": 409,
    "decision_conflict": 409,
    "decision_open": 409,
    "not_amendable": 409,
    "reference_conflict": 409,
    "reference_missing": 409,
    "shadow_behind": 409,
    "shadow_conflict": 409,
    "reference_frozen": 409,
    "episode_finished": 409,
    "decision_expired": 410,
    "decision_cancelled": 410,
    "decision_archived": 410,
    "log_trimmed": 410,
    "offset_conflict": 412,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "host_not_allowed": 421,
    "invalid_request": 422,
    "rate_limited": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "not_ready": 503,
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
