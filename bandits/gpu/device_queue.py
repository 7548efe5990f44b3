"""A queue of work for one device: any thread submits, jobs run in the order of submission and answer through a future.

    submit(steps) --> queue --> thread with a stream of its own:  step(slot) stages and launches --> fence --> finish()
                                                                  step(other slot) of the next job meanwhile
    on the CPU a lock stands in for the thread, and the submitting thread computes

A read submitted after a write sees it; the steps of one job have nothing between them. Everything that CUDA has and a CPU
has not (streams, events, pinned memory, captured graphs) is at the end of this module, each in a function that does nothing,
or the plain thing, on a CPU.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

SLOTS = 2
"""Jobs on the device at once: while one computes, the next is staged. Each has host memory of its own."""

T = TypeVar("T")

Finish = Callable[[], Any]
"""Reads what a step computed; called once its fence has passed."""

Step = Callable[[int], Finish]
"""Stages its input in the host memory of this slot, launches, and never waits for the device."""


class DeviceQueueError(RuntimeError):
    """A write failed or the queue was closed: the contents of the device are undefined. Build a new one."""


@dataclass
class _Job:
    steps: Sequence[Step]
    combine: Callable[[list[Any]], Any]
    writes: bool
    answer: Future[Any]
    values: list[Any] = field(default_factory=list)


class _InFlight(NamedTuple):
    slot: int
    finish: Finish
    job: _Job


class DeviceQueue:
    """A queue of jobs for one device, run in the order of submission.

    threaded: on a CPU too, work through a thread and two slots as on a GPU (there it is always so).
    """

    def __init__(self, device: torch.device, *, threaded: bool = False) -> None:
        self.device = device
        self.threaded = threaded or device.type == "cuda"
        self._worker = _Worker(device)
        self._lock = threading.Lock()
        self._closed = False
        if self.threaded:
            # The thread holds the worker and never the queue, so that an unreferenced queue ends its thread.
            threading.Thread(target=self._worker.run, name=f"queue of {device}", daemon=True).start()
            weakref.finalize(self, self._worker.jobs.put, None)

    def submit(self, steps: Sequence[Step], *, combine: Callable[[list[Any]], T], writes: bool) -> Future[T]:
        """Do these steps, with nothing between them; the answer is `combine` of what they finished with, in order.

        A failure is the future's. That of a write breaks the queue: half a write must not be read. What was submitted cannot be
        cancelled, because what comes after may rest on it.
        """
        answer: Future[T] = Future()
        answer.set_running_or_notify_cancel()
        job = _Job(steps, combine, writes, answer)
        with self._lock:
            if self._closed:
                raise DeviceQueueError(f"the queue of {self.device} is closed")
            if self.threaded:
                self._worker.jobs.put(job)
            else:
                self._worker.at_once(job)
        return answer

    def close(self) -> None:
        """Finish what was submitted, and take nothing more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._worker.jobs.put(None)
        if self.threaded:
            self._worker.ended.wait()


class _Worker:
    """The thread of a queue."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        self._flying: deque[_InFlight] = deque()
        self._fences: list[Fence] = []
        self._turn = 0
        self._broken: BaseException | None = None

    def run(self) -> None:
        try:
            with streaming(self.device):
                self._fences = [fence(self.device) for _ in range(SLOTS)]
                while self._serve_one():
                    pass
        except BaseException as error:  # the device itself failed to start
            self._broken = error
            while (job := self.jobs.get()) is not None:
                self._fail(job, error)
        finally:
            self.ended.set()

    def _serve_one(self) -> bool:
        """Launch what waits; where nothing does, land what flies. False once closed."""
        try:
            job = self.jobs.get(block=not self._flying)
        except queue.Empty:
            self._land()
            return True
        if job is None:
            while self._flying:
                self._land()
            return False
        self._launch(job)
        return True

    def _launch(self, job: _Job) -> None:
        if self._refuses(job):
            return
        for step in job.steps:
            while len(self._flying) >= SLOTS:  # they land in the order of their slots, so the next slot is free
                self._land()
            if job.answer.done():  # a step before this one failed
                return
            try:
                finish = step(self._turn)
                self._fences[self._turn].record()
            except BaseException as error:
                self._fail(job, error)
                return
            self._flying.append(_InFlight(self._turn, finish, job))
            self._turn = (self._turn + 1) % SLOTS
        self._answer_when_complete(job)

    def _land(self) -> None:
        slot, finish, job = self._flying.popleft()
        if job.answer.done():
            return
        try:
            self._fences[slot].synchronize()
            job.values.append(finish())
        except BaseException as error:
            self._fail(job, error)
            return
        self._answer_when_complete(job)

    def at_once(self, job: _Job) -> None:
        """The job in the thread of the caller, which holds the queue's lock."""
        if self._refuses(job):
            return
        try:
            for step in job.steps:
                job.values.append(step(0)())
        except BaseException as error:
            self._fail(job, error)
            return
        self._answer_when_complete(job)

    def _answer_when_complete(self, job: _Job) -> None:
        if len(job.values) == len(job.steps) and not job.answer.done():
            try:
                job.answer.set_result(job.combine(job.values))
            except Exception as error:
                job.answer.set_exception(error)

    def _refuses(self, job: _Job) -> bool:
        if self._broken is not None:
            error = DeviceQueueError(f"an earlier write to {self.device} failed: {self._broken!r}")
            error.__cause__ = self._broken
            job.answer.set_exception(error)
        return self._broken is not None

    def _fail(self, job: _Job, error: BaseException) -> None:
        if job.writes:
            self._broken = error
        try:
            settle(self.device)  # a copy out of this slot may still be under way, and the slot is used again
        except RuntimeError as lost:
            self._broken = lost
        if not job.answer.done():
            job.answer.set_exception(error)


# -- what CUDA has and a CPU has not -------------------------------------------------------------------------------------


class Fence(Protocol):
    """A point in the order of the device."""

    def record(self) -> None:
        """Set it after everything launched so far."""

    def synchronize(self) -> None:
        """Wait until the device has passed it."""


class _Passed:
    """The fence of a device that is done when a call returns."""

    def record(self) -> None:
        return

    def synchronize(self) -> None:
        return


def fence(device: torch.device) -> Fence:
    """A fence in the current stream. The wait sleeps (blocking) instead of spinning on a core that serves requests."""
    if device.type != "cuda":
        return _Passed()
    event: Fence = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    return event


@contextmanager
def streaming(device: torch.device) -> Iterator[None]:
    """Everything that this thread launches goes to a stream of its own. A graph cannot be captured on the default stream."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield


def settle(device: torch.device) -> None:
    """Wait until the current stream is empty."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def host_zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory from which copies to and from the device run on their own: pinned, where the device is a GPU."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


_ONE_CAPTURE = threading.Lock()  # in one process one capture may be under way; other stacks have threads of their own


def captured(program: Callable[[], Tensor], *, device: torch.device) -> Callable[[], Tensor]:
    """The program as one graph that is launched at once; on a CPU, the program.

    It must read and write the same memory each time, and launch the same kernels. It is run three times before, on the same
    stream, so that the libraries have made their handles and workspaces, which a capture may not. `thread_local`: other threads
    (an embedder) may allocate and copy meanwhile. What the graph returns lies in memory of its own, written by every replay.
    """
    if device.type != "cuda":
        return program
    with _ONE_CAPTURE:
        for _ in range(3):
            program()
        settle(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device), capture_error_mode="thread_local"):
            result = program()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
