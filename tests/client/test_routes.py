"""Every route of the service has its method, its fields and its answer, by the OpenAPI document; and each works."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import types
import typing
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import nextarm
import numpy as np
import pytest
from nextarm import AsyncClient, Client, bodies, models
from nextarm._calls import Call, Route
from nextarm.routes import Routes
from pydantic import BaseModel

from service.api.app import running
from service.settings import Settings

LEFT_OUT = {("GET", "/v1/bandits/{name}/events"): "it does not end: `events` of both clients follow it"}
"""Routes of the service that the client has no method for, and why."""

NOT_OFFERED = "Not live"
"""How the description of a field begins that a change cannot have: the client does not offer it."""

OF_THE_CLIENT = {"is_fallback", "is_deferred"}
"""Fields of answers that the client fills in."""

OPTIONS = {"x-request-id", "X-Nextarm-Min-Offset", "X-Nextarm-Tenant"}
"""Headers that `with_options` and the client's arguments send."""
HEADERS = {"if-match": "if_offset"}
"""Headers that are an argument of a method."""
RENAMED = {"from": "from_start"}
"""Fields of bodies whose names are words of Python."""

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "create_bandit": ("b",),
    "decide_all": ("b", []),
    "observe_all": ("b", []),
    "import_outcomes": ("b", []),
    "request": ("GET", "/healthz"),
}
"""Positional arguments with which a method can be called; of others they are texts."""


REQUIRED: dict[str, dict[str, Any]] = {
    "clone_bandit": {"name": "b", "policy": {}},
    "put_shadow": {"policy": {}},
    "promote_shadow": {"shadow_offset": 1},
}
"""Keyword arguments that have to be given."""


