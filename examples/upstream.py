"""A stand-in for a provider of models with the OpenAI API, to try nextarm without a key: it knows sums and capitals, and no more.

    python -m examples.upstream                   # on 127.0.0.1:9100; --port takes another one

    | model | sums | capitals | USD for a million tokens |
    | abacus | right | wrong | 1 |
    | atlas | wrong | right | 1 |
    | polymath | right | right | 20 |

The same request has the same answer. Other names answer like polymath, but for those that begin with `broken` (status 500),
`limited` (429), `refusing` (400), and `cut`, whose streams end in the middle. `upstreams_offline.toml` makes arms of the three;
docs/openai.md plays them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo", "Canada": "Ottawa"}
KNOWS = {"abacus": {"sums"}, "atlas": {"capitals"}}
"""Model -> the kinds of questions that it answers rightly; others know both."""
FAILURES: dict[str, tuple[int, dict[str, str]]] = {
    "broken": (500, {}),
    "limited": (429, {"retry-after": "1"}),
    "refusing": (400, {}),
}
"""What the name of a model that fails begins with -> status and headers."""
SUM = re.compile(r"(\d{1,9}) plus (\d{1,9})")


def reply(model: str, question: str) -> str:
    """What a model says: to `17 plus 25` the sum, to the name of a country its capital, to all else that it does not know."""
    knows = KNOWS.get(model, {"sums", "capitals"})
    if found := SUM.search(question):
        return f"That is {int(found[1]) + int(found[2]) + (0 if 'sums' in knows else 1)}."
    for country, capital in CAPITALS.items():
        if country in question:
            return f"That is {capital if 'capitals' in knows else 'a large city'}."
    return "I do not know."


def tokens(text: str) -> int:
    """Words and signs of a text."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def text_of(content: Any) -> str:
    """The text of a message's content, or of the `input` of a response: a string, or parts and messages that hold some."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content] if isinstance(content, dict) else []
    return "\n".join(text_of(part.get("text") or part.get("content")) if isinstance(part, dict) else str(part) for part in parts)


async def _called(request: Request) -> tuple[Json, Response | None]:
    """The body, and the failure where the model is one that fails."""
    body: Json = await request.json()
    for beginning, (status, headers) in FAILURES.items():
        if str(body["model"]).startswith(beginning):
            return body, JSONResponse({"error": {"message": beginning, "type": "error", "code": None}}, status, headers)
    return body, None


def _stream(events: AsyncIterator[str]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")


async def chat(request: Request) -> Response:
    """Chat completions, whole and as a stream of words. Answered is the last message."""
    body, failure = await _called(request)
    if failure is not None:
        return failure
    said = [text_of(message.get("content")) for message in body["messages"]]
    text = reply(body["model"], said[-1])
    about: Json = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    read, written = sum(map(tokens, said)), tokens(text)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    if not body.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return JSONResponse({**about, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def events() -> AsyncIterator[str]:
        for number, piece in enumerate([*re.findall(r"\S+\s*", text), ""]):
            delta = {"role": "assistant", "content": piece} if piece else {}
            choice = {"index": 0, "delta": delta, "finish_reason": None if piece else "stop"}
            yield f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
            if number == 0 and body["model"].startswith("cut"):
                return
        if (body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return _stream(events())


async def responses(request: Request) -> Response:
    """Responses, whole and as a stream. Answered is all of `input`."""
    body, failure = await _called(request)
    if failure is not None:
        return failure
    said = text_of(body["input"])
    text = reply(body["model"], said)
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": tokens(said), "output_tokens": tokens(text), "total_tokens": tokens(said) + tokens(text)}
    about = {"id": "resp_1", "object": "response", "created_at": 1, "model": body["model"], "tools": [], "tool_choice": "auto"}
    whole = {**about, "status": "completed", "output": [message], "usage": usage, "parallel_tool_calls": True}
    if not body.get("stream"):
        return JSONResponse(whole)

    async def events() -> AsyncIterator[str]:
        delta = {"item_id": "m1", "output_index": 0, "content_index": 0, "delta": text, "logprobs": []}
        parts: list[tuple[str, Json]] = [
            ("response.created", {"response": {**whole, "status": "in_progress", "output": []}}),
            ("response.output_text.delta", delta),
            ("response.completed", {"response": whole}),
        ]
        for number, (kind, more) in enumerate(parts):
            yield f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **more})}\n\n"
            if number == 1 and body["model"].startswith("cut"):
                return

    return _stream(events())


async def embeddings(request: Request) -> Response:
    """The same two numbers for every text."""
    body, failure = await _called(request)
    rows = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return failure or JSONResponse({"object": "list", "model": body["model"], "data": rows, "usage": usage})


async def images(request: Request) -> Response:
    """An address at which there is no picture."""
    _, failure = await _called(request)
    return failure or JSONResponse({"created": 1, "data": [{"url": "http://127.0.0.1/picture.png"}]})


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/images/generations", images, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m examples.upstream", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=9100, help="on 127.0.0.1 (default: 9100)")
    uvicorn.run(app, port=parser.parse_args().port, log_level="warning")
