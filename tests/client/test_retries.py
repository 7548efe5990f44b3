"""What is sent again, when, and what a failure says; against a server that fails as scripted."""

from __future__ import annotations

import time
from typing import Any

import nextarm
import pytest
from nextarm import Client
from nextarm._retries import CircuitBreaker, pause_s

from tests.client.scripted import BROKEN, DECISION, Answer, problem, scripted


@pytest.mark.parametrize(
    "failure",
    [
        problem(408, "request_timeout"),
        problem(429, "rate_limited", retry_after="0"),
        problem(500, "internal_error"),
        problem(503, "storage_unavailable", retry_after="0"),
        Answer(502, "<html>bad gateway</html>"),
        BROKEN,
    ],
    ids=lambda answer: str(answer.status),
)
def test_a_failure_that_may_pass_is_asked_again_as_the_same_decision(failure: Answer) -> None:
    with scripted(failure, failure) as server, Client(server.url, backoff_s=0.0) as client:
        assert client.decide("b", prompt="hello").arm == "large"
        assert len(server.seen) == 3
        assert server.seen[0] == server.seen[1] == server.seen[2]
        assert len(server.seen[0][2]["id"]) == 36, "a retry under no id would be another decision"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "malformed_json", nextarm.BadRequestError),
        (401, "unauthenticated", nextarm.AuthenticationError),
        (403, "forbidden", nextarm.PermissionDeniedError),
        (404, "bandit_not_found", nextarm.NotFoundError),
        (409, "outcome_conflict", nextarm.ConflictError),
        (410, "decision_expired", nextarm.GoneError),
        (412, "offset_conflict", nextarm.APIStatusError),
        (422, "invalid_request", nextarm.InvalidRequestError),
    ],
)
def test_a_refusal_is_final_and_says_why(status: int, code: str, kind: type[nextarm.NextarmError]) -> None:
    with scripted(problem(status, code)) as server, Client(server.url, fallback="small") as client:
        with pytest.raises(kind) as failure:
            client.decide("b")
        assert len(server.seen) == 1
    assert (failure.value.status, failure.value.code, failure.value.request_id) == (status, code, "r-1")
    assert f"{status}: {code} of a test" in str(failure.value)


def test_retries_end_and_the_last_failure_is_raised() -> None:
    with scripted(*[problem(503, "overloaded", retry_after="0")] * 9) as server:
        with Client(server.url, backoff_s=0.0) as client, pytest.raises(nextarm.ServerError, match="503: overloaded"):
            client.show_bandit("b")
        assert len(server.seen) == 3
        with Client(server.url, max_retries=0) as client, pytest.raises(nextarm.ServerError):
            client.show_bandit("b")
        assert len(server.seen) == 4


def test_retry_after_is_waited_for_and_a_long_one_is_left_to_the_caller() -> None:
    with scripted(problem(429, "rate_limited", retry_after="1")) as server, Client(server.url, backoff_s=0.0) as client:
        began = time.monotonic()
        client.decide("b")
        assert 1.0 <= time.monotonic() - began < 3.0
    with scripted(problem(429, "rate_limited", retry_after="3600")) as server, Client(server.url) as client:
        with pytest.raises(nextarm.RateLimitError) as failure:
            client.decide("b")
        assert failure.value.retry_after_s == 3600.0
        assert len(server.seen) == 1


def test_a_pause_has_full_jitter_below_a_bound_that_doubles() -> None:
    for attempt, bound in enumerate((0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)):
        pauses = [pause_s(attempt, backoff_s=0.25, retry_after_s=None) or 0.0 for _ in range(400)]
        assert 0.0 <= min(pauses) < 0.05 * bound
        assert 0.95 * bound < max(pauses) <= bound
        assert sum(pauses) / 400 == pytest.approx(bound / 2, rel=0.15)  # 5 standard errors
    assert 2.0 <= (pause_s(0, backoff_s=0.25, retry_after_s=2.0) or 0.0) <= 2.25


def test_a_service_that_hangs_is_a_timeout() -> None:
    hangs = Answer(hang=True)
    with scripted(hangs, hangs) as server, Client(server.url, timeout=0.1, max_retries=1, backoff_s=0.0) as client:
        with pytest.raises(nextarm.APITimeoutError, match="did not answer in time") as failure:
            client.healthz()
        assert len(server.seen) == 2
    assert (failure.value.status, failure.value.code, failure.value.request_id, failure.value.errors) == (0, "", "", [])


