from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from numpy.testing import assert_allclose

from bandits import draw
from bandits import state as states
from bandits.evidence import posterior as posteriors
from bandits.policies import auto as policies
from bandits.policies.auto import AutoShared
from bandits.types import Amendment, Observation
from tests.bandits.evidence import runs
from tests.bandits.evidence.runs import Bandit, Floats, World, auto, play

NONE = np.empty(0)


def linear(rounds: int, *, arms: int = 3, dim: int = 4, seed: int = 7) -> World:
    """Rewards are linear in the prompt, with noise; each arm has its own direction."""
    g = default_rng(seed)
    prompts, directions = g.standard_normal((rounds, dim)), g.standard_normal((arms, dim))
    return World(prompts, prompts @ directions.T + 0.3 * g.standard_normal((rounds, arms)))


def levels(rounds: int, *, arms: int = 3, seed: int = 7) -> World:
    """Without prompts: later arms are better."""
    return World(np.empty((rounds, 0)), 0.2 * np.arange(arms) + 0.3 * default_rng(seed).standard_normal((rounds, arms)))


def is_distribution(weights: Floats) -> bool:
    return bool(np.isfinite(weights).all() and (weights >= 0).all() and abs(weights.sum() - 1) < 1e-12)


# -- propensities ----------------------------------------------------------------------------------------------------------


def test_arms_are_drawn_with_the_weights_that_are_logged() -> None:
    """Chi-square over 20,000 ids, three arms: 18.4 is exceeded with probability .0001."""
    world = runs.logistic()
    _, bandit = play(World(world.prompts[:60], world.rewards[:60]))
    weights = bandit.policy.weights(bandit.state, [runs.context(bandit.state, world.prompts[0])]).values[0]
    assert (weights > 0.005).all()
    counts = np.zeros(3)
    for i in range(20_000):
        drawn = draw.draw(weights, f"id {i}")
        counts[drawn.arm] += 1
        assert drawn.propensity == float(weights[drawn.arm])
    expected = 20_000 * weights.numpy()
    assert ((counts - expected) ** 2 / expected).sum() < 18.4


# -- what it learns ----------------------------------------------------------------------------------------------------------


def test_it_learns_which_arm_is_best_for_which_prompt() -> None:
    world = linear(150)
    picks, bandit = play(world)
    best = world.rewards.max(1)
    late = slice(75, None)
    assert world.rewards[np.arange(150), picks][late].mean() > 0.75 * best[late].mean()
    assert bandit.policy.report(bandit.state)["trust"] > 0.99


def test_where_the_prompt_does_not_matter_it_says_so() -> None:
    g = default_rng(3)
    world = World(g.standard_normal((150, 4)), levels(150).rewards)
    picks, bandit = play(world)
    assert bandit.policy.report(bandit.state)["trust"] < 0.5
    assert (picks[75:] == 2).mean() > 0.6


def test_pooled_means_and_counts_leave_out_retired_arms() -> None:
    """One that is retired counts neither in the mean nor among the K arms that share what a prompt may explain."""
    with_it, without = Bandit.start(auto(dim=0), arms=3), Bandit.start(auto(dim=0), arms=2)
    with_it.state = replace(with_it.state, retired=frozenset({2}))
    for t, (first, second, third) in enumerate(levels(12).rewards):
        for arm, reward in ((0, first), (1, second)):
            for bandit in (with_it, without):
                bandit.learn(arm, NONE, reward, prepare=False)
        if t == 0:
            with_it.learn(2, NONE, 1e3 + third, prepare=False)
    prepared = [one.policy.prepare(replace(one.state, reference=_due(one))) for one in (with_it, without)]
    first, second = (state.reference.posterior.signals[0] for state in prepared)
    assert_allclose([first.mean, first.root, first.fits[0].evidence], [second.mean, second.root, second.fits[0].evidence])
    assert_allclose(first.fits[0].theta[:2], second.fits[0].theta)


def _due(bandit: Bandit) -> AutoShared:
    """As after a restart without a posterior: everything is prepared at once, from the sums."""
    shared: AutoShared = bandit.state.reference
    return replace(shared, posterior=None, waiting=())


