"""Nothing that a router asks for fails while the service is away, and what was decided meanwhile is learned exactly once.

The service is the real one; what lies between it and the client loses requests or answers as a test says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
import nextarm
import pytest
from nextarm import AsyncClient, Client, Stats

from service.api.app import running
from service.settings import Settings
from tests.client.scripted import Answer, problem, scripted

ARMS = [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}]
FIRST_ARM: dict[str, Any] = {"policy": {"kind": "one-arm", "arm": 1}, "arms": ARMS, "seed": 7}
"""A bandit that chooses `large` where it may."""


class Wire(httpx2.AsyncBaseTransport):
    """Between client and service. `lost`: requests do not arrive; `deaf`: they do, and their answers are lost."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self.inner = inner
        self.state: Literal["up", "lost", "deaf"] = "up"
        self.lose_answers = 0
        self.requests = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        if self.state == "lost":
            raise httpx2.ConnectError("no route to host")
        response = await self.inner.handle_async_request(request)
        if self.state == "deaf" or self.lose_answers:
            self.lose_answers -= self.lose_answers > 0
            await response.aread()
            raise httpx2.ReadError("connection reset")
        return response


@asynccontextmanager
async def between(**setup: Any) -> AsyncIterator[tuple[AsyncClient, Wire]]:
    """A client with the fallback `small`, and its wire to a service with the bandit `b`."""
    given: Any = {"fallback": "small", "backoff_s": 0.001, **setup}
    async with running(Settings.load(store="memory://", sweep_s=3600.0)) as app:
        wire = Wire(httpx2.ASGITransport(app=app))
        async with AsyncClient("http://localhost", http_client=httpx2.AsyncClient(transport=wire), **given) as client:
            client._session.state.breaker.open_s = 0.01
            await client.create_bandit("b", **FIRST_ARM)
            yield client, wire


async def log_of(client: AsyncClient) -> list[dict[str, Any]]:
    return (await client.read_log("b"))[1:]


async def test_what_was_decided_meanwhile_is_learned_once_for_the_arm_that_was_called() -> None:
    async with between() as (client, wire):
        wire.state = "lost"
        decisions = [await client.decide("b", id=f"d{n}") for n in range(3)]
        assert [(d.arm, d.is_fallback, d.propensity, d.offset) for d in decisions] == [("small", True, None, 0)] * 3
        receipts = [await client.observe("b", f"d{n}", reward=n / 4) for n in range(2)]
        assert [(receipt.reward, receipt.is_deferred) for receipt in receipts] == [(0.0, True), (0.25, True)]
        assert client.stats == Stats(fallbacks=3, deferred=2, waiting=2)
        wire.state = "up"
        assert await client.flush() == 0
        assert client.stats == Stats(fallbacks=3, deferred=2, delivered=2)
        events = await log_of(client)
        decided = [(e["id"], e["arm"], e["allowed"], e["propensity"]) for e in events if e["event"] == "decided"]
        assert decided == [("d0", 0, [0], 1.0), ("d1", 0, [0], 1.0)], "only the arm that was called could be chosen"
        observed = [(e["id"], e["arm"], e["reward"], e["propensity"]) for e in events if e["event"] == "observed"]
        assert observed == [("d0", 0, 0.0, 1.0), ("d1", 0, 0.25, 1.0)]
        assert (await client.decide("b")).arm == "large", "the service decides again"
        await client.observe("b", "d2", reward=1.0)  # late
        await client.flush()
        assert [e["id"] for e in await log_of(client) if e["event"] == "observed"] == ["d0", "d1", "d2"]


async def test_a_decision_whose_answer_was_lost_is_not_made_twice() -> None:
    async with between() as (client, wire):
        wire.state = "deaf"
        decision = await client.decide("b", id="d")
        assert (decision.arm, decision.is_fallback) == ("small", True)
        await client.observe("b", "d", reward=0.5, cost=2.0)
        await asyncio.sleep(0)
        wire.state = "up"
        wire.lose_answers = 4  # of the delivery, too
        assert await client.flush() == 0
        events = await log_of(client)
        assert [(e["event"], e["id"], e["arm"]) for e in events] == [("decided", "d", 1), ("observed", "d", 0)]
        assert (events[1]["reward"], events[1]["cost"], events[1]["propensity"]) == (0.5, 2.0, None)
        assert client.stats == Stats(fallbacks=1, deferred=1, delivered=1)


