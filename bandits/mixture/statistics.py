"""The statistics of the mixture policies per arm, and the losses that they derive from all arms together.

    samples --learn--> MixtureArm   total  = sum phi(x)          kernel mean: Gaussian by random features, or cosine
                                    second = sum phi(x) phi(x)'  its square, or the spectrum
                                    outputs                      exact kernel: the newest samples themselves
                       FrechetArm   sums about the first sample  (functional/moments.py)

    all arms --> PairSums S_ij = sum_a sum_b kappa(x_ia, x_jb) --> Quadratic        a'Ka + f'a, K_ij = S_ij / (n_i n_j)
             --> second                                        --> SpectralMixture  -Tr(C_a ln C_a)
             --> Component                                     --> functional.frechet_mixture.FrechetMixture

Every sample is added in turn, whatever batch it came in: splitting a batch changes no bit. K is the V-statistic, pairs of a
sample with itself included: positive semi-definite by construction, so every quadratic here is convex. The U-statistic is only
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from bandits.functional import diversity, frechet_mixture, quality
from bandits.functional.frechet_mixture import Component, Target
from bandits.functional.growing import Rows
from bandits.functional.moments import MomentSums
from bandits.functional.simplex import Vector
from bandits.types import cached_field

BLOCK = 1024
"""Rows of a kernel matrix that are held at once."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, e), (m, e) -> (n, m)."""


