from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits import state as states
from bandits.errors import InvalidHyperparameter, InvalidObservation
from bandits.hyperparameters import declared
from bandits.policies import thompson
from bandits.policies.thompson import Posteriors, Thompson, beta, gaussian, probability_best, student
from bandits.simulation import World, simulate
from bandits.types import Context, Observation, State


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def folded(policy: Thompson, *outcomes: tuple[int, float], arms: int) -> State:
    state = states.start(policy, arms=arms)
    for arm, reward in outcomes:
        state = states.fold(policy, state, Observation(arm=arm, reward=reward))
    return policy.prepare(state)


def by_a_finer_rule(posteriors: Posteriors) -> Tensor:
    """`probability_best` with more nodes on each panel."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("NODES", "WEIGHTS", "INTEGRAL"), thompson._rule(24), strict=True):
            patch.setattr(thompson, name, value)
        return probability_best(posteriors)


def allowing(*allowed: bool, **others: Any) -> Context:
    return Context(allowed=allowed, **others)


# -- the probabilities -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(a=st.floats(-30, 30), b=st.floats(-30, 30), log_s=st.floats(-7, 5), log_t=st.floats(-7, 5))  # deviations from .001 to 150
def test_two_gaussian_arms_have_a_closed_form(a: float, b: float, log_s: float, log_t: float) -> None:
    s, t = math.exp(log_s), math.exp(log_t)
    expected = 0.5 * math.erfc((b - a) / math.hypot(s, t) / math.sqrt(2))
    first, second = probability_best(gaussian(vector(a, b), vector(s, t))).tolist()
    assert abs(first - expected) < 1e-12
    assert abs(second - (1 - expected)) < 1e-12


@settings(max_examples=40, deadline=None)
@given(a=st.integers(1, 60), b=st.floats(0.2, 500), c=st.floats(0.2, 500), d=st.floats(0.2, 500))
def test_two_beta_arms_have_a_closed_form(a: int, b: float, c: float, d: float) -> None:
    """X ~ Beta(a, b) with a whole: P(X > y) = sum_(i < a) C(a + b - 1, i) y^i (1 - y)^(a + b - 1 - i), integrated over
    Y ~ Beta(c, d) term by term.
    """

    def log_beta(p: float, q: float) -> float:
        return math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)

    n = a + b - 1
    terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_beta(c + i, d + n - i) - log_beta(c, d)
        for i in range(a)
    )
    expected = math.fsum(math.exp(term) for term in terms)
    assert abs(float(probability_best(beta(vector(a, c), vector(b, d)))[0]) - expected) < 1e-9


@pytest.mark.parametrize(
    "a",
    [
        (0.5, 1.0, 2.3, 10.0, 100.0, 0.1),
        (3.0, 3.0),
        (1e6, 2e6, 4.5e6, 0.25),
        tuple(np.linspace(0.3, 40.0, 60)),
    ],
)
def test_powers_of_a_uniform_race_in_proportion(a: tuple[float, ...]) -> None:
    """Beta(a, 1) is U^(1/a): its CDF is x^a, so arm k wins with probability a_k / sum a, whatever the number of arms."""
    expected = vector(*a) / sum(a)
    torch.testing.assert_close(probability_best(beta(vector(*a), torch.ones(len(a)).double())), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 7, 60])
def test_equal_arms_share_evenly(count: int) -> None:
    same = torch.full((count,), 2.7, dtype=torch.float64)
    for posteriors in (beta(same, same / 3), gaussian(same, same)):
        torch.testing.assert_close(probability_best(posteriors), torch.full_like(same, 1 / count), rtol=1e-12, atol=0)


def test_the_weights_are_what_sampling_would_give() -> None:
    successes, failures = vector(3.0, 9.0, 1.2, 30.0), vector(2.0, 6.5, 0.7, 25.0)
    rng = np.random.default_rng(1)
    samples = rng.beta(successes.numpy(), failures.numpy(), (200_000, 4)).argmax(axis=1)
    shares = np.bincount(samples, minlength=4) / 200_000
    np.testing.assert_allclose(probability_best(beta(successes, failures)).numpy(), shares, rtol=0, atol=0.005)
    means, deviations = vector(0.1, 0.4, 0.3, -2.0), vector(1.0, 0.2, 0.5, 3.0)
    samples = rng.normal(means.numpy(), deviations.numpy(), (200_000, 4)).argmax(axis=1)
    shares = np.bincount(samples, minlength=4) / 200_000
    np.testing.assert_allclose(probability_best(gaussian(means, deviations)).numpy(), shares, rtol=0, atol=0.005)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.tuples(st.floats(0.1, 1e7), st.floats(0.1, 1e7)), min_size=2, max_size=9),
    shift=st.floats(-3, 3),
)
def test_wild_posteriors_give_a_distribution_that_a_finer_rule_confirms(counts: list[tuple[float, float]], shift: float) -> None:
    a, b = vector(*(pair[0] for pair in counts)), vector(*(pair[1] for pair in counts))
    for posteriors in (beta(a, b), gaussian(a.log() + shift, b.rsqrt())):
        p = probability_best(posteriors)
        assert bool((p >= 0).all())
        assert abs(float(p.sum()) - 1.0) < 1e-12
        torch.testing.assert_close(p, by_a_finer_rule(posteriors), rtol=0, atol=1e-11)


def test_arms_that_no_number_can_tell_apart_are_still_compared() -> None:
    p = probability_best(gaussian(vector(1.0, 1.0, 0.5), torch.full((3,), 1e-30, dtype=torch.float64)))
    torch.testing.assert_close(p, vector(0.5, 0.5, 0.0))


def test_a_lopsided_posterior_keeps_its_digits() -> None:
    """Beta(a, 1) against Beta(c, 2): P(X > Y) = 1 - B(c + a, 2) / B(c, 2) = 1 - c / (c + a) * (c + 1) / (c + a + 1)."""
    expected = 1 - (3e8 / 1.3e9) * ((3e8 + 1) / (1.3e9 + 1))
    assert abs(float(probability_best(beta(vector(1e9, 3e8), vector(1.0, 2.0)))[0]) - expected) < 1e-12


# -- the policy ------------------------------------------------------------------------------------------------------------


def test_rewards_update_the_beta_posterior() -> None:
    policy = Thompson(posterior="beta", prior_successes=2.0, prior_failures=0.5)
    state = folded(policy, (0, 1.0), (0, 0.25), (1, 0.0), arms=2)
    expected = probability_best(beta(vector(3.25, 2.0), vector(1.25, 1.5)))
    answer = policy.weights(state, [allowing(True, True)])
    torch.testing.assert_close(answer.values[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(answer.scores["estimate"][0], vector(3.25 / 4.5, 2.0 / 3.5))


def test_rewards_update_the_gaussian_posterior() -> None:
    policy = Thompson(posterior="gaussian", prior_mean=0.3, prior_deviation=2.0, noise=0.8)
    state = folded(policy, (0, 5.0), (0, -1.0), (1, 0.7), arms=2)
    precision = [1 / 4 + 2 / 0.64, 1 / 4 + 1 / 0.64]
    means = [(0.3 / 4 + 4.0 / 0.64) / precision[0], (0.3 / 4 + 0.7 / 0.64) / precision[1]]
    z = (means[0] - means[1]) / math.sqrt(1 / precision[0] + 1 / precision[1])
    expected = 0.5 * math.erfc(-z / math.sqrt(2))
    answer = policy.weights(state, [allowing(True, True)])
    torch.testing.assert_close(answer.values[0], vector(expected, 1 - expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(answer.scores["estimate"][0], vector(*means))


def test_only_allowed_arms_take_part() -> None:
    policy = Thompson(posterior="beta")
    state = folded(policy, (0, 1.0), (1, 1.0), (2, 0.0), arms=3)
    contexts = [
        allowing(True, True, True),
        allowing(True, False, True),
        allowing(False, False, True),
        allowing(True, False, True),
    ]
    values = policy.weights(state, contexts).values
    between = probability_best(beta(vector(2.0, 1.0), vector(1.0, 2.0)))
    torch.testing.assert_close(values[1], vector(float(between[0]), 0.0, float(between[1])))
    assert values[2].tolist() == [0.0, 0.0, 1.0]
    assert torch.equal(values[1], values[3])
    torch.testing.assert_close(values.sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_burn_in_comes_first_and_a_floor_lifts_every_arm() -> None:
    policy = Thompson(posterior="beta", initial_pulls=2, exploration_floor=0.3)
    state = folded(policy, (0, 1.0), arms=2)
    torch.testing.assert_close(
        policy.weights(state, [allowing(True, True)] * 2).values, torch.tensor([[0.15, 0.85], [0.85, 0.15]]).double()
    )
    state = folded(policy, *[(0, 1.0)] * 40, *[(1, 0.0)] * 40, arms=2)
    torch.testing.assert_close(policy.weights(state, [allowing(True, True)]).values, torch.tensor([[0.85, 0.15]]).double())


def test_a_prepared_state_answers_as_an_unprepared_one_and_arms_may_come() -> None:
    policy = Thompson(posterior="beta", initial_pulls=0)
    raw = states.start(policy, arms=3)
    ready = policy.prepare(raw)
    asked = [allowing(True, True, True), allowing(True, True, False)]
    for arm, reward in ((0, 1.0), (2, 0.0), (1, 1.0), (0, 1.0)):
        raw = states.fold(policy, raw, Observation(arm=arm, reward=reward))
        ready = states.fold(policy, ready, Observation(arm=arm, reward=reward))
        stale = policy.weights(ready, asked).values  # the cache is of the arms before this fold
        ready = policy.prepare(ready)
        for values in (stale, policy.weights(ready, asked).values):
            assert torch.equal(values, policy.weights(raw, asked).values)
        assert states.digest(policy, raw) == states.digest(policy, ready)
    grown = policy.prepare(states.add_arm(policy, ready))
    assert float(policy.weights(grown, [allowing(True, True, True, True)]).values[0, 3]) > 0.1
    through = states.unpack(policy, states.pack(policy, ready))
    assert torch.equal(policy.weights(through, asked).values, policy.weights(ready, asked).values)


def test_it_finds_the_better_arm() -> None:
    policy = Thompson(posterior="beta")
    rng = np.random.default_rng(4)
    state = states.start(policy, arms=3)
    picks = []
    for t in range(300):
        weights = policy.weights(state, [allowing(True, True, True)]).values[0].numpy()
        arm = int(rng.choice(3, p=weights))
        picks.append(arm)
        state = policy.prepare(
            states.fold(policy, state, Observation(arm=arm, reward=float(rng.random() < (0.3, 0.7, 0.4)[arm])))
        )
        assert t > 0 or arm == 0
    assert picks[-100:].count(1) > 80


def test_what_a_beta_posterior_cannot_learn_is_refused() -> None:
    for reward in (-0.01, 1.5):
        with pytest.raises(InvalidObservation, match="gaussian"):
            Thompson(posterior="beta").check_observation(Observation(arm=0, reward=reward))
        Thompson(posterior="gaussian").check_observation(Observation(arm=0, reward=reward))
    with pytest.raises(InvalidHyperparameter, match="prior_failures"):
        Thompson(prior_failures=0.0)


def test_the_report_has_the_posterior_means() -> None:
    state = folded(Thompson(posterior="beta"), (0, 1.0), (0, 1.0), arms=2)
    assert Thompson(posterior="beta").report(state) == {"arms": [{"pulls": 2, "estimate": 0.75}, {"pulls": 0, "estimate": 0.5}]}


@pytest.mark.parametrize(
    ("posteriors", "digits"),
    [
        (student(vector(0.1, 0.4, -2.0), vector(1.0, 0.2, 3.0), vector(4.0, 9.0, 1e5)), 1e-11),
        (gaussian(vector(0.1, 0.4, -2.0), vector(1.0, 0.2, 3.0)), 1e-14),
        (beta(vector(3.0, 0.2, 900.0), vector(0.5, 70.0, 900.0)), 1e-5),  # which is searched
    ],
)
def test_posteriors_have_fallen_by_each_depth_where_they_say(posteriors: Posteriors, digits: float) -> None:
    depths = thompson.DEPTHS.expand_as(posteriors.above)
    torch.testing.assert_close(posteriors.fall(posteriors.above), depths, rtol=digits, atol=0)
    torch.testing.assert_close(posteriors.fall(-posteriors.below), depths, rtol=digits, atol=0)


def test_what_was_worked_out_serves_until_an_arm_learns() -> None:
    policy = Thompson()
    state = folded(policy, (0, 1.0), (1, 0.0), (0, 0.5), arms=2)
    waiting = states.with_arm(state, 1, policy.add_pending(state.arms[1], torch.empty(0)))
    asked = next(iter(state.cache.probabilities))
    marked = vector(0.25, 0.75)  # no probabilities of these arms
    waiting.cache.probabilities[asked] = marked
    assert torch.equal(policy.weights(waiting, [allowing(True, True, pending=(0, 1))]).values[0], marked)
    learned = states.fold(policy, waiting, Observation(arm=1, reward=1.0))
    assert not torch.equal(policy.weights(learned, [allowing(True, True)]).values[0], marked)


# -- rewards of any size ---------------------------------------------------------------------------------------------------


def test_student_weights_are_what_sampling_would_give() -> None:
    mean, scale, degrees = vector(0.1, 0.4, 0.3, -2.0), vector(1.0, 0.2, 0.5, 3.0), vector(4.0, 9.0, 30.0, 5.0)
    rng = np.random.default_rng(1)
    samples = (mean.numpy() + scale.numpy() * rng.standard_t(degrees.numpy(), (400_000, 4))).argmax(axis=1)
    shares = np.bincount(samples, minlength=4) / 400_000
    np.testing.assert_allclose(probability_best(student(mean, scale, degrees)).numpy(), shares, rtol=0, atol=0.004)


@settings(max_examples=30, deadline=None)
@given(
    arms=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(4, 1e5)), min_size=2, max_size=7),
)
def test_student_probabilities_are_confirmed_by_a_finer_rule(arms: list[tuple[float, float, float]]) -> None:
    mean, log_scale, degrees = (vector(*column) for column in zip(*arms, strict=True))
    posteriors = student(mean, log_scale.exp(), degrees)
    p = probability_best(posteriors)
    torch.testing.assert_close(p, by_a_finer_rule(posteriors), rtol=0, atol=1e-9)


def test_the_unit_and_the_zero_of_rewards_change_no_pick() -> None:
    g = np.random.default_rng(5)
    expected = np.tile([0.3, 0.5, 0.45, 0.2], (600, 1))
    rewards, uniforms = expected + 0.4 * g.standard_normal((600, 4)), g.random(600).tolist()

    def picks(table: np.ndarray) -> list[int]:
        world = World(features=np.empty((600, 0)), rewards=table, expected=expected)
        found: list[int] = simulate(Thompson(), world, uniforms=uniforms).picks.tolist()
        return found

    plain = picks(rewards)
    assert picks(100.0 * rewards - 1000.0) == plain
    assert picks(0.001 * rewards + 5.0) == plain
    assert plain[300:].count(1) > 100


def test_rewards_that_are_all_alike_tell_no_arm_apart() -> None:
    state = folded(Thompson(), *((arm, 5.3) for arm in (0, 1, 2, 0)), arms=3)
    weights = Thompson().weights(state, [allowing(True, True, True)]).values[0]
    torch.testing.assert_close(weights, vector(1 / 3, 1 / 3, 1 / 3), atol=5e-3, rtol=0.0)  # fewer outcomes have fatter tails


def test_a_body_that_left_the_posterior_out_is_the_request_that_it_was() -> None:
    facts = {item.name: item for item in declared(Thompson)}["posterior"]
    assert facts.default == "student"
    assert facts.facts.former == ("beta",)


def test_a_beta_posterior_weighs_no_signals() -> None:
    with pytest.raises(InvalidHyperparameter, match="student"):
        Thompson(posterior="beta", signals=("reward", "cost")).check_new()
    Thompson(signals=("reward", "cost")).check_new()
