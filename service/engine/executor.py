"""Executors of the engine: work runs inline while it is quick, else in a worker thread; and a group of background tasks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREAD_ABOVE_S = 3e-3
"""Mathematics that takes more CPU time leaves the event loop for a worker thread. A hand-over costs 0.1 ms, and the other core's
caches know nothing of the state: with 16 to 64 requests waiting, 3 ms cost 10 to 25 % less CPU per decision than 1 ms did.
"""
DECAY, SLOW_DECAY = 0.8, 0.98
"""What is left of a peak after one quicker call. With `RARELY` one call of 0.1 s in 200 keeps them all out of the event loop."""


class AdaptiveExecutor:
    """Runs one kind of work and remembers how long it takes, so that the event loop never waits for what is known to be slow.

    peak_s: CPU seconds of the slowest recent call, per unit of work. Unmeasured work is assumed slow.
    decay:  what is left of that peak after one quicker call.
    bursty: now and then a call takes a thousand times as long as most, so all of them run in a thread.
    """

    def __init__(self, pool: ThreadPoolExecutor | None = None, *, decay: float = DECAY, bursty: bool = False) -> None:
        self.peak_s = 1.25 * THREAD_ABOVE_S
        self.bursty = bursty
        self._decay = decay
        self._pool = pool

    def is_slow(self, units: int = 1) -> bool:
        """Whether this many units of work belong in a thread."""
        return self.bursty or self.peak_s * units > THREAD_ABOVE_S

    async def run(self, work: Callable[P, T], *values: P.args, units: int = 1) -> T:  # type: ignore[valid-type]
        """Run it inline or in a thread. units: how much work this call is, for the estimate of the next."""
        if self.is_slow(units):
            result, seconds = await asyncio.get_running_loop().run_in_executor(self._pool, _timed, work, *values)
        else:
            result, seconds = _timed(work, *values)
        self.peak_s = max(seconds / max(units, 1), self._decay * self.peak_s)
        return result


def _timed(work: Callable[..., T], *values: Any) -> tuple[T, float]:
    """The result and its CPU seconds: time of the calling thread, so that neither a busy machine nor the hand-over to a worker
    counts as work (which would keep the work in the worker for ever).
    """
    started = time.thread_time()
    return work(*values), time.thread_time() - started


def _lower_priority() -> None:
    """Run the calling thread below request threads, where the system has priorities per thread."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, 10)  # on Linux 0 is the calling thread


BACKGROUND_POOL = ThreadPoolExecutor(
    max(1, (os.cpu_count() or 2) // 2), thread_name_prefix="nextarm-prepare", initializer=_lower_priority
)
"""For seconds of mathematics that no request waits for: few threads of low priority, so that other bandits are not slowed."""
SNAPSHOT_POOL = ThreadPoolExecutor(1, thread_name_prefix="nextarm-snapshot")
"""Packs one snapshot after the other: that takes several times the memory of a state, and bandits that were created together have
as many events at the same moment.
"""


class TaskGroup:
    """Background tasks that outlive the request that started them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task. Await its result through `asyncio.shield` only."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run_shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the result; if the caller is cancelled the work goes on: what is in the log is folded, and no fold is left half
        done.
        """
        return await asyncio.shield(self.spawn(work))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running

    async def finish(self) -> None:
        """Wait for all of it."""
        while self._running:
            await asyncio.wait(self._running)
