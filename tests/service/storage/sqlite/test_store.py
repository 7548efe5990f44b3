"""The embedded storage under damage, a full disk and failing writes; what it flushes, and what it commits together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from service.storage.base import (
    Durability,
    Entry,
    Log,
    LogDamagedError,
    LogNotFoundError,
    Receipt,
    StorageDamagedError,
    StorageError,
    StorageLockedError,
    StorageUnavailableError,
)
from service.storage.sqlite import acknowledged
from service.storage.sqlite import writer as sqlite_writer
from service.storage.sqlite.connection import SCHEMA_VERSION
from service.storage.sqlite.store import SqliteStorage

POWER, PROCESS = Durability.POWER, Durability.PROCESS
PATIENCE_S = 20
"""A test that would wait for ever fails after this."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@contextlib.asynccontextmanager
async def opened(path: Path, *, durability: Durability = POWER, read_only: bool = False) -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(path, durability=durability, read_only=read_only)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.close()


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SqliteStorage]:
    async with opened(path) as storage:
        yield storage


async def filled(storage: SqliteStorage, *, name: str = "greeter", entries: int = 12, size: int = 40) -> Log:
    log, _ = await storage.create(Log(f"id of {name}", name), b"created")
    for number in range(2, entries + 1):
        await storage.append(log, f"key {number}", b"%d " % number + b"." * size, PROCESS)
    return log


async def everything(storage: SqliteStorage, log: Log) -> list[Entry]:
    return await storage.read(log, after=0, limit=1_000_000)


