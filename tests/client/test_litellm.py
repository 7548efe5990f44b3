"""The callback of LiteLLM without LiteLLM: its hooks are called as LiteLLM calls them (tests/integrations has the real ones)."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
from nextarm import AsyncClient
from nextarm import litellm as module
from nextarm.litellm import Attempts, Hooks, arm_of, price_of, prompt_of, session_of

from service.api.app import running
from service.settings import Settings

START = datetime(2026, 1, 31, 12)
SAID = [{"role": "user", "content": "good morning"}]


def deployment(name: str, **about: Any) -> dict[str, Any]:
    return {"model_name": "smart", "litellm_params": {"model": f"openai/{name}"}, "model_info": {"id": f"id-{name}", **about}}


SMALL, LARGE = deployment("small", nextarm_arm="small"), deployment("large", nextarm_arm="large")


class Door(httpx2.AsyncBaseTransport):
    """The way to the service, which can be shut. requests: that came by, also while it was shut."""

    def __init__(self, app: Any) -> None:
        self.inner = httpx2.ASGITransport(app=app)
        self.is_shut = False
        self.requests: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(f"{request.method} {request.url.path}")
        if self.is_shut:
            raise httpx2.ConnectError("nothing listens")
        return await self.inner.handle_async_request(request)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with running(Settings.load(store="memory://", sweep_s=3600.0)) as app:
        yield Door(app)


@pytest.fixture
async def service(door: Door) -> AsyncIterator[AsyncClient]:
    async with AsyncClient("http://localhost", http_client=httpx2.AsyncClient(transport=door.inner)) as client:
        arms = [{"name": "small", "price": 0.001}, {"name": "large", "price": 0.01}]
        await client.create_bandit("router", policy={"kind": "thompson"}, arms=arms, signals=["latency_s"])
        yield client


def hooks(door: Door, **options: Any) -> Hooks:
    http = lambda: httpx2.AsyncClient(transport=door)  # noqa: E731
    return Hooks(options.pop("bandit", "router"), url="http://localhost", http_client=http, **options)


def request(**given: Any) -> dict[str, Any]:
    return {"messages": SAID, "metadata": {}, "litellm_trace_id": "t", **given}


async def choose(of: Hooks, asked: dict[str, Any], *deployments: dict[str, Any]) -> dict[str, Any]:
    (chosen,) = await of.async_filter_deployments("smart", list(deployments or (SMALL, LARGE)), SAID, request_kwargs=asked)
    found: dict[str, Any] = chosen
    return found


def attempt(asked: dict[str, Any]) -> dict[str, Any]:
    found = Attempts.of(asked)
    assert found is not None
    latest = found.find(asked["litellm_trace_id"])
    assert latest is not None
    return latest


def event(asked: dict[str, Any], called: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`kwargs` of an event, as LiteLLM 1.108 and 1.110 have them."""
    logged = {"model_id": called["model_info"]["id"], "response_cost": 0.0025, "prompt_tokens": 12, "completion_tokens": 7}
    params = {"metadata": asked["metadata"], "litellm_trace_id": asked["litellm_trace_id"], "acompletion": True}
    more.setdefault("litellm_trace_id", "another")  # 1.108
    return {"litellm_params": params, "standard_logging_object": logged | more.pop("logged", {}), **more}


def door_is_shut(of: Hooks) -> bool:
    transport = of._client().plain._transport.http._transport
    return isinstance(transport, Door) and transport.is_shut


async def succeed(of: Hooks, asked: dict[str, Any], called: dict[str, Any], **more: Any) -> None:
    end = START + timedelta(seconds=1.5)
    await of.async_log_success_event(kwargs=event(asked, called, **more), response_obj="answer", start_time=START, end_time=end)
    await of.flush(0.0 if door_is_shut(of) else 10.0)


