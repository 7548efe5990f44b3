from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits.functional import moments
from bandits.functional.moments import BLOCK, MomentSums

ROWS_A7 = [[1.0, 0, 0], [0, 2, 0], [1, 1, 1], [0, 0, 3]]
ROWS_F = [[1.0, 0], [0, 2], [1, 1], [-1, 3], [2, -1], [0, 0], [1, 2], [3, 1]]


def t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def learned(rows: Tensor) -> MomentSums:
    return MomentSums.init(rows.shape[1]).learn_rows(rows)


def rotation(d: int, *, seed: int) -> Tensor:
    return torch.from_numpy(np.linalg.qr(normal(d, d, seed=seed).numpy())[0])


def random_covariance(d: int, *, seed: int, rank: int | None = None) -> Tensor:
    rows = normal(rank or d + 3, d, seed=seed)
    return rows.T @ rows / len(rows)


def same_bits(a: MomentSums, b: MomentSums) -> bool:
    return a.folded == b.folded and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("shift", "total", "second", "rows")
    )


# -- sums ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 20])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_mean_and_covariance_are_those_of_two_passes(n: int, d: int) -> None:
    rows = normal(n, d, seed=n + d) @ random_covariance(d, seed=d) + 3.0
    sums = learned(rows)
    assert sums.count == n
    np.testing.assert_allclose(sums.mean(), rows.numpy().mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(sums.covariance(), np.atleast_2d(np.cov(rows.numpy().T)), rtol=1e-12, atol=1e-12)
    assert torch.equal(sums.covariance(), sums.covariance().T)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(0, 99))
def test_splitting_a_batch_changes_no_bit(cuts: list[int], seed: int) -> None:
    rows = normal(sum(cuts), 3, seed=seed) * 7.3 + 100.1
    sums = MomentSums.init(3)
    for part in torch.split(rows, cuts):
        sums = sums.learn_rows(part)
    assert same_bits(sums, learned(rows))


def test_single_rows_and_one_batch_give_the_same_bits_at_a_larger_dimension() -> None:
    rows = normal(2 * BLOCK + 31, 65, seed=4) + 5.5
    one_by_one = MomentSums.init(65)
    for row in rows:
        one_by_one = one_by_one.learn_rows(row[None])
    assert same_bits(one_by_one, learned(rows))


def exact_variance(values: list[float]) -> float:
    numbers = [Fraction(v) for v in values]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return float(sum(((v - mean) ** 2 for v in numbers), Fraction(0)) / (len(numbers) - 1))


@pytest.mark.parametrize("n", [50, 700])
@pytest.mark.parametrize("offset", [0.0, 1e8, -3e12])
def test_a_large_offset_costs_no_digits(n: int, offset: float) -> None:
    rows = normal(n, 1, seed=8) + offset
    exact = exact_variance(rows[:, 0].tolist())
    assert float(learned(rows).covariance()) == pytest.approx(exact, rel=1e-13)


def test_even_a_first_sample_far_away_costs_at_most_a_factor_n() -> None:
    n = 4 * BLOCK
    rows = normal(n, 1, seed=9)
    rows[0] = 1e7
    exact = exact_variance(rows[:, 0].tolist())
    assert float(learned(rows).covariance()) == pytest.approx(exact, rel=(n + 1) * 20 * 2.0**-53)  # 20: rounding of sums of 256


def test_identical_samples_have_a_covariance_of_exactly_zero() -> None:
    sums = learned(t([0.1, -7.7, 1e9]).expand(BLOCK + 77, 3))
    assert not bool(sums.covariance().any())
    assert torch.equal(sums.mean(), t([0.1, -7.7, 1e9]))


def test_given_moments_come_back_and_take_more_samples() -> None:
    rows = normal(40, 3, seed=6) + 2.0
    mean, covariance = rows[:30].mean(0), torch.cov(rows[:30].T)
    sums = MomentSums.given(mean, covariance, 30)
    assert torch.equal(sums.mean(), mean)
    torch.testing.assert_close(sums.covariance(), covariance, rtol=1e-15, atol=1e-15)
    more = sums.learn_rows(rows[30:])
    torch.testing.assert_close(more.covariance(), torch.cov(rows.T), rtol=1e-12, atol=1e-12)


def test_learning_writes_into_nothing_and_keeps_nothing_of_the_callers() -> None:
    rows = normal(BLOCK + 5, 2, seed=1)
    before = learned(rows[:5])
    copies = [before.shift.clone(), before.rows.clone()]
    after = before.learn_rows(rows[5:])
    assert torch.equal(before.shift, copies[0])
    assert torch.equal(before.rows, copies[1])
    expected = after.covariance()
    rows.zero_()
    assert torch.equal(after.covariance(), expected)


