"""Whatever a client sends: no failure of the server, and what is refused has changed nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.http_client import GREEDY, JSON, PROMPT, VECTOR, Json, Send, Service, blocking, check_answer, float32, opened

BOUNDED = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


async def prepare(service: Service) -> None:
    """`b` takes vectors, `plain` takes nothing, `shown` takes outputs; `open` is decided in the first two."""
    await service.create(body=VECTOR)
    await service.create("plain", GREEDY)
    await service.create("shown", {**GREEDY, "policy": {"kind": "fd-ucb"}, "output": {"dim": 2}})
    await service.decide(body={"id": "open", **PROMPT})
    await service.decide("plain", {"id": "open"})


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """One service for all examples, prepared as above."""
    with blocking(prepare, max_body_bytes=2**20) as ask:
        yield ask


def digests(send: Send) -> list[Any]:
    return [send("GET", f"/v1/bandits/{name}/digest").json() for name in ("b", "plain", "shown")] + [
        send("GET", "/v1/bandits").json()
    ]


def holds(send: Send, method: str, path: str, content: bytes) -> None:
    before = digests(send)
    response = send(method, path, content=content, headers=JSON)
    check_answer(response)
    assert response.status_code < 500
    if response.status_code >= 400:
        assert digests(send) == before
    elif path == "/v1/bandits/new":
        assert send("DELETE", path).status_code == 204


numbers = st.one_of(
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.sampled_from([1e308, -1e308, 5e-324, -0.0, 2**53 + 1, 2**63, 2**64, 1e12, 3.5e38]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=("Cs", "Cc", "Co")), max_size=4),
    st.sampled_from(["small", "large", "open", "vector", "minilm", "probabilities", float32([1.0, 2.0, 3.0]), "greedy", "b", ""]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
wild = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12)

ROUTES: dict[str, tuple[str, str, list[Json]]] = {
    "bandit": (
        "PUT",
        "/v1/bandits/new",
        [
            {
                "policy": {"kind": "pak-ucb", "random_features": 4, "kernel": "rbf", "ridge": 0.5, "max_samples": 8},
                "arms": [{"name": "a", "price": 0.5, "metadata": {"x": [1, {"y": 2}]}}, {"name": "b"}],
                "prompt": {"embedder": "vector", "dim": 3},
                "output": None,
                "reward": {"source": "client", "default": 0.5, "timeout_s": 60.0},
                "seed": 7,
            },
            {
                "policy": {"kind": "is-ucb", "delta": 0.1},
                "arms": [{"name": "a"}],
                "output": {"embedder": "probabilities", "dim": 4},
            },
            {"policy": {"kind": "epsilon-greedy", "epsilon": 0.25, "prior_mean": 0.5}, "arms": []},
        ],
    ),
    "arm": ("PUT", "/v1/bandits/b/arms/small", [{"price": 0.5, "metadata": {"x": [1, None]}}]),
    "decision": (
        "POST",
        "/v1/bandits/b/decisions",
        [
            {**PROMPT, "arms": ["small", {"name": "large", "price": 0.5}], "episode": None, "id": None, "dry_run": True},
            {"prompt": {"vector": float32([0.5, 0.25, 2.0])}, "dry_run": True},
        ],
    ),
    "decisions": (
        "POST",
        "/v1/bandits/plain/decisions/batch",
        [{"decisions": [{"dry_run": True}, {"arms": ["small"], "dry_run": True, "episode": "e"}]}],
    ),
    "outcome": (
        "PUT",
        "/v1/bandits/b/decisions/open/outcome",
        [{"reward": 0.5, "cost": 0.25, "output": None, "reference": None, "arm": "small", "next": False}],
    ),
    "outcomes": ("POST", "/v1/bandits/plain/outcomes/batch", [{"outcomes": [{"decision": "open", "reward": 0.5, "next": True}]}]),
    "import": (
        "POST",
        "/v1/bandits/b/import",
        [
            {
                "id": "x",
                "rows": [
                    {**PROMPT, "arm": "small", "reward": 0.5, "weights": {"small": 0.25, "large": 0.75}, "session": "s"},
                    {**PROMPT, "arm": "large", "reward": 0.5, "id": "r", "propensity": 0.5, "at": "2026-01-01T00:00:00Z"},
                    {
                        **PROMPT,
                        "arm": "large",
                        "cost": 0.5,
                        "signals": {"reward": 0.5, "tokens": 7},
                        "metadata": {"x": [1, None]},
                    },
                ],
            }
        ],
    ),
    "evaluations": (
        "POST",
        "/v1/bandits/b/evaluations",
        [
            {
                "id": "e",
                "policies": [{"kind": "epsilon-greedy", "epsilon": 0.25}, {"frozen": 1}],
                "estimators": ["snips", "dr"],
                "confidence": 0.75,
                "reward_range": [0.0, 1.0],
            }
        ],
    ),
    "references": (
        "POST",
        "/v1/bandits/shown/references",
        [
            {"outputs": [{"vector": [0.5, 0.25]}, {"vector": float32([1.0, 2.0])}]},
            {"moments": {"mean": [0.5, 0.25], "covariance": [[1.0, 0.5], [0.5, 2.0]], "count": 9}},
        ],
    ),
}


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a body."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*here, key))


@st.composite
def spoilt(draw: st.DrawFn, bodies: list[Json]) -> Any:
    """A body that was good, with one or two places replaced, dropped, doubled or added to."""
    body = copy.deepcopy(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(places(body))))
        if not place:
            return draw(wild)
        inner = body
        for key in place[:-1]:
            inner = inner[key]
        match draw(st.sampled_from(["replace", "drop", "add", "double"])):
            case "drop":
                del inner[place[-1]]
            case "add" if isinstance(inner, dict):
                inner[draw(texts)] = draw(wild)
            case "double" if isinstance(inner, list):
                inner.extend(copy.deepcopy(inner))
            case _:
                inner[place[-1]] = draw(wild)
    return body


@pytest.mark.parametrize("route", ROUTES)
@BOUNDED
@given(data=st.data())
def test_a_body_that_is_nearly_right_is_taken_whole_or_not_at_all(send: Send, route: str, data: st.DataObject) -> None:
    method, path, bodies = ROUTES[route]
    holds(send, method, path, json.dumps(data.draw(spoilt(bodies))).encode())


@BOUNDED
@given(route=st.sampled_from(sorted(ROUTES)), body=wild)
def test_any_json_is_answered(send: Send, route: str, body: Any) -> None:
    method, path, _ = ROUTES[route]
    holds(send, method, path, json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@BOUNDED
@given(route=st.sampled_from(sorted(ROUTES)), content=st.binary(max_size=200))
def test_any_bytes_are_answered(send: Send, route: str, content: bytes) -> None:
    method, path, _ = ROUTES[route]
    holds(send, method, path, content)


names = st.one_of(st.text(min_size=1, max_size=140), texts.filter(bool)).map(
    lambda name: quote(name.encode("utf-8", "surrogatepass"), safe="")
)


@BOUNDED
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"]),
    pattern=st.sampled_from(
        [
            "/v1/bandits/{}",
            "/v1/bandits/b/arms/{}",
            "/v1/bandits/b/decisions/{}",
            "/v1/bandits/b/decisions/{}/outcome",
            "/v1/bandits/{}/digest",
            "/v1/{}",
            "/{}",
        ]
    ),
    name=names,
)
def test_any_path_is_answered(send: Send, method: str, pattern: str, name: str) -> None:
    if name in ("b", "plain", "shown", "small", "large", "open") or name in (".", ".."):
        return
    before = digests(send)
    response = send(method, pattern.format(name), content=b'{"unknown": 1}' if method in ("PUT", "POST") else b"", headers=JSON)
    check_answer(response)
    assert response.status_code < 500
    assert digests(send) == before


@BOUNDED
@given(path=st.sampled_from(["/v1/bandits", "/v1/bandits/b/log"]), after=texts | numbers, limit=texts | numbers)
def test_any_query_is_answered(send: Send, path: str, after: Any, limit: Any) -> None:
    query = "&".join(
        f"{name}={quote(str(value).encode('utf-8', 'surrogatepass'))}" for name, value in (("after", after), ("limit", limit))
    )
    response = send("GET", f"{path}?{query}")
    check_answer(response)
    assert response.status_code in (200, 422)


prompts = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)


@settings(BOUNDED, max_examples=12)
@given(
    policy=st.sampled_from(
        [
            {"kind": "pak-ucb", "random_features": 8},
            {"kind": "pak-ucb", "random_features": 8, "normalize": False, "add_linear": True},
            {"kind": "pak-ucb", "random_features": None},
            {"kind": "lin-ucb"},
            {"kind": "promptwise", "forced_pulls": 0},
            {"kind": "thompson", "posterior": "gaussian"},
        ]
    ),
    rounds=st.lists(
        st.tuples(prompts, st.floats(-1e12, 1e12), st.booleans(), st.floats(0, 1e12)),
        min_size=1,
        max_size=8,
    ),
)
def test_any_vector_and_any_reward_can_be_learned(send: Send, policy: Json, rounds: list[Any]) -> None:
    """A bandit that took them in still decides, and its numbers are numbers."""
    assert send("PUT", "/v1/bandits/fed", json={**VECTOR, "policy": policy}).status_code == 201
    try:
        for vector, reward, is_learned, cost in rounds:
            decided = send("POST", "/v1/bandits/fed/decisions", json={"prompt": {"vector": vector}})
            assert decided.status_code in (201, 422), decided.text
            if decided.status_code == 422 or not decided.json()["arm"] or not is_learned:
                continue
            path = f"/v1/bandits/fed/decisions/{decided.json()['id']}/outcome"
            observed = send("PUT", path, json={"reward": reward, "cost": cost})
            assert observed.status_code == 200, observed.text
        decided = send("POST", "/v1/bandits/fed/decisions", json=PROMPT)
        assert decided.status_code == 201
        assert None not in [number for scores in decided.json()["scores"].values() for number in scores.values()]
        assert send("GET", "/v1/bandits/fed").status_code == 200
    finally:
        send("DELETE", "/v1/bandits/fed")


@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_spoilt_above_was_good_before(route: str) -> None:
    method, path, bodies = ROUTES[route]
    for body in bodies:
        async with opened() as service:
            await prepare(service)
            response = await service.ask(method, path, json=body)
            assert response.status_code in (200, 201, 202), response.text
            assert "code" not in str(response.json())
