"""Several signals, learned apart and weighed at the decision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bandits import state as states
from bandits.errors import InvalidHyperparameter
from bandits.registry import POLICIES, build
from bandits.types import Context, Observation, Policy, State
from tests.bandits.examples import EXAMPLES

NAMES = ("reward", "cost", "latency")
SETTINGS: dict[str, dict[str, Any]] = {
    "pak-ucb": {"random_features": 6},
    "thompson": {"posterior": "gaussian"},
    "dak-ucb": {"random_features": 6, "output_bandwidth": 0.8, "diversity_weight": 0.0},
}
"""dak-ucb at weight 0: the diversity of outputs counts for its reward alone."""
WEIGHING = [kind for kind, policy in POLICIES.items() if policy.weighs_signals and kind not in ("one-arm", "random")]
"""Those two score no arm."""
every_weighing = pytest.mark.parametrize("kind", WEIGHING)
every_weighing_with_a_prior_mean = pytest.mark.parametrize("kind", [kind for kind in WEIGHING if kind != "auto"])
ARMS = 3
OUTPUT = torch.tensor([[0.1, 0.7]], dtype=torch.float64)


def policy_of(kind: str, signals: tuple[str, ...] = NAMES, **changes: Any) -> Policy:
    dim, output_dim = 4 if "ucb" in kind else 0, 2 if kind == "dak-ucb" else 0
    return build(kind, {**SETTINGS.get(kind, {}), **changes}, dim=dim, output_dim=output_dim, signals=signals)


def outcomes(rounds: int = 30, *, dim: int = 4) -> list[Observation]:
    g = np.random.default_rng(3)
    found = []
    for t in range(rounds):
        values = (float(g.random()), 5.0 * float(g.random()), math.nan if g.random() < 0.5 else 100.0 + float(g.random()))
        x = torch.from_numpy(g.standard_normal(dim))
        found.append(Observation(arm=t % ARMS, features=x, output=OUTPUT, reward=values[0], signals=values))
    return found


def folded(policy: Policy, seen: list[Observation]) -> State:
    state = states.start(policy, arms=ARMS)
    for one in seen:
        state = states.fold(policy, state, one)
    return policy.prepare(state)


def a_context(**changes: Any) -> Context:
    return Context(features=torch.tensor([0.1, 0.4, -0.3, 0.8], dtype=torch.float64), allowed=(True,) * ARMS, **changes)


def alone(kind: str, seen: list[Observation], signal: int) -> tuple[Policy, State]:
    """A bandit that gets one signal as its reward."""
    prior = {"prior_mean": 0.0} if signal else {}
    policy = policy_of(kind, ("reward",), **prior)
    carried = [one for one in seen if not math.isnan(one.signals[signal])]
    return policy, folded(
        policy, [Observation(output=OUTPUT, arm=o.arm, features=o.features, reward=o.signals[signal]) for o in carried]
    )


@every_weighing
def test_one_signal_is_the_bandit_without_signals_to_the_last_bit(kind: str) -> None:
    policy, seen = policy_of(kind, ("reward",)), outcomes()
    plain = [Observation(output=OUTPUT, arm=one.arm, features=one.features, reward=one.reward) for one in seen]
    named = [Observation(output=OUTPUT, arm=one.arm, features=one.features, signals=one.signals[:1]) for one in seen]
    assert states.pack(policy, folded(policy, plain)) == states.pack(policy, folded(policy, named))


@every_weighing_with_a_prior_mean
def test_each_signal_is_learned_as_if_it_were_the_reward_of_a_bandit_of_its_own(kind: str) -> None:
    seen, policy = outcomes(), policy_of(kind)
    scores = policy.weights(folded(policy, seen), [a_context()]).scores
    for k, name in enumerate(NAMES):
        other, state = alone(kind, seen, k)
        expected = other.weights(state, [a_context()]).scores["estimate"]
        torch.testing.assert_close(scores[f"signals.{name}"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scores["estimate"], scores["signals.reward"])


@pytest.mark.parametrize("kind", ["pak-ucb", "dak-ucb", "lin-ucb"])
def test_means_add_up_by_their_factors_and_widths_by_the_squares_of_these(kind: str) -> None:
    seen, policy = outcomes(), policy_of(kind, initial_pulls=0)
    factors = ((1.0, 2.0, 1.0), (-0.5, -0.1, 0.0), (0.0, 0.01, -0.02))
    context = a_context(coefficients=factors, constants=(0.3, 0.0, -0.1))
    found = policy.weights(folded(policy, seen), [context])
    mean, squared = torch.tensor([[0.3, 0.0, -0.1]], dtype=torch.float64), torch.zeros((1, ARMS), dtype=torch.float64)
    for k, factor in enumerate(torch.tensor(factors, dtype=torch.float64)):
        other, state = alone(kind, seen, k)
        scores = other.weights(state, [a_context()]).scores
        mean, squared = mean + factor * scores["estimate"], squared + (factor * scores["bonus"]).square()
    torch.testing.assert_close(found.scores["estimate"], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.scores["bonus"], squared.sqrt(), rtol=1e-12, atol=1e-12)
    assert int(found.values.argmax()) == int((mean + squared.sqrt()).argmax())


@every_weighing_with_a_prior_mean
def test_the_prior_mean_is_of_the_reward_alone(kind: str) -> None:
    policy = policy_of(kind)
    scores = policy.weights(states.start(policy, arms=ARMS), [a_context()]).scores
    assert scores["signals.cost"].tolist() == [[0.0] * ARMS]
    assert scores["signals.reward"].tolist() == [[vars(policy)["prior_mean"]] * ARMS]


@every_weighing
def test_a_new_weight_acts_on_the_next_decision(kind: str) -> None:
    """Two arms that cost, one that earns a little less and is free."""
    policy = policy_of(kind, ("reward", "cost"), **({"initial_pulls": 0} if kind == "greedy" else {}))
    g = np.random.default_rng(2)
    x = a_context().features
    seen = [
        Observation(
            arm=t % ARMS,
            features=x,
            output=OUTPUT,
            signals=((0.9, 0.9, 0.7)[t % ARMS] + 0.01 * g.random(), float(t % ARMS < 2)),
        )
        for t in range(300)
    ]
    state = folded(policy, seen)
    dear, free = (
        policy.weights(state, [a_context(coefficients=((1.0,) * ARMS, (weight,) * ARMS))]).values[0] for weight in (0.0, -1.0)
    )
    assert float(dear[:2].sum()) > 0.9
    assert float(free[2]) > 0.9


@pytest.mark.parametrize("kind", [kind for kind, policy in POLICIES.items() if not policy.weighs_signals])
def test_policies_that_cannot_weigh_signals_refuse_them(kind: str) -> None:
    example = EXAMPLES[kind][0]
    policy = build(kind, example.settings, dim=example.dim, output_dim=example.output_dim, signals=("reward", "cost"))
    with pytest.raises(InvalidHyperparameter, match="are not weighed"):
        policy.check_new()
