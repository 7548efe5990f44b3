"""The way onto a device: order, two jobs at once, what a failure means, and that nothing is left behind."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch

from bandits.gpu.device_queue import DeviceQueue, DeviceQueueError, captured, fence, host_zeros
from bandits.gpu.stack import CPU, Stack

RIDGE = 0.3
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_answers_come_in_the_order_of_submission_and_two_jobs_fly_at_once() -> None:
    queue, events = DeviceQueue(CPU, threaded=True), []
    gate = threading.Event()

    def job(name: str, *, wait: bool = False) -> Any:
        def step(slot: int) -> Any:
            if wait:
                gate.wait()
            events.append(f"launch {name} in {slot}")
            return lambda: events.append(f"land {name}")

        return queue.submit([step], combine=len, writes=False)

    answers = [job("a", wait=True), job("b"), job("c")]
    gate.set()
    assert [answer.result() for answer in answers] == [1, 1, 1]
    queue.close()
    assert events == ["launch a in 0", "launch b in 1", "land a", "launch c in 0", "land b", "land c"]


@pytest.mark.parametrize("threaded", [False, True])
def test_a_failed_read_is_its_own_affair_and_a_failed_write_everybodys(threaded: bool) -> None:
    queue = DeviceQueue(CPU, threaded=threaded)

    def fail(slot: int) -> Any:
        raise MemoryError("no room")

    def fine(slot: int) -> Any:
        return lambda: slot

    with pytest.raises(MemoryError):
        queue.submit([fine, fail, fine], combine=len, writes=False).result()
    assert queue.submit([fine, fine], combine=len, writes=False).result() == 2
    with pytest.raises(MemoryError):
        queue.submit([fail], combine=len, writes=True).result()
    with pytest.raises(DeviceQueueError, match="no room"):
        queue.submit([fine], combine=len, writes=False).result()
    queue.close()
    queue.close()
    with pytest.raises(DeviceQueueError, match="closed"):
        queue.submit([fine], combine=len, writes=False)


def test_what_was_submitted_is_done_before_a_lane_closes_and_cannot_be_cancelled() -> None:
    with Stack(arms=1, size=3, ridge=RIDGE, threaded=True) as stack:
        answers = [stack.submit_scores(torch.ones((1, 3), dtype=torch.float64)) for _ in range(9)]
        assert not answers[-1].cancel()
    assert all(answer.done() for answer in answers)


def test_an_unreferenced_stack_ends_its_thread() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "queue of cpu"}

    before = threads()
    stack = Stack(arms=1, size=3, ridge=RIDGE, threaded=True)
    stack.wait()
    (own,) = threads() - before  # those of other stacks may end meanwhile
    del stack
    gc.collect()
    own.join(timeout=30.0)
    assert not own.is_alive()


def test_a_cpu_has_no_graphs_no_pinned_memory_and_nothing_to_wait_for() -> None:
    program = torch.ones(2).sum
    assert captured(program, device=CPU) == program
    assert not host_zeros(2, 3, dtype=torch.float32, device=CPU).is_pinned()
    passed = fence(CPU)
    passed.record()
    passed.synchronize()


@cuda
def test_host_memory_is_pinned() -> None:
    assert host_zeros(2, 3, dtype=torch.float32, device=torch.device("cuda")).is_pinned()
