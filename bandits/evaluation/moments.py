"""Sums over logged decisions, from which every estimate follows: of many policies at once, block by block, in bounded memory.

    decisions ──Block──> Terms of P policies ──Moments.add──> estimates, errors, diagnostics

Letters: n decisions of a block, K arms, P policies; w, q and base as in `estimators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGEST_WEIGHT = 1_000.0
"""Weights are clipped here in the anytime interval, and support counts logged probabilities of at least one in so many."""
LEAST_PROBABILITY = 1e-30
"""Logged probabilities below it are taken as 0: such an arm is never drawn, and the squares of its weights would overflow."""
CLUSTER_NUMBERS = 2**23
"""Kept of clusters that may go on, at most."""
PER_OCTAVE, LOWEST_OCTAVE, OCTAVES = 8, -8, 108
"""Of the histogram of weights, whose bins are a factor of 2^(1/8) wide; weights up to 2^-8 are in the first one."""
BASE, REWARD, RESIDUAL, WEIGHT, MASS = range(5)
"""Terms of a decision: sum_a evaluated q[a], w r, w (r - q[played]), w, sum_a evaluated; rewards and q less `Moments.center`."""


class Terms(NamedTuple):
    """The terms of P policies on one block, each (n, P).

    mass: sum_a evaluated.  supported: the part of it on arms that could have been drawn.  above: the part on arms of probability
    1 / LARGEST_WEIGHT at least.  squares: E w^2 under the logged distribution.
    """

    weights: Floats
    base: Floats
    mass: Floats
    supported: Floats
    above: Floats
    squares: Floats

    def beside(self, other: Terms) -> Terms:
        """These policies, then the others."""
        return Terms(*(np.concatenate(pair, 1) for pair in zip(self, other, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Decisions with their outcomes. arms: (n,) played.  rewards: (n,).  logged: (n, K) distributions that the arms were drawn
    from.  model: (n, K) expected rewards that do not depend on the outcome of their own row.
    """

    arms: Integers
    rewards: Floats
    logged: Floats
    model: Floats

    def of_tables(self, evaluated: Floats) -> Terms:
        """Of policies by their distributions. evaluated: (n, P, K)."""
        played = self.arms[:, None, None]
        weights = np.take_along_axis(evaluated, played, 2)[:, :, 0] / self._played(_divisors(self.logged))
        possible = self.logged[:, None, :] >= LEAST_PROBABILITY
        mass = evaluated.sum(2)
        return Terms(
            weights,
            (evaluated * self.model[:, None, :]).sum(2),
            np.where(np.abs(mass - 1.0) < 1e-9, 1.0, mass),  # so that a constant has no variance
            np.where(possible, evaluated, 0.0).sum(2),
            np.where(self.logged[:, None, :] >= 1.0 / LARGEST_WEIGHT, evaluated, 0.0).sum(2),
            (evaluated**2 / _divisors(self.logged)[:, None, :]).sum(2),
        )

    def of_arms(self, chosen: Integers) -> Terms:
        """Of policies that play one arm with certainty. chosen: (n, P) indices."""
        logged, is_played = np.take_along_axis(self.logged, chosen, 1), chosen == self.arms[:, None]
        inverse = 1.0 / _divisors(logged)
        return Terms(
            np.where(is_played, inverse, 0.0),
            np.take_along_axis(self.model, chosen, 1),
            np.ones(chosen.shape),
            (logged >= LEAST_PROBABILITY).astype(np.float64),
            (logged >= 1.0 / LARGEST_WEIGHT).astype(np.float64),
            inverse,
        )

    @property
    def residuals(self) -> Floats:
        """(n,) rewards that the model did not expect."""
        return self.rewards - self._played(self.model)[:, 0]

    def _played(self, table: Floats) -> Floats:
        """(n, 1)."""
        return np.take_along_axis(table, self.arms[:, None], 1)


