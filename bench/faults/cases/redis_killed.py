"""Redis itself is killed (SIGKILL) under load and started again, with each way of keeping what it holds."""

from __future__ import annotations

import statistics
import time
from random import Random

from bench.faults.cases.shared import under_load
from bench.faults.clients import BANDITS, Record
from bench.faults.replicas import Judged, Replicas, judge
from bench.faults.rows import Options, Row, judged_row
from bench.faults.server import Server
from tools.processes import EVERYSEC, ServerFailed

CLIENTS = 12
PATIENCE_S = 60.0
SETTINGS: dict[str, tuple[str, ...]] = {
    "no persistence": (),
    "RDB only (save 2 1)": ("--save", "2 1"),
    "AOF everysec": EVERYSEC,
    "AOF always": ("--appendonly", "yes", "--appendfsync", "always"),
}
KEEPS = ("AOF everysec", "AOF always")
"""What the process wrote is in the system's hands: a kill of the process loses nothing. The loss of power is another matter."""


def run(options: Options) -> list[Row]:
    """One row per setting."""
    rows = []
    for number, (setting, flags) in enumerate(SETTINGS.items()):
        options.tell(number, len(SETTINGS))
        rows.append(_one(setting, flags, options))
    return rows


def _one(setting: str, flags: tuple[str, ...], options: Options) -> Row:
    kills = options.kills or (2 if options.quick else 10)
    g = Random(f"{options.seed}/{setting}")
    recovered = []
    name = f"redis-killed-{list(SETTINGS).index(setting)}"
    with under_load(options, name, clients=CLIENTS, flags=flags) as (redis, three, load):
        for _ in range(kills):
            load.until(200 if options.quick else 1000, limit_s=60.0)
            time.sleep(g.uniform(0.5, 3.0))
            redis.kill()
            time.sleep(g.uniform(0.2, 2.0))
            redis.start()
            recovered.append(recover(three))
        load.until(100, limit_s=60.0)
        record = load.stop()
        judged = judge(three, record)
    kept = setting in KEEPS
    row = judged_row(f"Redis killed and started again: {setting}", record, judged, seen="", may_lose=not kept)
    row.seen = (
        f"{kills} kills; 3 replicas ready {statistics.median(recovered):.1f} s (median), {max(recovered):.1f} s (longest) after "
        f"Redis, without a restart; {record.counts['refused']:,} requests refused (503) meanwhile{after_a_loss(record, judged)}"
    )
    return row


def recover(three: Replicas) -> float:
    """Seconds until all replicas are ready and have every bandit; those lost with Redis are created again, as by hand."""
    began = time.monotonic()
    three.wait_until_ready()
    while missing := [f"{server.name}: {name}" for server in three.servers for name in BANDITS if not _has(server, name)]:
        if time.monotonic() - began > PATIENCE_S:
            raise ServerFailed(f"bandits do not come back: {', '.join(missing)}")
        three.create()
        time.sleep(0.05)
    return time.monotonic() - began


def _has(server: Server, bandit: str) -> bool:
    return server.ask("GET", f"/v1/bandits/{bandit}").status == 200


def after_a_loss(record: Record, judged: Judged) -> str:
    if not judged.verdict.lost:
        return ""
    return f"; {len(record.broken):,} answers contradict an earlier one because of the loss, all replicas agree with the log"
