"""The drift detector, forgetting by half lives, and both in a simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bandits import drift
from bandits import state as states
from bandits.objective import Budget
from bandits.registry import build
from bandits.regression.ridge import MeanArm
from bandits.simulation import Objective, World, simulate
from bandits.types import Observation, State


def alarms(surprises: np.ndarray) -> list[int]:
    sums, found = drift.START, []
    for t, surprise in enumerate(surprises.tolist()):
        sums, alarm = drift.add(sums, surprise)
        found += [t] * alarm
    return found


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e9])
def test_a_fall_is_seen_within_two_dozen_outcomes_whatever_the_unit(unit: float) -> None:
    g = np.random.default_rng(1)
    noise = 0.3 * g.standard_normal(400)
    noise[300:] -= 0.8
    assert [300 < t < 324 for t in alarms(unit * noise)[:1]] == [True]
    assert [300 < t < 324 for t in alarms(-unit * noise)[:1]] == [True]


def measured(surprises: list[float], sums: drift.Sums = drift.START) -> drift.Sums:
    for surprise in surprises:
        sums, _ = drift.add(sums, surprise)
    return sums


STEADY = [-1.0, 1.0] * 15
"""Their root mean square is 1 after each of them; `up` is .65 behind them, and `down` 0."""


@pytest.mark.parametrize("unit", [1.0, -1.0, 2.0**-40, 2.0**40])
def test_the_first_surprises_of_a_change_do_not_widen_what_those_after_them_are_measured_by(unit: float) -> None:
    """The policy adapts. The root mean square of all is 4 after three of them; the later ones are less than that."""
    change = [-12.0, -11.0, -10.0] + [-3.0] * 7
    assert alarms(unit * np.array([*STEADY, *change])) == [30 + 9], "ten times 3 - .35 is the first sum above 25"


def test_a_sum_keeps_its_scale_until_it_is_0_again() -> None:
    sums = measured([*STEADY, -1.5, -1.0, -7.0])
    assert sums.scale_down == 1.0
    assert sums.down == pytest.approx(1.5 + 1.0 + 3.0 - 3 * 0.35)
    assert sums.scale_up == pytest.approx(((20 + 1.5**2 + 1.0) / 22) ** 0.5), "the other sum stood at 0"
    assert (sums.outcomes, sums.squares) == (33, 20 + 1.5**2 + 1.0 + 7.0**2)
    ended = measured([9.0] * 3, sums)
    assert ended.down == 0.0
    later = measured([-1.0], ended)
    assert later.scale_down == pytest.approx((ended.squares / 26) ** 0.5), "what ended its excursion is counted for the next one"


def test_a_scale_of_0_is_replaced_by_the_first_that_is_not() -> None:
    flat = measured([0.0] * 25)
    first = measured([-0.5], flat)
    assert (first.down, first.scale_down) == (2.65, 0.0)
    second = measured([-0.1], first)
    assert second.scale_down == 0.125
    assert second.down == pytest.approx(2.65 + 0.1 / 0.125 - 0.35)
    assert measured([-0.1], second).scale_down == 0.125


def test_absurd_surprises_of_an_arm_that_is_hardly_known_hide_no_change() -> None:
    absurd = [175.6, -1069.7, 154.5]
    assert alarms(np.array([*absurd, *STEADY, *[-4.0] * 12])) == [3 + 30 + 9]


@pytest.mark.parametrize("failures", [0.03, 0.1, 0.2, 0.3, 0.5])
def test_rewards_that_fail_now_and_then_raise_no_alarm(failures: float) -> None:
    arm, surprises = MeanArm(), []
    for reward in (np.random.default_rng(2).random(20_000) >= failures).astype(float).tolist():
        surprises.append(arm.surprise(reward))
        arm = arm.update(reward)
    assert alarms(np.array(surprises[1:])) == []


def test_one_absurd_value_is_no_alarm_and_values_that_are_all_alike_are_none() -> None:
    values = np.random.default_rng(3).standard_normal(200)
    values[100] = 1e12
    assert alarms(values) == []
    assert alarms(np.zeros(100)) == []


@pytest.mark.parametrize(("kind", "settings"), [("greedy", {}), ("thompson", {}), ("pak-ucb", {"random_features": 8})])
def test_a_policy_forgets_all_that_is_older_than_two_half_lives(kind: str, settings: dict[str, Any]) -> None:
    g = np.random.default_rng(4)
    policy, plain = (build(kind, {**settings, **more}, dim=3) for more in ({"forget_half_life": 10}, {}))
    seen = [Observation(arm=t % 2, features=torch.from_numpy(g.standard_normal(3)), reward=float(g.random())) for t in range(45)]
    state, expected = states.start(policy, arms=2), states.start(plain, arms=2)
    for one in seen:
        state = states.fold(policy, state, one)
    for one in seen[30:]:  # since the drop before the last
        expected = states.fold(plain, expected, one)
    assert states.pack(plain, State(state.arms, state.reference)) == states.pack(plain, expected)
    assert state.outcomes == 45
    assert [arm.pulls for arm in state.recent] == [3, 2]
    back = states.unpack(policy, states.pack(policy, state))
    assert (back.outcomes, states.digest(policy, back)) == (45, states.digest(policy, state))


def falling(rounds: int = 1_200) -> World:
    g = np.random.default_rng(5)
    expected = np.tile([0.9, 0.5, 0.3], (rounds, 1))
    expected[rounds // 2 :, 0] = 0.1
    return World(features=np.empty((rounds, 0)), rewards=(g.random((rounds, 3)) < expected).astype(float), expected=expected)


@pytest.mark.parametrize("kind", ["greedy", "epsilon-greedy"])
def test_an_arm_that_falls_is_left_at_once_where_drift_is_watched(kind: str) -> None:
    world = falling()
    trace = simulate(build(kind, {"drift": "detect", **({} if kind == "epsilon-greedy" else {"initial_pulls": 5})}), world)
    assert [arm for _, arm in trace.alarms][:1] == [0]
    assert 600 < trace.alarms[0][0] < 640
    assert float((trace.picks[700:] == 0).mean()) < 0.15


def test_a_simulation_holds_a_budget_of_a_signal() -> None:
    g = np.random.default_rng(6)
    rounds = 1_500
    rewards = np.array([0.8, 0.5]) + 0.1 * g.standard_normal((rounds, 2))
    world = World(
        features=np.empty((rounds, 0)),
        rewards=rewards,
        expected=np.tile([0.8, 0.5], (rounds, 1)),
        signals={"latency": np.array([4.0, 1.0]) * g.uniform(0.5, 1.5, (rounds, 2))},
    )
    policy = build("greedy", {}, signals=("reward", "latency"))
    free = simulate(policy, world, objective=Objective(weights={"reward": 1.0}))
    held = simulate(policy, world, objective=Objective(weights={"reward": 1.0}, budget=Budget("latency", 2.0)))
    spent = [float(world.signals["latency"][np.arange(rounds), trace.picks.astype(int)].mean()) for trace in (free, held)]
    assert spent[0] > 3.8
    assert 1.8 < spent[1] < 2.25  # overspent by about 4 deviations of the root of the rounds, as the rule allows
