"""Outcomes that come in parts, or are corrected later: learned once, and shown as they are by now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import redis_server
from tests.service.http_client import ARMS, GREEDY, Clock, Json, Service, answered, failed, opened, paths
from tests.service.redis_server import needs_redis

WEIGHED: Json = GREEDY | {
    "arms": [{"name": "small"}, {"name": "large"}],
    "objective": {"reward": 1.0, "cost": -0.5, "thumb": 0.25},
}
PROMPTWISE: Json = {"policy": {"kind": "promptwise"}, "arms": ARMS, "prompt": {"embedder": "vector", "dim": 2}}


async def put(service: Service, decision: str, body: Json, name: str = "b") -> httpx.Response:
    return await service.put(f"/v1/bandits/{name}/decisions/{decision}/outcome", body)


async def amend(service: Service, decision: str, body: Json, name: str = "b") -> httpx.Response:
    return await service.patch(f"/v1/bandits/{name}/decisions/{decision}/outcome", body)


async def shown(service: Service, decision: str, name: str = "b") -> Json:
    found = answered(await service.get(f"/v1/bandits/{name}/decisions/{decision}"))
    return {field: found[field] for field in ("state", "reward", "cost", "signals")}


async def digest(service: Service, name: str = "b") -> str:
    return str(answered(await service.get(f"/v1/bandits/{name}/digest"))["sha256"])


async def estimates(service: Service, name: str = "b") -> Json:
    """Per arm the mean of each signal."""
    body = {"id": "look", "dry_run": True}
    found = await service.decide(name, body)
    return {arm: scores["signals"] for arm, scores in found["scores"].items()}


# -- in parts ------------------------------------------------------------------------------------------------------------------


async def test_a_part_is_learned_at_once_and_the_reward_closes_the_decision(service: Service) -> None:
    await service.create(body=WEIGHED)
    for decision in ("d1", "d2"):
        await service.decide(body={"id": decision, "arms": ["small"]})
    first = answered(await put(service, "d1", {"cost": 2.0}))
    assert first == {"decision": "d1", "reward": None, "offset": 4, "duplicate": False, "next": None}
    assert await shown(service, "d1") == {"state": "partial", "reward": None, "cost": 2.0, "signals": {}}
    assert (await service.arm("small"))["pending"] == 2
    assert (await estimates(service))["small"] == {"reward": 1.0, "cost": 2.0, "thumb": 0.0}
    again = answered(await put(service, "d1", {"signals": {"cost": 2.0}}))
    assert (again["offset"], again["duplicate"]) == (4, True)
    answered(await put(service, "d1", {"cost": 2.0, "signals": {"thumb": 1.0}}))
    assert failed(await put(service, "d1", {"cost": 2.5})) == (409, "outcome_conflict")
    assert failed(await put(service, "d1", {"reward": 0.5, "signals": {"thumb": 0.0}})) == (409, "outcome_conflict")
    assert failed(await put(service, "d1", {"reward": 0.5, "arm": "large"})) == (409, "outcome_conflict")
    cancelled = await service.delete("/v1/bandits/b/decisions/d1")
    assert failed(cancelled) == (409, "outcome_conflict")
    assert "stays open" in cancelled.json()["detail"]
    answered(await put(service, "d1", {"reward": 0.5, "signals": {"thumb": 1.0}}))
    assert await shown(service, "d1") == {"state": "observed", "reward": 0.5, "cost": 2.0, "signals": {"thumb": 1.0}}
    assert (await estimates(service))["small"] == {"reward": 0.5, "cost": 2.0, "thumb": 1.0}
    assert answered(await put(service, "d1", {"cost": 2.0}))["duplicate"]
    assert failed(await put(service, "d1", {"cost": 3.0})) == (409, "outcome_conflict")
    closed = await service.offset()
    for same in (
        {"reward": 0.5, "cost": 2.0, "signals": {"thumb": 1.0}},
        {"reward": 0.5},
        {"signals": {"reward": 0.5, "cost": 2.0}},
    ):
        merged = answered(await put(service, "d1", same))
        assert (merged["offset"], merged["duplicate"], merged["reward"]) == (closed, True, 0.5)
    for other in ({"reward": 0.25, "cost": 2.0}, {"reward": 0.5, "cost": 2.5}, {"reward": 0.5, "metadata": {"team": "a"}}):
        assert failed(await put(service, "d1", other)) == (409, "outcome_conflict")
    assert await service.offset() == closed
    events = [(line["event"], line.get("cost"), line.get("signals")) for line in await service.log()]
    assert events[3:] == [("partial", 2.0, None), ("partial", None, {"thumb": 1.0}), ("observed", 2.0, {"thumb": 1.0})]
    # the same outcome in one piece gives the same sums
    await service.create("whole", WEIGHED)
    for decision in ("d1", "d2"):
        await service.decide("whole", {"id": decision, "arms": ["small"]})
    await service.observe("d1", {"reward": 0.5, "cost": 2.0, "signals": {"thumb": 1.0}}, name="whole")
    assert await digest(service) == await digest(service, "whole")


async def test_an_outcome_in_one_piece_is_repeated_by_the_same_body_alone(service: Service) -> None:
    await service.create(body=WEIGHED)
    await service.decide(body={"id": "d", "arms": ["small"]})
    for _ in range(2):
        answered(await put(service, "d", {"reward": 0.5, "cost": 2.0}))
    assert failed(await put(service, "d", {"reward": 0.5})) == (409, "outcome_conflict")


async def test_parts_of_a_batch_and_of_the_same_moment_are_all_kept(service: Service) -> None:
    await service.create(body=WEIGHED)
    for decision in ("d1", "d2"):
        await service.decide(body={"id": decision})
    bodies: list[Json] = [{"cost": 1.0}, {"signals": {"thumb": 0.5}}, {"reward": 0.25}]
    batch = {"outcomes": [{"decision": "d1", **body} for body in bodies]}
    receipts = answered(await service.post("/v1/bandits/b/outcomes/batch", batch))["outcomes"]
    assert [one["offset"] for one in receipts] == [4, 5, 6]
    assert await shown(service, "d1") == {"state": "observed", "reward": 0.25, "cost": 1.0, "signals": {"thumb": 0.5}}
    several = await asyncio.gather(*(put(service, "d2", body) for body in [*bodies[:2], {"cost": 7.0}, bodies[1]]))
    assert [one.status_code for one in several] == [200, 200, 409, 200]
    assert await shown(service, "d2") == {"state": "partial", "reward": None, "cost": 1.0, "signals": {"thumb": 0.5}}


async def test_a_part_that_outlives_its_time_keeps_its_signals(service: Service, clock: Clock) -> None:
    await service.create(body=WEIGHED | {"reward": {"timeout_s": 60.0}})
    await service.create("default", WEIGHED | {"reward": {"timeout_s": 60.0, "default": 0.125}})
    for name in ("b", "default"):
        await service.decide(name, {"id": "d", "arms": ["large"]})
        answered(await put(service, "d", {"cost": 3.0}, name))
    clock.forward(61)
    assert await shown(service, "d") == {"state": "expired", "reward": None, "cost": 3.0, "signals": {}}
    assert await shown(service, "d", "default") == {"state": "expired", "reward": 0.125, "cost": 3.0, "signals": {}}
    assert (await estimates(service))["large"] == {"reward": 1.0, "cost": 3.0, "thumb": 0.0}
    assert (await estimates(service, "default"))["large"] == {"reward": 0.125, "cost": 3.0, "thumb": 0.0}
    assert (await service.arm("large"))["pending"] == 0
    late = answered(await amend(service, "d", {"reward": 0.75, "cost": 2.0}))
    assert (late["reward"], late["cost"]) == (0.75, 2.0)
    assert (await estimates(service))["large"] == {"reward": 0.75, "cost": 2.0, "thumb": 0.0}
    assert ((await service.arm("large"))["outcomes"], (await service.arm("large"))["total_cost"]) == (1, 2.0)


async def test_what_cannot_come_in_parts_is_refused(service: Service) -> None:
    await service.create()
    await service.decide(body={"id": "d"})
    following = await put(service, "d", {"cost": 1.0, "next": True})
    assert (failed(following), paths(following)) == ((422, "invalid_request"), ["next"])
    kept = await put(service, "d", {"cost": 1.0, "metadata": {"team": "a"}})
    assert (failed(kept), paths(kept)) == ((422, "invalid_request"), ["metadata"])
    assert failed(await put(service, "d", {})) == (422, "invalid_request")
    assert failed(await put(service, "d", {"cost": 1.0, "arm": "nobody"})) == (404, "arm_not_found")
    assert await service.offset() == 2


# -- corrected -----------------------------------------------------------------------------------------------------------------


async def test_an_amendment_is_learned_once_and_shown(service: Service, clock: Clock) -> None:
    await service.create(body=WEIGHED)
    for decision, reward in (("d1", 1.0), ("d2", 0.5)):
        await service.decide(body={"id": decision, "arms": ["small"]})
        await service.observe(decision, {"reward": reward, "cost": 1.0})
    clock.forward(3600)
    body = {"signals": {"thumb": 1.0}, "reward": 0.25, "id": "a1"}
    receipt = answered(await amend(service, "d1", body))
    assert receipt == {
        "decision": "d1",
        "reward": 0.25,
        "cost": 1.0,
        "signals": {"thumb": 1.0},
        "offset": 6,
        "duplicate": False,
    }
    assert answered(await amend(service, "d1", body)) == receipt | {"duplicate": True}
    other = await amend(service, "d1", body | {"reward": 0.5})
    assert failed(other) == (409, "outcome_conflict")
    assert "'a1'" in other.json()["detail"]
    assert "choose a new `id`" in other.json()["detail"]
    assert (await estimates(service))["small"] == {"reward": 0.375, "cost": 1.0, "thumb": 1.0}
    assert (await service.arm("small"))["mean_reward"] == 0.375
    found = answered(await service.get("/v1/bandits/b/decisions/d1"))
    assert (found["state"], found["reward"], found["signals"]) == ("observed", 0.25, {"thumb": 1.0})
    assert found["amendments"] == [
        {
            "id": "a1",
            "at": "2026-01-31T13:00:00Z",
            "offset": 6,
            "before": {"thumb": None, "reward": 1.0},
            "after": {"thumb": 1.0, "reward": 0.25},
        }
    ]
    again = answered(await amend(service, "d1", {"reward": 0.25}))
    assert (again["offset"], again["duplicate"]) == (6, True)
    answered(await amend(service, "d1", {"signals": {"thumb": 0.5, "reward": 0.75}}))
    assert (await estimates(service))["small"] == {"reward": 0.625, "cost": 1.0, "thumb": 0.5}
    # once more as a history that was right from the start
    await service.create("right", WEIGHED)
    for decision, outcome in (
        ("d1", {"reward": 0.75, "cost": 1.0, "signals": {"thumb": 0.5}}),
        ("d2", {"reward": 0.5, "cost": 1.0}),
    ):
        await service.decide("right", {"id": decision, "arms": ["small"]})
        await service.observe(decision, outcome, name="right")
    assert await digest(service) == await digest(service, "right")


async def test_amendments_at_the_same_time_all_count(service: Service) -> None:
    await service.create(body=WEIGHED)
    await service.decide(body={"id": "d"})
    await service.observe("d", {"reward": 0.5})
    values = [0.125 * place for place in range(8)]
    sent = await asyncio.gather(
        *(amend(service, "d", {"signals": {"thumb": value}, "id": f"a{place}"}) for place, value in enumerate(values))
    )
    assert [one.status_code for one in sent] == [200] * 8
    log = [line for line in await service.log() if line["event"] == "amended"]
    assert [line["n"] for line in log] == list(range(1, 9))
    thumb = (await shown(service, "d"))["signals"]["thumb"]
    assert thumb == log[-1]["signals"]["thumb"]
    assert [line["before"]["thumb"] for line in log] == [None, *(line["signals"]["thumb"] for line in log[:-1])]
    arm = next(name for name, of in (await estimates(service)).items() if of["thumb"])
    assert (await estimates(service))[arm]["thumb"] == thumb


async def test_a_failed_call_may_get_its_reward_later_and_costs_once(service: Service) -> None:
    await service.create(body=WEIGHED)
    for decision, failure in (("posted", {"cost": 2.0}), ("free", {}), ("parts", {})):
        await service.decide(body={"id": decision, "arms": ["small"]})
        if decision == "parts":
            answered(await put(service, decision, {"cost": 4.0}))
        answered(await put(service, decision, {"error": "no answer", **failure}))
    assert failed(await put(service, "posted", {"reward": 1.0})) == (409, "outcome_conflict")
    arm = await service.arm("small")
    assert (arm["outcomes"], arm["mean_reward"], arm["total_cost"]) == (0, None, 6.0)
    answered(await amend(service, "posted", {"cost": 1.0}))
    answered(await amend(service, "parts", {"cost": 3.0}))
    assert (await service.arm("small"))["total_cost"] == 4.0
    for decision, reward in (("posted", 1.0), ("free", 0.5), ("parts", 0.0)):
        answered(await amend(service, decision, {"reward": reward}))
    arm = await service.arm("small")
    assert (arm["outcomes"], arm["errors"], arm["mean_reward"], arm["total_cost"]) == (3, 3, 0.5, 4.0)
    assert (await shown(service, "free"))["state"] == "observed"
    answered(await amend(service, "posted", {"reward": 0.25, "cost": 2.0}))
    answered(await amend(service, "free", {"cost": 0.5}))
    arm = await service.arm("small")
    assert (arm["mean_reward"], arm["total_cost"]) == (0.25, 5.5)
    spent = [line.get("spent") for line in await service.log() if line["event"] == "amended"]
    assert spent == [2.0, 4.0, 1.0, 0.0, 3.0, None, None]


async def test_a_first_cost_takes_the_place_of_what_was_charged_for_it(service: Service) -> None:
    await service.create(body=WEIGHED | {"arms": [{"name": "small", "price": 8.0}], "reward": {"default": 0.0, "timeout_s": 1e4}})
    outcomes: dict[str, Json] = {
        "free": {"error": "cut off", "reward": 0.5},
        "posted": {"error": "timeout", "cost": 2.0},
        "priced": {"reward": 0.5},
    }
    for decision, outcome in outcomes.items():
        await service.decide(body={"id": decision})
        answered(await put(service, decision, outcome))
    answered(await amend(service, "posted", {"reward": 0.25}))
    for decision, first, charged in (("free", 0.5, 0.0), ("posted", 3.0, 2.0), ("priced", 1.0, 8.0)):
        before = (await service.arm("small"))["total_cost"]
        answered(await amend(service, decision, {"cost": first}))
        assert (await service.arm("small"))["total_cost"] == before - charged + first, decision
        answered(await amend(service, decision, {"cost": 4.0}))
    assert (await service.arm("small"))["total_cost"] == 12.0
    assumed = [line.get("assumed") for line in await service.log() if line["event"] == "amended"]
    assert assumed == [None, 0.0, None, 2.0, None, None, None]
    buckets = answered(await service.get("/v1/bandits/b/series"))["buckets"]
    sums = [bucket["arms"]["small"]["signals"]["cost"] for bucket in buckets if "small" in bucket["arms"]]
    assert [sum(one[name] for one in sums) for name in ("sum", "square_sum", "count")] == [12.0, 48.0, 3]


async def test_an_outcome_has_no_more_signals_than_can_be_posted_at_once(service: Service) -> None:
    await service.create(body=WEIGHED)
    await service.decide(body={"id": "d"})
    await service.observe("d", {"reward": 0.5, "cost": 1.0, "signals": {f"s{place}": 0.0 for place in range(20)}})
    beyond = await amend(service, "d", {"signals": {f"s{place}": 1.0 for place in range(10, 33)}})
    assert (failed(beyond), paths(beyond)) == ((422, "invalid_request"), ["signals"])
    assert "33" in beyond.json()["detail"]
    answered(await amend(service, "d", {"signals": {f"s{place}": 1.0 for place in range(10, 32)}}))
    answered(await amend(service, "d", {"reward": 0.25, "signals": {"s0": 2.0}}))
    assert failed(await amend(service, "d", {"signals": {"more": 1.0}})) == (422, "invalid_request")
    assert len((await shown(service, "d"))["signals"]) == 32
    await service.decide(body={"id": "parts"})
    answered(await put(service, "parts", {"signals": {f"s{place}": 0.0 for place in range(32)}}))
    for more in ({"signals": {"more": 1.0}}, {"signals": {"more": 1.0}, "reward": 0.5}):
        beyond = await put(service, "parts", more)
        assert (failed(beyond), paths(beyond)) == ((422, "invalid_request"), ["signals"])
    answered(await put(service, "parts", {"reward": 0.5, "cost": 1.0}))


async def test_refusals_say_why(service: Service, clock: Clock) -> None:
    await service.create(body=GREEDY | {"amend_until_s": 100.0, "reward": {"timeout_s": 50.0}})
    await service.create("episodes", PROMPTWISE)
    for decision in ("open", "gone", "late"):
        await service.decide(body={"id": decision})
    await service.delete("/v1/bandits/b/decisions/gone")
    assert failed(await amend(service, "open", {"reward": 0.5})) == (409, "decision_open")
    answered(await put(service, "open", {"cost": 1.0}))
    assert failed(await amend(service, "open", {"cost": 0.5})) == (409, "decision_open")
    assert failed(await amend(service, "gone", {"reward": 0.5})) == (410, "decision_cancelled")
    assert failed(await amend(service, "never", {"reward": 0.5})) == (404, "decision_not_found")
    nothing: list[Json] = [{}, {"id": "a"}, {"signals": {}}]
    for body in nothing:
        assert failed(await amend(service, "open", body)) == (422, "invalid_request")
    both = await amend(service, "open", {"reward": 0.5, "signals": {"reward": 0.5}})
    assert failed(both) == (422, "invalid_request")
    clock.forward(99)
    answered(await amend(service, "late", {"reward": 0.5, "id": "in-time"}))
    clock.forward(2)
    assert answered(await amend(service, "late", {"reward": 0.5, "id": "in-time"}))["duplicate"]
    assert failed(await amend(service, "late", {"reward": 0.25})) == (410, "decision_expired")
    await service.decide("episodes", {"id": "e", "prompt": {"vector": [1.0, 0.5]}})
    await service.observe("e", {"reward": 1.0}, name="episodes")
    assert failed(await amend(service, "e", {"reward": 0.0}, "episodes")) == (409, "not_amendable")
    answered(await amend(service, "e", {"signals": {"thumb": 1.0}}, "episodes"))
    assert (await shown(service, "e", "episodes"))["signals"] == {"thumb": 1.0}
    kept = answered(await service.get("/v1/bandits/b"))["configuration"]
    assert kept["amend_until_s"] == 100.0
    assert "amend_until_s" not in answered(await service.get("/v1/bandits/episodes"))["configuration"]


def store_of(kind: str, folder: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder / 'store.db'}"
    return redis_server.shared().url


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=needs_redis)])
async def test_a_restart_and_a_replay_without_snapshots_end_at_the_same_digest(kind: str, tmp_path: Path) -> None:
    """Policies that drop outcomes and keep rows: what is corrected depends on where each outcome is by now."""
    clock, store = Clock(), store_of(kind, tmp_path)
    bodies: dict[str, Json] = {
        "exact": {"policy": {"kind": "pak-ucb", "random_features": None, "max_samples": 6}},
        "halves": {"policy": {"kind": "lin-ucb", "forget_half_life": 5}},
        "auto": {"policy": {"kind": "auto", "forget_half_life": 7}, "signals": ["thumb"]},
    }
    shared: Json = {"arms": ARMS, "prompt": {"embedder": "vector", "dim": 2}, "seed": 3}
    names = {name: f"{name}-{tmp_path.name}" for name in bodies}

    async def rounds(service: Service, first: int) -> None:
        for name, bandit in names.items():
            for t in range(first, first + 12):
                prompt = {"vector": [1.0 + t % 3, 0.5 - t % 2]}
                await service.decide(bandit, {"id": f"d{t}", "prompt": prompt})
                if name == "auto" and t % 2:
                    answered(await put(service, f"d{t}", {"cost": 0.5}, bandit))
                await service.observe(f"d{t}", {"reward": (t % 5) / 4}, name=bandit)
            for t in range(first + 11, max(first - 8, 0), -3):
                answered(await amend(service, f"d{t}", {"reward": (t % 4) / 4, "signals": {"thumb": 0.5}}, bandit))

    async with opened(store=store, clock=clock) as service:
        for name, bandit in names.items():
            await service.create(bandit, bodies[name] | shared)
        await rounds(service, 0)
        halfway = [await digest(service, bandit) for bandit in names.values()]
    async with opened(store=store, clock=clock) as service:  # from the snapshots of the end
        assert [await digest(service, bandit) for bandit in names.values()] == halfway
        await rounds(service, 12)
        transport: Any = service.client._transport
        repository = transport.app.state.services.repository
        learners = [await repository.get("", bandit) for bandit in names.values()]
        replays = [await type(one).load(one.projection.storage, one.log, use_snapshots=False, clock=clock) for one in learners]
        assert [one.digest() for one in replays] == [one.digest() for one in learners]
