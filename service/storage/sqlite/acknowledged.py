"""The acknowledged end of each log of an SQLite store, in a small file beside it.

It reveals a write-ahead log that was removed, or cut at a frame: neither can be seen in the store itself.

    STORE-acknowledged    header: magic, boot id, checksum | slot of log 1 | slot of log 2 | ...
    slot                  fingerprint of the log's id, its last acknowledged offset, the last flushed one, checksum

A slot is written after the commit and before the acknowledgement, by one pwrite without a flush of its own. That survives the
end of the process. After a loss of power nothing more can be asked for than what a flush had made durable, and the slot's own
write may be lost, which makes it claim less and never more. So within one boot of the machine the store must reach `end`, after
another one `flushed`.

Header and slots each lie within one sector of a disk. So a crash leaves the old bytes, the new ones, or fewer: a file that ends
early, or zeros from some byte on. That much is torn, and started with. Anything else that fails its checksum was written by
another program, and a store with such a record is refused: it could not say what is missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from service.storage.base import StorageDamagedError

logger = logging.getLogger("nextarm.storage")

MAGIC = b"nxtrmack"
HEADER_BYTES, BOOT_BYTES = 64, 48
SLOT = struct.Struct("<QQQI4x")
CHECKSUM_AT = 24
SHOWN = 10
"""Logs that a message names."""


def acknowledged_path(store: Path) -> Path:
    """The file beside a store."""
    return store.with_name(store.name + "-acknowledged")


@dataclass(frozen=True)
class Slot:
    """The acknowledged ends of one log.

    log: fingerprint of its id.  end: last acknowledged offset.  flushed: last one that survives loss of power.
    """

    log: int
    end: int
    flushed: int

    def pack(self) -> bytes:
        """With its checksum."""
        content = struct.pack("<QQQ", self.log, self.end, self.flushed)
        return SLOT.pack(self.log, self.end, self.flushed, zlib.crc32(content))


def fingerprint(log_id: str) -> int:
    """64 bits of a log's id. Numbers of logs are used again where a store is replaced by an older copy; ids are not."""
    return int.from_bytes(hashlib.sha256(log_id.encode()).digest()[:8], "little")


class AcknowledgedEnds:
    """The file of acknowledged ends. slots: by number of the log. `StorageDamagedError` for a record that no crash explains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.existed = os.fstat(self._file).st_size > 0
        try:
            self.slots, boot = _read(path, self._file)
        except BaseException:
            os.close(self._file)
            raise
        self._is_same_boot = bool(boot) and boot == boot_id()

    def close(self) -> None:
        """Nothing may be noted any more."""
        os.close(self._file)

    def missing(self, connection: sqlite3.Connection | None, *, whole: bool = False) -> list[str]:
        """What was acknowledged and is not in the store, one line per log. connection: None where the store is empty.

        whole: also that no entry before the end is missing.
        """
        logs: dict[int, tuple[str, str]] = {}
        if connection is not None and connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'logs'").fetchone():
            rows = connection.execute("SELECT number, id, name FROM logs").fetchall()
            logs = {number: (log_id, name) for number, log_id, name in rows}
        lines = []
        for number, slot in sorted(self.slots.items()):
            needed = slot.end if self._is_same_boot else slot.flushed
            log_id, name = logs.get(number, ("", ""))
            if not needed:
                continue
            if connection is None or not name or fingerprint(log_id) != slot.log:
                lines.append(f"log number {number} with its offsets 1 to {needed}")
                continue
            end, count = _extent(connection, number, whole=whole)
            if end < needed:
                lines.append(f"log {name!r}, offsets {end + 1} to {needed}")
            elif count < end:
                lines.append(f"log {name!r}, {end - count} offsets before {end}")
        return lines

    def begin(self, connection: sqlite3.Connection) -> None:
        """Take what the store holds now for acknowledged; called at a start, when nothing is missing."""
        known = {number: fingerprint(log_id) for number, log_id in connection.execute("SELECT number, id FROM logs")}
        for number in self.slots.keys() - known.keys():
            self.forget(number)
        for number, log in known.items():
            slot = self.slots.get(number)
            end, _ = _extent(connection, number, whole=False)
            flushed = min(slot.flushed, end) if slot is not None and slot.log == log else 0
            self._write(number, Slot(log, end, flushed))
        boot = boot_id().encode().ljust(BOOT_BYTES, b"\0")[:BOOT_BYTES]  # last: until then the slots are those of the boot before
        os.pwrite(self._file, _header(boot), 0)
        self._is_same_boot = True

    def note(self, number: int, log: int, end: int, *, flushed: bool) -> None:
        """The log was committed up to `end`, and is acknowledged after this."""
        before = self.slots.get(number)
        kept = before.flushed if before is not None and before.log == log else 0
        self._write(number, Slot(log, end, end if flushed else kept))

    def forget(self, number: int) -> None:
        """The log is deleted; called before that is committed, because a process may end between the two."""
        if self.slots.pop(number, None) is not None:
            os.pwrite(self._file, bytes(SLOT.size), _place(number))

    def _write(self, number: int, slot: Slot) -> None:
        if self.slots.get(number) != slot:
            os.pwrite(self._file, slot.pack(), _place(number))
            self.slots[number] = slot


def summarize(lines: list[str]) -> str:
    """Missing logs as part of one message, the first few by name."""
    return "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more logs" if len(lines) > SHOWN else "")


def boot_id() -> str:
    """Of this boot of the machine; "" where the system does not say, then every start is taken for one after a loss of power."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _place(number: int) -> int:
    return HEADER_BYTES + SLOT.size * (number - 1)


