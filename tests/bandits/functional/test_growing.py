"""Rows and factors that grow under their readers' hands, against fresh ones."""

from __future__ import annotations

import pytest
import torch
from numpy.random import default_rng

from bandits.functional import growing
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


@pytest.mark.parametrize("n", [63, 64, 65, 128, 200])
@pytest.mark.parametrize("first", [0, 64, 70])
def test_a_factor_of_several_blocks_solves_as_a_dense_one(n: int, first: int) -> None:
    """Made at once, grown from nothing, and grown from within a block or from the end of one; vectors and matrices."""
    x, ridge = rows(12, n, 40), 0.8
    factor, b = grown(x, first=min(first, n), ridge=ridge)[-1], rows(13, n, 3)
    dense = torch.linalg.cholesky(x @ x.T + ridge * torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(factor.factor, dense, rtol=1e-11, atol=1e-12)
    expected = torch.linalg.solve_triangular(dense, b, upper=False)
    torch.testing.assert_close(factor.solve(b), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(factor.solve(b[:, 1]), expected[:, 1], rtol=1e-11, atol=1e-12)
    row, pivot = factor.last
    torch.testing.assert_close(torch.cat([row, torch.tensor([pivot], dtype=torch.float64)]), dense[-1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("ridge", [1.0, 1e-2, 1e-6])
def test_inverted_corners_lose_no_digits_of_what_a_width_needs(ridge: float) -> None:
    """Twelve prompts taken in turn, 260 times: the nearest to singular that a kernel matrix of unit prompts comes. The shadow's
    square length is compared with that of an eigenvalue decomposition, as the width is what remains of 1 without it."""
    x = rows(14, 12, 5)
    x = (x / x.norm(dim=1, keepdim=True)).repeat(22, 1)[:260]
    gram = torch.exp((x @ x.T - 1.0) / 0.8)
    factor = GrowingCholesky(gram[:3, :3], ridge=ridge)
    for n in range(3, 260):
        factor = factor.append(gram[n, :n], 1.0)
    values, vectors = torch.linalg.eigh(gram)
    for k in gram[[0, 7]]:
        expected = float(((vectors.T @ k).square() / (values.clamp_min(0.0) + ridge)).sum())
        assert 1.0 - float(factor.solve(k).square().sum()) == pytest.approx(1.0 - expected, rel=1e-7, abs=1e-13)


def test_a_solve_goes_on_from_where_an_older_version_ended() -> None:
    x, ridge = rows(15, 150, 30), 0.7
    versions, b = grown(x, first=0, ridge=ridge), rows(16, 150, 2)
    for now in (1, 64, 65, 130, 150):
        expected = versions[now].solve(b[:now])
        for then in {0, 1, 63, 64, 65, now - 1, now} & set(range(now + 1)):
            found = versions[now].solve(b[then:now], after=versions[then].solve(b[:then]))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_what_is_appended_with_its_row_solved_is_what_is_appended() -> None:
    x, ridge = rows(17, 70, 9), 0.5
    factor = grown(x[:69], first=60, ridge=ridge)[-1]
    k = x[:69] @ x[69]
    one, other = factor.append(k, float(x[69] @ x[69])), factor.append_solved(factor.solve(k), float(x[69] @ x[69]))
    assert torch.equal(one.factor, other.factor)


def test_branches_within_a_block_and_at_its_end_share_the_blocks_before() -> None:
    x, ridge = rows(18, 135, 20), 0.6
    versions = grown(x[:130], first=0, ridge=ridge)
    whole = versions[-1].factor
    for n in (64, 100, 128):
        points = torch.cat([x[:n], x[[131, 134]]])
        branch = versions[n].append(x[:n] @ x[131], float(x[131] @ x[131]))
        branch = branch.append(points[: n + 1] @ x[134], float(x[134] @ x[134]))
        fresh = torch.linalg.cholesky(points @ points.T + ridge * torch.eye(n + 2, dtype=torch.float64))
        torch.testing.assert_close(branch.factor, fresh, rtol=1e-11, atol=1e-12)
        assert torch.equal(versions[n].factor, whole[:n, :n])
    assert torch.equal(versions[-1].factor, whole)
    b = rows(22, 130, 1)
    expected = torch.linalg.solve_triangular(whole, b, upper=False)
    torch.testing.assert_close(versions[-1].solve(b), expected, rtol=1e-11, atol=1e-12)


def test_rows_know_their_descent() -> None:
    x = rows(19, 9, 2)
    trunk = Rows(x[:4])
    one, other = trunk.append(x[4]), trunk.append(x[4])
    assert all(rows.extends(trunk) for rows in (trunk, one, one.append(x[5])))
    assert not trunk.extends(one), "it is shorter"
    assert not other.append(x[5]).extends(one), "another branch, though with equal rows"
    assert not Rows(x[:4]).extends(trunk), "equal rows, and no descendant"


# -- small factors that lose a point ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(6))
def test_a_factor_without_a_point_is_that_of_the_others(index: int) -> None:
    x = rows(20, 6, 3)
    matrix, others = x @ x.T + 0.3 * torch.eye(6, dtype=torch.float64), [i for i in range(6) if i != index]
    found = growing.without(torch.linalg.cholesky(matrix), index)
    torch.testing.assert_close(found @ found.T, matrix[others][:, others], rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.tril())


@pytest.mark.parametrize("index", range(6))
def test_a_factor_given_a_point_is_that_of_the_schur_complement(index: int) -> None:
    x = rows(21, 6, 3)
    matrix, others = x @ x.T + 0.3 * torch.eye(6, dtype=torch.float64), [i for i in range(6) if i != index]
    left = matrix[others][:, others] - torch.outer(matrix[others, index], matrix[index, others]) / matrix[index, index]
    factor = torch.linalg.cholesky(matrix)
    before = factor.clone()
    found = growing.schur_complement_factor(factor, index)
    torch.testing.assert_close(found @ found.T, left, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.tril())
    assert torch.equal(factor, before), "nothing is written into an argument"


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
