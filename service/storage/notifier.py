"""In-process notifications: a log changed.

publish(name, end) ──> wait_for_changes   every name published since the last call, for the task that follows all logs
                   └─> wait               every waiter of this log
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class Notifier:
    """Wakes the waiters of changed logs; belongs to one event loop.

    known_names: every name ever published; the owner of the store removes those of deleted logs.
    """

    def __init__(self) -> None:
        self.known_names: set[str] = set()
        self._published = asyncio.Event()
        self._ends: dict[str, int] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    @property
    def is_awaited(self) -> bool:
        """Whether somewhere `wait` waits for a change."""
        return bool(self._waiters)

    def publish(self, name: str, end: int = 0) -> None:
        """Something happened in a log. end: its last offset, 0 = unknown."""
        self.known_names.add(name)
        known = self._ends.get(name)
        # "Unknown" is kept until it was delivered: a log that was deleted, and created again, begins at 1.
        self._ends[name] = end if known is None else 0 if 0 in (known, end) else max(known, end)
        self._published.set()
        for future in self._waiters.get(name, ()):
            if not future.done():
                future.set_result(None)

    async def wait_for_changes(self, *, timeout_s: float) -> dict[str, int]:
        """Name -> last offset (0 = unknown) of every log published since the last call; waits up to `timeout_s` for the first."""
        if not self._ends:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._published.wait()
        ends, self._ends = self._ends, {}
        self._published.clear()
        return ends

    async def wait(self, name: str, end: Callable[[], Awaitable[int]], *, after: int, timeout_s: float) -> int:
        """The answer of `end`, as soon as it is greater than `after`; at the latest after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiters.setdefault(name, set())
            waiting.add(future)  # before `end` is called, so that no change in between is missed
            try:
                last = await end()
                left = deadline - asyncio.get_running_loop().time()
                if last > after or left <= 0:
                    return last
                await asyncio.wait([future], timeout=left)
            finally:
                waiting.discard(future)
                if not waiting:
                    self._waiters.pop(name, None)
