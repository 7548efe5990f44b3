"""A stand-in for providers of models on loopback, byte by byte: each arm answers what a test has put down for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Reply = Callable[["Call"], Awaitable[bool]]
"""Writes an answer; whether the connection can be used again."""

USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


@dataclass
class Call:
    """A request that came."""

    arm: str
    path: str
    headers: dict[str, str]
    raw: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def body(self) -> Json:
        found: Json = json.loads(self.raw)
        return found

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def closed(self) -> None:
        """Until the other side has closed the connection."""
        while await self.reader.read(1024):
            pass


@dataclass
class Upstreams:
    """replies: by arm; the last one of a list is repeated. calls: what came, in order."""

    port: int = 0
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    serving: list[asyncio.Task[Any]] = field(default_factory=list)

    def url(self, arm: str) -> str:
        return f"http://127.0.0.1:{self.port}/{arm}/v1"

    def answers(self, arm: str, *replies: Reply) -> None:
        self.replies[arm] = list(replies)

    def answer_in_turn(self, *replies: Reply) -> None:
        """Whichever arm is called next takes the next reply."""
        self.replies = dict.fromkeys(("small", "large"), list(replies))  # noqa: RUF024 (one list for both)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.append(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, value in (item.split(": ", 1) for item in lines)}
                raw = await reader.readexactly(int(headers.get("content-length", "0")))
                _, arm, path = line.split(" ")[1].split("/", 2)
                call = Call(arm, f"/{path}", headers, raw, reader, writer)
                self.calls.append(call)
                replies = self.replies[arm]
                if not await (replies.pop(0) if len(replies) > 1 else replies[0])(call):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def upstreams() -> AsyncIterator[Upstreams]:
    """Running."""
    made = Upstreams()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in made.serving:
            task.cancel()
        await asyncio.gather(*made.serving, return_exceptions=True)


# -- replies ---------------------------------------------------------------------------------------------------------------------


def answer(body: Any, status: int = 200, **headers: str) -> Reply:
    """A whole answer. body: JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    about = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}

    async def reply(call: Call) -> bool:
        lines = "".join(f"{name}: {value}\r\n" for name, value in about.items())
        await call.send(f"HTTP/1.1 {status} Some\r\ncontent-length: {len(content)}\r\n{lines}\r\n".encode() + content)
        return True

    return reply


def stream(*pieces: bytes, ends: bool = True, go_on: asyncio.Event | None = None) -> Reply:
    """Pieces of an event stream, each a chunk of its own. ends: else the connection is closed in the middle.  go_on: awaited
    after the first piece.
    """

    async def reply(call: Call) -> bool:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, piece in enumerate(pieces):
            await call.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            if go_on is not None and number == 0:
                await go_on.wait()
        if ends:
            await call.send(b"0\r\n\r\n")
        return ends

    return reply


async def silence(call: Call) -> bool:
    """No answer, until the other side gives up."""
    await call.closed()
    return False


async def hang_up(call: Call) -> bool:
    """The connection is closed at once."""
    return False


def chat(text: str = "Bonjour", model: str = "m", **more: Any) -> Json:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": USAGE, **more}


def chunk(text: str | None = None, end: str | None = None, **more: Any) -> bytes:
    """An event of a chat stream."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": end}
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more})


def event(body: Any, name: str = "") -> bytes:
    """An event whose data is JSON."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def usage_chunk() -> bytes:
    """The last chunk where the tokens were asked for."""
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE})


def events_in(content: bytes) -> Sequence[Any]:
    """The data of the events of a stream, as JSON; `[DONE]` as it is."""
    found = [line[6:] for part in content.split(b"\n\n") for line in part.split(b"\n") if line.startswith(b"data: ")]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in found]
