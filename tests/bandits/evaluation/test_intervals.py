"""Intervals: the anytime one holds along whole adaptive logs, also where arms lack support; the other is the normal one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from bandits.evaluation import intervals
from bandits.evaluation.estimators import Estimate, LoggedDecisions


def adaptive_log(seed: int, *, count: int = 400, arms: int = 3) -> tuple[LoggedDecisions, float]:
    """A log of a policy that learns (softmax of its means), and the value of a fixed mixture."""
    g = default_rng(seed)
    means, evaluated = g.random(arms), g.dirichlet(np.ones(arms))
    sums, pulls = np.zeros(arms), np.zeros(arms)
    played, rewards, logged = np.empty(count, dtype=np.int64), np.empty(count), np.empty((count, arms))
    for t in range(count):
        odds = np.exp(6.0 * (sums + 0.5) / (pulls + 1.0))
        logged[t] = odds / odds.sum()
        played[t] = g.choice(arms, p=logged[t])
        rewards[t] = g.random() < means[played[t]]
        sums[played[t]] += rewards[t]
        pulls[played[t]] += 1
    log = LoggedDecisions(arms=played, rewards=rewards, logged=logged, evaluated=np.tile(evaluated, (count, 1)))
    return log, float(evaluated @ means)


def test_the_anytime_interval_holds_at_every_decision_of_most_adaptive_logs() -> None:
    logs = [adaptive_log(seed) for seed in range(120)]
    weights = np.stack([log.weights for log, _ in logs], 1)
    rewards = np.stack([log.rewards for log, _ in logs], 1)
    values = np.array([value for _, value in logs])
    low, rest, holds = intervals.LowerBounds(len(logs)), intervals.LowerBounds(len(logs)), np.ones(len(logs), dtype=bool)
    for w, r in zip(weights, rewards, strict=True):
        low.add((w * r)[None])
        rest.add((w * (1.0 - r))[None])
        holds &= (low.after(risk=0.025) <= values) & (values <= 1.0 - rest.after(risk=0.025))
    assert (~holds).sum() <= 12, "5 % of 120, and three binomial standard errors"


def test_it_shrinks_and_does_not_depend_on_the_unit_of_rewards() -> None:
    log, value = adaptive_log(1, count=2_000)
    found = intervals.anytime(log, reward_range=(0.0, 1.0), confidence=0.95)
    early = intervals.anytime(adaptive_log(1, count=200)[0], reward_range=(0.0, 1.0), confidence=0.95)
    assert found.low <= value <= found.high
    assert found.high - found.low < 0.75 * (early.high - early.low)
    scaled = LoggedDecisions(arms=log.arms, rewards=200.0 * log.rewards - 50.0, logged=log.logged, evaluated=log.evaluated)
    other = intervals.anytime(scaled, reward_range=(-50.0, 150.0), confidence=0.95)
    np.testing.assert_allclose(np.array(other), 200.0 * np.array(found) - 50.0)


def test_an_arm_that_the_log_cannot_show_leaves_the_interval_open() -> None:
    count = 3_000
    log = LoggedDecisions(
        arms=np.zeros(count, dtype=np.int64),
        rewards=np.full(count, 0.4),
        logged=np.tile([1.0, 0.0], (count, 1)),
        evaluated=np.tile([0.5, 0.5], (count, 1)),
    )
    found = intervals.anytime(log, reward_range=(0.0, 1.0), confidence=0.95)
    assert found.low <= 0.5 * 0.4, "the other arm may be worth nothing"
    assert found.high >= 0.5 * 0.4 + 0.5, "or everything"


@pytest.mark.parametrize("reward_range", [(1.0, 0.0), (0.0, 0.5)])
def test_a_range_that_the_rewards_break_is_refused(reward_range: tuple[float, float]) -> None:
    log, _ = adaptive_log(2)
    with pytest.raises(ValueError, match="reward_range"):
        intervals.anytime(log, reward_range=reward_range, confidence=0.95)


def test_the_ordinary_interval_is_the_normal_one() -> None:
    low, high = intervals.ordinary(Estimate(1.0, 0.5), confidence=0.95)
    assert (low, high) == pytest.approx((1.0 - 0.97998199, 1.0 + 0.97998199))


# -- clusters ----------------------------------------------------------------------------------------------------------------


def test_the_sum_of_a_cluster_is_one_value() -> None:
    g, count = default_rng(4), 60
    values, labels = g.random((count, 2)) * 3.0, g.integers(0, 15, count)
    bounds = intervals.LowerBounds(2)
    for rows in np.array_split(np.arange(count), 7):
        bounds.add(values[rows], {place: str(labels[row]) for place, row in enumerate(rows) if labels[row] < 12})
    before = np.concatenate([np.zeros((1, 2)), values.cumsum(0)[:-1]])
    means = np.minimum((0.5 + before) / (1.0 + np.arange(count))[:, None], 1.0)
    groups = [np.flatnonzero(labels == label) for label in range(12)] + [np.array([row]) for row in np.flatnonzero(labels >= 12)]
    squares = sum((values[rows].sum(0) - means[rows[0]]) ** 2 for rows in groups if len(rows))
    risk, bets = 0.05, np.array(intervals.BETS)[:, None]
    slack = (-np.log1p(-bets) - bets) / bets * squares + np.log(len(intervals.BETS) / risk) / bets
    assert bounds.after(risk=risk) == pytest.approx(np.maximum((values.sum(0) - slack).max(0) / count, 0.0))


def test_a_bound_holds_for_sessions_and_would_not_for_their_decisions_apart() -> None:
    """400 logs of 150 sessions of 20 equal decisions each: the reward of a session is 0 or 1, its weight 2 or 0."""
    g, logs, sessions, length = default_rng(12), 400, 150, 20
    drawn = 2.0 * (g.random((sessions, logs)) < 0.5) * (g.random((sessions, logs)) < 0.6)
    together, apart = intervals.LowerBounds(logs), intervals.LowerBounds(logs)
    for session in range(sessions):
        values = np.tile(drawn[session], (length, 1))
        together.add(values, dict.fromkeys(range(length), str(session)))
        apart.add(values)
    wrong = [float((bounds.after(risk=0.05) > 0.6).mean()) for bounds in (together, apart)]
    assert wrong[0] <= 0.05
    assert wrong[1] > 0.1
