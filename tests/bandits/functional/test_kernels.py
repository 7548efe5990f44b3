"""Kernels and random features against closed forms and golden G1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from bandits.functional import kernels

X = torch.tensor([0.5, -0.25, 0.125, 1.0], dtype=torch.float64)
Y = torch.tensor([0.0, 0.5, -0.5, 0.25], dtype=torch.float64)


def rows(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(default_rng(seed).standard_normal((n, d)))


def test_random_features_are_golden_g1() -> None:
    w = kernels.frequencies(seed=0, count=3, dim=4, bandwidth=1.0)
    z_x = [0.554730710844058, 0.42171296445750317, 0.5758504513380034, 0.1600224102423764, 0.39432411661195416]
    assert kernels.random_features(X, w).tolist() == pytest.approx([*z_x, -0.041588352061017624], abs=1e-10)
    assert float(kernels.random_features(X, w) @ kernels.random_features(Y, w)) == pytest.approx(0.7750077383936654, abs=1e-10)
    many = kernels.frequencies(seed=0, count=4096, dim=4, bandwidth=1.0)
    assert float(kernels.random_features(X, many) @ kernels.random_features(Y, many)) == pytest.approx(
        0.4080506785765712, abs=1e-10
    )
    assert float(kernels.gaussian(X[None], Y[None], bandwidth=1.0)) == pytest.approx(0.41361797370441067, abs=1e-10)


@pytest.mark.parametrize(("n", "d"), [(0, 3), (5, 1), (2048, 768), (1001, 384), (300, 3000), (7, 300_000)])
def test_a_product_in_parts_is_the_product(n: int, d: int) -> None:
    """Up to the order of sums; parts of a wider matrix as well, which is how labels hold their frequencies."""
    wide, x = rows(31, n, d + 2).numpy(), rows(32, 1, d).numpy()[0]
    for matrix in (wide[:, 2:], np.ascontiguousarray(wide[:, 2:])):
        expected = (matrix.astype(np.longdouble) * x).sum(1)
        np.testing.assert_allclose(kernels.product(matrix, x), expected.astype(np.float64), rtol=1e-11, atol=1e-11)


def test_no_part_of_a_product_is_large_enough_for_threads() -> None:
    for d in (8, 384, 768, 8192):
        assert max(8, kernels.ONE_THREAD // d // 8 * 8) * d < 460_800


def test_the_frequencies_are_the_stream_that_every_log_was_written_with() -> None:
    """A bandit refuses to run on other numbers; if this fails, NumPy changed its stream and old logs cannot be served."""
    w = kernels.frequencies(seed=0, count=3, dim=4, bandwidth=1.0)
    assert w[0].tolist() == [0.1257302210933933, -0.1321048632913019, 0.6404226504432821, 0.10490011715303971]
    assert kernels.fingerprint(w) == "6f988cd5cad133897258150ca0a21208b0d5e8a9d6ab6f950a6c7467d53d244e"


def test_a_fingerprint_is_of_the_numbers_and_not_of_their_layout() -> None:
    w = rows(1, 3, 5)
    assert kernels.fingerprint(w) == kernels.fingerprint(w.T.contiguous().T)
    assert kernels.fingerprint(w) != kernels.fingerprint(w + 1e-15)


def test_random_features_have_length_one_and_approach_the_gaussian_kernel() -> None:
    x = rows(2, 6, 4)
    z = kernels.random_features(x, kernels.frequencies(seed=5, count=20_000, dim=4, bandwidth=1.7))
    assert z.square().sum(1).tolist() == pytest.approx([1.0] * 6, abs=1e-12)
    exact = kernels.gaussian(x, x, bandwidth=1.7)
    assert float((z @ z.T - exact).abs().max()) < 4.0 / np.sqrt(20_000)


def test_the_gaussian_kernel_is_the_loop_over_pairs() -> None:
    x, y = rows(3, 5, 3), rows(4, 4, 3)
    brute = [[np.exp(-np.sum((a - b) ** 2) / (2 * 0.6**2)) for b in y.numpy()] for a in x.numpy()]
    np.testing.assert_allclose(kernels.gaussian(x, y, bandwidth=0.6).numpy(), brute, rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 700])
@pytest.mark.parametrize("stride", [1, 2])
def test_distances_to_one_point_are_those_by_differences(n: int, stride: int) -> None:
    """Read chunk by chunk, of rows that lie together and of the first columns of wider ones; from the left and from the right."""
    wide, y = rows(8, n, 200 * stride), rows(9, 1, 200)
    x = wide[:, :200]
    brute = (x - y).square().sum(1)
    torch.testing.assert_close(kernels.squared_distances(x, y), brute[:, None], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernels.squared_distances(y, x), brute[None], rtol=1e-12, atol=1e-12)
    exact = np.exp(brute.numpy()[:, None] / (-2.0 * 9.0**2))
    np.testing.assert_allclose(kernels.gaussian(x, y, bandwidth=9.0).numpy(), exact, rtol=1e-12)
    singles = kernels.squared_distances(x.to(torch.float32), y.to(torch.float32))
    assert singles.dtype == torch.float32
    torch.testing.assert_close(singles, brute[:, None].to(torch.float32), rtol=1e-4, atol=1e-3)


def test_near_duplicates_never_have_a_negative_distance() -> None:
    x = rows(5, 40, 30) * 1e4
    distances = kernels.squared_distances(x, x + 1e-9)
    assert float(distances.min()) >= 0.0
    assert all(float(kernels.squared_distances(x, row[None] + 1e-9).min()) >= 0.0 for row in x)
    assert bool((kernels.gaussian(x, x, bandwidth=0.3) <= 1.0).all())


def test_the_polynomial_and_linear_kernels_are_their_formulas() -> None:
    x, y = rows(6, 5, 3), rows(7, 4, 3)
    dot = x.numpy() @ y.numpy().T
    np.testing.assert_allclose(kernels.linear(x, y, scale=0.7).numpy(), 0.7 * dot, rtol=1e-12)
    np.testing.assert_allclose(
        kernels.polynomial(x, y, scale=0.7, offset=1.3, degree=4).numpy(), (0.7 * dot + 1.3) ** 4, rtol=1e-12
    )
