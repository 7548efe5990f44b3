"""Information-directed sampling (Russo & Van Roy 2014, arXiv 1403.5556) over arms whose values are independent Gaussians.

    weights = argmin over distributions w of  (sum_a w_a regret_a)^2 / sum_a w_a information_a

    regret_a       E[max_b f_b] - E[f_a]
    information_a  variance of E[f_a | which arm is best]: a lower bound of the mutual information (their section 5)

A minimizer with at most two arms exists (their proposition 6), and its mixing weight has a closed form: a grid of .05 would round
the best weight, often .004, to 0, and an arm that is never tried is never learned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRID = 160
"""Points at which the distribution of the maximum is summed."""
REACH = 4.5
"""Standard deviations around each mean that the grid covers; an arm that ends below where all others begin is not considered."""
THOMPSON_SHARE = 0.1
"""Of the weight that goes to arms by their probability of being best: it never gives an arm up, and propensities stay above 0."""


def normal_cdf(z: Floats) -> Floats:
    """P(N(0, 1) < z), elementwise."""
    values: Floats = torch.special.ndtr(torch.from_numpy(z)).numpy()
    return values


def weights(
    mean: Floats,
    deviation: Floats,
    *,
    thompson_share: float = THOMPSON_SHARE,
    cdf: Callable[[Floats], Floats] = normal_cdf,
) -> Floats:
    """(K,) probabilities of the arms. mean, deviation: (K,) of their values; deviation > 0.

    >>> weights(np.array([1.0, 0.2]), np.array([0.05, 0.05]))
    array([1., 0.])
    """
    chosen, lowest = np.zeros(len(mean)), (mean - REACH * deviation).max()
    live = np.flatnonzero(mean + REACH * deviation >= lowest)
    if len(live) == 1:
        chosen[live] = 1.0
        return chosen
    best, regret, information = _of_the_best(mean[live], deviation[live], lowest, cdf)
    first, second, share = _minimizer(regret, information)
    chosen[live[first]] += (1.0 - thompson_share) * (1.0 - share)
    chosen[live[second]] += (1.0 - thompson_share) * share
    chosen[live] += thompson_share * best
    return chosen


def _of_the_best(
    mean: Floats, deviation: Floats, lowest: float, cdf: Callable[[Floats], Floats]
) -> tuple[Floats, Floats, Floats]:
    """(K,) each of P(a is best), regret_a and information_a, by a sum over a grid of values of the maximum."""
    x, step = np.linspace(lowest, (mean + REACH * deviation).max(), GRID, retstep=True)
    deviation = np.maximum(deviation, step)  # a peak narrower than the grid would fall between two points
    z = (x - mean[:, None]) / deviation[:, None]
    density = np.exp(-0.5 * z * z) / (deviation[:, None] * np.sqrt(2.0 * np.pi))
    below = np.maximum(cdf(z), 1e-300)
    hazard = density / below
    mass = hazard * (below.prod(0) * step)  # (K, GRID) the maximum is x, and it is arm a
    best = np.maximum(mass.sum(1), 1e-12)
    # E[f_b | a is best] for b != a is the mean of f_b below the maximum: m_b - s_b^2 pdf / cdf
    conditional = mass @ (mean[:, None] - deviation[:, None] ** 2 * hazard).T / best[:, None]
    own = mass @ x / best
    np.fill_diagonal(conditional, own)
    best /= best.sum()
    largest = float(deviation.max())
    regret = np.maximum(best @ own - mean, 1e-9 * largest)
    information = np.maximum(best @ (conditional - mean) ** 2, 1e-18 * largest**2)
    return best, regret, information


def _minimizer(regret: Floats, information: Floats) -> tuple[int, int, float]:
    """The two arms, and the weight of the second, of smallest squared regret per information.

    For one pair, (A + qB)^2 / (C + qE) is a square over a line: its only inner extremum is q = A/B - 2C/E, else an end is best.
    """
    first, second = np.triu_indices(len(regret), 1)
    a, b = regret[first], regret[second] - regret[first]
    c, e = information[first], information[second] - information[first]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.clip(np.nan_to_num(a / b - 2.0 * c / e, nan=0.0), 0.0, 1.0)
    shares = np.stack([np.zeros(len(first)), inner, np.ones(len(first))])
    ratios = (a + shares * b) ** 2 / (c + shares * e)
    row, pair = np.unravel_index(np.argmin(ratios), ratios.shape)
    return int(first[pair]), int(second[pair]), float(shares[row, pair])
