"""Factors and rank-one updates against fresh factorisations; rows that grow under their readers' hands."""

from __future__ import annotations

import pytest
import torch
from numpy.random import default_rng

from bandits.errors import NotPositiveDefinite
from bandits.functional import linalg
from bandits.functional.linalg import GrowingCholesky, Rows


def rows(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(default_rng(seed).standard_normal((n, d)))


def positive(seed: int, d: int) -> torch.Tensor:
    x = rows(seed, 3 * d, d)
    return x.T @ x + 0.4 * torch.eye(d, dtype=torch.float64)


@pytest.mark.parametrize(
    "matrix", [torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.zeros((3, 3)), torch.tensor([[torch.nan]]), -torch.eye(2)]
)
def test_a_matrix_that_is_not_positive_definite_is_named(matrix: torch.Tensor) -> None:
    with pytest.raises(NotPositiveDefinite, match="gram of arm 3"):
        linalg.cholesky(matrix.to(torch.float64), what="gram of arm 3")


def test_a_rank_one_update_is_the_inverse_of_the_updated_matrix() -> None:
    a, z = positive(1, 6), rows(2, 1, 6)[0]
    start = torch.cholesky_inverse(torch.linalg.cholesky(a))
    inverse, v, pivot = linalg.rank_one_inverse((start + start.T) / 2.0, z, sign=1.0)
    torch.testing.assert_close(inverse, torch.linalg.inv(a + torch.outer(z, z)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(v, torch.linalg.solve(a, z), rtol=1e-10, atol=1e-12)
    assert pivot == pytest.approx(1.0 + float(z @ torch.linalg.solve(a, z)), rel=1e-12)
    torch.testing.assert_close(inverse, inverse.T, rtol=0.0, atol=1e-16)


def test_a_downdate_undoes_an_update() -> None:
    a, z = positive(3, 5), rows(4, 1, 5)[0]
    start = torch.linalg.inv(a)
    updated = linalg.rank_one_inverse(start, z, sign=1.0)[0]
    torch.testing.assert_close(linalg.rank_one_inverse(updated, z, sign=-1.0)[0], start, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("ridge", [1.0, 0.03])
def test_three_thousand_updates_stay_close_to_a_fresh_inverse(ridge: float) -> None:
    z = torch.nn.functional.normalize(rows(5, 3000, 24) + 2.0)
    inverse = torch.eye(24, dtype=torch.float64) / ridge
    for row in z:
        inverse = linalg.rank_one_inverse(inverse, row, sign=1.0)[0]
    fresh = torch.linalg.inv(z.T @ z + ridge * torch.eye(24, dtype=torch.float64))
    assert float((inverse - fresh).norm() / fresh.norm()) < 1e-10


def test_rows_grow_and_every_older_version_stays_as_it_was() -> None:
    x = rows(6, 60, 3)
    versions = [Rows(x[:0])]
    for row in x:
        versions.append(versions[-1].append(row))
    for n, version in enumerate(versions):
        assert torch.equal(version.tensor, x[:n])


def test_two_branches_of_the_same_rows_do_not_see_each_other() -> None:
    x = rows(7, 9, 2)
    trunk = Rows(x[:4])
    one, other = trunk.append(x[4]), trunk.append(x[5])
    one, other = one.append(x[6]), other.append(x[7])
    assert torch.equal(one.tensor, x[[0, 1, 2, 3, 4, 6]])
    assert torch.equal(other.tensor, x[[0, 1, 2, 3, 5, 7]])
    assert torch.equal(trunk.tensor, x[:4])


def test_rows_are_a_copy_of_what_they_were_made_of() -> None:
    x = rows(8, 3, 2)
    kept = Rows(x)
    x[0] = 7.0
    assert float(kept.tensor[0, 0]) != 7.0


def grown(x: torch.Tensor, *, first: int, ridge: float) -> list[GrowingCholesky]:
    versions = [GrowingCholesky(x[:first] @ x[:first].T, ridge=ridge)]
    for n in range(first, len(x)):
        versions.append(versions[-1].append(x[:n] @ x[n], float(x[n] @ x[n])))
    return versions


@pytest.mark.parametrize("first", [0, 1, 5])
def test_a_factor_that_grew_is_the_fresh_factor_at_every_size(first: int) -> None:
    x, ridge = rows(9, 45, 6), 0.37
    for factor in grown(x, first=first, ridge=ridge):
        n = len(factor)
        matrix = x[:n] @ x[:n].T + ridge * torch.eye(n, dtype=torch.float64)
        torch.testing.assert_close(factor.factor @ factor.factor.T, matrix, rtol=1e-11, atol=1e-11)
        assert torch.equal(factor.factor, factor.factor.tril())
        b = rows(10, n, 2) if n else torch.zeros((0, 2), dtype=torch.float64)
        torch.testing.assert_close(factor.factor @ factor.solve(b), b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [127, 128, 129, 300])
def test_a_factor_wider_than_a_block_solves_both_ways(n: int) -> None:
    """Against a dense solver; the last point is appended, so that the factor is a view into a wider buffer."""
    x, ridge = rows(12, n, 40), 0.8
    factor, b = grown(x, first=n - 1, ridge=ridge)[-1], rows(13, n, 3)
    matrix = x @ x.T + ridge * torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(factor.solve_transposed(factor.solve(b)), torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(factor.factor @ factor.solve(b), b, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(factor.factor.T @ factor.solve_transposed(b), b, rtol=1e-11, atol=1e-12)


def test_two_branches_of_the_same_factor_do_not_see_each_other() -> None:
    x, ridge = rows(11, 8, 4), 0.6
    trunk = grown(x[:5], first=0, ridge=ridge)[-1]
    before = trunk.factor.clone()
    ends = {last: trunk.append(x[:5] @ x[last], float(x[last] @ x[last])) for last in (5, 6)}
    for last, factor in ends.items():
        points = x[[0, 1, 2, 3, 4, last]]
        fresh = torch.linalg.cholesky(points @ points.T + ridge * torch.eye(6, dtype=torch.float64))
        torch.testing.assert_close(factor.factor, fresh, rtol=1e-11, atol=1e-12)
    assert torch.equal(trunk.factor, before)


def test_the_pivot_of_a_point_seen_before_is_not_lost_in_rounding() -> None:
    """L_nn^2 = k + ridge - l.l cancels almost completely for a tiny ridge; its exact lower bound is the ridge."""
    x, ridge = torch.ones((1, 3), dtype=torch.float64) * 1e4, 1e-9
    factor = GrowingCholesky(x @ x.T, ridge=ridge)
    for _ in range(5):
        n = len(factor)
        factor = factor.append(torch.full((n,), 3e8, dtype=torch.float64), 3e8)
        assert float(factor.factor[-1, -1]) ** 2 >= ridge * (1.0 - 1e-12)
        assert bool(factor.factor.isfinite().all())
