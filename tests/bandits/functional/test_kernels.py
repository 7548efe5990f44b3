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


def test_near_duplicates_never_have_a_negative_distance() -> None:
    x = rows(5, 40, 30) * 1e4
    distances = kernels.squared_distances(x, x + 1e-9)
    assert float(distances.min()) >= 0.0
    assert bool((kernels.gaussian(x, x, bandwidth=0.3) <= 1.0).all())


def test_the_polynomial_and_linear_kernels_are_their_formulas() -> None:
    x, y = rows(6, 5, 3), rows(7, 4, 3)
    dot = x.numpy() @ y.numpy().T
    np.testing.assert_allclose(kernels.linear(x, y, scale=0.7).numpy(), 0.7 * dot, rtol=1e-12)
    np.testing.assert_allclose(
        kernels.polynomial(x, y, scale=0.7, offset=1.3, degree=4).numpy(), (0.7 * dot + 1.3) ** 4, rtol=1e-12
    )
