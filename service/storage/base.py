"""The storage protocol: named logs of events with unique keys, snapshots beside them, and small records that change.

    create(name) ──> Log ──> append(key, payload) ──> Receipt(offset)            durable before it returns
                         ├─> read(after) ──> entries in offset order, 1, 2, 3, ...   every accepted entry, exactly once
                         └─> wait(after) ──> the end, as soon as it is behind `after`
    swap_record(key, value, expected)    a record of a log, or of the store: replaced only if it still is what was expected
    wait_for_changes() ──> {name: end} of the logs that grew, were created or deleted, by whichever process

Failures:
StorageError
├── StorageUnavailableError  cannot write or read now; nothing of it was acknowledged
├── StorageConflictError     the log does not end where a conditional append expects it to; nothing was accepted
├── StorageDamagedError      what was stored cannot be read back; names the place
│   └── LogDamagedError      the whole log cannot be trusted any more; nothing is accepted into it
├── StorageLockedError       another process serves this store
├── LogNotFoundError         the log was deleted
├── LogCompactedError        the entries asked for were trimmed and are gone; names the first that is kept
│   └── ArchiveGapError      they are not in the archive either; names their offsets
├── EntryTrimmedError        the key is taken by an entry that was trimmed, and there is no archive to read it from
└── LogTruncatedError        the log is not the one that this process has read: entries that it has seen were lost

One process or many. Memory and SQLite are served by one process, so that a log grows by this process alone. Redis is served by
many; a process that folds a log follows these rules:
* One task of the process calls `wait_for_changes` repeatedly, and folds every log it names up to its end. An unknown name is a
  log that another process created (`find_log`); a name whose log is missing was deleted.
* An event that depends on the state is appended with `expected`, the offset up to which the log was folded when the event was
  checked; on `StorageConflictError` fold, check again, try again.
* `StorageUnavailableError` from an append that was already sent leaves open whether it was accepted. It was not acknowledged;
  the same key again is accepted then, or answered with the first entry.

After `LogTruncatedError` (a replica that lagged was promoted, or the store came back without its last entries) a state folded
from the log holds what the log does not, and may lack what the log holds. The log is the truth, so the learner must
1. drop its state, its ledger and everything else derived from this log, and answer nothing of it meanwhile;
2. call `resync(log)`; until then every call about this log raises `LogTruncatedError`, so that nothing slips through, and calls
   that began before it are refused (`StorageUnavailableError`), because they rest on what was dropped;
3. load it as at a start: entry 1, the newest snapshot, the entries behind it. `LogNotFoundError` means that all of it was lost.

`trim` drops entries behind the older of the two snapshots. Entry 1 is kept for ever, and a key stays taken without its entry
until it is forgotten: then `find` answers None, and an append of it would be accepted again. Where there is an archive
(archive.py), `read` and `find` take from it what the store has not. Without one `read` raises `LogCompactedError(first=n)`: the
entries before n can only be had as part of a snapshot, so load it as at a start. If no snapshot can be used, the state cannot be
derived any more, and the bandit is damaged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from service.storage.archive import Archive


class StorageError(Exception):
    """Base of every storage failure."""


class StorageUnavailableError(StorageError):
    """The store cannot be written or read now. Nothing of the call was acknowledged; over a network it may have been accepted."""


class StorageConflictError(StorageError):
    """A conditional append found more in the log than was expected. `end` is its last offset; nothing was accepted."""

    def __init__(self, name: str, *, expected: int, end: int) -> None:
        super().__init__(f"log {name!r} ends at offset {end}, not at {expected}")
        self.expected = expected
        self.end = end


class StorageDamagedError(StorageError):
    """Stored bytes that cannot be read back. `place` says where."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class LogDamagedError(StorageDamagedError):
    """The log as a whole cannot be trusted any more: another program removed or replaced acknowledged entries, or what makes
    their keys unique. Nothing may be accepted into it, or answered from it, until an operator has looked at it.
    """


class StorageLockedError(StorageError):
    """Another process serves this store."""


