"""Outcomes with `error`, and arms that are left out of decisions after several of them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.service.http_client import GREEDY, PROMPT, VECTOR, Clock, Json, Service, answered, failed, opened, paths
from tests.service.storages import STORAGES, store_of

COOLDOWN: Json = {"errors": 2, "within_s": 60.0, "for_s": 30.0}
THREE: Json = {
    "policy": {"kind": "greedy", "initial_pulls": 0},
    "arms": [{"name": "a", "price": 0.5}, {"name": "b", "price": 0.25}, {"name": "c"}],
    "cooldown": COOLDOWN,
    "seed": 7,
}


async def fail(service: Service, arm: str, **about: Any) -> Json:
    decision = await service.decide(body={"arms": [arm]})
    return await service.observe(decision["id"], {"error": "503 from upstream", **about})


async def allowed(service: Service, **asked: Any) -> list[int]:
    """Arms that the next decision may choose, by the log."""
    await service.decide(body=asked)
    found: list[int] = (await service.log())[-1]["allowed"]
    return found


async def test_an_error_is_not_quality(service: Service) -> None:
    await service.create(
        body={**THREE, "policy": {"kind": "greedy", "initial_pulls": 1}, "reward": {"default": -5.0, "timeout_s": 9.0}}
    )
    assert (await service.decide())["arm"] == "a"
    made = await service.decide(body={"id": "mine", "arms": ["a"]})
    body = {"error": "timeout", "signals": {"latency_s": 9.5}, "metadata": {"status": 504}}
    receipt = await service.observe(made["id"], body)
    assert (receipt["reward"], receipt["duplicate"]) == (None, False)
    assert (await service.observe(made["id"], body))["duplicate"]
    conflict = await service.put("/v1/bandits/b/decisions/mine/outcome", {"error": "another"})
    assert failed(conflict) == (409, "outcome_conflict")
    shown = answered(await service.get("/v1/bandits/b/decisions/mine"))
    assert (shown["state"], shown["reward"], shown["cost"], shown["error"]) == ("observed", None, 0.0, "timeout")
    assert shown["outcome_metadata"] == {"status": 504}
    arm = await service.arm("a")
    assert (arm["errors"], arm["outcomes"], arm["pending"], arm["mean_reward"]) == (1, 0, 1, None)
    logged = (await service.log())[-1]
    assert (logged["event"], logged["error"], logged["reward"], logged["cost"]) == ("observed", "timeout", None, 0.0)
    # with a reward it is an outcome like any other, and with a cost it is paid
    await service.observe((await service.decide(body={"arms": ["a"]}))["id"], {"error": "cut off", "reward": 0.25, "cost": 0.125})
    arm = await service.arm("a")
    assert (arm["errors"], arm["outcomes"], arm["mean_reward"], arm["total_cost"]) == (2, 1, 0.25, 0.125)


async def test_failed_calls_count_for_burn_in(service: Service) -> None:
    await service.create(body={**GREEDY, "policy": {"kind": "greedy", "initial_pulls": 2}})
    chosen = []
    for _ in range(6):
        decision = await service.decide()
        chosen.append(decision["arm"])
        await service.observe(decision["id"], {"error": "down"} if decision["arm"] == "small" else {"reward": -1.0})
    assert chosen[:4] == ["small", "large", "small", "large"]
    assert chosen[4:] == ["small", "small"], "its two first calls are made, and the prior mean of 0 is above -1"


async def test_failed_calls_are_attempts_of_an_episode(service: Service) -> None:
    policy = {"kind": "promptwise", "max_attempts": 2, "forced_pulls": 0, "cost_weight": 0.001}
    await service.create(body={**VECTOR, "policy": policy})
    first = await service.decide(body=PROMPT)
    second = (await service.observe(first["id"], {"error": "down", "next": True}))["next"]
    assert (second["attempt"], second["stop"]) == (2, False)
    third = (await service.observe(second["id"], {"error": "down", "next": True}))["next"]
    assert third["stop"], "two attempts are all"


@pytest.mark.parametrize(("kind", "posted"), [("fd-ucb", {"output": {"vector": [0.5, 0.25]}}), ("auto", {"reference": "a"})])
async def test_an_output_is_neither_needed_nor_learned(service: Service, kind: str, posted: Json) -> None:
    output = {"output": {"embedder": "vector", "dim": 2}} if kind == "fd-ucb" else {}
    await service.create(body={"policy": {"kind": kind}, "arms": [{"name": "a"}], **output})
    if kind == "fd-ucb":
        await service.post("/v1/bandits/b/references", {"outputs": [{"vector": [0.0, 1.0]}, {"vector": [1.0, 0.5]}]})
    decision = await service.decide()
    refused = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"error": "down", **posted})
    assert (failed(refused)[0], paths(refused)) == (422, list(posted))
    digest = answered(await service.get("/v1/bandits/b/digest"))["sha256"]
    await service.observe(decision["id"], {"error": "down"})
    assert answered(await service.get("/v1/bandits/b/digest"))["sha256"] == digest
    for error in ("", "  ", "x" * 1_001, 7):
        refused = await service.put("/v1/bandits/b/decisions/other/outcome", {"error": error})
        assert (failed(refused)[0], paths(refused)) == (422, ["error"])


async def test_a_price_is_not_the_cost_of_a_failed_call(service: Service) -> None:
    body = {**THREE, "policy": {"kind": "auto"}, "prices_per": "outcome", "budget": {"signal": "cost", "per_decision": 0.25}}
    await service.create(body=body)
    await fail(service, "a")
    assert (await service.bandit())["budget"]["running"] == 0.0
    await service.observe((await service.decide(body={"arms": ["a"]}))["id"], {"error": "cut", "reward": 0.5})
    checks = {one["name"]: one for one in answered(await service.get("/v1/bandits/b/health"))["checks"]}
    assert checks["cost_ratio"]["value"]["a"]["ratio"] is None, "no cost was learned"
    await fail(service, "a", cost=0.75)
    assert (await service.bandit())["budget"]["running"] == 0.25


async def test_an_arm_cools_down_by_the_times_of_the_log(service: Service, clock: Clock) -> None:
    await service.create(body=THREE)
    await fail(service, "a")
    clock.forward(61)
    await fail(service, "a")
    assert await allowed(service) == [0, 1, 2], "the first was too long ago"
    await service.observe((await service.decide(body={"arms": ["a"]}))["id"], {"reward": 0.5})
    await fail(service, "a")
    assert await allowed(service) == [0, 1, 2], "a success has ended the count"
    clock.forward(60)
    await fail(service, "a")
    assert await allowed(service) == [1, 2]
    assert (await service.arm("a"))["cooling_until"] == "2026-01-31T12:02:31Z"
    assert (await service.arm("b"))["cooling_until"] is None
    batch = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [{}, {"arms": ["a"]}]}))["decisions"]
    assert batch[0]["arm"] != "a"
    assert "cooldown_ignored" not in batch[0]
    assert (batch[1]["arm"], batch[1]["cooldown_ignored"]) == ("a", True)
    dry = await service.decide(body={"dry_run": True})
    assert set(dry["scores"]) == {"b", "c"}
    assert answered(await service.get(f"/v1/bandits/b/decisions/{batch[1]['id']}"))["cooldown_ignored"]
    text = (await service.get("/metrics")).text
    assert 'nextarm_errors_total{arm="a",bandit="b"} 4.0' in text
    assert 'nextarm_cooling{arm="a",bandit="b"} 1.0' in text
    (notice,) = [one for one in (await service.bandit())["notices"] if "after errors" in one]
    assert "'a'" in notice
    clock.forward(29)
    assert await allowed(service) == [1, 2]
    clock.forward(1)
    assert await allowed(service) == [0, 1, 2]
    assert (await service.arm("a"))["cooling_until"] is None
    await fail(service, "a")
    assert await allowed(service) == [1, 2], "it fails again, and goes at once: there was no success"


@pytest.mark.parametrize("storage", STORAGES)
async def test_the_same_arms_cool_down_after_a_restart_and_on_every_replica(storage: str, tmp_path: Path) -> None:
    settings = store_of(storage, tmp_path)
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(opened(**settings)) for _ in range(2 if storage == "redis" else 1)]
        await services[0].create(body={**THREE, "cooldown": {"errors": 2, "within_s": 1e6, "for_s": 1e6}})
        await fail(services[0], "a")
        await fail(services[-1], "a")
        assert await allowed(services[-1]) == [1, 2]
        kept = (await services[-1].arm("a"))["cooling_until"]
        assert kept is not None
        assert await services[-1].ledger() == await services[-1].replayed()
    if storage == "memory":
        return
    async with AsyncExitStack() as stack:
        for _ in range(2 if storage == "redis" else 1):
            again = await stack.enter_async_context(opened(**settings))
            arm = await again.arm("a")
            assert (arm["cooling_until"], arm["errors"]) == (kept, 2)
            assert await allowed(again) == [1, 2]


async def test_where_all_cool_down_that_is_ignored_and_is_an_alarm(service: Service, clock: Clock) -> None:
    await service.create(body={**THREE, "cooldown": {**COOLDOWN, "errors": 1}})
    for arm in ("a", "b", "c"):
        await fail(service, arm)
    assert await allowed(service) == [0, 1, 2]
    assert (await service.decide())["cooldown_ignored"]
    narrowed = await service.decide(body={"exclude": ["c"]})
    assert (set(narrowed["scores"]), narrowed["cooldown_ignored"]) == ({"a", "b"}, True)
    checks = {one["name"]: one for one in answered(await service.get("/v1/bandits/b/health"))["checks"]}
    assert (checks["errors"]["status"], checks["errors"]["value"]) == ("alarm", {"a": 1.0, "b": 1.0, "c": 1.0})
    clock.forward(30)
    assert "cooldown_ignored" not in await service.decide()


async def test_the_cooldown_is_live(service: Service) -> None:
    await service.create(body={**THREE, "cooldown": {**COOLDOWN, "errors": 1}})
    await fail(service, "a")
    assert await allowed(service) == [1, 2]
    changed = answered(await service.patch("/v1/bandits/b", {"cooldown": None}))
    assert changed["cooldown"] is None
    assert "cooldown" not in changed["configuration"]
    assert await allowed(service) == [0, 1, 2]
    await fail(service, "a")
    changed = answered(await service.patch("/v1/bandits/b", {"cooldown": COOLDOWN}))
    assert changed["cooldown"] == changed["configuration"]["cooldown"] == COOLDOWN
    assert (await service.put("/v1/bandits/b", changed["configuration"])).status_code == 200
    offset = await service.offset()
    assert answered(await service.patch("/v1/bandits/b", {"cooldown": COOLDOWN}))["offset"] == offset, "nothing changes"
    await fail(service, "a")
    assert await allowed(service) == [0, 1, 2], "errors from before it count for nothing"
    await fail(service, "a")
    assert await allowed(service) == [1, 2]
    for wrong, path in (
        ({"errors": 0, "within_s": 1.0, "for_s": 1.0}, "cooldown.errors"),
        ({"errors": 1, "within_s": 0.0, "for_s": 1.0}, "cooldown.within_s"),
        ({"errors": 1, "within_s": 1.0}, "cooldown.for_s"),
        ({"errors": 1, "within_s": 1.0, "for_s": 1e9}, "cooldown.for_s"),
    ):
        for refused in (
            await service.patch("/v1/bandits/b", {"cooldown": wrong}),
            await service.put("/v1/bandits/other", {**THREE, "cooldown": wrong}),
        ):
            assert (failed(refused)[0], paths(refused)) == (422, [path])


async def test_a_clone_learns_nothing_of_failed_calls(service: Service) -> None:
    await service.create(body={**THREE, "cooldown": None})
    await fail(service, "a")
    await service.observe((await service.decide(body={"arms": ["b"]}))["id"], {"reward": 0.5})
    made = await service.post("/v1/bandits/b/clone", {"name": "other", "policy": {"kind": "auto"}})
    assert made.status_code == 202, made.text
    await service.settle("other")

    async def is_ready() -> bool:
        return (await service.bandit("other"))["cloning"] is None

    for _ in range(200):
        if await is_ready():
            break
    assert [(arm["outcomes"], arm["errors"]) for arm in (await service.bandit("other"))["arms"]] == [(0, 0), (1, 0), (0, 0)]
