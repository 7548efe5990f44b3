"""kill -9: of the one process over SQLite, and of random replicas over Redis."""

from __future__ import annotations

import statistics
import time
from random import Random

from bench.faults.cases.shared import under_load
from bench.faults.clients import BANDITS, Record
from bench.faults.replicas import Judged, Load, judge
from bench.faults.rows import Options, Row, judged_row
from bench.faults.run import Plan, run

CLIENTS = 16


def sqlite(options: Options) -> list[Row]:
    """One process over SQLite."""
    kills = options.kills or (10 if options.quick else 200)
    plan = Plan(kills=kills, seed=options.seed, clients=options.clients or 8, limit_s=options.limit_s)
    result = run(plan, options.space("sqlite-kills"), each=lambda done: options.tell(done, kills))
    row = judged_row("kill -9 of one process, SQLite", result.record, result.judged, seen="")
    row.seen = (
        f"{result.kills} kills, {result.killed_in_start} of them while it started; ready again after "
        f"{statistics.median(result.starts_s):.1f} s (median), {max(result.starts_s):.1f} s (longest); "
        f"{_repeated(result.record):,} repeated requests answered alike"
    )
    return [row]


def _repeated(record: Record) -> int:
    return record.counts["decisions repeated"] + record.counts["outcomes repeated"] + record.counts["contradictions refused"]


def replicas(options: Options) -> list[Row]:
    """A random one of three replicas over Redis, again and again; its clients go on with another one."""
    kills = options.kills or (4 if options.quick else 20)
    events = options.events or (6_000 if options.quick else 100_000)
    g, began = Random(options.seed), time.monotonic()
    starts: list[float] = []
    with under_load(options, "replica-kills", clients=CLIENTS) as (_, three, load):
        for kill in range(1, kills + 1):
            _wait_for(load, events * kill // (kills + 1), options, events)
            if time.monotonic() - began > options.limit_s:
                break
            victim = g.choice(three.servers)
            victim.kill()
            victim.start()
            starts.append(victim.wait_until_ready())
        _wait_for(load, events, options, events)
        load_s = time.monotonic() - began
        record = load.stop()
        judged = judge(three, record)
    row = judged_row("kill -9 of a random one of 3 replicas, Redis", record, judged, seen="")
    _check_equal(row, record, judged)
    row.seen = (
        f"{len(starts)} kills, {options.clients or CLIENTS} clients, {_repeated(record):,} repeated or contradicting requests "
        f"({_repeated(record) / max(1, len(record)):.0%}) and {record.counts['cut off']} cut off; acknowledged = logged = "
        "learned once; "
        f"killed replica ready after {statistics.median(starts or [0]):.1f} s (median); {len(record) / load_s:.0f} events/s"
    )
    return [row]


def _wait_for(load: Load, acknowledged: int, options: Options, whole: int) -> None:
    until = time.monotonic() + options.limit_s
    while load.acknowledged() < acknowledged and time.monotonic() < until:
        options.tell(load.acknowledged(), whole)
        time.sleep(0.05)


def _check_equal(row: Row, record: Record, judged: Judged) -> None:
    """Every request was answered in the end, so what is in the logs is what was acknowledged, and nothing else."""
    for kind, told in (("decided", record.decided), ("observed", record.observed), ("cancelled", record.cancelled)):
        logged = {(name, event["id"]) for name in BANDITS for event in judged.logs[name] if event["event"] == kind}
        if logged != set(told):
            row.broken.append(f"{kind}: {len(logged)} in the logs, {len(told)} acknowledged")