class LogNotFoundError(StorageError):
    """The log does not exist (any more)."""


class LogCompactedError(StorageError):
    """Entries that were asked for are gone, because a snapshot replaces them. `first` is the first kept offset behind them."""

    def __init__(self, name: str, *, first: int) -> None:
        super().__init__(f"log {name!r} was trimmed behind its snapshots: its first kept offset is {first}")
        self.name = name
        self.first = first


class ArchiveGapError(LogCompactedError):
    """Entries from `missing` on, up to the one before `first`, were trimmed and are not in the archive."""

    def __init__(self, name: str, *, missing: int, first: int, archive: str) -> None:
        super().__init__(name, first=first)
        self.missing = missing
        lost = f"entry {missing} was" if missing == first - 1 else f"entries {missing} to {first - 1} were"
        self.args = (f"log {name!r}: {lost} trimmed and not in the archive {archive}; put the segments back that hold them",)


class EntryTrimmedError(StorageError):
    """The entry under a key was trimmed, and is in no archive. offset: where it stood."""

    def __init__(self, name: str, key: str, *, offset: int) -> None:
        super().__init__(f"log {name!r}: the entry {key!r} at offset {offset} was trimmed")
        self.offset = offset


class LogTruncatedError(StorageError):
    """Entries that this process has read or accepted are not in the log any more; the docstring of this file says what to do.

    seen: the last offset that this process knows.  end: the last offset of the log now; where it is not smaller than `seen`,
    another entry has that offset.
    """

    def __init__(self, name: str, *, seen: int, end: int) -> None:
        found = f"it ends at offset {end}" if end < seen else "another entry stands there"
        super().__init__(f"log {name!r} was seen up to offset {seen}, and now {found}: acknowledged entries were lost")
        self.name = name
        self.seen = seen
        self.end = end


class Durability(Enum):
    """What an acknowledged entry survives: the end of the process (kill -9), or also the loss of power."""

    PROCESS = "process"
    POWER = "power"


@dataclass(frozen=True)
class Log:
    """A log by name. `id` is of this very log: a log that is deleted and created again under its name has another."""

    id: str
    name: str


@dataclass(frozen=True)
class Entry:
    """One accepted event; offsets of a log count 1, 2, 3, ..."""

    offset: int
    payload: bytes


@dataclass(frozen=True)
class Receipt:
    """The offset of an entry. first: the payload that was under the key already, in which case nothing was appended.
    is_trimmed: it was, and the entry was trimmed since: `first` is empty, and `find` may have it.
    """

    offset: int
    first: bytes | None = None
    is_trimmed: bool = False


