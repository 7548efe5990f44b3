"""Where mathematics runs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.engine import executor as pace
from service.engine.executor import SLOW_DECAY, AdaptiveExecutor, TaskGroup


def where() -> str:
    return threading.current_thread().name


async def test_work_that_was_never_seen_leaves_the_event_loop_and_comes_back_once_it_proved_quick() -> None:
    work, here = AdaptiveExecutor(), where()
    assert await work.run(where) != here
    for _ in range(60):
        await work.run(where)
    assert await work.run(where) == here
    assert await work.run(where, units=10_000_000) != here, "much of it is slow"


async def test_one_slow_call_keeps_the_next_hundred_out_of_the_event_loop() -> None:
    work, here = AdaptiveExecutor(decay=SLOW_DECAY), where()
    work.peak_s = 0.1
    for _ in range(100):
        assert await work.run(where) != here


async def test_spiky_work_never_runs_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    work, here = AdaptiveExecutor(bursty=True), where()
    work.peak_s = 0.0
    assert await work.run(where) != here


async def test_what_is_measured_is_the_time_of_the_thread_and_not_of_the_clock() -> None:
    work, gate = AdaptiveExecutor(), threading.Event()
    running = asyncio.create_task(work.run(gate.wait, 20.0))
    await asyncio.to_thread(lambda: None)
    gate.set()
    await running
    assert work.peak_s <= 2 * pace.THREAD_ABOVE_S, "a wait is no mathematics"


async def test_failures_reach_the_caller() -> None:
    def fails() -> None:
        raise OverflowError("too much")

    with pytest.raises(OverflowError):
        await AdaptiveExecutor().run(fails)


async def test_background_work_outlives_the_request_that_began_it() -> None:
    background, gate, done = TaskGroup(), asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        done.append(True)

    request = asyncio.create_task(background.run_shielded(work()))
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    gate.set()
    await background.finish()
    assert done == [True]
