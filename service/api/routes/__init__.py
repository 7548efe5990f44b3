"""The HTTP contract, one file per resource."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from service.api.problems import CODES

ALWAYS = (
    "malformed_request",
    "malformed_path",
    "unauthenticated",
    "forbidden",
    "request_timeout",
    "host_not_allowed",
    "headers_too_large",
    "invalid_request",
    "rate_limited",
    "not_ready",
    "storage_unavailable",
    "replica_behind",
    "overloaded",
)
WITH_BODY = ("malformed_json", "payload_too_large", "unsupported_media_type")


def problems(*codes: str, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail like this, for the OpenAPI document. body: it reads one."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*codes, *ALWAYS, *(WITH_BODY if body else ()))):
        by_status.setdefault(CODES[code], []).append(code)
    return {status: _problem(status, several) for status, several in sorted(by_status.items())}


def _problem(status: int, codes: list[str]) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    examples = {
        code: {"value": {"type": "about:blank", "title": title, "status": status, "code": code, "detail": title}}
        for code in codes
    }
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}, "examples": examples}},
    }
