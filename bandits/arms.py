"""Statistics that two or more policies keep: sums without the regulariser, and what is derived from them.

    MeanArm     pulls, sum of rewards
    RidgeArm    pulls, sum z z', sum (r - r0) z          -> theta, inverse, width with pending decisions
    KernelArm   pulls, the last observations themselves  -> Cholesky factor, dual weights

Derived values hang on the statistic in a field marked `derived`. They are updated along with it, rebuilt from the sums when
missing, and never packed, compared or digested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bandits.functional import linalg
from bandits.functional.linalg import GrowingCholesky, Rows
from bandits.types import derived

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d), (m, d) -> (n, m)."""


@dataclass(frozen=True)
class MeanArm:
    """The statistic of policies that look at the average reward alone."""

    pulls: int = 0
    reward_sum: float = 0.0

    def learn(self, reward: float) -> MeanArm:
        """One more reward."""
        return MeanArm(self.pulls + 1, self.reward_sum + reward)

    def mean(self, *, unseen: float) -> float:
        """The average reward, or `unseen` before the first."""
        return self.reward_sum / self.pulls if self.pulls else unseen


@dataclass(frozen=True)
class Ridge:
    """What ridge regression derives from its sums.

    theta: (p,) = inverse @ moment.  inverse: (p, p) = (gram + ridge I)^-1.
    width: (p, p) the inverse with the `pending` pairs added to the gram; the very same tensor while nothing is pending,
    so that whatever error its updates and downdates gather is dropped each time the last outcome comes in.
    """

    theta: Tensor
    inverse: Tensor
    width: Tensor
    pending: int = 0


@dataclass(frozen=True)
class RidgeArm:
    """Sums of a ridge regression on lifted features z (p,), kept without the ridge so that merging two shards is an addition."""

    pulls: int
    gram: Tensor  # (p, p) sum z z'
    moment: Tensor  # (p,) sum (r - r0) z
    cache: Ridge | None = derived()

    @staticmethod
    def blank(p: int) -> RidgeArm:
        """Nothing seen."""
        return RidgeArm(0, torch.zeros((p, p), dtype=torch.float64), torch.zeros(p, dtype=torch.float64))

    def learn(self, z: Tensor, target: float, *, ridge: float, anticipated: bool) -> RidgeArm:
        """One more pair. Recursive least squares for theta (theta += v (s - z.theta) / c): no digit is lost in inverse @ moment.

        An anticipated pair has shrunk the width already, and leaves it as it is. Where nothing was derived yet, only the sums are
        added to: a replay factors once, at its end.
        """
        gram, moment = torch.addr(self.gram, z, z), self.moment + target * z
        if self.cache is None:
            return RidgeArm(self.pulls + 1, gram, moment)
        old = self.cache
        inverse, v, pivot = linalg.rank_one_inverse(old.inverse, z, sign=1.0)
        theta = old.theta + v * ((target - float(z @ old.theta)) / pivot)
        pending = max(old.pending - anticipated, 0)
        if pending == 0:
            width = inverse
        elif anticipated:
            width = old.width
        else:
            width = linalg.rank_one_inverse(old.width, z, sign=1.0)[0]
        return RidgeArm(self.pulls + 1, gram, moment, Ridge(theta, inverse, width, pending))

    def anticipate(self, z: Tensor, *, ridge: float) -> RidgeArm:
        """Shrink the width for one pending pair; it does not depend on the reward, so this is exact."""
        old = self.ridge(ridge)
        width = linalg.rank_one_inverse(old.width, z, sign=1.0)[0]
        return replace(self, cache=replace(old, width=width, pending=old.pending + 1))

    def release(self, z: Tensor, *, ridge: float) -> RidgeArm:
        """Widen again: the pending pair never came."""
        old = self.ridge(ridge)
        left = max(old.pending - 1, 0)
        width = linalg.rank_one_inverse(old.width, z, sign=-1.0)[0] if left else old.inverse
        return replace(self, cache=replace(old, width=width, pending=left))

    def ridge(self, ridge: float) -> Ridge:
        """The derived values, factored afresh where nothing was carried along (after a restart)."""
        if self.cache is None:
            eye = torch.eye(len(self.moment), dtype=torch.float64)
            if self.pulls == 0:
                inverse = eye / ridge
            else:
                inverse = torch.cholesky_inverse(linalg.cholesky(self.gram + ridge * eye, what="gram + ridge"))
            object.__setattr__(self, "cache", Ridge(inverse @ self.moment, inverse, inverse))  # a memo, not a change
        assert self.cache is not None
        return self.cache

    def score(self, z: Tensor, *, ridge: float) -> tuple[Tensor, Tensor]:
        """(B,) mean and (B,) width sqrt(z' (A + pending)^-1 z) of lifted features (B, p)."""
        mean, width = ridge_scores([self.ridge(ridge)], z)
        return mean[:, 0], width[:, 0]


def ridge_scores(derived: Sequence[Ridge], z: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) means and (B, K) widths of lifted features z (B, p) for K arms: `RidgeArm.score` of all arms in few calls."""
    shadows = torch.empty((len(derived), *z.shape), dtype=z.dtype, device=z.device)
    for now, shadow in zip(derived, shadows, strict=True):
        torch.mm(z, now.width, out=shadow)
    mean = z @ torch.stack([now.theta for now in derived]).T
    return mean, (shadows * z).sum(2).T.clamp_min(0.0).sqrt()


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
