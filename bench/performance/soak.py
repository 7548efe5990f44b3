"""Does the service stay as it is? Seven policies under a constant, moderate load, for half an hour, and a verdict at the end.

    python -m bench.performance.soak                          30 minutes
    python -m bench.performance.soak --minutes 2              to try it
    python -m bench.performance.soak --write                  also docs/performance.md and docs/plots/soak.png

One service on SQLite, a bandit per policy, rounds at a constant rate (loading/mixed.py). Every ten seconds:
memory, open files, threads, CPU time, latency of what was asked since, sizes of the files in the data folder and of what is in
the store, and the lag of the folding from /metrics. The first quarter is warm-up. Slopes are medians over all pairs of samples;
each verdict names its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.faults.server import Server
from bench.pages import show, write
from bench.performance.load_testing import machine, mixed, pages
from bench.performance.load_testing.driver import quantiles
from bench.performance.load_testing.measure import cpu_s, open_files, rss_mb, threads
from bench.performance.load_testing.trend import WARM_UP, Sample, Verdict, verdicts
from service.cli.plotting import BLUE, GREEN, LINE, ORANGE, PINK, YELLOW, End, drawing, name_ends, plain
from service.storage.sqlite.connection import open_read_only
from service.storage.sqlite.store import SHIFT

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "out" / "load" / "soak.json"
PLOT = ROOT / "docs" / "plots" / "soak.png"
STORE = "store.db"
SEED = 11


async def soaked(
    server: Server, folder: Path, *, seconds: float, rate: float, every_s: float, console: Console
) -> tuple[mixed.Clients, list[Sample]]:
    """Play for so long, and look every `every_s` seconds."""
    clients = mixed.Clients(f"http://127.0.0.1:{server.port}", np.random.default_rng(SEED))
    await mixed.create(clients)
    clients.taken.clear()
    store = Store(folder / STORE)
    started = time.monotonic()
    playing = [asyncio.create_task(mixed.play(clients, kind, rate=rate, until=started + seconds)) for kind in mixed.BANDITS]
    samples: list[Sample] = []
    while time.monotonic() - started < seconds - every_s / 2:
        await asyncio.sleep(started + every_s * (len(samples) + 1) - time.monotonic())
        samples.append(await sampled(server, store, clients, at_s=time.monotonic() - started))
        console.print(text_of(samples[-1]), highlight=False)
    await asyncio.gather(*playing)
    clients.close()
    store.close()
    return clients, samples


class Store:
    """What is in the store of a running service, its write-ahead log included; a look reads only what came since the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = open_read_only(path)
        self._ends: dict[int, int] = {}  # log number -> the last position that was counted
        self._events = self._payload = 0

    def look(self) -> dict[str, int]:
        """The fields of a `Sample` that are about the store."""
        ask = self._connection.execute
        ask("BEGIN")  # all of it is of one moment
        try:
            for (number,) in ask("SELECT number FROM logs").fetchall():
                since, until = self._ends.get(number, number << SHIFT), (number + 1 << SHIFT) - 1
                query = "SELECT max(position), count(*), sum(length(payload)) FROM events WHERE position > ? AND position <= ?"
                end, count, size = ask(query, (since, until)).fetchone()
                if count:
                    self._ends[number] = end
                    self._events, self._payload = self._events + count, self._payload + size
            pages, free, page = (ask(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
            kept = ask("SELECT count(*), sum(length(blob)) FROM snapshots GROUP BY log").fetchall()
        finally:
            ask("COMMIT")
        snapshot_bytes = sum(size for _, size in kept)
        return {
            "events": self._events,
            "log_bytes": (pages - free) * page - snapshot_bytes,
            "payload_bytes": self._payload,
            "snapshot_bytes": snapshot_bytes,
            "free_bytes": free * page,
            "snapshots": max((count for count, _ in kept), default=0),
        }

    def close(self) -> None:
        """The connection."""
        self._connection.close()


async def sampled(server: Server, store: Store, clients: mixed.Clients, *, at_s: float) -> Sample:
    """One look."""
    pid = server.process.pid
    taken, clients.taken = clients.taken, []
    p50, _, p99, _ = quantiles(taken)
    gauges = await asyncio.to_thread(_gauges, server)
    return Sample(
        at_s=at_s,
        rss_mb=rss_mb(pid),
        open_files=open_files(pid),
        threads=threads(pid),
        cpu_s=cpu_s(pid),
        requests=clients.asked,
        rounds=clients.rounds,
        p50_ms=p50,
        p99_ms=p99,
        lag=int(max(gauges["nextarm_fold_lag"])),
        unready=int(max(gauges["nextarm_unready"])),
        files=await asyncio.to_thread(sizes, store.path.parent),
        **await asyncio.to_thread(store.look),
    )


def sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of every file."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def _gauges(server: Server) -> dict[str, list[float]]:
    connection = server.connect()
    try:
        connection.request("GET", "/metrics")
        return gauges_in(connection.getresponse().read().decode())
    finally:
        connection.close()


def gauges_in(text: str) -> dict[str, list[float]]:
    """Name -> the values of its samples, of the text that Prometheus scrapes."""
    found: dict[str, list[float]] = {}
    for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", text, flags=re.MULTILINE):
        found.setdefault(name, []).append(float(value))
    return found


def text_of(sample: Sample) -> str:
    """For the terminal."""
    return (
        f"{sample.at_s:5.0f} s: {sample.requests:,} requests, {sample.rss_mb:.0f} MB, {sample.open_files} files, "
        f"p50 {sample.p50_ms:.2f} p99 {sample.p99_ms:.2f} ms, lag {sample.lag}+{sample.unready}, "
        f"{sum(sample.files.values()) / 1e6:.1f} MB on disk"
    )


def table(found: Sequence[Verdict]) -> pages.Rows:
    """The verdicts."""
    columns = ["", "first third", "last third", "slope per hour", "drift over the run", "allowed", ""]
    cells = [
        [
            f"{verdict.measure}{f', {verdict.unit}' if verdict.unit else ''}",
            f"{verdict.first:.2f}",
            f"{verdict.last:.2f}",
            f"{verdict.slope:+.2f}",
            f"{verdict.drift:+.1f} %",
            verdict.allowed,
            "flat" if verdict.flat else "**grows**",
        ]
        for verdict in found
    ]
    return "Verdicts, after the warm-up", columns, cells


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Memory, latency, sizes of files, and what should stay flat, over time."""
    minutes = [sample.at_s / 60 for sample in samples]
    whole = {"open_files": "open files", "threads": "threads", "lag": "not folded", "unready": "not prepared"}
    files = sorted({name for sample in samples for name in sample.files if any(one.files.get(name, 0) > 1e5 for one in samples)})
    lines = {
        "Memory (RSS), MB": [("memory", BLUE, [sample.rss_mb for sample in samples])],
        "Latency, ms": [
            ("p50", BLUE, [sample.p50_ms for sample in samples]),
            ("p99", ORANGE, [sample.p99_ms for sample in samples]),
        ],
        "Files in the data folder, MB": [
            (name, color, [sample.files.get(name, 0) / 1e6 for sample in samples])
            for name, color in zip(files, (BLUE, GREEN, YELLOW), strict=False)
        ],
        "Open files, threads, events behind": [
            (label, color, [float(getattr(sample, name)) for sample in samples])
            for (name, label), color in zip(whole.items(), (BLUE, GREEN, ORANGE, PINK), strict=True)
        ],
    }
    with drawing(path, (8.3, 5.6), dpi=200, colors=64) as figure:
        panels = figure.subplots(2, 2).flat
        for axes, (title, shown) in zip(panels, lines.items(), strict=True):
            for _, color, values in shown:
                axes.plot(minutes, values, color=color, linewidth=1.4)
            axes.axvspan(0, WARM_UP * minutes[-1], color=LINE, alpha=0.35, linewidth=0, zorder=0)
            axes.set(xlim=(0, minutes[-1]), xlabel="minutes (shaded: warm-up)")
            axes.set_title(title)
            highest = max(max(values) for _, _, values in shown)
            if title.startswith("Latency"):
                lowest = min(min(values) for _, _, values in shown)
                axes.set(yscale="log", ylim=(lowest / 1.3, highest * 1.3))
                steps = (step * 10.0**power for power in range(-2, 5) for step in (1, 2, 5))
                plain(axes.yaxis, [step for step in steps if lowest / 1.3 <= step <= highest * 1.3])
            else:
                axes.set_ylim(0, 1.08 * highest)
            if len(shown) > 1:
                name_ends(axes, [End(float(np.median(values[-5:])), name, color) for name, color, values in shown])


def page_text(told: dict[str, Any], found: Sequence[Verdict]) -> str:
    """The section of the page."""
    where, last = told["machine"], told["samples"][-1]
    command = f"python -m bench.performance.soak --minutes {told['minutes']:g} --write"
    head = f"""`{command}`: one service on SQLite, seven bandits (each of the seven policies in
its default form, but for PromptWise's window of {mixed.WINDOW}; {mixed.ARMS} arms, prompts of {mixed.DIM} and outputs of
{mixed.OUTPUT} numbers), {told["rate"]:g} rounds per second and bandit; {told["requests"]:,} requests,
{told["failures"]} unexpected answers, seed {told["seed"]}.
{pages.machine_text(where)}
At the end {last["events"]:,} events take {last["log_bytes"] / 1e6:.1f} MB of the store with their keys, snapshots
{last["snapshot_bytes"] / 1e6:.1f} MB, free pages {last["free_bytes"] / 1e6:.1f} MB.

![soak](plots/soak.png)"""
    return f"{head}\n\n{pages.markdown(table(found))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=6.0, help="rounds per second and bandit")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--write", action="store_true", help="bring docs/performance.md and its plot up to date")
    chosen = parser.parse_args()
    machine.end_on_sigterm()
    console = Console(width=130)
    begun = machine.described()
    with tempfile.TemporaryDirectory(prefix="nextarm-soak-") as folder, tempfile.TemporaryDirectory() as logs:
        server = Server(
            Path(logs),
            store=f"sqlite:///{folder}/{STORE}",
            snapshot_every=10_000,
            settings={"SWEEP_S": "0.5", "LOG_LEVEL": "warning"},
        )
        server.start()
        try:
            server.wait_until_ready()
            clients, samples = asyncio.run(
                soaked(server, Path(folder), seconds=60 * chosen.minutes, rate=chosen.rate, every_s=chosen.every, console=console)
            )
        finally:
            server.end()
    found = verdicts(samples, store=STORE)
    told = {
        "machine": machine.finished(begun),
        "minutes": chosen.minutes,
        "rate": chosen.rate,
        "seed": SEED,
        "requests": clients.asked,
        "failures": len(clients.failures),
        "samples": [asdict(sample) for sample in samples],
        "verdicts": [asdict(verdict) for verdict in found],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=1))
    show(*table(found), console)
    for failure in clients.failures[:10]:
        console.print(failure)
    console.print(f"{len(clients.failures)} unexpected answers of {clients.asked:,}; {pages.machine_text(told['machine'])}")
    if chosen.write:
        draw(PLOT, samples)
        write({"soak": page_text(told, found)})
    raise SystemExit(0 if all(verdict.flat for verdict in found) and not clients.failures else 1)


if __name__ == "__main__":
    main()
