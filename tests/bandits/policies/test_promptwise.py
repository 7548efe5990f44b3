from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits import state as states
from bandits.episodes import EpisodeTrace, play_episodes
from bandits.errors import InvalidContext, InvalidHyperparameter, InvalidObservation
from bandits.functional import logistic
from bandits.functional.logistic import Quadratic
from bandits.policies.promptwise import LogisticArm, PromptWise, by_horizon, by_ratio
from bandits.types import Context, Observation, State
from tests.tables import shared_table
from tools.simulated_tasks.episodes import cheap_to_expensive, free_and_paid, retries


def golden(**others: Any) -> PromptWise:
    """As in the golden runs: the features bring their own constant and are not scaled; the paper's rule, without a discount."""
    chosen = {"dim": 4, "normalize": False, "bias": False, "rule": "ratio", "retry_discount": 1.0, "stop_optimism": 0.0}
    return PromptWise(**{**chosen, **others})


def sha(trace: EpisodeTrace) -> str:
    return hashlib.sha256(trace.picks.tobytes()).hexdigest()


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def context(arms: int, x: Sequence[float] = (0.6, -0.8), **others: Any) -> Context:
    shared: dict[str, Any] = {"allowed": (True,) * arms, "prices": (1.0,) * arms}
    return Context(features=torch.tensor(x, dtype=torch.float64), **{**shared, **others})


def seen(arm: int, reward: float, x: Sequence[float] = (0.6, -0.8), cost: float = 1.0) -> Observation:
    return Observation(arm=arm, features=torch.tensor(x, dtype=torch.float64), reward=reward, cost=cost)


def folded(policy: PromptWise, *outcomes: Observation, arms: int) -> State:
    state = states.start(policy, arms=arms)
    for outcome in outcomes:
        state = states.fold(policy, state, outcome)
    return policy.prepare(state)


def picked(policy: PromptWise, state: State, *contexts: Context) -> list[int]:
    """The arm per context, -1 for a stop."""
    values = policy.weights(state, contexts).values
    assert bool(((values == 0) | (values == 1)).all())
    return [int(v.argmax()) if float(v.sum()) == 1.0 else -1 for v in values]


# -- the golden runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "cost_weight", "digest", "calls", "utility", "solved", "cost"),
    [
        ({}, 0.001, "8dae9788cb908d91674c46c576cd62fed361465ce9fcaa65526b404e7e577d9a", 1457, 0.9582336875, 0.96, 1.7663125),
        ({}, 0.02, "8dae9788cb908d91674c46c576cd62fed361465ce9fcaa65526b404e7e577d9a", 1457, 0.92467375, 0.96, 1.7663125),
        ({}, 0.05, "8dae9788cb908d91674c46c576cd62fed361465ce9fcaa65526b404e7e577d9a", 1457, 0.871684375, 0.96, 1.7663125),
        (
            {"retry_discount": 0.4},
            0.05,
            "396eb6026be0073978b96175e0c19ae042790eb6347d8a002a44647c04c95512",
            1541,
            0.8752575,
            0.98625,
            2.21985,
        ),
        (
            {"rule": "horizon"},
            0.02,
            "febcb3d9bead9b35768712f4214ce07377753793120bde67c6a0f0fe6267a424",
            1368,
            0.951627,
            0.995,
            2.16865,
        ),
        (
            {"rule": "horizon", "retry_discount": 0.4},
            0.05,
            "ff15c3de3bffb2e81596d3bf8a0a83d3e50ad5d57a25a609923604ecc89484c6",
            1463,
            0.84914625,
            0.995,
            2.917075,
        ),
    ],
)
def test_the_picks_are_golden_g5(
    options: dict[str, Any], cost_weight: float, digest: str, calls: int, utility: float, solved: float, cost: float
) -> None:
    world = cheap_to_expensive()
    trace = play_episodes(golden(cost_weight=cost_weight, **options), world.features, world.rewards, world.prices)
    assert len(trace.picks) == calls
    assert sha(trace) == digest
    assert abs(trace.utility(cost_weight=cost_weight) - utility) < 1e-12
    assert abs(trace.best.mean() - solved) < 1e-12
    assert abs(trace.costs.mean() - cost) < 1e-12


