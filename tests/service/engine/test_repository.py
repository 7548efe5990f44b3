"""Which bandits exist: created, found, deleted, loaded at the start, damaged, swept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest
from numpy.random import default_rng

from service.api.error_mapping import to_problem
from service.api.requests import BanditBody
from service.engine import events
from service.engine.errors import BanditDamagedError, BanditNewerError, BanditNotFoundError, LogNewerError
from service.engine.events import Cancelled, Created
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.engine.repository import BanditRepository
from service.settings import Settings
from service.storage.base import (
    Durability,
    Entry,
    Log,
    LogDamagedError,
    LogNotFoundError,
    Receipt,
    Storage,
    StorageDamagedError,
    StorageUnavailableError,
)
from service.storage.memory import MemoryStorage
from tests.service.drivers import GREEDY, Clock, ask, created
from tests.service.storages import Opener

PATIENCE_S = 20


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextlib.asynccontextmanager
async def hosted(storage: Storage, clock: Clock | None = None, **settings: Any) -> AsyncIterator[BanditRepository]:
    """A running host."""
    hosting = BanditRepository(storage, Settings(**{"sweep_s": 1000.0, **settings}), clock=clock or Clock())
    await hosting.start()
    try:
        yield hosting
    finally:
        await hosting.close()


def wanted(name: str = "greeter", *, tenant: str = "", price: float = 0.2, **changes: Any) -> Created:
    """What a client asked for."""
    body = {"policy": {"kind": "greedy"}, "arms": [{"name": "arm 0", "price": price}], "seed": 3}
    return created(name=name, tenant=tenant, request=BanditBody.model_validate(body).request(), **changes)


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


async def test_a_bandit_is_created_once_and_found_by_its_name(opener: Opener) -> None:
    async with hosted(opener()) as hosting:
        with pytest.raises(BanditNotFoundError):
            await hosting.get("", "greeter")
        learner, is_new = await hosting.create(wanted())
        assert is_new
        assert await hosting.get("", "greeter") is learner
        assert await hosting.create(wanted()) == (learner, False), "the same request again"
        assert await hosting.create(wanted(price=0.3)) == (learner, False), "another one: the caller compares them"
        assert len(await hosting.storage.logs()) == 1


async def test_of_many_that_create_a_name_at_once_one_does(opener: Opener) -> None:
    async with hosted(opener()) as hosting:
        answers = await asyncio.gather(*(hosting.create(wanted()) for _ in range(8)))
        assert [is_new for _, is_new in answers].count(True) == 1
        assert len({id(learner) for learner, _ in answers}) == 1


async def test_tenants_do_not_see_each_other(opener: Opener) -> None:
    async with hosted(opener()) as hosting:
        for tenant, name in (("", "b"), ("", "a"), ("acme", "a"), ("acme", "c")):
            await hosting.create(wanted(name, tenant=tenant))
        assert await hosting.names("") == ["a", "b"]
        assert await hosting.names("acme") == ["a", "c"]
        assert await hosting.names("ac") == []
        assert await hosting.get("acme", "a") is not await hosting.get("", "a")
        for tenant, name in (("acme", "b"), ("other", "a"), ("", "c")):
            with pytest.raises(BanditNotFoundError):
                await hosting.get(tenant, name)
        await hosting.delete("acme", "a")
        assert await hosting.names("") == ["a", "b"]


async def test_a_deleted_bandit_takes_its_open_decisions_along(opener: Opener) -> None:
    g = default_rng(1)
    async with hosted(opener()) as hosting:
        old, _ = await hosting.create(wanted())
        for i in range(3):
            await old.decisions.submit(ask(GREEDY, g, f"d{i}"))
        tasks = [old.decisions.submit(ask(GREEDY, g, f"e{i}")) for i in range(3)]
        await hosting.delete("", "greeter")
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, tuple | LogNotFoundError) for answer in answers)
        for asked in (hosting.get("", "greeter"), hosting.delete("", "greeter")):
            with pytest.raises(BanditNotFoundError):
                await asked
        for request in (old.decisions.submit(ask(GREEDY, g, "late")), old.outcomes.submit("d1", OutcomeReport(reward=0.5))):
            with pytest.raises(LogNotFoundError):
                await request
        new, is_new = await hosting.create(wanted(price=0.9))
        assert is_new
        assert (new.versions.committed.offset, new.ledger.open, await new.decisions.find("d1", "body of d1")) == (1, {}, None)
        await new.decisions.submit(ask(GREEDY, g, "d1"))
        with pytest.raises(LogNotFoundError):
            await old.decisions.submit(ask(GREEDY, g, "later"))
    async with hosted(opener()) as hosting:
        again = await hosting.get("", "greeter")
        assert sorted(again.ledger.open) == ["d1"]


class Gated(MemoryStorage):
    """A storage whose reads wait for a gate, and fail on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Exception | None = None
        self.reading = 0

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        self.reading += 1
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        return await super().read(log, after=after, limit=limit)


