"""Whatever is wrong with a request is said by status, code and field, changes nothing, and repeats no prompt and no key."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import math
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.api.problems import CODES, Problem
from tests.service.http_client import GREEDY, JSON, PROMPT, VECTOR, Clock, Json, Service, answered, failed, float32, opened, paths

SECRET = "the-patient-is-called-Grete"


@pytest.fixture
async def prepared(service: Service) -> Service:
    """Two bandits: `b` takes vectors of three numbers and has one open decision, `plain` takes nothing."""
    await service.create(body=VECTOR)
    await service.create("plain", GREEDY)
    await service.decide(body={"id": "open", **PROMPT})
    await service.decide("plain", {"id": "open"})
    return service


async def refused(service: Service, method: str, path: str, body: Any, *expected: Any) -> None:
    """Sent as it is; status, code and fields as expected, and nothing happened."""
    before = [await service.offset(), await service.offset("plain")]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await service.ask(method, path, content=content, headers=JSON)
    status, code, *fields = expected
    assert failed(response) == (status, code), response.text
    if fields:
        assert paths(response) == fields
    assert SECRET not in response.text
    assert [await service.offset(), await service.offset("plain")] == before


DECISIONS = "/v1/bandits/b/decisions"
OUTCOME = "/v1/bandits/b/decisions/open/outcome"
PLAIN = "/v1/bandits/plain/decisions/open/outcome"
WRITES = [
    ("PUT", "/v1/bandits/new"),
    ("PUT", "/v1/bandits/b/arms/new"),
    ("POST", DECISIONS),
    ("POST", f"{DECISIONS}/batch"),
    ("PUT", OUTCOME),
    ("POST", "/v1/bandits/b/outcomes/batch"),
    ("POST", "/v1/bandits/b/references"),
    ("POST", "/v1/bandits/b/import"),
    ("POST", "/v1/bandits/b/clone"),
    ("PUT", "/v1/bandits/b/shadows/s"),
    ("POST", "/v1/bandits/b/shadows/s/promote"),
    ("POST", "/v1/bandits/b/evaluations"),
]

NOT_JSON = {
    "cut off": b'{"reward": 0.5',
    "a comma too many": b'{"reward": 0.5,}',
    "single quotes": b"{'reward': 0.5}",
    "a comment": b'{"reward": 0.5} // good',
    "two documents": b'{"reward": 0.5}{}',
    "no value": b"   ",
    "words": SECRET.encode(),
    "UTF-16": '{"reward": 0.5}'.encode("utf-16"),
    "half a character": b'{"prompt": "\xe2\x82"}',
    "Latin-1": '{"prompt": "größe"}'.encode("latin-1"),
    "a lone surrogate": b'{"prompt": "\\ud83d"}',
    "a surrogate in a name": b'{"\\udc00": 1}',
    "a raw NUL": b'{"prompt": "a\x00b"}',
    "a thousand lists in each other": b"[" * 1000 + b"]" * 1000,
    "ten thousand objects in each other": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "an integer of 5,000 digits": b'{"reward": 1' + b"0" * 5000 + b"}",
    "a leading zero": b'{"reward": 007}',
    "hexadecimal": b'{"reward": 0x10}',
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_json_is_malformed(prepared: Service, body: bytes) -> None:
    await refused(prepared, "PUT", OUTCOME, body, 400, "malformed_json")


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_every_route_knows_what_is_no_json_and_what_is_no_object(prepared: Service, method: str, path: str) -> None:
    await refused(prepared, method, path, b"{", 400, "malformed_json")
    wrong: list[Any] = [[], 7, True, "text", [{}]]
    for body in wrong:
        await refused(prepared, method, path, body, 422, "invalid_request", "body")


@pytest.mark.parametrize(("method", "path"), [write for write in WRITES if "/arms/" not in write[1]])
async def test_a_body_is_needed(prepared: Service, method: str, path: str) -> None:
    for body in (b"", b"null"):
        await refused(prepared, method, path, body, 422, "invalid_request", "body")


# -- unknown fields, at every level --------------------------------------------------------------------------------------------

UNKNOWN: list[tuple[str, str, Json, str]] = [
    ("PUT", "/v1/bandits/new", {**VECTOR, "sed": 7}, "sed"),
    ("PUT", "/v1/bandits/new", {**VECTOR, "policy": {"kind": "pak-ucb", "explorations": 1.0}}, "policy.explorations"),
    ("PUT", "/v1/bandits/new", {**VECTOR, "arms": [{"name": "a"}, {"name": "b", "cost": 1}]}, "arms.1.cost"),
    ("PUT", "/v1/bandits/new", {**VECTOR, "prompt": {"dim": 3, "dims": 3}}, "prompt.dims"),
    ("PUT", "/v1/bandits/new", {**VECTOR, "output": {"dim": 3, "x": 3}}, "output.x"),
    ("PUT", "/v1/bandits/new", {**VECTOR, "reward": {"timeout": 5}}, "reward.timeout"),
    ("PUT", "/v1/bandits/b/arms/new", {"prize": 1}, "prize"),
    ("PUT", "/v1/bandits/b/arms/new", {"name": "other"}, "name"),
    ("POST", DECISIONS, {**PROMPT, "arm": ["small"]}, "arm"),
    ("POST", DECISIONS, {"prompt": {"vector": [1, 2, 3], "txt": ""}}, "prompt.txt"),
    ("POST", DECISIONS, {**PROMPT, "arms": [{"name": "small", "metadata": {}}]}, "arms.0.metadata"),
    ("PUT", OUTCOME, {"reward": 0.5, "costs": 1}, "costs"),
    ("PUT", OUTCOME, {"reward": 0.5, "decision": "open"}, "decision"),
    ("PUT", OUTCOME, {"reward": 0.5, "output": {"vectr": [1.0], "text": "a"}}, "output.0.vectr"),
    ("POST", "/v1/bandits/b/references", {"outputs": [{"text": "a", "label": 1}]}, "outputs.0.label"),
    ("POST", "/v1/bandits/b/references", {"samples": []}, "samples"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), UNKNOWN, ids=[item[3] for item in UNKNOWN])
async def test_an_unknown_field_is_refused_by_its_name(prepared: Service, method: str, path: str, body: Json, field: str) -> None:
    await refused(prepared, method, path, body, 422, "invalid_request", field)


async def test_any_number_of_unknown_fields_costs_ten_errors(prepared: Service) -> None:
    body = {f"field {i}": 1 for i in range(50_000)}
    before = await prepared.offset()
    response = await prepared.post(DECISIONS, body | PROMPT)
    assert paths(response) == [f"field {i}" for i in range(10)]
    assert len(response.content) < 2_000
    assert await prepared.offset() == before


async def test_an_endless_name_is_cut(prepared: Service) -> None:
    response = await prepared.post(DECISIONS, {"x" * 1_000_000: 1})
    assert paths(response) == ["x" * 64]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", OUTCOME, {"reward": 0.5, "output": [1] * 100_000}),
        ("POST", "/v1/bandits/b/references", {"moments": {"mean": [0.0], "covariance": [[[]] * 90_000], "count": 9}}),
        ("POST", "/v1/bandits/b/references", {"outputs": [1] * 100_000}),
        ("PUT", "/v1/bandits/new", {**VECTOR, "arms": [1] * 100_000}),
        ("POST", DECISIONS, {"prompt": {"vector": [[]] * 90_000}}),
    ],
)
async def test_a_long_list_of_nonsense_is_answered_briefly(prepared: Service, method: str, path: str, body: Json) -> None:
    response = await prepared.ask(method, path, json=body)
    assert failed(response) == (422, "invalid_request")
    assert len(paths(response)) == 1
    assert len(response.content) < 1_000


# -- numbers -------------------------------------------------------------------------------------------------------------------

NUMBERS: list[tuple[str, str, str, str]] = [
    ("PUT", OUTCOME, '{"reward": %s}', "reward"),
    ("PUT", OUTCOME, '{"reward": 0.5, "cost": %s}', "cost"),
    ("PUT", "/v1/bandits/b/arms/new", '{"price": %s}', "price"),
    ("POST", DECISIONS, '{"prompt": {"vector": [1, 2, 3]}, "arms": [{"name": "small", "price": %s}]}', "arms.0.price"),
    ("POST", DECISIONS, '{"prompt": {"vector": [1, %s, 3]}}', "prompt.vector"),
    (
        "PUT",
        "/v1/bandits/new",
        '{"policy": {"kind": "greedy", "prior_mean": %s}, "arms": [{"name": "a"}]}',
        "policy.prior_mean",
    ),
    (
        "PUT",
        "/v1/bandits/new",
        '{"policy": {"kind": "greedy"}, "arms": [{"name": "a"}], "reward": {"timeout_s": 9, "default": %s}}',
        "reward.default",
    ),
    (
        "PUT",
        "/v1/bandits/new",
        '{"policy": {"kind": "greedy"}, "arms": [{"name": "a"}], "reward": {"timeout_s": %s}}',
        "reward.timeout_s",
    ),
]


NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "true", "false", '"0.5"', "[0.5]", "{}"]


@pytest.mark.parametrize(("method", "path", "body", "field"), NUMBERS, ids=[item[3] for item in NUMBERS])
async def test_a_number_is_a_finite_number(prepared: Service, method: str, path: str, body: str, field: str) -> None:
    for number in NO_NUMBERS:
        await refused(prepared, method, path, (body % number).encode(), 422, "invalid_request", field)


async def test_numbers_that_would_overflow_are_refused(prepared: Service) -> None:
    for number in (b"1e308", b"-1e308", b"1" + b"0" * 400, b"3.5e38", b"-3.5e38"):
        await refused(prepared, "PUT", OUTCOME, b'{"reward": %s}' % number, 422, "invalid_request", "reward")
        body = b'{"prompt": {"vector": [1, %s, 3]}}' % number
        await refused(prepared, "POST", DECISIONS, body, 422, "invalid_request", "prompt.vector")


@pytest.mark.parametrize("number", ["-0.0", "1e-400", "5e-324", "1E12", "-1000000000000", "0"])
async def test_odd_numbers_that_are_fine_are_fine(prepared: Service, number: str) -> None:
    response = await prepared.ask("PUT", OUTCOME, content=b'{"reward": %s}' % number.encode(), headers=JSON)
    assert response.status_code == 200
    assert answered(response)["reward"] == float(number)
    assert math.isfinite((await prepared.bandit())["arms"][0]["mean_reward"])


async def test_a_switch_is_true_or_false(prepared: Service) -> None:
    values: list[Any] = ["yes", 1, 0, None, []]
    for value in values:
        await refused(prepared, "POST", DECISIONS, {**PROMPT, "dry_run": value}, 422, "invalid_request", "dry_run")
        await refused(prepared, "PUT", OUTCOME, {"reward": 1, "next": value}, 422, "invalid_request", "next")


async def test_of_two_fields_of_one_name_neither_counts(prepared: Service) -> None:
    await refused(prepared, "PUT", PLAIN, b'{"reward": 0.25, "reward": 0.5}', 400, "malformed_json")


# -- prompts and vectors -------------------------------------------------------------------------------------------------------

VECTORS: dict[str, Any] = {
    "too short": [1.0, 2.0],
    "too long": [1.0, 2.0, 3.0, 4.0],
    "empty": [],
    "numbers in quotes": ["1", "2", "3"],
    "booleans": [True, False, True],
    "null inside": [1.0, None, 3.0],
    "a matrix": [[1.0, 2.0, 3.0]],
    "an object": {"0": 1.0},
    "a number": 3.0,
    "65,537 numbers": [0.5] * 65_537,
    "base64: too short": float32([1.0, 2.0]),
    "base64: too long": float32([1.0] * 4),
    "base64: empty": "",
    "base64: NaN": float32([1.0, math.nan, 2.0]),
    "base64: infinity": float32([1.0, math.inf, 2.0]),
    "base64: ten bytes": base64.b64encode(b"0123456789").decode(),
    "base64: float64": base64.b64encode(struct.pack("<3d", 1.0, 2.0, 3.0)).decode(),
    "base64: no padding": float32([1.0] * 3 + [2.0])[:-1],
    "base64: for URLs": base64.urlsafe_b64encode(b"\xff" * 12).decode(),
    "base64: not ASCII": "größe",
    "base64: NUL": "\u0000" * 16,
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
async def test_a_vector_has_the_length_of_the_bandit_and_finite_numbers(prepared: Service, vector: Any) -> None:
    await refused(prepared, "POST", DECISIONS, {"prompt": {"vector": vector}}, 422, "invalid_request", "prompt.vector")


PROMPTS: dict[str, tuple[Any, str]] = {
    "missing": (None, "prompt"),
    "empty text": ("", "prompt"),
    "blanks": (" \n\t", "prompt"),
    "an empty object": ({}, "prompt"),
    "two at once": ({"text": SECRET, "vector": [1, 2, 3]}, "prompt"),
    "a text where a vector is needed": (SECRET, "prompt"),
    "an image where a vector is needed": ({"image": "AAAA"}, "prompt.image"),
    "probabilities": ({"probabilities": [0.5, 0.25, 0.25]}, "prompt.probabilities"),
    "a number": (7, "prompt"),
    "a list": ([1.0, 2.0, 3.0], "prompt"),
    "text that is a number": ({"text": 7}, "prompt.text"),
    "zeros": ({"vector": [0.0, 0.0, 0.0]}, "prompt"),
    "zeros after rounding": ({"vector": [1e-60, 0.0, -1e-60]}, "prompt"),
}


@pytest.mark.parametrize(("prompt", "field"), PROMPTS.values(), ids=PROMPTS.keys())
async def test_a_prompt_is_what_the_bandit_takes(prepared: Service, prompt: Any, field: str) -> None:
    await refused(prepared, "POST", DECISIONS, {"prompt": prompt}, 422, "invalid_request", field)


async def test_a_prompt_of_ten_megabytes_is_refused(service: Service) -> None:
    await service.create(body={**VECTOR, "prompt": {"embedder": "static"}})
    response = await service.post(DECISIONS, {"prompt": "word " * 2_000_000})
    assert (failed(response), paths(response)) == ((422, "invalid_request"), ["prompt.text"])
    assert await service.offset() == 1


async def test_an_id_is_short_and_plain(prepared: Service) -> None:
    for wrong in ("", "a b", "a/b", "é", "a\n", "a" * 65, 7, True, ["a"]):
        await refused(prepared, "POST", DECISIONS, {**PROMPT, "id": wrong}, 422, "invalid_request", "id")
        await refused(prepared, "POST", DECISIONS, {**PROMPT, "episode": wrong}, 422, "invalid_request", "episode")


# -- transport -----------------------------------------------------------------------------------------------------------------


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


@pytest.mark.parametrize("streamed", [False, True], ids=["with its length", "in chunks without a length"])
async def test_a_body_over_the_limit_is_refused(streamed: bool) -> None:
    async with opened(max_body_bytes=4096) as service:
        await service.create()
        fits = json.dumps({"prompt": "a" * (4096 - 14)}).encode()
        assert len(fits) == 4096
        for body, expected in ((fits, 201), (fits + b" ", 413)):
            content = _pieces(body) if streamed else body
            response = await service.ask("POST", DECISIONS, content=content, headers=JSON)
            assert response.status_code == expected
        assert failed(response) == (413, "payload_too_large")
        assert await service.offset() == 2


async def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    async with opened(max_body_bytes=4096) as service:
        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            while taken < 1_000_000:
                taken += 1000
                yield b" " * 1000

        response = await service.ask("POST", DECISIONS, content=endless(), headers=JSON)
        assert failed(response) == (413, "payload_too_large")
        assert taken < 10_000


async def test_half_a_request_is_none() -> None:
    """The client went away: what came looks whole, and is not."""
    async with opened() as service:
        await service.create()
        app = service.client._transport.app  # type: ignore[attr-defined]
        body = b'{"id": "mine"}'
        messages = iter([{"type": "http.request", "body": body, "more_body": True}, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": DECISIONS,
            "raw_path": DECISIONS.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"99")],
            "client": ("127.0.0.1", 1),
        }
        await app(scope, receive, send)
        assert sent == []
        assert await service.offset() == 1


async def test_a_compressed_body_is_refused(prepared: Service) -> None:
    for encoding in ("gzip", "GZIP", "deflate", "br", "gzip, identity", "nonsense"):
        headers = {**JSON, "content-encoding": encoding}
        response = await prepared.ask("PUT", OUTCOME, content=gzip.compress(b'{"reward": 0.5}'), headers=headers)
        assert failed(response) == (415, "unsupported_media_type")
    plain = {**JSON, "content-encoding": "identity"}
    assert (await prepared.ask("PUT", OUTCOME, content=b'{"reward": 0.5}', headers=plain)).status_code == 200


async def test_json_must_be_called_json(prepared: Service) -> None:
    """A web page can make a browser post any of these to a server on this machine without asking it."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "", "json"):
        headers = {"content-type": kind} if kind else {}
        response = await prepared.ask("PUT", OUTCOME, content=b'{"reward": 0.5}', headers=headers)
        assert failed(response) == (415, "unsupported_media_type")
        response = await prepared.ask("PUT", OUTCOME, content=b'{"reward": 0.5', headers=headers)
        assert failed(response) == (400, "malformed_json")
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        headers = {"content-type": kind}
        assert (await prepared.ask("PUT", OUTCOME, content=b'{"reward": 0.5}', headers=headers)).status_code == 200