async def test_the_outcome_of_a_decision_of_the_service_waits_for_it() -> None:
    async with between(fallback="") as (client, wire):
        first, second = await client.decide("b", fallback="small"), await client.decide("b", fallback="small")
        assert not first.is_fallback
        wire.state = "deaf"
        assert (await client.observe("b", str(first.id), reward=0.5)).is_deferred
        wire.state = "lost"
        await client.cancel_decision("b", str(second.id))
        wire.state = "up"
        assert await client.flush() == 0
        assert [(e["event"], e["id"]) for e in (await log_of(client))[2:]] == [("observed", first.id), ("cancelled", second.id)]


async def test_without_a_fallback_a_failure_is_raised() -> None:
    async with between(fallback="") as (client, wire):
        decision = await client.decide("b")
        wire.state = "lost"
        with pytest.raises(nextarm.APIConnectionError):
            await client.decide("b")
        with pytest.raises(nextarm.APIConnectionError):
            await client.observe("b", str(decision.id), reward=1.0)
        with pytest.raises(nextarm.APIConnectionError):
            await client.decide("b", fallback="small", dry_run=True)
        assert (await client.decide("b", fallback="small")).is_fallback
        with pytest.raises(nextarm.APIConnectionError):
            await client.with_options(fallback="large").with_raw_response.decide("b")
        assert (await client.with_options(fallback="large").decide("b")).arm == "large"
        wire.state = "up"


async def test_a_service_that_is_away_is_not_asked_again_and_again() -> None:
    async with between() as (client, wire):
        client._session.state.breaker.open_s = 5.0
        wire.state = "lost"
        before = wire.requests
        for _ in range(500):
            decision = await client.decide("b")
            await client.observe("b", str(decision.id), reward=0.5)
        assert wire.requests - before == 3, "one decision and its two retries"
        wire.state = "up"
        client._session.state.breaker.record_answer()
        assert await client.flush(30.0) == 0
        assert client.stats == Stats(fallbacks=500, deferred=500, delivered=500)
        small = (await client.show_bandit("b")).arms[0]
        assert (small.pulls, small.outcomes, small.mean_reward) == (500, 500, 0.5)


async def test_a_full_buffer_drops_the_oldest_and_counts_them() -> None:
    async with between(buffer_size=3) as (client, wire):
        wire.state = "lost"
        for number in range(5):
            await client.decide("b", id=f"d{number}")
        for number in range(5):
            if number > 1:
                assert (await client.observe("b", f"d{number}", reward=1.0)).is_deferred
        assert client.stats == Stats(fallbacks=5, deferred=3, dropped=2, waiting=3)
        await client.decide("b", id="d5")
        await client.observe("b", "d5", reward=1.0)
        assert client.stats == Stats(fallbacks=6, deferred=4, dropped=3, waiting=3)
        wire.state = "up"
        assert await client.flush() == 0
        assert [e["id"] for e in await log_of(client) if e["event"] == "observed"] == ["d3", "d4", "d5"]
    async with between(buffer_bytes=1000) as (client, wire):
        wire.state = "lost"
        for number in range(4):
            await client.decide("b", id=f"d{number}", prompt="x" * 300)
        assert client.stats.dropped == 1, "a decision is some 330 bytes"
        wire.state = "up"


async def test_a_report_that_is_refused_holds_no_other_up() -> None:
    async with between() as (client, wire):
        wire.state = "lost"
        for number in range(4):
            await client.decide("b", id=f"d{number}", fallback="nobody-knows" if number == 1 else "small")
            await client.observe("b", f"d{number}", reward=1e300 if number == 2 else 1.0)
        await client.decide("gone", id="e")
        await client.observe("gone", "e", reward=1.0)
        wire.state = "up"
        assert await client.flush() == 0
        assert client.stats == Stats(fallbacks=5, deferred=5, delivered=2, refused=3)
        assert [e["id"] for e in await log_of(client) if e["event"] == "observed"] == ["d0", "d3"]


