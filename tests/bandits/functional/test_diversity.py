from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bandits.functional import diversity, kernels, simplex

D3 = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def unit(*numbers: float) -> Tensor:
    vector = torch.tensor(numbers, dtype=torch.float64)
    return vector / float(vector.norm())


def moment(*parts: tuple[float, Tensor]) -> Tensor:
    """Second moment of unit vectors with the given probabilities."""
    return torch.stack([share * torch.outer(vector, vector) for share, vector in parts]).sum(0)


# golden D2: three arms of unit vectors in R^3
D2 = [
    moment((0.5, unit(1, 0, 0)), (0.5, unit(1, 1, 0))),
    moment((0.3, unit(0, 1, 0)), (0.7, unit(0, 1, 1))),
    moment((0.6, unit(1, 0, 1)), (0.4, unit(0, 0, 1))),
]


def points(n: int, d: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


@pytest.mark.parametrize(("order", "golden"), [(1.0, 3.5961154666243225), (2.0, 3.333333333333333), (math.inf, 2.5)])
def test_golden_d3_vendi_of_a_spectrum(order: float, golden: float) -> None:
    assert diversity.vendi(D3, order=order) == pytest.approx(golden, abs=1e-12)


@pytest.mark.parametrize(("order", "golden"), [(1.0, 1.9900083082219462), (2.0, 1.9801980198019797)])
def test_golden_d3_truncated_vendi(order: float, golden: float) -> None:
    truncated = diversity.truncate_spectrum(D3, keep=2)
    assert sorted(truncated.tolist()) == pytest.approx([0.45, 0.55])
    assert diversity.vendi(truncated, order=order) == pytest.approx(golden, abs=1e-12)


def test_truncating_nothing_changes_nothing_and_keeping_nothing_is_refused() -> None:
    assert diversity.vendi(diversity.truncate_spectrum(D3, keep=9)) == pytest.approx(3.5961154666243225)
    with pytest.raises(ValueError, match="at least one"):
        diversity.truncate_spectrum(D3, keep=0)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12).filter(lambda x: sum(x) > 1e-3), st.floats(0.0, 40.0))
def test_entropy_falls_with_the_order_and_stays_between_one_kind_and_all(numbers: list[float], order: float) -> None:
    spectrum = torch.tensor(numbers, dtype=torch.float64) / sum(numbers)
    here = diversity.entropy(spectrum, order=order)
    assert diversity.entropy(spectrum, order=math.inf) >= -1e-12
    assert diversity.entropy(spectrum, order=math.inf) <= here + 1e-9
    assert here <= diversity.entropy(spectrum, order=0.0) + 1e-9
    assert diversity.entropy(spectrum, order=0.0) <= math.log(len(numbers)) + 1e-12


def test_the_order_one_is_the_limit_from_both_sides() -> None:
    for step in (-1e-3, -1e-5, -3e-7, -1e-13, 1e-13, 3e-7, 1e-5, 1e-3):
        slope = -0.5 * float((D3 * (D3.log() - (D3 * D3.log()).sum()).square()).sum())  # of H_q at q = 1
        assert diversity.entropy(D3, order=1.0 + step) == pytest.approx(diversity.entropy(D3) + slope * step, abs=step**2 + 1e-9)
    assert diversity.entropy(D3, order=900.0) == pytest.approx(diversity.entropy(D3, order=math.inf), abs=2e-3)
    with pytest.raises(ValueError, match="order"):
        diversity.entropy(D3, order=-0.5)
    with pytest.raises(ValueError, match="order"):
        diversity.entropy(D3, order=math.nan)


def test_equal_shares_count_themselves_at_every_order() -> None:
    spectrum = torch.tensor([0.2] * 5 + [0.0] * 3, dtype=torch.float64)
    for order in (0.0, 0.4, 1.0, 2.0, 7.5, math.inf):
        assert diversity.vendi(spectrum, order=order) == pytest.approx(5.0)


def test_a_kernel_matrix_and_its_features_have_one_spectrum() -> None:
    x = points(9, 4, seed=2)
    directions = x / x.norm(dim=1, keepdim=True)
    gram = directions @ directions.T
    for order in (0.5, 1.0, 2.0, 3.5, math.inf):
        from_gram = diversity.vendi(diversity.gram_spectrum(gram), order=order)
        assert diversity.vendi(diversity.feature_spectrum(directions), order=order) == pytest.approx(from_gram, rel=1e-9)
        second = diversity.spectrum(directions.T @ directions)
        assert diversity.vendi(second, order=order) == pytest.approx(from_gram, rel=1e-9)
    assert diversity.rke(gram) == pytest.approx(81.0 / float((gram**2).sum()))
    assert diversity.rke(gram) == pytest.approx(diversity.vendi(diversity.gram_spectrum(gram), order=2.0))


def test_golden_e2_rke_of_pooled_samples() -> None:
    rows = torch.tensor([[0.0, 0], [1, 0], [0, 2], [1, 1], [2, 1]], dtype=torch.float64)
    assert diversity.rke(kernels.gaussian(rows, rows, bandwidth=1.0)) == pytest.approx(3.087812201533505, abs=1e-9)