def test_the_world_of_g5_is_the_golden_one() -> None:
    world = cheap_to_expensive()
    assert world.rewards.sum((0, 2)).tolist() == [1841, 1481, 3110, 3693]
    golden_row = [-0.024380888591031963, 1.0313871344578245, -0.004326476692270592, 1.0]
    np.testing.assert_allclose(world.features[0], golden_row, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("discount", "digest", "calls", "utility"),
    [
        (1.0, "3d48dd5f274f3410277698c202897dafbbb88600847f80df0379c706129fe017", 1507, 0.8773175),
        (0.4, "86ea820edc924d9af3ed548e4f66257c75674755ff77ecd5886389eb14deadb5", 1435, 0.884435),
    ],
)
def test_the_replay_of_real_answers_is_golden_g6(discount: float, digest: str, calls: int, utility: float) -> None:
    """With 1,000 samples of the 1,500 kept, as by default; the golden run refits all of them after every call."""
    world = retries(recorded=shared_table("humaneval_pair").parent)
    assert world.rewards.sum((0, 2)).tolist() == [3843, 4042]
    policy = golden(dim=17, cost_weight=0.05, retry_discount=discount)
    trace = play_episodes(policy, world.features, world.rewards, world.prices)
    assert len(trace.picks) == calls
    assert sha(trace) == digest
    assert abs(trace.utility(cost_weight=0.05) - utility) < 1e-12


def test_estimate_bonus_and_utility_are_golden_g5() -> None:
    x = [
        [-1.2316649689147774, 0.2671189477208684, 1.0],
        [-0.006926123563646536, 0.5015352951547885, 1.0],
        [-1.3267282928093849, 1.107768166657506, 1.0],
        [0.0937548811679036, -1.1708180763562224, 1.0],
        [-1.3582403949601034, -1.3065640246645707, 1.0],
        [-0.7176152818724516, 1.1856213579293313, 1.0],
    ]
    outcomes = [seen(0, reward, features, cost=12.5) for features, reward in zip(x, [1, 0, 1, 1, 0, 1], strict=True)]
    policy = golden(dim=3, cost_weight=0.05)
    state = folded(policy, *outcomes, arms=1)
    asked = context(1, (0.3, -0.2, 1.0), prices=(12.5,))
    scores = policy.weights(state, [asked]).scores
    assert abs(float(scores["estimate"]) - 0.5372296639795536) < 1e-9
    assert abs(float(scores["estimate"] + scores["bonus"]) - 0.6842295833678556) < 1e-9
    assert abs(float(scores["utility"]) - 0.08656390312199136) < 1e-9
    width = state.arms[0].settle(1.0).width.score(asked.features[None], ridge=1.0)[1]
    assert abs(float(width) - 0.6240833033760632) < 1e-9


# -- the two rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost_weight", "values", "plays"),
    [
        (0.001, [0.8875, 0.97625, 0.985125, 0.9888375, 0.99143625], [1, 1, 1, 0, 0]),
        (0.02, [0.65, 0.74, 0.803, 0.8471, 0.87797], [1, 0, 0, 0, 0]),
        (0.05, [0.275, 0.455, 0.581, 0.6692, 0.73094], [1, 0, 0, 0, 0]),
    ],
)
def test_the_horizon_rule_is_golden_g5(cost_weight: float, values: list[float], plays: list[int]) -> None:
    """With k = 1 .. 5 calls left, in one batch."""
    q, cost = row(0.3, 0.9).expand(5, 2), row(0.75, 12.5).expand(5, 2)
    everything = torch.ones((5, 2), dtype=torch.bool)
    utility, weights = by_horizon(q, cost_weight * cost, everything, left=torch.arange(1, 6))
    assert weights.argmax(dim=1).tolist() == plays
    torch.testing.assert_close(utility.amax(dim=1), torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_horizon_matters_where_the_ratio_is_blind_to_it() -> None:
    """Golden G5: with three calls the ratio rule's arm is worth .4392, the other .888."""
    q, cost, everything = row(0.2, 0.9), row(1.0, 5.0), torch.ones((1, 2), dtype=torch.bool)
    utility, weights = by_ratio(q, cost, everything, cost_weight=0.02)
    torch.testing.assert_close(utility, row(0.9, 0.8888888888888888))
    assert weights.tolist() == [[1.0, 0.0]]
    utility, weights = by_horizon(q, 0.02 * cost, everything, left=torch.tensor([3]))
    assert weights.tolist() == [[0.0, 1.0]]
    assert abs(float(utility.max()) - 0.888) < 1e-12
    only_the_first = by_horizon(q[:, :1], 0.02 * cost[:, :1], everything[:, :1], left=torch.tensor([3]))[0]
    assert abs(float(only_the_first) - 0.4392) < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    q=st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3),
    price=st.lists(st.floats(0.0, 0.8), min_size=3, max_size=3),
    left=st.integers(1, 4),
    forbidden=st.integers(0, 3),
)
def test_the_horizon_rule_is_the_best_of_all_plans(q: list[float], price: list[float], left: int, forbidden: int) -> None:
    """Every sequence of up to `left` arms, played until success: its value by the definition."""
    arms = [k for k in range(3) if k != forbidden]
    best, first = 0.0, {-1}
    for length in range(left + 1):
        for plan in product(arms, repeat=length):
            value, failed = 0.0, 1.0
            for k in plan:
                value += failed * (q[k] - price[k])
                failed *= 1.0 - q[k]
            if value > best + 1e-12:
                best, first = value, {plan[0]}
            elif plan and value > best - 1e-12:
                first.add(plan[0])
    allowed = torch.tensor([[k != forbidden for k in range(3)]])
    utility, weights = by_horizon(row(*q), row(*price), allowed, left=torch.tensor([left]))
    assert abs(max(0.0, float(utility[allowed].max())) - best) < 1e-11
    if best > 1e-9:
        assert int(weights.argmax()) in first
        assert float(weights.sum()) == 1.0
    elif best == 0.0:
        assert float(weights.sum()) == 0.0


