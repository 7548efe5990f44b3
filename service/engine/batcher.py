"""Micro-batching: requests that are waiting are processed together, and none waits for more to arrive.

submit ──> waiting line ──> work(everything that waits, up to the limit) ──> results, in order
                          (what arrives meanwhile is the next batch)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from service.engine.executor import TaskGroup

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Batches items without a timer: while one batch is processed, what arrives becomes the next.

    work: returns a result or an exception per item; an exception it raises is the result of all.  limit: items per batch.
    An item whose future is cancelled while it waits is skipped; once its batch has started, it is processed to the end.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]], *, limit: int, background: TaskGroup
    ) -> None:
        self._work = work
        self._limit = limit
        self._background = background
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._busy = False

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Enqueue an item; the future of its result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._busy:
            self._busy = True
            self._background.spawn(self._drain())
        return future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._serve([(item, future) for item, future in batch if not future.done()])
        finally:
            self._busy = False

    async def _serve(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        results: Sequence[Result | Exception]
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            _settle(future, result)


def _settle(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():  # its request was cancelled
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
