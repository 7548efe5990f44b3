"""Another program touches the files of an SQLite store: under the running server, and after a kill."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.faults.replicas import Load, Replicas, at_work
from bench.faults.rows import Options, Row
from bench.faults.server import Server
from tools.processes import PATIENCE_S, ROOT

CLIENTS = 4
NOTICED_S = 5.0
"""A sweep is 0.1 s here; the rest is for a busy machine."""
MOVED_S = 8.0
"""By then what came after the copy was moved into the file; until then the write-ahead log makes the copy whole."""
FRAME = 4120

Touch = Callable[[Path, Path], object]
"""store, older copy of it -> None."""


def _wal(store: Path) -> Path:
    return store.with_name(store.name + "-wal")


def _overwrite(path: Path, content: bytes) -> None:
    """As cp does: the file stays the same one."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


def _restore(store: Path, older: Path) -> None:
    _wal(store).unlink()
    shutil.copy(older, store)


RUNNING: dict[str, Touch] = {
    "store removed": lambda store, older: store.unlink(),
    "older copy moved over the store": lambda store, older: (
        shutil.copy(older, older.with_suffix(".new")) and (older.with_suffix(".new").replace(store))
    ),
    "older copy written into the store": lambda store, older: _overwrite(store, older.read_bytes()),
    "-wal removed": lambda store, older: _wal(store).unlink(),
    "-wal emptied": lambda store, older: _overwrite(_wal(store), b""),
    "lock file removed": lambda store, older: store.with_name(store.name + ".lock").unlink(),
    "folder renamed": lambda store, older: store.parent.rename(store.parent.with_name("renamed")),
}
KILLED: dict[str, Touch] = {
    "-wal removed": lambda store, older: _wal(store).unlink(),
    "-wal cut": lambda store, older: _overwrite(_wal(store), _wal(store).read_bytes()[: 32 + FRAME]),
    "older copy put in place": lambda store, older: _restore(store, older),
}


def run(options: Options) -> list[Row]:
    """Each way of touching them, once."""
    plays = [(_running, what, touch) for what, touch in RUNNING.items()] + [
        (_killed, what, touch) for what, touch in KILLED.items()
    ]
    rows = []
    for number, (play, what, touch) in enumerate(plays):
        options.tell(number, len(plays))
        rows.append(play(what, touch, options.space(f"touched-{number}"), options))
    return rows


@contextmanager
def _under_load(folder: Path, options: Options) -> Iterator[tuple[Server, Load, Path, Path]]:
    """A server whose store has grown since an older copy of it was made, and the two files."""
    (folder / "served").mkdir()
    store, older = folder / "served" / "store.db", folder / "older.db"
    with Replicas(folder, f"sqlite:///{store}", number=1) as one:
        one.start()
        with at_work(one.servers, clients=CLIENTS, seed=options.seed) as load:
            load.until(150)
            _back_up(one.servers[0], older)
            load.until(150)
            yield one.servers[0], load, store, older


def _running(what: str, touch: Touch, folder: Path, options: Options) -> Row:
    row = Row(fault=f"under a running server: {what}, SQLite")
    with _under_load(folder, options) as (server, load, store, older):
        time.sleep(MOVED_S)
        load.let_go()
        time.sleep(0.5)
        row.acknowledged = load.acknowledged()
        touch(store, older)
        refused_s = _seconds_until(lambda: not _is_accepted(server))
        red_s = _seconds_until(lambda: not server.is_ready())
        later = sum(_is_accepted(server) for _ in range(20))
        critical = server.log.read_text().count("until the service is started again")
    row.seen = f"refused after {refused_s:.1f} s, readyz red after {red_s:.1f} s; of 20 decisions afterwards {later} accepted"
    if max(refused_s, red_s) > NOTICED_S or later or not critical:
        row.broken.append(f"{row.seen}; said so {critical} times in the log")
    return row


def _killed(what: str, touch: Touch, folder: Path, options: Options) -> Row:
    row = Row(fault=f"after kill -9: {what}, SQLite")
    with _under_load(folder, options) as (server, load, store, older):
        load.let_go()
        time.sleep(0.2)
        server.kill()
        row.acknowledged = load.acknowledged()
        touch(store, older)
        server.start()
        code = server.process.wait(PATIENCE_S)
        found = re.search(r"acknowledged events are missing: ([^.]*)", server.log.read_text())
    row.seen = f"the start is refused (exit code {code}): {found.group(1) if found else 'no offsets named'}"
    if code != 1 or found is None:
        row.broken.append(row.seen)
    return row


def _back_up(server: Server, copy: Path) -> None:
    command = [sys.executable, "-m", "service", "backup", str(copy), "--store", server.store]
    subprocess.run(command, cwd=ROOT, env=server.environment, check=True, capture_output=True)


def _is_accepted(server: Server) -> bool:
    try:
        return server.ask("POST", "/v1/bandits/chance/decisions", {}).status == 201
    except (OSError, http.client.HTTPException):
        return False


def _seconds_until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not condition() and time.monotonic() - began < 2 * NOTICED_S:
        time.sleep(0.01)
    return time.monotonic() - began