@settings(max_examples=80, deadline=None)
@given(
    q=st.lists(st.floats(1e-6, 1.0), min_size=4, max_size=4),
    cost=st.lists(st.floats(0.0, 1e3), min_size=4, max_size=4),
    cost_weight=st.floats(0.0, 10.0),
    other=st.floats(0.0, 10.0),
)
def test_cost_weight_decides_only_when_to_stop(q: list[float], cost: list[float], cost_weight: float, other: float) -> None:
    everything = torch.ones((1, 4), dtype=torch.bool)
    utility, weights = by_ratio(row(*q), row(*cost), everything, cost_weight=cost_weight)
    worth = [cost_weight * c <= p * (1 + 1e-15) for c, p in zip(cost, q, strict=True)]
    assert bool(torch.isfinite(utility).all())
    if float(weights.sum()) == 0.0:
        assert not all(worth)
        assert all(cost_weight * c >= p * (1 - 1e-15) for c, p in zip(cost, q, strict=True))
        return
    assert any(worth)
    k = int(weights.argmax())
    assert all(cost[k] * q[j] <= cost[j] * q[k] * (1 + 1e-12) for j in range(4))  # no ratio is lower
    again = by_ratio(row(*q), row(*cost), everything, cost_weight=other)[1]
    if float(again.sum()) > 0.0:
        assert torch.equal(again, weights)


def test_free_arms_are_compared_by_their_chances() -> None:
    everything = torch.ones((1, 3), dtype=torch.bool)
    for cost_weight in (0.0, 0.4):
        assert by_ratio(row(0.3, 0.6, 0.9), row(0.0, 0.0, 2.0), everything, cost_weight=cost_weight)[1].tolist() == [[0, 1, 0]]
    assert by_ratio(row(0.5, 0.5, 0.5), row(0.0, 0.0, 0.0), everything, cost_weight=0.4)[1].tolist() == [[1, 0, 0]]


# -- episodes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    options=st.fixed_dictionaries(
        {},
        optional={
            "rule": st.sampled_from(["ratio", "horizon"]),
            "features": st.sampled_from(["linear", "rff"]),
            "bias": st.booleans(),
            "normalize": st.booleans(),
            "retry_discount": st.floats(0, 1),
            "cost_weight": st.floats(0, 3),
            "exploration": st.floats(0, 20),
            "ridge": st.floats(1e-3, 100),
            "max_attempts": st.integers(1, 4),
            "forced_pulls": st.integers(0, 3),
            "max_samples": st.integers(4, 12),
        },
    ),
)
def test_episodes_end_with_success_or_stop_or_the_last_call(seed: int, options: dict[str, Any]) -> None:
    g = np.random.default_rng(seed)
    x, rewards = 10.0 ** g.uniform(-2, 2) * g.standard_normal((15, 2)), (g.random((15, 3, 4)) < 0.4).astype(float)
    policy = PromptWise(**{"dim": 2, "random_features": 5, "max_attempts": 4, **options})
    trace = play_episodes(policy, x, rewards, tuple(g.uniform(0, 2, 3)))
    for t in range(15):
        calls = trace.picks[trace.episodes == t].tolist()
        assert len(calls) <= policy.max_attempts
        results = [rewards[t, arm, calls[:k].count(arm)] for k, arm in enumerate(calls)]
        assert 1.0 not in results[:-1]
    for index, arm in enumerate(trace.state.arms):
        assert arm.pulls == int((trace.picks == index).sum())
        assert len(arm.labels) <= policy.max_samples
        assert all(bool(torch.isfinite(getattr(arm, f.name)).all()) for f in fields(arm) if f.type == "Tensor")


