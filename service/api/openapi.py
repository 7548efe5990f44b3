"""The OpenAPI document: what FastAPI derives from the routes, plus problem documents, security schemes and headers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.api.auth import TENANT_HEADER
from service.api.requests import ImportRow, OutcomeItem
from service.api.responses import ProblemAnswer

REFERENCE = "#/components/schemas/{model}"

REQUEST_ID_PARAMETER = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "Your id of this request: 1 to 128 of `A-Za-z0-9._:-`. Left out, or otherwise: the server makes one.",
    "schema": {"type": "string"},
    "example": "checkout-4711",
}
REQUEST_ID_ANSWERED = {
    "description": "The id of this request, as it stands in problem documents (`request_id`) and in the server's log.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}

TAGS = [
    {"name": "bandits", "description": "Create them, look at them, change their arms."},
    {"name": "decisions", "description": "Ask for the next model to query."},
    {"name": "outcomes", "description": "Tell what came of it."},
    {"name": "history", "description": "Learn from what happened before, or in another bandit."},
    {"name": "shadows", "description": "Try a policy beside the one that decides, then promote it."},
    {"name": "evaluations", "description": "Ask what other policies would have earned."},
    {"name": "openai", "description": "For OpenAI's clients: a bandit as a model."},
    {"name": "references", "description": "What outputs are compared with."},
    {"name": "log", "description": "Everything that was decided and learned."},
    {"name": "operations", "description": "Is it alive, can it work?"},
]


def document(app: FastAPI) -> None:
    """Complete the app's OpenAPI document; made at the first request for it."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = derive()
            # Named in error responses and in batches by reference alone, so that FastAPI does not see them.
            named = [(ProblemAnswer, "serialization"), (OutcomeItem, "validation"), (ImportRow, "validation")]
            _, extra = models_json_schema(named, ref_template=REFERENCE)  # type: ignore[arg-type]
            parts = described.setdefault("components", {})
            for name, schema in extra["$defs"].items():
                parts["schemas"].setdefault(name, schema)
            for unused in ("HTTPValidationError", "ValidationError"):
                parts["schemas"].pop(unused, None)
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
            parts["securitySchemes"]["tenant"] = {
                "type": "apiKey",
                "in": "header",
                "name": TENANT_HEADER,
                "description": "Beside an admin's key without a tenant: the tenant as whose admin this one request is made.",
            }
            described["security"] = [{}, {"key": []}, {"key": [], "tenant": []}]
            parts.setdefault("headers", {})["RequestId"] = REQUEST_ID_ANSWERED
            for path in described["paths"].values():
                for operation in path.values():
                    operation.setdefault("parameters", []).append(dict(REQUEST_ID_PARAMETER))
                    for response in operation["responses"].values():
                        response.setdefault("headers", {})["x-request-id"] = {"$ref": "#/components/headers/RequestId"}
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
