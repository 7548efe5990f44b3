"""A wire of the bench's own: a loopback port that forwards to another one, and that can be cut, mended and led elsewhere.

lead_to   connections are closed, new ones lead to the other port: what a changed DNS name or a virtual address does
cut       nothing comes through, nothing is closed, what is sent waits: what a network that lost its packets does
mend      what waits comes through
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

from tools.processes import free_port

CHUNK = 65_536


class Wire:
    """A forwarded loopback port, which ends with its block."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(self._listen())

    def lead_to(self, target: int) -> None:
        """From now on."""
        self._target = target
        self._run(self._close_connections())

    def cut(self) -> None:
        """From now on nothing comes through."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """From now on everything does, also what was sent meanwhile."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def end(self) -> None:
        """Close everything."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> asyncio.Server:
        self._whole.set()
        return await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.add(back)
        await self._whole.wait()
        try:
            far, out = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            back.close()
            self._writers.discard(back)
            return
        self._writers.add(out)
        for pump in (self._pump(near, out, back), self._pump(far, back, out)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, other: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK):
                await self._whole.wait()
                sink.write(chunk)
                await sink.drain()
        for writer in (sink, other):
            writer.close()
            self._writers.discard(writer)

    async def _close(self) -> None:
        self._server.close()  # in its own loop: asyncio's servers are not safe across threads
        await self._close_connections()

    async def _close_connections(self) -> None:
        for task in list(self._pumps):
            task.cancel()
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()