def test_the_last_call_is_the_last_whatever_it_promises() -> None:
    policy = PromptWise(dim=2, max_attempts=3, cost_weight=0.0)
    state = folded(policy, seen(0, 1.0), seen(1, 1.0), arms=2)
    for rule in ("ratio", "horizon"):
        ruled = replace(policy, rule=rule)
        assert picked(ruled, state, context(2, attempts=(1, 1)), context(2, attempts=(2, 1)), context(2, attempts=(0, 4))) == [
            0,
            -1,
            -1,
        ]


def test_a_prompt_that_no_arm_is_worth_is_skipped() -> None:
    """By the bound itself: q is at most 1, so a call that costs more than 1 / cost_weight is never worth it."""
    policy = PromptWise(dim=2, cost_weight=0.5)
    state = folded(policy, seen(0, 1.0, cost=2.1), seen(1, 1.0, cost=2.2), arms=2)
    for rule in ("ratio", "horizon"):
        assert picked(replace(policy, rule=rule), state, context(2)) == [-1]
        assert picked(replace(policy, rule=rule, cost_weight=0.05), state, context(2)) == [0]


def test_the_rule_stops_exactly_where_cost_exceeds_the_chance() -> None:
    policy = PromptWise(dim=2, cost_weight=1.0, costs="price")
    state = folded(policy, seen(0, 1.0), arms=1)
    scores = policy.weights(state, [context(1)]).scores
    q = float(scores["estimate"] + scores["bonus"])
    assert 0.5 < q < 1.0
    assert picked(policy, state, context(1, prices=(q * 0.999999,))) == [0]
    assert picked(policy, state, context(1, prices=(q * 1.000001,))) == [-1]


def test_a_free_arm_that_hardly_ever_succeeds_does_not_keep_the_calls_from_a_paid_one_by_default() -> None:
    """With several seeds, as in docs/policies/promptwise.md; the paper's rule never leaves the free arm."""
    reached: dict[str, list[float]] = {"default": [], "paper": []}
    for seed in range(3):
        world = free_and_paid(seed=seed)
        paper: dict[str, Any] = {"rule": "ratio", "retry_discount": 1.0, "stop_optimism": 0.0}
        for name, chosen in (("default", dict[str, Any]()), ("paper", paper)):
            policy = PromptWise(dim=4, bias=False, **chosen)
            trace = play_episodes(policy, world.features, world.rewards, world.prices)
            reached[name].append(trace.utility(cost_weight=0.05))
    assert min(reached["default"]) > 0.9
    assert max(reached["paper"]) < 0.4


def test_optimism_grows_while_prompts_get_no_call_and_decides_about_the_first_call_alone() -> None:
    policy = PromptWise(dim=2, cost_weight=0.3, max_attempts=3)
    state = folded(policy, *[seen(0, 0.0)] * 4, arms=1)
    for rule in ("ratio", "horizon"):
        ruled = replace(policy, rule=rule)
        assert picked(ruled, state, context(1), context(1, skipped=1), context(1, skipped=9)) == [-1, 0, 0]
        assert picked(ruled, state, context(1, skipped=9, attempts=(1,))) == [-1], "there was a call, and it was learned from"
        assert picked(replace(ruled, stop_optimism=0.0), state, context(1, skipped=10**9)) == [-1], "the paper's rule"
        assert picked(replace(ruled, exploration=0.0), state, context(1, skipped=10**9)) == [-1], "no optimism, nothing grows"
    scores = policy.weights(state, [context(1, skipped=9), context(1, skipped=99)]).scores
    assert float(scores["bonus"][0]) < float(scores["bonus"][1]), "the scores are those that decided"


def test_where_a_call_pays_anyway_prompts_without_a_call_change_nothing() -> None:
    policy = PromptWise(dim=2, cost_weight=0.3, exploration_floor=0.1)
    state = folded(policy, seen(0, 1.0), seen(1, 0.0), arms=2)
    plain, later = (policy.weights(state, [context(2, skipped=skipped)]) for skipped in (0, 10**6))
    assert torch.equal(plain.values, later.values)
    assert all(torch.equal(plain.scores[name], later.scores[name]) for name in plain.scores)


@pytest.mark.parametrize("price", [3.4, 100.0])
def test_an_arm_that_is_not_worth_its_price_even_if_it_always_succeeds_stays_uncalled(price: float) -> None:
    policy = PromptWise(dim=2, cost_weight=0.3, forced_pulls=0)
    state = folded(policy, arms=1)
    assert picked(policy, state, context(1, prices=(price,), skipped=10**12)) == [-1]


