"""The policy sidecar of Weave's router: what it must answer, and what it must not learn."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.http_client import Clock, Json, Service, answered

AT = "/adapters/weave/b"
CANDIDATES = [
    {
        "roster_id": name,
        "catalog_id": name,
        "provider": "openai",
        "input_usd_per_1m": 5.0,
        "estimated_cost_usd": 2 * price,
        "effective_estimated_cost_usd": price,
    }
    for name, price in (("gpt-5.5", 0.5), ("small", 0.125), ("of-somebody-else", 0.0))
]
BANDIT: Json = {
    "policy": {"kind": "greedy"},
    "arms": [{"name": "gpt-5.5", "price": 4.0}, {"name": "small", "price": 1.0}],
    "seed": 3,
    "reward": {"timeout_s": 60.0},
}


def route_body(route: str = "route-1", **changes: Any) -> Json:
    return {
        "schema_version": "policy_router_v1",
        "strategy": "nextarm",
        "execution_mode": "serving",
        "route_id": route,
        "training_allowed": True,
        "prompt_text": "hello",
        "candidates": CANDIDATES,
        "candidate_models": [one["roster_id"] for one in CANDIDATES],
        **changes,
    }


class Router:
    """What the router sends."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def post(self, path: str, body: Json, expected: int = 200) -> Json:
        response = await self.service.client.post(AT + path, json=body)
        assert response.status_code == expected, response.text
        found = answered(response)
        assert expected == 200 or isinstance(found["error"], str)
        return found

    async def route(self, route: str = "route-1", expected: int = 200, **changes: Any) -> Json:
        return await self.post("/route", route_body(route, **changes), expected)

    async def report(self, path: str, route: str = "route-1", expected: int = 200, **changes: Any) -> Json:
        return await self.post(path, {"route_id": route, "training_allowed": True, **changes}, expected)


@pytest.fixture
async def weave(service: Service) -> Router:
    await service.create(body=BANDIT)
    return Router(service)


async def test_one_candidate_that_is_an_arm_is_selected(weave: Router) -> None:
    found = await weave.route()
    selected = found["selected_roster_id"]
    assert selected in ("gpt-5.5", "small")
    assert (found["schema_version"], found["route_id"]) == ("policy_router_v1", "route-1")
    assert found["score"] == found["candidate_scores"][selected] == found["propensity"] > 0.0
    assert found["candidate_scores"]["of-somebody-else"] == 0.0
    assert sum(found["candidate_scores"].values()) == pytest.approx(1.0)
    assert found["policy_artifact_id"] == "b@2"
    assert len(bytes.fromhex(found["policy_artifact_sha256"])) == 32
    assert await weave.route() == found
    (decided,) = [event for event in await weave.service.log() if event["event"] == "decided"]
    assert decided["price"] == {"gpt-5.5": 0.5, "small": 0.125}[selected], "what the router expects of this call"


async def test_cost_and_feedback_of_a_call_are_learned(weave: Router) -> None:
    selected = (await weave.route())["selected_roster_id"]
    sent = {"served_model": selected, "status": 200, "error": "", "cost_usd": 0.25, "upstream_latency_ms": 1500}
    assert await weave.report("/outcome", **sent) == {"ok": True, "learned": True}
    path = "/v1/bandits/b/decisions/route-1"
    assert answered(await weave.service.get(path))["state"] == "partial"
    await weave.report("/feedback", rating="up", feedback="well done")
    shown = answered(await weave.service.get(path))
    assert (shown["state"], shown["reward"], shown["cost"]) == ("observed", 1.0, 0.25)
    assert shown["signals"] == {"latency_s": 1.5}
    await weave.report("/feedback", rating="down")
    assert answered(await weave.service.get(path))["reward"] == 0.0, "the last rating counts"
    assert "well done" not in (await weave.service.get("/v1/bandits/b/log")).text


async def test_a_call_is_reported_after_its_feedback(weave: Router) -> None:
    await weave.route()
    await weave.report("/feedback", rating="up")
    for _ in range(2):  # the router tries again
        assert (await weave.report("/outcome", status=200, cost_usd=0.25, upstream_latency_ms=1500))["learned"]
    shown = answered(await weave.service.get("/v1/bandits/b/decisions/route-1"))
    assert (shown["reward"], shown["cost"], shown["signals"]) == (1.0, 0.25, {"latency_s": 1.5})
    assert len([event for event in await weave.service.log() if event["event"] == "amended"]) == 1
    await weave.report("/outcome", expected=409, status=500)