async def test_an_answered_request_is_learned_with_reward_cost_and_signals(door: Door, service: AsyncClient) -> None:
    seen: list[Any] = []

    async def reward(response: Any, kwargs: Any) -> float:
        seen.append(response)
        return 0.75

    of = hooks(door, reward=reward)
    asked = request()
    chosen = await choose(of, asked)
    known = attempt(asked)
    assert known["arm"] == arm_of(chosen)
    headers = await of.async_post_call_response_headers_hook(data=asked, user_api_key_dict=None, response=None)
    assert headers["x-nextarm-decision-id"] == known["decision"]
    assert headers["x-nextarm-arm"] == known["arm"]
    assert float(headers["x-nextarm-propensity"]) == pytest.approx(known["propensity"], rel=1e-5)
    await succeed(of, asked, chosen)
    await succeed(of, asked, chosen)  # an event that comes twice is posted once
    assert seen == ["answer"]
    log = await service.read_log("router")
    (decided,) = [one for one in log if one["event"] == "decided"]
    assert (decided["id"], decided["metadata"]) == (known["decision"], {"model_group": "smart"})
    (observed,) = [one for one in log if one["event"] == "observed"]
    assert (observed["id"], observed["reward"], observed["cost"]) == (known["decision"], 0.75, 0.0025)
    assert observed["signals"] == {"latency_s": 1.5, "prompt_tokens": 12.0, "completion_tokens": 7.0}
    assert json.loads(json.dumps(asked["metadata"])), "other loggers can write it"
    await of.aclose()


async def test_without_a_reward_function_the_outcome_waits_for_the_reward(door: Door, service: AsyncClient) -> None:
    of, asked = hooks(door), request()
    await succeed(of, asked, await choose(of, asked))
    decision = attempt(asked)["decision"]
    assert (await service.show_decision("router", decision)).state == "partial"
    assert (await service.observe("router", decision, reward=1.0)).reward == 1.0
    state = await service.show_decision("router", decision)
    assert (state.state, state.cost) == ("observed", 0.0025)


async def test_metadata_of_a_client_is_never_believed(door: Door, service: AsyncClient) -> None:
    """In the proxy, any client can send `metadata`: here it names a decision of another client."""
    other = await service.decide("router", arms=["small"])
    of = hooks(door, reward=lambda response, kwargs: 0.0)
    stolen = {"bandit": "router", "decision": other.id, "arm": "small", "deployments": ["id-small"], "tried": [], "closed": ""}
    for forged in ({"t": stolen}, stolen, [stolen], "t"):
        asked = request(metadata={"nextarm": forged})
        await succeed(of, asked, SMALL)  # the decision was not asked for: the service was away, or the call was a sync one
        assert await of.async_post_call_response_headers_hook(data=asked, user_api_key_dict=None, response=None) == {}
        chosen = await choose(of, asked)
        assert attempt(asked)["decision"] != other.id
        await succeed(of, asked, chosen)
    assert (await service.show_decision("router", str(other.id))).state == "open"


async def test_a_retry_excludes_what_was_tried_and_closes_it(door: Door, service: AsyncClient) -> None:
    of, asked = hooks(door, reward=lambda response, kwargs: 1.0), request()
    first = await choose(of, asked)
    failed = dict(attempt(asked))
    error = RuntimeError("prompt and key")
    data = {**asked, "model_info": first["model_info"]}
    await of.async_post_call_failure_deployment_hook(data, error, None, fallback_depth=None)
    await of.async_log_failure_event(event(asked, first, exception=error), None, START, START)
    second = await choose(of, asked)
    assert {arm_of(first), arm_of(second)} == {"small", "large"}
    await of.async_log_failure_event(event(asked, first, exception=error), None, START, START)  # late: it closes nothing
    assert attempt(asked)["closed"] == ""
    await succeed(of, asked, second)
    await of.flush()
    events = await service.read_log("router")
    observed = [(one["id"], one["reward"], one.get("error")) for one in events if one["event"] == "observed"]
    assert sorted(observed) == [(failed["decision"], None, "RuntimeError"), (attempt(asked)["decision"], 1.0, None)]
    assert (await service.show_decision("router", failed["decision"])).reward is None
    assert "prompt and key" not in json.dumps(events)
    third = await choose(of, asked)  # all were tried; the metadata is used for another request
    assert third in (SMALL, LARGE)
    assert attempt(asked)["tried"] == []


async def test_a_request_that_the_upstream_refuses_is_no_fault_of_the_arm(door: Door, service: AsyncClient) -> None:
    of, asked = hooks(door), request()
    first = await choose(of, asked)
    refused = RuntimeError()
    refused.status_code = 400  # type: ignore[attr-defined]
    await of.async_log_failure_event(event(asked, first, exception=refused), None, START, START)
    await of.flush()
    assert (await service.show_decision("router", attempt(asked)["decision"])).state == "cancelled"


