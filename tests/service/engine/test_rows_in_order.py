"""Decisions that are made together are made as if one came after the other: what was chosen for one is pending for the next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.random import default_rng

from bandits.registry import POLICIES
from service.engine import events
from service.engine import projection as folding
from service.engine.commit import Recorded
from service.engine.decisions import DecisionRequest
from service.engine.events import ArmRetired, Created, Decided
from service.engine.learner import Learner
from service.storage.base import Durability, Log
from service.storage.memory import MemoryStorage
from tests.bandits.examples import EXAMPLES, Example
from tests.service.drivers import PAK, Clock, ask, learner_of, outcome
from tests.service.http_client import Service, answered

ROWS = 96  # three batches of those that are scored together
SPREADING = ("pak-ucb", "lin-ucb", "dak-ucb", "promptwise", "fd-ucb", "is-ucb")
FORMS = [pytest.param(form, id=f"{kind}-{number}") for kind in POLICIES for number, form in enumerate(EXAMPLES[kind])]


def form_of(kind: str, **settings: Any) -> Example:
    """A form whose arms are equal as long as nothing was learned."""
    if kind == "promptwise":  # the arms of these bandits differ in their prices
        settings = {"cost_weight": 0.0, "rule": "horizon", **settings}
    return replace(EXAMPLES[kind][0], settings={**EXAMPLES[kind][0].settings, **settings})


def equal(form: Example, count: int, *, first: int = 0) -> list[DecisionRequest]:
    """Requests with one prompt."""
    return [ask(form, default_rng(1), f"d{i}") for i in range(first, first + count)]


async def together(bandit: Learner, asks: Sequence[DecisionRequest]) -> list[Recorded]:
    return list(await asyncio.gather(*(bandit.decisions.submit(one) for one in asks)))


async def one_by_one(bandit: Learner, asks: Sequence[DecisionRequest]) -> list[Recorded]:
    return [await bandit.decisions.submit(one) for one in asks]


def same(ours: Sequence[Recorded], theirs: Sequence[Recorded]) -> None:
    """The same draws from the same distributions, in the same order."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one.event.id, one.event.arm, one.offset) == (other.event.id, other.event.arm, other.offset)
        np.testing.assert_allclose(one.event.weights, other.event.weights, rtol=0.0, atol=1e-7)
        assert one.event.propensity == (one.event.weights[one.event.arm] if one.event.arm >= 0 else 1.0)
        assert (one.event.attempt, one.event.episode) == (other.event.attempt, other.event.episode)


async def twins(form: Example, **options: Any) -> tuple[Learner, Learner]:
    """Two bandits that have learned the same."""
    made = []
    for _ in range(2):
        bandit, g = await learner_of(MemoryStorage(), form, **options), default_rng(2)
        for i in range(17):
            kept = await bandit.decisions.submit(ask(form, g, f"w{i}"))
            if kept.event.arm >= 0 and i % 5:
                await bandit.outcomes.submit(f"w{i}", outcome(form, g, kept.event.arm))
                await bandit.projection.background.finish()  # else decisions may use what was prepared before
        made.append(bandit)
    return made[0], made[1]