@pytest.mark.parametrize("rule", ["ratio", "horizon"])
def test_four_failures_at_the_start_do_not_stop_an_arm_that_is_worth_its_price(rule: Any) -> None:
    rewards = (np.random.default_rng(3).random((120, 1, 5)) < 0.4).astype(np.float64)
    rewards[:4] = 0.0
    features = np.tile([0.6, -0.8], (120, 1))
    tried = {}
    for growth in (0.0, 0.35):
        policy = PromptWise(dim=2, cost_weight=0.3, rule=rule, stop_optimism=growth)
        tried[growth] = set(play_episodes(policy, features, rewards, (1.0,)).episodes.tolist())
    assert not any(episode >= 30 for episode in tried[0.0]), "the paper's rule never comes back"
    assert sum(episode >= 30 for episode in tried[0.35]) >= 45


def test_success_is_a_reward_from_the_threshold_on() -> None:
    policy = PromptWise(dim=2, success_threshold=0.7)
    assert [policy.succeeded(r) for r in (0.69, 0.7, 3.0)] == [False, True, True]
    state = folded(policy, seen(0, 0.69), seen(0, 0.7), seen(0, 3.0), arms=1)
    assert state.arms[0].successes == 2
    assert state.arms[0].labels.tolist() == [0.0, 1.0, 1.0]


def test_a_discount_on_retries_escalates() -> None:
    """Cheap arm with q about .6 at price 1, dear one with about the same q at price 3: after two failures 1/.36 > 3."""
    patient = PromptWise(dim=2, rule="ratio", retry_discount=1.0, exploration=0.0, costs="price", cost_weight=0.01)
    state = folded(patient, seen(0, 1.0), seen(1, 1.0), arms=2)
    asked = [context(2, prices=(1.0, 3.0), attempts=(n, 0)) for n in range(4)]
    assert picked(patient, state, *asked) == [0, 0, 0, 0]
    assert picked(replace(patient, retry_discount=0.5), state, *asked) == [0, 0, 1, 1]
    assert picked(replace(patient, retry_discount=0.3), state, *asked) == [0, 1, 1, 1]


def test_a_discount_is_a_power_of_the_failed_calls_of_that_arm() -> None:
    policy = PromptWise(dim=2, rule="ratio", retry_discount=0.3, cost_weight=0.2, costs="price")
    state = folded(policy, seen(0, 1.0), seen(1, 0.0), arms=2)
    fresh, tried = policy.weights(state, [context(2), context(2, attempts=(2, 1))]).scores["utility"]
    torch.testing.assert_close(1.0 - tried, (1.0 - fresh) / torch.tensor([0.09, 0.3], dtype=torch.float64), rtol=1e-13, atol=0)


# -- forced exploration --------------------------------------------------------------------------------------------------


def test_forced_calls_go_least_called_first_and_one_to_an_episode() -> None:
    policy = PromptWise(dim=2, forced_pulls=2)
    state = states.start(policy, arms=3)
    order = []
    for _ in range(6):
        [arm] = picked(policy, state, context(3))
        order.append(arm)
        state = states.fold(policy, state, seen(arm, 0.0))
        attempts = tuple(int(k == arm) for k in range(3))
        went_on = picked(policy, state, context(3, attempts=attempts))[0] != -1
        assert went_on == (len(order) == 6)
    assert order == [0, 1, 2, 0, 1, 2]


def test_forced_calls_of_one_batch_spread_and_pending_ones_count() -> None:
    policy = PromptWise(dim=2, exploration=0.0)
    state = states.start(policy, arms=3)
    assert picked(policy, state, context(3), context(3), context(3), context(3)) == [0, 1, 2, 0]
    assert picked(policy, state, context(3, pending=(1, 0, 0)), context(3)) == [1, 0]
    # the second row is in the middle of an episode: it ends, and claims no forced call
    assert picked(policy, state, context(3), context(3, attempts=(1, 0, 0)), context(3)) == [0, -1, 1]


def test_a_new_arm_is_called_first() -> None:
    policy = PromptWise(dim=2)
    state = folded(policy, seen(0, 1.0), seen(1, 0.0), arms=2)
    assert picked(policy, state, context(2)) == [0]
    grown = states.add_arm(policy, state)
    assert picked(policy, grown, context(3)) == [2]
    assert picked(policy, grown, context(3, pending=(0, 0, 1))) != [2]


def test_forbidden_arms_are_neither_called_nor_waited_for() -> None:
    policy = PromptWise(dim=2, costs="price")
    state = folded(policy, seen(1, 1.0), seen(2, 1.0), arms=4)
    asked = context(4, allowed=(False, True, True, False), prices=(0.1, 3.0, 2.0, 0.1))
    for rule in ("ratio", "horizon"):
        assert picked(replace(policy, rule=rule), state, asked, replace(asked, attempts=(0, 1, 0, 0))) == [2, 2]


