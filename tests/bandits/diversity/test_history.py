"""Histories of served outputs: what exact ones forget, what sums of random features know, and what both report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits import state as states
from bandits.diversity.history import REPORT_ROWS, ExactHistory, History, SummedHistory
from bandits.diversity.statistics import DiversityArm
from bandits.functional import kernels
from bandits.regression.model import Regression
from tests.bandits.golden import WORLD, dak, kernel, outcome

SIGMA_T, SIGMA_X = 0.6, 0.9


def exact(**changes: Any) -> ExactHistory:
    return ExactHistory(**{**settings(), "max_samples": 100, **changes})


def summed(count: int, **changes: Any) -> SummedHistory:
    w = kernels.frequencies(seed=4, count=count, dim=8, bandwidth=1.0)
    return SummedHistory(**{**settings(), "w": w, **changes})


def settings() -> dict[str, Any]:
    return {
        "diversity": "rke",
        "dim": 4,
        "output_dim": 4,
        "prompt_bandwidth": SIGMA_T,
        "output_bandwidth": SIGMA_X,
        "normalize": False,
    }


def arm_of(history: ExactHistory | SummedHistory) -> DiversityArm:
    served, spread = history.init()
    return DiversityArm.init(Regression(feature_map=lambda x: x, size=4, ridge=1.0), served=served, spread=spread)


def row(history: History, t: int, arm: int = 2) -> Tensor:
    return history.rows(WORLD.x[t], WORLD.outputs[t, arm][None], WORLD.references[t][None])


def filled(history: ExactHistory | SummedHistory, rounds: range, *, arm: int = 2) -> DiversityArm:
    state = arm_of(history)
    for t in rounds:
        state = history.update(state, row(history, t, arm), against=())[1]
    return state


def label(history: ExactHistory | SummedHistory, t: int, against: DiversityArm, *, arm: int = 2) -> float:
    return float(history.update(arm_of(history), row(history, t, arm), against=[against])[0])


# -- exact ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_samples", [4, 7, 16])
def test_an_exact_history_holds_between_three_quarters_and_all_of_the_last_outputs(max_samples: int) -> None:
    history = exact(max_samples=max_samples)
    arm = arm_of(history)
    for t in range(60):
        arm = history.update(arm, row(history, t), against=())[1]
        n = len(arm.served)
        assert min(t + 1, max_samples - max_samples // 4) <= n <= max_samples
        assert torch.equal(arm.served[:, 4:], WORLD.outputs[t + 1 - n : t + 1, 2])  # the newest, in order
        assert arm.outputs == t + 1


def test_a_label_is_the_mean_over_what_is_remembered() -> None:
    history = exact(max_samples=8)
    arm = filled(history, range(21))
    remembered = range(21 - len(arm.served), 21)
    x, o = WORLD.x.numpy(), WORLD.outputs[:, 2].numpy()
    expected = np.mean([(kernel(x[30], x[j], SIGMA_T) * kernel(o[30], o[j], SIGMA_X)) ** 2 for j in remembered])
    assert label(history, 30, arm) == pytest.approx(expected, abs=1e-14)


def test_an_answer_longer_than_the_history_leaves_its_last_outputs() -> None:
    history = exact(max_samples=5)
    arm = filled(history, range(4))
    rows = history.rows(WORLD.x[9], WORLD.outputs[:9, 2], torch.zeros((0, 4)))
    arm = history.update(arm, rows, against=())[1]
    assert torch.equal(arm.served[:, 4:], WORLD.outputs[4:9, 2])
    assert arm.outputs == 13


def test_one_reference_serves_all_samples_of_an_answer() -> None:
    history = exact(diversity="jkd")
    rows = history.rows(WORLD.x[0], WORLD.outputs[0], WORLD.references[:1])
    _, outputs, references = history.split(rows)
    assert torch.equal(outputs, WORLD.outputs[0])
    assert torch.equal(references, WORLD.references[:1].expand(3, -1))


# -- random features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rke", "jkd"])
@pytest.mark.parametrize("normalize", [False, True])
def test_many_random_frequencies_give_the_exact_labels(kind: str, normalize: bool) -> None:
    changes = {"diversity": kind, "normalize": normalize}
    precise, rough = exact(**changes), summed(20_000, **changes)
    a, b = filled(precise, range(12)), filled(rough, range(12))
    for t in range(40, 44):
        assert label(rough, t, b) == pytest.approx(label(precise, t, a), abs=0.08 if normalize else 0.03)


def test_a_normalised_label_does_not_trust_a_prompt_sum_below_its_error() -> None:
    """Prompts far from all of the history: the sum of k_T^2 is noise around 0, of either sign."""
    history = summed(500, normalize=True)
    arm, least = filled(history, range(12)), 12 / math.sqrt(1000)
    g, below = torch.Generator().manual_seed(1), 0
    for output in WORLD.outputs[:40, 2]:
        prompt = 30.0 * torch.randn(4, generator=g, dtype=torch.float64)
        rows = history.rows(prompt, output[None], torch.zeros((0, 4)))
        joint, prompts = (history.features(rows)[0][:2, 0] * arm.served[:2]).sum(1).tolist()
        below += prompts < least
        found = float(history.update(arm, rows, against=[arm])[0])
        assert found == pytest.approx(min(max(joint / max(prompts, least), 0.0), 1.0), abs=1e-12)
        assert float(history.update(arm, rows, against=[arm_of(history)])[0]) == 0.0
    assert below > 20


@pytest.mark.parametrize("kind", ["rke", "jkd"])
def test_scores_of_sums_approach_the_exact_scores(kind: str) -> None:
    precise, rough = exact(diversity=kind), summed(6_000, diversity=kind)
    for arm in (0, 2):
        known = precise.scores([filled(precise, range(60), arm=arm)])
        found = rough.scores([filled(rough, range(60), arm=arm)])
        assert found["outputs"] == known["outputs"] == 60
        for name in ("rke", "inverse_joint_rke", "conditional_rke"):
            assert found[name] == pytest.approx(known[name], rel=0.08), name
        for name in ("vendi", "conditional_vendi"):  # 64 frequencies alone
            assert 0.6 * float(known[name] or 0) < float(found[name] or 0) < 1.1 * float(known[name] or 0), name
        if kind == "jkd":
            assert found["joint_kernel_distance"] == pytest.approx(known["joint_kernel_distance"], abs=0.01)


def test_sums_do_not_depend_on_the_order_of_outputs_and_add_up_over_arms() -> None:
    history = summed(64, diversity="jkd")
    forward, backward = filled(history, range(9)), arm_of(history)
    for t in reversed(range(9)):
        backward = history.update(backward, row(history, t), against=())[1]
    torch.testing.assert_close(forward.served, backward.served, rtol=0.0, atol=1e-13)
    torch.testing.assert_close(forward.spread, backward.spread, rtol=0.0, atol=1e-13)
    halves = history.scores([filled(history, range(4)), filled(history, range(4, 9)), arm_of(history)])
    assert halves == pytest.approx(dict(history.scores([forward])), rel=1e-10)


# -- reports -------------------------------------------------------------------------------------------------------------------


def test_exact_reports_are_of_the_newest_outputs_of_each_arm_in_proportion() -> None:
    history = exact(max_samples=2000)
    collapsed, diverse = filled(history, range(300), arm=0), arm_of(history)
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        rows = torch.cat([WORLD.x[:200], torch.randn((200, 4), generator=g, dtype=torch.float64)], dim=1)
        diverse = history.update(diverse, rows, against=())[1]
    scores = history.scores([collapsed, diverse])
    assert scores["outputs"] == 900
    share = REPORT_ROWS * 300 // 900
    assert scores["rows"] == share + REPORT_ROWS * 600 // 900
    rows = torch.cat([collapsed.served[-share:], diverse.served[-(REPORT_ROWS * 600 // 900) :]])
    expected = 1.0 / float(kernels.gaussian(rows[:, 4:], rows[:, 4:], bandwidth=SIGMA_X).square().mean())
    assert scores["rke"] == pytest.approx(expected, rel=1e-12)
    assert all(value is None or math.isfinite(value) for value in scores.values())


def test_the_normalised_rule_charges_collapsed_arms_alike_for_narrow_and_for_wide_prompts() -> None:
    """Plain labels shrink when prompts lie far apart; normalised ones do not."""
    charged: dict[tuple[bool, float], float] = {}
    for normalize in (False, True):
        for sigma in (0.6, 0.15):
            policy = dak(normalise_labels=normalize, prompt_bandwidth=sigma)
            state = states.start(policy, arms=3)
            for t in range(60):
                state = states.fold(policy, state, outcome(WORLD, t, 0))
            charged[normalize, sigma] = float(state.arms[0].labels[20:].mean())
    assert charged[False, 0.15] < 0.5 * charged[False, 0.6]
    assert charged[True, 0.15] == pytest.approx(charged[True, 0.6], rel=0.1)
    assert charged[True, 0.6] > 0.85