def change(path: Path, statement: str, *values: object) -> None:
    """As an accident would, behind the back of the service."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


# -- one process ------------------------------------------------------------------------------------------------------------


async def test_a_second_store_on_the_same_file_is_refused_with_the_reason(path: Path, storage: SqliteStorage) -> None:
    (path.parent / "link.db").symlink_to(path)
    for name in (path, path.parent / "link.db", path.parent / "." / ".." / path.parent.name / path.name):
        with pytest.raises(StorageLockedError, match="served by another process"):
            await SqliteStorage(name).start()
    log = await filled(storage)
    assert len(await everything(storage, log)) == 12, "the first one is not disturbed"


async def test_a_store_can_be_opened_again_after_a_clean_end_and_after_a_failed_start(path: Path) -> None:
    path.write_bytes(b"this is no database " * 100)
    with pytest.raises(StorageDamagedError):
        await SqliteStorage(path).start()
    path.unlink()
    for _ in range(2):
        async with opened(path):
            pass


async def test_a_store_that_cannot_be_created_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.db").mkdir()
    for name, reason in (("file/store.db", "File exists"), ("folder.db", "I/O error|unable to open")):
        with pytest.raises(StorageUnavailableError, match=reason):
            await SqliteStorage(tmp_path / name).start()


async def test_reading_beside_the_writer_sees_what_is_committed_and_writes_nothing(path: Path, storage: SqliteStorage) -> None:
    log = await filled(storage)
    async with opened(path, read_only=True) as reading:
        assert await reading.logs() == [log]
        assert await everything(reading, log) == await everything(storage, log)
        await storage.append(log, "later", b"x", POWER)
        assert (await everything(reading, log))[-1] == Entry(13, b"x")
        assert await reading.find(log, "later") == Entry(13, b"x")
        with pytest.raises(StorageUnavailableError, match="reading only"):
            await reading.append(log, "key", b"x", POWER)
    assert await storage.append(log, "after", b"x", POWER) == Receipt(14)


async def test_a_store_left_by_a_killed_process_can_be_read_without_serving_it(path: Path, storage: SqliteStorage) -> None:
    log = await filled(storage)
    image = crash_image(path, path.parent / "image")
    async with opened(image, read_only=True) as reading:
        assert len(await everything(reading, log)) == 12


async def test_reading_a_file_that_is_no_store_says_so(path: Path) -> None:
    path.write_bytes(b"this is no database " * 100)
    with pytest.raises(StorageDamagedError, match="not a database"):
        await SqliteStorage(path, read_only=True).start()
    with pytest.raises(StorageUnavailableError, match="unable to open"):
        await SqliteStorage(path.with_name("none.db"), read_only=True).start()


async def test_nothing_waits_for_ever_while_the_store_closes(path: Path) -> None:
    storage = SqliteStorage(path)
    await storage.start()
    log = await filled(storage)

    async def late(number: int) -> Receipt:
        for _ in range(number):
            await asyncio.sleep(0)
        return await storage.append(log, f"late {number}", b"x", POWER)

    tasks = [asyncio.create_task(late(number)) for number in range(60)]
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.sleep(0)
        await storage.close()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, Receipt | StorageUnavailableError) for answer in answers)
    accepted = [answer for answer in answers if isinstance(answer, Receipt)]
    assert any(isinstance(answer, StorageUnavailableError) for answer in answers)
    with pytest.raises(StorageUnavailableError, match="closed"):
        await storage.ping()
    async with opened(path) as again:
        assert len(await everything(again, log)) == 12 + len(accepted)


# -- damage -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"this is no database " * 300, b"SQLite format 3\x00" + b"\xff" * 8000, b"\x00" * 4096],
    ids=["text", "header", "0"],
)
async def test_a_file_that_is_no_database_is_refused_with_its_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StorageDamagedError, match="store"):
        await SqliteStorage(path).start()
    assert path.read_bytes() == content, "a file that is refused is left as it is"


async def test_a_store_of_a_newer_build_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    for read_only in (False, True):
        with pytest.raises(StorageDamagedError, match=f"version {SCHEMA_VERSION + 1}, this build reads up to {SCHEMA_VERSION}"):
            await SqliteStorage(path, read_only=read_only).start()


@pytest.mark.parametrize("version", [1, 2])
async def test_a_store_of_an_earlier_version_gets_its_tables(path: Path, version: int) -> None:
    async with opened(path) as storage:
        log = await filled(storage)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"DROP TABLE trimmed; DROP TABLE trimmed_keys; PRAGMA user_version={version}")
        if version == 1:
            connection.execute("DROP TABLE records")
    async with opened(path, read_only=True) as storage:
        assert len(await everything(storage, log)) == 12, "it can be read as it is"
        assert await storage.find(log, "no key") is None
    async with opened(path) as storage:
        assert await storage.swap_record(log, "a", b"one", expected=None)
        assert len(await everything(storage, log)) == 12
    async with opened(path) as storage:
        assert await storage.records(log) == {"a": b"one"}


@pytest.mark.parametrize("table", ["events", "logs", "snapshots", "records", "trimmed", "trimmed_keys"])
async def test_a_table_that_is_missing_is_damage_and_not_a_new_store(path: Path, table: str) -> None:
    async with opened(path) as storage:
        await filled(storage)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO other")
    with pytest.raises(StorageDamagedError, match="tables"):
        await SqliteStorage(path).start()


async def test_a_payload_that_changed_is_named_and_nothing_behind_it_is_read(path: Path) -> None:
    async with opened(path) as storage:
        log, other = await filled(storage), await filled(storage, name="other")
    change(path, "UPDATE events SET payload = CAST('5 ,' AS BLOB) WHERE key = 'key 5' AND log = 1")
    async with opened(path) as storage:
        with pytest.raises(StorageDamagedError, match=r"log 'greeter', offset 5: the checksum"):
            await everything(storage, log)
        assert len(await storage.read(log, after=0, limit=4)) == 4
        assert len(await storage.read(log, after=5, limit=100)) == 7
        assert len(await everything(storage, other)) == 12, "another log is not harmed"
        for asked in (storage.find(log, "key 5"), storage.append(log, "key 5", b"x", POWER)):
            with pytest.raises(StorageDamagedError, match=r"log 'greeter', offset 5"):
                await asked
        assert (await storage.append(log, "key 4", b"x", POWER)).offset == 4


async def test_an_entry_that_is_missing_is_named(path: Path) -> None:
    async with opened(path) as storage:
        log = await filled(storage)
    change(path, "DELETE FROM events WHERE key = 'key 5'")
    async with opened(path) as storage:
        with pytest.raises(StorageDamagedError, match=r"log 'greeter', offset 5: the entry is missing"):
            await everything(storage, log)
    change(path, "DELETE FROM events WHERE key = 'created'")
    async with opened(path) as storage:
        with pytest.raises(StorageDamagedError, match="greeter"):
            await storage.create(Log("new", "greeter"), b"created")


async def test_a_snapshot_that_changed_is_left_out(path: Path) -> None:
    async with opened(path) as storage:
        log = await filled(storage)
        await storage.save_snapshot(log, 4, b"as of 4")
        await storage.save_snapshot(log, 8, b"as of 8")
    change(path, "UPDATE snapshots SET blob = CAST('as of 9' AS BLOB) WHERE \"offset\" = 8")
    async with opened(path) as storage:
        assert await storage.load_snapshots(log) == [(4, b"as of 4")]


async def test_no_flipped_byte_of_the_file_is_read_as_something_else(path: Path) -> None:
    async with opened(path) as storage:
        logs = [await filled(storage, name=name, entries=25, size=150) for name in ("greeter", "other")]
        await storage.save_snapshot(logs[0], 20, b"snapshot " * 600)
        kept = {log.name: await everything(storage, log) for log in logs}
    whole = path.read_bytes()
    refused = named = unharmed = 0
    for position in range(0, len(whole), 211):
        garbled = bytearray(whole)
        garbled[position] ^= 0x35
        path.write_bytes(garbled)
        try:
            async with opened(path) as storage:
                assert await storage.logs() == logs
                assert await storage.load_snapshots(logs[0]) in ([], [(20, b"snapshot " * 600)])
                for log in logs:
                    try:
                        assert await everything(storage, log) == kept[log.name], f"byte {position}"
                        unharmed += 1
                    except StorageDamagedError as error:
                        assert f"log {log.name!r}, offset" in str(error)  # noqa: PT017 (the other ending is fine, too)
                        named += 1
        except (StorageDamagedError, StorageUnavailableError) as error:
            assert "store.db" in str(error)  # noqa: PT017
            refused += 1
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
    assert min(refused, named, unharmed) > 5, "this test must see all three endings"


async def test_no_truncated_file_is_taken_for_a_whole_one(path: Path) -> None:
    async with opened(path) as storage:
        log = await filled(storage, entries=60, size=300)
        kept = await everything(storage, log)
    whole = path.read_bytes()
    for size in [*range(1, 4096, 500), *range(4096, len(whole), 1024)]:
        path.write_bytes(whole[:size])
        with pytest.raises(StorageError) as refused:
            async with opened(path) as storage:
                assert await everything(storage, log) == kept
        assert "store.db" in str(refused.value) or "greeter" in str(refused.value)


# -- a crash ----------------------------------------------------------------------------------------------------------------


def crash_image(path: Path, folder: Path) -> Path:
    """The files as a process that is killed right now leaves them."""
    folder.mkdir(exist_ok=True)
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(path.with_name(name), folder / name)
    (folder / f"{path.name}-shm").unlink(missing_ok=True)
    return folder / path.name


class Crashed:
    """A store that was killed: its files, its acknowledged entries, and how far each reaches into the write-ahead log."""

    def __init__(self, image: Path, log: Log, entries: list[Entry], ends: list[int]) -> None:
        self.image, self.log, self.entries, self.ends = image, log, entries, ends
        self.wal = image.with_name(image.name + "-wal")
        self._database, self.tail = image.read_bytes(), self.wal.read_bytes()

    def restore(self, tail: bytes) -> None:
        self.image.write_bytes(self._database)
        self.wal.write_bytes(tail)
        for leftover in ("-shm", "-acknowledged"):
            self.image.with_name(self.image.name + leftover).unlink(missing_ok=True)

    def acknowledged_before(self, position: int) -> int:
        return sum(end <= position for end in self.ends)


@pytest.fixture
async def crashed(path: Path, storage: SqliteStorage) -> Crashed:
    log = await filled(storage, entries=1)
    wal = path.with_name(path.name + "-wal")
    ends = [wal.stat().st_size]
    for number in range(2, 21):
        await storage.append(log, f"key {number}", b"%d " % number + b"." * (137 * number), (POWER, PROCESS)[number % 2])
        ends.append(wal.stat().st_size)
    return Crashed(crash_image(path, path.parent / "image"), log, await everything(storage, log), ends)


async def test_a_killed_process_loses_nothing(crashed: Crashed) -> None:
    async with opened(crashed.image) as storage:
        assert await everything(storage, crashed.log) == crashed.entries


async def test_a_torn_tail_is_dropped_and_every_entry_before_it_survives(crashed: Crashed) -> None:
    for cut in [*range(0, crashed.ends[0], 2111), *range(crashed.ends[-3], len(crashed.tail), 311)]:
        crashed.restore(crashed.tail[:cut])
        survive = crashed.acknowledged_before(cut)
        if survive == 0:  # not even the log's first entry
            async with opened(crashed.image) as storage:
                assert await storage.logs() == []
            continue
        async with opened(crashed.image) as storage:
            assert await everything(storage, crashed.log) == crashed.entries[:survive], f"cut at {cut}"
            assert await storage.append(crashed.log, "next", b"x", POWER) == Receipt(survive + 1)
        async with opened(crashed.image) as storage:
            assert len(await everything(storage, crashed.log)) == survive + 1


async def test_damage_inside_the_tail_never_drops_what_stands_behind_it(crashed: Crashed) -> None:
    last = crashed.ends[-2]
    refused = dropped = 0
    for position in [*range(0, 32, 5), *range(33, last, 3001), *range(last, len(crashed.tail), 311), len(crashed.tail) - 4100]:
        tail = bytearray(crashed.tail)
        tail[position] ^= 0x35
        crashed.restore(bytes(tail))
        try:
            async with opened(crashed.image) as storage:
                read = await everything(storage, crashed.log)
        except StorageDamagedError as error:
            assert f"{crashed.wal}, byte" in str(error)  # noqa: PT017 (the other ending is fine at the very end)
            assert crashed.wal.read_bytes() == bytes(tail), "what is refused is left as it is"
            refused += 1
            continue
        assert position >= last, f"byte {position} was damaged, {len(crashed.entries) - len(read)} later entries are gone"
        assert read == crashed.entries[: crashed.acknowledged_before(position)]
        dropped += 1
    assert min(refused, dropped) > 3, "this test must see both endings"


async def test_frames_of_an_earlier_round_of_the_tail_are_no_damage(path: Path, storage: SqliteStorage) -> None:
    log = await filled(storage, entries=40, size=2000)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
    for number in range(3):
        await storage.append(log, f"new {number}", b"x" * 3000, POWER)
    image = crash_image(path, path.parent / "image")
    async with opened(image) as again:
        assert await everything(again, log) == await everything(storage, log)


async def test_a_database_that_became_empty_beside_its_tail_is_not_a_new_store(crashed: Crashed) -> None:
    crashed.restore(crashed.tail)
    crashed.image.write_bytes(b"")
    with pytest.raises(StorageDamagedError, match="empty"):
        await SqliteStorage(crashed.image).start()


# -- failing writes ---------------------------------------------------------------------------------------------------------


async def on_the_writer(storage: SqliteStorage, statement: str) -> int:
    """Run a statement on the writer's own connection."""
    found: list[tuple[int]] = await storage._submit(lambda connection: connection.execute(statement).fetchall(), PROCESS)
    return found[0][0] if found else 0


