"""A clone has learned exactly what its source has, wherever the copy was cut off, and however many processes copied."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bandits.registry import build
from service.engine import events
from service.engine.clones import Cloner, OutcomeJoin, check_cloneable
from service.engine.decisions import DecisionRequest
from service.engine.errors import NotCloneableError, NotReadyError
from service.engine.events import (
    Amended,
    AnyEvent,
    Cloned,
    CloneOf,
    Created,
    Decided,
    Expired,
    Imported,
    Observed,
    Partial,
)
from service.engine.learner import Learner
from service.storage.base import Durability, Log, Storage
from service.storage.memory import MemoryStorage
from tests.service.drivers import Clock, created
from tests.service.recorded_logs import DATA, payloads_of
from tests.service.storages import STORAGES, started

CLOCK = Clock()


async def source_of(storage: Storage, name: str) -> Learner:
    """The bandit of a recorded log, in this store."""
    payloads = payloads_of((DATA / f"{name}.ndjson").read_bytes())
    log, _ = await storage.create(Log("of the source", "b"), payloads[0])
    for number, payload in enumerate(payloads[1:], start=2):
        await storage.append(log, str(number), payload, Durability.POWER)
    return await Learner.load(storage, log)


def clone_of(source: Learner, **changes: Any) -> Created:
    """The first event of a clone, under the same policy unless it is changed."""
    until = changes.pop("until", source.versions.committed.offset)
    facts = {"bandit": "copy", "clone_of": CloneOf(bandit="b", log=source.log.id, until=until), **changes}
    return msgspec.structs.replace(source.created, **facts)


async def begun(storage: Storage, first: Created) -> Learner:
    log, _ = await storage.create(Log("of the copy", "copy"), events.encode(first))
    return await Learner.load(storage, log)


async def copied(storage: Storage, clone: Learner) -> Learner:
    Cloner(storage, clock=CLOCK).start(clone)
    await clone.projection.background.finish()
    return clone


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.ndjson")))
async def test_a_clone_under_the_same_policy_has_the_same_state(name: str) -> None:
    storage = MemoryStorage()
    source = await source_of(storage, name)
    first = clone_of(source)
    await check_cloneable(storage, source.log, first)
    clone = await copied(storage, await begun(storage, first))
    assert (clone.ledger.cloning, clone.clone_fault) == (None, "")
    assert clone.digest()[1] == source.digest()[1]
    for one, other in zip(clone.ledger.arms, source.ledger.arms, strict=True):
        facts = ("name", "price", "active", "outcomes", "rewards", "reward_sum", "cost_sum")
        assert [getattr(one, fact) for fact in facts] == [getattr(other, fact) for fact in facts]
        assert (one.pulls, one.pending, one.imported) == (0, 0, one.outcomes)


async def events_of(storage: Storage, log: Log) -> list[bytes]:
    return [entry.payload for entry in await storage.read(log, after=0, limit=10_000)]


async def test_a_copy_goes_on_wherever_it_was_cut_off() -> None:
    storage = MemoryStorage()
    source = await source_of(storage, "pak-ucb")
    whole = await copied(storage, await begun(storage, clone_of(source)))
    payloads = await events_of(storage, whole.log)
    assert isinstance(events.decode(payloads[-1]), Cloned)
    for length in range(1, len(payloads)):
        other = MemoryStorage()
        source = await source_of(other, "pak-ucb")
        log, _ = await other.create(Log("of the copy", "copy"), payloads[0])
        for payload in payloads[1:length]:
            await other.append(log, events.key_of(events.decode(payload)), payload, Durability.POWER)
        clone = await Learner.load(other, log)
        with pytest.raises(NotReadyError):
            clone.decisions.submit(DecisionRequest(id="early"))
        assert await events_of(other, (await copied(other, clone)).log) == payloads
        assert clone.digest() == whole.digest()


@pytest.mark.parametrize("kind", STORAGES)
async def test_two_processes_that_copy_at_once_copy_once(kind: str, tmp_path: Path) -> None:
    async with started(STORAGES[kind](tmp_path)) as storage:
        source = await source_of(storage, "pak-ucb")
        one = await begun(storage, clone_of(source))
        other = await Learner.load(storage, one.log)
        cloners = Cloner(storage, clock=CLOCK), Cloner(storage, clock=CLOCK)
        for _ in range(20):
            for cloner, clone in zip(cloners, (one, other), strict=True):
                cloner.start(clone)
            await asyncio.gather(*(clone.projection.background.finish() for clone in (one, other)))
            for clone in (one, other):
                await clone.projection.catch_up()
            if one.ledger.cloning is None:
                break
        assert one.digest() == other.digest()
        assert one.digest()[1] == source.digest()[1]
        found = [events.decode(payload).cloned for payload in await events_of(storage, one.log)]
        offsets = [offset for offset in found if isinstance(offset, int)]
        assert offsets == sorted(set(offsets))


async def test_only_what_is_before_the_bound_is_copied() -> None:
    storage = MemoryStorage()
    source = await source_of(storage, "greedy")
    until = 9
    clone = await copied(storage, await begun(storage, clone_of(source, until=until)))
    past = await Learner.load(storage, source.log, until=until)
    assert clone.digest()[1] == past.digest()[1] != source.digest()[1]


async def test_another_policy_learns_the_same_outcomes() -> None:
    """As from the same rows, folded by hand."""
    storage = MemoryStorage()
    source = await source_of(storage, "pak-ucb")
    lin = clone_of(source, policy="lin-ucb", hyperparameters={}, fingerprint="")
    await check_cloneable(storage, source.log, lin)
    clone = await copied(storage, await begun(storage, lin))
    join = OutcomeJoin(source.created, {}, clock=CLOCK)
    found = [join.copy(entry.offset, events.decode(entry.payload)) for entry in await storage.read(source.log, after=0, limit=99)]
    rows = [one for one in found if isinstance(one, Imported)]
    assert [arm.outcomes for arm in clone.ledger.arms] == [
        sum(row.arm == index for row in rows) for index in range(len(clone.ledger.arms))
    ]
    assert clone.policy.kind == "lin-ucb"


@pytest.mark.parametrize(
    ("source", "policy", "what"),
    [
        ("greedy", {"policy": "pak-ucb", "hyperparameters": {"random_features": 4}, "dim": 3}, "prompt: is missing"),
        ("pak-ucb", {"policy": "fd-ucb", "hyperparameters": {}, "output_dim": 2}, "output: is missing"),
        ("mixture-ucb", {"policy": "mixture-greedy", "hyperparameters": {"objective": "fid"}}, "reference"),
    ],
)
async def test_what_the_log_lacks_is_named(source: str, policy: dict[str, Any], what: str) -> None:
    storage = MemoryStorage()
    learner = await source_of(storage, source)
    facts = {"dim": learner.created.dim, "output_dim": learner.created.output_dim} | policy
    built = build(policy["policy"], policy["hyperparameters"], dim=facts["dim"], output_dim=facts["output_dim"], seed=7)
    clone = clone_of(learner, **policy, fingerprint=built.fingerprint)
    with pytest.raises(NotCloneableError, match=what):
        await check_cloneable(storage, learner.log, clone)


async def test_a_trimmed_log_is_not_cloned() -> None:
    async with started(MemoryStorage) as storage:
        source = await source_of(storage, "greedy")
        clone = clone_of(source)
        await check_cloneable(storage, source.log, clone)
        for offset in (9, 12):
            await storage.save_snapshot(source.log, offset, b"x")
        await storage.trim(source.log, before=9, lasting=())
        with pytest.raises(NotCloneableError, match="events before offset 9 are kept in snapshots only"):
            await check_cloneable(storage, source.log, clone)


async def test_a_clone_whose_source_is_gone_says_so() -> None:
    storage = MemoryStorage()
    source = await source_of(storage, "greedy")
    clone = await begun(storage, clone_of(source))
    await storage.delete(source.log)
    await copied(storage, clone)
    assert clone.clone_fault
    assert any("cannot be completed" in notice for notice in await clone.notices())
    assert created().clone_of is msgspec.UNSET


def facts_of(event: str, decision: str, arm: int) -> dict[str, Any]:
    common: dict[str, Any] = {"at": CLOCK(), "id": decision, "arm": arm, "propensity": 0.5, "body": ""}
    if event == "decided":
        common |= {"weights": [0.5, 0.5], "scores": {}, "allowed": [0, 1], "features": b"", "episode": decision, "attempt": 1}
    return common


async def test_outcomes_are_copied_as_they_were_amended_in_the_end() -> None:
    """Corrected, completed after a partial outcome, and come after the decision expired; a bound copies what was so by then."""
    first = created(arms=2, name="b", signals=["reward", "cost", "latency_s"])
    late: dict[str, Any] = {"outcome": 9, "counts": "now", "held": 0, "price": 0.2, "features": b"", "cost": None}
    corrected: dict[str, Any] = {"outcome": 3, "counts": "before", "held": 3, "price": 0.2, "features": b"", "cost": None}
    log: list[AnyEvent] = [
        first,
        Decided(**facts_of("decided", "d0", 0), price=0.2),
        Observed(**facts_of("observed", "d0", 0), reward=0.5, cost=0.2, cost_posted=False),
        Decided(**facts_of("decided", "d1", 1), price=0.5),
        Partial(at=CLOCK(), id="d1", n=1, arm=1, cost=0.375, signals={"latency_s": 2.0}),
        Observed(**facts_of("observed", "d1", 1), reward=0.75, cost=0.375, cost_posted=True, signals={"latency_s": 2.0}),
        Amended(**facts_of("amended", "d0", 0), n=1, reward=0.25, signals={"latency_s": 4.0}, **corrected, before=CORRECTED),
        Decided(**facts_of("decided", "d2", 0), price=0.2),
        Expired(at=CLOCK(), id="d2", reward=None),
        Amended(**facts_of("amended", "d2", 0), n=1, reward=0.625, before={"reward": None}, **late),
        Amended(**facts_of("amended", "d2", 0), n=2, reward=0.875, before={"reward": 0.625}, **late | {"counts": "before"}),
        Decided(**facts_of("decided", "open", 0), price=0.2),
    ]
    storage = MemoryStorage()
    of_source, _ = await storage.create(Log("of the source", "b"), events.encode(first))
    for number, event in enumerate(log[1:], start=2):
        await storage.append(of_source, str(number), events.encode(event), Durability.POWER)
    source = await Learner.load(storage, of_source)
    found = clone_of(source)
    await check_cloneable(storage, source.log, found)
    clone = await copied(storage, await begun(storage, found))
    kept = [events.decode(payload) for payload in await events_of(storage, clone.log)]
    rows = [row for row in kept if isinstance(row, Imported)]
    assert [(row.id, row.cloned, row.reward, row.cost, row.cost_posted) for row in rows] == [
        ("d0", 3, 0.25, 0.2, False),
        ("d1", 6, 0.75, 0.375, True),
        ("d2", 10, 0.875, 0.2, False),
    ]
    assert [row.signals for row in rows] == [{"latency_s": 4.0}, {"latency_s": 2.0}, msgspec.UNSET]
    assert [row.weights for row in rows] == [[0.5, 0.5]] * 3
    for shown, expected in zip((await clone.report())["arms"], (await source.report())["arms"], strict=True):
        assert shown == pytest.approx(expected)
    for one, other in zip(clone.ledger.arms, source.ledger.arms, strict=True):
        assert (one.outcomes, one.rewards) == (other.outcomes, other.rewards)
        assert one.reward_sum == pytest.approx(other.reward_sum)
    other_log = MemoryStorage()
    of_copy, _ = await other_log.create(Log("of the source", "b"), events.encode(first))
    for number, event in enumerate(log[1:], start=2):
        await other_log.append(of_copy, str(number), events.encode(event), Durability.POWER)
    early = await copied(other_log, await begun(other_log, clone_of(source, until=6)))
    assert [arm.reward_sum for arm in early.ledger.arms] == [0.5, 0.75]


CORRECTED: dict[str, float | None] = {"reward": 0.5, "latency_s": None}
