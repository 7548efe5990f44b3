from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits.functional import logistic
from bandits.functional.logistic import Fit, Quadratic

G5_X = torch.tensor(
    [
        [-1.2316649689147774, 0.2671189477208684, 1.0],
        [-0.006926123563646536, 0.5015352951547885, 1.0],
        [-1.3267282928093849, 1.107768166657506, 1.0],
        [0.0937548811679036, -1.1708180763562224, 1.0],
        [-1.3582403949601034, -1.3065640246645707, 1.0],
        [-0.7176152818724516, 1.1856213579293313, 1.0],
    ],
    dtype=torch.float64,
)
G5_Y = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)


def only_ridge(ridge: float, p: int) -> Quadratic:
    return Quadratic(ridge * torch.eye(p, dtype=torch.float64), torch.zeros(p, dtype=torch.float64))


def sample(n: int, p: int, *, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    g = np.random.default_rng(seed)
    x = scale * g.standard_normal((n, p))
    y = g.random(n) < 1.0 / (1.0 + np.exp(-np.clip(x @ g.standard_normal(p), -700, 700)))
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.float64))


def derivatives(theta: Tensor, x: Tensor, y: Tensor, prior: Quadratic) -> tuple[float, Tensor, Tensor]:
    """Value, gradient and Hessian of the loss by automatic differentiation of another way to write it."""

    def f(t: Tensor) -> Tensor:
        sign = 2.0 * y - 1.0
        likelihood = -torch.nn.functional.logsigmoid(sign * (x @ t)).sum()
        return likelihood + t @ prior.precision @ t / 2.0 - prior.moment @ t

    t = theta.clone().requires_grad_()
    value = f(t)
    [gradient] = torch.autograd.grad(value, t, create_graph=True)
    rows = [torch.autograd.grad(entry, t, retain_graph=True)[0] for entry in gradient]
    return float(value.detach()), gradient.detach(), torch.stack(rows)


def test_the_fit_is_golden_g5() -> None:
    fit = logistic.minimize(G5_X, G5_Y, prior=only_ridge(1.0, 3))
    golden = torch.tensor([-0.213704134359427, 0.41743687137537944, 0.2967934008195199], dtype=torch.float64)
    torch.testing.assert_close(fit.theta, golden, rtol=0, atol=1e-12)
    probability = torch.sigmoid(torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64) @ fit.theta)
    assert abs(float(probability) - 0.5372296639795536) < 1e-12


def test_loss_and_gradient_are_those_of_another_way_to_write_them() -> None:
    x, y = sample(40, 3, seed=5)
    prior = Quadratic(torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.5, 0.2], [0.0, 0.2, 0.7]], dtype=torch.float64), 0.4 * x[0])
    theta = torch.tensor([0.3, -1.2, 2.5], dtype=torch.float64)
    value, gradient, _ = derivatives(theta, x, y, prior)
    assert math.isclose(logistic.loss(theta, x, y, prior=prior), value, rel_tol=1e-13)
    torch.testing.assert_close(logistic.gradient(theta, x, y, prior=prior), gradient, rtol=1e-12, atol=1e-12)


def test_the_fit_carries_the_inverse_hessian_of_close_by() -> None:
    x, y = sample(60, 4, seed=6)
    prior = only_ridge(0.7, 4)
    fit = logistic.minimize(x, y, prior=prior)
    _, _, hessian = derivatives(fit.theta, x, y, prior)
    torch.testing.assert_close(fit.inverse @ hessian, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-2)
    assert fit.settled


def test_a_single_weight_solves_its_one_equation() -> None:
    """s successes in n with x = 1: n sigmoid(theta) - s + ridge theta = 0, solved by bisection."""
    for n, s, ridge in ((7, 3, 0.3), (50, 50, 0.01), (1, 0, 2.0), (400, 399, 1.5)):
        low, high = -100.0, 100.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (low, middle) if n / (1 + math.exp(-middle)) - s + ridge * middle > 0 else (middle, high)
        y = torch.tensor([1.0] * s + [0.0] * (n - s), dtype=torch.float64)
        fit = logistic.minimize(torch.ones((n, 1), dtype=torch.float64), y, prior=only_ridge(ridge, 1))
        assert abs(float(fit.theta) - low) < 1e-9


def test_no_observations_leave_the_prior() -> None:
    moment = torch.tensor([0.5, -2.0], dtype=torch.float64)
    prior = Quadratic(torch.tensor([[2.0, 0.5], [0.5, 4.0]], dtype=torch.float64), moment)
    fit = logistic.minimize(torch.empty((0, 2), dtype=torch.float64), torch.empty(0, dtype=torch.float64), prior=prior)
    torch.testing.assert_close(prior.precision @ fit.theta, moment)


