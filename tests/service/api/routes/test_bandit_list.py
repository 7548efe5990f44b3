"""The list of bandits in short, counted once more from what was sent; the same over every store, in replicas, after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.storage.base import StorageDamagedError
from tests.service.http_client import GREEDY, Clock, Json, Service, answered, opened
from tests.service.storages import STORAGES, store_of

DAY = 86_400.0
TIMES = ("last_decision_at", "traffic")
BODY: Json = {**GREEDY, "reward": {"timeout_s": 900.0}}


async def listed(service: Service, query: str = "") -> dict[str, Json]:
    page = answered(await service.get(f"/v1/bandits{query}"))
    return {item["name"]: item for item in page["bandits"]}


@pytest.mark.parametrize("store", STORAGES)
async def test_an_item_is_what_happened_to_the_bandit(store: str, tmp_path: Path, clock: Clock) -> None:
    settings: Json = {**store_of(store, tmp_path), "snapshot_every": 9}
    async with opened(clock=clock, **settings) as service:
        await service.create("b", BODY)
        await service.create("quiet", {"arms": GREEDY["arms"][:1]})
        rewards, costs = [], []
        for t in range(20):
            decision = await service.decide("b")
            outcome = {"reward": t / 16, "cost": t / 8} if t % 3 else {"reward": t / 16}
            await service.observe(decision["id"], outcome, name="b")
            rewards.append(t / 16)
            costs.append(outcome.get("cost", 0.25 if decision["arm"] == "small" else 4.0))
        amended = (await service.decide("b"))["id"]
        await service.observe(amended, {"reward": 50.0, "cost": 7.0}, name="b")
        await service.patch(f"/v1/bandits/b/decisions/{amended}/outcome", {"reward": -1.0, "cost": 1.0})
        await service.decide("b")
        clock.forward(901)
        await service.decide("b")
        await service.get("/v1/bandits/b/decisions?state=open")  # expires the one before
        soon = (await service.decide("b"))["id"]
        await service.observe(soon, {"reward": 2.0, "cost": 0.0}, name="b")
        await service.settle("b")
        items = await listed(service)
        assert list(items) == ["b", "quiet"]
        item, log = items["b"], await service.log("b")
        assert item["reward"] == pytest.approx(sum([*rewards, -1.0, 2.0]) / 22, abs=1e-12)
        assert item["cost_per_decision"] == pytest.approx(sum([*costs, 1.0]) / 22, abs=1e-12)
        assert (item["arms"], item["decisions"], item["open"], item["fault"]) == (2, 24, 1, None)
        assert item["missing"] == pytest.approx(1 / 23, abs=1e-12)
        assert item["reward_week_ago"] is None
        assert item["as_of"] == log[-1]["offset"]
        shown = await service.bandit("b")
        assert item["policy"] == shown["policy"]
        assert item["notices"] == shown["notices"]
        health = answered(await service.get("/v1/bandits/b/health"))
        assert item["status"] == health["status"]
        assert item["failing"] == [check["name"] for check in health["checks"] if check["status"] != "ok"]
        assert item["last_decision_at"] == next(event["at"] for event in log if event.get("id") == soon)
        assert (items["quiet"]["status"], items["quiet"]["failing"]) == ("warn", ["arms"])
        nothing = ("reward", "reward_week_ago", "cost_per_decision", "missing", "last_decision_at")
        assert [items["quiet"][field] for field in nothing] == [None] * 5
        if store == "redis":
            async with opened(clock=clock, **settings) as replica:
                assert without_times(await listed(replica)) == without_times(items)
    if store != "memory":
        async with opened(clock=clock, **settings) as again:
            assert without_times(await listed(again)) == without_times(items)


def without_times(items: dict[str, Json]) -> dict[str, Json]:
    """Replicas count the time of their store, which goes on."""
    return {name: {key: value for key, value in item.items() if key != "traffic"} for name, item in items.items()}


async def test_a_reward_is_compared_with_that_of_the_day_a_week_ago(service: Service, clock: Clock) -> None:
    await service.create("b", {**BODY, "reward": {"timeout_s": 1e7}})
    per_day = [8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0]
    for reward in per_day:  # at noon
        await service.observe((await service.decide("b"))["id"], {"reward": reward}, name="b")
        clock.forward(DAY)
    clock.forward(-0.25 * DAY)  # 6 o'clock: from there the day that ended a week ago has one noon
    assert (await listed(service))["b"]["reward_week_ago"] == per_day[1]
    clock.forward(DAY)
    assert (await listed(service))["b"]["reward_week_ago"] == per_day[2]
    clock.forward(30 * DAY)
    assert (await listed(service))["b"]["reward_week_ago"] is None


async def test_the_traffic_is_that_of_the_last_two_hours(service: Service, clock: Clock) -> None:
    names = [f"arm {k}" for k in range(7)]
    await service.create("b", {"policy": {"kind": "random"}, "arms": [{"name": name} for name in names], "seed": 1})
    made: list[str] = []
    for place in range(30):
        if place == 6:
            made.clear()  # what is older is not shown
        wanted = [names[place % 7]] if place % 2 else ["arm 6", "arm 6", "arm 1"]
        made += [(await service.decide("b", {"arms": [arm]}))["arm"] for arm in wanted]
        clock.forward(300)
    clock.forward(-300)
    traffic = (await listed(service))["b"]["traffic"]
    assert traffic["width_s"] == 300
    assert traffic["at"] == "2026-01-31T12:30:00Z"
    assert list(traffic["arms"]) == ["arm 0", "arm 1", "arm 2", "arm 4", "arm 6"]
    assert {len(counts) for counts in (*traffic["arms"].values(), traffic["other"])} == {24}
    for arm, counts in traffic["arms"].items():
        assert sum(counts) == made.count(arm), arm
    assert traffic["arms"]["arm 6"][:4] == [2, 0, 2, 0]
    assert sum(traffic["other"]) == made.count("arm 3") + made.count("arm 5") == 2


async def test_a_bandit_that_cannot_be_served_says_why_and_spoils_no_other(service: Service) -> None:
    for name in ("a", "b", "c"):
        await service.create(name)
    learner = await service._learner("b")
    learner.versions.stop(StorageDamagedError("log b", "broken"))
    items = await listed(service)
    assert [item["fault"] is None for item in items.values()] == [True, False, True]
    assert "damaged" in items["b"]["fault"]
    assert {value for key, value in items["b"].items() if key not in ("name", "fault")} == {None}
    assert items["b"].keys() == items["a"].keys()


async def test_a_long_list_lets_others_in_between(service: Service) -> None:
    for k in range(30):
        await service.create(f"b{k}")
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    assert len(await listed(service)) == 30
    assert turns >= 30
    other.cancel()