# -- first pulls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 3])
def test_an_arm_that_always_expires_takes_no_more_than_its_share(dim: int) -> None:
    g = default_rng(1)
    bandit, lost = Bandit.start(auto(dim=dim), arms=5), 2
    rewards = np.array([0.2, 0.5, 0.9, 0.6, 0.4])
    for _ in range(600 if dim == 0 else 150):
        x = g.standard_normal(dim)
        arm = runs.draw(bandit.weights(x, decided=tuple(bandit.decided)), g.random())
        bandit.decide(arm, x)
        if arm == lost:
            bandit.expire(arm, x)
        else:
            bandit.learn(arm, x, rewards[arm] + 0.2 * g.standard_normal())
    assert 1 <= bandit.decided[lost] <= sum(bandit.decided) / 5


def test_a_new_arm_gets_one_forced_decision() -> None:
    _, bandit = play(levels(40))
    bandit.state = states.add_arm(bandit.policy, bandit.state)
    bandit.pending.append(0)
    bandit.decided = [arm.pulls for arm in bandit.state.arms]
    assert bandit.weights(NONE, decided=tuple(bandit.decided)).tolist() == [0, 0, 0, 1]
    assert bandit.weights(NONE).tolist() == [0, 0, 0, 1]  # without the counts of decisions: outcomes and pending ones
    bandit.decide(3, NONE)
    for decided in (tuple(bandit.decided), ()):
        weights = bandit.weights(NONE, decided=decided)
        assert is_distribution(weights)
        assert 0 < weights[3] < 1
    bandit.expire(3, NONE)
    assert bandit.weights(NONE, decided=tuple(bandit.decided))[3] < 1


def test_rows_of_one_call_are_forced_one_after_the_other() -> None:
    policy = auto(dim=0)
    state = states.start(policy, arms=3)
    found = policy.weights(state, [runs.context(state, NONE)] * 3)
    assert found.values.tolist() == np.eye(3).tolist()
    assert found.assumed == [0, 1, 2]


def test_forbidden_arms_get_nothing() -> None:
    _, bandit = play(linear(30))
    weights = bandit.weights(np.ones(4), allowed=(True, False, True))
    assert weights[1] == 0
    assert is_distribution(weights)


# -- signals -----------------------------------------------------------------------------------------------------------------

BOTH = ("reward", "cost")
SIGNAL_SCORES = ("signals.reward", "signals.cost")


def two_signals(costs: Callable[[int, int], float], *, dim: int = 3, rounds: int = 40) -> tuple[np.ndarray, Bandit]:
    """costs: (round, arm)."""
    world = linear(rounds, dim=dim) if dim else levels(rounds)
    bandit = Bandit.start(auto(dim=dim, signals=BOTH), arms=3)
    uniforms, picks = default_rng([0, 1]), []
    for t, x in enumerate(world.prompts):
        arm = runs.draw(bandit.weights(x), uniforms.random())
        bandit.decide(arm, x)
        bandit.learn(arm, x, float(world.rewards[t, arm]), costs(t, arm))
        picks.append(arm)
    return np.array(picks), bandit


@pytest.mark.parametrize(
    "costs",
    [
        pytest.param(lambda t, arm: math.nan, id="never"),
        pytest.param(lambda t, arm: math.nan if arm else 0.5 + 0.01 * t, id="for one arm"),
        pytest.param(lambda t, arm: 3.0, id="constant"),
        pytest.param(lambda t, arm: 1e12 * (1 + t % 3), id="huge"),
        pytest.param(lambda t, arm: 1e12 if t == 20 else 0.1 * (t % 5), id="once huge"),
    ],
)
def test_a_signal_that_is_not_weighed_changes_nothing(costs: Callable[[int, int], float]) -> None:
    picks, bandit = two_signals(costs)
    assert (picks == play(linear(40, dim=3))[0]).all()
    for coefficients in (((1.0,) * 3, (-1.0,) * 3), ((0.0,) * 3, (-1.0,) * 3)):
        assert is_distribution(bandit.weights(np.ones(3), coefficients=coefficients))
    seen = [costs(t, arm) for t, arm in enumerate(picks)]
    assert sum(arm.gram(1).count for arm in bandit.state.arms) == sum(map(math.isfinite, seen))


