"""Commits events to a bandit's log: append to the store, fold into the projection, then acknowledge.

commit   encode ──> Storage.append_all ──> Projection.fold_log ──> receipts
record   fold ──> check ──> Storage.append at the offset that was checked ──> fold ──> receipt
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from service.engine import events
from service.engine.events import AnyEvent, Decided
from service.engine.projection import Projection
from service.engine.readiness import Versions
from service.storage.base import (
    Durability,
    LogDamagedError,
    LogTruncatedError,
    Receipt,
    StorageConflictError,
    StorageDamagedError,
    StorageError,
    StorageUnavailableError,
)

RECORD_TRIES = 100
"""Attempts of a conditional append: the event is checked again after every event that came in between."""


class Recorded(NamedTuple):
    """An event of the log with its offset. is_duplicate: it was in the log before this request."""

    event: Any
    offset: int
    is_duplicate: bool


class LogCommitter:
    """The write path of one bandit: an event is acknowledged only after it is in the log and, as a rule, in the projection.

    duplicates: requests that were answered with an event that was in the log already.
    """

    def __init__(self, projection: Projection) -> None:
        self.duplicates = 0
        self._storage = projection.storage
        self._log = projection.log
        self._projection = projection
        self._record_lock = asyncio.Lock()

    @property
    def _versions(self) -> Versions:
        return self._projection.versions

    async def commit(self, made: Sequence[AnyEvent], durability: Durability) -> list[Receipt | StorageError]:
        """Append each event unless its key (`events.key_of`) is taken, and fold what was appended.

        Returns: per event a receipt, or the failure of that event alone. Raises: a failure that concerns all of them.
        Must not be cancelled (`TaskGroup.run_shielded`).
        """
        self._projection.ledger.check_ready()
        encoded = [(events.key_of(event), events.encode(event)) for event in made]
        try:
            receipts = await self._append(encoded, durability)
            if any(isinstance(one, Receipt) and one.is_trimmed for one in receipts):
                receipts = [await self._with_first(key, one) for (key, _), one in zip(encoded, receipts, strict=True)]
        except BaseException:
            for event in made:
                if isinstance(event, Decided):
                    self._projection.drop_in_flight(event.id)
            raise
        known: dict[bytes, AnyEvent] = {}
        last = 0
        for event, (_, payload), receipt in zip(made, encoded, receipts, strict=True):
            if isinstance(receipt, Receipt) and receipt.first is None:
                known[payload] = event
            elif isinstance(event, Decided):
                self._projection.drop_in_flight(event.id)
            last = max(last, receipt.offset if isinstance(receipt, Receipt) else 0)
        if not last:
            return receipts
        # A decision need not be folded before it is answered: it is tracked as in flight, so it counts as pending already.
        if self._projection.is_slow and all(isinstance(event, Decided) for event in made):
            self._projection.background.spawn(self._fold_later(last, known))
        else:
            await self._projection.fold_log(last, known=known)
            await self._versions.wait_until_current()
        return receipts

    async def record(self, event: AnyEvent, *, key: str, check: Callable[[], object] = lambda: None) -> Receipt:
        """Append any other event (arms, references) and fold it.

        check: raises if the event cannot follow the log. It runs with everything folded, and the append is conditional on that
        offset, so two requests that are valid one by one cannot make the log inconsistent together.
        """

        async def run() -> Receipt:
            async with self._record_lock:
                for _ in range(RECORD_TRIES):
                    await self._projection.fold_log()
                    self._projection.ledger.check_ready()
                    check()
                    try:
                        accepted = await self._append_after(self._versions.committed.offset, key, event)
                        receipt = await self._with_first(key, accepted)
                    except StorageConflictError:
                        continue
                    if isinstance(receipt, StorageError):
                        raise receipt
                    await self._projection.fold_log(receipt.offset)
                    await self._versions.wait_until_prepared()
                    return receipt
                raise StorageUnavailableError("the log grows faster than this could be checked against it; try again")

        return await self._projection.background.run_shielded(run())

    async def _with_first(self, key: str, receipt: Receipt | StorageError) -> Receipt | StorageError:
        """With the first entry of a key where that was trimmed, or why there is none."""
        if isinstance(receipt, StorageError) or not receipt.is_trimmed:
            return receipt
        try:
            entry = await self._storage.find(self._log, key)
        except StorageError as error:
            return error
        if entry is None:
            return StorageUnavailableError("the first entry of this key has just been forgotten; try again")
        return Receipt(entry.offset, entry.payload)

    async def _append_after(self, offset: int, key: str, event: AnyEvent) -> Receipt:
        """Append one event behind `offset`, else raise `StorageConflictError`; nothing is folded."""
        self._versions.check_sound()
        with self._flagging_faults():
            return await self._storage.append(self._log, key, events.encode(event), Durability.POWER, expected=offset)

    @contextlib.contextmanager
    def _flagging_faults(self) -> Iterator[None]:
        """Stop the bandit where its log was truncated (it must be loaded again) or is damaged."""
        try:
            yield
        except (LogTruncatedError, LogDamagedError) as error:
            self._versions.stop(error)
            raise

    async def _append(self, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt | StorageError]:
        if self._versions.fault is not None:
            self._versions.check_sound()
        try:
            with self._flagging_faults():
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
            await self._projection.fold_log(offset, known=known)
