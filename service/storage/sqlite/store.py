"""The embedded storage: one SQLite file, one connection that writes (writer.py), one process.

    append ──> Writer: BEGIN . insert everything that waits . COMMIT ──> receipts
                       (what arrives meanwhile waits for the next commit; there is no timer)

Decisions need process durability only: a commit without a flush survives kill -9. Outcomes need power durability: one flush
serves every outcome that waits. A write that failed was rolled back and not acknowledged. A full disk may be tried again;
after any other input/output error the state of the file is unknown, and the store stays read-only until the process is started
again. The same holds where another program removed, replaced or cut one of the files; and a start is refused if acknowledged
events are missing (acknowledged.py).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from service.storage.archive import Archive, read_entry, read_trimmed
from service.storage.base import (
    KEPT_SNAPSHOTS,
    Durability,
    Entry,
    Log,
    LogDamagedError,
    LogNotFoundError,
    Receipt,
    StorageConflictError,
    StorageDamagedError,
    StorageError,
    StorageLockedError,
    StorageUnavailableError,
)
from service.storage.notifier import Notifier
from service.storage.sqlite import wal
from service.storage.sqlite.acknowledged import AcknowledgedEnds, acknowledged_path, fingerprint, summarize
from service.storage.sqlite.connection import (
    SCHEMA_VERSION,
    check_schema,
    failure,
    is_new,
    open_read_only,
    open_reader,
    open_writer,
    schema_version,
)
from service.storage.sqlite.store_files import StoreFiles, lock_path
from service.storage.sqlite.writer import Run, Writer

logger = logging.getLogger("nextarm.storage")

T = TypeVar("T")

SHIFT = 40
TRIMS_SINCE = 3
"""Version of the schema from which on entries can be trimmed."""
OF_STORE = 0
"""What records of the store itself have in place of the number of a log."""
TAIL = 256
"""Entries per log kept in memory after their commit, so that folding what was just accepted reads no file."""
TRIM_BATCH = 64
"""Entries that one transaction trims, in about two milliseconds: the commits of requests come in between."""
ROOM_BYTES = 256 * 2**10
"""A disk that was full has room again from here on."""


class SqliteStorage:
    """Logs in one SQLite file, served by one process. path: the file; its folder is created.
    archive: where trimmed entries are.
    """

    shared = False

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = Durability.POWER,
        read_only: bool = False,
        archive: Archive | None = None,
    ) -> None:
        self.archive = archive
        self._path = path
        self._read_only = read_only
        self._max_durability = durability
        self._lock = FileLock(lock_path(path))
        self._writer: Writer | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="nextarm-reader")
        self._reading: sqlite3.Connection | None = None
        self._anchor: sqlite3.Connection | None = None  # read-only; where the files were touched it is closed last
        self._acknowledged: AcknowledgedEnds | None = None
        self._files: StoreFiles | None = None
        self._fingerprints: dict[int, int] = {}  # by number of the log
        self._grown: dict[int, tuple[int, int]] = {}  # number -> fingerprint, end; of the transaction under way
        self._ends: dict[int, int] = {}  # last offset per log number; the writer's own
        self._trimmed: set[int] = set()  # numbers of logs of which entries were trimmed; the writer's own
        self._numbers: dict[str, int] = {}  # log id -> number; the event loop's own
        self._tails: dict[int, dict[int, bytes]] = {}  # number -> offset -> payload, the last few
        self._notifier = Notifier()
        self._closed = False

    # -- life --------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._read_only:
            await self._start_reading()
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise StorageLockedError(
                f"{self._path} is served by another process; one process serves an SQLite store (Redis is for several)"
            ) from error
        except OSError as error:
            raise StorageUnavailableError(f"{self._path}: {error.strerror}") from error
        try:
            await asyncio.to_thread(self._check_acknowledged)
            writing = await asyncio.to_thread(open_writer, self._path)
            try:
                self._reading = await asyncio.get_running_loop().run_in_executor(self._reader, open_reader, self._path)
                await self._load_log_numbers()
                await asyncio.to_thread(self._begin, writing)
                assert self._files is not None
                self._writer = Writer(
                    self._path,
                    writing,
                    max_durability=self._max_durability,
                    on_rollback=self._on_rollback,
                    on_commit=self._on_commit,
                    files=self._files,
                    compare=self._missing_after_change,
                )
            except BaseException:
                writing.close()
                raise
        except OSError as error:
            await self.close()
            raise StorageUnavailableError(f"{error.filename or self._path}: {error.strerror}") from error
        except BaseException:
            await self.close()
            raise

    def _check_acknowledged(self) -> None:
        """Refuse a store that lacks what was acknowledged, before anything is written into it."""
        if damaged := wal.damage(self._path):
            place, reason = damaged.split(": ", 1)
            raise StorageDamagedError(place, f"{reason}; restore a backup")
        target = self._path.resolve()
        self._acknowledged = AcknowledgedEnds(acknowledged_path(target))
        is_empty = not target.exists() or (target.is_file() and not target.stat().st_size)
        if not is_empty:
            # As long as it is open, no other connection of this process moves the write-ahead log when it is closed; and it
            # cannot do so itself. So a store that is refused, now or later, is left as it is.
            self._anchor = open_read_only(self._path)
            if not self._acknowledged.existed:
                logger.warning("no record of what was acknowledged: missing events cannot be noticed at this start")
        try:
            if self._anchor is not None and not is_new(self._anchor):
                check_schema(self._path, self._anchor)
            missing = self._acknowledged.missing(self._anchor)
        except sqlite3.Error as error:
            raise failure(self._path, error) from error
        if missing:
            raise StorageDamagedError(
                str(self._path),
                f"acknowledged events are missing: {summarize(missing)}. Put the files back as they were (the -wal file belongs "
                "to the store). To give those events up, as after restoring an older copy, "
                f"remove {self._acknowledged.path} and start again",
            )

    def _begin(self, writing: sqlite3.Connection) -> None:
        self._trimmed = {number for (number,) in writing.execute("SELECT log FROM trimmed")}
        assert self._acknowledged is not None
        self._acknowledged.begin(writing)
        if self._anchor is None:  # the store is new
            self._anchor = open_read_only(self._path)
        self._files = StoreFiles(self._path)

    def _on_rollback(self) -> None:
        self._ends.clear()
        self._grown.clear()

    def _on_commit(self, durability: Durability) -> None:
        """Holding the write lock: record the ends of grown logs before they are acknowledged."""
        assert self._acknowledged is not None
        for number, (log, end) in self._grown.items():
            self._acknowledged.note(number, log, end, flushed=durability is Durability.POWER)
        self._grown.clear()

    def _missing_after_change(self) -> str:
        """Holding the write lock: which acknowledged entries the files lack after another program wrote to them; "" = none."""
        assert self._acknowledged is not None
        try:
            with closing(open_read_only(self._path)) as connection:
                missing = self._acknowledged.missing(connection, whole=True)
                if missing:
                    return f"another program has changed it, and acknowledged events are missing: {summarize(missing)}"
                found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
                return "" if found == "ok" else f"another program has changed it: {found}"
        except (sqlite3.Error, StorageError) as error:
            return f"another program has changed it: {error}"

    async def _start_reading(self) -> None:
        try:
            self._reading = await asyncio.get_running_loop().run_in_executor(self._reader, open_read_only, self._path)
            await self._load_log_numbers()
        except BaseException:
            await self.close()
            raise

    async def _load_log_numbers(self) -> None:
        rows = await self._read(lambda connection: connection.execute("SELECT number, id FROM logs").fetchall())
        self._numbers = {log_id: number for number, log_id in rows}

    async def close(self) -> None:
        self._closed = True  # before the last job of the writer: nothing may queue up behind it and wait for ever
        is_touched = self._writer is None
        if self._writer is not None:
            is_touched = await self._writer.inspect() is not None
            if not is_touched and self._anchor is not None:
                self._anchor.close()
            await self._writer.close()
            self._writer = None
        await asyncio.to_thread(self._reader.shutdown)
        if self._reading is not None:
            self._reading.close()
        if is_touched and self._anchor is not None:
            self._anchor.close()
        if self._acknowledged is not None:
            self._acknowledged.close()
            self._acknowledged = None
        self._lock.release()

    async def ping(self) -> None:
        if self._closed:
            raise StorageUnavailableError("the store is closed")
        if self._writer is None:
            return
        self._writer.check()
        if self._files is not None and (reason := self._files.unreadable()):
            raise StorageUnavailableError(reason)
        if self._writer.full:
            # An empty commit may fit into what the failed one left behind, so that real room is asked for first.
            if shutil.disk_usage(self._path.parent).free < ROOM_BYTES:
                raise StorageUnavailableError("the disk is full")
            await self._submit(_touch, Durability.POWER)

    async def inspect(self, logs: Sequence[Log]) -> dict[str, LogDamagedError]:
        damage = None if self._writer is None or self._closed else await self._writer.inspect()
        return {} if damage is None else {log.name: damage for log in logs}

    def lacks_snapshot(self, log: Log) -> bool:
        return False  # nothing else removes its snapshots

    def notices(self) -> list[str]:
        return [] if self.archive is None else self.archive.notices()

    # -- writing -----------------------------------------------------------------------------------------------------------

    async def time(self) -> None:
        return None

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        def run(connection: sqlite3.Connection) -> tuple[Log, int, Receipt]:
            row = connection.execute("SELECT number, id FROM logs WHERE name = ?", (log.name,)).fetchone()
            if row is not None:
                kept = Log(row[1], log.name)
                return kept, row[0], _first(connection, kept, row[0], "position = ?", (row[0] << SHIFT) + 1)
            number = connection.execute("INSERT INTO logs (id, name) VALUES (?, ?)", (log.id, log.name)).lastrowid
            assert number is not None
            return log, number, self._insert(connection, log, number, "created", payload)

        kept, number, receipt = await self._submit(run, Durability.POWER)
        self._numbers[kept.id] = number
        self._notifier.publish(kept.name, receipt.offset)
        return kept, receipt

    async def delete(self, log: Log) -> None:
        number = self._numbers.get(log.id)
        if number is None:
            return

        def run(connection: sqlite3.Connection) -> None:
            if self._acknowledged is not None:
                self._acknowledged.forget(number)
            connection.execute("DELETE FROM events WHERE position BETWEEN ? AND ?", (number << SHIFT, (number + 1 << SHIFT) - 1))
            connection.execute("DELETE FROM snapshots WHERE log = ?", (number,))
            connection.execute("DELETE FROM records WHERE log = ?", (number,))
            connection.execute("DELETE FROM trimmed_keys WHERE log = ?", (number,))
            connection.execute("DELETE FROM trimmed WHERE log = ?", (number,))
            connection.execute("DELETE FROM logs WHERE number = ?", (number,))
            self._ends.pop(number, None)
            self._grown.pop(number, None)

        await self._submit(run, Durability.POWER)
        self._numbers.pop(log.id, None)
        self._tails.pop(number, None)
        self._notifier.publish(log.name)

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        return (await self._accept(log, [(key, payload)], durability, expected=expected))[0]

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        return await self._accept(log, entries, durability)

    async def _accept(
        self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability, *, expected: int | None = None
    ) -> list[Receipt]:
        number = self._number(log)

        def run(connection: sqlite3.Connection) -> list[Receipt]:
            return [self._insert(connection, log, number, key, payload, expected=expected) for key, payload in entries]

        receipts: list[Receipt] = await self._submit(run, durability, size=sum(len(payload) for _, payload in entries))
        tail = self._tails.setdefault(number, {})
        end = 0
        for receipt, (_, payload) in zip(receipts, entries, strict=True):
            if receipt.first is None:
                tail[receipt.offset] = payload
                end = receipt.offset
        while len(tail) > TAIL:
            del tail[next(iter(tail))]
        if end:
            self._notifier.publish(log.name, end)
        return receipts

    async def save_snapshot(self, log: Log, offset: int, blob: bytes) -> int:
        number = self._number(log)

        def run(connection: sqlite3.Connection) -> int:
            connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", (number, offset, blob, zlib.crc32(blob)))
            connection.execute(
                'DELETE FROM snapshots WHERE log = ?1 AND "offset" NOT IN '
                '(SELECT "offset" FROM snapshots WHERE log = ?1 ORDER BY "offset" DESC LIMIT ?2)',
                (number, KEPT_SNAPSHOTS),
            )
            return _oldest_snapshot(connection, number)

        return int(await self._submit(run, Durability.PROCESS))

    async def trim(self, log: Log, *, before: int, lasting: Collection[int], forget: int = 0) -> int:
        """The file does not become smaller: its free pages are used for what comes next."""
        number = self._number(log)
        base, keep = number << SHIFT, frozenset(lasting)

        def run(connection: sqlite3.Connection) -> tuple[int, bool]:
            forgotten = connection.execute(
                "DELETE FROM trimmed_keys WHERE log = ?1 AND key IN "
                '(SELECT key FROM trimmed_keys WHERE log = ?1 AND "offset" < ?2 AND NOT lasting LIMIT ?3)',
                (number, forget, TRIM_BATCH),
            ).rowcount
            row = connection.execute("SELECT floor FROM trimmed WHERE log = ?", (number,)).fetchone()
            floor = 1 if row is None else row[0]
            bound = min(before, _oldest_snapshot(connection, number))
            if bound <= floor:
                return floor, forgotten == TRIM_BATCH
            until = min(bound, floor + TRIM_BATCH)
            first, last = base + max(floor, 2), base + until - 1
            rows = connection.execute("SELECT key, position FROM events WHERE position BETWEEN ? AND ?", (first, last))
            connection.executemany(
                "INSERT INTO trimmed_keys VALUES (?, ?, ?, ?)",
                [(number, key, position - base, position - base in keep) for key, position in rows],
            )
            connection.execute("DELETE FROM events WHERE position BETWEEN ? AND ?", (first, last))
            connection.execute("INSERT OR REPLACE INTO trimmed VALUES (?, ?)", (number, until))
            self._trimmed.add(number)
            return until, until < bound or forgotten == TRIM_BATCH

        floor, is_more = 1, True
        while is_more:
            floor, is_more = await self._submit(run, Durability.PROCESS)
        return floor

    async def swap_record(self, log: Log | None, key: str, value: bytes | None, *, expected: bytes | None) -> bool:
        number = OF_STORE if log is None else self._number(log)

        def run(connection: sqlite3.Connection) -> int:
            if log is not None and not connection.execute("SELECT 1 FROM logs WHERE number = ?", (number,)).fetchone():
                raise LogNotFoundError(log.name)
            row = connection.execute("SELECT value FROM records WHERE log = ? AND key = ?", (number, key)).fetchone()
            if (None if row is None else row[0]) != expected:
                return 0
            connection.execute("DELETE FROM records WHERE log = ? AND key = ?", (number, key))
            if value is not None:
                connection.execute("INSERT INTO records VALUES (?, ?, ?, ?)", (number, key, value, zlib.crc32(value)))
            return 1

        return bool(await self._submit(run, Durability.POWER, size=len(value or b"")))

    def _insert(
        self, connection: sqlite3.Connection, log: Log, number: int, key: str, payload: bytes, *, expected: int | None = None
    ) -> Receipt:
        """In the writer thread: one row, unless the key is taken or the log ends elsewhere than expected."""
        end = self._end(connection, log, number)
        if number in self._trimmed and (at := _trimmed_at(connection, number, key)):
            return Receipt(at, b"", is_trimmed=True)
        if expected not in (None, end):
            rows = connection.execute("SELECT 1 FROM events WHERE log = ? AND key = ?", (number, key)).fetchall()
            if not rows:
                raise StorageConflictError(log.name, expected=expected, end=end)
        position = (number << SHIFT) + end + 1
        cursor = connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?) ON CONFLICT (log, key) DO NOTHING",
            (position, number, key, payload, zlib.crc32(payload)),
        )
        if cursor.rowcount == 0:
            self._ends[number] = end
            return _first(connection, log, number, "log = ? AND key = ?", number, key)
        self._ends[number] = end + 1
        if number not in self._fingerprints:
            self._fingerprints[number] = fingerprint(log.id)
        self._grown[number] = (self._fingerprints[number], end + 1)
        return Receipt(end + 1)

    def _end(self, connection: sqlite3.Connection, log: Log, number: int) -> int:
        """In the writer thread: the last offset, 0 for a log that is being created."""
        end = self._ends.get(number)
        if end is None:
            if connection.execute("SELECT 1 FROM logs WHERE number = ?", (number,)).fetchone() is None:
                raise LogNotFoundError(log.name)
            row = connection.execute(
                "SELECT max(position) FROM events WHERE position BETWEEN ? AND ?", (number << SHIFT, (number + 1 << SHIFT) - 1)
            ).fetchone()
            end = 0 if row[0] is None else row[0] - (number << SHIFT)
        return end

    async def _submit(self, run: Run, durability: Durability, *, size: int | None = None) -> Any:
        if self._writer is None or self._closed:
            raise StorageUnavailableError("the store is opened for reading only" if self._read_only else "the store is closed")
        return await self._writer.submit(run, durability, size=size)

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def logs(self) -> list[Log]:
        rows = await self._read(lambda connection: connection.execute("SELECT id, name FROM logs ORDER BY name").fetchall())
        return [Log(log_id, name) for log_id, name in rows]

    async def find_log(self, name: str) -> Log | None:
        rows = await self._read(lambda connection: connection.execute("SELECT id FROM logs WHERE name = ?", (name,)).fetchall())
        return Log(rows[0][0], name) if rows else None

    async def end(self, log: Log) -> int:
        number = self._number(log)
        found = await self._read(
            lambda connection: connection.execute(
                "SELECT max(position) FROM events WHERE position BETWEEN ? AND ?", (number << SHIFT, (number + 1 << SHIFT) - 1)
            ).fetchone()
        )
        return 0 if found[0] is None else int(found[0]) - (number << SHIFT)

    async def wait(self, log: Log, *, after: int, timeout_s: float) -> int:
        return await self._notifier.wait(log.name, lambda: self.end(log), after=after, timeout_s=timeout_s)

    async def wait_for_changes(self, *, timeout_s: float) -> dict[str, int]:
        return await self._notifier.wait_for_changes(timeout_s=timeout_s)

    async def resync(self, log: Log) -> None:
        """A file that one process serves does not lose its end behind this process's back."""

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        number = self._number(log)
        recent = self._recent(number, after=after, limit=limit)
        if recent:
            return recent
        first = (number << SHIFT) + after + 1

        def run(connection: sqlite3.Connection) -> tuple[int, list[tuple[int, bytes, int]]]:
            rows = connection.execute(
                "SELECT position, payload, crc FROM events WHERE position BETWEEN ? AND ? ORDER BY position LIMIT ?",
                (first, (number + 1 << SHIFT) - 1, limit),
            ).fetchall()
            has_gap = bool(rows) and rows[-1][0] - first != len(rows) - 1
            return _floor(connection, number) if has_gap else 1, rows

        floor, rows = await self._read(run)
        if floor > max(after + 1, 2):
            return await read_trimmed(self, log, after=after, limit=limit, floor=floor)
        return list(_checked(log, number, rows, after=after))

    def _recent(self, number: int, *, after: int, limit: int) -> list[Entry]:
        """The unbroken run of entries behind `after` that is still in memory."""
        tail = self._tails.get(number, {})
        for offset in [offset for offset in tail if offset <= after]:
            del tail[offset]  # folded already: a tail holds what is not folded yet, not the last few megabytes
        run: list[Entry] = []
        while len(run) < limit and (payload := tail.get(after + 1)) is not None:
            after += 1
            run.append(Entry(after, payload))
        return run

    async def find(self, log: Log, key: str) -> Entry | None:
        number = self._number(log)

        def run(connection: sqlite3.Connection) -> tuple[list[tuple[int, bytes, int]], int]:
            rows = connection.execute(
                "SELECT position, payload, crc FROM events WHERE log = ? AND key = ?", (number, key)
            ).fetchall()
            is_trimmed = not rows and _floor(connection, number) > 1
            return rows, _trimmed_at(connection, number, key) if is_trimmed else 0

        rows, trimmed_at = await self._read(run)
        if trimmed_at:
            return await read_entry(self, log, key, trimmed_at)
        return next(_checked(log, number, rows, after=None), None)

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        number = self._number(log)
        rows = await self._read(
            lambda connection: connection.execute(
                'SELECT "offset", blob, crc FROM snapshots WHERE log = ? ORDER BY "offset" DESC', (number,)
            ).fetchall()
        )
        return [(offset, blob) for offset, blob, crc in rows if zlib.crc32(blob) == crc]

    async def records(self, log: Log | None) -> dict[str, bytes]:
        number = OF_STORE if log is None else self._number(log)
        rows = await self._read(
            lambda connection: connection.execute("SELECT key, value, crc FROM records WHERE log = ?", (number,)).fetchall()
        )
        return {key: value for key, value, crc in rows if zlib.crc32(value) == crc}

    async def find_record(self, log: Log | None, key: str) -> bytes | None:
        number = OF_STORE if log is None else self._number(log)
        rows = await self._read(
            lambda connection: connection.execute(
                "SELECT value, crc FROM records WHERE log = ? AND key = ?", (number, key)
            ).fetchall()
        )
        return next((bytes(value) for value, crc in rows if zlib.crc32(value) == crc), None)

    async def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        assert self._reading is not None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, run, self._reading)
        except sqlite3.Error as error:
            raise failure(self._path, error) from error
        except RuntimeError as error:  # the reader was shut down
            raise StorageUnavailableError("the store is closed") from error

    def _number(self, log: Log) -> int:
        if log.id not in self._numbers:
            raise LogNotFoundError(log.name)
        return self._numbers[log.id]


