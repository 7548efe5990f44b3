"""Simulation of a policy on a table of rewards, with outcomes that may come late; for tests, benches and replays.

round t: release outcomes due at t --> weights --> draw --> outcome due at t + delay[t]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bandits import draw, drift
from bandits import state as states
from bandits.objective import COST, REWARD, Budget, PricesPer, RewardMoments, Terms, learned_cost, terms, variance_over_arms
from bandits.types import Context, Observation, Policy, State, empty


@dataclass(frozen=True, kw_only=True)
class World:
    """A table of rewards: what every arm would have returned in every round.

    features: (T, d), or (T, 0).  rewards: (T, K) realized.  expected: (T, K) expected rewards, for regret.
    prices: (K,), or (T, K) where they change.  signals: name -> (T, K) of others than the reward, NaN = missing.
    """

    features: np.ndarray
    rewards: np.ndarray
    expected: np.ndarray
    prices: Sequence[float] | np.ndarray = ()
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The result of a simulation.

    picks: (T,) arms.  rewards: (T,) realized.  regret: (T,) expected, per round.  propensities: (T,).
    alarms: (round, arm) at which the drift detector reset an arm.
    """

    picks: np.ndarray
    rewards: np.ndarray
    regret: np.ndarray
    propensities: np.ndarray
    state: State
    alarms: Sequence[tuple[int, int]] = ()

    def optimal_pick_ratio(self, expected: np.ndarray) -> float:
        """Share of rounds in which an arm of highest expected reward was picked; ties count as optimal."""
        picked = expected[np.arange(len(self.picks)), self.picks]
        return float(np.mean(picked >= expected.max(axis=1) - 1e-12))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What decisions maximize: see `objective`. weights: of the signals that the policy learns."""

    weights: Mapping[str, float]
    prices_per: PricesPer = "call"
    budget: Budget | None = None


class Account:
    """The sums that hold a budget, in a simulation; what is maximized follows from them."""

    def __init__(self, objective: Objective, arms: int) -> None:
        self.objective = objective
        self.total, self.carried, self.rewards = 0.0, 0, [RewardMoments()] * arms

    def add(self, arm: int, reward: float, value: float) -> None:
        """One more outcome. value: of the signal that has the budget, NaN = missing."""
        self.rewards[arm] = self.rewards[arm].add(reward)
        if not math.isnan(value):
            self.carried, self.total = self.carried + 1, self.total + value

    def terms(self, signals: Sequence[str], prices: Sequence[float]) -> Terms:
        """Of the next decision: no multiplier until every arm has an outcome."""
        multipliers, budget = {}, self.objective.budget
        if budget is not None and all(arm.outcomes for arm in self.rewards):
            variance = variance_over_arms(self.rewards)
            held = budget.multiplier(count=self.carried, total=self.total, reward_variance=variance)
            multipliers = {budget.signal: held}
        return terms(signals, self.objective.weights, multipliers, prices=prices, prices_per=self.objective.prices_per)


def simulate(
    policy: Policy,
    world: World,
    *,
    delays: Sequence[int] = (),
    uniforms: Sequence[float] = (),
    mark_pending: bool = True,
    objective: Objective | None = None,
    each: Callable[[int], object] = lambda t: None,
) -> Trace:
    """Play every round of the table once. An arm that drifts is reset, where the policy watches drift.

    delays: rounds until the outcome of round t is folded (default 0).  uniforms: the number behind the draw of round t; default
    keyed by seed and round.  mark_pending: call `add_pending` for decisions whose outcome is late.
    objective: default the reward.  each: called after each round (progress bars).
    """
    rounds, arms = world.rewards.shape
    state = states.start(policy, arms=arms)
    features = torch.from_numpy(np.ascontiguousarray(world.features)) if world.features.size else None
    pending, decided = [0] * arms, [0] * arms
    due: dict[int, list[tuple[int, int, bool]]] = {}
    picks = np.empty(rounds, dtype=np.uint8 if arms < 256 else np.int64)
    propensities = np.empty(rounds)
    prices = np.broadcast_to(np.array(world.prices if len(world.prices) else np.zeros(arms)), (rounds, arms))
    spending = None if objective is None else Account(objective, arms)
    watched, alarms = [drift.START] * arms, []
    for t in range(rounds):
        x = empty() if features is None else features[t]
        context = Context(
            features=x,
            allowed=(True,) * arms,
            pending=tuple(pending),
            prices=tuple(prices[t].tolist()),
            decided=tuple(decided),
            **({} if spending is None else spending.terms(policy.signals, prices[t].tolist())._asdict()),
        )
        row = policy.weights(state, [context]).values[0]
        arm, propensities[t] = draw.draw_at(row, uniforms[t] if len(uniforms) else draw.uniform(f"{policy.seed}/{t}"))
        picks[t] = arm
        pending[arm] += 1
        decided[arm] += 1
        wait = delays[t] if len(delays) else 0
        marked = mark_pending and wait > 0
        if marked and features is not None:
            state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], x))
        due.setdefault(t + wait, []).append((t, arm, marked))
        for when, which, was_marked in due.pop(t, ()):
            seen = _observation(policy, world, (when, which), prices[when, which], objective, was_pending=was_marked)
            if policy.watches_drift and (surprise := policy.surprise(state, seen)) is not None:
                watched[which], alarm = drift.add(watched[which], surprise)
                if alarm:
                    alarms.append((t, which))
                    state = policy.reset_arm(state, which)
            state = states.fold(policy, state, seen)
            pending[which] -= 1
            if spending is not None and objective is not None:
                table = {} if objective.budget is None else {REWARD: world.rewards, **world.signals}
                name = "" if objective.budget is None else objective.budget.signal
                spending.add(which, seen.reward, float(table[name][when, which]) if name in table else math.nan)
        state = policy.prepare(state)
        each(t)
    played = np.arange(rounds), picks.astype(np.int64)
    return Trace(
        picks=picks,
        rewards=world.rewards[played],
        regret=world.expected.max(axis=1) - world.expected[played],
        propensities=propensities,
        state=state,
        alarms=alarms,
    )


def _observation(
    policy: Policy, world: World, cell: tuple[int, int], price: float, objective: Objective | None, *, was_pending: bool
) -> Observation:
    """What a round brings of an arm. cell: both."""
    t, arm = cell
    reward, values = float(world.rewards[t, arm]), []
    for name in policy.signals if len(policy.signals) > 1 else ():
        value = reward if name == REWARD else float(world.signals[name][t, arm]) if name in world.signals else math.nan
        is_ratio = name == COST and objective is not None
        values.append(learned_cost(value, price, objective.prices_per) if is_ratio and objective is not None else value)
    return Observation(
        arm=arm,
        features=empty() if not world.features.size else torch.from_numpy(np.ascontiguousarray(world.features[t])),
        reward=reward,
        signals=tuple(values),
        was_pending=was_pending,
    )
