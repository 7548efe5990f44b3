"""Importing history: all rows or none, learned once, and like the same outcomes of decisions."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from numpy.random import default_rng

from tests.service.http_client import ARMS, GREEDY, VECTOR, Clock, Json, Service, answered, failed, opened, paths
from tests.service.redis_server import needs_redis, shared

IMPORT = "/v1/bandits/b/import"
THREE_TO_ONE: Json = {"small": 0.25, "large": 0.75}
ROWS: list[Json] = [
    {"id": "r0", "prompt": {"vector": [0.5, -0.25, 1.0]}, "arm": "small", "reward": 0.75, "propensity": 0.5},
    {"id": "r1", "prompt": {"vector": [0.25, 1.0, 1.0]}, "arm": "large", "reward": 0.25, "cost": 3.5},
    {
        "id": "r2",
        "prompt": {"vector": [1.0, 1.0, -2.0]},
        "arm": "small",
        "reward": 0.5,
        "weights": {"small": 0.25, "large": 0.75},
    },
]


async def digest(service: Service, name: str = "b") -> str:
    return str(answered(await service.get(f"/v1/bandits/{name}/digest"))["sha256"])


async def test_rows_are_learned_in_order_and_stand_in_the_log(service: Service, clock: Clock) -> None:
    await service.create(body=VECTOR)
    facts = {"session": "s", "metadata": {"team": ["a"]}, "at": "2025-06-01T10:00:00+02:00"}
    response = await service.post(IMPORT, {"rows": [ROWS[0] | facts, *ROWS[1:]]})
    assert (response.status_code, answered(response)) == (200, {"learned": 3, "duplicates": 0, "offset": 4})
    log = (await service.log())[1:]
    assert [(line["event"], line["id"], line["arm"], line["reward"]) for line in log] == [
        ("imported", "r0", 0, 0.75),
        ("imported", "r1", 1, 0.25),
        ("imported", "r2", 0, 0.5),
    ]
    assert [(line["cost"], line["price"], line["cost_posted"]) for line in log] == [
        (0.25, 0.25, False),
        (3.5, 4.0, True),
        (0.25, 0.25, False),
    ]
    assert [(line.get("propensity"), line.get("weights")) for line in log] == [(0.5, None), (None, None), (0.25, [0.25, 0.75])]
    kept = {name: log[0][name] for name in ("session", "metadata", "happened_at")}
    assert kept == {"session": "s", "metadata": {"team": ["a"]}, "happened_at": "2025-06-01T10:00:00+02:00"}
    small, large = (await service.bandit())["arms"]
    shown = [(arm["pulls"], arm["outcomes"], arm["imported"], arm["mean_reward"], arm["share"]) for arm in (small, large)]
    assert shown == [(0, 2, 2, 0.625, 0.0), (0, 1, 1, 0.25, 0.0)]


async def test_the_same_rows_again_are_not_learned_again(service: Service) -> None:
    await service.create(body=VECTOR)
    first = {"id": "january", "rows": [{name: value for name, value in row.items() if name != "id"} for row in ROWS]}
    assert answered(await service.post(IMPORT, first))["learned"] == 3
    before = await digest(service)
    assert [line["id"] for line in (await service.log())[1:]] == ["january/0", "january/1", "january/2"]
    assert answered(await service.post(IMPORT, first)) == {"learned": 0, "duplicates": 3, "offset": 4}
    assert await digest(service) == before


async def test_what_was_cut_off_is_finished_by_the_same_request(service: Service) -> None:
    """A process that ends in the midst of a request leaves its first rows."""
    await service.create(body=VECTOR)
    await service.create("whole", VECTOR)
    assert answered(await service.post("/v1/bandits/whole/import", {"rows": ROWS}))["learned"] == 3
    assert answered(await service.post(IMPORT, {"rows": ROWS[:2]}))["learned"] == 2
    assert answered(await service.post(IMPORT, {"rows": ROWS})) == {"learned": 1, "duplicates": 2, "offset": 4}
    assert await digest(service) == await digest(service, "whole")


async def test_another_row_under_an_id_is_a_conflict_and_nothing_is_learned(service: Service) -> None:
    await service.create(body=VECTOR)
    await service.post(IMPORT, {"rows": ROWS[:2]})
    another: list[Json] = [
        {"reward": 0.5},
        {"arm": "small"},
        {"propensity": 0.5},
        {"metadata": {}},
        {"prompt": {"vector": [1, 1, 1]}},
    ]
    for change in another:
        response = await service.post(IMPORT, {"rows": [ROWS[2], ROWS[1] | change]})
        assert failed(response) == (409, "import_conflict")
        assert "'r1'" in response.json()["detail"]
    assert await service.offset() == 3


WRONG: list[tuple[Json, str]] = [
    ({"id": None}, "rows.1.id"),
    ({"id": "r0"}, "rows.1.id"),
    ({"id": "a b"}, "rows.1.id"),
    ({"arm": "medium"}, "rows.1.arm"),
    ({"arm": None}, "rows.1.arm"),
    ({"reward": None}, "rows.1.reward"),
    ({"reward": 1e13}, "rows.1.reward"),
    ({"cost": -1.0}, "rows.1.cost"),
    ({"prompt": None}, "rows.1.prompt"),
    ({"prompt": "a text"}, "rows.1.prompt"),
    ({"prompt": {"vector": [1.0, 2.0]}}, "rows.1.prompt.vector"),
    ({"prompt": {"vector": [0.0, 0.0, 0.0]}}, "rows.1.prompt"),
    ({"propensity": 0.0}, "rows.1.propensity"),
    ({"propensity": 1.5}, "rows.1.propensity"),
    ({"weights": {"small": 0.5, "large": 0.4}}, "rows.1.weights"),
    ({"weights": {"small": 1.0, "large": 0.0}}, "rows.1.weights"),
    ({"weights": {"large": 0.5, "medium": 0.5}}, "rows.1.weights.medium"),
    ({"weights": {"small": 0.5, "large": 0.5}, "propensity": 0.25}, "rows.1.weights"),
    ({"signals": {"Latency": 1.0}}, "rows.1.signals.Latency"),
    ({"output": "a text"}, "rows.1.output"),
    ({"at": "yesterday"}, "rows.1.at"),
    ({"at": "2026-01-01T00:00:00"}, "rows.1.at"),
    ({"session": ""}, "rows.1.session"),
    ({"metadata": {"x": "y" * 5000}}, "rows.1.metadata"),
    ({"next": True}, "rows.1.next"),
]


@pytest.mark.parametrize(("change", "path"), WRONG)
async def test_a_wrong_row_is_named_and_nothing_is_learned(service: Service, change: Json, path: str) -> None:
    await service.create(body=VECTOR)
    response = await service.post(IMPORT, {"rows": [ROWS[0], ROWS[1] | change, ROWS[2]]})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == [path]
    assert await service.offset() == 1


async def test_every_wrong_row_is_named_up_to_a_bound(service: Service) -> None:
    await service.create(body=VECTOR)
    response = await service.post(IMPORT, {"id": "x", "rows": [{**ROWS[0], "id": f"r{i}", "reward": "?"} for i in range(1024)]})
    assert paths(response) == [f"rows.{i}.reward" for i in range(50)]
    assert paths(await service.post(IMPORT, {"rows": [*ROWS, ROWS[0] | {"id": "r3"}] * 300})) == ["rows"]
    short = [{**ROWS[0], "id": f"r{i}", "prompt": {"vector": [1.0]}} for i in range(3)]
    assert paths(await service.post(IMPORT, {"rows": short})) == [f"rows.{i}.prompt.vector" for i in range(3)]


def _reported(g: Any) -> Json:
    arm = ARMS[int(g.integers(2))]["name"]
    return {"reward": round(float(g.random()), 3), "cost": round(float(g.random()), 3), "arm": arm}


OUTPUTS: Json = {"arms": ARMS, "prompt": {"dim": 3}, "output": {"dim": 2}, "seed": 7}
BANDITS: dict[str, tuple[Json, list[str]]] = {
    "pak-ucb": (VECTOR, []),
    "auto": ({"arms": ARMS, "prompt": {"dim": 3}, "signals": ["latency_s"], "objective": {"reward": 1.0, "cost": -0.5}}, []),
    "auto per outcome": ({"arms": ARMS, "prices_per": "outcome", "objective": {"reward": 1.0, "cost": -0.5}}, []),
    "forgets": ({**GREEDY, "policy": {"kind": "epsilon-greedy", "forget_half_life": 4}}, []),
    "promptwise": ({"policy": {"kind": "promptwise"}, "arms": ARMS, "prompt": {"dim": 3}, "seed": 7}, []),
    "dak-ucb": (
        {**OUTPUTS, "policy": {"kind": "dak-ucb", "output_bandwidth": 0.9, "random_features": 8, "label_features": 8}},
        ["output"],
    ),
    "mixture-ucb": ({**OUTPUTS, "policy": {"kind": "mixture-ucb", "bandwidth": 1.0, "random_features": 8}}, ["output"]),
}


@pytest.mark.parametrize(("body", "posts"), BANDITS.values(), ids=BANDITS.keys())
async def test_rows_teach_what_decisions_with_these_outcomes_teach(service: Service, body: Json, posts: list[str]) -> None:
    body = {"seed": 7, **body}
    await service.create("decides", body)
    await service.create("b", body)
    g, rows = default_rng(5), []
    for t in range(12):
        vector = [float(x) for x in g.standard_normal(3).round(3)]
        prompt = {"prompt": {"vector": vector}} if "prompt" in body else {}
        outcome = _reported(g)
        if t % 3 == 0:
            del outcome["cost"]
        if "signals" in body and t % 2:
            outcome["signals"] = {"latency_s": round(float(g.random()), 3)}
        if "output" in posts:
            outcome["output"] = [{"vector": [float(x) for x in g.standard_normal(2).round(3)]} for _ in range(3)]
        decision = await service.decide("decides", {"id": f"d{t}", **prompt})
        if decision["stop"]:
            continue
        played = {} if decision["arm"] == outcome["arm"] else {"arm": outcome["arm"]}
        await service.observe(f"d{t}", {name: outcome[name] for name in outcome if name != "arm"} | played, name="decides")
        rows.append({"id": f"d{t}", **prompt, **outcome})
    assert len(rows) > 6
    assert answered(await service.post(IMPORT, {"rows": rows[:5]}))["learned"] == 5
    assert answered(await service.post(IMPORT, {"rows": rows[5:]}))["learned"] == len(rows) - 5
    assert await digest(service) == await digest(service, "decides")
    arms, others = [(await service.bandit(name))["arms"] for name in ("b", "decides")]
    for name in ("outcomes", "mean_reward", "total_cost"):
        assert [arm[name] for arm in arms] == [arm[name] for arm in others]


async def test_a_warm_bandit_tries_no_arm_that_history_has(service: Service) -> None:
    body: Json = {"arms": [{"name": "small"}, {"name": "large"}, {"name": "new"}], "seed": 7}
    await service.create(body=body)
    g = default_rng(3)
    rows = [
        {"arm": arm, "reward": mean + 0.05 * float(g.standard_normal())} for arm, mean in (("small", 0.2), ("large", 0.9))
    ] * 20
    await service.post(IMPORT, {"id": "history", "rows": rows})
    await service.settle()
    assert (await service.decide(body={"id": "d0"}))["arm"] == "new"
    await service.observe("d0", {"reward": 0.1})
    await service.settle()
    weights = (await service.decide(body={"dry_run": True}))["weights"]
    assert weights["large"] > 0.9


async def test_budgets_tallies_and_drift_leave_imports_out(service: Service) -> None:
    body: Json = {
        "arms": ARMS,
        "seed": 7,
        "policy": {"kind": "auto", "drift": "detect"},
        "budget": {"signal": "cost", "per_decision": 0.5},
    }
    await service.create(body=body)
    for t in range(6):
        await service.decide(body={"id": f"d{t}"})
        await service.observe(f"d{t}", {"reward": 0.5 + 0.01 * t, "cost": 0.75})
    before, health = await service.bandit(), answered(await service.get("/v1/bandits/b/health"))
    rows = [{"arm": "large", "reward": -50.0 * (1 + i % 2), "cost": 900.0, "propensity": 0.5} for i in range(60)]
    assert answered(await service.post(IMPORT, {"id": "x", "rows": rows}))["learned"] == 60
    after, healthy = await service.bandit(), answered(await service.get("/v1/bandits/b/health"))
    assert after["budget"]["running"] == before["budget"]["running"] == 0.75
    assert after["budget"]["multiplier"] == before["budget"]["multiplier"]
    values = ["missing_outcomes", "last_outcome", "drift", "gain", "signals"]
    assert [one["value"] for one in healthy["checks"] if one["name"] in values] == [
        one["value"] for one in health["checks"] if one["name"] in values
    ]


async def test_a_reference_is_needed_first_and_stays(service: Service) -> None:
    await service.create(body={"policy": {"kind": "fd-ucb"}, "arms": ARMS, "output": {"dim": 2}})
    rows = [{"id": "r0", "arm": "small", "output": [{"vector": [1.0, 0.5]}, {"vector": [0.5, 1.5]}, {"vector": [0.0, 1.0]}]}]
    assert failed(await service.post(IMPORT, {"rows": rows})) == (409, "reference_missing")
    samples = {"outputs": [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}, {"vector": [0.5, -0.5]}]}
    assert (await service.post("/v1/bandits/b/references", samples)).status_code == 201
    assert answered(await service.post(IMPORT, {"rows": rows}))["learned"] == 1
    assert failed(await service.post("/v1/bandits/b/references", samples)) == (409, "reference_frozen")


async def test_texts_are_embedded_and_outputs_scored(service: Service) -> None:
    body: Json = {**GREEDY, "reward": {"source": "exact-match"}, "output": None}
    await service.create(body=body)
    rows: list[Json] = [
        {"id": "r0", "arm": "small", "output": "Paris", "reference": "Paris"},
        {"id": "r1", "arm": "large", "output": "Rome", "reference": "Paris"},
    ]
    assert answered(await service.post(IMPORT, {"rows": rows}))["learned"] == 2
    log = (await service.log())[1:]
    assert [(line["reward"], line["source"]) for line in log] == [(1.0, "exact-match"), (0.0, "exact-match")]
    posted = await service.post(IMPORT, {"rows": [{"id": "r2", "arm": "small", "reward": 0.5}]})
    assert paths(posted) == ["rows.0.reward"]


async def test_a_restart_folds_to_the_same_digest(tmp_path: Any) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body=VECTOR)
        await service.decide(body={"id": "d", "prompt": {"vector": [1.0, 0.5, 0.25]}})
        await service.post(IMPORT, {"rows": ROWS})
        await service.observe("d")
        before = await digest(service)
    async with opened(store=store) as service:
        assert await digest(service) == before
        assert answered(await service.post(IMPORT, {"rows": ROWS})) == {"learned": 0, "duplicates": 3, "offset": 5}
        assert [arm["imported"] for arm in (await service.bandit())["arms"]] == [2, 1]


@needs_redis
async def test_replicas_learn_rows_once_and_a_clone_together() -> None:
    settings: Json = {"store": shared().url, "redis_prefix": f"t{uuid4().hex[:12]}"}
    async with opened(**settings) as one, opened(**settings) as other:
        await one.create(body=VECTOR)
        receipts = await asyncio.gather(*(service.post(IMPORT, {"rows": ROWS}) for service in (one, other, one, other)))
        answers = [answered(receipt) for receipt in receipts]
        assert sum(answer["learned"] for answer in answers) == 3
        assert sum(answer["duplicates"] for answer in answers) == 9
        assert failed(await other.post(IMPORT, {"rows": [ROWS[1] | {"reward": 0.5}]})) == (409, "import_conflict")
        assert (await one.post("/v1/bandits/b/clone", {"name": "copy", "policy": VECTOR["policy"]})).status_code == 202
        await one.settle("copy")
        found = []
        for service in (one, other):
            for name in ("b", "copy"):
                end = answers[0]["offset"] if name == "b" else (await one.bandit("copy"))["offset"]
                response = await service.ask("GET", f"/v1/bandits/{name}/digest", headers={"X-Nextarm-Min-Offset": str(end)})
                found.append(answered(response)["sha256"])
        assert len(set(found)) == 1
        assert (await other.bandit("copy"))["cloning"] is None
