"""Every message that a client can get names the field and the fix, in words of JSON and HTTP and not of Python."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError

from bandits.errors import InvalidHyperparameter
from bandits.hyperparameters import validate
from bandits.registry import POLICIES
from service.api import requests as schemas
from service.api.error_mapping import to_problem
from service.api.validation import MESSAGES, OTHERWISE, validation_problem
from service.embedders.base import EmbedderError, QueueFull
from service.engine.errors import (
    BanditDamagedError,
    BanditNotFoundError,
    DecisionCancelledError,
    DecisionConflictError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionWasStopError,
    EpisodeFinishedError,
    LogNewerError,
    OffsetBeyondEndError,
    OpenDecisionLimitError,
    OutcomeConflictError,
    ReferenceConflictError,
    ReplicaBehindError,
)
from service.storage.base import LogCompactedError, LogNotFoundError, StorageUnavailableError
from tests.bandits.examples import EXAMPLES
from tests.service.http_client import GREEDY, VECTOR, Service, failed

PYTHON = re.compile(
    r"Input should|\b(str|dict|tuple|int|bool|NoneType|instance|dictionary|boolean|integer|validator|ndarray|None|True|False)\b"
    r"|MessagePart|content-|\[\^|\^\[|\\S|is missing$"
)
"""Words of the language behind the service, and regular expressions."""

MODELS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "bandit": (
        schemas.BanditBody,
        {
            **VECTOR,
            "policy": {"kind": "pak-ucb"},
            "arms": [{"name": "a", "price": 0.1, "metadata": {}}],
            "prompt": {
                "embedder": "vector",
                "dim": 3,
                "classes": ["a", "b"],
                "takes": "text",
                "reads": "last_user",
                "keep": "end",
            },
            "output": {"embedder": "vector", "dim": 3, "model": "m", "checkpoint": "c"},
            "reward": {
                "source": "client",
                "override": False,
                "pattern": "a",
                "expected": "a",
                "target": 7,
                "fences": "strip",
                "options": {},
                "default": 0.0,
                "timeout_s": 5.0,
            },
            "cooldown": {"errors": 3, "within_s": 60.0, "for_s": 30.0},
            "session_ttl_s": 60.0,
            "seed": 7,
        },
    ),
    "arm": (schemas.ArmBody, {"price": 0.1, "metadata": {"a": 1}}),
    "decision": (
        schemas.DecisionBody,
        {
            "prompt": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            "arms": [{"name": "a", "price": 0.1}],
            "episode": "a",
            "id": "b",
            "dry_run": False,
            "exclude": ["a"],
            "max_price": 0.5,
            "session": "a",
            "metadata": {"a": 1},
        },
    ),
    "decision by text": (schemas.DecisionBody, {"prompt": {"text": "a"}}),
    "decision by vector": (schemas.DecisionBody, {"prompt": {"vector": [0.5]}}),
    "decision by image": (schemas.DecisionBody, {"prompt": {"image": "AAAA"}}),
    "decision by a plain message": (schemas.DecisionBody, {"prompt": {"messages": [{"role": "user", "content": "a"}]}}),
    "decisions": (schemas.DecisionBatch, {"decisions": [{}]}),
    "outcome": (
        schemas.OutcomeItem,
        {
            "reward": 0.5,
            "cost": 0.5,
            "output": [{"text": "a"}, {"probabilities": [0.5]}],
            "reference": {"text": "a"},
            "arm": "a",
            "next": False,
            "error": "a",
            "metadata": {"a": 1},
            "decision": "a",
        },
    ),
    "outcomes": (schemas.OutcomeBatch, {"outcomes": [{}]}),
    "reference pairs": (schemas.ReferenceBody, {"pairs": [{"prompt": "a", "output": "b"}], "id": "a"}),
    "reference moments": (
        schemas.ReferenceBody,
        {"moments": {"mean": [0.0, 0.0], "covariance": [[1.0, 0.0], [0.0, 1.0]], "count": 9}},
    ),
    "reference outputs": (schemas.ReferenceBody, {"outputs": [{"vector": [0.5]}]}),
    **{kind: (schemas.POLICY_MODELS[kind], {"kind": kind}) for kind in POLICIES},
}
"""A body of each kind in which every field, or every form of one, stands somewhere."""

WRONG: tuple[Any, ...] = (
    *(None, True, 0, 7, -7, 2, 1.5, -1e300, 1e300, float("nan"), float("inf"), 10**30, -(10**30)),
    *("", " ", "b a", "x" * 2_000, "x" * 20_000, "\ud83d"),
    *([], [None], ["a", "a"], [[]], [{}], [True], [0.5] * 70_000, ["a"] * 1_100),
    *({}, {"sed": 1}, {"text": ""}, {"text": 1}, {"messages": []}, {"a": float("nan")}, {"a": "x" * 5_000}),
)


def places(value: Any, *before: int | str) -> Iterator[tuple[int | str, ...]]:
    """The path of everything that stands in a value."""
    if before:
        yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, *before, name)


OF_ANOTHER_SHAPE: tuple[Any, ...] = (7, "b", ["b"], [1, 2], {})

LEFT_OUT = object()


def changed(value: Any, place: tuple[int | str, ...], to: Any) -> Any:
    """A copy in which something else stands at one place."""
    if not place:
        return to
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if to is LEFT_OUT and len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(copy[place[0]], place[1:], to)
    return copy


def check(error: ValidationError | RequestValidationError) -> None:
    """In the words of JSON, and none that only says that something is wrong."""
    problem = validation_problem(error)
    for path, message in problem.errors:
        assert not PYTHON.search(f"{path}: {message}"), (path, message, error.errors())
        assert message != OTHERWISE, (path, error.errors())
        assert "{" not in message.partition(", e.g. ")[0]  # a place in a text that was not filled in


@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_wrong_with_a_body_is_said_in_words_of_json(name: str) -> None:
    model, body = MODELS[name]
    if issubclass(model, schemas.PolicySpec):
        body = {**{field: info.default for field, info in model.model_fields.items()}, **body}
    refusals = 0
    for place in places(body):
        for wrong in (*WRONG, LEFT_OUT):
            try:
                model.model_validate(changed(body, place, wrong))
            except ValidationError as error:
                check(error)
                refusals += 1
    for wrong in WRONG:
        try:
            model.model_validate(wrong)
        except ValidationError as error:
            check(error)
    assert refusals > 10


@pytest.mark.parametrize("name", MODELS)
def test_every_example_that_a_message_shows_for_a_field_is_taken_there(name: str) -> None:
    """A client that follows a hint must not be led into the next error."""
    model, body = MODELS[name]
    shown = 0
    for place in ((), *places(body)):
        for wrong in OF_ANOTHER_SHAPE:
            try:
                model.model_validate(changed(body, place, wrong))
                continue
            except ValidationError as error:
                found = validation_problem(error).errors
            for path, message in found:
                if path != (".".join(map(str, place)) or "body") or ", e.g. " not in message or "is missing" in message:
                    continue
                example, _ = json.JSONDecoder().raw_decode(message.partition(", e.g. ")[2])
                assert example or place[-1] in ("metadata", "options"), (path, message)
                model.model_validate(changed(body, place, example))
                shown += 1
    assert shown


@pytest.mark.parametrize(
    ("method", "path", "body", "field", "message"),
    [
        ("PUT", "", {**GREEDY, "arms": "b"}, "arms", 'must be a list, e.g. [{"name":"small"},{"name":"large"}]'),
        ("PUT", "", {**GREEDY, "arms": ["a"]}, "arms.0", 'must be a JSON object, e.g. {"name":"small","price":0.0002}'),
        ("PUT", "", {**GREEDY, "policy": "greedy"}, "policy", 'must be a JSON object, e.g. {"kind":"auto"}'),
        ("PUT", "", {**GREEDY, "policy": {"kind": "pakucb"}}, "policy.kind", 'did you mean "pak-ucb"?'),
        ("PUT", "", {**GREEDY, "sed": 7}, "sed", 'is not a field here; did you mean "seed"?'),
        ("PUT", "", {**GREEDY, "policy": {"kind": "pak-ucb", "explorations": 1}}, "policy.explorations", '"exploration"?'),
        ("PUT", "", {**GREEDY, "policy": {"kind": "one-arm", "x": 1}}, "policy.x", "here are kind, "),
        ("POST", "/decisions", {"prompt": [1, 2]}, "prompt", "with one of text, messages, vector, image, e.g. {"),
        ("POST", "/decisions", {"prompt": {"dim": 3}}, "prompt.dim", "; the fields here are text, messages, vector, image"),
        ("POST", "/decisions", [], "body", 'must be a JSON object, e.g. {"id":"request-1"'),
        ("POST", "/decisions/batch", {"decisions": "a"}, "decisions", 'must be a list, e.g. [{"prompt":'),
        ("POST", "/decisions/batch", {"decision": []}, "decision", 'did you mean "decisions"?'),
        ("PUT", "/arms/x", [], "body", 'must be a JSON object, e.g. {"price":'),
        ("POST", "/references", {"moment": {}}, "moment", 'did you mean "moments"?'),
    ],
)
async def test_a_wrong_field_is_answered_with_the_fields_there_are_and_an_example(
    service: Service, method: str, path: str, body: Any, field: str, message: str
) -> None:
    await service.create()
    response = await service.ask(method, f"/v1/bandits/b{path}", json=body)
    assert failed(response) == (422, "invalid_request")
    errors = {error["path"]: error["message"] for error in response.json()["errors"]}
    assert message in errors[field]


def test_every_type_of_error_that_the_schemas_can_raise_has_words() -> None:
    """A new kind of field must not bring pydantic's words to clients."""
    reached: set[str] = set()
    for model, body in MODELS.values():
        for place in places(body):
            for wrong in (*WRONG, LEFT_OUT):
                try:
                    model.model_validate(changed(body, place, wrong))
                except ValidationError as error:
                    reached |= {item["type"] for item in error.errors(include_url=False)}
    words = {*MESSAGES, "missing", "value_error", "string_pattern_mismatch"}
    words |= {"string_too_short", "string_too_long", "too_short", "too_long", "union_tag_invalid", "union_tag_not_found"}
    assert reached <= words
    assert {"greater_than", "greater_than_equal", "less_than_equal", "literal_error", "message_content", "too_long"} <= reached


