"""Inverses with changes kept aside, against fresh ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from torch import Tensor

from bandits.functional import inverse as inverses
from bandits.functional.inverse import BLOCK, Inverse, quadratics


def rows(seed: int, n: int, p: int) -> Tensor:
    return torch.from_numpy(default_rng(seed).standard_normal((n, p)))


def started(p: int, *, ridge: float) -> Inverse:
    return Inverse(torch.eye(p, dtype=torch.float64) / ridge)


def fresh(z: Tensor, *, ridge: float) -> Tensor:
    inverse: Tensor = torch.linalg.inv(z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64))
    return inverse


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), max_size=30), seed=st.integers(0, 2**16))
def test_any_sequence_of_changes_gives_the_fresh_inverse(sizes: list[int], seed: int) -> None:
    ridge, p = 0.7, 6
    z = rows(seed, sum(sizes), p)
    now, done = started(p, ridge=ridge), 0
    for size in sizes:
        more = z[done : done + size]
        now, gain = now.updated(more[0]) if size == 1 else now.updated_all(more)
        done += size
        expected = fresh(z[:done], ridge=ridge)
        torch.testing.assert_close(now.tensor(), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gain, expected @ (more[0] if size == 1 else more.T), rtol=1e-9, atol=1e-11)
    assert now.correction is None or len(now.correction) < BLOCK
    x = rows(seed + 1, 3, p)
    torch.testing.assert_close(now.times(x[0]), now.tensor() @ x[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(now.times(x.T), now.tensor() @ x.T, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n", [1, inverses.FEW - 1, inverses.FEW, 9])
def test_quadratic_forms_are_those_of_each_row_under_each_inverse(n: int) -> None:
    several = [started(7, ridge=0.5 + k) for k in range(3)]
    several[1] = several[1].updated(rows(2, 1, 7)[0])[0]
    several[2] = several[2].updated_all(rows(3, BLOCK + 2, 7))[0].updated(rows(4, 1, 7)[0])[0]
    z = rows(5, n, 7)
    expected = torch.tensor([[float(row @ each.tensor() @ row) for each in several] for row in z], dtype=torch.float64)
    torch.testing.assert_close(quadratics(several, z), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [1, 6])
def test_a_quadratic_form_that_rounding_made_negative_is_zero(n: int) -> None:
    negative = Inverse(-torch.eye(4, dtype=torch.float64))
    assert torch.equal(quadratics([negative], rows(6, n, 4)), torch.zeros((n, 1), dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_change_by_rows_that_were_scored_just_now_finds_their_products(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very inverse that a change without the memory gives; other rows, and rows with other bits, are computed."""
    start = started(6, ridge=0.7).updated_all(rows(11, 3, 6))[0]
    z, unknown = rows(12, n, 6), rows(13, 2, 6)
    expected = [Inverse(start.base, start.correction).updated_all(each)[0].tensor() for each in (z[-2:], unknown)]
    one = Inverse(start.base, start.correction).updated(z[0])[0].tensor()
    quadratics([start], z)
    asked: list[bool] = []
    products = inverses.ProductCache.products

    def watched(memo: inverses.ProductCache, of: Tensor) -> Tensor | None:
        found = products(memo, of)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(inverses.ProductCache, "products", watched)
    later = start.updated(rows(14, 1, 6)[0])[0]  # of the same dense matrix: it knows, too
    for each, inverse in zip((z[-2:], unknown), expected, strict=True):
        torch.testing.assert_close(start.updated_all(each)[0].tensor(), inverse, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(start.updated(z[0])[0].tensor(), one, rtol=1e-12, atol=1e-14)
    later.updated(z[0])
    nearly = z[0].clone()
    nearly[2] += 1e-15
    start.updated(nearly)
    assert asked == [False, True, False, True, True, bool(torch.equal(nearly, z[0]))]


def test_what_was_scored_is_not_written_to_by_a_change() -> None:
    start, z = started(5, ridge=0.5).updated_all(rows(15, 2, 5))[0], rows(16, 3, 5)
    before = quadratics([start], z)
    start.updated(z[1])
    start.updated_all(z)
    assert start.memo.last is not None
    torch.testing.assert_close(start.memo.last[1], z @ start.base, rtol=1e-13, atol=1e-15)
    assert torch.equal(quadratics([start], z), before)


def test_a_downdate_undoes_an_update() -> None:
    z = rows(7, 9, 5)
    before = started(5, ridge=0.4).updated_all(z[:8])[0]
    after = before.updated(z[8])[0].downdated(z[8])
    assert after is not None
    torch.testing.assert_close(after.tensor(), before.tensor(), rtol=1e-10, atol=1e-12)


def test_an_older_version_stays_as_it_was() -> None:
    z = rows(8, 3 * BLOCK, 5)
    versions = [started(5, ridge=1.0)]
    kept = []
    for row in z:
        kept.append(versions[-1].tensor().clone())
        versions.append(versions[-1].updated(row)[0])
    for version, tensor in zip(versions, kept, strict=False):
        assert torch.equal(version.tensor(), tensor)


@pytest.mark.parametrize("ridge", [1.0, 0.03])
@pytest.mark.parametrize("size", [1, 8])
def test_three_thousand_rows_stay_close_to_a_fresh_inverse(ridge: float, size: int) -> None:
    z = rows(9, 3000, 24)
    now = started(24, ridge=ridge)
    for first in range(0, 3000, size):
        now = now.updated(z[first])[0] if size == 1 else now.updated_all(z[first : first + size])[0]
    expected = fresh(z, ridge=ridge)
    assert float((now.tensor() - expected).norm() / expected.norm()) < 1e-10
    assert float((now.tensor() - now.tensor().T).norm() / expected.norm()) < 1e-12


def test_the_products_of_very_many_inverses_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each memo would hold the block of all of them for as long as its arm is not scored again; the forms are the same."""
    several = [Inverse(torch.eye(3, dtype=torch.float64) * (i + 1)) for i in range(5)]
    z = torch.ones(6, 3, dtype=torch.float64)
    kept = quadratics(several, z)
    assert all(inverse.memo.last is not None for inverse in several)
    monkeypatch.setattr(inverses, "REMEMBERED", 100)
    assert torch.equal(quadratics(several, z), kept)
    assert all(inverse.memo.last is None for inverse in several)
