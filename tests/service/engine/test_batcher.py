"""`MicroBatcher`: what waits together is served together, in order, and no request waits for more to come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from service.engine.batcher import MicroBatcher
from service.engine.executor import TaskGroup

Work = Callable[[Sequence[int]], Awaitable[Sequence[int | Exception]]]


def doubling(batches: list[list[int]]) -> Work:
    async def work(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        await asyncio.sleep(0)
        return [ValueError(item) if item < 0 else 2 * item for item in items]

    return work


async def test_a_lonely_request_is_served_at_once_and_later_ones_together() -> None:
    batches: list[list[int]] = []
    line = MicroBatcher(doubling(batches), limit=3, background=TaskGroup())
    first = line.submit(1)
    await asyncio.sleep(0)
    rest = [line.submit(item) for item in (2, 3, 4, 5)]
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10]
    assert batches == [[1], [2, 3, 4], [5]]
    assert await line.submit(6) == 12, "a batcher that was empty starts again"


async def test_the_failure_of_one_is_its_own() -> None:
    line = MicroBatcher(doubling([]), limit=8, background=TaskGroup())
    answers = await asyncio.gather(line.submit(1), line.submit(-2), line.submit(3), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["2", "-2", "6"]
    assert isinstance(answers[1], ValueError)


async def test_what_the_work_raises_is_the_failure_of_all_and_the_line_goes_on() -> None:
    broken = [True]

    async def work(items: Sequence[int]) -> Sequence[int]:
        if broken.pop() if broken else False:
            raise OSError("gone")
        return items

    line: MicroBatcher[int, int] = MicroBatcher(work, limit=2, background=TaskGroup())
    answers = await asyncio.gather(*(line.submit(item) for item in (1, 2, 3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OSError, OSError, int]


async def test_who_leaves_before_its_turn_is_left_out_and_who_leaves_later_is_worked_on() -> None:
    batches: list[list[int]] = []
    background = TaskGroup()
    line = MicroBatcher(doubling(batches), limit=2, background=background)
    gone, stays, late = line.submit(1), line.submit(2), line.submit(3)
    gone.cancel()
    await asyncio.sleep(0)
    stays.cancel()
    assert await late == 6
    await background.finish()
    assert batches == [[2], [3]]
    with pytest.raises(asyncio.CancelledError):
        await stays
