"""LinUCB with disjoint arms (Li et al. 2010): one linear ridge regression with a bias per arm.

z = [x, 1];  mean = z'theta + r0;  width = sqrt(z'(sum z z' + ridge I)^-1 z);  play argmax mean + exploration * width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from bandits import draw
from bandits.hyperparameters import hyper
from bandits.placement import Placement
from bandits.regression import Regression, as_float64, check_direction, remembered, stacked
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights


@dataclass(frozen=True, kw_only=True)
class LinUcb(Policy):
    """Per-arm linear UCB."""

    kind: ClassVar[str] = "lin-ucb"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "reward"})
    separate: ClassVar[bool] = True
    summary: ClassVar[str] = "Baseline: one linear regression with a bias per arm, optimism by its width."

    normalize: bool = hyper(True, "Scale every prompt vector to length one first; a zero vector is then refused.")
    ridge: float = hyper(1.0, "Regulariser.", above=0, source="Li et al. 2010, Alg. 1 (identity)")
    exploration: float = hyper(1.0, "Multiplier of the width.", at_least=0, source="Li et al. 2010, alpha")
    prior_mean: float = hyper(1.0, "r0: what an unseen region is believed to be worth.", unit="reward")
    initial_pulls: int = hyper(1, "Pulls per arm before the rule applies, least-pulled first.", at_least=0)
    exploration_floor: float = hyper(
        0.0, "Weight mixed in uniformly over the allowed arms, so that no propensity is 0.", at_least=0, at_most=1
    )

    def lift(self, x: Tensor) -> Tensor:
        """(..., d + 1) [x, 1]."""
        x = as_float64(x, normalize=self.normalize)
        return torch.cat([x, torch.ones((*x.shape[:-1], 1), dtype=x.dtype)], dim=-1)

    @cached_property
    def regression(self) -> Regression:
        """Linear in [x, 1]."""
        return Regression(lift=remembered(self.lift, size=self.dim + 1), size=self.dim + 1, ridge=self.ridge)

    def check_context(self, context: Context) -> None:
        check_direction(context.features, normalize=self.normalize)

    def blank(self) -> ArmState:
        return self.regression.blank()

    def learn(self, state: State, seen: Observation) -> ArmState:
        target = seen.reward - self.prior_mean
        return self.regression.learn(state.arms[seen.arm], seen.features, target, anticipated=seen.anticipated)

    def learn_all(self, state: State, seen: Sequence[Observation]) -> ArmState:
        return self.regression.learn_all(
            state.arms[seen[0].arm],
            [one.features for one in seen],
            [one.reward - self.prior_mean for one in seen],
            anticipated=[one.anticipated for one in seen],
        )

    def prepare(self, state: State) -> State:
        self.regression.derive(state.arms)
        return state

    def anticipate(self, arm: ArmState, features: Tensor) -> ArmState:
        return self.regression.anticipate(arm, features)

    def anticipate_all(self, arm: ArmState, features: Sequence[Tensor]) -> ArmState:
        return self.regression.anticipate_all(arm, features)

    def release(self, arm: ArmState, features: Tensor) -> ArmState:
        return self.regression.release(arm, features)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        placement = state.cache if isinstance(state.cache, Placement) else None
        mean, width = self.regression.score(state.arms, self.regression.lift(stacked(contexts)), placement)
        mean = mean + self.prior_mean
        bonus = self.exploration * width
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in([arm.pulls for arm in state.arms], contexts, self.initial_pulls)
        values = draw.finish(draw.best(mean + bonus, allowed), first, allowed, floor=self.exploration_floor)
        return Weights(values, {"estimate": mean, "bonus": bonus})
