"""More requests than there is room for are refused at once, and those that were accepted are answered."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api.connections import BoundedProtocol, ConnectionLimits
from service.api.metrics import Meter
from service.api.request_room import RequestRoom
from service.settings import Settings
from tests.service.drivers import HeldDecisions
from tests.service.http_client import PROMPT, VECTOR, Service, answered, failed, opened

DECISIONS = "/v1/bandits/b/decisions"
PATIENCE_S = 60.0
Answer = tuple[int, dict[str, str], Any]


class Connection:
    """One of a client that writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def ask(self, method: str, path: str, body: object = None, *headers: str) -> Answer:
        self.writer.write(wire(method, path, body, *headers))
        return await self.answer()

    async def answer(self) -> Answer:
        head = (await self._soon(self._reader.readuntil(b"\r\n\r\n"))).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self._soon(self._reader.readexactly(int(headers["content-length"])))
        is_json = headers["content-type"].endswith("json")
        return int(first.split()[1]), headers, json.loads(body) if is_json else body.decode()

    async def is_closed(self) -> bool:
        return await self._soon(self._reader.read(1)) == b""

    async def _soon(self, read: Awaitable[bytes]) -> bytes:
        return await asyncio.wait_for(read, PATIENCE_S)


def wire(method: str, path: str, body: object = None, *headers: str) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if content:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Listening:
    """A service that listens in this process, its bandit `b`, and its room."""

    def __init__(self, service: Service, limits: ConnectionLimits, port: int) -> None:
        self.service, self.limits, self.room, self._port = service, limits, limits.room, port
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self._port))
        self._connections.append(connection)
        return connection

    async def fill(self) -> list[Connection]:
        """Connections with decisions that take all of the room and wait."""
        busy = [await self.connect() for _ in range(self.room.left)]
        for number, connection in enumerate(busy):
            connection.writer.write(wire("POST", DECISIONS, {**PROMPT, "id": f"d{number}"}))
        return busy

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                await asyncio.sleep(0.001)

    def close(self) -> None:
        for connection in self._connections:
            connection.writer.close()


@asynccontextmanager
async def listening(*, max_concurrent: int) -> AsyncIterator[Listening]:
    async with opened(max_concurrent=max_concurrent) as service:
        await service.create(body=VECTOR)
        app: Any = service.client._transport.app  # type: ignore[attr-defined]
        services = app.state.services
        limits = ConnectionLimits(Settings(), connections=100, meter=services.meter, room=services.request_room)
        config, state = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False), ServerState()
        config.load()
        made = partial(BoundedProtocol, config, state, {}, limits=limits)
        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        found = Listening(service, limits, server.sockets[0].getsockname()[1])
        try:
            yield found
        finally:
            found.close()
            server.close()


async def test_what_there_is_no_room_for_is_refused_at_once_and_the_rest_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(max_concurrent=3) as service:
        await service.create(body=VECTOR)
        held = HeldDecisions(monkeypatch)
        accepted = [asyncio.create_task(service.post(DECISIONS, {**PROMPT, "id": f"d{i}"})) for i in range(3)]
        for _ in accepted:
            await held.arrived.acquire()
        refused = await service.post(DECISIONS, {**PROMPT, "id": "late"})
        assert failed(refused) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert (await service.get(probe)).status_code == 200
        held.go_on.set()
        assert [(await task).status_code for task in accepted] == [201, 201, 201]
        assert (await service.post(DECISIONS, {**PROMPT, "id": "late"})).status_code == 201, "there is room again"
        assert answered(await service.get("/v1/bandits/b"))["decisions"] == 4