@dataclass(frozen=True, kw_only=True)
class SampleStatistic:
    """The definition of what is kept of each sample.

    keeps:  `total` or `second` of the features; or the `outputs`, for an exact kernel.
    feature_map: (e,) -> (p,) the features of one sample.  size: p.
    kernel: the exact kernel; None with features.  window: samples kept per arm by an exact kernel.
    """

    keeps: Literal["total", "second", "outputs"]
    feature_map: Callable[[Tensor], Tensor]
    size: int
    kernel: Kernel | None = None
    window: int = 0

    def init(self) -> MixtureArm:
        """Nothing seen."""
        sides = {"total": 0, "second": 0, "outputs": 0} | {self.keeps: self.size}
        return MixtureArm(
            pulls=0,
            count=0,
            total=torch.zeros(sides["total"], dtype=torch.float64),
            second=torch.zeros((sides["second"], sides["second"]), dtype=torch.float64),
            outputs=torch.zeros((0, sides["outputs"]), dtype=torch.float64),
            quality=0.0,
        )

    def update(self, arm: MixtureArm, samples: Sequence[Tensor], *, quality: float) -> MixtureArm:
        """One more observation of samples (e,) whose qualities sum to `quality`."""
        total, second, rows = arm.total.clone(), arm.second.clone(), arm.rows or Rows(arm.outputs)
        for sample in samples:
            phi = self.feature_map(sample)
            if self.keeps == "total":
                total += phi
            elif self.keeps == "second":
                second.addr_(phi, phi)
            else:
                rows = self._remember(rows, phi)
        return MixtureArm(
            pulls=arm.pulls + 1,
            count=arm.count + len(samples),
            total=total,
            second=second,
            outputs=rows.tensor,
            quality=arm.quality + quality,
            rows=rows,
        )

    def _remember(self, rows: Rows, sample: Tensor) -> Rows:
        """One more row; at the window the oldest quarter is forgotten first, so that sums are rebuilt once per quarter."""
        n = len(rows.tensor)
        if self.window and n >= self.window:
            rows = Rows(rows.tensor[n - self.window + max(1, self.window // 4) :])
        return rows.append(sample)

    def pair_sum(self, x: MixtureArm, y: MixtureArm) -> float:
        """Sum of the kernel over all pairs of samples of two arms."""
        if self.keeps == "outputs":
            return self.between(x.outputs, y.outputs)
        u, v = (x.total, y.total) if self.keeps == "total" else (x.second.flatten(), y.second.flatten())
        return float(torch.dot(u, v))

    def between(self, x: Tensor, y: Tensor) -> float:
        """Sum of the exact kernel over all pairs of rows (n, e) and (m, e)."""
        assert self.kernel is not None, "only an exact kernel keeps its samples"
        total = 0.0
        for first in range(0, len(x), BLOCK):
            total += float(self.kernel(x[first : first + BLOCK], y).sum())
        return total


@dataclass(frozen=True)
class MixtureArm:
    """Sums over the samples of one arm, or of the reference; the parts that its `SampleStatistic` does not keep are empty."""

    pulls: int  # observations, of one or more samples each
    count: int  # samples
    total: Tensor  # (p,) sum phi(x)
    second: Tensor  # (p, p) sum phi(x) phi(x)'
    outputs: Tensor  # (n, e) the newest samples, n <= count
    quality: float  # sum of the samples' qualities
    rows: Rows | None = cached_field()

    @property
    def effective_count(self) -> int:
        """Samples behind the kernel sums: all of them, or what the window of an exact kernel holds."""
        return len(self.outputs) if self.outputs.shape[1] else self.count


@dataclass(frozen=True, kw_only=True)
class FrechetArm(MomentSums):
    """Sums over the samples of one arm. pulls: observations, of one or more samples each."""

    pulls: int = 0
    cache: tuple[Target, Component] | None = cached_field()

    def component(self, target: Target) -> Component:
        """What the distance to this reference needs: two d x d products, once per change of the arm."""
        if self.cache is None or self.cache[0] is not target:
            object.__setattr__(self, "cache", (target, frechet_mixture.component_of(self, target)))  # a memo, not a change
        assert self.cache is not None
        return self.cache[1]

    def update(self, samples: Sequence[Tensor]) -> Self:
        """One more observation of samples (d,)."""
        return replace(self.learn_rows(torch.stack(list(samples))), pulls=self.pulls + 1, cache=None)


@dataclass(frozen=True, kw_only=True)
class FrechetReference(MomentSums):
    """The reference: sums of samples, or moments that were given (`from_moments` 1)."""

    from_moments: int = 0
    cache: Target | None = cached_field()

    def target(self) -> Target:
        """The derived values: O(d^3), once."""
        if self.cache is None:
            object.__setattr__(self, "cache", frechet_mixture.target(self.mean(), self.covariance()))  # a memo, not a change
        assert self.cache is not None
        return self.cache


@dataclass(frozen=True)
class Neighborhoods:
    """The reference of a quality term: its samples (n, e)."""

    outputs: Tensor
    cache: Tensor | None = cached_field()

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.outputs)

    def radii(self, neighbors: int) -> Tensor:
        """(n,) see `quality.neighbor_radii`: O(n^2 e), once."""
        if self.cache is None:
            object.__setattr__(self, "cache", quality.neighbor_radii(self.outputs, neighbors=neighbors))  # a memo
        assert self.cache is not None
        return self.cache


# -- what all arms give together -------------------------------------------------------------------------------------------


class Loss(Protocol):
    """A convex function of the weights (m,) of m arms."""

    def at(self, weights: Vector) -> tuple[float, Vector]:
        """Value and gradient (m,)."""

    def only(self, arms: Sequence[int]) -> Loss:
        """The same for mixtures of some of the arms."""


@dataclass(frozen=True)
class PairSums:
    """A cache of the sums S (m, m) of the members: only the rows of members that changed are computed, and for an exact
    kernel only their new samples are compared with everything.

    The members are the reference, where the loss has one, and the arms behind it, so that a new arm comes last.
    """

    members: tuple[MixtureArm, ...]
    values: Vector

    @classmethod
    def update(cls, form: SampleStatistic, members: Sequence[MixtureArm], *, before: PairSums | None) -> PairSums:
        """The sums of these members, from the sums of an earlier state where there are any."""
        old = before.members[: len(members)] if before else ()
        values = np.zeros((len(members), len(members)))
        if before:
            values[: len(old), : len(old)] = before.values[: len(old), : len(old)]
        current: list[MixtureArm | None] = [*old, *[None] * (len(members) - len(old))]
        for i, member in enumerate(members):
            was = current[i]
            if was is member:
                continue
            current[i] = member
            # Row i is brought up to date against `current`: members before i are new in it, those behind still old. Each of
            # those adds its own change when its turn comes, so that every pair of samples is counted exactly once.
            fresh = _appended(form, was, member)
            for j, other in enumerate(current):
                if other is None:
                    continue
                if fresh is None or was is None:
                    values[i, j] = form.pair_sum(member, other)
                elif j == i:
                    values[i, i] += 2.0 * form.between(fresh, was.outputs) + form.between(fresh, fresh)
                else:
                    values[i, j] += form.between(fresh, other.outputs)
                values[j, i] = values[i, j]
        return cls(tuple(members), values)


def _appended(form: SampleStatistic, was: MixtureArm | None, now: MixtureArm) -> Tensor | None:
    """The samples that an exact kernel has not compared yet, or None where everything must be compared again."""
    if was is None or form.keeps != "outputs":
        return None
    if (
        was.rows is None or now.rows is None or not now.rows.extends(was.rows)
    ):  # never compared here, forgot, or of another branch
        return None
    return now.outputs[len(was.outputs) :]


@dataclass(frozen=True)
class Quadratic:
    """The loss L(a) = a'Ka + f'a + constant. matrix: (m, m) K.  linear: (m,) f."""

    matrix: Vector
    linear: Vector
    constant: float = 0.0

    def at(self, weights: Vector) -> tuple[float, Vector]:
        """L(a) and 2Ka + f."""
        pull = self.matrix @ weights
        return float(weights @ pull + self.linear @ weights) + self.constant, 2.0 * pull + self.linear

    def only(self, arms: Sequence[int]) -> Quadratic:
        """The same for mixtures of some of the arms."""
        return Quadratic(self.matrix[np.ix_(arms, arms)], self.linear[list(arms)], self.constant)


def quadratic(arms: Sequence[MixtureArm], sums: PairSums, *, distance: bool, quality_weight: float) -> Quadratic:
    """The V-statistic of a kernel loss.

    distance: the first member of the sums is a reference to be close to, as in KID: f = -2 E k(X, Y).
    quality_weight: lambda in f = -lambda E q(X).
    """
    n = np.array([float(max(arm.effective_count, 1)) for arm in arms])
    linear = np.array([-quality_weight * arm.quality / max(arm.count, 1) for arm in arms])
    if not distance:
        return Quadratic(sums.values / np.outer(n, n), linear)
    reference = float(sums.members[0].effective_count)
    return Quadratic(
        sums.values[1:, 1:] / np.outer(n, n),
        linear - 2.0 * sums.values[0, 1:] / (n * reference),
        float(sums.values[0, 0]) / reference**2,
    )


@dataclass(frozen=True)
class SpectralMixture:
    """Minus the von Neumann entropy of the mixture's second moment: -ln of its Vendi score. counts: (m,) samples per arm."""

    arms: tuple[MixtureArm, ...]

    def at(self, weights: Vector) -> tuple[float, Vector]:
        """-S(a) and its gradient: one p x p eigenvalue problem and O(m p^2)."""
        n = np.array([float(arm.count) for arm in self.arms])
        entropy, slopes = diversity.entropy_of_mixture([arm.second for arm in self.arms], weights / n)
        return -entropy, -slopes / n

    def only(self, arms: Sequence[int]) -> SpectralMixture:
        """The same for mixtures of some of the arms."""
        return SpectralMixture(tuple(self.arms[arm] for arm in arms))


def unbiased(v: float, n: int) -> float | None:
    """U-statistic of n samples with themselves from their V-statistic, for kappa(x, x) = 1: (n^2 v - n) / (n (n - 1))."""
    return (n * v - 1.0) / (n - 1) if n > 1 else None