async def test_the_router_goes_on_while_the_service_is_away(door: Door, service: AsyncClient) -> None:
    of, asked = hooks(door, reward=lambda response, kwargs: 1.0), request()
    now = 100.0
    of.breaker.clock = lambda: now
    chosen = await choose(of, asked)
    door.is_shut = True
    later = request()
    assert await of.async_filter_deployments("smart", [SMALL, LARGE], SAID, request_kwargs=later) == [SMALL, LARGE]
    assert Attempts.of(later) is None
    count = len(door.requests)
    now += 4.9
    for _ in range(5):
        assert len(await of.async_filter_deployments("smart", [SMALL, LARGE], SAID, request_kwargs=request())) == 2
    assert len([one for one in door.requests[count:] if one.endswith("/decisions")]) == 0
    await succeed(of, asked, chosen)  # put off
    assert (await service.show_decision("router", attempt(asked)["decision"])).state == "open"
    door.is_shut = False
    now += 0.2
    await choose(of, request())
    assert await of.flush() == 0
    assert (await service.show_decision("router", attempt(asked)["decision"])).state == "observed"


@pytest.mark.parametrize("cost", [0.0, None])
async def test_a_cost_that_litellm_does_not_know_is_not_learned(door: Door, service: AsyncClient, cost: float | None) -> None:
    of, asked = hooks(door, reward=lambda response, kwargs: 1.0), request()
    chosen = await choose(of, asked)
    await succeed(of, asked, chosen, logged={"response_cost": cost})
    price = {"small": 0.001, "large": 0.01}[arm_of(chosen)]
    assert (await service.show_decision("router", attempt(asked)["decision"])).cost == price


async def test_an_answer_from_the_cache_is_no_outcome_of_an_arm(door: Door, service: AsyncClient) -> None:
    of, asked = hooks(door, reward=lambda response, kwargs: 1.0), request()
    await succeed(of, asked, await choose(of, asked), cache_hit=True)
    assert (await service.show_decision("router", attempt(asked)["decision"])).state == "cancelled"


async def test_a_conversation_keeps_its_arm(door: Door, service: AsyncClient) -> None:
    arms = [{"name": "small"}, {"name": "large"}]
    await service.create_bandit("chat", policy={"kind": "random"}, arms=arms, session_ttl_s=3600.0)
    of = hooks(door, bandit="chat")
    chosen = [arm_of(await choose(of, request(metadata={"session_id": "s"}))) for _ in range(8)]
    assert len(set(chosen)) == 1
    asked = request(metadata={"session_id": "s"})
    await choose(of, asked)
    assert attempt(asked)["propensity"] is None
    headers = await of.async_post_call_response_headers_hook(data=asked, user_api_key_dict=None, response=None)
    assert "x-nextarm-propensity" not in headers


async def test_requests_may_share_one_metadata_dict(door: Door, service: AsyncClient) -> None:
    of, shared = hooks(door, reward=lambda response, kwargs: 1.0), dict[str, Any]()
    requests = [request(metadata=shared, litellm_trace_id=name) for name in "abc"]
    chosen = [await choose(of, asked) for asked in requests]
    assert all(attempt(asked)["tried"] == [] for asked in requests)
    assert len({attempt(asked)["decision"] for asked in requests}) == 3
    for asked, called in zip(requests, chosen, strict=True):
        await succeed(of, asked, called)
        assert (await service.show_decision("router", attempt(asked)["decision"])).state == "observed"


