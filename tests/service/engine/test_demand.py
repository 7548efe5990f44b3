"""How long what others write gathers before it is folded."""

from __future__ import annotations

import asyncio

import pytest
from numpy.random import default_rng

from service.engine import demand, events
from service.engine.demand import Demand
from service.engine.follower import LogFollower
from service.engine.repository import BanditRepository
from service.settings import Settings
from service.storage.base import Log
from service.storage.memory import MemoryStorage
from tests.service.drivers import GREEDY, Clock, ask, created


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "IDLE_GATHER_S", 3600.0)


async def _gathers_until_it_is_asked_for(one: Demand) -> None:
    waiting = asyncio.create_task(one.gather())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    one.note()
    await waiting


async def test_a_bandit_that_is_not_asked_for_gathers_until_it_is_asked_for() -> None:
    await _gathers_until_it_is_asked_for(Demand())


async def test_a_bandit_that_is_being_asked_for_gathers_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "ASKED_S", 3600.0)
    one = Demand()
    one.note()
    await one.gather()


async def test_the_wait_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "IDLE_GATHER_S", 0.001)
    await Demand().gather()


async def test_a_request_of_long_ago_does_not_end_the_next_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "ASKED_S", 0.0)
    one = Demand()
    one.note()
    await _gathers_until_it_is_asked_for(one)


async def test_a_log_that_is_created_again_while_entries_gather_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "ASKED_S", 0.0)
    storage, clock, found, g = MemoryStorage(), Clock(), [], default_rng(1)

    async def discover(name: str) -> None:
        found.append(name)

    repository = BanditRepository(storage, Settings(sweep_s=1000.0), clock=clock)
    await repository.start()
    try:
        learner, _ = await repository.create(created())
        await learner.decisions.submit(ask(GREEDY, g, "d"))
        name, end = learner.log.name, await storage.end(learner.log)
        follower = LogFollower(storage, {name: learner}, clock=clock, discover=discover)
        follower.known_ends[name] = end + 1
        follower.follow(name)
        following = follower._following[name]
        await asyncio.sleep(0)
        await storage.delete(learner.log)
        follower.known_ends[name] = 0
        _, receipt = await storage.create(Log("again", name), events.encode(created()))
        follower.known_ends[name] = receipt.offset
        learner.demand.note()
        await following
        assert found == [name]
    finally:
        await repository.close()


async def test_what_is_announced_after_the_last_read_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, clock, reads = MemoryStorage(), Clock(), []

    async def discover(name: str) -> None:
        raise AssertionError(name)

    repository = BanditRepository(storage, Settings(sweep_s=1000.0), clock=clock)
    await repository.start()
    try:
        learner, _ = await repository.create(created())
        name = learner.log.name
        follower = LogFollower(storage, {name: learner}, clock=clock, discover=discover)

        async def read(end: int = 0) -> None:
            reads.append(end)
            if len(reads) == 1:
                follower.follow(name)  # news of an entry that this read does not hold any more

        monkeypatch.setattr(learner.projection, "catch_up", read)
        learner.demand.note()
        follower.follow(name)
        await follower._following[name]
        assert reads == [0, 0]
    finally:
        await repository.close()
