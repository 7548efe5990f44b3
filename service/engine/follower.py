"""Follows what other processes do with a shared store: their events, the bandits they create or delete, and the store's clock.

follow ──> Storage.wait_for_changes ──> names of logs ──> fold what is new, or have the repository look the name up
clock  ──> the time of the store: replicas whose clocks differ agree on what is overdue
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from service.engine.learner import Learner
from service.storage.base import (
    Log,
    LogCompactedError,
    LogNotFoundError,
    LogTruncatedError,
    Storage,
    StorageDamagedError,
    StorageError,
    StorageUnavailableError,
)

logger = logging.getLogger("nextarm.hosting")

CHANGES_S = 5.0
"""How long one wait for changes lasts; nothing depends on it."""
RETRY_S = 0.2
"""Pause after a store could not be reached."""
UNLOADED_S = 1.0
"""How long the news of a bandit gather that is not loaded, until it is looked whether it still exists."""
TIME_S, TIME_NEAR_S = 60.0, 0.5
"""How often the clock is compared with the store's. An answer that took longer than the second is ignored, except the first."""
TIME_APART_S = 5.0
"""A difference that is logged."""


class LogFollower:
    """The tasks of one process that follow a shared store.

    learners: the loaded ones by the names of their logs, as the repository has them.  clock: of this machine.
    discover: makes what the repository knows under a name match the store.
    unloaded: the logs that are not loaded, as the repository has them.  changed: names of those that others wrote to.
    known_ends: last known ends of logs, by name.
    """

    def __init__(
        self,
        storage: Storage,
        learners: Mapping[str, Learner],
        *,
        clock: Callable[[], datetime],
        discover: Callable[[str], Awaitable[None]],
        unloaded: Mapping[str, Log] = MappingProxyType({}),
    ) -> None:
        self.known_ends: dict[str, int] = {}
        self._storage = storage
        self._learners = learners
        self._own_clock = clock
        self._discover = discover
        self._unloaded = unloaded
        self.changed: set[str] = set()
        self._clock_offset: timedelta | None = None  # the store's clock minus ours
        self._tasks: list[asyncio.Task[None]] = []
        self._announced: set[str] = set()  # logs in which something happened since they were read
        self._following: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to follow."""
        self._tasks += [asyncio.create_task(self._follow()), asyncio.create_task(self._sync_clock())]

    async def close(self) -> None:
        """Stop all tasks."""
        for task in [*self._tasks, *self._following.values()]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    # -- the clock -----------------------------------------------------------------------------------------------------------

    def clock(self) -> datetime:
        """The time of the store."""
        return self._own_clock() + (self._clock_offset or timedelta())

    async def _sync_clock(self) -> None:
        while True:
            await asyncio.sleep(TIME_S)
            with contextlib.suppress(StorageUnavailableError):
                await self.read_store_clock()

    async def read_store_clock(self) -> None:
        """Estimate the offset of the store's clock. Only differences of times are used, so it may be set back."""
        before = self._own_clock()
        there = await self._storage.time()
        took = self._own_clock() - before
        if there is None or (self._clock_offset is not None and took.total_seconds() > TIME_NEAR_S):
            return
        offset = there - before - took / 2
        if abs(offset - (self._clock_offset or timedelta())).total_seconds() > TIME_APART_S:
            logger.warning("this clock and the store's differ; the store's counts", extra={"ahead_s": offset.total_seconds()})
        self._clock_offset = offset

    # -- the logs ------------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                changes = await self._storage.wait_for_changes(timeout_s=CHANGES_S)
            except StorageUnavailableError:  # what is missed meanwhile is reported afterwards
                await asyncio.sleep(RETRY_S)
                continue
            for name, end in changes.items():
                self.known_ends[name] = max(end, self.known_ends.get(name, 0)) if end else 0
                self.follow(name)

    def follow(self, name: str) -> None:
        """Fold what is new in a log; where that is under way, it goes on until nothing is new."""
        self._announced.add(name)
        if name not in self._following:
            self._following[name] = asyncio.create_task(self._follow_log(name))

    async def _follow_log(self, name: str) -> None:
        """Fold what is new in a log, until no more was reported meanwhile."""
        try:
            while name in self._announced:
                self._announced.discard(name)
                end = self.known_ends.get(name, 0)
                learner = self._learners.get(name)
                if learner is None and name in self._unloaded:
                    self.changed.add(name)
                    if end == 0:  # it grew, or was deleted; a request for it does not wait for this
                        await asyncio.sleep(UNLOADED_S)
                        await self._discover(name)
                elif learner is None:
                    await self._discover(name)
                elif end == 0:
                    await learner.demand.gather()  # as a rule it grew; that it was deleted is noticed so much later
                    self._announced.discard(name)
                    await learner.projection.catch_up()  # a log that was deleted or created again raises
                elif learner.versions.committed.offset < end:
                    await learner.demand.gather()
                    self._announced.discard(name)
                    before, end = end, self.known_ends.get(name, 0)
                    await learner.projection.catch_up(end if end >= before else 0)  # shorter: created again meanwhile
        except (LogNotFoundError, LogTruncatedError, LogCompactedError):
            await self._discover_with_retries(name)
        except StorageUnavailableError:
            pass  # the next request reports it, and the change is announced again
        except StorageDamagedError as error:
            logger.error("what others wrote cannot be learned", extra={"bandit": name, "reason": str(error)})
        finally:
            del self._following[name]

    async def _discover_with_retries(self, name: str) -> None:
        """`_discover` until the store answers: there may be no further notification about this name."""
        while True:
            try:
                return await self._discover(name)
            except StorageUnavailableError:
                await asyncio.sleep(RETRY_S)
            except StorageError:  # the next request reports it
                return None