async def test_feedback_that_comes_after_the_time_is_an_amendment(weave: Router, clock: Clock) -> None:
    selected = (await weave.route())["selected_roster_id"]
    clock.forward(61)
    assert answered(await weave.service.get("/v1/bandits/b/decisions/route-1"))["state"] == "expired"
    await weave.report("/feedback", rating="up")
    assert (await weave.service.arm(selected))["mean_reward"] == 1.0


async def test_a_failed_call_and_another_model_are_learned_as_what_they_are(weave: Router) -> None:
    first = (await weave.route("failed"))["selected_roster_id"]
    await weave.report("/outcome", "failed", served_model=first, status=429, error="too many requests")
    assert answered(await weave.service.get("/v1/bandits/b/decisions/failed"))["error"] == "too many requests"
    second = (await weave.route("pinned"))["selected_roster_id"]
    other = {"gpt-5.5": "small", "small": "gpt-5.5"}[second]
    await weave.report("/outcome", "pinned", served_model=other, status=200, cost_usd=0.5)
    await weave.report("/feedback", "pinned", rating="up")
    assert (await weave.service.arm(other))["mean_reward"] == 1.0
    await weave.route("elsewhere")
    answer = await weave.report("/outcome", "elsewhere", served_model="of-somebody-else", status=200, cost_usd=0.5)
    assert answer == {"ok": True, "learned": False}
    assert answered(await weave.service.get("/v1/bandits/b/decisions/elsewhere"))["state"] == "cancelled"


@pytest.mark.parametrize("changes", [{"execution_mode": "shadow"}, {"training_allowed": False}])
async def test_nothing_is_kept_of_a_shadow_or_where_training_is_not_allowed(weave: Router, changes: Json) -> None:
    before = await weave.service.log()
    found = await weave.route(**changes)
    assert found["selected_roster_id"] in ("gpt-5.5", "small")
    for path, sent in (("/outcome", {"status": 200, "cost_usd": 1.0}), ("/feedback", {"rating": "up"})):
        assert await weave.report(path, training_allowed=False, **sent) == {"ok": True, "learned": False}
    assert await weave.service.log() == before
    await weave.report("/feedback", expected=404, rating="up")


async def test_what_cannot_be_decided_is_a_503(weave: Router) -> None:
    await weave.route(expected=503, candidates=CANDIDATES[2:])
    await weave.route(expected=422, candidates=[])
    await weave.route(expected=422, schema_version="policy_router_v99")
    await weave.service.create("prompts", {**BANDIT, "policy": {"kind": "lin-ucb"}, "prompt": {"dim": 3}})
    response = await weave.service.client.post("/adapters/weave/prompts/route", json=route_body())
    assert response.status_code == 503
    assert set(response.json()) == {"error"}
    for arm in ("gpt-5.5", "small"):
        await weave.service.delete(f"/v1/bandits/b/arms/{arm}")
    await weave.route(expected=503)
    assert (await weave.service.client.get(f"{AT}/readyz")).status_code == 503


async def test_the_conversation_is_the_prompt(service: Service) -> None:
    body = {**BANDIT, "policy": {"kind": "lin-ucb"}, "prompt": {"embedder": "static"}}
    await service.create(body=body)
    weave = Router(service)
    messages = [
        {"role": "user", "text": "write a poem"},
        {"role": "assistant", "tool_calls": [{"name": "look"}]},
        {"role": "assistant", "text": "roses are red"},
        {"role": "user", "text": "now in French"},
    ]
    await weave.route("said", conversation_messages=messages, prompt_text="something else")
    await weave.route("text", conversation_messages=messages[1:3], prompt_text="now in French")
    await service.decide(body={"id": "native", "prompt": "now in French"})
    features = [event["features"] for event in await service.log() if event["event"] == "decided"]
    assert features[0] == features[1] == features[2]


async def test_probes_and_capabilities(weave: Router) -> None:
    for path in ("/livez", "/readyz"):
        assert answered(await weave.service.get(AT + path)) == {"ok": True}
    found = answered(await weave.service.get(f"{AT}/capabilities"))
    assert found["schema_version"] == "policy_router_v1"
    assert (found["reports_outcomes"], found["reports_feedback"], found["supports_shadow"]) == (True, True, True)
    assert (await weave.service.client.get("/adapters/weave/none/readyz")).status_code == 404
