"""Worlds with known answers for pak-ucb and dak-ucb: prompts, and what every arm would return for each.

    prompt_clusters         three clusters of prompts, each with a best arm of its own                          (golden G2)
    recorded_answers        328 programming tasks, two models, ten recorded answers each                        (golden G6)
    collapsed_and_diverse   two arms that repeat themselves, one that never does and is slightly worse          (golden G4)

The first two are tables of rewards for `bandits.simulation`; in the third the outputs matter, and `play` runs a policy in it.
The goldens are the default seeds; another seed is another world of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bandits import draw
from bandits import state as states
from bandits.functional import joint_diversity, kernels
from bandits.simulation import World
from bandits.types import Context, Observation, Policy
from tools.recorded_tables import DATA, hash_features

Floats = npt.NDArray[np.float64]
Picks = npt.NDArray[np.uint8]

SIGMA = math.sqrt(0.5)
"""Bandwidth of every kernel in golden G4."""


def unit(rows: Floats) -> Floats:
    """Rows scaled to length one."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


# -- rewards alone ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GroupedWorld(World):
    """A world whose prompts come in groups. group: (T,) the kind of each prompt, hidden from every policy."""

    group: npt.NDArray[np.int64]

    def optimal(self, picks: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(T,) whether the pick has the highest expected reward; ties count as optimal."""
        return np.asarray(self.earned(picks) >= self.expected.max(axis=1) - 1e-12)

    def earned(self, picks: npt.ArrayLike) -> Floats:
        """(T,) expected rewards of the picks."""
        return np.asarray(self.expected[np.arange(len(self.expected)), np.asarray(picks, dtype=np.int64)])

    @property
    def best_arm(self) -> int:
        """The arm that is best on average."""
        return int(self.expected.mean(axis=0).argmax())

    @property
    def best_per_group(self) -> Picks:
        """(T,) the picks of who knows the kind of each prompt, but not the prompt."""
        best = {g: int(self.expected[self.group == g].mean(axis=0).argmax()) for g in np.unique(self.group)}
        return np.array([best[g] for g in self.group], dtype=np.uint8)

    def gain(self, picks: npt.ArrayLike) -> float:
        """Mean expected reward above that of the best arm on average ("outscoring the best")."""
        return float((self.earned(picks) - self.expected[:, self.best_arm]).mean())


def prompt_clusters(*, seed: int = 7, rounds: int = 600) -> GroupedWorld:
    """Three clusters on the sphere in R^8; success is a coin flip, and each cluster has its own best arm."""
    g = np.random.default_rng(seed)
    centres = unit(g.standard_normal((3, 8)))
    cluster = g.integers(0, 3, size=rounds)
    features = unit(centres[cluster] + 0.25 * g.standard_normal((rounds, 8)))
    means = np.array([[0.9, 0.4, 0.5], [0.3, 0.8, 0.5], [0.4, 0.3, 0.7]])[cluster]
    rewards = (g.random((rounds, 3)) < means).astype(np.float64)
    return GroupedWorld(features=features, rewards=rewards, expected=means, group=cluster)


def recorded_answers(*, seed: int = 2025, rounds: int = 2000, recorded: Path = DATA) -> GroupedWorld:
    """Tasks drawn uniformly, and one recorded answer of each model (as released, Markdown fences included); hashed text features.

    expected: the share of a model's ten answers that passed.  group: 0 Python, 1 C++.
    """
    source = np.load(recorded / "humaneval_pair" / "labels.npz")
    labels = source["labels"]
    g = np.random.default_rng(seed)
    tasks, answers = g.integers(0, len(labels), rounds), g.integers(0, 10, (rounds, 2))
    rewards = np.stack([labels[tasks, arm, answers[:, arm]] for arm in range(2)], axis=1).astype(np.float64)
    features = hash_features([str(prompt) for prompt in source["prompts"]])[tasks]
    expected = labels.mean(axis=2)[tasks]
    return GroupedWorld(features=features, rewards=rewards, expected=expected, group=source["kind"][tasks].astype(np.int64))


# -- rewards and outputs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OutputWorld:
    """A world with outputs.

    features: (T, d) prompts.  outputs: (T, K, e).  rewards: (T, K) fidelity.  references: (T, e) real outputs.
    uniforms: (T,) the number behind the draw of each round.
    """

    features: Floats
    outputs: Floats
    rewards: Floats
    references: Floats
    uniforms: Floats

    def fidelity(self, picks: npt.ArrayLike) -> float:
        """Mean reward of the picks."""
        return float(self.rewards[np.arange(len(self.rewards)), np.asarray(picks, dtype=np.int64)].mean())

    def inverse_joint_rke(self, picks: npt.ArrayLike) -> float:
        """I-JRKE of what the picks served: low = diverse, given the prompts."""
        served = self.outputs[np.arange(len(self.outputs)), np.asarray(picks, dtype=np.int64)]
        prompts, outputs = (
            kernels.gaussian(rows, rows, bandwidth=SIGMA) for rows in map(torch.from_numpy, (self.features, served))
        )
        return joint_diversity.inverse_joint_rke(prompts, outputs)


def collapsed_and_diverse(*, seed: int = 17, rounds: int = 400) -> OutputWorld:
    """Two clusters of prompts in R^4. Arms 0 and 1 have one output per cluster and fidelity .80, arm 2 a fresh one and .75."""
    g = np.random.default_rng(seed)
    centres = unit(g.standard_normal((2, 4)))
    cluster = g.integers(0, 2, rounds)
    features = unit(centres[cluster] + 0.1 * g.standard_normal((rounds, 4)))
    base = unit(g.standard_normal((2, 2, 4)))
    outputs = np.empty((rounds, 3, 4))
    for arm in range(2):
        outputs[:, arm] = unit(base[arm, cluster] + 0.02 * g.standard_normal((rounds, 4)))
    outputs[:, 2] = unit(g.standard_normal((rounds, 4)))
    rewards = np.clip(np.array([0.80, 0.80, 0.75]) + 0.05 * g.standard_normal((rounds, 3)), 0, 1)
    references = unit(g.standard_normal((rounds, 4)))
    return OutputWorld(features=features, outputs=outputs, rewards=rewards, references=references, uniforms=g.random(rounds))


def play(policy: Policy, world: OutputWorld, *, each: Callable[[int], object] = lambda t: None) -> Picks:
    """(T,) the arms that were picked; every outcome is learned at once. each: called after every round (progress bars)."""
    rounds, arms = world.rewards.shape
    features, outputs, references = map(torch.from_numpy, (world.features, world.outputs, world.references))
    state = states.start(policy, arms=arms)
    picks = np.empty(rounds, dtype=np.uint8)
    for t in range(rounds):
        context = Context(features=features[t], allowed=(True,) * arms)
        arm = draw.draw_at(policy.weights(state, [context]).values[0], float(world.uniforms[t])).arm
        seen = Observation(
            arm=arm,
            features=features[t],
            reward=float(world.rewards[t, arm]),
            output=outputs[t, arm][None],
            reference=references[t][None],
        )
        state = policy.prepare(states.fold(policy, state, seen))
        picks[t] = arm
        each(t)
    return picks