def test_equal_arms_go_to_the_lowest_index_and_a_single_arm_is_enough() -> None:
    outcomes = [seen(arm, float(i % 3 == 0), (math.cos(i), math.sin(i))) for i in range(7) for arm in range(3)]
    policy = PromptWise(dim=2)
    state = folded(policy, *outcomes, arms=3)
    for rule in ("ratio", "horizon"):
        assert picked(replace(policy, rule=rule), state, context(3)) == [0]
        assert picked(replace(policy, rule=rule), folded(policy, seen(0, 0.0), arms=1), context(1)) == [0]


# -- costs ---------------------------------------------------------------------------------------------------------------


def test_realised_costs_replace_the_price_after_the_first_outcome() -> None:
    policy = PromptWise(dim=2, forced_pulls=0)
    state = states.start(policy, arms=2)
    asked = context(2, prices=(1.5, 2.5))
    assert policy.weights(state, [asked]).scores["cost"].tolist() == [[1.5, 2.5]]
    state = states.fold(policy, states.fold(policy, state, seen(0, 0.0, cost=4.0)), seen(0, 1.0, cost=3.0))
    assert policy.weights(state, [asked]).scores["cost"].tolist() == [[3.5, 2.5]]


def test_prices_are_obeyed_at_once_where_they_are_the_cost() -> None:
    policy = PromptWise(dim=2, costs="price")
    state = folded(policy, seen(0, 1.0, cost=9.0), seen(1, 1.0, cost=9.0), arms=2)
    assert picked(policy, state, context(2, prices=(1.0, 1.1)), context(2, prices=(1.0, 0.9))) == [0, 1]
    assert policy.report(state)["arms"][0]["mean_cost"] == 9.0


# -- the fit, and what is kept -------------------------------------------------------------------------------------------


def exact(x: Tensor, y: Tensor) -> Tensor:
    p = x.shape[1]
    prior = Quadratic(torch.eye(p, dtype=torch.float64), torch.zeros(p, dtype=torch.float64))
    return logistic.minimize(x, y, prior=prior).theta


