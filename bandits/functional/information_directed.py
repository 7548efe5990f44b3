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
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRID = 160
"""Points at which the distribution of the maximum is summed."""
REACH = 4.5
"""Standard deviations around each mean that the grid covers; an arm that ends below where all others begin is not considered."""
ROOT_2_PI = float(np.sqrt(2.0 * np.pi))
MINUS_ROOT_HALF = -float(np.sqrt(0.5))
SMALLEST = 1e-100
"""Of the largest deviation, in the unit of the values: of a smaller one the squares would be 0, so another unit is taken."""
THOMPSON_SHARE = 0.1
"""Of the weight that goes to arms by their probability of being best: it never gives an arm up, and propensities stay above 0."""


def normal_cdf(z: Floats) -> Floats:
    """P(N(0, 1) < z), elementwise."""
    tail: Floats = z * MINUS_ROOT_HALF
    in_place = torch.from_numpy(tail)
    torch.erfc(in_place, out=in_place)  # a third of the time of torch.special.ndtr
    tail *= 0.5
    return tail


_STEPS = np.arange(GRID, dtype=np.float64)


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
    reach = REACH * deviation
    top, lowest = mean + reach, float((mean - reach).max())
    chosen, live = np.zeros(len(mean)), np.flatnonzero(top >= lowest)
    if len(live) == 1:
        chosen[live] = 1.0
        return chosen
    if len(live) < len(mean):
        mean, deviation, top = mean[live], deviation[live], top[live]
        answered = None if answered is None else answered[live]
    best, regret, information = _of_the_best(mean, deviation, lowest, float(top.max()), cdf)
    if answered is not None:
        information *= answered
    first, second, share = _minimizer(regret, information)
    best *= thompson_share
    best[first] += (1.0 - thompson_share) * (1.0 - share)
    best[second] += (1.0 - thompson_share) * share
    if len(live) == len(chosen):
        return best
    chosen[live] = best
    return chosen


def _of_the_best(
    mean: Floats, deviation: Floats, lowest: float, highest: float, cdf: Callable[[Floats], Floats]
) -> tuple[Floats, Floats, Floats]:
    """(K,) each of P(a is best), regret_a and information_a, by a sum over a grid of values of the maximum."""
    arms = len(mean)
    step = (highest - lowest) / (GRID - 1)
    # The rows that `mass` is multiplied with in the end: the hazard of each arm, the values of the maximum, ones.
    rows = np.empty((arms + 2, GRID))
    hazard, x, rows[-1] = rows[:arms], rows[-2], 1.0
    np.multiply(_STEPS, step, out=x)
    x += lowest
    deviation = np.maximum(deviation, step)  # a peak narrower than the grid would fall between two points
    inverse = 1.0 / deviation
    z = np.subtract(x, mean[:, None])
    z *= inverse[:, None]
    below = cdf(z)
    np.maximum(below, 1e-300, out=below)
    z *= z
    z *= -0.5
    np.exp(z, out=hazard)
    hazard /= below
    inverse *= 1.0 / ROOT_2_PI
    hazard *= inverse[:, None]
    all_below = np.multiply.reduce(below, 0)
    all_below *= step
    mass = np.multiply(hazard, all_below, out=z)  # (K, GRID) the maximum is x, and it is arm a
    # E[f_b | a is best] for b != a is the mean of f_b below the maximum: m_b - s_b^2 pdf / cdf
    found = mass.dot(rows.T)
    best = np.maximum(found[:, -1], 1e-12)
    found /= best[:, None]
    own, moved = found[:, -2], found[:, :-2]
    moved *= deviation * deviation
    moved.flat[:: arms + 1] = own - mean
    moved *= moved
    best /= best.sum()
    largest = float(deviation.max())
    regret = np.maximum(best.dot(own) - mean, 1e-9 * largest)
    information = np.maximum(best.dot(moved), 1e-18 * largest**2)
    return best, regret, information


def _minimizer(regret: Floats, information: Floats) -> tuple[int, int, float]:
    """The two arms, and the weight of the second, of smallest squared regret per information.

    That ratio is convex, falls with less regret and with more information: its minimum over all distributions lies where no arm
    has both, on the upper hull of the points (regret, information), at a vertex or between two neighbors. Between two it is a
    square over a line: its only inner extremum is q = A/B - 2C/E.
    """
    hull: list[tuple[float, float, int]] = []
    for r, minus, arm in sorted(zip(regret.tolist(), (-information).tolist(), range(len(regret)), strict=True)):
        i = -minus
        if hull and i <= hull[-1][1]:
            continue
        while len(hull) > 1:
            (r_0, i_0, _), (r_1, i_1, _) = hull[-2:]
            if (i_1 - i_0) * (r - r_0) > (i - i_0) * (r_1 - r_0):
                break
            hull.pop()
        hull.append((r, i, arm))
    ratio, first, second, share = min((r * r / i, arm, arm, 0.0) for r, i, arm in hull)
    for (a, c, one), (r, i, other) in pairwise(hull):
        b, e = r - a, i - c
        curvature = b * e
        inner = (a * e - 2.0 * b * c) / curvature if curvature else 0.0
        if 0.0 < inner < 1.0 and (between := (a + inner * b) ** 2 / (c + inner * e)) < ratio:
            ratio, first, second, share = between, one, other, inner
    return first, second, share
