"""Cloning a bandit over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec
from numpy.random import default_rng

from service.engine.events import CloneOf
from tests.service.http_client import ARMS, GREEDY, PROMPT, VECTOR, Json, Service, answered, failed, opened, paths

CLONE = "/v1/bandits/b/clone"
LIN: Json = {"name": "copy", "policy": {"kind": "lin-ucb"}}


async def play(service: Service, rounds: int = 6, *, prompts: bool = True) -> None:
    g = default_rng(2)
    for t in range(rounds):
        prompt = {"prompt": {"vector": [float(x) for x in g.standard_normal(3).round(3)]}} if prompts else {}
        await service.decide(body={"id": f"d{t}", **prompt})
        await service.observe(f"d{t}", {"reward": round(float(g.random()), 3)})


def repository(service: Service) -> Any:
    transport: Any = service.client._transport
    return transport.app.state.services.repository


async def digest(service: Service, name: str) -> Any:
    return answered(await service.get(f"/v1/bandits/{name}/digest"))["sha256"]


async def test_a_clone_learns_in_the_background_and_then_decides(service: Service) -> None:
    await service.create(body=VECTOR)
    await play(service)
    await service.put("/v1/bandits/b/arms/new", {"price": 0.5})
    await service.decide(body={"id": "open", **PROMPT})
    await service.delete("/v1/bandits/b/arms/large")
    response = await service.post(CLONE, LIN)
    assert response.status_code == 202
    made = answered(response)
    assert (made["name"], made["policy"]["kind"], made["decisions"]) == ("copy", "lin-ucb", 0)
    await service.settle("copy")
    clone, source = await service.bandit("copy"), await service.bandit()
    assert clone["cloning"] is None
    assert [(arm["name"], arm["active"], arm["outcomes"], arm["imported"], arm["pulls"]) for arm in clone["arms"]] == [
        (arm["name"], arm["active"], arm["outcomes"], arm["outcomes"], 0) for arm in source["arms"]
    ]
    assert clone["configuration"]["arms"] == source["configuration"]["arms"]
    assert (await service.put("/v1/bandits/copy", clone["configuration"])).status_code == 200
    assert (await service.decide("copy", PROMPT))["arm"] in ("small", "new")
    assert (await service.get("/v1/bandits/copy/decisions/open")).status_code == 404


async def test_under_the_same_policy_the_digest_is_the_same(service: Service) -> None:
    await service.create(body=VECTOR)
    await play(service)
    until = await service.offset()
    before = await digest(service, "b")
    await play_more(service)
    made = await service.post(CLONE, {"name": "copy", "policy": VECTOR["policy"], "until": until})
    assert made.status_code == 202
    await service.settle("copy")
    assert await digest(service, "copy") == before != await digest(service, "b")


async def play_more(service: Service) -> None:
    await service.decide(body={"id": "more", **PROMPT})
    await service.observe("more", {"reward": 0.125})


async def test_the_same_request_is_the_same_clone_and_another_name_is_taken(service: Service) -> None:
    await service.create(body=VECTOR)
    await play(service)
    for _ in range(2):
        assert (await service.post(CLONE, LIN)).status_code == 202
        await service.settle("copy")
    length = await service.offset("copy")
    assert (await service.post(CLONE, LIN)).status_code == 202
    assert await service.offset("copy") == length
    assert failed(await service.post(CLONE, LIN | {"until": 3})) == (409, "bandit_exists")
    assert failed(await service.post(CLONE, {"name": "copy", "policy": {"kind": "greedy"}})) == (409, "bandit_exists")
    assert failed(await service.post(CLONE, {"name": "b", "policy": {"kind": "greedy"}})) == (409, "bandit_exists")


async def test_a_clone_of_a_clone_and_of_imports(service: Service) -> None:
    await service.create(body=VECTOR)
    await service.post("/v1/bandits/b/import", {"id": "x", "rows": [{**PROMPT, "arm": "small", "reward": 0.5}]})
    await play(service, 2)
    for source, name in (("b", "one"), ("one", "two")):
        body = {"name": name, "policy": VECTOR["policy"]}
        assert (await service.post(f"/v1/bandits/{source}/clone", body)).status_code == 202
        await service.settle(name)
    assert await digest(service, "two") == await digest(service, "b")


async def test_what_cannot_be_cloned_says_why(service: Service) -> None:
    await service.create(body=GREEDY)
    await service.create("weighs", {"arms": ARMS, "prompt": {"dim": 3}, "objective": {"reward": 1.0, "cost": -1.0}})
    await play(service, 2, prompts=False)
    for source, policy, said in (
        ("b", {"kind": "pak-ucb"}, "decides by the prompt"),
        ("b", {"kind": "fd-ucb"}, "learns from outputs"),
        ("weighs", {"kind": "promptwise"}, "weighs no signals"),
    ):
        response = await service.post(f"/v1/bandits/{source}/clone", {"name": "copy", "policy": policy})
        assert failed(response) == (409, "not_cloneable")
        assert said in response.json()["detail"]
    assert (await service.get("/v1/bandits/copy")).status_code == 404
    assert paths(await service.post(CLONE, {"name": "copy", "policy": {"kind": "greedy"}, "until": 99})) == ["until"]
    assert paths(await service.post(CLONE, {"name": "Copy", "policy": {"kind": "greedy"}})) == ["name"]
    assert paths(await service.post(CLONE, {"name": "copy"})) == ["policy"]


async def test_a_clone_that_is_not_complete_refuses_everything_but_to_be_looked_at(service: Service) -> None:
    """Its source is not there, so that it never will be."""
    await service.create(body=GREEDY)
    bandits = repository(service)
    source = (await bandits.get("", "b")).created
    gone = CloneOf(bandit="b", log="0", until=9)
    await bandits.create(msgspec.structs.replace(source, bandit="copy", clone_of=gone))
    await service.settle("copy")
    clone = await service.bandit("copy")
    assert clone["cloning"] == {"learned": 0, "until": 9}
    assert "cannot be completed" in clone["notices"][0]
    row = {"id": "r", "arm": "small", "reward": 0.5}
    for response in (
        await service.post("/v1/bandits/copy/decisions", {}),
        await service.post("/v1/bandits/copy/decisions", {"dry_run": True}),
        await service.post("/v1/bandits/copy/import", {"rows": [row]}),
        await service.post("/v1/bandits/copy/clone", {"name": "two", "policy": {"kind": "greedy"}}),
        await service.put("/v1/bandits/copy/arms/new", {}),
        await service.patch("/v1/bandits/copy", {"reward": {"timeout_s": 3.0}}),
    ):
        assert failed(response) == (503, "not_ready")
    assert await service.offset("copy") == 1
    assert (await service.delete("/v1/bandits/copy")).status_code == 204


async def test_a_clone_is_completed_after_a_restart(tmp_path: Any) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body=GREEDY)
        await play(service, 40, prompts=False)
        before = await digest(service, "b")
        assert (await service.post(CLONE, {"name": "copy", "policy": {"kind": "greedy"}})).status_code == 202
    async with opened(store=store) as service:
        await service.bandit("copy")
        await service.settle("copy")
        assert (await service.bandit("copy"))["cloning"] is None
        assert await digest(service, "copy") == before
