"""PATCH of a bandit, and PUT of what it is now: all or nothing, in the log, from the next decision on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.service.http_client import Clock, Service, answered, opened, paths

PAK: dict[str, Any] = {
    "policy": {"kind": "pak-ucb", "random_features": 8},
    "arms": [{"name": "small", "price": 0.001}, {"name": "large", "price": 0.01}],
    "prompt": {"dim": 3},
    "objective": {"reward": 1.0, "cost": -1.0},
    "seed": 7,
}
PATH = "/v1/bandits/b"


@pytest.fixture
async def made(service: Service) -> Service:
    """A service with the bandit."""
    await service.create(body=PAK)
    return service


async def decide(service: Service, number: int) -> dict[str, Any]:
    return await service.decide(body={"id": f"d{number}", "prompt": {"vector": [0.1 * number, 1.0, -0.3]}})


async def learn(service: Service, number: int, reward: float) -> None:
    await service.observe(f"d{number}", {"reward": reward})


async def test_a_new_objective_acts_on_the_next_decision(made: Service) -> None:
    for number in range(4):
        await decide(made, number)
        await learn(made, number, 0.5)
    before = await decide(made, 10)
    found = answered(await made.patch(PATH, {"objective": {"reward": 1.0, "cost": -1000.0}}))
    assert found["objective"] == {"reward": 1.0, "cost": -1000.0}
    after = await decide(made, 11)
    assert after["scores"]["large"]["estimate"] < before["scores"]["large"]["estimate"] - 9.0, "its price is .01"
    assert answered(await made.patch(PATH, {"objective": None}))["objective"] == {"reward": 1.0}


async def test_equal_values_append_nothing(made: Service) -> None:
    change = {"policy": {"kind": "pak-ucb", "exploration": 0.7}, "reward": {"default": 0.0, "timeout_s": 60.0}}
    await made.patch(PATH, change)
    at = await made.offset()
    assert at == 2
    assert answered(await made.patch(PATH, change))["policy"]["exploration"] == 0.7
    assert answered(await made.patch(PATH, {}))["offset"] == at
    assert answered(await made.patch(PATH, {"seed": 7, "policy": {"ridge": 1.0}}))["offset"] == at


@pytest.mark.parametrize(
    ("change", "status", "path"),
    [
        ({"policy": {"ridge": 3.0}}, 409, "policy.ridge"),
        ({"policy": {"kind": "lin-ucb"}}, 409, "policy.kind"),
        ({"objective": {"reward": 1.0, "latency_s": -1.0}}, 409, "objective.latency_s"),
        ({"budget": {"signal": "latency_s", "per_decision": 1.0}}, 409, "budget.signal"),
        ({"seed": 9}, 409, "seed"),
        ({"arms": []}, 409, "arms"),
        ({"prompt": {"dim": 4}}, 409, "prompt"),
        ({"reward": {"source": "exact-match"}}, 409, "reward.source"),
        ({"policy": {"exploration": -1.0}}, 422, "policy.exploration"),
        ({"policy": {"explore": 1.0}}, 422, "policy.explore"),
        ({"objective": {}}, 422, "objective"),
        ({"budget": {"signal": "cost", "per_decision": 0.0}}, 422, "budget.per_decision"),
        ({"reward": {"timeout_s": -1}}, 422, "reward"),
        ({"cooldow": 3}, 422, "cooldow"),
    ],
)
async def test_all_of_it_changes_or_nothing(made: Service, change: dict[str, Any], status: int, path: str) -> None:
    both = {"objective": {"reward": 2.0}, **change}
    response = await made.patch(PATH, both)
    assert response.status_code == status, response.text
    assert response.json()["code"] == ("not_live" if status == 409 else "invalid_request")
    assert any(error["path"].startswith(path) for error in response.json()["errors"])
    assert await made.offset() == 1


async def test_a_change_can_be_conditional_on_an_offset(made: Service) -> None:
    change = {"objective": {"reward": 2.0}}
    stale = await made.patch(PATH, change, **{"If-Match": "9"})
    assert (stale.status_code, stale.json()["code"]) == (412, "offset_conflict")
    assert (await made.patch(PATH, change, **{"If-Match": "soon"})).status_code == 422
    assert answered(await made.patch(PATH, change, **{"If-Match": '"1"'}))["offset"] == 2


async def test_an_entity_tag_is_the_offset_and_makes_a_change_conditional(made: Service) -> None:
    await decide(made, 1)
    shown = [await made.get(PATH), await made.put(PATH, PAK), await made.patch(PATH, {})]
    assert [response.headers["etag"] for response in shown] == ['"2"'] * 3
    assert [answered(response)["offset"] for response in shown] == [2] * 3
    assert (await made.put("/v1/bandits/new", PAK)).headers["etag"] == '"1"'
    change = {"objective": {"reward": 2.0}}
    for tags in ('"1"', 'W/"2"', '"1", W/"2"', '"another"', "1", '""', "99999999999999999999"):
        refused = await made.patch(PATH, change, **{"If-Match": tags})
        assert (refused.status_code, refused.json()["code"]) == (412, "offset_conflict"), tags
    for tags in ('"2', "W/2", "*, *", '"1" "2"', "-2", "²", "9" * 5000 + "x", ""):
        refused = await made.ask("PATCH", PATH, json=change, headers=[(b"If-Match", tags.encode("latin-1"))])
        assert (refused.status_code, paths(refused)) == (422, ["If-Match"]), tags
    assert await made.offset() == 2
    for offset, tags in enumerate(("2", '"3"', '"1", "4"', "*"), start=3):
        response = await made.patch(PATH, {"objective": {"reward": float(offset)}}, **{"If-Match": tags})
        assert (response.status_code, response.headers["etag"]) == (200, f'"{offset}"'), tags


async def test_a_new_time_holds_for_later_decisions(made: Service, clock: Clock) -> None:
    await decide(made, 1)
    answered(await made.patch(PATH, {"reward": {"timeout_s": 5.0, "default": 0.25}}))
    await decide(made, 2)
    clock.forward(6.0)
    state = answered(await made.get(f"{PATH}/decisions/d2"))
    assert (state["state"], state["reward"]) == ("expired", 0.25)
    assert answered(await made.get(f"{PATH}/decisions/d1"))["state"] == "open"


async def test_put_compares_with_what_the_bandit_is_now(made: Service) -> None:
    put = made.put
    assert (await put(PATH, PAK)).status_code == 200
    await made.patch(PATH, {"policy": {"exploration": 0.5}, "objective": {"reward": 1.0, "cost": -2.0}})
    assert (await put(f"{PATH}/arms/medium", {"price": 0.004})).status_code == 201
    refused = await put(PATH, PAK)
    assert (refused.status_code, refused.json()["code"]) == (409, "bandit_exists")
    assert {error["path"]: error["message"].rpartition(" now; ")[2] for error in refused.json()["errors"]} == {
        "policy.exploration": "PATCH changes it",
        "objective": "PATCH changes it",
        "arms": "PUT and DELETE .../arms/{arm} change them",
    }
    for part, fields, way in (
        ("policy", {"exploration": 0.5, "random_features": 4}, "a shadow with another policy can be promoted"),
        ("reward", {"timeout_s": 77.0}, "PATCH changes it"),
    ):
        refused = await put(PATH, {**PAK, "seed": 8, part: {**PAK.get(part, {}), **fields}})
        ways = {error["path"]: error["message"].partition(" now; ")[2] for error in refused.json()["errors"]}
        assert ways[f"{part}.{[*fields][-1]}"].startswith(way), refused.text
        assert ways["seed"] == "another bandit can differ"
    now = answered(await made.get(PATH))["configuration"]
    assert (await put(PATH, now)).status_code == 200
    now["arms"] = now["arms"][::-1]
    assert (await put(PATH, now)).status_code == 200, "the order of arms does not matter"
    assert (await put("/v1/bandits/copy", now)).status_code == 201


async def test_changes_survive_a_restart_and_a_replay(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body=PAK)
        await decide(service, 1)
        await learn(service, 1, 0.9)
        await service.patch(PATH, {"policy": {"exploration": 0.5}, "budget": {"signal": "cost", "per_decision": 0.002}})
        await service.patch(PATH, {"policy": {"exploration": 0.6}})
        for number in range(2, 8):
            await decide(service, number)
            await learn(service, number, 0.1 * number)
        before = await service.bandit()
        assert before["budget"]["running"] is not None
    for _ in ("by its snapshot", "from zero"):
        async with opened(store=store) as service:
            assert await service.bandit() == before
        with closing(sqlite3.connect(tmp_path / "bandits.db")) as database:
            database.execute("DELETE FROM snapshots")
            database.commit()
