"""The HTTP contract, one file per resource."""

from __future__ import annotations

from typing import Any

from service.errors import CODES
from service.schemas import ProblemAnswer


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail like this, for the OpenAPI document."""
    by_status: dict[int | str, dict[str, Any]] = {}
    always = ("malformed_json", "unauthenticated", "forbidden", "payload_too_large", "unsupported_media_type", "invalid_request")
    for code in (*codes, *always, "rate_limited", "storage_unavailable"):
        entry = by_status.setdefault(CODES[code], {"model": ProblemAnswer, "description": ""})
        entry["description"] = ", ".join(filter(None, [entry["description"], f"`{code}`"]))
    return by_status
