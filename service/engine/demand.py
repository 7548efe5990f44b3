"""Whether a bandit is asked for in this process: how soon it folds what other processes write, and whether it stays in memory.

request ──> hold ──> note
follow  ──> gather ──> fold everything that has come meanwhile, at once
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import Any

ASKED_S = 1.0
"""For so long after a request for a bandit it is followed closely."""
GATHER_S = 0.02
"""Of a bandit that is being asked for: how long the entries of others gather before they are folded together. To fold one costs a
multiple of its share in a fold of many."""
IDLE_GATHER_S = 1.0
"""Of a bandit that is not being asked for here; the next request for it ends the wait."""


class Demand:
    """When a bandit was last asked for in this process, and which tasks are at work on it.

    asked_at, loaded_at: seconds of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.asked_at = -math.inf
        self.loaded_at = time.monotonic()
        self._holding: set[asyncio.Task[Any]] = set()
        self._asked = asyncio.Event()

    def note(self) -> None:
        """It is asked for."""
        self.asked_at = time.monotonic()
        self._asked.set()

    def hold(self, task: asyncio.Task[Any] | None) -> None:
        """It is asked for, and stays in memory until this task ends: that of a request lasts as long as its answer."""
        self.note()
        if task is not None and task not in self._holding:
            self._holding.add(task)
            task.add_done_callback(self._holding.discard)

    def release(self, task: asyncio.Task[Any] | None) -> None:
        """Let go of it before a task ends, such as one that reads nothing but the log from here on."""
        if task is not None:
            self._holding.discard(task)

    @property
    def is_held(self) -> bool:
        """Whether a task is at work on it."""
        return bool(self._holding)

    def idle_s(self) -> float:
        """Seconds since it was asked for, or loaded."""
        return time.monotonic() - max(self.asked_at, self.loaded_at)

    async def gather(self) -> None:
        """Wait while entries gather."""
        if time.monotonic() - self.asked_at < ASKED_S:
            await asyncio.sleep(GATHER_S)
            return
        self._asked.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), IDLE_GATHER_S)
