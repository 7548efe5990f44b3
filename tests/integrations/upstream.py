"""A stand-in for a provider of models with the OpenAI API, on loopback: `uvicorn tests.integrations.upstream:app`.

Models whose names begin with `broken` answer 500, with `refusing` 400. GET /seen lists the models that were called.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
seen: list[str] = []


async def _called(request: Request) -> tuple[dict[str, Any], Response | None]:
    body = await request.json()
    seen.append(body["model"])
    for beginning, status in (("broken", 500), ("refusing", 400)):
        if body["model"].startswith(beginning):
            return body, JSONResponse({"error": {"message": beginning, "type": "error", "code": None}}, status)
    return body, None


async def chat(request: Request) -> Response:
    body, failure = await _called(request)
    if failure is not None:
        return failure
    about = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Bonjour"}}
        return JSONResponse({**about, "object": "chat.completion", "choices": [choice], "usage": USAGE})

    async def events() -> AsyncIterator[str]:
        for text, end in (("Bon", None), ("jour", None), ("", "stop")):
            delta = {"role": "assistant", "content": text} if text else {}
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            yield f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        if (body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [], 'usage': USAGE})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def embeddings(request: Request) -> Response:
    body, failure = await _called(request)
    rows = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return failure or JSONResponse({"object": "list", "model": body["model"], "data": rows, "usage": usage})


async def images(request: Request) -> Response:
    _, failure = await _called(request)
    return failure or JSONResponse({"created": 1, "data": [{"url": "http://127.0.0.1/picture.png"}]})


async def what_was_seen(request: Request) -> Response:
    return JSONResponse(seen)


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/images/generations", images, methods=["POST"]),
        Route("/seen", what_was_seen),
    ]
)
