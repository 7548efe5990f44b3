"""The writer of an SQLite store: one connection with group commit in a thread, or an inline commit where that is quicker.

    submit ──> waiting line ──> thread: BEGIN . run everything that waits . COMMIT ──> results
           └─> inline, where nothing waits, no flush is asked for and little is written

An inline commit is 30 us of write(), and waking a sleeping thread costs ten times that. It never blocks: while the thread holds
the write lock, or another process has the file locked, the job is queued. Moving the write-ahead log into the file,
which flushes, is the thread's work alone.

Around every commit the files are looked at (store_files.py): what was removed, replaced or written by another program is
noticed before anything is acknowledged. What was written is compared with what was acknowledged; where that fails, nothing is
written, and nothing is moved between files, until the process is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.storage.base import Durability, LogDamagedError, StorageError, StorageUnavailableError
from service.storage.sqlite.connection import DAMAGE, primary
from service.storage.sqlite.store_files import StoreFiles
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.storage")
throttled = ThrottledLogger(logger)

Run = Callable[[sqlite3.Connection], Any]
"""What happens inside a transaction."""

UNKNOWN_AFTER = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, *DAMAGE)
"""After these failures the content of the file is unknown."""
FULL = (errno.ENOSPC, errno.EDQUOT)
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
PATIENCE_MS = 5000
"""How long the thread waits for another process that has the file locked."""
AT_ONCE_BYTES = 256 * 2**10
"""More than this is written by the thread."""
CHECKPOINT_COMMITS, CHECKPOINT_BYTES, CHECKPOINT_S = 500, 16 * 2**20, 5.0
"""The write-ahead log is moved into the file after so many commits, when it is larger than this, or when its oldest commit is
older (then with the next sweep): a copy of the file alone lacks this much.
"""


@dataclass
class _Job:
    run: Run
    durability: Durability
    future: asyncio.Future[Any]


class _WriterBusy(Exception):
    """Another process has the file locked; nothing was done."""


class Writer:
    """The only connection that writes to the store.

    max_durability: what `POWER` is reduced to.  on_rollback: called where offsets that were assigned were rolled back.
    on_commit: called after a commit, before anything of it is acknowledged.  files: those of the store.  compare: which
    acknowledged entries the files lack ("" = none), for when another program has written to them.

    broken: why nothing is written any more; "" while all is well.  full: the last commit met a full disk.  damage: what another
    program has done to the files; then nothing is read either.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        max_durability: Durability,
        on_rollback: Callable[[], None],
        on_commit: Callable[[Durability], None],
        files: StoreFiles,
        compare: Callable[[], str],
    ) -> None:
        self.damage: LogDamagedError | None = None
        self.broken = ""
        self.full = False
        self._path = path
        self._connection = connection
        self._max_durability = max_durability
        self._on_rollback = on_rollback
        self._on_commit = on_commit
        self._files = files
        self._compare = compare
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._write_lock = threading.Lock()  # held by the thread or the inline commit that uses the connection
        self._patience_ms = -1  # as the connection has it
        self._commits = 0  # since the last checkpoint
        self._oldest_s = 0.0  # when the first of them was
        connection.execute("PRAGMA wal_autocheckpoint=0")
        # Begun again from its beginning, it is cut to this: its size says then how much of it is in use.
        connection.execute(f"PRAGMA journal_size_limit={CHECKPOINT_BYTES}")
        self._thread = threading.Thread(target=self._work, name="nextarm-writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Finish what waits. Nothing may be submitted any more."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def submit(self, run: Run, durability: Durability, *, size: int | None = None) -> Any:
        """The result of `run`, once it is durable. size: bytes that it writes; None = many."""
        self.check()
        if size is not None and size <= AT_ONCE_BYTES and self._effective(durability) is Durability.PROCESS:
            with contextlib.suppress(_WriterBusy):
                return self._commit_inline(run)
        job = _Job(run, durability, asyncio.get_running_loop().create_future())
        self._jobs.put(job)
        return await job.future

    def check(self) -> None:
        """Raise why nothing can be written."""
        if self.damage is not None:
            raise LogDamagedError(self.damage.place, self.damage.reason)
        if self.broken:
            raise StorageUnavailableError(self.broken)

    async def inspect(self) -> LogDamagedError | None:
        """What another program has done to the files, found also where nothing is written. With every sweep."""
        if self.damage is None and not self.broken:
            reason, is_changed = self._files.look_at_all()
            if reason:
                self._mark_damaged(reason)
            elif is_changed or self._is_checkpoint_due():
                with contextlib.suppress(StorageError):
                    job = _Job(_no_op, Durability.PROCESS, asyncio.get_running_loop().create_future())
                    self._jobs.put(job)
                    await job.future
        return self.damage

    def _effective(self, asked: Durability) -> Durability:
        return asked if self._max_durability is Durability.POWER else Durability.PROCESS

    # -- inline ----------------------------------------------------------------------------------------------------------------

    def _commit_inline(self, run: Run) -> Any:
        if not self._write_lock.acquire(blocking=False):
            raise _WriterBusy
        try:
            if not self._jobs.empty():
                raise _WriterBusy
            (result,) = self._transact([run], Durability.PROCESS, patience_ms=0)
        finally:
            self._write_lock.release()
        if self._commits == CHECKPOINT_COMMITS or self._files.wal_bytes > CHECKPOINT_BYTES:
            self._jobs.put(_Job(_no_op, Durability.PROCESS, asyncio.get_running_loop().create_future()))  # wakes the thread
        if isinstance(result, Exception):
            raise result
        return result

    # -- the thread ------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            now = [job for job in jobs if job is not None]
            # What needs no flush is committed first, so that a decision never waits for the flush of an outcome.
            for durability in (Durability.PROCESS, Durability.POWER):
                group = [job for job in now if self._effective(job.durability) is durability]
                if group:
                    with self._write_lock:
                        results = self._transact([job.run for job in group], durability, patience_ms=PATIENCE_MS)
                    _deliver(group, results)
            with self._write_lock:
                is_last = len(now) < len(jobs)
                if is_last or self._is_checkpoint_due():
                    self._checkpoint()
                if is_last:
                    self._connection.close()
                    return

    def _transact(self, runs: Sequence[Run], durability: Durability, *, patience_ms: int) -> list[Any]:
        """Run everything in one transaction, holding the write lock; results with failures as values."""
        results: list[Any] = []
        running = False
        try:
            self.check()
            self._verify_files(self._files.look(), patience_ms=patience_ms, busy=_WriterBusy())
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durability is Durability.POWER else 'NORMAL'}")
            if patience_ms != self._patience_ms:
                self._connection.execute(f"PRAGMA busy_timeout={patience_ms}")
                self._patience_ms = patience_ms
            self._connection.execute("BEGIN IMMEDIATE")
            running = True
            for run in runs:
                try:
                    results.append(run(self._connection))
                except StorageError as error:  # a refusal that wrote nothing; the others go on
                    results.append(error)
            running = False
            self._connection.execute("COMMIT")
            self._commits += 1
            if self._commits == 1:
                self._oldest_s = time.monotonic()
            # Not acknowledged, though it may be in the log: the same key again is answered with it.
            changed = StorageUnavailableError(
                "another program writes to the files of the store; they are being checked, try again"
            )
            self._verify_files(self._files.look_after_commit(), patience_ms=patience_ms, busy=changed)
            self._on_commit(durability)
            self.full = False
        except _WriterBusy:
            raise
        except Exception as error:  # any failure: the thread must go on, or every later write would wait for ever
            self._roll_back()
            if primary(error) in LOCKED and not patience_ms:
                raise _WriterBusy from error
            if running and len(runs) > 1 and primary(error) not in (sqlite3.SQLITE_FULL, *UNKNOWN_AFTER):
                # it is the fault of one of them, and harms no other
                return [result for run in runs for result in self._transact([run], durability, patience_ms=patience_ms)]
            results = [self._failed(error)] * len(runs)
        return results

    def _is_checkpoint_due(self) -> bool:
        if not self._commits:
            return False
        is_old = time.monotonic() - self._oldest_s >= CHECKPOINT_S
        return is_old or self._commits >= CHECKPOINT_COMMITS or self._files.wal_bytes > CHECKPOINT_BYTES

    def _checkpoint(self) -> None:
        """What cannot be moved now stays in the write-ahead log, where it is as safe; the next checkpoint takes it along.
        Nothing is moved into a file that another program put there.
        """
        self._commits = 0
        try:
            self.check()
            self._verify_files(self._files.look(), patience_ms=PATIENCE_MS, busy=_WriterBusy())
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._files.remember()
        except StorageError:
            pass  # every request reports it
        except (sqlite3.Error, OSError) as error:
            throttled.warning("the write-ahead log could not be moved into the file", reason=str(error))

    # -- other programs ----------------------------------------------------------------------------------------------------------

    def _verify_files(self, found: tuple[str, bool], *, patience_ms: int, busy: Exception) -> None:
        """Raise if the files are not what this process left, holding the write lock.

        busy: raised where the files have to be compared, which takes a while, and there is no time for it.
        """
        reason, is_changed = found
        if is_changed and not reason:
            if not patience_ms:
                raise busy
            reason = self._compare()
            if not reason:
                logger.warning("another program has written to the files of the store; nothing is missing")
                self._files.remember()
        if reason:
            self._mark_damaged(reason)
            self.check()

    def _mark_damaged(self, reason: str) -> None:
        if self.damage is None:
            self.damage = LogDamagedError(str(self._path), f"{reason}; nothing is accepted until the service is started again")
            logger.critical(str(self.damage))

    # -- failures --------------------------------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        self._on_rollback()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
                self._files.look_after_commit()  # a large transaction has written to the write-ahead log before it was undone
        except sqlite3.Error as error:
            self._mark_read_only(error)

    def _failed(self, error: Exception) -> Exception:
        """The error of every request in a failed commit."""
        if primary(error) == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in FULL):
            self.full = True
            throttled.error("the disk is full: nothing is accepted until there is room again")
            return StorageUnavailableError("the disk is full")
        if primary(error) in UNKNOWN_AFTER or isinstance(error, OSError):
            self._mark_read_only(error)
        if self.damage is not None:
            return LogDamagedError(self.damage.place, self.damage.reason)
        if self.broken:
            return StorageUnavailableError(self.broken)
        return StorageUnavailableError(f"{self._path}: {error}") if isinstance(error, sqlite3.Error) else error

    def _mark_read_only(self, error: Exception) -> None:
        reason, _ = self._files.look()
        if reason:  # that is why
            self._mark_damaged(reason)
            return
        self.broken = f"the store failed to write ({error}) and is read-only until the service is started again"
        logger.critical(self.broken)


def _deliver(jobs: Sequence[_Job], results: Sequence[Any]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, result in zip(jobs, results, strict=True):
        by_loop.setdefault(job.future.get_loop(), []).append((job.future, result))
    for loop, pairs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed, and its futures with it
            loop.call_soon_threadsafe(_resolve, pairs)


def _resolve(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in pairs:
        if future.done():  # its request was cancelled; the entry is in the log all the same
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _no_op(connection: sqlite3.Connection) -> None:
    """Wakes the thread."""
