"""Ridge logistic regression: the exact fit, the cheap step after one more observation, and what to keep of forgotten ones.

    F(theta) = sum_i [log(1 + exp(z_i)) - y_i z_i] + theta' precision theta / 2 - moment' theta          z_i = x_i' theta

           minimize                        step                            settle
    x, y ----------> theta, H^-1 --(one x, y)--> nearly theta, nearly H^-1 --(all x, y)--> theta, as minimize gives it
         O(n p^2 + p^3), a few times      online Newton, O(p^2)       O(n p + p^2), about five times

    oldest x, y --expand--> their second-order Taylor polynomial at theta: two sums that go into `precision` and `moment`

`precision` is ridge I plus the Hessians of forgotten observations, `moment` their linear part; without any, F is the usual
ridge logistic loss. F is strictly convex, so every road ends at the same theta. x is (n, p), y is (n,) of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bandits.functional import linalg

TOLERANCE = 1e-18
"""On the squared Newton decrement g'H^-1 g >= ridge |theta - minimizer|^2, before a last step: ten digits of theta at ridge 1."""


@dataclass(frozen=True)
class Quadratic:
    """The quadratic theta' precision theta / 2 - moment' theta. precision: (p, p).  moment: (p,)."""

    precision: Tensor
    moment: Tensor


@dataclass(frozen=True)
class Fit:
    """A fit of the model.

    theta: (p,).  inverse: (p, p) of the Hessian of F, at theta or close by.  settled: theta is the minimizer.
    """

    theta: Tensor
    inverse: Tensor
    settled: bool


def variance(z: Tensor) -> Tensor:
    """The variance p (1 - p) of a success, p = sigmoid(z), without the cancellation in 1 - p."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def loss(theta: Tensor, x: Tensor, y: Tensor, *, prior: Quadratic) -> float:
    """F(theta); `logaddexp` neither overflows nor loses digits, whatever the logits.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> loss(800 * one, one[None], one, prior=Quadratic(0 * one[None], 0 * one))
    0.0
    """
    z = x @ theta
    likelihood = torch.logaddexp(z, torch.zeros_like(z)) - y * z
    return float(likelihood.sum() + theta @ (prior.precision @ theta) / 2.0 - prior.moment @ theta)


def gradient(theta: Tensor, x: Tensor, y: Tensor, *, prior: Quadratic) -> Tensor:
    """(p,) of F at theta."""
    return (torch.sigmoid(x @ theta) - y) @ x + prior.precision @ theta - prior.moment


def minimize(x: Tensor, y: Tensor, *, prior: Quadratic) -> Fit:
    """The minimizer of F, from the prior's own: a fixed procedure, whose result may enter a statistic."""
    factor = linalg.cholesky_of_sums(prior.precision, what="precision of the logistic prior")
    start = torch.cholesky_solve(prior.moment[:, None], factor)[:, 0]
    return settle(Fit(start, _inverse(start, x, prior), False), x, y, prior=prior)


def step(fit: Fit, x: Tensor, y: float) -> Fit:
    """The fit after one more observation x (p,), y: one online Newton step, exact up to the curvature that it ignores."""
    z = x @ fit.theta
    inverse, _, _ = linalg.rank_one_inverse(fit.inverse, x * variance(z).sqrt(), sign=1.0)
    return Fit(fit.theta - (inverse @ x) * (torch.sigmoid(z) - y), inverse, False)


def settle(fit: Fit, x: Tensor, y: Tensor, *, prior: Quadratic) -> Fit:
    """The minimizer of F, from any fit: Newton steps with the inverse at hand, refactored when they converge slowly."""
    if fit.settled:
        return fit
    theta, inverse, last, fresh = fit.theta, fit.inverse, float("inf"), False
    for _ in range(200):  # a safeguard: 3 to 30 steps are usual
        slope = gradient(theta, x, y, prior=prior)
        direction = inverse @ slope
        decrement = float(slope @ direction)
        slow = not decrement <= 0.004 * last  # less than a factor 16 in theta per step, or not a number
        stuck = fresh and decrement < 1e-12 and not decrement <= 0.5 * last  # at the floor of rounding, wherever that is
        if decrement <= TOLERANCE or stuck:
            return Fit(theta - direction, inverse, True)
        if slow:
            inverse = _inverse(theta, x, prior)
            direction = inverse @ slope
            decrement = float(slope @ direction)
        if decrement > 1e-6:  # below, the quadratic model has more digits than a difference of two losses
            direction = _shortened(theta, direction, lambda t: loss(t, x, y, prior=prior), slope=decrement)
        theta, last, fresh = theta - direction, decrement, slow
    return Fit(theta, inverse, True)


def _inverse(theta: Tensor, x: Tensor, prior: Quadratic) -> Tensor:
    """(p, p) inverse Hessian of F at theta."""
    hessian = torch.addmm(prior.precision, x.T, variance(x @ theta)[:, None] * x)
    return torch.cholesky_inverse(linalg.cholesky_of_sums(hessian, what="logistic Hessian"))


def _shortened(theta: Tensor, direction: Tensor, f: Callable[[Tensor], float], *, slope: float) -> Tensor:
    """The longest of direction, direction / 2, direction / 4, ... that lowers f by a fair share (Armijo): full Newton steps can
    diverge on separable data with a small ridge.
    """
    here, size = f(theta), 1.0
    while size > 1e-12 and not f(theta - size * direction) <= here - 1e-4 * size * slope:
        size *= 0.5
    return size * direction


def expand(theta: Tensor, x: Tensor, y: Tensor) -> Quadratic:
    """The likelihood of these observations as its second-order Taylor polynomial at theta (constant dropped): sums over them."""
    z = x @ theta
    hessian = x.T @ (variance(z)[:, None] * x)
    return Quadratic(hessian, hessian @ theta - (torch.sigmoid(z) - y) @ x)
