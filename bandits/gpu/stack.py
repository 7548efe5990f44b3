"""A stack of ridge regressions in one tensor: means and widths of many arms at once, on a CPU or a GPU.

    load, append, set_theta, add_arm --+                         +--> float64 on the host
                                       +--> queue of the device --+
    scores(z) -------------------------+    in order, one thread  +--> a future, for callers that do not wait

The truth is elsewhere: the float64 sums of the arms. A stack is a copy of what is derived from them, in the precision in which
the device scores, and every change is sent to it. Loading an arm again drops the rounding that its changes gathered. Tensors are
read later, on the thread of the queue: never write into them after passing them.

Shapes: B contexts, m arms, p length of the lifted features, n rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from bandits.gpu.device_buffers import DeviceBuffers, Staging, padded
from bandits.gpu.device_queue import SLOTS, DeviceQueue, Finish, Step

T = TypeVar("T")
CPU = torch.device("cpu")


def scoring_dtype(device: torch.device) -> torch.dtype:
    """float64 on a CPU. float32 on a GPU: half the bytes to read, and widths stay within what docs/gpu.md measures."""
    return torch.float64 if device.type == "cpu" else torch.float32


class Stack:
    """A stack of m ridge regressions on one device. Any thread may score; writes come from one, in the order of the outcomes.

    arms: m >= 1 to begin with, none of which has seen anything.  size: p.  ridge: > 0.
    dtype: in which it scores; default `scoring_dtype`.  block: changes of an arm between two folds.
    batch: contexts in one launch; more are cut.
    threaded: work as on a GPU where there is none: a thread, two slots, few shapes.
    """

    def __init__(
        self,
        *,
        arms: int,
        size: int,
        ridge: float,
        device: torch.device = CPU,
        dtype: torch.dtype | None = None,
        block: int = 32,
        batch: int = 1024,
        threaded: bool = False,
    ) -> None:
        if min(arms, size, block, batch) < 1 or ridge <= 0.0:
            raise ValueError("a stack needs a ridge > 0, and arms, size, block, batch of at least 1")
        check_precision(device)
        self.size, self.batch, self.block = size, padded(batch), block
        self.dtype = dtype or scoring_dtype(device)
        self.device = device
        self._arms = arms
        self._lock = threading.Lock()  # what is counted here must be counted in the order of the queue
        self._queue = DeviceQueue(device, threaded=threaded)
        self._staging: list[Staging] = []

        def build(slot: int) -> Finish:
            self._buffers = DeviceBuffers(
                arms=arms, size=size, ridge=ridge, device=device, dtype=self.dtype, block=block, batch=self.batch
            )
            self._staging = [Staging.of(self._buffers) for _ in range(SLOTS)]
            return _nothing

        self._write([build]).result()

    # -- what it knows -------------------------------------------------------------------------------------------------

    @property
    def arms(self) -> int:
        """The number of arms."""
        return self._arms

    # -- writes --------------------------------------------------------------------------------------------------------

    def load(self, arm: int, *, inverse: Tensor, theta: Tensor) -> Future[None]:
        """Take (p, p) = (gram + pending + ridge I)^-1 and (p,) theta, both float64, for what is known of this arm."""
        _check("inverse", inverse, self.size, self.size)
        _check("theta", theta, self.size)

        def step(slot: int) -> Finish:
            self._buffers.place(arm, inverse)
            self._buffers.theta[arm].copy_(theta)
            return _nothing

        with self._lock:
            self._check_arm(arm)
            return self._write([step])

    def set_theta(self, arm: int, theta: Tensor) -> Future[None]:
        """The (p,) coefficients of the mean, float64."""
        _check("theta", theta, self.size)

        def step(slot: int) -> Finish:
            staged = self._staging[slot].z[0].copy_(theta)
            self._buffers.theta[arm].copy_(staged, non_blocking=True)
            return _nothing

        with self._lock:
            self._check_arm(arm)
            return self._write([step])

    def append(self, arm: int, columns: Tensor) -> Future[None]:
        """Shrink the width of the arm by (n, p) columns that its owner computed: its inverse loses columns'columns. float64."""
        _check("columns", columns, len(columns), self.size)
        steps = [self._appending(arm, part) for part in torch.split(columns, min(self.block, self.batch))] if len(columns) else []
        with self._lock:
            self._check_arm(arm)
            return self._write(steps)

    def _appending(self, arm: int, columns: Tensor) -> Step:
        def step(slot: int) -> Finish:
            self._buffers.append(arm, self._staging[slot].z[: len(columns)].copy_(columns))
            return _nothing

        return step

    def add_arm(self) -> int:
        """One more arm that has seen nothing; its index. There is spare room: most times nothing moves, but graphs are captured
        again, because they know the number of arms.
        """

        def step(slot: int) -> Finish:
            before = self._buffers.capacity
            self._buffers.add_arm()
            if self._buffers.capacity > before:
                self._staging = [Staging.of(self._buffers) for _ in range(SLOTS)]  # steps under way hold the old ones
            return _nothing

        with self._lock:
            added = self._write([step])
            index = self._arms
            self._arms += 1
        added.result()
        return index

    # -- reads ---------------------------------------------------------------------------------------------------------

    def scores(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, m) means and (B, m) widths, float64 on the host, of lifted features (B, p)."""
        return self.submit_scores(z).result()

    def submit_scores(self, z: Tensor) -> Future[tuple[Tensor, Tensor]]:
        """`scores` as a future. They reflect all writes submitted before, and none after."""
        _check("z", z, len(z), self.size)
        steps = [self._scoring(chunk) for chunk in torch.split(z, self.batch)] if len(z) else []
        with self._lock:
            arms = self.arms
            return self._queue.submit(steps, combine=lambda found: _joined(found, arms=arms), writes=False)

    def _staged(self, slot: int, z: Tensor) -> tuple[Staging, int]:
        """The features are on their way to the device. The rows to compute: a GPU has a graph for each power of two only."""
        host, buffers, count = self._staging[slot], self._buffers, len(z)
        host.z[:count].copy_(z)
        buffers.z[:count].copy_(host.z[:count], non_blocking=True)
        return host, padded(count) if self._queue.threaded else count

    def _scoring(self, z: Tensor) -> Step:
        def step(slot: int) -> Finish:
            host, rows = self._staged(slot, z)
            found = self._buffers.program(rows)()
            back = host.scores[: found.numel()].view(found.shape).copy_(found, non_blocking=True)
            return lambda: back[:, : len(z)].to(torch.float64, copy=True)  # the slot is used again

        return step

    # -- the queue -----------------------------------------------------------------------------------------------------

    def submit_warm(self) -> Future[None]:
        """Capture what `scores` launches now, so that no request waits for it; seconds on a GPU, once per arm added."""

        def capture(buffers: DeviceBuffers) -> None:
            for exponent in range(self.batch.bit_length()):
                buffers.program(1 << exponent)

        return self.on_queue(capture)

    def on_queue(self, work: Callable[[DeviceBuffers], T]) -> Future[T]:
        """Anything else with the tensors, in its turn: measurements, inspection. It may wait for the device, but not write."""

        def step(slot: int) -> Finish:
            done = work(self._buffers)
            return lambda: done

        with self._lock:
            return self._queue.submit([step], combine=lambda found: found[0], writes=False)

    def wait(self) -> None:
        """Until everything submitted so far is done, or the first failure of a write is known."""
        self.on_queue(lambda buffers: None).result()

    def close(self) -> None:
        """Finish what was submitted, and take nothing more."""
        self._queue.close()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, steps: Sequence[Step]) -> Future[None]:
        return self._queue.submit(steps, combine=lambda found: None, writes=True)

    def _check_arm(self, arm: int) -> None:
        if not 0 <= arm < self.arms:
            raise IndexError(f"arm {arm}: the stack has arms 0 to {self.arms - 1}")


def check_precision(device: torch.device) -> None:
    """Refuse TF32, which keeps ten bits of each factor: widths are then off by up to a few percent (docs/gpu.md)."""
    if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        raise RuntimeError('float32 products are set to TF32: call torch.set_float32_matmul_precision("highest") first')


def _check(name: str, given: Tensor, *shape: int) -> None:
    if given.shape != shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {shape}")


def _joined(found: Sequence[Tensor], *, arms: int) -> tuple[Tensor, Tensor]:
    both = torch.cat(list(found), dim=1) if found else torch.empty((2, 0, arms), dtype=torch.float64)
    return both[0], both[1]


def _nothing() -> None:
    return
