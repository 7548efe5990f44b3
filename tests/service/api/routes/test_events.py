"""The log as server-sent events: every entry once and in order, bounded, and ended with the server or the bandit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.api import event_streams
from service.api.app import running
from service.api.event_streams import MAX_STREAMS, PAGE
from service.api.problems import Problem
from service.engine.events import VECTORS
from service.settings import Settings
from tests.service.drivers import HeldDecisions
from tests.service.event_stream import PATIENCE_S, Reader, reading
from tests.service.http_client import GREEDY, PROMPT, VECTOR, Json, Service, connected, failed, opened, paths
from tests.service.servers import Server
from tests.service.storages import STORAGES, store_of

Start = Callable[..., Server]


def without_vectors(log: list[Json]) -> list[Json]:
    return [{name: value for name, value in event.items() if name not in VECTORS} for event in log]


@pytest.mark.parametrize("store", STORAGES)
async def test_every_entry_comes_once_in_order_until_the_bandit_is_deleted(store: str, tmp_path: Path) -> None:
    async with opened(**store_of(store, tmp_path)) as service:
        await service.create(body=VECTOR)
        await service.decide(body={**PROMPT, "id": "before"})
        async with reading(service, "since=0") as whole, reading(service, "since=1") as later, reading(service) as news:
            for number in range(3):
                await service.decide(body={**PROMPT, "id": f"d{number}"})
                await service.observe(f"d{number}")
            log = without_vectors(await service.log())
            assert await whole.events(8) == log
            assert await later.events(7) == log[1:]
            assert await news.events(6) == log[2:]
            async with reading(service, "since=0", last_event_id="5") as again:
                assert await again.events(3) == log[5:]
            await service.delete("/v1/bandits/b")
            for reader in (whole, later, news):
                (end,) = [message async for message in reader.messages()]
                assert end["event"] == " end"
                assert json.loads(end["data"])["code"] == "bandit_not_found"


async def test_a_long_log_is_sent_page_by_page_as_the_reader_takes_it(service: Service) -> None:
    """The stream waits with one page, whatever is logged meanwhile."""
    await service.create()
    async with reading(service, "since=0") as slow:
        for _ in range(2):
            await service.post("/v1/bandits/b/decisions/batch", {"decisions": [{}] * 200})
        offsets: list[int] = []
        while len(offsets) < 401:
            chunk = await slow.chunk()
            assert chunk is not None
            ids = [int(line[4:]) for line in chunk.split(b"\n") if line.startswith(b"id: ")]
            assert len(ids) <= PAGE
            offsets += ids
        assert offsets == list(range(1, 402))


async def test_a_reader_that_takes_nothing_is_dropped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "STALLED_S", 0.05)
    await service.create()
    async with reading(service, "since=0") as stalled:
        async with asyncio.timeout(PATIENCE_S):
            while not stalled.aborted.is_set():
                await service.decide()
                await asyncio.sleep(0.01)
            await stalled.task
    assert (await service.get("/v1/bandits/b")).status_code == 200


async def test_a_stream_keeps_no_bandit_in_memory_and_goes_on_when_it_is_loaded_again(tmp_path: Path) -> None:
    async with opened(idle_s=0.01, sweep_s=0.01, **store_of("sqlite", tmp_path)) as service:
        await asyncio.create_task(service.create())  # a task of its own, as each request has one
        repository = service.client._transport.app.state.services.repository  # type: ignore[attr-defined]
        async with reading(service, "since=0") as reader:
            (created,) = await reader.events(1)
            async with asyncio.timeout(PATIENCE_S):
                while repository.loaded(None):
                    await asyncio.sleep(0.01)
            await asyncio.create_task(service.decide(body={"id": "d1"}))
            (decided,) = await reader.events(1)
        assert (created["offset"], decided["offset"], decided["id"]) == (1, 2, "d1")


async def test_silence_is_broken_by_comments(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "COMMENT_S", 0.02)
    await service.create()
    async with reading(service) as reader:
        assert [await reader.chunk() for _ in range(3)] == [b":\n\n"] * 3
        await service.decide(body={"id": "d"})
        assert [event["id"] for event in await reader.events(1)] == ["d"]


async def test_streams_have_a_bound_of_their_own_outside_of_that_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(max_concurrent=1) as service, contextlib.AsyncExitStack() as stack:
        await service.create()
        streams = [await stack.enter_async_context(reading(service)) for _ in range(MAX_STREAMS - 1)]
        assert {reader.status for reader in streams} == {200}
        held = HeldDecisions(monkeypatch)
        waiting = asyncio.create_task(service.decide(body={"id": "waits"}))
        await held.arrived.acquire()
        assert failed(await service.get("/v1/bandits/b")) == (503, "overloaded"), "there is room for one request"
        async with reading(service) as last:
            assert last.status == 200, "a stream is none"
            async with asyncio.timeout(PATIENCE_S):  # what is not refused does not end
                refused = await service.get("/v1/bandits/b/events")
            assert failed(refused) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
        async with reading(service) as next_one:
            assert next_one.status == 200, "one has left"
        held.go_on.set()
        await waiting
        assert [event["id"] for event in await streams[0].events(1)] == ["waits"]


def test_one_tenant_has_half_of_the_streams_at_most() -> None:
    streams = event_streams.EventStreams(room=4)
    with streams.place("north"), streams.place("north"):
        with pytest.raises(Problem, match="2 event streams of your tenant are open"), streams.place("north"):
            pass
        with (
            streams.place("south"),
            streams.place(),
            pytest.raises(Problem, match="4 event streams are open"),
            streams.place("south"),
        ):
            pass
    with streams.place(), streams.place(), streams.place("north"), streams.place("north"):
        assert streams.open == 4
    assert streams.open == 0


async def test_a_stream_counts_for_the_tenant_of_its_bandit() -> None:
    north = {"authorization": "Bearer boss", "x_nextarm_tenant": "north"}
    async with (
        running(Settings.load(store="memory://", api_keys="admin:boss")) as app,
        connected(app, key="boss") as service,
        contextlib.AsyncExitStack() as stack,
    ):
        headers = {"x-nextarm-tenant": "north"}
        for given in ({}, headers):
            created = await service.client.put("/v1/bandits/b", json=GREEDY, headers=given)
            assert created.status_code == 201
        streams = [await stack.enter_async_context(reading(service, **north)) for _ in range(MAX_STREAMS // 2)]
        assert {reader.status for reader in streams} == {200}
        async with asyncio.timeout(PATIENCE_S):  # what is not refused does not end
            refused = await service.client.get("/v1/bandits/b/events", headers=headers)
        assert failed(refused) == (503, "overloaded")
        assert "of your tenant" in refused.json()["detail"]
        async with reading(service, authorization="Bearer boss") as mine:
            assert mine.status == 200


@pytest.mark.parametrize(
    ("query", "header", "path"),
    [("since=-1", "", "since"), ("since=x", "", "since"), ("since=2", "", "since"), ("after=0", "", "after")]
    + [("", value, "last-event-id") for value in ("x", "-1", "2")],
)
async def test_a_place_that_is_none_is_refused(service: Service, query: str, header: str, path: str) -> None:
    await service.create()
    headers = {"last-event-id": header} if header else {}
    refused = await service.ask("GET", f"/v1/bandits/b/events?{query}", headers=headers)
    assert failed(refused) == (422, "invalid_request")
    assert [name.lower() for name in paths(refused)] == [path]


async def test_what_is_asked_of_a_stream_without_reading_it(service: Service) -> None:
    assert failed(await service.get("/v1/bandits/b/events")) == (404, "bandit_not_found")
    await service.create()
    head = await service.ask("HEAD", "/v1/bandits/b/events")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert head.headers["cache-control"] == "no-store"
    assert failed(await service.post("/v1/bandits/b/events")) == (405, "method_not_allowed")
    async with opened(api_keys="reader:reads,router:routes") as keyed:
        assert failed(await keyed.get("/v1/bandits/b/events")) == (401, "unauthenticated")


async def test_how_long_a_stream_stays_is_no_time_of_a_request(service: Service) -> None:
    await service.create()
    asked = time.perf_counter()
    async with reading(service, "since=0") as reader:
        await reader.events(1)
        answered_s = time.perf_counter() - asked
        while time.perf_counter() - asked < 2 * answered_s:
            await service.decide()
            await reader.events(1)
    lines = [line.split(" ") for line in (await service.get("/metrics")).text.splitlines() if "{name}/events" in line]
    values = {name.partition("{")[0]: float(value) for name, value in lines}
    assert values["nextarm_requests_total"] == values["nextarm_request_seconds_count"] == 1.0
    assert 0.0 < values["nextarm_request_seconds_sum"] < answered_s


async def test_the_end_of_the_service_ends_its_streams() -> None:
    readers: list[Reader] = []
    async with contextlib.AsyncExitStack() as stack:
        async with opened() as service:
            await service.create()
            readers += [await stack.enter_async_context(reading(service)) for _ in range(2)]
        for reader in readers:
            assert await reader.chunk() is None


def test_a_server_that_stops_waits_for_no_stream(start_server: Start) -> None:
    """One reader reads, another one lets everything lie until nothing more can be sent to it."""
    server = start_server()
    with server.client() as client, contextlib.ExitStack() as stack:
        client.put("/v1/bandits/b", json=GREEDY)
        client.post("/v1/bandits/b/decisions/batch", json={"decisions": [{"metadata": {"x": "y" * 4000}}] * 1024})
        lazy, reader = (stack.enter_context(socket.create_connection((server.host, server.port), 60)) for _ in range(2))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for connection in (lazy, reader):
            connection.sendall(b"GET /v1/bandits/b/events?since=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b""
        while b"id: 1025" not in found:
            found += reader.recv(2**16)
        assert server.stop() == 0
        while chunk := reader.recv(2**16):
            found += chunk
        assert found.endswith(b"\r\n0\r\n\r\n")
    assert {line["level"] for line in server.logged()} == {"INFO"}, "nothing had to be cancelled"
