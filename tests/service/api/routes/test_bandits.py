"""Bandits and their arms come, change, go; what is asked twice is done once."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import safetensors.torch
import torch
from numpy.random import default_rng

from bandits import state as states
from bandits.registry import build
from bandits.types import Observation
from service.api.create import check_size
from service.api.problems import Problem
from service.embedders import registry
from service.engine.errors import BanditNotFoundError
from service.engine.learner import Learner
from service.engine.repository import BanditRepository
from tests.service.http_client import ARMS, GREEDY, VECTOR, Clock, Json, Service, answered, connected, failed, opened, paths


async def test_a_bandit_is_created_once_and_the_same_body_again_is_no_conflict(service: Service) -> None:
    first = await service.put("/v1/bandits/b", GREEDY)
    assert first.status_code == 201
    again = await service.put("/v1/bandits/b", GREEDY)
    assert again.status_code == 200
    assert again.json() == first.json()
    other = await service.put("/v1/bandits/b", {**GREEDY, "seed": 8})
    assert failed(other) == (409, "bandit_exists")
    assert await service.offset() == 1


async def test_bodies_that_mean_the_same_are_the_same(service: Service) -> None:
    await service.create(body=VECTOR)
    spelt_out = {
        **VECTOR,
        "policy": {"kind": "pak-ucb", "exploration": 0.5, "ridge": 1, "random_features": 16},
        "arms": [{"name": "small", "price": 0.25, "metadata": {}}, {"name": "large", "price": 4}],
        "prompt": {"dim": 3},
        "reward": {"source": "client", "default": None, "timeout_s": None},
        "output": None,
    }
    assert (await service.put("/v1/bandits/b", spelt_out)).status_code == 200


async def test_a_repeated_creation_is_known_after_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    without_seed = {name: value for name, value in VECTOR.items() if name != "seed"}
    async with opened(store=store) as service:
        created = await service.create(body=without_seed)
    async with opened(store=store) as service:
        again = await service.put("/v1/bandits/b", without_seed)
        assert again.status_code == 200
        assert again.json() == created
        assert failed(await service.put("/v1/bandits/b", {**VECTOR, "seed": created["seed"] + 1})) == (409, "bandit_exists")


async def test_a_picked_seed_is_recorded_and_shown(service: Service) -> None:
    without_seed = {name: value for name, value in VECTOR.items() if name != "seed"}
    created = await service.create(body=without_seed)
    assert (await service.log())[0]["seed"] == created["seed"] == (await service.bandit())["seed"]


@pytest.mark.parametrize("name", ["a", "0", "demo", "a_b-c", "9" * 63])
async def test_these_names_are_names(service: Service, name: str) -> None:
    await service.create(name)


@pytest.mark.parametrize("name", ["A", "-a", "_a", "a.b", "a b", "é", "a" * 64, "a%0A"])
async def test_these_names_are_none(service: Service, name: str) -> None:
    response = await service.put(f"/v1/bandits/{name}", GREEDY)
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["name"]


async def test_the_configuration_is_shown_with_every_default(service: Service) -> None:
    await service.create(body=VECTOR)
    shown = await service.bandit()
    assert shown["policy"]["kind"] == "pak-ucb"
    assert shown["policy"]["random_features"] == 16
    assert shown["policy"]["exploration"] == 0.5
    assert shown["policy"]["ridge"] == 1.0
    assert shown["prompt"] == {"embedder": "vector", "dim": 3, "version": ""}
    assert shown["output"] is None
    assert shown["reward"] == {"source": "client", "default": None, "timeout_s": 86_400.0}
    assert shown["created_at"] == "2026-01-31T12:00:00Z"
    assert shown["offset"] == 1


async def test_the_numbers_of_an_arm_add_up(service: Service) -> None:
    await service.create()
    first, second, third = [await service.decide() for _ in range(3)]
    assert [d["arm"] for d in (first, second)] == ["small", "large"]  # each arm once, pending decisions counted
    await service.observe(first["id"], {"reward": 0.5})
    await service.observe(second["id"], {"reward": -0.25, "cost": 3.5})
    shown = {arm["name"]: arm for arm in (await service.bandit())["arms"]}
    assert third["arm"] == "small"
    assert (shown["small"]["pulls"], shown["small"]["outcomes"], shown["small"]["pending"]) == (2, 1, 1)
    assert (shown["small"]["mean_reward"], shown["small"]["total_cost"]) == (0.5, 0.25)
    assert (shown["large"]["mean_reward"], shown["large"]["total_cost"]) == (-0.25, 3.5)
    assert shown["small"]["share"] == pytest.approx(2 / 3)
    assert (await service.bandit())["offset"] == 6


async def test_the_list_comes_in_pages(service: Service) -> None:
    for name in ("e", "c", "a", "d", "b"):
        await service.create(name)
    pages = []
    after: str | None = ""
    while after is not None:
        page = answered(await service.get(f"/v1/bandits?limit=2&after={after}"))
        pages.append([item["name"] for item in page["bandits"]])
        after = page["next"]
    assert pages == [["a", "b"], ["c", "d"], ["e"]]
    assert answered(await service.get("/v1/bandits"))["next"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", f"after={'a' * 64}"])
async def test_a_page_that_makes_no_sense_is_refused(service: Service, query: str) -> None:
    response = await service.get(f"/v1/bandits?{query}")
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == [query.partition("=")[0]]


async def test_a_deleted_bandit_is_gone_with_its_open_decisions_and_its_name_is_free(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    assert (await service.delete("/v1/bandits/b")).status_code == 204
    for response in (
        await service.get("/v1/bandits/b"),
        await service.get("/v1/bandits/b/log"),
        await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 0.5}),
        await service.delete("/v1/bandits/b"),
    ):
        assert failed(response) == (404, "bandit_not_found")
    assert answered(await service.get("/v1/bandits"))["bandits"] == []
    await service.create(body={**GREEDY, "seed": 8})
    assert failed(await service.get(f"/v1/bandits/b/decisions/{decision['id']}")) == (404, "decision_not_found")


# -- arms ----------------------------------------------------------------------------------------------------------------------


async def test_an_arm_comes_changes_goes_and_comes_back(service: Service) -> None:
    await service.create()
    added = await service.put("/v1/bandits/b/arms/new", {"price": 2.0, "metadata": {"region": "north"}})
    assert added.status_code == 201
    assert answered(added)["offset"] == 2
    assert (await service.put("/v1/bandits/b/arms/new", {"price": 2.0})).status_code == 200
    assert await service.offset() == 2  # nothing changed, nothing was logged
    await service.put("/v1/bandits/b/arms/new", {"price": 3.0})
    kept = await service.arm("new")
    assert (kept["price"], kept["metadata"]) == (3.0, {"region": "north"})  # what the body leaves out stays
    assert (await service.delete("/v1/bandits/b/arms/new")).status_code == 204
    assert (await service.delete("/v1/bandits/b/arms/new")).status_code == 204
    assert not (await service.arm("new"))["active"]
    assert {(await service.decide())["arm"] for _ in range(4)} == {"small", "large"}
    back = await service.put("/v1/bandits/b/arms/new")
    assert (back.status_code, answered(back)["active"], answered(back)["price"]) == (200, True, 3.0)
    kinds = [event["event"] for event in await service.log()]
    assert [kind for kind in kinds if kind.startswith("arm")] == ["arm_added", "arm_changed", "arm_retired", "arm_changed"]


async def test_a_retired_arm_still_learns_what_was_under_way(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    await service.delete(f"/v1/bandits/b/arms/{decision['arm']}")
    await service.observe(decision["id"], {"reward": 0.5})
    assert (await service.arm(decision["arm"]))["mean_reward"] == 0.5


async def test_an_arm_that_is_retired_leaves_answers_and_metrics_once_nothing_of_it_is_open(service: Service) -> None:
    await service.create()
    first = await service.decide(body={"id": "first"})
    gone, left = first["arm"], {"small": "large", "large": "small"}[first["arm"]]
    await service.delete(f"/v1/bandits/b/arms/{gone}")
    assert set((await service.decide(body={"id": "second"}))["weights"]) == {gone, left}
    assert f'arm="{gone}"' in (await service.get("/metrics")).text  # its decision is open
    await service.observe("first", {"reward": 0.5})
    for body in ({"id": "third"}, {"dry_run": True}):
        answer = await service.decide(body=body)
        assert (answer["weights"], set(answer["scores"])) == ({left: 1.0}, {left})
    assert f'arm="{gone}"' not in (await service.get("/metrics")).text
    assert f'arm="{left}"' in (await service.get("/metrics")).text
    shown = answered(await service.get("/v1/bandits/b/decisions/first"))
    assert (shown["arm"], set(shown["weights"])) == (gone, {gone, left})  # it could be chosen then
    assert set((await service.decide(body={"id": "second"}))["weights"]) == {gone, left}  # the same request, the same answer
    again = await service.post("/v1/bandits/b/decisions", {"id": "third"})
    assert (again.status_code, set(again.json()["weights"])) == (200, {left})
    arm = await service.arm(gone)
    assert (arm["active"], arm["outcomes"], arm["mean_reward"]) == (False, 1, 0.5)  # its history stays
    await service.put(f"/v1/bandits/b/arms/{gone}")
    back = await service.decide(body={"id": "fourth", "arms": [gone]})
    assert (back["arm"], set(back["weights"])) == (gone, {gone, left})
    assert (await service.arm(gone))["mean_reward"] == 0.5


async def test_arms_count_towards_the_limit_until_they_are_retired_and_nothing_of_them_is_open(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.routes.bandits.MAX_ARMS", 2)
    monkeypatch.setattr("service.api.routes.bandits.MAX_ARMS_EVER", 8)

    async def put(arm: str) -> int:
        response = await service.put(f"/v1/bandits/b/arms/{arm}")
        assert response.status_code < 400 or paths(response) == ["arm"]
        return response.status_code

    await service.create()
    decided = await service.decide(body={"arms": ["small"]})
    assert await put("a") == 422
    await service.delete("/v1/bandits/b/arms/small")
    assert await put("a") == 422  # a decision for it is open
    await service.observe(decided["id"])
    assert [await put(arm) for arm in ("a", "b")] == [201, 422]
    assert await put("small") == 422  # nor does one come back beyond the limit
    for arm in ("a", "b", "c", "d", "e"):
        assert await put(arm) in (200, 201)
        await service.delete(f"/v1/bandits/b/arms/{arm}")
    assert await put("small") == 200
    await service.delete("/v1/bandits/b/arms/small")
    assert [await put("f"), await service.delete("/v1/bandits/b/arms/f")][0] == 201
    assert await put("g") == 422  # so many in a bandit's life
    assert set((await service.decide())["weights"]) == {"large"}


async def test_indices_of_gone_arms_stay_valid_over_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body={**GREEDY, "arms": [{"name": f"arm-{i}"} for i in range(3)]})
        for i in range(3):
            decided = await service.decide(body={"arms": [f"arm-{i}"]})
            await service.observe(decided["id"], {"reward": i / 4})
        await service.delete("/v1/bandits/b/arms/arm-1")
        await service.put("/v1/bandits/b/arms/new")
        made = await service.decide(body={"arms": ["new"]})
        before = answered(await service.get("/v1/bandits/b/digest"))
    async with opened(store=store) as service:
        assert answered(await service.get("/v1/bandits/b/digest")) == before
        assert set(made["weights"]) == {"arm-0", "arm-2", "new"}
        await service.put("/v1/bandits/b/arms/arm-1")
        arms = (await service.bandit())["arms"]
        assert [(arm["name"], arm["mean_reward"]) for arm in arms] == [
            ("arm-0", 0),
            ("arm-1", 0.25),
            ("arm-2", 0.5),
            ("new", None),
        ]


async def test_no_arm_is_left(service: Service) -> None:
    await service.create()
    for arm in ("small", "large"):
        await service.delete(f"/v1/bandits/b/arms/{arm}")
    response = await service.post("/v1/bandits/b/decisions", {})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["arms"]
    assert failed(await service.delete("/v1/bandits/b/arms/third")) == (404, "arm_not_found")


async def test_a_new_price_holds_for_decisions_that_come_after_it(service: Service) -> None:
    await service.create()
    before = await service.decide(body={"arms": ["small"]})
    await service.put("/v1/bandits/b/arms/small", {"price": 8.0})
    after = await service.decide(body={"arms": ["small"]})
    for decision in (before, after):
        await service.observe(decision["id"])
    costs = [event["cost"] for event in await service.log() if event["event"] == "observed"]
    assert costs == [0.25, 8.0]


NAMES = [
    "gpt 4.1",
    "größe",
    "模型",
    "100%",
    "x?y#z",
    "a&b=c+d",
    "\u00e9",
    "'\"<>",
    "a" * 128,
    "字" * 128,
]


@pytest.mark.parametrize("name", NAMES)
async def test_an_arm_can_have_any_printable_name(service: Service, name: str) -> None:
    await service.create(body={**GREEDY, "arms": [{"name": name}]})
    path = f"/v1/bandits/b/arms/{quote(name, safe='')}"
    changed = await service.put(path, {"price": 1.5})
    assert (changed.status_code, answered(changed)["name"]) == (200, name)
    decision = await service.decide(body={"arms": [name]})
    assert decision["arm"] == name
    assert list(decision["weights"]) == [name]
    await service.observe(decision["id"], {"reward": 0.5, "arm": name})
    assert (await service.delete(path)).status_code == 204


@pytest.mark.parametrize("name", ["%0A", "%00", "a%1Fb", "a" * 129])
async def test_control_characters_are_no_name(service: Service, name: str) -> None:
    await service.create()
    response = await service.put(f"/v1/bandits/b/arms/{name}", {})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["arm"]
    assert await service.offset() == 1


@pytest.mark.parametrize(("arm", "decision"), [("decided", "arm"), ("closed", "arm"), ("arm", "created"), ("created", "decided")])
async def test_names_of_arms_and_ids_of_decisions_do_not_meet_in_the_log(service: Service, arm: str, decision: str) -> None:
    await service.create()
    assert (await service.put(f"/v1/bandits/b/arms/{arm}", {})).status_code == 201
    assert (await service.decide(body={"id": decision}))["id"] == decision
    assert not (await service.observe(decision))["duplicate"]
    assert (await service.put(f"/v1/bandits/b/arms/{arm}x", {})).status_code == 201


def _metadata(size: int) -> dict[str, Any]:
    return {"text": "é" * ((size - len('{"text":""}')) // 2)}


async def test_metadata_is_stored_and_returned_up_to_four_kibibytes(service: Service) -> None:
    odd = {"nested": {"list": [1, 2.5, None, True, "\u0000"]}, "big": 2**80 + 1, "": {}}
    await service.create(body={**GREEDY, "arms": [{"name": "a", "metadata": odd}, {"name": "b", "metadata": _metadata(4095)}]})
    shown = [arm["metadata"] for arm in (await service.bandit())["arms"]]
    assert shown == [odd, _metadata(4095)]
    response = await service.put("/v1/bandits/b/arms/c", {"metadata": _metadata(4097)})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["metadata"]


async def test_odd_metadata_survives_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    body = {**GREEDY, "arms": [{"name": "a", "metadata": {"big": 2**80 + 1, "half": 0.5, "zero": -0.0, "nul": "\u0000"}}]}
    async with opened(store=store) as service:
        await service.create(body=body)
    async with opened(store=store) as service:
        assert (await service.arm("a"))["metadata"] == body["arms"][0]["metadata"]
        assert (await service.put("/v1/bandits/b", body)).status_code == 200


@pytest.mark.parametrize("metadata", [[], "text", 5, True])
async def test_metadata_is_an_object(service: Service, metadata: object) -> None:
    await service.create()
    response = await service.put("/v1/bandits/b/arms/c", {"metadata": metadata})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["metadata"]


async def test_a_thousand_arms_and_no_more(service: Service) -> None:
    many = [{"name": f"arm {i}"} for i in range(1000)]
    assert failed(await service.put("/v1/bandits/b", {**GREEDY, "arms": [*many, {"name": "one more"}]})) == (
        422,
        "invalid_request",
    )
    await service.create(body={**GREEDY, "arms": many})
    response = await service.put("/v1/bandits/b/arms/one%20more", {})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["arm"]
    assert (await service.put("/v1/bandits/b/arms/arm%20999", {"price": 1.5})).status_code == 200


async def test_sixteen_clients_who_add_one_arm_add_it_once(service: Service) -> None:
    await service.create()
    answers = await asyncio.gather(*(service.put("/v1/bandits/b/arms/new", {"price": 2.0}) for _ in range(16)))
    assert sorted(response.status_code for response in answers) == [200] * 15 + [201]
    assert [event["event"] for event in await service.log()] == ["created", "arm_added"]


# -- what cannot work is refused before it is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt.dim"),
        ({"prompt": {"embedder": "vector"}}, "prompt.dim"),
        ({"prompt": {"embedder": "nonsense", "dim": 3}}, "prompt.embedder"),
        ({"prompt": {"embedder": "probabilities", "dim": 3}}, "prompt.embedder"),
        ({"prompt": {"embedder": "minilm", "dim": 3}}, "prompt.dim"),
        ({"prompt": {"dim": 0}}, "prompt.dim"),
        ({"prompt": {"dim": 65_537}}, "prompt.dim"),
        ({"policy": {"kind": "pak-ucb", "ridge": 0}}, "policy.ridge"),
        ({"policy": {"kind": "pak-ucb", "exploration": -1}}, "policy.exploration"),
        ({"policy": {"kind": "pak-ucb", "degree": 2.5}}, "policy.degree"),
        ({"policy": {"kind": "pak-ucb", "kernel": "linear", "random_features": 4}}, "policy.random_features"),
        ({"policy": {"kind": "pak-ucb", "bandwidth": 1e-308}}, "policy.bandwidth"),
        ({"policy": {"kind": "pak-ucb", "random_features": None, "bandwidth": 1e308}}, "policy.bandwidth"),
        ({"policy": {"kind": "pak-ucb", "random_features": None, "kernel": "polynomial", "scale": 1e308}}, "policy.scale"),
        ({"policy": {"kind": "lin-ucb", "ridge": 5e-324}}, "policy.ridge"),
        ({"policy": {"kind": "lin-ucb", "ridge": 9e-10}}, "policy.ridge"),
        (
            {"policy": {"kind": "pak-ucb", "random_features": None, "kernel": "polynomial", "scale": 1e9, "degree": 2}},
            "policy.ridge",
        ),
        ({"policy": {"kind": "greedy", "prior_mean": 2e12}}, "policy.prior_mean"),
        ({"reward": {"default": 0.5}}, "reward"),
        ({"reward": {"default": 1e13, "timeout_s": 5}}, "reward.default"),
        ({"reward": {"timeout_s": 0}}, "reward.timeout_s"),
        ({"reward": {"source": "guess"}}, "reward.source"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "arms"),
        ({"arms": [{"name": "a", "price": -0.5}]}, "arms.0.price"),
        ({"arms": [{"name": "a", "price": 1e13}]}, "arms.0.price"),
        ({"arms": [{"name": "a"}, {"name": "a//b"}]}, "arms.1.name"),
        ({"arms": [{"name": ""}]}, "arms.0.name"),
        ({"arms": [{}]}, "arms.0.name"),
        ({"arms": ["small"]}, "arms.0"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
    ],
)
async def test_a_configuration_that_cannot_work_names_its_field(service: Service, changes: dict[str, Any], path: str) -> None:
    response = await service.put("/v1/bandits/b", {**VECTOR, **changes})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == [path]
    assert failed(await service.get("/v1/bandits/b")) == (404, "bandit_not_found")


@pytest.mark.parametrize(
    "body",
    [
        {**VECTOR, "policy": {"kind": "lin-ucb"}, "prompt": {"dim": 65_536}},
        {**VECTOR, "policy": {"kind": "pak-ucb", "random_features": 8192}},
        {**GREEDY, "policy": {"kind": "fd-ucb"}, "output": {"dim": 65_536}},
    ],
)
async def test_a_bandit_that_would_not_fit_into_memory_is_refused_without_trying(service: Service, body: dict[str, Any]) -> None:
    response = await service.put("/v1/bandits/b", body)
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["policy"]
    assert "NEXTARM_MAX_STATE_BYTES" in response.json()["detail"]


async def test_samples_that_exact_kernels_keep_and_arms_that_come_later_count(tmp_path: Path) -> None:
    exact: Json = {"kind": "pak-ucb", "random_features": None, "max_samples": 200}
    body: Json = {"policy": exact, "arms": ARMS, "prompt": {"dim": 8}}
    async with opened(max_state_bytes=2 * 2**20 + 2**16) as service:  # two arms of three times 8 * 200 * (8 + 200) bytes: 2 MB
        assert (await service.put("/v1/bandits/b", body)).status_code == 201
        larger = {**body, "policy": {**exact, "max_samples": 210}}
        assert failed(await service.put("/v1/bandits/larger", larger)) == (422, "invalid_request")
        late = await service.put("/v1/bandits/b/arms/late")
        assert failed(late) == (422, "invalid_request")
        assert await service.offset() == 1


async def test_a_text_embedder_brings_its_length(service: Service) -> None:
    created = await service.create(body={**VECTOR, "prompt": {"embedder": "static"}})
    assert created["prompt"]["dim"] == 256
    assert created["prompt"]["version"].startswith("wordllama ")


async def test_a_new_bandit_gets_the_newest_revision_of_an_embedder_and_an_older_one_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {**VECTOR, "prompt": {"embedder": "static"}}
    store = f"sqlite:///{tmp_path}/bandits.db"
    with monkeypatch.context() as earlier:
        earlier.setattr(registry, "_NEWEST", {})
        async with opened(store=store) as service:
            await service.create("old", body)
    async with opened(store=store) as service:
        assert answered(await service.put("/v1/bandits/old", body))["prompt"]["embedder"] == "static"
        assert (await service.create("new", body))["prompt"]["embedder"] == "static/2"
        for name, hears_case in (("old", True), ("new", False)):
            for prompt in ("good morning", "GOOD MORNING"):
                await service.decide(name, {"prompt": prompt})
            lower, upper = [event["features"] for event in (await service.log(name))[1:]]
            assert (lower != upper) == hears_case


async def test_an_embedder_that_is_not_installed_is_named_with_the_command(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _without("wordllama", monkeypatch):
        response = await service.put("/v1/bandits/b", {**VECTOR, "prompt": {"embedder": "static"}})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["prompt.embedder"]
    assert "pip install" in response.json()["detail"]


async def test_a_bandit_lives_on_where_its_embedder_was_uninstalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body={**VECTOR, "prompt": {"embedder": "static"}})
    with _without("wordllama", monkeypatch):
        async with opened(store=store) as service:
            assert failed(await service.post("/v1/bandits/b/decisions", {"prompt": "good morning"})) == (503, "overloaded")
            vector = {"prompt": {"vector": [0.5] * 256}}
            assert (await service.post("/v1/bandits/b/decisions", vector)).status_code == 201


async def test_a_repeated_creation_needs_nothing_but_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither tried again nor refused for what was uninstalled since."""
    body = {**VECTOR, "prompt": {"embedder": "static"}}
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        created = await service.create(body=body)
    with _without("wordllama", monkeypatch):
        async with opened(store=store) as service:
            again = await service.put("/v1/bandits/b", body)
            assert (again.status_code, answered(again)) == (200, created)


