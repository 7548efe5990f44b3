from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from bandits.functional import information_directed
from bandits.functional.information_directed import THOMPSON_SHARE, normal_cdf, weights
from tests.bandits.evidence.runs import rational_cdf

Floats = NDArray[np.float64]


def of_the_best(mean: Floats, deviation: Floats) -> tuple[Floats, Floats, Floats]:
    """P(best), regret and information by their definitions: nested integrals over a fine grid, arm by arm."""
    arms = len(mean)
    x = np.linspace((mean - 9 * deviation).min(), (mean + 9 * deviation).max(), 20_001)
    z = (x - mean[:, None]) / deviation[:, None]
    density = np.exp(-0.5 * z * z) / (deviation[:, None] * math.sqrt(2 * math.pi))
    below = 0.5 * np.array([[math.erfc(-v / math.sqrt(2)) for v in row] for row in z])
    partial = (
        np.concatenate([np.zeros((arms, 1)), np.cumsum((x * density)[:, 1:] + (x * density)[:, :-1], 1)], 1) * (x[1] - x[0]) / 2
    )
    best, conditional = np.empty(arms), np.empty((arms, arms))  # E[f_b | a is best]
    for a in range(arms):
        others = [b for b in range(arms) if b != a]
        is_best = density[a] * below[others].prod(0)
        best[a] = np.trapezoid(is_best, x)
        conditional[a, a] = np.trapezoid(x * is_best, x) / best[a]
        for b in others:
            rest = [c for c in others if c != b]
            conditional[a, b] = np.trapezoid(density[a] * below[rest].prod(0) * partial[b], x) / best[a]
    regret = best @ conditional.diagonal() - mean
    return best, regret, best @ (conditional - mean) ** 2


def brute_force(regret: Floats, information: Floats) -> Floats:
    """Weights over two arms of the smallest squared regret per information, by a search that is refined around the best."""
    found: tuple[float, Floats] = (math.inf, np.empty(0))
    for a, b in itertools.combinations(range(len(regret)), 2):
        low, high = 0.0, 1.0
        for _ in range(8):
            share = np.linspace(low, high, 201)
            ratio = (regret[a] + share * (regret[b] - regret[a])) ** 2 / (
                information[a] + share * (information[b] - information[a])
            )
            at = int(ratio.argmin())
            low, high = share[max(at - 1, 0)], share[min(at + 1, 200)]
        if ratio[at] < found[0]:
            chosen = np.zeros(len(regret))
            chosen[a], chosen[b] = 1 - share[at], share[at]
            found = float(ratio[at]), chosen
    return found[1]


CASES = [(g.normal(0.5, 0.15, arms), g.uniform(0.02, 0.2, arms)) for arms in (2, 3, 5, 9) for g in map(default_rng, range(5))]


@pytest.mark.parametrize(("mean", "deviation"), CASES)
def test_weights_equal_a_search_over_all_pairs(mean: Floats, deviation: Floats) -> None:
    lowest = (mean - information_directed.REACH * deviation).max()
    live = mean + information_directed.REACH * deviation >= lowest
    highest = (mean + information_directed.REACH * deviation).max()
    best, regret, information = information_directed._of_the_best(mean[live], deviation[live], lowest, highest, normal_cdf)
    expected = np.zeros(len(mean))
    expected[live] = (1 - THOMPSON_SHARE) * brute_force(regret, information) + THOMPSON_SHARE * best
    assert_allclose(weights(mean, deviation), expected, atol=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [case for case in CASES if len(case[0]) <= 3])
def test_regret_and_information_are_those_of_the_definition(mean: Floats, deviation: Floats) -> None:
    lowest = (mean - information_directed.REACH * deviation).max()
    if not (mean + information_directed.REACH * deviation >= lowest).all():
        pytest.skip("an arm is out of reach")
    highest = (mean + information_directed.REACH * deviation).max()
    found = information_directed._of_the_best(mean, deviation, lowest, highest, normal_cdf)
    for one, exact in zip(found, of_the_best(mean, deviation), strict=True):
        assert_allclose(one, exact, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        ([0.63, 0.5], [0.01, 0.07], [0.9911152262676048, 0.008884773732395108]),
        ([0.5, 0.45, 0.3], [0.02, 0.1, 0.15], [0.5000456876582108, 0.49214789200290776, 0.007806420338881491]),
        ([1.0, 0.2], [0.05, 0.05], [1.0, 0.0]),
    ],
)
def test_digits_of_the_reference(mean: list[float], deviation: list[float], expected: list[float]) -> None:
    assert_allclose(weights(np.array(mean), np.array(deviation), cdf=rational_cdf), expected, rtol=0, atol=1e-9)


def test_digits_of_the_reference_at_a_tie() -> None:
    found = weights(np.zeros(3), np.ones(3), cdf=rational_cdf)
    assert_allclose(sorted(found), [1 / 30, 1 / 30, 14 / 15], atol=1e-9)


def test_normal_cdf() -> None:
    z = np.linspace(-9, 9, 101)
    exact = [0.5 * math.erfc(-one / math.sqrt(2)) for one in z]
    assert_allclose(normal_cdf(z), exact, rtol=1e-12)
    assert_allclose(rational_cdf(z), exact, rtol=1.3e-7)


@settings(max_examples=100, deadline=None)
@given(
    arms=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    spread=st.floats(-12, 12),
    scale=st.floats(-12, 12),
)
def test_weights_are_a_distribution_whatever_the_magnitudes(arms: int, seed: int, spread: float, scale: float) -> None:
    g = default_rng(seed)
    mean, deviation = 10.0**spread * g.standard_normal(arms), 10.0**scale * np.exp(2 * g.standard_normal(arms))
    found = weights(mean, deviation)
    assert np.isfinite(found).all()
    assert (found >= 0.0).all()
    assert abs(found.sum() - 1.0) < 1e-12


def test_weights_do_not_depend_on_units() -> None:
    mean, deviation = CASES[7]
    assert_allclose(weights(100 * mean - 1000, 100 * deviation), weights(mean, deviation), atol=1e-9)


def test_an_arm_that_may_be_best_has_a_weight() -> None:
    found = weights(np.array([0.5, 0.4, 0.1]), np.array([0.05, 0.05, 0.05]))
    assert (found[:2] > 0).all()
    assert found[2] < 1e-6


def test_values_next_to_nothing_are_weighed_like_others() -> None:
    mean, deviation = np.array([0.2, 0.5, 0.4]), np.array([0.3, 0.1, 0.2])
    expected = weights(mean, deviation)
    for unit in (1e-90, 1e-160, 1e-300):
        assert_allclose(weights(unit * mean, unit * deviation), expected, rtol=1e-9)
