"""How long what others write gathers before it is folded."""

from __future__ import annotations

import asyncio

import pytest

from service.engine import demand
from service.engine.demand import Demand


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "IDLE_GATHER_S", 3600.0)


async def test_a_bandit_that_is_not_asked_for_gathers_until_it_is_asked_for() -> None:
    one = Demand()
    waiting = asyncio.create_task(one.gather())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    one.note()
    await waiting


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
    waiting = asyncio.create_task(one.gather())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    one.note()
    await waiting