async def test_a_full_disk_refuses_everything_it_cannot_keep_and_recovers(path: Path, storage: SqliteStorage) -> None:
    log = await filled(storage)
    pages = await on_the_writer(storage, "PRAGMA page_count")
    await on_the_writer(storage, f"PRAGMA max_page_count={pages + 12}")

    async def one_by_one(client: int) -> list[Receipt | StorageError]:
        answers: list[Receipt | StorageError] = []
        for number in range(8):
            try:
                answers.append(await storage.append(log, f"{client}/{number}", b"." * 1700, (POWER, PROCESS)[client % 2]))
            except StorageError as error:
                answers.append(error)
        return answers

    answers = await asyncio.gather(*(one_by_one(client) for client in range(5)))
    refused = [error for given in answers for error in given if isinstance(error, StorageError)]
    accepted = [answer.offset for given in answers for answer in given if isinstance(answer, Receipt)]
    assert refused
    assert all(isinstance(error, StorageUnavailableError) and "full" in str(error) for error in refused)
    assert sorted(accepted) == list(range(13, 13 + len(accepted))), "a refused entry leaves no gap"
    for client, given in enumerate(answers):
        for number, answer in enumerate(given):
            entry = await storage.find(log, f"{client}/{number}")
            assert (entry is None) == isinstance(answer, StorageError)
    await on_the_writer(storage, f"PRAGMA max_page_count={pages + 1000}")
    await storage.ping()
    assert (await storage.append(log, "room again", b"." * 1700, POWER)).offset == 13 + len(accepted)
    async with opened(crash_image(path, path.parent / "image")) as again:
        assert len(await everything(again, log)) == 13 + len(accepted)


