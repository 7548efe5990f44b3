"""LinUCB with disjoint arms (Li et al. 2010): one linear ridge regression with a bias per arm.

z = [x, 1];  mean = z'theta + r0;  width = sqrt(z'(sum z z' + ridge I)^-1 z);  play argmax mean + exploration * width
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bandits.hyperparameters import (
    drift_field,
    exploration_floor_field,
    forget_half_life_field,
    hyper,
    initial_pulls_field,
    normalize_field,
    ridge_field,
)
from bandits.regression.model import CachedFeatureMap, Regression, as_float64
from bandits.regression.ucb import RegressionUcb


@dataclass(frozen=True, kw_only=True)
class LinUcb(RegressionUcb):
    """Per-arm linear UCB."""

    kind: ClassVar[str] = "lin-ucb"
    summary: ClassVar[str] = "Baseline: one linear regression with a bias per arm, optimism by its width."

    normalize: bool = normalize_field()
    ridge: float = ridge_field("Regulariser.", source="Li et al. 2010, Alg. 1 (identity)")
    exploration: float = hyper(1.0, "Multiplier of the width.", at_least=0, source="Li et al. 2010, alpha", live=True)
    prior_mean: float = hyper(1.0, "r0: what an unseen region is believed to be worth.", unit="reward")
    initial_pulls: int = initial_pulls_field()
    exploration_floor: float = exploration_floor_field()
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    def feature_map(self, x: Tensor) -> Tensor:
        """(..., d + 1) [x, 1]."""
        x = as_float64(x, normalize=self.normalize)
        return torch.cat([x, torch.ones((*x.shape[:-1], 1), dtype=x.dtype)], dim=-1)

    @cached_property
    def regression(self) -> Regression:
        """Linear in [x, 1]."""
        size = self.dim + 1
        return Regression(feature_map=CachedFeatureMap(self.feature_map, size=size), size=size, ridge=self.ridge)
