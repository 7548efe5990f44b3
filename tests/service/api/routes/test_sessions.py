"""Sessions: later decisions get the arm of the first, on every replica and after everything that can happen in between."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.cli.formats import write_dsjson
from service.cli.log_reader import LogReader
from service.cli.migrate import key_of
from service.engine import events, ledger
from service.engine.evaluation import Evaluation
from service.engine.events import Created, SessionBegun
from service.storage.base import Durability
from tests.service.http_client import PROMPT, VECTOR, Clock, Json, Service, answered, failed, opened, paths
from tests.service.storages import STORAGES, store_of

ARMS = [{"name": f"arm {i}", "price": 0.5 * i} for i in range(8)]
RANDOM: Json = {"policy": {"kind": "random"}, "arms": ARMS, "session_ttl_s": 60.0, "seed": 7}
"""Eight arms by chance: of two decisions, one in eight has the same arm without a session."""


async def decide(service: Service, session: str = "s", **asked: Any) -> Json:
    return await service.decide(body={"session": session, **asked})


async def test_later_decisions_get_the_arm_of_the_first(service: Service) -> None:
    await service.create(body=RANDOM)
    first = await decide(service, id="first", metadata={"turn": 1})
    assert first["propensity"] == 0.125
    assert first["session"] == "s"
    assert not {"sticky", "chosen_by"} & set(first)
    later = [await decide(service) for _ in range(4)]
    for decision in later:
        assert (decision["arm"], decision["sticky"], decision["chosen_by"]) == (first["arm"], True, "first")
        assert decision["propensity"] is None
        assert decision["weights"] == {f"arm {i}": float(f"arm {i}" == first["arm"]) for i in range(8)}
    for decision in (first, *later):
        await service.observe(decision["id"], {"reward": 0.5})
    arm = await service.arm(first["arm"])
    assert (arm["pulls"], arm["outcomes"]) == (5, 5), "they are learned like any other"
    shown = answered(await service.get(f"/v1/bandits/b/decisions/{later[0]['id']}"))
    assert (shown["sticky"], shown["propensity"], shown["reward"]) == (True, None, 0.5)
    assert await decide(service, id="first", metadata={"turn": 1}) == first
    for other in ({"session": "t", "metadata": {"turn": 1}}, {"metadata": {"turn": 1}}):
        assert failed(await service.post("/v1/bandits/b/decisions", {"id": "first", **other})) == (409, "decision_conflict")
    kinds = [entry["event"] for entry in await service.log()]
    assert kinds == ["created", "session_begun", *["decided"] * 5, *["observed"] * 5]
    assert len({(await decide(service, f"s{i}"))["arm"] for i in range(20)}) > 1, "each session has its own"


async def test_rows_of_one_batch_share_the_arm_of_their_session(service: Service) -> None:
    await service.create(body=RANDOM)
    rows = [{"session": f"s{i % 3}", "id": f"row-{i}"} for i in range(30)]
    found = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [*rows, {}, rows[0]]}))["decisions"]
    for i, decision in enumerate(found[:30]):
        assert decision["arm"] == found[i % 3]["arm"]
        assert decision.get("chosen_by") == (None if i < 3 else f"row-{i % 3}")
    assert "session" not in found[30]
    assert found[31] == found[0], "a repeated id is the same decision"
    assert sum(entry["event"] == "session_begun" for entry in await service.log()) == 3


async def test_a_session_begins_again_where_its_arm_cannot_be_had(service: Service, clock: Clock) -> None:
    body = {**RANDOM, "cooldown": {"errors": 1, "within_s": 60.0, "for_s": 30.0}}
    await service.create(body=body)
    arm = (await decide(service, max_price=10.0))["arm"]
    for field in ("exclude", "arms"):
        names = [one["name"] for one in ARMS if (one["name"] == arm) == (field == "exclude")]
        asked: Json = {field: names}
        moved = await decide(service, **asked)
        assert "sticky" not in moved
        assert moved["arm"] != arm
        stays = await decide(service)
        assert (stays["arm"], stays["chosen_by"]) == (moved["arm"], moved["id"])
        arm = moved["arm"]
    dear = await decide(
        service, arms=[{"name": arm, "price": 9.0}, {"name": "arm 0" if arm != "arm 0" else "arm 1", "price": 0.0}], max_price=1.0
    )
    assert "sticky" not in dear
    assert dear["arm"] != arm
    await service.observe(dear["id"], {"error": "down"})
    cooled = await decide(service)
    assert "sticky" not in cooled
    assert cooled["arm"] != dear["arm"]
    assert (await decide(service, arms=[dear["arm"]]))["cooldown_ignored"], "another generation, for what alone is allowed"
    assert (await decide(service, arms=[dear["arm"]]))["sticky"]
    clock.forward(31)
    arm = (await decide(service))["arm"]
    await service.delete(f"/v1/bandits/b/arms/{arm}")
    retired = await decide(service)
    assert "sticky" not in retired
    assert retired["arm"] != arm
    generations = [entry["generation"] for entry in await service.log() if entry["event"] == "session_begun"]
    assert generations == list(range(1, len(generations) + 1))


async def test_the_time_to_live_runs_from_the_last_decision(service: Service, clock: Clock) -> None:
    await service.create(body=RANDOM)
    await decide(service, id="first")
    for _ in range(3):
        clock.forward(60)
        assert (await decide(service))["chosen_by"] == "first"
    clock.forward(60.5)
    assert "sticky" not in await decide(service, id="second")
    assert (await decide(service))["chosen_by"] == "second"
    clock.forward(30)
    dry = await decide(service, dry_run=True)
    assert not {"sticky", "session"} & set(dry), "it reads none"
    await decide(service, "other", dry_run=True)
    assert "sticky" not in await decide(service, "other"), "and makes none"
    clock.forward(31)
    assert "sticky" not in await decide(service), "nor does it keep one alive"
    changed = answered(await service.patch("/v1/bandits/b", {"session_ttl_s": None}))
    assert (changed["session_ttl_s"], "session_ttl_s" in changed["configuration"]) == (None, False)
    assert "sticky" not in await decide(service)
    changed = answered(await service.patch("/v1/bandits/b", {"session_ttl_s": 5.0}))
    assert changed["session_ttl_s"] == changed["configuration"]["session_ttl_s"] == 5.0
    assert (await service.put("/v1/bandits/b", changed["configuration"])).status_code == 200
    assert (await decide(service))["sticky"]


async def test_sessions_that_cannot_be_are_refused(service: Service) -> None:
    promptwise = {**VECTOR, "policy": {"kind": "promptwise"}}
    refused = await service.put("/v1/bandits/b", {**promptwise, "session_ttl_s": 60.0})
    assert (failed(refused)[0], paths(refused)) == (422, ["session_ttl_s"])
    await service.create(body=promptwise)
    refused = await service.patch("/v1/bandits/b", {"session_ttl_s": 60.0})
    assert (failed(refused)[0], paths(refused)) == (422, ["session_ttl_s"])
    assert "sticky" not in await decide(service, **PROMPT)
    assert "sticky" not in await decide(service, **PROMPT), "it is logged, and no more"
    for session in ("", "x" * 129, 7):
        refused = await service.post("/v1/bandits/b/decisions", {**PROMPT, "session": session})
        assert (failed(refused)[0], paths(refused)) == (422, ["session"])


async def test_the_next_decision_is_of_the_same_session(service: Service) -> None:
    await service.create(body=RANDOM)
    first = await decide(service)
    following = (await service.observe(first["id"], {"reward": 0.5, "next": True}))["next"]
    assert (following["arm"], following["session"], following["chosen_by"]) == (first["arm"], "s", first["id"])


async def test_the_least_recent_sessions_are_forgotten_and_begin_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT_SESSIONS", 2)
    await service.create(body=RANDOM)
    for session in ("s", "t", "s"):
        await decide(service, session)
    await decide(service, "u")
    assert (await decide(service, "s"))["sticky"]
    assert "sticky" not in await decide(service, "t")
    assert await service.ledger() == await service.replayed()


@pytest.mark.parametrize("storage", STORAGES)
async def test_a_session_has_one_arm_on_every_replica_and_after_a_restart(storage: str, tmp_path: Path) -> None:
    settings, number = store_of(storage, tmp_path), 2 if storage == "redis" else 1
    body = {**RANDOM, "session_ttl_s": 1e6}
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(opened(**settings)) for _ in range(number)]
        await services[0].create(body=body)
        arms: dict[str, str] = {}
        for i in range(8):
            asked = [decide(services[k % number], f"s{i}") for k in range(4)]
            found = await asyncio.gather(*asked)
            assert len({decision["arm"] for decision in found}) == 1
            (chooser,) = [decision for decision in found if "sticky" not in decision]
            assert {decision["chosen_by"] for decision in found if decision is not chooser} == {chooser["id"]}
            arms[f"s{i}"] = chooser["arm"]
        end = 1 + 8 + 8 * 4  # created, sessions, decisions
        digests = [answered(await one.get(f"/v1/bandits/b/digest?min_offset={end}")) for one in services]
        assert all(digest == digests[0] for digest in digests)
        log = await services[-1].log()
        assert (len(log), sum(entry["event"] == "session_begun" for entry in log)) == (end, 8)
        assert await services[-1].ledger() == await services[-1].replayed()
    if storage == "memory":
        return
    async with opened(**settings) as service:
        for session, arm in arms.items():
            again = await decide(service, session)
            assert (again["arm"], again["sticky"]) == (arm, True)


async def test_a_decision_whose_process_ended_behind_its_session_is_made_as_it_was_drawn(service: Service) -> None:
    await service.create(body=RANDOM)
    made = await decide(service, id="mine")
    (begun, decided) = [entry for entry in await service.log() if entry["event"] in ("session_begun", "decided")]
    assert begun["decision"] == {**{k: v for k, v in decided.items() if k != "offset"}, "features": ""}
    event = events.decode(msgspec.json.encode({k: v for k, v in begun.items() if k != "offset"}))
    assert isinstance(event, SessionBegun)
    assert key_of(event, 2) == "session//s/1"
    body = events.body_digest(None, None, None, {"session": "t"})
    drawn = msgspec.structs.replace(event.decision, id="lost", episode="lost", session="t", propensity=0.25, body=body)
    learner = await service._learner("b")
    await learner.committer.commit([msgspec.structs.replace(event, session="t", decision=drawn)], Durability.PROCESS)
    other = await decide(service, "t")
    assert (other["arm"], other["chosen_by"]) == (made["arm"], "lost")
    again = await decide(service, "t", id="lost")
    assert "sticky" not in again
    assert (again["arm"], again["propensity"]) == (made["arm"], 0.25)
    logged = (await service.log())[-1]
    assert events.decode(msgspec.json.encode({k: v for k, v in logged.items() if k != "offset"})) == drawn
    assert sum(entry["event"] == "session_begun" for entry in await service.log()) == 2
    assert (await decide(service, "t"))["chosen_by"] == "lost"


async def test_what_is_not_drawn_is_evaluated_by_what_was_and_is_cloned_without_weights(service: Service) -> None:
    await service.create(body=RANDOM)
    for i in range(12):
        decision = await decide(service, f"s{i % 4}")
        await service.observe(decision["id"], {"reward": 0.25 * (i % 3)})
    learner = await service._learner("b")
    entries = await learner.entries(after=0, limit=1000)
    created = events.decode(entries[0][1])
    assert isinstance(created, Created)
    evaluation = Evaluation(created)
    for offset, payload in entries[1:]:
        evaluation.add(offset, payload)
    results = evaluation.results()
    assert (results.decisions, dict(results.left_out)) == (12, {})
    assert results.behaviour.value == pytest.approx(0.25)
    lines = [events.line(offset, payload) for offset, payload in entries]
    assert write_dsjson(lines, io.BytesIO()) == 4, "there is no probability of the others"
    read = list(LogReader().read(lines))
    assert [(one.propensity is None, one.is_overridden) for one in read] == [(i >= 4, False) for i in range(12)]
    made = await service.post("/v1/bandits/b/clone", {"name": "other", "policy": {"kind": "auto"}})
    assert made.status_code == 202, made.text
    await service.settle("other")
    rows = [entry for entry in await service.log("other") if entry["event"] == "imported"]
    assert [("weights" in row, "propensity" in row) for row in rows] == [(i < 4, i < 4) for i in range(12)]
