"""The end of a server: what is still under way ends before the store is closed."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import Receive, Scope, Send

from service.api.event_streams import EventStreams
from service.cli.serve import _Server

PATIENCE_S = 60.0


async def test_what_is_cancelled_at_the_end_is_waited_for() -> None:
    arrived, ended = asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):  # as one that logs what becomes of its decision
                await asyncio.sleep(0)
            ended.append(scope["path"])

    config = uvicorn.Config(
        app, port=0, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=0
    )
    server = _Server(config, streams=EventStreams(), url="", store="")
    async with asyncio.timeout(PATIENCE_S):
        with server.capture_signals():
            serving = asyncio.create_task(server._serve())
            while not server.started:
                await asyncio.sleep(0.001)
            _, writer = await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
            writer.write(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await arrived.wait()
            server.should_exit = True
            await serving
        assert ended == ["/slow"]
        writer.close()
