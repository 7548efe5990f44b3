"""Commits events to a bandit's log: append to the store, fold into the projection, then acknowledge.

commit   encode ──> Storage.append_all ──> Projection.catch_up ──> receipts
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from service.engine import events
from service.engine.events import AnyEvent, Decided
from service.engine.executor import TaskGroup
from service.engine.projection import Projection
from service.storage.base import (
    Durability,
    Log,
    LogDamagedError,
    LogTruncatedError,
    Receipt,
    Storage,
    StorageDamagedError,
    StorageError,
)


class LogCommitter:
    """The write path of one bandit: an event is acknowledged only after it is in the log and, as a rule, in the projection."""

    def __init__(self, storage: Storage, log: Log, projection: Projection, background: TaskGroup) -> None:
        self._storage = storage
        self._log = log
        self._projection = projection
        self._background = background

    async def commit(self, entries: Sequence[tuple[str, AnyEvent]], durability: Durability) -> list[Receipt | StorageError]:
        """Append each (key, event) unless its key is taken, and fold what was appended.

        Returns: per entry a receipt, or the failure of that entry alone. Raises: a failure that concerns all of them.
        Must not be cancelled (`TaskGroup.run_shielded`).
        """
        encoded = [(key, events.encode(event)) for key, event in entries]
        try:
            receipts = await self._append(encoded, durability)
        except BaseException:
            self._drop_refused(event for _, event in entries)
            raise
        known: dict[bytes, AnyEvent] = {}
        last = 0
        for (_, event), (_, payload), receipt in zip(entries, encoded, receipts, strict=True):
            if isinstance(receipt, Receipt) and receipt.first is None:
                known[payload] = event
            else:
                self._drop_refused([event])
            last = max(last, receipt.offset if isinstance(receipt, Receipt) else 0)
        if not last:
            return receipts
        # A decision need not be folded before it is answered: it is tracked as in flight, so it counts as pending already.
        if self._projection.is_slow and all(isinstance(event, Decided) for _, event in entries):
            self._background.spawn(self._fold_later(last, known))
        else:
            await self._projection.catch_up(last, known=known)
            await self._projection.wait_until_current()
        return receipts

    def _drop_refused(self, refused: Iterable[AnyEvent]) -> None:
        for event in refused:
            if isinstance(event, Decided):
                self._projection.drop_in_flight(event.id)

    async def append_one(self, key: str, event: AnyEvent, *, expected: int) -> Receipt:
        """Append one event at offset `expected` + 1, else raise `StorageConflictError`; nothing is folded."""
        self._projection.check_sound()
        with self._flagging_truncation():
            return await self._storage.append(self._log, key, events.encode(event), Durability.POWER, expected=expected)

    @contextlib.contextmanager
    def _flagging_truncation(self) -> Iterator[None]:
        """Record in the projection that the log was truncated (it must be reloaded) or is damaged (the bandit stops)."""
        try:
            yield
        except LogTruncatedError as error:
            self._projection.log_truncated = error
            raise
        except LogDamagedError as error:
            self._projection.stop(error)
            raise

    async def _append(self, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt | StorageError]:
        self._projection.check_sound()
        try:
            with self._flagging_truncation():
                return [*await self._storage.append_all(self._log, entries, durability)]
        except StorageDamagedError as error:
            if len(entries) == 1 or isinstance(error, LogDamagedError):
                raise
            return [await self._alone(key, payload, durability) for key, payload in entries]

    async def _alone(self, key: str, payload: bytes, durability: Durability) -> Receipt | StorageError:
        """Append one entry of a batch that failed. The batch may have appended it: the same bytes under its key are its own."""
        try:
            receipt = await self._storage.append(self._log, key, payload, durability)
        except StorageError as error:
            return error
        return Receipt(receipt.offset) if receipt.first == payload else receipt

    async def _fold_later(self, offset: int, known: Mapping[bytes, AnyEvent]) -> None:
        with contextlib.suppress(StorageError):  # the next request folds again, and reports the failure
            await self._projection.catch_up(offset, known=known)
