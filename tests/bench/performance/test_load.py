"""The load bench: what drivers tell, what is divided by what, and what is called flat."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from bench.performance import soak
from bench.performance.load_testing import bare, driver, overload, pages, picture, trend, wrk
from bench.performance.load_testing.measure import (
    NotAccepted,
    Slice,
    check,
    cpu_of,
    cpu_s,
    measured,
    middles,
    open_files,
    ratios,
    rss_mb,
)
from bench.performance.load_testing.plans import Plan, reward
from bench.performance.load_testing.rig import ask_bodies
from bench.performance.soak import gauges_in

LINE = (
    'bench.performance.load: {"requests": 4211, "seconds": 2.004000, "p50": 713.0, "p95": 1204.5, "p99": 2250.0, "max": 9001.0, '
    '"refused": 3, "broken": 2}'
)
SLICE = Slice(
    case="select",
    target="service",
    connections=16,
    items=1,
    requests=900,
    seconds=2.0,
    cpu_us=90.0,
    per_s=450.0,
    p50_ms=1.0,
    p95_ms=2.0,
    p99_ms=3.0,
    longest_ms=9.0,
    errors=0,
)


# -- drivers -----------------------------------------------------------------------------------------------------------------


def test_the_line_at_the_end_of_wrk_is_found_among_the_others_and_read_in_milliseconds() -> None:
    said = f"Running 2s test @ http://localhost\n  1 threads and 4 connections\n{LINE}\nRequests/sec: 2101\n"
    told = wrk.parsed(said)
    assert told == (4211, 2.004, 0.713, 1.2045, 2.25, 9.001, 3, 2)


def test_a_driver_that_says_nothing_is_no_result() -> None:
    with pytest.raises(wrk.NoAnswer, match="unable to connect"):
        wrk.parsed("unable to connect to localhost:1 Connection refused\n")


class Recorder(BaseHTTPRequestHandler):
    """Answers 200 and remembers; a decision named `...3` is refused."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str, bytes]]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, body))
        is_decision = self.path.endswith("/decisions")
        answer = b'{"id":"made-%d","arm":"a"}' % len(self.seen) if is_decision else b"{}"
        self.send_response(503 if self.path.endswith("3/outcome") else 201 if is_decision else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST = do_GET = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A driver that ends closes its connections whatever is under way."""


@contextmanager
def recorder() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    class Own(Recorder):
        seen: ClassVar[list[tuple[str, str, bytes]]] = []

    with Quiet(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", Own.seen
        finally:
            server.shutdown()
            thread.join()


def expected(plan: Plan, n: int) -> list[tuple[str, str, bytes]]:
    """The first requests of a plan."""
    if plan.kind == "bodies":
        lines = Path(plan.file).read_text().splitlines()
        return [(plan.method, plan.path, lines[i % len(lines)].encode()) for i in range(n)]
    if plan.kind == "outcomes":
        return [("PUT", f"{plan.path}/{plan.prefix}{i}/outcome", f'{{"reward":{reward(i)}}}'.encode()) for i in range(1, n + 1)]
    if plan.kind == "texts":
        texts = [f"Question {plan.prefix}{i % plan.different}: which of these models should answer it?" for i in range(1, n + 1)]
        return [("POST", plan.path, f'{{"prompt":"{text}"}}'.encode()) for text in texts]
    batches = [range(first, first + plan.size) for first in range(1, n * plan.size, plan.size)]
    items = [",".join(f'{{"decision":"{plan.prefix}{i}","reward":{reward(i)}}}' for i in batch) for batch in batches]
    return [("POST", plan.path, f'{{"outcomes":[{item}]}}'.encode()) for item in items]


OUTCOMES = Plan(kind="outcomes", path="/v1/bandits/b/decisions", prefix="d", supply=10**6)


def test_rewards_of_outcomes_jump_about_and_have_three_digits() -> None:
    assert [reward(n) for n in (1, 2, 3, 1000)] == ["0.379", "0.758", "0.137", "0.000"]


@pytest.mark.skipif(not wrk.available(), reason="there is no wrk")
def test_wrk_sends_what_its_plan_says(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies"
    bodies.write_text('{"a":1}\n\n')
    plans = [
        OUTCOMES,
        Plan(kind="outcome batches", path="/x", prefix="d", supply=10**6, size=3),
        Plan(kind="texts", path="/y", prefix="t", different=2),
        Plan(kind="bodies", path="/z", file=str(bodies)),
    ]
    told = []
    with recorder() as (url, seen):
        for plan in plans:
            before = len(seen)
            process = wrk.begin(url, plan, folder=tmp_path, connections=1, seconds=60)
            while len(seen) < before + 20 and process.poll() is None:
                time.sleep(0.01)  # until enough was sent, however busy the machine is
            process.send_signal(signal.SIGINT)  # wrk ends, and reports, at once
            told.append(wrk.ended(process))
    for plan, counted in zip(plans, told, strict=True):
        first = expected(plan, 9)
        path = first[0][1] if plan.kind != "outcomes" else plan.path
        got = [one for one in seen if one[1].startswith(path)]
        # wrk asks its script once without sending, to see whether it pipelines
        skipped = 1 if plan.kind in ("outcomes", "texts", "outcome batches") else got.index(first[0])
        assert got[:5] == (first * 2)[skipped : skipped + 5], plan.kind
        assert counted.requests <= len(got) <= counted.requests + 1
        assert counted.refused == pytest.approx(sum(one[1].endswith("3/outcome") for one in got), abs=1)


@pytest.mark.skipif(not wrk.available(), reason="there is no wrk")
def test_wrk_plays_rounds_each_outcome_of_a_decision_that_was_answered(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies"
    bodies.write_text("{}\n")
    with recorder() as (url, seen):
        plan = Plan(kind="rounds", path="/v1/bandits/b/decisions", file=str(bodies))
        process = wrk.begin(url, plan, folder=tmp_path, connections=2, seconds=60)
        while len(seen) < 40 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        wrk.ended(process)
    decided = [f"made-{n}" for n, (_, path, _) in enumerate(seen, 1) if path.endswith("/decisions")]
    observed = [path.split("/")[-2] for method, path, _ in seen if method == "PUT"]
    assert len(observed) >= 15
    assert len(set(observed)) == len(observed)
    assert set(observed) <= set(decided)
    assert len(decided) - len(observed) <= 3


def test_arrivals_at_a_rate_do_not_wait_for_answers() -> None:
    """One connection to a server that takes 20 ms: at most 50 of 200 a second are answered, the others wait at the end."""

    class Slow(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, chunk: bytes) -> None:
            answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
            asyncio.get_running_loop().call_later(0.02, self.transport.write, answer)

    async def run() -> dict[str, Any]:
        server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            return await driver.drive({"url": url, "bandit": "b", "rate": 200.0, "connections": 1, "seconds": 0.6})
        finally:
            server.close()

    told = asyncio.run(run())
    assert 1 <= told["shed"] == told["requests"] <= 31
    assert told["requests"] < told["unsent"]
    assert told["requests"] + told["unsent"] <= 120


# -- the yardstick -----------------------------------------------------------------------------------------------------------


async def test_the_bare_routes_give_one_and_the_same_answer_and_refuse_unknown_fields() -> None:
    asked = ask_bodies(1)[0]
    transport, headers = httpx.ASGITransport(bare.create_app()), {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://bench", headers=headers) as client:
        answers = [await client.post(f"/{route}/decisions", content=asked) for route in bare.ROUTES]
        receipts = [await client.put(f"/{route}/decisions/d1/outcome", content='{"reward":0.379}') for route in bare.ROUTES]
        strange = await client.post("/fastapi/decisions", content='{"prompt":{"vector":"AA=="},"colour":1}')
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert len(answers[0].json()["scores"]) == 10
    assert [receipt.json() for receipt in receipts] == [
        {"decision": "d1", "reward": 0.379, "offset": 4712, "duplicate": False, "next": None}
    ] * 3
    assert strange.status_code == 422


# -- measuring ---------------------------------------------------------------------------------------------------------------


def test_the_cpu_time_of_a_process_is_that_of_all_its_threads() -> None:
    program = """
import sys, threading, time
def burn():
    while time.process_time() < 0.3: pass
threads = [threading.Thread(target=burn) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(time.process_time(), flush=True); sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        own = float(process.stdout.readline())
        assert cpu_s(process.pid) == pytest.approx(own, abs=0.04)
        assert cpu_of([process.pid, process.pid]) == pytest.approx(2 * own, abs=0.08)
        assert 3 < rss_mb(process.pid) < 100
        assert open_files(process.pid) == 3
        process.stdin.close()


def test_what_a_slice_costs_is_divided_by_what_the_server_accepted() -> None:
    told = wrk.Counted(requests=10, seconds=2.0, p50=1.0, p95=2.0, p99=3.0, longest=4.0, refused=1, broken=0)
    known = iter([100, 100 + 11 * 4])
    piece = measured(
        lambda: [told], case="batch", target="service", connections=1, pids=[], items=4, accepted=lambda: next(known)
    )
    assert (piece.per_s, piece.errors, piece.requests) == (20.0, 1, 10)


@pytest.mark.parametrize("accepted", [95, 111])
def test_answers_that_were_not_accepted_and_more_than_was_asked_are_noticed(accepted: int) -> None:
    check(100, answered=96, under_way=10, what="select")
    with pytest.raises(NotAccepted, match="96 answered"):
        check(accepted, answered=96, under_way=10, what="select")


def test_ratios_are_medians_of_the_ratios_within_a_round() -> None:
    """Rounds of 30, 300 and 40 us against 10, 50 and 20: ratios 3, 6, 2, so 3; the ratio of the medians would be 2."""
    ours = [replace(SLICE, cpu_us=value) for value in (30.0, 300.0, 40.0)]
    theirs = [replace(SLICE, target="raw", cpu_us=value) for value in (10.0, 50.0, 20.0)]
    mixed = [piece for pair in zip(theirs, ours, strict=True) for piece in pair]
    assert ratios(mixed, target="service", to="raw") == {("select", 16): 3.0}
    assert ratios(mixed, target="service", to="fastapi") == {}


def test_middles_are_medians_and_keep_the_spread_and_every_error() -> None:
    pieces = [replace(SLICE, cpu_us=cpu, errors=n, longest_ms=9.0 + n) for n, cpu in enumerate((90.0, 70.0, 200.0))]
    middle = middles(pieces)["select", 16, "service"]
    assert (middle.cpu_us, middle.low, middle.high, middle.errors, middle.longest_ms, middle.rounds) == (90, 70, 200, 3, 11, 3)


# -- overload ----------------------------------------------------------------------------------------------------------------


def second(n: int, *, p99: float, accepted: int = 80, refused: int = 20) -> dict[str, Any]:
    return {"second": n, "accepted": accepted, "refused": refused, "p99": p99, "p99_refused": 0.5 + n}


def test_a_row_of_overload_tells_what_was_shed_and_how_the_first_and_the_last_seconds_were() -> None:
    each = [second(n, p99=10.0 + n) for n in range(10)]
    told = {
        "accepted": 800, "shed": 200, "requests": 1010, "seconds": 10.0, "p50": 3000, "p99": 15_000, "p99_came": 90_000,
        "unsent": 5, "each": each,
    }  # fmt: skip
    row = overload.summed(told, name="2x", rate=200.0, cpu=0.5, memory=(300.0, 310.0, 305.0), recovered=0.2, seconds=10)
    assert (row.offered, row.accepted, row.shed, row.share_shed, row.other) == (200, 80, 20, 0.2, 10)
    assert (row.first_p99_ms, row.late_p99_ms, row.p99_ms, row.p99_came_ms, row.p99_shed_ms) == (11, 19, 15, 90, 9.5)
    assert row.cpu_us == 500


# -- pages -------------------------------------------------------------------------------------------------------------------


def test_targets_are_judged_on_ratios_of_the_same_run() -> None:
    played = replace(SLICE, case="rounds", cpu_us=270.0)
    slices = [
        played,
        replace(played, target="starlette", cpu_us=60.0),
        SLICE,  # at 16 connections: its own ratio is no target
        replace(SLICE, target="starlette", cpu_us=10.0),
        replace(SLICE, case="select batch", cpu_us=40.0, items=256),
    ]
    told = {"p99_ms": 40.0, "memory_mb": (300.0, 303.0, 301.0), "recovered_s": 0.0}
    rows = [
        {**told, "name": "64 connections (saturation)", "p99_ms": 20.0},
        {**told, "name": "2x the rate"},
        {**told, "name": "4x the rate", "p99_ms": 90.0},
    ]
    _, _, cells = pages.targets(slices, rows)
    assert [row[1:] for row in cells] == [
        ["4.50", "at most 4.5", "met"],
        ["2.25", "at least 2.5", "**missed**"],
        ["2.00", "at most 2", "met"],
        ["1.01", "at most 1.1", "met"],
        ["0.00", "at most 1", "met"],
    ]
    slower = [replace(played, cpu_us=271.0), *slices[1:]]
    assert pages.targets(slower, [])[2][0][3] == "**missed**"


def test_tables_name_every_target_beside_its_ratios() -> None:
    rows = pages.singles([replace(SLICE, target="starlette", cpu_us=60.0), SLICE, replace(SLICE, case="healthz")])
    lines = pages.markdown(rows).splitlines()
    assert lines[0] == "### Single requests"
    assert lines[4].startswith("| select | 16 | starlette | 60 |")
    assert lines[5].startswith("| select | 16 | service | 90 | 90 to 90 |")
    assert "| 1.50 |" in lines[5]
    assert len(lines) == 6


def test_the_picture_is_a_small_png(tmp_path: Path) -> None:
    slices = [replace(SLICE, target=name, case=case) for name in ("starlette", "service") for case in ("select", "outcome")]
    row = {"name": "2x the rate", "accepted": 80.0, "shed": 20.0, "p99_ms": 15.0}
    picture.draw(tmp_path / "load.png", slices, [row])
    content = (tmp_path / "load.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000


def test_a_soak_is_drawn_also_where_a_file_comes_later(tmp_path: Path) -> None:
    samples = [
        trend.Sample(
            at_s=10.0 * n, rss_mb=300.0 + n, open_files=85, threads=7, cpu_s=float(n), requests=n, rounds=n, p50_ms=2.0 + 0.1 * n,
            p99_ms=6.0, lag=0, unready=0, events=n, files={"store.db": n * 10**6} | ({"store.db-wal": 10**7} if n > 3 else {}),
        )
        for n in range(1, 9)
    ]  # fmt: skip
    soak.draw(tmp_path / "soak.png", samples)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


# -- soak --------------------------------------------------------------------------------------------------------------------


def samples(**changes: list[float]) -> list[trend.Sample]:
    n = 40
    rng = np.random.default_rng(3)
    flat = {"rss_mb": 300 + rng.normal(size=n), "p50_ms": 1.5 + 0.1 * rng.random(n), "p99_ms": 6 + rng.random(n)}
    steps = {"size": [1.0] * n, "kept": [float(3 * i // n) for i in range(n)]}
    values = {name: list(map(float, row)) for name, row in flat.items()} | steps | changes
    return [
        trend.Sample(
            at_s=10.0 * (i + 1), rss_mb=values["rss_mb"][i], open_files=20, threads=9, cpu_s=0.4 * i, requests=1000 * i,
            rounds=500 * i, p50_ms=values["p50_ms"][i], p99_ms=values["p99_ms"][i], lag=0, unready=1, events=700 * i,
            files={"store.db": 200_000 * i, "store.db-wal": int(values["wal"][i]) if "wal" in values else 4_000_000},
            log_bytes=int(600 * values["size"][i] * 700 * i), payload_bytes=460 * 700 * i, snapshots=int(values["kept"][i]),
        )
        for i in range(n)
    ]  # fmt: skip


def test_the_slope_is_that_of_the_line_whatever_a_few_outliers_do() -> None:
    at = [10.0 * i for i in range(30)]
    values = [5.0 + 0.25 * when for when in at]
    values[7], values[20] = 1e6, -1e6
    assert trend.slope(at, values) == pytest.approx(0.25)
    assert trend.slope([1.0], [2.0]) == 0.0


def test_a_flat_soak_is_flat() -> None:
    assert [verdict.measure for verdict in trend.verdicts(samples(), store="store.db") if not verdict.flat] == []


@pytest.mark.parametrize(
    ("measure", "changes"),
    [
        ("memory (RSS)", {"rss_mb": [300 + 0.5 * i for i in range(40)]}),
        ("latency p50", {"p50_ms": [1.5 + 0.02 * i for i in range(40)]}),
        ("files beside the store", {"wal": [4e6 + 2e5 * i for i in range(40)]}),
        ("log per event", {"size": [1 + 0.003 * i for i in range(40)]}),
        ("snapshots of a bandit", {"kept": [float(i // 12) for i in range(40)]}),
    ],
)
def test_what_grows_is_named(measure: str, changes: dict[str, list[float]]) -> None:
    found = trend.verdicts(samples(**changes), store="store.db")
    assert [verdict.measure for verdict in found if not verdict.flat] == [measure]


def test_gauges_are_read_whatever_their_labels_hold() -> None:
    text = '# HELP a b\nnextarm_fold_lag{bandit="a} 9"} 3.0\nnextarm_fold_lag{bandit="b"} 1e+01\nup 1\n'
    assert gauges_in(text) == {"nextarm_fold_lag": [3.0, 10.0], "up": [1.0]}
