"""Policies that ignore the prompt: baselines, and sound choices where the prompt does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bandits import draw, signals
from bandits.hyperparameters import drift_field, exploration_floor_field, forget_half_life_field, hyper, initial_pulls_field
from bandits.regression.averages import AveragesPolicy
from bandits.types import Context, State, Weights


@dataclass(frozen=True, kw_only=True)
class _Baseline(AveragesPolicy):
    """Base of the baselines."""

    def _estimates(self, state: State, contexts: Sequence[Context], *, unseen: float) -> dict[str, Tensor]:
        """`estimate` (B, K), and the averages of each signal where there are several. unseen: the reward before any outcome."""
        means = []
        for k in range(len(self.signals)):
            mean = [arm.mean(unseen=0.0 if k else unseen) for arm in signals.part(state.arms, k)]
            means.append(torch.tensor(mean, dtype=torch.float64).expand(len(contexts), -1).clone())
        return {"estimate": signals.weigh(contexts, means, [])[0]} | signals.tables(self.signals, means)

    def _best(self, state: State, contexts: Sequence[Context], *, unseen: float, initial_pulls: int, floor: float) -> Weights:
        """The arm with the best average, after burn-in and floor. unseen: as of `_estimates`."""
        scores = self._estimates(state, contexts, unseen=unseen)
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in_arms([arm.pulls for arm in state.arms], contexts, initial_pulls)
        best = draw.greedy_weights(scores["estimate"], allowed)
        return Weights(draw.apply_burn_in_and_floor(best, first, allowed, floor=floor), scores, first)


@dataclass(frozen=True, kw_only=True)
class Random(_Baseline):
    """Uniform over the allowed arms."""

    kind: ClassVar[str] = "random"
    summary: ClassVar[str] = "Baseline: uniformly random over the allowed arms."

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        return Weights(draw.uniform_over(draw.allowed_mask(contexts)))


@dataclass(frozen=True, kw_only=True)
class OneArm(_Baseline):
    """Always the same arm."""

    kind: ClassVar[str] = "one-arm"
    summary: ClassVar[str] = "Baseline: always the same arm; the lowest allowed one where a decision forbids it."

    arm: int = hyper(0, "Index of the arm, in the order in which the arms were added.", at_least=0)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        preference = torch.zeros((len(contexts), len(state.arms)), dtype=torch.float64)
        if self.arm < len(state.arms):
            preference[:, self.arm] = 1.0
        return Weights(draw.greedy_weights(preference, draw.allowed_mask(contexts)))


@dataclass(frozen=True, kw_only=True)
class Greedy(_Baseline):
    """The arm with the best average so far."""

    kind: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "Baseline: the arm with the best average reward so far."

    initial_pulls: int = initial_pulls_field()
    prior_mean: float = hyper(1.0, "What an arm without any outcome is believed to be worth.", unit="reward")
    exploration_floor: float = exploration_floor_field()
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        return self._best(state, contexts, unseen=self.prior_mean, initial_pulls=self.initial_pulls, floor=self.exploration_floor)


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(_Baseline):
    """The best average, and any allowed arm with probability epsilon."""

    kind: ClassVar[str] = "epsilon-greedy"
    summary: ClassVar[str] = "Baseline: the best average, and with probability epsilon any allowed arm."

    epsilon: float = hyper(0.1, "Probability of a uniformly random arm.", at_least=0, at_most=1, live=True)
    initial_pulls: int = initial_pulls_field()
    prior_mean: float = hyper(1.0, "What an arm without any outcome is believed to be worth.", unit="reward")
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        return self._best(state, contexts, unseen=self.prior_mean, initial_pulls=self.initial_pulls, floor=self.epsilon)
