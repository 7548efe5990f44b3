"""A replica that is away for a while: paused (SIGSTOP), or cut off from Redis; the others go on, and it comes back by itself.

paused      its clients wait or go elsewhere; resumed, it must not answer from before what `min_offset` asks for
partition   its network to Redis is down, its clients still reach it: 503 in bounded time, and never a guess
"""

from __future__ import annotations

import http.client
import time
from contextlib import ExitStack
from typing import Any

from bench.faults.cases.shared import over_redis
from bench.faults.clients import BANDITS
from bench.faults.namespaces import Unsupported, namespace
from bench.faults.replicas import Load, Replicas, at_work, judge, persistently
from bench.faults.rows import Options, Row, judged_row
from bench.faults.server import Server
from bench.faults.wire import Wire
from tools.processes import EVERYSEC, RedisServer, ServerFailed

CLIENTS = 8
BOUND_S = 5.0
"""Of an answer without Redis: two exchanges of NEXTARM_REDIS_TIMEOUT_S (2 s), one of them a new connection's, and some."""


def paused(options: Options) -> list[Row]:
    """One of three, for a minute."""
    away_s = 5.0 if options.quick else 60.0
    with over_redis(options, "paused") as (_, three):
        sleeper, others = three.servers[0], three.servers[1:]
        with at_work(others, clients=CLIENTS, seed=options.seed) as load:
            load.until(300)
            sleeper.pause()
            before = load.acknowledged()
            _sleep(away_s, options)
            missed = load.acknowledged() - before
            ends = {name: others[0].ask("GET", f"/v1/bandits/{name}/digest").body["offset"] for name in BANDITS}
            sleeper.resume()
            began = time.monotonic()
            stale = sum(_is_stale(sleeper, name, end) for name, end in ends.items())
            caught_up_s = time.monotonic() - began
            load.until(100)
            record = load.stop()
        judged = judge(three, record)
    row = judged_row("a replica paused (SIGSTOP) and resumed, Redis", record, judged, seen="")
    row.seen = (
        f"away for {away_s:g} s, {missed:,} events of the others meanwhile; its first answers with min_offset: {stale} stale, "
        f"all of them within {caught_up_s:.1f} s"
    )
    row.broken += [f"{stale} answers were from before what they were asked for"] if stale else []
    return [row]


def _is_stale(server: Server, bandit: str, end: int) -> bool:
    """Whether a 200 is of an earlier offset than it was asked for. A 503 is asked again."""
    answer = persistently(lambda: server.ask("GET", f"/v1/bandits/{bandit}/digest", headers={"X-Nextarm-Min-Offset": str(end)}))
    return answer.status != 200 or answer.body["offset"] < end


def partition(options: Options) -> list[Row]:
    """One of three is cut off from Redis: by a link that is down where the machine allows it, else by a wire that is cut."""
    folder = options.space("partition")
    with ExitStack() as stack:
        try:
            apart = stack.enter_context(namespace())
            password = "of-this-run-alone"
            redis = stack.enter_context(
                RedisServer(*EVERYSEC, folder=folder / "redis", bind=(apart.store_host,), password=password)
            )
            near, far = f"redis://:{password}@127.0.0.1:{redis.port}", f"redis://:{password}@{apart.store_host}:{redis.port}"
            cut, mend, how = apart.cut, apart.mend, "a network namespace whose link to Redis is down"
        except Unsupported as error:
            redis = stack.enter_context(RedisServer(*EVERYSEC, folder=folder / "redis"))
            wire = stack.enter_context(Wire(redis.port))
            near, far = redis.url, f"redis://127.0.0.1:{wire.port}"
            cut, mend, how, apart = wire.cut, wire.mend, f"a wire that is cut (no namespace: {error})", None
        three = stack.enter_context(Replicas(folder, [near, near, far], number=3))
        if apart is not None:
            three.servers[2] = Server(
                folder, store=far, name="replica-apart", host=apart.host, within=apart.within, settings={"ALLOW_ANONYMOUS": "1"}
            )
        three.start()
        return [_partition(options, three, cut, mend, how)]


def _partition(options: Options, three: Replicas, cut: Any, mend: Any, how: str) -> Row:
    away_s = 6.0 if options.quick else 45.0
    lonely, others = three.servers[2], three.servers[:2]
    with at_work(three.servers, clients=CLIENTS, seed=options.seed) as load:
        load.until(300)
        cut()
        before = load.acknowledged()
        statuses, longest_s = _ask_for(lonely, away_s, load, options)
        others_ready = all(server.is_ready() for server in others)
        meanwhile = load.acknowledged() - before
        mend()
        began = time.monotonic()
        three.wait_until_ready(60.0)
        healed_s = time.monotonic() - began
        load.until(100)
        record = load.stop()
    judged = judge(three, record)
    row = judged_row("a replica cut off from Redis by the network", record, judged, seen="")
    row.seen = (
        f"{how}, for {away_s:g} s: its answers {_counted(statuses)}, the slowest after {longest_s:.1f} s; the others "
        f"acknowledged {meanwhile:,} events meanwhile; ready again {healed_s:.1f} s after it was mended, without a restart"
    )
    if set(statuses) - {503} or longest_s > BOUND_S or not others_ready or not meanwhile:
        row.broken.append(f"answers {statuses}, slowest {longest_s:.1f} s, others ready {others_ready}, {meanwhile} events")
    return row


def _ask_for(server: Server, seconds: float, load: Load, options: Options) -> tuple[dict[int, int], float]:
    """Decisions at the replica that is cut off: statuses with their counts, and the slowest answer; 0 stands for no answer."""
    statuses: dict[int, int] = {}
    longest, began = 0.0, time.monotonic()
    time.sleep(0.1)  # what was on its way arrives
    while (asked := time.monotonic()) < began + seconds:
        options.tell(asked - began, seconds)
        try:
            status = server.ask("POST", "/v1/bandits/chance/decisions", {}, timeout_s=4 * BOUND_S).status
        except (OSError, http.client.HTTPException):
            status = 0
        statuses[status] = statuses.get(status, 0) + 1
        longest = max(longest, time.monotonic() - asked)
        time.sleep(0.05)
    if not statuses:
        raise ServerFailed("nothing was asked")
    return statuses, longest


def _counted(statuses: dict[int, int]) -> str:
    return ", ".join(f"{count:,} x {status or 'none'}" for status, count in sorted(statuses.items()))


def _sleep(seconds: float, options: Options) -> None:
    for tenth in range(int(seconds * 10)):
        options.tell(tenth, seconds * 10)
        time.sleep(0.1)
