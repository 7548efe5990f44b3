"""Decisions: what is asked, what is answered, what a repeated request gets, what a batch keeps apart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from service.embedders import registry
from service.embedders.base import Embedder, Spec, Vector
from tests.service.http_client import ARMS, GREEDY, PROMPT, VECTOR, Clock, Json, Service, answered, failed, float32, opened, paths

RANDOM: Json = {"policy": {"kind": "random"}, "arms": [{"name": f"arm {i}"} for i in range(64)], "seed": 7}


async def test_a_decision_is_answered_as_it_stands_in_the_log(service: Service) -> None:
    await service.create(body=VECTOR)
    response = await service.post("/v1/bandits/b/decisions", PROMPT)
    assert response.status_code == 201
    decision = answered(response)
    assert UUID(decision["id"]).version == 7
    assert (decision["bandit"], decision["episode"], decision["attempt"]) == ("b", decision["id"], 1)
    assert (decision["arm"], decision["stop"], decision["propensity"]) == ("small", False, 1.0)
    assert decision["weights"] == {"small": 1.0, "large": 0.0}
    # nothing seen: the prior mean 1, and exploration 0.5 times a width of |z| / sqrt(ridge) = 1
    assert decision["scores"]["large"] == {"estimate": 1.0, "bonus": pytest.approx(0.5)}
    logged = (await service.log())[decision["offset"] - 1]
    assert (logged["event"], logged["id"], logged["arm"], logged["price"]) == ("decided", decision["id"], 0, 0.25)
    assert logged["features"] == float32([0.25, -0.5, 2.0])


async def test_the_propensity_is_the_weight_of_the_arm(service: Service) -> None:
    await service.create(body={**GREEDY, "policy": {"kind": "epsilon-greedy", "epsilon": 0.3, "initial_pulls": 0}})
    for _ in range(20):
        decision = await service.decide()
        assert sorted(decision["weights"].values()) == pytest.approx([0.15, 0.85])
        assert decision["propensity"] == decision["weights"][decision["arm"]]


async def test_a_base64_vector_is_the_same_as_the_list(service: Service) -> None:
    await service.create(body=VECTOR)
    numbers = [0.1, -1e-7, 3.0]
    first = await service.decide(body={"id": "mine", "prompt": {"vector": numbers}})
    again = await service.post("/v1/bandits/b/decisions", {"id": "mine", "prompt": {"vector": float32(numbers)}})
    assert (again.status_code, answered(again)) == (200, first)
    other = await service.post("/v1/bandits/b/decisions", {"id": "mine", "prompt": {"vector": float32([0.1, -1e-7, 3.5])}})
    assert failed(other) == (409, "decision_conflict")
    assert await service.offset() == 2


SAME = [
    ({}, {"prompt": None, "arms": None, "episode": None, "dry_run": False}),
    ({"arms": ["small"]}, {"arms": [{"name": "small"}]}),
    ({"arms": [{"name": "small", "price": 2}]}, {"arms": [{"name": "small", "price": 2.0}]}),
    ({"prompt": "good morning"}, {"prompt": {"text": "good morning"}}),
]
OTHER = [
    ({}, {"arms": ["small"]}),
    ({"arms": ["small"]}, {"arms": [{"name": "small", "price": 0.25}]}),
    ({"arms": ["small", "large"]}, {"arms": ["large"]}),
    ({}, {"episode": "mine"}),
    ({"prompt": "good morning"}, {"prompt": "good night"}),
    ({"prompt": "good morning"}, {}),
]


@pytest.mark.parametrize(("first", "again"), SAME)
async def test_the_same_id_and_the_same_request_is_the_same_decision(service: Service, first: Json, again: Json) -> None:
    await service.create()
    made = await service.post("/v1/bandits/b/decisions", {"id": "mine", **first})
    repeated = await service.post("/v1/bandits/b/decisions", {"id": "mine", **again})
    assert (made.status_code, repeated.status_code) == (201, 200)
    assert answered(repeated) == answered(made)
    assert await service.offset() == 2


@pytest.mark.parametrize(("first", "again"), OTHER)
async def test_the_same_id_with_another_request_is_a_conflict(service: Service, first: Json, again: Json) -> None:
    await service.create()
    await service.decide(body={"id": "mine", **first})
    assert failed(await service.post("/v1/bandits/b/decisions", {"id": "mine", **again})) == (409, "decision_conflict")
    assert await service.offset() == 2


async def test_a_repeated_request_is_known_after_the_outcome_and_after_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create(body=VECTOR)
        first = await service.decide(body={"id": "mine", **PROMPT})
        await service.observe("mine")
        await service.decide(body={"id": "another", **PROMPT})
        assert await service.decide(body={"id": "mine", **PROMPT}) == first
    async with opened(store=store) as service:
        repeated = await service.post("/v1/bandits/b/decisions", {"id": "mine", **PROMPT})
        assert (repeated.status_code, answered(repeated)) == (200, first)


async def test_a_repeated_request_is_answered_even_where_a_new_one_is_not() -> None:
    async with opened(max_open=1) as service:
        await service.create(body=VECTOR)
        first = await service.decide(body={"id": "mine", "arms": ["small"], **PROMPT})
        assert failed(await service.post("/v1/bandits/b/decisions", PROMPT)) == (429, "rate_limited")
        for arm in ("small", "large"):
            await service.delete(f"/v1/bandits/b/arms/{arm}")
        assert await service.decide(body={"id": "mine", "arms": ["small"], **PROMPT}) == first


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
async def test_one_id_is_one_decision_however_many_ask_at_once(store: str, tmp_path: Path) -> None:
    async with opened(store=f"sqlite:///{tmp_path}/bandits.db" if store == "sqlite" else store) as service:
        await service.create(body=RANDOM)
        answers = await asyncio.gather(
            *(service.post("/v1/bandits/b/decisions", {"id": f"id-{i % 4}"}) for i in range(64)),
            *(service.post("/v1/bandits/b/decisions", {"id": "id-0", "arms": ["arm 1"]}) for _ in range(8)),
        )
        same, other = answers[:64], answers[64:]
        arms: dict[str, set[str]] = {}
        for response in same:
            if response.status_code < 300:
                arms.setdefault(answered(response)["id"], set()).add(answered(response)["arm"])
        assert sorted(response.status_code for response in answers).count(201) == 4
        assert {len(several) for several in arms.values()} == {1}
        # id-0 went to one of two different requests, and to no other
        won = {response.status_code for response in other if response.status_code < 300}
        lost = same[0::4] if won else other
        assert {failed(response) for response in lost} == {(409, "decision_conflict")}
        bandit = await service.bandit()
        assert (bandit["decisions"], bandit["open"], bandit["offset"]) == (4, 4, 5)
        assert sum(arm["pending"] for arm in bandit["arms"]) == 4


async def test_sixteen_clients_on_a_cold_bandit_spread_evenly(service: Service) -> None:
    await service.create(
        body={**VECTOR, "arms": [{"name": f"arm {i}"} for i in range(4)], "policy": {"kind": "pak-ucb", "initial_pulls": 4}}
    )
    decisions = await asyncio.gather(*(service.decide(body=PROMPT) for _ in range(16)))
    chosen = [decision["arm"] for decision in decisions]
    assert {arm: chosen.count(arm) for arm in set(chosen)} == {f"arm {i}": 4 for i in range(4)}


# -- arms and prices of one decision -------------------------------------------------------------------------------------------


async def test_a_decision_can_be_restricted_and_carry_a_price_of_its_own(service: Service) -> None:
    await service.create()
    only = await service.decide(body={"arms": [{"name": "large", "price": 0.125}]})
    assert only["arm"] == "large"
    assert only["scores"].keys() == {"large"}
    await service.observe(only["id"])
    assert (await service.log())[-1]["cost"] == 0.125
    assert (await service.arm("large"))["price"] == 4.0  # it held for that decision alone


async def test_unknown_retired_and_doubled_arms_are_distinguished(service: Service) -> None:
    await service.create()
    await service.put("/v1/bandits/b/arms/old", {})
    await service.delete("/v1/bandits/b/arms/old")
    before = await service.offset()
    unknown = await service.post("/v1/bandits/b/decisions", {"arms": ["small", "nobody"]})
    retired = await service.post("/v1/bandits/b/decisions", {"arms": ["small", "old"]})
    doubled = await service.post("/v1/bandits/b/decisions", {"arms": ["small", {"name": "small", "price": 1}]})
    none = await service.post("/v1/bandits/b/decisions", {"arms": []})
    assert failed(unknown) == (404, "arm_not_found")
    assert "arms.1" in unknown.json()["detail"]
    assert (failed(retired), paths(retired)) == ((422, "invalid_request"), ["arms.1"])
    assert (failed(doubled), paths(doubled)) == ((422, "invalid_request"), ["arms"])
    assert (failed(none), paths(none)) == ((422, "invalid_request"), ["arms"])
    assert await service.offset() == before


# -- dry runs ------------------------------------------------------------------------------------------------------------------


async def test_a_dry_run_answers_and_leaves_no_trace(service: Service) -> None:
    await service.create(body=VECTOR)
    before = await service.bandit()
    response = await service.post("/v1/bandits/b/decisions", {**PROMPT, "dry_run": True})
    decision = answered(response)
    assert response.status_code == 200
    assert (decision["id"], decision["episode"], decision["arm"], decision["offset"]) == (None, None, "small", 1)
    assert await service.bandit() == before
    made = await service.decide(body=PROMPT)
    assert {**decision, "id": made["id"], "episode": made["id"], "offset": 2} == made


async def test_a_dry_run_with_an_id_foretells_that_decision_and_does_not_take_the_id(service: Service) -> None:
    await service.create(body=RANDOM)
    predicted = [(await service.decide(body={"id": f"id-{i}", "dry_run": True}))["arm"] for i in range(8)]
    made = [(await service.decide(body={"id": f"id-{i}"}))["arm"] for i in range(8)]
    assert predicted == made
    assert len(set(made)) > 1
    assert (await service.decide(body={"id": "id-0", "arms": ["arm 1"], "dry_run": True}))["arm"] == "arm 1"


# -- prompts -------------------------------------------------------------------------------------------------------------------


async def test_a_policy_that_ignores_prompts_needs_none_and_minds_none(service: Service) -> None:
    await service.create()
    for prompt in ("good morning", {"vector": [0.5]}, {"text": "good night"}, None):
        await service.decide(body={"prompt": prompt})
    assert all(event["features"] == "" for event in (await service.log())[1:])
    await service.create("with-prompts", body={**GREEDY, "prompt": {"dim": 3}})
    await service.decide("with-prompts")
    await service.decide("with-prompts", PROMPT)
    logged = [event["features"] for event in (await service.log("with-prompts"))[1:]]
    assert logged == ["", float32([0.25, -0.5, 2.0])]  # kept, for evaluating another policy on this log


@pytest.mark.parametrize("name", ["static", "minilm"])
async def test_a_text_is_embedded_and_the_log_holds_the_vector_only(service: Service, name: str) -> None:
    if not registry.available(name):
        pytest.skip(f"{', '.join(registry.spec(name).missing)} not installed")
    await service.create(body={**VECTOR, "prompt": {"embedder": name}})
    text = "Which planet is the largest one?"
    await service.decide(body={"prompt": text})
    await service.decide(body={"prompt": {"text": text}})
    raw = (await service.get("/v1/bandits/b/log")).text
    assert "planet" not in raw
    first, second = [event["features"] for event in (await service.log())[1:]]
    assert first == second
    repeated = {"id": "mine", "prompt": text}
    assert await service.decide(body=repeated) == await service.decide(body=repeated)


class _Stuck:
    """An embedder that hangs until `go_on` is set."""

    name, dim, version, unit_norm = "stuck", 3, "stuck 1", True

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.was_released = False

    def embed(self, texts: Sequence[str]) -> Vector:
        self.begun.set()
        self.was_released = self.go_on.wait(20.0)  # long enough to fail, never reached
        return np.tile(np.array([0.6, 0.0, 0.8], dtype=np.float32), (len(texts), 1))


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> _Stuck:
    embedder = _Stuck()

    def load(spec: Spec) -> Embedder:
        return embedder

    spec = Spec(name="stuck", modality="text", dim=3, unit_norm=True, licence="", loader=load)
    monkeypatch.setitem(registry.EMBEDDERS, "stuck", spec)
    return embedder


async def test_vectors_are_answered_while_a_text_is_being_embedded(service: Service, stuck: _Stuck) -> None:
    await service.create("texts", body={**VECTOR, "prompt": {"embedder": "stuck"}})
    await service.create("vectors", body=VECTOR)
    slow = asyncio.create_task(service.decide("texts", {"prompt": "good morning"}))
    while not stuck.begun.is_set():
        await asyncio.sleep(0)
    for _ in range(5):
        decision = await service.decide("vectors", PROMPT)
        await service.observe(decision["id"], name="vectors")
    assert not slow.done()
    assert await service.offset("texts") == 1
    stuck.go_on.set()
    assert (await slow)["arm"] == "small"
    assert stuck.was_released


async def test_an_arm_that_retires_during_the_embedding_is_not_chosen(service: Service, stuck: _Stuck) -> None:
    await service.create(body={**VECTOR, "prompt": {"embedder": "stuck"}})
    anything = asyncio.create_task(service.post("/v1/bandits/b/decisions", {"prompt": "good morning"}))
    only_small = asyncio.create_task(service.post("/v1/bandits/b/decisions", {"prompt": "good day", "arms": ["small"]}))
    while not stuck.begun.is_set():
        await asyncio.sleep(0)
    await service.delete("/v1/bandits/b/arms/small")
    stuck.go_on.set()
    assert answered(await anything)["arm"] == "large"
    assert failed(await only_small) == (422, "invalid_request")


async def test_a_bandit_that_is_deleted_during_the_embedding_is_gone(service: Service, stuck: _Stuck) -> None:
    await service.create(body={**VECTOR, "prompt": {"embedder": "stuck"}})
    waiting = asyncio.create_task(service.post("/v1/bandits/b/decisions", {"prompt": "good morning"}))
    while not stuck.begun.is_set():
        await asyncio.sleep(0)
    await service.delete("/v1/bandits/b")
    stuck.go_on.set()
    assert failed(await waiting) == (404, "bandit_not_found")


# -- batches -------------------------------------------------------------------------------------------------------------------


async def test_a_batch_answers_in_order_and_keeps_failures_apart(service: Service) -> None:
    await service.create(body=VECTOR)
    items: list[Any] = [
        {"id": "one", **PROMPT},
        {"prompt": {"vector": [1.0, 2.0]}},
        {"prompt": {"vector": [1.0, 2.0, 3.0]}, "arms": ["nobody"]},
        None,
        {"id": "one", **PROMPT},
        {"id": "one", "prompt": {"vector": [9.0, 9.0, 9.0]}},
        {**PROMPT, "unknown": 1},
        "good morning",
        {**PROMPT, "dry_run": True},
        {**PROMPT, "arms": ["large"]},
    ]
    response = await service.post("/v1/bandits/b/decisions/batch", {"decisions": items})
    assert response.status_code == 200
    answers = answered(response)["decisions"]
    codes = [item.get("code") for item in answers]
    assert codes == [
        None,
        "invalid_request",
        "arm_not_found",
        "invalid_request",
        None,
        "decision_conflict",
        "invalid_request",
        "invalid_request",
        None,
        None,
    ]
    assert answers[1]["errors"][0]["path"] == "prompt.vector"
    assert answers[6]["errors"][0]["path"] == "unknown"
    assert [item.get("status") for item in answers if "code" in item] == [422, 404, 422, 409, 422, 422]
    assert answers[0] == answers[4]
    assert answers[9]["arm"] == "large"
    assert await service.offset() == 3  # created, one, and the last


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"decisions": []}, "decisions"),
        ({"decisions": [{}] * 1025}, "decisions"),
        ({"decisions": {}}, "decisions"),
        ({}, "decisions"),
        ({"decisions": [{}], "next": True}, "next"),
    ],
)
async def test_a_batch_has_one_to_1024_decisions(service: Service, body: Json, path: str) -> None:
    await service.create()
    response = await service.post("/v1/bandits/b/decisions/batch", body)
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == [path]
    assert await service.offset() == 1


async def test_a_full_batch_is_decided_in_its_order(service: Service) -> None:
    await service.create(body={**GREEDY, "policy": {"kind": "greedy", "initial_pulls": 512}})
    answers = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [{}] * 1024}))["decisions"]
    assert [item["arm"] for item in answers] == ["small", "large"] * 512
    assert [item["offset"] for item in answers] == list(range(2, 1026))


# -- the life of a decision ----------------------------------------------------------------------------------------------------


async def test_a_decision_tells_what_became_of_it(service: Service, clock: Clock) -> None:
    await service.create(body={**GREEDY, "reward": {"timeout_s": 60}})
    observed, cancelled, expired, still_open = [(await service.decide())["id"] for _ in range(4)]
    clock.forward(59)
    last = (await service.decide())["id"]
    await service.observe(observed, {"reward": 0.5, "cost": 3.0})
    assert (await service.delete(f"/v1/bandits/b/decisions/{cancelled}")).status_code == 204
    shown = answered(await service.get(f"/v1/bandits/b/decisions/{still_open}"))
    assert (shown["state"], shown["reward"], shown["closed_at"]) == ("open", None, None)
    assert shown["decided_at"] == "2026-01-31T12:00:00Z"
    clock.forward(1)
    states = [answered(await service.get(f"/v1/bandits/b/decisions/{i}")) for i in (observed, cancelled, expired, last)]
    assert [state["state"] for state in states] == ["observed", "cancelled", "expired", "open"]
    assert (states[0]["reward"], states[0]["cost"], states[0]["closed_at"]) == (0.5, 3.0, "2026-01-31T12:00:59Z")
    assert (states[1]["reward"], states[2]["reward"]) == (None, None)
    assert (states[1]["cost"], states[2]["cost"]) == (None, None), "nothing was learned of them"
    assert failed(await service.get("/v1/bandits/b/decisions/nobody")) == (404, "decision_not_found")


async def test_cancelling_twice_is_cancelling_once_and_nothing_is_learned(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    for _ in range(2):
        assert (await service.delete(f"/v1/bandits/b/decisions/{decision['id']}")).status_code == 204
    arm = await service.arm(decision["arm"])
    assert (arm["outcomes"], arm["pending"]) == (0, 0)
    assert await service.offset() == 3
    assert failed(await service.delete("/v1/bandits/b/decisions/nobody")) == (404, "decision_not_found")


async def test_what_is_over_cannot_be_cancelled(service: Service, clock: Clock) -> None:
    await service.create(body={**GREEDY, "reward": {"timeout_s": 60}})
    observed, expired = [(await service.decide())["id"] for _ in range(2)]
    await service.observe(observed)
    clock.forward(61)
    assert failed(await service.delete(f"/v1/bandits/b/decisions/{observed}")) == (409, "outcome_conflict")
    assert failed(await service.delete(f"/v1/bandits/b/decisions/{expired}")) == (410, "decision_expired")


async def test_too_many_open_decisions_shed_load_until_some_are_closed() -> None:
    async with opened(max_open=3) as service:
        await service.create()
        decisions = [await service.decide() for _ in range(3)]
        assert failed(await service.post("/v1/bandits/b/decisions", {})) == (429, "rate_limited")
        await service.observe(decisions[0]["id"])
        await service.decide()


async def test_the_arms_of_a_decision_are_named_as_they_were(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    await service.put("/v1/bandits/b/arms/new", {})
    shown = answered(await service.get(f"/v1/bandits/b/decisions/{decision['id']}"))
    assert shown["weights"].keys() == {arm["name"] for arm in ARMS}
