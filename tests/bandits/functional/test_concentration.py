from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits import draw
from bandits.functional import concentration, moments
from bandits.functional.moments import MomentSums, Spread

ROWS_F = torch.tensor([[1.0, 0], [0, 2], [1, 1], [-1, 3], [2, -1], [0, 0], [1, 2], [3, 1]], dtype=torch.float64)


def golden_f(multiplier: float, *, diagonal: bool) -> concentration.FdRadius:
    sums = MomentSums.init(2).learn_rows(ROWS_F)
    root = moments.psd_root(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    gap = float(torch.linalg.vector_norm(sums.mean() - 0.5))
    kept = moments.adaptive_threshold(sums.covariance(), n=8, multiplier=multiplier, diagonal=diagonal)
    return concentration.fd_released(
        n=8, spread=moments.spread(kept), gap=gap, root_trace=moments.root_trace(root), delta=0.05, kappa=1.0
    )


def test_golden_f1_released_radius_term_by_term() -> None:
    radius = golden_f(0.0, diagonal=True)
    assert radius.mean == pytest.approx(1.2244629552453354, abs=1e-9)
    assert radius.covariance == pytest.approx(3.329566131360832, abs=1e-9)
    terms = (2.264598875796475, 4.335654777701596, 1.9997217411365595, 0.9342303170234675)
    assert radius.terms == pytest.approx(terms, abs=1e-9)
    assert radius.total == pytest.approx(9.5342057116581, abs=1e-9)


def test_golden_f2_released_radius_of_a_thresholded_covariance() -> None:
    radius = golden_f(1.5, diagonal=True)
    terms = (1.8105193509867383, 3.745162863547077, 1.9997217411365595, 0.6419426300472837)
    assert radius.terms == pytest.approx(terms, abs=1e-9)
    assert radius.total == pytest.approx(8.197346585717659, abs=1e-9)


def test_golden_f2_nothing_left_has_no_radius() -> None:
    assert math.isnan(golden_f(3.0, diagonal=True).total)


def test_golden_f3_naive_radius() -> None:
    root = moments.psd_root(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    gap = math.hypot(0.375, 0.5)
    radius = concentration.fd_naive(n=8, dim=2, gap=gap, root_trace=moments.root_trace(root), delta=0.05, kappa=1.0)
    terms = (1.1959878708899538, 2.881496004990583, 1.2238734153404083, 0.37446653419424886)
    assert radius.terms == pytest.approx(terms, abs=1e-9)
    assert radius.total == pytest.approx(5.675823825415194, abs=1e-9)


def test_the_mean_term_of_both_rules_at_d_128() -> None:
    """n Dmu^2 for S = I, L = 3: released 22.6, rigorous 173.2 (L is ln(1 / delta) in one and ln(3 / delta) in the other)."""
    spread = Spread(128.0, 128.0, 1.0)
    released = concentration.fd_released(n=50, spread=spread, gap=0.7, root_trace=2.0, delta=math.exp(-3), kappa=1.0)
    rigorous = concentration.fd_rigorous(n=50, spread=spread, gap=0.7, root_trace=2.0, delta=3 * math.exp(-3), kappa=1.0)
    assert 50 * released.mean**2 == pytest.approx(math.sqrt(128 * 3) + 3, rel=1e-12)
    assert 50 * rigorous.mean**2 == pytest.approx(128 + 2 * math.sqrt(128 * 3) + 6, rel=1e-12)
    assert 50 * rigorous.mean**2 == pytest.approx(173.2, abs=0.05)


def test_the_rigorous_radius_holds_for_gaussian_outputs_part_by_part() -> None:
    """With the true covariance in, not the plug-in: each event fails in at most delta / 3 of the runs, all of them in delta."""
    rng = np.random.default_rng(5)
    d, n, delta, runs = 4, 25, 0.3, 200
    scale = np.diag([2.0, 1.0, 0.7, 0.2])
    truth = torch.from_numpy(scale @ scale)
    mean, reference_mean = torch.full((d,), 0.4, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    reference = torch.from_numpy(np.diag([1.0, 0.5, 2.0, 0.3]))
    root = moments.psd_root(reference)
    true_distance = moments.frechet(mean, truth, reference_mean, reference)
    missed = np.zeros(4)
    for _ in range(runs):
        sums = MomentSums.init(d).learn_rows(torch.from_numpy(rng.standard_normal((n, d)) @ scale) + mean)
        estimate = moments.frechet(sums.mean(), sums.covariance(), reference_mean, reference)
        radius = concentration.fd_rigorous(
            n=n,
            spread=moments.spread(truth),
            gap=float(torch.linalg.vector_norm(sums.mean() - reference_mean)),
            root_trace=moments.root_trace(root),
            delta=delta,
            kappa=1.0,
        )
        away = float(torch.linalg.matrix_norm(sums.covariance() - truth, ord=2))
        trace_error = abs(float(sums.covariance().trace() - truth.trace()))
        missed += [
            float(torch.linalg.vector_norm(sums.mean() - mean)) > radius.mean,
            away > radius.covariance,
            trace_error > radius.terms[2] + radius.terms[3],
            true_distance < estimate - radius.total,
        ]
    assert (missed[:3] / runs <= delta / 3).all()
    assert missed[3] / runs <= delta
    assert missed[0] > 0  # the mean's event is sharp enough to fail now and then


@pytest.mark.parametrize("rule", [concentration.fd_released, concentration.fd_rigorous])
def test_a_radius_has_the_unit_of_the_squared_outputs(rule: object) -> None:
    assert callable(rule)
    spread = Spread(5.5, 13.25, 3.0)
    c = 12.5
    scaled = Spread(spread.trace * c**2, spread.square * c**4, spread.top * c**2)
    one = rule(n=40, spread=spread, gap=0.7, root_trace=2.5, delta=0.1, kappa=1.3)
    other = rule(n=40, spread=scaled, gap=0.7 * c, root_trace=2.5 * c, delta=0.1, kappa=1.3)
    assert other.total == pytest.approx(one.total * c**2, rel=1e-12)


@pytest.mark.parametrize("rule", [concentration.fd_released, concentration.fd_rigorous])
def test_a_radius_shrinks_with_samples_and_grows_with_confidence_and_kappa(rule: object) -> None:
    assert callable(rule)

    def total(n: int, delta: float, kappa: float) -> float:
        radius = rule(n=n, spread=Spread(5.5, 13.25, 3.0), gap=0.7, root_trace=2.5, delta=delta, kappa=kappa)
        return float(radius.total)

    assert total(80, 0.1, 1.3) < total(40, 0.1, 1.3) < total(40, 0.01, 1.3)
    assert total(40, 0.1, 1.3) < total(40, 0.1, 2.0)
    quarter = total(16 * 10**8, 0.1, 1.3) / total(10**8, 0.1, 1.3)
    assert quarter == pytest.approx(0.5, abs=0.01)  # n^-1/4: the cross term rules


@pytest.mark.parametrize("rule", [concentration.fd_released, concentration.fd_rigorous])
def test_no_spread_has_no_radius(rule: object) -> None:
    assert callable(rule)
    assert math.isnan(rule(n=9, spread=Spread(0.0, 0.0, 0.0), gap=0.7, root_trace=2.5, delta=0.1, kappa=1.0).total)


@given(st.floats(1e-4, 0.9))
def test_enough_identical_samples_exclude_a_share_of_delta(delta: float) -> None:
    n = concentration.identical_samples(delta)
    assert (1.0 - delta) ** n <= delta  # had others come with probability delta, n identical ones would have been this rare
    assert n >= 2


def test_golden_g2_bernstein_radii() -> None:
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    variance = rows.var(0, correction=0)
    radius = concentration.empirical_bernstein(variance, n=4, log_term=math.log(4 / 0.05), span=1.0)
    assert radius.tolist() == pytest.approx([3.7856232046900384, 3.7764398269994905, 3.7287171948463858], abs=1e-9)


def test_bernstein_holds_for_bounded_numbers() -> None:
    rng = np.random.default_rng(2)
    samples = torch.from_numpy(rng.beta(0.4, 1.7, size=(60, 3000)) * 2.5)
    radius = concentration.empirical_bernstein(samples.var(0, correction=0), n=60, log_term=math.log(2 / 0.1), span=2.5)
    missed = (2.5 * 0.4 / 2.1 - samples.mean(0)) > radius
    assert float(missed.double().mean()) <= 0.1


def test_one_number_has_an_infinite_radius() -> None:
    assert concentration.empirical_bernstein(torch.zeros(2), n=1, log_term=3.0, span=1.0).tolist() == [math.inf, math.inf]


# -- the choice ------------------------------------------------------------------------------------------------------------


def chosen(scores: list[float], rows: int = 1, **given: object) -> list[int]:
    arms = len(scores)
    allowed = given.get("allowed", [[True] * arms] * rows)
    pending = given.get("pending", [[0] * arms] * rows)
    assert isinstance(allowed, list)
    assert isinstance(pending, list)
    pulls, first = given.get("pulls", [3] * arms), given.get("first", [-1] * rows)
    assert isinstance(pulls, list)
    assert isinstance(first, list)
    picked: Tensor = draw.spread_best(
        torch.tensor(scores, dtype=torch.float64), allowed=torch.tensor(allowed), pending=pending, pulls=pulls, first=first
    )
    return [int(k) for k in picked]


def test_the_highest_score_wins_whatever_is_pending() -> None:
    assert chosen([0.2, 0.7, 0.1], rows=3, pending=[[0, 9, 0]] * 3) == [1, 1, 1]


def test_a_tie_goes_to_the_lowest_index_and_spreads_over_the_rows() -> None:
    assert chosen([0.7, 0.2, 0.7], pulls=[9, 0, 1]) == [0]
    assert chosen([0.7, 0.2, 0.7], rows=4) == [0, 2, 0, 2]
    assert chosen([0.7, 0.2, 0.7], rows=2, pending=[[2, 0, 0]] * 2) == [2, 2]


def test_arms_that_must_be_tried_come_first_and_the_least_pulled_of_them_before_all() -> None:
    inf = math.inf
    assert chosen([inf, 5.0, inf], pulls=[4, 0, 1]) == [2]
    assert chosen([inf, 5.0, inf], rows=5, pulls=[2, 0, 0]) == [2, 2, 0, 2, 0]
    assert chosen([inf, inf], rows=4, pulls=[0, 0], first=[0, 1, -1, -1])[2:] == [0, 1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0, math.inf]), min_size=1, max_size=5), st.integers(0, 2**32))
def test_only_an_allowed_arm_of_highest_score_is_chosen(scores: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arms = len(scores)
    allowed = rng.random((4, arms)) < 0.6
    allowed[range(4), rng.integers(0, arms, 4)] = True
    picked = chosen(scores, rows=4, allowed=allowed.tolist(), pending=rng.integers(0, 3, (4, arms)).tolist())
    for row, arm in enumerate(picked):
        assert allowed[row, arm]
        assert scores[arm] == max(s for s, ok in zip(scores, allowed[row], strict=True) if ok)
