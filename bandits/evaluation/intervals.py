"""Intervals of a policy's mean reward: an ordinary one, and one that holds at every number of decisions at once.

The ordinary one takes decisions for independent. The logging policy learns, so they are not quite; the anytime interval needs no
independence, only that each arm was drawn from the distribution that the log has, and may be looked at after every decision.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from bandits.evaluation.estimators import Estimate, Floats, LoggedDecisions

LARGEST_WEIGHT = 1_000.0
"""Weights are clipped here. Both bounds stay true: a clipped weight makes the lower one lower, and the upper one higher."""
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


def anytime(log: LoggedDecisions, *, reward_range: tuple[float, float], confidence: float) -> Interval:
    """A confidence sequence of the mean over the decisions of E[reward of the evaluated policy | what was known before].

    Rewards are scaled to [0, 1]. With y = min(w, c) r every E[y | past] is at most the value, and with y = min(w, c) (1 - r) at
    most one minus it; so lower bounds of both means are enough, and mass without support makes them wide by itself.
    """
    low, high = reward_range
    if not low < high:
        raise ValueError("reward_range must be two numbers, the lowest and the highest reward that is possible")
    scaled = (log.rewards - low) / (high - low)
    if scaled.min() < 0.0 or scaled.max() > 1.0:
        raise ValueError(f"rewards from {log.rewards.min():g} to {log.rewards.max():g} are in the log, outside of reward_range")
    weights, risk = np.minimum(log.weights, LARGEST_WEIGHT), (1.0 - confidence) / 2.0
    bottom = _lower_bounds(weights * scaled, risk)[-1]
    top = 1.0 - _lower_bounds(weights * (1.0 - scaled), risk)[-1]
    return Interval(float(low + (high - low) * bottom), float(low + (high - low) * top))


def _lower_bounds(values: Floats, risk: float) -> Floats:
    """(n,) after each of the non-negative values, a number that their conditional means exceed in the mean; wrong anywhere along
    the way with probability `risk` at most.

    For d = y - m >= -1 with m in [0, 1] known before y, Fan, Grama & Liu 2015 (eq. 4.11) have
    E exp(l d - psi(l) d^2) <= 1 + l E d, psi(l) = -log(1 - l) - l; the product over time is a supermartingale (Ville 1939).
    """
    counts = np.arange(1, len(values) + 1)
    means = np.minimum(np.concatenate([[0.5], (0.5 + np.cumsum(values)[:-1]) / (1 + counts[:-1])]), 1.0)
    squares = np.cumsum((values - means) ** 2)
    bets = np.array(BETS)[:, None]
    slack = (-np.log1p(-bets) - bets) / bets * squares + np.log(len(BETS) / risk) / bets
    bounds: Floats = np.maximum((np.cumsum(values) - slack).max(0) / counts, 0.0)
    return bounds
