"""Every fault that is played, in the order of the table."""

from __future__ import annotations

from bench.faults.cases import (
    away,
    changes,
    clocks,
    duplicates,
    failover,
    full,
    gateway,
    history,
    kills,
    redis_killed,
    snapshots,
    starts,
    touched,
    touched_files,
)
from bench.faults.rows import Case

CASES = (
    Case("sqlite-kills", "kill -9 of one process over SQLite, under load, also amid a start", kills.sqlite),
    Case("replica-kills", "kill -9 of a random one of three replicas over Redis; clients go on with another one", kills.replicas),
    Case("import", "kill -9 while history is imported and a bandit is cloned, over SQLite and over Redis", history.run),
    Case("changes", "kill -9 while shadows are promoted and outcomes amended, over SQLite and over Redis", changes.run),
    Case("redis-killed", "kill -9 of Redis under load, with each way of keeping what it holds", redis_killed.run),
    Case("failover", "Redis fails over to a replica that lags, with and without WAIT", failover.run),
    Case("duplicates", "the same posts over and over to several replicas at once", duplicates.run),
    Case("clocks", "two replicas whose clocks are an hour apart", clocks.run),
    Case("full", "SQLite's disk is full; Redis' memory is", full.run),
    Case("touched", "another program removes, restores or would evict keys of Redis under load", touched.run),
    Case("files-touched", "SQLite's files removed, replaced, cut under the server and after a kill", touched_files.run),
    Case("snapshots", "snapshots deleted, and corrupted, before a start", snapshots.run),
    Case("paused", "a replica is paused (SIGSTOP) and resumed", away.paused),
    Case("partition", "a replica is cut off from Redis by the network", away.partition),
    Case("gateway", "kill -9 of the service under routers with the Python client, whose requests go on", gateway.run),
    Case("starts", "a start with a snapshot and 10,000 events behind; a full replay", starts.run),
)
ORDER = (
    *(
        "kill -9 of one",
        "kill -9 of a random",
        "kill -9 during",
        "Redis killed",
        "Redis fails over",
        "duplicate",
        "two replicas with clocks",
    ),
    *("disk full", "maxmemory", "keys, entries", "a bandit restored", "FLUSHALL", "eviction"),
    *("under a running server", "after kill -9:", "snapshots"),
    *("a replica paused", "a replica cut off", "the service killed", "start with", "full replay"),
)
