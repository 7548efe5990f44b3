"""`nextarm migrate`: copies every log of one store, event by event, into another; both must end at the same digest.

    source --read, in order--> derive each entry's key --append--> destination     the same offsets, or it stops
                                                                     then: replay both from the first event, compare

An event's key follows from the event, so no storage has to give keys back. What was copied already is found again by its key: an
interrupted migration is repeated, and goes on where it was. Nothing may be served from either store meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import torch
from rich.console import Console
from rich.progress import Progress

from service.engine import events
from service.engine.events import (
    Amended,
    AnyEvent,
    ArmAdded,
    Cancelled,
    Cloned,
    Created,
    Decided,
    Expired,
    Imported,
    Observed,
    Partial,
    ReferenceAdded,
    SessionBegun,
    ShadowPromoted,
)
from service.engine.learner import Learner
from service.settings import InvalidSettings, Settings
from service.storage.base import PAGE, Durability, Entry, Log, Receipt, Storage, StorageError, StorageUnavailableError, pages


class CannotMigrate(StorageError):
    """The stores do not allow it; names the bandit and the reason."""


class Migrated(NamedTuple):
    """One migrated bandit. sha256: of the state after `events` events, replayed from either store."""

    bandit: str
    events: int
    sha256: str


def key_of(event: AnyEvent, offset: int) -> str:
    """The key under which a log holds this event; for events that need none of their own, a key that only this offset has."""
    if event.cloned is not msgspec.UNSET:
        return events.clone_key(event.cloned)
    match event:
        case Created():
            return "created"
        case Decided() | SessionBegun() | Partial() | Observed() | Expired() | Cancelled() | Amended() | Imported() | Cloned():
            return events.key_of(event)
        case ArmAdded():
            return events.added_key(event.name)
        case ReferenceAdded(id=str(reference)):
            return events.reference_key(reference)
        case ShadowPromoted():
            return events.promoted_key(event.id)
        case _:
            return f"migrated//{offset}"


async def migrate(source: Settings, destination: Settings, *, quiet: bool) -> list[Migrated]:
    """Copy every bandit, and prove it. Raises `CannotMigrate`, or what the stores raise; a repeated call goes on."""
    torch.set_num_threads(1)  # as in the server: the same sums in the same order
    if source.store == destination.store:
        raise InvalidSettings("the two stores are one")
    if source.scheme == "sqlite" and not source.sqlite_path().is_file():  # it would be created
        raise StorageUnavailableError(f"{source.sqlite_path()}: there is no such store")
    done = []
    here, there = source.open_storage(), destination.open_storage()
    await here.start()
    try:
        await there.start()
        try:
            with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
                for log in await here.logs():
                    task = progress.add_task(log.name, total=2 * await here.end(log))
                    done.append(await _migrate(log, here, there, each=lambda n, task=task: progress.advance(task, n)))  # type: ignore[misc]
        finally:
            await there.close()
    finally:
        await here.close()
    return done


async def _migrate(log: Log, here: Storage, there: Storage, *, each: Callable[[int], object]) -> Migrated:
    first = await here.read(log, after=0, limit=1)
    if not first:
        raise CannotMigrate(f"bandit {log.name!r}: its log is empty")
    copy, receipt = await there.create(Log(log.id, log.name), first[0].payload)
    _check(log, first[0], receipt)
    after = 1
    async for entries in pages(here, log, after=after, limit=PAGE):
        # what is begun in order is accepted in order, and shares commits
        accepted = await asyncio.gather(*(_append(there, copy, entry) for entry in entries), return_exceptions=True)
        for entry, result in zip(entries, accepted, strict=True):
            if isinstance(result, BaseException):
                raise result
            _check(log, entry, result)
        after = entries[-1].offset
        each(len(entries))
    learners = [await Learner.load(storage, of, use_snapshots=False, until=after) for storage, of in ((here, log), (there, copy))]
    each(after)
    for learner in learners:
        await learner.projection.wait_for_shadows()
    (offset, sha256), other = learners[0].digest(), learners[1].digest()
    if (offset, sha256) != other or await there.end(copy) != offset:
        raise CannotMigrate(f"bandit {log.name!r}: the destination holds more, or other, events than the source")
    for learner in learners[1:]:
        await learner.projection.snapshot()
    return Migrated(log.name, offset, sha256)


async def _append(there: Storage, log: Log, entry: Entry) -> Receipt:
    key = key_of(events.decode(entry.payload), entry.offset)
    return await there.append(log, key, entry.payload, Durability.POWER, expected=entry.offset - 1)  # no gap, whatever fails


def _check(log: Log, entry: Entry, receipt: Receipt) -> None:
    if receipt.offset != entry.offset or (receipt.first is not None and receipt.first != entry.payload):
        raise CannotMigrate(f"bandit {log.name!r}: the destination has another log of this name; delete it there first")
