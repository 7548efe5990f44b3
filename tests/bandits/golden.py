"""Worlds, policies and loops that the tests of DAK-UCB share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bandits import draw
from bandits import state as states
from bandits.policies.dak_ucb import DakUcb
from bandits.types import REFERENCE, Context, Observation, Policy, State

SIGMA = math.sqrt(0.5)
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "exact labels": {"label_features": None},
    "exact prompts": {"random_features": None},
    "exact": {"random_features": None, "label_features": None},
}


@dataclass(frozen=True)
class World:
    """x: (T, d) prompts.  outputs: (T, K, e).  rewards: (T, K).  references: (T, e).  uniforms: (T,)."""

    x: Tensor
    outputs: Tensor
    rewards: Tensor
    references: Tensor
    uniforms: Tensor


def unit(array: np.ndarray) -> np.ndarray:
    return np.asarray(array / np.linalg.norm(array, axis=-1, keepdims=True))


def collapsed_and_diverse(rounds: int = 400) -> World:
    """Golden G4: two arms with one output per prompt cluster, and a diverse one that is slightly worse."""
    g = np.random.default_rng(17)
    centres = unit(g.standard_normal((2, 4)))
    cluster = g.integers(0, 2, rounds)
    x = unit(centres[cluster] + 0.1 * g.standard_normal((rounds, 4)))
    base = unit(g.standard_normal((2, 2, 4)))
    outputs = np.empty((rounds, 3, 4))
    for arm in range(2):
        outputs[:, arm] = unit(base[arm, cluster] + 0.02 * g.standard_normal((rounds, 4)))
    outputs[:, 2] = unit(g.standard_normal((rounds, 4)))
    rewards = np.clip(np.array([0.80, 0.80, 0.75]) + 0.05 * g.standard_normal((rounds, 3)), 0, 1)
    references = unit(g.standard_normal((rounds, 4)))
    return World(*(torch.from_numpy(a) for a in (x, outputs, rewards, references, g.random(rounds))))


def coin_flips(rounds: int, *, prompts: int, arms: int = 3, seed: int = 5) -> World:
    """Few different prompts, rewards 0 or 1: many exact ties."""
    g = np.random.default_rng(seed)
    x = unit(g.standard_normal((prompts, 4)))[g.integers(0, prompts, rounds)]
    outputs, references = g.standard_normal((rounds, arms, 3)), g.standard_normal((rounds, 3))
    rewards = (g.random((rounds, arms)) < 0.6).astype(float)
    return World(*(torch.from_numpy(a) for a in (x, outputs, rewards, references, g.random(rounds))))


WORLD = collapsed_and_diverse()


def dak(**hyperparameters: Any) -> DakUcb:
    """The policy of the golden runs, unless said otherwise: exact, bandwidths sqrt(1/2), r0 = 0, both widths as they are."""
    golden: dict[str, Any] = {
        "dim": 4,
        "output_dim": 4,
        "seed": 3,
        "prompt_bandwidth": SIGMA,
        "output_bandwidth": SIGMA,
        "prior_mean": 0.0,
        "normalize": False,
        "exploration": 1.0,
        "diversity_exploration": 1.0,
        "random_features": None,
        "label_features": None,
    }
    return DakUcb(**{**golden, **hyperparameters})


def outcome(world: World, t: int, arm: int, *, was_pending: bool = False, reference: bool = True) -> Observation:
    return Observation(
        arm=arm,
        features=world.x[t],
        reward=float(world.rewards[t, arm]),
        output=world.outputs[t, arm][None],
        reference=world.references[t][None] if reference else torch.zeros((0, 0), dtype=torch.float64),
        was_pending=was_pending,
    )


def ask(policy: Policy, state: State, x: Tensor, **context: Any) -> Tensor:
    """(K,) the distribution for one prompt."""
    return policy.weights(state, [Context(features=x, allowed=(True,) * len(state.arms), **context)]).values[0]


def play(
    policy: Policy,
    world: World,
    *,
    rounds: int = 400,
    delays: Sequence[int] = (),
    prepare: bool = True,
    state: State | None = None,
) -> tuple[np.ndarray, State]:
    """Picks (rounds,) and the last state; delayed outcomes are marked pending and come in the order in which they are due."""
    arms = world.rewards.shape[1]
    state = states.start(policy, arms=arms) if state is None else state
    pending, due, picks = [0] * arms, {}, []  # type: ignore[var-annotated]
    for t in range(rounds):
        arm = draw.draw_at(ask(policy, state, world.x[t], pending=tuple(pending)), float(world.uniforms[t])).arm
        picks.append(arm)
        pending[arm] += 1
        wait = delays[t] if len(delays) else 0
        if wait:
            state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], world.x[t]))
        due.setdefault(t + wait, []).append((t, arm))
        for when, which in due.pop(t, ()):
            state = states.fold(policy, state, outcome(world, when, which, was_pending=bool(len(delays)) and delays[when] > 0))
            pending[which] -= 1
        if prepare:
            state = policy.prepare(state)
    return np.array(picks, dtype=np.uint8), state


def serve(policy: DakUcb, world: World, arms: Sequence[int], *, state: State | None = None) -> State:
    """The state after these arms were played, one a round."""
    state = states.start(policy, arms=world.rewards.shape[1]) if state is None else state
    for t, arm in enumerate(arms):
        state = states.fold(policy, state, outcome(world, t, arm))
    return state


def post(policy: DakUcb, state: State, prompts: Tensor, outputs: Tensor) -> State:
    pairs = Observation(arm=REFERENCE, features=prompts, output=outputs)
    policy.check_reference(state, pairs)
    return states.fold(policy, state, pairs)


def kernel(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    return math.exp(-float(((a - b) ** 2).sum()) / (2 * sigma**2))
