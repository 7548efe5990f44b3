"""The event stream of a bandit, followed through a restart of the service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import nextarm
import pytest
from nextarm import AsyncClient, Client

from tools.processes import Server

ARMS = [{"name": "small"}, {"name": "large"}]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One that may be killed: its log survives."""
    server = Server(tmp_path)
    server.start()
    server.wait_until_ready()
    yield server
    server.end()


def test_every_event_comes_once_although_the_service_was_killed(server: Server) -> None:
    with Client(f"http://{server.host}:{server.port}", max_retries=0) as client:
        client.create_bandit("b", policy={"kind": "greedy"}, arms=ARMS)
        stream, news = client.events("b", since=0), client.events("b", since=1)
        assert next(stream) == client.read_log("b", vectors=False)[0]
        client.decide("b", id="d1")
        assert [next(stream)["id"], next(news)["id"]] == ["d1", "d1"]
        server.kill()

        def come_back() -> None:
            server.start()
            server.wait_until_ready()
            client.decide("b", id="d2")

        restart = threading.Thread(target=come_back)
        restart.start()
        assert [next(stream)["id"], next(news)["id"]] == ["d2", "d2"]
        restart.join()
        client.delete_bandit("b")
        for one in (stream, news):
            with pytest.raises(nextarm.NotFoundError) as gone:
                next(one)
            assert gone.value.code == "bandit_not_found"
        with pytest.raises(nextarm.NotFoundError):
            next(client.events("b"))


async def test_a_stream_that_is_awaited_goes_on_where_it_was(server: Server) -> None:
    async with AsyncClient(f"http://{server.host}:{server.port}") as client:
        await client.create_bandit("b", policy={"kind": "greedy"}, arms=ARMS)
        stream = client.events("b")
        first = asyncio.ensure_future(anext(stream))
        while not first.done():  # whichever is the first that comes after the stream has begun
            decision = await client.decide("b")
        assert (await first)["offset"] <= decision.offset
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait_until_ready)
        last = await client.decide("b", id="last")
        offsets = [(await first)["offset"]]
        while offsets[-1] < last.offset:
            offsets.append((await anext(stream))["offset"])
        assert offsets == list(range(offsets[0], last.offset + 1))
        await client.delete_bandit("b")
        with pytest.raises(nextarm.NotFoundError):
            await anext(stream)


def test_a_stream_that_never_began_fails_as_a_request_does() -> None:
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers.get("last-event-id"))
        raise httpx2.ConnectError("nothing listens")

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = Client("http://anywhere", http_client=http, backoff_s=0.001, max_retries=2)
    with client, pytest.raises(nextarm.APIConnectionError):
        next(client.events("b"))
    assert asked == [None] * 3


def test_pieces_of_any_size_are_put_together() -> None:
    """Cut at every byte; comments, an id alone, and line separators of Unicode inside of the JSON."""
    sent = 'retry: 1000\nid: 4\n\n:\n\nid: 5\nevent: decided\ndata: {"id":"a\u2028b: c"}\n\n'.encode()
    asked = []

    class Pieces(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (sent[i : i + 1] for i in range(len(sent)))

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers.get("last-event-id"))
        return (
            httpx2.Response(200, stream=Pieces()) if len(asked) < 3 else httpx2.Response(404, json={"code": "bandit_not_found"})
        )

    with Client("http://anywhere", http_client=httpx2.Client(transport=httpx2.MockTransport(answer)), backoff_s=0.001) as client:
        events = client.events("b")
        assert [next(events), next(events)] == [{"id": "a\u2028b: c"}] * 2
        with pytest.raises(nextarm.NotFoundError):
            next(events)
    assert asked == [None, "5", "5"]
