"""Shadows over HTTP: they answer nothing, say what they would have chosen, and can take the place of the policy that decides."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.engine.learner import Learner
from service.storage.base import Entry, Log
from tests.service.http_client import ARMS, Clock, Service, answered, failed, opened, paths

BANDIT: dict[str, Any] = {"policy": {"kind": "greedy"}, "arms": ARMS, "prompt": {"dim": 2}, "seed": 7}
LAZY = {"policy": {"kind": "one-arm", "arm": 1}}
PATH = "/v1/bandits/b/shadows"


async def learner_of(service: Service, name: str = "b") -> Learner:
    """Whose shadows are waited for, however busy this machine is."""
    learner: Learner = await service.client._transport.app.state.services.repository.get("", name)  # type: ignore[attr-defined]
    learner.decisions.shadows.limit_s = 60.0
    return learner


@pytest.fixture
async def made(service: Service) -> Service:
    """A service with a bandit that waits for its shadows."""
    await service.create(body=BANDIT)
    await learner_of(service)
    return service


async def play(service: Service, first: int, count: int) -> None:
    for number in range(first, first + count):
        decided = await service.decide(body={"id": f"d{number}", "prompt": {"vector": [1.0, 0.1 * number]}})
        await service.observe(f"d{number}", {"reward": 0.9 if decided["arm"] == "small" else 0.2})


async def test_a_shadow_is_tried_promoted_and_exchanged_back(made: Service) -> None:
    await play(made, 0, 4)
    created = await made.put(f"{PATH}/lazy", LAZY)
    assert created.status_code == 201
    shown = answered(created)
    assert (shown["name"], shown["offset"], shown["state"], shown["learns_from"]) == ("lazy", 10, "learning", "now")
    assert shown["policy"] == {"kind": "one-arm", "arm": 1}
    assert (shown["decisions"], shown["agreement"], shown["would_choose"]) == (0, None, None)
    for same in (LAZY, {**LAZY, "from": None}, {**LAZY, "from": "now"}):
        again = await made.put(f"{PATH}/lazy", same)
        assert (again.status_code, await made.offset()) == (200, 10), same
    await play(made, 4, 5)
    shown = answered(await made.get(f"{PATH}/lazy"))
    assert shown["would_choose"] == {"small": 0.0, "large": 1.0}
    assert (shown["decisions"], shown["left_out"], shown["outcomes"], shown["agreement"]) == (5, 0, 5, 0.0), "greedy plays small"
    assert (shown["learned_to"], len(shown["report"]["arms"])) == (20, 2)
    assert answered(await made.get(PATH)) == {"shadows": [shown]}
    decided = [event for event in await made.log() if event["event"] == "decided"]
    assert [event.get("shadows") for event in decided] == [None] * 4 + [{"lazy": {"policy": 10, "weights": [0.0, 1.0]}}] * 5
    assert "shadows" not in await made.decide(body={"prompt": {"vector": [1.0, 0.0]}, "dry_run": True})

    asked = {"id": "p1", "shadow_offset": 10}
    assert answered(await made.post(f"{PATH}/lazy/promote", asked)) == {
        "id": "p1", "shadow": "lazy", "offset": 21, "duplicate": False,
    }  # fmt: skip
    assert answered(await made.post(f"{PATH}/lazy/promote", asked))["duplicate"] is True
    assert (await made.bandit())["policy"] == {"kind": "one-arm", "arm": 1}
    shown = answered(await made.get(f"{PATH}/lazy"))
    assert (shown["policy"]["kind"], shown["offset"], shown["learns_from"], shown["outcomes"]) == ("greedy", 21, "start", 9)
    decided_now = await made.decide(body={"id": "now", "prompt": {"vector": [1.0, 0.0]}})
    assert (decided_now["arm"], decided_now["weights"]) == ("large", {"small": 0.0, "large": 1.0})
    assert (await made.log(query="?after=21"))[0]["policy"] == 10
    for body in ({"id": "p2", "shadow_offset": 10}, {"id": "p1", "shadow_offset": 21}):
        assert failed(await made.post(f"{PATH}/lazy/promote", body)) == (409, "shadow_conflict")
    assert answered(await made.post(f"{PATH}/lazy/promote", {"id": "p2", "shadow_offset": 21}))["offset"] == 23
    await made.observe("now", {"reward": 0.2})
    assert (await made.bandit())["policy"]["kind"] == "greedy"
    assert answered(await made.get(f"{PATH}/lazy"))["outcomes"] == 6, "an open decision is learned by both"

    metrics = (await made.client.get("/metrics")).text
    assert 'nextarm_shadow_decisions_total{bandit="b",shadow="lazy"} 0.0' in metrics
    assert 'nextarm_shadow_left_out_total{bandit="b",shadow="lazy"} 0.0' in metrics
    before = answered(await made.get("/v1/bandits/b/digest"))
    assert (await made.delete(f"{PATH}/lazy")).status_code == 204
    assert answered(await made.get("/v1/bandits/b/digest"))["sha256"] != before["sha256"]
    for response in (await made.get(f"{PATH}/lazy"), await made.delete(f"{PATH}/lazy")):
        assert failed(response) == (404, "shadow_not_found")
    assert failed(await made.post(f"{PATH}/lazy/promote", {"id": "p9", "shadow_offset": 21})) == (404, "shadow_not_found")


async def test_what_a_promoted_bandit_is_can_be_put_and_patched(made: Service) -> None:
    await made.put(f"{PATH}/s", {"policy": {"kind": "pak-ucb", "random_features": 4}, "from": "start"})
    learner = await learner_of(made)
    await learner.projection.wait_for_shadows()
    await made.post(f"{PATH}/s/promote", {"id": "p1", "shadow_offset": 2})
    found = await made.bandit()
    assert (await made.put("/v1/bandits/b", found["configuration"])).status_code == 200
    refused = await made.put("/v1/bandits/b", BANDIT)
    assert (failed(refused), paths(refused)) == ((409, "bandit_exists"), ["policy.kind"])
    (wrong,) = refused.json()["errors"]
    assert wrong["message"].startswith('is "pak-ucb" now; a shadow with another policy can be promoted')
    assert "POST .../clone" in wrong["message"]
    refused = await made.patch("/v1/bandits/b", {"policy": {"kind": "greedy"}})
    assert (failed(refused), refused.json()["errors"][0]["message"]) == ((409, "not_live"), wrong["message"].replace('"', ""))
    changed = answered(await made.patch("/v1/bandits/b", {"policy": {"exploration": 0.3}}))
    assert changed["policy"]["exploration"] == 0.3
    assert answered(await made.get(f"{PATH}/s"))["policy"]["kind"] == "greedy"
    assert paths(await made.post("/v1/bandits/b/decisions", {})) == ["prompt"], "the policy that decides now needs it"


async def test_what_no_shadow_can_be_is_refused_by_name(made: Service) -> None:
    await made.create("plain", {**BANDIT, "prompt": None})
    await made.create("wise", {**BANDIT, "policy": {"kind": "promptwise"}})
    await made.create("weighing", {**BANDIT, "output": {"dim": 3}, "objective": {"reward": 1.0, "cost": -1.0}})
    await made.create("distances", {**BANDIT, "policy": {"kind": "fd-ucb"}, "output": {"dim": 2}})
    await made.post("/v1/bandits/distances/references", {"outputs": [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}]})
    before = [await made.offset(name) for name in ("b", "plain", "wise", "weighing", "distances")]
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("plain", {"policy": {"kind": "pak-ucb"}}, "policy.kind"),
        ("b", {"policy": {"kind": "is-ucb"}}, "policy.kind"),
        ("b", {"policy": {"kind": "promptwise"}}, "policy.kind"),
        ("wise", {"policy": {"kind": "greedy"}}, "policy.kind"),
        ("wise", {"policy": {"kind": "promptwise", "success_threshold": 0.5}}, "policy.success_threshold"),
        ("weighing", {"policy": {"kind": "is-ucb"}}, "policy.kind"),
        ("weighing", {"policy": {"kind": "mixture-ucb", "objective": "rke"}}, "policy.kind"),
        ("distances", {"policy": {"kind": "fd-ucb"}}, "from"),
        ("b", {"policy": {"kind": "pak-ucb", "random_features": 0}}, "policy.random_features"),
        ("distances", {"policy": {"kind": "fd-ucb"}, "from": "now"}, "from"),
        ("b", {"policy": {"kind": "greedy"}, "from": "end"}, "from"),
        ("b", {}, "policy"),
    ]
    for name, body, path in refused:
        response = await made.put(f"/v1/bandits/{name}/shadows/s", body)
        assert (failed(response), paths(response)) == ((422, "invalid_request"), [path]), (name, body, response.text)
    assert failed(await made.put(f"{PATH}/UPPER", LAZY)) == (422, "invalid_request")
    assert [await made.offset(name) for name in ("b", "plain", "wise", "weighing", "distances")] == before
    for number in range(4):
        assert (await made.put(f"{PATH}/s{number}", {**LAZY, "from": (None, "now")[number % 2]})).status_code == 201
    created = [event for event in await made.log() if event["event"] == "shadow_created"]
    without, named, *_ = [{**event, "shadow": "", "at": "", "offset": 0} for event in created]
    assert without == named
    for name, body in (("s4", LAZY), ("s1", {"policy": {"kind": "random"}}), ("s1", {**LAZY, "from": "start"})):
        assert failed(await made.put(f"{PATH}/{name}", body)) == (409, "shadow_conflict")
    assert len(answered(await made.get(PATH))["shadows"]) == 4


async def test_an_output_shadow_leaves_out_outcomes_without_output(service: Service) -> None:
    """The bandit needs a reward alone. Once the shadow decides, an outcome needs its output."""
    await service.create(body={**BANDIT, "output": {"embedder": "probabilities", "dim": 2}})
    await learner_of(service)
    await service.put(f"{PATH}/s", {"policy": {"kind": "is-ucb"}})
    given: tuple[dict[str, Any], ...] = ({"reward": 0.5}, {"reward": 0.5, "output": {"probabilities": [0.25, 0.75]}})
    for number, sent in enumerate(given):
        await service.decide(body={"id": f"d{number}"})
        await service.observe(f"d{number}", sent)
    shown = answered(await service.get(f"{PATH}/s"))
    assert (shown["outcomes"], shown["outcomes_left_out"]) == (1, 1)
    await service.post(f"{PATH}/s/promote", {"id": "p", "shadow_offset": 2})
    await service.decide(body={"id": "d2"})
    assert paths(await service.put("/v1/bandits/b/decisions/d2/outcome", {"reward": 0.5})) == ["output"]


async def test_there_is_no_promotion_and_no_digest_before_it_has_caught_up(
    made: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, go = await learner_of(made), asyncio.Event()
    storage = learner.projection.storage
    read = storage.read

    async def held(log: Log, *, after: int, limit: int) -> list[Entry]:
        if after == 1 and limit > 1:  # as one that learns from the start does
            await go.wait()
        return await read(log, after=after, limit=limit)

    await play(made, 0, 3)
    monkeypatch.setattr(storage, "read", held)
    shown = answered(await made.put(f"{PATH}/late", {**LAZY, "from": "start"}))
    assert (shown["state"], shown["learned_to"], shown["outcomes"], shown["report"]) == ("behind", 1, 0, None)
    promotion = {"id": "p", "shadow_offset": 8}
    assert failed(await made.post(f"{PATH}/late/promote", promotion)) == (409, "shadow_behind")
    assert failed(await made.get("/v1/bandits/b/digest")) == (409, "shadow_behind")
    go.set()
    await learner.projection.wait_for_shadows()
    shown = answered(await made.get(f"{PATH}/late"))
    assert (shown["state"], shown["learned_to"], shown["outcomes"]) == ("learning", 8, 3)
    assert answered(await made.post(f"{PATH}/late/promote", promotion))["offset"] == 9


async def test_episodes_end_under_the_policy_that_began_them(service: Service) -> None:
    """`promptwise` with one attempt against one with five: each episode gets what it began with."""
    wise = {"kind": "promptwise", "forced_pulls": 0, "exploration": 0.0, "cost_weight": 0.0}
    await service.create(body={**BANDIT, "policy": {**wise, "max_attempts": 1}})
    await learner_of(service)
    await service.put(f"{PATH}/patient", {"policy": {**wise, "max_attempts": 5}})
    await service.decide(body={"id": "old", "prompt": {"vector": [1.0, 0.0]}})
    await service.observe("old", {"reward": 0.0})
    await service.post(f"{PATH}/patient/promote", {"id": "p", "shadow_offset": 2})
    assert (await service.decide(body={"id": "old2", "episode": "old"}))["stop"] is True
    await service.decide(body={"id": "new", "prompt": {"vector": [1.0, 0.0]}})
    await service.observe("new", {"reward": 0.0})
    assert (await service.decide(body={"id": "new2", "episode": "new"}))["stop"] is False
    assert [event.get("policy") for event in await service.log() if event["event"] == "decided"] == [None, None, 2, 2]


async def test_a_shadow_outlives_a_restart(clock: Clock, tmp_path: Any) -> None:
    settings = {"store": f"sqlite:///{tmp_path}/bandits.db"}
    async with opened(clock=clock, **settings) as service:
        await service.create(body=BANDIT)
        await learner_of(service)
        await service.put(f"{PATH}/lazy", LAZY)
        await play(service, 0, 3)
        await service.post(f"{PATH}/lazy/promote", {"id": "p", "shadow_offset": 2})
        before = [answered(await service.get(path)) for path in (f"{PATH}/lazy", "/v1/bandits/b/digest")]
    async with opened(clock=clock, **settings) as service:
        assert [answered(await service.get(path)) for path in (f"{PATH}/lazy", "/v1/bandits/b/digest")] == before
        assert answered(await service.post(f"{PATH}/lazy/promote", {"id": "p", "shadow_offset": 2}))["duplicate"] is True