def _divisors(logged: Floats) -> Floats:
    """Infinite where an arm could not have been drawn, so that its weight is 0."""
    return np.where(logged >= LEAST_PROBABILITY, logged, np.inf)


class Clusters:
    """Sums of clusters of decisions that may go on, by name, in bounded memory: those that were added to last. A member of one
    that is not kept any more begins another.
    """

    def __init__(self, numbers: int) -> None:
        self._most = max(CLUSTER_NUMBERS // numbers, 1)
        self._sums: dict[str, tuple[int, Floats]] = {}

    def add(self, name: str, row: Floats, *, begin: Floats | float = 0.0) -> tuple[int, Floats] | None:
        """One more member with these numbers: members and sums before it, None = it is the first. begin: sums without members."""
        before = self._sums.pop(name, None)
        count, sums = before or (0, begin)
        self._sums[name] = count + 1, sums + row
        if len(self._sums) > self._most:
            del self._sums[next(iter(self._sums))]
        return before

    def copy_row(self, row: int) -> None:
        """One more row in the sums of each, equal to this one."""
        self._sums = {name: (count, np.concatenate([sums, sums[row : row + 1]])) for name, (count, sums) in self._sums.items()}


@dataclass
class Moments:
    """Sums and products of the terms of P policies.

    Decisions of one cluster depend on each other, so it is their sum that has a square: products are summed over clusters, and a
    decision without one is a cluster of its own.

    center: subtracted from rewards and model, so that a large mean leaves the digits to the variance; set by the first block.
    squared_sizes: sum over clusters of size^2.  sums: (P, 5).  sized: (P, 5) sum over clusters of size times their sums.
    products: (P, 5, 5).  histogram: (P, bins) decisions by the logarithm of their weight.  Others are sums over decisions, (P,);
    variances: of the weights, over clusters.  largest: of the weights.
    """

    policies: int
    count: int = 0
    center: float = 0.0
    squared_sizes: float = 0.0
    rewards: Floats = field(default_factory=lambda: np.zeros(2))  # sum and square sum, less the center
    sums: Floats = field(init=False)
    sized: Floats = field(init=False)
    products: Floats = field(init=False)
    supported: Floats = field(init=False)
    above: Floats = field(init=False)
    variances: Floats = field(init=False)
    largest: Floats = field(init=False)
    histogram: Integers = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.sized = np.zeros((2, self.policies, 5))
        self.products = np.zeros((self.policies, 5, 5))
        self.supported, self.above, self.variances, self.largest = np.zeros((4, self.policies))
        self.histogram = np.zeros((self.policies, PER_OCTAVE * OCTAVES + 2), dtype=np.int64)
        self._clusters = Clusters(6 * self.policies)

    def add(self, block: Block, terms: Terms, clusters: Mapping[int, str] | None = None) -> None:
        """The next decisions. clusters: by row of the block, of those that belong to one."""
        if not self.count:
            self.center = float(block.rewards.mean())
        self.count += len(block.rewards)
        rewards, weights = block.rewards - self.center, terms.weights
        self.rewards += rewards.sum(), (rewards**2).sum()
        base = terms.base - self.center * terms.mass
        rows = np.stack([base, weights * rewards[:, None], weights * block.residuals[:, None], weights, terms.mass], 2)
        sums = rows.sum(0)
        self.sums += sums
        self.sized += sums
        self.squared_sizes += len(rows)
        by_policy = rows.transpose(1, 0, 2)
        self.products += by_policy.transpose(0, 2, 1) @ by_policy
        self.supported += terms.supported.sum(0)
        self.above += terms.above.sum(0)
        variances = np.maximum(terms.squares - terms.supported**2, 0.0)
        self.variances += variances.sum(0)
        for place, name in (clusters or {}).items():
            self._join(name, rows[place], np.sqrt(variances[place]))
        self.largest = np.maximum(self.largest, weights.max(0, initial=0.0))
        self._count_weights(weights)

    def _join(self, name: str, row: Floats, deviations: Floats) -> None:
        """Make one cluster of a decision that was added by itself, and the earlier ones of this name: (a + b)^2 - a^2 - b^2."""
        before = self._clusters.add(name, np.concatenate([row, deviations[:, None]], 1))
        if before is None:
            return
        size, earlier = before[0], before[1][:, :5]
        self.sized += earlier + size * row
        self.squared_sizes += 2.0 * size
        across = earlier[:, :, None] * row[:, None, :]
        self.products += across + across.transpose(0, 2, 1)
        self.variances += 2.0 * before[1][:, 5] * deviations  # at most so much, and exactly so where they share one draw

    def _count_weights(self, weights: Floats) -> None:
        bins = self.histogram.shape[1]
        octaves = np.log2(weights, out=np.full(weights.shape, -np.inf), where=weights > 0.0) - LOWEST_OCTAVE
        places = np.clip(np.ceil(PER_OCTAVE * octaves), 0, bins - 1).astype(np.int64)
        flat = (places + bins * np.arange(self.policies)).ravel()
        self.histogram += np.bincount(flat, minlength=self.histogram.size).reshape(self.histogram.shape)

    def copy_policy(self, policy: int) -> None:
        """One more policy, of which is known what is known of this one."""
        self.policies += 1
        self._clusters.copy_row(policy)
        for one in fields(self)[5:]:
            array = getattr(self, one.name)
            setattr(self, one.name, np.concatenate([array, array[policy : policy + 1]]))

    def linear(self, coefficients: Floats) -> tuple[Floats, Floats]:
        """(P,) means of linear forms of the terms, and their standard errors. coefficients: (P, 5)."""
        means = self.sums / self.count
        across = self.sized[:, :, None] * means[:, None, :]
        squares = self.squared_sizes * means[:, :, None] * means[:, None, :]
        covariance = (self.products - across - across.transpose(0, 2, 1) + squares) / self.count
        variances = np.einsum("pi,pij,pj->p", coefficients, covariance, coefficients)
        return (coefficients * means).sum(1), np.sqrt(np.maximum(variances, 0.0) / self.count)

    # -- diagnostics -------------------------------------------------------------------------------------------------------

    @property
    def support(self) -> Floats:
        """(P,) mean mass on arms whose logged probability is at least 1 / LARGEST_WEIGHT: what lies below hardly ever shows."""
        return self.above / self.count

    @property
    def mean_weight(self) -> Floats:
        """(P,) near `supported` where the arms were drawn as logged."""
        return self.sums[:, WEIGHT] / self.count

    @property
    def weight_error(self) -> Floats:
        """(P,) standard error of the mean weight, from the logged distributions: E w^2 is sum_a evaluated^2 / logged. (From the
        weights themselves it would be too small: the rare large ones may not have been drawn yet.)
        """
        return np.sqrt(self.variances) / self.count

    @property
    def effective_sample(self) -> Floats:
        """(P,) (sum w)^2 / sum w^2, w of clusters: as many equally weighted independent decisions say as much."""
        squares = self.products[:, WEIGHT, WEIGHT]
        return np.divide(self.sums[:, WEIGHT] ** 2, squares, out=np.zeros(self.policies), where=squares > 0.0)

    def weight_quantile(self, share: float) -> Floats:
        """(P,) a weight that this share of the decisions does not exceed, at most 2^(1/8) times the least one; 0 below 2^-8."""
        places = (self.histogram.cumsum(1) >= share * self.count).argmax(1)
        edges = 2.0 ** (places / PER_OCTAVE + LOWEST_OCTAVE)
        return np.minimum(np.where(places > 0, edges, 0.0), self.largest)

    @property
    def spread(self) -> float:
        """Standard deviation of the rewards."""
        total, squares = self.rewards / self.count
        return float(np.sqrt(max(squares - total**2, 0.0)))
