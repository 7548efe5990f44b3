"""Bandits of three fields, and what they may say beside: signals, objectives, prices and budgets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from numpy.random import default_rng

from service.api.create import created_event
from service.api.requests import BanditBody, OutcomeBody
from service.engine.events import body_digest
from tests.service.http_client import ARMS, GREEDY, JSON, VECTOR, Clock, Json, Service, answered, failed, paths

TWO: Json = {"arms": [{"name": "small"}, {"name": "large"}]}
PRICED: Json = {"arms": ARMS, "seed": 7}
CONTEXTUAL: Json = {**TWO, "prompt": {"dim": 3}, "seed": 7}
WEIGHED: Json = {"objective": {"reward": 1.0, "cost": -0.5}}


async def play(service: Service, rounds: int, *, rewards: Json, costs: Json | None = None, noise: float = 0.05) -> None:
    """Decisions without a prompt, with outcomes, under ids that draw alike in every run. rewards, costs: means per arm."""
    g, made = default_rng(4), (await service.bandit())["decisions"]
    for number in range(made, made + rounds):
        decision = await service.decide(body={"id": f"d{number}"})
        arm = decision["arm"]
        outcome = {"reward": rewards[arm] + noise * float(g.standard_normal())}
        if costs is not None:
            outcome["cost"] = costs[arm] * float(g.uniform(0.8, 1.2))
        await service.observe(decision["id"], outcome)


async def preview(service: Service, **body: Any) -> Json:
    """The scores of a decision that is not made, with everything prepared."""
    await service.settle()
    scores: Json = (await service.decide(body={"dry_run": True, **body}))["scores"]
    return scores


async def spend(service: Service, batches: int, *, signal: str, spent: Json) -> None:
    """Noisy rewards, a tenth of the price of a difference in them: batches of ten decisions, each with its outcomes."""
    g = default_rng(4)
    for number in range(batches):
        ids = [{"id": f"d{number}-{place}"} for place in range(10)]
        asked = await service.post("/v1/bandits/b/decisions/batch", {"decisions": ids})
        rows = [
            {
                "decision": one["id"],
                "reward": REWARDS[one["arm"]] + NOISE * float(g.standard_normal()),
                "signals": {signal: spent[one["arm"]] * float(g.uniform(0.8, 1.2))},
            }
            for one in answered(asked)["decisions"]
        ]
        assert (await service.post("/v1/bandits/b/outcomes/batch", {"outcomes": rows})).status_code == 200


# -- a newcomer's bandit ---------------------------------------------------------------------------------------------------------


async def test_a_bandit_of_arms_and_a_prompt_is_auto(service: Service) -> None:
    body = {**TWO, "prompt": {"embedder": "vector", "dim": 3}}
    made = await service.create(body=body)
    assert made["policy"] == {
        "kind": "auto",
        "context": True,
        "exploration_floor": 0.0,
        "drift": "off",
        "forget_half_life": None,
    }
    assert (made["objective"], made["signals"], made["budget"], made["prices_per"]) == (
        {"reward": 1.0},
        ["reward", "cost"],
        None,
        "call",
    )
    again = await service.put("/v1/bandits/b", body)
    assert (again.status_code, answered(again)["offset"]) == (200, 1)
    assert (await service.put("/v1/bandits/b", {**body, "policy": {"kind": "auto"}})).status_code == 200
    for other in (
        {"objective": {"reward": 2.0}},
        {"prices_per": "outcome"},
        {"signals": ["latency_s"]},
        {"policy": GREEDY["policy"]},
    ):
        assert failed(await service.put("/v1/bandits/b", {**body, **other})) == (409, "bandit_exists"), other
    g = default_rng(1)
    for _ in range(20):
        vector = [float(x) for x in g.standard_normal(3)]
        decision = await service.decide(body={"prompt": {"vector": vector}})
        await service.observe(decision["id"], {"reward": 100.0 * (vector[0] > 0.0) - 1000.0})
    assert await preview(service, prompt={"vector": [0.0, 0.0, 0.0]}), "zeros are a prompt, too"
    report = (await service.bandit())["report"]
    assert 0.0 <= report["trust"] <= 1.0
    assert report["prepared"] > 10


async def test_a_bandit_of_arms_alone_ignores_prompts_and_finds_the_best(service: Service) -> None:
    await service.create(body=TWO)
    await play(service, 40, rewards={"small": -3.0, "large": 7.0})
    bandit = await service.bandit()
    assert bandit["prompt"] is None
    assert bandit["report"]["trust"] is None, "there is nothing to trust in"
    assert (await service.arm("large"))["pulls"] > 30


async def test_a_bandit_ignores_its_prompt_where_the_policy_says_so(service: Service) -> None:
    await service.create(body={**CONTEXTUAL, "policy": {"kind": "auto", "context": False}})
    assert (await service.decide())["arm"] == "small"
    assert (await service.decide(body={"prompt": {"vector": [1.0, 0.0, 0.0]}}))["arm"] == "large"


# -- what is not taken -----------------------------------------------------------------------------------------------------------

MANY = [f"s{i}" for i in range(9)]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"objective": {"Reward": 1.0}}, "objective.Reward"),
        ({"objective": {"1st": 1.0}}, "objective.1st"),
        ({"objective": {"a" * 33: 1.0}}, f"objective.{'a' * 33}"),
        ({"objective": {}}, "objective"),
        ({"objective": [1.0]}, "objective"),
        ({"objective": dict.fromkeys(MANY, 1.0)}, "objective"),
        ({"objective": {"reward": "1"}}, "objective.reward"),
        ({"objective": {"reward": float("inf")}}, "objective.reward"),
        ({"objective": {"cost": -1e13}}, "objective.cost"),
        ({"budget": {"signal": "cost", "per_decision": 0.0}}, "budget.per_decision"),
        ({"budget": {"signal": "cost", "per_decision": -1.0}}, "budget.per_decision"),
        ({"budget": {"signal": "cost", "per_decision": 5e-324}}, "budget.per_decision"),
        ({"budget": {"signal": "cost", "per_decision": float("inf")}}, "budget.per_decision"),
        ({"budget": {"signal": "cost"}}, "budget.per_decision"),
        ({"budget": {"per_decision": 1.0}}, "budget.signal"),
        ({"budget": {"signal": "Cost", "per_decision": 1.0}}, "budget.signal"),
        ({"budget": {"signal": "reward", "per_decision": 1.0}}, "budget.signal"),
        ({"budget": 0.5}, "budget"),
        ({"prices_per": "token"}, "prices_per"),
        ({"signals": "latency_s"}, "signals"),
        ({"signals": ["latency s"]}, "signals.0"),
        ({"signals": MANY}, "signals"),
        ({"signals": ["a", "a"]}, "signals"),
        ({"signals": MANY[:8], "objective": {"another": 1.0}}, "signals"),
    ],
)
async def test_a_wrong_field_of_a_bandit_is_named(service: Service, fields: Json, path: str) -> None:
    content = json.dumps({**TWO, **fields}).replace("Infinity", "1e400")
    response = await service.ask("PUT", "/v1/bandits/b", content=content, headers=JSON)
    assert (response.status_code, paths(response)) == (422, [path])
    assert "openapi" not in response.text, "the message says what is taken"


@pytest.mark.parametrize(
    ("fields", "path", "known"),
    [
        ({"objective": {"rewards": 1.0}}, "objective.rewards", "reward"),
        ({"objective": {"reward": 1.0, "costs": -1.0}}, "objective.costs", "cost"),
        ({"budget": {"signal": "cos", "per_decision": 1.0}}, "budget.signal", "cost"),
        ({"objective": {"latency": -1.0}, "signals": ["latency_s"]}, "objective.latency", "latency_s"),
    ],
)
async def test_a_signal_that_is_nearly_a_known_one_is_an_error(service: Service, fields: Json, path: str, known: str) -> None:
    response = await service.put("/v1/bandits/b", {**TWO, **fields})
    assert (response.status_code, paths(response)) == (422, [path])
    named = path.removeprefix("objective.") if "objective" in fields else fields["budget"]["signal"]
    assert f"is nearly '{known}'" in response.text
    assert f"list '{named}' in `signals`" in response.text
    made = await service.create(body={**TWO, **fields, "signals": [*fields.get("signals", []), named]})
    assert named in made["signals"]


async def test_other_names_of_signals_are_taken(service: Service) -> None:
    made = await service.create(body={**TWO, "objective": {"reward": 1.0, "host": 1.0, "forward": 1.0, "total_cost": -1.0}})
    assert made["signals"] == ["reward", "cost", "host", "forward", "total_cost"]


async def test_a_bandit_that_has_such_a_signal_is_served_and_cloned(service: Service) -> None:
    """As an earlier version created it."""
    body: Json = {**TWO, "objective": {"rewards": 1.0}, "seed": 7}
    transport: Any = service.client._transport
    repository = transport.app.state.services.repository
    made = BanditBody.model_validate(body)
    await repository.create(created_event("b", "", made, default_timeout_s=60.0, max_bytes=1 << 30, clock=repository.clock))
    assert (await service.put("/v1/bandits/b", body)).status_code == 200
    await play(service, 4, rewards={"small": 0.2, "large": 0.8})
    assert (await service.put("/v1/bandits/b", (await service.bandit())["configuration"])).status_code == 200
    assert (await service.post("/v1/bandits/b/clone", {"name": "c", "policy": {"kind": "greedy"}})).status_code == 202
    assert failed(await service.put("/v1/bandits/d", body)) == (422, "invalid_request")


async def test_no_signals_are_none_whichever_way_it_is_said(service: Service) -> None:
    first = await service.create(body={**TWO, "signals": []})
    for same in (TWO, {**TWO, "signals": None}, {**TWO, "signals": []}, first["configuration"]):
        assert (await service.put("/v1/bandits/b", same)).status_code == 200
    assert answered(await service.patch("/v1/bandits/b", {"signals": []}))["offset"] == 1
    assert "signals" not in (await service.log())[0]["request"], "as in a log of the first release"


@pytest.mark.parametrize(
    "fields", [WEIGHED, {"budget": {"signal": "cost", "per_decision": 1.0}}, {"prices_per": "call"}, {"signals": ["latency_s"]}]
)
@pytest.mark.parametrize("kind", ["promptwise", "fd-ucb", "mixture-ucb"])
async def test_policies_that_weigh_nothing_take_none_of_it(service: Service, kind: str, fields: Json) -> None:
    body = {**TWO, "policy": {"kind": kind}, "prompt": {"dim": 3}, "output": {"dim": 3}, **fields}
    response = await service.put("/v1/bandits/b", body)
    assert (response.status_code, paths(response)) == (422, [*fields])


@pytest.mark.parametrize(
    ("outcome", "path"),
    [
        ({"reward": 0.5, "signals": {"reward": 0.5}}, "signals"),
        ({"reward": 0.5, "cost": 0.1, "signals": {"cost": 0.1}}, "signals"),
        ({"reward": 0.5, "signals": {"cost": -0.1}}, "signals"),
        ({"reward": 0.5, "signals": {"Latency": 1.0}}, "signals.Latency"),
        ({"reward": 0.5, "signals": {"latency_s": None}}, "signals.latency_s"),
        ({"reward": 0.5, "signals": {"latency_s": 1e13}}, "signals.latency_s"),
        ({"reward": 0.5, "signals": {f"s{i}": 1.0 for i in range(33)}}, "signals"),
        ({}, "reward"),
    ],
)
async def test_a_wrong_signal_of_an_outcome_is_named(service: Service, outcome: Json, path: str) -> None:
    await service.create(body=TWO)
    decision = await service.decide()
    response = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", outcome)
    assert (response.status_code, paths(response)) == (422, [path])
    batch = await service.post("/v1/bandits/b/outcomes/batch", {"outcomes": [{"decision": decision["id"], **outcome}]})
    (only,) = answered(batch)["outcomes"]
    assert only["status"] == 422
    assert path in [wrong["path"].removeprefix("outcomes.0.") for wrong in only["errors"]]
    assert (await service.bandit())["open"] == 1


# -- requests of the first release -----------------------------------------------------------------------------------------------


def test_bodies_of_the_first_release_are_the_same_requests() -> None:
    """What they left out stands in no request and in no digest."""
    fields = {"policy", "arms", "prompt", "output", "reward", "seed"}
    for body in (GREEDY, VECTOR):
        assert set(BanditBody.model_validate(body).request()) == fields
    nulls = dict.fromkeys(("objective", "budget", "prices_per", "signals"))
    assert BanditBody.model_validate({**GREEDY, **nulls}).request() == BanditBody.model_validate(GREEDY).request()
    outcome = OutcomeBody.model_validate({"reward": 0.75, "cost": 0.25, "arm": "small", "signals": None})
    assert outcome.canonical() == [0.75, 0.25, None, None, "small"]
    assert body_digest(*outcome.canonical()) == "9b9131fb3f3c0cf7aad0f965b5d256fb"


# -- signals of outcomes ---------------------------------------------------------------------------------------------------------


async def test_the_same_signals_again_are_a_duplicate_and_others_a_conflict(service: Service) -> None:
    await service.create(body={**TWO, "signals": ["latency_s"]})
    decision = await service.decide()
    path = f"/v1/bandits/b/decisions/{decision['id']}/outcome"
    first = await service.observe(decision["id"], {"reward": 0.5, "signals": {"latency_s": 1.5, "tokens": 40.0}})
    for same in (
        {"reward": 0.5, "signals": {"tokens": 40, "latency_s": 1.5}},
        {"signals": {"tokens": 40.0, "reward": 0.5, "latency_s": 1.5}},
    ):
        assert await service.observe(decision["id"], same) == {**first, "duplicate": True}
    for signals in ({"latency_s": 1.5}, {"latency_s": 1.25, "tokens": 40.0}, {}, None):
        assert failed(await service.put(path, {"reward": 0.5, "signals": signals})) == (409, "outcome_conflict")
    assert failed(await service.put(path, {"reward": 0.5})) == (409, "outcome_conflict")


async def test_an_empty_object_of_signals_is_none(service: Service) -> None:
    await service.create(body=TWO)
    decision = await service.decide()
    await service.observe(decision["id"], {"reward": 0.5, "signals": {}})
    assert (await service.observe(decision["id"], {"reward": 0.5}))["duplicate"]
    assert "signals" not in (await service.log())[-1]


async def test_what_is_not_declared_is_stored_and_not_learned(service: Service) -> None:
    await service.create(body={**TWO, "objective": {"reward": 1.0, "latency_s": -0.5}})
    for _ in range(8):
        decision = await service.decide()
        latency = 1.0 if decision["arm"] == "small" else 3.0
        await service.observe(decision["id"], {"reward": 0.5, "signals": {"latency_s": latency, "tokens": 40.0, "cost": 0.2}})
    await service.settle()
    bandit = await service.bandit()
    assert bandit["signals"] == [*bandit["report"]["signals"]] == ["reward", "cost", "latency_s"]
    observed = (await service.log())[-1]
    assert (observed["signals"], observed["cost"], observed["reward"]) == ({"latency_s": latency, "tokens": 40.0}, 0.2, 0.5)
    scores = await preview(service)
    assert scores["small"]["signals"].keys() == {"reward", "cost", "latency_s"}
    assert scores["small"]["signals"]["cost"] is None, "what is not weighed is learned, and not estimated for every decision"
    assert scores["small"]["signals"]["latency_s"] < scores["large"]["signals"]["latency_s"]


async def test_signals_of_a_batch_are_those_of_single_outcomes(service: Service) -> None:
    latencies = {"small": 1.0, "large": 3.0}
    for name in ("one", "many"):
        await service.create(name, {**TWO, "signals": ["latency_s"], "seed": 5})
        decided = [await service.decide(name, {"id": f"d{i}"}) for i in range(6)]
        rows = [
            {"decision": one["id"], "reward": 0.1 * i, "signals": {"latency_s": latencies[one["arm"]], "cost": 0.2}}
            for i, one in enumerate(decided)
        ]
        if name == "one":
            for row in rows:
                await service.observe(row["decision"], {key: row[key] for key in ("reward", "signals")}, name="one")
        else:
            for is_duplicate in (False, True):
                response = await service.post("/v1/bandits/many/outcomes/batch", {"outcomes": rows})
                assert [item["duplicate"] for item in answered(response)["outcomes"]] == [is_duplicate] * 6
            other = {**rows[0], "signals": {"latency_s": 9.0}}
            response = await service.post("/v1/bandits/many/outcomes/batch", {"outcomes": [other]})
            assert [item["status"] for item in answered(response)["outcomes"]] == [409]
    digests = [answered(await service.get(f"/v1/bandits/{name}/digest")) for name in ("one", "many")]
    assert digests[0]["sha256"] == digests[1]["sha256"]


async def test_a_signal_that_never_comes_costs_nothing(service: Service) -> None:
    await service.create(body={**TWO, "objective": {"reward": 1.0, "latency_s": -1.0}})
    await play(service, 40, rewards={"small": 0.2, "large": 0.8})
    assert (await service.arm("large"))["pulls"] > 25
    await preview(service)
    assert (await service.bandit())["report"]["signals"]["latency_s"]["outcomes"] == 0


@pytest.mark.parametrize("weights", [{"reward": 0.0}, {"latency_s": 1.0}])
async def test_weights_that_make_all_arms_equal_play_all_of_them(service: Service, weights: Json) -> None:
    await service.create(body={**TWO, "objective": weights})
    await play(service, 60, rewards={"small": 0.2, "large": 0.8})
    assert all(15 <= arm["pulls"] <= 45 for arm in (await service.bandit())["arms"]), "missed once in 10,000 runs by chance"


@pytest.mark.parametrize("kind", ["auto", "greedy", "lin-ucb", "pak-ucb"])
async def test_a_default_reward_is_no_cost(service: Service, clock: Clock, kind: str) -> None:
    """An outcome that never came carries no signal but the reward that stands for it."""
    body = {**CONTEXTUAL, "policy": {"kind": kind}, "objective": {"reward": 1.0, "cost": -1.0}}
    await service.create(body={**body, "reward": {"default": 0.25, "timeout_s": 60}})
    prompt = {"prompt": {"vector": [1.0, 0.5, 0.0]}}
    for reward in (0.5, 1.0, 0.5, 1.0):
        decision = await service.decide(body=prompt)
        await service.observe(decision["id"], {"reward": reward, "cost": 0.125})
    for _ in range(3):
        decision = await service.decide(body=prompt)
        clock.forward(60)
        assert failed(await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 1.0}))[0] == 410
    scores = await preview(service, **prompt)
    if kind == "auto":
        report = (await service.bandit())["report"]["signals"]
        assert (report["reward"]["outcomes"], report["cost"]["outcomes"]) in {(n, 4) for n in range(4, 8)}
        costs = [one["signals"]["cost"] for one in scores.values()]
        assert costs == pytest.approx([0.125, 0.125])
    digest = answered(await service.get("/v1/bandits/b/digest"))
    assert digest["offset"] == 15


# -- prices ----------------------------------------------------------------------------------------------------------------------


async def test_a_new_price_acts_on_the_next_decision(service: Service) -> None:
    await service.create(body={**TWO, "policy": {"kind": "greedy"}, "objective": {"reward": 1.0, "cost": -1.0}})
    for _ in range(4):
        decision = await service.decide()
        await service.observe(decision["id"], {"reward": 0.5 if decision["arm"] == "small" else 0.75})
    assert (await service.decide())["arm"] == "large"
    await service.put("/v1/bandits/b/arms/large", {"price": 0.5})
    assert (await service.decide())["arm"] == "small"
    alone = {"arms": [{"name": "small", "price": 1.0}, "large"]}
    assert (await service.decide(body=alone))["arm"] == "large"
    assert (await service.decide())["arm"] == "small", "that price held for one decision"


@pytest.mark.parametrize("body", [PRICED, {**PRICED, "prompt": {"dim": 3}}])
async def test_a_price_per_call_is_the_expected_cost(service: Service, body: Json) -> None:
    await service.create(body={**body, **WEIGHED})
    prompt: Json = {"prompt": {"vector": [0.5, 1.0, -1.0]}} if "prompt" in body else {}
    for i in range(12):
        decision = await service.decide(body=prompt)
        await service.observe(decision["id"], {"reward": 0.1 * (i % 5), "cost": 17.0})
    before = await preview(service, **prompt)
    await service.put("/v1/bandits/b/arms/large", {"price": 1.5})
    after = await preview(service, **prompt)
    assert after["large"]["estimate"] - before["large"]["estimate"] == pytest.approx(-0.5 * (1.5 - 4.0))
    assert after["small"] == before["small"], "what was posted is no part of what is expected"
    once = await preview(service, **prompt, arms=["small", {"name": "large", "price": 2.5}])
    assert once["large"]["estimate"] - before["large"]["estimate"] == pytest.approx(-0.5 * (2.5 - 4.0))


@pytest.mark.parametrize("kind", ["auto", "greedy", "pak-ucb"])
async def test_with_prices_per_call_the_cost_that_is_shown_is_the_price(service: Service, kind: str) -> None:
    await service.create(body={**PRICED, **WEIGHED, "prompt": {"dim": 3}, "policy": {"kind": kind}})
    prompt: Json = {"prompt": {"vector": [0.5, 0.25, 1.0]}}
    for i in range(6):
        decision = await service.decide(body={"id": f"d{i}", **prompt})
        await service.observe(decision["id"], {"reward": 0.1 * i})
    scores = await preview(service, **prompt, arms=["small", {"name": "large", "price": 2.5}])
    assert [scores[arm]["signals"]["cost"] for arm in ("small", "large")] == [0.25, 2.5]
    for arm in ("small", "large"):
        assert scores[arm]["estimate"] == pytest.approx(scores[arm]["signals"]["reward"] - 0.5 * scores[arm]["signals"]["cost"])


async def test_a_price_per_outcome_is_times_the_learned_ratio(service: Service) -> None:
    await service.create(body={**PRICED, **WEIGHED, "prices_per": "outcome"})
    prices = {"small": 0.25, "large": 4.0}
    await play(service, 40, rewards={"small": 0.5, "large": 1.5}, costs={arm: 3.0 * price for arm, price in prices.items()})
    before = await preview(service)
    for arm in ("small", "large"):
        assert before[arm]["signals"]["cost"] == pytest.approx(3.0, rel=0.1), "the ratio of cost to price"
    await service.put("/v1/bandits/b/arms/large", {"price": 1.0})
    after = await preview(service)
    ratio = before["large"]["signals"]["cost"]
    assert after["large"]["estimate"] - before["large"]["estimate"] == pytest.approx(-0.5 * ratio * (1.0 - 4.0))
    assert after["small"] == before["small"]


async def test_a_price_next_to_nothing_is_no_ratio(service: Service) -> None:
    arms = [{"name": "small", "price": 5e-324}, {"name": "large", "price": 1.0}]
    await service.create(body={"arms": arms, **WEIGHED, "prices_per": "outcome"})
    await play(service, 10, rewards={"small": 0.5, "large": 1.5}, costs={"small": 1e11, "large": 1.0})
    assert 0.0 < (await service.decide())["propensity"] <= 1.0
    assert (await service.bandit())["report"]["signals"]["cost"]["outcomes"] < 10


async def test_a_cost_that_is_not_posted_is_the_price(service: Service) -> None:
    await service.create(body={**PRICED, "budget": {"signal": "cost", "per_decision": 1.0}})
    decisions = [await service.decide() for _ in range(2)]
    assert [decision["running"] for decision in decisions] == [{"cost": None}] * 2
    for decision in decisions:
        await service.observe(decision["id"], {"reward": 0.5})
    assert (await service.bandit())["budget"]["running"] == (0.25 + 4.0) / 2
    assert [entry["cost"] for entry in (await service.log())[-2:]] == [0.25, 4.0]
    assert [entry["cost_posted"] for entry in (await service.log())[-2:]] == [False, False]


# -- budgets ---------------------------------------------------------------------------------------------------------------------

REWARDS = {"small": 0.5, "large": 0.7}
COSTS = {"small": 0.1, "large": 1.0}
NOISE = 0.5


@pytest.mark.parametrize("signal", ["cost", "latency_s"])
async def test_a_budget_holds(service: Service, signal: str) -> None:
    await service.create(body={**TWO, "budget": {"signal": signal, "per_decision": 0.4}, "seed": 3})
    first = await service.decide()
    assert (first["multipliers"], first["running"]) == ({signal: 0.0}, {signal: None})
    await service.observe(first["id"], {"reward": REWARDS[first["arm"]], "signals": {signal: COSTS[first["arm"]]}})
    await spend(service, 60, signal=signal, spent=COSTS)
    budget = (await service.bandit())["budget"]
    assert budget["running"] == pytest.approx(0.4, rel=0.08)
    assert budget["feasible"]
    decision = await service.decide(body={"id": "last"})
    assert decision["multipliers"] == {signal: budget["multiplier"]}
    assert decision["running"] == {signal: budget["running"]}
    assert (await service.arm("large"))["pulls"] > 100, "what is there is spent"
    observed = [
        entry["cost"] if signal == "cost" else entry["signals"][signal] for entry in await service.log() if "reward" in entry
    ]
    assert budget["running"] == pytest.approx(sum(observed) / len(observed))
    await service.observe("last", {"reward": 0.4, "signals": {signal: 50.0}})
    assert await service.decide(body={"id": "last"}) == decision, "the same decision, whatever was spent since"


async def test_a_budget_that_no_arm_can_hold_plays_the_cheapest_and_says_so(service: Service) -> None:
    await service.create(body={**TWO, "budget": {"signal": "cost", "per_decision": 0.05}, "seed": 3})
    await spend(service, 25, signal="cost", spent=COSTS)
    bandit = await service.bandit()
    assert not bandit["budget"]["feasible"]
    assert bandit["budget"]["running"] > 0.05
    chosen = [entry["arm"] for entry in await service.log() if entry["event"] == "decided"]
    assert sum(chosen[-100:]) <= 5, "the dear one is hardly played any more"


async def test_an_arm_whose_outcomes_never_come_does_not_lift_the_budget(service: Service, clock: Clock) -> None:
    body = {**TWO, "arms": [*TWO["arms"], {"name": "dead"}], "budget": {"signal": "cost", "per_decision": 0.2}}
    await service.create(body={**body, "reward": {"timeout_s": 60}, "seed": 3})
    for _ in range(60):
        decision = await service.decide()
        if decision["arm"] == "dead":
            clock.forward(60)
            await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 1.0})
        else:
            await service.observe(decision["id"], {"reward": REWARDS[decision["arm"]], "cost": COSTS[decision["arm"]]})
    assert (await service.arm("dead"))["outcomes"] == 0
    assert (await service.bandit())["budget"]["multiplier"] > 0.0


async def test_a_default_reward_counts_its_price_as_spent(service: Service, clock: Clock) -> None:
    body = {**PRICED, "budget": {"signal": "cost", "per_decision": 1.0}, "reward": {"default": 0.0, "timeout_s": 60}}
    await service.create(body=body)
    decision = await service.decide()
    clock.forward(60)
    await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"reward": 1.0})
    assert (await service.bandit())["budget"]["running"] == 0.25 == (await service.arm("small"))["total_cost"]
    shown = answered(await service.get(f"/v1/bandits/b/decisions/{decision['id']}"))
    assert (shown["state"], shown["reward"], shown["cost"]) == ("expired", 0.0, 0.25)
