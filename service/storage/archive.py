"""The archive: entries that were trimmed from a store, in compressed files that are written before anything is trimmed.

    FOLDER/<name of the log, percent-encoded>/<id of the log>/<first>-<last>-<sha256 of the lines>.ndjson.gz
                                                              a line is {"offset":N, and the rest of the payload: as in an export

    append ──> write a temporary file ──> fsync ──> rename ──> fsync the folder ──> read it back ──> now the store may trim
    read, find of a store ──> `read_trimmed`, `read_entry`: the archive up to the first kept offset, and the store from there on

The same entries give the same file. Two replicas, or one that ended between archiving and trimming, may write segments that
overlap; each holds every offset from its first to its last, so any of them answers. The folder is not created, nor is that of a
log of which it once held a segment: one that is missing is not mounted, and what was written into its place, such as an empty
mount point, would not be found again.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import os
import re
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from service.storage.base import (
    ArchiveGapError,
    Entry,
    EntryTrimmedError,
    Log,
    LogCompactedError,
    Storage,
    StorageDamagedError,
    StorageUnavailableError,
)

LEVEL = 3
"""Of gzip: beyond, a log of vectors takes twice the time for a percent of the bytes."""
SEGMENT_ENTRIES, SEGMENT_BYTES = 4096, 8 * 2**20
"""What one segment holds at most, before it is compressed: reading one entry of it unpacks all."""
UNPACKED = 2
"""Segments that stay unpacked in memory, those that were read last."""
LEFT_OVER_S = 3600.0
"""A temporary file that is older was left by a process that ended."""
NAME = re.compile(r"(\d{13})-(\d{13})-([0-9a-f]{64})\.ndjson\.gz")
NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)
"""What a mount of an object store answers where it cannot flush a folder; it has none."""


class Segment(NamedTuple):
    """One file. first, last: its offsets.  sha256: of its lines."""

    first: int
    last: int
    sha256: str
    path: Path


class Archive:
    """Segments below a folder, which may be on a mount. All calls may come from several processes.

    fault: why nothing could be written; "" = the last attempt succeeded, or there was none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault = ""
        self._unread = ""  # why nothing could be read; until something can be read or written
        self._damaged: dict[str, str] = {}  # by id of the log, until it can be read
        self._lock = threading.Lock()  # unpacking is for one thread at a time
        self._listed: dict[str, list[Segment]] = {}  # by id of the log
        self._unpacked: OrderedDict[Path, list[bytes]] = OrderedDict()

    def notices(self) -> list[str]:
        """What an operator should know."""
        noticed = [f"{self.fault}: nothing is trimmed, and the store grows"] if self.fault else []
        unreadable = [self._unread] * bool(self._unread) + list(self._damaged.values())
        noticed += [f"{why}: requests for what was trimmed are a 503" for why in unreadable[:1]]
        return noticed

    async def append(self, log: Log, entries: Sequence[Entry], *, is_first: bool = True) -> None:
        """Keep entries that follow each other, durably and checked. is_first: none of this log was kept before.

        `StorageUnavailableError` where that failed.
        """
        try:
            await asyncio.to_thread(self._write, log, entries, is_first)
        except OSError as error:
            self.fault = f"the archive {self.folder} cannot be written ({error.strerror or error})"
            raise StorageUnavailableError(self.fault) from error
        except StorageDamagedError as error:
            self.fault = f"the archive {self.folder} does not give back what was written ({error})"
            raise StorageUnavailableError(self.fault) from error
        self.fault = self._unread = ""

    async def read(self, log: Log, *, after: int, until: int, floor: int) -> list[Entry]:
        """The entries with after < offset <= until, all of them. floor: the first offset that the store has.

        Raises `ArchiveGapError`, `StorageDamagedError` for a segment that cannot be read, `StorageUnavailableError`.
        """
        try:
            entries = await asyncio.to_thread(self._read, log, after, until, floor)
        except OSError as error:
            self._unread = f"the archive {self.folder} cannot be read: {error.strerror or error}"
            raise StorageUnavailableError(self._unread) from error
        except StorageDamagedError as error:
            self._damaged[log.id] = f"the archive {self.folder} is damaged ({error})"
            raise
        self._unread = ""
        self._damaged.pop(log.id, None)
        return entries

    # -- writing -------------------------------------------------------------------------------------------------------------

    def _write(self, log: Log, entries: Sequence[Entry], is_first: bool) -> None:
        lines = [_line(entry) for entry in entries]
        content = b"".join(lines)
        first, last, sha256 = entries[0].offset, entries[-1].offset, hashlib.sha256(content).hexdigest()
        folder = self._folder_of(log)
        segment = Segment(first, last, sha256, folder / f"{first:013}-{last:013}-{sha256}.ndjson.gz")
        self._check_there()
        if not folder.is_dir():
            if not is_first:
                why = f"{folder}, with earlier entries, is not there: mount the archive, or create the folder if you removed it"
                raise FileNotFoundError(errno.ENOENT, why, str(folder))
            folder.mkdir(parents=True, exist_ok=True)
            for each in (folder.parent, self.folder):
                _flush_folder(each)
        if not self._holds(segment):
            self._remove_left_over(folder)
            partial = folder / f".{uuid.uuid4().hex}.partial"
            try:
                with partial.open("xb") as file:
                    file.write(gzip.compress(content, LEVEL, mtime=0))
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(segment.path)
            finally:
                partial.unlink(missing_ok=True)
            _flush_folder(folder)
            _unpack(segment)
        with self._lock:
            self._listed.pop(log.id, None)

    def _holds(self, segment: Segment) -> bool:
        """Whether it is there already, whole: a process ended before it could trim."""
        try:
            _unpack(segment)
        except (StorageDamagedError, OSError):
            return False
        return True

    def _remove_left_over(self, folder: Path) -> None:
        for each in folder.glob(".*.partial"):
            with suppress(OSError):
                if time.time() - each.stat().st_mtime > LEFT_OVER_S:
                    each.unlink()

    # -- reading -------------------------------------------------------------------------------------------------------------

    def _read(self, log: Log, after: int, until: int, floor: int) -> list[Entry]:
        entries: list[Entry] = []
        with self._lock:
            while (offset := after + len(entries) + 1) <= until:
                segment, payloads = self._segment_with(log, offset, floor)
                last = min(until, segment.last)
                entries += [Entry(each, payloads[each - segment.first]) for each in range(offset, last + 1)]
        return entries

    def _segment_with(self, log: Log, offset: int, floor: int) -> tuple[Segment, list[bytes]]:
        """A whole segment with an entry, of several the one that goes on longest."""
        damage: StorageDamagedError | None = None
        for is_listed in (True, False):
            if not is_listed:  # another process has added to it, or a segment was removed
                self._check_there()
                self._listed[log.id] = _segments(self._folder_of(log))
            for segment in _covering(self._listed.get(log.id, ()), offset):
                try:
                    return segment, self._payloads(segment)
                except StorageDamagedError as error:
                    damage = error
                except FileNotFoundError:
                    continue
        if damage is not None:
            raise damage
        following = min((segment.first for segment in self._listed[log.id] if segment.first > offset), default=floor)
        raise ArchiveGapError(log.name, missing=offset, first=min(following, floor), archive=str(self.folder))

    def _payloads(self, segment: Segment) -> list[bytes]:
        payloads = self._unpacked.get(segment.path)
        if payloads is None:
            payloads = self._unpacked[segment.path] = _unpack(segment)
        self._unpacked.move_to_end(segment.path)
        while len(self._unpacked) > UNPACKED:
            self._unpacked.popitem(last=False)
        return payloads

    # -- places --------------------------------------------------------------------------------------------------------------

    def _folder_of(self, log: Log) -> Path:
        return self.folder / quote(log.name, safe="").replace(".", "%2E") / quote(log.id, safe="").replace(".", "%2E")

    def _check_there(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "it is not there: create the folder, or mount it", str(self.folder))


