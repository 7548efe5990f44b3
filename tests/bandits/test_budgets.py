"""Budgets and prices as `auto` plays them where rewards have little noise or are all alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.random import default_rng

from bandits import state as states
from bandits.objective import Budget, RewardMoments, terms, variance_over_arms
from bandits.registry import build
from bandits.simulation import Objective, World, simulate
from bandits.types import Context, Observation, State

SIGNALS = ("reward", "cost")


def test_the_variance_over_arms_is_that_of_arms_played_alike() -> None:
    g = default_rng(1)
    rewards = [g.standard_normal(400) + 3.0, g.standard_normal(3) - 1.0, np.array([])]
    arms = []
    for values in rewards:
        moments = RewardMoments()
        for value in values:
            moments = moments.add(float(value))
        arms.append(moments)
    wanted = np.mean([np.var(values) for values in rewards[:2]]) + np.var([np.mean(values) for values in rewards[:2]])
    assert variance_over_arms(arms) == pytest.approx(wanted)
    assert variance_over_arms([]) == 0.0


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_a_budget_is_neared_where_the_difference_is_large_beside_the_noise(noise: float) -> None:
    """By one over the root of the rounds. The noise of the dear arm alone, which is played most at first, would never reach the
    difference to the cheap one.
    """
    g, rounds = default_rng(2), 1_500
    expected = np.tile([0.5, 0.9], (rounds, 1))
    world = World(
        features=np.empty((rounds, 0)),
        rewards=expected + noise * g.standard_normal(expected.shape),
        expected=expected,
        prices=[0.1, 0.2],
        signals={"cost": np.tile([0.1, 0.2], (rounds, 1))},
    )
    policy = build("auto", {}, signals=SIGNALS, seed=1)
    trace = simulate(policy, world, objective=Objective(weights={"reward": 1.0}, budget=Budget("cost", 0.13)))
    spent = float(np.where(trace.picks == 1, 0.2, 0.1).mean())
    assert 0.0 < spent / 0.13 - 1.0 < 9.0 / math.sqrt(rounds)
    assert (trace.picks[-300:] == 1).sum() > 30, "what is left is spent on the better arm"


def fed(values: list[tuple[int, float, float]]) -> State:
    """A state after (arm, reward, cost)."""
    policy = build("auto", {}, signals=SIGNALS)
    state = states.start(policy, arms=2)
    for arm, reward, cost in values:
        state = policy.prepare(states.fold(policy, state, Observation(arm=arm, reward=reward, signals=(reward, cost))))
    return state


def weighed(state: State, weights: dict[str, float], prices: list[float]) -> list[float]:
    """The weights of two arms."""
    policy = build("auto", {}, signals=SIGNALS)
    facts = terms(SIGNALS, weights, {}, prices=prices, prices_per="call")
    found: list[float] = policy.weights(state, [Context(allowed=(True, True), **facts._asdict())]).values[0].tolist()
    return found


def test_while_rewards_are_alike_the_cheaper_arm_is_played() -> None:
    state = fed([(t % 2, 1.0, math.nan) for t in range(6)])
    assert weighed(state, {"reward": 1.0, "cost": -1.0}, [0.9, 0.001]) == [0.0, 1.0]
    assert weighed(state, {"reward": 1.0, "cost": 1.0}, [0.9, 0.001]) == [1.0, 0.0]
    assert sorted(weighed(state, {"reward": 1.0}, [0.9, 0.001])) == [0.0, 1.0], "nothing tells them apart: in turns"
