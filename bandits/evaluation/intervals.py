"""Intervals of a policy's mean reward: an ordinary one, and one that holds at every number of decisions at once.

The ordinary one takes decisions for independent, or clusters of them, such as sessions. The logging policy learns, so they are
not quite. The anytime interval needs no independence, only that each arm was drawn from the distribution that the log has, and it
may be looked at after every decision. How long a cluster is must not depend on the arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from bandits.evaluation.estimators import Estimate, LoggedDecisions
from bandits.evaluation.moments import LARGEST_WEIGHT, Clusters, Floats

BETS = tuple(2.0**-power for power in range(1, 15))
"""Values of lambda: one of them is within a factor of 2^(1/2) of the best for any variance, at a union bound over fourteen."""


class Interval(NamedTuple):
    """Both ends included."""

    low: float
    high: float


def ordinary(estimate: Estimate, *, confidence: float) -> Interval:
    """By the normal distribution."""
    reach = NormalDist().inv_cdf(0.5 + confidence / 2.0) * estimate.error
    return Interval(estimate.value - reach, estimate.value + reach)


class AnytimeSums:
    """A confidence sequence of the mean over the decisions of E[reward of the evaluated policy | what was known before], for P
    policies, in bounded memory.

    Rewards are scaled to [0, 1]. With y = min(w, c) r every E[y | past] is at most the value, and with y = min(w, c) (1 - r) at
    most one minus it; so lower bounds of both means are enough. Clipping, and mass without support, make them wide by themselves.
    """

    def __init__(self, policies: int, *, reward_range: tuple[float, float]) -> None:
        low, high = reward_range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError("reward_range must be two numbers, the lowest and the highest reward that is possible")
        self.low, self.high = low, high
        self.bounds = LowerBounds(2 * policies)

    def add(self, weights: Floats, rewards: Floats, clusters: Mapping[int, str] | None = None) -> None:
        """The next decisions. weights: (n, P).  rewards: (n,), all within the range.  clusters: by row, where there is one."""
        scaled = (rewards - self.low) / (self.high - self.low)
        if scaled.min() < 0.0 or scaled.max() > 1.0:
            raise ValueError(f"rewards from {rewards.min():g} to {rewards.max():g} are in the log, outside of reward_range")
        clipped = np.minimum(weights, LARGEST_WEIGHT)
        both = np.stack([clipped * scaled[:, None], clipped * (1.0 - scaled[:, None])], 2)
        self.bounds.add(both.reshape(len(rewards), -1), clusters)

    def copy_policy(self, policy: int) -> None:
        """One more policy, of which is known what is known of this one."""
        for place in (2 * policy, 2 * policy + 1):
            self.bounds.copy_column(place)

    def intervals(self, *, confidence: float) -> list[Interval]:
        """Of each policy, after what was added."""
        pairs = self.bounds.after(risk=(1.0 - confidence) / 2.0).reshape(-1, 2)
        width = self.high - self.low
        return [
            Interval(float(self.low + width * bottom), float(self.low + width * (1.0 - rest))) for bottom, rest in pairs.tolist()
        ]


class LowerBounds:
    """Numbers that the conditional means of non-negative values exceed in the mean, one for each of C columns; wrong anywhere
    along the way with probability `risk` at most.

    For d = y - m >= -1 with m in [0, 1] known before y, Fan, Grama & Liu 2015 (eq. 4.11) have
    E exp(l d - psi(l) d^2) <= 1 + l E d, psi(l) = -log(1 - l) - l; the product over time is a supermartingale (Ville 1939).

    Of a cluster, whose members follow from one draw, y is the sum: known before it is the m of its first member, and the square
    is that of all members together.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self._sums, self._squares = np.zeros(columns), np.zeros(columns)
        self._clusters = Clusters(columns)

    def add(self, values: Floats, clusters: Mapping[int, str] | None = None) -> None:
        """The next values. values: (n, C).  clusters: by row, of those that belong to one."""
        counts = self.count + np.arange(len(values))
        running = self._sums + np.cumsum(values, 0)
        before = np.concatenate([self._sums[None], running[:-1]])
        means = np.minimum((0.5 + before) / (1.0 + counts)[:, None], 1.0)
        self._squares = self._squares + ((values - means) ** 2).sum(0)
        for place, name in (clusters or {}).items():
            value, mean = values[place], means[place]
            earlier = self._clusters.add(name, value, begin=-mean)
            if earlier is not None:  # (s + y - m)^2 in the place of (s - m)^2 and of its own square
                self._squares = self._squares + value * (2.0 * earlier[1] + value) - (value - mean) ** 2
        self._sums = running[-1]
        self.count += len(values)

    def copy_column(self, column: int) -> None:
        """One more column, with the past of this one."""
        self._sums, self._squares = (np.append(each, each[column]) for each in (self._sums, self._squares))
        self._clusters.copy_row(column)

    def after(self, *, risk: float) -> Floats:
        """(C,) the bounds after what was added."""
        bets = np.array(BETS)[:, None]
        slack = (-np.log1p(-bets) - bets) / bets * self._squares + np.log(len(BETS) / risk) / bets
        bounds: Floats = np.maximum((self._sums - slack).max(0) / self.count, 0.0)
        return bounds


def anytime(log: LoggedDecisions, *, reward_range: tuple[float, float], confidence: float) -> Interval:
    """The anytime interval of one policy after all decisions."""
    sums = AnytimeSums(1, reward_range=reward_range)
    sums.add(log.terms.weights, log.rewards, log.clusters)
    return sums.intervals(confidence=confidence)[0]
