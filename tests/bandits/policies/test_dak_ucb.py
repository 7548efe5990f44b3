"""DAK-UCB: golden G4, PAK-UCB at weight 0, mixtures and their optimality, hyperparameters and reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits import state as states
from bandits.errors import InvalidContext, InvalidHyperparameter
from bandits.policies.dak_ucb import DakUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.types import Context, Observation, State
from tests.bandits.golden import FORMS, SIGMA, WORLD, World, ask, coin_flips, dak, outcome, play, serve

# -- golden G4 ------------------------------------------------------------

GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "PAK": ({"diversity_weight": 0.0}, "d7fa3c9eac184da047375a3257f7d91b04bb7b7b8c3465583fe95a4f9c6ba699"),
    "weight 0.2": ({"diversity_weight": 0.2}, "58bdf27b6f2f1eff0d954147fbb54aaf0346495721f06afc2b21990025574848"),
    "weight 1": ({}, "7f59634f7c5918ed248fd4a12adcc3283d2c3eb56c8b283ecc02a6805714ae35"),
    "JKD": ({"diversity": "jkd"}, "130cf154d9ed824dbfb90363e263d0b9755babce8381c16a0969f2b6cd3f3a26"),
    "mixture": ({"mixture": True}, "2d19d728cb606e537f57de2f560761afec2053506df032b82af910c47fb3e976"),
}


@cache
def golden_run(name: str) -> tuple[np.ndarray, State]:
    return play(dak(**GOLDEN[name][0]), WORLD)


@pytest.mark.parametrize("name", GOLDEN)
def test_picks_are_those_of_golden_g4(name: str) -> None:
    assert hashlib.sha256(golden_run(name)[0].tobytes()).hexdigest() == GOLDEN[name][1]


def test_the_pooled_report_of_the_golden_run_is_the_diversity_of_what_it_served() -> None:
    picks, state = golden_run("weight 1")
    assert np.mean(picks == 2) == 0.8125
    pooled = dak().report(state)["pooled"]
    assert pooled["inverse_joint_rke"] == pytest.approx(0.04723985111319911, rel=1e-10)
    assert pooled["vendi"] == pytest.approx(17.915696536083637, rel=1e-9)
    assert pooled["conditional_vendi"] == pytest.approx(15.684041467958618, rel=1e-9)
    assert pooled["outputs"] == pooled["rows"] == 400
    pooled = dak(diversity="jkd").report(golden_run("JKD")[1])["pooled"]
    assert pooled["joint_kernel_distance"] == pytest.approx(0.006659927805345768, rel=1e-10)


@pytest.mark.parametrize("name", ["weight 1", "JKD", "mixture"])
def test_random_feature_labels_serve_the_diverse_arm_as_often_as_exact_ones(name: str) -> None:
    picks, _ = play(dak(label_features=2048, random_features=128, **GOLDEN[name][0]), WORLD, rounds=200)
    assert np.mean(picks == 2) == pytest.approx(np.mean(golden_run(name)[0][:200] == 2), abs=0.06)


# -- weight 0 is PAK-UCB ------------------------------------------------------------


@pytest.mark.parametrize(
    "world", [WORLD, coin_flips(90, prompts=7), coin_flips(90, prompts=1)], ids=["G4", "coins", "one prompt"]
)
@pytest.mark.parametrize("random_features", [None, 24])
@pytest.mark.parametrize("late", [False, True])
def test_weight_zero_gives_the_picks_of_pak_ucb(world: World, random_features: int | None, late: bool) -> None:
    shared: dict[str, Any] = {
        "dim": 4,
        "seed": 11,
        "random_features": random_features,
        "exploration": 0.7,
        "ridge": 0.6,
        "prior_mean": 0.4,
        "initial_pulls": 2,
        "max_samples": 20,
        "exploration_floor": 0.1,
    }
    delays = np.random.default_rng(2).integers(0, 9, 90).tolist() if late else ()
    pak = PakUcb(bandwidth=0.8, **shared)
    expected, pak_state = play(pak, world, rounds=90, delays=delays)
    for form in ({"label_features": 16}, {"label_features": None}, {"label_features": None, "diversity": "jkd"}):
        policy = DakUcb(
            output_dim=world.outputs.shape[2], prompt_bandwidth=0.8, output_bandwidth=0.9, diversity_weight=0.0, **shared, **form
        )
        picks, state = play(policy, world, rounds=90, delays=delays)
        assert picks.tolist() == expected.tolist()
        contexts = [Context(features=x, allowed=(True, False, True)) for x in world.x[:5]]
        ours, theirs = policy.weights(state, contexts), pak.weights(pak_state, contexts)
        assert torch.equal(ours.values, theirs.values)
        assert all(torch.equal(ours.scores[name], theirs.scores[name]) for name in ("estimate", "bonus"))  # bit by bit


# -- mixtures ------------------------------------------------------------


def mix(policy: DakUcb, worth: Sequence[float], cross: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    allowed = torch.ones((1, len(worth)), dtype=torch.bool)
    matrices = torch.tensor([cross], dtype=torch.float64), allowed
    values, slope = policy._mix(torch.tensor([worth], dtype=torch.float64), *matrices, [-1])
    return values[0].tolist(), slope[0].tolist()


def test_the_mixture_solves_the_golden_quadratic_programmes() -> None:
    matrix = [[0.9, 0.1, 0.2], [0.1, 0.8, 0.15], [0.2, 0.15, 0.5]]
    values, slope = mix(dak(mixture=True), [0.8, 0.75, 0.7], matrix)
    assert values == pytest.approx([0.2733333333333965, 0.3066666666667076, 0.4199999999998959], abs=1e-10)
    assert max(slope) - min(slope) < 1e-10
    values, slope = mix(dak(mixture=True, diversity_weight=0.1), [0.8, 0.75, 0.7], matrix)
    assert values == pytest.approx([0.6333333333324443, 0.36666666666755565, 0.0], abs=1e-9)
    assert slope[2] < slope[0] == pytest.approx(slope[1], abs=1e-10)


def test_the_mixture_projects_its_matrix_onto_the_positive_semidefinite_ones() -> None:
    """Golden G4: [[.2, .6], [.6, .2]] becomes [[.4, .4], [.4, .4]], which tells the arms apart by their worth alone."""
    values, slope = mix(dak(mixture=True), [0.5, 0.6], [[0.2, 0.6], [0.6, 0.2]])
    assert values == pytest.approx([0.0, 1.0], abs=1e-6)
    assert slope == pytest.approx([0.5 - 0.8, 0.6 - 0.8], abs=1e-12)
    lopsided, _ = mix(dak(mixture=True), [0.5, 0.6], [[0.9, 0.1], [0.3, 0.7]])
    symmetric, _ = mix(dak(mixture=True), [0.5, 0.6], [[0.9, 0.2], [0.2, 0.7]])
    assert lopsided == pytest.approx(symmetric, abs=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["rke", "jkd"])
def test_a_mixture_sums_to_one_and_no_arm_would_gain(form: str, kind: str) -> None:
    policy = dak(mixture=True, diversity=kind, **{"label_features": 64, "random_features": 16, **FORMS[form]})
    state = serve(policy, WORLD, [0, 1, 2, 2, 1, 0, 2, 0, 2])
    allowed = [(True, True, True), (True, False, True), (False, False, True)]
    contexts = [Context(features=x, allowed=allowed[i % 3]) for i, x in enumerate(WORLD.x[60:72])]
    answer = policy.weights(state, contexts)
    slope, values = answer.scores["objective"], answer.values
    assert bool((values >= 0).all())
    np.testing.assert_allclose(values.sum(1).numpy(), 1.0, atol=1e-12)
    mask = torch.tensor([context.allowed for context in contexts])
    assert not bool(values[~mask].any())
    assert bool(slope.isnan().eq(~mask).all())
    best = torch.where(mask, slope, -torch.inf).amax(1, keepdim=True)
    assert float(((best - slope) * values)[mask].max()) < 1e-8  # KKT: weight only where the slope is the best
    assert not answer.scores["diversity_bonus"].any()


def test_a_mixture_without_weight_on_diversity_is_an_argmax() -> None:
    picks, _ = play(dak(mixture=True, diversity_weight=0.0), WORLD, rounds=60)
    expected, _ = play(dak(diversity_weight=0.0), WORLD, rounds=60)
    assert picks.tolist() == expected.tolist()
    tied, _ = mix(dak(mixture=True, diversity_weight=0.0), [0.3, 0.6, 0.6], [[0.5] * 3] * 3)
    assert tied == [0.0, 1.0, 0.0]


def test_a_first_pull_is_not_scored_by_the_mixture() -> None:
    policy = dak(mixture=True)
    answer = policy.weights(serve(policy, WORLD, [0, 2]), [Context(features=x, allowed=(True,) * 3) for x in WORLD.x[:2]])
    assert answer.values[0].tolist() == [0.0, 1.0, 0.0]
    assert answer.scores["objective"].isnan().all(1).tolist() == [True, False]


def test_duplicate_arms_share_the_weight_and_a_lone_arm_has_all_of_it() -> None:
    policy = dak(mixture=True)
    state = states.start(policy, arms=2)
    for t in range(8):
        for arm in (0, 1):
            state = states.fold(policy, state, Observation(arm=arm, features=WORLD.x[t], reward=0.5, output=WORLD.outputs[t, 2:]))
    twins = State((state.arms[0], state.arms[0]), state.reference)
    assert ask(policy, twins, WORLD.x[30]).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    for policy in (dak(mixture=True), dak()):
        lone = serve(policy, WORLD, [0, 0, 0], state=states.start(policy, arms=1))
        assert ask(policy, lone, WORLD.x[30]).tolist() == [1.0]


def test_a_new_arm_joins_the_labels_from_then_on() -> None:
    for form in FORMS.values():
        policy = dak(mixture=True, **{"label_features": 32, "random_features": 8, **form})
        state = states.start(policy, arms=2)
        for t, arm in enumerate([0, 1, 1, 0]):
            state = states.fold(policy, state, outcome(WORLD, t, arm))
        grown = states.add_arm(policy, state)
        for x in WORLD.x[20:23]:
            assert ask(policy, grown, x).tolist() == [0.0, 0.0, 1.0]  # its first pull
        grown = states.fold(policy, grown, outcome(WORLD, 4, 2))
        grown = states.fold(policy, grown, outcome(WORLD, 5, 0))
        assert grown.arms[2].labels.shape[1] == grown.arms[0].labels.shape[1] == 3
        assert grown.arms[1].labels.shape[1] == 2
        assert float(ask(policy, grown, WORLD.x[30]).sum()) == pytest.approx(1.0, abs=1e-12)
        restored = states.unpack(policy, states.pack(policy, grown))
        torch.testing.assert_close(ask(policy, restored, WORLD.x[30]), ask(policy, grown, WORLD.x[30]), rtol=0, atol=1e-9)


# -- hyperparameters and reports ------------------------------------------------------------


def test_the_output_bandwidth_must_be_chosen_and_the_error_says_how() -> None:
    with pytest.raises(InvalidHyperparameter, match=r"output_bandwidth: must be set.*median distance"):
        DakUcb(dim=4, output_dim=4)
    for name, value in (("diversity", "kl"), ("diversity_weight", -0.1), ("label_features", 0), ("output_bandwidth", 0.0)):
        with pytest.raises(InvalidHyperparameter, match=name):
            dak(**{name: value})


def test_the_fingerprint_covers_all_random_numbers() -> None:
    assert dak().fingerprint == ""
    prints = {
        dak(**form, seed=seed).fingerprint
        for seed in (3, 4)
        for form in ({"random_features": 8}, {"label_features": 8}, {"random_features": 8, "label_features": 8})
    }
    assert len(prints) == 6
    assert dak(random_features=8).fingerprint == PakUcb(dim=4, seed=3, bandwidth=SIGMA, random_features=8).fingerprint


def test_a_prompt_of_zeros_is_refused_where_it_must_be_scaled() -> None:
    zeros = Context(features=torch.zeros(4, dtype=torch.float64), allowed=(True,))
    dak().check_context(zeros)
    with pytest.raises(InvalidContext, match="prompt"):
        dak(normalize=True).check_context(zeros)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["rke", "jkd"])
def test_a_report_is_plain_json_before_and_after_outcomes(form: str, kind: str) -> None:
    policy = dak(diversity=kind, **{"label_features": 128, **FORMS[form]})
    state = states.start(policy, arms=3)
    report = policy.report(state)
    assert report["pooled"]["vendi"] is None
    json.dumps(report, allow_nan=False)
    report = policy.report(serve(policy, WORLD, [0, 1, 0, 1, 0, 1, 0]))
    json.dumps(report, allow_nan=False)
    assert report["arms"][2]["rke"] is None
    assert report["arms"][0]["outputs"] == 4
    assert report["pooled"]["outputs"] == 7
    assert report["diversity_weight"] == 1.0
    assert ("joint_kernel_distance" in report["pooled"]) == (kind == "jkd")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(list(FORMS)),
    st.sampled_from(["rke", "jkd"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_no_input_gives_a_nan(seed: int, form: str, kind: str, mixture: bool, normalize: bool, scale: float) -> None:
    policy = dak(
        diversity=kind,
        mixture=mixture,
        normalise_labels=normalize,
        normalize=True,
        **{"label_features": 8, "random_features": 4, "max_samples": 4, **FORMS[form]},
    )
    g = torch.Generator().manual_seed(seed)
    state = states.start(policy, arms=3)
    prompts = torch.randn((3, 4), generator=g, dtype=torch.float64)
    for t in range(14):
        arm = int(torch.randint(0, 3, (1,), generator=g))
        samples = int(torch.randint(1, 7, (1,), generator=g))
        output = scale * torch.randn((samples, 4), generator=g, dtype=torch.float64).round()
        x = prompts[t % 3] * scale
        seen = Observation(arm=arm, features=x, reward=scale, output=output, reference=torch.zeros((1, 4), dtype=torch.float64))
        policy.check_observation(seen)
        state = states.fold(policy, state, seen)
    answer = policy.weights(state, [Context(features=x, allowed=(True, True, False)) for x in prompts])
    assert bool(torch.isfinite(answer.values).all())
    np.testing.assert_allclose(answer.values.sum(1).numpy(), 1.0, atol=1e-12)
    for name, value in answer.scores.items():
        assert bool(torch.isfinite(value[:, :2]).all()) or (mixture and name == "objective")
    json.dumps(policy.report(state), allow_nan=False)