def _extent(connection: sqlite3.Connection, number: int, *, whole: bool) -> tuple[int, int]:
    """(last offset, entries) of a log; entries are counted where they are asked for, with those that were trimmed."""
    first, last = number << 40, (number + 1 << 40) - 1
    row = connection.execute("SELECT max(position) FROM events WHERE position BETWEEN ? AND ?", (first, last)).fetchone()
    end = 0 if row[0] is None else row[0] - first
    if not whole:
        return end, end
    count = connection.execute("SELECT count(*) FROM events WHERE position BETWEEN ? AND ?", (first, last)).fetchone()[0]
    row = connection.execute("SELECT floor FROM trimmed WHERE log = ?", (number,)).fetchone()
    return end, count + (0 if row is None else max(row[0] - 2, 0))


def _read(path: Path, file: int) -> tuple[dict[int, Slot], str]:
    """The slots that are whole, and the boot id ("" = unknown). What is torn is passed over, with a warning."""
    content = os.pread(file, os.fstat(file).st_size, 0)
    if not content:
        return {}, ""
    header = content[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    boot, checksum = header[8 : 8 + BOOT_BYTES], header[8 + BOOT_BYTES :]
    is_whole = header == _header(boot)
    if not is_whole and (any(checksum) or not MAGIC.startswith(header[:8].rstrip(b"\0"))):
        raise _garbled(path, "its header")
    slots: dict[int, Slot] = {}
    torn = int(not is_whole)
    for number, at in enumerate(range(HEADER_BYTES, len(content), SLOT.size), start=1):
        packed = content[at : at + SLOT.size].ljust(SLOT.size, b"\0")
        slot = Slot(*SLOT.unpack(packed)[:3])
        if slot.log and slot.pack() == packed:
            slots[number] = slot
        elif any(packed[CHECKSUM_AT:]):
            raise _garbled(path, f"the slot of log number {number}")
        elif any(packed):
            torn += 1
    if torn:
        logger.warning("some of it was torn by a crash and is passed over", extra={"file": str(path), "pieces": torn})
    return slots, boot.rstrip(b"\0").decode("ascii", "replace") if is_whole else ""


def _header(boot: bytes) -> bytes:
    return MAGIC + boot + struct.pack("<I4x", zlib.crc32(boot))


def _garbled(path: Path, what: str) -> StorageDamagedError:
    return StorageDamagedError(
        str(path),
        f"the record of what was acknowledged is garbled ({what}): events that are missing cannot be noticed. "
        f"Put it back as it was. To start without it, and give up whatever is missing, remove {path} and start again",
    )
