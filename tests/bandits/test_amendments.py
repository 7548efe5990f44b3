"""Corrected signals: the statistic after an amendment is that of the history in which the outcome was right from the start."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from bandits import state as states
from bandits.policies.auto import Auto
from bandits.policies.thompson import Thompson
from bandits.registry import POLICIES
from bandits.regression.ridge import SpreadArm
from bandits.types import Amendment, Context, Observation, Policy, State
from tests.bandits.examples import ARMS, EXAMPLES, Example

ROUNDS = 24
FORMS = {
    f"{kind}-{number}": example
    for kind, policy in POLICIES.items()
    if "reward" in policy.needs and not policy.not_amendable
    for number, example in enumerate(EXAMPLES[kind])
}
SEVERAL = {name: example for name, example in FORMS.items() if len(example.signals) > 2}
UNFORGETTING = {name: example for name, example in SEVERAL.items() if example.policy().forget_half_life is None}
every_form = pytest.mark.parametrize("example", FORMS.values(), ids=FORMS)


class Change(NamedTuple):
    """Signal k of the outcome of a round gets a value after round `after`."""

    of: int
    k: int
    value: float
    after: int


def history(example: Example, rounds: int = ROUNDS) -> list[Observation]:
    g = default_rng(11)
    found = []
    for t in range(rounds):
        arm = int(g.integers(ARMS))
        found.append(replace(example.seen(g, arm, example.features(g)), offset=10 + 2 * t))
    return found


def with_value(seen: Observation, k: int, value: float) -> Observation:
    if not seen.signals:
        return replace(seen, reward=value)
    values = [*seen.signals]
    values[k] = value
    return replace(seen, reward=values[0], signals=tuple(values))


def changes(example: Example, seen: list[Observation], *, missing: bool = False) -> list[Change]:
    """Eight, of signals that outcomes had (or lacked), and one of them again. Never of the first outcome, from which `auto`
    measures the others.
    """
    g, count = default_rng(5), len(example.signals)
    fitting = [
        (of, k) for of in range(1, len(seen) - 1) for k in range(count) if math.isnan(seen[of].values(count)[k]) == missing
    ]
    found = [
        Change(of, k, float(g.uniform(0.1, 0.9)), int(g.integers(of, len(seen))))
        for of, k in (fitting[place] for place in g.permutation(len(fitting))[:8])
    ]
    again = found[0]
    return [*found, again._replace(value=0.3, after=len(seen) - 1)]


def amended(policy: Policy, seen: list[Observation], wanted: list[Change], *, reset_at: int = -1, restart_at: int = -1) -> State:
    """Folded as a server does: derived values at hand, amendments after their rounds."""
    state = policy.prepare(states.start(policy, arms=ARMS))
    now, learned = list(seen), dict[tuple[int, int], int]()
    for t, one in enumerate(seen):
        if t == reset_at:
            state = states.reset_arm(policy, state, one.arm, offset=one.offset)
        state = states.fold(policy, state, one)
        state = state if isinstance(policy, Auto | Thompson) and t % 8 else policy.prepare(state)  # which takes a while
        for change in wanted:
            if change.after != t:
                continue
            before, count = now[change.of], len(policy.signals)
            now[change.of] = with_value(before, change.k, change.value)
            old, new = [math.nan] * count, [math.nan] * count
            old[change.k], new[change.k] = before.values(count)[change.k], change.value
            offsets = [learned.get((change.of, k), before.offset) for k in range(count)]
            held = max(offset for (of, _), offset in {(change.of, -1): before.offset, **learned}.items() if of == change.of)
            offset = one.offset + 1
            if math.isnan(old[change.k]):
                learned[change.of, change.k] = offset
            state = states.amend(
                policy,
                state,
                Amendment(
                    arm=before.arm,
                    features=before.features,
                    old=tuple(old),
                    new=tuple(new),
                    learned=tuple(offsets),
                    offset=offset,
                    held=held,
                ),
            )
        if t == restart_at:
            kept = policy.unpack_derived(states.unpack(policy, states.pack(policy, state)), policy.pack_derived(state))
            state = replace(kept, since=state.since, recent_since=state.recent_since)
    return state


def corrected(policy: Policy, seen: list[Observation], wanted: list[Change], *, reset_at: int = -1) -> State:
    """Folded with every outcome as it should have been."""
    right = list(seen)
    for change in wanted:
        right[change.of] = with_value(right[change.of], change.k, change.value)
    state = states.start(policy, arms=ARMS)
    for t, one in enumerate(right):
        if t == reset_at:
            state = policy.reset_arm(state, one.arm)
        state = states.fold(policy, state, one)
    return state


def numbers(policy: Policy, state: State) -> dict[str, np.ndarray]:
    """What a statistic holds, by name. Of `auto` per signal: which signals share a Gram matrix is no part of it."""
    found: dict[str, Any] = {"outcomes": state.outcomes}
    for part, arms in (("arm", state.arms), ("recent", state.recent)):
        for index, arm in enumerate(arms):
            name = f"{part}.{index}"
            if not isinstance(policy, Auto):
                found |= dict(states._to_tensors(f"{name}.", arm, state.layout))
                continue
            found |= {f"{name}.pulls": arm.pulls, f"{name}.answered": arm.answered, f"{name}.moments": arm.moments.numpy()}
            found[f"{name}.squares"] = arm.squares.numpy()
            for k in range(len(policy.signals)):
                gram = arm.gram(k)
                held = policy.features.lift_all(torch.stack(list(gram.held)).numpy()) if gram.held else np.zeros((0, 1))
                found |= {f"{name}.{k}.count": gram.count, f"{name}.{k}.held": held.T @ held, f"{name}.{k}.tiles": gram.tiles}
    for sums in [name for name in found if name.endswith((".gram", ".design"))]:  # which rows are held is no part of it
        rows = found.pop(f"{sums.rpartition('.')[0]}.held")
        found[sums] = found[sums] + rows.T @ rows if len(rows) else found[sums]
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def assert_alike(policy: Policy, one: State, other: State) -> None:
    mine, theirs = numbers(policy, one), numbers(policy, other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-9, atol=1e-9, err_msg=name)


@every_form
def test_an_amended_statistic_is_that_of_the_corrected_history(example: Example) -> None:
    policy, seen = example.policy(), history(example)
    wanted = changes(example, seen)
    state = amended(policy, seen, wanted)
    assert_alike(policy, state, corrected(policy, seen, wanted))
    before = numbers(policy, corrected(policy, seen, []))
    assert any(not np.array_equal(value, before[name]) for name, value in numbers(policy, state).items())


@every_form
def test_what_decisions_are_made_of_follows_the_amended_sums(example: Example) -> None:
    policy, seen = example.policy(), history(example)
    if isinstance(policy, Auto):
        pytest.skip("its posterior depends on the path; see below")
    wanted = changes(example, seen)
    context = Context(features=seen[3].features, allowed=(True,) * ARMS, coefficients=example.coefficients(ARMS))
    live = policy.weights(policy.prepare(amended(policy, seen, wanted)), [context])
    cold = policy.weights(corrected(policy, seen, wanted), [context])
    for name, table in cold.scores.items():
        np.testing.assert_allclose(live.scores[name], table, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("example", UNFORGETTING.values(), ids=UNFORGETTING)
def test_a_signal_that_was_missing_is_a_new_observation(example: Example) -> None:
    policy, seen = example.policy(), history(example)
    wanted = changes(example, seen, missing=True)
    state, right = amended(policy, seen, wanted), corrected(policy, seen, wanted)
    if not example.settings.get("random_features", 1):  # rows of an exact kernel stand in the order in which they came
        state, right = (
            replace(one, arms=tuple(replace(arm, signals=tuple(map(in_order, arm.signals))) for arm in one.arms))
            for one in (state, right)
        )
    assert_alike(policy, state, right)


def in_order(arm: Any) -> Any:
    if not hasattr(arm, "targets"):
        return arm
    order = sorted(range(len(arm.targets)), key=lambda row: (arm.features[row].tolist(), float(arm.targets[row])))
    return replace(arm, features=arm.features[order], targets=arm.targets[order])


@every_form
def test_what_a_reset_dropped_is_not_corrected(example: Example) -> None:
    policy, seen = example.policy(), history(example)
    if policy.forget_half_life:
        policy = example.policy(forget_half_life=9)
    wanted = changes(example, seen)
    reset_at = next(
        t
        for t in range(8, ROUNDS)
        if any(change.of < t <= change.after and seen[change.of].arm == seen[t].arm for change in wanted)
    )
    state = amended(policy, seen, wanted, reset_at=reset_at)
    assert_alike(policy, state, corrected(policy, seen, wanted, reset_at=reset_at))


@every_form
def test_a_restart_amends_to_the_same_bytes(example: Example) -> None:
    policy, seen = example.policy(), history(example)
    wanted = changes(example, seen)
    assert states.pack(policy, amended(policy, seen, wanted, restart_at=14)) == states.pack(policy, amended(policy, seen, wanted))


@pytest.mark.parametrize("example", SEVERAL.values(), ids=SEVERAL)
def test_signals_that_come_before_the_reward_give_the_statistic_of_the_whole_outcome(example: Example) -> None:
    """The cost of every outcome comes first; a decision stays pending until its reward is there."""
    policy, seen = example.policy(), history(example)
    nan = math.nan
    live, whole = policy.prepare(states.start(policy, arms=ARMS)), states.start(policy, arms=ARMS)
    for one in seen:
        live = states.with_arm(live, one.arm, policy.add_pending(live.arms[one.arm], one.features))
        early = Amendment(
            arm=one.arm,
            features=one.features,
            old=(nan,) * 3,
            new=(nan, one.signals[1], nan),
            learned=(0,) * 3,
            offset=one.offset - 1,
            held=0,
        )
        live = states.amend(policy, live, early)
        rest = replace(one, signals=(one.signals[0], nan, one.signals[2]), was_pending=True, held=one.offset - 1)
        live = policy.prepare(states.fold(policy, live, rest))
        whole = states.fold(policy, whole, one)
    assert_alike(policy, live, whole)
    context = Context(features=seen[3].features, allowed=(True,) * ARMS, coefficients=example.coefficients(ARMS))
    if not isinstance(policy, Auto):
        shown = zip(*(policy.weights(state, [context]).scores.items() for state in (live, whole)), strict=True)
        for (name, mine), (_, theirs) in shown:
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_posterior_of_auto_moves_as_if_the_value_had_been_right_since_the_preparation() -> None:
    """At fixed scales theta is linear in the values: the difference of two runs that were prepared alike is exact."""
    example: Example = EXAMPLES["auto"][0]
    policy, seen = example.policy(), history(example, 30)
    state = policy.prepare(states.start(policy, arms=ARMS))
    for one in seen[:20]:
        state = policy.prepare(states.fold(policy, state, one))
    prepared = state.reference.posterior.count
    wrong, right = seen[20], with_value(seen[20], 0, 0.15)
    runs = [states.fold(policy, state, one) for one in (wrong, right)]
    assert policy.prepare(runs[0]).reference.posterior.count == prepared  # no preparation in between
    change = Amendment(
        arm=wrong.arm, features=wrong.features, old=(wrong.reward,), new=(0.15,), learned=(wrong.offset,), offset=99, held=50
    )
    mended = states.amend(policy, states.fold(policy, runs[0], seen[21]), change)
    straight = states.fold(policy, runs[1], seen[21])
    for one, other in zip(mended.reference.posterior.signals[0].fits, straight.reference.posterior.signals[0].fits, strict=True):
        np.testing.assert_allclose(one.theta, other.theta, rtol=0, atol=1e-12)
        assert not np.allclose(one.theta, runs[0].reference.posterior.signals[0].fits[0].theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("example", EXAMPLES["auto"][:2], ids=["prompt", "no prompt"])
def test_corrections_of_all_outcomes_are_taken_whole_with_the_next_one(example: Example) -> None:
    """Average and scale are then those of the corrected history; the estimates are too, as far as the scales have settled."""
    policy, seen = example.policy(), history(example, 51)
    state = policy.prepare(states.start(policy, arms=ARMS))
    straight = state
    right = [with_value(one, 0, 9.0 - one.reward) for one in seen[:50]]
    for one, other in zip(seen[:50], right, strict=True):
        state, straight = (policy.prepare(states.fold(policy, old, new)) for old, new in ((state, one), (straight, other)))
    until_due = state.reference.next_prepare - 50
    assert until_due > 1
    for one, other in zip(seen[:50], right, strict=True):
        change = Amendment(
            arm=one.arm,
            features=one.features,
            old=(one.reward,),
            new=(other.reward,),
            learned=(one.offset,),
            offset=200 + one.offset,
            held=one.offset,
        )
        state = states.amend(policy, state, change)
    reward = policy.prepare(straight).reference.posterior.signals[0]

    def off(state: State) -> float:
        context = Context(features=seen[3].features, allowed=(True,) * ARMS)
        found, expected = (policy.weights(one, [context]).scores["estimate"] for one in (state, straight))
        return float((found - expected).abs().max()) / float(reward.root)

    halfway = off(policy.prepare(state))
    last = with_value(seen[50], 0, 9.0 - seen[50].reward)
    state, straight = (policy.prepare(states.fold(policy, one, last)) for one in (state, straight))
    assert state.reference.posterior.count == 51
    assert straight.reference.posterior.count < 51
    assert halfway > 0.2
    assert off(state) < 0.1
    straight = policy.prepare(replace(straight, reference=replace(straight.reference, posterior=None)))
    prepared, expected = (one.reference.posterior.signals[0] for one in (state, straight))
    origin = state.reference.origin - straight.reference.origin
    np.testing.assert_allclose([prepared.mean + float(origin[0]), prepared.root], [expected.mean, expected.root], rtol=1e-9)


def test_average_and_spread_after_a_correction_are_those_of_the_corrected_values() -> None:
    arm = SpreadArm()
    for value in (0.25, 0.5, 0.125, 1.0):
        arm = arm.update(value)
    arm = arm.correct(0.125, 0.875)
    values = np.array([0.25, 0.5, 0.875, 1.0])
    assert (arm.pulls, arm.average) == (4, values.mean())
    assert arm.squares == pytest.approx(4 * values.var(), abs=1e-15)
