"""Errors in the form that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`.

What the service refuses by itself is a problem document like everywhere; on the paths of the facade `ErrorEnvelope` puts it into
this form. No answer has the status 409: OpenAI's clients take it for a lock, and try again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import Problem

PATHS = ("/v1/chat/", "/v1/images/", "/v1/embeddings", "/v1/responses", "/v1/models")
"""What the paths of the facade begin with."""
CODES = {"bandit_not_found": "model_not_found", "unauthenticated": "invalid_api_key"}
"""Our code -> OpenAI's, where there is one for the same."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class FacadeError(Exception):
    """A failure that only the facade knows. param: the field of the request that is wrong."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer."""
        content = msgspec.json.encode(error_json(self.status, self.code, str(self), self.param))
        return Response(content, self.status, headers=self.headers, media_type="application/json")


def error_json(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def to_facade_error(problem: Problem, *, param: str | None = None, headers: Mapping[str, str] | None = None) -> FacadeError:
    """A problem in the words of the request. param: the field that holds the prompt."""
    return _translated(problem.document(), problem.status, {**problem.headers, **(headers or {})}, prompt=param)


def _translated(document: Mapping[str, Any], status: int, headers: Mapping[str, str], *, prompt: str | None) -> FacadeError:
    wrong, message = None, str(document["detail"])
    if document.get("errors"):
        wrong = document["errors"][0]["path"]
        inner = wrong.removeprefix("prompt").lstrip(".")
        if prompt is not None and inner != wrong:
            wrong = prompt + inner.removeprefix("text").removeprefix("messages")
            message = f"{wrong}: {document['errors'][0]['message']}"
    status = 400 if status in (409, 422) else status
    return FacadeError(status, CODES.get(document["code"], document["code"]), message, param=wrong, headers=headers)


class ErrorEnvelope:
    """ASGI app that puts problem documents on the paths of the facade into OpenAI's form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def translate(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_problem(message):
                held.append(message)
            elif held:
                for part in _in_envelope(held.pop(), message):
                    await send(part)
            else:
                await send(message)

        await self._app(scope, receive, translate)


def _is_problem(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value == b"application/problem+json" for name, value in start["headers"])


def _in_envelope(start: Message, body: Message) -> tuple[Message, Message]:
    """Problem documents are sent as one piece; that of a HEAD has none."""
    others = [(name, value) for name, value in start["headers"] if name.lower() not in (b"content-type", b"content-length")]
    if not body.get("body"):
        return {**start, "headers": [*others, (b"content-type", b"application/json")]}, body
    error = _translated(msgspec.json.decode(body["body"]), start["status"], {}, prompt=None)
    content = msgspec.json.encode(error_json(error.status, error.code, str(error), error.param))
    headers = [*others, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    return {**start, "status": error.status, "headers": headers}, {**body, "body": content}
