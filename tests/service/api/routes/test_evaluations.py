"""Evaluations over HTTP: asked for once, worked on beside the decisions, answered by any replica, and taken up again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.engine import evaluations as module
from service.engine.evaluations import Record
from service.storage.base import Log
from tests.service.http_client import ARMS, Clock, Json, Service, answered, failed, opened, paths

URL = "/v1/bandits/b/evaluations"
EPSILON: Json = {"policy": {"kind": "epsilon-greedy", "epsilon": 0.6}, "arms": ARMS, "seed": 7}
MEANS = {"small": 0.3, "large": 0.7}


async def played(service: Service, *, rounds: int) -> None:
    """Decisions with their outcomes, the larger arm being better."""
    await service.create(body=EPSILON)
    g = np.random.default_rng(3)
    for first in range(0, rounds, 100):
        asked = [{"id": f"d{i}"} for i in range(first, min(first + 100, rounds))]
        made = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": asked}))["decisions"]
        outcomes = [{"decision": one["id"], "reward": float(g.random() < MEANS[one["arm"]])} for one in made]
        await service.post("/v1/bandits/b/outcomes/batch", {"outcomes": outcomes})


async def finished(service: Service, name: str) -> Json:
    """The evaluation, once it is done or has failed."""
    async with asyncio.timeout(60):
        while (found := answered(await service.get(f"{URL}/{name}")))["state"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    return found


async def test_what_other_policies_would_have_earned(service: Service) -> None:
    await played(service, rounds=600)
    body = {
        "id": "january",
        "policies": [{"kind": "greedy"}, {"frozen": 201}],
        "estimators": ["dr", "snips"],
        "reward_range": [0.0, 1.0],
    }
    response = await service.post(URL, body)
    assert response.status_code == 202
    assert answered(response)["until"] == 1201
    found = await finished(service, "january")
    assert (found["state"], found["progress"], found["failure"]) == ("done", 1.0, None)
    assert found["decisions"] == 500, "a frozen state is judged by what came later"
    assert [one["policy"] for one in found["policies"]] == body["policies"]
    assert [one["policy"] for one in found["fixed_arms"]] == [{"arm": "small"}, {"arm": "large"}]
    assert found["best_fixed_arm"]["policy"] == {"arm": "large"}
    for one in [found["behaviour"], *found["policies"], *found["fixed_arms"]]:
        assert one["interval"][0] <= one["value"] <= one["interval"][1]
        assert one["anytime_interval"][0] <= one["value"] <= one["anytime_interval"][1]
        assert one["support"] == 1.0
        assert set(one["estimates"]) == {"dr", "snips"}
        assert one["value"] == one["estimates"]["dr"]["value"]
    for one, mean in zip(found["fixed_arms"], (0.3, 0.7), strict=True):
        assert one["anytime_interval"][0] <= mean <= one["anytime_interval"][1]
        assert one["verdict"] in ("answer", "wide")
    small, large = (one["value"] for one in found["fixed_arms"])
    expected = 0.7 * large + 0.3 * small
    assert found["policies"][1]["value"] == pytest.approx(expected, abs=0.01), "epsilon-greedy once it knows the better arm"

    again = await service.post(URL, body)
    assert (again.status_code, answered(again)["state"]) == (202, "done")
    assert failed(await service.post(URL, {**body, "confidence": 0.9})) == (409, "evaluation_conflict")
    other = answered(await service.post(URL, {}))
    assert (await finished(service, other["id"]))["policies"] == []
    listed = answered(await service.get(URL))["evaluations"]
    assert {one["id"] for one in listed} == {"january", other["id"]}
    assert (await service.delete(f"{URL}/january")).status_code == 204
    assert failed(await service.get(f"{URL}/january")) == (404, "evaluation_not_found")
    assert failed(await service.delete(f"{URL}/january")) == (404, "evaluation_not_found")
    assert failed(await service.get("/v1/bandits/none/evaluations/january")) == (404, "bandit_not_found")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"policies": [{"kind": "tompson"}]}, "policies.0.kind"),
        ({"policies": [{"kind": "greedy"}, {"kind": "epsilon-greedy", "epsilon": 2.0}]}, "policies.1.epsilon"),
        ({"policies": [{"kind": "epsilon-greedy", "epsilon": "x"}]}, "policies.0.epsilon"),
        ({"policies": [{"kind": "greedy", "wild": 1}]}, "policies.0.wild"),
        ({"policies": [{"kind": "pak-ucb"}]}, "policies.0.kind"),
        ({"policies": [{"kind": "fd-ucb"}]}, "policies.0.kind"),
        ({"policies": [{}]}, "policies.0"),
        ({"policies": [{"frozen": True}]}, "policies.0.frozen"),
        ({"policies": [{"shadow": 1}]}, "policies.0.shadow"),
        ({"policies": [{"frozen": 5000}]}, "policies.0.frozen"),
        ({"policies": [{"frozen": 3}], "since": 2}, "since"),
        ({"policies": [{"frozen": 3}], "since": "2026-01-01T00:00:00Z"}, "since"),
        ({"policies": [{"kind": "greedy"}] * 65}, "policies"),
        ({"since": "yesterday"}, "since"),
        ({"since": 5000}, "since"),
        ({"estimators": []}, "estimators"),
        ({"estimators": ["best"]}, "estimators.0"),
        ({"confidence": 1.0}, "confidence"),
        ({"reward_range": [0.0]}, "reward_range"),
        ({"reward_range": [1.0, 0.0]}, "reward_range"),
        ({"since": -1}, "since"),
        ({"since": True}, "since"),
        ({"policies": [{"kind": "greedy"}, {"kind": "one-arm", "arm": 2}]}, "policies.1.arm"),
    ],
)
async def test_what_cannot_be_evaluated_is_refused_at_once(service: Service, body: Json, path: str) -> None:
    await played(service, rounds=3)
    response = await service.post(URL, body)
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == [path]
    assert answered(await service.get(URL))["evaluations"] == []


async def test_a_service_ends_also_right_after_it_was_asked() -> None:
    async with asyncio.timeout(20), opened() as service:
        await service.create(body=EPSILON)
        await service.post(URL, {})


async def test_a_shadow_that_is_not_there_is_not_found(service: Service) -> None:
    await played(service, rounds=3)
    spec = {"policy": {"kind": "greedy"}}
    assert (await service.put("/v1/bandits/b/shadows/plain", spec)).status_code == 201
    response = await service.post(URL, {"policies": [{"kind": "greedy"}, {"shadow": "none"}]})
    assert failed(response) == (404, "shadow_not_found")
    assert response.json()["detail"] == "policies.1.shadow: this bandit has no such shadow; it has plain"


async def test_a_state_frozen_at_the_first_offset_has_learned_nothing(service: Service) -> None:
    await played(service, rounds=400)
    await service.post(URL, {"id": "e", "policies": [{"frozen": 1}], "estimators": ["ips"]})
    found = await finished(service, "e")
    assert (found["state"], found["decisions"]) == ("done", 400)
    small, large = (one["value"] for one in found["fixed_arms"])
    # without outcomes the arms are equal: the first one at every decision, and 0.6 of it shared by both
    assert found["policies"][0]["value"] == pytest.approx(0.7 * small + 0.3 * large)


async def test_an_error_of_the_code_fails_the_evaluation_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await played(service, rounds=20)

    async def broken(*_: Any, **__: Any) -> Json:
        raise ZeroDivisionError("by something")

    with monkeypatch.context() as patched:
        patched.setattr(module, "evaluate", broken)
        await service.post(URL, {"id": "e"})
        found = await finished(service, "e")
    assert found["state"] == "failed"
    assert "internal error, ZeroDivisionError" in found["failure"]
    await service.post(URL, {"id": "f"})
    assert (await finished(service, "f"))["state"] == "done", "the next one is worked on"


async def test_a_log_that_says_nothing_fails_with_the_reason(service: Service) -> None:
    await service.create(body=EPSILON)
    await service.post(URL, {"id": "e"})
    found = await finished(service, "e")
    assert found["state"] == "failed"
    assert "no decision with a reward" in found["failure"]
    await played_outside(service)
    await service.post(URL, {"id": "f", "reward_range": [0.0, 0.5]})
    assert "field reward: 1 is outside of reward_range" in (await finished(service, "f"))["failure"]


async def played_outside(service: Service) -> None:
    made = await service.decide()
    await service.observe(made["id"], {"reward": 1.0})


async def test_a_log_without_support_does_not_answer(service: Service) -> None:
    await service.create(body={"policy": {"kind": "greedy"}, "arms": ARMS, "seed": 7})
    for i in range(60):
        await service.observe((await service.decide())["id"], {"reward": i % 2})
    await service.post(URL, {"id": "e"})
    found = await finished(service, "e")
    assert [one["verdict"] for one in found["fixed_arms"]] == ["cannot_answer", "cannot_answer"]
    assert found["best_fixed_arm"] is None


async def test_a_process_of_its_own_gives_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a restart finds them."""
    store = f"sqlite:///{tmp_path}/store.db"
    body = {"policies": [{"kind": "greedy"}], "reward_range": [0.0, 1.0]}
    async with opened(store=store) as service:
        await played(service, rounds=200)
        await service.post(URL, {"id": "thread", **body})
        thread = await finished(service, "thread")
        monkeypatch.setattr(module, "SMALL", 10)
        await service.post(URL, {"id": "process", **body})
        process = await finished(service, "process")
        assert thread["state"] == process["state"] == "done"
    async with opened(store=store) as service:
        names = ("decisions", "behaviour", "policies", "fixed_arms", "best_fixed_arm")
        again = answered(await service.get(f"{URL}/process"))
        assert {name: again[name] for name in names} == {name: thread[name] for name in names}