def _first(connection: sqlite3.Connection, log: Log, number: int, where: str, *values: object) -> Receipt:
    """The receipt of a repeated entry: that of the first."""
    rows = connection.execute(f"SELECT position, payload, crc FROM events WHERE {where}", values).fetchall()  # noqa: S608 (no input)
    for entry in _checked(log, number, rows, after=None):
        return Receipt(entry.offset, entry.payload)
    raise StorageDamagedError(f"log {log.name!r}", "an entry that was accepted is missing")


def _oldest_snapshot(connection: sqlite3.Connection, number: int) -> int:
    """The offset of the older of the kept snapshots; 0 where there is one alone."""
    query = 'SELECT min("offset"), count(*) FROM snapshots WHERE log = ?'
    offset, count = connection.execute(query, (number,)).fetchone()
    return int(offset) if count >= KEPT_SNAPSHOTS else 0


def _floor(connection: sqlite3.Connection, number: int) -> int:
    """The first offset that is kept behind entry 1; 1 where nothing was trimmed."""
    if schema_version(connection) < TRIMS_SINCE:  # not written since the store was of an earlier version
        return 1
    row = connection.execute("SELECT floor FROM trimmed WHERE log = ?", (number,)).fetchone()
    return 1 if row is None else int(row[0])


def _trimmed_at(connection: sqlite3.Connection, number: int, key: str) -> int:
    """The offset of a trimmed entry by its key; 0 where there is none."""
    row = connection.execute('SELECT "offset" FROM trimmed_keys WHERE log = ? AND key = ?', (number, key)).fetchone()
    return 0 if row is None else int(row[0])


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _checked(log: Log, number: int, rows: Iterable[tuple[int, bytes, int]], *, after: int | None) -> Iterator[Entry]:
    """Entries whose checksum holds and, where `after` is given, whose offsets have no gap; `StorageDamagedError` otherwise."""
    for position, payload, crc in rows:
        offset = position - (number << SHIFT)
        if after is not None:
            after += 1
            if offset != after:
                raise StorageDamagedError(f"log {log.name!r}, offset {after}", "the entry is missing")
        if zlib.crc32(payload) != crc:
            raise StorageDamagedError(f"log {log.name!r}, offset {offset}", "the checksum does not match")
        yield Entry(offset, payload)
