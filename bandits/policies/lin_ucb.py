"""LinUCB with disjoint arms (Li et al. 2010): one linear ridge regression with a bias per arm.

z = [x, 1];  mean = z'theta + r0;  width = sqrt(z'(sum z z' + ridge I)^-1 z);  play argmax mean + exploration * width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bandits import draw
from bandits.arms import RidgeArm
from bandits.errors import InvalidContext
from bandits.hyperparameters import hyper
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights


@dataclass(frozen=True, kw_only=True)
class LinUcb(Policy):
    """Per-arm linear UCB."""

    kind: ClassVar[str] = "lin-ucb"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "reward"})
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
        x = x.to(torch.float64, copy=True)
        if self.normalize:
            x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.cat([x, torch.ones((*x.shape[:-1], 1), dtype=x.dtype)], dim=-1)

    def check_context(self, context: Context) -> None:
        if self.normalize and not bool(context.features.any()):
            raise InvalidContext(
                "prompt", "a vector of zeros cannot be scaled to length one; send another, or set normalize: false"
            )

    def blank(self) -> RidgeArm:
        return RidgeArm.blank(self.dim + 1)

    def learn(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].learn(
            self.lift(seen.features), seen.reward - self.prior_mean, ridge=self.ridge, anticipated=seen.anticipated
        )

    def anticipate(self, arm: ArmState, features: Tensor) -> ArmState:
        return arm.anticipate(self.lift(features), ridge=self.ridge)

    def release(self, arm: ArmState, features: Tensor) -> ArmState:
        return arm.release(self.lift(features), ridge=self.ridge)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        z = self.lift(torch.stack([context.features for context in contexts]))
        scored = [arm.score(z, ridge=self.ridge) for arm in state.arms]
        mean = torch.stack([pair[0] for pair in scored], dim=1) + self.prior_mean
        bonus = self.exploration * torch.stack([pair[1] for pair in scored], dim=1)
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in([arm.pulls for arm in state.arms], contexts, self.initial_pulls)
        values = draw.finish(draw.best(mean + bonus, allowed), first, allowed, floor=self.exploration_floor)
        return Weights(values, {"estimate": mean, "bonus": bonus})