def test_a_signal_that_is_not_weighed_has_no_estimate() -> None:
    _, bandit = two_signals(lambda t, arm: float(t % 5), dim=0)
    for coefficients, shown in (((1.0,) * 3, (0.0,) * 3), ["signals.reward"]), (((1.0,) * 3, (1.0, 0.0, 0.0)), [*SIGNAL_SCORES]):
        asked = runs.context(bandit.state, NONE, coefficients=coefficients)
        scores = bandit.policy.weights(bandit.state, [asked]).scores
        assert [name for name in SIGNAL_SCORES if scores[name].isfinite().all()] == shown
        assert [name for name in SIGNAL_SCORES if scores[name].isnan().all()] == [*SIGNAL_SCORES][len(shown) :]


def test_a_signal_that_varies_decides_where_it_is_weighed() -> None:
    _, bandit = two_signals(lambda t, arm: (5.0, 1.0, 3.0)[arm] + 0.1 * (t % 3), dim=0)
    weights = bandit.weights(NONE, coefficients=((0.0,) * 3, (-1.0,) * 3))
    assert weights.argmax() == 1
    assert weights[1] > 0.9


def test_a_known_constant_decides_where_it_outweighs_what_is_learned() -> None:
    _, bandit = play(levels(40))
    assert bandit.weights(NONE, constants=(0.0, 100.0, 0.0)).tolist() == [0, 1, 0]


def test_coefficients_that_make_all_arms_equal() -> None:
    _, bandit = play(linear(30))
    assert_allclose(bandit.weights(np.ones(4), coefficients=((0.0,) * 3,)), 1 / 3)


# -- bad input ---------------------------------------------------------------------------------------------------------------


def test_one_arm() -> None:
    picks, bandit = play(linear(20, arms=1))
    assert not picks.any()
    assert bandit.weights(np.ones(4)).tolist() == [1.0]


def test_a_prompt_of_zeros() -> None:
    _, bandit = play(linear(30))
    assert is_distribution(bandit.weights(np.zeros(4)))
    bandit.decide(0, np.zeros(4))
    bandit.learn(0, np.zeros(4), 1.0)
    assert is_distribution(bandit.weights(np.zeros(4)))


@pytest.mark.parametrize("reward", [0.0, 1.0, -1e12])
def test_rewards_all_alike_are_spread_over_the_arms(reward: float) -> None:
    picks, bandit = play(World(np.zeros((30, 2)), np.full((30, 3), reward)))
    assert np.bincount(picks).tolist() == [10, 10, 10]
    assert bandit.policy.report(bandit.state)["trust"] is None


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_units_do_not_matter(factor: float) -> None:
    world = levels(80)
    assert (play(world)[0] == play(world._replace(rewards=factor * world.rewards))[0]).all()


def test_a_reward_of_another_magnitude() -> None:
    world = levels(40)
    world.rewards[20] = 1e12
    _, bandit = play(world)
    assert is_distribution(bandit.weights(NONE))


def test_many_arms_and_long_prompts() -> None:
    g = default_rng(0)
    bandit = Bandit.start(auto(dim=1536), arms=100)
    for arm in range(100):
        x = g.standard_normal(1536)
        bandit.decide(arm, x)
        bandit.learn(arm, x, g.standard_normal(), prepare=False)
    bandit.prepare()
    weights = bandit.weights(g.standard_normal(1536))
    assert is_distribution(weights)
    assert (weights > 0).sum() > 1


@pytest.mark.parametrize("dim", [0, 3])
def test_signals_of_an_arm_without_an_outcome_prepare_a_posterior(dim: int) -> None:
    """The only arm that is not retired has two costs, of outcomes whose rewards are still to come."""
    g, bandit = default_rng(3), Bandit.start(auto(dim=dim, signals=BOTH), arms=2)
    prompts = g.standard_normal((4, dim))
    for x, cost in zip(prompts[:2], (1.0, 2.0), strict=True):
        part = Amendment(
            arm=1, features=runs.tensor(x), old=(math.nan,) * 2, new=(math.nan, cost), learned=(0, 0), offset=3, held=0
        )
        bandit.state = bandit.policy.amend(bandit.state, part)
    bandit.state = replace(bandit.state, retired=frozenset({0}))
    for x, reward in zip(prompts[2:], (0.0, 1.0), strict=True):
        bandit.decide(0, x)
        bandit.learn(0, x, reward, 0.5)
    posterior = bandit.state.reference.posterior
    assert (posterior.count, [one.mean for one in posterior.signals]) == (2, [0.0, 0.5])
    assert [bool(one.fits) for one in posterior.signals] == [False, True]
    z = np.stack([bandit.policy.features.lift(runs.tensor(x)).z for x in prompts[:2]])
    centered = np.stack([posterior.basis.project(row) for row in z])[:, 1:].mean(0)
    assert_allclose(centered, 0.0, atol=1e-12)
    assert is_distribution(bandit.weights(prompts[0], coefficients=((1.0,) * 2, (-1.0,) * 2)))


