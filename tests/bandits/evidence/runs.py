"""The golden run of `auto`, a loop that plays it, and a dense Gaussian process to compare its posterior with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bandits import state as states
from bandits.policies.auto import Auto
from bandits.registry import build
from bandits.types import Context, Observation, State

Floats = NDArray[np.float64]

_ERFC = (  # Numerical Recipes in C, 2nd ed., section 6.2: t exp(-x^2 + polynomial in t), t = 1 / (1 + x / 2)
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)


def rational_cdf(z: Floats) -> Floats:
    """P(N(0, 1) < z) with relative error 1.2e-7: that of the reference, whose digits depend on it."""
    x = np.abs(z) * np.sqrt(0.5)
    t = 1.0 / (1.0 + 0.5 * x)
    exponent = np.zeros_like(t)
    for coefficient in reversed(_ERFC):
        exponent = exponent * t + coefficient
    below_minus = 0.5 * t * np.exp(exponent - x * x)
    return np.asarray(np.where(z > 0.0, 1.0 - below_minus, below_minus))


class World(NamedTuple):
    """prompts: (T, d).  rewards: (T, K)."""

    prompts: Floats
    rewards: Floats


def logistic() -> World:
    """The golden world: 300 prompts in R^4, three arms, rewards 0 or 1 by a logistic model of the prompt."""
    g = np.random.default_rng(42)
    prompts, directions = g.standard_normal((300, 4)), g.standard_normal((3, 4))
    expected = 1.0 / (1.0 + np.exp(-2.0 * prompts @ directions.T))
    return World(prompts, (g.random(expected.shape) < expected).astype(float))


def auto(*, dim: int, seed: int = 0, signals: Sequence[str] = ("reward",), **settings: Any) -> Auto:
    policy = build("auto", settings, dim=dim, seed=seed, signals=tuple(signals))
    assert isinstance(policy, Auto)
    return policy


def tensor(x: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))


def context(state: State, x: Floats, **others: Any) -> Context:
    return Context(**{"allowed": (True,) * len(state.arms), "features": tensor(x), **others})


def weights(policy: Auto, state: State, x: Floats, **others: Any) -> Floats:
    """(K,) for one prompt."""
    return np.asarray(policy.weights(state, [context(state, x, **others)]).values[0].numpy())


@dataclass
class Bandit:
    """A policy with its state, as a server drives it: pending decisions, late outcomes, preparation when the caller likes."""

    policy: Auto
    state: State
    pending: list[int]
    decided: list[int]

    @staticmethod
    def start(policy: Auto, *, arms: int) -> Bandit:
        return Bandit(policy, states.start(policy, arms=arms), [0] * arms, [0] * arms)

    def weights(self, x: Floats, **others: Any) -> Floats:
        return weights(self.policy, self.state, x, **{"pending": tuple(self.pending), **others})

    def decide(self, arm: int, x: Floats) -> None:
        self.pending[arm] += 1
        self.decided[arm] += 1
        self.state = states.with_arm(self.state, arm, self.policy.add_pending(self.state.arms[arm], tensor(x)))

    def expire(self, arm: int, x: Floats) -> None:
        self.pending[arm] -= 1
        self.state = states.with_arm(self.state, arm, self.policy.remove_pending(self.state.arms[arm], tensor(x)))

    def learn(self, arm: int, x: Floats, *signals: float, prepare: bool = True) -> None:
        self.pending[arm] -= 1
        seen = Observation(arm=arm, features=tensor(x), reward=signals[0], signals=signals, was_pending=True)
        self.state = states.fold(self.policy, self.state, seen)
        if prepare:
            self.prepare()

    def prepare(self) -> None:
        if self.policy.has_to_prepare(self.state):
            self.state = self.policy.prepare(self.state)


def draw(weights: Floats, u: float) -> int:
    """By inverse CDF."""
    return min(int(np.searchsorted(np.cumsum(weights), u, side="right")), len(weights) - 1)


def play(
    world: World, *, seed: int = 0, batch: int = 1, signals: Callable[[int, int], Sequence[float]] | None = None, **settings: Any
) -> tuple[NDArray[np.uint8], Bandit]:
    """Picks, and the bandit afterwards. batch: outcomes come together after so many decisions.

    signals: (round, arm) -> the outcome; default: the reward alone.
    """
    uniforms = np.random.default_rng([seed, 1])
    bandit = Bandit.start(auto(dim=world.prompts.shape[1], seed=seed, **settings), arms=world.rewards.shape[1])
    picks: list[int] = []
    for t, x in enumerate(world.prompts):
        arm = draw(bandit.weights(x), uniforms.random())
        bandit.decide(arm, x)
        picks.append(arm)
        if len(picks) % batch == 0:
            for earlier in range(t + 1 - batch, t + 1):
                arm = picks[earlier]
                outcome = [float(world.rewards[earlier, arm])] if signals is None else signals(earlier, arm)
                bandit.learn(arm, world.prompts[earlier], *outcome)
    return np.array(picks, dtype=np.uint8), bandit


class GaussianProcess(NamedTuple):
    """Values of all arms at all prompts, jointly: w'(theta_0 + delta_a), delta_a of `own` entries, and outcomes of some.

    T, D: (q,) and (own,) prior precisions.  arms: (n,).  w: (n, q).  y: (n,).
    """

    T: Floats
    D: Floats
    noise: float
    arms: NDArray[np.int64]
    w: Floats
    y: Floats

    def _prior(self, arms: NDArray[np.int64], rows: Floats, others: NDArray[np.int64], columns: Floats) -> Floats:
        own = len(self.D)
        same = arms[:, None] == others[None, :]
        return np.asarray((rows / self.T) @ columns.T + same * ((rows[:, :own] / self.D) @ columns[:, :own].T))

    @property
    def _covariance(self) -> Floats:
        return self._prior(self.arms, self.w, self.arms, self.w) + self.noise * np.eye(len(self.y))

    def of(self, arm: int, rows: Floats) -> tuple[Floats, Floats]:
        """Posterior mean (m,) and covariance (m, m) of row'theta_arm. rows: (m, q)."""
        arms = np.full(len(rows), arm)
        cross = self._prior(arms, rows, self.arms, self.w)
        solved = np.linalg.solve(self._covariance, np.column_stack([self.y, cross.T]))
        return cross @ solved[:, 0], self._prior(arms, rows, arms, rows) - cross @ solved[:, 1:]

    @property
    def log_evidence(self) -> float:
        """Without the term of 2 pi."""
        covariance = self._covariance
        return float(-0.5 * (np.linalg.slogdet(covariance)[1] + self.y @ np.linalg.solve(covariance, self.y)))

    def with_outcome(self, arm: int, w: Floats, y: float) -> GaussianProcess:
        return self._replace(arms=np.append(self.arms, arm), w=np.vstack([self.w, w]), y=np.append(self.y, y))
