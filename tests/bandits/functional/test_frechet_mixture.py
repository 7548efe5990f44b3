from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits.functional import frechet_mixture, moments, simplex
from bandits.functional.frechet_mixture import FrechetMixture
from bandits.functional.moments import MomentSums

EYE3 = np.eye(3).tolist()
B3_MEANS = [(2, 0, 0), (-1, 1, 0), (0, -2, 1), (3, 3, 3)]
B3_COVARIANCES = [EYE3, np.diag([2, 1, 0.5]).tolist(), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]], EYE3]
B3_REFERENCE = ((0.2, -0.1, 0.3), [[2, 0.3, 0], [0.3, 2, 0], [0, 0, 1.5]])
UNIFORM4 = np.ones(4) / 4


def tensor(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def mixture(means: Sequence[Any], covariances: Sequence[Any], reference: tuple[Any, Any]) -> FrechetMixture:
    target = frechet_mixture.target(tensor(reference[0]), tensor(reference[1]))
    parts = (frechet_mixture.component(tensor(m), tensor(c), target) for m, c in zip(means, covariances, strict=True))
    return FrechetMixture(tuple(parts), target.trace)


def best(loss: FrechetMixture, tolerance: float = 1e-10) -> simplex.Solution:
    m = len(loss.components)
    return simplex.minimize(loss.at, np.ones(m) / m, tolerance=tolerance, steps=200)


def b3() -> FrechetMixture:
    return mixture(B3_MEANS, B3_COVARIANCES, B3_REFERENCE)


def random_mixture(seed: int, *, d: int, arms: int, rows: int) -> FrechetMixture:
    """Arms of which `rows` samples were seen."""
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((3 * d, d))
    target = frechet_mixture.target(tensor(reference.mean(0)), tensor(np.cov(reference.T)))
    sums = [
        MomentSums.init(d).learn_rows(tensor(rng.standard_normal(d) + rng.uniform(0.2, 2) * rng.standard_normal((rows, d))))
        for _ in range(arms)
    ]
    return FrechetMixture(tuple(frechet_mixture.component_of(one, target) for one in sums), target.trace)


# -- golden values ---------------------------------------------------------------------------------------------------------


def test_golden_b1_two_halves_make_the_whole() -> None:
    loss = mixture([[-1], [1]], [[[1]], [[1]]], ([0], [[2]]))
    assert [loss.value(vertex) for vertex in np.eye(2)] == pytest.approx([1 + (math.sqrt(2) - 1) ** 2 - 0.0] * 2, abs=1e-9)
    assert loss.value(np.array([0.5, 0.5])) == pytest.approx(0.0, abs=1e-9)
    assert best(loss).weights == pytest.approx([0.5, 0.5], abs=1e-6)


def test_golden_b2_the_weights_behind_the_reference_are_found() -> None:
    loss = mixture([[-1], [1]], [[[1]], [[1]]], ([-0.4], [[1.84]]))
    assert [loss.value(vertex) for vertex in np.eye(2)] == pytest.approx([0.4870680067498929, 2.0870680067498926], abs=1e-9)
    assert loss.value(np.array([0.7, 0.3])) == pytest.approx(0.0, abs=1e-9)
    assert loss.value(np.array([0.5, 0.5])) == pytest.approx(0.16333478134982427, abs=1e-9)
    assert best(loss).weights == pytest.approx([0.7, 0.3], abs=1e-5)


def test_golden_b3_values_and_gradient() -> None:
    loss = b3()
    singles = [3.749679117515143, 3.1982935237078305, 4.631766241556905, 25.149679117515145]
    assert [loss.value(vertex) for vertex in np.eye(4)] == pytest.approx(singles, abs=1e-9)
    value, gradient = loss.at(UNIFORM4)
    assert value == pytest.approx(2.6980127342447737, abs=1e-9)
    golden = np.array([3.0206812981643676, 0.7256246204937176, 0.9809415893519331, 18.359250002091336])
    # moments about the reference mean move the gradient by the same number for all arms, which is nothing on the simplex
    np.testing.assert_allclose(gradient - gradient.mean(), golden - golden.mean(), atol=1e-9)


def test_golden_b3_the_best_mixture() -> None:
    found = best(b3())
    np.testing.assert_allclose(
        found.weights, [0.29131032164980947, 0.3868145312076134, 0.29623054259456744, 0.02564460454800958], atol=1e-7
    )
    assert found.value == pytest.approx(0.2661434337589341, abs=1e-10)
    assert found.gap < 1e-6
    assert found.steps < 40


def test_golden_b4_no_segment_lies_below_its_middle() -> None:
    loss, rng = b3(), np.random.default_rng(0)
    for _ in range(300):
        a, b = rng.dirichlet(np.ones(4), size=2)
        assert loss.at((a + b) / 2)[0] <= (loss.at(a)[0] + loss.at(b)[0]) / 2 + 1e-12


def test_golden_b5_arms_that_only_miss_the_mean_still_gain() -> None:
    loss = mixture([(1, 0), (0, 1.2)], [np.eye(2).tolist()] * 2, ((0, 0), np.eye(2).tolist()))
    assert [loss.value(vertex) for vertex in np.eye(2)] == pytest.approx([1.0, 1.44], abs=1e-9)
    found = best(loss)
    assert found.weights == pytest.approx([0.6132871561350295, 0.3867128438649705], abs=1e-6)
    assert found.value == pytest.approx(0.657238937728474, abs=1e-9)


# -- closed forms and properties -------------------------------------------------------------------------------------------


def test_one_arm_has_its_own_frechet_distance() -> None:
    loss = b3()
    for arm, vertex in enumerate(np.eye(4)):
        alone = moments.frechet(
            tensor(B3_MEANS[arm]), tensor(B3_COVARIANCES[arm]), tensor(B3_REFERENCE[0]), tensor(B3_REFERENCE[1])
        )
        assert loss.value(vertex) == pytest.approx(alone, abs=1e-10)


def test_a_mixture_has_the_frechet_distance_of_its_pooled_moments() -> None:
    a = np.array([0.35, 0.05, 0.4, 0.2])
    means, covariances = np.array(B3_MEANS, dtype=float), np.array(B3_COVARIANCES, dtype=float)
    mean = a @ means
    covariance = np.einsum("i,ijk->jk", a, covariances + means[:, :, None] * means[:, None, :]) - np.outer(mean, mean)
    pooled = moments.frechet(tensor(mean), tensor(covariance), tensor(B3_REFERENCE[0]), tensor(B3_REFERENCE[1]))
    assert b3().value(a) == pytest.approx(pooled, abs=1e-10)


@pytest.mark.parametrize(("d", "rows"), [(3, 40), (12, 5)])  # the second has no full rank anywhere
def test_the_gradient_is_the_slope_along_the_simplex(d: int, rows: int) -> None:
    loss = random_mixture(4, d=d, arms=4, rows=rows)
    a = np.array([0.3, 0.2, 0.4, 0.1])
    gradient = loss.at(a)[1]
    for i in range(4):
        direction = np.eye(4)[i] - a
        slope = (loss.at(a + 1e-5 * direction)[0] - loss.at(a - 1e-5 * direction)[0]) / 2e-5
        assert slope == pytest.approx(float(gradient @ direction), abs=1e-6)


def test_moving_or_turning_everything_changes_nothing() -> None:
    rng = np.random.default_rng(9)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    shift = np.array([300.0, -70.0, 11.0])
    moved = mixture(
        [turn @ np.array(m) + shift for m in B3_MEANS],
        [turn @ np.array(c) @ turn.T for c in B3_COVARIANCES],
        (turn @ np.array(B3_REFERENCE[0]) + shift, turn @ np.array(B3_REFERENCE[1]) @ turn.T),
    )
    a = np.array([0.1, 0.2, 0.3, 0.4])
    assert moved.value(a) == pytest.approx(b3().value(a), abs=1e-9)
    np.testing.assert_allclose(moved.at(a)[1], b3().at(a)[1], atol=1e-8)


def test_few_samples_give_what_their_covariance_gives() -> None:
    rng = np.random.default_rng(2)
    target = frechet_mixture.target(torch.zeros(6, dtype=torch.float64), tensor(np.cov(rng.standard_normal((6, 30)))))
    rows = tensor(rng.standard_normal((4, 6)))
    thin = frechet_mixture.component_of(MomentSums.init(6).learn_rows(rows), target)
    full = frechet_mixture.component(rows.mean(0), torch.cov(rows.T), target)
    assert thin.spread == pytest.approx(full.spread, abs=1e-12)
    torch.testing.assert_close(thin.inner, full.inner, rtol=0, atol=1e-12)
    torch.testing.assert_close(thin.lean, full.lean, rtol=0, atol=1e-12)


def test_duplicate_arms_do_not_change_the_lowest_distance() -> None:
    twice = mixture([*B3_MEANS, B3_MEANS[1]], [*B3_COVARIANCES, B3_COVARIANCES[1]], B3_REFERENCE)
    assert best(twice).value == pytest.approx(0.2661434337589341, abs=1e-9)


def test_some_of_the_arms_make_a_smaller_problem() -> None:
    part = b3().only([0, 2])
    assert part.value(np.array([0.25, 0.75])) == pytest.approx(b3().value(np.array([0.25, 0.0, 0.75, 0.0])), abs=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_gap_certifies_what_a_long_search_finds(rows: int) -> None:
    """Also where every arm has fewer samples than dimensions, and where one sample leaves no covariance at all."""
    loss = random_mixture(7, d=8, arms=3, rows=rows)
    found = best(loss, tolerance=1e-7)
    rng = np.random.default_rng(1)
    searched = min(loss.at(rng.dirichlet(np.ones(3) * 2))[0] for _ in range(2000))
    assert found.value <= searched + 1e-9
    assert found.value >= searched - 0.05 * abs(searched)
    assert found.gap <= 1e-4 * max(1.0, found.value)


@pytest.mark.parametrize(("d", "arms", "seed"), [(8, 3, 3), (32, 5, 0), (48, 8, 1)])
def test_a_vertex_of_low_rank_is_no_false_optimum(d: int, arms: int, seed: int) -> None:
    """Other arms add directions that this one lacks: the slope towards them is steep, and not hidden by a pseudo-inverse."""
    loss = random_mixture(seed, d=d, arms=arms, rows=3)
    vertex = np.eye(arms)[0]
    _, gradient = loss.at(vertex)
    assert simplex.frank_wolfe_gap(vertex, gradient) > 10.0
    found = simplex.minimize(loss.at, vertex, tolerance=1e-7, steps=200)
    assert found.value == pytest.approx(best(loss, tolerance=1e-7).value, abs=1e-4)
    assert found.steps < 100


def test_constant_outputs_are_measured_like_any_other() -> None:
    same = MomentSums.init(4).learn_rows(torch.full((6, 4), 0.7, dtype=torch.float64))
    rows = tensor(np.random.default_rng(0).standard_normal((50, 4)))
    target = frechet_mixture.target(rows.mean(0), torch.cov(rows.T))
    loss = FrechetMixture(tuple(frechet_mixture.component_of(s, target) for s in (same, same)), target.trace)
    gap = float((rows.mean(0) - 0.7).square().sum())
    for a in ([1.0, 0.0], [0.4, 0.6]):
        value, gradient = loss.at(np.array(a))
        assert value == pytest.approx(gap + target.trace, abs=1e-9)
        assert np.isfinite(gradient).all()
    flat = frechet_mixture.target(torch.zeros(4, dtype=torch.float64), torch.zeros((4, 4), dtype=torch.float64))
    value, gradient = FrechetMixture((frechet_mixture.component_of(same, flat),), 0.0).at(np.ones(1))
    assert value == pytest.approx(4 * 0.49)
    assert np.isfinite(gradient).all()
