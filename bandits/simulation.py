"""Simulation of a policy on a table of rewards, with outcomes that may come late; for tests, benches and replays.

round t: release outcomes due at t --> weights --> draw --> outcome due at t + delay[t]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bandits import draw
from bandits import state as states
from bandits.types import Context, Observation, Policy, State, empty


@dataclass(frozen=True, kw_only=True)
class World:
    """A table of rewards: what every arm would have returned in every round.

    features: (T, d), or (T, 0).  rewards: (T, K) realized.  expected: (T, K) expected rewards, for regret.  prices: (K,).
    """

    features: np.ndarray
    rewards: np.ndarray
    expected: np.ndarray
    prices: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The result of a simulation.

    picks: (T,) arms.  rewards: (T,) realized.  regret: (T,) expected, per round.  propensities: (T,).
    """

    picks: np.ndarray
    rewards: np.ndarray
    regret: np.ndarray
    propensities: np.ndarray
    state: State

    def optimal_pick_ratio(self, expected: np.ndarray) -> float:
        """Share of rounds in which an arm of highest expected reward was picked; ties count as optimal."""
        picked = expected[np.arange(len(self.picks)), self.picks]
        return float(np.mean(picked >= expected.max(axis=1) - 1e-12))


def simulate(
    policy: Policy,
    world: World,
    *,
    delays: Sequence[int] = (),
    uniforms: Sequence[float] = (),
    mark_pending: bool = True,
    each: Callable[[int], object] = lambda t: None,
) -> Trace:
    """Play every round of the table once.

    delays: rounds until the outcome of round t is folded (default 0).  uniforms: the number behind the draw of round t; default
    keyed by seed and round.  mark_pending: call `add_pending` for decisions whose outcome is late.
    each: called after each round (progress bars).
    """
    rounds, arms = world.rewards.shape
    state = states.start(policy, arms=arms)
    features = torch.from_numpy(np.ascontiguousarray(world.features)) if world.features.size else None
    pending = [0] * arms
    due: dict[int, list[tuple[int, int, bool]]] = {}
    picks = np.empty(rounds, dtype=np.uint8 if arms < 256 else np.int64)
    propensities = np.empty(rounds)
    for t in range(rounds):
        x = empty() if features is None else features[t]
        context = Context(features=x, allowed=(True,) * arms, pending=tuple(pending), prices=tuple(world.prices) or (0.0,) * arms)
        row = policy.weights(state, [context]).values[0]
        arm, propensities[t] = draw.draw_at(row, uniforms[t] if len(uniforms) else draw.uniform(f"{policy.seed}/{t}"))
        picks[t] = arm
        pending[arm] += 1
        wait = delays[t] if len(delays) else 0
        marked = mark_pending and wait > 0
        if marked and features is not None:
            state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], x))
        due.setdefault(t + wait, []).append((t, arm, marked))
        for when, which, was_marked in due.pop(t, ()):
            seen = Observation(
                arm=which,
                features=empty() if features is None else features[when],
                reward=float(world.rewards[when, which]),
                was_pending=was_marked,
            )
            state = states.fold(policy, state, seen)
            pending[which] -= 1
        state = policy.prepare(state)
        each(t)
    played = np.arange(rounds), picks.astype(np.int64)
    return Trace(
        picks=picks,
        rewards=world.rewards[played],
        regret=world.expected.max(axis=1) - world.expected[played],
        propensities=propensities,
        state=state,
    )
