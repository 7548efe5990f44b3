"""Events into a bandit's log: first the store, then what is known, then the answer.

keep   encode ──> Storage.append_all ──> Projection.catch_up ──> receipts
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
    LogDamaged,
    LogTruncatedError,
    Receipt,
    Storage,
    StorageDamagedError,
    StorageError,
)


class LogCommitter:
    """See the module."""

    def __init__(self, storage: Storage, log: Log, folding: Projection, background: TaskGroup) -> None:
        self._storage = storage
        self._log = log
        self._folding = folding
        self._background = background

    async def commit(self, entries: Sequence[tuple[str, AnyEvent]], durability: Durability) -> list[Receipt | StorageError]:
        """Accept each (key, event) unless its key is taken, and learn them; where folding is slow, decisions do not wait for it.
        A failure of all is raised, that of one is its result. Must not be cancelled.
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
        if self._folding.is_slow and all(isinstance(event, Decided) for _, event in entries):
            self._background.spawn(self._fold_later(last, known))
        else:
            await self._folding.catch_up(last, known=known)
            await self._folding.wait_until_current()
        return receipts

    def _drop_refused(self, refused: Iterable[AnyEvent]) -> None:
        for event in refused:
            if isinstance(event, Decided):
                self._folding.drop_in_flight(event.id)

    async def append_one(self, key: str, event: AnyEvent, *, expected: int) -> Receipt:
        """Accept one event at the end that the caller knows, or `StorageConflict`; nothing is folded."""
        self._folding.check_sound()
        with self._flagging_truncation():
            return await self._storage.append(self._log, key, events.encode(event), Durability.POWER, expected=expected)

    @contextlib.contextmanager
    def _flagging_truncation(self) -> Iterator[None]:
        """A log that turns out to have lost its end is learnt anew; one that is damaged as a whole stops its bandit."""
        try:
            yield
        except LogTruncatedError as error:
            self._folding.log_truncated = error
            raise
        except LogDamaged as error:
            self._folding.stop(error)
            raise

    async def _append(self, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt | StorageError]:
        self._folding.check_sound()
        try:
            with self._flagging_truncation():
                return [*await self._storage.append_all(self._log, entries, durability)]
        except StorageDamagedError as error:
            if len(entries) == 1 or isinstance(error, LogDamaged):
                raise
            return [await self._alone(key, payload, durability) for key, payload in entries]

    async def _alone(self, key: str, payload: bytes, durability: Durability) -> Receipt | StorageError:
        """One of several, of which another cannot be accepted; this one may have been accepted with it."""
        try:
            receipt = await self._storage.append(self._log, key, payload, durability)
        except StorageError as error:
            return error
        return Receipt(receipt.offset) if receipt.first == payload else receipt

    async def _fold_later(self, offset: int, known: Mapping[bytes, AnyEvent]) -> None:
        with contextlib.suppress(StorageError):  # whoever needs it tries again, and is told
            await self._folding.catch_up(offset, known=known)
