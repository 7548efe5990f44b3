"""Simulation of episodic policies: several calls on one prompt until success, a stop or the last call.

episode t: weights --> draw --> reward t, arm, k-th call of this arm --> fold, prepare --> success or stop? else once more
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
class EpisodeTrace:
    """The result of a simulation of episodes. N calls in T episodes.

    picks: (N,) arms in the order of the calls.  episodes: (N,) the episode of each.
    best: (T,) highest reward of the episode, 0 without any call.  costs: (T,) of all its calls.
    """

    picks: np.ndarray
    episodes: np.ndarray
    best: np.ndarray
    costs: np.ndarray
    state: State

    def utility(self, *, cost_weight: float) -> float:
        """Average over the episodes of best reward minus cost_weight times the cost of all calls (PromptWise C1)."""
        return float(np.mean(self.best - cost_weight * self.costs))


def play_episodes(
    policy: Policy,
    features: np.ndarray,
    rewards: np.ndarray,
    prices: Sequence[float],
    *,
    costs: np.ndarray | None = None,
    state: State | None = None,
    each: Callable[[int], object] = lambda t: None,
) -> EpisodeTrace:
    """Play every episode once.

    features: (T, d), or (T, 0).  rewards: (T, K, A), where the k-th call of an arm in an episode reads entry k; A is at least the
    number of calls that the policy makes.  prices: (K,).  costs: (T, K, A) realized, default the prices.
    state: where to continue from. A policy without episodes makes one call.
    """
    rounds, arms, _ = rewards.shape
    state = states.start(policy, arms=arms) if state is None else state
    rows = torch.from_numpy(np.ascontiguousarray(features)) if features.size else None
    picks: list[int] = []
    owners: list[int] = []
    best, spent = np.zeros(rounds), np.zeros(rounds)
    skipped = 0
    for t in range(rounds):
        x = empty() if rows is None else rows[t]
        attempts = [0] * arms
        done = False
        while not done:
            context = Context(features=x, allowed=(True,) * arms, attempts=tuple(attempts), prices=tuple(prices), skipped=skipped)
            key = f"{policy.seed}/{t}/{sum(attempts)}"
            arm, _ = draw.draw(policy.weights(state, [context]).values[0], key)
            if arm == draw.STOP:
                skipped += not any(attempts)
                break
            reward = float(rewards[t, arm, attempts[arm]])
            cost = float(prices[arm] if costs is None else costs[t, arm, attempts[arm]])
            seen = Observation(arm=arm, features=x, reward=reward, cost=cost)
            state = policy.prepare(states.fold(policy, state, seen))
            best[t] = reward if not any(attempts) else max(best[t], reward)
            spent[t] += cost
            picks.append(arm)
            owners.append(t)
            attempts[arm] += 1
            done = policy.succeeded(reward) or not policy.episodic
        each(t)
    dtype = np.uint8 if arms < 256 else np.int64
    return EpisodeTrace(picks=np.array(picks, dtype), episodes=np.array(owners, np.int64), best=best, costs=spent, state=state)
