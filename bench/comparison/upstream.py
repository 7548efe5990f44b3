"""A model that answers at once: OpenAI's chat completions over raw ASGI, on the server software of the bare routes.

    python -m bench.comparison.upstream PORT

    POST /NAME/v1/chat/completions   -> a completion whose text is NAME, so that an answer tells which deployment gave it

A question is read and checked, as a model's server would; nothing else is done with it.
"""

from __future__ import annotations

import re
import sys

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

MODEL = "gpt-4o-mini"
"""A name that a proxy has a price for: none has to be looked for in vain."""
ROUTE = re.compile(r"/([\w-]+)/v1/chat/completions")
JSON = [(b"content-type", b"application/json")]
CREATED = 1_790_000_000


class Message(msgspec.Struct):
    """One turn."""

    role: str
    content: str


class Chat(msgspec.Struct):
    """Body of a question; a client may send more than this."""

    model: str
    messages: list[Message]


class Choice(msgspec.Struct):
    """The only one."""

    index: int
    message: Message
    finish_reason: str


class Usage(msgspec.Struct):
    """Tokens, which are paid for."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(msgspec.Struct):
    """The answer, put together for each request."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


decode = msgspec.json.Decoder(Chat).decode
encode = msgspec.json.Encoder().encode


def path(name: str) -> str:
    """Where a deployment answers."""
    return f"/{name}/v1/chat/completions"


def answered(asked: str, body: bytes) -> tuple[int, bytes]:
    """Path and body -> status and answer."""
    if not (found := ROUTE.fullmatch(asked)):
        return 404, b'{"error":{"message":"there is no such path"}}'
    try:
        chat = decode(body)
    except msgspec.DecodeError as error:  # a ValidationError is one, too
        return 400, encode({"error": {"message": str(error)}})
    read = sum(len(message.content.split()) for message in chat.messages)
    choice = Choice(0, Message("assistant", found[1]), "stop")
    return 200, encode(Completion("chatcmpl-1", "chat.completion", CREATED, chat.model, [choice], Usage(read, 1, read + 1)))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Raw ASGI."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    status, content = answered(scope["path"], body)
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*JSON, length]})
    await send({"type": "http.response.body", "body": content})


def main() -> None:
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False)


if __name__ == "__main__":
    main()