# -- the table of the contract -------------------------------------------------------------------------------------------------

CONTRACT = {
    "malformed_json": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "bandit_not_found": 404,
    "arm_not_found": 404,
    "decision_not_found": 404,
    "bandit_exists": 409,
    "outcome_conflict": 409,
    "decision_conflict": 409,
    "reference_missing": 409,
    "decision_expired": 410,
    "decision_cancelled": 410,
    "payload_too_large": 413,
    "invalid_request": 422,
    "rate_limited": 429,
    "storage_unavailable": 503,
}
"""Each is provoked somewhere in these tests; here stands that none of them moves."""


def test_the_codes_of_the_contract_have_their_status() -> None:
    assert CONTRACT.items() <= CODES.items()
    for code, status in CODES.items():
        response = Problem(code, "something").response()
        assert response.status_code == status
        assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_a_bandit_with_open_decisions_can_be_deleted(prepared: Service) -> None:
    assert (await prepared.delete("/v1/bandits/b")).status_code == 204
    response = await prepared.put(OUTCOME, {"reward": 0.5})
    assert failed(response) == (404, "bandit_not_found")
    assert (await prepared.put(PLAIN, {"reward": 0.5})).status_code == 200  # the other one lives on


# -- what is never shown --------------------------------------------------------------------------------------------------------


