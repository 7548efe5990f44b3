"""The list of decisions: the newest first, filtered, page by page, the same over every store, and like the decision alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.engine import listing
from tests.service import redis_server
from tests.service.http_client import GREEDY, Clock, Json, Service, answered, failed, opened, paths
from tests.service.storages import STORAGES, store_of

URL = "/v1/bandits/b/decisions"
BODY: Json = {
    "policy": {"kind": "auto"},
    "arms": [{"name": "small", "price": 0.25}, {"name": "openai/large", "price": 4.0}],
    "prompt": {"embedder": "vector", "dim": 3},
    "signals": ["reward", "cost"],
    "session_ttl_s": 1e6,
    "reward": {"timeout_s": 1000.0},
    "seed": 3,
}
STATES = ("observed", "cancelled", "partial", "open", "expired", "observed")


async def fill(service: Service, clock: Clock, rounds: int = 24) -> list[str]:
    """Decisions in every state, some of sessions, one with an amendment; returns their ids, the oldest first."""
    await service.create("b", BODY)
    made = []
    for number in range(rounds):
        session = {"session": f"s{number % 5}"} if number % 2 else {}
        prompt = {"prompt": {"vector": [0.5, number / 7, -1.0]}, "id": f"d{number}", **session}
        made.append((await service.decide("b", prompt))["id"])
    for number, decision in enumerate(made):
        if STATES[number % 6] == "expired":
            continue
        if STATES[number % 6] == "observed":
            await service.observe(decision, {"reward": number / 8, "cost": 0.5})
        elif STATES[number % 6] == "cancelled":
            await service.delete(f"{URL}/{decision}")
    await service.patch(f"{URL}/d0/outcome", {"reward": 9.0, "id": "corrected"})
    clock.forward(1001)
    await service.get(f"{URL}/d4")  # its time is over
    for number in range(rounds, rounds + 6):  # these stay as they are
        await service.decide("b", {"prompt": {"vector": [0.0, 1.0, 2.0]}, "id": f"d{number}"})
        made.append(f"d{number}")
        if number % 2:
            await service.observe(f"d{number}", {"cost": 0.125})
    return made


@pytest.fixture(params=STORAGES)
async def filled(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[tuple[Service, list[str]]]:
    async with opened(clock=clock, **store_of(request.param, tmp_path)) as service:
        yield service, await fill(service, clock)


async def pages(service: Service, query: str = "", limit: int = 7) -> list[Json]:
    """All decisions of a list, page by page."""
    found: list[Json] = []
    before: Any = ""
    while before is not None:
        page = answered(await service.get(f"{URL}?limit={limit}{query}{before and f'&before={before}'}"))
        assert set(page) == {"decisions", "next_before", "trimmed_before"}
        assert len(page["decisions"]) <= limit
        found += page["decisions"]
        before = page["next_before"]
    return found


async def test_a_list_has_what_each_decision_alone_has(
    filled: tuple[Service, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, made = filled
    monkeypatch.setattr(listing, "READ", 8)
    alone = [answered(await service.get(f"{URL}/{decision}")) for decision in reversed(made)]
    assert {item["state"] for item in alone} == {*STATES}
    assert await pages(service) == alone
    assert answered(await service.get(URL))["decisions"] == alone
    for state in (*STATES, "nothing"):
        expected = [item for item in alone if item["state"] == state]
        if state == "nothing":
            assert failed(await service.get(f"{URL}?state={state}")) == (422, "invalid_request")
        else:
            assert await pages(service, f"&state={state}", limit=2) == expected, state
    assert await pages(service, "&arm=openai/large") == [item for item in alone if item["arm"] == "openai/large"]
    assert await pages(service, "&session=s3") == [item for item in alone if item.get("session") == "s3"]
    both = [item for item in alone if item["arm"] == "small" and item["state"] == "observed"]
    assert await pages(service, "&arm=small&state=observed", limit=1) == both
    middle = alone[10]["offset"]
    page = answered(await service.get(f"{URL}?before={middle}&limit=3"))
    assert page["decisions"] == alone[11:14]
    assert page["next_before"] == alone[13]["offset"]
    assert answered(await service.get(f"{URL}?before=2"))["decisions"] == []
    for wrong in ("limit=0", "limit=201", "before=0", "before=x", "arms=small"):
        response = await service.get(f"{URL}?{wrong}")
        assert failed(response) == (422, "invalid_request"), wrong
        assert paths(response) == [wrong.partition("=")[0]]
    assert failed(await service.get(f"{URL}?arm=nobody")) == (404, "arm_not_found")
    assert failed(await service.get("/v1/bandits/nobody/decisions")) == (404, "bandit_not_found")


async def test_a_page_looks_at_a_bounded_part_of_the_log(service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await fill(service, clock)
    monkeypatch.setattr(listing, "READ", 5)
    monkeypatch.setattr(listing, "SCANNED", 12)
    end = await service.offset()
    page = answered(await service.get(f"{URL}?state=cancelled"))
    assert page == {"decisions": [], "next_before": end + 1 - 12, "trimmed_before": None}
    found = [item["id"] for item in await pages(service, "&state=cancelled")]
    assert found == [one for number, one in reversed([*enumerate(made)]) if number < 24 and number % 6 == 1]
    monkeypatch.setattr(listing, "SCANNED", 10_000)
    monkeypatch.setattr(listing, "LOOKED_UP", 3)
    first = int(next(event["offset"] for event in await service.log() if event.get("id") == "d20"))
    page = answered(await service.get(f"{URL}?state=expired&before={first}"))
    assert page["next_before"] == first - 5, "what closed five decisions was looked up"


async def test_overdue_decisions_are_expired_by_the_list(service: Service, clock: Clock) -> None:
    await service.create("b", BODY)
    await service.decide("b", {"prompt": {"vector": [0.0, 1.0, 2.0]}, "id": "late"})
    assert [item["state"] for item in await pages(service)] == ["open"]
    clock.forward(1001)
    assert [item["id"] for item in await pages(service, "&state=open")] == []
    assert [item["state"] for item in await pages(service)] == ["expired"]


async def test_stops_are_listed_as_observed(service: Service) -> None:
    body = {"policy": {"kind": "promptwise"}, "arms": [{"name": "dear", "price": 1e9}], "prompt": BODY["prompt"]}
    await service.create("b", body)
    await service.decide("b", {"prompt": {"vector": [0.0, 1.0, 2.0]}, "id": "first"})
    await service.observe("first", {"reward": 0.0})
    decided = [await service.decide("b", {"prompt": {"vector": [0.0, 1.0, 2.0]}}) for _ in range(3)]
    stops = [item["id"] for item in decided if item["stop"]]
    assert stops
    listed = await pages(service, "&state=observed", limit=2)
    assert [item["id"] for item in listed if item["stop"]] == stops[::-1]
    assert listed[-1]["id"] == "first"


@redis_server.needs_redis
async def test_a_list_of_a_trimmed_log_says_where_it_ends(tmp_path: Path) -> None:
    async with opened(**store_of("redis", tmp_path), redis_keep_events=1, snapshot_every=4) as service:
        await service.create("b", GREEDY | {"amend_until_s": 0})
        deadline = time.monotonic() + 60.0
        while (await service.get("/v1/bandits/b/log?after=1&limit=1")).status_code != 410:
            assert time.monotonic() < deadline
            await service.observe((await service.decide())["id"])
        await service.settle()
        page = answered(await service.get(f"{URL}?limit=200"))
        first = page["trimmed_before"]
        kept = [event["offset"] for event in await service.log(query=f"?after={first - 1}") if event["event"] == "decided"]
        assert [item["offset"] for item in page["decisions"]] == kept[::-1]
        assert page["next_before"] is None
        page = answered(await service.get(f"{URL}?before={first}"))
        assert page == {"decisions": [], "next_before": None, "trimmed_before": first}
        page = answered(await service.get(f"{URL}?limit=1"))
        assert page["trimmed_before"] is None