@pytest.mark.parametrize("other", [False, True])
async def test_of_many_who_create_one_bandit_one_does(tmp_path: Path, other: bool) -> None:
    async with opened(store=f"sqlite:///{tmp_path}/bandits.db") as service:
        bodies = [{**VECTOR, "seed": 7 + (other and i % 2)} for i in range(12)]
        answers = await asyncio.gather(*(service.put("/v1/bandits/b", body) for body in bodies))
        codes = [response.status_code for response in answers]
        assert codes.count(201) == 1
        assert codes.count(200) == (5 if other else 11)
        assert await service.offset() == 1


@contextmanager
def _without(module: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a module was not installed."""
    import importlib.util

    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else found(name, *rest))
        yield


async def test_every_policy_is_listed_with_the_schema_of_its_hyperparameters(service: Service) -> None:
    policies = {policy["kind"]: policy for policy in answered(await service.get("/v1/policies"))["policies"]}
    assert {"pak-ucb", "lin-ucb", "greedy", "epsilon-greedy", "random"} <= set(policies)
    pak = policies["pak-ucb"]
    assert pak["contextual"]
    assert pak["needs"] == ["features", "reward"]
    ridge = pak["schema"]["properties"]["ridge"]
    assert (ridge["default"], ridge["exclusiveMinimum"]) == (1.0, 0)
    assert "alpha" in ridge["description"]
    assert not policies["greedy"]["contextual"]
    for policy in policies.values():
        assert set(policy["schema"]["properties"]) == {"kind", *policy["hyperparameters"]}
        assert all(field["description"] for field in policy["schema"]["properties"].values())


async def test_the_server_sets_no_more_memory_aside_than_it_says() -> None:
    async with opened(max_state_bytes=2**20) as service:
        small = {**VECTOR, "policy": {"kind": "pak-ucb", "random_features": 16}}
        large = {**VECTOR, "policy": {"kind": "pak-ucb", "random_features": 128}}
        assert (await service.put("/v1/bandits/small", small)).status_code == 201
        assert failed(await service.put("/v1/bandits/large", large)) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("kind", "settings", "signals"),
    [
        ("lin-ucb", {}, ["reward"]),
        ("lin-ucb", {}, ["reward", "cost", "tokens"]),
        ("pak-ucb", {"random_features": 5}, ["reward", "cost"]),
        ("dak-ucb", {"random_features": 5, "label_features": 6, "output_bandwidth": 1.0}, ["reward", "cost"]),
        ("promptwise", {"success_threshold": 0.5, "max_samples": 40}, ["reward"]),
    ],
)
def test_rows_that_are_held_and_the_sums_of_every_signal_count(kind: str, settings: Json, signals: list[str]) -> None:
    """31 outcomes of an arm fill no block of its sums: all of their rows are held beside these."""
    policy = build(kind, settings, dim=9, output_dim=2, seed=1, signals=tuple(signals))
    state, g = states.start(policy, arms=1), default_rng(5)
    values = (1.0,) * len(signals) if len(signals) > 1 else ()
    for _ in range(31):
        features, output = (torch.from_numpy(g.standard_normal(shape)) for shape in (9, (1, 2)))
        state = states.fold(policy, state, Observation(arm=0, features=features, reward=1.0, output=output, signals=values))
    packed = safetensors.torch.load(states.pack(policy, state))
    assert [len(tensor) for key, tensor in packed.items() if key.endswith(".held")] == [31] * len(signals)
    needed = 3 * sum(tensor.nbytes for key, tensor in packed.items() if tensor.ndim and not key.endswith(".labels"))
    with pytest.raises(Problem, match="NEXTARM_MAX_STATE_BYTES"):
        check_size(policy, settings, arms=1, max_bytes=needed - 1)
    if kind == "lin-ucb":  # which keeps nothing else
        check_size(policy, settings, arms=1, max_bytes=needed)


@pytest.mark.parametrize("settings", [{"random_features": 5}, {"random_features": None, "max_samples": 20}])
def test_every_signal_takes_as_much_memory_as_the_reward(settings: Json) -> None:
    def refused(signals: tuple[str, ...], max_bytes: int) -> bool:
        policy = build("pak-ucb", settings, dim=9, output_dim=0, seed=1, signals=signals)
        try:
            check_size(policy, settings, arms=2, max_bytes=max_bytes)
        except Problem:
            return True
        return False

    frequencies = 8 * 9 * (settings["random_features"] or 0)
    one = bisect_left(range(2**20), True, key=lambda size: not refused(("reward",), size)) - frequencies
    assert one > 2 * 3 * 8 * 20 * 9
    assert refused(("reward", "cost", "tokens"), 3 * one + frequencies - 1)
    assert not refused(("reward", "cost", "tokens"), 3 * one + frequencies)


async def test_two_tenants_can_use_one_name(clock: Clock) -> None:
    async with opened(api_keys="admin@north:n-key,admin@south:s-key,admin:d-key", clock=clock) as anybody:
        app = anybody.client._transport.app  # type: ignore[attr-defined]
        async with (
            connected(app, key="n-key") as north,
            connected(app, key="s-key") as south,
            connected(app, key="d-key") as default,
        ):
            await north.create(body={**GREEDY, "seed": 1})
            await south.create(body={**GREEDY, "seed": 2})
            await default.create(body={**GREEDY, "seed": 3})
            assert [(await one.bandit())["seed"] for one in (north, south, default)] == [1, 2, 3]
            assert [item["name"] for item in answered(await default.get("/v1/bandits"))["bandits"]] == ["b"]
            await north.delete("/v1/bandits/b")
            assert (await south.bandit())["seed"] == 2


async def test_a_body_that_leaves_out_what_had_another_default_is_still_the_request_that_created_its_bandit(
    service: Service,
) -> None:
    body: Json = {"policy": {"kind": "promptwise"}, "arms": ARMS, "prompt": {"dim": 3}, "seed": 7}
    former: Json = {"rule": "ratio", "retry_discount": 1.0}
    await service.create("old", {**body, "policy": {**body["policy"], **former}})
    again = await service.put("/v1/bandits/old", body)
    assert again.status_code == 200
    assert {name: answered(again)["policy"][name] for name in former} == former, "it keeps what it was created with"
    other = {**body, "policy": {"kind": "promptwise", "rule": "horizon"}}
    assert failed(await service.put("/v1/bandits/old", other)) == (409, "bandit_exists")
    new = await service.create("new", body)
    assert (new["policy"]["rule"], new["policy"]["retry_discount"]) == ("horizon", 0.8)


async def test_of_two_creations_at_once_the_second_is_compared_as_it_would_be_later(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    body: Json = {"policy": {"kind": "promptwise"}, "arms": ARMS, "prompt": {"dim": 3}, "seed": 7}
    former: Json = {"rule": "ratio", "retry_discount": 1.0}
    await service.create("old", {**body, "policy": {**body["policy"], **former}})
    get = BanditRepository.get
    for sent, status in ((body, 200), ({**body, "seed": 8}, 409)):
        looks = 0

        async def late(hosting: BanditRepository, tenant: str, bandit: str) -> Learner:
            nonlocal looks
            looks += 1
            if looks == 1:  # the other one is not there yet
                raise BanditNotFoundError(bandit)
            return await get(hosting, tenant, bandit)

        monkeypatch.setattr(BanditRepository, "get", late)
        response = await service.put("/v1/bandits/old", sent)
        assert (response.status_code, looks) == (status, 2)
        monkeypatch.undo()


async def test_equal_changes_of_an_arm_at_the_same_moment_are_one_event(service: Service) -> None:
    await service.create(body=GREEDY)
    path = "/v1/bandits/b/arms/small"
    before = await service.offset()
    await asyncio.gather(*(service.put(path, {"price": 3.0}) for _ in range(4)))
    assert await service.offset() == before + 1
    await asyncio.gather(*(service.delete(path) for _ in range(4)))
    assert await service.offset() == before + 2
    await asyncio.gather(*(service.put(path) for _ in range(4)))
    assert await service.offset() == before + 3
