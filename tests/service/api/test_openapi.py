"""The OpenAPI document: complete, its examples work as they stand, and answers are what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.problems import CODES
from tests.service.event_stream import reading
from tests.service.http_client import Clock, Json, Service, answered, blocking, opened

FRECHET: Json = {"policy": {"kind": "fd-ucb"}, "arms": [{"name": "small"}, {"name": "large"}], "output": {"dim": 3}}


@pytest.fixture(scope="module")
def document() -> Json:
    async def get() -> Json:
        async with opened() as service:
            return answered(await service.get("/openapi.json"))

    return asyncio.run(get())


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def resolved(document: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def validator(document: Json, schema: Json) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for({**schema, "components": document["components"]})


# -- complete ------------------------------------------------------------------------------------------------------------------


def test_every_operation_says_what_it_does_and_how_it_fails(document: Json) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names) == 38
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}
        answers = operation["responses"]
        assert any(status.startswith("2") for status in answers)
        assert all(answer["description"] for answer in answers.values())
        if path in ("/healthz", "/readyz"):
            continue
        assert {"401", "403", "422", "429", "503"} <= set(answers), (method, path)
        if method in ("PUT", "POST"):
            assert {"400", "413", "415"} <= set(answers), (method, path)
        if "{name}" in path and (method, path) != ("PUT", "/v1/bandits/{name}"):
            assert "`bandit_not_found`" in answers["404"]["description"]
        for status, answer in answers.items():
            if status < "400":
                assert status == "204" or all(content["schema"] for content in answer["content"].values()), (method, path)
                continue
            (kind, content), *none = answer["content"].items()
            assert (kind, none) == ("application/problem+json", [])
            for code, example in content["examples"].items():
                assert f"`{code}`" in answer["description"]
                assert CODES[code] == int(status) == example["value"]["status"]
                assert validator(document, content["schema"]).is_valid(example["value"])


def test_every_code_can_be_found_in_it(document: Json) -> None:
    text = json.dumps(document)
    missing = {code for code in CODES if f"`{code}`" not in text}
    assert missing == {"method_not_allowed", "internal_error"}  # they belong to no operation


def test_every_field_and_parameter_is_described(document: Json) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
        for field, described in schema.get("properties", {}).items():
            assert described.get("description") or resolved(document, described).get("description"), (name, field)
    for method, path, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (method, path, parameter["name"])


def test_nothing_hangs_in_the_air(document: Json) -> None:
    named = {ref.split('"')[0] for ref in json.dumps(document).split("#/components/schemas/")[1:]}
    assert named == set(document["components"]["schemas"])


def test_it_says_how_a_key_is_sent(document: Json) -> None:
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["components"]["securitySchemes"]["tenant"]["name"] == "X-Nextarm-Tenant"
    assert document["security"] == [{}, {"key": []}, {"key": [], "tenant": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []


# -- examples ------------------------------------------------------------------------------------------------------------------


def example_requests(document: Json) -> Iterator[tuple[str, str, Any]]:
    """Every operation with the examples of its path and its body."""
    for method, path, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                schema = parameter["schema"]
                path = path.replace(f"{{{parameter['name']}}}", (parameter.get("examples") or schema["examples"])[0])
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if body is None:
            yield method, path, None
            continue
        described = [resolved(document, item) for item in body.get("anyOf", [body])]
        for example in next(item for item in described if item.get("examples"))["examples"]:
            yield method, path, example


async def test_the_examples_work_as_they_stand(document: Json) -> None:
    requests = list(example_requests(document))
    bandit = next(body for method, path, body in requests if (method, path) == ("PUT", "/v1/bandits/demo"))
    decision = next(body for _, path, body in requests if path == "/v1/bandits/demo/decisions")
    batch = next(body for _, path, body in requests if path == "/v1/bandits/demo/decisions/batch")
    for method, path, body in requests:
        async with opened() as service:
            if (method, path) != ("PUT", "/v1/bandits/demo"):
                await service.create("demo", FRECHET if path.endswith("/references") else bandit)
            if "request-1" in path:
                await service.decide("demo", decision)
            if "/shadows/" in path and method != "PUT":
                await service.put("/v1/bandits/demo/shadows/candidate", {"policy": {"kind": "random"}})
            if "/evaluations/" in path:
                await service.post("/v1/bandits/demo/evaluations", {"id": "january"})
            if path.endswith("/outcomes/batch"):
                await service.post("/v1/bandits/demo/decisions/batch", batch)
            if (method, path) == ("PATCH", "/v1/bandits/demo/decisions/request-1/outcome"):
                await service.observe("request-1", name="demo")
            if path.endswith("/events"):
                async with reading(service, name="demo") as reader:
                    assert reader.status == 200
                continue
            response = await service.ask(method, path, json=body)
            assert response.status_code < 300, (method, path, response.text)
            if "/batch" in path:
                assert "code" not in str(response.json())


def test_examples_of_schemas_are_valid(document: Json) -> None:
    count = 0
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            count += 1
            assert validator(document, schema).is_valid(example), name
    assert count >= 7


# -- answers -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def checked(document: Json, clock: Clock) -> AsyncIterator[Service]:
    """A service whose answers are compared with the document, one by one."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(opened(clock=clock))

        async def compare(response: httpx.Response) -> None:
            await response.aread()
            template, operation = _operation(document, response.request)
            answer = operation["responses"].get(str(response.status_code))
            assert answer is not None, f"{response.request.method} {template} does not say {response.status_code}"
            if response.status_code == 204:
                assert response.content == b""
                return
            kind = response.headers["content-type"]
            assert kind in answer["content"], (template, kind)
            if response.status_code >= 400:
                assert response.json()["code"] in answer["content"][kind]["examples"], (template, response.text)
            if kind.endswith("json") and "ndjson" not in kind:
                schema = answer["content"][kind]["schema"]
                errors = [str(error) for error in validator(document, schema).iter_errors(response.json())]
                assert not errors, (template, errors)

        service.client.event_hooks["response"].append(compare)
        yield service


