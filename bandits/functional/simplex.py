"""Convex minimization over the probability simplex: exact for quadratics, with a certificate for everything else.

    minimize_quadratic     a'Qa + c'a            primal active set, exact up to rounding; a handful of arms, microseconds
    quasi_newton           any smooth convex f   projected steps in a learned metric, with backtracking
    exponentiated_gradient any smooth convex f   multiplicative steps with backtracking

Every `Solution` carries its Frank-Wolfe gap g.a - min g, an upper bound of f(a) - min f for convex f: the certificate.
Vectors and matrices are small here (m arms, 3 to 50), so this file speaks NumPy: torch costs ten times as much per operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bandits.errors import NotPositiveDefinite

Vector = NDArray[np.float64]
"""(m,) or (m, m), float64."""

Loss = Callable[[Vector], tuple[float, Vector]]
"""Weights (m,) -> value and gradient (m,)."""

SINGULAR = 1e-10
"""A quadratic with an eigenvalue below this share of its mean eigenvalue counts as singular."""

RIDGE = 1e-9
"""What a singular quadratic gets on its diagonal, as a share of its mean eigenvalue: duplicates share their weight evenly."""


@dataclass(frozen=True)
class Solution:
    """A point of the simplex with its certificate.

    weights: (m,) >= 0, sum 1.  value: f there.  gap: Frank-Wolfe gap, >= f - min f.  steps: iterations taken.

    curvature: (m, m) what a quasi-Newton solver learned on the way, worth handing to the next problem if it is much the same.
    """

    weights: Vector
    value: float
    gap: float
    steps: int
    curvature: Vector | None = field(default=None, repr=False)


def frank_wolfe_gap(weights: Vector, gradient: Vector) -> float:
    """g.a - min g, >= 0 up to rounding: how much a linear step could still gain.

    >>> frank_wolfe_gap(np.array([0.5, 0.5]), np.array([1.0, 3.0]))
    1.0
    """
    return float(weights @ (gradient - gradient.min()))


def project(point: Vector) -> Vector:
    """The nearest point of the simplex (Held, Wolfe & Crowder 1974): subtract one threshold, cut at 0.

    >>> project(np.array([0.9, 0.5, -3.0])).round(12).tolist()
    [0.7, 0.3, 0.0]
    """
    falling = np.sort(point)[::-1]
    thresholds = (np.cumsum(falling) - 1.0) / np.arange(1, len(point) + 1)
    return tidy(point - thresholds[np.flatnonzero(falling > thresholds)[-1]])


def tidy(weights: Vector) -> Vector:
    """Cut at 0 and divide by the sum: solvers leave 1e-17 where a draw wants 0."""
    cut: Vector = np.maximum(weights, 0.0)
    cut /= cut.sum()
    return cut


def nearest_psd(matrix: Vector) -> Vector:
    """The nearest positive semi-definite matrix in Frobenius norm: negative eigenvalues cut at 0 (Higham 1988)."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    clipped: Vector = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return (clipped + clipped.T) / 2.0


# -- quadratics ------------------------------------------------------------------------------------------------------------


def minimize_quadratic(quadratic: Vector, linear: Vector, *, start: Vector | None = None) -> Solution:
    """The minimizer of a'Qa + c'a over the simplex by a primal active set (Lawson & Hanson 1974, ch. 23, with one equality).

    The result depends on the support that is found, not on the way there: the last step solves the KKT system of that support
    from scratch. So a warm start (a feasible point) saves time and changes no digit, unless the problem is degenerate.

    A singular Q has many minimizers (duplicate arms); a tiny ridge picks the one that shares the weight among duplicates.
    Value and gap are those of the problem without the ridge. Raises `NotPositiveDefinite` for an indefinite Q: see `nearest_psd`.
    """
    q, c = _regular((quadratic + quadratic.T) / 2.0, linear)
    scale = float(np.abs(q).max() + np.abs(c).max())
    if start is None:
        weights = np.zeros(len(c))
        weights[np.argmin(np.diagonal(q) + c)] = 1.0
    else:
        weights = _shrink(tidy(start), q, c)
    steps = 0
    while steps < 20 * len(c) + 20:
        steps += 1
        gradient = 2.0 * (q @ weights) + c
        entering = int(np.argmin(gradient))
        if gradient[entering] >= weights @ gradient - 1e-14 * scale or weights[entering] > 0.0:
            break
        widened = weights > 0.0
        widened[entering] = True
        moved = _shrink(weights, q, c, support=widened)
        if moved[entering] <= 0.0:  # only rounding is left to gain
            break
        weights = moved
    weights = tidy(weights)
    pull = quadratic @ weights
    gradient = 2.0 * pull + linear
    value = float(weights @ pull + linear @ weights)
    return Solution(weights, value, frank_wolfe_gap(weights, gradient), steps)