async def test_an_outcome_that_was_put_off_keeps_the_rules_of_outcomes() -> None:
    async with between() as (client, wire):
        wire.state = "lost"
        await client.decide("b", id="d", arms=["large", {"name": "small", "price": 9.0}])
        await client.observe("b", "d", reward=1.0)
        assert (await client.observe("b", "d", reward=1.0)).duplicate
        await client.observe("b", "d", reward=0.0)  # a conflict, which the service will refuse
        await client.decide("b", id="parts")
        await client.observe("b", "parts", cost=2.0)
        await client.observe("b", "parts", reward=0.5)
        await client.decide("b", id="other")
        await client.observe("b", "other", reward=1.0, arm="large")
        wire.state = "up"
        await client.flush()
        decided = [(e["id"], e["arm"], e["price"]) for e in await log_of(client) if e["event"] == "decided"]
        assert decided == [("d", 0, 9.0), ("parts", 0, 0.25), ("other", 1, 4.0)], "the caller has called another arm"
        assert (await client.show_decision("b", "d")).reward == 1.0
        parts = await client.show_decision("b", "parts")
        assert (parts.state, parts.reward, parts.cost) == ("observed", 0.5, 2.0)
        assert client.stats == Stats(fallbacks=3, deferred=5, delivered=4, refused=1)


async def test_a_decision_made_here_can_be_cancelled() -> None:
    async with between() as (client, wire):
        wire.state = "deaf"
        await client.decide("b", id="arrived")
        wire.state = "lost"
        await client.decide("b", id="lost")
        for decision in ("arrived", "lost"):
            await client.cancel_decision("b", decision)
        wire.state = "up"
        assert await client.flush() == 0
        assert [(e["event"], e["id"]) for e in await log_of(client)] == [("decided", "arrived"), ("cancelled", "arrived")]
        assert client.stats.delivered == 2


async def test_a_key_that_is_mended_later_loses_nothing() -> None:
    unauthenticated = problem(401, "unauthenticated")
    with scripted(*[problem(503, "overloaded")] * 3, unauthenticated, Answer(200, "<html>a proxy</html>")) as server:
        async with AsyncClient(server.url, fallback="small", backoff_s=0.0) as client:
            client._session.state.breaker.open_s = 0.0
            server.answers += [Answer(200, {"decisions": [{"id": "d", "bandit": "b", "arm": "small"}]})]
            server.answers += [Answer(200, {"outcomes": [{"decision": "d", "offset": 3}]})]
            await client.decide("b", id="d")
            await client.observe("b", "d", reward=1.0)
            assert await client.flush() == 0
            assert client.stats == Stats(fallbacks=1, deferred=1, delivered=1)


def test_a_service_that_hangs_costs_one_request_a_second_and_the_others_nothing() -> None:
    hangs = Answer(hang=True)
    with (
        scripted(*[hangs] * 9) as server,
        Client(server.url, fallback="small", fallback_after_s=0.2, backoff_s=0.0, max_retries=0) as client,
    ):
        client._session.state.breaker.open_s = 30.0
        began = time.monotonic()
        assert client.decide("b").is_fallback
        assert 0.2 <= time.monotonic() - began < 1.0
        began = time.monotonic()
        for _ in range(100):
            assert client.decide("b").arm == "small"
        assert time.monotonic() - began < 1.0
        assert len(server.seen) == 1


class Failed(Exception):
    """Of what the router called."""


async def test_an_exception_in_the_block_cancels_the_decision_or_is_its_outcome() -> None:
    async with between() as (client, _wire):
        with pytest.raises(Failed):  # noqa: PT012
            async with client.decision("b", id="cancelled") as decision:
                assert (decision.id, decision.arm) == ("cancelled", "large")
                raise Failed
        with pytest.raises(Failed):
            async with client.decision("b", on_error=-1.0, id="punished"):
                raise Failed
        with pytest.raises(Failed):  # noqa: PT012
            async with client.decision("b", id="observed") as decision:
                await decision.observe(reward=1.0)
                raise Failed
        async with client.decision("b", id="open"):
            pass
        async with client.decision("b", id="withdrawn") as decision:
            await decision.cancel()
        states = {
            name: await client.show_decision("b", name) for name in ("cancelled", "punished", "observed", "open", "withdrawn")
        }
        assert {name: (state.state, state.reward) for name, state in states.items()} == {
            "cancelled": ("cancelled", None),
            "punished": ("observed", -1.0),
            "observed": ("observed", 1.0),
            "open": ("open", None),
            "withdrawn": ("cancelled", None),
        }