def test_every_field_that_must_be_sent_is_shown_where_it_is_missing() -> None:
    models = [model for model in vars(schemas).values() if isinstance(model, type) and issubclass(model, schemas.Body)]
    for model in (*models, *schemas.POLICY_MODELS.values()):
        for name, field in model.model_fields.items():
            if field.is_required():
                assert name in schemas.EXAMPLES, f"{model.__name__}.{name} needs `examples` in schemas.py"
            if field.is_required() and name != "kind":
                TypeAdapter(cast("type[Any]", field.annotation)).validate_python(schemas.EXAMPLES[name])


@pytest.mark.parametrize(
    ("failure", "fix"),
    [
        (BanditNotFoundError("b"), "GET /v1/bandits lists"),
        (LogNotFoundError("b"), "GET /v1/bandits lists"),
        (BanditDamagedError("b"), "ask the operator"),
        (LogNewerError("log 'b', offset 7", "newer"), "upgrade this server"),
        (DecisionNotFoundError("d"), "send the `id`"),
        (DecisionConflictError("d"), "choose a new id"),
        (ReferenceConflictError("r"), "choose a new id"),
        (OutcomeConflictError("d"), "shows it"),
        (DecisionWasStopError("d"), "post none"),
        (EpisodeFinishedError("e"), "start a new one"),
        (DecisionExpiredError("d"), "ask for a new decision"),
        (DecisionCancelledError("d"), "ask for a new decision"),
        (OpenDecisionLimitError("7 decisions are open"), "post outcomes"),
        (LogCompactedError("log 'b'", first=7), "read from there on"),
        (ReplicaBehindError(7, 5), "try again"),
        (OffsetBeyondEndError(7, 5), "min_offset"),
        (StorageUnavailableError("full"), "try again"),
        (QueueFull("minilm", waiting=7, retry_after_s=1), "try again"),
        (EmbedderError("it broke"), "cannot be embedded now"),
        (RuntimeError("broken"), "request_id"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_says_what_to_do(failure: Exception, fix: str) -> None:
    detail = to_problem(failure).detail
    assert fix in detail
    assert not PYTHON.search(detail)


def test_a_hyperparameter_is_refused_in_words_of_json() -> None:
    for kind in POLICIES:
        for name in schemas.POLICY_MODELS[kind].model_fields:
            if name == "kind":
                continue
            made = EXAMPLES[kind][0].policy()
            object.__setattr__(made, name, [])
            with pytest.raises(InvalidHyperparameter) as refused:
                validate(made)
            assert not PYTHON.search(str(refused.value))


async def test_what_is_not_there_is_said_with_where_to_look(service: Service) -> None:
    await service.create("plain", GREEDY)
    asked = [
        ("GET", "/v1/bandits/none", "bandit_not_found"),
        ("DELETE", "/v1/bandits/plain/arms/none", "arm_not_found"),
        ("GET", "/v1/bandits/plain/decisions/none", "decision_not_found"),
    ]
    for method, path, code in asked:
        response = await service.ask(method, path)
        assert failed(response) == (404, code)
        assert "not found; " in response.json()["detail"]
    response = await service.ask("POST", "/v1/bandits/plain/decisions", json={"arms": ["none"]})
    assert failed(response) == (404, "arm_not_found")
    assert response.json()["detail"].startswith("arms.0: arm not found; ")


async def test_parameters_of_a_path_and_of_a_query_are_refused_in_words_of_json(service: Service) -> None:
    await service.create("plain", GREEDY)
    paths = [
        *(f"/v1/bandits?limit={limit}" for limit in ("0", "1001", "x", "1.5", "9" * 5000)),
        f"/v1/bandits?after={'x' * 64}",
        "/v1/bandits/Big",
        "/v1/bandits/plain/decisions/a%20b",
        *(f"/v1/bandits/plain/log?{name}=x" for name in ("after", "limit")),
    ]
    for path in paths:
        response = await service.ask("GET", path)
        assert response.status_code == 422, path
        assert not PYTHON.search(response.json()["detail"]), response.text
        assert OTHERWISE not in response.text
    response = await service.ask("GET", "/v1/bandits/plain", headers={"x-nextarm-min-offset": "x"})
    assert failed(response) == (422, "invalid_request")
    assert "must be a whole number" in response.json()["detail"]
