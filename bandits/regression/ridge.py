"""Statistics that two or more policies keep: sums without the regularizer, and what is derived from them.

    MeanArm     pulls, sum of rewards
    SpreadArm   pulls, average, sum of squared distances from it
    RidgeArm    pulls, sum z z', last z, sum (r - r0) z  -> theta, inverse, width with pending decisions

The statistic of an exact kernel is that of kernel_arms.py.

Derived values hang on the statistic in a field marked `derived`. They are updated along with it, rebuilt from the sums when
missing, and never packed, compared or digested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bandits.functional import linalg
from bandits.functional.inverse import Inverse, quadratics
from bandits.objective import RewardMoments
from bandits.types import LAYOUT, cached_field, layout_field


@dataclass(frozen=True)
class MeanArm:
    """The statistic of policies that look at the average reward alone."""

    pulls: int = 0
    reward_sum: float = 0.0

    def update(self, reward: float) -> MeanArm:
        """One more reward."""
        return MeanArm(self.pulls + 1, self.reward_sum + reward)

    def correct(self, old: float, new: float) -> MeanArm:
        """With one of the rewards replaced."""
        return MeanArm(self.pulls, self.reward_sum + (new - old))

    def surprise(self, reward: float) -> float | None:
        """How far a reward is from the average, with the uncertainty of the average taken out; None before the first."""
        return (reward - self.reward_sum / self.pulls) / (1.0 + 1.0 / self.pulls) ** 0.5 if self.pulls else None

    def mean(self, *, unseen: float) -> float:
        """The average reward, or `unseen` before the first."""
        return self.reward_sum / self.pulls if self.pulls else unseen


@dataclass(frozen=True)
class SpreadArm:
    """The statistic of policies that look at average and spread (`RewardMoments`): no digits are lost to a large average.

    squares: sum of the squared distances from the average.
    """

    pulls: int = 0
    average: float = 0.0
    squares: float = 0.0

    def update(self, reward: float) -> SpreadArm:
        """One more reward."""
        return SpreadArm(*RewardMoments(self.pulls, self.average, self.squares).add(reward))

    def correct(self, old: float, new: float) -> SpreadArm:
        """With one of the rewards replaced: sum r^2 - n average^2 changes by (new - old) (new + old - both averages)."""
        average = self.average + (new - old) / self.pulls
        squares = self.squares + (new - old) * ((new - average) + (old - self.average))
        return SpreadArm(self.pulls, average, max(squares, 0.0))

    def surprise(self, reward: float) -> float | None:
        """As of `MeanArm`."""
        return (reward - self.average) / (1.0 + 1.0 / self.pulls) ** 0.5 if self.pulls else None


@dataclass(frozen=True)
class Ridge:
    """The values that ridge regression derives from its sums.

    theta: (p,) = inverse @ moment.  inverse: (p, p) = (gram + ridge I)^-1.
    width: (p, p) the inverse with the `pending` pairs added to the gram; the very same object while nothing is pending,
    so that whatever error its updates and downdates gather is dropped each time the last outcome comes in.
    """

    theta: Tensor
    inverse: Inverse
    pending_inverse: Inverse
    pending: int = 0


BLOCK = 32
"""Observations that are added to a sum of outer products at once: one product of matrices of 32 rows takes an eighth of the time
of 32 outer products, which read and write all of the sum each. Part of the layout: with another number sums round differently.
"""


def add_rows(gram: Tensor, held: tuple[Tensor, ...], rows: Sequence[Tensor], *, layout: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(p, p) sum of outer products, and the rows (p,) since the last full block that are not in it yet, after more rows.

    Blocks are filled in the order of the rows, so the bits do not depend on which of them came together. Before layout 2
    every row is added by itself.
    """
    if layout < 2:
        gram = torch.addr(gram, rows[0], rows[0])
        for row in rows[1:]:
            gram.addr_(row, row)
        return gram, held
    held = (*held, *rows)
    if len(held) < BLOCK:
        return gram, held
    gram = gram.clone(memory_format=torch.contiguous_format)  # as the last bit of a product can depend on how its operands lie
    for start in range(0, len(held) - BLOCK + 1, BLOCK):
        block = torch.stack(held[start : start + BLOCK])
        gram.addmm_(block.T, block)
    return gram, held[len(held) - len(held) % BLOCK :]


def held_bytes(p: int) -> int:
    """The most bytes of the rows (p,) that `add_rows` holds."""
    return 8 * p * (BLOCK - 1)


