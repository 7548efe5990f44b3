"""PAK-UCB (arXiv 2410.13287): one kernel ridge regression per arm, exact or by random features (RFF-UCB), with optimism.

    mean  = z'theta + r0           theta = (sum z z' + ridge I)^-1 sum (r - r0) z
    width = sqrt(z'(sum z z' + ridge I)^-1 z)
    play argmax mean + exploration * width

Departures, each on purpose: rewards enter as r - r0, because a prior mean of 0 locks on the first good arm when
exploration is small; `exploration` is one number, because the papers' sqrt(2 ln(2 m / delta)) explores nearly uniformly;
pending decisions shrink the width; ties go to the lowest index. The released code's first inverse, 1/k + ridge, is wrong;
ours is 1/(k + ridge).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bandits.errors import InvalidHyperparameter
from bandits.functional import kernels
from bandits.hyperparameters import (
    drift_field,
    exploration_floor_field,
    forget_half_life_field,
    hyper,
    initial_pulls_field,
    normalize_field,
    prior_mean_field,
    ridge_field,
)
from bandits.regression.model import CachedFeatureMap, Regression, as_float64, feature_map
from bandits.regression.ucb import RegressionUcb


@dataclass(frozen=True, kw_only=True)
class PakUcb(RegressionUcb):
    """Per-arm kernelized UCB."""

    kind: ClassVar[str] = "pak-ucb"
    summary: ClassVar[str] = "Per prompt, the arm with the highest optimistic reward: one kernel regression per arm."

    kernel: Literal["rbf", "polynomial", "linear"] = hyper(
        "rbf",
        "rbf: exp(-|x-y|^2 / (2 bandwidth^2)); polynomial: (scale x.y + offset)^degree; linear: scale x.y.",
        source="PAK-UCB, sec. 5; released code",
    )
    bandwidth: float = hyper(
        1.0, "sigma of the rbf kernel.", above=0, unit="length of the (normalised) embedding", source="PAK-UCB, arXiv 2410.13287"
    )
    scale: float = hyper(1.0, "Factor on x.y in the polynomial and linear kernels.", above=0, source="released code, gamma")
    offset: float = hyper(1.0, "Constant in the polynomial kernel.", at_least=0, source="released code, c")
    degree: int = hyper(3, "Degree of the polynomial kernel.", at_least=1, at_most=10, source="released code, d")
    normalize: bool = normalize_field()
    random_features: int | None = hyper(
        128,
        "Number D of random frequencies of the rbf kernel (2D features, memory independent of the rounds); null = exact kernel.",
        at_least=1,
        at_most=8192,
        source="RFF-UCB",
    )
    add_linear: bool = hyper(False, "Append [1, x] to the random features.")
    ridge: float = ridge_field("Regulariser alpha.", source="PAK-UCB, arXiv 2410.13287")
    exploration: float = hyper(
        0.1,
        "Multiplier eta of the width. With an optimistic prior_mean little is needed; measured in docs/defaults.md.",
        at_least=0,
        source="PAK-UCB, arXiv 2410.13287 (theirs grows with the logarithm of the rounds)",
        live=True,
    )
    prior_mean: float = prior_mean_field()
    initial_pulls: int = initial_pulls_field()
    exploration_floor: float = exploration_floor_field()
    max_samples: int = hyper(
        2000,
        "Exact kernel only: observations kept per arm; beyond it the oldest quarter is forgotten.",
        at_least=4,
        at_most=20_000,
    )
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_features is not None and self.kernel != "rbf":
            raise InvalidHyperparameter("random_features", f"exist for the rbf kernel only; set null with {self.kernel!r}")
        if self.add_linear and self.random_features is None:
            raise InvalidHyperparameter("add_linear", "needs random_features; set a number, or false")

    # -- features ------------------------------------------------------------------------------------------------------

    @cached_property
    def frequencies(self) -> Tensor:
        """(D, d) random frequencies; (0, d) with an exact kernel."""
        return kernels.frequencies(seed=self.seed, count=self.random_features or 0, dim=self.dim, bandwidth=self.bandwidth)

    @cached_property
    def fingerprint(self) -> str:
        return "" if self.random_features is None else kernels.fingerprint(self.frequencies)

    def feature_map(self, x: Tensor) -> Tensor:
        """(..., p) what the regression sees of (..., d): the random features, or the vector itself for an exact kernel."""
        z = feature_map(x, normalize=self.normalize, frequencies=self.frequencies)
        if not self.add_linear:
            return z
        x = as_float64(x, normalize=self.normalize)
        return torch.cat([z, torch.ones((*x.shape[:-1], 1), dtype=x.dtype), x], dim=-1)

    def k(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, m) exact kernel matrix."""
        if self.kernel == "rbf":
            return kernels.gaussian(x, y, bandwidth=self.bandwidth)
        if self.kernel == "polynomial":
            return kernels.polynomial(x, y, scale=self.scale, offset=self.offset, degree=self.degree)
        return kernels.linear(x, y, scale=self.scale)

    @cached_property
    def regression(self) -> Regression:
        """Exact kernel or random features, as the hyperparameters say."""
        if self.random_features is None:
            return Regression(
                feature_map=self.feature_map, size=self.dim, kernel=self.k, ridge=self.ridge, max_samples=self.max_samples
            )
        size = 2 * self.random_features + (1 + self.dim if self.add_linear else 0)
        return Regression(feature_map=CachedFeatureMap(self.feature_map, size=size), size=size, ridge=self.ridge)