async def filled(storage: Storage, *names: str) -> None:
    async with hosted(storage) as hosting:
        for name in names:
            learner, _ = await hosting.create(wanted(name))
            await learner.decisions.submit(ask(GREEDY, default_rng(2), "d1"))


async def test_requests_wait_for_a_bandit_that_is_being_loaded() -> None:
    storage = Gated()
    await filled(storage, "a", "b")
    storage.gate.clear()
    async with hosted(storage) as hosting:
        assert hosting.state() == {"loading": ["a", "b"], "damaged": [], "newer": []}
        assert await hosting.names("") == ["a", "b"], "it exists, whatever its state"
        requests = [asyncio.create_task(hosting.get("", "a")) for _ in range(3)]
        impatient = asyncio.create_task(hosting.get("", "a"))
        await until(lambda: storage.reading >= 2)
        assert not any(request.done() for request in requests)
        impatient.cancel()
        await asyncio.wait([impatient])
        storage.gate.set()
        learners = await asyncio.gather(*requests)
        assert len({id(learner) for learner in learners}) == 1
        assert sorted(learners[0].ledger.open) == ["d1"]
        await hosting.get("", "b")
        assert hosting.state() == {"loading": [], "damaged": [], "newer": []}


async def test_a_request_does_not_wait_for_bandits_that_are_loaded_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, names = MemoryStorage(), [f"b{i}" for i in range(8)]
    await filled(storage, *names)
    begun: list[str] = []
    asked = ""
    load, gate = Learner.load, asyncio.Event()

    async def gated(storage: Storage, log: Log, **options: Any) -> Learner:
        begun.append(log.name)
        if log.name != asked:
            await gate.wait()
        return await load(storage, log, **options)

    monkeypatch.setattr(Learner, "load", staticmethod(gated))
    async with asyncio.timeout(PATIENCE_S), hosted(storage) as hosting:
        await until(lambda: len(begun) == 2)
        asked = next(name for name in names if name not in begun)
        assert sorted((await hosting.get("", asked)).ledger.open) == ["d1"]
        assert begun[2:] == [asked]
        gate.set()
        await until(lambda: not hosting.state()["loading"])
        assert sorted(begun) == names, "each is loaded once"


async def test_a_bandit_can_be_deleted_while_it_is_being_loaded() -> None:
    storage = Gated()
    await filled(storage, "a")
    storage.gate.clear()
    async with hosted(storage) as hosting:
        deleting = asyncio.create_task(hosting.delete("", "a"))
        await until(lambda: storage.reading >= 1)
        storage.gate.set()
        await deleting
        with pytest.raises(BanditNotFoundError):
            await hosting.get("", "a")
        assert await storage.logs() == []


async def test_a_host_can_be_closed_while_bandits_are_being_loaded() -> None:
    storage = Gated()
    await filled(storage, "a", "b")
    storage.gate.clear()
    async with asyncio.timeout(PATIENCE_S), hosted(storage):
        await until(lambda: storage.reading >= 2)


