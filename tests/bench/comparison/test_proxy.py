"""The proxy beside nextarm: its configuration, what answers behind it, how two requests make a prompt, what is subtracted."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.comparison import asking, environment, peers, proxy, upstream
from bench.experiments.defaults.pages import written
from bench.performance.load_testing import wrk
from bench.performance.load_testing.measure import Slice
from tools.processes import free_port

SLICE = Slice(
    case="prompt",
    target=proxy.ALONE,
    connections=1,
    items=1,
    requests=900,
    seconds=4.0,
    cpu_us=40.0,
    per_s=450.0,
    p50_ms=0.25,
    p95_ms=2.0,
    p99_ms=3.0,
    longest_ms=9.0,
    errors=0,
)


# -- the proxy ---------------------------------------------------------------------------------------------------------------


def test_the_proxy_is_given_several_deployments_of_one_name_each_on_a_path_of_its_own_and_nothing_else() -> None:
    told = proxy.config("http://127.0.0.1:4711", arms=3)
    assert set(told) == {"model_list", "router_settings", "litellm_settings"}
    assert told["router_settings"]["routing_strategy"] == "simple-shuffle"
    assert [one["model_name"] for one in told["model_list"]] == ["any"] * 3
    bases = [one["litellm_params"]["api_base"] for one in told["model_list"]]
    assert bases == [f"http://127.0.0.1:4711/arm-{arm}/v1" for arm in range(3)]
    assert len(proxy.config("http://127.0.0.1:1")["model_list"]) == 10


def test_the_proxy_is_of_the_release_whose_router_stands_in_the_table_of_libraries() -> None:
    assert proxy.REQUIREMENTS == ("litellm[proxy]<1.82", "httptools")


PROGRAM = """
import json, os, socket, sys
open("told.json", "w").write(json.dumps(dict(os.environ)))
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True: server.accept()
"""


def test_a_server_gets_its_own_settings_and_none_of_ours_and_ends_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere")
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(port)]
    with proxy.running(command, port=port, folder=tmp_path, settings={"LITELLM_TELEMETRY": "False"}) as pid:
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told.pop("LC_CTYPE", None) in (None, "C.UTF-8")  # Python sets it by itself
    assert told == {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LITELLM_TELEMETRY": "False"}


def test_a_server_that_ends_by_itself_is_told_by_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('first'); raise SystemExit('no such option')"]
    with pytest.raises(proxy.NotStarted, match="no such option"), proxy.running(command, port=free_port(), folder=tmp_path):
        pass


# -- the model behind it -----------------------------------------------------------------------------------------------------


async def test_the_upstream_answers_as_openai_does_and_says_which_deployment_it_was() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Which arm is this?"}], "temperature": 0.3}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(upstream.app), base_url="http://bench") as client:
        answer = await client.post("/arm-7/v1/chat/completions", json=asked)
        broken = await client.post("/arm-7/v1/chat/completions", json={"model": "m"})
        elsewhere = await client.post("/arm-7/v1/embeddings", json=asked)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert told.pop("id")
    assert isinstance(told.pop("created"), int)
    assert told == {
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "arm-7"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5},
    }
    assert (broken.status_code, elsewhere.status_code) == (400, 404)
    assert "messages" in broken.json()["error"]["message"]


def test_every_question_is_one_that_the_upstream_takes() -> None:
    bodies = proxy.chats("any", 5)
    assert len(set(bodies)) == 5
    assert [upstream.answered("/arm-0/v1/chat/completions", body.encode())[0] for body in bodies] == [200] * 5


# -- asking ------------------------------------------------------------------------------------------------------------------


class Recorder(BaseHTTPRequestHandler):
    """Decisions d1, d2, ... after 5 ms, every third is refused; outcomes after 10 ms. Remembers who asked what."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[int, str, str, bytes]]
    turn = threading.Lock()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.turn:
            self.seen.append((self.client_address[1], self.command, self.path, body))
            n = len(self.seen)
        time.sleep(0.005 if self.command == "POST" else 0.01)
        content = json.dumps({"id": f"d{n}", "arm": "model-2"}, separators=(",", ":")).encode()
        self.send_response(503 if self.command == "POST" and n % 3 == 0 else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A driver that ends closes its connections whatever is under way."""


@contextmanager
def recorder() -> Iterator[tuple[str, list[tuple[int, str, str, bytes]]]]:
    class Own(Recorder):
        seen: list[tuple[int, str, str, bytes]] = []  # noqa: RUF012 (of this class alone)

    with Quiet(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", Own.seen
        finally:
            server.shutdown()
            thread.join()


def driven(folder: Path, *, pairs: bool, connections: int) -> tuple[wrk.Counted, list[tuple[int, str, str, bytes]]]:
    bodies = folder / "bodies"
    bodies.write_text('{"a":1}\n{"a":2}')
    with recorder() as (url, seen):
        asked = asking.Asked(path="/decisions", file=str(bodies), pairs=pairs)
        process = asking.begin(url, asked, folder=folder, connections=connections, seconds=60)
        while len(seen) < 40 and process.poll() is None:
            time.sleep(0.01)  # until enough was sent, however busy the machine is
        process.send_signal(signal.SIGINT)  # wrk ends, and reports, at once
        return wrk.ended(process), list(seen)


@pytest.mark.skipif(not wrk.available(), reason="there is no wrk")
def test_every_connection_puts_the_outcome_of_its_decision_before_it_asks_again(tmp_path: Path) -> None:
    told, seen = driven(tmp_path, pairs=True, connections=2)
    assert len({client for client, *_ in seen}) == 2
    finished = refused = 0
    for client in {client for client, *_ in seen}:
        expected = ""
        for n, (who, method, path, body) in enumerate(seen, start=1):
            if who != client:
                continue
            if expected:
                assert (method, path) == ("PUT", expected)
                assert 0 <= json.loads(body)["reward"] < 1
                expected, finished = "", finished + 1
            else:
                assert (method, path) == ("POST", "/decisions")
                assert json.loads(body)["a"] in (1, 2)
                expected = "" if n % 3 == 0 else f"/decisions/d{n}/outcome"
                refused += n % 3 == 0
    assert told.refused == pytest.approx(refused, abs=2)
    assert told.requests - told.refused == pytest.approx(finished, abs=2)
    assert told.p50 >= 15  # a prompt takes as long as both of its requests


@pytest.mark.skipif(not wrk.available(), reason="there is no wrk")
def test_a_prompt_of_one_request_ends_with_its_answer(tmp_path: Path) -> None:
    told, seen = driven(tmp_path, pairs=False, connections=1)
    assert {method for _, method, _, _ in seen} == {"POST"}
    assert told.requests == pytest.approx(len(seen), abs=1)
    assert told.refused == pytest.approx(len(seen) // 3, abs=1)
    assert told.p50 >= 5


# -- telling -----------------------------------------------------------------------------------------------------------------


def slices() -> list[Slice]:
    """Rounds in which the machine was slow once for both of a pair."""
    found = []
    for connections in proxy.CONNECTIONS:
        for alone, through, own in ((40.0, 7040.0, 2000.0), (900.0, 8900.0, 4000.0), (60.0, 9060.0, 3000.0)):
            found += [
                replace(SLICE, connections=connections, cpu_us=alone, p50_ms=alone / 1e3),
                replace(SLICE, connections=connections, cpu_us=through, p50_ms=through / 1e3, target=proxy.THROUGH),
                replace(SLICE, connections=connections, cpu_us=own, p50_ms=own / 1e3, target=proxy.NEXTARM),
            ]
    return found


def test_what_the_proxy_adds_is_the_median_of_the_differences_within_a_round() -> None:
    """7,000, 8,000 and 9,000; the difference of the medians would be 8,840."""
    more = proxy.added(slices(), connections=16, target=proxy.THROUGH, beneath=proxy.ALONE)
    assert (more.cpu_us, more.low, more.high) == (8000.0, 7000.0, 9000.0)
    assert more.p50_ms == pytest.approx(8.0)


def test_what_asking_nextarm_adds_is_all_that_it_takes() -> None:
    more = proxy.added(slices(), connections=1, target=proxy.NEXTARM)
    assert (more.cpu_us, more.low, more.high, more.p50_ms) == (3000.0, 2000.0, 4000.0, 3.0)


def test_the_tables_show_what_was_measured_and_what_it_adds() -> None:
    lines = proxy.table(slices()).splitlines()
    assert lines[2] == "| 1 | upstream alone | 60 | 40 to 900 | 450 | 0.06 | 3.00 | 0 |"
    assert lines[7] == "| 16 | nextarm: decision, outcome | 3,000 | 2,000 to 4,000 | 450 | 3.00 | 3.00 | 0 |"
    assert lines[-2:] == [
        "| by the LiteLLM proxy | 16 | 8,000 | 7,000 to 9,000 | 8.00 |",
        "| by asking nextarm | 16 | 3,000 | 2,000 to 4,000 | 3.00 |",
    ]


def test_what_cannot_be_installed_is_told_where_the_tables_would_stand() -> None:
    text = peers.proxy_page({"error": "pip: no matching distribution"})
    page = written("before\n<!-- measured peers proxy -->\nold\n<!-- /measured peers proxy -->\nafter", {"peers proxy": text})
    assert "not measured. pip: no matching distribution\n<!-- /measured" in page
    assert "old" not in page


def test_a_failed_installation_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk, "available", lambda: True)
    monkeypatch.setattr(environment, "install", lambda *requirements: "ERROR: no network")
    with pytest.raises(proxy.NotStarted, match="pip: ERROR: no network"):
        proxy.play(show=lambda piece: None)


def test_a_proxy_that_does_not_speak_is_not_measured() -> None:
    with recorder() as (url, _), pytest.raises(proxy.NotStarted, match="is no completion"):
        proxy.warmed(int(url.rpartition(":")[2]))
    with pytest.raises(proxy.NotStarted, match="does not answer"):
        proxy.warmed(free_port())


def test_a_part_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.comparison.peers", "--only", "proxy,moon"])
    with pytest.raises(SystemExit, match="there is no moon; there are libraries, proxy"):
        peers.main()
