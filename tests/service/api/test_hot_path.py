"""The two requests that skip the framework are answered exactly as its routes answer them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.http_client import PROMPT, VECTOR, Send, Service, blocking, float32, opened

DECISIONS = "/v1/bandits/b/decisions"
BY_ROUTE = {"x-nextarm-min-offset": "0"}
"""Sends a request through the framework's routes."""

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-2, 2)
    | st.sampled_from(["", "small", "large", "nobody", "a text", "\ud800", "é", float32([0.25, -0.5, 2.0]), "AAAA", 1e999, -0.0])
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "vector", "image", "probabilities", "name", "price", "nonsense"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
decisions = st.dictionaries(st.sampled_from(["prompt", "arms", "episode", "id", "dry_run", "nonsense"]), values, max_size=4)
outcomes = st.dictionaries(
    st.sampled_from(["reward", "cost", "output", "reference", "arm", "next", "nonsense"]), values, max_size=4
)


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    async def prepare(service: Service) -> None:
        await service.create(body=VECTOR)
        for number in range(3):
            await service.decide(body={**PROMPT, "id": f"open-{number}"})

    with blocking(prepare) as send:
        yield send


def plain(body: Any) -> dict[str, Any]:
    """What can be compared of an answer: ids and offsets are its own."""
    return {name: value for name, value in body.items() if name not in ("id", "episode", "offset", "decision", "duplicate")}


def both(send: Send, method: str, path: str, content: bytes) -> None:
    headers = {"content-type": "application/json", "x-request-id": "the-same"}
    express = send(method, path, content=content, headers=headers)
    route = send(method, path, content=content, headers={**headers, **BY_ROUTE})
    assert express.headers["content-type"] == route.headers["content-type"]
    assert plain(express.json()) == plain(route.json())
    if express.status_code >= 300:
        assert (express.status_code, express.json()) == (route.status_code, route.json())
        assert {**express.headers} == {**route.headers}
    else:
        assert {express.status_code, route.status_code} <= {200, 201}


@settings(max_examples=150, deadline=None)
@given(body=decisions | values)
def test_whatever_is_asked_the_answer_is_the_same(send: Send, body: Any) -> None:
    if isinstance(body, dict) and body.get("prompt") is None:
        body = {**body, **PROMPT}
    if isinstance(body, dict):
        # a decision that is logged changes the next one, so that two of them need not be alike
        body = {**body, "dry_run": True if body.get("dry_run", False) is False else body["dry_run"]}
    both(send, "POST", DECISIONS, json.dumps(body).encode())


@settings(max_examples=150, deadline=None)
@given(body=outcomes | values, decision=st.sampled_from(["open-0", "open-1", "nobody", "odd id", "x" * 65]))
def test_whatever_came_back_the_answer_is_the_same(send: Send, body: Any, decision: str) -> None:
    both(send, "PUT", f"{DECISIONS}/{decision}/outcome", json.dumps(body).encode())


@pytest.mark.parametrize(
    "content", [b"{", b"nonsense", b"[1", b'{"a": 1} x', b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 500, b"null"]
)
def test_what_is_no_json_is_refused_alike(send: Send, content: bytes) -> None:
    both(send, "POST", DECISIONS, content)
    both(send, "PUT", f"{DECISIONS}/open-2/outcome", content)


@pytest.mark.parametrize("name", ["nobody", "B", "x" * 64, "%2e%2e", "a b"])
def test_unknown_bandits_are_refused_alike(send: Send, name: str) -> None:
    both(send, "POST", f"/v1/bandits/{name}/decisions", b'{"dry_run": true}')
    both(send, "PUT", f"/v1/bandits/{name}/decisions/d/outcome", b'{"reward": 1}')


async def test_roles_and_keys_are_asked_for_alike() -> None:
    keys = "admin:root,reader:eye,router:way,router@blue:sky"
    async with opened(api_keys=keys) as service:
        created = await service.ask("PUT", "/v1/bandits/b", json=VECTOR, headers={"authorization": "Bearer root"})
        assert created.status_code == 201
        for key, status in (("eye", 403), ("sky", 404), ("way", 200), ("nobody", 401)):
            for extra in ({}, BY_ROUTE):
                headers = {"authorization": f"Bearer {key}", **extra}
                answer = await service.ask("POST", DECISIONS, json={**PROMPT, "dry_run": True}, headers=headers)
                assert answer.status_code == status, (key, answer.text)


def test_a_request_that_asks_for_an_offset_is_left_to_the_route(send: Send) -> None:
    headers = {"content-type": "application/json", "X-Nextarm-Min-Offset": "1000000"}
    for method, path, content in (
        ("POST", DECISIONS, json.dumps({**PROMPT, "dry_run": True}).encode()),
        ("PUT", f"{DECISIONS}/open-2/outcome", b'{"reward": 1}'),
    ):
        answer = send(method, path, content=content, headers=headers)
        assert answer.status_code == 422, answer.text
        assert "1000000" in answer.text
