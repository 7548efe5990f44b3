"""What decisions maximize: learned signals and known prices, weighed at the moment of the decision.

    value of arm a = sum_k (weight_k - multiplier_k) * expected signal k of arm a

Signals are learned apart, so a changed weight, price or budget acts on the next decision. A budget holds the running mean of one
signal by dual averaging: its multiplier is a function of sums alone, without a clock or a random number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

REWARD, COST = "reward", "cost"
PricesPer = Literal["call", "outcome"]

STEP = 0.3
CAP = 3.0
"""Of the pressure: a budget that no arm can hold plays nearly the cheapest."""
MAX_RATIO = 1e12
"""Of a cost to its price: one number beyond it would drown every other in the sums."""


@dataclass(frozen=True)
class Budget:
    """What one signal may be per decision in the mean. per_decision: > 0."""

    signal: str
    per_decision: float

    def multiplier(self, *, count: int, total: float, reward_variance: float) -> float:
        """The weight that is subtracted. count, total: outcomes that carried the signal, and their sum, since the budget was set.
        reward_variance: over all arms (`variance_over_arms`); where rewards were all alike any weight will do, and 1 is taken.
        """
        return self.pressure(count=count, total=total) * math.sqrt(reward_variance or 1.0) / self.per_decision

    def pressure(self, *, count: int, total: float) -> float:
        """The multiplier in units of deviation of the reward / budget, in [0, CAP]: what was overspent, in budgets, over the root
        of the outcomes. Credit is kept.
        """
        return min(CAP, STEP * max(0.0, total / self.per_decision - count) / math.sqrt(max(count, 1)))


class RewardMoments(NamedTuple):
    """Moments of the rewards of one arm, by Welford's method. squares: of their distances from the mean."""

    outcomes: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, reward: float) -> RewardMoments:
        """One more."""
        off = reward - self.mean
        mean = self.mean + off / (self.outcomes + 1)
        return RewardMoments(self.outcomes + 1, mean, self.squares + off * (reward - mean))


def variance_over_arms(arms: Sequence[RewardMoments]) -> float:
    """The variance of the reward if each arm that has one were played alike. Of the rewards as they came it would be the
    noise of the arm that is played most, and three times that need not reach the difference to a cheaper arm.
    """
    seen = [arm for arm in arms if arm.outcomes]
    if not seen:
        return 0.0
    mean = sum(arm.mean for arm in seen) / len(seen)
    return sum(arm.squares / arm.outcomes + (arm.mean - mean) ** 2 for arm in seen) / len(seen)


class Terms(NamedTuple):
    """Objectives as linear terms: see `Context.coefficients` and `Context.constants`."""

    coefficients: tuple[tuple[float, ...], ...]
    constants: tuple[float, ...]


def learned_cost(cost: float, price: float, prices_per: PricesPer) -> float:
    """What the signal `cost` learns from an outcome: the cost, or with prices per outcome its ratio to the price at the
    decision, so that a new price acts at once; NaN where the price is next to nothing.
    """
    if prices_per == "call" or price == 0.0:
        return cost
    ratio = cost / price
    return ratio if ratio <= MAX_RATIO else math.nan


def terms(
    signals: Sequence[str],
    weights: Mapping[str, float],
    multipliers: Mapping[str, float],
    *,
    prices: Sequence[float],
    prices_per: PricesPer,
) -> Terms:
    """The factor of every learned signal (S, K) and the known part (K,) of what is maximized.

    The expected cost of an arm is its present price with prices per call, and the present price times the learned ratio with
    prices per outcome; an arm without a price has its learned cost.

    >>> terms(["reward", "cost"], {"reward": 1.0, "cost": -5.0}, {}, prices=[0.1, 0.0], prices_per="call")
    Terms(coefficients=((1.0, 1.0), (0.0, -5.0)), constants=(-0.5, 0.0))
    """
    constants, coefficients = [0.0] * len(prices), []
    for name in signals:
        weight = weights.get(name, 0.0) - multipliers.get(name, 0.0)
        row = [weight] * len(prices)
        for arm, price in enumerate(prices if name == COST and weight else ()):
            if price > 0.0 and prices_per == "call":
                constants[arm] += weight * price
                row[arm] = 0.0
            elif price > 0.0:
                row[arm] = weight * price
        coefficients.append(tuple(row))
    return Terms(tuple(coefficients), tuple(constants))