def test_random_features_approach_the_exact_score() -> None:
    x = points(60, 3, seed=4)
    gram = kernels.gaussian(x, x, bandwidth=1.3)
    w = kernels.frequencies(seed=1, count=4000, dim=3, bandwidth=1.3)
    fkea = diversity.feature_spectrum(kernels.random_features(x, w))
    for order in (1.0, 2.0):
        exact = diversity.vendi(diversity.gram_spectrum(gram), order=order)
        assert diversity.vendi(fkea, order=order) == pytest.approx(exact, rel=0.02)


def test_rounding_is_dropped_and_the_rest_renormalised() -> None:
    spectrum = diversity.shares(torch.tensor([-1e-17, 1e-14, 1.5, 0.5], dtype=torch.float64))
    assert spectrum.tolist() == [0.0, 0.0, 0.75, 0.25]
    alike = torch.ones((40, 40), dtype=torch.float64)
    assert diversity.vendi(diversity.gram_spectrum(alike), order=0.3) == pytest.approx(1.0)  # clamping at 1e-10 would give 1.05


# -- kernel distance -------------------------------------------------------------------------------------------------------


def test_kernel_distance_is_the_double_sum_it_says() -> None:
    x, y = points(4, 2, seed=0), points(6, 2, seed=1) + 0.4

    def total(a: Tensor, b: Tensor, *, twins: bool = True) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if twins or i != j]
        return math.fsum(math.exp(-float((a[i] - b[j]).square().sum()) / (2 * 0.9**2)) for i, j in pairs)

    between = total(x, y) / 24
    v = total(x, x) / 16 + total(y, y) / 36 - 2 * between
    u = total(x, x, twins=False) / 12 + total(y, y, twins=False) / 30 - 2 * between
    grams = [kernels.gaussian(a, b, bandwidth=0.9) for a, b in ((x, x), (y, y), (x, y))]
    assert diversity.kernel_distance(*grams, unbiased=False) == pytest.approx(v, abs=1e-12)
    assert diversity.kernel_distance(*grams, unbiased=True) == pytest.approx(u, abs=1e-12)
    same = grams[0]
    assert diversity.kernel_distance(same, same, same, unbiased=False) == pytest.approx(0.0, abs=1e-15)
    assert diversity.kernel_distance(same, same, same, unbiased=True) < 0.0


def test_the_unbiased_distance_needs_two_samples() -> None:
    one = torch.ones((1, 1), dtype=torch.float64)
    assert diversity.kernel_distance(one, one, 0.3 * one, unbiased=False) == pytest.approx(1.4)
    with pytest.raises(ValueError, match="two samples"):
        diversity.kernel_distance(one, one, one, unbiased=True)


# -- entropy of a mixture --------------------------------------------------------------------------------------------------


def test_golden_d2_entropy_and_gradient_of_a_mixture() -> None:
    value, gradient = diversity.entropy_of_mixture(D2, np.ones(3) / 3)
    assert math.exp(value) == pytest.approx(2.744128770221236, abs=1e-12)
    np.testing.assert_allclose(gradient, [0.04849655562821198, 0.0005223745994498152, -0.02062802017041354], atol=1e-12)
    singles = [math.exp(diversity.entropy_of_mixture(D2, vertex)[0]) for vertex in np.eye(3)]
    np.testing.assert_allclose(singles, [1.5166372229999607, 1.4410192851781154, 1.4977357780868654], atol=1e-9)


@pytest.mark.parametrize("leaps", [0, 2])
def test_golden_d2_the_most_diverse_mixture(leaps: int) -> None:
    def loss(a: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = diversity.entropy_of_mixture(D2, a)
        return -value, -gradient

    found = simplex.minimize(loss, np.ones(3) / 3, tolerance=1e-11, steps=60, leaps=leaps)
    np.testing.assert_allclose(found.weights, [0.3577561389458409, 0.3287429695036168, 0.31350089155054217], atol=1e-6)
    assert math.exp(-found.value) == pytest.approx(2.7463124943438846, abs=1e-12)


def test_the_gradient_of_a_mixtures_entropy_is_its_slope() -> None:
    rng = np.random.default_rng(3)
    moments = []
    for _ in range(4):
        x = torch.from_numpy(rng.standard_normal((7, 5)))
        x = x / x.norm(dim=1, keepdim=True)
        moments.append(x.T @ x / 7)
    a = rng.dirichlet(np.ones(4))
    _, gradient = diversity.entropy_of_mixture(moments, a)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6
        up, down = (diversity.entropy_of_mixture(moments, a + sign * step)[0] for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(gradient[i], abs=1e-8)
    for _ in range(200):  # concave along every segment
        b = rng.dirichlet(np.ones(4))
        ends = (diversity.entropy_of_mixture(moments, end)[0] for end in (a, b))
        assert diversity.entropy_of_mixture(moments, (a + b) / 2)[0] >= sum(ends) / 2 - 1e-12


def test_an_entropy_has_a_finite_slope_where_the_mixture_loses_rank() -> None:
    disjoint = [torch.diag(torch.tensor(row, dtype=torch.float64)) for row in ([1.0, 0, 0], [0, 0.5, 0.5])]
    value, gradient = diversity.entropy_of_mixture(disjoint, np.array([1.0, 0.0]))
    assert value == 0.0
    assert np.isfinite(gradient).all()
    assert gradient[1] - gradient[0] > 20.0  # the other arm is badly wanted
