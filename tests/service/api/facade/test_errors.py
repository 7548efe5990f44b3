"""Requests that the facade refuses, in OpenAI's form; who may call what; and its part of the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.service.api.facade.conftest import Facade, Start
from tests.service.http_client import opened
from tests.service.upstreams import answer, chat

JSON = {"content-type": "application/json"}
SAID = [{"role": "user", "content": "x"}]
KEYS = "admin:boss,router:way,reader:eye,admin@acme:their-boss,router@acme:their-way"


def error(response: Any) -> tuple[int, str, str, str | None]:
    """Status, type, code and param, where the answer is an error in the right form."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    (body,) = [response.json()["error"]]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    return response.status_code, body["type"], body["code"], body["param"]


async def test_a_wrong_request_is_answered_in_the_form_that_the_client_reads(start: Start) -> None:
    async with start(max_body_bytes=4096) as facade:
        await facade.create()
        await _check_wrong_requests(facade)


async def _check_wrong_requests(facade: Facade) -> None:
    wrong = "invalid_request_error"
    chats: list[tuple[Any, tuple[int, str, str, str | None]]] = [
        ({"model": "bandit/none", "messages": SAID}, (404, wrong, "model_not_found", None)),
        ({"model": "gpt-5", "messages": SAID}, (404, wrong, "model_not_found", "model")),
        ({"model": "bandit/../x", "messages": SAID}, (404, wrong, "model_not_found", "model")),
        ({"messages": SAID}, (400, wrong, "invalid_request", "model")),
        ({"model": 7, "messages": SAID}, (400, wrong, "invalid_request", "model")),
        ({"model": "bandit/router", "messages": SAID, "stream": "yes"}, (400, wrong, "invalid_request", "stream")),
        ({"model": "bandit/router", "metadata": {"session_id": "s" * 129}}, (400, wrong, "invalid_request", "session")),
        ([], (400, wrong, "invalid_request", None)),
    ]
    for body, expected in chats:
        assert error(await facade.client.post("/v1/chat/completions", json=body)) == expected, body
    raws: list[tuple[bytes, dict[str, str], tuple[int, str, str, str | None]]] = [
        (b"{", JSON, (400, wrong, "malformed_json", None)),
        (b"", JSON, (400, wrong, "malformed_json", None)),
        (b'{"model": "bandit/router", "temperature": NaN}', JSON, (400, wrong, "malformed_json", None)),
        (b'{"model": "a", "model": "b"}', JSON, (400, wrong, "malformed_json", None)),
        (b"{}", {"content-type": "text/plain"}, (415, wrong, "unsupported_media_type", None)),
        (b"x" * 5_000, JSON, (413, wrong, "payload_too_large", None)),
    ]
    for content, headers, expected in raws:
        assert error(await facade.client.post("/v1/chat/completions", content=content, headers=headers)) == expected, content[:60]
    assert error(await facade.client.get("/v1/chat/completions")) == (405, wrong, "method_not_allowed", None)
    assert error(await facade.client.get("/v1/responses/resp_1")) == (404, wrong, "not_found", None)
    assert error(await facade.client.post("/v1/embeddings?x=1", json={})) == (400, wrong, "invalid_request", "x")
    head = await facade.client.head("/v1/models/bandit/none")
    assert (head.status_code, head.content) == (404, b"")
    assert facade.upstream.calls == []
    assert [event["event"] for event in await facade.events()] == ["created"], "nothing was decided"
    problem = await facade.client.get("/v1/bandits/none")
    assert problem.headers["content-type"] == "application/problem+json", "others get what they always got"


async def test_no_answer_is_a_409(start: Start) -> None:
    """OpenAI's clients take it for a lock and try again."""
    async with start() as facade:
        await facade.create(policy={"kind": "fd-ucb"}, output={"embedder": "vector", "dim": 3})
        asked = await facade.client.post("/v1/bandits/router/decisions", json={})
        assert (asked.status_code, asked.json()["code"]) == (409, "reference_missing")
        assert error(await facade.chat()) == (400, "invalid_request_error", "reference_missing", None)


