"""Trimming, over every storage: what goes, what stays, and that log and archive together are what the log was."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.storage.archive import Archive
from service.storage.base import (
    ArchiveGapError,
    Durability,
    Entry,
    EntryTrimmedError,
    Log,
    LogCompactedError,
    Receipt,
    Storage,
    StorageDamagedError,
    StorageUnavailableError,
)
from service.storage.sqlite.store import TRIM_BATCH, SqliteStorage
from tests.service.storages import Opener, started

END = 700
OLDER = 601
PROCESS = Durability.PROCESS


def payload(offset: int) -> bytes:
    return b'{"event":"e\xc3\xa9","n":%d}' % offset


def whole(first: int = 1, last: int = END) -> list[Entry]:
    """What the log held before anything was trimmed."""
    return [Entry(offset, payload(offset)) for offset in range(first, last + 1)]


@pytest.fixture
async def storage(opener: Opener) -> AsyncIterator[Storage]:
    async with started(opener) as storage:
        yield storage


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    (tmp_path / "archive").mkdir()
    return Archive(tmp_path / "archive")


async def a_log(storage: Storage, *, end: int = END) -> Log:
    log, _ = await storage.create(Log("an id", "team/greeter"), payload(1))
    await storage.append_all(log, [(f"key {each.offset}", each.payload) for each in whole(2, end)], PROCESS)
    return log


async def with_snapshots(storage: Storage, log: Log, *offsets: int) -> None:
    for offset in offsets:
        await storage.save_snapshot(log, offset, b"x")


def segments(archive: Archive) -> list[Path]:
    return sorted(path for path in archive.folder.rglob("*") if path.is_file())


async def test_a_snapshot_says_where_the_one_before_it_is(storage: Storage) -> None:
    log = await a_log(storage, end=9)
    assert await storage.save_snapshot(log, 3, b"x") == 0
    assert await storage.save_snapshot(log, 5, b"x") == 3
    assert await storage.save_snapshot(log, 9, b"x") == 5


async def test_nothing_is_trimmed_that_two_snapshots_do_not_cover(storage: Storage) -> None:
    log = await a_log(storage)
    assert await storage.trim(log, before=END, lasting=()) == 1
    await with_snapshots(storage, log, OLDER)
    assert await storage.trim(log, before=END, lasting=()) == 1
    assert await storage.read(log, after=0, limit=1_000) == whole()
    await with_snapshots(storage, log, 650)
    assert await storage.trim(log, before=END, lasting=()) == OLDER
    assert await storage.trim(log, before=300, lasting=()) == OLDER, "what is gone stays gone"


async def test_what_was_trimmed_is_named_and_the_rest_goes_on(opener: Opener) -> None:
    async with started(opener) as storage:
        log = await a_log(storage)
        await with_snapshots(storage, log, OLDER, 650)
        assert await storage.trim(log, before=400, lasting=()) == 400
        assert await storage.trim(log, before=END, lasting=()) == OLDER
    async with started(opener) as storage:
        for after, limit in ((0, 2), (0, 1_000), (1, 1), (599, 5), (599, 1)):
            with pytest.raises(LogCompactedError) as raised:
                await storage.read(log, after=after, limit=limit)
            assert (raised.value.name, raised.value.first) == (log.name, OLDER)
        assert await storage.read(log, after=0, limit=1) == whole(1, 1)
        assert await storage.read(log, after=OLDER - 1, limit=1_000) == whole(OLDER)
        assert await storage.load_snapshots(log) == [(650, b"x"), (OLDER, b"x")]
        assert await storage.end(log) == END
        assert await storage.append(log, "later", payload(0), PROCESS, expected=END) == Receipt(END + 1)
        assert await storage.find(log, f"key {OLDER}") == Entry(OLDER, payload(OLDER))
        assert await storage.inspect([log]) == {}


async def test_a_key_stays_taken_until_it_is_forgotten(opener: Opener) -> None:
    async with started(opener) as storage:
        log = await a_log(storage)
        await with_snapshots(storage, log, OLDER, 650)
        await storage.trim(log, before=END, lasting=[5, 300, 600])
    async with started(opener) as storage:
        entries = [("key 4", b"other"), ("new", payload(0)), ("key 5", b"other")]
        first, new, third = await storage.append_all(log, entries, PROCESS)
        assert (first.offset, first.is_trimmed, first.first) == (4, True, b"")
        assert new == Receipt(END + 1)
        assert (third.offset, third.is_trimmed) == (5, True)
        with pytest.raises(EntryTrimmedError) as raised:
            await storage.find(log, "key 4")
        assert raised.value.offset == 4
        assert await storage.trim(log, before=1, lasting=(), forget=550) == OLDER
        assert await storage.find(log, "key 4") is None
        for key in ("key 5", "key 300", "key 550", "key 600"):
            assert (await storage.append(log, key, b"other", PROCESS)).is_trimmed
        assert await storage.append(log, "key 4", payload(4), PROCESS) == Receipt(END + 2)
        assert await storage.append(log, "key 4", b"other", PROCESS) == Receipt(END + 2, payload(4))


async def test_a_log_that_is_created_again_knows_nothing_of_what_was_trimmed(storage: Storage) -> None:
    log = await a_log(storage, end=9)
    await with_snapshots(storage, log, 5, 7)
    await storage.trim(log, before=5, lasting=[3])
    await storage.delete(log)
    again, _ = await storage.create(Log("another", log.name), payload(1))
    assert await storage.append(again, "key 3", payload(2), PROCESS) == Receipt(2)
    assert await storage.read(again, after=0, limit=9) == whole(1, 2)


@pytest.mark.parametrize("pages", [(250, 250, 100), (600,)])
async def test_archive_and_log_are_what_the_log_was(opener: Opener, archive: Archive, pages: tuple[int, ...]) -> None:
    async with started(opener) as storage:
        log = await a_log(storage)
        await with_snapshots(storage, log, OLDER, 650)
        first = 1
        for count in pages:
            await archive.append(log, whole(first, first + count - 1))
            first += count
            await storage.trim(log, before=first, lasting=())
        storage.archive = Archive(archive.folder)  # type: ignore[misc]
        for after in (0, 1, 2, 249, 250, 251, 500, 598, 599, 600, 601, 699, 700):
            for limit in (1, 2, 200, 1_000):
                assert await storage.read(log, after=after, limit=limit) == whole()[after : after + limit], (after, limit)
        for offset in (2, 250, 600, 601):
            assert await storage.find(log, f"key {offset}") == Entry(offset, payload(offset))
        assert await storage.find(log, "no key") is None
    lines = b"".join(gzip.decompress(path.read_bytes()) for path in segments(archive)).splitlines()
    assert [json.loads(line) for line in lines] == [{"offset": n, "event": "eé", "n": n} for n in range(1, OLDER)]
    assert len(segments(archive)) == len(pages)


async def test_segments_that_overlap_are_read_exactly(archive: Archive) -> None:
    """Of two replicas, or of one that ended before it could trim."""
    log = Log("id", "b")
    for first, last in ((1, 40), (1, 60), (30, 90), (50, 80), (91, 100)):
        await archive.append(log, whole(first, last))
        await archive.append(log, whole(first, last))
    assert len(segments(archive)) == 5
    assert await archive.read(log, after=0, until=100, floor=101) == whole(1, 100)
    assert await archive.read(log, after=58, until=62, floor=101) == whole(59, 62)
    segments(archive)[1].write_bytes(b"torn")  # 1-60
    assert await Archive(archive.folder).read(log, after=0, until=35, floor=101) == whole(1, 35)


async def test_a_gap_is_named_by_its_offsets(archive: Archive) -> None:
    log = Log("id", "b")
    for first, last in ((1, 40), (50, 90)):
        await archive.append(log, whole(first, last))
    for after, until, missing, first in ((35, 60, 41, 50), (40, 41, 41, 50), (80, 95, 91, 101)):
        with pytest.raises(ArchiveGapError, match=f"entries {missing} to {first - 1} were trimmed") as raised:
            await archive.read(log, after=after, until=until, floor=101)
        assert (raised.value.missing, raised.value.first) == (missing, first)
    await archive.append(log, whole(41, 49))
    assert await archive.read(log, after=35, until=60, floor=101) == whole(36, 60)
    with pytest.raises(ArchiveGapError):
        await archive.read(Log("another id", "b"), after=0, until=1, floor=101)


ANOTHER = gzip.compress(b'{"offset":1,"n":1}\n', mtime=0)  # the time would be another in each process that collects the tests


@pytest.mark.parametrize("content", [b"", b"garbage", ANOTHER, "half"], ids=["empty", "garbage", "another", "half"])
async def test_a_damaged_segment_is_named_and_written_again(archive: Archive, content: bytes | str) -> None:
    log = Log("id", "b")
    await archive.append(log, whole(1, 40))
    (path,) = segments(archive)
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2] if isinstance(content, str) else content)
    with pytest.raises(StorageDamagedError) as raised:
        await Archive(archive.folder).read(log, after=0, until=9, floor=41)
    assert raised.value.place == str(path)
    await archive.append(log, whole(1, 40))
    assert path.read_bytes() == intact


async def test_an_archive_that_is_not_there_is_written_nowhere(archive: Archive) -> None:
    log = Log("id", "b")
    archive.folder.rmdir()
    with pytest.raises(StorageUnavailableError, match="create the folder, or mount it"):
        await archive.append(log, whole(1, 9))
    assert not archive.folder.exists()
    (notice,) = archive.notices()
    assert str(archive.folder) in notice
    assert "nothing is trimmed" in notice
    with pytest.raises(StorageUnavailableError):
        await archive.read(log, after=0, until=3, floor=9)
    archive.folder.mkdir()
    await archive.append(log, whole(1, 9))
    assert archive.notices() == []


async def test_a_full_disk_leaves_no_segment(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log("id", "b")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    await archive.append(log, whole(1, 9))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailableError, match="No space left on device"):
        await archive.append(log, whole(10, 20))
    assert len(segments(archive)) == 1
    monkeypatch.undo()
    await archive.append(log, whole(10, 20))
    assert await archive.read(log, after=0, until=20, floor=21) == whole(1, 20)


async def test_names_of_logs_do_not_leave_the_archive(archive: Archive) -> None:
    for name in ("..", "a/b", "a%2Fb", ".", "a/../b", "é"):
        await archive.append(Log("id", name), whole(1, 3))
    assert len({path.parent.parent.name for path in segments(archive)}) == 6
    assert all(path.parent.parent.parent == archive.folder for path in segments(archive))


KILLS = {
    "before the file is flushed": "os.fsync = die",
    "before it has its name": "Path.replace = die",
    "before the folder is flushed": "archive._flush_folder = lambda folder: die() if list(folder.glob('*.gz')) else None",
    "before it is read back": "archive._unpack = lambda segment: die() if segment.path.exists() else segment.path.read_bytes()",
    "before anything is trimmed": "SqliteStorage.trim = die",
    "in the middle of trimming": "Writer.submit = dying(Writer.submit, 2)",
}
"""Where a process ends that archives and trims, as Python that brings it about."""
DYING = """
import asyncio, os, signal, sys
from pathlib import Path
from service.storage import archive
from service.storage.base import Log
from service.storage.sqlite.store import SqliteStorage
from service.storage.sqlite.writer import Writer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(call, times):
    left = iter(range(times))
    return lambda *args, **options: die() if next(left, None) is None else call(*args, **options)

