"""OpenAI's real client, sync and async, against a service with upstreams."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from nextarm import Client

from tests.integrations.litellm_cpu import upstream
from tools.processes import ROOT, Server

SAID = "That is Paris."
TOKENS = 7, 4
"""Of the question and of what is said."""
ARMS = {
    "small": "gpt-5-mini",
    "large": "gpt-5",
    "broken": "broken-1",
    "limited": "limited-1",
    "refusing": "refusing-1",
    "cut": "cut-1",
}
BANDITS = {
    "router": ["small", "large"],
    "sticky": ["small", "large"],
    "shaky": ["broken", "small"],
    "down": ["broken"],
    "limited": ["limited"],
    "picky": ["refusing"],
    "cut": ["cut"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, dict[str, Any]]]:
    """A client of the service, and what the scenarios of `openai_calls.py` saw."""
    folder = tmp_path_factory.mktemp("openai")
    with upstream(folder) as url:
        tables = [
            f'[arms.{arm}]\nbase_url = "{url}/v1"\nmodel = "{model}"\nprices = {{input = 0.001}}' for arm, model in ARMS.items()
        ]
        path = folder / "upstreams.toml"
        path.write_text("\n".join(tables))
        keys = "admin:boss,router:way,reader:eye"
        server = Server(folder, store="memory://", settings={"upstreams": str(path), "api_keys": keys})
        server.start()
        try:
            server.wait_until_ready()
            at = f"http://{server.host}:{server.port}"
            with Client(at, api_key="boss") as client:
                for name, arms in BANDITS.items():
                    more: dict[str, Any] = {"session_ttl_s": 1000.0} if name == "sticky" else {}
                    client.create_bandit(name, policy={"kind": "random"}, arms=[{"name": arm} for arm in arms], **more)
                done = subprocess.run(
                    [sys.executable, "tests/service/api/facade/openai_calls.py", at],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=180,
                )
                assert done.returncode == 0, done.stderr
                yield client, json.loads(done.stdout.splitlines()[-1])
        finally:
            server.end()


def closings(client: Client, bandit: str) -> list[dict[str, Any]]:
    """The outcomes of every decision of a bandit; none is open."""
    events = list(client.iter_log(bandit))
    decided = [event["id"] for event in events if event["event"] == "decided"]
    found = {event["id"]: event for event in events if event["event"] in ("observed", "cancelled", "partial")}
    assert set(found) == set(decided)
    return [found[name] for name in decided]


def test_answers_are_what_the_client_expects(places: tuple[Client, dict[str, Any]]) -> None:
    client, calls = places
    raw = calls["raw"]["value"]
    assert (raw["text"], raw["model"]) == (SAID, "bandit/router")
    assert raw["request_id"] == raw["headers"]["x-request-id"]
    state = client.show_decision("router", raw["headers"]["x-nextarm-decision-id"])
    assert (state.state, state.arm) == ("partial", raw["headers"]["x-nextarm-arm"])
    assert state.cost == pytest.approx(0.001 * TOKENS[0])
    client.observe("router", str(state.id), reward=1.0)
    assert client.show_decision("router", str(state.id)).reward == 1.0
    assert calls["responses"]["value"] == {"text": SAID, "model": "bandit/router"}
    assert calls["images"]["value"].endswith("picture.png")
    assert calls["embeddings"]["value"] == [0.1, 0.2]
    assert calls["models"]["value"] == [f"bandit/{name}" for name in sorted(BANDITS)]
    assert calls["model"]["value"] == "bandit/router"
    assert calls["together"] == [SAID] * 10
    assert len(calls["session"]["value"]) == 1


def test_streams_are_what_the_client_expects(places: tuple[Client, dict[str, Any]]) -> None:
    client, calls = places
    plain, with_usage = calls["stream"]["value"], calls["stream with usage"]["value"]
    assert (plain["text"], plain["usage"], plain["model"]) == (SAID, None, "bandit/router")
    assert (with_usage["text"], with_usage["usage"]) == (SAID, sum(TOKENS))
    for stream in (plain, with_usage):
        state = client.show_decision("router", stream["headers"]["x-nextarm-decision-id"])
        assert state.state == "partial"
        assert state.cost == pytest.approx(0.001 * TOKENS[0])
    kinds = ["response.created", "response.output_text.delta", "response.completed"]
    assert calls["responses stream"]["value"] == {"kinds": kinds, "text": SAID, "model": "bandit/router"}


def test_a_stream_that_is_cut_raises_and_is_a_failure(places: tuple[Client, dict[str, Any]]) -> None:
    client, calls = places
    for name in ("cut", "responses cut"):
        assert calls[name]["kind"] == "APIError"
        assert "cut: cut off" in calls[name]["message"]
    assert all(event["error"].startswith("cut off") for event in closings(client, "cut"))


def test_another_arm_takes_over_and_the_client_sees_nothing_of_it(places: tuple[Client, dict[str, Any]]) -> None:
    client, calls = places
    assert calls["fallback"]["value"] == [SAID] * 3
    outcomes = closings(client, "shaky")
    assert {event.get("error") for event in outcomes} <= {None, "", "status 500 Internal Server Error"}


def test_each_retry_of_the_client_is_a_decision_that_is_closed(places: tuple[Client, dict[str, Any]]) -> None:
    client, calls = places
    down = calls["down"]
    assert (down["kind"], down["status"], down["code"], down["type"]) == (
        "InternalServerError",
        502,
        "upstream_failed",
        "server_error",
    )
    assert [event["error"] for event in closings(client, "down")] == ["status 500 Internal Server Error"] * 3
    limited = calls["limited"]
    assert (limited["kind"], limited["headers"]["retry-after"]) == ("RateLimitError", "1")
    assert [event["error"] for event in closings(client, "limited")] == ["status 429 Too Many Requests"] * 3
    assert all(event.get("reward") is None for name in ("down", "limited") for event in closings(client, name))


def test_what_cannot_be_mended_is_not_retried(places: tuple[Client, dict[str, Any]]) -> None:
    client, calls = places
    assert (calls["picky"]["kind"], calls["picky"]["status"]) == ("BadRequestError", 400)
    assert [event["event"] for event in closings(client, "picky")] == ["cancelled"]
    assert [(calls[name]["kind"], calls[name]["code"]) for name in ("missing", "wrong", "key", "reader")] == [
        ("NotFoundError", "model_not_found"),
        ("NotFoundError", "model_not_found"),
        ("AuthenticationError", "invalid_api_key"),
        ("PermissionDeniedError", "forbidden"),
    ]