@pytest.mark.parametrize("kind", SPREADING)
async def test_equal_prompts_in_one_batch_are_spread_evenly_over_equal_arms(kind: str) -> None:
    form = form_of(kind)
    bandit = await learner_of(MemoryStorage(), form, arms=4)
    found = await together(bandit, equal(form, ROWS))
    assert Counter(kept.event.arm for kept in found) == dict.fromkeys(range(4), ROWS // 4)
    assert [kept.offset for kept in found] == list(range(found[0].offset, found[0].offset + ROWS))


@pytest.mark.parametrize("kind", SPREADING)
async def test_they_are_spread_evenly_too_where_decisions_do_not_wait_for_folds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "ANSWER_BELOW_S", -1.0)
    form, storage = form_of(kind), MemoryStorage()
    bandit = await learner_of(storage, form, arms=4)
    found = await together(bandit, equal(form, ROWS))
    assert Counter(kept.event.arm for kept in found) == dict.fromkeys(range(4), ROWS // 4)
    await bandit.projection.catch_up()
    assert (await Learner.load(storage, bandit.log)).digest() == bandit.digest()


@pytest.mark.parametrize("form", FORMS)
async def test_mixed_prompts_are_decided_together_as_one_by_one(form: Example) -> None:
    ours, theirs = await twins(form)
    g = default_rng(3)
    asks = [ask(form, g, f"d{i}", allowed={0: None, 2: 0.4} if i % 5 == 2 else {}) for i in range(70)]
    same(await together(ours, asks), await one_by_one(theirs, asks))


@pytest.mark.parametrize("kind", ["pak-ucb", "promptwise", "greedy", "fd-ucb", "mixture-greedy"])
async def test_propensities_are_those_of_one_by_one_where_a_floor_lets_any_arm_be_drawn(kind: str) -> None:
    floor = {"floor": 0.2} if kind == "mixture-greedy" else {"exploration_floor": 0.5}
    pulls = {"forced_pulls": 9} if kind == "promptwise" else {"initial_pulls": 9}
    form = form_of(kind, **floor, **pulls)
    ours, theirs = await twins(form)
    g = default_rng(4)
    asks = [ask(form, g, f"d{i}") for i in range(60)]
    found = await together(ours, asks)
    same(found, await one_by_one(theirs, asks))
    assert len({kept.event.arm for kept in found}) == 3


async def test_a_request_that_cannot_be_decided_does_not_hide_the_others_from_each_other(clock: Clock) -> None:
    form = form_of("pak-ucb")
    bandit = await learner_of(MemoryStorage(), form, arms=5)
    await bandit.committer.record(ArmRetired(at=clock(), arm=4), key="retire")
    asks = equal(form, 25)
    asks[3] = replace(asks[3], allowed={4: None})
    found = await asyncio.gather(*(bandit.decisions.submit(one) for one in asks), return_exceptions=True)
    arms = [kept.event.arm for kept in found if isinstance(kept, Recorded)]
    assert Counter(arms) == dict.fromkeys(range(4), 6)


async def test_a_policy_that_fails_on_one_of_them_does_not_hide_the_others_from_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = form_of("lin-ucb")
    bandit = await learner_of(MemoryStorage(), form, arms=4)
    weights = type(bandit.policy).weights

    def fails(self: Any, state: Any, contexts: Any) -> Any:
        if any(context.features.sum() > 90.0 for context in contexts):
            raise ZeroDivisionError
        return weights(self, state, contexts)

    def together_fails(self: Any, state: Any, contexts: Any, choose: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(type(bandit.policy), "weights", fails)
    monkeypatch.setattr(type(bandit.policy), "weights_in_order", together_fails)
    asks = equal(form, 25)
    asks[7] = replace(asks[7], features=events.vector_bytes(np.full(form.dim, 100.0)))
    found = await asyncio.gather(*(bandit.decisions.submit(one) for one in asks), return_exceptions=True)
    assert isinstance(found[7], ZeroDivisionError)
    assert Counter(kept.event.arm for kept in found if isinstance(kept, Recorded)) == dict.fromkeys(range(4), 6)


async def test_a_repeated_request_is_pending_for_no_other_whether_it_is_open_or_closed() -> None:
    ours, theirs = await twins(PAK)
    g, again = default_rng(2), []
    for i in range(17):  # as `twins` asked
        again.append(ask(PAK, g, f"w{i}"))
        if i % 5:
            outcome(PAK, g, 0)
    new = equal(PAK, 12)
    twice = [one for one in new for _ in range(2)]
    mixed = [one for pair in zip(again, twice, strict=False) for one in pair]
    found = await together(ours, mixed)
    assert all(kept.is_duplicate for kept in found[::2])
    first = {kept.event.id: kept for kept in found[1::2]}
    same(list(first.values()), await one_by_one(theirs, new[: len(first)]))
    assert ours.digest() == theirs.digest()


async def test_previews_are_pending_for_nothing_and_know_what_is() -> None:
    ours, theirs = await twins(PAK)
    asks = equal(PAK, 12)
    previews = await asyncio.gather(*(ours.decisions.preview(one) for one in asks))
    assert len({tuple(preview.weights) for preview in previews}) == 1
    same(await together(ours, asks), await one_by_one(theirs, asks))
    later = equal(PAK, 1, first=50)[0]
    assert (await ours.decisions.preview(later)).weights == pytest.approx((await theirs.decisions.submit(later)).event.weights)


async def test_attempts_of_one_episode_in_one_batch_count_for_each_other() -> None:
    form = form_of("promptwise", max_attempts=3, forced_pulls=0)
    ours, theirs = await learner_of(MemoryStorage(), form), await learner_of(MemoryStorage(), form)
    asks = [replace(one, episode="e" if i % 2 else f"own {i}") for i, one in enumerate(equal(form, 12))]
    found = await together(ours, asks)
    mine: list[Decided] = [kept.event for kept in found if kept.event.episode == "e"]
    assert [event.attempt for event in mine] == [1, 2, 3, 4, 5, 6]
    assert [event.arm >= 0 for event in mine] == [True] * 3 + [False] * 3
    same(found, await one_by_one(theirs, asks))


async def test_a_batch_over_http_is_spread_like_single_requests(service: Service) -> None:
    arms = [{"name": f"arm {i}"} for i in range(4)]
    await service.create(body={"policy": {"kind": "pak-ucb"}, "arms": arms, "prompt": {"dim": 3}, "seed": 7})
    items = [{"id": f"d{i}", "prompt": {"vector": [0.5, 1.0, -0.5]}} for i in range(ROWS)]
    response = await service.post("/v1/bandits/b/decisions/batch", {"decisions": items})
    found = answered(response)["decisions"]
    assert Counter(decision["arm"] for decision in found) == {arm["name"]: ROWS // 4 for arm in arms}
    assert [event["id"] for event in await service.log() if event["event"] == "decided"] == [item["id"] for item in items]


async def test_a_log_that_names_no_rule_is_folded_to_the_digest_of_one_that_does() -> None:
    """What a default is today enters no statistic."""
    form = form_of("promptwise", rule="ratio", cost_weight=0.05)
    storage, clock = MemoryStorage(), Clock()
    bandit = await learner_of(storage, form, options={"clock": clock})
    g = default_rng(5)
    for i in range(30):
        kept = await bandit.decisions.submit(ask(form, g, f"d{i}"))
        if kept.event.arm >= 0:
            await bandit.outcomes.submit(f"d{i}", outcome(form, g, kept.event.arm))
    silent = {name: value for name, value in bandit.created.hyperparameters.items() if name != "rule"}
    first = events.encode(replace_hyperparameters(bandit.created, silent))
    copy, _ = await storage.create(Log("another", "another"), first)
    for offset, payload in await bandit.entries(after=1, limit=1000):
        await storage.append(copy, f"{offset}", payload, Durability.PROCESS)
    folded = await Learner.load(storage, copy)
    assert folded.digest() == bandit.digest()


def replace_hyperparameters(created: Created, hyperparameters: dict[str, Any]) -> Created:
    return msgspec.structs.replace(created, hyperparameters=hyperparameters)
