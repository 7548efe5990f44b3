"""Another program writes to Redis under running replicas: keys removed, replaced by an older copy, all removed, or soon evicted.

removed     503 and listed as damaged by every replica, also by one that starts afterwards; no id is acknowledged a second time
older copy  what came after it is lost, and counted; replicas notice, learn the log again and agree
emptied     the same, with everything
eviction    refused while keys may be evicted; nothing is lost
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.faults.cases.redis_killed import after_a_loss, recover
from bench.faults.cases.shared import accepted_for, under_load
from bench.faults.clients import BANDITS, Record
from bench.faults.replicas import Load, judge
from bench.faults.rows import Options, Row, judged_row
from bench.faults.server import Server
from tools.processes import RedisServer, wait_until

LOOK_S = 5.0
"""How often replicas look at all logs and at the set-up of Redis; on a busy machine their answer takes a moment more."""
BOUND_S = 2 * LOOK_S
REMOVED = {"prompts": "keys", "chance": "log", "late": "head"}


def run(options: Options) -> list[Row]:
    """One row each."""
    rows = []
    for number, one in enumerate((_removed, _older_copy, _emptied, _eviction)):
        options.tell(number, 4)
        rows.append(one(options))
    return rows


def _removed(options: Options) -> Row:
    """A part of each bandit: its keys, its entries, its head."""
    with under_load(options, "touched-removed") as (redis, three, load):
        load.until(_events(options))
        for bandit, part in REMOVED.items():
            redis.command("DEL", f"nextarm:{{{bandit}}}:{part}")
        took_s = wait_until(lambda: all(map(_lists_all, three.servers)), "all bandits are listed as damaged", 60.0)
        accepted = accepted_for(options, load)
        record = load.stop()
        twice = _twice(redis)
        left = {part: redis.command("EXISTS", f"nextarm:{{{bandit}}}:{part}") for bandit, part in REMOVED.items()}
        with three.newcomer() as newcomer:
            newcomer.wait_until_ready()
            agrees = all(_refuses(newcomer, bandit) for bandit in BANDITS) and _lists_all(newcomer)  # loaded when asked for
    row = Row(fault="keys, entries and heads removed under load, Redis", acknowledged=len(record), twice=len(twice))
    row.lost, row.may_lose = _lost_with(record, "chance"), True
    row.seen = (
        f"one bandit without its keys, one without its entries (whose {row.lost:,} are what was lost), one without its head: "
        f"each listed as damaged by 3 replicas after {took_s:.1f} s, {accepted} events acknowledged from then on, "
        f"{record.counts['refused']:,} requests refused (503); a replica that started afterwards says the same"
    )
    row.broken = twice + record.broken
    if accepted or any(left.values()) or not agrees or took_s > BOUND_S:
        row.broken.append(f"{accepted} accepted, {left} written again, fresh replica agrees: {agrees}, {took_s:.1f} s")
    return row


def _older_copy(options: Options) -> Row:
    """The same server process with the same history: nothing but the entries can tell."""

    def touch(redis: RedisServer, load: Load) -> None:
        copy = _dumped(redis, "prompts")
        load.until(_events(options))
        _restored(redis, copy)

    fault = "a bandit restored from an older copy under load, Redis"
    return _lossy(options, "touched-older", fault, touch, "they went on without a restart")


def _emptied(options: Options) -> Row:
    after = "bandits were created again by hand, without a restart"
    return _lossy(options, "touched-emptied", "FLUSHALL under load, Redis", lambda redis, load: redis.command("FLUSHALL"), after)


def _lossy(options: Options, name: str, fault: str, touch: Callable[[RedisServer, Load], object], after: str) -> Row:
    """What is lost is counted; replicas notice it and learn the log again."""
    with under_load(options, name) as (redis, three, load):
        load.until(_events(options))
        touch(redis, load)
        took_s = wait_until(lambda: all(_says(server, "were lost") for server in three.servers), "the loss is noticed", 60.0)
        recover(three)
        load.until(_events(options), limit_s=60.0)
        record = load.stop()
        judged = judge(three, record)
    row = judged_row(fault, record, judged, seen="", may_lose=True)
    row.seen = f"3 replicas said so in readyz after {took_s:.1f} s; {after}{after_a_loss(record, judged)}"
    row.broken += [f"noticed after {took_s:.1f} s"] if took_s > BOUND_S else []
    return row


def _eviction(options: Options) -> Row:
    with under_load(options, "touched-eviction") as (redis, three, load):
        load.until(_events(options))
        redis.command("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
        took_s = wait_until(lambda: not any(server.is_ready() for server in three.servers), "eviction is refused", 60.0)
        accepted = accepted_for(options, load)
        redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        ready_s = three.wait_until_ready(60.0)
        load.until(_events(options), limit_s=60.0)
        record = load.stop()
        judged = judge(three, record)
    row = judged_row("eviction switched on under load, Redis", record, judged, seen="")
    row.seen = (
        f"3 replicas refused everything after {took_s:.1f} s (readyz red), {accepted} events acknowledged from then on; ready "
        f"{ready_s:.1f} s after noeviction was set again, without a restart"
    )
    if accepted or took_s > BOUND_S:
        row.broken.append(f"{accepted} accepted, after {took_s:.1f} s")
    return row


def _events(options: Options) -> int:
    return options.events or (200 if options.quick else 1_000)


def _lists_all(server: Server) -> bool:
    damaged = server.ask("GET", "/readyz").body["damaged"]
    return {line.split(":")[0] for line in damaged} == set(BANDITS)


def _refuses(server: Server, bandit: str) -> bool:
    answer = server.ask("GET", f"/v1/bandits/{bandit}")
    return (answer.status, answer.body.get("code")) == (503, "storage_unavailable")


def _says(server: Server, words: str) -> bool:
    return any(words in notice for notice in server.ask("GET", "/readyz").body.get("notices", ()))


def _lost_with(record: Record, bandit: str) -> int:
    """Acknowledged events of a bandit whose entries were removed."""
    return sum(key[0] == bandit for told in (record.decided, record.observed, record.cancelled) for key in told)


def _twice(redis: RedisServer) -> list[str]:
    """Keys that stand in the entries of a log more than once."""
    found = []
    for bandit in BANDITS:
        with redis.client() as client:
            rows: Any = client.xrange(f"nextarm:{{{bandit}}}:log")
        keys = [fields[b"k"] for _, fields in rows]
        found += [f"{bandit}: {key!r}" for key in set(keys) if keys.count(key) > 1] if len(keys) > len(set(keys)) else []
    return found


def _dumped(redis: RedisServer, bandit: str) -> dict[bytes, bytes]:
    """Every key of a bandit, as of one moment."""
    with redis.client() as client:
        keys = list(client.scan_iter(f"nextarm:{{{bandit}}}:*"))
        many = client.pipeline(transaction=True)
        for key in keys:
            many.dump(key)
        return {key: kept for key, kept in zip(keys, many.execute(), strict=True) if kept is not None}


def _restored(redis: RedisServer, copy: dict[bytes, bytes]) -> None:
    with redis.client() as client:
        many = client.pipeline(transaction=True)
        for key, kept in copy.items():
            many.restore(key, 0, kept, replace=True)
        many.execute()
