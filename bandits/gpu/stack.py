"""The widths and means of many arms at once, on a CPU or a GPU: ridge regressions stacked in one tensor.

    load, shrink, append, widen, set_theta, add_arm --+                         +--> float64 on the host
                                                      +--> lane of the device --+
    scores(z), picks(z) ------------------------------+    in order, one thread +--> a future, for who does not wait

The truth is elsewhere: the float64 sums of the arms. A stack is a copy of what is derived from them, in the precision in which
the device scores, and it is told of every change. What rounding it gathers is dropped when an arm is loaded again, which the
owner does for the `stale` ones. Tensors that are given are read later, on the lane: never write into them afterwards.

Shapes: B contexts, m arms, p length of the lifted features, n rows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from bandits.gpu.lane import SLOTS, DeviceQueue, Finish, Step
from bandits.gpu.resident import DeviceBuffers, Staging, padded

T = TypeVar("T")
CPU = torch.device("cpu")


def scoring_dtype(device: torch.device) -> torch.dtype:
    """float64 on a CPU. float32 on a GPU: half the bytes to read, and widths stay within what docs/gpu.md measures."""
    return torch.float64 if device.type == "cpu" else torch.float32


class Stack:
    """m ridge regressions on one device. Any thread may ask; writes should come from one, as their order is the outcome's.

    arms: m >= 1 to begin with, none of which has seen anything.  size: p.  ridge: > 0.
    dtype: in which it scores; default `scoring_dtype`.  block: changes of an arm between two folds.
    batch: contexts in one launch; more are cut.  refresh_every: changes after which an arm is `stale`.
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
        refresh_every: int = 1000,
        threaded: bool = False,
    ) -> None:
        if min(arms, size, block, batch, refresh_every) < 1 or ridge <= 0.0:
            raise ValueError("a stack needs a ridge > 0, and arms, size, block, batch, refresh_every of at least 1")
        check_precision(device)
        self.size, self.batch, self.block, self.refresh_every = size, padded(batch), block, refresh_every
        self.dtype = dtype or scoring_dtype(device)
        self.device = device
        self._changes = [0] * arms
        self._lock = threading.Lock()  # what is counted here must be counted in the order of the lane
        self._lane = DeviceQueue(device, threaded=threaded)
        self._staging: list[Staging] = []

        def build(slot: int) -> Finish:
            self._resident = DeviceBuffers(
                arms=arms, size=size, ridge=ridge, device=device, dtype=self.dtype, block=block, batch=self.batch
            )
            self._staging = [Staging.of(self._resident) for _ in range(SLOTS)]
            return _nothing

        self._write([build]).result()

    # -- what it knows -------------------------------------------------------------------------------------------------

    @property
    def arms(self) -> int:
        """How many."""
        return len(self._changes)

    @property
    def changes(self) -> tuple[int, ...]:
        """Rows per arm by which its width shrank since it was loaded."""
        return tuple(self._changes)

    @property
    def stale(self) -> tuple[int, ...]:
        """Arms to be loaded again."""
        return tuple(arm for arm, count in enumerate(self._changes) if count >= self.refresh_every)

    # -- writes --------------------------------------------------------------------------------------------------------

    def load(self, arm: int, *, inverse: Tensor, theta: Tensor) -> Future[None]:
        """Take (p, p) = (gram + pending + ridge I)^-1 and (p,) theta, both float64, for what is known of this arm."""
        _check("inverse", inverse, self.size, self.size)
        _check("theta", theta, self.size)
        return self._place(arm, inverse, theta)

    def widen(self, arm: int, *, inverse: Tensor) -> Future[None]:
        """Undo pending rows: the inverse without them is loaded. A downdate in float32 would lose what it is to give back."""
        _check("inverse", inverse, self.size, self.size)
        return self._place(arm, inverse, None)

    def _place(self, arm: int, inverse: Tensor, theta: Tensor | None) -> Future[None]:
        def step(slot: int) -> Finish:
            self._resident.place(arm, inverse)
            if theta is not None:
                self._resident.theta[arm].copy_(theta)
            return _nothing

        with self._lock:
            self._check_arms([arm])
            self._changes[arm] = 0
            return self._write([step])

    def set_theta(self, arm: int, theta: Tensor) -> Future[None]:
        """The (p,) coefficients of the mean, float64."""
        _check("theta", theta, self.size)

        def step(slot: int) -> Finish:
            staged = self._staging[slot].z[0].copy_(theta)
            self._resident.theta[arm].copy_(staged, non_blocking=True)
            return _nothing

        with self._lock:
            self._check_arms([arm])
            return self._write([step])

    def shrink(self, arms: Sequence[int], rows: Tensor) -> Future[None]:
        """Shrink the width of arm `arms[i]` by row i of (n, p). Rows of one arm count for each other, as if added one by one."""
        _check("rows", rows, len(arms), self.size)
        steps = [self._shrinking(arms[part], rows[part]) for part in runs(arms, block=self.block, batch=self.batch)]
        with self._lock:
            self._check_arms(arms)
            for arm in arms:
                self._changes[arm] += 1
            return self._write(steps)

    def _shrinking(self, arms: Sequence[int], rows: Tensor) -> Step:
        order = sorted(range(len(arms)), key=arms.__getitem__)
        counts = Counter(arms[row] for row in order)

        def step(slot: int) -> Finish:
            host, resident, n = self._staging[slot], self._resident, len(arms)
            host.z[:n].copy_(rows[order])
            resident.z[:n].copy_(host.z[:n], non_blocking=True)
            if not resident.sparse(counts):
                host.places[:n].copy_(torch.tensor(resident.places_of(counts)))
                resident.places[:n].copy_(host.places[:n], non_blocking=True)
            resident.absorb(counts, resident.z[:n], resident.places[:n])
            return _nothing

        return step

    def append(self, arm: int, columns: Tensor) -> Future[None]:
        """Shrink the width of the arm by (n, p) columns that its owner computed: its inverse loses columns'columns. float64."""
        _check("columns", columns, len(columns), self.size)
        steps = [self._appending(arm, part) for part in torch.split(columns, min(self.block, self.batch))] if len(columns) else []
        with self._lock:
            self._check_arms([arm])
            self._changes[arm] += len(columns)
            return self._write(steps)

    def _appending(self, arm: int, columns: Tensor) -> Step:
        def step(slot: int) -> Finish:
            self._resident.append(arm, self._staging[slot].z[: len(columns)].copy_(columns))
            return _nothing

        return step

    def add_arm(self) -> int:
        """One more arm that has seen nothing; its index. There is spare room: most times nothing moves, but graphs are captured
        anew, because they know the number of arms.
        """

        def step(slot: int) -> Finish:
            before = self._resident.capacity
            self._resident.add_arm()
            if self._resident.capacity > before:
                self._staging = [Staging.of(self._resident) for _ in range(SLOTS)]  # steps under way hold the old ones
            return _nothing

        with self._lock:
            self._changes.append(0)
            added = self._write([step])
            index = len(self._changes) - 1
        added.result()
        return index

    def refresh(self, truth: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[int, ...]:
        """Load the `stale` arms afresh, and say which. truth: arm -> its (p, p) inverse and (p,) theta as of now, float64."""
        loaded = self.stale
        for arm in loaded:
            inverse, theta = truth(arm)
            self.load(arm, inverse=inverse, theta=theta)
        return loaded

    # -- reads ---------------------------------------------------------------------------------------------------------

    def scores(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, m) means and (B, m) widths, float64 on the host, of lifted features (B, p)."""
        return self.submit_scores(z).result()

    def submit_scores(self, z: Tensor) -> Future[tuple[Tensor, Tensor]]:
        """`scores`, for who does not wait. They know of all writes submitted before, and of none after."""
        _check("z", z, len(z), self.size)
        steps = [self._scoring(chunk) for chunk in torch.split(z, self.batch)] if len(z) else []
        with self._lock:
            arms = self.arms
            return self._lane.submit(steps, combine=lambda found: _joined(found, arms=arms), writes=False)

    def picks(self, z: Tensor, *, exploration: float, allowed: Tensor) -> Tensor:
        """(B,) int64 per row of z (B, p) the allowed (B, m) arm of highest mean + exploration * width, ties to the lowest index.

        Only the arms come back from the device. A row without an allowed arm gets one all the same.
        """
        return self.submit_picks(z, exploration=exploration, allowed=allowed).result()

    def submit_picks(self, z: Tensor, *, exploration: float, allowed: Tensor) -> Future[Tensor]:
        """`picks`, for who does not wait."""
        _check("z", z, len(z), self.size)
        chunks = zip(torch.split(z, self.batch), torch.split(allowed, self.batch), strict=True) if len(z) else ()
        steps = [self._picking(chunk, exploration=exploration, allowed=mask) for chunk, mask in chunks]
        with self._lock:
            _check("allowed", allowed, len(z), self.arms)
            return self._lane.submit(steps, combine=_concatenated, writes=False)

    def _staged(self, slot: int, z: Tensor) -> tuple[Staging, int]:
        """The features are on their way to the device. The rows to compute: a GPU has a graph for each power of two only."""
        host, resident, count = self._staging[slot], self._resident, len(z)
        host.z[:count].copy_(z)
        resident.z[:count].copy_(host.z[:count], non_blocking=True)
        return host, padded(count) if self._lane.threaded else count

    def _scoring(self, z: Tensor) -> Step:
        def step(slot: int) -> Finish:
            host, rows = self._staged(slot, z)
            found = self._resident.program(rows, picks=False)()
            back = host.scores[: found.numel()].view(found.shape).copy_(found, non_blocking=True)
            return lambda: back[:, : len(z)].to(torch.float64, copy=True)  # the slot is used again

        return step

    def _picking(self, z: Tensor, *, exploration: float, allowed: Tensor) -> Step:
        def step(slot: int) -> Finish:
            host, rows = self._staged(slot, z)
            count = allowed.numel()
            host.allowed[:count].copy_(allowed.reshape(-1))
            self._resident.allowed[:count].copy_(host.allowed[:count], non_blocking=True)
            self._resident.exploration.fill_(exploration)
            back = host.picks[:rows].copy_(self._resident.program(rows, picks=True)(), non_blocking=True)
            return lambda: back[: len(z)].clone()

        return step

    # -- the lane ------------------------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Capture what `scores` and `picks` launch now, so that no request waits for it; seconds on a GPU, once per arm added."""
        self.submit_warm().result()

    def submit_warm(self) -> Future[None]:
        """`warm`, for who does not wait."""

        def capture(resident: DeviceBuffers) -> None:
            for exponent in range(self.batch.bit_length()):
                for picks in (False, True):
                    resident.program(1 << exponent, picks=picks)

        return self.on_lane(capture)

    def on_lane(self, work: Callable[[DeviceBuffers], T]) -> Future[T]:
        """Anything else with the tensors, in its turn: measurements, inspection. It may wait for the device, but not write."""

        def step(slot: int) -> Finish:
            done = work(self._resident)
            return lambda: done

        with self._lock:
            return self._lane.submit([step], combine=lambda found: found[0], writes=False)

    def wait(self) -> None:
        """Until everything submitted so far is done, or the first failure of a write is known."""
        self.on_lane(lambda resident: None).result()

    def close(self) -> None:
        """Finish what was submitted, and take nothing more."""
        self._lane.close()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, steps: Sequence[Step]) -> Future[None]:
        return self._lane.submit(steps, combine=lambda found: None, writes=True)

    def _check_arms(self, arms: Sequence[int]) -> None:
        for arm in arms:
            if not 0 <= arm < self.arms:
                raise IndexError(f"arm {arm}: the stack has arms 0 to {self.arms - 1}")


def runs(arms: Sequence[int], *, block: int, batch: int) -> Iterator[slice]:
    """Consecutive stretches in which no arm comes more than `block` times, and none is longer than `batch`."""
    start, counts = 0, Counter[int]()
    for row, arm in enumerate(arms):
        if counts[arm] == block or row - start == batch:
            yield slice(start, row)
            start, counts = row, Counter[int]()
        counts[arm] += 1
    if start < len(arms):
        yield slice(start, len(arms))


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


def _concatenated(found: Sequence[Any]) -> Tensor:
    return torch.cat(list(found)) if found else torch.empty(0, dtype=torch.int64)


def _nothing() -> None:
    return