async def test_a_store_that_cannot_be_read_at_the_start_makes_no_bandit_disappear() -> None:
    """A 404 for a bandit that exists would be a guess: clients would create it again."""
    storage = Gated()
    await filled(storage, "a", "b")
    storage.fails = StorageUnavailableError("the disk is away")
    async with hosted(storage) as hosting:
        for asked in (hosting.get("", "a"), hosting.get("", "a"), hosting.create(wanted("a"))):
            with pytest.raises(StorageUnavailableError, match="away"):
                await asked
        assert hosting.state() == {"loading": ["a", "b"], "damaged": [], "newer": []}
        assert await hosting.names("") == ["a", "b"]
        storage.fails = None
        assert sorted((await hosting.get("", "a")).ledger.open) == ["d1"]
        assert await hosting.create(wanted("b")) == (await hosting.get("", "b"), False)
        assert hosting.state()["loading"] == []


async def test_the_sweeper_loads_what_could_not_be_loaded_at_the_start() -> None:
    storage = Gated()
    await filled(storage, "a")
    storage.fails = StorageUnavailableError("the disk is away")
    async with hosted(storage, sweep_s=0.001) as hosting:
        await until(lambda: storage.reading >= 3)
        storage.fails = None
        await until(lambda: not hosting.state()["loading"])
        await hosting.get("", "a")


async def test_a_damaged_bandit_answers_nothing_and_harms_no_other(opener: Opener) -> None:
    storage = opener()
    await filled(storage, "bad", "good")
    storage = opener()
    await storage.start()
    (bad,) = [log for log in await storage.logs() if log.name == "bad"]
    await storage.append(bad, "poison", b"no event", Durability.POWER)
    await storage.close()
    async with hosted(opener()) as hosting:
        await (await hosting.get("", "good")).decisions.submit(ask(GREEDY, default_rng(3), "d2"))
        with pytest.raises((BanditDamagedError, StorageDamagedError), match="offset 3"):
            await hosting.get("", "bad")
        for asked in (hosting.get("", "bad"), hosting.create(wanted("bad"))):
            with pytest.raises(BanditDamagedError, match="offset 3"):
                await asked
        (line,) = hosting.state()["damaged"]
        assert line.startswith("bad: ")
        assert "offset 3" in line
        assert await hosting.names("") == ["bad", "good"]
        await hosting.delete("", "bad")
        assert hosting.state() == {"loading": [], "damaged": [], "newer": []}
        assert (await hosting.create(wanted("bad")))[1], "an operator can create it again"


@pytest.mark.parametrize("changed", [(b'"event":"cancelled"', b'"event":"withdrawn"'), (b'"v":1', b'"v":2')])
async def test_a_log_that_a_newer_version_wrote_into_is_not_called_damaged(
    opener: Opener, clock: Clock, changed: tuple[bytes, bytes]
) -> None:
    """Neither by who serves it while that happens, nor after a start; and no other bandit is touched."""
    storage = opener()
    await filled(storage, "ahead", "good")
    async with hosted(opener(), clock) as hosting:
        bandit = await hosting.get("", "ahead")
        written = events.encode(Cancelled(at=clock(), id="d1")).replace(*changed)
        await hosting.storage.append(bandit.log, "newer", written, Durability.POWER)
        with pytest.raises(LogNewerError, match="offset 3: written by a newer version"):
            await bandit.projection.catch_up()
        with pytest.raises(BanditNewerError, match="offset 3"):
            await hosting.get("", "ahead")
        await hosting.get("", "good")
        assert hosting.state() == {"loading": [], "damaged": [], "newer": ["ahead"]}
    async with hosted(opener()) as hosting:
        for _ in range(2):
            with pytest.raises((BanditNewerError, LogNewerError), match="offset 3: written by a newer version") as stopped:
                await hosting.get("", "ahead")
            problem = to_problem(stopped.value)
            assert (problem.status, problem.code) == (503, "storage_unavailable")
            assert "newer version" in problem.detail
            assert "damaged" not in problem.detail
        await hosting.get("", "good")
        assert hosting.state() == {"loading": [], "damaged": [], "newer": ["ahead"]}


