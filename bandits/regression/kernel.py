"""The statistic of an exact kernel regression: its last observations, and the factor that is derived from them.

KernelArm   pulls, the last observations themselves  -> Cholesky factor, dual weights, width with pending decisions

Pending points follow the observations in one joint factor, so that a score solves once whatever is pending:

    K + ridge I of [observations, pending]  =  [[L, 0], [whitened, rest]] [[L, 0], [whitened, rest]]'

    add_pending      one more row of `whitened` and `rest`                                   O(n q + q^2) for a prompt just scored
    update           a row of `whitened` becomes the next row of L, the others gain a column O(n q + q^2)
    remove_pending   a row of `whitened` goes, `rest` loses a point                          O(n q + q^2)
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.functional import growing
from bandits.functional.growing import GrowingCholesky, Rows
from bandits.types import cached_field

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d), (m, d) -> (n, m)."""

REMEMBERED = 256
"""Whitened kernels of at most so many prompts are kept, those of the last score: 4 MB at n = 2,000, where the factor has 16."""

ROUNDING = 4.0 * float(np.finfo(np.float64).eps)
"""Prompts whose numbers differ by this share at most are one prompt: a vector alone is scaled by NumPy, in a batch by torch, and
the last bit may differ."""


@dataclass(frozen=True)
class Pending:
    """The q points whose outcomes have not come back, after n observations in the joint factor above."""

    points: Tensor  # (q, d) in the order in which they were added
    whitened: Tensor  # (q, n) L^-1 k of each
    rest: Tensor  # (q, q) lower factor of K + ridge I - whitened whitened'

    @staticmethod
    def none(n: int, d: int) -> Pending:
        """Nothing pending."""
        zeros = torch.zeros((0, 0), dtype=torch.float64)
        return Pending(zeros.new_zeros((0, d)), zeros.new_zeros((0, n)), zeros)

    def __len__(self) -> int:
        return len(self.points)

    def index(self, x: Tensor) -> int:
        """Where x was added first; -1 = nowhere."""
        found = np.flatnonzero((self.points.numpy() == x.numpy()).all(axis=1))
        return int(found[0]) if len(found) else -1

    def extension(self, x: Tensor, whitened_kernel: Tensor, *, kernel: Kernel) -> Tensor:
        """(q, B) what is left of prompts x (B, d), whose whitened kernels are (n, B), for the pending points to explain."""
        left = kernel(self.points, x) - self.whitened @ whitened_kernel
        return cast(Tensor, torch.linalg.solve_triangular(self.rest, left, upper=False))

    def with_point(self, x: Tensor, whitened_kernel: Tensor, *, kernel: Kernel, ridge: float) -> Pending:
        """One more point x (d,) with its whitened kernel (n,). The pivot is clamped at the ridge, its exact lower bound."""
        row = self.extension(x[None], whitened_kernel[:, None], kernel=kernel)[:, 0]
        pivot = max(_self(kernel, x) + ridge - float(whitened_kernel @ whitened_kernel) - float(row @ row), ridge) ** 0.5
        q = len(self)
        rest = self.rest.new_zeros((q + 1, q + 1))
        rest[:q, :q], rest[q, :q], rest[q, q] = self.rest, row, pivot
        return Pending(torch.cat([self.points, x[None]]), torch.cat([self.whitened, whitened_kernel[None]]), rest)

    def without(self, index: int) -> Pending:
        """Without this point."""
        return Pending(_drop(self.points, index), _drop(self.whitened, index), growing.without(self.rest, index))

    def condition_on(self, index: int, *, kernel: Kernel, pivot: float) -> Pending:
        """The others, with this point the last of the observations, where its diagonal entry is `pivot`."""
        others, whitened, x = _drop(self.points, index), _drop(self.whitened, index), self.points[index]
        column = (kernel(others, x[None]) - whitened @ self.whitened[index][:, None]) / pivot
        return Pending(others, torch.cat([whitened, column], dim=1), growing.schur_complement_factor(self.rest, index))


