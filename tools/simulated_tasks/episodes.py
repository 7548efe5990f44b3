"""Worlds of episodes: what every call of every arm would return on every prompt, and what it costs.

cheap_to_expensive   four arms, two kinds of prompt; retries are independent
free_and_paid        an arm that costs nothing and hardly ever succeeds, and one that costs 1 and nearly always does
retries              328 programming tasks, two models, ten recorded answers each: retries are correlated, as they are in truth
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.recorded_tables import DATA, hash_features

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class EpisodeWorld:
    """A world of episodes.

    features: (T, d), the last column is a constant 1.  rewards: (T, K, A) of the k-th call of an arm.  prices: (K,).
    """

    features: Floats
    rewards: Floats
    prices: tuple[float, ...]


def cheap_to_expensive(*, rounds: int = 800, calls: int = 5, seed: int = 31) -> EpisodeWorld:
    """Prompts near one of two unit vectors; each arm has its own success rate for either kind. (Golden G5 is the default.)"""
    g = np.random.default_rng(seed)
    kind = g.integers(0, 2, rounds)
    x = np.c_[np.eye(3)[kind] + 0.05 * g.standard_normal((rounds, 3)), np.ones(rounds)]
    rates = np.array([[0.30, 0.55, 0.70, 0.95], [0.60, 0.20, 0.85, 0.90]])
    rewards = g.random((rounds, 4, calls)) < rates[kind][:, :, None]
    return EpisodeWorld(features=x, rewards=rewards.astype(np.float64), prices=(0.75, 1.37, 5.5, 12.5))


def free_and_paid(*, rounds: int = 60, calls: int = 5, seed: int = 0) -> EpisodeWorld:
    """A free local model (.05) and a paid one (.95), prompts in any direction: the commonest set-up of all."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((rounds, 3))
    rewards = g.random((rounds, 2, calls)) < np.array([0.05, 0.95])[:, None]
    features = np.c_[x / np.linalg.norm(x, axis=1, keepdims=True), np.ones(rounds)]
    return EpisodeWorld(features=features, rewards=rewards.astype(np.float64), prices=(0.0, 1.0))


def retries(*, rounds: int = 1000, calls: int = 5, seed: int = 2026, recorded: Path = DATA) -> EpisodeWorld:
    """Tasks drawn uniformly; the calls of an arm in an episode read its recorded answers without replacement (as released,
    Markdown fences included). Prices are USD per million tokens. Features: hashed text, projected to 16 random directions, length
    one, and a constant. (Golden G6 of PromptWise is the default.)
    """
    source = np.load(recorded / "humaneval_pair" / "labels.npz")
    g = np.random.default_rng(seed)
    tasks = g.integers(0, 328, rounds)
    answers = np.argsort(g.random((rounds, 2, 10)), axis=2)[:, :, :calls]
    projected = hash_features([str(prompt) for prompt in source["prompts"]]) @ np.random.default_rng(5).standard_normal((256, 16))
    features = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    rewards = source["labels"][tasks[:, None, None], np.arange(2)[None, :, None], answers]
    return EpisodeWorld(features=np.c_[features[tasks], np.ones(rounds)], rewards=rewards.astype(np.float64), prices=(0.75, 1.6))
