"""A storage that forgets everything when the process ends: for tests, replays and demos."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

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
)
from service.storage.notifier import Notifier


@dataclass
class _Kept:
    log: Log
    payloads: list[bytes]
    offsets: dict[str, int]
    snapshots: list[tuple[int, bytes]] = field(default_factory=list)
    floor: int = 1  # first kept offset behind entry 1; payloads before it are empty
    lasting: set[int] = field(default_factory=set)  # trimmed offsets whose keys stay for good


class MemoryStorage:
    """Logs in dictionaries; nothing survives the process, whatever durability is asked for."""

    shared = False

    def __init__(self, *, archive: Archive | None = None) -> None:
        self.archive = archive
        self._kept: dict[str, _Kept] = {}
        self._names: dict[str, str] = {}
        self._records: dict[str, dict[str, bytes]] = {}  # by id of the log, "" = of the store
        self._notifier = Notifier()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

    async def inspect(self, logs: Sequence[Log]) -> dict[str, LogDamagedError]:
        return {}

    def lacks_snapshot(self, log: Log) -> bool:
        return False  # nothing removes its snapshots

    def notices(self) -> list[str]:
        return [] if self.archive is None else self.archive.notices()

    async def time(self) -> None:
        return None

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        if log.name in self._names:
            kept = self._kept[self._names[log.name]]
            return kept.log, Receipt(1, kept.payloads[0])
        self._kept[log.id] = _Kept(log, [payload], {"created": 1})
        self._names[log.name] = log.id
        self._notifier.publish(log.name, 1)
        return log, Receipt(1)

    async def delete(self, log: Log) -> None:
        if self._kept.pop(log.id, None) is not None:
            self._records.pop(log.id, None)
            del self._names[log.name]
            self._notifier.publish(log.name)

    async def logs(self) -> list[Log]:
        return sorted((kept.log for kept in self._kept.values()), key=lambda log: log.name)

    async def find_log(self, name: str) -> Log | None:
        return self._kept[self._names[name]].log if name in self._names else None

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        kept = self._of(log)
        if key in kept.offsets:
            offset = kept.offsets[key]
            return Receipt(offset, kept.payloads[offset - 1], is_trimmed=1 < offset < kept.floor)
        if expected not in (None, len(kept.payloads)):
            raise StorageConflictError(log.name, expected=expected, end=len(kept.payloads))
        kept.payloads.append(payload)
        kept.offsets[key] = len(kept.payloads)
        self._notifier.publish(log.name, len(kept.payloads))
        return Receipt(len(kept.payloads))

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        return [await self.append(log, key, payload, durability) for key, payload in entries]

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        kept = self._of(log)
        if limit > 0 and max(after + 1, 2) < kept.floor and (after, limit) != (0, 1):
            return await read_trimmed(self, log, after=after, limit=limit, floor=kept.floor)
        payloads = kept.payloads[after : after + limit]
        return [Entry(after + i, payload) for i, payload in enumerate(payloads, start=1)]

    async def find(self, log: Log, key: str) -> Entry | None:
        kept = self._of(log)
        offset = kept.offsets.get(key)
        if offset is not None and 1 < offset < kept.floor:
            return await read_entry(self, log, key, offset)
        return None if offset is None else Entry(offset, kept.payloads[offset - 1])

    async def end(self, log: Log) -> int:
        return len(self._of(log).payloads)

    async def wait(self, log: Log, *, after: int, timeout_s: float) -> int:
        return await self._notifier.wait(log.name, lambda: self.end(log), after=after, timeout_s=timeout_s)

    async def wait_for_changes(self, *, timeout_s: float) -> dict[str, int]:
        return await self._notifier.wait_for_changes(timeout_s=timeout_s)

    async def resync(self, log: Log) -> None: ...

    async def save_snapshot(self, log: Log, offset: int, blob: bytes) -> int:
        kept = self._of(log)
        newer = [(offset, blob), *(pair for pair in kept.snapshots if pair[0] != offset)]
        kept.snapshots = sorted(newer, key=lambda pair: -pair[0])[:KEPT_SNAPSHOTS]
        return _oldest(kept)

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        return list(self._of(log).snapshots)

    async def trim(self, log: Log, *, before: int, lasting: Collection[int], forget: int = 0) -> int:
        kept = self._of(log)
        bound = min(before, _oldest(kept))
        for offset in range(kept.floor, bound):
            if offset > 1:
                kept.payloads[offset - 1] = b""
        kept.lasting |= {offset for offset in lasting if kept.floor <= offset < bound}
        kept.floor = max(kept.floor, bound)
        end = min(forget, kept.floor)
        forgotten = [key for key, at in kept.offsets.items() if 1 < at < end and at not in kept.lasting]
        for key in forgotten:
            del kept.offsets[key]
        return kept.floor

    async def records(self, log: Log | None) -> dict[str, bytes]:
        return dict(self._records_of(log))

    async def find_record(self, log: Log | None, key: str) -> bytes | None:
        return self._records_of(log).get(key)

    async def swap_record(self, log: Log | None, key: str, value: bytes | None, *, expected: bytes | None) -> bool:
        records = self._records_of(log)
        if records.get(key) != expected:
            return False
        records.pop(key, None)
        if value is not None:
            records[key] = value
        return True

    def _records_of(self, log: Log | None) -> dict[str, bytes]:
        return self._records.setdefault("" if log is None else self._of(log).log.id, {})

    def _of(self, log: Log) -> _Kept:
        if log.id not in self._kept:
            raise LogNotFoundError(log.name)
        return self._kept[log.id]


def _oldest(kept: _Kept) -> int:
    """The offset of the older of two snapshots; 0 where there are not two."""
    return kept.snapshots[-1][0] if len(kept.snapshots) == KEPT_SNAPSHOTS else 0
