"""Commands on a store without a server: digest, export, back up. A running server is not disturbed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from service.engine import events
from service.engine.learner import Learner
from service.settings import Settings
from service.storage.base import Log, Storage, StorageUnavailableError

PAGE = 500


class Digest(NamedTuple):
    """The folded state of one bandit, replayed from its first event."""

    bandit: str
    offset: int
    sha256: str
    snapshot_agrees: bool


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Storage]:
    """The store, for reading; other processes may be serving it."""
    storage = settings.open_storage_to_read()
    await storage.start()
    try:
        yield storage
    finally:
        await storage.close()


async def chosen(storage: Storage, bandit: str | None) -> list[Log]:
    """The log of a bandit, or all of them; `StorageUnavailableError` where there is none of this name."""
    logs = await storage.logs()
    found = [log for log in logs if bandit is None or log.name == bandit]
    if bandit is not None and not found:
        raise StorageUnavailableError(
            f"there is no bandit {bandit!r}; the store has {', '.join(log.name for log in logs) or 'none'}"
        )
    return found


def _shown(progress: Progress, task: TaskID) -> Callable[[int], None]:
    def show(offset: int) -> None:
        progress.update(task, completed=offset)

    return show


async def digests(settings: Settings, bandit: str | None, *, quiet: bool) -> list[Digest]:
    """Replay from zero, and from the newest snapshot; both must agree."""
    torch.set_num_threads(1)  # as in the server: the same sums in the same order
    found = []
    async with reading(settings) as storage:
        for log in await chosen(storage, bandit):
            resumed = await Learner.load(storage, log, snapshot_every=0)
            end = resumed.versions.committed.offset  # a running server appends meanwhile: both are compared as of one offset
            with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
                task = progress.add_task(f"replaying {log.name}", total=end)
                each = _shown(progress, task)
                replayed = await Learner.load(storage, log, use_snapshots=False, snapshot_every=0, until=end, each=each)
            offset, sha256 = replayed.digest()
            found.append(Digest(log.name, offset, sha256, resumed.digest() == (offset, sha256)))
    return found


async def export(settings: Settings, bandit: str, out: BinaryIO, *, quiet: bool) -> int:
    """Write every event as a line of JSON with its offset; how many were written."""
    async with reading(settings) as storage:
        (log,) = await chosen(storage, bandit)
        with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
            task = progress.add_task(f"exporting {bandit}", total=None)
            offset = 0
            while entries := await storage.read(log, after=offset, limit=PAGE):
                for entry in entries:
                    out.write(events.line(entry.offset, entry.payload))
                offset = entries[-1].offset
                progress.update(task, completed=offset)
                await asyncio.sleep(0)
    return offset


def check_free(destination: Path, *, force: bool) -> None:
    """`StorageUnavailableError` where a file would be overwritten without `force`."""
    if not force and (destination.exists() or destination.is_symlink()):
        raise StorageUnavailableError(f"{destination} exists; name another file, or give --force to replace it")


def backup(settings: Settings, destination: Path, *, force: bool = False) -> None:
    """A consistent copy, checked, under its final name only when it is complete. force: another file of that name is replaced."""
    source = settings.sqlite_path()
    if not source.is_file():
        raise StorageUnavailableError(f"{source}: there is no such store")
    if destination.resolve() == source.resolve():
        raise StorageUnavailableError(f"{destination}: this is the store itself; name another file")
    check_free(destination, force=force)
    partial = destination.with_name(destination.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reading_from,
            closing(sqlite3.connect(partial)) as writing_to,
        ):
            reading_from.backup(writing_to)
            found = writing_to.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise StorageUnavailableError(f"{partial}: {found}")
        partial.replace(destination)
    except (sqlite3.Error, OSError) as error:
        raise StorageUnavailableError(f"{destination}: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
