"""Where commands find a log; digest, export and back up on a store without a server. A running server is not disturbed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from service.engine import events
from service.engine.learner import Learner
from service.settings import Settings
from service.storage.base import PAGE, Log, Storage, StorageDamagedError, StorageUnavailableError, pages


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


class Source(NamedTuple):
    """A log to read: of the bandit `name` in a store or on a running service, or the exported file `name`.

    settings: of the store.  url, api_key: of the service.  Neither = it is a file.
    """

    name: str
    settings: Settings | None = None
    url: str = ""
    api_key: str = ""

    def entries(self) -> AsyncGenerator[tuple[int, bytes]]:
        """(offset, payload) of every entry. Payloads from a service or a file begin with the offset."""
        if self.url:
            return self._served()
        return self._exported(Path(self.name)) if self.settings is None else self._stored(self.settings)

    async def _stored(self, settings: Settings) -> AsyncGenerator[tuple[int, bytes]]:
        async with reading(settings) as storage:
            (log,) = await chosen(storage, self.name)
            async for entries in pages(storage, log):
                for entry in entries:
                    yield entry.offset, entry.payload

    async def _exported(self, path: Path) -> AsyncGenerator[tuple[int, bytes]]:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    raise StorageDamagedError(f"{path}, line {number}", "the line is torn: the export was cut off; export again")
                yield number, line

    async def _served(self) -> AsyncGenerator[tuple[int, bytes]]:
        import httpx2

        address = f"{self.url.rstrip('/')}/v1/bandits/{quote(self.name, safe='')}/log"
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            async with (
                httpx2.AsyncClient(timeout=httpx2.Timeout(120.0, connect=10.0), headers=headers) as client,
                client.stream("GET", address) as response,
            ):
                if not response.is_success:
                    said = (await response.aread()).decode(errors="replace")
                    raise StorageUnavailableError(f"{address}: {response.status_code} {said[:300]}")
                number, rest = 0, b""
                async for chunk in response.aiter_bytes():  # not by lines of text: a name may hold U+2028, which ends one there
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        number += 1
                        yield number, line
        except httpx2.HTTPError as error:
            raise StorageUnavailableError(f"{address}: {error or type(error).__name__}") from None


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
            await resumed.projection.wait_for_shadows()
            end = resumed.versions.committed.offset  # a running server appends meanwhile: both are compared as of one offset
            with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
                task = progress.add_task(f"replaying {log.name}", total=end)
                each = _shown(progress, task)
                replayed = await Learner.load(storage, log, use_snapshots=False, snapshot_every=0, until=end, each=each)
            await replayed.projection.wait_for_shadows()
            offset, sha256 = replayed.digest()
            found.append(Digest(log.name, offset, sha256, resumed.digest() == (offset, sha256)))
    return found


async def export(settings: Settings, bandit: str, out: BinaryIO, *, quiet: bool) -> int:
    """Write every event as a line of JSON with its offset; how many were written."""
    offset = 0
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(f"exporting {bandit}", total=None)
        async with aclosing(Source(bandit, settings).entries()) as entries:
            async for offset, payload in entries:
                out.write(events.line(offset, payload))
                if offset % PAGE == 0:
                    progress.update(task, completed=offset)
                    await asyncio.sleep(0)
    return offset


def check_free(destination: Path, *, force: bool) -> None:
    """`StorageUnavailableError` where a file would be overwritten without `force`."""
    if not force and (destination.exists() or destination.is_symlink()):
        raise StorageUnavailableError(f"{destination} exists; name another file, or give --force to replace it")


def backup(settings: Settings, destination: Path, *, force: bool = False) -> None:
    """A consistent copy, checked, under its final name only when it is complete. force: another file of that name is replaced."""
    source = settings.present_sqlite_path()
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