async def test_no_error_and_no_log_line_repeats_a_prompt_or_a_key(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "key-0123456789abcdef"
    caplog.set_level(logging.DEBUG)
    async with opened(api_keys=f"admin:{key}", clock=clock) as service:
        service.client.headers["authorization"] = f"Bearer {key}"
        await service.create(body={**VECTOR, "prompt": {"embedder": "static"}})
        asked: list[tuple[str, str, Any]] = [
            ("POST", DECISIONS, {"prompt": SECRET}),
            ("POST", DECISIONS, {"prompt": SECRET, "id": "mine"}),
            ("POST", DECISIONS, {"prompt": SECRET * 2, "id": "mine"}),
            ("POST", DECISIONS, {"prompt": {"text": SECRET, "vector": [1]}}),
            ("POST", DECISIONS, {"prompt": {"vector": SECRET}}),
            ("POST", DECISIONS, {"prompt": {"image": SECRET}}),
            ("POST", DECISIONS, {"prompt": SECRET, "dry_run": SECRET}),
            ("POST", DECISIONS, {"prompt": SECRET, "arms": [SECRET]}),
            ("POST", DECISIONS, {"prompt": SECRET, "id": SECRET + "/"}),
            ("POST", f"{DECISIONS}/batch", {"decisions": [SECRET, {"prompt": SECRET}, {"prompt": {"vector": SECRET}}]}),
            ("PUT", f"{DECISIONS}/mine/outcome", {"reward": SECRET}),
            ("PUT", f"{DECISIONS}/mine/outcome", {"reward": 0.5, "arm": SECRET}),
            ("PUT", f"{DECISIONS}/mine/outcome", {"reward": 0.5, "output": SECRET}),
            ("PUT", "/v1/bandits/new", {**GREEDY, "policy": {"kind": SECRET}}),
            ("PUT", "/v1/bandits/new", {**GREEDY, "prompt": {"embedder": "vector", "dim": SECRET}}),
            ("PUT", "/v1/bandits/new", {**GREEDY, "prompt": {"embedder": SECRET}}),
        ]
        for method, path, body in asked:
            response = await service.ask(method, path, json=body)
            assert SECRET not in response.text
            assert key not in response.text

        def broken(*args: object, **named: object) -> None:
            raise RuntimeError("something broke")

        monkeypatch.setattr("service.api.hot_path.decide", broken)
        response = await service.client.post(DECISIONS, json={"prompt": SECRET})
        assert failed(response) == (500, "internal_error")
        assert "broke" not in response.text
        service.client.headers["authorization"] = "Bearer wrong-" + key
        assert failed(await service.get("/v1/bandits")) == (401, "unauthenticated")
    assert "something broke" in caplog.text  # the operator sees it, with its trace
    assert SECRET not in caplog.text
    assert key not in caplog.text
    assert all(SECRET not in str(vars(record)) and key not in str(vars(record)) for record in caplog.records)


async def test_a_query_parameter_that_a_route_does_not_declare_is_refused(prepared: Service) -> None:
    before = [await prepared.offset(), await prepared.offset("plain")]
    operations = answered(await prepared.get("/openapi.json"))["paths"]
    names = {"name": "b", "arm": "small", "decision": "open"}
    asked = 0
    for template, methods in operations.items():
        for method, operation in methods.items():
            if not template.startswith("/v1/"):
                continue
            path = template.format_map(defaultdict(lambda: "x", names))
            taken = ", ".join(sorted(item["name"] for item in operation["parameters"] if item["in"] == "query")) or "none"
            response = await prepared.ask(method.upper(), f"{path}?limits=1&u=", json={"reward": 0.5} if path == OUTCOME else {})
            assert (failed(response), paths(response)) == ((422, "invalid_request"), ["limits", "u"]), (method, path)
            assert response.json()["detail"].startswith(f"limits: is not a query parameter here; this takes {taken};"), path
            asked += 1
    assert asked > 25
    assert [await prepared.offset(), await prepared.offset("plain")] == before
    assert answered(await prepared.get("/v1/bandits/b/decisions/open?"))["state"] == "open"
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert (await prepared.get(f"{path}?probe=1")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("PUT", OUTCOME, {"reward": True}, "for yes and no send 1 and 0"),
        ("PUT", OUTCOME, [], "must be a JSON object"),
        ("POST", DECISIONS, {"id": "a b"}, "1 to 64 characters of A-Z a-z 0-9 _ -"),
        ("PUT", "/v1/bandits/Big", GREEDY, "1 to 63 characters of a-z 0-9 _ -"),
        ("PUT", "/v1/bandits/new", {"policy": {"kind": "pak-ucb"}, "arms": []}, "minilm"),
        ("POST", "/v1/bandits", GREEDY, "create a bandit with PUT"),
        ("GET", "/v1/nothing", None, "not found"),
    ],
)
async def test_a_message_says_what_to_send_instead(prepared: Service, method: str, path: str, body: Any, text: str) -> None:
    response = await prepared.ask(method, path, json=body)
    assert text in response.json()["detail"]
    assert "pattern" not in response.text
