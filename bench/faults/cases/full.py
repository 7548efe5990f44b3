"""The store is full: SQLite's disk, Redis' memory. Refused while it is, and nothing acknowledged is missing afterwards."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.faults.cases.shared import accepted_for, under_load
from bench.faults.replicas import Load, Replicas, at_work, judge
from bench.faults.rows import Options, Row, judged_row

CLIENTS = 8
SMALL, LARGE = 3 * 2**20, 256 * 2**20
MEMORY = 2**20
"""Of Redis, beyond what it has when the limit is set."""


def run(options: Options) -> list[Row]:
    """The disk, then the memory."""
    rows = [_disk(options)]
    options.tell(1, 2)
    return [*rows, _memory(options)]


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[str, Callable[[int], None], Callable[[], None] | None]]:
    """(what it is, room -> None: makes room, what to call in the process) of a small place to write to."""
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "none", str(folder)], capture_output=True, check=False
        ).returncode
    )
    if mounted:
        try:
            yield "a file system of 3 MiB", lambda _: _run("mount", "-o", f"remount,size={LARGE}", str(folder)), None
        finally:
            _run("umount", "-l", str(folder))
        return

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, resource.RLIM_INFINITY))

    yield "files of 3 MiB at most", lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (LARGE, LARGE)) and None, limit


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _disk(options: Options) -> Row:
    folder = options.space("disk-full")
    disk = folder / "disk"
    disk.mkdir()
    with (
        small_disk(disk) as (what, make_room, before),
        Replicas(folder, f"sqlite:///{disk / 'store.db'}", number=1, before=before) as one,
    ):
        one.start()
        pid = one.servers[0].process.pid
        with at_work(one.servers, clients=CLIENTS, seed=options.seed) as load:
            return _row("disk full, SQLite", options, one, load, lambda: make_room(pid), what=f"{what}: ", fresh=False)


def _memory(options: Options) -> Row:
    with under_load(options, "memory-full") as (redis, three, load):
        load.until(200, limit_s=60.0)
        redis.command("CONFIG", "SET", "maxmemory", int(redis.info("memory")["used_memory"]) + MEMORY)
        fault = "maxmemory reached (noeviction), Redis"
        return _row(fault, options, three, load, lambda: redis.command("CONFIG", "SET", "maxmemory", 0))


def _row(
    fault: str,
    options: Options,
    replicas: Replicas,
    load: Load,
    make_room: Callable[[], object],
    *,
    what: str = "",
    fresh: bool = True,
) -> Row:
    """Until everything is refused, and after there is room again."""
    refused = _until_refused(load)
    was_ready = [server.is_ready() for server in replicas.servers]
    accepted_for(options, load)
    accepted = load.acknowledged()
    make_room()
    ready_s = replicas.wait_until_ready(60.0)
    load.until(100, limit_s=60.0)
    record = load.stop()
    row = judged_row(fault, record, judge(replicas, record, fresh=fresh), seen="")
    row.seen = (
        f"{what}{accepted:,} events, then 503 ({record.counts['refused']:,} of them; readyz red at {was_ready.count(False)} of "
        f"{len(was_ready)}); ready {ready_s:.1f} s after there was room again, without a restart"
    )
    if not refused or any(was_ready):
        row.broken.append(f"it was not refused ({refused}) or readyz did not tell ({was_ready})")
    return row


def _until_refused(load: Load, limit_s: float = 120.0) -> bool:
    """Whether, in time, nearly everything was refused for a second. (A small event may still find room.)"""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        acknowledged, refused = load.acknowledged(), load.count("refused")
        time.sleep(1.0)
        if load.count("refused") - refused > 10 * (load.acknowledged() - acknowledged + 1):
            return True
    return False
