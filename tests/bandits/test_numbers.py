"""At the edges of float64: what cannot be computed is refused, what was learned can be learned again, no score is NaN."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from bandits import draw
from bandits import state as states
from bandits.errors import InvalidContext, InvalidHyperparameter, NotPositiveDefinite
from bandits.functional import kernels, linalg
from bandits.functional.growing import GrowingCholesky
from bandits.functional.inverse import Inverse
from bandits.registry import POLICIES, build
from bandits.regression.ridge import RidgeArm
from bandits.types import Context, Observation, Policy, State


def vector(*numbers: float) -> torch.Tensor:
    """As the log keeps it: float32."""
    return torch.tensor(numbers, dtype=torch.float32).to(torch.float64)


def context(features: torch.Tensor, *, arms: int = 1) -> Context:
    return Context(allowed=(True,) * arms, features=features)


UNSCALED: list[tuple[str, dict[str, Any]]] = [
    ("lin-ucb", {"normalize": False}),
    ("pak-ucb", {"normalize": False, "random_features": 4, "add_linear": True}),
    ("pak-ucb", {"normalize": False, "random_features": None, "kernel": "polynomial"}),
    ("pak-ucb", {"normalize": False, "random_features": None, "kernel": "linear"}),
    ("promptwise", {"normalize": False}),
]


@pytest.mark.parametrize(("kind", "settings"), UNSCALED)
@pytest.mark.parametrize("ridge", [1e-9, 0.3, 1e9])
def test_a_prompt_that_is_too_long_for_the_ridge_is_refused(kind: str, settings: dict[str, Any], ridge: float) -> None:
    policy = build(kind, {**settings, "ridge": ridge}, dim=2)
    with pytest.raises(InvalidContext, match="too long for the ridge"):
        policy.check_context(context(vector(1.7e9 * max(ridge, 1.0), 100.0)))
    with pytest.raises(InvalidContext, match="too long for the ridge"):
        policy.check_context(context(vector(3e38, 3e38)))
    policy.check_context(context(vector(0.5, -0.5) if ridge < 1.0 else vector(3.0, 40.0)))


@pytest.mark.parametrize(("kind", "settings"), UNSCALED[:4])
def test_what_is_not_refused_is_computed_to_six_digits(kind: str, settings: dict[str, Any]) -> None:
    """Against the same bandit made afresh from its statistic: at the longest prompts that pass, live and fresh agree."""
    policy = build(kind, settings, dim=2)
    scale = 1e5
    while True:
        try:
            policy.check_context(context(vector(scale, scale / 7)))
        except InvalidContext:
            scale *= 0.8
            continue
        break
    state = policy.prepare(states.start(policy, arms=1))
    for t in range(40):
        x = vector(scale * (0.5 + t / 80), scale * (t % 5) / 10)
        state = policy.prepare(states.fold(policy, state, Observation(arm=0, features=x, reward=0.5)))
    fresh = states.unpack(policy, states.pack(policy, state))
    asked = [context(vector(scale * a, scale * b)) for a, b in ((0.6, 0.2), (0.3, 0.4), (0.01, 0.01))]
    one, other = policy.weights(state, asked).scores, policy.weights(fresh, asked).scores
    torch.testing.assert_close(one["estimate"], other["estimate"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one["bonus"], other["bonus"], rtol=1e-2, atol=1e-3)


# -- what was learned can be learned again ------------------------------------------------------------------------------------


def fed(policy: Policy, rows: list[torch.Tensor]) -> State:
    """Live: every row pending first, each step prepared."""
    state = policy.prepare(states.start(policy, arms=2))
    for t, x in enumerate(rows):
        arm = t % 2
        state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], x))
        if t % 5 == 4:
            state = states.with_arm(state, arm, policy.remove_pending(state.arms[arm], x))
        seen = Observation(arm=arm, features=x, reward=float(t % 2), was_pending=t % 5 != 4)
        state = policy.prepare(states.fold(policy, state, seen))
    return state


WILD_ROWS = {
    "long": [vector(1000.0 * (1 + t % 7), 50.0 * (t % 5)) for t in range(60)],
    "far": [vector(1.7e9 + 60 * t, 100.0 + t) for t in range(60)],
    "equal": [vector(1e6, 1e6)] * 40,
    "huge": [vector(3e37, 1e37 * (t % 3)) for t in range(40)],
    "mixed": [vector(10.0 ** (t % 19 - 9), -(10.0 ** (t % 17 - 8))) for t in range(60)],
}


@pytest.mark.parametrize("rows", WILD_ROWS.values(), ids=WILD_ROWS)
@pytest.mark.parametrize(("kind", "settings"), UNSCALED)
@pytest.mark.parametrize("ridge", [1e-12, 1.0])
def test_a_log_of_an_earlier_version_that_refused_nothing_can_be_learned_again(
    kind: str, settings: dict[str, Any], ridge: float, rows: list[torch.Tensor]
) -> None:
    """Its numbers may be wrong or missing; but nothing fails, and an arm without numbers is not chosen."""
    policy = build(kind, {**settings, "ridge": ridge, **({"max_samples": 16} if kind != "lin-ucb" else {})}, dim=2)
    with np.errstate(all="ignore"):
        live = fed(policy, rows)
        fresh = policy.prepare(states.unpack(policy, states.pack(policy, live)))
        replayed = states.start(policy, arms=2)
        for t, x in enumerate(rows):
            replayed = states.fold(policy, replayed, Observation(arm=t % 2, features=x, reward=float(t % 2)))
        assert states.digest(policy, replayed) == states.digest(policy, live)
        for state in (live, fresh, policy.prepare(replayed)):
            weights = policy.weights(state, [context(x, arms=2) for x in rows[:5]]).values
            assert bool(weights.isfinite().all())
            assert all(abs(total - 1.0) < 1e-12 or total == 0.0 for total in weights.sum(1).tolist())
            policy.report(state)
            policy.arms_without_estimate(state)


def test_a_factor_exists_wherever_its_rows_could_be_appended() -> None:
    x = torch.stack(WILD_ROWS["long"])
    gram = kernels.polynomial(x, x, scale=1.0, offset=1.0, degree=3)
    with pytest.raises(NotPositiveDefinite):
        linalg.cholesky(gram + torch.eye(len(gram), dtype=torch.float64), what="the example")
    live = GrowingCholesky(gram[:0, :0], ridge=1.0)
    with np.errstate(all="ignore"):  # such numbers grow without bound: a prompt as long as these is refused today
        for n in range(len(gram)):
            live = live.append(gram[n, :n], float(gram[n, n]))
    torch.testing.assert_close(GrowingCholesky(gram, ridge=1.0).factor, live.factor, rtol=1e-9, atol=0.0, equal_nan=True)


def test_an_inverse_exists_for_any_sum_of_outer_products() -> None:
    rows = torch.stack(WILD_ROWS["far"])
    gram = rows.T @ rows
    inverse = linalg.ridge_inverse(gram, 1.0)
    assert float(torch.linalg.eigvalsh(inverse)[0]) >= 0.0
    indefinite = torch.tensor([[1e20, 1e20], [1e20, 1e20 * (1 - 1e-15)]], dtype=torch.float64)
    assert bool(linalg.ridge_inverse(indefinite, 1e-3).isfinite().all())
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    expected = torch.linalg.inv(good + 0.7 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(linalg.ridge_inverse(good, 0.7), expected)


def test_sums_that_rounding_made_indefinite_get_as_little_as_they_need() -> None:
    indefinite = torch.tensor([[1e20, 1e20], [1e20, 1e20 * (1 - 1e-15)]], dtype=torch.float64)
    factor = linalg.cholesky_of_sums(indefinite, what="the example")
    torch.testing.assert_close(factor @ factor.T, indefinite, rtol=1e-10, atol=0.0)
    with pytest.raises(NotPositiveDefinite):
        linalg.cholesky_of_sums(torch.tensor([[torch.inf]], dtype=torch.float64), what="the example")


def test_a_pivot_is_never_below_one() -> None:
    negative = Inverse(-torch.eye(2, dtype=torch.float64))
    after, gain = negative.updated(vector(3.0, 1.0))
    assert bool(after.tensor().isfinite().all())
    assert bool(gain.isfinite().all())
    together, gains = negative.updated_all(torch.stack([vector(3.0, 1.0), vector(1.0, 2.0)]))
    assert bool(together.tensor().isfinite().all())
    assert gains.shape == (2, 2)
    assert linalg.rank_one_inverse(-torch.eye(2, dtype=torch.float64), vector(3.0, 1.0), sign=1.0)[2] == 1.0


@pytest.mark.parametrize("length", [1.0, 30.0, 1e3, 1e5])
def test_a_release_widens_as_far_as_there_are_digits_for_it(length: float) -> None:
    """Beyond that the width stays as narrow as it is, and is right again as soon as nothing is pending."""
    arm = RidgeArm.init(3)
    z, other = vector(length, length / 3, 1.0), vector(-length, length, 1.0)
    before = arm.add_pending(other, ridge=1.0).score(z[None], ridge=1.0)[1]
    both = arm.add_pending(other, ridge=1.0).add_pending(z, ridge=1.0)
    released = both.remove_pending(z, ridge=1.0)
    width = float(released.score(z[None], ridge=1.0)[1])
    assert 0.0 < width <= float(before) * (1.0 + 1e-4)
    if length < 1e3:
        assert width == pytest.approx(float(before), rel=1e-4)
    free = released.remove_pending(other, ridge=1.0).score(z[None], ridge=1.0)[1]
    assert float(free) == pytest.approx(float(torch.linalg.vector_norm(z)))


# -- scores that are no numbers ----------------------------------------------------------------------------------------------


def test_a_score_that_is_not_finite_is_not_chosen() -> None:
    scores = torch.tensor([[torch.nan, 0.2, 0.1], [torch.inf, -4.0, torch.nan], [0.3, torch.nan, 0.9]], dtype=torch.float64)
    allowed = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    assert draw.greedy_weights(scores, allowed).tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_where_no_score_is_finite_every_allowed_arm_is_equally_likely() -> None:
    scores = torch.full((1, 4), torch.nan, dtype=torch.float64)
    allowed = torch.tensor([[True, False, True, False]])
    assert draw.greedy_weights(scores, allowed).tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert draw.apply_burn_in_and_floor(scores, [-1], allowed, floor=0.0).tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert draw.apply_burn_in_and_floor(scores, [2], allowed, floor=0.0).tolist() == [[0.0, 0.0, 1.0, 0.0]], (
        "a first pull is a first pull"
    )


def test_ties_are_spread_over_numbers_alone() -> None:
    scores = torch.tensor([torch.nan, 0.5, 0.5], dtype=torch.float64)
    three = [(0, 0, 0)] * 3
    chosen = draw.spread_best(scores, allowed=torch.ones((3, 3)).bool(), pending=three, pulls=[1, 1, 1], first=[-1] * 3)
    assert chosen.tolist() == [1, 2, 1]
    nothing = torch.full((3,), torch.nan, dtype=torch.float64)
    allowed = torch.tensor([[False, True, True]] * 2)
    chosen = draw.spread_best(nothing, allowed=allowed, pending=three[:2], pulls=[1, 1, 1], first=[-1] * 2)
    assert chosen.tolist() == [1, 2], "never a forbidden one"


@pytest.mark.parametrize(
    ("kind", "settings"), [("lin-ucb", {}), ("pak-ucb", {"random_features": None, "kernel": "linear"}), ("promptwise", {})]
)
def test_an_arm_whose_numbers_are_lost_is_not_chosen_and_is_named(kind: str, settings: dict[str, Any]) -> None:
    policy = build(kind, settings, dim=2)
    state = states.start(policy, arms=3)
    for arm in range(3):
        seen = Observation(arm=arm, features=vector(0.6, 0.8), reward=1.0, cost=0.1)
        state = policy.prepare(states.fold(policy, state, seen))
    lost = state.arms[1]
    if kind == "lin-ucb":
        lost = dataclasses.replace(lost, moment=lost.moment * torch.nan, cache=None)
    elif kind == "pak-ucb":
        lost = dataclasses.replace(lost, targets=lost.targets * torch.nan, cache=None)
    else:
        fit = dataclasses.replace(lost.cache.fit, theta=lost.cache.fit.theta * torch.nan)
        lost = dataclasses.replace(lost, cache=dataclasses.replace(lost.cache, fit=fit))
    state = states.with_arm(state, 1, lost)
    weights = policy.weights(state, [context(vector(0.6, 0.8), arms=3)]).values[0].tolist()
    assert weights[1] == 0.0
    assert sum(weights) == 1.0
    assert policy.arms_without_estimate(state) == [1]


# -- kernels far from the origin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_gaussian_kernel_does_not_depend_on_where_the_origin_is(offset: float, rows: int) -> None:
    g = default_rng(3)
    x = torch.from_numpy(offset + g.integers(-8, 8, (7, 5)) / 4.0)
    y = torch.from_numpy(offset + g.integers(-8, 8, (rows, 5)) / 4.0)
    exact = torch.exp(((x[:, None] - y[None]) ** 2).sum(2) / -2.0)
    torch.testing.assert_close(kernels.gaussian(x, y, bandwidth=1.0), exact, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(kernels.gaussian(y, x, bandwidth=1.0), exact.T, rtol=1e-8, atol=1e-12)


# -- new bandits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lin-ucb", "pak-ucb", "promptwise", "dak-ucb"])
def test_a_new_bandit_has_a_ridge_that_leaves_digits_and_an_old_one_any(kind: str) -> None:
    more = {"output_bandwidth": 1.0} if kind == "dak-ucb" else {}
    policy = build(kind, {"ridge": 1e-10, **more}, dim=2, output_dim=2)
    with pytest.raises(InvalidHyperparameter, match="ridge: must be at least 1e-09"):
        policy.check_new()
    build(kind, {"ridge": 1e-9, **more}, dim=2, output_dim=2).check_new()


@pytest.mark.parametrize("kind", POLICIES)
def test_the_defaults_of_every_policy_are_sound(kind: str) -> None:
    needed = {"dak-ucb": {"output_bandwidth": 1.0}, "mixture-ucb": {"bandwidth": 1.0}, "mixture-greedy": {"bandwidth": 1.0}}
    build(kind, needed.get(kind, {}), dim=2, output_dim=2).check_new()


def test_a_kernel_that_drowns_the_ridge_by_itself_is_refused() -> None:
    policy = build("pak-ucb", {"random_features": None, "kernel": "polynomial", "scale": 1e6, "ridge": 1e-3}, dim=2)
    with pytest.raises(InvalidHyperparameter, match="ridge: is too small for this kernel"):
        policy.check_new()


@pytest.mark.parametrize("seed", [15, 24, 43, *range(8)])
def test_a_mixture_of_outputs_of_1e18_has_weights_and_no_warning(seed: int) -> None:
    """Every warning of NumPy is an error here."""
    policy = build("mixture-greedy", {"objective": "fid"}, dim=0, output_dim=1)
    rng = default_rng(seed)
    state = states.start(policy, arms=2)
    for _ in range(4):
        state = states.fold(policy, state, Observation(output=vector(rng.random())[None]))
    for t in range(24):
        seen = Observation(arm=t % 2, features=torch.zeros(0), reward=0.0, output=vector(7.9e18 * rng.random())[None])
        state = policy.prepare(states.fold(policy, state, seen))
        values = policy.weights(state, [context(torch.zeros(0, dtype=torch.float64), arms=2)]).values
        assert float(values.sum()) == pytest.approx(1.0)
