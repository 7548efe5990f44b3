"""What every registered policy promises. A new policy is covered as soon as it has an example in `examples.py`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator, default_rng
from torch import Tensor

from bandits import draw
from bandits import state as states
from bandits.functional.moments import BLOCK
from bandits.hyperparameters import declared
from bandits.registry import POLICIES
from bandits.types import Context, Observation, Policy, State, Weights
from tests.bandits.examples import ARMS, EXAMPLES, Example


def _policy_of(form: Any) -> Policy:
    example: Example = form.values[0]
    return example.policy()


FORMS = [
    pytest.param(example, id=f"{kind}-{number}") for kind in POLICIES for number, example in enumerate(EXAMPLES.get(kind, ()))
]
every_form = pytest.mark.parametrize("example", FORMS)
every_separate_form = pytest.mark.parametrize("example", [form for form in FORMS if _policy_of(form).arms_independent])
every_form_that_can_watch = pytest.mark.parametrize(
    "example", [form for form in FORMS if any(item.name == "drift" for item in declared(type(_policy_of(form))))]
)
HYPERPARAMETERS = [(kind, item.name) for kind, policy in POLICIES.items() for item in declared(policy)]


def test_every_registered_policy_has_an_example() -> None:
    assert set(POLICIES) <= set(EXAMPLES), "describe the new policy in tests/bandits/examples.py"


def a_context(example: Example, g: Generator, *, arms: int = ARMS, **changes: Any) -> Context:
    """Every arm allowed, nothing pending."""
    facts = {
        "allowed": (True,) * arms,
        "features": example.features(g),
        "prices": tuple(0.2 + 0.3 * i for i in range(arms)),
        "coefficients": example.coefficients(arms),
        "constants": tuple(0.1 * i for i in range(arms)) if len(example.signals) > 1 else (),
    }
    return Context(**{**facts, **changes})


def started(example: Example, policy: Policy, g: Generator, *, arms: int = ARMS) -> State:
    """A state that can decide: its reference is there."""
    state = states.start(policy, arms=arms)
    for seen in example.referenced(g) if "reference" in policy.needs else ():
        state = states.fold(policy, state, seen)
    return policy.prepare(state)


def fed(example: Example, policy: Policy, g: Generator, *, rounds: int = 24) -> State:
    """Every arm was pulled, in turn; all outcomes came."""
    state = started(example, policy, g)
    for t in range(rounds):
        state = states.fold(policy, state, example.seen(g, t % ARMS, example.features(g)))
    return policy.prepare(state)


def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def same(one: Weights, other: Weights, *, within: float = 0.0) -> bool:
    """Whether weights and scores agree; NaN agrees with NaN."""
    tables = [(one.values, other.values), *((one.scores[name], other.scores[name]) for name in one.scores)]
    return one.scores.keys() == other.scores.keys() and all(
        torch.allclose(a, b, rtol=within, atol=within, equal_nan=True) for a, b in tables
    )


def tensors_of(contexts: Sequence[Context], seen: Observation) -> list[Tensor]:
    return [*(context.features for context in contexts), seen.features, seen.output, seen.reference]


@every_form
def test_nothing_that_a_policy_is_given_is_written_to(example: Example) -> None:
    g, policy = default_rng(1), example.policy()
    state = fed(example, policy, g)
    contexts = [a_context(example, g) for _ in range(4)]
    seen = example.seen(g, 1, example.features(g))
    given, kept = tensors_of(contexts, seen), copied(tensors_of(contexts, seen))
    digest, before = states.digest(policy, state), policy.weights(state, contexts)
    scores = {name: table.clone() for name, table in before.scores.items()}
    kept_weights = Weights(before.values.clone(), scores)

    later = state
    for arm in range(ARMS):  # folded, marked pending and withdrawn on top of the old state, and of one another
        later = states.with_arm(later, arm, policy.add_pending(later.arms[arm], seen.features))
        later = states.fold(policy, later, dataclasses.replace(seen, arm=arm, was_pending=True))
        later = states.with_arm(later, arm, policy.add_pending(later.arms[arm], contexts[0].features))
        later = states.with_arm(later, arm, policy.remove_pending(later.arms[arm], contexts[0].features))
        policy.weights(policy.prepare(later), contexts)
        policy.report(later)
    policy.weights(states.add_arm(policy, later), [a_context(example, g, arms=ARMS + 1)])

    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    assert states.digest(policy, state) == digest
    assert same(before, kept_weights), "an answer that was given is not changed afterwards"
    assert same(policy.weights(state, contexts), kept_weights, within=1e-9), "an older state answers as before"


@every_form
def test_weights_are_a_distribution_over_the_allowed_arms_or_zeros(example: Example) -> None:
    g, policy = default_rng(2), example.policy()
    state = started(example, policy, g)
    for t in range(40):
        allowed = tuple(bool(x) for x in g.random(ARMS) < 0.6)
        allowed = allowed if any(allowed) else (False, True, False)
        pending = tuple(int(x) for x in g.integers(0, 3, ARMS))
        attempts = tuple(int(x) for x in g.integers(0, 2, ARMS))
        context = a_context(example, g, allowed=allowed, pending=pending, attempts=attempts)
        weights = policy.weights(state, [context])
        row = weights.values[0].numpy()
        assert weights.values.dtype == torch.float64
        assert weights.values.shape == (1, ARMS)
        assert all(table.shape == (1, ARMS) for table in weights.scores.values())
        assert (row >= 0.0).all()
        assert row.sum() == 0.0 or abs(row.sum() - 1.0) <= 1e-12
        assert not row[~np.array(allowed)].any(), "a forbidden arm"
        state = policy.prepare(states.fold(policy, state, example.seen(g, t % ARMS, context.features)))


@every_form
def test_a_packed_state_comes_back(example: Example) -> None:
    g, policy = default_rng(3), example.policy()
    state = fed(example, policy, g)
    state = states.with_arm(state, 1, policy.add_pending(state.arms[1], example.features(g)))  # which is no part of the bytes
    data = states.pack(policy, state)
    back = policy.unpack_derived(states.unpack(policy, data), policy.pack_derived(state))
    assert states.pack(policy, back) == data
    assert states.digest(policy, back) == states.digest(policy, state)
    contexts = [a_context(example, g) for _ in range(3)]
    unpending = fed(example, policy, default_rng(3))
    assert same(policy.weights(back, contexts), policy.weights(unpending, contexts), within=1e-8)
    more = [example.seen(g, t % ARMS, example.features(g)) for t in range(7)]
    one, other = back, unpending
    for seen in more:
        one, other = states.fold(policy, one, seen), states.fold(policy, other, seen)
    assert states.digest(policy, one) == states.digest(policy, other), "what is learned on top of it is the same to the last bit"


@every_form
def test_what_is_derived_is_no_part_of_the_digest(example: Example) -> None:
    g, policy = default_rng(4), example.policy()
    state = started(example, policy, g)
    for t in range(9):
        digest = states.digest(policy, state)
        contexts = [a_context(example, g) for _ in range(2)]
        prepared = policy.prepare(state)
        pending = states.with_arm(prepared, t % ARMS, policy.add_pending(prepared.arms[t % ARMS], contexts[0].features))
        policy.weights(pending, contexts)
        policy.report(pending)
        assert {states.digest(policy, each) for each in (state, prepared, pending)} == {digest}
        seen = example.seen(g, t % ARMS, contexts[0].features)
        folded_pending = states.fold(policy, pending, dataclasses.replace(seen, was_pending=True))
        state = states.fold(policy, state, seen)
        assert states.digest(policy, folded_pending) == states.digest(policy, state), (
            "what is folded does not depend on what was pending"
        )


@every_form
def test_the_same_observations_give_the_same_bytes(example: Example) -> None:
    one, other = (states.pack(example.policy(), fed(example, example.policy(), default_rng(5))) for _ in range(2))
    assert one == other


@every_form
def test_a_new_arm_is_tried_first(example: Example) -> None:
    g, policy = default_rng(6), example.policy()
    grown = states.add_arm(policy, fed(example, policy, g))
    assert len(grown.arms) == ARMS + 1
    weights = policy.weights(policy.prepare(grown), [a_context(example, g, arms=ARMS + 1)]).values[0]
    if example.forces_new_arms:
        assert float(weights[ARMS]) > 0.9  # an epsilon is left to the others
    without = a_context(example, g, arms=ARMS + 1, allowed=(True,) * ARMS + (False,))
    assert float(policy.weights(grown, [without]).values[0, ARMS]) == 0.0, "unless it is not allowed"


@every_form
def test_decisions_in_flight_are_spread_in_the_burn_in(example: Example) -> None:
    if not example.forces_new_arms:
        pytest.skip("this policy has no burn-in")
    g, policy = default_rng(7), example.policy()
    cold = started(example, policy, g)
    together = policy.weights(cold, [a_context(example, g) for _ in range(ARMS)]).values
    assert sorted(together.argmax(dim=1).tolist()) == list(range(ARMS)), "the rows of one call"
    pending = [0] * ARMS
    for _ in range(ARMS):
        row = policy.weights(cold, [a_context(example, g, pending=tuple(pending))]).values[0]
        pending[int(row.argmax())] += 1
    assert pending == [1] * ARMS, "one call after the other"


@every_form
def test_a_batch_of_contexts_is_answered_like_one_after_the_other(example: Example) -> None:
    if not example.rows_alone:
        pytest.skip("the rows of one call count as pending for each other")
    g, policy = default_rng(8), example.policy()
    state = fed(example, policy, g)
    allowed = [(True, True, True), (True, False, True), (False, True, True), (True, True, False)]
    contexts = [
        a_context(example, g, allowed=allowed[i % 4], pending=(i % 3, 0, 1), prices=(0.1 * i + 0.1, 0.5, 0.7)) for i in range(9)
    ]
    together = policy.weights(state, contexts)
    for i, context in enumerate(contexts):
        alone = policy.weights(state, [context])
        part = Weights(together.values[i : i + 1], {name: table[i : i + 1] for name, table in together.scores.items()})
        assert same(part, alone, within=1e-9), f"row {i}"


@every_form
@pytest.mark.parametrize("equal", [True, False])
def test_rows_that_are_decided_in_order_are_decided_as_one_after_the_other(example: Example, equal: bool) -> None:
    """Also for more rows than the service scores together, with arms that some rows forbid, and where the draw goes against
    the odds.
    """
    g, policy = default_rng(44), example.policy()
    state = fed(example, policy, g, rounds=9)
    waiting = example.features(g)
    state = states.with_arm(state, 1, policy.add_pending(state.arms[1], waiting))
    shared = example.features(g)
    mixed = [(True, True, True), (True, False, True), (True, True, True), (False, True, True)]
    contexts = [
        a_context(
            example,
            g,
            features=shared if equal else example.features(g),
            allowed=(True,) * ARMS if equal else mixed[row % 4],
            pending=(0, 1, 0),
            attempts=(0,) * ARMS if equal else (row % 2, 0, 0),
        )
        for row in range(40)
    ]

    def choose(row: int, weights: Sequence[float]) -> int:
        return draw.draw(weights, f"key {row}").arm if row % 7 != 3 else draw.STOP  # a row that counts for none

    together = policy.weights_in_order(state, list(contexts), choose)
    pending = [0, 1, 0]
    for row, context in enumerate(contexts):
        alone = policy.weights(policy.prepare(state), [dataclasses.replace(context, pending=tuple(pending))])
        part = Weights(together.values[row : row + 1], {name: table[row : row + 1] for name, table in together.scores.items()})
        assert same(part, alone, within=1e-7), f"row {row}"
        arm = choose(row, alone.values[0].tolist())
        if arm >= 0:
            pending[arm] += 1
            narrowed = policy.add_pending(state.arms[arm], context.features)
            state = state if narrowed is state.arms[arm] else states.with_arm(state, arm, narrowed)


@every_form
def test_a_pending_decision_that_is_released_leaves_no_trace(example: Example) -> None:
    g, policy = default_rng(9), example.policy()
    state = fed(example, policy, g)
    contexts = [a_context(example, g) for _ in range(5)]
    before = policy.weights(state, contexts)
    waiting = [(t % ARMS, example.features(g)) for t in range(7)]
    for arm, features in waiting:
        state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], features))
    for arm, features in waiting[::-1][::2] + waiting[::-1][1::2]:  # in another order than they came
        state = states.with_arm(state, arm, policy.remove_pending(state.arms[arm], features))
    assert same(policy.weights(policy.prepare(state), contexts), before, within=1e-9)


@every_form
def test_a_pending_decision_that_is_learned_counts_once(example: Example) -> None:
    g, policy = default_rng(10), example.policy()
    state = plain = fed(example, policy, g)
    seen = [example.seen(g, t % ARMS, example.features(g)) for t in range(6)]
    for each in seen:
        state = states.with_arm(state, each.arm, policy.add_pending(state.arms[each.arm], each.features))
    for each in seen:
        state = states.fold(policy, state, dataclasses.replace(each, was_pending=True))
        plain = states.fold(policy, plain, each)
    contexts = [a_context(example, g) for _ in range(5)]
    one, other = policy.weights(policy.prepare(state), contexts), policy.weights(policy.prepare(plain), contexts)
    assert same(one, other, within=1e-8)


@every_form_that_can_watch
def test_an_arm_that_is_reset_is_a_new_one_with_the_open_decisions_of_the_old_one(example: Example) -> None:
    g, policy = default_rng(16), example.policy()
    state, new = fed(example, policy, g), policy.init()
    waiting, contexts = [example.features(g) for _ in range(3)], [a_context(example, g, pending=(0, 3, 0)) for _ in range(4)]
    for features in waiting:
        state = states.with_arm(state, 1, policy.add_pending(state.arms[1], features))
        new = policy.add_pending(new, features)
    reset = policy.reset_arm(state, 1)
    assert states.digest(policy, reset) == states.digest(policy, policy.reset_arm(fed(example, policy, default_rng(16)), 1))
    if policy.kind != "auto":  # whose posterior has a new arm learn from the others
        fresh = states.with_arm(policy.reset_arm(fed(example, policy, default_rng(16)), 1), 1, new)
        assert same(*(policy.weights(policy.prepare(one), contexts) for one in (reset, fresh)), within=1e-7)
    for features in waiting:
        reset = states.with_arm(reset, 1, policy.remove_pending(reset.arms[1], features))
    bare = policy.reset_arm(fed(example, policy, default_rng(16)), 1)
    assert same(*(policy.weights(policy.prepare(one), contexts) for one in (reset, bare)), within=1e-9)
    assert reset.arms[1].pulls == 0


@every_form_that_can_watch
def test_a_surprise_is_a_number_once_something_is_known(example: Example) -> None:
    g, policy = default_rng(17), example.policy()
    seen = example.seen(g, 1, example.features(g))
    assert policy.surprise(started(example, policy, g), seen) is None
    found = policy.surprise(fed(example, policy, g), seen)
    assert found is not None
    assert np.isfinite(found)


@every_form
def test_pending_decisions_come_together_as_one_by_one(example: Example) -> None:
    g, policy = default_rng(41), example.policy()
    state = fed(example, policy, g)
    pending = [example.features(g) for _ in range(5)]
    together = policy.add_pending_many(state.arms[1], pending)
    alone = state.arms[1]
    for features in pending:
        alone = policy.add_pending(alone, features)
    contexts = [a_context(example, g) for _ in range(3)]
    one, other = (policy.prepare(states.with_arm(state, 1, arm)) for arm in (together, alone))
    assert states.digest(policy, one) == states.digest(policy, state)
    assert same(policy.weights(one, contexts), policy.weights(other, contexts), within=1e-11)


@every_separate_form
@pytest.mark.parametrize("unexpected", [0, 2])
def test_outcomes_of_separate_arms_are_learned_together_as_one_by_one(example: Example, unexpected: int) -> None:
    """Of seven outcomes all, or all but two, were pending before; one more decision stays pending."""
    g, policy = default_rng(42), example.policy()
    state = fed(example, policy, g)
    coming = [
        dataclasses.replace(example.seen(g, 2, example.features(g)), was_pending=number >= unexpected) for number in range(7)
    ]
    pending = [*(seen.features for seen in coming[unexpected:]), example.features(g)]
    state = states.with_arm(state, 2, policy.add_pending_many(state.arms[2], pending))
    together, alone = states.with_arm(state, 2, policy.update_many(state, coming)), state
    for seen in coming:
        alone = states.fold(policy, alone, seen)
    contexts = [a_context(example, g) for _ in range(3)]
    assert states.digest(policy, together) == states.digest(policy, alone)
    one, other = (policy.weights(policy.prepare(each), contexts) for each in (together, alone))
    assert same(one, other, within=1e-10)


@every_separate_form
def test_what_a_separate_arm_learns_does_not_depend_on_the_others(example: Example) -> None:
    g, policy = default_rng(43), example.policy()
    state = fed(example, policy, g)
    seen = example.seen(g, 0, example.features(g))
    changed = states.with_arm(state, 1, policy.init())
    one, other = (states.with_arm(each, 1, policy.init()) for each in (states.fold(policy, state, seen), changed))
    assert states.digest(policy, one) == states.digest(policy, states.fold(policy, other, seen))


@every_form
def test_the_memory_of_an_arm_does_not_grow_with_the_rounds(example: Example) -> None:
    """Exact forms keep samples up to `max_samples`; sums of outer products keep the rows of one unfinished block."""
    g, policy = default_rng(14), example.policy()
    if getattr(policy, "max_samples", 0) > 64:
        few: dict[str, Any] = {"max_samples": 64}
        policy = dataclasses.replace(policy, **few)
    state, early_rounds = started(example, policy, g), 2 * BLOCK
    sizes = []
    for _ in range(early_rounds + BLOCK):
        state = states.fold(policy, state, example.seen(g, 1, example.features(g)))
        sizes.append(held(state.arms[1]))
    early, late = sizes[:early_rounds], sizes[early_rounds:]
    assert max(late) <= max(early), "more bytes than ever before"
    derived = held(policy.prepare(state))
    assert derived <= 60 * (max(early) + 100_000), "and what is derived from it is of the same order"


def held(value: Any) -> int:
    """Bytes of all tensors in reach."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(held(item) for pair in value.items() for item in pair)
    if isinstance(value, tuple | list):
        return sum(map(held, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, Policy):
        return sum(held(getattr(value, item.name)) for item in dataclasses.fields(value))
    return 0


@every_form
def test_a_prepared_state_answers_without_solving_anything(example: Example) -> None:
    """During the burn-in too, when what is pending ends it; and for sets of arms that decisions asked for before."""
    g, policy = default_rng(15), example.policy()
    some = tuple(arm != 1 for arm in range(ARMS))
    state = started(example, policy, g)
    for t in range(3 * ARMS):
        state = policy.prepare(states.fold(policy, state, example.seen(g, t % ARMS, example.features(g))))
        contexts = [a_context(example, g, pending=(pending,) * ARMS) for pending in (0, 9)]
        assert policy.is_prepared(state, contexts), f"after {t + 1} outcomes"
        policy.weights(state, contexts)
        if t > ARMS:
            restricted = [a_context(example, g, allowed=some, pending=(9,) * ARMS)]
            assert policy.is_prepared(state, restricted) or t == ARMS + 1, "only the first decision for a set of arms may solve"
            policy.weights(state, restricted)


@every_form
def test_a_report_has_one_object_per_arm_and_only_numbers_that_json_knows(example: Example) -> None:
    g, policy = default_rng(11), example.policy()
    for state in (started(example, policy, g), fed(example, policy, g), states.add_arm(policy, fed(example, policy, g))):
        report = policy.report(state)
        assert len(report["arms"]) == len(state.arms)
        json.dumps(report, allow_nan=False)


@every_form
def test_the_seed_is_all_that_chance_needs(example: Example) -> None:
    one, again, other = example.policy(seed=3), example.policy(seed=3), example.policy(seed=4)
    assert one.fingerprint == again.fingerprint
    assert (one.fingerprint == other.fingerprint) == (one.fingerprint == "")


def course(example: Example, policy: Policy) -> list[Any]:
    """Everything that can be seen of a policy over a few dozen rounds in which every arm is pulled."""
    g = default_rng(12)
    state = started(example, policy, g)
    seen: list[Any] = [policy.fingerprint, policy.watches_drift]
    for t in range(36):
        attempts = tuple(int(x) for x in g.integers(0, 2 + t % 2, ARMS) * (t % 5 != 4))
        context = a_context(example, g, attempts=attempts, skipped=t)
        weights = policy.weights(state, [context])
        seen += [weights.values.tolist(), *(np.nan_to_num(table.numpy()).tolist() for table in weights.scores.values())]
        arm = int(g.integers(ARMS)) if t >= 2 * ARMS else t % ARMS
        outcome = example.seen(g, arm, context.features)
        if "reference" in policy.needs or getattr(policy, "diversity", "") == "jkd":
            outcome = dataclasses.replace(outcome, reference=torch.full_like(outcome.output, 0.3))
        state = policy.prepare(states.fold(policy, state, outcome))
        seen.append(policy.succeeded(outcome.reward))
    return seen


@pytest.mark.parametrize(("kind", "name"), HYPERPARAMETERS)
def test_every_hyperparameter_changes_something(kind: str, name: str) -> None:
    example = EXAMPLES[kind][0]
    assert name in example.differences, "give two settings that differ in it in tests/bandits/examples.py"
    one, other = example.differences[name]
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} == {name}
    assert course(example, example.policy(**one)) != course(example, example.policy(**other))


@pytest.mark.parametrize("kind", POLICIES)
def test_an_example_says_nothing_about_hyperparameters_that_do_not_exist(kind: str) -> None:
    assert set(EXAMPLES[kind][0].differences) == {item.name for item in declared(POLICIES[kind])}


LIVE = [(kind, item.name) for kind, policy in POLICIES.items() for item in declared(policy) if item.facts.live]


@pytest.mark.parametrize(("kind", "name"), LIVE)
def test_a_live_hyperparameter_can_change_on_what_was_learned(kind: str, name: str) -> None:
    """The statistic is the same under either value, and decisions are those of a bandit that always had the new one."""
    example = EXAMPLES[kind][0]
    one, other = example.differences[name]
    before, after = example.policy(**one), example.policy(**other)
    state, wanted = fed(example, before, default_rng(51)), fed(example, after, default_rng(51))
    assert states.digest(before, state) == states.digest(after, wanted)
    changed = dataclasses.replace(before, **{name: getattr(after, name)})
    g = default_rng(52)
    contexts = [a_context(example, g, attempts=(1, 0, 0)) for _ in range(5)]
    assert same(changed.weights(changed.prepare(state), contexts), after.weights(wanted, contexts), within=1e-9)