# -- restarts, replays, late preparation ---------------------------------------------------------------------------------------

Event = tuple[str, int, Floats, tuple[float, ...]]


def log(*, dim: int = 3, outcomes: int = 24) -> list[Event]:
    """What happens to a bandit of four arms with two signals: decisions, outcomes up to seven decisions later in another order,
    expiries, an arm that starts over, and in the end decisions that are still open.
    """
    g, waiting = default_rng(11), []
    events: list[Event] = []
    for t in range(outcomes):
        arm, x = t % 4 if t < 6 else int(g.integers(4)), g.standard_normal(dim)
        events.append(("decide", arm, x, ()))
        waiting.append((arm, x))
        while len(waiting) > int(g.integers(1, 8)):
            arm, x = waiting.pop(int(g.integers(len(waiting))))
            values = (float(x[:1].sum() * arm + g.standard_normal()), math.nan if g.random() < 0.3 else float(g.random()))
            events.append(("expire", arm, x, ()) if g.random() < 0.1 else ("learn", arm, x, values))
        if t in (9, 17):
            events.append(("reset", t % 4, x, ()))
    return events


def apply(bandit: Bandit, event: Event, *, prepare: bool) -> None:
    kind, arm, x, values = event
    if kind == "learn":
        bandit.learn(arm, x, *values, prepare=prepare)
    elif kind == "reset":
        bandit.state = bandit.policy.reset_arm(bandit.state, arm)
        if prepare:
            bandit.prepare()
    else:
        (bandit.decide if kind == "decide" else bandit.expire)(arm, x)


def asked(bandit: Bandit) -> Floats:
    """(50, K) weights of the next decisions, each of which is pending for those after it."""
    g, found = default_rng(12), []
    later = Bandit(bandit.policy, bandit.state, list(bandit.pending), list(bandit.decided))
    for _ in range(50):
        x = g.standard_normal(bandit.policy.dim)
        found.append(later.weights(x, decided=tuple(later.decided), coefficients=((1.0,) * 4, (-0.5,) * 4)))
        later.decide(runs.draw(found[-1], g.random()), x)
        if len(found) % 10 == 0:
            arm = later.decided.index(max(later.decided))
            later.learn(arm, x, float(g.standard_normal()), float(g.random()), prepare=False)
    return np.array(found)


def started() -> Bandit:
    return Bandit.start(auto(dim=3, signals=BOTH), arms=4)


def restarted(bandit: Bandit) -> Bandit:
    """From bytes, as a server restores it: state, what is derived, then the open decisions."""
    policy = auto(dim=3, signals=BOTH)
    state = states.unpack(policy, states.pack(bandit.policy, bandit.state))
    state = policy.unpack_derived(state, bandit.policy.pack_derived(bandit.state))
    for index, arm in enumerate(bandit.state.arms):
        for x in arm.pending:
            features = torch.from_numpy(np.frombuffer(x).copy())
            state = states.with_arm(state, index, policy.add_pending(state.arms[index], features))
    return Bandit(policy, state, list(bandit.pending), list(bandit.decided))


@pytest.fixture(scope="module")
def expected() -> list[Floats]:
    """What is asked after each event of the log where every preparation is made at once."""
    bandit, found = started(), []
    for event in log():
        apply(bandit, event, prepare=True)
        found.append(asked(bandit))
    return found


@pytest.mark.parametrize("late", [0, 2])
def test_a_restart_at_any_offset_changes_no_bit(expected: list[Floats], late: int) -> None:
    """late: preparations are made only with every so-manieth event; 0 = with each."""
    bandit = started()
    for offset, event in enumerate(log()):
        apply(bandit, event, prepare=not late)
        if late and offset % (4 * late) == 0:
            bandit.prepare()
        again = restarted(bandit)
        assert states.digest(again.policy, again.state) == states.digest(bandit.policy, bandit.state)
        assert (asked(again) == expected[offset]).all(), f"after event {offset}"
        if offset % 7 == 0:
            bandit = again  # and goes on from there