async def test_keys_and_tenants(start: Start) -> None:
    async with start(api_keys=KEYS, max_open=1000) as facade:
        facade.upstream.answer_in_turn(answer(chat()))

        def as_(key: str) -> dict[str, str]:
            return {"authorization": f"Bearer {key}"} if key else {}

        facade.client.headers.update(as_("boss"))
        await facade.create()
        facade.client.headers.update(as_("their-boss"))
        await facade.create("theirs")
        assert error(await facade.chat(headers=as_("wrong"))) == (401, "authentication_error", "invalid_api_key", None)
        assert error(await facade.chat(headers=as_("eye"))) == (403, "permission_error", "forbidden", None)
        assert (await facade.chat(headers=as_("way"))).status_code == 200
        assert error(await facade.chat(headers=as_("their-way")))[2] == "model_not_found", "a tenant sees its own bandits"
        assert (await facade.chat(model="bandit/theirs", headers=as_("their-way"))).status_code == 200
        for key, names in (("eye", ["bandit/router"]), ("their-way", ["bandit/theirs"])):
            models = (await facade.client.get("/v1/models", headers=as_(key))).json()["data"]
            assert [model["id"] for model in models] == names
        assert {call.headers.get("authorization") for call in facade.upstream.calls} <= {None, "Bearer sk-small"}


async def test_an_arm_can_be_for_some_tenants_only(start: Start) -> None:
    more = '[arms.mine]\nbase_url = "http://127.0.0.1:9"\nmodel = "m"\ntenants = [""]'
    async with start(more, api_keys=KEYS) as facade:
        for key, expected in (("boss", 502), ("their-boss", 400)):
            facade.client.headers.update({"authorization": f"Bearer {key}"})
            await facade.create(arms=("mine",))
            assert (await facade.chat()).status_code == expected


async def test_without_the_file_there_is_no_facade_and_the_client_shows_why() -> None:
    async with opened() as service:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/v1/responses")):
            answered = await service.client.request(method, path)
            assert error(answered) == (404, "invalid_request_error", "not_found", None)
            assert "NEXTARM_UPSTREAMS" in answered.json()["error"]["message"]
        assert (await service.get("/v1/elsewhere")).json()["code"] == "not_found"
        document = (await service.get("/openapi.json")).json()
        assert not [path for path in document["paths"] if path.startswith("/v1/chat")]


async def test_the_openapi_document_has_the_routes(facade: Facade) -> None:
    document = (await facade.client.get("/openapi.json")).json()
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == set(document["components"]["schemas"])
    for path in ("chat/completions", "responses", "images/generations", "embeddings"):
        operation = document["paths"][f"/v1/{path}"]["post"]
        assert "x-nextarm-decision-id" in operation["responses"]["200"]["headers"]
        assert operation["requestBody"]["content"]["application/json"]["schema"]["required"][0] == "model"
        assert operation["description"]
        assert "409" not in operation["responses"]


async def test_requests_are_counted_by_route_and_as_they_were_answered(facade: Facade) -> None:
    await facade.chat(model="bandit/none")
    await facade.client.post("/v1/chat/completions?x=1", json={})
    metrics = (await facade.client.get("/metrics")).text
    for status in ("404", "400"):
        assert f'nextarm_requests_total{{method="POST",route="/v1/chat/completions",status="{status}"}} 1.0' in metrics
    assert 'nextarm_problems_total{code="model_not_found"} 1.0' in metrics


@pytest.mark.parametrize("name", ["boss", "sk-small"])
async def test_no_key_is_in_the_log(start: Start, name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with start(api_keys=KEYS) as facade:
        facade.client.headers.update({"authorization": "Bearer boss"})
        await facade.create()
        facade.upstream.answer_in_turn(answer({"error": {"message": "sk-small"}}, 401))
        assert "sk-small" not in (await facade.chat()).text
        assert name not in json.dumps(await facade.events())
    assert name not in caplog.text
