"""Confidence radii, and the arm of highest score.

    fd_released, fd_rigorous, fd_naive    how far an empirical Frechet distance may be above the true one
    empirical_bernstein                   how far the mean of bounded numbers may be from its expectation
    identical_samples                     how many samples without any spread it takes to believe that there is none

Letters: n samples, d length of one, S their covariance, s its largest eigenvalue, r = Tr S / s, R the root of the reference's
covariance, L = ln(1 / delta).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bandits.functional.moments import Spread


class FdRadius(NamedTuple):
    """A radius for the squared Frechet distance, in its unit.

    mean: Dmu, of |muhat - mu|.  covariance: Dcov, of |Shat - S| in spectral norm.  terms: what the mean, the cross-covariance,
    the trace and its remainder add.
    """

    mean: float
    covariance: float
    terms: tuple[float, float, float, float]

    @property
    def total(self) -> float:
        """The radius; NaN where there is no spread to measure it by."""
        return math.fsum(self.terms)


def fd_released(*, n: int, spread: Spread, gap: float, root_trace: float, delta: float, kappa: float) -> FdRadius:
    """FD-UCB as its authors released it (AISTATS 2025 code; the theorem's text was not at hand). gap: |muhat - mu_r|.
    root_trace: Tr R.

    Optimistic in practice, not a bound: Dmu lacks Tr S and two factors 2, the mean term lacks one (see `fd_rigorous`). The
    cross term falls as n^-1/4 and rules all others, so the radius dwarfs the gaps between arms for long.
    """
    trace, square, s = spread
    if s <= 0.0:
        return _nowhere()
    L = math.log(1.0 / delta)
    mean = math.sqrt((math.sqrt(square * L) + s * L) / n)
    covariance = kappa**2 * s * math.sqrt((trace / s + L) / n) + mean**2
    terms = mean * (mean + gap), root_trace * math.sqrt(covariance), trace * math.sqrt(L / n), s * L / n
    return FdRadius(mean, covariance, terms)


def fd_rigorous(*, n: int, spread: Spread, gap: float, root_trace: float, delta: float, kappa: float) -> FdRadius:
    """A lower bound on FD that holds with probability 1 - delta for Gaussian outputs, up to S standing in for the true
    covariance.

    Three one-sided events, each with L = ln(3 / delta):
    mean        n Dmu^2 = Tr S + 2 sqrt(Tr(S^2) L) + 2 s L (Laurent & Massart 2000, lemma 1; Hsu, Kakade & Zhang 2012, prop. 1),
                and | |muhat - mu_r|^2 - |mu - mu_r|^2 | <= Dmu (Dmu + 2 gap);
    covariance  |Shat - S| <= s (2 u + u^2), u = sqrt(r / (n - 1)) + sqrt(2 L / (n - 1)) (Gordon's comparison gives
                | |G v| - sqrt(n - 1) |v| | <= sqrt(Tr S) + sqrt(2 L s) over the ellipsoid; Koltchinskii & Lounici 2017 for the
                shape), and Tr (R S R)^1/2 moves by at most Tr R sqrt(|Shat - S|), as the trace of a root is monotone and
                subadditive; FD has it twice;
    trace       2 sqrt(Tr(S^2) L / (n - 1)) + 2 s L / (n - 1) (Laurent & Massart 2000, lemma 1).
    kappa scales the covariance event for outputs with heavier tails; a Gaussian has 1.
    """
    trace, square, s = spread
    if s <= 0.0:
        return _nowhere()
    L = math.log(3.0 / delta)
    mean = math.sqrt((trace + 2.0 * math.sqrt(square * L) + 2.0 * s * L) / n)
    u = math.sqrt(trace / s / (n - 1)) + math.sqrt(2.0 * L / (n - 1))
    covariance = kappa**2 * s * (2.0 * u + u**2)
    terms = (
        mean * (mean + 2.0 * gap),
        2.0 * root_trace * math.sqrt(covariance),
        2.0 * math.sqrt(square * L / (n - 1)),
        2.0 * s * L / (n - 1),
    )
    return FdRadius(mean, covariance, terms)


def fd_naive(*, n: int, dim: int, gap: float, root_trace: float, delta: float, kappa: float) -> FdRadius:
    """The release's yardstick `fd-naive-ucb`: its own radius with s = 1 and S = I, whatever the outputs are; for outputs of unit
    variance.

    Departure: the release ignores kappa here.
    """
    spread = Spread(trace=float(dim), square=float(dim), top=1.0)
    return fd_released(n=n, spread=spread, gap=gap, root_trace=root_trace, delta=delta, kappa=kappa)


def _nowhere() -> FdRadius:
    """No spread: r = Tr S / s is 0 / 0, as in the release."""
    nan = math.nan
    return FdRadius(nan, nan, (nan, nan, nan, nan))


def identical_samples(delta: float) -> int:
    """How many identical samples make it certain, at level delta, that another one comes with probability at most delta.

    n samples of which none differs have probability (1 - p)^n <= exp(-n p) <= delta once p >= L / n; L / n <= delta from n = L /
    delta on.

    >>> identical_samples(0.05)
    60
    """
    return max(math.ceil(math.log(1.0 / delta) / delta), 2)


def empirical_bernstein(variance: Tensor, *, n: int, log_term: float, span: float) -> Tensor:
    """Radius of the mean of n numbers from an interval of length `span`, elementwise (Maurer & Pontil 2009, theorem 4).

    sqrt(2 V L / n) + 7 span L / (3 (n - 1)), with `log_term` L = ln(2 / delta) for one side. V divides by n, as IS-UCB's release;
    the theorem divides by n - 1. Infinite for n < 2.
    """
    if n < 2:
        return torch.full_like(variance, torch.inf)
    return (2.0 * log_term / n * variance).sqrt() + 7.0 * span * log_term / (3.0 * (n - 1))
