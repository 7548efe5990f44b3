"""Factors and rank-one updates against fresh factorisations."""

from __future__ import annotations

import pytest
import torch
from numpy.random import default_rng

from bandits.errors import NotPositiveDefinite
from bandits.functional import linalg


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
