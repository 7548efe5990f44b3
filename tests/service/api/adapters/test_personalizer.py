"""Rank, Reward and Activate as Personalizer's clients call them, on a bandit of the service."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from service.api.app import running
from service.settings import Settings
from tests.service.http_client import Clock, Json, Service, answered, connected, float32, opened

AT = "/adapters/personalizer/b/personalizer/v1.0"
ACTIONS: list[Json] = [{"id": "pasta", "features": [{"taste": "salty"}]}, {"id": "soup", "features": []}, {"id": "cake"}]
BANDIT: Json = {"policy": {"kind": "random"}, "arms": [{"name": action["id"]} for action in ACTIONS], "seed": 3}


class Client:
    """What an SDK sends, and how it reads the answer."""

    def __init__(self, service: Service, at: str = AT) -> None:
        self.service, self.at = service, at

    async def rank(self, status: int = 201, **request: Any) -> Json:
        return self._read(await self._post("/rank", {"actions": ACTIONS, **request}), status)

    async def reward(self, event: str, value: Any, status: int = 204) -> Json:
        return self._read(await self._post(f"/events/{event}/reward", {"value": value}), status)

    async def activate(self, event: str, status: int = 204) -> Json:
        return self._read(await self._post(f"/events/{event}/activate"), status)

    async def _post(self, path: str, body: Json | None = None) -> httpx.Response:
        return await self.service.client.post(self.at + path, json=body)

    @staticmethod
    def _read(response: httpx.Response, status: int) -> Json:
        assert response.status_code == status, response.text
        if status == 204:
            assert response.content == b""
            return {}
        body = answered(response)
        assert status < 400 or set(body["error"]) == {"code", "message"}
        return body["error"] if status >= 400 else body


@pytest.fixture
async def client(service: Service) -> Client:
    await service.create(body=BANDIT)
    return Client(service)


async def kinds(service: Service) -> list[str]:
    return [event["event"] for event in await service.log()]


async def test_an_action_is_ranked_and_its_reward_is_learned_once(client: Client) -> None:
    ranked = await client.rank(eventId="event-1", contextFeatures=[{"time": "noon"}])
    assert ranked["eventId"] == "event-1"
    assert [item["id"] for item in ranked["ranking"]] == ["pasta", "soup", "cake"]
    assert sum(item["probability"] for item in ranked["ranking"]) == pytest.approx(1.0)
    assert await client.rank(eventId="event-1", contextFeatures=[{"time": "noon"}]) == ranked
    await client.reward("event-1", 0.75)
    await client.reward("event-1", 0.75)
    await client.reward("event-1", 0.25)
    shown = answered(await client.service.get("/v1/bandits/b/decisions/event-1"))
    assert (shown["arm"], shown["reward"]) == (ranked["rewardActionId"], 0.75), "the earliest stays"
    arm = await client.service.arm(ranked["rewardActionId"])
    assert (arm["outcomes"], arm["mean_reward"]) == (1, 0.75)


async def test_an_event_without_an_id_gets_one_and_any_id_may_be_given(client: Client) -> None:
    made = await client.rank()
    await client.reward(made["eventId"], 1)
    named = await client.rank(eventId="order 66: käse")
    assert named["eventId"] == "order 66: käse"
    await client.reward("order%2066%3A%20k%C3%A4se", 0.5)
    events = [event for event in await client.service.log() if event["event"] == "decided"]
    assert events[1]["metadata"] == {"personalizer_event": "order 66: käse"}
    assert (await kinds(client.service)).count("observed") == 2


async def test_excluded_actions_keep_their_place_with_probability_0(client: Client) -> None:
    for number in range(12):
        ranked = await client.rank(eventId=f"e{number}", excludedActions=["pasta", "unknown"])
        assert [item["id"] for item in ranked["ranking"]] == ["pasta", "soup", "cake"]
        assert ranked["ranking"][0]["probability"] == 0.0
        assert ranked["rewardActionId"] != "pasta"
    assert (await client.rank(400, excludedActions=["pasta", "soup", "cake"]))["code"] == "BadRequest"


@pytest.mark.parametrize("order", [("activate", "reward"), ("reward", "activate"), ("activate", "activate", "reward", "reward")])
async def test_a_deferred_event_is_learned_when_it_has_both_activation_and_reward(client: Client, order: tuple[str, ...]) -> None:
    await client.rank(eventId="e", deferActivation=True)
    values = iter((0.75, 0.25))
    for number, step in enumerate(order):
        has_both = {*order[:number]} >= {"activate", "reward"}
        assert ("observed" in await kinds(client.service)) == has_both
        await (client.activate("e") if step == "activate" else client.reward("e", next(values)))
    shown = answered(await client.service.get("/v1/bandits/b/decisions/e"))
    assert (shown["state"], shown["reward"]) == ("observed", 0.75)


async def test_the_first_of_several_rewards_before_the_activation_counts(client: Client) -> None:
    await client.rank(eventId="e", deferActivation=True)
    for value in (0.5, 1.0, 0.5):
        await client.reward("e", value)
    await client.activate("e")
    assert answered(await client.service.get("/v1/bandits/b/decisions/e"))["reward"] == 0.5


async def test_an_event_that_is_never_activated_is_not_learned() -> None:
    clock = Clock()
    async with opened(clock=clock) as service:
        await service.create(body={**BANDIT, "reward": {"timeout_s": 60}})
        client = Client(service)
        ranked = await client.rank(eventId="e", deferActivation=True)
        await client.reward("e", 1.0)
        clock.forward(61)
        assert answered(await service.get("/v1/bandits/b/decisions/e"))["state"] == "expired"
        assert (await service.arm(ranked["rewardActionId"]))["mean_reward"] is None
        await client.activate("e")
        assert (await client.reward("e", 1.0, 410))["message"].startswith("the decision expired")
        await service.create("defaults", {**BANDIT, "reward": {"default": 0.0, "timeout_s": 60}})
        refused = await Client(service, AT.replace("/b/", "/defaults/")).rank(400, deferActivation=True)
        assert "reward.default" in refused["message"]


async def test_context_features_are_the_prompt_of_a_text_or_a_vector(service: Service) -> None:
    linear: Json = {**BANDIT, "policy": {"kind": "lin-ucb"}}
    await service.create(body={**linear, "prompt": {"embedder": "static"}})
    await service.create("v", {**linear, "prompt": {"dim": 3}})
    text, vector = Client(service), Client(service, AT.replace("/b/", "/v/"))
    features = [{"device": {"mobile": True, "kind": "phone"}}, {"hour": 9, "tags": ["a", "b"]}]
    await text.rank(eventId="one", contextFeatures=features)
    await text.rank(eventId="two", contextFeatures=features[::-1])
    said = 'device.kind: phone\ndevice.mobile: true\nhour: 9\ntags: ["a","b"]'
    await service.decide(body={"id": "native", "prompt": said})
    decided = [event["features"] for event in await service.log() if event["event"] == "decided"]
    assert decided[0] == decided[1] == decided[2]
    await vector.rank(eventId="one", contextFeatures=[{"z": 3.5, "a": True}, {"m": {"x": -2}}])
    assert [event["features"] for event in await service.log("v") if event["event"] == "decided"] == [float32([1.0, -2.0, 3.5])]
    assert "contextFeatures.hour" in (await vector.rank(400, contextFeatures=[{"hour": "nine"}]))["message"]
    assert (await vector.rank(400, contextFeatures=[{"a": 1}]))["code"] == "BadRequest"


async def test_what_is_wrong_is_said_as_personalizer_says_it(client: Client) -> None:
    assert (await client.reward("nothing", 1.0, 404))["code"] == "ResourceNotFound"
    assert (await client.activate("nothing", 404))["code"] == "ResourceNotFound"
    assert (await client.rank(404, actions=[{"id": "unknown"}]))["code"] == "ResourceNotFound"
    unknown = await client.rank(404, actions=[*ACTIONS[:2], {"id": "unknown"}], excludedActions=["pasta"])
    assert unknown["message"].startswith("actions.2.id: arm not found"), "as it is in the request"
    await client.service.delete("/v1/bandits/b/arms/cake")
    retired = await client.rank(400, actions=ACTIONS)
    assert retired["message"].startswith("actions.2.id: this arm is retired")
    answer = await client.service.client.post(f"{AT}/rank", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/json")
    assert answer.json()["error"]["message"].startswith("send the header `content-type: application/json`")
    assert (await client.rank(400, actions=[]))["code"] == "BadRequest"
    await client.rank(eventId="e", actions=ACTIONS[:2])
    for wrong in ("high", True, None):
        assert (await client.reward("e", wrong, 400))["code"] == "BadRequest"
    assert (await client.rank(409, eventId="e", actions=ACTIONS[:1]))["code"] == "decision_conflict"
    assert (await Client(client.service, AT.replace("/b/", "/none/")).rank(404))["code"] == "ResourceNotFound"
    preview = Client(client.service, AT.replace("v1.0", "v1.1-preview.3"))
    assert (await preview.rank(eventId="f", actions=ACTIONS[:2]))["eventId"] == "f"
    assert "observed" not in await kinds(client.service)


async def test_the_subscription_key_is_the_key_here_alone() -> None:
    settings = Settings.load(store="memory://", api_keys="admin:boss,router:routes,reader:reads")
    async with running(settings) as app, connected(app, key="boss") as boss, connected(app) as stranger:
        await boss.create(body=BANDIT)
        for key, status in (("routes", 201), ("reads", 403), ("wrong", 401), ("", 401)):
            headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
            answer = await stranger.client.post(f"{AT}/rank", json={"actions": ACTIONS}, headers=headers)
            assert answer.status_code == status, key
        native = await stranger.client.get("/v1/bandits/b", headers={"Ocp-Apim-Subscription-Key": "boss"})
        assert native.status_code == 401


async def test_of_rewards_that_come_at_once_one_stays(client: Client, service: Service) -> None:
    for event, deferred in (("now", False), ("later", True)):
        await client.rank(eventId=event, deferActivation=deferred)
        await asyncio.gather(*(client.reward(event, value) for value in (0.25, 0.5, 0.75)), client.activate(event))
    observed = {event["id"]: event["reward"] for event in await service.log() if event["event"] == "observed"}
    assert set(observed) == {"now", "later"}
    assert set(observed.values()) <= {0.25, 0.5, 0.75}


async def test_an_event_id_may_hold_slashes(client: Client, service: Service) -> None:
    for event in ("shop/42", "a/reward"):
        await client.rank(eventId=event)
        await client.reward(event.replace("/", "%2F"), 0.5)
        await client.activate(event)
    assert [event["reward"] for event in await service.log() if event["event"] == "observed"] == [0.5, 0.5]
