"""More than the service can do, for half a minute: what happens to those who are answered, to the memory, and afterwards?

    saturation    64 connections in a closed loop                         --> rounds per second, p99
    2x, 4x        requests at twice and four times that rate, come what may, over 1,024 connections
    128, 256      connections in a closed loop

A round is a decision and then its outcome, so that the number of open decisions does not grow by itself.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.performance.load_testing.measure import cpu_of, rss_mb
from bench.performance.load_testing.rig import Rig, ask_bodies
from bench.performance.load_testing.wrk import MARK, ROOT

SATURATING = 64
LINES = 1_024
"""Connections of the open loop."""
PATIENCE_S = 60.0
QUIET = 5
"""So many probes in a row must be quick before the service counts as recovered."""


@dataclass(frozen=True, kw_only=True)
class Overload:
    """One load. offered: requests per second that came.  accepted, shed: per second that were answered 2xx, 429 or 503.
    other: anything else, in all.  p99_came: ms since the request came, with the wait in the driver.  first_p99, late_p99: worst
    second of the first and the last fifth.  memory: MB before, at most, after.  recovered_s: until as quick as before.
    """

    name: str
    offered: float
    accepted: float
    shed: float
    share_shed: float
    other: int
    p50_ms: float
    p99_ms: float
    first_p99_ms: float
    late_p99_ms: float
    p99_came_ms: float
    p99_shed_ms: float
    unsent: int
    cpu_us: float
    memory_mb: tuple[float, float, float]
    recovered_s: float


def overloaded(rig: Rig, *, seconds: float) -> Iterator[Overload]:
    """Saturation first, then the others. Each at a bandit of its own."""
    saturation = _run(rig, "64 connections (saturation)", rate=0.0, connections=SATURATING, seconds=max(seconds / 3, 3))
    yield saturation
    for factor in (2, 4):
        yield _run(rig, f"{factor}x the rate", rate=factor * saturation.accepted, connections=LINES, seconds=seconds)
    for factor in (2, 4):
        number = factor * SATURATING
        yield _run(rig, f"{number} connections", rate=0.0, connections=number, seconds=seconds)


def _run(rig: Rig, name: str, *, rate: float, connections: int, seconds: float) -> Overload:
    with rig.bandit() as bandit:
        usual = statistics.median(_probe(rig, bandit) for _ in range(20))
        before, cpu = rss_mb(rig.pids[0]), cpu_of(rig.pids)
        with _watching(rig.pids[0]) as sizes:
            told = drive(rig.urls[0], bandit, rate=rate, connections=connections, seconds=seconds)
        cpu = cpu_of(rig.pids) - cpu
        recovered = _recovery(rig, bandit, usual)
        after = rss_mb(rig.pids[0])
    return summed(
        told,
        name=name,
        rate=rate,
        cpu=cpu,
        memory=(before, max(sizes, default=before), after),
        recovered=recovered,
        seconds=seconds,
    )


def summed(
    told: dict[str, Any],
    *,
    name: str,
    rate: float,
    cpu: float,
    memory: tuple[float, float, float],
    recovered: float,
    seconds: float,
) -> Overload:
    """What a driver reported, in one row."""
    each = [second for second in told["each"] if second["second"] < seconds]
    fifth = max(1, len(each) // 5)
    answered = max(told["accepted"] + told["shed"], 1)
    return Overload(
        name=name,
        offered=rate or told["requests"] / told["seconds"],
        accepted=told["accepted"] / told["seconds"],
        shed=told["shed"] / told["seconds"],
        share_shed=told["shed"] / answered,
        other=told["requests"] - told["accepted"] - told["shed"],
        p50_ms=told["p50"] / 1e3,
        p99_ms=told["p99"] / 1e3,
        first_p99_ms=_worst(each[:fifth], "p99"),
        late_p99_ms=_worst(each[-fifth:], "p99"),
        p99_came_ms=told["p99_came"] / 1e3,
        p99_shed_ms=_worst(each, "p99_refused"),
        unsent=told["unsent"],
        cpu_us=1e6 * cpu / answered,
        memory_mb=memory,
        recovered_s=recovered,
    )


def _worst(each: Sequence[dict[str, Any]], name: str) -> float:
    return max((float(second[name]) for second in each), default=0.0)


def drive(url: str, bandit: str, *, rate: float, connections: int, seconds: float) -> dict[str, Any]:
    """What a driver process reports that sends decisions at a fixed rate."""
    spec = json.dumps({"url": url, "bandit": bandit, "rate": rate, "connections": connections, "seconds": seconds})
    ran = subprocess.run(
        [sys.executable, "-m", "bench.performance.load_testing.driver", spec],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=600,
    )
    line = next(line for line in ran.stdout.splitlines() if line.startswith(MARK))
    told: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return told


def _probe(rig: Rig, bandit: str) -> float:
    """Seconds that one decision takes, on a connection of its own."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", rig.servers[0].port, timeout=PATIENCE_S)
    try:
        connection.request(
            "POST", f"/v1/bandits/{bandit}/decisions", ask_bodies(1)[0], headers={"Content-Type": "application/json"}
        )
        connection.getresponse().read()
    finally:
        connection.close()
    return time.perf_counter() - started


def _recovery(rig: Rig, bandit: str, usual: float) -> float:
    """Seconds from now until the first of `QUIET` answers in a row that took at most thrice the usual."""
    started = time.perf_counter()
    quick, since = 0, 0.0
    while quick < QUIET and time.perf_counter() - started < PATIENCE_S:
        asked = time.perf_counter() - started
        took = _probe(rig, bandit)
        quick, since = (0, 0.0) if took > max(3 * usual, 0.005) else (quick + 1, since if quick else asked)
        time.sleep(0.02)
    return since if quick == QUIET else PATIENCE_S


@contextmanager
def _watching(pid: int) -> Iterator[list[float]]:
    """The resident memory, twice a second."""
    sizes: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            sizes.append(rss_mb(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def document(rows: Sequence[Overload]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]