def test_huge_logits_neither_overflow_nor_lose_digits() -> None:
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0], dtype=torch.float64)
    theta = torch.tensor([1e6], dtype=torch.float64)
    none = Quadratic(torch.zeros((1, 1), dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert logistic.loss(theta, x, y, prior=none) == 2e6
    assert logistic.loss(-theta, x, y, prior=none) == 0.0
    assert float(logistic.variance(torch.tensor(40.0, dtype=torch.float64))) == math.exp(-40) / (1 + math.exp(-40)) ** 2


def test_separable_observations_stay_finite() -> None:
    x = torch.linspace(-3, 3, 60, dtype=torch.float64)[:, None] * torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    y = (x[:, 0] > 0).to(torch.float64)
    for ridge in (1e-8, 1e-3, 1.0):
        prior = only_ridge(ridge, 2)
        fit = logistic.minimize(x, y, prior=prior)
        assert bool(torch.isfinite(fit.theta).all())
        assert float(torch.linalg.vector_norm(logistic.gradient(fit.theta, x, y, prior=prior))) < 1e-9
        # F(theta) <= F(0) bounds the length of theta
        assert float(fit.theta.square().sum()) <= 2 * 60 * math.log(2) / ridge


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 40),
    p=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    ridge=st.floats(1e-4, 1e3),
    far=st.floats(0, 30),
)
@example(n=5, p=5, seed=5, scale=228.0, ridge=1e-4, far=0.0)  # Newton's steps shrink slowly here, far above the rounding
def test_every_road_ends_at_the_minimiser(n: int, p: int, seed: int, scale: float, ridge: float, far: float) -> None:
    x, y = sample(n, p, seed=seed, scale=scale)
    prior = only_ridge(ridge, p)
    fit = logistic.minimize(x, y, prior=prior)
    start = torch.full((p,), far, dtype=torch.float64)
    again = logistic.settle(Fit(start, torch.eye(p, dtype=torch.float64) / ridge, False), x, y, prior=prior)
    for theta in (fit.theta, again.theta):
        value, gradient, hessian = derivatives(theta, x, y, prior)
        assert math.isfinite(value)
        distance = torch.linalg.solve(hessian, gradient)  # to the minimiser, to first order
        assert float((hessian @ distance) @ distance) <= 1e-16
        assert float(distance.abs().max()) <= 1e-6 / math.sqrt(ridge)


def test_steps_of_one_observation_settle_at_the_fit_of_all() -> None:
    x, y = sample(80, 5, seed=8, scale=2.0)
    prior = only_ridge(0.5, 5)
    fit = logistic.minimize(x[:10], y[:10], prior=prior)
    for i in range(10, 80):
        fit = logistic.step(fit, x[i], float(y[i]))
        assert not fit.settled
        if i % 7 == 0:  # several steps between two settlements, as in a replay
            fit = logistic.settle(fit, x[: i + 1], y[: i + 1], prior=prior)
    exact = logistic.minimize(x, y, prior=prior)
    before = float((fit.theta - exact.theta).abs().max())
    assert 1e-6 < before < 0.1  # a step is close, and not yet there
    settled = logistic.settle(fit, x, y, prior=prior)
    torch.testing.assert_close(settled.theta, exact.theta, rtol=0, atol=1e-10)
    assert logistic.settle(settled, x, y, prior=prior) is settled


def test_one_step_is_newton_on_the_new_objective() -> None:
    x, y = sample(30, 3, seed=9)
    prior = only_ridge(1.3, 3)
    fit = logistic.minimize(x[:-1], y[:-1], prior=prior)
    _, gradient, hessian = derivatives(fit.theta, x, y, prior)
    moved = logistic.step(fit, x[-1], float(y[-1]))
    torch.testing.assert_close(moved.theta, fit.theta - torch.linalg.solve(hessian, gradient), rtol=1e-3, atol=0)


def test_the_expansion_has_value_slope_and_curvature_of_the_likelihood() -> None:
    x, y = sample(25, 3, seed=10)
    theta = torch.tensor([0.4, -0.7, 1.9], dtype=torch.float64)
    none = Quadratic(torch.zeros((3, 3), dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    _, gradient, hessian = derivatives(theta, x, y, none)
    past = logistic.expand(theta, x, y)
    torch.testing.assert_close(past.precision, hessian)
    torch.testing.assert_close(past.precision @ theta - past.moment, gradient)


def test_forgetting_at_the_minimiser_leaves_the_minimiser() -> None:
    x, y = sample(90, 4, seed=11)
    prior = only_ridge(0.8, 4)
    exact = logistic.minimize(x, y, prior=prior)
    past = logistic.expand(exact.theta, x[:30], y[:30])
    shorter = Quadratic(prior.precision + past.precision, prior.moment + past.moment)
    torch.testing.assert_close(logistic.minimize(x[30:], y[30:], prior=shorter).theta, exact.theta, rtol=0, atol=1e-10)


def test_nothing_writes_into_its_arguments() -> None:
    x, y = sample(12, 3, seed=12)
    prior = only_ridge(0.8, 3)
    fit = logistic.minimize(x[:-1], y[:-1], prior=prior)
    kept = [t.clone() for t in (x, y, prior.precision, prior.moment, fit.theta, fit.inverse)]
    logistic.settle(logistic.step(fit, x[-1], float(y[-1])), x, y, prior=prior)
    logistic.expand(fit.theta, x, y)
    for was, now in zip(kept, (x, y, prior.precision, prior.moment, fit.theta, fit.inverse), strict=True):
        assert torch.equal(was, now)