def _regular(q: Vector, linear: Vector) -> tuple[Vector, Vector]:
    """The quadratic with a ridge where it is singular, and the linear term without its mean (which moves no minimizer)."""
    c = linear - linear.mean()
    mean = float(np.trace(q)) / len(c)
    if mean > 0.0 and _exceeds(q, SINGULAR * mean):  # the rule, and seen in a third of the time of eigenvalues
        return q, c
    values = np.linalg.eigvalsh(q)
    if values[0] < -1e-8 * max(values[-1], 0.0) or mean < 0.0:
        raise NotPositiveDefinite(what="the quadratic of a mixture")
    if values[0] <= SINGULAR * mean:
        q = q + RIDGE * (mean or float(np.abs(c).max()) or 1.0) * np.eye(len(c))
    return q, c


def _exceeds(q: Vector, floor: float) -> bool:
    """Whether every eigenvalue is above the floor: the rest has a Cholesky factor."""
    rest = q.copy()
    rest.flat[:: len(q) + 1] -= floor
    try:
        np.linalg.cholesky(rest)
    except np.linalg.LinAlgError:
        return False
    return True


def _shrink(weights: Vector, q: Vector, c: Vector, *, support: NDArray[np.bool_] | None = None) -> Vector:
    """The minimizer over a support, dropping arms that would turn negative: go as far as allowed, drop, solve again."""
    active = weights > 0.0 if support is None else support.copy()
    while True:
        target = np.zeros_like(weights)
        target[active] = _stationary(q[active][:, active], c[active])
        blocked = active & (target <= 0.0)
        if not blocked.any():
            return target
        if (blocked == active).all():  # impossible but for rounding, as targets sum to 1
            return weights
        reach = weights[blocked] / np.maximum(weights[blocked] - target[blocked], np.finfo(float).tiny)
        weights = weights + min(float(reach.min()), 1.0) * (target - weights)
        leaving = np.flatnonzero(blocked)[reach <= reach.min()]
        weights[leaving] = 0.0
        weights = np.maximum(weights, 0.0)
        active[leaving] = False


def _stationary(q: Vector, c: Vector) -> Vector:
    """The minimizer of a'Qa + c'a on the plane sum a = 1: a bordered system, refined once."""
    m, largest = len(c), float(np.abs(q).max())
    scale = largest if largest > 1e12 else 1.0  # beside entries of 1e36 a border of ones is lost
    border = np.full((m + 1, m + 1), scale)
    border[:m, :m] = 2.0 * q
    border[m, m] = 0.0
    right = np.full(m + 1, scale)
    right[:m] = -c
    try:
        point = np.linalg.solve(border, right)
        point += np.linalg.solve(border, right - border @ point)
    except np.linalg.LinAlgError:  # arms that are alike to rounding share evenly
        point = np.linalg.lstsq(border, right, rcond=None)[0]
    return np.asarray(point[:m], dtype=np.float64)


# -- smooth convex losses --------------------------------------------------------------------------------------------------


def minimize(
    loss: Loss, start: Vector, *, tolerance: float, steps: int, leaps: int = 0, curvature: Vector | None = None
) -> Solution:
    """The minimizer of a smooth convex loss: `leaps` exponentiated steps, then quasi-Newton ones.

    For the entropy of a mixture two leaps are right: they answer at once where the arms share nothing, and never ascend.
    Measured to a gap of 1e-6: 2 evaluations on disjoint arms, where quasi-Newton alone takes 25; 9 to 14 on overlapping ones,
    where exponentiated steps alone take 70 to 180.

    The start is pulled inside to 1e-3 / m: on the border an arm left out can have a slope of minus infinity, or never come back.
    Start and `curvature` of a solution to much the same problem save most of the work: 5 evaluations instead of 20 when one of 60
    samples behind an FID is new.
    Stops at a gap of at most tolerance * max(1, |value|), or after `steps` evaluations of the loss.
    """
    start = tidy(np.maximum(tidy(start), 1e-3 / len(start)))
    used = 0
    if leaps:
        found = exponentiated_gradient(loss, start, tolerance=tolerance, steps=min(leaps + 1, steps))
        start, used = found.weights, found.steps
        if used <= leaps or used >= steps:
            return found
    found = quasi_newton(loss, start, tolerance=tolerance, steps=steps - used, curvature=curvature)
    return replace(found, steps=found.steps + used)


