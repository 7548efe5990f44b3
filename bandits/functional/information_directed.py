"""Information-directed sampling (Russo & Van Roy 2014, arXiv 1403.5556) over arms whose values are independent Gaussians.

    weights = argmin over distributions w of  (sum_a w_a regret_a)^2 / sum_a w_a information_a

    regret_a       E[max_b f_b] - E[f_a]
    information_a  variance of E[f_a | which arm is best]: a lower bound of the mutual information (their section 5), times the
                   share of a's decisions that bring an outcome: one that never comes tells nothing

A minimizer with at most two arms exists (their proposition 6), and its mixing weight has a closed form: a grid of .05 would round
the best weight, often .004, to 0, and an arm that is never tried is never learned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRID = 160
"""Points at which the distribution of the maximum is summed."""
REACH = 4.5
"""Standard deviations around each mean that the grid covers; an arm that ends below where all others begin is not considered."""
ROOT_2_PI = float(np.sqrt(2.0 * np.pi))
SMALLEST = 1e-100
"""Of the largest deviation, in the unit of the values: of a smaller one the squares would be 0, so another unit is taken."""
THOMPSON_SHARE = 0.1
"""Of the weight that goes to arms by their probability of being best: it never gives an arm up, and propensities stay above 0."""


def normal_cdf(z: Floats) -> Floats:
    """P(N(0, 1) < z), elementwise."""
    tail: Floats = torch.erfc(torch.from_numpy(z * -np.sqrt(0.5))).numpy()  # a third of the time of torch.special.ndtr
    tail *= 0.5
    return tail


_STEPS = np.arange(GRID, dtype=np.float64)


@lru_cache(maxsize=64)
def _pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs a < b of so many arms."""
    first, second = np.triu_indices(count, 1)
    return first, second


def weights(
    mean: Floats,
    deviation: Floats,
    *,
    answered: Floats | None = None,
    thompson_share: float = THOMPSON_SHARE,
    cdf: Callable[[Floats], Floats] = normal_cdf,
) -> Floats:
    """(K,) probabilities of the arms. mean, deviation: (K,) of their values; deviation > 0.  answered: (K,) the share of their
    decisions that bring an outcome; default 1.

    >>> weights(np.array([1.0, 0.2]), np.array([0.05, 0.05]))
    array([1., 0.])
    """
    if (largest := float(deviation.max())) < SMALLEST:
        mean, deviation = mean / largest, deviation / largest
    chosen, lowest = np.zeros(len(mean)), (mean - REACH * deviation).max()
    live = np.flatnonzero(mean + REACH * deviation >= lowest)
    if len(live) == 1:
        chosen[live] = 1.0
        return chosen
    best, regret, information = _of_the_best(mean[live], deviation[live], lowest, cdf)
    if answered is not None:
        information *= answered[live]
    first, second, share = _minimizer(regret, information)
    chosen[live[first]] += (1.0 - thompson_share) * (1.0 - share)
    chosen[live[second]] += (1.0 - thompson_share) * share
    chosen[live] += thompson_share * best
    return chosen


def _of_the_best(
    mean: Floats, deviation: Floats, lowest: float, cdf: Callable[[Floats], Floats]
) -> tuple[Floats, Floats, Floats]:
    """(K,) each of P(a is best), regret_a and information_a, by a sum over a grid of values of the maximum."""
    highest = (mean + REACH * deviation).max()
    step = (highest - lowest) / (GRID - 1)
    x = lowest + step * _STEPS
    deviation = np.maximum(deviation, step)  # a peak narrower than the grid would fall between two points
    z = x - mean[:, None]
    z /= deviation[:, None]
    below = np.maximum(cdf(z), 1e-300)
    z *= z
    z *= -0.5
    hazard = np.exp(z, out=z)
    hazard /= below
    hazard *= (1.0 / (deviation * ROOT_2_PI))[:, None]
    mass = hazard * (below.prod(0) * step)  # (K, GRID) the maximum is x, and it is arm a
    best = np.maximum(mass.sum(1), 1e-12)
    own = mass @ x / best
    # E[f_b | a is best] for b != a is the mean of f_b below the maximum: m_b - s_b^2 pdf / cdf
    moved = mass @ hazard.T
    moved *= deviation * deviation
    moved /= best[:, None]
    moved.flat[:: len(mean) + 1] = own - mean
    moved *= moved
    best /= best.sum()
    largest = float(deviation.max())
    regret = np.maximum(best @ own - mean, 1e-9 * largest)
    information = np.maximum(best @ moved, 1e-18 * largest**2)
    return best, regret, information


def _minimizer(regret: Floats, information: Floats) -> tuple[int, int, float]:
    """The two arms, and the weight of the second, of smallest squared regret per information.

    For one pair, (A + qB)^2 / (C + qE) is a square over a line: its only inner extremum is q = A/B - 2C/E, else an end is best.
    """
    alone = regret * regret / information
    single = int(alone.argmin())
    first, second = _pairs(len(regret))
    a, c = regret[first], information[first]
    b, e = regret[second] - a, information[second] - c
    curvature = b * e
    curvature[curvature == 0.0] = np.inf  # no inner extremum: q = 0
    shares = np.minimum(np.maximum((a * e - 2.0 * b * c) / curvature, 0.0), 1.0)
    line = a + shares * b
    ratio = line * line / (c + shares * e)
    pair = int(ratio.argmin())
    if ratio[pair] < alone[single]:
        return int(first[pair]), int(second[pair]), float(shares[pair])
    return single, single, 0.0
