"""What policies that ignore the prompt have in common: the statistic of an arm is the average of each signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bandits import signals
from bandits.regression.ridge import MeanArm
from bandits.types import Amendment, ArmState, Need, Observation, Policy, State


@dataclass(frozen=True, kw_only=True)
class AveragesPolicy(Policy):
    """Base of the policies that learn averages."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reward"})
    weighs_signals: ClassVar[bool] = True

    def init(self) -> ArmState:
        return signals.init(lambda _: MeanArm(), len(self.signals))

    def update(self, state: State, seen: Observation) -> ArmState:
        return signals.update(state.arms[seen.arm], seen, lambda _, arm, value: arm.update(value))

    def amend_arm(self, state: State, change: Amendment) -> ArmState:
        return signals.amend(
            state.arms[change.arm],
            change,
            learn=lambda _, arm, value: arm.update(value),
            correct=lambda _, arm, old, new: arm.correct(old, new),
        )

    def surprise(self, state: State, seen: Observation) -> float | None:
        found: float | None = signals.parts(state.arms[seen.arm])[0].surprise(seen.reward)
        return found
