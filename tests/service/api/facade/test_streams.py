"""Streams through the facade: what a client sees of them, byte by byte, and what is learned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Send

from service.api.facade import gateway, outcomes
from service.api.facade.client import CallFailedError, UpstreamClient
from service.api.facade.gateway import drained
from service.api.facade.upstreams import Upstream
from service.api.middleware import ABORT
from tests.service.api.facade.conftest import PATIENCE_S, Facade, Start, until
from tests.service.drivers import HeldDecisions
from tests.service.event_stream import Reader, scope_of
from tests.service.upstreams import (
    DONE,
    USAGE,
    answer,
    chat,
    chunk,
    event,
    events_in,
    hang_up,
    silence,
    stream,
    upstreams,
    usage_chunk,
)

PARTS = (chunk("Bon"), chunk("jour"), chunk(end="stop"))


def streams(facade: Facade, *replies: Any) -> None:
    facade.upstream.answer_in_turn(*replies)


def texts(content: bytes) -> list[str]:
    return [
        choice["delta"].get("content", "")
        for part in events_in(content)
        if isinstance(part, dict)
        for choice in part.get("choices", [])
    ]


async def test_a_stream_is_passed_on_with_its_usage_kept_back(facade: Facade) -> None:
    whole = b"".join((b": comment\n\n", *PARTS, usage_chunk(), DONE))
    crlf = whole.replace(b"\n", b"\r\n")
    cut_everywhere = [whole[i : i + 1] for i in range(len(whole))]
    for pieces in ([whole], [crlf], cut_everywhere, [*PARTS, usage_chunk(), DONE], [whole.removesuffix(b"\n\n")]):
        streams(facade, stream(*pieces))
        asked = await facade.chat(stream=True)
        assert asked.status_code == 200
        assert asked.headers["content-type"] == "text/event-stream; charset=utf-8"
        *parts, last = events_in(asked.content)
        assert last == "[DONE]"
        assert texts(asked.content) == ["Bon", "jour", ""]
        assert {part["model"] for part in parts} == {"bandit/router"}
        assert all("usage" not in part for part in parts)
        assert facade.upstream.calls[-1].body["stream_options"] == {"include_usage": True}
        state = await facade.decision(asked)
        assert state["state"] == "partial"
        assert state["cost"] == pytest.approx(12 * 0.001 + 7 * 0.01)
        assert 0.0 < state["signals"]["first_token_s"] <= state["signals"]["latency_s"]


async def test_a_client_that_asks_for_usage_gets_it(facade: Facade) -> None:
    streams(facade, stream(chunk("a", usage=None), chunk(end="stop", usage=None), usage_chunk(), DONE))
    asked = await facade.chat(stream=True, stream_options={"include_usage": True, "other": 1})
    assert facade.upstream.calls[-1].body["stream_options"] == {"include_usage": True, "other": 1}
    *_, last, _ = events_in(asked.content)
    assert (last["usage"], last["choices"], last["model"]) == (USAGE, [], "bandit/router")
    streams(facade, stream(chunk("a", usage=None), chunk(end="stop", usage=USAGE), DONE))
    first, last, _ = events_in((await facade.chat(stream=True)).content)
    assert "usage" not in first, "null belongs to what was not asked for"
    assert last["choices"][0]["finish_reason"] == "stop"


async def test_an_upstream_may_not_be_asked_for_usage(start: Start) -> None:
    more = '[arms.plain]\nbase_url = "http://127.0.0.1:9"\nmodel = "m"\nstream_usage = false'
    async with start(more) as facade:
        plain = facade.upstream.url("plain")
        assert plain  # the file names a port where nothing listens: the call fails, and with it the request
        await facade.create(arms=("plain",))
        asked = await facade.chat(stream=True)
        assert asked.status_code == 502
        assert "plain: the connection failed" in asked.json()["error"]["message"]


async def test_the_first_piece_is_there_before_the_last(facade: Facade) -> None:
    go_on = asyncio.Event()
    streams(facade, stream(PARTS[0], *PARTS[1:], DONE, go_on=go_on))
    body = {"model": "bandit/router", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with facade.client.stream("POST", "/v1/chat/completions", json=body) as response:
        pieces = response.aiter_bytes()
        assert texts(await anext(pieces)) == ["Bon"]
        assert (await facade.decision(response))["state"] == "open"
        go_on.set()
        rest = b"".join([piece async for piece in pieces])
    assert texts(rest) == ["jour", ""]
    assert (await facade.decision(response))["state"] == "partial"


async def test_before_the_first_byte_another_arm_takes_over(facade: Facade) -> None:
    error = event({"error": {"message": "overloaded"}})
    for bad in (
        hang_up,
        answer({}, 500),
        answer({"choices": []}),
        stream(error),
        stream(b": busy\n\n", error),
        stream(DONE),
        stream(),
        stream(b": busy\n\n", ends=False),
        stream(b"data: {\n\n"),
        stream(PARTS[0] + error),  # they came together, and nothing of it was sent yet
    ):
        streams(facade, bad, stream(*PARTS, DONE))
        asked = await facade.chat(stream=True)
        assert asked.status_code == 200, asked.text
        assert texts(asked.content) == ["Bon", "jour", ""]
        first = [item for item in await facade.events() if item["event"] == "decided"][-2]
        state = (await facade.client.get(f"/v1/bandits/router/decisions/{first['id']}")).json()
        assert (state["state"], state["reward"]) == ("observed", None)
        assert state["error"]
    streams(facade, hang_up)
    asked = await facade.chat(stream=True)
    assert (asked.status_code, asked.json()["error"]["code"]) == (502, "upstream_failed")


async def test_a_stream_that_is_cut_ends_with_an_error_and_is_a_failure(facade: Facade) -> None:
    upstream_error = event({"error": {"message": "secret"}})
    for cut, reason in (
        (stream(PARTS[0], ends=False), "the connection failed"),
        (stream(PARTS[0]), "the stream ended before the answer did"),
        (stream(PARTS[0], upstream_error), "an error in the stream"),
        (stream(PARTS[0], b"data: <html>\n\n"), "no JSON object"),
    ):
        streams(facade, cut)
        asked = await facade.chat(stream=True)
        assert asked.status_code == 200
        *_, last = events_in(asked.content)
        assert texts(asked.content) == ["Bon"]
        assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "upstream_failed")
        assert reason in last["error"]["message"]
        assert "secret" not in asked.text
        state = await facade.decision(asked)
        assert (state["state"], state["reward"]) == ("observed", None)
        assert reason in state["error"]


async def test_a_stream_that_does_not_begin_in_time_is_left(start: Start) -> None:
    async with start(timeout_s=0.05) as facade:
        await facade.create(policy={"kind": "one-arm", "arm": 0})
        facade.upstream.answers("small", silence)
        facade.upstream.answers("large", stream(*PARTS, DONE))
        assert texts((await facade.chat(stream=True)).content) == ["Bon", "jour", ""]
        facade.upstream.answers("small", stream(b": busy\n\n", b"", go_on=asyncio.Event()))  # a comment is no beginning
        assert texts((await facade.chat(stream=True)).content) == ["Bon", "jour", ""]
        failed = [item["error"] for item in await facade.events() if item.get("error")]
        assert failed == ["no answer within 0.05 s"] * 2


async def test_a_stream_that_stalls_is_cut() -> None:
    async with upstreams() as upstream:
        upstream.answers("small", stream(*PARTS, go_on=asyncio.Event()))
        client = UpstreamClient(connections=4)
        arm = Upstream(base_url=upstream.url("small"), model="m", timeout_s=60.0)
        try:
            call = await client.call(arm, "/chat/completions", b"{}", streams=True)
            batches = call.events()
            assert [event.data is not None for event in await anext(batches)] == [True]
            call._deadline = asyncio.get_running_loop().time()  # the time is over that the next event had
            with pytest.raises(CallFailedError, match="no answer within 60 s"):
                await anext(batches)
            await call.close()
        finally:
            await client.close()


async def test_the_time_in_which_a_client_reads_is_not_the_upstreams() -> None:
    go_on = asyncio.Event()
    async with upstreams() as upstream:
        upstream.answers("small", stream(PARTS[0], b": busy\n\n", go_on=go_on))
        client = UpstreamClient(connections=4)
        try:
            arm = Upstream(base_url=upstream.url("small"), model="m")
            call = await client.call(arm, "/chat/completions", b"{}", streams=True)
            batches, now = call.events(), asyncio.get_running_loop().time
            await anext(batches)
            deadline, before = call._deadline, now()
            while (read_s := now() - before) <= 0.0:
                pass
            go_on.set()
            await anext(batches)
            assert call._deadline - deadline >= 0.99 * read_s
            await call.close()
        finally:
            await client.close()


async def test_servers_without_a_last_event_end_after_the_reason_to_stop(facade: Facade) -> None:
    streams(facade, stream(*PARTS))
    asked = await facade.chat(stream=True)
    assert events_in(asked.content)[-1] == "[DONE]"
    assert (await facade.decision(asked))["state"] == "partial"


async def test_a_client_that_goes_away_cancels(facade: Facade) -> None:
    streams(facade, stream(PARTS[0], *PARTS[1:], DONE, go_on=asyncio.Event()))
    body = {"model": "bandit/router", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with facade.client.stream("POST", "/v1/chat/completions", json=body) as response:
        await anext(response.aiter_bytes())
    await facade.upstream.calls[0].closed()

    async def is_closed() -> bool:
        return bool((await facade.decision(response))["state"] != "open")

    await until(is_closed)
    assert (await facade.decision(response))["state"] == "cancelled"


@asynccontextmanager
async def asking(facade: Facade) -> AsyncIterator[Reader]:
    """A chat stream that is read as slowly as a test says."""
    reader = Reader()
    content = json.dumps({"model": "bandit/router", "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    sent = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        return sent.pop() if sent else await reader.receive()

    scope = {**scope_of("/v1/chat/completions", headers={"content-type": "application/json"}, method="POST"), ABORT: reader.abort}
    reader.task = asyncio.ensure_future(facade.app(scope, receive, reader.send))
    try:
        yield reader
    finally:
        reader.leaving.set()
        await asyncio.wait({reader.task})


async def test_a_client_that_takes_nothing_is_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "STALLED_S", 0.05)
    async with start(attempts="1\nmax_calls = 1") as facade:
        await facade.create()
        streams(facade, stream(*PARTS, DONE), answer(chat()))
        async with asking(facade) as stalled, asyncio.timeout(PATIENCE_S):
            await stalled.aborted.wait()
            await stalled.task

        async def is_closed() -> bool:
            return bool((await facade.events())[-1]["event"] == "cancelled")

        await until(is_closed)
        assert (await facade.chat()).status_code == 200, "its place is free again"


async def test_a_whole_answer_is_learned_though_its_client_does_not_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client leaves while the outcome is on its way."""
    arrived, go_on = asyncio.Event(), asyncio.Event()
    report = outcomes.report_answer

    async def waits(*values: Any, **named: Any) -> None:
        arrived.set()
        await go_on.wait()
        await report(*values, **named)

    monkeypatch.setattr(outcomes, "report_answer", waits)
    async with start("[outcome]\nreward = 1.0") as facade:
        await facade.create()
        streams(facade, stream(*PARTS, DONE))
        async with asking(facade) as reader, asyncio.timeout(PATIENCE_S):
            for _ in PARTS:
                await reader.chunk()
            await arrived.wait()
            reader.leaving.set()
            await reader.task
            await facade.events()
            go_on.set()
        closing = {"observed", "cancelled"}

        async def is_closed() -> bool:
            return (await facade.events())[-1]["event"] in closing

        await until(is_closed)
        assert [event["reward"] for event in await facade.events() if event["event"] in closing] == [1.0]


