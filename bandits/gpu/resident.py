"""Ridge regressions of m arms that lie on one device, and what is computed of them there.

    inverse (m, p, p)   W, up to the last fold            width^2 = z'W z - |U z|^2
    columns (m, q, p)   U, what changed since              mean    = z'theta
    theta   (m, p)

A changed width costs O(p^2) to read, and O(p q) to write: rows z of one arm add the rows of L^-1 Z M to U, where M = W - U'U and
L L' = I + Z M Z' (Sherman-Morrison-Woodbury, so that rows of one call count for each other). Once U is full, one product folds it
into W. Letters: a arms in a call, b rows of one arm, B contexts, m arms, p length of the lifted features, q columns at most.

Nothing here waits for the device or knows of threads; stack.py does. All of it must be called on the lane of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.gpu.lane import captured, host_zeros, settle

SPARSE = 4
"""Rows for fewer than a quarter of the arms are absorbed arm by arm: a product over all arms would read every inverse."""


def scored(z: Tensor, inverse: Tensor, columns: Tensor, theta: Tensor) -> Tensor:
    """(2, B, m) means and widths of lifted features (B, p).

    One product [B, p] x [p, m p] for all arms, read as it lies in memory; a batched one over the arms would launch m times fewer
    rows each. A width^2 that rounding made negative is 0.
    """
    m, q, p = columns.shape
    shadows = (z @ inverse.view(m * p, p).T).view(-1, m, p)
    changed = (z @ columns.view(m * q, p).T).view(-1, m, q)
    square = torch.bmm(shadows, z[:, :, None])[:, :, 0] - changed.square().sum(2)
    return torch.stack([z @ theta.T, square.clamp_min(0.0).sqrt()])


def picked(scores: Tensor, *, exploration: Tensor, allowed: Tensor) -> Tensor:
    """(B,) int64 the allowed (B, m) arm of highest mean + exploration () * width, of scores (2, B, m); ties as `draw.best`."""
    value = (scores[0] + exploration * scores[1]).clamp_min(torch.finfo(scores.dtype).min)
    return value.masked_fill(~allowed, -torch.inf).argmax(1)  # `where` would copy its number to the device, which no capture may


def narrowed(z: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    """(a, b, p) the columns that rows z (a, b, p) add. inverse: (a, p, p).  columns: (a, q', p). A row of zeros adds zeros."""
    shadows = torch.bmm(z, inverse)
    if columns.shape[1]:
        shadows = torch.baddbmm(shadows, torch.bmm(z, columns.mT), columns, alpha=-1.0)
    pivots = torch.bmm(shadows, z.mT)
    pivots.diagonal(dim1=1, dim2=2).add_(1.0)
    factor = torch.linalg.cholesky_ex(pivots).L  # I + a positive matrix: it cannot fail, and the check would wait for the device
    added: Tensor = torch.linalg.solve_triangular(factor, shadows, upper=False)
    return added


def padded(count: int) -> int:
    """The next power of two, so that few shapes occur."""
    return 1 << (count - 1).bit_length()


class DeviceBuffers:
    """The tensors. All sizes and counters are known on the host, so that nothing has to be asked of the device."""

    def __init__(
        self, *, arms: int, size: int, ridge: float, device: torch.device, dtype: torch.dtype, block: int, batch: int
    ) -> None:
        self.arms, self.size, self.ridge, self.block, self.batch = arms, size, ridge, block, batch
        self.device, self.dtype = device, dtype
        self.capacity = arms
        self.inverse = self._zeros(self.capacity, size, size)
        self.columns = self._zeros(self.capacity, block, size)
        self.theta = self._zeros(self.capacity, size)
        self.used = [0] * arms
        self.inverse[:arms].diagonal(dim1=1, dim2=2).fill_(1.0 / ridge)
        # What graphs read; they keep its address.
        self.z = self._zeros(batch, size)
        self.places = torch.zeros(batch, dtype=torch.int64, device=device)
        self.exploration = self._zeros()
        self.allowed = torch.ones(batch * self.capacity, dtype=torch.bool, device=device)
        self._programs: dict[tuple[int, bool], Callable[[], Tensor]] = {}

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    # -- scores --------------------------------------------------------------------------------------------------------

    def program(self, rows: int, *, picks: bool) -> Callable[[], Tensor]:
        """What computes (2, rows, m) scores, or (rows,) picks, from the first rows of `z`, `allowed` and `exploration`."""
        if (rows, picks) not in self._programs:
            self._programs[rows, picks] = captured(lambda: self._compute(rows, picks=picks), device=self.device)
        return self._programs[rows, picks]

    def _compute(self, rows: int, *, picks: bool) -> Tensor:
        m = self.arms
        scores = scored(self.z[:rows], self.inverse[:m], self.columns[:m], self.theta[:m])
        if not picks:
            return scores
        return picked(scores, exploration=self.exploration, allowed=self.allowed[: rows * m].view(rows, m))

    # -- changes -------------------------------------------------------------------------------------------------------

    def place(self, arm: int, inverse: Tensor) -> None:
        """Take this (p, p) inverse for the arm, and forget what changed before."""
        self.inverse[arm].copy_(inverse)
        self.columns[arm].zero_()
        self.used[arm] = 0

    def absorb(self, counts: Mapping[int, int], rows: Tensor, places: Tensor) -> None:
        """Shrink the widths by rows (n, p): for each arm in turn as many as it has in `counts`, at most `block` of them.

        places: (n,) where they lie in a (m, `longest(counts)`, p) tensor, see `places_of`.
        """
        if self.sparse(counts):
            for arm, chunk in zip(counts, torch.split(rows, list(counts.values())), strict=True):
                self._absorb_one(arm, chunk)
        else:
            self._absorb_many(counts, rows, places)

    def _absorb_one(self, arm: int, rows: Tensor) -> None:
        first = self._room(arm, len(rows))
        only = slice(arm, arm + 1)
        self.columns[only, first : self.used[arm]] = narrowed(rows[None], self.inverse[only], self.columns[only, :first])

    def append(self, arm: int, columns: Tensor) -> None:
        """Shrink the width of the arm by columns (n <= block, p) that were computed elsewhere: W - U'U loses columns'columns."""
        first = self._room(arm, len(columns))
        self.columns[arm, first : self.used[arm]].copy_(columns, non_blocking=True)

    def _room(self, arm: int, count: int) -> int:
        """Take so many columns of the arm; where they begin."""
        if self.used[arm] + count > self.block:
            self._fold(arm)
        first = self.used[arm]
        self.used[arm] += count
        return first

    def _absorb_many(self, counts: Mapping[int, int], rows: Tensor, places: Tensor) -> None:
        """All arms in one product, short of rows filled up with zeros. They go on where the fullest arm stops, side by side."""
        m, longest = self.arms, self.longest(counts)
        first = max(self.used)
        if first + longest > self.block:
            self.fold()
            first = 0
        z = self._zeros(m * longest, self.size).index_copy_(0, places, rows).view(m, longest, self.size)
        self.columns[:m, first : first + longest] = self.narrowing(z, before=first)
        for arm, count in counts.items():
            self.used[arm] = first + count

    def sparse(self, counts: Mapping[int, int]) -> bool:
        """Whether these rows are absorbed arm by arm; then `places` are not looked at."""
        return len(counts) == 1 or len(counts) * SPARSE <= self.arms

    def narrowing(self, z: Tensor, *, before: int) -> Tensor:
        """(m, b, p) what rows z (m, b, p) add to the columns of all arms, of which the first `before` are taken."""
        return narrowed(z, self.inverse[: self.arms], self.columns[: self.arms, :before])

    def longest(self, counts: Mapping[int, int]) -> int:
        """Rows per arm that a call over all arms is filled up to."""
        return min(padded(max(counts.values())), self.block)

    def places_of(self, counts: Mapping[int, int]) -> list[int]:
        """Where the rows of `absorb` go."""
        longest = self.longest(counts)
        return [arm * longest + row for arm, count in counts.items() for row in range(count)]

    def _fold(self, arm: int) -> None:
        columns = self.columns[arm, : self.used[arm]]
        self.inverse[arm].addmm_(columns.T, columns, alpha=-1.0)
        columns.zero_()
        self.used[arm] = 0

    def fold(self) -> None:
        """W - U'U of all arms."""
        columns = self.columns[: self.arms]
        self.inverse[: self.arms].baddbmm_(columns.mT, columns, alpha=-1.0)
        columns.zero_()
        self.used = [0] * self.arms

    # -- growth --------------------------------------------------------------------------------------------------------

    def add_arm(self) -> None:
        """One more arm that has seen nothing. What was captured is dropped: it knows the number of arms, and their addresses."""
        settle(self.device)
        self._programs.clear()
        if self.arms == self.capacity:
            self.capacity *= 2
            self.inverse = self._longer(self.inverse)
            self.columns = self._longer(self.columns)
            self.theta = self._longer(self.theta)
            self.allowed = torch.ones(self.batch * self.capacity, dtype=torch.bool, device=self.device)
        self.inverse[self.arms].diagonal().fill_(1.0 / self.ridge)
        self.arms += 1
        self.used.append(0)

    def _longer(self, old: Tensor) -> Tensor:
        new = self._zeros(self.capacity, *old.shape[1:])
        new[: self.arms] = old[: self.arms]
        return new


@dataclass(frozen=True)
class Staging:
    """The host memory of one slot of the lane; flat where its use has another shape each time."""

    z: Tensor  # (batch, p)
    places: Tensor  # (batch,) int64
    allowed: Tensor  # (batch * capacity,) bool
    scores: Tensor  # (2 * batch * capacity,)
    picks: Tensor  # (batch,) int64

    @staticmethod
    def of(resident: DeviceBuffers) -> Staging:
        """Room for whatever goes to and comes from these tensors."""
        batch, capacity, device = resident.batch, resident.capacity, resident.device
        return Staging(
            z=host_zeros(batch, resident.size, dtype=resident.dtype, device=device),
            places=host_zeros(batch, dtype=torch.int64, device=device),
            allowed=host_zeros(batch * capacity, dtype=torch.bool, device=device),
            scores=host_zeros(2 * batch * capacity, dtype=resident.dtype, device=device),
            picks=host_zeros(batch, dtype=torch.int64, device=device),
        )
