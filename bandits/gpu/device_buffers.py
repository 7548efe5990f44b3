"""Device buffers of m ridge regressions, and the scores that are computed from them.

    inverse (m, p, p)   W, up to the last fold            width^2 = z'W z - |U z|^2
    columns (m, q, p)   U, what changed since              mean    = z'theta
    theta   (m, p)

A changed width costs O(p^2) to read, and O(p q) to write: the owner of the arm appends the rows that its inverse loses, which it
has computed itself. Once U is full, one product folds it into W. Letters: B contexts, m arms, p length of the lifted features, q
columns at most.

Nothing here waits for the device or knows of threads; `stack` does. All of it must be called on the queue of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.gpu.device_queue import captured, host_zeros, settle


def scored(z: Tensor, inverse: Tensor, columns: Tensor, theta: Tensor) -> Tensor:
    """(2, B, m) means and widths of lifted features (B, p).

    One product [B, p] x [p, m p] for all arms, read as it lies in memory; a batched one over the arms would launch m times fewer
    rows each. A width^2 that rounding made negative is 0.
    """
    m, q, p = columns.shape
    products = (z @ inverse.view(m * p, p).T).view(-1, m, p)
    changed = (z @ columns.view(m * q, p).T).view(-1, m, q)
    square = torch.bmm(products, z[:, :, None])[:, :, 0] - changed.square().sum(2)
    return torch.stack([z @ theta.T, square.clamp_min(0.0).sqrt()])


def padded(count: int) -> int:
    """The next power of two, so that few shapes occur."""
    return 1 << (count - 1).bit_length()


class DeviceBuffers:
    """The device tensors of one stack. All sizes and counters are known on the host, so that the device is never asked."""

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
        self._programs: dict[int, Callable[[], Tensor]] = {}

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    # -- scores --------------------------------------------------------------------------------------------------------

    def program(self, rows: int) -> Callable[[], Tensor]:
        """What computes (2, rows, m) scores from the first rows of `z`."""
        if rows not in self._programs:
            self._programs[rows] = captured(lambda: self._compute(rows), device=self.device)
        return self._programs[rows]

    def _compute(self, rows: int) -> Tensor:
        m = self.arms
        return scored(self.z[:rows], self.inverse[:m], self.columns[:m], self.theta[:m])

    # -- changes -------------------------------------------------------------------------------------------------------

    def place(self, arm: int, inverse: Tensor) -> None:
        """Take this (p, p) inverse for the arm, and forget what changed before."""
        self.inverse[arm].copy_(inverse)
        self.columns[arm].zero_()
        self.used[arm] = 0

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

    def _fold(self, arm: int) -> None:
        columns = self.columns[arm, : self.used[arm]]
        self.inverse[arm].addmm_(columns.T, columns, alpha=-1.0)
        columns.zero_()
        self.used[arm] = 0

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
        self.inverse[self.arms].diagonal().fill_(1.0 / self.ridge)
        self.arms += 1
        self.used.append(0)

    def _longer(self, old: Tensor) -> Tensor:
        new = self._zeros(self.capacity, *old.shape[1:])
        new[: self.arms] = old[: self.arms]
        return new


@dataclass(frozen=True)
class Staging:
    """The host memory of one slot of the queue; flat where its use has another shape each time."""

    z: Tensor  # (batch, p)
    scores: Tensor  # (2 * batch * capacity,)

    @staticmethod
    def of(buffers: DeviceBuffers) -> Staging:
        """Room for whatever goes to and comes from these tensors."""
        batch, capacity, device = buffers.batch, buffers.capacity, buffers.device
        return Staging(
            z=host_zeros(batch, buffers.size, dtype=buffers.dtype, device=device),
            scores=host_zeros(2 * batch * capacity, dtype=buffers.dtype, device=device),
        )