async def test_a_request_that_is_cancelled_while_it_is_decided_leaves_nothing_open(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldDecisions(monkeypatch)
    async with asking(facade) as reader:
        await held.arrived.acquire()
        reader.task.cancel()
        await asyncio.wait({reader.task}, timeout=PATIENCE_S)
        held.go_on.set()

        async def is_closed() -> bool:
            return [event["event"] for event in await facade.events()][1:] == ["decided", "cancelled"]

        await until(is_closed)
    assert facade.upstream.calls == []


async def test_a_stream_that_ends_before_its_answer_has_begun_gives_back_its_place() -> None:
    blocked, ended = asyncio.Event(), []

    async def relay(send: Send) -> None:
        try:
            await send({"type": "http.response.body", "body": b"x", "more_body": False})
        finally:
            ended.append("relay")

    async def never(message: Any = None) -> Any:
        blocked.set()
        await asyncio.Event().wait()

    answer = gateway.EventStream(relay, headers={}, on_end=lambda: ended.append("place"))
    task = asyncio.create_task(answer({"type": "http"}, never, never))
    await blocked.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE_S)
    assert ended == ["relay", "place"]


async def test_the_scorer_judges_the_text_of_a_stream(start: Start) -> None:
    async with start() as facade:
        await facade.create(reward={"source": "json-valid"})
        streams(facade, stream(chunk('{"a":'), chunk("1}"), chunk(end="stop"), DONE))
        assert (await facade.decision(await facade.chat(stream=True)))["reward"] == 1.0


async def test_the_connection_of_a_stream_is_used_again() -> None:
    async with upstreams() as upstream:
        upstream.answer_in_turn(stream(*PARTS, DONE))
        client, arm = UpstreamClient(connections=4), Upstream(base_url=upstream.url("small"), model="m")
        try:
            for _ in range(3):
                call = await client.call(arm, "/chat/completions", b"{}", streams=True)
                batches = call.events()
                async for events in batches:
                    if events[-1].data == b"[DONE]":
                        break
                await drained(batches, call)
        finally:
            await client.close()
        assert (len(upstream.calls), len(upstream.serving)) == (3, 1)