async def main(folder):
    storage, kept = SqliteStorage(folder / "store.db"), archive.Archive(folder / "archive")
    await storage.start()
    (log,) = await storage.logs()
    entries = await storage.read(log, after=0, limit=590)
    # HERE
    await kept.append(log, entries)
    await storage.trim(log, before=591, lasting=())

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("kill", sorted(KILLS))
async def test_nothing_is_lost_where_a_process_is_killed(tmp_path: Path, archive: Archive, kill: str) -> None:
    path = tmp_path / "store.db"
    async with started(lambda: SqliteStorage(path)) as storage:
        log = await a_log(storage)
        await with_snapshots(storage, log, OLDER, 650)
    ended = subprocess.run([sys.executable, "-c", DYING.replace("# HERE", KILLS[kill]), str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    async with started(lambda: SqliteStorage(path, archive=archive)) as storage:
        assert await storage.read(log, after=0, limit=1_000) == whole()
        floor = await storage.trim(log, before=1, lasting=())
        assert floor == (1 + 2 * TRIM_BATCH if kill == "in the middle of trimming" else 1)
        # the next one goes on from there, with what has come since
        await archive.append(log, await storage.read(log, after=floor - 1, limit=OLDER - floor))
        assert await storage.trim(log, before=END, lasting=()) == OLDER
        assert await storage.read(log, after=0, limit=1_000) == whole()
        assert await storage.find(log, "key 300") == Entry(300, payload(300))
    found: dict[int, bytes] = {}
    for segment in archive.folder.rglob("*.gz"):
        for line in gzip.decompress(segment.read_bytes()).splitlines():
            assert found.setdefault(json.loads(line)["offset"], line) == line
    assert sorted(found) == list(range(1, OLDER))
