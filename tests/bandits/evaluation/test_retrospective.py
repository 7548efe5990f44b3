"""What a log says of its past: closed forms, what intervals cover over many logs, and answers that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from bandits.evaluation.retrospective import (
    Retrospective,
    doubly_robust,
    group_prompts,
    means_before,
    nearest_group,
    ratio_of_sums,
    self_normalized,
)

MEANS = np.array([[0.3, 0.6, 0.5], [0.7, 0.4, 0.5]])
"""Of a reward of 0 or 1: group of prompts x arm."""


def logged(seed: int, *, n: int = 400, means: np.ndarray = MEANS, **changes: Any) -> Retrospective:
    """Of a policy that prefers arm 1; estimates are a little wrong."""
    g = np.random.default_rng(seed)
    groups = g.integers(len(means), size=n)
    weights = np.tile([0.25, 0.5, 0.25], (n, 1))
    arms = (g.random(n)[:, None] > weights.cumsum(1)).sum(1)
    rewards = (g.random(n) < means[groups, arms]).astype(float)
    model = np.clip(means[groups] + 0.1, 0.0, 1.0)
    facts: dict[str, Any] = {
        "arms": arms,
        "rewards": rewards,
        "costs": 0.1 + 0.1 * arms,
        "logged": weights,
        "estimates": model,
        "model": model,
        "allowed": np.ones((n, 3), dtype=bool),
        "clusters": np.arange(n),
        "groups": groups,
    }
    return Retrospective(**{**facts, **changes})


def covered(hits: list[bool]) -> bool:
    """Whether 95 % were, within two standard errors."""
    return float(np.mean(hits)) >= 0.95 - 2.0 * float(np.sqrt(0.05 * 0.95 / len(hits)))


def test_the_value_of_an_arm_that_is_drawn_with_one_probability_is_its_mean() -> None:
    past = logged(1)
    for arm in range(3):
        mine = past.arms == arm
        assert past.fixed_arms[arm].value.value == pytest.approx(past.rewards[mine].mean())
        ratio = past.fixed_arms[arm].cost_per_reward
        assert ratio is not None
        assert ratio.value == pytest.approx(past.costs[mine].sum() / past.rewards[mine].sum())
    found = past.gain([0, 1, 2])
    assert found is not None
    assert found.best == max(range(3), key=lambda arm: past.rewards[past.arms == arm].mean())
    assert found.value.value == pytest.approx(past.rewards.mean() - past.rewards[past.arms == found.best].mean())


def test_intervals_of_the_gain_cover_it() -> None:
    truth = float((MEANS.mean(0) * [0.25, 0.5, 0.25]).sum()) - MEANS.mean(0)[2]
    ordinary, robust, anytime = [], [], []
    for seed in range(300):
        found = logged(seed).gain([2], reward_range=(0.0, 1.0))
        if found is None:
            continue  # a mean weight that is three standard errors off
        assert found.anytime is not None
        ordinary.append(found.value.interval.low <= truth <= found.value.interval.high)
        robust.append(found.doubly_robust.interval.low <= truth <= found.doubly_robust.interval.high)
        anytime.append(found.anytime.low <= truth <= found.anytime.high)
    assert len(anytime) > 295
    assert covered(ordinary)
    assert covered(robust)
    assert all(anytime)


def test_terms_have_the_variance_of_what_they_belong_to() -> None:
    """Against the spread over many logs."""
    for estimate in (self_normalized, doubly_robust):
        found = [estimate(past.log_of(past.always(past.fixed(1)))) for past in map(logged, range(300))]
        spread = np.std([one.value for one in found])
        told = np.mean([np.sqrt((one.terms**2).sum()) / len(one.terms) for one in found])
        assert told == pytest.approx(spread, rel=0.1)


def test_attempts_on_one_prompt_count_as_one() -> None:
    past, twice = logged(1), np.repeat(np.arange(400), 2)
    doubled = logged(
        1, **{name: getattr(past, name)[twice] for name in vars(past) if name not in ("confidence", "clusters", "sessions")}
    )
    one, other = (each.known(each.played) for each in (past, doubled.__class__(**{**vars(doubled), "clusters": twice})))
    assert other.interval == pytest.approx(one.interval)


def test_the_cost_of_exploration_is_what_the_estimates_say() -> None:
    past = logged(1, estimates=np.tile([0.7, 0.5, 0.1], (400, 1)))
    found = past.exploration()
    assert found.probability == pytest.approx(0.75)
    assert found.expected.value == pytest.approx(0.5 * 0.2 + 0.25 * 0.6)
    assert found.expected.interval == pytest.approx((0.25, 0.25))
    assert found.earned.value == pytest.approx(past.rewards[past.arms == 0].mean() - past.rewards.mean())


def test_an_arm_that_was_not_allowed_is_not_the_greedy_one() -> None:
    allowed = np.ones((400, 3), dtype=bool)
    allowed[:, 0] = False
    past = logged(1, estimates=np.tile([0.7, 0.5, 0.1], (400, 1)), allowed=allowed)
    assert past.exploration().probability == pytest.approx(0.5)
    assert (past.fixed(0) == 1).all(), "the lowest one that was"


def test_the_prompt_pays_where_groups_differ_and_by_as_much() -> None:
    truth = float(MEANS.max(1).mean() - MEANS.mean(0).max())
    values = [logged(seed, n=1_000).prompt_value([0, 1, 2]) for seed in range(60)]
    found = [value.value for value in values if value is not None]
    assert len(found) == 60
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.02)
    assert covered([one.interval.low <= truth <= one.interval.high for one in found])
    value = values[0]
    assert value is not None
    assert value.chosen == 1.0
    few = logged(0, n=300, groups=np.arange(300) % 4).prompt_value([0, 1, 2])
    assert few is not None
    assert (few.chosen, few.value.value) == (0.0, 0.0), "a quarter of half of them is too little to choose an arm by"
    assert [group.decisions for group in value.groups] == np.bincount(logged(0, n=1_000).groups).tolist()


def test_the_prompt_does_not_pay_where_groups_are_alike() -> None:
    """Of the best arm per group on the same outcomes a gain would be seen: each is the best of three by chance."""
    alike = np.full((4, 3), 0.5)
    naive, crossed = [], []
    for seed in range(100):
        past = logged(seed, n=1_000, means=alike)
        found = past.prompt_value([0, 1, 2])
        assert found is not None
        crossed.append(found.value.value)
        overall = max(past.rewards[past.arms == arm].mean() for arm in range(3))
        best = [max(past.rewards[(past.groups == k) & (past.arms == arm)].mean() for arm in range(3)) for k in range(4)]
        naive.append(np.mean(best) - overall)
    assert np.mean(naive) > 0.02
    assert abs(np.mean(crossed)) < 0.01


def test_of_an_arm_that_was_hardly_drawn_nothing_is_said() -> None:
    weights = np.tile([0.0005, 0.4995, 0.5], (400, 1))
    g = np.random.default_rng(1)
    past = logged(1, logged=weights, arms=1 + (g.random(400) < 0.5).astype(int))
    assert past.fixed_arms[0].verdict.kind == "cannot_answer"
    found = past.gain([0, 1])
    assert found is not None
    assert (found.best, found.unknown) == (1, (0,))
    assert past.gain([0]) is None
    assert past.prompt_value([0]) is None


def test_a_ratio_has_the_interval_of_fieller() -> None:
    """The ends are where the test that the ratio is so just fails."""
    g = np.random.default_rng(1)
    cost, reward = g.gamma(2.0, 0.5, size=200), (g.random(200) < 0.3).astype(float)
    found = ratio_of_sums(cost, reward, clusters=np.arange(200), confidence=0.95)
    assert found is not None
    assert found.value == pytest.approx(cost.sum() / reward.sum())
    for end in found.interval:
        rest = cost - end * reward
        assert abs(rest.mean()) / (rest.std() / np.sqrt(200)) == pytest.approx(stats.norm.ppf(0.975))
    assert found.interval.high - found.value > found.value - found.interval.low, "a small mean reward may be smaller still"
    assert ratio_of_sums(cost, reward - 0.3, clusters=np.arange(200), confidence=0.95) is None
    assert ratio_of_sums(cost, -reward, clusters=np.arange(200), confidence=0.95) is None


def test_means_are_of_the_outcomes_before_a_decision() -> None:
    g = np.random.default_rng(1)
    offsets, delays = np.arange(1, 101) * 3, g.integers(1, 40, size=100)
    order = (offsets + delays).argsort(kind="stable")
    offsets, closed = offsets[order], (offsets + delays)[order]
    arms, rewards = g.integers(3, size=100), g.random(100)
    found = means_before(offsets, closed, arms, rewards, count=3)
    for i in range(100):
        before = closed < offsets[i]
        overall = rewards[before].mean() if before.any() else 0.0
        for arm in range(3):
            mine = rewards[before & (arms == arm)]
            assert found[i, arm] == pytest.approx((mine.sum() + overall) / (len(mine) + 1))


def test_groups_are_found_and_are_no_more_than_there_are_prompts() -> None:
    g = np.random.default_rng(1)
    centers = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    truth = g.integers(3, size=300)
    labels, found = group_prompts(centers[truth] + 0.3 * g.standard_normal((300, 2)), count=3)
    assert len({(a, b) for a, b in zip(labels.tolist(), truth.tolist(), strict=True)}) == 3
    assert np.sort(found.round().sum(1)).tolist() == [0.0, 5.0, 5.0]
    assert len(np.unique(nearest_group(centers, found))) == 3
    labels, found = group_prompts(np.ones((50, 4)), count=3)
    assert len(found) == 1
    assert not labels.any()