async def read_trimmed(storage: Storage, log: Log, *, after: int, limit: int, floor: int) -> list[Entry]:
    """What `Storage.read` answers where entries behind `after` were trimmed. floor: the first offset that the store has."""
    if storage.archive is None:
        raise LogCompactedError(log.name, first=floor)
    entries = await storage.archive.read(log, after=after, until=min(after + limit, floor - 1), floor=floor)
    rest = limit - len(entries)
    return entries + (await storage.read(log, after=floor - 1, limit=rest) if rest else [])


async def read_entry(storage: Storage, log: Log, key: str, offset: int) -> Entry:
    """What `Storage.find` answers for a key whose entry was trimmed."""
    if storage.archive is None:
        raise EntryTrimmedError(log.name, key, offset=offset)
    try:
        (entry,) = await storage.archive.read(log, after=offset - 1, until=offset, floor=offset + 1)
    except LogCompactedError as error:
        raise EntryTrimmedError(log.name, key, offset=offset) from error
    return entry


def _segments(folder: Path) -> list[Segment]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [(name, match) for name in names if (match := NAME.fullmatch(name))]
    return sorted(Segment(int(match[1]), int(match[2]), match[3], folder / name) for name, match in found)


def _covering(segments: Sequence[Segment], offset: int) -> list[Segment]:
    found = [segment for segment in segments if segment.first <= offset <= segment.last]
    return sorted(found, key=lambda segment: -segment.last)


def _unpack(segment: Segment) -> list[bytes]:
    """The payloads of a segment; `StorageDamagedError` where they are not those that were archived."""
    try:
        content = gzip.decompress(segment.path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise StorageDamagedError(str(segment.path), f"it cannot be unpacked: {error}") from error
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise StorageDamagedError(str(segment.path), "its sha256 is not that of its name")
    lines = content.split(b"\n")[:-1]
    count = segment.last - segment.first + 1
    if len(lines) != count:
        raise StorageDamagedError(str(segment.path), f"it holds {len(lines)} entries, by its name {count}")
    return [_payload(segment, line, offset) for offset, line in enumerate(lines, segment.first)]


def _line(entry: Entry) -> bytes:
    if not entry.payload.startswith(b'{"') or b"\n" in entry.payload:
        raise StorageDamagedError(f"offset {entry.offset}", "it is no JSON object on one line, which alone can be archived")
    return b'{"offset":%d,%s\n' % (entry.offset, entry.payload[1:])


def _payload(segment: Segment, line: bytes, offset: int) -> bytes:
    begin = b'{"offset":%d,' % offset
    if not line.startswith(begin):
        raise StorageDamagedError(str(segment.path), f"offset {offset} does not stand in its place")
    return b"{" + line[len(begin) :]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDERS:
            raise
    finally:
        os.close(descriptor)
