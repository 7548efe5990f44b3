"""Outcomes: learned exactly once, for the arm that was really called, and never after the decision is over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.service.http_client import GREEDY, PROMPT, VECTOR, Clock, Json, Service, answered, failed, float32, opened, paths

OUTPUTS: Json = {"policy": {"kind": "fd-ucb"}, "arms": [{"name": "a"}, {"name": "b"}], "output": {"dim": 3}, "seed": 7}
CLASSES: Json = {**OUTPUTS, "policy": {"kind": "is-ucb"}, "output": {"embedder": "probabilities", "dim": 3}}
EPISODES: Json = {
    "policy": {"kind": "promptwise", "forced_pulls": 0},
    "arms": [{"name": "small", "price": 0.01}, {"name": "large", "price": 0.02}],
    "prompt": {"dim": 3},
    "seed": 7,
}


async def test_an_outcome_is_learned_once_and_its_receipt_is_kept(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    first = await service.observe(decision["id"], {"reward": 0.75})
    assert first == {"decision": decision["id"], "reward": 0.75, "offset": 3, "duplicate": False, "next": None}
    again = await service.observe(decision["id"], {"reward": 0.75, "cost": None, "output": None, "next": False})
    assert again == {**first, "duplicate": True}
    for other in ({"reward": 0.5}, {"reward": 0.75, "cost": 0.25}, {"reward": 0.75, "arm": decision["arm"]}):
        response = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", other)
        assert failed(response) == (409, "outcome_conflict")
    arm = await service.arm(decision["arm"])
    assert (arm["outcomes"], arm["mean_reward"], arm["total_cost"]) == (1, 0.75, 0.25)
    assert await service.offset() == 3


async def test_the_first_receipt_is_known_after_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create()
        decision = await service.decide(body={"id": "mine"})
        first = await service.observe("mine")
    async with opened(store=store) as service:
        assert await service.observe("mine") == {**first, "duplicate": True}
        assert failed(await service.put("/v1/bandits/b/decisions/mine/outcome", {"reward": 0.5})) == (409, "outcome_conflict")
        assert (await service.arm(decision["arm"]))["outcomes"] == 1


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
async def test_of_many_outcomes_at_once_one_is_learned(store: str, tmp_path: Path) -> None:
    async with opened(store=f"sqlite:///{tmp_path}/bandits.db" if store == "sqlite" else store) as service:
        await service.create()
        decision = await service.decide()
        path = f"/v1/bandits/b/decisions/{decision['id']}/outcome"
        answers = await asyncio.gather(*(service.put(path, {"reward": 0.25 * (i % 2 + 1)}) for i in range(32)))
        accepted = [answered(response) for response in answers if response.status_code == 200]
        refused = [failed(response) for response in answers if response.status_code != 200]
        assert [receipt["duplicate"] for receipt in accepted].count(False) == 1
        assert {(receipt["reward"], receipt["offset"]) for receipt in accepted} == {(accepted[0]["reward"], 3)}
        assert set(refused) == {(409, "outcome_conflict")}
        assert len(refused) == 16
        assert (await service.arm(decision["arm"]))["outcomes"] == 1


async def test_a_base64_output_is_the_same_as_the_list(service: Service) -> None:
    await service.create(body=OUTPUTS)
    await service.post("/v1/bandits/b/references", {"outputs": [{"vector": [1.0, 0.0, 0.5]}, {"vector": [0.0, 1.0, 0.25]}]})
    decision = await service.decide()
    first = await service.observe(decision["id"], {"output": [{"vector": [0.1, 0.2, 0.3]}]})
    again = await service.observe(decision["id"], {"output": {"vector": float32([0.1, 0.2, 0.3])}})
    assert again == {**first, "duplicate": True}


async def test_no_outcome_comes_late(service: Service, clock: Clock) -> None:
    await service.create(body={**GREEDY, "reward": {"timeout_s": 60}})
    expired, cancelled = [(await service.decide())["id"] for _ in range(2)]
    await service.delete(f"/v1/bandits/b/decisions/{cancelled}")
    clock.forward(60)
    late = await service.put(f"/v1/bandits/b/decisions/{expired}/outcome", {"reward": 0.5})
    withdrawn = await service.put(f"/v1/bandits/b/decisions/{cancelled}/outcome", {"reward": 0.5})
    unknown = await service.put("/v1/bandits/b/decisions/nobody/outcome", {"reward": 0.5})
    assert failed(late) == (410, "decision_expired")
    assert failed(withdrawn) == (410, "decision_cancelled")
    assert failed(unknown) == (404, "decision_not_found")
    assert [event["event"] for event in await service.log()] == ["created", "decided", "decided", "cancelled", "expired"]
    assert sum(arm["outcomes"] for arm in (await service.bandit())["arms"]) == 0


async def test_a_missing_outcome_is_learned_as_the_default(service: Service, clock: Clock) -> None:
    await service.create(body={**GREEDY, "reward": {"timeout_s": 60, "default": -0.5}})
    decision = await service.decide()
    clock.forward(61)
    assert failed(await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 0.5}))[0] == 410
    arm = await service.arm(decision["arm"])
    assert (arm["outcomes"], arm["mean_reward"], arm["total_cost"], arm["pending"]) == (1, -0.5, 0.25, 0)
    assert (await service.log())[-1]["reward"] == -0.5
    shown = answered(await service.get(f"/v1/bandits/b/decisions/{decision['id']}"))
    assert (shown["state"], shown["reward"]) == ("expired", -0.5)


async def test_an_overridden_choice_is_learned_for_the_arm_that_was_called(service: Service) -> None:
    await service.create(body=VECTOR)
    decision = await service.decide(body=PROMPT)
    assert decision["arm"] == "small"
    await service.observe(decision["id"], {"reward": 0.5, "arm": "large"})
    event = (await service.log())[-1]
    assert (event["arm"], event["propensity"], event["cost"]) == (1, None, 4.0)
    small, large = await service.arm("small"), await service.arm("large")
    assert (small["pulls"], small["outcomes"], small["pending"]) == (0, 0, 0)
    assert (large["pulls"], large["outcomes"], large["mean_reward"]) == (1, 1, 0.5)
    # naming the suggested arm overrides nothing
    decision = await service.decide(body={**PROMPT, "arms": ["small"]})
    await service.observe(decision["id"], {"reward": 0.5, "arm": "small"})
    assert (await service.log())[-1]["propensity"] == 1.0


async def test_an_unknown_arm_is_none_that_was_called(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    for arm in ("nobody", ""):
        response = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 0.5, "arm": arm})
        assert failed(response) == (404, "arm_not_found")
    assert await service.offset() == 2


# -- what a policy needs -------------------------------------------------------------------------------------------------------


async def test_an_outcome_must_carry_what_the_policy_learns_from(service: Service) -> None:
    await service.create()
    await service.create("outputs", CLASSES)
    rewarded, shown = await service.decide(), await service.decide("outputs")
    without_reward = await service.put(f"/v1/bandits/b/decisions/{rewarded['id']}/outcome", {})
    without_output = await service.put(f"/v1/bandits/outputs/decisions/{shown['id']}/outcome", {"reward": 0.5})
    assert (failed(without_reward), paths(without_reward)) == ((422, "invalid_request"), ["reward"])
    assert (failed(without_output), paths(without_output)) == ((422, "invalid_request"), ["output"])
    assert (await service.offset(), await service.offset("outputs")) == (2, 2)


@pytest.mark.parametrize(
    ("output", "path"),
    [
        ({"probabilities": [0.5, 0.25, 0.5]}, "output"),
        ({"probabilities": [1.5, -0.25, -0.25]}, "output"),
        ({"probabilities": [0.5, 0.5]}, "output.probabilities"),
        ({"vector": [0.5, 0.25, 0.25]}, "output.vector"),
        ("a text", "output"),
        ({"image": "AAAA"}, "output.image"),
        ([], "output"),
        ([{"probabilities": [0.2, 0.3, 0.5]}] * 257, "output"),
        ([{"probabilities": [0.2, 0.3, 0.5]}, {"probabilities": [0.2, 0.3, 0.4]}], "output"),
        ([{"probabilities": [0.2, 0.3, 0.5]}, {"probabilities": [1.0]}], "output.1.probabilities"),
    ],
)
async def test_probabilities_are_checked_before_anything_is_kept(service: Service, output: Any, path: str) -> None:
    await service.create(body=CLASSES)
    decision = await service.decide()
    response = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"output": output})
    assert failed(response) == (422, "invalid_request")
    assert len(paths(response)) == 1
    assert paths(response)[0].startswith(path)
    assert await service.offset() == 2
    await service.observe(decision["id"], {"output": [{"probabilities": [0.2, 0.3, 0.5]}] * 256})
    assert (await service.log())[-1]["output"]["rows"] == 256


async def test_a_bandit_without_outputs_takes_none(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    path = f"/v1/bandits/b/decisions/{decision['id']}/outcome"
    for extra, named in (({"output": "a text"}, "output"), ({"reference": {"vector": [1.0]}}, "reference")):
        response = await service.put(path, {"reward": 0.5, **extra})
        assert (failed(response), paths(response)) == ((422, "invalid_request"), [named])
    assert await service.offset() == 2


# -- the decision that follows -------------------------------------------------------------------------------------------------


async def test_the_next_arm_comes_with_the_receipt_and_only_once(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    first = await service.observe(decision["id"], {"reward": 0.75, "next": True})
    assert (first["next"]["arm"], first["next"]["offset"]) == ("large", 4)
    again = await service.observe(decision["id"], {"reward": 0.75, "next": True})
    assert again == {**first, "duplicate": True}
    assert await service.observe(decision["id"], {"reward": 0.75}) == {**first, "duplicate": True, "next": None}
    assert await service.offset() == 4
    following = await service.observe(first["next"]["id"], {"reward": 0.25, "next": True})
    assert following["next"]["id"] != first["next"]["id"]


async def test_the_next_arm_is_the_same_after_a_restart_and_for_many_at_once(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    body = {**GREEDY, "policy": {"kind": "random"}}
    async with opened(store=store) as service:
        await service.create(body=body)
        await service.decide(body={"id": "mine"})
        receipts = await asyncio.gather(*(service.observe("mine", {"reward": 0.5, "next": True}) for _ in range(16)))
        assert len({receipt["next"]["id"] for receipt in receipts}) == 1
        assert await service.offset() == 4
    async with opened(store=store) as service:
        assert (await service.observe("mine", {"reward": 0.5, "next": True}))["next"] == receipts[0]["next"]
        assert await service.offset() == 4


async def test_an_outcome_with_nothing_to_follow_is_still_accepted(service: Service) -> None:
    await service.create()
    decision = await service.decide()
    for arm in ("small", "large"):
        await service.delete(f"/v1/bandits/b/arms/{arm}")
    receipt = await service.observe(decision["id"], {"reward": 0.75, "next": True})
    assert (receipt["next"], receipt["duplicate"]) == (None, False)
    assert (await service.arm("small"))["outcomes"] == 1


async def test_there_is_no_next_without_a_prompt(service: Service) -> None:
    await service.create(body=VECTOR)
    decision = await service.decide(body=PROMPT)
    response = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 0.5, "next": True})
    assert (failed(response), paths(response)) == ((422, "invalid_request"), ["next"])
    assert await service.offset() == 2


async def test_an_episode_goes_on_until_it_succeeds(service: Service) -> None:
    await service.create(body=EPISODES)
    first = await service.decide(body=PROMPT)
    failure = await service.observe(first["id"], {"reward": 0.0, "next": True})
    second = failure["next"]
    assert (second["episode"], second["attempt"]) == (first["episode"], 2)
    success = await service.observe(second["id"], {"reward": 1.0, "next": True})
    assert success["next"] is None
    response = await service.post("/v1/bandits/b/decisions", {**PROMPT, "episode": first["episode"]})
    assert failed(response) == (409, "episode_finished")


async def test_an_episode_is_about_one_prompt(service: Service) -> None:
    await service.create(body=EPISODES)
    first = await service.decide(body={**PROMPT, "episode": "mine"})
    await service.observe(first["id"], {"reward": 0.0})
    second = await service.decide(body={"episode": "mine"})
    assert (second["episode"], second["attempt"]) == ("mine", 2)
    assert await service.decide(body={**PROMPT, "episode": "mine", "dry_run": True})
    changed = await service.post("/v1/bandits/b/decisions", {"prompt": {"vector": [3.0, 2.0, 1.0]}, "episode": "mine"})
    assert (failed(changed), paths(changed)) == ((422, "invalid_request"), ["prompt"])
    features = {event["features"] for event in await service.log() if event["event"] == "decided"}
    assert features == {float32([0.25, -0.5, 2.0])}


async def test_an_episode_that_is_not_worth_another_call_ends_in_a_stop(service: Service) -> None:
    dear = {**EPISODES, "arms": [{"name": "dear", "price": 5.0}]}
    await service.create(body=dear)
    decision = await service.decide(body=PROMPT)
    while not decision["stop"]:
        decision = (await service.observe(decision["id"], {"reward": 0.0, "next": True}))["next"]
    assert (decision["arm"], decision["propensity"]) == (None, 1.0)
    path = f"/v1/bandits/b/decisions/{decision['id']}"
    assert answered(await service.get(path))["state"] == "observed"
    assert failed(await service.put(f"{path}/outcome", {"reward": 0.5})) == (409, "outcome_conflict")
    assert failed(await service.delete(path)) == (409, "outcome_conflict")


async def test_an_episode_has_no_more_attempts_than_its_policy_allows_even_if_no_outcome_ever_comes(
    service: Service, clock: Clock
) -> None:
    wise = {**EPISODES["policy"], "max_attempts": 2}
    await service.create(body={**EPISODES, "policy": wise, "reward": {"timeout_s": 60}})
    given = []
    for _ in range(3):
        given.append(await service.decide(body={**PROMPT, "episode": "mine"}))
        clock.forward(61)
    assert [decision["stop"] for decision in given] == [False, False, True]
    withdrawn = await service.decide(body={**PROMPT, "episode": "other"})
    assert (await service.delete(f"/v1/bandits/b/decisions/{withdrawn['id']}")).status_code == 204
    given = [await service.decide(body={**PROMPT, "episode": "other"}) for _ in range(3)]
    assert [decision["stop"] for decision in given] == [False, False, True], "a cancelled attempt was never made"


@pytest.mark.parametrize("rule", ["ratio", "horizon"])
async def test_an_unlucky_start_does_not_lock_an_arm_out(service: Service, rule: str) -> None:
    wise = {"kind": "promptwise", "rule": rule, "cost_weight": 0.3, "max_attempts": 1}
    await service.create(body={**EPISODES, "policy": wise, "arms": [{"name": "only", "price": 1.0}]})
    stops = []
    for number in range(30):
        decision = await service.decide(body={**PROMPT, "id": f"d{number}"})
        stops.append(decision["stop"])
        if not decision["stop"]:
            assert decision["propensity"] == 1.0
            calls = stops.count(False)
            await service.observe(f"d{number}", {"reward": float(calls > 4 and calls % 2)})
    assert any(stops[:8]), "the failures at the start were believed"
    assert not all(stops[8:]), "and tried again"
    assert sum(stops[20:]) <= 2, "until the successes were believed"


async def test_an_expired_success_ends_its_episode(service: Service, clock: Clock) -> None:
    await service.create(body={**EPISODES, "reward": {"timeout_s": 60, "default": 1.0}})
    await service.decide(body={**PROMPT, "id": "first", "episode": "mine"})
    clock.forward(61)
    assert failed(await service.put("/v1/bandits/b/decisions/first/outcome", {"reward": 1.0})) == (410, "decision_expired")
    response = await service.post("/v1/bandits/b/decisions", {**PROMPT, "episode": "mine"})
    assert failed(response) == (409, "episode_finished")


async def test_a_mean_reward_is_of_the_outcomes_that_carried_a_reward(service: Service) -> None:
    await service.create(body={**OUTPUTS, "policy": {"kind": "mixture-greedy", "kernel": "cosine"}, "arms": [{"name": "a"}]})
    for number, reward in enumerate((None, None, 1.0, None, 0.5)):
        decision = await service.decide(body={"id": f"d{number}"})
        await service.observe(decision["id"], {"output": {"vector": [1.0, 0.0, 0.5 * number]}, "reward": reward})
        if number == 1:
            assert ((await service.arm("a"))["outcomes"], (await service.arm("a"))["mean_reward"]) == (2, None)
    arm = await service.arm("a")
    assert (arm["outcomes"], arm["mean_reward"]) == (5, 0.75)


# -- batches -------------------------------------------------------------------------------------------------------------------


async def test_a_batch_of_outcomes_keeps_failures_apart(service: Service, clock: Clock) -> None:
    await service.create(body={**GREEDY, "reward": {"timeout_s": 60}})
    expired = (await service.decide())["id"]
    clock.forward(60)
    one, two, cancelled = [(await service.decide())["id"] for _ in range(3)]
    await service.delete(f"/v1/bandits/b/decisions/{cancelled}")
    items = [
        {"decision": one, "reward": 0.5},
        {"decision": two, "reward": "0.5"},
        {"decision": one, "reward": 0.5},
        {"decision": one, "reward": 0.25},
        {"decision": "nobody", "reward": 0.5},
        {"decision": cancelled, "reward": 0.5},
        {"decision": expired, "reward": 0.5},
        {"reward": 0.5},
        {"decision": "a/b", "reward": 0.5},
        7,
        {"decision": two, "reward": 0.125, "next": True},
    ]
    response = await service.post("/v1/bandits/b/outcomes/batch", {"outcomes": items})
    assert response.status_code == 200
    answers = answered(response)["outcomes"]
    assert [item.get("code") for item in answers] == [
        None,
        "invalid_request",
        None,
        "outcome_conflict",
        "decision_not_found",
        "decision_cancelled",
        "decision_expired",
        "invalid_request",
        "invalid_request",
        "invalid_request",
        None,
    ]
    assert [answers[i]["duplicate"] for i in (0, 2, 10)] == [False, True, False]
    assert answers[1]["errors"][0]["path"] == "reward"
    assert answers[7]["errors"][0]["path"] == "decision"
    assert answers[10]["next"]["arm"] in ("small", "large")
    assert sum(arm["outcomes"] for arm in (await service.bandit())["arms"]) == 2


@pytest.mark.parametrize("outcomes", [[], [{"decision": "a", "reward": 0.5}] * 1025, {}, None])
async def test_a_batch_has_one_to_1024_outcomes(service: Service, outcomes: object) -> None:
    await service.create()
    response = await service.post("/v1/bandits/b/outcomes/batch", {"outcomes": outcomes})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["outcomes"]


async def test_a_full_batch_of_outcomes_is_learned_whole(service: Service) -> None:
    await service.create()
    decisions = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [{}] * 1024}))["decisions"]
    outcomes = [{"decision": decision["id"], "reward": i / 1024} for i, decision in enumerate(decisions)]
    receipts = answered(await service.post("/v1/bandits/b/outcomes/batch", {"outcomes": outcomes}))["outcomes"]
    assert len({receipt["offset"] for receipt in receipts}) == 1024
    bandit = await service.bandit()
    assert sum(arm["outcomes"] for arm in bandit["arms"]) == 1024
    assert sum(arm["outcomes"] * arm["mean_reward"] for arm in bandit["arms"] if arm["outcomes"]) == pytest.approx(1023 / 2)
    assert bandit["open"] == 0
