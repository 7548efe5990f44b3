"""nextarm.litellm in the real LiteLLM, each in an environment of its own (`make test-integrations`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from nextarm import Client

from tests.integrations.litellm_cpu import ENVIRONMENTS, upstream_and_service
from tools.processes import ROOT, Server, free_port, running

SAID = [{"role": "user", "content": "good morning"}]
KEY = "sk-" + "0123456789abcdef" * 3
ARMS = ("small", "large", "b1", "b2", "works", "refusing")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Server, str]]:
    folder = tmp_path_factory.mktemp("litellm")
    with upstream_and_service(folder) as (server, upstream), Client(f"http://{server.host}:{server.port}") as client:
        yield client, server, upstream


@pytest.fixture(scope="module")
def calls(places: tuple[Client, Server, str]) -> dict[str, Any]:
    """What the scenarios of `sdk_calls.py` saw."""
    client, _, upstream = places
    client.create_bandit("sdk", policy={"kind": "thompson"}, arms=[{"name": arm, "price": 0.001} for arm in ARMS])
    command = [
        str(ENVIRONMENTS / "litellm-sdk" / "bin" / "python"),
        "tests/integrations/sdk_calls.py",
        "sdk",
        client.url,
        upstream,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "call", ["chat", "stream", "stream with usage", "embedding", "image", "together", "second loop", "retries"]
)
def test_what_is_called_is_learned(places: tuple[Client, Server, str], calls: dict[str, Any], call: str) -> None:
    client, _, _ = places
    assert calls[call]["raised"] is None
    assert len(calls[call]["attempts"]) == (5 if call == "together" else 1)
    for attempt in calls[call]["attempts"]:
        state = client.show_decision("sdk", attempt["decision"])
        assert (state.state, state.reward, state.arm) == ("observed", 1.0, attempt["arm"])
        assert state.cost is not None
        assert 0.0 < state.cost <= 0.001
        if call == "image":
            assert state.cost == 0.001, "LiteLLM knows no cost of it: the price of the arm"


def test_signals_are_measured(places: tuple[Client, Server, str], calls: dict[str, Any]) -> None:
    observed = {event["id"]: event for event in places[0].iter_log("sdk") if event["event"] == "observed"}
    signals = observed[calls["stream with usage"]["attempts"][0]["decision"]]["signals"]
    assert 0.0 < signals["first_token_s"] <= signals["latency_s"]
    assert (signals["prompt_tokens"], signals["completion_tokens"]) == (2.0, 5.0), "good morning; I do not know."


def test_a_retry_goes_to_another_arm_and_the_failed_one_is_closed(
    places: tuple[Client, Server, str], calls: dict[str, Any]
) -> None:
    """Two of three deployments are broken, and LiteLLM tries three times: without the exclusion some requests would fail."""
    assert all(set(attempt["tried"]) <= {"b1", "b2"} for attempt in calls["retries"]["attempts"])
    assert calls["retries"]["attempts"][0]["arm"] == "works"
    assert calls["refused"]["raised"] == "BadRequestError"
    events = list(places[0].iter_log("sdk"))
    still_open = {event["id"] for event in events if event["event"] == "decided"} - {
        event["id"] for event in events if event["event"] in ("observed", "cancelled", "partial")
    }
    assert not still_open
    refused = places[0].show_decision("sdk", calls["refused"]["attempts"][0]["decision"])
    assert (refused.state, refused.reward) == ("cancelled", None)


def test_a_call_that_blocks_is_warned_about(calls: dict[str, Any]) -> None:
    assert any("acompletion" in warning for warning in calls["warnings"])


def test_without_the_service_the_router_answers(calls: dict[str, Any]) -> None:
    assert calls["away"]["answers"] == 10
    assert calls["away"]["seconds"] < 20.0


# -- the proxy -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(places: tuple[Client, Server, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """With the configuration of `examples`."""
    client, _, upstream = places
    port = free_port()
    settings = {"UPSTREAM_URL": f"{upstream}/v1", "UPSTREAM_KEY": "x", "LITELLM_MASTER_KEY": KEY, "NEXTARM_URL": client.url}
    command = [
        *("env", *(f"{name}={value}" for name, value in settings.items()), "LITELLM_LOCAL_MODEL_COST_MAP=True"),
        *(str(ENVIRONMENTS / "litellm-proxy" / "bin" / "litellm"), "--config", str(ROOT / "examples" / "litellm_config.yaml")),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        running(command, port=port, folder=tmp_path_factory.mktemp("proxy")),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60.0) as http,
    ):
        yield http


def observed(client: Client, decision: str) -> Any:
    """The decision, once its outcome is there: the proxy posts it after the answer."""
    from tools.processes import wait_until

    wait_until(lambda: client.show_decision("router", decision).state != "open", "the outcome is posted", 30.0)
    return client.show_decision("router", decision)


def test_the_proxy_makes_the_bandit_decides_and_learns(places: tuple[Client, Server, str], proxy: httpx2.Client) -> None:
    client = places[0]
    answer = proxy.post("/v1/chat/completions", json={"model": "smart", "messages": SAID})
    assert answer.status_code == 200, answer.text
    state = observed(client, answer.headers["x-nextarm-decision-id"])
    assert (state.state, state.reward, state.arm) == ("observed", 1.0, answer.headers["x-nextarm-arm"])
    assert float(answer.headers["x-nextarm-propensity"]) == pytest.approx(state.propensity, rel=1e-4)
    arms = {arm.name: arm.price for arm in client.show_bandit("router").arms}
    assert arms["small"] == pytest.approx(1000 * 1.5e-7 + 300 * 6e-7)
    assert arms["large"] == pytest.approx(1000 * 2.5e-6 + 300 * 1e-5)


def test_the_proxy_streams_with_headers(places: tuple[Client, Server, str], proxy: httpx2.Client) -> None:
    body = {"model": "smart", "messages": SAID, "stream": True}
    with proxy.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert "[DONE]" in "".join(answer.iter_lines())
    state = observed(places[0], answer.headers["x-nextarm-decision-id"])
    assert state.state == "observed"
    assert state.cost > 0.0


def test_a_client_of_the_proxy_cannot_forge_an_outcome(places: tuple[Client, Server, str], proxy: httpx2.Client) -> None:
    client = places[0]
    other = client.decide("router")
    stolen = {
        "bandit": "router",
        "decision": other.id,
        "arm": other.arm,
        "deployments": ["small", "1"],
        "tried": [],
        "closed": "",
    }
    for name in ("metadata", "litellm_metadata"):
        for forged in (stolen, {"": stolen}, {"t": stolen}):
            body = {"model": "smart", "messages": SAID, name: {"nextarm": forged}, "litellm_trace_id": "t"}
            answer = proxy.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-nextarm-decision-id"] != other.id
            observed(client, answer.headers["x-nextarm-decision-id"])
    assert client.show_decision("router", str(other.id)).state == "open"


def test_the_proxy_outlives_the_service(places: tuple[Client, Server, str], proxy: httpx2.Client) -> None:
    _, server, _ = places
    server.kill()
    statuses = {proxy.post("/v1/chat/completions", json={"model": "smart", "messages": SAID}).status_code for _ in range(5)}
    assert statuses == {200}
