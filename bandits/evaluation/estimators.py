"""Estimates of a policy's mean reward from decisions that another policy made.

    w = evaluated[a] / logged[a]      q = a reward model      base = sum_a evaluated[a] q[a]

Letters: n decisions, K arms, a the arm that was played.

Sources: IPS, Horvitz & Thompson 1952; SNIPS, Swaminathan & Joachims 2015;
DR, Dudik, Langford & Li 2011; Switch-DR, Wang, Agarwal & Dudik 2017; optimistic shrinkage, Su et al. 2020; sub-Gaussian weights,
Metelli, Russo & Restelli 2021; replay, Li et al. 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LoggedDecisions:
    """Decisions with outcomes, and what the evaluated policy would have done.

    arms: (n,) played.  rewards: (n,).  logged: (n, K) distributions that the arms were drawn from.  evaluated: (n, K).
    model: (n, K) expected rewards that do not depend on the outcome of their own row; empty = there is none.
    """

    arms: NDArray[np.int64]
    rewards: Floats
    logged: Floats
    evaluated: Floats
    model: Floats = field(default_factory=lambda: np.empty((0, 0)))

    def __post_init__(self) -> None:
        n = len(self.arms)
        if not n:
            raise ValueError("there are no decisions to evaluate on")
        if self.logged.shape != self.evaluated.shape or len(self.logged) != n or len(self.rewards) != n:
            raise ValueError("arms, rewards, logged and evaluated have a row per decision, and the last two a column per arm")
        if self.model.size and self.model.shape != self.logged.shape:
            raise ValueError("the model has a row per decision and a column per arm")
        if not (self.logged[np.arange(n), self.arms] > 0.0).all():
            raise ValueError("a played arm has the logged probability 0: leave out decisions that the client overrode")

    def _played(self, table: Floats) -> Floats:
        played: Floats = table[np.arange(len(self.arms)), self.arms]
        return played

    @cached_property
    def weights(self) -> Floats:
        """(n,) w."""
        weights: Floats = self._played(self.evaluated) / self._played(self.logged)
        return weights

    @cached_property
    def base(self) -> Floats:
        """(n,) what the model expects of the evaluated policy."""
        base: Floats = (self.evaluated * self.model).sum(1)
        return base

    @cached_property
    def residuals(self) -> Floats:
        """(n,) rewards that the model did not expect."""
        residuals: Floats = self.rewards - self._played(self.model)
        return residuals

    @cached_property
    def supported(self) -> Floats:
        """(n,) mass of the evaluated policy on arms that the logged one could have drawn."""
        supported: Floats = np.where(self.logged > 0.0, self.evaluated, 0.0).sum(1)
        return supported

    @property
    def weight_error(self) -> float:
        """Standard error of the mean weight, from the logged distributions: E w^2 is sum_a evaluated^2 / logged. (From the
        weights themselves it would be too small: the rare large ones may not have been drawn yet.)
        """
        squares = (self.evaluated**2 / np.where(self.logged > 0.0, self.logged, np.inf)).sum(1)
        return float(np.sqrt(max((squares - self.supported**2).sum(), 0.0)) / len(self.arms))

    def supported_above(self, least: float) -> float:
        """Mean mass on arms whose logged probability is at least this: what lies below hardly ever shows in the log."""
        return float(np.where(self.logged >= least, self.evaluated, 0.0).sum(1).mean())

    @property
    def effective_sample(self) -> float:
        """(sum w)^2 / sum w^2: as many equally weighted decisions say as much."""
        squares = float((self.weights**2).sum())
        return float(self.weights.sum()) ** 2 / squares if squares else 0.0


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, for decisions that are independent (adaptive logs are not quite)."""

    value: float
    error: float


def _mean(terms: Floats) -> Estimate:
    return Estimate(float(terms.mean()), float(terms.std() / np.sqrt(len(terms))))


def _self_normalized(weights: Floats, terms: Floats, base: Floats | float = 0.0) -> Estimate:
    """Mean of base plus sum w terms / sum w; its error by the delta method."""
    total = weights.sum()
    if not total:
        return Estimate(float("nan"), float("nan"))
    ratio = float((weights * terms).sum() / total)
    linear = base - np.mean(base) + weights * (terms - ratio) * (len(weights) / total)
    return Estimate(float(np.mean(base)) + ratio, float(np.sqrt((linear**2).sum()) / len(weights)))


def ips(log: LoggedDecisions, *, clip: float = np.inf) -> Estimate:
    """Inverse propensity scoring: unbiased where every arm is supported and nothing is clipped."""
    return _mean(np.minimum(log.weights, clip) * log.rewards)


def snips(log: LoggedDecisions) -> Estimate:
    """Self-normalized: weights that do not average 1 cancel; a little biased, of much less variance."""
    return _self_normalized(log.weights, log.rewards)


def dm(log: LoggedDecisions) -> Estimate:
    """The direct method: what the model says, with the model's bias."""
    return _mean(log.base)


def dr(log: LoggedDecisions, *, clip: float = np.inf) -> Estimate:
    """Doubly robust: right if the model or the propensities are."""
    return _mean(log.base + np.minimum(log.weights, clip) * log.residuals)


def sndr(log: LoggedDecisions) -> Estimate:
    """Self-normalized doubly robust."""
    return _self_normalized(log.weights, log.residuals, log.base)


def switch_dr(log: LoggedDecisions, *, above: float) -> Estimate:
    """Doubly robust where the weight is at most `above`, the model alone elsewhere."""
    return _mean(log.base + np.where(log.weights <= above, log.weights, 0.0) * log.residuals)


def dr_shrunk(log: LoggedDecisions, *, shrinkage: float) -> Estimate:
    """Doubly robust with optimistic shrinkage: weights l w / (w^2 + l)."""
    return _mean(log.base + shrinkage * log.weights / (log.weights**2 + shrinkage) * log.residuals)


def _subgaussian(weights: Floats, power: float) -> Floats:
    return weights / (1.0 - power + power * weights)


def ips_subgaussian(log: LoggedDecisions, *, power: float) -> Estimate:
    """Inverse propensity scoring with weights w / (1 - l + l w), which are bounded by 1 / l."""
    return _mean(_subgaussian(log.weights, power) * log.rewards)


def dr_subgaussian(log: LoggedDecisions, *, power: float) -> Estimate:
    """Doubly robust with the same weights."""
    return _mean(log.base + _subgaussian(log.weights, power) * log.residuals)


def replay(log: LoggedDecisions) -> Estimate:
    """Rejection: the mean over decisions where a deterministic policy would have played the same; for uniform logs."""
    matched = log.weights > 0.0
    return _mean(log.rewards[matched]) if matched.any() else Estimate(float("nan"), float("nan"))


ESTIMATORS: Mapping[str, Callable[[LoggedDecisions], Estimate]] = {
    "ips": ips,
    "snips": snips,
    "dm": dm,
    "dr": dr,
    "sndr": sndr,
}
"""Those without a parameter, by name; dm, dr and sndr need a model."""