async def test_one_left_by_a_process_that_ended_is_taken_up_again(service: Service, clock: Clock) -> None:
    await played(service, rounds=20)
    repository: Any = service.client._transport.app.state.services.repository  # type: ignore[attr-defined]
    storage, evaluations = repository.storage, repository.evaluations
    (log,) = await storage.logs()
    await evaluations.close()
    await service.post(URL, {"id": "e"})

    async def left(**changes: Any) -> None:
        """As another process has left it."""
        value = await storage.find_record(log, "e")
        record = msgspec.structs.replace(msgspec.json.decode(value, type=Record), **changes)
        assert await storage.swap_record(log, "e", msgspec.json.encode(record), expected=value)

    await left(state="running", owner="another", beat_at=clock.now, attempts=1)
    place = next(iter(await storage.records(None)))
    await evaluations._take(place)
    assert answered(await service.get(f"{URL}/e"))["state"] == "running", "its heartbeat is fresh"
    clock.forward(16.0)
    await evaluations._take(place)
    assert answered(await service.get(f"{URL}/e"))["state"] == "done"
    assert await storage.records(None) == {}, "the index holds what is not finished"

    await service.post(URL, {"id": "f"})
    await left_as(storage, log, "f", state="running", beat_at=clock.now - timedelta(seconds=16), attempts=3)
    await evaluations._take(next(iter(await storage.records(None))))
    found = answered(await service.get(f"{URL}/f"))
    assert found["state"] == "failed"
    assert "ended, 3 times" in found["failure"]


async def left_as(storage: Any, log: Log, name: str, **changes: Any) -> None:
    value = await storage.find_record(log, name)
    record = msgspec.structs.replace(msgspec.json.decode(value, type=Record), **changes)
    assert await storage.swap_record(log, name, msgspec.json.encode(record), expected=value)


async def test_the_newest_hundred_of_thirty_days_are_kept(service: Service, clock: Clock) -> None:
    await played(service, rounds=20)
    for i in range(103):
        clock.forward(1.0)
        await service.post(URL, {"id": f"e{i}"})
        await finished(service, f"e{i}")
    listed = [one["id"] for one in answered(await service.get(URL))["evaluations"]]
    assert listed == [f"e{i}" for i in range(102, 2, -1)]
    clock.forward(31 * 86_400.0)
    await service.post(URL, {"id": "late"})
    assert [one["id"] for one in answered(await service.get(URL))["evaluations"]] == ["late"]
    assert (await finished(service, "late"))["state"] == "done"