def quasi_newton(loss: Loss, start: Vector, *, tolerance: float, steps: int, curvature: Vector | None = None) -> Solution:
    """Projected quasi-Newton: go towards the minimizer over the simplex of g.(x - a) + (x - a)'H(x - a) / 2, with backtracking.

    H is a damped BFGS estimate (Nocedal & Wright 2006, procedure 18.2) of the curvature along the simplex. Plain projected
    gradients reach the same point later: on Frechet mixtures of 5 to 10 arms in 20 to 330 evaluations of the loss, not 10 to 40.
    Stops at a gap of at most tolerance * max(1, |value|), after `steps` evaluations, or where rounding hides any further descent.
    """
    weights = tidy(start)
    value, gradient = loss(weights)
    used, guessed = 1, curvature is None or curvature.shape != (len(weights),) * 2
    if guessed or curvature is None:
        curvature = np.eye(len(weights)) * max(float(np.ptp(gradient)), 1e-12)
    while frank_wolfe_gap(weights, gradient) > tolerance * max(1.0, abs(value)) and used < steps:
        aim = minimize_quadratic(curvature / 2.0, gradient - curvature @ weights, start=weights).weights
        direction = aim - weights
        slope = float(gradient @ direction)
        if slope >= 0.0:
            break
        # an arm is not dropped in one stride: at exactly 0 the slope can be infinite, and the curvature learned there useless
        share, best = 0.99 if (aim[weights > 0.0] == 0.0).any() else 1.0, value
        while used < steps:
            trial = tidy(weights + share * direction)
            best, slopes = loss(trial)
            used += 1
            if best <= value + 1e-4 * share * slope:  # Armijo
                break
            share *= min(max(-0.5 * share * slope / (best - value - share * slope), 0.1), 0.5)  # the parabola's minimum
        if not best < value:
            break
        # The unit of a guessed H is arbitrary: the first step sets its scale (secant along the step) before BFGS bends it, else
        # the quadratic model would be off by orders of magnitude in every direction that no step has taken yet.
        moved, change = trial - weights, slopes - gradient
        if guessed:  # learn the scale from the first step
            guessed, curvature = False, np.eye(len(weights)) * max(float(moved @ change) / float(moved @ moved), 1e-12)
        bent = _bent(curvature, moved, change)
        if bent is None:  # begin again, with a guess
            guessed, bent = True, np.eye(len(weights)) * max(float(np.ptp(slopes)), 1e-12)
        curvature = nearest_psd(bent)  # at gradients of 1e18 rounding alone can turn it indefinite
        weights, value, gradient = trial, best, slopes
    return Solution(weights, value, frank_wolfe_gap(weights, gradient), used, curvature)


def _bent(curvature: Vector, moved: Vector, change: Vector) -> Vector | None:
    """Damped BFGS: the curvature that explains how the gradient changed along a step, positive definite as before. None where
    rounding left no curvature along the step, as it can at gradients of 1e33.
    """
    change = change - change.mean()  # what all arms share says nothing about the simplex, and would ruin the conditioning
    known = curvature @ moved
    plain, bend = float(moved @ known), float(moved @ change)
    if plain > 0.0 and bend < 0.2 * plain:
        keep = 0.8 * plain / (plain - bend)
        change = keep * change + (1.0 - keep) * known
        bend = float(moved @ change)
    if not (plain > 0.0 and bend > 0.0):
        return None
    return curvature - np.outer(known, known) / plain + np.outer(change, change) / bend


def exponentiated_gradient(loss: Loss, start: Vector, *, tolerance: float, steps: int, step: float = 1.0) -> Solution:
    """Mirror descent a <- a exp(-step g) / Z (Kivinen & Warmuth 1997), which never ascends.

    A step is halved until f stays below its upper model f(a) + g.(b - a) + KL(b, a) / step. Where f is 1-smooth relative to the
    negative entropy, as minus the entropy of a mixture is, step 1 always passes. Weights of 0 stay 0, so start inside.
    Stops at a gap of at most tolerance * max(1, |value|), or after `steps` evaluations of the loss.
    """
    weights = tidy(start)
    value, gradient = loss(weights)
    used = 1
    while frank_wolfe_gap(weights, gradient) > tolerance * max(1.0, abs(value)) and used < steps:
        trial = tidy(weights * np.exp(-step * (gradient - gradient[weights > 0.0].min())))
        new_value, new_gradient = loss(trial)
        used += 1
        inside = trial > 0.0
        distance = float(trial[inside] @ np.log(trial[inside] / weights[inside]))
        if new_value > value + float(gradient @ (trial - weights)) + distance / step + 1e-12 * max(1.0, abs(value)):
            step *= 0.5
        else:
            weights, value, gradient = trial, new_value, new_gradient
    return Solution(weights, value, frank_wolfe_gap(weights, gradient), used)
