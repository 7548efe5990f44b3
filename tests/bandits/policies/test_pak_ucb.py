"""PAK-UCB against golden posteriors and picks, independent derivations, and brute force."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from bandits import state as states
from bandits.errors import InvalidContext, InvalidHyperparameter
from bandits.policies.lin_ucb import LinUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.regression.kernel import KernelArm
from bandits.regression.ridge import RidgeArm
from bandits.simulation import simulate
from bandits.types import Context, Observation, Policy, State
from tests.bandits.synthetic import prompt_clusters, recorded_answers, sha256
from tests.tables import shared_table

PAPER: dict[str, Any] = {"normalize": False, "prior_mean": 0.0, "exploration": 1.0}
"""As in the papers: embeddings as they are, rewards shrunk towards 0."""


def pak(**settings: Any) -> PakUcb:
    return PakUcb(**{**PAPER, **settings})


def state_of(policy: Policy, x: np.ndarray, r: np.ndarray, *, arm: int = 0, arms: int = 1) -> State:
    """A state that has seen these prompts (n, d) and rewards (n,)."""
    state = states.start(policy, arms=arms)
    for row, reward in zip(x, r, strict=True):
        state = states.fold(policy, state, Observation(arm=arm, features=torch.from_numpy(row), reward=float(reward)))
    return state


def score(policy: Policy, state: State, q: np.ndarray, *, arm: int = 0) -> tuple[float, float]:
    """(mean, exploration * width) of one arm at one prompt (d,)."""
    context = Context(allowed=(True,) * len(state.arms), features=torch.from_numpy(q))
    scores = policy.weights(state, [context]).scores
    return float(scores["estimate"][0, arm]), float(scores["bonus"][0, arm])


# -- golden G1: five observations of one arm, d = 3 ---------------------------------------------------------------------------

X = default_rng(1).standard_normal((5, 3))
R = default_rng(2).uniform(-1.0, 1.0, 5)
Q = default_rng(3).standard_normal(3)
POLY = {"kernel": "polynomial", "degree": 3, "offset": 1.0}


@pytest.mark.parametrize(
    ("settings", "ridge", "mean", "width"),
    [
        ({"bandwidth": 1.0}, 1.0, -0.0037539510910587375, 0.9999835981860375),
        ({"bandwidth": 1.0}, 0.1, -0.011918075762252348, 3.1621348312391717),
        ({"bandwidth": 5.0}, 1.0, -0.1547813794225631, 0.721911943265148),
        ({"bandwidth": 5.0}, 0.1, -0.42802214649638515, 1.8467950030572502),
        ({**POLY, "scale": 1.0}, 1.0, 3.0790204688103504, 39.55832360564169),
        ({**POLY, "scale": 1.0}, 0.1, 6.00786925599499, 123.60997181945581),
        ({**POLY, "scale": 10.0}, 1.0, 11.503389951366444, 887.9743001761235),
        ({**POLY, "scale": 10.0}, 0.1, 11.56051533014626, 2807.1857806472835),
        ({"kernel": "linear"}, 1.0, -0.12132302755003876, 1.8854545526392288),
        ({"kernel": "linear"}, 0.1, -0.5807025925099598, 2.90351958622483),
    ],
)
def test_the_exact_posterior_is_golden_g1(settings: dict[str, Any], ridge: float, mean: float, width: float) -> None:
    policy = pak(dim=3, random_features=None, ridge=ridge, **settings)
    got = score(policy, state_of(policy, X, R), Q)
    assert got[0] == pytest.approx(mean, rel=1e-10, abs=1e-10)
    assert got[1] == pytest.approx(width, rel=1e-10)


def test_the_posterior_by_random_features_is_golden_g1() -> None:
    policy = pak(dim=3, random_features=4, ridge=1.0, bandwidth=1.0, seed=0)
    state = state_of(policy, X, R)
    assert score(policy, state, Q) == pytest.approx((-0.209334761114629, 0.8435338663126213), abs=1e-10)
    theta = [
        *(-0.13136708459576207, -0.12466704133077312, -0.03216567782847431, -0.03531448668090624),
        *(-0.129364515357337, -0.04309209739039198, -0.11228142260038142, 0.2017411975676646),
    ]
    assert state.arms[0].ridge(1.0).theta.tolist() == pytest.approx(theta, abs=1e-10)


# -- golden G2: 600 rounds, three arms ----------------------------------------------------------------------------------------

RFF: dict[str, Any] = {"random_features": 64, "seed": 11}
GOLDEN_G2: dict[str, tuple[Policy, str, float, float]] = {
    "pak_rbf_eta1": (
        pak(dim=8, random_features=None),
        "7ba22d75165245eb4d95198beda5fc10ca320d57f6afe5836cc9929d62246171",
        0.7966666666666666,
        45.8,
    ),
    "pak_rbf_eta_code": (
        pak(dim=8, random_features=None, exploration=math.sqrt(2.0 * math.log(2.0 * 600 * 3 / 0.05))),
        "d88943c96a11d41775f2a88adb4296ac216585b9b22c611bb9635e976c4e8eac",
        0.59,
        95.4,
    ),
    "pak_poly3": (
        pak(dim=8, random_features=None, kernel="polynomial"),
        "7e09ce52691abc1deb997c5b15240622803ceca23dafd5c9ed65459126f081ae",
        0.6783333333333333,
        77.0,
    ),
    "naive_krr": (
        pak(dim=8, random_features=None, exploration=0.0),
        "151be36f2ec84741ca79035046d4366212f22072bf969a8daf65bc27165ff555",
        0.31666666666666665,
        163.1,
    ),
    "rff_D64_eta1": (
        pak(dim=8, **RFF),
        "354cb106bfc05fa1ec07872b60d06235558b06e557edd14431fae428ef0226c5",
        0.8166666666666667,
        43.9,
    ),
    "rff_D64_eta_code": (
        pak(dim=8, **RFF, exploration=math.sqrt(2.0 * math.log(2.0 * 3 / 0.05))),
        "3ba1d2ff66b9d1bcde5e892134bc0358a5a1a25fdf6ac6944cc886e3dd57140a",
        0.6816666666666666,
        72.5,
    ),
    "lin_per_arm": (
        LinUcb(dim=8, **PAPER),
        "294f506efd2e26f42972d595be7ea299bee667a7cb3df008f674e3e82b6eef6a",
        0.8133333333333334,
        43.0,
    ),
}


def test_the_world_behind_golden_g2_is_the_published_one() -> None:
    world = prompt_clusters()
    assert world.features.sum() == pytest.approx(-526.4124928832235, abs=1e-9)
    assert world.rewards.sum(0).tolist() == [318.0, 283.0, 322.0]


@pytest.mark.parametrize("learner", GOLDEN_G2)
def test_six_hundred_picks_are_golden_g2(learner: str) -> None:
    policy, sha, optimal, regret = GOLDEN_G2[learner]
    world = prompt_clusters()
    trace = simulate(policy, world)
    assert sha256(trace.picks) == sha
    assert trace.optimal_pick_ratio(world.expected) == pytest.approx(optimal, abs=1e-12)
    assert trace.regret.sum() == pytest.approx(regret, abs=1e-9)


# -- golden G6: 2,000 rounds of recorded answers ------------------------------------------------------------------------------

REPLAY: dict[str, Any] = {**PAPER, "dim": 256, "random_features": 100, "seed": 11}
GOLDEN_G6: dict[str, tuple[Policy, str]] = {
    "rff_D100_eta1": (PakUcb(**REPLAY), "c3ace5012bdf740cc34defd6261760c0fe236670a6d00058687212584bfffe0b"),
    "rff_D100_eta0.3_r0_1": (
        PakUcb(**{**REPLAY, "exploration": 0.3, "prior_mean": 1.0}),
        "a28304a0f2e51e007047fe14c403d46db99d0f74d60cc6ec12186869a7194e3e",
    ),
    "rff_D100_eta1_alpha0.1": (
        PakUcb(**{**REPLAY, "ridge": 0.1}),
        "2a04e2b538d75acd57dd84dd5302066d584cd275a44584d462a18110fe184b2a",
    ),
    "lin_per_arm_eta1": (LinUcb(dim=256, **PAPER), "577498b2e866375d5f4841ec965c23dc4337ac331d53184572569cec64179544"),
}


@pytest.mark.parametrize("learner", GOLDEN_G6)
def test_two_thousand_picks_on_recorded_answers_are_golden_g6(learner: str) -> None:
    source = np.load(shared_table("humaneval_pair") / "labels.npz")
    world = recorded_answers(source["labels"], [str(prompt) for prompt in source["prompts"]])
    assert world.rewards.sum(0).tolist() == [1547.0, 1665.0]
    policy, sha = GOLDEN_G6[learner]
    assert sha256(simulate(policy, world).picks) == sha


# -- against derivations of our own -------------------------------------------------------------------------------------------


def test_five_hundred_rank_one_updates_equal_one_fresh_fit() -> None:
    g = default_rng(5)
    x, r = g.standard_normal((500, 6)), g.uniform(-0.7, 1.3, 500)
    policy = PakUcb(dim=6, random_features=9, ridge=0.35, exploration=0.8, prior_mean=0.4, add_linear=True)
    state = state_of(policy, x, r)
    z = policy.feature_map(torch.from_numpy(x)).numpy()
    a = z.T @ z + 0.35 * np.eye(z.shape[1])
    for q in g.standard_normal((20, 6)):
        zq = policy.feature_map(torch.from_numpy(q)).numpy()
        mean = zq @ np.linalg.solve(a, z.T @ (r - 0.4)) + 0.4
        width = math.sqrt(zq @ np.linalg.solve(a, zq))
        assert score(policy, state, q) == pytest.approx((mean, 0.8 * width), rel=1e-9)


def test_a_restarted_arm_scores_like_the_one_that_was_updated_step_by_step() -> None:
    g = default_rng(6)
    x, r = g.standard_normal((300, 4)), g.uniform(0.1, 0.9, 300)
    for settings in ({"random_features": 7}, {"random_features": None}):
        policy = PakUcb(dim=4, ridge=0.6, **settings)
        state = state_of(policy, x, r)
        back = states.unpack(policy, states.pack(policy, state))
        for q in g.standard_normal((10, 4)):
            assert score(policy, back, q) == pytest.approx(score(policy, state, q), rel=1e-9)


@pytest.mark.parametrize("ridge", [0.17, 1.0, 3.4])
def test_the_primal_form_equals_the_dual_form(ridge: float) -> None:
    """RFF-UCB is the exact kernel with k(x, y) = z(x).z(y): the linear kernel on lifted prompts."""
    g = default_rng(7)
    x, r = g.standard_normal((40, 5)), g.uniform(-0.5, 1.5, 40)
    primal = pak(dim=5, random_features=3, ridge=ridge, seed=2)
    dual = pak(dim=6, random_features=None, kernel="linear", ridge=ridge)
    lifted = primal.feature_map(torch.from_numpy(x)).numpy()
    one, other = state_of(primal, x, r), state_of(dual, lifted, r)
    assert isinstance(one.arms[0], RidgeArm)
    assert isinstance(other.arms[0], KernelArm)
    for q in g.standard_normal((10, 5)):
        zq = primal.feature_map(torch.from_numpy(q)).numpy()
        assert score(primal, one, q) == pytest.approx(score(dual, other, zq), rel=1e-9)


@pytest.mark.parametrize(("random_features", "n"), [(8, 1000), (None, 300)])
def test_a_prompt_seen_a_thousand_times_has_the_width_of_its_count(random_features: int | None, n: int) -> None:
    """z'(n z z' + ridge I)^-1 z = 1 / (n + ridge) for |z| = 1."""
    ridge = 0.7
    policy = pak(dim=4, random_features=random_features, ridge=ridge)
    x = np.tile(default_rng(8).standard_normal(4), (n, 1))
    mean, width = score(policy, state_of(policy, x, np.full(n, 0.8)), x[0])
    assert width == pytest.approx(math.sqrt(1.0 / (n + ridge)), rel=1e-9)
    assert mean == pytest.approx(0.8 * n / (n + ridge), rel=1e-9)


def test_outcomes_in_another_order_give_the_same_sums() -> None:
    g = default_rng(9)
    x, r = g.standard_normal((120, 5)), g.uniform(0.1, 0.9, 120)
    policy = PakUcb(dim=5, random_features=6, ridge=0.4)
    order = g.permutation(120)
    one, other = state_of(policy, x, r).arms[0], state_of(policy, x[order], r[order]).arms[0]
    assert one.pulls == other.pulls == 120
    torch.testing.assert_close(one.whole_gram, other.whole_gram, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.moment, other.moment, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("random_features", [6, None])
def test_an_arm_added_mid_run_is_tried_next_and_leaves_the_others_alone(random_features: int | None) -> None:
    g = default_rng(10)
    policy = PakUcb(dim=5, random_features=random_features, prior_mean=0.1, exploration=0.05)
    state = states.start(policy, arms=2)
    for t in range(30):
        seen = Observation(arm=t % 2, features=torch.from_numpy(g.standard_normal(5)), reward=0.4 + 0.3 * (t % 2))
        state = states.fold(policy, state, seen)
    grown = states.add_arm(policy, state)
    context = Context(allowed=(True,) * 3, features=torch.from_numpy(g.standard_normal(5)))
    weights = policy.weights(grown, [context])
    assert weights.values.tolist() == [[0.0, 0.0, 1.0]]
    mean, bonus = (float(weights.scores[name][0, 2]) for name in ("estimate", "bonus"))
    assert (mean, bonus) == pytest.approx((policy.prior_mean, policy.exploration / math.sqrt(policy.ridge)), rel=1e-12)
    assert grown.arms[:2] == state.arms, "the same objects"
    tried = dataclasses.replace(context, pending=(0, 0, 1))
    assert float(policy.weights(grown, [tried]).values[0, 2]) == 0.0, "then the rule decides, and it expects little of it"


def test_the_window_forgets_the_oldest_quarter() -> None:
    """At 8 kept observations the next one drops the oldest 2: the arm is then a fit of the newest ones alone."""
    g = default_rng(11)
    x, r = g.standard_normal((29, 4)), g.uniform(0.1, 0.9, 29)
    policy = pak(dim=4, random_features=None, max_samples=8, ridge=0.5)
    everything = pak(dim=4, random_features=None, ridge=0.5)
    kept = 0
    for n in range(1, 30):
        kept = 7 if kept == 8 else kept + 1
        arm = state_of(policy, x[:n], r[:n]).arms[0]
        assert arm.pulls == n
        assert arm.features.numpy() == pytest.approx(x[n - kept : n])
        if n % 7 == 0:
            fresh = state_of(everything, x[n - kept : n], r[n - kept : n])
            assert score(policy, state_of(policy, x[:n], r[:n]), x[0]) == pytest.approx(score(everything, fresh, x[0]), rel=1e-9)


@pytest.mark.parametrize("random_features", [6, None])
def test_pending_prompts_shrink_the_width_as_if_their_outcomes_had_come(random_features: int | None) -> None:
    """The width does not depend on rewards, so brute force adds the pending prompts with any reward at all."""
    g = default_rng(12)
    policy = pak(dim=5, random_features=random_features, ridge=0.45, exploration=1.3)
    x, r, pending = g.standard_normal((20, 5)), g.uniform(0.1, 0.9, 20), g.standard_normal((6, 5))
    state = state_of(policy, x, r)
    arm = state.arms[0]
    for i, row in enumerate(pending):
        arm = policy.add_pending(arm, torch.from_numpy(row))
        brute = state_of(policy, np.vstack([x, pending[: i + 1]]), np.append(r, g.uniform(-9.0, 9.0, i + 1)))
        for q in g.standard_normal((5, 5)):
            mean, bonus = score(policy, states.with_arm(state, 0, arm), q)
            assert mean == pytest.approx(score(policy, state, q)[0], rel=1e-9), "the estimate waits for the outcome"
            assert bonus == pytest.approx(score(policy, brute, q)[1], rel=1e-8)


@pytest.mark.parametrize("random_features", [6, None])
def test_outcomes_that_come_late_and_in_disorder_end_where_prompt_ones_do(random_features: int | None) -> None:
    world = prompt_clusters(rounds=120)
    policy = pak(dim=8, random_features=random_features, ridge=0.6)
    picks = default_rng(13).integers(0, 3, 120)
    observations = [
        Observation(arm=int(arm), features=torch.from_numpy(x), reward=float(row[arm]))
        for arm, x, row in zip(picks, world.features, world.rewards, strict=True)
    ]
    prompt = late = states.start(policy, arms=3)
    waiting: list[Observation] = []
    g = default_rng(14)
    for seen in observations:
        prompt = states.fold(policy, prompt, seen)
        late = states.with_arm(late, seen.arm, policy.add_pending(late.arms[seen.arm], seen.features))
        waiting.append(dataclasses.replace(seen, was_pending=True))
        while waiting and g.random() < 0.48:
            late = states.fold(policy, late, waiting.pop(int(g.integers(len(waiting)))))
    assert len(waiting) > 3, "some are still on their way"
    for seen in waiting:
        late = states.fold(policy, late, seen)
    for q in world.features[:10]:
        for arm in range(3):
            assert score(policy, late, q, arm=arm) == pytest.approx(score(policy, prompt, q, arm=arm), rel=1e-8)


def test_prompts_are_scaled_to_length_one_by_default() -> None:
    x = default_rng(15).standard_normal((4, 5))
    for settings in ({"random_features": 6}, {"random_features": None}):
        policy = PakUcb(dim=5, **settings)
        state = state_of(policy, x, np.full(4, 0.6))
        assert score(policy, state, 7.5 * x[0]) == pytest.approx(score(policy, state, x[0]), rel=1e-12)
    with pytest.raises(InvalidContext, match="zeros"):
        policy.check_context(Context(allowed=(True,), features=torch.zeros(5, dtype=torch.float64)))
    pak(dim=5).check_context(Context(allowed=(True,), features=torch.zeros(5, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"kernel": "linear"}, "random_features"),
        ({"add_linear": True, "random_features": None}, "add_linear"),
        ({"ridge": 0.0}, "ridge"),
        ({"exploration": -0.1}, "exploration"),
        ({"bandwidth": math.inf}, "bandwidth"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidHyperparameter) as refused:
        PakUcb(dim=5, **settings)
    assert refused.value.field == field