def test_one_sample_has_a_mean_and_no_covariance() -> None:
    sums = learned(t([[4.0, 2.5]]))
    assert torch.equal(sums.mean(), t([4.0, 2.5]))
    with pytest.raises(ValueError, match="at least 2 samples, there are 1"):
        sums.covariance()


def test_samples_that_were_summed_cannot_be_centred() -> None:
    sums = learned(normal(BLOCK, 2, seed=0))
    assert not sums.is_thin
    with pytest.raises(ValueError, match="summed"):
        sums.centered()


# -- the distance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "covariance", "reference_mean", "reference_covariance", "expected"),
    [
        pytest.param([0], [[1]], [3], [[4]], 10.0, id="golden A1"),
        pytest.param([0, 0, 0], np.diag([1, 4, 9]), [1, 2, 2], np.diag([4, 4, 1]), 14.0, id="golden A2"),
        pytest.param([0, 0], [[2, 1], [1, 2]], [0, 0], np.diag([3, 1]), 0.516685226452117, id="golden A3"),
        pytest.param([0, 0, 0], np.outer([1, 2, 2], [1, 2, 2]), [0, 0, 0], np.eye(3), 6.0, id="golden A4"),
        pytest.param([0, 0], np.diag([1, 0]), [0, 0], np.diag([0, 1]), 2.0, id="golden A5"),
        pytest.param([-1], [[1]], [0], [[2]], 1.1715728752538097, id="golden B1"),
        pytest.param([1], [[1]], [-0.4], [[1.84]], 2.0870680067498926, id="golden B2"),
    ],
)
def test_golden_distances(
    mean: object, covariance: object, reference_mean: object, reference_covariance: object, expected: float
) -> None:
    arguments = [torch.from_numpy(np.array(v, dtype=float)) for v in (mean, covariance, reference_mean, reference_covariance)]
    assert moments.frechet(*arguments) == pytest.approx(expected, abs=1e-9)
    assert moments.frechet(*arguments[2:], *arguments[:2]) == pytest.approx(expected, abs=1e-9)


def test_golden_distances_to_a_reference_of_three_dimensions() -> None:
    reference = t([0.2, -0.1, 0.3]), t([[2, 0.3, 0], [0.3, 2, 0], [0, 0, 1.5]])
    means = [[2.0, 0, 0], [-1, 1, 0], [0, -2, 1], [3, 3, 3]]
    correlated = t([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    covariances = [torch.eye(3).double(), torch.diag(t([2, 1, 0.5])), correlated, torch.eye(3).double()]
    distances = [moments.frechet(t(m), c, *reference) for m, c in zip(means, covariances, strict=True)]
    golden_b3 = [3.749679117515143, 3.1982935237078305, 4.631766241556905, 25.149679117515145]
    assert distances == pytest.approx(golden_b3, abs=1e-9)


def test_golden_a6_identical_is_zero_and_never_below() -> None:
    for seed in range(20):
        mean, covariance = normal(6, seed=seed), random_covariance(6, seed=seed)
        assert 0.0 <= moments.frechet(mean, covariance, mean, covariance) < 1e-12


@pytest.mark.parametrize(("divisor", "expected"), [(3, 2.5230059303407213), (4, 2.4526574115618214)])
def test_golden_a7_from_samples(divisor: int, expected: float) -> None:
    sums = learned(t(ROWS_A7))
    covariance = sums.scatter() / divisor  # 3: unbiased, which is ours; 4: maximum likelihood
    assert moments.frechet(sums.mean(), covariance, t([0.0, 0, 0]), torch.eye(3).double()) == pytest.approx(expected, abs=1e-9)
    if divisor == 3:
        assert torch.equal(covariance, sums.covariance())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=8, max_size=8))
def test_two_by_two_matches_the_closed_form(numbers: list[float]) -> None:
    a, b = (m @ m.T for m in t(numbers).reshape(2, 2, 2))
    # Tr (A^1/2 B A^1/2)^1/2 = sqrt(Tr AB + 2 sqrt(det A det B)), with the determinants from the factors
    dets = [abs(numbers[i] * numbers[i + 3] - numbers[i + 1] * numbers[i + 2]) for i in (0, 4)]
    closed = math.sqrt(float((a * b).sum()) + 2.0 * dets[0] * dets[1])
    scale = float(a.trace() + b.trace())
    assert moments.overlap(a, moments.psd_root(b)) == pytest.approx(closed, abs=1e-6 * scale + 1e-300)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(-1e4, 1e4))
