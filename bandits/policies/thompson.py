"""Thompson sampling without contexts (Thompson 1933): an arm is drawn with the probability that it is the best one.

    student   any rewards, unknown noise    mean and noise of the arm ~ normal-inverse-gamma; the prior is 1 outcome at the
                                            average of all arms, and 4 with the variance of all arms
    beta      0/1 rewards (or in between)   mean of the arm ~ Beta(prior_successes + sum r, prior_failures + n - sum r)
    gaussian  any rewards, known noise      mean of the arm ~ N(m, v),  1/v = 1/prior_deviation^2 + n/noise^2,
                                                                        m/v = prior_mean/prior_deviation^2 + sum r/noise^2

A policy answers a distribution, so nothing is sampled here; the weights are the exact probabilities

    P(arm k is best) = int f_k(t) prod_(j != k) F_j(t) dt

by Gauss-Legendre quadrature on panels laid where the posteriors change (f density, F = int f), off by less than 1e-11.
`draw` then draws once, keyed and with the true propensity, where sampling one value per arm would leave it unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from bandits import draw, signals
from bandits.errors import InvalidHyperparameter, InvalidObservation
from bandits.hyperparameters import (
    drift_field,
    exploration_floor_field,
    forget_half_life_field,
    hyper,
    initial_pulls_field,
    unit_scale,
)
from bandits.regression.averages import AveragesPolicy
from bandits.regression.ridge import MeanArm, SpreadArm
from bandits.types import ArmState, Context, Observation, State, Weights

Fall = Callable[[Tensor], Tensor]
"""(K, N) distances from the mode -> (K, N) by how much the log density of each posterior is lower there than at its mode."""


@dataclass(frozen=True)
class Posteriors:
    """Unimodal densities of K arms on the line. mode: (K,).  below, above: (K, DEPTHS) how far from the mode each has fallen by
    each of `DEPTHS`; they only lay out panels, so half of the digits are plenty.
    """

    mode: Tensor
    below: Tensor
    above: Tensor
    fall: Fall


class Belief(NamedTuple):
    """What is believed of the averages of one signal. mean, scale, degrees: (K,); of freedom, infinite for a Gaussian."""

    mean: Tensor
    scale: Tensor
    degrees: Tensor


class Asked(NamedTuple):
    """The parts of a context on which the probabilities depend."""

    allowed: tuple[bool, ...]
    coefficients: tuple[tuple[float, ...], ...]
    constants: tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """What follows from these very arms. beliefs: per signal.  probabilities: (K,) each, a cache."""

    arms: tuple[ArmState, ...]
    beliefs: list[Belief]
    probabilities: dict[Asked, Tensor]


PRIOR_OUTCOMES, PRIOR_SPREADS = 1.0, 4.0
"""Of the student posterior: outcomes that are assumed, at the average and with the variance of all arms."""
MOST_KNOWN = 64
"""Of `Known`: prices may change with every decision."""


@dataclass(frozen=True, kw_only=True)
class Thompson(AveragesPolicy):
    """Thompson sampling over the average reward."""

    kind: ClassVar[str] = "thompson"
    summary: ClassVar[str] = "Baseline: each arm with the probability that its mean reward is the highest (Thompson sampling)."

    posterior: Literal["student", "beta", "gaussian"] = hyper(
        "student",
        "student: rewards of any size, whose noise is learned. beta: rewards are 0 or 1, or a share in between. gaussian: "
        "rewards of any size with noise of known deviation.",
        former=("beta",),
    )
    prior_successes: float = hyper(
        1.0, "beta only: successes believed in beforehand.", at_least=0.1, at_most=1e6, source="Agrawal & Goyal 2012"
    )
    prior_failures: float = hyper(
        1.0, "beta only: failures believed in beforehand.", at_least=0.1, at_most=1e6, source="Agrawal & Goyal 2012"
    )
    prior_mean: float = hyper(0.5, "gaussian only: what an arm is believed to be worth before any outcome.", unit="reward")
    prior_deviation: float = hyper(1.0, "gaussian only: how far off that may be, one sigma.", above=0, unit="reward")
    noise: float = hyper(
        0.5,
        "gaussian only: sigma of one reward of an arm; 0.5 is the most that rewards in [0, 1] can have.",
        above=0,
        unit="reward",
    )
    initial_pulls: int = initial_pulls_field()
    exploration_floor: float = exploration_floor_field()
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    def check_observation(self, seen: Observation, *, state: State | None = None) -> None:
        if self.posterior == "beta" and not 0.0 <= seen.reward <= 1.0:
            raise InvalidObservation(
                "reward", "must be in [0, 1] for a beta posterior; set posterior: student or gaussian for others"
            )

    def check_new(self) -> None:
        super().check_new()
        if self.posterior == "beta" and len(self.signals) > 1:
            raise InvalidHyperparameter("posterior", "beta is of rewards in [0, 1] alone; set student to weigh other signals")

    def init(self) -> ArmState:
        return signals.init(lambda _: SpreadArm() if self.posterior == "student" else MeanArm(), len(self.signals))

    def prepare(self, state: State) -> State:
        """Works out the probabilities for what was asked for last (at first: all arms)."""
        asked = list(state.cache.probabilities) if state.cache is not None else []
        last = [one for one in asked if len(one.allowed) == len(state.arms)] or [Asked((True,) * len(state.arms), (), ())]
        known = Known(state.arms, self._beliefs(state.arms), {})
        known.probabilities.update({one: self._best(known, one) for one in last[-2:] if any(one.allowed)})
        return replace(state, cache=known)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        known: Known | None = state.cache
        if known is None or known.arms is not state.arms:
            known = Known(state.arms, self._beliefs(state.arms), {})
        rows = []
        for context in contexts:
            asked = Asked(context.allowed, context.coefficients, context.constants)
            found = known.probabilities.get(asked)
            if found is None:
                found = self._best(known, asked)
                if len(known.probabilities) < MOST_KNOWN:
                    known.probabilities[asked] = found  # a memo, not a change
            rows.append(found)
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in_arms([arm.pulls for arm in state.arms], contexts, self.initial_pulls)
        means = [belief.mean.expand(len(contexts), -1).clone() for belief in known.beliefs]
        return Weights(
            draw.apply_burn_in_and_floor(torch.stack(rows), first, allowed, floor=self.exploration_floor),
            {"estimate": signals.weigh(contexts, means, [])[0]} | signals.tables(self.signals, means),
            first,
        )

    def _best(self, known: Known, asked: Asked) -> Tensor:
        """(K,) the probability that each arm is the best of the allowed ones."""
        chosen = [index for index, is_allowed in enumerate(asked.allowed) if is_allowed]
        values = torch.zeros(len(asked.allowed), dtype=torch.float64)
        if self.posterior == "beta" and not (asked.coefficients or asked.constants):
            posteriors = beta(*self._counts([known.arms[index] for index in chosen]))
        else:
            mean, scale, degrees = (table[chosen] for table in _weighed(known.beliefs, asked))
            posteriors = student(mean, scale, degrees) if self.posterior == "student" else gaussian(mean, scale)
        values[chosen] = probability_best(posteriors)
        return values

    def _beliefs(self, arms: Sequence[ArmState]) -> list[Belief]:
        """Of every signal; those other than the reward are believed to be 0 beforehand, or, by student, like all arms."""
        return [self._belief(signals.part(arms, k), self.prior_mean if k == 0 else 0.0) for k in range(len(self.signals))]

    def _belief(self, arms: Sequence[Any], prior_mean: float) -> Belief:
        pulls = torch.tensor([arm.pulls for arm in arms], dtype=torch.float64)
        if self.posterior == "student":
            averages = torch.tensor([arm.average for arm in arms], dtype=torch.float64)
            return _like_all(pulls, averages, torch.tensor([arm.squares for arm in arms], dtype=torch.float64))
        endless = torch.full_like(pulls, torch.inf)
        if self.posterior == "beta":
            a, b = self._counts(arms)
            total = a + b
            sums = self.prior_successes + torch.tensor([arm.reward_sum for arm in arms], dtype=torch.float64)
            return Belief(
                sums / (self.prior_successes + self.prior_failures + pulls), (a * b / (total + 1.0)).sqrt() / total, endless
            )
        sums = torch.tensor([arm.reward_sum for arm in arms], dtype=torch.float64)
        precision = self.prior_deviation**-2 + pulls * self.noise**-2
        return Belief((prior_mean * self.prior_deviation**-2 + sums * self.noise**-2) / precision, precision.rsqrt(), endless)

    def _counts(self, arms: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """(K,) successes and (K,) failures, those believed in beforehand included."""
        pulls = torch.tensor([arm.pulls for arm in arms], dtype=torch.float64)
        sums = torch.tensor([arm.reward_sum for arm in arms], dtype=torch.float64)
        return self.prior_successes + sums, self.prior_failures + (pulls - sums).clamp_min(0.0)

    @property
    def reward_scale(self) -> tuple[float, float] | None:
        return unit_scale(self.prior_mean) if self.posterior == "gaussian" else None

    def report(self, state: State) -> dict[str, Any]:
        estimates = self._beliefs(state.arms)[0].mean.tolist()
        return {"arms": [{"pulls": arm.pulls, "estimate": mean} for arm, mean in zip(state.arms, estimates, strict=True)]}


def _weighed(beliefs: Sequence[Belief], asked: Asked) -> Belief:
    """What is maximized. A sum of several Student distributions is taken for one, with the degrees of freedom of Welch and
    Satterthwaite; sums of Gaussians are exact, and a weighed beta is taken for the Gaussian of its moments.
    """
    context = Context(**asked._asdict())
    mean, scale = signals.weigh([context], [one.mean[None] for one in beliefs], [one.scale[None] for one in beliefs])
    if len(beliefs) == 1 or not asked.coefficients:
        return Belief(mean[0], scale[0], beliefs[0].degrees)
    factors = torch.tensor(asked.coefficients, dtype=torch.float64)
    variances = (factors * torch.stack([one.scale for one in beliefs])).square()
    left = (variances.square() / torch.stack([one.degrees for one in beliefs])).sum(0)
    degrees = torch.where(left > 0.0, variances.sum(0).square() / left, beliefs[0].degrees)
    return Belief(mean[0], scale[0], degrees)


def _like_all(pulls: Tensor, averages: Tensor, squares: Tensor) -> Belief:
    """The student posterior, whose prior is the average and the variance of all outcomes of all arms: free of units. All (K,)."""
    total = pulls.sum()
    if not total:
        return Belief(torch.zeros_like(pulls), torch.zeros_like(pulls), PRIOR_SPREADS + pulls)
    average = (pulls * averages).sum() / total
    off = averages - average
    variance = (squares.sum() + (pulls * off.square()).sum()) / total
    if variance <= 1e-24 * average.square():  # below the digits of the average: all alike
        variance, off, squares = torch.zeros_like(variance), torch.zeros_like(off), torch.zeros_like(squares)
    counts, degrees = PRIOR_OUTCOMES + pulls, PRIOR_SPREADS + pulls
    spread = PRIOR_SPREADS * variance + squares + PRIOR_OUTCOMES * pulls / counts * off.square()
    return Belief(average + pulls * off / counts, (spread / (degrees * counts)).sqrt(), degrees)


def beta(successes: Tensor, failures: Tensor) -> Posteriors:
    """Beta(successes, failures) on the logit t = log(x / (1 - x)), where it is log-concave and smooth for any parameters > 0.

    log f = a t - n log(1 + e^t), n = a + b, has its mode at log(a / b), from where it falls by n log(1 + (a/n)(e^u - 1)) - a u.
    The smaller of a and b is taken for a (turn u around), so that no digits are lost in 1 + ..., however lopsided the counts.
    """
    total = successes + failures
    a, sign = torch.minimum(successes, failures)[:, None], torch.where(successes <= failures, 1.0, -1.0).to(total.dtype)[:, None]

    def fall(u: Tensor) -> Tensor:
        v = sign * u
        return total[:, None] * torch.log1p(a / total[:, None] * torch.expm1(v)) - a * v

    deviation = (total / (successes * failures)).sqrt()  # of the Gaussian that fits the mode
    below, above = _search(fall, deviation, -1.0), _search(fall, deviation, 1.0)
    return Posteriors(successes.log() - failures.log(), below, above, fall)


def gaussian(mean: Tensor, deviation: Tensor) -> Posteriors:
    """N(mean, deviation^2). A deviation below ten digits of the means is raised to that: float64 compares no closer."""
    deviation = torch.maximum(deviation, 1e-10 * mean.abs().max())
    reach = deviation[:, None] * (2.0 * DEPTHS).sqrt()
    return Posteriors(mean, reach, reach, lambda u: (u / deviation[:, None]).square() / 2.0)


def student(mean: Tensor, scale: Tensor, degrees: Tensor) -> Posteriors:
    """Student distributions (K,), in the unit of what tells them apart, so that the unit of the rewards does not matter."""
    center = mean.max()
    unit = torch.maximum(scale.max(), (center - mean).max())
    unit = torch.where(unit > 0.0, unit, 1.0)
    mean, scale = (mean - center) / unit, (scale / unit).clamp_min(1e-10)

    def fall(u: Tensor) -> Tensor:
        return (degrees[:, None] + 1.0) / 2.0 * torch.log1p((u / scale[:, None]).square() / degrees[:, None])

    reach = scale[:, None] * (degrees[:, None] * torch.expm1(2.0 * DEPTHS / (degrees[:, None] + 1.0))).sqrt()  # fall = depth
    return Posteriors(mean, reach, reach, fall)


# -- the quadrature ------------------------------------------------------------------------------------------------------

DEPTHS = torch.arange(1, 10, dtype=torch.float64).square() / 2.0
"""Where panels end: a fall of k^2 / 2, which is k sigma for a Gaussian. The last, e^-40.5, is below the rounding of 1."""


def _rule(order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights (Q,) of Gauss-Legendre on [-1, 1], and (Q, Q) the integral from -1 to node i of the polynomial through
    given values at the nodes: int P_n = (P_(n+1) - P_(n-1)) / (2n + 1).
    """
    nodes, weights = legendre.leggauss(order)
    p = legendre.legvander(nodes, order)  # (Q, Q + 1)
    n = np.arange(order)
    integrals = np.c_[nodes + 1.0, (p[:, 2:] - p[:, :-2]) / (2 * n[1:] + 1)]
    coefficients = (n[:, None] + 0.5) * (p[:, :order] * weights[:, None]).T
    return torch.from_numpy(nodes), torch.from_numpy(weights), torch.from_numpy(integrals @ coefficients)