def test_a_replay_that_prepares_in_the_end_changes_no_bit(expected: list[Floats]) -> None:
    bandit = started()
    for event in log():
        apply(bandit, event, prepare=False)
    bandit.prepare()
    assert (asked(bandit) == expected[-1]).all()


def test_a_long_replay_notes_few_outcomes_and_changes_no_bit(expected: list[Floats], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "MOST_STEPS", 3)
    bandit, noted = started(), 0
    for event in log():
        apply(bandit, event, prepare=False)
        noted = max([noted, *(len(one.steps) for one in bandit.state.reference.waiting)])
    assert noted == 2
    bandit.prepare()
    assert (asked(bandit) == expected[-1]).all()


def test_amendments_and_joined_gains_survive_a_restart_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "MOST_GAINS", 3)
    g, at_once, late, known = default_rng(5), started(), started(), []
    for offset, event in enumerate(log()):
        for bandit in (at_once, late):
            apply(bandit, event, prepare=bandit is at_once)
        known += [event] if event[0] == "learn" else []
        if known and offset % 3 == 0:
            _, arm, x, old = known[int(g.integers(len(known)))]
            new = (float(g.standard_normal()), float(g.random()) if offset % 2 else math.nan)
            change = Amendment(arm=arm, features=runs.tensor(x), old=old, new=new, learned=(2, 2), offset=offset, held=2)
            for bandit in (at_once, late):
                bandit.state = bandit.policy.amend(bandit.state, change)
            at_once.prepare()
        if offset % 15 == 14:
            late = restarted(late)
            assert states.digest(late.policy, late.state) == states.digest(at_once.policy, at_once.state)
            assert (asked(late) == asked(at_once)).all(), f"after event {offset}"


def test_a_preparation_that_comes_late_is_that_of_its_own_outcome_count() -> None:
    """Started before further outcomes and published after them, as a server does it in a thread."""
    at_once, behind = started(), started()
    published = None
    for event in log():
        apply(at_once, event, prepare=True)
        apply(behind, event, prepare=False)
        if published is not None:
            behind.state = replace(behind.state, cache=published)
            published = None
        elif behind.policy.has_to_prepare(behind.state):
            published = behind.policy.prepare(behind.state).cache
    behind.prepare()
    assert (asked(behind) == asked(at_once)).all()


# -- drift -------------------------------------------------------------------------------------------------------------------


def test_surprise_is_a_standard_score() -> None:
    world = linear(150)
    _, bandit = play(World(world.prompts[:100], world.rewards[:100]))
    found = [
        bandit.policy.surprise(bandit.state, Observation(arm=0, features=runs.tensor(x), reward=float(r)))
        for x, r in zip(world.prompts[100:], world.rewards[100:, 0], strict=True)
    ]
    scores = np.array(found, dtype=float)
    assert abs(scores.mean()) < 0.6
    assert 0.4 < scores.std() < 2.0
    far = bandit.policy.surprise(bandit.state, Observation(arm=0, features=runs.tensor(world.prompts[0]), reward=100.0))
    assert far is not None
    assert far > 20


def test_nothing_is_a_surprise_before_the_first_preparation() -> None:
    bandit = Bandit.start(auto(dim=0), arms=2)
    assert bandit.policy.surprise(bandit.state, Observation(arm=0, reward=1.0)) is None


def test_an_arm_that_starts_over_is_as_uncertain_as_a_new_one() -> None:
    _, bandit = play(levels(60))
    before = bandit.policy.report(bandit.state)["arms"][2]["deviation"]
    bandit.state = bandit.policy.reset_arm(bandit.state, 2)
    assert bandit.state.arms[2].pulls == 0
    assert bandit.policy.report(bandit.state)["arms"][2]["deviation"] > 1.3 * before


def test_an_arm_that_starts_over_is_not_taken_for_one_that_never_answers() -> None:
    _, bandit = play(levels(60))
    bandit.state = bandit.policy.reset_arm(bandit.state, 2)
    assert bandit.state.arms[2].answered == bandit.decided[2]
    weights = bandit.weights(NONE, decided=tuple(bandit.decided))
    bandit.decide(2, NONE)
    bandit.learn(2, NONE, 0.4)
    for _ in range(200):
        bandit.decide(2, NONE)
        bandit.expire(2, NONE)
    assert bandit.weights(NONE, decided=tuple(bandit.decided))[2] < 0.2 < weights[2]