@pytest.mark.parametrize("changes", [{"policy": "later"}, {"hyperparameters": {"window": 7}}])
async def test_a_bandit_whose_policy_this_build_does_not_know_is_of_a_newer_version(
    opener: Opener, changes: dict[str, Any]
) -> None:
    storage = opener()
    await storage.start()
    event = events.encode(msgspec.structs.replace(created(), **changes))
    await storage.create(Log("1", "greeter"), event)
    await storage.close()
    async with hosted(opener()) as hosting:
        for _ in range(2):
            with pytest.raises((BanditNewerError, LogNewerError), match="written by a newer version"):
                await hosting.get("", "greeter")


async def test_damage_that_shows_while_serving_is_reported_too(opener: Opener, clock: Clock) -> None:
    async with hosted(opener(), clock) as hosting:
        bandit, _ = await hosting.create(wanted())
        await hosting.create(wanted("good"))
        await hosting.storage.append(bandit.log, "poison", events.encode(Cancelled(at=clock(), id="none")), Durability.POWER)
        with pytest.raises(StorageDamagedError, match="offset 2"):
            await bandit.decisions.submit(ask(GREEDY, default_rng(4), "d1"))
        with pytest.raises(BanditDamagedError, match="offset 2"):
            await hosting.get("", "greeter")
        assert len(hosting.state()["damaged"]) == 1
        await hosting.get("", "good")