def test_the_distance_moves_and_turns_with_the_reference(d: int, seed: int, far: float) -> None:
    here = normal(d, seed=seed), random_covariance(d, seed=seed + 1)
    there = normal(d, seed=seed + 2), random_covariance(d, seed=seed + 3, rank=max(d - 1, 1))
    turn, move = rotation(d, seed=seed + 4), far * normal(d, seed=seed + 5)
    moved = [(turn @ m + move, turn @ c @ turn.T) for m, c in (here, there)]
    expected = moments.frechet(*here, *there)
    assert moments.frechet(*moved[0], *moved[1]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_commuting_covariances_need_no_root_of_a_product() -> None:
    turn, a, b = rotation(7, seed=3), normal(7, seed=4).square(), normal(7, seed=5).square()
    zero = torch.zeros(7, dtype=torch.float64)
    distance = moments.frechet(zero, turn @ torch.diag(a) @ turn.T, zero, turn @ torch.diag(b) @ turn.T)
    assert distance == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), abs=1e-12)


def test_a_reference_without_any_spread_leaves_mean_and_trace() -> None:
    zero = torch.zeros((2, 2), dtype=torch.float64)
    assert moments.frechet(t([3.0, 0]), t([[2, 1], [1, 5.0]]), t([0.0, 4]), zero) == pytest.approx(25.0 + 7.0, abs=1e-12)
    assert moments.overlap_of_rows(t([[1.0, 2], [-1, -2]]), moments.psd_root(zero)) == 0.0


# -- spectra ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d", "reference_rank"), [(2, 5, 5), (7, 20, 9), (30, 31, 31), (60, 300, 8)])
def test_the_thin_forms_equal_the_full_ones(n: int, d: int, reference_rank: int) -> None:
    sums = learned(normal(n, d, seed=n) @ random_covariance(d, seed=d) + 1.0)
    root = moments.psd_root(random_covariance(d, seed=77, rank=reference_rank))
    assert sums.is_thin
    assert root.shape == (d, reference_rank)
    full, thin = moments.spread(sums.covariance()), moments.spread_of_rows(sums.centered())
    assert thin == pytest.approx(full, rel=1e-12)
    assert moments.overlap_of_rows(sums.centered(), root) == pytest.approx(moments.overlap(sums.covariance(), root), rel=1e-8)


def test_an_overlap_of_singular_covariances_has_all_its_digits() -> None:
    d, rank = 120, 40
    vectors = rotation(d, seed=1)
    values = normal(rank, seed=2).square() + 0.1
    covariance = vectors[:, :rank] @ torch.diag(values) @ vectors[:, :rank].T
    assert moments.overlap(covariance, torch.eye(d).double()) == pytest.approx(float(values.sqrt().sum()), rel=1e-13)


def test_the_root_multiplies_back_and_has_the_rank_of_the_matrix() -> None:
    matrix = random_covariance(6, seed=5, rank=4)
    root = moments.psd_root(matrix)
    assert root.shape == (6, 4)
    torch.testing.assert_close(root @ root.T, matrix, rtol=0, atol=1e-14)
    eigenvalues = np.linalg.eigvalsh(matrix.numpy())
    assert moments.root_trace(root) == pytest.approx(np.sqrt(eigenvalues[2:]).sum(), rel=1e-12)
    assert moments.psd_root(torch.zeros((3, 3), dtype=torch.float64)).shape == (3, 0)


def test_spread_of_a_known_spectrum() -> None:
    turn = rotation(3, seed=8)
    assert moments.spread(turn @ torch.diag(t([0.5, 2.0, 3.0])) @ turn.T) == pytest.approx((5.5, 13.25, 3.0), rel=1e-13)


def test_golden_f2_thresholds() -> None:
    covariance = learned(t(ROWS_F)).covariance()
    diagonal = torch.diag(covariance.diagonal())
    assert torch.equal(moments.adaptive_threshold(covariance, n=8, multiplier=0.0), covariance)
    assert torch.equal(moments.adaptive_threshold(covariance, n=8, multiplier=1.5, diagonal=True), diagonal)
    assert not bool(moments.adaptive_threshold(covariance, n=8, multiplier=3.0, diagonal=True).any())
    assert torch.equal(moments.adaptive_threshold(covariance, n=8, multiplier=3.0), diagonal)


def test_a_threshold_in_one_dimension_keeps_the_variance() -> None:
    assert moments.adaptive_threshold(t([[2.5]]), n=3, multiplier=9.0, diagonal=True).item() == 2.5
