"""Imports of history into one bandit: rows are appended once by their ids, and folded like outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from service.engine import events
from service.engine.commit import LogCommitter
from service.engine.errors import ImportConflictError
from service.engine.events import Imported
from service.engine.projection import READ_BATCH, Projection
from service.storage.base import Durability, StorageError


class ImportReceipt(NamedTuple):
    """The receipt of several rows.

    learned: rows that are new.  duplicates: rows that were in the log before.  offset: of the last one.
    """

    learned: int
    duplicates: int
    offset: int


class HistoryImporter:
    """Appends imported rows. A request that was cut off is sent again: what it had appended is found by its keys."""

    def __init__(self, projection: Projection, committer: LogCommitter) -> None:
        self._storage = projection.storage
        self._log = projection.log
        self._projection = projection
        self._committer = committer
        self._lock = asyncio.Lock()

    async def submit(self, rows: Sequence[Imported]) -> ImportReceipt:
        """Learn the rows in order; their ids differ. Raises `ImportConflictError`, before anything is appended, where the log has
        another row under an id.
        """
        return await self._projection.background.run_shielded(self._append(rows))

    async def _append(self, rows: Sequence[Imported]) -> ImportReceipt:
        async with self._lock:  # else two requests with one id could both pass the look-up
            found = await asyncio.gather(*(self._storage.find(self._log, events.key_of(row)) for row in rows))
            offset = 0
            for row, entry in zip(rows, found, strict=True):
                if entry is not None:
                    _check_same(row, entry.payload)
                    offset = max(offset, entry.offset)
            new = [row for row, entry in zip(rows, found, strict=True) if entry is None]
            learned = len(new)
            for first in range(0, len(new), READ_BATCH):
                batch = new[first : first + READ_BATCH]
                for row, receipt in zip(batch, await self._committer.commit(batch, Durability.POWER), strict=True):
                    if isinstance(receipt, StorageError):
                        raise receipt
                    if receipt.first is not None:  # another process was quicker
                        _check_same(row, receipt.first)
                        learned -= 1
                    offset = max(offset, receipt.offset)
        self._committer.duplicates += len(rows) - learned
        return ImportReceipt(learned, len(rows) - learned, offset)


def _check_same(row: Imported, payload: bytes) -> None:
    first = events.decode(payload)
    if not isinstance(first, Imported) or first.body != row.body:
        raise ImportConflictError(row.id)