@contextlib.contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """A write behind `size` fails with EFBIG, an input/output error to SQLite."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_after_any_other_failed_write_the_store_is_read_only_until_a_restart(
    path: Path, storage: SqliteStorage, caplog: pytest.LogCaptureFixture
) -> None:
    log = await filled(storage)
    kept = await everything(storage, log)
    with no_file_grows_beyond(path.with_name(path.name + "-wal").stat().st_size):
        answers = await asyncio.gather(
            *(storage.append(log, f"lost {i}", b"." * 500, (POWER, PROCESS)[i % 2]) for i in range(6)), return_exceptions=True
        )
    assert all(isinstance(answer, StorageUnavailableError) for answer in answers)
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1, "loudly, and once"
    for asked in (storage.append(log, "later", b"x", POWER), storage.delete(log), storage.ping()):
        with pytest.raises(StorageUnavailableError, match="read-only until"):
            await asked
    assert await everything(storage, log) == kept, "it can still be read"
    await storage.close()
    async with opened(path) as again:
        assert await everything(again, log) == kept
        assert await again.append(log, "later", b"x", POWER) == Receipt(13)


async def test_a_store_that_another_program_locks_for_a_while_is_not_given_up(
    path: Path, storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await filled(storage)
    monkeypatch.setattr(sqlite_writer, "PATIENCE_MS", 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for asked in (
            storage.append(log, "now", b"x", POWER),
            storage.append(log, "at once", b"x", PROCESS),
            storage.delete(log),
        ):
            with pytest.raises(StorageUnavailableError, match="locked"):
                await asked
    assert len(await everything(storage, log)) == 12, "a delete that was refused has deleted nothing"
    assert await storage.append(log, "now", b"x", POWER) == Receipt(13)
    await storage.delete(log)
    with pytest.raises(LogNotFoundError):
        await everything(storage, log)


async def test_an_entry_that_cannot_be_written_harms_no_other(storage: SqliteStorage) -> None:
    log = await filled(storage)
    limit = 50_000
    await storage._submit(lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit), PROCESS)
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(
            storage.append(log, "first", b"x", POWER),
            storage.append(log, "\ud800", b"x", POWER),
            storage.save_snapshot(log, 12, b"." * 2 * limit),
            storage.append(log, "too long", b"." * 2 * limit, POWER),
            storage.append(log, "second", b"x", POWER),
            return_exceptions=True,
        )
    assert isinstance(answers[1], UnicodeEncodeError)
    assert isinstance(answers[2], StorageUnavailableError)
    assert isinstance(answers[3], StorageUnavailableError)
    assert {answers[0], answers[4]} == {Receipt(13), Receipt(14)}
    await storage.ping()
    assert await storage.append(log, "third", b"x", POWER) == Receipt(15)


# -- flushes and commits ----------------------------------------------------------------------------------------------------


class Trace:
    """The statements of the writer. Its thread can be held, so that what arrives meanwhile waits together."""

    def __init__(self, storage: SqliteStorage) -> None:
        self._storage = storage
        self.statements: list[str] = []

    async def start(self) -> None:
        await self._storage._submit(lambda connection: connection.set_trace_callback(self.statements.append), PROCESS)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        entered, go_on = threading.Event(), threading.Event()

        def wait(connection: sqlite3.Connection) -> None:
            entered.set()
            go_on.wait(PATIENCE_S)

        waiting = asyncio.create_task(self._storage._submit(wait, PROCESS))
        await asyncio.to_thread(entered.wait, PATIENCE_S)
        yield
        self.statements.clear()
        go_on.set()
        await waiting

    def commits(self) -> list[str]:
        """Per commit how it was flushed."""
        found, level = [], ""
        for statement in self.statements:
            if statement.startswith("PRAGMA synchronous="):
                level = statement.removeprefix("PRAGMA synchronous=")
            elif statement == "COMMIT":
                found.append(level)
        return found


async def test_what_waits_together_is_committed_together(storage: SqliteStorage) -> None:
    log, trace = await filled(storage), Trace(storage)
    await trace.start()
    async with trace.held():
        tasks = [asyncio.create_task(storage.append(log, f"k{i}", b"x", POWER)) for i in range(64)]
        await asyncio.sleep(0)
    receipts = await asyncio.gather(*tasks)
    assert [receipt.offset for receipt in receipts] == list(range(13, 77))
    assert trace.commits() == ["", "FULL"], "the commit of what held it, and one for all 64"


async def test_what_needs_no_flush_does_not_wait_for_one(storage: SqliteStorage) -> None:
    log, trace = await filled(storage), Trace(storage)
    await trace.start()
    async with trace.held():
        tasks = [asyncio.create_task(storage.append(log, f"k{i}", b"x", (POWER, PROCESS)[i % 2])) for i in range(10)]
        await asyncio.sleep(0)
    offsets = [receipt.offset for receipt in await asyncio.gather(*tasks)]
    assert trace.commits() == ["", "NORMAL", "FULL"]
    assert sorted(offsets[1::2]) == list(range(13, 18))
    assert sorted(offsets[::2]) == list(range(18, 23))


async def test_what_needs_no_flush_is_committed_at_once_where_nothing_waits(storage: SqliteStorage) -> None:
    log, trace = await filled(storage), Trace(storage)
    await trace.start()
    appending = storage.append(log, "at once", b"x", PROCESS)
    with pytest.raises(StopIteration) as done:
        appending.send(None)  # the event loop does not turn, and it is done
    assert done.value.value == Receipt(13)
    async with trace.held():
        later = asyncio.create_task(storage.append(log, "behind the thread", b"x", PROCESS))
        await asyncio.sleep(0)
        assert not later.done()
    assert await later == Receipt(14)
    assert await storage.append(log, "large", b"x" * sqlite_writer.AT_ONCE_BYTES + b"x", PROCESS) == Receipt(15)


async def test_who_commits_at_once_does_not_wait_for_another_program(path: Path, storage: SqliteStorage) -> None:
    log = await filled(storage)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(storage.append(log, "later", b"x", PROCESS))
        await asyncio.sleep(0)
        assert not waiting.done(), "it waits in the thread, and the event loop turns"
        other.execute("ROLLBACK")
    assert await waiting == Receipt(13)


async def test_the_write_ahead_log_is_moved_into_the_file_now_and_then(path: Path, storage: SqliteStorage) -> None:
    """It is written from its beginning again once all of it was moved: it does not grow with the entries."""
    log = await filled(storage)
    commits = 3 * sqlite_writer.CHECKPOINT_COMMITS
    for number in range(commits):
        await storage.append(log, f"n{number}", b"." * 900, PROCESS)
    await storage.append(log, "flushed", b"x", POWER)  # behind every checkpoint that was asked for
    grown = path.with_name(path.name + "-wal").stat().st_size
    assert grown < 2 * sqlite_writer.CHECKPOINT_COMMITS * 4 * 4200
    assert path.stat().st_size > commits * 900 / 2


@pytest.mark.parametrize(("setting", "asked", "level"), [(POWER, POWER, 2), (POWER, PROCESS, 1), (PROCESS, POWER, 1)])
async def test_an_entry_is_flushed_as_asked_but_never_more_than_set(
    path: Path, setting: Durability, asked: Durability, level: int
) -> None:
    async with opened(path, durability=setting) as storage:
        log, trace = await filled(storage), Trace(storage)
        await trace.start()
        trace.statements.clear()
        await storage.append(log, "key", b"x", asked)
        assert trace.commits() == [{1: "NORMAL", 2: "FULL"}[level]]
        in_force = await storage._submit(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0], asked)
        assert in_force == level


# -- touched by another program ---------------------------------------------------------------------------------------------


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def older_copy(path: Path) -> Path:
    """A consistent copy of what the store holds now, as `nextarm backup` makes it."""
    copy = path.with_name("older.db")
    with contextlib.closing(sqlite3.connect(path)) as here, contextlib.closing(sqlite3.connect(copy)) as there:
        here.backup(there)
    return copy


def overwrite(path: Path, content: bytes) -> None:
    """In place, as cp does: the inode stays."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


