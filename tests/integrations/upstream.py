"""A stand-in for a provider of models with the OpenAI API, on loopback: `uvicorn tests.integrations.upstream:app`.

Models whose names begin with `broken` answer 500, with `limited` 429, with `refusing` 400; streams of those with `cut` end in the
middle. GET /seen lists the models that were called.
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
    for beginning, status, headers in (("broken", 500, {}), ("limited", 429, {"retry-after": "1"}), ("refusing", 400, {})):
        if body["model"].startswith(beginning):
            return body, JSONResponse({"error": {"message": beginning, "type": "error", "code": None}}, status, headers)
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
            if body["model"].startswith("cut"):
                return
        if (body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [], 'usage': USAGE})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def responses(request: Request) -> Response:
    body, failure = await _called(request)
    if failure is not None:
        return failure
    text = {"type": "output_text", "text": "Bonjour", "annotations": []}
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [text]}
    usage = {"input_tokens": 12, "output_tokens": 7, "total_tokens": 19}
    about = {"id": "resp_1", "object": "response", "created_at": 1, "model": body["model"], "tools": [], "tool_choice": "auto"}
    whole = {**about, "status": "completed", "output": [message], "usage": usage, "parallel_tool_calls": True}
    if not body.get("stream"):
        return JSONResponse(whole)

    async def events() -> AsyncIterator[str]:
        delta = {"item_id": "m1", "output_index": 0, "content_index": 0, "delta": "Bonjour", "logprobs": []}
        parts: list[tuple[str, dict[str, Any]]] = [
            ("response.created", {"response": {**whole, "status": "in_progress", "output": []}}),
            ("response.output_text.delta", delta),
            ("response.completed", {"response": whole}),
        ]
        for number, (kind, more) in enumerate(parts):
            yield f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **more})}\n\n"
            if body["model"].startswith("cut") and number:
                return

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
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/images/generations", images, methods=["POST"]),
        Route("/seen", what_was_seen),
    ]
)
