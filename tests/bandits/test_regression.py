"""The regression that per-arm policies share: both forms against closed forms, and what cannot be scaled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bandits.errors import InvalidContext
from bandits.functional import kernels
from bandits.regression import Regression, as_float64, check_direction, lift


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def k(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return kernels.gaussian(x, y, bandwidth=1.3)


@pytest.mark.parametrize("exact", [False, True])
def test_both_forms_are_ridge_regression_with_its_width(exact: bool) -> None:
    w = kernels.frequencies(seed=1, count=0 if exact else 9, dim=3, bandwidth=1.3)
    regression = Regression(
        lift=lambda x: lift(x, normalize=True, frequencies=w),
        size=3 if exact else 18,
        kernel=k if exact else None,
        ridge=0.4,
        max_samples=50,
    )
    x, y, query = normal(2, 12, 3), normal(3, 12), normal(4, 5, 3)
    arm = regression.blank()
    for row, target in zip(x, y.tolist(), strict=True):
        arm = regression.learn(arm, row, target, anticipated=False)
    mean, width = regression.score([regression.blank(), arm], regression.lift(query))
    z, q = regression.lift(x), regression.lift(query)
    gram, cross, prior = (k(z, z), k(q, z), k(q, q)) if exact else (z @ z.T, q @ z.T, q @ q.T)
    inverse = np.linalg.inv(gram.numpy() + 0.4 * np.eye(12))
    np.testing.assert_allclose(mean[:, 1], cross.numpy() @ inverse @ y.numpy(), atol=1e-12)
    variance = np.diag(prior.numpy() - cross.numpy() @ inverse @ cross.numpy().T) / 0.4
    np.testing.assert_allclose(width[:, 1], np.sqrt(variance), atol=1e-12)
    np.testing.assert_allclose(mean[:, 0], 0.0, atol=0.0)
    np.testing.assert_allclose(width[:, 0], np.sqrt(1 / 0.4), atol=1e-14)


def test_an_anticipated_prompt_narrows_the_width_and_a_released_one_gives_it_back() -> None:
    regression = Regression(lift=lambda x: as_float64(x, normalize=False), size=3, ridge=0.7)
    x, q = normal(5, 3), normal(6, 1, 3)
    arm = regression.learn(regression.blank(), normal(7, 3), 0.3, anticipated=False)
    waiting = regression.anticipate(arm, x)
    learnt = regression.learn(waiting, x, 1.5, anticipated=True)
    widths = [float(regression.score([each], q)[1]) for each in (arm, waiting, regression.release(waiting, x), learnt)]
    assert widths[1] < widths[0] == pytest.approx(widths[2], abs=1e-14)
    assert widths[3] == pytest.approx(widths[1], abs=1e-14)


def test_scaling_copies_and_a_vector_of_zeros_is_refused() -> None:
    x = torch.tensor([3.0, 4.0], dtype=torch.float32)
    assert as_float64(x, normalize=True).tolist() == pytest.approx([0.6, 0.8], abs=1e-15)
    as_float64(x, normalize=False)[0] = 9.0
    assert x.tolist() == [3.0, 4.0]
    check_direction(torch.zeros(2), normalize=False)
    with pytest.raises(InvalidContext, match="zeros"):
        check_direction(torch.zeros(2), normalize=True)
