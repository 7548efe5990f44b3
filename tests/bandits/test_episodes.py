from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bandits.episodes import play_episodes
from bandits.policies.baselines import OneArm
from bandits.regression.ridge import MeanArm
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights


@dataclass(frozen=True, kw_only=True)
class Ladder(Policy):
    """Calls arm 0, 1, 0, 1, 0 and stops; succeeds from 2 on. Writes down what it is given."""

    kind: ClassVar[str] = "ladder"
    needs: ClassVar[frozenset[Need]] = frozenset({"reward"})
    summary: ClassVar[str] = ""
    episodic: ClassVar[bool] = True

    def init(self) -> MeanArm:
        return MeanArm()

    def update(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].update(100.0 * seen.reward + seen.cost)

    def succeeded(self, reward: float) -> bool:
        return reward >= 2.0

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        made = sum(contexts[0].attempts)
        assert contexts[0].attempts == ((made + 1) // 2, made // 2)
        values = torch.zeros((1, 2), dtype=torch.float64)
        if made < 5:
            values[0, made % 2] = 1.0
        return Weights(values)


REWARDS = np.array(
    [
        [[0.5, 2.5, 9.0], [1.5, 9.0, 9.0]],  # 0: .5, 1: 1.5, 0 again: 2.5 succeeds
        [[0.1, 0.2, 0.3], [-1.0, 1.0, 9.0]],  # five calls, then a stop
        [[3.0, 9.0, 9.0], [9.0, 9.0, 9.0]],  # at once
    ]
)


def test_the_kth_call_of_an_arm_reads_its_kth_reward_until_success_or_stop() -> None:
    trace = play_episodes(Ladder(), np.zeros((3, 0)), REWARDS, (1.0, 4.0))
    assert trace.picks.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert trace.picks.dtype == np.uint8
    assert trace.episodes.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2]
    assert trace.best.tolist() == [2.5, 1.0, 3.0]
    assert trace.costs.tolist() == [6.0, 11.0, 1.0]
    assert trace.utility(cost_weight=0.1) == np.mean([2.5 - 0.6, 1.0 - 1.1, 3.0 - 0.1])
    assert [arm.pulls for arm in trace.state.arms] == [6, 3]
    assert trace.state.arms[1].reward_sum == 100 * 1.5 + 3 * 4.0


def test_realised_costs_replace_prices() -> None:
    costs = np.arange(18.0).reshape(3, 2, 3)
    trace = play_episodes(Ladder(), np.zeros((3, 0)), REWARDS, (1.0, 4.0), costs=costs)
    assert trace.costs.tolist() == [0.0 + 3.0 + 1.0, 6.0 + 9.0 + 7.0 + 10.0 + 8.0, 12.0]


def test_it_goes_on_from_a_state() -> None:
    first = play_episodes(Ladder(), np.zeros((2, 0)), REWARDS[:2], (1.0, 4.0))
    rest = play_episodes(Ladder(), np.zeros((1, 0)), REWARDS[2:], (1.0, 4.0), state=first.state)
    whole = play_episodes(Ladder(), np.zeros((3, 0)), REWARDS, (1.0, 4.0))
    assert rest.state == whole.state


def test_a_policy_without_episodes_makes_one_call() -> None:
    ticks: list[int] = []
    trace = play_episodes(OneArm(arm=1), np.zeros((3, 0)), REWARDS, (1.0, 4.0), each=ticks.append)
    assert trace.picks.tolist() == [1, 1, 1]
    assert trace.best.tolist() == [1.5, -1.0, 9.0]
    assert ticks == [0, 1, 2]