async def test_a_cancellation_that_fails_hides_no_exception() -> None:
    async with between(fallback="") as (client, wire):
        with pytest.raises(Failed) as failure:  # noqa: PT012
            async with client.decision("b", id="d"):
                wire.state = "lost"
                raise Failed
        assert "decision d could not be closed: cannot reach http://localhost" in failure.value.__notes__[0]
        wire.state = "up"


def test_the_block_works_for_code_that_blocks(client: Client) -> None:
    client.create_bandit("blocks", **FIRST_ARM)
    with pytest.raises(Failed), client.decision("blocks", id="cancelled"):
        raise Failed
    with pytest.raises(Failed), client.decision("blocks", on_error=0.0, id="punished"):
        raise Failed
    with client.decision("blocks", id="observed") as decision:
        assert decision.arm == "large"
        decision.observe(reward=0.75)
    states = [client.show_decision("blocks", name) for name in ("cancelled", "punished", "observed")]
    assert [(state.state, state.reward) for state in states] == [("cancelled", None), ("observed", 0.0), ("observed", 0.75)]
    client.delete_bandit("blocks")


async def test_reports_that_cannot_be_delivered_are_named_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    client = AsyncClient("http://127.0.0.1:9", fallback="small", backoff_s=0.0)
    async with client:
        await client.decide("b", id="d")
        await client.observe("b", "d", reward=1.0)
    assert "closed with 1 reports that could not be delivered" in caplog.text


async def test_a_bandit_that_cannot_be_served_takes_no_other_along() -> None:
    unavailable = problem(503, "storage_unavailable")
    decided = Answer(200, {"decisions": [{"id": "d", "bandit": "well", "arm": "small"}]})
    observed = Answer(200, {"outcomes": [{"decision": "d", "offset": 3}]})
    with scripted(unavailable, unavailable) as server:
        async with AsyncClient(server.url, fallback="small", backoff_s=0.0, max_retries=0) as client:
            client._session.state.breaker.open_s = 30.0
            assert (await client.decide("ill", id="d")).is_fallback
            assert (await client.decide("ill", id="e")).is_fallback
            assert len(server.seen) == 1, "it is known by now"
            assert (await client.decide("well", id="d")).is_fallback
            assert not (await client.decide("fine")).is_fallback
            client._session.state.breakers.clear()
            server.answers += [unavailable, decided, observed, unavailable]
            await client.observe("ill", "d", reward=1.0)
            await client.observe("well", "d", reward=1.0)
            await client.flush(0.2)
            assert [path.split("/")[3] for _, path, _ in server.seen[3:6]] == ["ill", "well", "well"]
            assert (client.stats.delivered, client.stats.waiting) == (1, 1)
            server.answers.clear()
            server.answers += [decided, observed]
            assert await client.flush() == 0


async def test_one_slow_request_does_not_count_as_an_outage() -> None:
    with scripted() as server:
        async with AsyncClient(server.url, fallback="small", fallback_after_s=0.3, max_retries=0) as client:
            await client.decide("b")
            server.answers.append(Answer(hang=True))
            slow = asyncio.create_task(client.decide("b"))
            while len(server.seen) < 2:
                await asyncio.sleep(0.01)
            assert not (await client.decide("b")).is_fallback
            assert (await slow).is_fallback
            assert not (await client.decide("b")).is_fallback


async def test_what_a_decision_excluded_does_not_keep_its_outcome_from_being_reported() -> None:
    with scripted(problem(503, "overloaded")) as server:
        async with AsyncClient(server.url, fallback="small", max_retries=0) as client:
            await client.decide("b", id="d", exclude=["small"], max_price=1.0)
            server.answers += [Answer(200, {"decisions": [{"id": "d", "bandit": "b", "arm": "small"}]})]
            server.answers += [Answer(200, {"outcomes": [{"decision": "d", "offset": 3}]})]
            await client.observe("b", "d", reward=1.0)
            assert await client.flush() == 0
            assert server.seen[1][2] == {"decisions": [{"id": "d", "arms": ["small"]}]}
