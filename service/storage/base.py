"""The promises of a storage: named logs of events with unique keys, and snapshots beside them.

    create(name) ──> Log ──> append(key, payload) ──> Receipt(offset)            durable before it returns
                         └─> read(after) ──> entries in offset order, 1, 2, 3, ...   every accepted entry, exactly once

Failures:
Storage errors
├── StorageUnavailable   cannot write or read now; nothing was accepted. `retry` says whether trying again can help
├── StorageDamaged       what was stored cannot be read back; names the place
├── StorageLocked        another process serves this store
└── LogMissing           the log was deleted
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class StorageError(Exception):
    """Base of every storage failure."""


class StorageUnavailable(StorageError):
    """The store cannot be written or read. Nothing of the call was accepted."""


class StorageDamaged(StorageError):
    """Stored bytes that cannot be read back. `place` says where."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class StorageLocked(StorageError):
    """Another process serves this store."""


class LogMissing(StorageError):
    """The log does not exist (any more)."""


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
    """Where an entry stands. `first` is the payload that stood under the key already; then nothing was appended."""

    offset: int
    first: bytes | None = None


class Storage(Protocol):
    """Implemented by memory and SQLite; one contract suite for all."""

    async def start(self) -> None:
        """Open and check; raises `StorageDamaged`, `StorageLocked` or `StorageUnavailable` with a message for the operator."""

    async def close(self) -> None:
        """Finish what was accepted and let go."""

    async def ping(self) -> None:
        """Raise `StorageUnavailable` where an append would fail now."""

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        """A new log with `payload` as entry 1; or the log that has the name already, with its entry 1 as `first`."""

    async def delete(self, log: Log) -> None:
        """Remove the log with its snapshots. Deleting a missing one does nothing."""

    async def logs(self) -> list[Log]:
        """Every log, by name."""

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability) -> Receipt:
        """Accept the entry unless the key is taken; durable to the asked degree on return. `LogMissing` if it was deleted."""

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with offset > after, in order; empty at the end. `StorageDamaged` names a bad entry."""

    async def find(self, log: Log, key: str) -> Entry | None:
        """The entry under a key."""

    async def save_snapshot(self, log: Log, offset: int, blob: bytes) -> None:
        """Keep `blob` as the snapshot at `offset`; the one before it is kept too, older ones go."""

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        """The kept snapshots, newest first; damaged ones are left out."""


KEPT_SNAPSHOTS = 2
