"""What is kept of a log, and how long: entries behind the snapshots go to the archive, and are trimmed from the store.

    snapshot, load ──> read what is behind the older one ──> Archive.append ──> Storage.trim        one segment at a time

Kept are the last `keep_events` entries, all from the older of the two snapshots on, and all that are younger than
`amend_until_s`: what can be amended is in the store. Keys of what a client may repeat for ever stay (imports, references,
changes, promotions, copies of a clone), those of decisions for 30 days after the entry. The archive is written first: where it
cannot be, nothing is trimmed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from service.engine.events import (
    Amended,
    Cancelled,
    Created,
    Decided,
    Expired,
    Observed,
    Partial,
    SessionBegun,
)
from service.storage.archive import SEGMENT_BYTES, SEGMENT_ENTRIES
from service.storage.base import PAGE, Entry, Log, Storage

logger = logging.getLogger("nextarm.retention")

AMEND_UNTIL_S = 604_800.0
"""After a decision, where the bandit does not say: a week."""
REMEMBERED = timedelta(days=30)
"""How long ids of decisions are known after their entries."""
MARK_EVERY = timedelta(hours=6)
"""Between two notes of when the log had which offset."""
RECORD = "retention"


class _Header(msgspec.Struct):
    """What is looked at of an event, of whichever kind."""

    event: str
    at: datetime
    cloned: int | msgspec.UnsetType = msgspec.UNSET


class _Marks(msgspec.Struct):
    """(offset, time) of entries that were trimmed, the oldest first: which of them are older than a time.

    is_archived: whether some of them went to an archive.
    """

    marks: list[tuple[int, datetime]] = []
    is_archived: bool = False


_header = msgspec.json.Decoder(_Header)
_marks = msgspec.json.Decoder(_Marks)
_OF_DECISIONS = frozenset(
    kind.__struct_config__.tag for kind in (Decided, SessionBegun, Partial, Observed, Expired, Cancelled, Amended)
)


class Retention:
    """Trims one log. keep_events: the last so many entries are never trimmed; 0 = none is.  clock: the time of events."""

    def __init__(self, storage: Storage, log: Log, created: Created, *, keep_events: int, clock: Callable[[], datetime]) -> None:
        self._storage = storage
        self._log = log
        self._keep_events = keep_events
        self._kept_for = timedelta(seconds=AMEND_UNTIL_S if created.amend_until_s is msgspec.UNSET else created.amend_until_s)
        self._clock = clock
        self._lock = asyncio.Lock()

    async def trim(self, *, older: int, end: int, at_least: int = 1, is_closing: Callable[[], bool] = lambda: False) -> None:
        """Archive and trim what may go. older: offset of the older snapshot, 0 = there is none.  end: of the log.
        at_least: entries, or `SEGMENT_BYTES`, that a segment must have; fewer wait.  is_closing: asked between two segments.

        Raises `StorageUnavailableError` where the archive cannot be written; nothing of that segment is trimmed.
        """
        bound = min(older, end - self._keep_events + 1)
        if not self._keep_events or bound <= 1 or self._lock.locked():
            return
        async with self._lock:
            now = self._clock()
            stored = await self._storage.find_record(self._log, RECORD)
            known = _Marks() if stored is None else _marks.decode(stored)
            marks, is_archived = known.marks, known.is_archived
            forget = max((offset for offset, at in marks if now - at > REMEMBERED), default=0)
            floor = await self._storage.trim(self._log, before=1, lasting=(), forget=forget)
            newest: datetime | None = None
            while floor + at_least <= bound and not is_closing():
                entries, lasting, newest = await self._segment(floor, bound, now - self._kept_for)
                if newest is None or entries[-1].offset < 2:  # entry 1 alone need not go
                    break
                if len(entries) < at_least and sum(len(entry.payload) for entry in entries) < SEGMENT_BYTES:
                    break
                if self._storage.archive is not None:
                    await self._storage.archive.append(self._log, entries, is_first=not is_archived)
                    is_archived = True
                reached = await self._storage.trim(self._log, before=entries[-1].offset + 1, lasting=lasting)
                if reached <= floor:  # another process has replaced the snapshots
                    break
                marks = _noted(marks, reached - 1, newest)
                floor = reached
            kept = msgspec.json.encode(_Marks([mark for mark in marks if mark[0] > forget], is_archived))
            if kept != stored and marks:
                await self._storage.swap_record(self._log, RECORD, kept, expected=stored)

    async def _segment(self, floor: int, bound: int, horizon: datetime) -> tuple[list[Entry], list[int], datetime | None]:
        """The next entries to trim, up to the first that is younger than `horizon`; offsets of those whose keys stay; the time
        of the last.
        """
        entries: list[Entry] = []
        lasting: list[int] = []
        size, newest = 0, None
        while len(entries) < SEGMENT_ENTRIES and size < SEGMENT_BYTES and (after := floor + len(entries) - 1) < bound - 1:
            page = await self._storage.read(self._log, after=after, limit=min(PAGE, bound - 1 - after))
            for entry, header in zip(page, await asyncio.to_thread(_headers, page), strict=True):
                if header.at > horizon or size >= SEGMENT_BYTES or len(entries) == SEGMENT_ENTRIES:
                    return entries, lasting, newest
                entries.append(entry)
                size, newest = size + len(entry.payload), header.at
                if header.event not in _OF_DECISIONS or header.cloned is not msgspec.UNSET:
                    lasting.append(entry.offset)
            if not page:
                break
        return entries, lasting, newest


def _headers(entries: Sequence[Entry]) -> list[_Header]:
    return [_header.decode(entry.payload) for entry in entries]


def _noted(marks: Sequence[tuple[int, datetime]], offset: int, at: datetime) -> list[tuple[int, datetime]]:
    """With one more, unless the last one is of the same hours: that is moved on."""
    if len(marks) > 1 and at - marks[-2][1] < MARK_EVERY:
        return [*marks[:-1], (offset, at)]
    return [*marks, (offset, at)]