@dataclass(frozen=True)
class KernelPosterior:
    """The posterior of a kernel ridge regression: factor and weights of its observations, and what is pending."""

    features: Rows  # (n, d)
    targets: Rows  # (n,)
    factor: GrowingCholesky  # L, of K + ridge I over the observations
    weights: Rows  # (n,) L^-1 targets
    pending: Pending
    asked: list[tuple[Tensor, Tensor] | None] = field(default_factory=lambda: [None])
    """One place: prompts (B, d) of the last score and their whitened kernels (m, B), m <= n; perhaps of an older version of this
    factor, as a longer factor solves its first rows alike. Each `KernelPosterior` has its own: branches share none."""

    def whiten(self, x: Tensor, *, kernel: Kernel) -> Tensor:
        """(n, B) L^-1 k of prompts x (B, d): O(n^2), or what was found when these prompts, or a batch with this prompt in it,
        were asked for last.
        """
        known = _recalled(self.asked[0], x)
        done = 0 if known is None else len(known)
        if known is not None and done == len(self.factor):
            return known
        solved = self.factor.solve(kernel(self.features.tensor[done:], x), after=known)
        if len(x) <= REMEMBERED:
            self.asked[0] = x.clone(), solved  # a memo, not a change
        return solved


@dataclass(frozen=True)
class KernelArm:
    """The observations of an exact kernel regression. Bounded: see `update`.

    offsets: places in the log of the newest observations, as many as are known; no part of the statistic.
    """

    pulls: int
    features: Tensor  # (n, d)
    targets: Tensor  # (n,) r - r0
    cache: KernelPosterior | None = cached_field()
    offsets: tuple[int, ...] = field(default=(), compare=False, repr=False, metadata={"derived": True})

    @staticmethod
    def init(d: int) -> KernelArm:
        """Nothing seen."""
        return KernelArm(0, torch.zeros((0, d), dtype=torch.float64), torch.zeros(0, dtype=torch.float64))

    def update(
        self, x: Tensor, target: float, *, kernel: Kernel, ridge: float, max_samples: int, was_pending: bool, offset: int = 0
    ) -> KernelArm:
        """One more observation in O(n^2), or O(n) where the prompt is pending or was just scored. At `max_samples` the oldest
        quarter is forgotten first, so that the factor is rebuilt once per quarter and not once per observation: the arm remembers
        between 3/4 and all of the last `max_samples`.
        """
        if len(self.targets) >= max_samples:
            keep = max_samples - max(1, max_samples // 4)
            shorter = KernelArm(
                self.pulls, self.features[-keep:].clone(), self.targets[-keep:].clone(), offsets=self.offsets[-keep:]
            )
            for point in self.cache.pending.points if self.cache else ():
                shorter = shorter.add_pending(point, kernel=kernel, ridge=ridge)
            return shorter.update(
                x, target, kernel=kernel, ridge=ridge, max_samples=max_samples, was_pending=was_pending, offset=offset
            )
        old = self.posterior(kernel, ridge)
        pending, index = old.pending, old.pending.index(x) if was_pending else -1
        row = pending.whitened[index] if index >= 0 else old.whiten(x[None], kernel=kernel)[:, 0]
        # The joint factor has the observations first. A new observation therefore moves ahead of the pending points: it is made
        # one of them, and `condition_on` then takes it out again as known. Factoring again would cost O(n^3).
        if index < 0 and len(pending):
            pending, index = pending.with_point(x, row, kernel=kernel, ridge=ridge), len(pending)
        factor = old.factor.append_solved(row, _self(kernel, x))
        pivot = factor.last[1]
        dual = KernelPosterior(
            features=old.features.append(x),
            targets=old.targets.append(torch.tensor(target, dtype=torch.float64)),
            factor=factor,
            weights=old.weights.append((target - row @ old.weights.tensor) / pivot),
            pending=pending.condition_on(index, kernel=kernel, pivot=pivot) if index >= 0 else Pending.none(len(factor), len(x)),
            asked=[old.asked[0]],
        )
        return KernelArm(self.pulls + 1, dual.features.tensor, dual.targets.tensor, dual, (*self.offsets, offset))

    def correct(self, offset: int, target: float) -> KernelArm:
        """With the target of the observation at this offset replaced, where it is still kept: O(n^2)."""
        known = bisect.bisect_left(self.offsets, offset)
        if known == len(self.offsets) or self.offsets[known] != offset:
            return self
        targets = self.targets.clone()
        targets[known - len(self.offsets)] = target
        if self.cache is None:
            return replace(self, targets=targets)
        weights = Rows(self.cache.factor.solve(targets))
        dual = replace(self.cache, targets=Rows(targets), weights=weights, asked=[self.cache.asked[0]])
        return replace(self, targets=targets, cache=dual)

    def add_pending(self, x: Tensor, *, kernel: Kernel, ridge: float) -> KernelArm:
        """Shrink the width for one pending point."""
        old = self.posterior(kernel, ridge)
        whitened_kernel = old.whiten(x[None], kernel=kernel)[:, 0]
        return self._pending(old.pending.with_point(x, whitened_kernel, kernel=kernel, ridge=ridge))

    def remove_pending(self, x: Tensor, *, kernel: Kernel, ridge: float) -> KernelArm:
        """Widen again: the pending point never came."""
        pending = self.posterior(kernel, ridge).pending
        index = pending.index(x)
        return self if index < 0 else self._pending(pending.without(index))

    def _pending(self, pending: Pending) -> KernelArm:
        assert self.cache is not None
        return replace(self, cache=replace(self.cache, pending=pending, asked=[self.cache.asked[0]]))

    def posterior(self, kernel: Kernel, ridge: float) -> KernelPosterior:
        """The derived values, factored from scratch where nothing was carried along (after a restart)."""
        if self.cache is None:
            factor = GrowingCholesky(kernel(self.features, self.features), ridge=ridge)
            weights, nothing = factor.solve(self.targets), Pending.none(*self.features.shape)
            dual = KernelPosterior(Rows(self.features), Rows(self.targets), factor, Rows(weights), nothing)
            object.__setattr__(self, "cache", dual)  # a memo, not a change
        assert self.cache is not None
        return self.cache

    def score(self, x: Tensor, *, kernel: Kernel, prior: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """(B,) mean and (B,) width of features (B, d), where `prior` (B,) is k(x, x).

        mean = k' (K + ridge I)^-1 y; width = sqrt((k(x, x) - k' (K + ridge I)^-1 k) / ridge), that with pending points in K.
        """
        now = self.posterior(kernel, ridge)
        whitened_kernel = now.whiten(x, kernel=kernel)
        explained = whitened_kernel.square().sum(0)
        if len(now.pending):
            explained = explained + now.pending.extension(x, whitened_kernel, kernel=kernel).square().sum(0)
        return whitened_kernel.T @ now.weights.tensor, ((prior - explained).clamp_min(0.0) / ridge).sqrt()

    def covariances(self, x: Tensor, *, kernel: Kernel, ridge: float) -> Tensor:
        """(B, B) what pending and observed points leave of k(x_i, x_j), over the ridge: the squared widths are the diagonal."""
        now = self.posterior(kernel, ridge)
        whitened_kernel = now.whiten(x, kernel=kernel)
        left = kernel(x, x) - whitened_kernel.T @ whitened_kernel
        if len(now.pending):
            further = now.pending.extension(x, whitened_kernel, kernel=kernel)
            left = left - further.T @ further
        return left / ridge


def _self(kernel: Kernel, x: Tensor) -> float:
    """k(x, x) of one point (d,)."""
    return float(kernel(x[None], x[None]))


def _recalled(asked: tuple[Tensor, Tensor] | None, x: Tensor) -> Tensor | None:
    """(m, B) the remembered kernels of prompts x (B, d): of the very batch, or of one in it. By value, never by address."""
    if asked is None:
        return None
    points, there = asked[0].numpy(), x.numpy()
    if points.shape == there.shape:
        return asked[1] if _alike(points, there).all() else None
    if len(there) != 1:
        return None
    for row in np.flatnonzero(_alike(points[:, 0], there[:, 0])):  # few agree in the first number
        if _alike(points[row], there[0]).all():
            return asked[1][:, row : row + 1]
    return None


def _alike(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where two arrays are equal up to rounding."""
    return np.asarray(np.abs(a - b) <= ROUNDING * np.abs(b))


def _drop(rows: Tensor, index: int) -> Tensor:
    """All rows but one."""
    return torch.cat([rows[:index], rows[index + 1 :]])
