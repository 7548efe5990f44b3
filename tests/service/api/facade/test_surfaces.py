"""Responses, images, embeddings and models through the facade."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from service.api.facade.surfaces import MAX_TEXT, Answer
from tests.service.api.facade.conftest import Facade, Start
from tests.service.upstreams import answer, event, events_in, stream

OUTPUT = [{"type": "reasoning", "summary": []}, {"type": "message", "content": [{"type": "output_text", "text": '{"a": 1}'}]}]
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "small-2",
    "output": OUTPUT,
    "usage": {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}},
}


def answers(facade: Facade, *replies: Any) -> None:
    facade.upstream.answer_in_turn(*replies)


async def test_a_response_is_passed_on_and_judged(start: Start) -> None:
    async with start() as facade:
        await facade.create(reward={"source": "json-valid"}, prompt={"embedder": "static", "reads": "conversation"})
        answers(facade, answer(RESPONSE))
        items = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, {"type": "function_call", "name": "f"}]
        for given in ("hi", items):
            body = {"model": "bandit/router", "input": given, "instructions": "be brief", "store": False}
            asked = await facade.client.post("/v1/responses", json=body)
            assert asked.json() == {**RESPONSE, "model": "bandit/router"}
            assert facade.upstream.calls[-1].path == "/v1/responses"
            assert {**facade.upstream.calls[-1].body, "model": "bandit/router"} == body
            state = await facade.decision(asked)
            assert (state["state"], state["reward"]) == ("observed", 1.0)
            assert state["cost"] == pytest.approx(6 * 0.001 + 4 * 0.0001 + 5 * 0.01)
        first, second = [item["features"] for item in await facade.events() if item["event"] == "decided"]
        assert first == second
        answers(facade, answer({**RESPONSE, "status": "failed"}), answer(RESPONSE))
        assert (await facade.client.post("/v1/responses", json={"model": "bandit/router", "input": "hi"})).status_code == 200
        refused = await facade.client.post("/v1/responses", json={"model": "bandit/router", "input": "hi", "background": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


def typed(kind: str, number: int, **more: Any) -> bytes:
    return event({"type": kind, "sequence_number": number, **more}, kind)


async def test_a_stream_of_a_response_ends_with_its_own_events(start: Start) -> None:
    async with start() as facade:
        await facade.create(reward={"source": "json-valid"})
        created = typed("response.created", 0, response={**RESPONSE, "status": "in_progress", "usage": None, "output": []})
        delta = typed("response.output_text.delta", 1, delta='{"a": 1}')
        completed = typed("response.completed", 2, response=RESPONSE)
        body = {"model": "bandit/router", "input": "hi", "stream": True}
        answers(facade, stream(created, delta, completed))
        asked = await facade.client.post("/v1/responses", json=body)
        first, second, last = events_in(asked.content)
        assert first["response"]["model"] == last["response"]["model"] == "bandit/router"
        assert asked.content.startswith(b"event: response.created\ndata: ")
        assert delta in asked.content, "what names no model passes as it came"
        assert second["delta"] == '{"a": 1}'
        assert "stream_options" not in facade.upstream.calls[-1].body
        state = await facade.decision(asked)
        assert (state["reward"], state["cost"]) == (1.0, pytest.approx(6 * 0.001 + 4 * 0.0001 + 5 * 0.01))
        for end in ([], [typed("response.failed", 2, response=RESPONSE)], [typed("error", 2, code="x", message="m", param=None)]):
            answers(facade, stream(created, delta, *end))
            asked = await facade.client.post("/v1/responses", json=body)
            *_, last = events_in(asked.content)
            assert (last["type"], last["code"], last["sequence_number"]) == ("error", "upstream_failed", 3 if end else 2)
            assert b"event: error\n" in asked.content
            assert (await facade.decision(asked))["error"]


async def test_pictures_have_a_price_each(start: Start) -> None:
    more = '[arms.painter]\nbase_url = "http://127.0.0.1:9"\nmodel = "m"\nprices = {image = 0.04}'
    async with start(more) as facade:
        await facade.create()
        picture = {"created": 1, "data": [{"b64_json": base64.b64encode(b"x").decode()}, {"url": "http://x/y.png"}]}
        answers(facade, answer(picture))
        body = {"model": "bandit/router", "prompt": "a cat", "n": 2}
        asked = await facade.client.post("/v1/images/generations", json=body)
        assert asked.json() == picture
        assert facade.upstream.calls[0].path == "/v1/images/generations"
        assert (await facade.decision(asked))["state"] == "partial"
        done = event({"type": "image_generation.completed", "b64_json": "eA==", "usage": {"input_tokens": 1, "output_tokens": 2}})
        partial = event({"type": "image_generation.partial_image", "b64_json": "eA=="})
        answers(facade, stream(partial, done))
        asked = await facade.client.post("/v1/images/generations", json={**body, "stream": True})
        assert asked.content == partial + done
        assert (await facade.decision(asked))["cost"] == pytest.approx(0.001 + 0.02)


async def test_embeddings_pass_as_they_came(start: Start) -> None:
    async with start() as facade:
        await facade.create(prompt={"embedder": "static"})
        rows = [{"object": "embedding", "index": 0, "embedding": base64.b64encode(b"\0\0\0\0").decode()}]
        found = {"object": "list", "model": "small-2", "data": rows, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
        answers(facade, answer(found))
        for given in ("good morning", ["good", "morning"], [1, 2, 3], [[1], [2]]):
            body = {"model": "bandit/router", "input": given, "encoding_format": "base64"}
            asked = await facade.client.post("/v1/embeddings", json=body)
            assert asked.json() == {**found, "model": "bandit/router"}, asked.text
            assert (await facade.decision(asked))["cost"] == pytest.approx(3 * 0.001)
        refused = await facade.client.post("/v1/embeddings", json={**body, "stream": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


async def test_models_are_the_bandits(facade: Facade) -> None:
    await facade.create("second")
    listed = (await facade.client.get("/v1/models")).json()
    model = {"object": "model", "created": 0, "owned_by": "nextarm"}
    assert listed == {"object": "list", "data": [{"id": "bandit/router", **model}, {"id": "bandit/second", **model}]}
    for path in ("bandit/router", "bandit%2Frouter"):
        assert (await facade.client.get(f"/v1/models/{path}")).json() == {"id": "bandit/router", **model}
    missing = await facade.client.get("/v1/models/bandit%2Fnone")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_of_a_text_without_an_end_no_more_is_kept_than_an_outcome_takes() -> None:
    answer = Answer()
    for choice in (1, 0, 1):
        answer.add_text(choice, f"{choice}.")
    assert answer.outputs() == [{"text": "0."}, {"text": "1.1."}]
    for _ in range(8):
        answer.add_text(0, "x" * (MAX_TEXT // 4))
    assert MAX_TEXT <= sum(len(output["text"]) for output in answer.outputs()) < 1.5 * MAX_TEXT
