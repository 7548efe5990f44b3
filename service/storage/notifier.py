"""Who waits in this process for something to happen in a log.

ring(name, end) ──> news      every name that rang since the last call, for the one who follows all logs
                └─> wait      everybody who waits for this very log
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class Notifier:
    """See the module. It belongs to one event loop. heard: every name that rang; who knows that a log is gone takes it out."""

    def __init__(self) -> None:
        self.heard: set[str] = set()
        self._rung = asyncio.Event()
        self._ends: dict[str, int] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def publish(self, name: str, end: int = 0) -> None:
        """Something happened in a log. end: its last offset, 0 = unknown."""
        self.heard.add(name)
        known = self._ends.get(name)
        # "Unknown" is kept until it was told: a log that was deleted, and created again, begins at 1.
        self._ends[name] = end if known is None else 0 if 0 in (known, end) else max(known, end)
        self._rung.set()
        for future in self._waiting.get(name, ()):
            if not future.done():
                future.set_result(None)

    async def news(self, *, timeout_s: float) -> dict[str, int]:
        """Every name that rang since the last call; waits until one does, `timeout_s` at most."""
        if not self._ends:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._rung.wait()
        ends, self._ends = self._ends, {}
        self._rung.clear()
        return ends

    async def wait(self, name: str, end: Callable[[], Awaitable[int]], *, after: int, timeout_s: float) -> int:
        """The answer of `end`, as soon as it is greater than `after`; at the latest after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(name, set())
            waiting.add(future)  # before the end is asked for: what happens meanwhile rings
            try:
                last = await end()
                left = deadline - asyncio.get_running_loop().time()
                if last > after or left <= 0:
                    return last
                await asyncio.wait([future], timeout=left)
            finally:
                waiting.discard(future)
                if not waiting:
                    self._waiting.pop(name, None)