NODES, WEIGHTS, INTEGRAL = _rule(12)


def probability_best(posteriors: Posteriors) -> Tensor:
    """(K,) the probability that each of K independent values is the largest; they sum to 1.

    >>> probability_best(gaussian(torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if len(posteriors.mode) == 1:
        return torch.ones(1, dtype=torch.float64)
    edges = _panels(posteriors)
    half = (edges[1:] - edges[:-1]) / 2.0  # (P,)
    t = (edges[1:] + edges[:-1])[:, None] / 2.0 + half[:, None] * NODES  # (P, Q)
    f = torch.exp(-posteriors.fall(t.reshape(1, -1) - posteriors.mode[:, None])).reshape(-1, *t.shape)  # (K, P, Q)
    mass = (f @ WEIGHTS) * half  # (K, P)
    total = mass.sum(1)
    below = (mass.cumsum(1) - mass)[:, :, None] + half[:, None] * (f @ INTEGRAL.T)
    cdf = (below / total[:, None, None]).clamp(0.0, 1.0)
    ones = torch.ones_like(cdf[:1])
    before = torch.cat([ones, cdf[:-1].cumprod(0)])
    after = torch.cat([cdf[1:].flip(0).cumprod(0).flip(0), ones])
    best = (((f * before * after) @ WEIGHTS) * half).sum(1) / total
    return best / best.sum()


def _panels(posteriors: Posteriors) -> Tensor:
    """(P + 1,) ascending edges such that every posterior changes by a bounded factor within a panel.

    Each posterior asks for edges where it has fallen by DEPTHS. An edge is dropped where the panel around it is then still no
    wider than both panels that this posterior asked for, so that K similar posteriors share the panels of one.
    """
    mode, below, above = (part.numpy() for part in (posteriors.mode[:, None], posteriors.below, posteriors.above))
    wanted = np.concatenate([mode - below[:, ::-1], mode, mode + above], axis=1)  # (K, E)
    gaps = np.full((len(wanted), wanted.shape[1] + 1), np.inf)
    gaps[:, 1:-1] = wanted[:, 1:] - wanted[:, :-1]
    order = wanted.ravel().argsort(kind="stable")
    points, widths = wanted.ravel()[order].tolist(), np.minimum(gaps[:, 1:], gaps[:, :-1]).ravel()[order].tolist()
    edges, limit = [points[0]], float("inf")
    for point, width, following in zip(points[1:-1], widths[1:-1], points[2:], strict=True):
        limit = min(limit, width)
        if following - edges[-1] > limit:
            if point > edges[-1]:
                edges.append(point)
            limit = float("inf")
    return torch.tensor([*edges, points[-1]], dtype=torch.float64)


def _search(fall: Fall, deviation: Tensor, sign: float) -> Tensor:
    """(K, DEPTHS) how far from the mode, upwards or downwards, each posterior has fallen by each depth, where no formula says it:
    bisection of the bracket that doubling finds, 25 times. deviation: (K,) about one sigma.
    """
    high = deviation[:, None] * (2.0 * DEPTHS).sqrt()
    while bool((short := fall(sign * high) < DEPTHS).any()):
        high = torch.where(short, 2.0 * high, high)
    low = torch.zeros_like(high)
    for _ in range(25):
        middle = (low + high) / 2.0
        short = fall(sign * middle) < DEPTHS
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high