async def test_requests_that_come_together_are_parsed_only_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(max_concurrent=3) as server:
        held = HeldDecisions(monkeypatch)
        connections = [await server.connect() for _ in range(8)]
        for number, connection in enumerate(connections):
            connection.writer.write(wire("POST", DECISIONS, {**PROMPT, "id": f"d{number}"}, f"X-Request-ID: r-{number}"))
        answers = {n: asyncio.create_task(connection.answer()) for n, connection in enumerate(connections)}
        refused: list[int] = []
        while len(refused) < 5:
            await asyncio.wait(answers.values(), return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
            refused += [number for number, answer in answers.items() if answer.done()]
            for number in refused:
                if (done := answers.pop(number, None)) is not None:
                    status, headers, body = done.result()
                    assert (status, body["code"], headers["retry-after"]) == (503, "overloaded", "1")
                    assert body["request_id"] == headers["x-request-id"] == f"r-{number}"
                    assert headers["content-type"] == "application/problem+json"
                    assert "connection" not in headers
        assert server.room.left == 0
        assert len(server.limits.unfinished) == 5, "nothing was parsed of what was refused"
        for number in refused:  # its connection goes on, and serves what an overloaded server must serve
            for probe in ("/healthz", "/readyz", "/metrics"):
                assert (await connections[number].ask("GET", probe))[0] == 200
        _, _, text = await connections[refused[0]].ask("GET", "/metrics")
        assert 'nextarm_problems_total{code="overloaded"} 5.0' in text
        assert 'nextarm_requests_total{method="POST",route="",status="503"} 5.0' in text
        held.go_on.set()
        assert {(await answer)[0] for answer in answers.values()} == {201}
        await server.until(lambda: server.room.left == 3)
        for number in refused:
            assert (await connections[number].ask("POST", DECISIONS, {**PROMPT, "id": f"d{number}"}))[0] == 201
        assert (await server.service.bandit())["decisions"] == 8


async def test_who_asks_again_before_retry_after_is_answered_later_and_is_taken_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with listening(max_concurrent=1) as server:
        held = HeldDecisions(monkeypatch)
        (busy,) = await server.fill()
        await held.arrived.acquire()
        monkeypatch.setattr("service.api.connections.HOLD_S", 3600.0)  # nothing is answered by itself
        impatient, gone = await server.connect(), await server.connect()
        for connection in (impatient, gone):
            assert (await connection.ask("GET", "/v1/bandits/b"))[0] == 503
            connection.writer.write(wire("GET", "/v1/bandits/b"))
        await server.until(lambda: server.limits.held == 2)
        gone.writer.close()
        await server.until(lambda: server.limits.held == 1)
        impatient.writer.write(wire("GET", "/healthz"))  # behind it
        assert [(await impatient.answer())[0] for _ in range(2)] == [503, 200]
        monkeypatch.setattr("service.api.connections.HOLD_S", 0.01)
        assert (await impatient.ask("GET", "/v1/bandits/b"))[0] == 503
        monkeypatch.setattr("service.api.connections.HOLD_S", 3600.0)
        monkeypatch.setattr("service.api.connections.MAX_HELD", 0)
        assert (await impatient.ask("GET", "/v1/bandits/b"))[0] == 503, "as many are held as may be"
        held.go_on.set()
        assert (await busy.answer())[0] == 201
        await server.until(lambda: server.room.left == 1)
        assert (await impatient.ask("GET", "/v1/bandits/b"))[0] == 200
        assert server.limits.held == 0


async def test_what_the_parser_must_judge_is_refused_as_well_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(max_concurrent=2) as server:
        held = HeldDecisions(monkeypatch)
        await server.fill()
        for _ in range(2):
            await held.arrived.acquire()
        late = await server.connect()
        whole = wire("POST", DECISIONS, PROMPT)
        late.writer.write(whole[:-5])
        assert (await late.answer())[0] == 503, "before its body has come"
        late.writer.write(whole[-5:])
        assert (await late.ask("GET", "/healthz"))[0] == 200
        last = await server.connect()
        status, headers, _ = await last.ask("GET", "/v1/bandits/b", None, "Connection: close")
        assert (status, headers["connection"]) == (503, "close")
        assert await last.is_closed()
        two = await server.connect()
        two.writer.write(wire("GET", "/v1/bandits/b") + wire("GET", "/healthz"))
        assert [(await two.answer())[0] for _ in range(2)] == [503, 200]
        wrong = await server.connect()
        assert (await wrong.ask("GET", "/v1/bandits/b", None, "no colon"))[0] in (400, 503)
        held.go_on.set()
        await server.until(lambda: server.room.left == 2)


async def test_room_is_given_back_whatever_becomes_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(max_concurrent=2) as server:
        asked: list[tuple[str, str, object]] = [
            ("POST", DECISIONS, {"prompt": {"vector": [1]}}),
            ("POST", "/v1/bandits/none/decisions", PROMPT),
            ("PATCH", DECISIONS, PROMPT),
            ("GET", "/v1/bandits/b/../c", None),
            ("HEAD", "/v1/bandits/b", None),
            ("PUT", "/v1/bandits/b", {"policy": {"kind": "none"}}),
        ]
        for method, path, body in asked:
            connection = await server.connect()
            connection.writer.write(wire(method, path, body, "Connection: close"))
            while not await connection.is_closed():
                pass
        held = HeldDecisions(monkeypatch)
        gone = (await server.fill())[0]
        for _ in range(2):
            await held.arrived.acquire()
        assert server.room.left == 0
        gone.writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.writer.close()
        pipelined = await server.connect()
        pipelined.writer.write(wire("POST", DECISIONS, PROMPT) * 3)
        held.go_on.set()
        await server.until(lambda: server.room.left == 2)
        assert (await server.service.bandit())["decisions"] >= 2


async def test_a_refusal_that_waits_for_its_client_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(max_concurrent=1) as server:
        held = HeldDecisions(monkeypatch)
        late = await server.connect()
        assert (await late.ask("GET", "/healthz"))[0] == 200
        (connection,) = server.limits.idle
        (busy,) = await server.fill()
        await held.arrived.acquire()
        connection.pause_writing()  # as where its client does not read
        whole = wire("POST", DECISIONS, PROMPT)
        late.writer.write(whole[:-5])
        await server.until(lambda: connection.cycle.more_body)
        held.go_on.set()
        assert (await busy.answer())[0] == 201
        await server.until(lambda: server.room.left == 1)
        late.writer.write(whole[-5:])  # when there is room again
        await server.until(lambda: not connection.cycle.more_body)
        connection.resume_writing()
        assert (await late.answer())[0] == 503
        assert (await late.ask("GET", "/v1/bandits/b"))[0] == 200
        await server.until(lambda: server.room.left == 1)


@pytest.mark.parametrize(
    "data",
    [
        wire("HEAD", "/v1/bandits/b"),
        wire("GET", "/healthz"),
        wire("GET", "/v1/chat/completions"),
        wire("GET", "/v1/bandits/b/events?after=1"),
        wire("GET", "/v1/bandits/b").replace(b"1.1", b"1.0"),
        wire("GET", "/v1/bandits/b") * 2,
        wire("GET", "/v1/bandits/b")[:-2],
        wire("POST", DECISIONS, PROMPT)[:-1],
        wire("POST", DECISIONS, PROMPT) + b"x",
        wire("POST", DECISIONS, PROMPT, "Expect: 100-continue"),
        wire("POST", DECISIONS, PROMPT, "Transfer-Encoding: chunked"),
        wire("POST", DECISIONS, PROMPT, "content-length: 2"),
        wire("GET", "/v1/bandits/b", None, "Content-Length: -0"),
        wire("GET", "/v1/bandits/b", None, "Content-Length: 1_0"),
        wire("GET", "/v1/bandits/b", None, "Connection: upgrade"),
        wire("GET", "/v1/bandits/b", None, "Content-Length : 2"),
        wire("GET", "/v1/bandits/b", None, "Transfer-Encoding\t: chunked"),
        wire("GET", "/v1/bandits/b", None, "a: b\nTransfer-Encoding: chunked"),
        b"GET http://localhost/v1/bandits HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_only_what_is_plainly_one_request_is_refused_without_the_parser(data: bytes) -> None:
    room = RequestRoom(0, Meter())
    assert room.refuse(data, []) is None
    assert room.refuse(wire("POST", DECISIONS, PROMPT, "X-Request-ID: bad id"), []) is not None
    assert room.refuse(wire("GET", "/adapters/weave/b"), []) is None, "its clients read errors in another form"


def test_a_prepared_answer_has_the_date_of_its_second_and_its_length() -> None:
    room = RequestRoom(0, Meter())
    for date in (b"one", b"two"):
        found = room.refuse(wire("GET", "/v1/bandits", None, "x-request-id: mine"), [(b"date", date)])
        assert found is not None
        head, _, body = found[0].partition(b"\r\n\r\n")
        assert b"\r\ndate: %s\r\n" % date in head
        assert b"\r\ncontent-length: %d\r\n" % len(body) in head
        assert json.loads(body)["request_id"] == "mine"