def world(n: int, p: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts of length one with a constant, labels, and 200 more prompts."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((n + 200, p))
    x = np.c_[x / np.linalg.norm(x, axis=1, keepdims=True), np.ones(n + 200)]
    y = g.random(n) < 1.0 / (1.0 + np.exp(-2.0 * x[:n] @ g.standard_normal(p + 1)))
    return torch.from_numpy(x[:n]), torch.from_numpy(y.astype(np.float64)), torch.from_numpy(x[n:])


def test_up_to_max_samples_the_fit_is_the_refit_and_beyond_it_stays_near() -> None:
    """5,500 observations, window 500: chances on 200 other prompts within .01 of the refit of all observations; without what
    stands for the forgotten ones, off by more than .05.
    """
    x, y, others = world(5500, 5, seed=3)
    arm = LogisticArm.init(6)
    for i in range(5500):
        arm = arm.update(x[i], success=bool(y[i]), cost=1.0, ridge=1.0, max_samples=500, was_pending=False)
        assert len(arm.labels) <= 500
        if i + 1 in (1, 2, 37, 250, 500):
            torch.testing.assert_close(arm.settle(1.0).fit.theta, exact(x[: i + 1], y[: i + 1]), rtol=0, atol=1e-9)
        if i + 1 in (501, 900, 2000, 5500):
            near = torch.sigmoid(others @ arm.settle(1.0).fit.theta)
            refit = torch.sigmoid(others @ exact(x[: i + 1], y[: i + 1]))
            assert float((near - refit).abs().max()) < 0.01
    forgetful = torch.sigmoid(others @ exact(arm.features, arm.labels))
    assert float((forgetful - refit).abs().max()) > 0.05
    assert arm.pulls == 5500
    torch.testing.assert_close(arm.derive(1.0).width.whole_gram, x.T @ x, rtol=1e-12, atol=1e-9)


def test_separable_outcomes_stay_finite_for_ever() -> None:
    policy = PromptWise(dim=2, max_samples=20, ridge=1e-4)
    state = states.start(policy, arms=1)
    for i in range(100):
        x = (math.cos(i), math.sin(i))
        state = policy.prepare(states.fold(policy, state, seen(0, float(x[0] > 0.2), x)))
    scores = policy.weights(state, [context(1, (1.0, 0.0)), context(1, (-1.0, 0.0))]).scores
    assert all(bool(torch.isfinite(s).all()) for s in scores.values())
    assert scores["estimate"].flatten().tolist() == pytest.approx([1.0, 0.0], abs=0.05)


def test_the_state_depends_on_the_observations_alone() -> None:
    """Prepared after every fold or never, pending before or not, through bytes in between or not: the same digest."""
    policy = PromptWise(dim=3, max_samples=8)
    x, y, _ = world(29, 3, seed=4)
    often = seldom = through = states.start(policy, arms=1)
    for i in range(29):
        outcome = Observation(arm=0, features=x[i, :3], reward=float(y[i]), cost=0.3)
        often = policy.prepare(states.with_arm(often, 0, policy.add_pending(often.arms[0], x[i, :3])))
        often = policy.prepare(states.fold(policy, often, replace(outcome, was_pending=True)))
        seldom = states.fold(policy, seldom, outcome)
        through = states.unpack(policy, states.pack(policy, states.fold(policy, through, outcome)))
        assert states.digest(policy, often) == states.digest(policy, seldom) == states.digest(policy, through)
    assert len(often.arms[0].labels) < 9


def test_after_a_restart_the_next_picks_are_the_same() -> None:
    policy = golden(max_samples=16, cost_weight=0.02, retry_discount=0.5)
    table = cheap_to_expensive(rounds=110, seed=5)
    first = play_episodes(policy, table.features[:70], table.rewards[:70], table.prices)
    restored = states.unpack(policy, states.pack(policy, first.state))
    rest = table.features[70:], table.rewards[70:], table.prices
    live, again = play_episodes(policy, *rest, state=first.state), play_episodes(policy, *rest, state=restored)
    assert np.array_equal(live.picks, again.picks)
    assert states.digest(policy, live.state) == states.digest(policy, again.state)


def test_weights_need_no_preparation() -> None:
    policy = PromptWise(dim=2, max_samples=8)
    outcomes = [seen(i % 2, float(i % 3 == 0), (math.cos(i), math.sin(i))) for i in range(30)]
    raw = states.start(policy, arms=2)
    for outcome in outcomes:
        raw = states.fold(policy, raw, outcome)
    ready = folded(policy, *outcomes, arms=2)
    for ours, theirs in zip(*(policy.weights(s, [context(2)]).scores.values() for s in (raw, ready)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_a_pending_call_shrinks_the_width_as_its_outcome_will_and_gives_it_back() -> None:
    policy = PromptWise(dim=2)
    state = folded(policy, seen(0, 1.0), arms=1)
    x = torch.tensor([0.9, 0.1], dtype=torch.float64)
    asked = context(1, (0.8, 0.3))

    def width(s: State) -> float:
        return float(s.arms[0].settle(1.0).width.score(policy.feature_map(asked.features)[None], ridge=1.0)[1])

    waiting = states.with_arm(state, 0, policy.add_pending(state.arms[0], x))
    closed = states.fold(policy, waiting, Observation(arm=0, features=x, reward=0.0, cost=1.0, was_pending=True))
    direct = states.fold(policy, state, Observation(arm=0, features=x, reward=0.0, cost=1.0))
    released = states.with_arm(waiting, 0, policy.remove_pending(waiting.arms[0], x))
    assert width(waiting) < width(state)
    assert width(waiting) == pytest.approx(width(direct), abs=1e-14)
    assert width(closed) == pytest.approx(width(direct), abs=1e-14)
    assert width(released) == width(state)
    assert states.digest(policy, waiting) == states.digest(policy, state)
    torch.testing.assert_close(waiting.arms[0].settle(1.0).fit.theta, state.arms[0].settle(1.0).fit.theta)


def test_forgetting_keeps_pending_calls() -> None:
    policy = PromptWise(dim=2, max_samples=4)
    x = torch.tensor([0.9, 0.1], dtype=torch.float64)
    state = folded(policy, *(seen(0, float(i % 2)) for i in range(4)), arms=1)
    waiting = states.with_arm(state, 0, policy.add_pending(state.arms[0], x))
    later = states.fold(policy, waiting, seen(0, 1.0))
    assert later.arms[0].settle(1.0).width.ridge(1.0).pending == 1


def test_nothing_writes_into_its_arguments() -> None:
    policy = PromptWise(dim=2, max_samples=5)
    x = torch.tensor([3.0, 4.0], dtype=torch.float32)
    state = states.start(policy, arms=1)
    history = []
    for i in range(12):
        history.append((state, states.digest(policy, state)))
        state = policy.prepare(states.fold(policy, state, Observation(arm=0, features=x, reward=float(i % 2), cost=1.0)))
        policy.weights(state, [Context(features=x, allowed=(True,), prices=(1.0,))])
    assert x.tolist() == [3.0, 4.0]
    assert all(states.digest(policy, old) == digest for old, digest in history)


def test_an_older_state_branches_without_touching_the_newer_one() -> None:
    policy = PromptWise(dim=2)
    old = folded(policy, seen(0, 1.0), arms=1)
    one = states.fold(policy, old, seen(0, 1.0, (0.0, 1.0)))
    digest = states.digest(policy, one)
    other = states.fold(policy, old, seen(0, 0.0, (1.0, 0.0)))
    assert states.digest(policy, one) == digest != states.digest(policy, other)


# -- features, refusals, report ------------------------------------------------------------------------------------------


def test_features_are_scaled_lifted_and_get_a_constant() -> None:
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(PromptWise(dim=2).feature_map(x), torch.tensor([0.6, 0.8, 1.0], dtype=torch.float64))
    assert golden(dim=2).feature_map(x).tolist() == [3.0, 4.0]
    policy = PromptWise(dim=2, features="rff", random_features=6, bandwidth=0.7, seed=9)
    z = policy.feature_map(x)
    w = torch.from_numpy(np.random.default_rng(9).standard_normal((6, 2)) / 0.7)
    torch.testing.assert_close(z, torch.cat([(w @ x / 5).cos(), (w @ x / 5).sin(), torch.tensor([6.0**0.5])]) / 6.0**0.5)
    assert policy.init().gram.shape == (13, 13)
    assert policy.fingerprint == hashlib.sha256(w.numpy().tobytes()).hexdigest()
    assert PromptWise(dim=2).fingerprint == ""


def test_random_features_learn_what_no_line_separates() -> None:
    """Success at both ends of a line of prompts and not in the middle."""
    kwargs: dict[str, Any] = {"dim": 1, "normalize": False, "exploration": 0.0, "ridge": 0.1}
    curved, straight = PromptWise(features="rff", random_features=40, bandwidth=0.5, **kwargs), PromptWise(**kwargs)
    at = np.linspace(-2, 2, 81)
    outcomes = [seen(0, float(abs(x) > 1), (x,)) for x in at]
    asked = [context(1, (x,)) for x in (-1.8, 0.0, 1.8)]
    scores = curved.weights(folded(curved, *outcomes, arms=1), asked).scores["estimate"].flatten().tolist()
    assert scores[0] > 0.9 > 0.1 > scores[1]
    assert scores[2] > 0.9
    flat = straight.weights(folded(straight, *outcomes, arms=1), asked).scores["estimate"].flatten().tolist()
    assert max(flat) - min(flat) < 0.1


def test_what_cannot_be_decided_or_learned_is_refused() -> None:
    with pytest.raises(InvalidContext, match="zeros"):
        PromptWise(dim=2).check_context(context(1, (0.0, 0.0)))
    with pytest.raises(InvalidContext, match="too long for the ridge"):
        PromptWise(dim=2, normalize=False).check_context(context(1, (3e5, 0.0)))
    PromptWise(dim=2, normalize=False).check_context(context(1, (0.0, 3e3)))
    PromptWise(dim=2).check_context(context(1, (3e30, 0.0)))
    with pytest.raises(InvalidObservation, match="cost"):
        PromptWise(dim=2).check_observation(seen(0, 1.0, cost=-0.1))
    wrong: dict[str, Any] = {"retry_discount": 1.1, "cost_weight": -1.0, "rule": "greedy", "max_attempts": 0, "ridge": 0.0}
    for name, value in wrong.items():
        with pytest.raises(InvalidHyperparameter, match=name):
            PromptWise(**{"dim": 2, name: value})


def test_a_floor_spreads_decisions_but_not_stops() -> None:
    policy = PromptWise(dim=2, exploration_floor=0.2)
    state = folded(policy, seen(0, 1.0), seen(1, 1.0), arms=2)
    values = policy.weights(state, [context(2), context(2, attempts=(3, 2))]).values
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.1], [0.0, 0.0]], dtype=torch.float64))


def test_the_report_tells_what_was_learned() -> None:
    policy = PromptWise(dim=2)
    state = folded(policy, seen(0, 1.0, cost=2.0), seen(0, 0.0, cost=4.0), seen(0, 1.0, cost=0.3), arms=2)
    first, second = policy.report(state)["arms"]
    assert first["pulls"] == 3
    assert first["success_rate"] == pytest.approx(2 / 3)
    assert first["mean_cost"] == pytest.approx(2.1)
    assert first["theta_norm"] == pytest.approx(float(torch.linalg.vector_norm(state.arms[0].settle(1.0).fit.theta)))
    assert second == {"pulls": 0, "success_rate": None, "mean_cost": None, "theta_norm": 0.0}
