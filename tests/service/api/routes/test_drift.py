"""An arm that changes is noticed in the log's fold, and learned from the start by every process that folds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng

from bandits import drift
from service.engine.learner import Learner
from tests.service.http_client import Clock, Json, Service, failed, opened
from tests.service.recorded_logs import learner_of, payloads_of

ARMS = [{"name": "fallen"}, {"name": "other"}]
POLICIES: dict[str, Json] = {
    "auto": {"kind": "auto"},
    "auto-no-prompt": {"kind": "auto"},
    "lin-ucb": {"kind": "lin-ucb"},
    "pak-ucb": {"kind": "pak-ucb", "random_features": 8},
    "greedy": {"kind": "greedy"},
    "epsilon-greedy": {"kind": "epsilon-greedy", "epsilon": 0.1},
    "thompson": {"kind": "thompson", "posterior": "gaussian"},
}
ROUNDS = 30


def body_of(name: str, **changes: Any) -> Json:
    prompt = {"prompt": {"dim": 3}} if name in ("auto", "lin-ucb", "pak-ucb") else {}
    return {"policy": {**POLICIES[name], "drift": "detect"}, "arms": ARMS, "seed": 7, **prompt, **changes}


async def play(service: Service, body: Json, *, rounds: int, means: dict[str, float], **asked: Any) -> None:
    """The same decisions in every run: named, since names key the draws. asked: further fields of each decision."""
    g = default_rng(rounds)
    for i in range(rounds):
        await service.settle()
        prompt = {"prompt": {"vector": [float(x) for x in g.standard_normal(3)]}} if "prompt" in body else {}
        decision = await service.decide(body={"id": f"{i + 1}-of-{rounds}", **prompt, **asked})
        reward = means[decision["arm"]] + 0.05 * float(g.standard_normal())
        await service.observe(decision["id"], {"reward": reward})


async def folded(service: Service, events: int | None = None) -> Learner:
    """The bandit as another process folds it from the first events of its log."""
    return await learner_of(payloads_of((await service.get("/v1/bandits/b/log")).content)[:events])


@pytest.mark.parametrize("name", POLICIES)
async def test_an_arm_that_falls_raises_an_alarm_and_is_learned_from_the_start(name: str, tmp_path: Path) -> None:
    body, store = body_of(name), f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body=body)
        await play(service, body, rounds=ROUNDS, means={"fallen": 0.9, "other": 0.4})
        assert (await folded(service)).ledger.alarms == [], "nothing has changed yet"
        fallen = {"fallen": 0.1, "other": 0.4}
        await play(service, body, rounds=20, means=fallen, arms=["fallen"])
        await play(service, body, rounds=15, means=fallen)
        bandit = await folded(service)
        (alarm,) = bandit.ledger.alarms
        assert alarm.arm == 0
        before, after = await folded(service, alarm.offset - 1), await folded(service, alarm.offset)
        assert before.ledger.arms[0].surprise.down > 15.0
        assert after.ledger.arms[0].surprise == drift.START
        (pulls_before, pulls_after) = (one.versions.committed.state.arms[0].pulls for one in (before, after))
        assert (pulls_before > 20, pulls_after) == (True, 1), "the outcome that raised it is the first that is known"
        assert after.ledger.arms[0].outcomes == before.ledger.arms[0].outcomes + 1, "the counts of the log go on"
        chosen = [entry["arm"] for entry in await service.log() if entry["event"] == "decided"]
        assert chosen[-15:].count(0) <= 8
        live = (await service.get("/v1/bandits/b/digest")).json()
        assert (live["offset"], live["sha256"]) == bandit.digest()
        counted = [
            line for line in (await service.get("/metrics")).text.splitlines() if line.startswith("nextarm_drift_alarms_total{")
        ]
        assert {'arm="fallen"' in line: line.split()[-1] for line in counted} == {True: "1.0", False: "0.0"}
    async with opened(store=store) as service:
        assert (await service.get("/v1/bandits/b/digest")).json()["sha256"] == live["sha256"]


@pytest.mark.parametrize("name", ["auto-no-prompt", "greedy"])
async def test_what_expires_does_not_count_as_a_surprise(service: Service, clock: Clock, name: str) -> None:
    body = body_of(name, reward={"default": 0.0, "timeout_s": 60})
    await service.create(body=body)
    await play(service, body, rounds=20, means={"fallen": 0.9, "other": 0.9})
    before = (await folded(service)).ledger.arms
    for _ in range(15):
        decision = await service.decide()
        clock.forward(60)
        assert failed(await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 0.9}))[0] == 410
    after = await folded(service)
    assert [arm.surprise for arm in after.ledger.arms] == [arm.surprise for arm in before]
    assert after.ledger.alarms == []
    assert sum(arm.outcomes for arm in after.ledger.arms) == 35, "they are learned all the same"


async def test_nothing_is_watched_unless_the_policy_says_so(service: Service) -> None:
    await service.create(body={**body_of("auto-no-prompt"), "policy": {"kind": "auto"}})
    await play(service, {}, rounds=10, means={"fallen": 0.9, "other": 0.4})
    assert all("surprise" not in entry for entry in await service.log())


@pytest.mark.parametrize("setting", ["on", True, None])
async def test_a_wrong_setting_of_drift_is_named(service: Service, setting: Any) -> None:
    response = await service.put("/v1/bandits/b", {**body_of("auto"), "policy": {"kind": "auto", "drift": setting}})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "policy.drift")
