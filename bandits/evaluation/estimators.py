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

from bandits.evaluation.moments import BASE, MASS, RESIDUAL, REWARD, WEIGHT, Block, Floats, Moments, Terms


@dataclass(frozen=True, kw_only=True)
class LoggedDecisions:
    """Decisions with outcomes, and what the evaluated policy would have done.

    arms: (n,) played.  rewards: (n,).  logged: (n, K) distributions that the arms were drawn from.  evaluated: (n, K).
    model: (n, K) expected rewards that do not depend on the outcome of their own row; empty = there is none.
    clusters: by row, of decisions that follow from one draw.
    """

    arms: NDArray[np.int64]
    rewards: Floats
    logged: Floats
    evaluated: Floats
    model: Floats = field(default_factory=lambda: np.empty((0, 0)))
    clusters: Mapping[int, str] = field(default_factory=dict)

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

    @cached_property
    def block(self) -> Block:
        """The same without the evaluated policy; a model that is missing is 0."""
        model = self.model if self.model.size else np.zeros(self.logged.shape)
        return Block(arms=self.arms, rewards=self.rewards, logged=self.logged, model=model)

    @cached_property
    def terms(self) -> Terms:
        """Of the evaluated policy, (n, 1)."""
        return self.block.of_tables(self.evaluated[:, None, :])

    @cached_property
    def weights(self) -> Floats:
        """(n,) w."""
        return self.terms.weights[:, 0]

    @cached_property
    def base(self) -> Floats:
        """(n,) what the model expects of the evaluated policy."""
        return self.terms.base[:, 0]

    def moments(self, *, clip: float = np.inf) -> Moments:
        """Their sums. clip: weights are no larger."""
        found = Moments(1)
        found.add(self.block, self.terms._replace(weights=np.minimum(self.terms.weights, clip)), self.clusters)
        return found


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, for decisions that are independent (adaptive logs are not quite)."""

    value: float
    error: float


# -- of sums: those without a parameter ------------------------------------------------------------------------------------


def _coefficients(moments: Moments, **terms: float | Floats) -> Floats:
    """(P, 5) of a linear form of the terms."""
    found = np.zeros((moments.policies, 5))
    places = {"base": BASE, "reward": REWARD, "residual": RESIDUAL, "weight": WEIGHT, "mass": MASS}
    for name, values in terms.items():
        found[:, places[name]] = values
    return found


def _normalized(moments: Moments, term: int) -> tuple[Floats, Floats]:
    """(P,) the ratio sum of a term / sum w, and the mean weight; NaN where every weight is 0."""
    weights = np.where(moments.sums[:, WEIGHT] > 0.0, moments.sums[:, WEIGHT], np.nan)
    return moments.sums[:, term] / weights, weights / moments.count


def _ips(moments: Moments) -> tuple[Floats, Floats]:
    return moments.linear(_coefficients(moments, reward=1.0, weight=moments.center))


def _snips(moments: Moments) -> tuple[Floats, Floats]:
    ratio, mean = _normalized(moments, REWARD)
    _, errors = moments.linear(_coefficients(moments, reward=1.0 / mean, weight=-ratio / mean))  # by the delta method
    return ratio + moments.center, errors


def _dm(moments: Moments) -> tuple[Floats, Floats]:
    return moments.linear(_coefficients(moments, base=1.0, mass=moments.center))


def _dr(moments: Moments) -> tuple[Floats, Floats]:
    return moments.linear(_coefficients(moments, base=1.0, residual=1.0, mass=moments.center))


def _sndr(moments: Moments) -> tuple[Floats, Floats]:
    ratio, mean = _normalized(moments, RESIDUAL)
    base, _ = _dm(moments)
    form = _coefficients(moments, base=1.0, residual=1.0 / mean, weight=-ratio / mean, mass=moments.center)
    return base + ratio, moments.linear(form)[1]


ESTIMATORS: Mapping[str, Callable[[Moments], tuple[Floats, Floats]]] = {
    "ips": _ips,
    "snips": _snips,
    "dm": _dm,
    "dr": _dr,
    "sndr": _sndr,
}
"""Values and standard errors, (P,), of those without a parameter, by name; dm, dr and sndr need a model."""


def _only(name: str, moments: Moments) -> Estimate:
    (value,), (error,) = ESTIMATORS[name](moments)
    return Estimate(float(value), float(error))


def ips(log: LoggedDecisions, *, clip: float = np.inf) -> Estimate:
    """Inverse propensity scoring: unbiased where every arm is supported and nothing is clipped."""
    return _only("ips", log.moments(clip=clip))


def snips(log: LoggedDecisions) -> Estimate:
    """Self-normalized: weights that do not average 1 cancel; a little biased, of much less variance."""
    return _only("snips", log.moments())


def dm(log: LoggedDecisions) -> Estimate:
    """The direct method: what the model says, with the model's bias."""
    return _only("dm", log.moments())


def dr(log: LoggedDecisions, *, clip: float = np.inf) -> Estimate:
    """Doubly robust: right if the model or the propensities are."""
    return _only("dr", log.moments(clip=clip))


def sndr(log: LoggedDecisions) -> Estimate:
    """Self-normalized doubly robust."""
    return _only("sndr", log.moments())


# -- of rows: those with a parameter ---------------------------------------------------------------------------------------


def _mean(terms: Floats) -> Estimate:
    return Estimate(float(terms.mean()), float(terms.std() / np.sqrt(len(terms))))


def switch_dr(log: LoggedDecisions, *, above: float) -> Estimate:
    """Doubly robust where the weight is at most `above`, the model alone elsewhere."""
    return _mean(log.base + np.where(log.weights <= above, log.weights, 0.0) * log.block.residuals)


def dr_shrunk(log: LoggedDecisions, *, shrinkage: float) -> Estimate:
    """Doubly robust with optimistic shrinkage: weights l w / (w^2 + l)."""
    return _mean(log.base + shrinkage * log.weights / (log.weights**2 + shrinkage) * log.block.residuals)


def _subgaussian(weights: Floats, power: float) -> Floats:
    return weights / (1.0 - power + power * weights)


def ips_subgaussian(log: LoggedDecisions, *, power: float) -> Estimate:
    """Inverse propensity scoring with weights w / (1 - l + l w), which are bounded by 1 / l."""
    return _mean(_subgaussian(log.weights, power) * log.rewards)


def dr_subgaussian(log: LoggedDecisions, *, power: float) -> Estimate:
    """Doubly robust with the same weights."""
    return _mean(log.base + _subgaussian(log.weights, power) * log.block.residuals)


def replay(log: LoggedDecisions) -> Estimate:
    """Rejection: the mean over decisions where a deterministic policy would have played the same; for uniform logs."""
    matched = log.weights > 0.0
    return _mean(log.rewards[matched]) if matched.any() else Estimate(float("nan"), float("nan"))
