"""Sums over logged decisions, from which every estimate follows: of many policies at once, block by block, in bounded memory.

    decisions ──Block──> Terms of P policies ──Moments.add──> estimates, errors, diagnostics

Letters: n decisions of a block, K arms, P policies; w, q and base as in `estimators`.
"""

from __future__ import annotations

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


@dataclass
class Moments:
    """Sums and products of the terms of P policies.

    center: subtracted from rewards and model, so that a large mean leaves the digits to the variance; set by the first block.
    sums: (P, 5).  products: (P, 5, 5).  Others are sums over decisions, (P,); largest: of the weights.
    """

    policies: int
    count: int = 0
    center: float = 0.0
    rewards: Floats = field(default_factory=lambda: np.zeros(2))  # sum and square sum, less the center
    sums: Floats = field(init=False)
    products: Floats = field(init=False)
    supported: Floats = field(init=False)
    above: Floats = field(init=False)
    variances: Floats = field(init=False)
    largest: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.products = np.zeros((self.policies, 5)), np.zeros((self.policies, 5, 5))
        self.supported, self.above, self.variances, self.largest = np.zeros((4, self.policies))

    def add(self, block: Block, terms: Terms) -> None:
        """The next decisions."""
        if not self.count:
            self.center = float(block.rewards.mean())
        self.count += len(block.rewards)
        rewards, weights = block.rewards - self.center, terms.weights
        self.rewards += rewards.sum(), (rewards**2).sum()
        base = terms.base - self.center * terms.mass
        rows = np.stack([base, weights * rewards[:, None], weights * block.residuals[:, None], weights, terms.mass], 2)
        self.sums += rows.sum(0)
        by_policy = rows.transpose(1, 0, 2)
        self.products += by_policy.transpose(0, 2, 1) @ by_policy
        self.supported += terms.supported.sum(0)
        self.above += terms.above.sum(0)
        self.variances += np.maximum(terms.squares - terms.supported**2, 0.0).sum(0)
        self.largest = np.maximum(self.largest, weights.max(0, initial=0.0))

    def copy_policy(self, policy: int) -> None:
        """One more policy, of which is known what is known of this one."""
        self.policies += 1
        for one in fields(self)[4:]:
            array = getattr(self, one.name)
            setattr(self, one.name, np.concatenate([array, array[policy : policy + 1]]))

    def linear(self, coefficients: Floats) -> tuple[Floats, Floats]:
        """(P,) means of linear forms of the terms, and their standard errors. coefficients: (P, 5)."""
        means = self.sums / self.count
        covariance = self.products / self.count - means[:, :, None] * means[:, None, :]
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
        """(P,) (sum w)^2 / sum w^2: as many equally weighted decisions say as much."""
        squares = self.products[:, WEIGHT, WEIGHT]
        return np.divide(self.sums[:, WEIGHT] ** 2, squares, out=np.zeros(self.policies), where=squares > 0.0)

    @property
    def spread(self) -> float:
        """Standard deviation of the rewards."""
        total, squares = self.rewards / self.count
        return float(np.sqrt(max(squares - total**2, 0.0)))