async def test_a_fault_of_our_own_while_loading_is_damage_and_not_a_missing_bandit(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    await filled(storage, "a")

    async def broken(*_: object, **__: object) -> Learner:
        raise KeyError("a fault")

    monkeypatch.setattr(Learner, "load", broken)
    async with hosted(storage) as hosting:
        with pytest.raises(StorageDamagedError):
            await hosting.get("", "a")
        with pytest.raises(BanditDamagedError, match="a fault"):
            await hosting.get("", "a")


class Cut(MemoryStorage):
    """A storage whose answers to `create` and `delete` wait for a gate, after the work is done."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        answer = await super().create(log, payload)
        await self.gate.wait()
        return answer

    async def delete(self, log: Log) -> None:
        await super().delete(log)
        await self.gate.wait()


async def test_a_creation_that_was_cut_off_after_its_commit_can_be_repeated() -> None:
    storage = Cut()
    async with hosted(storage) as hosting:
        task = asyncio.create_task(hosting.create(wanted()))
        await until(lambda: storage._names)
        task.cancel()
        await asyncio.wait([task])
        storage.gate.set()
        learner, is_new = await hosting.create(wanted())
        assert not is_new
        await learner.decisions.submit(ask(GREEDY, default_rng(5), "d1"))
        assert await hosting.create(wanted(price=0.7)) == (learner, False)


async def test_a_bandit_created_while_the_old_one_is_being_deleted_stays() -> None:
    storage = Cut()
    async with hosted(storage) as hosting:
        storage.gate.set()
        await hosting.create(wanted())
        storage.gate.clear()
        deleting = asyncio.create_task(hosting.delete("", "greeter"))
        await until(lambda: not storage._names)
        creating = asyncio.create_task(hosting.create(wanted()))
        await until(lambda: storage._names)
        hold, storage.gate = storage.gate, asyncio.Event()
        storage.gate.set()
        hold.set()
        new, is_new = await creating
        await deleting
        assert is_new
        assert await hosting.get("", "greeter") is new


class Held(MemoryStorage):
    """A storage that other processes write to as well (`elsewhere`); answers to `create` and `read` wait for a gate each, after
    the work is done.
    """

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.creating, self.reading = asyncio.Event(), asyncio.Event()
        self.creating.set()
        self.reading.set()
        self.looks = self.reads = 0

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        answer = await super().create(log, payload)
        await self.creating.wait()
        return answer

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        entries = await super().read(log, after=after, limit=limit)
        self.reads += 1
        await self.reading.wait()
        return entries

    async def find_log(self, name: str) -> Log | None:
        self.looks += 1
        return await super().find_log(name)

    async def elsewhere(self, *, delete: str = "", create: Created | None = None) -> Log:
        """Another process deletes a bandit, then creates one."""
        log = Log("another", delete)
        if delete:
            found = await super().find_log(delete)
            assert found is not None
            await super().delete(found)
        if create is not None:
            log, _ = await super().create(Log("another", create.bandit), events.encode(create))
        return log


async def turns() -> None:
    """As many as anything that does not wait for a gate takes."""
    for _ in range(200):
        await asyncio.sleep(0)


async def test_a_look_during_a_creation_loads_no_second_learner_of_the_log() -> None:
    storage = Held()
    async with hosted(storage) as hosting:
        storage.creating.clear()
        storage.reading.clear()
        creating = asyncio.create_task(hosting.create(wanted()))
        await until(lambda: storage._names)
        looking = asyncio.create_task(hosting.get("", "greeter"))
        await turns()
        storage.creating.set()
        learner, is_new = await creating
        assert is_new
        storage.reading.set()
        assert await looking is learner
        await turns()
        assert await hosting.get("", "greeter") is learner
        assert hosting.state()["loading"] == []


async def test_a_bandit_that_another_replica_deletes_before_its_creation_is_answered_is_gone() -> None:
    storage = Held()
    async with hosted(storage) as hosting:
        storage.creating.clear()
        creating = asyncio.create_task(hosting.create(wanted()))
        await until(lambda: storage._names)
        await storage.elsewhere(delete="greeter")
        await turns()
        storage.creating.set()
        assert (await creating)[1], "it was created"
        await until(lambda: not hosting.loaded(""))
        with pytest.raises(BanditNotFoundError):
            await hosting.get("", "greeter")


@pytest.mark.parametrize("is_created_again", [False, True])
async def test_what_is_loaded_of_a_log_that_another_replica_deleted_meanwhile_is_dropped(is_created_again: bool) -> None:
    storage = Held()
    await filled(storage, "greeter")
    storage.reading.clear()
    async with hosted(storage) as hosting:
        await until(lambda: storage.reads)
        before = storage.looks
        log = await storage.elsewhere(delete="greeter", create=wanted(price=0.9) if is_created_again else None)
        await until(lambda: storage.looks > before)
        await turns()
        storage.reading.set()
        await until(lambda: not hosting.state()["loading"])
        if is_created_again:
            assert (await hosting.get("", "greeter")).log == log
        else:
            with pytest.raises(BanditNotFoundError):
                await hosting.get("", "greeter")


async def test_a_name_that_another_replica_gave_to_another_log_is_deleted_and_created_as_that_log() -> None:
    """Before there was news of it."""
    storage = Held()
    async with hosted(storage) as hosting:
        old, _ = await hosting.create(wanted())
        hosting._follower._tasks[0].cancel()  # which follows the news
        log = await storage.elsewhere(delete="greeter", create=wanted(price=0.9))
        new, is_new = await hosting.create(wanted())
        assert (is_new, new.log) == (False, log)
        hosting._learners["greeter"] = old
        await hosting.delete("", "greeter")
        assert await storage.logs() == []


async def test_a_bandit_that_cannot_run_is_refused_before_it_is_logged() -> None:
    storage = MemoryStorage()
    async with hosted(storage) as hosting:
        with pytest.raises(ValueError, match="initial_pulls"):
            await hosting.create(wanted(hyperparameters={"initial_pulls": -3}))
        assert await storage.logs() == []


async def test_the_sweeper_closes_what_is_overdue_of_every_bandit(opener: Opener, clock: Clock) -> None:
    g = default_rng(6)
    async with hosted(opener(), clock, sweep_s=0.001) as hosting:
        bandits = [(await hosting.create(wanted(name, timeout_s=30.0)))[0] for name in ("a", "b", "c", "d")]
        for bandit in bandits:
            await bandit.decisions.submit(ask(GREEDY, g, "d1"))

        async def fails() -> int:
            raise RuntimeError("a fault")

        bandits[0].outcomes.expire = fails  # type: ignore[method-assign]
        await hosting.storage.append(bandits[1].log, "poison", b"no event", Durability.POWER)
        await hosting.storage.delete(bandits[2].log)
        clock.advance(31.0)
        await until(lambda: not bandits[3].ledger.open)
        await bandits[3].decisions.submit(ask(GREEDY, g, "d2"))
        clock.advance(31.0)
        await until(lambda: not bandits[3].ledger.open)


async def test_closing_leaves_snapshots_and_closes_the_store_whatever_fails(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opener()
    async with hosted(storage) as hosting:
        bandits = [(await hosting.create(wanted(name)))[0] for name in ("a", "b")]
        for bandit in bandits:
            await bandit.decisions.submit(ask(GREEDY, default_rng(7), "d1"))

        async def fails() -> int:
            raise OverflowError("a snapshot too large")

        bandits[0].projection.snapshot = fails  # type: ignore[method-assign]
    storage = opener()
    await storage.start()
    assert [len(await storage.load_snapshots(bandit.log)) for bandit in bandits] == [0, 1]
    await storage.close()


# -- spoilt from outside -------------------------------------------------------------------------------------------------------


class Spoilt(MemoryStorage):
    """A storage of which another program has spoilt the logs that `spoilt` names."""

    def __init__(self) -> None:
        super().__init__()
        self.spoilt: set[str] = set()
        self.fails: Exception | None = None
        self.inspected = 0

    async def inspect(self, logs: Sequence[Log]) -> dict[str, LogDamagedError]:
        self.inspected += 1
        if self.fails:
            raise self.fails
        return {log.name: self._damage(log) for log in logs if log.name in self.spoilt}

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        if log.name in self.spoilt:
            raise self._damage(log)
        return await super().append_all(log, entries, durability)

    @staticmethod
    def _damage(log: Log) -> LogDamagedError:
        return LogDamagedError(f"log {log.name!r}", "another program has removed it")


async def test_a_sweep_stops_a_bandit_whose_log_was_spoilt_and_no_other() -> None:
    storage = Spoilt()
    async with hosted(storage, sweep_s=0.001) as hosting:
        for name in ("greeter", "other"):
            await hosting.create(wanted(name))
        storage.spoilt = {"greeter"}
        await until(lambda: hosting.state()["damaged"])
        assert hosting.state()["damaged"] == ["greeter: log 'greeter': another program has removed it"]
        with pytest.raises(BanditDamagedError, match="another program"):
            await hosting.get("", "greeter")
        await (await hosting.get("", "other")).decisions.submit(ask(GREEDY, default_rng(1), "d1"))


@pytest.mark.parametrize("failure", [StorageUnavailableError("away"), RuntimeError("a fault of ours")])
async def test_an_inspection_that_fails_does_not_end_the_sweeps(failure: Exception) -> None:
    storage = Spoilt()
    async with hosted(storage, sweep_s=0.001) as hosting:
        await hosting.create(wanted())
        storage.fails = failure
        seen = storage.inspected
        await until(lambda: storage.inspected > seen + 2)
        storage.fails, storage.spoilt = None, {"greeter"}
        await until(lambda: hosting.state()["damaged"])


async def test_an_append_into_a_spoilt_log_stops_its_bandit_before_any_sweep() -> None:
    storage, g = Spoilt(), default_rng(2)
    async with hosted(storage) as hosting:
        learner, _ = await hosting.create(wanted())
        await learner.decisions.submit(ask(GREEDY, g, "d1"))
        storage.spoilt = {"greeter"}
        asked = [learner.decisions.submit(ask(GREEDY, g, f"e{i}")) for i in range(4)]
        answers = await asyncio.gather(*asked, learner.outcomes.submit("d1", OutcomeReport(reward=1.0)), return_exceptions=True)
        assert all(isinstance(answer, StorageDamagedError) for answer in answers)
        assert hosting.state()["damaged"] == ["greeter: log 'greeter': another program has removed it"]
        with pytest.raises(BanditDamagedError):
            await hosting.get("", "greeter")
