"""The index of bandits that are out of memory: when each must be looked at next, as small records of the store.

    unload ──> Place(offset, due)          due: the earliest deadline of its open decisions; none = nothing can become due
    sweep  ──> due now ──claim──> load, expire, unload
    loaded, in a shared store ──> Place(owner, due)    a lease, renewed while its process lives, and due when that ends

A place is written last, after the snapshot; it says how far the log was. One that is missing, or that the log has grown past
while no process holds the bandit, says nothing: the bandit is loaded, and has a place again. So a process may end at any moment,
and what it held is looked at when its lease ends. A claim is a swap of the record, which one replica wins; two that load a bandit
would do no harm, since a decision is closed once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from operator import itemgetter

import msgspec
from uuid_utils.compat import uuid7

from service.storage.base import Log, Storage

PREFIX = "places/"
LEASE_S = 30.0
"""A process that ended is noticed within so long."""
LONG_LEASE_S = 300.0
"""Where no deadline is near, so that holding a bandit that does little costs a write in minutes."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What the index says of a bandit.

    due: POSIX seconds at which it must be loaded; None = never.  offset: up to which `due` holds.
    owner: the process that has the bandit loaded in a shared store, and renews `due`; "" = it is out of memory.
    asked: POSIX seconds of the last request.  size: bytes that it takes when it is loaded.
    """

    name: str
    offset: int
    due: float | None
    owner: str = ""
    asked: float = 0.0
    size: int = 0


_decoder = msgspec.json.Decoder(Place)


class PlaceIndex:
    """The places of all bandits, as this process has last read or written them, by the ids of their logs.

    owner: of this process.
    """

    def __init__(self, storage: Storage) -> None:
        self.owner = str(uuid7())
        self._storage = storage
        self._known: dict[str, tuple[Place | None, bytes]] = {}  # None: a newer version wrote it otherwise
        self._deadlines: list[tuple[float, str]] = []  # (due, id) of those that have one, sorted

    def get(self, log: Log) -> Place | None:
        """The place of a bandit, as far as known."""
        known = self._known.get(log.id)
        return None if known is None else known[0]

    def due(self, now: float) -> list[Log]:
        """The logs that must be looked at, the earliest first. now: POSIX seconds."""
        end = bisect_right(self._deadlines, now, key=itemgetter(0))
        found = ((log_id, self._known[log_id][0]) for _, log_id in self._deadlines[:end])
        return [Log(log_id, place.name) for log_id, place in found if place is not None]

    async def read(self) -> None:
        """Read all of it."""
        found = {}
        for key, value in (await self._storage.records(None)).items():
            if key.startswith(PREFIX):
                found[key.removeprefix(PREFIX)] = (_decoded(value), value)
        self._known = found
        places = ((place, log_id) for log_id, (place, _) in found.items())
        self._deadlines = sorted((place.due, log_id) for place, log_id in places if place is not None and place.due is not None)

    async def write(self, log: Log, place: Place) -> bool:
        """Replace the place that is known; whether that was the one in the store. Else the one in the store is known now."""
        key, known = PREFIX + log.id, self._known.get(log.id)
        value = msgspec.json.encode(place)
        if known is not None and known[1] == value:
            return True
        if await self._storage.swap_record(None, key, value, expected=None if known is None else known[1]):
            self._replace(log.id, place, value)
            return True
        await self.refresh(log)
        return False

    async def refresh(self, log: Log) -> None:
        """Read one of them."""
        found = await self._storage.find_record(None, PREFIX + log.id)
        if found is None:
            self._remove(log.id)
        else:
            self._replace(log.id, _decoded(found), found)

    async def drop(self, log: Log) -> None:
        """Remove the place of a log that is gone."""
        key = PREFIX + log.id
        while (value := await self._storage.find_record(None, key)) is not None:
            if await self._storage.swap_record(None, key, None, expected=value):
                break
        self._remove(log.id)

    async def drop_others(self, logs: Iterable[Log]) -> None:
        """Remove the places of logs that are not among these: their bandits were deleted by a process that ended over it."""
        for log_id in self._known.keys() - {log.id for log in logs}:
            await self.drop(Log(log_id, ""))

    def _replace(self, log_id: str, place: Place | None, value: bytes) -> None:
        self._remove(log_id)
        self._known[log_id] = (place, value)
        if place is not None and place.due is not None:
            insort(self._deadlines, (place.due, log_id))

    def _remove(self, log_id: str) -> None:
        place, _ = self._known.pop(log_id, (None, b""))
        if place is not None and place.due is not None:
            del self._deadlines[bisect_left(self._deadlines, (place.due, log_id))]


def _decoded(value: bytes) -> Place | None:
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError:
        return None
