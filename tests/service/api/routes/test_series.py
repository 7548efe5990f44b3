"""A bandit over time, counted once more from its decisions; the same over every store, in replicas, after a restart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.engine import series
from tests.service.http_client import Clock, Json, Service, answered, failed, opened, paths
from tests.service.storages import STORAGES, store_of

URL = "/v1/bandits/b/series"
DECISIONS = "/v1/bandits/b/decisions"
SINGLE = ("small", "large", "third")
BODY: Json = {
    "policy": {"kind": "auto"},
    "arms": [{"name": name, "price": 0.25 * (1 + k)} for k, name in enumerate(SINGLE)],
    "signals": ["reward", "cost", "latency_s"],
    "session_ttl_s": 1e6,
    "reward": {"timeout_s": 500.0},
    "seed": 3,
}
PARTS = ("decisions", "outcomes", "expired", "errors")


async def play(service: Service, clock: Clock, rounds: int) -> None:  # noqa: C901 - a case per way to end
    """Every way in which a decision can end, at times from seconds to days apart."""
    for t in range(rounds):
        clock.forward((1.5, 3.25, 11.0, 0.0, 40.0, 333.0, 4000.0, 1.0)[t % 8] + (90_000.0 if t == rounds // 2 else 0.0))
        session = {"session": f"s{t % 3}"} if t % 6 == 5 else {}
        decision = (await service.decide("b", {"id": f"d{t}", **session}))["id"]
        clock.forward(t % 5)
        reward = ((7 * t) % 11) / 8
        match t % 12:
            case 0 | 5:
                await service.observe(decision, {"reward": reward, "cost": 0.5, "signals": {"latency_s": t / 4, "other": 9.0}})
            case 1 | 6 | 9:
                await service.observe(decision, {"reward": reward})
            case 2:
                await service.observe(decision, {"cost": 0.75, "signals": {"latency_s": 2.0}})
                clock.forward(30)
                await service.observe(decision, {"reward": reward})
            case 3:
                await service.observe(decision, {"cost": 1.25})  # the rest never comes
            case 4:
                await service.observe(decision, {"reward": reward, "arm": SINGLE[t % 3]})
            case 7:
                await service.observe(decision, {"error": "timeout", "cost": 0.125})
            case 8:
                await service.observe(decision, {"error": "refused", "reward": 0.0, "cost": 0.0625})
            case 10:
                await service.delete(f"{DECISIONS}/{decision}")
            case 11 if t % 24 == 23:
                await service.observe(decision, {"signals": {"latency_s": 3.0}})
                await service.observe(decision, {"error": "cut off"})
    clock.forward(501)
    for t in range(rounds):
        await service.get(f"{DECISIONS}/d{t}")  # expires those whose time is over
    for t in range(0, rounds, 3):
        amended: Json = {"reward": -t / 16, "cost": 2.5} if t % 2 else {"signals": {"latency_s": 1.5}}
        await service.patch(f"{DECISIONS}/d{t}/outcome", {**amended, "id": "a"})
    late = await service.patch(f"{DECISIONS}/d7/outcome", {"reward": 3.0, "cost": 0.5, "id": "of-a-failure"})
    imported = await service.post("/v1/bandits/b/import", {"id": "i", "rows": [{"arm": "small", "reward": 99.0}]})
    assert (late.status_code, imported.status_code) == (200, 200)


async def expected(service: Service) -> dict[str, list[tuple[float, str, str, float | None]]]:
    """(time, arm, what, value) of everything that the series count, by the decisions as they are by now; no fold is used."""
    log = {event.get("id", ""): event for event in await service.log() if event["event"] in ("observed", "partial")}
    names = SINGLE
    found: dict[str, list[tuple[float, str, str, float | None]]] = {"": []}
    before: Any = ""
    while before is not None:
        page = answered(await service.get(f"{DECISIONS}?limit=200{before and f'&before={before}'}"))
        before = page["next_before"]
        for item in page["decisions"]:
            rows = found[""]
            rows.append((_seconds(item["decided_at"]), item["arm"], "decisions", None))
            if item["state"] not in ("observed", "expired"):
                continue
            at = _seconds(item["closed_at"])
            played = names[log[item["id"]]["arm"]] if item["id"] in log else item["arm"]
            rows.append((at, played, {"observed": "outcomes", "expired": "expired"}[item["state"]], None))
            if "error" in item:
                rows.append((at, played, "errors", None))
            values = {"reward": item["reward"], "cost": item["cost"], "latency_s": item["signals"].get("latency_s")}
            rows += [(at, played, name, value) for name, value in values.items() if value is not None]
    return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def counted(rows: list[tuple[float, str, str, float | None]], width: int) -> dict[tuple[int, str], Json]:
    """By bucket and arm."""
    found: dict[tuple[int, str], Json] = defaultdict(lambda: {**dict.fromkeys(PARTS, 0), "signals": {}})
    for at, arm, what, value in rows:
        counts = found[int(at // width) * width, arm]
        if value is None:
            counts[what] += 1
        else:
            sums = counts["signals"].setdefault(what, {"sum": 0.0, "square_sum": 0.0, "count": 0})
            sums["sum"] += value
            sums["square_sum"] += value * value
            sums["count"] += 1
    return dict(found)


def shown(answer: Json) -> dict[tuple[int, str], Json]:
    """The same of an answer, as far as something happened."""
    found = {}
    for bucket in answer["buckets"]:
        assert bucket["other"] is None
        for arm, counts in bucket["arms"].items():
            assert set(counts) == {*PARTS, "signals", "weight", "scores"}
            if any(counts[part] for part in PARTS):
                kept = {part: counts[part] for part in PARTS}
                found[int(_seconds(bucket["at"])), arm] = {**kept, "signals": counts["signals"]}
    return found


def same(one: dict[tuple[int, str], Json], other: dict[tuple[int, str], Json]) -> bool:
    def flat(found: dict[tuple[int, str], Json]) -> Iterator[tuple[Any, float]]:
        for key, counts in sorted(found.items()):
            yield from (((key, part), counts[part]) for part in PARTS)
            for name, sums in sorted(counts["signals"].items()):
                yield from (((key, name, part), sums[part]) for part in ("sum", "square_sum", "count"))

    return dict(flat(one)) == pytest.approx(dict(flat(other)), abs=1e-9)


@pytest.mark.parametrize("store", STORAGES)
async def test_the_series_are_what_the_decisions_say(store: str, tmp_path: Path, clock: Clock) -> None:
    settings: Json = {**store_of(store, tmp_path), "snapshot_every": 9}
    async with opened(clock=clock, **settings) as service:
        await service.create("b", BODY)
        await play(service, clock, 72)
        rows = (await expected(service))[""]
        assert {what for *_, what, _ in rows} == {*PARTS, "reward", "cost", "latency_s"}
        end = max(at for at, *_ in rows) + 0.5
        until = f"until={_text(end)}"
        for hours, width in ((1, 10), (1, 30), (25, 300), (25, 1800), (2000, 21_600)):
            most = -(-3600 * hours // width) + 1
            answer = answered(await service.get(f"{URL}?since={_text(end - 3600 * hours)}&{until}&buckets={min(most, 1000)}"))
            assert answer["width_s"] == width, (hours, width)
            begin = _seconds(answer["since"])
            whole = counted([row for row in rows if row[0] >= begin], width)
            assert same(shown(answer), whole), (hours, width)
            times = [_seconds(bucket["at"]) for bucket in answer["buckets"]]
            assert times == [begin + k * width for k in range(len(times))]
            assert _seconds(answer["until"]) == times[-1] + width > end - 0.5
            assert len(times) <= most
        assert answer["arms"] == list(SINGLE)
        assert sum(item["decisions"] for item in counted(rows, 10**12).values()) == 72
        live = answered(await service.get(f"{URL}?{until}")), await service.ledger()
        assert live[1] == await service.replayed()
        if store == "redis":
            async with opened(clock=clock, **settings) as replica:
                assert (answered(await replica.get(f"{URL}?{until}")), await replica.ledger()) == live
    if store != "memory":
        async with opened(clock=clock, **settings) as again:
            assert (answered(await again.get(f"{URL}?{until}")), await again.ledger()) == live


async def test_the_last_decision_of_a_bucket_shows_weights_and_scores(service: Service, clock: Clock) -> None:
    body = {**BODY, "policy": {"kind": "fd-ucb", "initial_pulls": 1}, "output": {"dim": 2}}
    for name in ("signals", "session_ttl_s"):
        del body[name]
    await service.create("b", body)
    await service.post("/v1/bandits/b/references", {"outputs": [{"vector": [k / 4, 1.0 - k / 8]} for k in range(6)]})
    last = {}
    for t in range(12):
        decided = await service.decide()
        last[int(clock().timestamp()) // 10] = decided
        await service.observe(decided["id"], {"output": {"vector": [t / 8, 0.5]}})
        clock.forward(4)
    answer = answered(await service.get(URL))
    assert answer["width_s"] == 10
    for bucket in answer["buckets"][:-1]:
        decided = last[int(_seconds(bucket["at"])) // 10]
        scores = {arm: counts["scores"] for arm, counts in bucket["arms"].items()}
        assert scores == {arm: decided["scores"][arm] for arm in scores}
        for arm in set(SINGLE) - set(scores):  # nothing is to be said of it
            assert not any(decided["scores"][arm].values())
        weights = {arm: counts["weight"] for arm, counts in bucket["arms"].items()}
        assert weights == {arm: decided["weights"][arm] for arm in weights}
        assert sum(weights.values()) == 1.0
    assert {"estimate", "bonus"} <= answer["buckets"][-2]["arms"]["small"]["scores"].keys()


async def test_what_is_asked_for_is_checked(service: Service, clock: Clock) -> None:
    await service.create("b", BODY)
    for wrong in ("buckets=0", "buckets=1001", "since=5", "since=2026-01-31T12:00:00", "until=soon", "widths=10"):
        response = await service.get(f"{URL}?{wrong}")
        assert failed(response) == (422, "invalid_request"), wrong
        assert paths(response) == [wrong.partition("=")[0]]
    both = await service.get(f"{URL}?since=2026-01-31T12:00:00Z&until=2026-01-31T12:00:00Z")
    assert (failed(both), paths(both)) == ((422, "invalid_request"), ["until"])
    for nothing in ("", "?until=0001-01-01T00:00:00%2B14:00", "?since=9999-12-31T23:59:59-14:00"):
        answer = answered(await service.get(f"{URL}{nothing}"))
        assert (answer["arms"], shown(answer)) == ([], {})
    assert failed(await service.get("/v1/bandits/nobody/series")) == (404, "bandit_not_found")


async def test_of_many_arms_some_are_apart(service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "APART", 3)
    arms = [f"arm {k}" for k in range(6)]
    await service.create("b", {"policy": {"kind": "random"}, "arms": [{"name": name} for name in arms], "seed": 1})
    for t in range(24):
        await service.observe((await service.decide("b", {"arms": [arms[(5 * t) % 6 if t % 4 else 0]]}))["id"], {"reward": t / 8})
    (bucket,) = answered(await service.get(f"{URL}?buckets=1"))["buckets"]
    assert len(bucket["arms"]) == 3
    together = [*bucket["arms"].values(), bucket["other"]]
    assert sum(counts["decisions"] for counts in together) == 24
    assert sum(counts["signals"]["reward"]["sum"] for counts in together) == sum(t / 8 for t in range(24))
    assert {"arm 0"} <= set(bucket["arms"])
    assert await service.ledger() == await service.replayed()
