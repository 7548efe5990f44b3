"""Bandits leave memory and come back, with all that they know; deadlines are kept meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import default_rng

from service.engine import demand, follower, places, repository
from service.engine.demand import Demand
from service.engine.errors import BanditNotFoundError
from service.engine.learner import Learner
from service.engine.memory import held_bytes
from service.engine.outcomes import OutcomeReport
from service.engine.places import Place, PlaceIndex
from service.engine.repository import SUMMARY, BanditRepository
from service.settings import Settings
from service.storage.base import Log, Storage, StorageUnavailableError
from service.storage.memory import MemoryStorage
from tests.bandits.examples import EXAMPLES
from tests.service.drivers import GREEDY, Clients, Clock, ask, created, learner_of
from tests.service.storages import STORAGES, Opener

PATIENCE_S = 30
WIDE = EXAMPLES["pak-ucb"][0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextlib.asynccontextmanager
async def hosted(storage: Storage, clock: Clock, **settings: Any) -> AsyncIterator[BanditRepository]:
    """A running host, which sweeps when a test does."""

    async def summarize(learner: Learner) -> bytes:
        return b"%d" % learner.ledger.offset

    hosting = BanditRepository(storage, Settings(**{"sweep_s": 1000.0, **settings}), clock=clock, summarize=summarize)
    await hosting.start()
    try:
        yield hosting
    finally:
        await hosting.close()


async def apart(work: Awaitable[Any]) -> Any:
    """The result of a request: a task of its own, which holds its bandit until it ends."""

    async def request() -> Any:
        return await work

    result = await asyncio.create_task(request())
    await asyncio.sleep(0)  # what happens at the end of a task happens now
    return result


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def quiet(hosting: BanditRepository) -> None:
    """Wait until nothing is at work on any bandit."""
    await until(lambda: not hosting._follower._following)
    for learner in list(hosting._learners.values()):
        await learner.projection.background.finish()


async def unloaded(hosting: BanditRepository, name: str) -> None:
    """Take a bandit out of memory, as soon as its background work is done."""
    learner = hosting._learners[name]
    await quiet(hosting)
    assert await hosting._unload(learner)
    assert name not in hosting._learners


def facts(learner: Learner) -> tuple[Any, ...]:
    return learner.digest(), learner.ledger.pack(), learner.versions.committed.arms, sorted(learner.ledger.open)


@pytest.mark.parametrize("kind", ["pak-ucb", "auto", "promptwise"])
async def test_what_is_loaded_again_is_what_was_unloaded(opener: Opener, clock: Clock, kind: str) -> None:
    example = EXAMPLES[kind][0]
    async with hosted(opener(), clock) as hosting:
        learner, _ = await apart(hosting.create(created(example)))
        await apart(Clients(example, learner, clock, seed=4).work(6))
        before = facts(learner)
        await unloaded(hosting, "greeter")
        again = await apart(hosting.get("", "greeter"))
        assert again is not learner
        assert facts(again) == before
        assert (await hosting.storage.load_snapshots(again.log))[0][0] == again.versions.committed.offset
        await apart(Clients(example, again, clock, seed=5).work(2))


async def test_a_request_keeps_its_bandit_in_memory(opener: Opener, clock: Clock) -> None:
    async with hosted(opener(), clock) as hosting:
        await apart(hosting.create(created()))
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def request() -> Learner:
            learner = await hosting.get("", "greeter")
            begun.set()
            await go_on.wait()
            await learner.decisions.submit(ask(GREEDY, default_rng(1), "d1"))
            return learner

        asked = asyncio.create_task(request())
        await begun.wait()
        assert not await hosting._unload(hosting._learners["greeter"])
        go_on.set()
        assert (await asked).ledger.offset == 2
        await unloaded(hosting, "greeter")


async def test_a_request_that_comes_while_its_bandit_is_saved_keeps_it(
    opener: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opener()
    async with hosted(storage, clock) as hosting:
        learner, _ = await apart(hosting.create(created()))
        await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
        await learner.projection.background.finish()
        saving, go_on, save = asyncio.Event(), asyncio.Event(), storage.save_snapshot

        async def slowly(log: Log, offset: int, blob: bytes) -> int:
            saving.set()
            await go_on.wait()
            return await save(log, offset, blob)

        monkeypatch.setattr(storage, "save_snapshot", slowly)
        unloading = asyncio.create_task(hosting._unload(learner))
        await saving.wait()

        async def request() -> None:
            assert await hosting.get("", "greeter") is learner
            await learner.decisions.submit(ask(GREEDY, default_rng(2), "d2"))

        await asyncio.create_task(request())
        go_on.set()
        assert not await unloading, "its log has grown since"
        assert await apart(hosting.get("", "greeter")) is learner
        await unloaded(hosting, "greeter")
        assert sorted((await apart(hosting.get("", "greeter"))).ledger.open) == ["d1", "d2"]


async def test_a_bandit_that_cannot_be_saved_stays_and_a_notice_says_so(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    async with hosted(storage, clock) as hosting:
        learner, _ = await apart(hosting.create(created()))
        await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
        await learner.projection.background.finish()
        with monkeypatch.context() as patch:

            async def fail(*_: object) -> None:
                raise StorageUnavailableError("the disk is full")

            patch.setattr(storage, "save_snapshot", fail)
            assert not await hosting._unload(learner)
            assert await apart(hosting.get("", "greeter")) is learner
            (notice,) = hosting.notices()
            assert notice.endswith("cannot be saved: the disk is full")
        await unloaded(hosting, "greeter")
        assert hosting.notices() == []


async def test_idle_bandits_leave_and_those_in_use_stay(opener: Opener, clock: Clock) -> None:
    async with hosted(opener(), clock, idle_s=100.0) as hosting:
        for name in ("idle", "used"):
            learner, _ = await apart(hosting.create(created(name=name)))
            learner.demand.asked_at = learner.demand.loaded_at = time.monotonic() - 101.0
        assert await apart(hosting.get("", "used")) is hosting._learners["used"]
        await quiet(hosting)
        await hosting._unload_idle()
        assert sorted(hosting._learners) == ["used"]
        assert await hosting.names("") == ["idle", "used"], "both exist"
        assert hosting.peek("", "idle") is None
        assert await hosting.summary("", "idle") == b"1"
        assert sorted(hosting._learners) == ["used"], "neither look has loaded it"


async def test_beyond_the_limit_those_asked_longest_ago_leave_and_one_is_always_served(opener: Opener, clock: Clock) -> None:
    async with hosted(opener(), clock) as hosting:
        for name in ("a", "b", "c"):
            await apart(hosting.create(created(WIDE, name=name)))
            hosting._learners[name].demand.asked_at = float(ord(name))
        one = max(hosting._size(learner) for learner in hosting._learners.values())
        hosting._settings = Settings(memory_bytes=2 * one + one // 2)
        await quiet(hosting)
        await hosting._make_room()
        assert sorted(hosting._learners) == ["b", "c"]
        assert hosting.notices() == []
        hosting._settings = Settings(memory_bytes=one // 2)
        await apart(hosting.get("", "a"))
        assert sorted(hosting._learners) == ["a"], "room was made before it was loaded"
        await hosting._make_room()
        assert sorted(hosting._learners) == ["a"], "larger than the limit, and served all the same"
        assert [str(one // 2) in notice for notice in hosting.notices()] == [True]
        for name in ("b", "a", "b"):
            await quiet(hosting)
            await apart(hosting.get("", name))
        assert "were loaded again within 60 s" in " ".join(hosting.notices())


async def test_a_deadline_that_comes_while_its_bandit_is_out_of_memory_is_kept(opener: Opener, clock: Clock) -> None:
    storage = opener()
    async with hosted(storage, clock) as hosting:
        for name, timeout_s in (("soon", 30.0), ("later", 90.0), ("never", 30.0)):
            learner, _ = await apart(hosting.create(created(name=name, timeout_s=timeout_s)))
            if name != "never":
                await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
            await unloaded(hosting, name)
        clock.advance(29.0)
        await hosting._load_due()
        assert (hosting._learners, hosting.state()["loading"]) == ({}, [])
        clock.advance(2.0)
        await hosting._load_due()
        await until(lambda: hosting._learners)
        (learner,) = hosting._learners.values()
        assert learner.log.name == "soon"
        assert await learner.outcomes.expire() == 1
        await quiet(hosting)
        learner.demand.loaded_at -= repository.VISIT_S
        await hosting._unload_idle()
        assert hosting._learners == {}, "it was not asked for"
        place = hosting._places.get(learner.log)
        assert place is not None
        assert (place.due, place.offset) == (None, 3)


async def test_what_was_left_without_a_place_is_found_by_the_next_start(opener: Opener, clock: Clock) -> None:
    """As a kill does between a snapshot and the index, or between a decision and both."""
    storage = opener()
    async with hosted(storage, clock) as hosting:
        logs = {}
        for name in ("missing", "stale", "right"):
            learner, _ = await apart(hosting.create(created(name=name)))
            await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
            logs[name] = learner.log
            await unloaded(hosting, name)
    clock.advance(7200.0)
    storage = opener()
    await storage.start()
    index = PlaceIndex(storage)
    await index.read()
    await index.drop(logs["missing"])
    place = index.get(logs["stale"])
    assert place is not None
    assert await index.write(logs["stale"], Place(name="stale", offset=place.offset - 1, due=None))
    await index.write(Log("gone", "gone"), Place(name="gone", offset=1, due=0.0))
    await storage.close()
    async with hosted(opener(), clock) as hosting:
        if hosting.storage.shared:
            assert {log.name for log in hosting._suspected} == {"missing", "stale"}
            await hosting._keep_places()
            hosting._load_behind()
        await until(lambda: sorted(hosting._learners) == ["missing", "stale"])
        assert "gone" not in {log.name for log in hosting._places.due(1.0)}


async def test_a_start_loads_what_was_used_lately_the_latest_first(clock: Clock) -> None:
    storage = MemoryStorage()
    async with hosted(storage, clock) as hosting:
        for name in ("old", "new", "newest"):
            await apart(hosting.create(created(WIDE, name=name)))
            await unloaded(hosting, name)
            clock.advance(1800.0)
        size = max(place.size for log in await storage.logs() if (place := hosting._places.get(log)))
    logs = {log.name: log for log in await storage.logs()}
    for settings, expected in (
        ({"idle_s": 4000.0}, ["newest", "new"]),
        ({"idle_s": 4000.0, "memory_bytes": size + size // 2}, ["newest"]),
        ({"idle_s": 0.0}, ["newest", "new", "old"]),
    ):
        hosting = BanditRepository(storage, Settings.load(sweep_s=1000.0, **settings), clock=clock)
        await hosting._places.read()
        assert await hosting._to_load_at_start(list(logs.values())) == [logs[name] for name in expected]


async def test_deleted_and_created_again_out_of_memory(opener: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "UNLOADED_S", 0.0)
    async with hosted(opener(), clock) as hosting:
        await apart(hosting.create(created()))
        old = hosting._learners["greeter"].log
        await unloaded(hosting, "greeter")
        await hosting.delete("", "greeter")
        with pytest.raises(BanditNotFoundError):
            await apart(hosting.get("", "greeter"))
        assert hosting._places.get(old) is None
        learner, is_new = await apart(hosting.create(created()))
        assert is_new
        assert learner.log != old
        if not hosting.storage.shared:
            return
        await unloaded(hosting, "greeter")
        async with hosted(opener(), clock) as other:
            await other.delete("", "greeter")
            again, _ = await apart(other.create(created()))
            assert (await apart(hosting.get("", "greeter"))).log == again.log, "before or after the news of it"


# -- several replicas ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Opener:
    return STORAGES["redis"](tmp_path)


async def test_of_two_replicas_one_loads_what_is_due(shared: Opener, clock: Clock) -> None:
    async with hosted(shared(), clock) as one, hosted(shared(), clock) as two:
        learner, _ = await apart(one.create(created(timeout_s=30.0)))
        await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
        await unloaded(one, "greeter")
        await until(lambda: "greeter" in two._unloaded)
        for hosting in (one, two):
            await hosting._places.read()
        clock.advance(31.0)
        await asyncio.gather(one._load_due(), two._load_due())
        assert len(one._wanted) + len(two._wanted) == 1
        await until(lambda: len(one._learners) + len(two._learners) == 1)
        (found,) = [*one._learners.values(), *two._learners.values()]
        assert await found.outcomes.expire() == 1


async def test_the_lease_of_a_process_that_ended_runs_out(shared: Opener, clock: Clock) -> None:
    async with hosted(shared(), clock) as one, hosted(shared(), clock) as two:
        learner, _ = await apart(one.create(created(timeout_s=10.0)))
        await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
        await one._keep_places()  # and is not heard of again
        await until(lambda: "greeter" in two._unloaded)
        await two._places.read()
        clock.advance(places.LEASE_S - 1.0)
        await two._load_due()
        assert not two._wanted
        clock.advance(2.0)
        await two._load_due()
        await until(lambda: two._learners)
        assert await two._learners["greeter"].outcomes.expire() == 1


async def test_a_bandit_whose_summary_fails_keeps_no_other_one_from_being_found(
    shared: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "LOOK_S", 0.0)

    async def fail(learner: Learner) -> bytes:
        raise ArithmeticError(learner.log.name)

    async with hosted(shared(), clock) as one, hosted(shared(), clock) as two:
        lost, _ = await apart(one.create(created(timeout_s=10.0)))
        await apart(two.create(created(name="failing")))
        two._summarize = fail
        await until(lambda: "greeter" in two._unloaded)
        for _ in range(2):  # it has no place: found at the first look, visited at the second
            await two._keep_places()
        assert lost.log in two._wanted


async def test_two_replicas_that_load_a_bandit_at_once_agree(shared: Opener, clock: Clock) -> None:
    async with hosted(shared(), clock) as one, hosted(shared(), clock) as two:
        learner, _ = await apart(one.create(created(WIDE)))
        await apart(Clients(WIDE, learner, clock, seed=6).work(4))
        before = facts(learner)
        await unloaded(one, "greeter")
        found = await asyncio.gather(apart(one.get("", "greeter")), apart(two.get("", "greeter")))
        for again in found:
            await again.projection.catch_up()
        assert [facts(again) for again in found] == [before, before]
        await unloaded(two, "greeter")
        assert one._learners, "the other goes on"
        assert (await one.storage.records(found[0].log))[SUMMARY] == b"%d" % before[0][0]


async def test_a_replica_does_not_fold_what_it_has_not_loaded(
    shared: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "UNLOADED_S", 0.0)
    async with hosted(shared(), clock) as one, hosted(shared(), clock) as two:
        learner, _ = await apart(one.create(created()))
        await until(lambda: "greeter" in two._unloaded)
        await apart(learner.decisions.submit(ask(GREEDY, default_rng(1), "d1")))
        await until(lambda: "greeter" in two._follower.changed)
        assert (two._learners, two._loading) == ({}, {})
        await one.delete("", "greeter")
        await until(lambda: "greeter" not in two._unloaded)


# -- memory ----------------------------------------------------------------------------------------------------------------------


async def test_the_estimate_is_what_a_bandit_takes(clock: Clock) -> None:
    storage, g = MemoryStorage(), default_rng(3)
    async with hosted(storage, clock) as hosting:
        learner, _ = await apart(hosting.create(created(timeout_s=1e6)))
        small = hosting._learners["greeter"].held_bytes()
        await asyncio.gather(*(learner.decisions.submit(ask(GREEDY, g, f"d{i:04}")) for i in range(2_000)))
        for i in range(0, 2_000, 2):
            await learner.outcomes.submit(f"d{i:04}", OutcomeReport(reward=0.5, body="b"))
        payload = learner.ledger.pack()
        before, read = learner.held_bytes(), learner.ledger.unpack(learner.created, payload)
        tracemalloc.start()
        read = learner.ledger.unpack(learner.created, payload)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert before > small + 100 * 1_000
        assert taken / 1.5 < held_bytes(read) < taken * 1.5


@pytest.mark.parametrize("rounds", [0, 20])
async def test_the_estimate_of_a_small_bandit_is_what_it_takes(clock: Clock, rounds: int) -> None:
    storage, g, kept = MemoryStorage(), default_rng(3), []
    await learner_of(storage, name="first", options={"clock": clock})  # what all bandits share
    gc.collect()
    tracemalloc.start()
    for n in range(10):
        learner = await learner_of(storage, name=f"bandit {n}", options={"clock": clock})
        for t in range(rounds):
            decided = (await learner.decisions.submit(ask(GREEDY, g, f"d{t}"))).event
            await learner.outcomes.submit(decided.id, OutcomeReport(reward=0.5, body="b"))
            clock.advance(5)
        kept.append(learner)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / 2 < sum(learner.held_bytes() for learner in kept) < taken * 2


def test_tensors_count_once_by_their_storage() -> None:
    block = torch.zeros(1_000, 100)
    alone = held_bytes(block)
    assert 400_000 < alone < 401_000
    assert held_bytes([block, block[3], {"view": block.T}]) < alone + 5_000
    assert 4 * 400_000 < held_bytes([torch.zeros(1_000, 100) for _ in range(4)]) < 4.1 * 400_000


def test_a_large_container_is_measured_by_a_sample() -> None:
    values = {f"key {i:06}": [float(i)] * 4 for i in range(100_000)}
    began = time.thread_time()
    found = held_bytes(values)
    assert time.thread_time() - began < 1.0
    assert found > 100_000 * 100


async def test_a_task_holds_until_it_ends() -> None:
    one = Demand()
    go_on = asyncio.Event()
    task = asyncio.create_task(go_on.wait())
    one.hold(task)
    one.hold(task)
    assert one.is_held
    assert one.idle_s() < demand.ASKED_S + PATIENCE_S
    go_on.set()
    await task
    await asyncio.sleep(0)
    assert not one.is_held
