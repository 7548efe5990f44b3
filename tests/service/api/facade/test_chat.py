"""Chat completions through the facade: what is passed on, what is learned, and what happens when upstreams fail."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from tests.service.api.facade.conftest import Facade, Start, until
from tests.service.upstreams import DONE, USAGE, answer, chat, chunk, hang_up, silence, stream

COST = 12 * 0.001 + 7 * 0.01


def good(facade: Facade, *bad: Any) -> None:
    """Whichever arm is asked first fails as said; the next one answers."""
    facade.upstream.answer_in_turn(*bad, answer(chat()))


async def closed(facade: Facade) -> dict[str, str]:
    """Decision -> the kind of the event that closed it, of the whole log."""
    kinds = {"observed", "cancelled", "partial", "expired"}
    events = await facade.events()
    found = {event["id"]: event["event"] for event in events if event["event"] in kinds}
    assert set(found) == {event["id"] for event in events if event["event"] == "decided"}
    return found


async def test_the_access_line_names_the_bandit(
    facade: Facade, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "nextarm.http")
    good(facade)
    assert (await facade.chat()).status_code == 200
    written = ""

    def is_written() -> bool:
        nonlocal written
        written += capsys.readouterr().err
        return '"route":"/v1/chat/completions"' in written

    await until(is_written)
    (line,) = [json.loads(line) for line in written.splitlines() if '"route":"/v1/chat/completions"' in line]
    assert (line["bandit"], line["status"]) == ("router", 200)


async def test_an_answer_comes_from_the_arm_that_was_chosen_and_is_learned(facade: Facade) -> None:
    good(facade)
    asked = await facade.chat(temperature=0.5, metadata={"session_id": "s1"}, unknown={"big": 2**70, "text": "é", "f": 1.50})
    assert asked.status_code == 200, asked.text
    assert asked.json() == chat(model="bandit/router")
    arm = asked.headers["x-nextarm-arm"]
    (call,) = facade.upstream.calls
    assert (call.arm, call.path) == (arm.removeprefix("big/"), "/v1/chat/completions")
    model, key = {"small": ("small-2", "Bearer sk-small"), "large": ("large-7", None)}[call.arm]
    assert call.headers.get("authorization") == key
    sent = json.loads(asked.request.content)
    assert call.raw == asked.request.content.replace(b'"bandit/router"', json.dumps(model).encode())
    assert call.body == {**sent, "model": model}
    assert 0.0 <= float(asked.headers["x-nextarm-propensity"]) <= 1.0
    assert asked.headers["x-request-id"]
    state = await facade.decision(asked)
    assert (state["state"], state["arm"], state["session"]) == ("partial", arm, "s1")
    assert state["cost"] == pytest.approx(COST)
    assert {**state["signals"], "latency_s": 0.0} == {"prompt_tokens": 12.0, "completion_tokens": 7.0, "latency_s": 0.0}
    assert state["signals"]["latency_s"] > 0.0
    path = f"/v1/bandits/router/decisions/{state['id']}/outcome"
    assert (await facade.client.put(path, json={"reward": 0.75})).status_code == 200
    assert (await facade.client.patch(path, json={"reward": 0.5})).status_code == 200
    assert (await facade.decision(asked))["reward"] == 0.5


async def test_cached_tokens_have_a_price_of_their_own_and_no_usage_is_no_cost_of_zero(facade: Facade) -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 0}}
    facade.upstream.answer_in_turn(answer(chat(usage=usage)), answer(chat(usage=None)))
    state = await facade.decision(await facade.chat(headers={"x-session-id": "header"}, metadata={"session_id": "body"}))
    assert state["cost"] == pytest.approx(2 * 0.001 + 10 * 0.0001 + 7 * 0.01)
    assert state["session"] == "header"
    asked = await facade.chat()
    state = await facade.decision(asked)
    assert state["cost"] is None
    await facade.client.put(f"/v1/bandits/router/decisions/{state['id']}/outcome", json={"reward": 1.0})
    assert (await facade.decision(asked))["cost"] == 0.5, "the price of the arm"


async def test_tokens_that_cannot_be_are_none(facade: Facade) -> None:
    for wrong in (-1, 10**400):
        facade.upstream.answer_in_turn(answer(chat(usage={**USAGE, "completion_tokens": wrong})))
        state = await facade.decision(await facade.chat())
        assert (state["state"], state["cost"], set(state["signals"])) == ("partial", None, {"latency_s"})


FAILURES = {
    "500": (answer({"error": {"message": "secret"}}, 500), "status 500 Internal Server Error"),
    "429": (answer({}, 429, retry_after="7"), "status 429 Too Many Requests"),
    "401": (answer({"error": {"message": "wrong key sk-small"}}, 401), "status 401 Unauthorized"),
    "redirect": (answer({}, 302, location="http://127.0.0.1:1/"), "status 302 Found"),
    "dead": (hang_up, "the connection failed (RemoteProtocolError)"),
    "not JSON": (answer(b"<html>"), "status 200 with no JSON object"),
    "other JSON": (answer({"ok": True}), "status 200 with JSON without choices"),
    "error with 200": (answer({"error": {"message": "no"}}), "status 200 with an error in place of an answer"),
    "nested": (answer(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "status 200 with no JSON object"),
    "a stream": (stream(chunk("a")), "status 200 with a stream of events"),
    "half a body": (answer(b"{}", content_length="100"), "the connection failed (LocalProtocolError)"),
}


async def test_a_failure_is_an_outcome_with_an_error_and_the_next_arm_answers(facade: Facade) -> None:
    for number, (reply, reason) in enumerate(FAILURES.values()):
        good(facade, reply)
        asked = await facade.chat()
        assert asked.status_code == 200, asked.text
        first, second = [event for event in await facade.events() if event["event"] == "decided"][-2:]
        assert second["id"] == asked.headers["x-nextarm-decision-id"]
        assert first["arm"] != second["arm"]
        state = (await facade.client.get(f"/v1/bandits/router/decisions/{first['id']}")).json()
        assert (state["state"], state["reward"]) == ("observed", None)
        assert state["error"].startswith(reason.partition(" (")[0]), (number, state["error"])
    arms = (await facade.client.get("/v1/bandits/router")).json()["arms"]
    assert sum(arm["errors"] for arm in arms) == len(FAILURES)
    assert all(arm["mean_reward"] is None for arm in arms), "nothing was learned as quality"
    assert "secret" not in json.dumps(await facade.events())


async def test_where_every_arm_fails_the_client_gets_an_error_of_its_own_shape(
    facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    for arm in ("small", "large"):
        facade.upstream.answers(arm, answer({"error": {"message": "internal secret"}}, 503, retry_after="3"))
    asked = await facade.chat()
    assert asked.status_code == 502
    error = asked.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "upstream_failed", None)
    assert "small: status 503" in error["message"]
    assert "big/large: status 503" in error["message"]
    assert "secret" not in error["message"]
    assert "request" not in caplog.messages, "its cause is logged, once for many"
    assert asked.headers["retry-after"] == "3"
    assert (await facade.decision(asked))["state"] == "observed"
    for arm in ("small", "large"):
        facade.upstream.answers(arm, answer({}, 429, retry_after="11"))
    asked = await facade.chat()
    assert (asked.status_code, asked.headers["retry-after"]) == (429, "11")
    assert asked.json()["error"]["type"] == "rate_limit_error"
    for arm in ("small", "large"):
        facade.upstream.answers(arm, answer({}, 429, retry_after="\u5927"))
    asked = await facade.chat()
    assert (asked.status_code, asked.headers.get("retry-after")) == (429, None), "no header of ours may hold it"
    assert set((await closed(facade)).values()) == {"observed"}
    assert len(facade.upstream.calls) == 6


async def test_a_text_that_is_no_utf_8_passes_as_it_came(start: Start) -> None:
    async with start("[outcome]\nreward = 1.0") as facade:
        await facade.create()
        choice = b'{"index": 0, "message": {"content": "\xff"}, "delta": {"content": "\xff"}}'
        body = b'{"choices":[%s]}' % choice
        facade.upstream.answer_in_turn(answer(body), stream(b"data: %s\n\n" % body, DONE))
        for asked in (await facade.chat(), await facade.chat(stream=True)):
            assert choice in asked.content
            assert (await facade.decision(asked))["state"] == "observed"


async def test_an_arm_that_does_not_answer_in_time_is_left(start: Start) -> None:
    async with start(timeout_s=0.05) as facade:
        await facade.create(policy={"kind": "one-arm", "arm": 0})
        facade.upstream.answers("small", silence)
        facade.upstream.answers("large", answer(chat()))
        assert (await facade.chat()).headers["x-nextarm-arm"] == "big/large"
        facade.upstream.answers("large", answer({}, 500))
        await facade.create("alone", arms=("small",))
        asked = await facade.chat(model="bandit/alone")
        assert (asked.status_code, asked.json()["error"]["code"]) == (504, "upstream_timeout")
        assert "no answer within 0.05 s" in asked.json()["error"]["message"]
        assert sorted((await closed(facade)).values()) == ["observed", "partial"]
        assert (await facade.decision(asked, "alone"))["error"] == "no answer within 0.05 s"


async def test_attempts_bound_the_fallback(start: Start) -> None:
    async with start(attempts=1) as facade:
        await facade.create()
        good(facade, hang_up)
        assert (await facade.chat()).status_code == 502
        assert len(facade.upstream.calls) == 1


async def test_what_an_upstream_says_of_the_request_is_passed_on_and_nothing_is_learned(facade: Facade) -> None:
    said = {
        "error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
    }
    for status, shown, body, expected in (
        (400, 400, said, said),
        (422, 422, said, said),
        (409, 400, said, said),  # the SDK would try again
        (413, 413, b"<html>", None),
    ):
        facade.upstream.answer_in_turn(answer(body, status))
        asked = await facade.chat()
        assert asked.status_code == shown
        assert asked.json() == expected or asked.json()["error"]["code"] == "upstream_refused"
        assert (await facade.decision(asked))["state"] == "cancelled"
    assert len(facade.upstream.calls) == 4, "no other arm is asked"


async def test_an_arm_that_fails_cools_down_as_its_bandit_says(start: Start) -> None:
    async with start() as facade:
        await facade.create(cooldown={"errors": 1, "within_s": 1000, "for_s": 1000})
        facade.upstream.answers("small", hang_up)
        facade.upstream.answers("large", answer(chat()))
        arms = {(await facade.chat()).headers["x-nextarm-arm"] for _ in range(10)}
        assert arms == {"big/large"}
        assert len([call for call in facade.upstream.calls if call.arm == "small"]) <= 1


async def test_a_session_keeps_its_arm(start: Start) -> None:
    async with start() as facade:
        await facade.create(policy={"kind": "random"}, session_ttl_s=1000)
        good(facade)
        asked = [await facade.chat(headers={"x-session-id": "s"}) for _ in range(6)]
        assert len({response.headers["x-nextarm-arm"] for response in asked}) == 1
        assert [("x-nextarm-propensity" in response.headers) for response in asked] == [True] + 5 * [False]


async def test_a_bandit_may_have_arms_that_are_called_elsewhere(start: Start) -> None:
    async with start() as facade:
        await facade.create(arms=("small", "mine", "other"), policy={"kind": "random"})
        good(facade)
        assert {(await facade.chat()).headers["x-nextarm-arm"] for _ in range(8)} == {"small"}
        await facade.create("elsewhere", arms=("mine", "other"))
        asked = await facade.chat(model="bandit/elsewhere")
        assert (asked.status_code, asked.json()["error"]["code"]) == (400, "no_upstream")
        assert len(await facade.events("elsewhere")) == 1


async def test_calls_have_a_limit_of_their_own(start: Start) -> None:
    """Requests that wait for an upstream take no room from those that the service answers by itself."""
    async with start("", max_concurrent=1) as facade:
        await facade.create()
        facade.upstream.answer_in_turn(silence, silence, answer(chat()))
        waiting = [asyncio.create_task(facade.chat()) for _ in range(2)]
        await until(lambda: len(facade.upstream.calls) == 2)
        assert (await facade.client.post("/v1/bandits/router/decisions", json={})).status_code == 201
        for call in facade.upstream.calls[:2]:
            call.writer.close()
        assert [(await task).status_code for task in waiting] == [200, 200]


async def test_more_calls_than_the_file_allows_are_refused(start: Start) -> None:
    async with start(attempts="1\nmax_calls = 1") as facade:
        await facade.create()
        facade.upstream.answer_in_turn(silence, answer(chat()))
        waiting = asyncio.create_task(facade.chat())
        await until(lambda: bool(facade.upstream.calls))
        asked = await facade.chat()
        assert (asked.status_code, asked.json()["error"]["code"]) == (503, "overloaded")
        assert int(asked.headers["retry-after"]) >= 1
        facade.upstream.calls[0].writer.close()
        assert (await waiting).status_code == 502
        assert (await facade.chat()).status_code == 200


# -- outcomes --------------------------------------------------------------------------------------------------------------------


async def test_a_complete_answer_can_be_worth_a_reward(start: Start) -> None:
    async with start("[outcome]\nreward = 1.0\nsignals = []\n[bandits.other]\nreward = 0.25\nsignals = ['latency_s']") as facade:
        await facade.create()
        await facade.create("other")
        good(facade, hang_up)
        state = await facade.decision(await facade.chat())
        assert (state["state"], state["reward"], state["signals"]) == ("observed", 1.0, {})
        state = await facade.decision(await facade.chat(model="bandit/other"), "other")
        assert (state["state"], state["reward"], set(state["signals"])) == ("observed", 0.25, {"latency_s"})
        failed = [event for event in await facade.events() if event["event"] == "observed" and event.get("error")]
        assert [event["reward"] for event in failed] == [None]


async def test_the_bandits_scorer_judges_the_text(start: Start) -> None:
    async with start("[outcome]\nreward = 1.0") as facade:
        await facade.create(reward={"source": "json-valid"})
        for text, reward in (('{"a": 1}', 1.0), ("no JSON", 0.0)):
            facade.upstream.answer_in_turn(answer(chat(text)))
            state = await facade.decision(await facade.chat())
            assert (state["state"], state["reward"]) == ("observed", reward)
        facade.upstream.answer_in_turn(answer(chat("")))
        assert (await facade.decision(await facade.chat()))["state"] == "partial", (
            "there is nothing to judge: its reward comes later"
        )


async def test_the_prompt_is_what_the_bandit_reads_of_the_conversation(start: Start) -> None:
    async with start() as facade:
        await facade.create(prompt={"embedder": "static"})
        await facade.create("needs", policy={"kind": "pak-ucb", "random_features": 16}, prompt={"embedder": "static"})
        good(facade)
        said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "sort a list"}]}]
        tools = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "3", "tool_call_id": "x"}]
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
        for bandit in ("router", "needs"):
            asked = await facade.chat(model=f"bandit/{bandit}", messages=said + tools)
            assert asked.status_code == 200, asked.text
            direct = await facade.client.post(f"/v1/bandits/{bandit}/decisions", json={"prompt": "sort a list"})
            log = {event["id"]: event for event in await facade.events(bandit) if event["event"] == "decided"}
            assert log[asked.headers["x-nextarm-decision-id"]]["features"] == log[direct.json()["id"]]["features"]
        assert (await facade.chat(messages=picture)).status_code == 200, "a policy that needs no prompt decides without words"
        asked = await facade.chat(model="bandit/needs", messages=picture)
        assert (asked.status_code, asked.json()["error"]["param"]) == (400, "messages")
        asked = await facade.chat(model="bandit/needs", messages=[{"content": "x"}])
        assert asked.json()["error"]["param"] == "messages.0.role"
        assert (await facade.events("needs"))[-1]["event"] in ("decided", "partial")
