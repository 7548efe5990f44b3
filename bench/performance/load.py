"""What does a request cost, beside the least that this stack can do? The service and bare routes, loaded in turn in one run.

    python -m bench.performance.load                          about ten minutes: everything
    python -m bench.performance.load --quick                  one round of short slices
    python -m bench.performance.load --only select,outcome    of: rounds select outcome batch text redis healthz overload
    python -m bench.performance.load --write                  also docs/performance.md and docs/plots/load.png

    wrk (1 thread) --> bare routes: raw ASGI, Starlette + msgspec, FastAPI + pydantic     loading/bare.py
                   --> the service on SQLite                                              PAK-UCB, d = 384, p = 256, 10 arms
                   --> the service on Redis (append-only file), 1 and 2 replicas

Each target gets a slice of a few seconds, one after the other, at 1, 16 and 64 connections; then the next round. CPU is the user
and system time of the server's processes, all threads, per answered request; ratios are medians of the ratios within a round,
because what else runs on the machine slows both of a pair. Each slice has a bandit of its own which has learned 512 rounds;
outcomes are of decisions that were made before the slice. What was answered is compared with what the service says it accepted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.pages import show, write
from bench.performance.load_testing import machine, noisy_neighbors, pages, picture
from bench.performance.load_testing import overload as overloads
from bench.performance.load_testing.cases import CONNECTIONS, SINGLES, Cases
from bench.performance.load_testing.measure import Slice, document
from bench.performance.load_testing.rig import SEED, Rig, bare, service, service_on_redis

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "out" / "load" / "results.json"
PLOT = ROOT / "docs" / "plots" / "load.png"
PARTS = ("rounds", "select", "outcome", "batch", "text", "redis", "healthz", "overload")
EMBEDDERS = ("static", "minilm")


@dataclass
class Results:
    """Everything that was measured."""

    slices: list[Slice] = field(default_factory=list)
    overload: list[dict[str, Any]] = field(default_factory=list)
    beside: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure. seconds: per slice."""

    parts: Sequence[str]
    rounds: int
    seconds: float
    connections: Sequence[int]
    overload_s: float


def one_round(cases: Cases, rig: Rig, redis: Sequence[Rig], wanted: Wanted, *, turn: int) -> Iterator[Slice]:
    """One slice of everything but overload."""
    for case in SINGLES:
        if case.partition(" ")[0] in wanted.parts or (redis and case != "rounds without prompts"):
            for connections in wanted.connections:
                rigs = [rig, *(redis if connections >= 2 and case != "rounds without prompts" else [])]
                yield from cases.singles(case, rigs, connections=connections, turn=turn)
    if "batch" in wanted.parts:
        for connections in (1, 4):
            yield cases.select_batch(rig, connections)
            yield cases.outcome_batch(rig, connections)
    if "text" in wanted.parts:
        for embedder in EMBEDDERS:
            yield cases.text(rig, 16, embedder=embedder, different=10**9)
            yield cases.text(rig, 16, embedder=embedder, different=100)
    if "healthz" in wanted.parts:
        yield cases.health(rig, 16)


def run(wanted: Wanted, console: Console) -> Results:
    """All of it; the processes that were started are ended."""
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nextarm-load-")))
        yardstick = stack.enter_context(bare())
        rig = stack.enter_context(service())
        redis = [stack.enter_context(service_on_redis(replicas=n)) for n in (1, 2)] if "redis" in wanted.parts else []
        console.print(f"service: pid {rig.pids[0]}, {rig.urls[0]}; load average {machine.described()['load']}")
        cases = Cases(folder, bare=yardstick, seconds=wanted.seconds)
        for turn in range(wanted.rounds):
            for piece in one_round(cases, rig, redis, wanted, turn=turn):
                results.slices.append(piece)
                console.print(
                    f"[dim]{turn + 1}/{wanted.rounds}[/] {piece.case}, {piece.connections} connections, {piece.target}: "
                    f"{piece.cpu_us:.0f} us, {piece.per_s:,.0f}/s, p99 {piece.p99_ms:.2f} ms, {piece.errors} errors"
                )
        if "text" in wanted.parts:
            for embedder in EMBEDDERS:
                results.beside.append(
                    noisy_neighbors.beside_an_embedder(rig, folder, embedder=embedder, seconds=wanted.overload_s / 3)
                )
        if "overload" in wanted.parts:
            with service("overloaded") as loaded:
                for row in overloads.overloaded(loaded, seconds=wanted.overload_s):
                    results.overload += overloads.document([row])
                    console.print(
                        f"{row.name}: {row.accepted:,.0f}/s accepted, {row.share_shed:.0%} shed, p99 {row.p99_ms:.0f} ms"
                    )
    return results


def tables(results: Results) -> list[pages.Rows]:
    """Those that have rows."""
    found = [pages.targets(results.slices, results.overload), pages.singles(results.slices), pages.others(results.slices)]
    found += [pages.overload(results.overload), pages.beside(results.beside)]
    return [rows for rows in found if rows[2]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, one second per slice, ten seconds per overload")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="per slice")
    parser.add_argument("--overload-seconds", type=float, default=30.0)
    parser.add_argument("--connections", default=",".join(map(str, CONNECTIONS)))
    parser.add_argument("--write", action="store_true", help="bring docs/performance.md and its plot up to date")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    machine.end_on_sigterm()
    parts = chosen.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    wanted = Wanted(
        parts=parts,
        rounds=1 if chosen.quick else chosen.rounds,
        seconds=1.0 if chosen.quick else chosen.seconds,
        connections=[int(number) for number in chosen.connections.split(",")],
        overload_s=10.0 if chosen.quick else chosen.overload_seconds,
    )
    console = Console(width=150)
    begun = machine.described()
    results = run(wanted, console)
    where = machine.finished(begun) | {"seed": SEED, "rounds": wanted.rounds, "seconds": wanted.seconds}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": where, "slices": document(results.slices), "overload": results.overload, "beside": results.beside}
    RESULTS.write_text(json.dumps(told, indent=1))
    found = tables(results)
    for rows in found:
        show(*rows, console)
    console.print(pages.machine_text(where))
    if chosen.write:
        picture.draw(PLOT, results.slices, results.overload)
        write({"load": page_text(found, where)})


def page_text(found: Sequence[pages.Rows], where: dict[str, Any]) -> str:
    """The section of the page."""
    how = f"{where['rounds']} rounds, {where['seconds']:g} s per slice, wrk, seed {where['seed']}"
    head = f"""`python -m bench.performance.load --write`: {how}.
{pages.machine_text(where)}

PAK-UCB, vectors of 384 numbers as base64, 128 random frequencies (p = 256), 10 arms; without prompts Thompson sampling. Rounds
are what a router does: decisions and their outcomes in turn. CPU is the user and system time of the server's processes per
answered request (per decision or outcome in a batch). The bare routes read the same bodies and answer as many bytes on the same
uvicorn, uvloop and httptools, and do nothing else; `x` columns are medians of the ratios to them within a round. Latencies are at
full speed: with 64 connections, 64 requests always wait.

![load](plots/load.png)"""
    return "\n\n".join([head, *map(pages.markdown, found)])


if __name__ == "__main__":
    main()
