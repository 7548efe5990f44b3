"""Snapshots that are gone or garbled when the service starts: the log is the truth, so the state must be the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from bench.faults.clients import BANDITS
from bench.faults.replicas import Replicas, at_work, digests, judge
from bench.faults.rows import Options, Row, judged_row
from tools.processes import EVERYSEC, RedisServer

CLIENTS = 8
GARBLED_AT = 40
"""A byte in the middle of the newest snapshot."""


def run(options: Options) -> list[Row]:
    """SQLite and Redis, each without its snapshots and with a byte of each changed."""
    rows = []
    for number, (store, what) in enumerate((s, w) for s in ("SQLite", "Redis") for w in ("deleted", "corrupted")):
        options.tell(number, 4)
        folder = options.space(f"snapshots-{store}-{what}")
        if store == "SQLite":
            rows.append(_one(store, what, folder, "", options, partial(_spoil_sqlite, folder, what)))
            continue
        with RedisServer(*EVERYSEC, folder=folder / "redis") as redis:
            rows.append(_one(store, what, folder, redis.url, options, partial(_spoil_redis, redis, what)))
    return rows


def _one(store: str, what: str, folder: Path, url: str, options: Options, spoil: Callable[[], int]) -> Row:
    with Replicas(folder, url or f"sqlite:///{folder / 'store.db'}", number=1, snapshot_every=100) as one:
        server = one.servers[0]
        one.start()
        with at_work(one.servers, clients=CLIENTS, seed=options.seed) as load:
            load.until(options.events or (800 if options.quick else 5_000))
            record = load.stop()
        judged = judge(one, record, fresh=False)
        server.stop()
        spoilt = spoil()
        server.start()
        again_s = server.wait_until_ready()
        judged.digests["after the restart"] = digests(server, {name: len(events) for name, events in judged.logs.items()})
        judged.verdict.check_digests(judged.digests)
        passed_over = server.log.read_text().count("a snapshot cannot be used")
    seen = f"{spoilt} snapshots {what}, then a start: ready after {again_s:.1f} s, learned from the log"
    row = judged_row(
        f"snapshots {what}, {store}", record, judged, seen=seen + (f" ({passed_over} refused)" if passed_over else "")
    )
    if spoilt < len(BANDITS):
        row.broken.append(f"only {spoilt} snapshots were there to be {what}")
    return row


def _spoil_sqlite(folder: Path, what: str) -> int:
    with closing(sqlite3.connect(folder / "store.db")) as store, store:
        if what == "deleted":
            return store.execute("DELETE FROM snapshots").rowcount
        rows = store.execute("SELECT rowid, blob FROM snapshots").fetchall()
        store.executemany("UPDATE snapshots SET blob = ? WHERE rowid = ?", [(_garbled(blob), row) for row, blob in rows])
        return len(rows)


def _spoil_redis(redis: RedisServer, what: str) -> int:
    spoilt = 0
    for name in BANDITS:
        key = f"nextarm:{{{name}}}:snapshots"
        for offset, blob in dict(redis.command("HGETALL", key)).items():
            spoilt += 1
            if what == "deleted":
                redis.command("HDEL", key, offset)
            else:
                redis.command("HSET", key, offset, _garbled(blob))
    return spoilt


def _garbled(blob: bytes) -> bytes:
    return blob[:GARBLED_AT] + bytes([blob[GARBLED_AT] ^ 0x55]) + blob[GARBLED_AT + 1 :]