@dataclass(frozen=True)
class RidgeArm:
    """The sums of a ridge regression on lifted features z (p,), without the ridge: the sums of two shards add up."""

    pulls: int
    gram: Tensor  # (p, p) sum z z' of all but the held ones
    moment: Tensor  # (p,) sum (r - r0) z
    held: tuple[Tensor, ...] = layout_field(since=2)  # z (p,) of the last ones, fewer than BLOCK
    cache: Ridge | None = cached_field()

    @staticmethod
    def init(p: int) -> RidgeArm:
        """Nothing seen."""
        return RidgeArm(0, torch.zeros((p, p), dtype=torch.float64), torch.zeros(p, dtype=torch.float64))

    @property
    def whole_gram(self) -> Tensor:
        """(p, p) sum z z' of all; do not write into it."""
        if not self.held:
            return self.gram
        rows = torch.stack(self.held)
        return torch.addmm(self.gram, rows.T, rows)

    def update(self, z: Tensor, target: float, *, ridge: float, was_pending: bool, layout: int = LAYOUT) -> RidgeArm:
        """One more pair. Recursive least squares for theta (theta += gain (s - z.theta)): no digit is lost in inverse @ moment.

        A pair that was pending has shrunk the width already, and leaves it as it is. Where nothing was derived yet, only the
        sums grow: a replay factors once, at its end.
        """
        gram, held = add_rows(self.gram, self.held, [z], layout=layout)
        moment = self.moment + target * z
        if self.cache is None:
            return RidgeArm(self.pulls + 1, gram, moment, held)
        old = self.cache
        inverse, gain = old.inverse.updated(z)
        theta = old.theta + gain * (target - float(z @ old.theta))
        pending = max(old.pending - was_pending, 0)
        if pending == 0:
            width = inverse
        elif was_pending:
            width = old.pending_inverse
        else:
            width = old.pending_inverse.updated(z)[0]
        return RidgeArm(self.pulls + 1, gram, moment, held, Ridge(theta, inverse, width, pending))

    def update_many(
        self, z: Sequence[Tensor], targets: Sequence[float], *, was_pending: Sequence[bool], layout: int = LAYOUT
    ) -> RidgeArm:
        """`update` with several z (p,) and their targets, in order: the same sums to the last bit; what is derived from them is
        updated at once.
        """
        gram, held = add_rows(self.gram, self.held, z, layout=layout)
        sums = self.moment.numpy().copy()
        for row, target in zip(z, targets, strict=True):
            sums += target * row.numpy()
        moment = torch.from_numpy(sums)
        if self.cache is None:
            return RidgeArm(self.pulls + len(z), gram, moment, held)
        old, rows = self.cache, torch.stack(list(z))
        inverse, gain = old.inverse.updated_all(rows)
        theta = old.theta + gain @ (torch.tensor(targets, dtype=torch.float64) - rows @ old.theta)
        pending = max(old.pending - sum(was_pending), 0)
        if pending == 0:
            width = inverse
        elif all(was_pending):
            width = old.pending_inverse
        else:
            width = old.pending_inverse.updated_all(rows[[not known for known in was_pending]])[0]
        return RidgeArm(self.pulls + len(z), gram, moment, held, Ridge(theta, inverse, width, pending))

    def correct(self, z: Tensor, by: float) -> RidgeArm:
        """With the target of one of the pairs raised: no width changes."""
        moment = self.moment + by * z
        if self.cache is None:
            return replace(self, moment=moment)
        theta = self.cache.theta + by * self.cache.inverse.times(z)
        return replace(self, moment=moment, cache=replace(self.cache, theta=theta))

    def add_pending(self, z: Tensor, *, ridge: float) -> RidgeArm:
        """Shrink the width for one pending pair; it does not depend on the reward, so this is exact."""
        old = self.ridge(ridge)
        width = old.pending_inverse.updated(z)[0]
        return replace(self, cache=Ridge(old.theta, old.inverse, width, old.pending + 1))

    def add_pending_many(self, z: Tensor, *, ridge: float) -> RidgeArm:
        """`add_pending` for the rows of z (k, p) at once."""
        old = self.ridge(ridge)
        return replace(
            self, cache=replace(old, pending_inverse=old.pending_inverse.updated_all(z)[0], pending=old.pending + len(z))
        )

    def remove_pending(self, z: Tensor, *, ridge: float) -> RidgeArm:
        """Widen again: the pending pair never came."""
        old = self.ridge(ridge)
        left = max(old.pending - 1, 0)
        # where no digits are left for a downdate the width stays narrow until nothing is pending, as then it is the inverse again
        width = (old.pending_inverse.downdated(z) or old.pending_inverse) if left else old.inverse
        return replace(self, cache=replace(old, pending_inverse=width, pending=left))

    def with_pending_of(self, other: RidgeArm, *, ridge: float) -> RidgeArm:
        """With the pending pairs of another arm, of which only the sum is known: what its width has beyond its own pairs."""
        if other.cache is None or not other.cache.pending:
            return self
        eye = torch.eye(len(self.moment), dtype=torch.float64)
        pairs = torch.linalg.pinv(other.cache.pending_inverse.tensor(), hermitian=True) - other.whole_gram - ridge * eye
        inverse = Inverse(linalg.ridge_inverse(self.whole_gram + (pairs + pairs.T) / 2.0, ridge))
        return replace(self, cache=replace(self.ridge(ridge), pending_inverse=inverse, pending=other.cache.pending))

    def ridge(self, ridge: float) -> Ridge:
        """The derived values, factored where nothing was carried along (after a restart)."""
        if self.cache is None:
            if self.pulls == 0:
                inverse = Inverse(torch.eye(len(self.moment), dtype=torch.float64) / ridge)
            else:
                inverse = Inverse(linalg.ridge_inverse(self.whole_gram, ridge))
            object.__setattr__(self, "cache", Ridge(inverse.times(self.moment), inverse, inverse))  # a memo, not a change
        assert self.cache is not None
        return self.cache

    def score(self, z: Tensor, *, ridge: float) -> tuple[Tensor, Tensor]:
        """(B,) mean and (B,) width sqrt(z' (A + pending)^-1 z) of lifted features (B, p)."""
        mean, width = ridge_scores([self.ridge(ridge)], z)
        return mean[:, 0], width[:, 0]

    def covariances(self, z: Tensor, *, ridge: float) -> Tensor:
        """(B, B) z_i' (A + pending)^-1 z_j, whose diagonal are the squares of the widths."""
        return self.ridge(ridge).pending_inverse.products(z)


def ridge_scores(derived: Sequence[Ridge], z: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) means and (B, K) widths of lifted features z (B, p) for K arms: `RidgeArm.score` of all arms in few calls."""
    mean = z @ torch.stack([now.theta for now in derived]).T
    return mean, quadratics([now.pending_inverse for now in derived], z).sqrt()
