"""Baselines of promptwise: fixed preferences repeated until a call succeeds, and oracles that know every success probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bandits import draw
from bandits.hyperparameters import hyper
from bandits.policies.promptwise import SMALLEST, by_horizon, by_ratio
from bandits.regression.ridge import MeanArm
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights
from tools.recorded_tables import DATA
from tools.simulated_tasks.episodes import EpisodeWorld

Floats = npt.NDArray[np.float64]
UNSEEN = 1e300
"""Mean of an arm without outcomes: above all others, and so large that prices leave it as it is. Infinity is not drawn."""


def true_rates(world: EpisodeWorld) -> Floats:
    """(T, 4) success probabilities in `cheap_to_expensive`: the kind of a prompt is its longer coordinate."""
    kind = (world.features[:, 1] > world.features[:, 0]).astype(np.int64)
    return np.array([[0.30, 0.55, 0.70, 0.95], [0.60, 0.20, 0.85, 0.90]])[kind]


def recorded_rates(*, seed: int, rounds: int = 1000, recorded: Path = DATA) -> Floats:
    """(T, 2) shares of recorded answers that passed, in `retries` of that seed."""
    labels = np.load(recorded / "humaneval_pair" / "labels.npz")["labels"]
    return np.asarray(labels.mean(axis=2)[np.random.default_rng(seed).integers(0, len(labels), rounds)])


@dataclass(frozen=True, kw_only=True)
class _UntilSuccess(Policy):
    """Calls the best arm of a score until one succeeds."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reward", "cost"})
    episodic: ClassVar[bool] = True

    max_attempts: int = hyper(5, "Calls per episode at most.", at_least=1)

    def init(self) -> MeanArm:
        return MeanArm()

    def update(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].update(seen.reward)

    def succeeded(self, reward: float) -> bool:
        return reward >= 1.0

    def score(self, state: State, context: Context) -> Sequence[float]:
        """(K,) what is maximised."""
        raise NotImplementedError

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        scores = torch.tensor([self.score(state, context) for context in contexts], dtype=torch.float64)
        going_on: Tensor = torch.tensor([sum(context.attempts) < self.max_attempts for context in contexts])
        return Weights(draw.greedy_weights(scores, draw.allowed_mask(contexts)) * going_on[:, None])


@dataclass(frozen=True, kw_only=True)
class GreedyTillSuccess(_UntilSuccess):
    """The arm of highest mean reward - cost_weight * price, again and again; arms without any outcome first (PromptWise C5)."""

    kind: ClassVar[str] = "greedy-till-success"
    summary: ClassVar[str] = "Baseline: the best average reward minus cost, until success."

    cost_weight: float = hyper(0.05, "What one unit of cost is worth in successes.", at_least=0)

    def score(self, state: State, context: Context) -> Sequence[float]:
        return [arm.mean(unseen=UNSEEN) - self.cost_weight * price for arm, price in zip(state.arms, context.prices, strict=True)]


@dataclass(frozen=True, kw_only=True)
class CheapFirst(_UntilSuccess):
    """Each arm once, in the order of the prices, then the dearest again: the cascade that needs no learning (PromptWise C5)."""

    kind: ClassVar[str] = "cheap-first"
    summary: ClassVar[str] = "Baseline: the arms in the order of their prices until success."

    def score(self, state: State, context: Context) -> Sequence[float]:
        untried = any(n == 0 and is_allowed for n, is_allowed in zip(context.attempts, context.allowed, strict=True))
        if not untried:
            return context.prices
        return [-price if n == 0 else -float("inf") for n, price in zip(context.attempts, context.prices, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Knowing(_UntilSuccess):
    """PromptWise's rules on the true success probabilities, which take the place of the features."""

    kind: ClassVar[str] = "knowing"
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    summary: ClassVar[str] = "Yardstick: the best rule for one who knows every success probability."

    rule: Literal["ratio", "horizon"]
    cost_weight: float

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        q = torch.stack([context.features for context in contexts]).clamp_min(SMALLEST)
        cost = torch.tensor([context.prices for context in contexts], dtype=torch.float64)
        left = self.max_attempts - torch.tensor([sum(context.attempts) for context in contexts], dtype=torch.float64)
        allowed = draw.allowed_mask(contexts)
        if self.rule == "horizon":
            return Weights(by_horizon(q, self.cost_weight * cost, allowed, left=left)[1] * (left > 0)[:, None])
        return Weights(by_ratio(q, cost, allowed, cost_weight=self.cost_weight)[1] * (left > 0)[:, None])
