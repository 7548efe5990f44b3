"""The statistic of an exact kernel regression: its last observations, and the factor that is derived from them.

KernelArm   pulls, the last observations themselves  -> Cholesky factor, dual weights, width with pending decisions
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bandits.functional.growing import GrowingCholesky, Rows
from bandits.types import derived

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d), (m, d) -> (n, m)."""


@dataclass(frozen=True)
class Dual:
    """What kernel ridge regression derives from its observations; the width factor also holds the pending points."""

    features: Rows  # (n, d)
    targets: Rows  # (n,)
    factor: GrowingCholesky  # of K + ridge I over the observations
    weights: Rows  # (n,) L^-1 targets
    width_features: Rows  # (n + pending, d) in the order in which they were added
    width_factor: GrowingCholesky
    pending: tuple[Tensor, ...]  # features of the pending points


@dataclass(frozen=True)
class KernelArm:
    """The observations of an exact kernel regression. Bounded: see `learn`."""

    pulls: int
    features: Tensor  # (n, d)
    targets: Tensor  # (n,) r - r0
    cache: Dual | None = derived()

    @staticmethod
    def blank(d: int) -> KernelArm:
        """Nothing seen."""
        return KernelArm(0, torch.zeros((0, d), dtype=torch.float64), torch.zeros(0, dtype=torch.float64))

    def learn(self, x: Tensor, target: float, *, kernel: Kernel, ridge: float, max_samples: int, anticipated: bool) -> KernelArm:
        """One more observation in O(n^2). At `max_samples` the oldest quarter is forgotten first, so that the factor is rebuilt
        once per quarter and not once per observation: the arm remembers between 3/4 and all of the last `max_samples`.
        """
        if len(self.targets) >= max_samples:
            keep = max_samples - max(1, max_samples // 4)
            pending = self.dual(kernel, ridge).pending
            shorter = KernelArm(self.pulls, self.features[-keep:].clone(), self.targets[-keep:].clone())
            for point in pending:
                shorter = shorter.anticipate(point, kernel=kernel, ridge=ridge)
            return shorter.learn(x, target, kernel=kernel, ridge=ridge, max_samples=max_samples, anticipated=anticipated)
        old = self.dual(kernel, ridge)
        features, targets = old.features.append(x), old.targets.append(torch.tensor(target, dtype=torch.float64))
        factor, row = _append(old.factor, old.features.tensor, x, kernel)
        value = (target - float(row @ old.weights.tensor)) / float(factor.factor[-1, -1])
        weights = old.weights.append(torch.tensor(value, dtype=torch.float64))
        if anticipated:
            width_features, width_factor, pending = old.width_features, old.width_factor, _without(old.pending, x)
        else:
            width_features, pending = old.width_features.append(x), old.pending
            width_factor = (
                factor if old.width_factor is old.factor else _append(old.width_factor, old.width_features.tensor, x, kernel)[0]
            )
        dual = Dual(features, targets, factor, weights, width_features, width_factor, pending)
        return KernelArm(self.pulls + 1, features.tensor, targets.tensor, dual)

    def anticipate(self, x: Tensor, *, kernel: Kernel, ridge: float) -> KernelArm:
        """Shrink the width for one pending point."""
        old = self.dual(kernel, ridge)
        width_factor, _ = _append(old.width_factor, old.width_features.tensor, x, kernel)
        return replace(
            self,
            cache=replace(
                old,
                width_features=old.width_features.append(x),
                width_factor=width_factor,
                pending=(*old.pending, x),
            ),
        )

    def release(self, x: Tensor, *, kernel: Kernel, ridge: float) -> KernelArm:
        """Widen again. A factor cannot cheaply lose an inner row, so this rebuilds it: O(n^3), once per expired decision."""
        left = _without(self.dual(kernel, ridge).pending, x)
        rebuilt = KernelArm(self.pulls, self.features, self.targets)
        for point in left:
            rebuilt = rebuilt.anticipate(point, kernel=kernel, ridge=ridge)
        return rebuilt

    def dual(self, kernel: Kernel, ridge: float) -> Dual:
        """The derived values, factored afresh where nothing was carried along (after a restart)."""
        if self.cache is None:
            factor = GrowingCholesky(kernel(self.features, self.features), ridge=ridge)
            features = Rows(self.features)
            weights = Rows(factor.solve(self.targets[:, None])[:, 0])
            dual = Dual(features, Rows(self.targets), factor, weights, features, factor, ())
            object.__setattr__(self, "cache", dual)  # a memo, not a change
        assert self.cache is not None
        return self.cache

    def score(self, x: Tensor, *, kernel: Kernel, prior: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """(B,) mean and (B,) width of features (B, d), where `prior` (B,) is k(x, x).

        mean = k' (K + ridge I)^-1 y; width = sqrt((k(x, x) - k' (K + ridge I)^-1 k) / ridge).
        """
        now = self.dual(kernel, ridge)
        shadow = now.factor.solve(kernel(now.features.tensor, x))
        mean = shadow.T @ now.weights.tensor
        if now.width_factor is not now.factor:  # decisions are pending
            shadow = now.width_factor.solve(kernel(now.width_features.tensor, x))
        return mean, ((prior - shadow.square().sum(0)).clamp_min(0.0) / ridge).sqrt()


def _append(factor: GrowingCholesky, points: Tensor, x: Tensor, kernel: Kernel) -> tuple[GrowingCholesky, Tensor]:
    """The factor with one more point, and the new row of it without its diagonal entry (n,)."""
    column = kernel(points, x[None, :])[:, 0]
    grown = factor.append(column, float(kernel(x[None, :], x[None, :])))
    return grown, grown.factor[-1, :-1]


def _without(points: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
    """All but the first point equal to x."""
    for i, point in enumerate(points):
        if torch.equal(point, x):
            return points[:i] + points[i + 1 :]
    return points