class Storage(Protocol):
    """Implemented by memory, SQLite and Redis; one contract suite for all."""

    @property
    def shared(self) -> bool:
        """Whether other processes may serve the same store."""

    @property
    def archive(self) -> Archive | None:
        """Where entries are that were trimmed, if anywhere."""

    async def start(self) -> None:
        """Open and check. Raises `StorageDamagedError`, `StorageLockedError` or `StorageUnavailableError`."""

    async def close(self) -> None:
        """Finish what was accepted and let go."""

    async def ping(self) -> None:
        """Raise `StorageUnavailableError` where an append would fail now."""

    async def inspect(self, logs: Sequence[Log]) -> dict[str, LogDamagedError]:
        """Which of these logs another program has damaged (removed, replaced, cut, restored from an older copy), by name. Called
        at every sweep, so that an idle service notices too. `StorageUnavailableError` where it cannot be known now.
        """

    def lacks_snapshot(self, log: Log) -> bool:
        """Whether entries of the log were trimmed and no snapshot covers them any more, as far as known: only a process that
        holds what was learned from them can still write one.
        """

    def notices(self) -> list[str]:
        """What an operator should know about how this store is set up, for `readyz` and the metrics; empty where all is well."""

    async def time(self) -> datetime | None:
        """The store's clock, which all processes that share it can agree on; None where it is served by one process."""

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        """A new log with `payload` as entry 1; or the log that has the name already, with its entry 1 as `first`."""

    async def delete(self, log: Log) -> None:
        """Remove the log with its snapshots. Deleting a missing one does nothing."""

    async def logs(self) -> list[Log]:
        """Every log, by name."""

    async def find_log(self, name: str) -> Log | None:
        """The log that has the name now."""

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        """Accept the entry unless the key is taken; durable to the asked degree on return. `LogNotFoundError` if it was deleted.

        expected: accept a new key only while this is the log's last offset, else raise `StorageConflictError`. A taken key is
        answered with its first entry, whatever is expected.
        """

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        """`append` of each (key, payload), in order, at the price of little more than one. Where it raises, some may have been
        accepted.
        """

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with offset > after, in order; empty at the end. `StorageDamagedError` names a bad entry,
        `LogCompactedError` the first one that is kept. Entry 1 can always be had: `after=0, limit=1`.
        """

    async def find(self, log: Log, key: str) -> Entry | None:
        """The entry under a key; None also where the key was forgotten. `EntryTrimmedError` where it can be had nowhere."""

    async def end(self, log: Log) -> int:
        """The last offset of the log, as it is now."""

    async def wait(self, log: Log, *, after: int, timeout_s: float) -> int:
        """The log's last offset, as soon as it is greater than `after`; at the latest after `timeout_s`, whatever it is then."""

    async def wait_for_changes(self, *, timeout_s: float) -> dict[str, int]:
        """Names of logs in which something happened since the last call, each with the last offset known of it (0 = unknown: it
        grew, was created or deleted). Returns as soon as there is one, at the latest after `timeout_s`, then empty.

        For one caller per process. A name may come without need; none is left out. What this process appends comes too, with its
        offset. Milliseconds after the event as a rule; where the process that appended ended before it could publish, within
        seconds (`notifications.SWEEP_S`). While the store is out of reach there are none, and afterwards all that were missed.
        """

    async def resync(self, log: Log) -> None:
        """The caller has dropped everything derived from this log; later calls are not compared with entries seen before."""

    async def save_snapshot(self, log: Log, offset: int, blob: bytes) -> int:
        """Keep `blob` as the snapshot at `offset`; the one before it is kept too, older ones go. Returns the offset of the older
        one, up to which the log can be trimmed; 0 where there is one alone.
        """

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        """The kept snapshots, newest first; damaged ones are left out."""

    async def trim(self, log: Log, *, before: int, lasting: Collection[int], forget: int = 0) -> int:
        """Drop the entries before an offset, as far as two kept snapshots are behind them, except entry 1; their keys stay taken.
        Returns the first offset that is kept behind entry 1; 1 = nothing was trimmed. What the archive lacks must not be trimmed.

        lasting: offsets of entries whose keys are never forgotten.  forget: other keys of trimmed entries before this offset are
        forgotten.
        """

    async def records(self, log: Log | None) -> dict[str, bytes]:
        """The records of a log, None = of the store itself, by key. Damaged ones are left out."""

    async def find_record(self, log: Log | None, key: str) -> bytes | None:
        """The record under a key."""

    async def swap_record(self, log: Log | None, key: str, value: bytes | None, *, expected: bytes | None) -> bool:
        """Replace a record, durably, if it is `expected`; whether it was. None = there is none. For a few hundred records of some
        kilobytes; they are deleted with their log, and `LogNotFoundError` says that it was.
        """


PAGE = 500


async def pages(
    storage: Storage, log: Log, *, after: int = 0, until: int | None = None, limit: int = PAGE
) -> AsyncGenerator[list[Entry]]:
    """The entries of a log with after < offset <= until, in order, at most `limit` together. until: None = what is there in the
    end. It ends early where the log does; raises as `Storage.read` does.
    """
    while until is None or after < until:
        entries = await storage.read(log, after=after, limit=limit if until is None else min(limit, until - after))
        if not entries:
            return
        yield entries
        after = entries[-1].offset


KEPT_SNAPSHOTS = 2
