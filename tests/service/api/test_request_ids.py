"""Every request has an id: the client's, or one that is made; answers, problem documents and log lines carry it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from service.storage.base import StorageUnavailableError
from service.storage.memory import MemoryStorage
from tests.service.http_client import JSON, PROMPT, VECTOR, Service, failed, opened
from tests.service.servers import Server, wait_until

MINE = "checkout:4711.a_B-c"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/bandits/b/decisions", PROMPT, 201),
        ("POST", "/v1/bandits/b/decisions", {"prompt": 7}, 422),
        ("POST", "/v1/bandits/none/decisions", PROMPT, 404),
        ("POST", "/v1/bandits/b/decisions/batch", {"decisions": [PROMPT, 7]}, 200),
        ("GET", "/v1/bandits/b", None, 200),
        ("GET", "/v1/bandits/b/log", None, 200),
        ("GET", "/v1/bandits//b", None, 400),
        ("GET", "/nothing", None, 404),
        ("PATCH", "/healthz", None, 405),
        ("GET", "/healthz", None, 200),
        ("HEAD", "/readyz", None, 200),
        ("GET", "/metrics", None, 200),
        ("GET", "/docs", None, 200),
        ("GET", "/openapi.json", None, 200),
    ],
)
async def test_an_id_is_taken_and_echoed_on_every_answer(
    service: Service, method: str, path: str, body: Any, status: int
) -> None:
    await service.create(body=VECTOR)
    named = await service.ask(method, path, json=body, headers={"x-request-id": MINE})
    assert (named.status_code, named.headers["x-request-id"]) == (status, MINE)
    if status >= 400:
        assert named.json()["request_id"] == MINE
    first, second = [(await service.ask(method, path, json=body)).headers["x-request-id"] for _ in range(2)]
    assert first != second


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "é", 'quote"', "<script>", "{}", "a,b"])
async def test_an_id_of_other_characters_is_replaced(service: Service, given: str) -> None:
    answer = await service.ask("GET", "/healthz", headers={"x-request-id": given.encode()})
    assert answer.headers["x-request-id"] not in ("", given)
    longest = await service.ask("GET", "/healthz", headers={"x-request-id": "x" * 128})
    assert longest.headers["x-request-id"] == "x" * 128


async def test_refusals_at_the_door_carry_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(api_keys="secret-key", rate_limit=1, max_body_bytes=2048) as service:
        service.client.headers.update({"authorization": "Bearer secret-key", "x-request-id": MINE})
        large = await service.ask("PUT", "/v1/bandits/b", content=b" " * 4096, headers=JSON)
        limited = await service.get("/v1/bandits")
        stranger = await service.ask("GET", "/v1/bandits", headers={"authorization": "Bearer other"})
        assert [failed(answer)[0] for answer in (large, limited, stranger)] == [413, 429, 401]
    async with opened() as service:
        app = service.client._transport.app  # type: ignore[attr-defined]
        monkeypatch.setattr(app._middleware._room, "left", 0)
        full = await service.ask("GET", "/v1/bandits", headers={"x-request-id": MINE})
        assert (failed(full), full.json()["request_id"]) == ((503, "overloaded"), MINE)
        assert int(full.headers["content-length"]) == len(full.content)


async def test_a_failure_is_logged_with_the_id_of_its_request(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: object, **named: object) -> None:
        raise RuntimeError("something broke")

    await service.create(body=VECTOR)
    monkeypatch.setattr("service.api.hot_path.decide", broken)
    answer = await service.client.post("/v1/bandits/b/decisions", json=PROMPT, headers={"x-request-id": MINE})
    assert (answer.status_code, answer.json()["request_id"]) == (500, MINE)
    assert {vars(record)["request_id"] for record in caplog.records if record.levelno == logging.ERROR} == {MINE}


# -- access lines --------------------------------------------------------------------------------------------------------------


def access_lines(server: Server) -> list[dict[str, Any]]:
    return [line for line in server.logged() if line["message"] == "request"]


def test_each_request_is_one_line_without_prompt_and_key(start_server: Callable[..., Server]) -> None:
    server = start_server(store="memory://", api_keys="secret-key")
    with server.client() as client:
        client.headers["authorization"] = "Bearer secret-key"
        client.put("/v1/bandits/b", json={**VECTOR, "prompt": {"embedder": "static"}}, headers={"x-request-id": "r1"})
        client.post("/v1/bandits/b/decisions", json={"prompt": "a secret prompt"}, headers={"x-request-id": "r2"})
        client.get("/v1/bandits/b?secret=1", headers={"x-request-id": "r3"})
        client.get("/v1/nothing/secret", headers={"x-request-id": "r4"})
        client.head("/readyz", headers={"x-request-id": "r5"})
    wait_until(lambda: len(access_lines(server)) == 5)
    found = [(line["request_id"], line["method"], line["route"], line["bandit"], line["status"]) for line in access_lines(server)]
    assert found == [
        ("r1", "PUT", "/v1/bandits/{name}", "b", 201),
        ("r2", "POST", "/v1/bandits/{name}/decisions", "b", 201),
        ("r3", "GET", "/v1/bandits/{name}", "b", found[2][4]),
        ("r4", "GET", "", "", 404),
        ("r5", "HEAD", "/readyz", "", 200),
    ]
    assert {line["level"] for line in access_lines(server)} == {"INFO"}
    assert all(line["ms"] >= 0 and line["at"] for line in access_lines(server))
    assert "secret" not in "".join(server.lines)
    server.stop()


async def test_access_lines_are_left_out_from_the_level_warning_on(
    service: Service, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, lines in ((logging.WARNING, 0), (logging.INFO, 1)):
        caplog.set_level(level)
        assert (await service.get("/v1/bandits")).status_code == 200
        await asyncio.sleep(0)  # lines are written at the end of an iteration of the loop
        assert len(capsys.readouterr().err.splitlines()) == lines


async def test_a_server_that_is_not_ready_yet_logs_no_error(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)

    async def fail(storage: MemoryStorage) -> None:
        raise StorageUnavailableError("the disk is full")

    monkeypatch.setattr(MemoryStorage, "ping", fail)
    assert (await service.get("/readyz")).status_code == 503
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    await asyncio.sleep(0)
    line = json.loads(capsys.readouterr().err)
    assert (line["route"], line["status"], line["level"]) == ("/readyz", 503, "INFO")
