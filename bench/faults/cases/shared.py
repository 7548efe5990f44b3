"""What cases have in common: replicas over a Redis of their own with clients at work, and how long they are watched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.faults.replicas import Load, Replicas, at_work
from bench.faults.rows import Options
from tools.processes import EVERYSEC, RedisServer

REPLICAS = 3


@contextmanager
def over_redis(options: Options, name: str, *, flags: tuple[str, ...] = EVERYSEC) -> Iterator[tuple[RedisServer, Replicas]]:
    """Three replicas that are ready, and their Redis."""
    folder = options.space(name)
    with RedisServer(*flags, folder=folder / "redis") as redis, Replicas(folder, redis.url, number=REPLICAS) as three:
        three.start()
        yield redis, three


@contextmanager
def under_load(
    options: Options, name: str, *, clients: int = 8, flags: tuple[str, ...] = EVERYSEC
) -> Iterator[tuple[RedisServer, Replicas, Load]]:
    """The same with clients at work on all three; stop the load in the block to have its record."""
    with (
        over_redis(options, name, flags=flags) as (redis, three),
        at_work(three.servers, clients=options.clients or clients, seed=options.seed) as load,
    ):
        yield redis, three, load


def accepted_for(options: Options, load: Load) -> int:
    """Events that are acknowledged in the next seconds."""
    before = load.acknowledged()
    time.sleep(1.0 if options.quick else 5.0)
    return load.acknowledged() - before
