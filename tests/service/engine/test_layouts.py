"""Sums in blocks against plain sums, over every policy that keeps a ridge regression, through the fold of the service."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits import state as states
from bandits.errors import CorruptState
from bandits.types import LAYOUT, Amendment, Context, Observation, Policy
from service.engine import events
from service.engine.ledger import AddPending, Amend, Effect, GrowArms, Learn, RemovePending, Reset
from service.engine.policies import Learned, policy_of
from service.storage.base import Log
from tests.bandits.examples import EXAMPLES, Example
from tests.service.drivers import created

LOG = Log("0", "b")
FORMS = {
    "lin-ucb": EXAMPLES["lin-ucb"][0],
    "pak-ucb": EXAMPLES["pak-ucb"][0],
    "pak-ucb-forgetting": dataclasses.replace(
        EXAMPLES["pak-ucb"][0], settings={**EXAMPLES["pak-ucb"][0].settings, "forget_half_life": 45}
    ),
    "pak-ucb-signals": dataclasses.replace(EXAMPLES["pak-ucb"][0], signals=("reward", "cost", "latency")),
    "dak-ucb": EXAMPLES["dak-ucb"][0],
    "promptwise": EXAMPLES["promptwise"][0],
}
every_form = pytest.mark.parametrize("name", FORMS)
ROUNDS = 130
"""Outcomes: with three arms some close two blocks."""


def history(example: Example, policy: Policy) -> list[tuple[int, Effect]]:
    """Decisions, outcomes in another order, amendments, an expired decision, an arm more and one that is learned again."""
    g, found, waiting = np.random.default_rng(7), list[Effect](), list[tuple[int, Tensor]]()
    learned: list[tuple[int, Observation]] = []
    arms, outcomes = 2, 0
    while outcomes < ROUNDS:
        if outcomes >= 20 and arms == 2:
            found.append(GrowArms())
            arms = 3
        if outcomes >= 90 and not any(isinstance(one, Reset) for one in found):
            found.append(Reset(0, len(found) + 1))
        arm, x = int(g.choice(arms, p=np.array([5, 4, 2][:arms]) / sum([5, 4, 2][:arms]))), example.features(g)
        found.append(AddPending(arm, x))
        waiting.append((arm, x))
        while len(waiting) > g.integers(0, 6):
            arm, x = waiting.pop(int(g.integers(len(waiting))))
            if g.random() < 0.05:
                found.append(RemovePending(arm, x))
                continue
            seen = dataclasses.replace(example.seen(g, arm, x, was_pending=True), offset=len(found) + 1)
            found.append(Learn(seen))
            learned.append((len(found), seen))
            outcomes += 1
        if learned and g.random() < 0.1 and not policy.not_amendable:
            offset, seen = learned[int(g.integers(len(learned)))]
            old = seen.values(len(policy.signals))
            new = (old[0] + 0.125, *[math.nan] * (len(old) - 1))
            change = Amendment(
                arm=seen.arm,
                features=seen.features,
                old=old,
                new=new,
                learned=(offset,) * len(old),
                offset=len(found) + 1,
                held=offset,
                has_output=True,
            )
            found.append(Amend(change))
            corrected = dataclasses.replace(seen, reward=new[0], signals=(new[0], *seen.signals[1:]) if seen.signals else ())
            learned = [(at, corrected if at == offset else one) for at, one in learned]
    return list(enumerate(found, start=2))


def folded(policy: Policy, effects: list[tuple[int, Effect]], *, layout: int, seed: int | None = None, **how: Any) -> Learned:
    """After all effects, in batches that a seed decides; None = all at once."""
    learned = Learned.start(events.FIRST, policy, arms=2, is_own=True, layout=layout)
    g, rest = np.random.default_rng(seed), effects
    while rest:
        size = len(rest) if seed is None else int(g.choice([1, 2, 7, 40, 100]))
        learned, rest = learned.fold(LOG, rest[:size], is_live=how.get("is_live", True)), rest[size:]
        if how.get("prepares"):
            learned = dataclasses.replace(learned, state=policy.prepare(learned.state))
        if how.get("restarts"):
            packed = states.pack(policy, learned.state)
            again = states.unpack(policy, packed, layout=layout)
            again = dataclasses.replace(again, since=learned.state.since, recent_since=learned.state.recent_since)
            learned = dataclasses.replace(learned, state=again)
    return learned


def contexts(example: Example, count: int) -> Iterator[Context]:
    g = np.random.default_rng(8)
    for _ in range(count):
        yield Context(allowed=(True,) * 3, features=example.features(g), coefficients=example.coefficients(3))


@every_form
def test_a_digest_does_not_depend_on_batches_restarts_or_caches(name: str) -> None:
    example = FORMS[name]
    policy = example.policy()
    effects = history(example, policy)
    digest = states.digest(policy, folded(policy, effects, layout=2).state)
    for how in ({"is_live": False}, {"prepares": True}, {"restarts": True, "is_live": False}, {}):
        for seed in (1, 2):
            assert states.digest(policy, folded(policy, effects, layout=2, seed=seed, **how).state) == digest, (how, seed)


@every_form
def test_sums_in_blocks_decide_what_plain_sums_decide(name: str) -> None:
    example = FORMS[name]
    policy = example.policy()
    effects, asked = history(example, policy), list(contexts(example, 40))
    plain, blocks = (
        policy.prepare(folded(policy, effects, layout=layout, seed=3, prepares=True).state) for layout in (1, LAYOUT)
    )
    assert states.packed_layout(policy, plain) == 1
    assert states.packed_layout(policy, blocks) == 2
    assert states.digest(policy, plain) != states.digest(policy, blocks)
    before, after = policy.weights(plain, asked), policy.weights(blocks, asked)
    assert torch.equal(before.values, after.values)
    for term, scores in before.scores.items():
        torch.testing.assert_close(after.scores[term], scores, rtol=1e-9, atol=1e-9, equal_nan=True)
    for one, other in zip(plain.arms, blocks.arms, strict=True):
        for then, now in zip(getattr(one, "signals", (one,)), getattr(other, "signals", (other,)), strict=True):
            field = "design" if hasattr(now, "design") else "gram"
            gram = getattr(now, field) + sum((torch.outer(z, z) for z in now.held), torch.zeros(()))
            torch.testing.assert_close(gram, getattr(then, field), rtol=1e-12, atol=1e-12)
            assert not then.held


@every_form
def test_sums_of_another_layout_than_the_log_says_are_refused(name: str) -> None:
    example = FORMS[name]
    policy = example.policy()
    plain, blocks = (folded(policy, history(example, policy)[:80], layout=layout).state for layout in (1, 2))
    with pytest.raises(CorruptState, match="expected format 2"):
        states.unpack(policy, states.pack(policy, plain), layout=2)
    with pytest.raises(CorruptState, match="expected format 1"):
        states.unpack(policy, states.pack(policy, blocks), layout=1, any_layout=True)
    migrated = states.unpack(policy, states.pack(policy, plain), layout=2, any_layout=True)
    assert migrated.layout == 2
    assert states.pack(policy, dataclasses.replace(migrated, layout=1)) == states.pack(policy, plain), "the sums as they were"


def test_a_policy_without_a_ridge_regression_is_packed_as_ever() -> None:
    policy = EXAMPLES["greedy"][0].policy()
    assert states.pack(policy, states.start(policy, arms=2)) == states.pack(policy, states.start(policy, arms=2, layout=1))


def test_a_log_in_a_newer_layout_is_not_read() -> None:
    with pytest.raises(events.NewerEvent, match=f"layout {LAYOUT + 1}"):
        policy_of(created(layout=LAYOUT + 1))
