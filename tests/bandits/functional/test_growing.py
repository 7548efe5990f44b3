"""Rows and factors that grow under their readers' hands, against fresh ones."""

from __future__ import annotations

import pytest
import torch
from numpy.random import default_rng

from bandits.functional.growing import GrowingCholesky, Rows


def rows(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(default_rng(seed).standard_normal((n, d)))


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
