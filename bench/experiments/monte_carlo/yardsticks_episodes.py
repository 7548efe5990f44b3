"""What promptwise is compared with beyond `bench.experiments.baselines_episodes`: oracles that know every success probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from bandits import draw
from bandits.policies.promptwise import SMALLEST, by_horizon, by_ratio
from bandits.regression.ridge import MeanArm
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights
from bench.experiments.worlds.episodes import RECORDED, EpisodeWorld

Floats = npt.NDArray[np.float64]


def true_rates(world: EpisodeWorld) -> Floats:
    """(T, 4) success probabilities in `cheap_to_expensive`: the kind of a prompt is its longer coordinate."""
    kind = (world.features[:, 1] > world.features[:, 0]).astype(np.int64)
    return np.array([[0.30, 0.55, 0.70, 0.95], [0.60, 0.20, 0.85, 0.90]])[kind]


def recorded_rates(*, seed: int, rounds: int = 1000, recorded: Path = RECORDED) -> Floats:
    """(T, 2) shares of recorded answers that passed, in `retries` of that seed."""
    labels = np.load(recorded / "humaneval_pair" / "labels.npz")["labels"]
    return np.asarray(labels.mean(axis=2)[np.random.default_rng(seed).integers(0, len(labels), rounds)])


@dataclass(frozen=True, kw_only=True)
class Knowing(Policy):
    """PromptWise's rules on the true success probabilities, which take the place of the features."""

    kind: ClassVar[str] = "knowing"
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    summary: ClassVar[str] = "Yardstick: the best rule for one who knows every success probability."
    episodic: ClassVar[bool] = True

    rule: Literal["ratio", "horizon"]
    cost_weight: float
    max_attempts: int = 5

    def init(self) -> MeanArm:
        return MeanArm()

    def update(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].update(seen.reward)

    def succeeded(self, reward: float) -> bool:
        return reward >= 1.0

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        q = torch.stack([context.features for context in contexts]).clamp_min(SMALLEST)
        cost = torch.tensor([context.prices for context in contexts], dtype=torch.float64)
        left = self.max_attempts - torch.tensor([sum(context.attempts) for context in contexts], dtype=torch.float64)
        allowed = draw.allowed_mask(contexts)
        if self.rule == "horizon":
            return Weights(by_horizon(q, self.cost_weight * cost, allowed, left=left)[1] * (left > 0)[:, None])
        return Weights(by_ratio(q, cost, allowed, cost_weight=self.cost_weight)[1] * (left > 0)[:, None])