def routes() -> dict[str, Call[Any]]:
    """Name of a method -> an example of its call."""
    found = {}
    for name, route in vars(Routes).items():
        if isinstance(route, Route) and name != "request":
            positional = [p for p in inspect.signature(route.build).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            arguments = ARGUMENTS.get(name, tuple("x" for _ in positional[1:]))
            found[name] = route.build(None, *arguments, **REQUIRED.get(name, {}))
    return found


ROUTES = routes()


@functools.cache
def described() -> dict[str, Any]:
    """The OpenAPI document of the service."""

    async def ask() -> dict[str, Any]:
        async with running(Settings.load(store="memory://")) as app:
            return app.openapi()

    return asyncio.run(ask())


@pytest.fixture
def document() -> dict[str, Any]:
    return described()


def operations(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in ("get", "put", "post", "patch", "delete")
    }


def keywords(name: str) -> dict[str, Any]:
    """Keyword arguments of a method, those of an unpacked TypedDict too, with their types."""
    build = vars(Routes)[name].build
    found: dict[str, Any] = {}
    for parameter in inspect.signature(build).parameters.values():
        annotation = typing.get_type_hints(build, include_extras=True).get(parameter.name)
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= typing.get_type_hints(typing.get_args(annotation)[0])
        elif parameter.kind is parameter.KEYWORD_ONLY or parameter.name in ("decisions", "outcomes", "rows"):
            found[parameter.name] = annotation
    return found


def test_every_route_of_the_service_has_a_method(document: dict[str, Any]) -> None:
    served = set(operations(document))
    known = {(call.method, call.template) for call in ROUTES.values()}
    assert served - known == set(LEFT_OUT), (
        "describe the route in clients/python/src/nextarm/routes.py, or say why not in LEFT_OUT"
    )
    assert known - served == set(), "the service has no such route"
    assert len(known) == len(ROUTES)


@pytest.mark.parametrize("name", ROUTES)
def test_a_method_takes_what_the_route_takes(name: str, document: dict[str, Any]) -> None:
    call = ROUTES[name]
    operation = operations(document)[call.method, call.template]
    taken = set(keywords(name)) - {"fallback"}
    expected: set[str] = set()
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            assert parameter["name"] in call.values
        elif parameter["in"] == "query":
            expected.add(parameter["name"])
        elif parameter["name"] not in OPTIONS:
            expected.add(HEADERS[parameter["name"]])
    for body in operation.get("requestBody", {}).get("content", {}).values():
        for schema in body["schema"].get("anyOf", [body["schema"]]):
            if "$ref" in schema:
                properties = document["components"]["schemas"][schema["$ref"].split("/")[-1]]["properties"]
                expected |= {key for key, value in properties.items() if not value.get("description", "").startswith(NOT_OFFERED)}
    assert taken == {RENAMED.get(field, field) for field in expected}


@pytest.mark.parametrize(
    ("shape", "schema"),
    [
        (bodies.ArmSpec, "ArmSpec"),
        (bodies.ArmChoice, "ArmChoice"),
        (bodies.PromptSpec, "PromptSpec"),
        (bodies.EmbedderSpec, "EmbedderSpec"),
        (bodies.RewardSpec, "RewardSpec"),
        (bodies.BudgetSpec, "BudgetBody"),
        (bodies.DecisionBody, "DecisionBody"),
        (bodies.OutcomeItem, "OutcomeItem"),
        (bodies.AmendmentBody, "AmendmentBody"),
        (bodies.PromptObject, "Prompt"),
        (bodies.OutputObject, "Content"),
        (bodies.Message, "Message"),
        (bodies.ReferencePair, "Pair"),
        (bodies.Moments, "MomentsBody"),
        (bodies.ImportRow, "ImportRow"),
        (bodies.EvaluationBody, "EvaluationBody"),
    ],
)
def test_a_part_of_a_body_has_the_fields_of_its_schema(shape: Any, schema: str, document: dict[str, Any]) -> None:
    described = document["components"]["schemas"][schema]
    described = next((part for part in described.get("anyOf", ()) if "properties" in part), described)
    fields = typing.get_type_hints(shape, include_extras=True)
    assert set(fields) == set(described["properties"]) - ({"probabilities"} if shape is bodies.PromptObject else set())
    required = {name for name, annotation in fields.items() if typing.get_origin(annotation) is typing.Required}
    assert (set(fields) if shape.__total__ else required) == set(described.get("required", ()))


class Comparison:
    """Of the client's models with the schemas of the service, by walking both."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self.schemas = schemas
        self.differences: list[str] = []
        self._seen: set[tuple[type[BaseModel], str]] = set()

    def of_models(self, model: type[BaseModel], name: str) -> None:
        if (model, name) in self._seen:
            return
        self._seen.add((model, name))
        described = self.schemas[name]["properties"]
        fields = {field.alias or key: field for key, field in model.model_fields.items() if key not in OF_THE_CLIENT}
        if set(fields) != set(described):
            self.differences.append(f"{model.__name__} of {name}: {sorted(set(fields) ^ set(described))}")
        for key in fields.keys() & described.keys():
            self.of_types(fields[key].annotation, described[key], f"{name}.{key}")
            if fields[key].is_required() and key not in self.schemas[name].get("required", ()):
                self.differences.append(f"{name}.{key} may be left out")

    def of_types(self, annotation: Any, schema: Mapping[str, Any], where: str) -> None:
        """Whether every value of the schema is one of the annotation."""
        parts = schema.get("anyOf") or schema.get("oneOf")
        options = (
            typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
        )
        if parts:
            for part in parts:
                self._any_of(options, part, where)
        else:
            self._any_of(options, schema, where)

    def _any_of(self, options: tuple[Any, ...], schema: Mapping[str, Any], where: str) -> None:
        """Exactly one of the options takes a schema, or it is a difference."""
        if any(self._takes(option, schema, where) for option in options):
            return
        self.differences.append(f"{where}: {schema} is none of {options}")

    def _takes(self, option: Any, schema: Mapping[str, Any], where: str) -> bool:
        if option is Any:
            return True
        if "$ref" in schema:
            name = schema["$ref"].split("/")[-1]
            if not (isinstance(option, type) and issubclass(option, BaseModel)):
                return False
            if PAIRED.get(option, name) != name:
                return False
            self.of_models(option, name)
            return True
        kind = schema.get("type")
        if kind == "array" and typing.get_origin(option) is list:
            self.of_types(typing.get_args(option)[0], schema.get("items", {}), f"{where}[]")
            return True
        if kind == "object" and typing.get_origin(option) is dict:
            if isinstance(values := schema.get("additionalProperties"), dict):
                self.of_types(typing.get_args(option)[1], values, f"{where}{{}}")
            return True
        if kind == "string" and getattr(option, "__name__", "") == "datetime":
            return True
        return kind is not None and option is KINDS.get(kind)


PAIRED = {models.Decision: "DecisionAnswer", models.Receipt: "OutcomeAnswer", models.Problem: "ProblemAnswer"}
"""Models that stand in a union: the schema of each."""
KINDS: dict[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}


def answer_model(call: Call[Any]) -> type[BaseModel] | None:
    return getattr(call.answer, "__self__", None)


def test_every_answer_has_the_fields_of_its_schema(document: dict[str, Any]) -> None:
    comparison = Comparison(document["components"]["schemas"])
    compared = 0
    for name, call in ROUTES.items():
        responses = operations(document)[call.method, call.template]["responses"]
        schemas = {
            body["schema"]["$ref"].split("/")[-1]
            for status, response in responses.items()
            if status < "300"
            for body in response.get("content", {}).values()
            if "$ref" in body.get("schema", {})
        }
        model = answer_model(call)
        assert len(schemas) == (model is not None), name
        for schema in schemas:
            assert model is not None
            comparison.of_models(model, schema)
            compared += 1
    comparison.of_models(models.Problem, "ProblemAnswer")
    assert comparison.differences == []
    assert compared >= 18


def test_the_comparison_sees_what_is_missing_and_what_is_wrong() -> None:
    schemas = {
        "Digest": {"properties": {"offset": {"type": "string"}, "sha256": {"type": "string"}}, "required": ["offset", "sha256"]},
        "Twice": {"properties": {"offset": {"type": "integer"}, "x": {"type": "string"}}, "required": ["offset"]},
        "Null": {"properties": {"offset": {"anyOf": [{"type": "null"}]}, "sha256": {"type": "string"}}, "required": ["offset"]},
    }
    for name in schemas:
        comparison = Comparison(schemas)
        comparison.of_models(models.Digest, name)
        assert comparison.differences, name


# -- against the real service --------------------------------------------------------------------------------------------------

ARMS = [{"name": "small", "price": 0.25}, {"name": "openai/large", "price": 4.0}]


def called(client: Any) -> Generator[Any, Any, None]:
    """Every method in an order that makes sense; each answer is sent back in, so that one list serves both clients."""
    policies = yield client.list_policies()
    assert "pak-ucb" in {policy.kind for policy in policies.policies}
    policy = {"kind": "pak-ucb", "random_features": 16}
    bandit = yield client.create_bandit("b", policy=policy, arms=ARMS, prompt={"dim": 3}, seed=7)
    assert [arm.name for arm in bandit.arms] == ["small", "openai/large"]
    again = yield client.create_bandit("b", **bandit.configuration)
    assert again.created_at == bandit.created_at
    page = yield client.list_bandits(limit=1)
    assert [(item.name, item.arms, item.as_of, item.fault) for item in page.bandits] == [("b", 2, 1, None)]
    changed = yield client.change_bandit("b", if_offset=again.offset, objective={"reward": 2.0})
    assert changed.objective == {"reward": 2.0}
    assert (yield client.change_bandit("b", objective=None)).objective == {"reward": 1.0}
    arm = yield client.put_arm("b", "new/one", price=1.0, metadata={"by": "test"})
    assert (arm.price, arm.metadata) == (1.0, {"by": "test"})
    assert (yield client.put_arm("b", "new/one", metadata={})).price == 1.0
    yield client.retire_arm("b", "new/one")

    vector = np.array([0.25, -0.5, 2.0], dtype=np.float32)
    decision = yield client.decide("b", prompt={"vector": vector}, arms=["small", {"name": "openai/large", "price": 2.0}])
    assert decision.arm in ("small", "openai/large")
    dry = yield client.decide("b", prompt={"vector": [0.25, -0.5, 2.0]}, dry_run=True)
    assert dry.id is None
    receipt = yield client.observe("b", decision.id, reward=np.float32(0.5), cost=0.125)
    assert (receipt.reward, receipt.duplicate) == (0.5, False)
    assert (yield client.observe("b", decision.id, reward=0.5, cost=0.125)).duplicate
    amended = yield client.amend("b", decision.id, reward=0.25, signals={"thumb": 1.0}, id="a1")
    assert (amended.reward, amended.signals, amended.duplicate) == (0.25, {"thumb": 1.0}, False)
    assert (yield client.amend("b", decision.id, reward=0.25, signals={"thumb": 1.0}, id="a1")).duplicate
    assert (yield client.show_decision("b", decision.id)).amendments[0].before["reward"] == 0.5
    yield client.amend("b", decision.id, reward=0.5)
    state = yield client.show_decision("b", decision.id)
    assert (state.state, state.reward, state.cost) == ("observed", 0.5, 0.125)
    assert state.closed_at is not None
    assert state.closed_at >= state.decided_at
    both = (yield client.decide_all("b", [{"prompt": {"vector": [1, 2, 3]}, "id": "one"}, {"prompt": {"vector": [1]}}])).decisions
    assert isinstance(both[0], nextarm.Decision)
    assert isinstance(both[1], nextarm.Problem)
    assert both[1].errors[0].path == "prompt.vector"
    outcomes = [{"decision": "one", "reward": 1.0}, {"decision": "two", "reward": 1.0}]
    receipts = (yield client.observe_all("b", outcomes)).outcomes
    assert isinstance(receipts[0], nextarm.Receipt)
    assert isinstance(receipts[1], nextarm.Problem)
    assert receipts[1].code == "decision_not_found"
    open_one = yield client.decide("b", prompt={"vector": [0.0, 1.0, 0.0]}, id="mine")
    assert open_one.id == "mine"
    yield client.cancel_decision("b", "mine")
    assert (yield client.show_decision("b", "mine")).state == "cancelled"

    rows = [{"arm": "small", "reward": 0.5, "prompt": {"vector": vector}, "at": datetime(2026, 1, 1, tzinfo=UTC)}]
    assert (yield client.import_outcomes("b", rows, id="january")).learned == 1
    assert (yield client.import_outcomes("b", rows, id="january")).duplicates == 1

    narrowed = yield client.decide(
        "b", prompt={"vector": vector}, exclude=["small"], max_price=9.0, metadata={"team": "search"}, id="narrowed"
    )
    assert (narrowed.arm, narrowed.metadata) == ("openai/large", {"team": "search"})
    yield client.observe("b", "narrowed", reward=0.5, metadata={"tokens": 7})
    assert (yield client.show_decision("b", "narrowed")).outcome_metadata == {"tokens": 7}

    listed = yield client.list_decisions("b", state="observed", arm="openai/large", limit=1)
    assert [(item.id, item.outcome_metadata) for item in listed.decisions] == [("narrowed", {"tokens": 7})]
    assert listed.next_before == listed.decisions[0].offset
    assert (yield client.list_decisions("b", before=2, session="s")) == models.DecisionPage(decisions=[])

    shadow = yield client.put_shadow("b", "candidate", policy={"kind": "lin-ucb"}, from_start=True)
    assert (shadow.policy["kind"], shadow.learns_from) == ("lin-ucb", "start")
    assert [item.name for item in (yield client.list_shadows("b")).shadows] == ["candidate"]
    yield client.put_shadow("b", "other", policy={"kind": "greedy"})
    other = yield client.show_shadow("b", "other")
    promoted = yield client.promote_shadow("b", "other", shadow_offset=other.offset, id="p1")
    assert (promoted.shadow, promoted.duplicate) == ("other", False)
    assert (yield client.promote_shadow("b", "other", shadow_offset=other.offset, id="p1")).duplicate
    assert (yield client.show_bandit("b")).policy["kind"] == "greedy"
    for name in ("candidate", "other"):
        yield client.delete_shadow("b", name)

    asked = yield client.post_evaluation("b", id="e1", policies=[{"kind": "random"}], reward_range=(0.0, 1.0))
    assert (asked.id, asked.until) == ("e1", (yield client.show_digest("b")).offset)
    evaluation = yield client.show_evaluation("b", "e1")
    assert evaluation.request["policies"] == [{"kind": "random"}]
    assert [item.id for item in (yield client.list_evaluations("b")).evaluations] == ["e1"]
    yield client.delete_evaluation("b", "e1")

    series = yield client.show_series("b", since=state.decided_at, buckets=7)
    assert len(series.buckets) <= 7
    assert sum(counts.decisions for bucket in series.buckets for counts in bucket.arms.values()) >= 2
    assert series.until > state.closed_at
    empty = yield client.show_series("b", until=state.decided_at - timedelta(days=1))
    assert empty.arms == []
    health = yield client.show_health("b")
    assert {check.name for check in health.checks} > {"arms", "entropy"}
    digest = yield client.show_digest("b", min_offset=1)
    log = yield client.read_log("b")
    assert [event["offset"] for event in log] == list(range(1, digest.offset + 1))
    assert (yield client.read_log("b", after=2, limit=1)) == log[2:3]
    assert [*(yield client.read_log("b", fields=["arm"], vectors=False, limit=1))[0]] == ["offset", "event"]
    assert (yield client.list_embedders()).embedders[0].name == "vector"
    loaded = yield client.warm_embedder("static")
    assert loaded.dim > 0
    assert (yield client.healthz()).status == "ok"
    assert (yield client.readyz()).status == "ready"
    assert "nextarm_build_info" in (yield client.metrics())
    fd = yield client.create_bandit("fd", policy={"kind": "fd-ucb"}, arms=ARMS, output={"dim": 2}, seed=1)
    posted = yield client.post_references("fd", outputs=[{"vector": [1.0, 2.0]}, {"vector": [2.0, 1.0]}, {"vector": [0.0, 1.0]}])
    assert posted.count == 3
    assert fd.output is not None
    assert (yield client.show_bandit("fd")).references == 3
    clone = yield client.clone_bandit("b", name="candidate", policy={"kind": "lin-ucb"})
    assert (clone.name, clone.policy["kind"]) == ("candidate", "lin-ucb")
    assert clone.cloning is None or clone.cloning.until == digest.offset
    yield client.delete_bandit("candidate")
    yield client.delete_bandit("fd")
    yield client.delete_bandit("b")
    listed = yield client.request("GET", "/v1/bandits", query={"limit": "1000"})
    assert not {"b", "fd", "candidate"} & {bandit["name"] for bandit in listed["bandits"]}


def used(client: type) -> set[str]:
    """Names of methods that `called` calls."""
    return {name for name in ROUTES if f"client.{name}(" in inspect.getsource(called)}


def test_every_method_is_tried() -> None:
    assert used(Client) == set(ROUTES)


def test_every_method_works_for_code_that_blocks(client: Client) -> None:
    calls, answer = called(client), None
    try:
        while True:
            answer = calls.send(answer)
    except StopIteration:
        pass


async def test_every_method_works_for_code_that_awaits(awaited: AsyncClient) -> None:
    calls, answer = called(awaited), None
    try:
        while True:
            answer = await calls.send(answer)
    except StopIteration:
        pass


def test_a_key_may_do_what_its_role_allows(url: str) -> None:
    with Client(url) as client, pytest.raises(nextarm.AuthenticationError) as refused:
        client.list_bandits()
    assert refused.value.code == "unauthenticated"
    assert refused.value.request_id
    with Client(url, api_key="reads") as client, pytest.raises(nextarm.PermissionDeniedError):
        client.create_bandit("b", arms=ARMS)
    with Client(url, api_key="boss", tenant="acme") as client, Client(url, api_key="acme") as acme:
        client.create_bandit("of-acme", arms=ARMS)
        assert acme.show_bandit("of-acme").name == "of-acme"
        acme.delete_bandit("of-acme")


def test_a_wrong_field_is_named(client: Client) -> None:
    with pytest.raises(nextarm.InvalidRequestError) as refused:
        client.create_bandit("b", arms=[{"name": "a", "price": -1.0}])
    (wrong,) = refused.value.errors
    assert wrong.path == "arms.0.price"
    assert "arms.0.price" in str(refused.value)
    with pytest.raises(nextarm.NotFoundError) as missing:
        client.decide("nowhere")
    assert missing.value.code == "bandit_not_found"


async def test_the_raw_response_has_status_headers_and_the_typed_answer(awaited: AsyncClient, client: Client) -> None:
    await awaited.create_bandit("b", policy={"kind": "greedy"}, arms=ARMS)
    raw = await awaited.with_options(request_id="checkout-1").with_raw_response.decide("b", id="d")
    assert (raw.status_code, raw.attempts, raw.request_id) == (201, 1, "checkout-1")
    assert raw.parse().id == json.loads(raw.content)["id"] == "d"
    assert (await awaited.with_raw_response.decide("b", id="d")).status_code == 200
    assert client.with_raw_response.healthz().headers["content-type"] == "application/json"
    with pytest.raises(nextarm.NotFoundError):
        client.with_raw_response.show_bandit("nowhere")


async def test_the_events_of_a_log_are_read_page_by_page(awaited: AsyncClient, client: Client) -> None:
    await awaited.create_bandit("b", policy={"kind": "greedy"}, arms=ARMS)
    for number in range(5):
        await awaited.decide("b", id=f"d{number}")
    events = [event async for event in awaited.iter_log("b", after=1, page=2)]
    assert [event["offset"] for event in events] == [2, 3, 4, 5, 6]
    client.create_bandit("b", policy={"kind": "greedy"}, arms=ARMS)
    assert [event["offset"] for event in client.iter_log("b", page=1)] == [1]
    client.delete_bandit("b")


def test_the_transport_can_be_the_callers() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"status": "ok"})

    with Client("http://anywhere/", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))) as client:
        assert client.healthz().status == "ok"