def _operation(document: Json, request: httpx.Request) -> tuple[str, Json]:
    given = request.url.path.split("/")
    for template, methods in sorted(document["paths"].items(), key=lambda item: item[0].count("{")):
        parts = template.split("/")
        fits = len(parts) == len(given) and all(a == b or a.startswith("{") for a, b in zip(parts, given, strict=True))
        if fits and request.method.lower() in methods:
            return template, methods[request.method.lower()]
    raise AssertionError(f"{request.method} {request.url.path} is not in the document")


async def test_real_answers_are_what_the_document_says(checked: Service, document: Json, clock: Clock) -> None:
    bandit = document["components"]["schemas"]["BanditBody"]["examples"][0]
    prompt = {"prompt": {"vector": [0.1, -0.2, 0.3]}}
    for path in ("/healthz", "/readyz", "/v1/policies", "/v1/bandits"):
        await checked.get(path)
    for name, body in (("demo", bandit), ("shown", FRECHET)):
        await checked.create(name, body)
        assert (await checked.put(f"/v1/bandits/{name}", body)).status_code == 200
    await checked.put("/v1/bandits/demo", FRECHET)
    await checked.post("/v1/bandits/shown/decisions", {})
    await checked.post("/v1/bandits/shown/references", {"outputs": [{"vector": [0.5, i / 4, 1.0]} for i in range(5)]})
    shown = await checked.decide("shown")
    await checked.observe(shown["id"], {"output": {"vector": [0.5, 0.25, 1.0]}, "next": True}, name="shown")
    await checked.put("/v1/bandits/demo/arms/small", {"price": 1.0})
    await checked.put("/v1/bandits/demo/arms/new", {"metadata": {"a": [None]}})
    await checked.delete("/v1/bandits/demo/arms/new")
    for body in ({**prompt, "id": "mine"}, {**prompt, "id": "mine"}, {**prompt, "dry_run": True}, {**prompt, "id": "gone"}):
        await checked.decide("demo", body)
    await checked.delete("/v1/bandits/demo/decisions/gone")
    await checked.get("/v1/bandits/demo/decisions/mine")
    await checked.observe("mine", {"reward": 0.5}, name="demo")
    await checked.observe("mine", {"reward": 0.5}, name="demo")
    await checked.decide("demo", {**prompt, "id": "late"})
    clock.forward(100_000)
    for decision in ("mine", "gone", "late", "nobody"):
        await checked.get(f"/v1/bandits/demo/decisions/{decision}")
        await checked.put(f"/v1/bandits/demo/decisions/{decision}/outcome", {"reward": 0.25})
        await checked.delete(f"/v1/bandits/demo/decisions/{decision}")
    await checked.post("/v1/bandits/demo/decisions/batch", {"decisions": [prompt, {"prompt": 7}, None]})
    await checked.post("/v1/bandits/demo/outcomes/batch", {"outcomes": [{"decision": "mine", "reward": 0.5}, {"decision": "x"}]})
    await checked.ask("POST", "/v1/bandits/demo/decisions", content=b"{", headers={"content-type": "application/json"})
    await checked.ask("POST", "/v1/bandits/demo/decisions", content=b"{}", headers={"content-type": "text/plain"})
    for path in ("", "/log", "/digest", "/health", "/decisions", "/decisions?arm=nobody", "/series"):
        await checked.get(f"/v1/bandits/demo{path}")
    for path in (
        "/v1/bandits/shown",
        "/v1/bandits?limit=1",
        "/v1/bandits/nobody",
        "/v1/bandits?limit=0",
        "/v1/bandits/demo/log?limit=x",
    ):
        await checked.get(path)
    await checked.delete("/v1/bandits/demo")


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


async def _prepare(service: Service) -> None:
    await service.create("demo", FRECHET)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_document_are_answered_as_it_says(document: Json, mode: GenerationMode) -> None:
    """Schemathesis makes good and bad requests for every operation; a few of each, in this process."""
    asked = 0
    with blocking(_prepare) as send:

        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            sent = case.as_transport_kwargs(base_url="http://localhost")
            sent["content"] = sent.pop("data", None)
            sent.pop("cookies", None)
            case.validate_response(schemathesis.Response.from_httpx(send(**_named(sent)), verify=False), checks=CHECKS)

        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]
            if operation.path.endswith("/events"):
                continue  # a stream of a bandit that there is has no end; it has tests of its own
            if mode is GenerationMode.NEGATIVE and not (operation.query or operation.path_parameters or operation.body):
                continue  # nothing in it can be wrong
            FEW(given(case=operation.as_strategy(generation_mode=mode))(ask))()
    assert asked > 50


def _named(sent: dict[str, Any]) -> dict[str, Any]:
    return {("path" if name == "url" else name): value for name, value in sent.items()}