async def test_deployments_of_one_arm_stay_together_and_unknown_ones_are_left_out(
    door: Door, service: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    of, asked = hooks(door), request()
    twins = [SMALL, deployment("small-eu", nextarm_arm="small")]
    with caplog.at_level(logging.WARNING, "nextarm.litellm"):
        assert await of.async_filter_deployments("smart", [*twins, deployment("new")], SAID, request_kwargs=asked) == twins
    assert "does not choose id-new" in caplog.text
    assert attempt(asked)["deployments"] == ["id-small", "id-small-eu"]


async def test_sync_makes_arms_of_deployments_and_follows_their_prices(door: Door) -> None:
    of = hooks(door, bandit={"smart": "made"}, sync_arms=True, create={"policy": {"kind": "thompson"}})
    cheap = deployment("cheap", input_cost_per_token=1e-6, output_cost_per_token=1e-6)
    dear = deployment("dear", input_cost_per_token=1e-5, output_cost_per_token=1e-5)
    await choose(of, request(), cheap)
    await choose(of, request(), cheap, dear)
    client = of._client().plain
    assert {arm.name: arm.price for arm in (await client.show_bandit("made")).arms} == {"id-cheap": 0.0013, "id-dear": 0.013}
    await choose(of, request(), deployment("cheap", input_cost_per_token=2e-6, output_cost_per_token=2e-6), dear)
    await client.retire_arm("made", "id-dear")
    of._views.clear()
    assert arm_of(await choose(of, request(), cheap, dear)) == "id-cheap", "what was retired stays retired"
    assert {arm.name: arm.active for arm in (await client.show_bandit("made")).arms} == {"id-cheap": True, "id-dear": False}
    count = len(door.requests)
    await choose(of, request(), cheap, dear)
    assert door.requests[count:] == ["POST /v1/bandits/made/decisions"]
    untouched = [cheap, dear]
    assert await of.async_filter_deployments("other", untouched, SAID, request_kwargs=request()) is untouched


async def test_a_bandit_that_is_missing_leaves_the_router_alone(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    of = hooks(door, bandit="absent")
    with caplog.at_level(logging.WARNING, "nextarm.litellm"):
        assert await of.async_filter_deployments("smart", [SMALL, LARGE], SAID, request_kwargs=request()) == [SMALL, LARGE]
    assert "bandit_not_found" in caplog.text
    asked = {"messages": SAID}  # a version of LiteLLM without metadata
    assert await of.async_filter_deployments("smart", [SMALL], SAID, request_kwargs=asked) == [SMALL]


def test_a_sync_call_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    of = Hooks("router")
    params: dict[str, Any] = {"acompletion": False, "metadata": {"model_group": "smart"}}
    with caplog.at_level(logging.WARNING, "nextarm.litellm"):
        of.log_pre_api_call("m", SAID, {"litellm_params": params})
        of.log_pre_api_call("m", SAID, {"litellm_params": params})
        assert [record.getMessage().count("acompletion") for record in caplog.records] == [1]


def test_the_prompt_is_what_was_said() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:..."}}
    said = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    last = {"role": "user", "content": "what is this?"}
    assert prompt_of(None, {"messages": said}, reads_last=True) == {"messages": [last]}
    assert prompt_of(None, {"messages": said}, reads_last=False) == {"messages": [said[0], last]}
    assert prompt_of(said, {}, reads_last=True) == {"messages": [last]}
    assert prompt_of(module.DUMMY, {"prompt": "a cat"}, reads_last=True) == "a cat"
    assert prompt_of(module.DUMMY, {}, reads_last=True) is None
    assert prompt_of(module.DUMMY, {"messages": module.DUMMY}, reads_last=True) == {"messages": module.DUMMY}
    assert prompt_of(None, {"input": [{"role": "user", "content": "hi"}]}, reads_last=True) == {
        "messages": [{"role": "user", "content": "hi"}]
    }
    assert prompt_of(None, {"input": ["several", "texts"]}, reads_last=True) is None


def test_sessions_belong_to_the_key_of_the_proxy() -> None:
    assert session_of({"metadata": {"session_id": "s"}}) == "s"
    assert session_of({"metadata": {}, "litellm_session_id": "s"}) == "s"
    assert session_of({"litellm_metadata": {"headers": {"x-session-id": "s"}}}) == "s"
    assert session_of({"metadata": {}}) == ""
    keys = {session_of({"metadata": {"session_id": "s", "user_api_key_hash": key}}) for key in ("a", "b")}
    assert len(keys) == 2
    assert max(len(one) for one in (*keys, session_of({"metadata": {"session_id": "s" * 300}}))) <= 128


def test_a_price_that_is_not_known_is_none() -> None:
    assert price_of(deployment("x"), (1000, 300)) is None
    assert price_of({"litellm_params": {"model": "m", "input_cost_per_token": 0.0}}, (1000, 300)) == 0.0


def test_wrong_options_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="name the bandit"):
        Hooks()
    with pytest.raises(ValueError, match="http://"):
        Hooks("router", url="localhost:8000")
    with pytest.raises(ValueError, match="sync_arms"):
        Hooks("router", create={})
    monkeypatch.setenv("NEXTARM_BANDIT", "named")
    assert Hooks().bandit == "named"


@pytest.mark.skipif(importlib.util.find_spec("litellm") is not None, reason="LiteLLM is installed here")
def test_without_litellm_the_import_names_what_to_install() -> None:
    for name in ("NextarmCallback", "callback"):
        with pytest.raises(ImportError, match="pip install litellm"):
            getattr(module, name)
    with pytest.raises(AttributeError):
        _ = module.something
