"""A client of an event stream over ASGI, which reads as quickly as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.api.middleware import ABORT
from tests.service.http_client import Json, Service

PATIENCE_S = 60.0


class Reader:
    """What a stream has sent. It takes one piece, and the next one when that was read: without reading, the stream is held up."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.leaving = asyncio.Event()
        self.aborted = asyncio.Event()
        self.task: asyncio.Task[None]

    def abort(self) -> None:
        """What the server does with a connection that takes nothing."""
        self.aborted.set()
        self.leaving.set()

    async def receive(self) -> Json:
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if message.get("body"):
            await self.chunks.put(message["body"])
        if not message.get("more_body"):
            await self.chunks.put(None)

    async def chunk(self) -> bytes | None:
        """The next piece, None at the end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.chunks.get()

    async def messages(self) -> AsyncIterator[dict[str, str]]:
        """Field -> value of each message to the end; a comment has the field "" alone."""
        while (chunk := await self.chunk()) is not None:
            assert chunk.endswith(b"\n\n")
            for text in chunk.decode().removesuffix("\n\n").split("\n\n"):
                yield dict(line.partition(":")[::2] for line in text.split("\n"))

    async def events(self, number: int) -> list[Json]:
        """Of so many messages the events, which are what their ids and kinds say."""
        found: list[Json] = []
        async for message in self.messages():
            if " data" in message or "data" in message:
                event = json.loads(message["data"])
                assert (message["id"], message["event"]) == (f" {event['offset']}", f" {event['event']}")
                found.append(event)
            if len(found) == number:
                break
        return found


def scope_of(path: str, query: str = "", headers: dict[str, str] | None = None, *, method: str = "GET") -> Json:
    """Of a request as the server makes it."""
    given = {"host": "localhost", **(headers or {})}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("localhost", 80),
    }


@asynccontextmanager
async def reading(service: Service, query: str = "", name: str = "b", **headers: str) -> AsyncIterator[Reader]:
    """A stream whose answer has begun; the client leaves at the end."""
    transport: Any = service.client._transport
    reader = Reader()
    scope = scope_of(f"/v1/bandits/{name}/events", query, {key.replace("_", "-"): value for key, value in headers.items()})
    sent = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Json:
        return sent.pop() if sent else await reader.receive()

    reader.task = asyncio.create_task(transport.app({**scope, ABORT: reader.abort}, receive, reader.send))
    try:
        first = await reader.chunk()  # where the stream begins, or the problem
        assert first is not None
        if reader.status == 200:
            assert first.startswith(b"retry: 1000\nid: ")
        yield reader
    finally:
        reader.leaving.set()
        while not reader.task.done():
            with contextlib.suppress(asyncio.QueueEmpty):
                reader.chunks.get_nowait()
            await asyncio.sleep(0)
        await reader.task