def test_no_service_is_a_connection_error() -> None:
    with Client("http://127.0.0.1:9", backoff_s=0.0) as client, pytest.raises(nextarm.APIConnectionError, match="cannot reach"):
        client.healthz()
    with pytest.raises(ValueError, match="must start with http"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize("body", ["<html>hello</html>", '{"hello": 1}', "[]", ""])
def test_an_answer_of_another_server_is_an_error_that_says_so(body: str) -> None:
    with scripted(Answer(200, body)) as server, Client(server.url) as client:
        with pytest.raises(nextarm.UnexpectedAnswerError, match="is it a nextarm server"):
            client.decide("b")
        assert len(server.seen) == 1


def test_a_newer_service_can_be_read() -> None:
    body: Any = {
        **DECISION,
        "propensity": None,
        "mood": "new",
        "scores": {"large": {"estimate": 0.5, "signals": {"cost": None}}},
    }
    with scripted(Answer(201, body)) as server, Client(server.url) as client:
        decision = client.decide("b")
        assert decision.propensity is None
        assert decision.model_extra == {"mood": "new"}


def test_a_bandit_that_a_lost_answer_has_deleted_is_deleted() -> None:
    gone = problem(404, "bandit_not_found")
    with scripted(BROKEN, gone, gone) as server, Client(server.url, backoff_s=0.0) as client:
        client.delete_bandit("b")
        with pytest.raises(nextarm.NotFoundError):
            client.delete_bandit("b")


def test_names_are_quoted_and_options_become_headers() -> None:
    with scripted() as server, Client(server.url, api_key="secret", tenant="acme", headers={"x-team": "search"}) as client:
        assert "secret" not in repr(client)
        client.with_options(min_offset=7, request_id="checkout-1").request("GET", "/v1/policies", query={"a": "b c"})
        with pytest.raises(nextarm.UnexpectedAnswerError):
            client.put_arm("../b", "openai/gpt 5?", price=1.0)
        assert [path for _, path, _ in server.seen] == ["/v1/policies?a=b+c", "/v1/bandits/..%2Fb/arms/openai%2Fgpt%205%3F"]
        sent = server.headers[0]
        assert sent["authorization"] == "Bearer secret"
        assert (sent["x-nextarm-tenant"], sent["x-nextarm-min-offset"], sent["x-request-id"]) == ("acme", "7", "checkout-1")
        assert sent["user-agent"] == f"nextarm-python/{nextarm.__version__}"
        assert "x-nextarm-min-offset" not in server.headers[1]
        assert server.headers[1]["x-team"] == "search"


def test_the_key_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTARM_API_KEY", "of-the-environment")
    with scripted() as server:
        for key, sent in ((None, "Bearer of-the-environment"), ("", None), ("own", "Bearer own")):
            with Client(server.url, api_key=key) as client:
                client.decide("b")
            assert server.headers[-1].get("authorization") == sent


def test_what_cannot_be_json_is_refused_before_it_is_sent() -> None:
    with scripted() as server, Client(server.url) as client:
        with pytest.raises(ValueError, match="numbers must be finite"):
            client.observe("b", "d", reward=float("nan"))
        with pytest.raises(ValueError, match="valid Unicode"):
            client.decide("b", prompt="\ud800")
        with pytest.raises(TypeError, match="sequence of numbers"):
            client.decide("b", prompt={"vector": ["one"]})
        with pytest.raises(TypeError, match="unknown arguments: timeot"):
            Client(server.url, timeot=1.0)  # type: ignore[call-arg]
        assert server.seen == []


def test_an_open_circuit_lets_one_probe_through_at_a_time() -> None:
    now = [100.0]
    breaker = CircuitBreaker(open_s=0.5, longest_s=5.0, clock=lambda: now[0])
    assert breaker.is_request_allowed(9.0)
    assert breaker.record_failure(), "it is news"
    assert breaker.wait_s == 0.5
    assert not breaker.is_request_allowed(9.0)
    assert not breaker.record_failure()
    assert breaker.wait_s == 1.0, "doubled"
    now[0] += 1.0
    assert breaker.is_request_allowed(2.0)
    assert not breaker.is_request_allowed(2.0), "there is a probe on its way"
    now[0] += 2.0
    assert breaker.is_request_allowed(9.0), "a probe that was abandoned blocks nothing"
    assert breaker.record_answer()
    assert breaker.wait_s == 0.0
    assert breaker.is_request_allowed(9.0)
    assert breaker.is_request_allowed(9.0)
    for _ in range(40):
        breaker.record_failure(retry_after_s=3600.0)
    assert breaker.wait_s == 5.0