TOUCHES: dict[str, Callable[[Path, Path], object]] = {
    "the file is removed": lambda path, copy: path.unlink(),
    "an older copy is moved over the file": lambda path, copy: copy.replace(path),
    "an older copy is written into the file": lambda path, copy: overwrite(path, copy.read_bytes()),
    "the file is emptied": lambda path, copy: overwrite(path, b""),
    "the file is cut": lambda path, copy: overwrite(path, path.read_bytes()[: path.stat().st_size // 2]),
    "the write-ahead log is removed": lambda path, copy: beside(path, "-wal").unlink(),
    "the write-ahead log is emptied": lambda path, copy: overwrite(beside(path, "-wal"), b""),
    "the write-ahead log is cut": lambda path, copy: overwrite(
        beside(path, "-wal"), beside(path, "-wal").read_bytes()[: 32 + 2 * 4120]
    ),
    "the lock file is removed": lambda path, copy: beside(path, ".lock").unlink(),
    "the folder is renamed": lambda path, copy: path.parent.rename(path.parent.with_name("renamed")),
}
"""Each changes what a restart would find."""


@pytest.fixture
async def touched(tmp_path: Path) -> AsyncIterator[tuple[SqliteStorage, Log, Path, Path]]:
    """A served store with entries in the file, others in the write-ahead log alone, and a copy from before the last ones."""
    folder = tmp_path / "served"
    folder.mkdir()
    path = folder / "store.db"
    async with opened(path) as storage:
        log = await filled(storage, entries=30, size=900)
        copy = tmp_path / "older.db"
        older_copy(path).replace(copy)
        for number in range(30):
            await storage.append(log, f"newer {number}", b"." * 900, PROCESS)
        assert storage._writer is not None
        await storage._submit(lambda connection: None, POWER)
        await asyncio.to_thread(checkpoint, storage)
        for number in range(12):
            await storage.append(log, f"newest {number}", b"." * 900, (POWER, PROCESS)[number % 2])
        yield storage, log, path, copy


def checkpoint(storage: SqliteStorage) -> None:
    assert storage._writer is not None
    with storage._writer._write_lock:
        storage._writer._checkpoint()


@pytest.mark.parametrize("touch", sorted(TOUCHES))
@pytest.mark.parametrize("durability", [PROCESS, POWER], ids=["process", "power"])
async def test_nothing_is_acknowledged_once_the_files_were_touched(
    touched: tuple[SqliteStorage, Log, Path, Path], touch: str, durability: Durability, caplog: pytest.LogCaptureFixture
) -> None:
    storage, log, path, copy = touched
    TOUCHES[touch](path, copy)
    for number in range(3):
        with pytest.raises(StorageError):
            await storage.append(log, f"after {number}", b"x", durability)
    found = await storage.inspect([log])
    assert set(found) == {log.name}
    assert "until the service is started again" in str(found[log.name])
    with pytest.raises(LogDamagedError):
        await storage.append(log, "later", b"x", durability)
    with pytest.raises(LogDamagedError):
        await storage.ping()
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1, "loudly, and once"


@pytest.mark.parametrize("touch", sorted({*TOUCHES, "the index of the write-ahead log is removed", "the record is removed"}))
async def test_a_store_that_is_idle_notices_with_the_next_sweep(
    touched: tuple[SqliteStorage, Log, Path, Path], touch: str
) -> None:
    storage, log, path, copy = touched
    others = {"the index of the write-ahead log is removed": "-shm", "the record is removed": "-acknowledged"}
    if touch in others:
        beside(path, others[touch]).unlink()
    else:
        TOUCHES[touch](path, copy)
    assert set(await storage.inspect([log])) == {log.name}


async def test_a_file_that_a_restart_could_not_open_is_reported(path: Path, storage: SqliteStorage) -> None:
    await filled(storage)
    path.chmod(0)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)
        with pytest.raises(StorageUnavailableError, match="permissions"):
            await storage.ping()
    finally:
        os.seteuid(user)
    path.chmod(0o644)
    await storage.ping()


async def test_a_restored_file_is_left_as_it_is_by_a_server_that_stops(
    touched: tuple[SqliteStorage, Log, Path, Path],
) -> None:
    storage, _, path, copy = touched
    whole = copy.read_bytes()
    overwrite(path, whole)
    await storage.close()
    assert path.read_bytes() == whole


async def test_a_program_that_writes_properly_beside_the_server_stops_nothing(
    path: Path, storage: SqliteStorage, caplog: pytest.LogCaptureFixture
) -> None:
    log = await filled(storage)
    await storage.save_snapshot(log, 4, b"as of 4")
    with contextlib.closing(sqlite3.connect(path)) as other:
        with other:
            other.execute("DELETE FROM snapshots")
        assert await storage.append(log, "next", b"x", PROCESS) == Receipt(13)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert await storage.inspect([log]) == {}
        assert await storage.append(log, "after", b"x", PROCESS) == Receipt(14)
    assert await storage.append(log, "more", b"x", POWER) == Receipt(15)
    assert {record.levelname for record in caplog.records} == {"WARNING"}


# -- what was acknowledged -------------------------------------------------------------------------------------------------


def killed(path: Path, folder: Path) -> Path:
    """The files as kill -9 leaves them, and what was acknowledged beside them."""
    image = crash_image(path, folder)
    shutil.copy(beside(path, "-acknowledged"), beside(image, "-acknowledged"))
    return image


@pytest.mark.parametrize("what", ["removed", "emptied", "cut by a frame", "behind a checkpoint", "all removed"])
async def test_a_start_without_the_end_that_was_acknowledged_is_refused_with_what_is_missing(
    path: Path, storage: SqliteStorage, what: str
) -> None:
    log = await filled(storage, entries=20)
    if what == "behind a checkpoint":
        await asyncio.to_thread(checkpoint, storage)
        await storage.append(log, "last", b"x", PROCESS)
    image = killed(path, path.parent / "image")
    tail = beside(image, "-wal")
    if what == "cut by a frame":
        tail.write_bytes(tail.read_bytes()[: tail.stat().st_size - 4120])
    elif what == "emptied":
        tail.write_bytes(b"")
    else:
        tail.unlink()
    if what == "all removed":
        image.unlink()
    left = {each.name: each.read_bytes() for each in image.parent.iterdir()}
    for _ in range(2):
        with pytest.raises(StorageDamagedError, match=r"acknowledged events are missing: log .* offsets .* to 2[01]") as refused:
            await SqliteStorage(image).start()
        assert "store.db-acknowledged" in str(refused.value)
    for name, content in left.items():
        assert (image.parent / name).read_bytes() == content, "what is refused is left as it is"
    beside(image, "-acknowledged").unlink()  # as the message says, for those who give them up
    async with opened(image) as again:
        assert len(await again.logs()) <= 1


async def test_a_start_on_an_older_copy_is_refused_with_the_offsets_that_it_lacks(path: Path) -> None:
    async with opened(path) as storage:
        log = await filled(storage)
        copy = older_copy(path)
        for number in range(5):
            await storage.append(log, f"newer {number}", b"x", POWER)
    copy.replace(path)
    with pytest.raises(StorageDamagedError, match=r"log 'greeter', offsets 13 to 17"):
        await SqliteStorage(path).start()


async def test_after_a_loss_of_power_only_what_was_flushed_is_asked_for(
    path: Path, storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await filled(storage)
    await storage.append(log, "flushed", b"x", POWER)
    image = crash_image(path, path.parent / "image")
    for number in range(5):
        await storage.append(log, f"not flushed {number}", b"x", PROCESS)
    shutil.copy(beside(path, "-acknowledged"), beside(image, "-acknowledged"))
    monkeypatch.setattr(acknowledged, "boot_id", lambda: "another boot")
    async with opened(image) as again:
        assert await again.append(log, "next", b"x", POWER) == Receipt(14)
    short = crash_image(path, path.parent / "short")
    shutil.copy(beside(path, "-acknowledged"), beside(short, "-acknowledged"))
    beside(short, "-wal").unlink()
    with pytest.raises(StorageDamagedError, match=r"offsets .* to 13"):
        await SqliteStorage(short).start()


async def test_a_log_that_was_deleted_is_not_missed(path: Path, storage: SqliteStorage) -> None:
    log, other = await filled(storage), await filled(storage, name="other")
    await storage.delete(log)
    new = await filled(storage, entries=2)
    async with opened(killed(path, path.parent / "image")) as again:
        assert sorted(each.name for each in await again.logs()) == [new.name, other.name]


@pytest.mark.parametrize("kept", [0, 5, 8, 30, 60, 64, 70, 88, 95])
@pytest.mark.parametrize("rest", ["missing", "zeros"])
async def test_a_record_that_a_crash_tore_is_no_reason_to_refuse_a_store(path: Path, kept: int, rest: str) -> None:
    async with opened(path) as storage:
        log = await filled(storage)
    record = beside(path, "-acknowledged")
    whole = record.read_bytes()
    assert len(whole) == 96, "a header and one slot"
    record.write_bytes(whole[:kept].ljust(0 if rest == "missing" else len(whole), b"\0"))
    async with opened(path) as storage:
        assert await storage.append(log, "next", b"x", POWER) == Receipt(13)
    async with opened(path) as storage:
        assert await storage.end(log) == 13


def another_header(whole: bytes) -> bytes:
    return whole[:20] + b"?" + whole[21:]


def another_slot(whole: bytes) -> bytes:
    return whole[:72] + b"?" + whole[73:]


@pytest.mark.parametrize("tail", ["as it was", "removed"])
@pytest.mark.parametrize("garble", [lambda _: b"junk\n", lambda _: b"garbage" * 40, another_header, another_slot])
async def test_a_start_with_a_record_that_no_crash_explains_is_refused_and_says_how_to_go_on(
    path: Path, storage: SqliteStorage, garble: Callable[[bytes], bytes], tail: str
) -> None:
    log = await filled(storage)
    image = killed(path, path.parent / "image")
    record = beside(image, "-acknowledged")
    record.write_bytes(garble(record.read_bytes()))
    if tail == "removed":
        beside(image, "-wal").unlink()
    left = {each.name: each.read_bytes() for each in image.parent.iterdir()}
    for _ in range(2):
        with pytest.raises(StorageDamagedError, match=r"garbled .* remove .*store.db-acknowledged and start again"):
            await SqliteStorage(image).start()
    for name, content in left.items():
        assert (image.parent / name).read_bytes() == content, "what is refused is left as it is"
    record.unlink()
    async with opened(image) as again:
        assert len(await again.logs()) == (0 if tail == "removed" else 1)
        assert tail == "removed" or await again.end(log) == 12


async def test_the_write_ahead_log_is_moved_by_its_size_and_by_its_age(
    path: Path, storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await filled(storage)
    assert await storage.inspect([log]) == {}
    before = path.stat().st_size
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_S", 0.0)
    assert await storage.inspect([log]) == {}
    await storage._submit(lambda connection: None, PROCESS)
    assert path.stat().st_size > before, "by its age"
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_S", 1e9)
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_BYTES", 200_000)
    for number in range(8):
        await storage.append(log, f"large {number}", b"." * 100_000, POWER)
    await storage._submit(lambda connection: None, POWER)
    assert path.stat().st_size > 600_000, "by its size"
