"""The repository of bandits: name -> Learner. Creates, loads, deletes and closes them.

get    ──> a bandit that is not loaded is loaded at the first request for it, which waits
start  ──> what was asked for lately, or may have deadlines, is loaded in the background, two at a time
sweep  ──> overdue decisions expire; a log that another program has damaged stops its bandit; what is due is loaded (places.py);
           what was not asked for, or takes memory beyond the limit, is unloaded: snapshot, summary, place in the index
follow ──> bandits that other processes created or deleted are added or dropped (`LogFollower` says which)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any
from weakref import WeakValueDictionary

from uuid_utils.compat import uuid7

from service.engine import events
from service.engine.clones import Cloner
from service.engine.errors import BanditDamagedError, BanditNewerError, BanditNotFoundError, LogNewerError
from service.engine.evaluations import Evaluations
from service.engine.events import Created
from service.engine.follower import LogFollower
from service.engine.learner import Learner
from service.engine.memory import keep_trimmed, release_memory
from service.engine.places import LEASE_S, LONG_LEASE_S, Place, PlaceIndex
from service.settings import Settings
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
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.hosting")
throttled = ThrottledLogger(logger)

LOADING_AT_ONCE, LOADING_BEHIND = 4, 2
"""Loads at once, and those of them that no request may be waiting for: the others are left to requests."""
VISIT_S = 10.0
"""How long a bandit stays that was loaded for its deadlines alone."""
UNLOADING_S = 1.0
"""For how long a sweep unloads what is idle; deadlines do not wait for more."""
LOOK_S = 10.0
"""How often the index of places is read in a shared store. What this process unloads it knows at once."""
CREATE_TRIES = 10
"""Attempts to create a bandit whose name is free or taken, each time otherwise than it was a moment ago."""
SUMMARY_S = 60.0
"""How old the summary of a bandit may be that is loaded, in a shared store: other replicas list it by that."""
RETURNED_S, RETURNED = 60.0, 3
"""So many bandits that are loaded again so soon after they left for want of memory are a notice."""
SUMMARY = "/summary"
"""The key of a bandit's summary among the records of its log; no evaluation can have it as its id."""


class BanditRepository:
    """Every bandit of a store, by name, with its learner.

    clock: of this machine; the attribute of this name is the time for events and deadlines, the store's if processes share one.
    on_load: called with the first event of every bandit that is loaded from the store.
    summarize: what is kept of a bandit that is unloaded, for lists.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = events.utc_now,
        on_load: Callable[[Created], None] = lambda created: None,
        summarize: Callable[[Learner], Awaitable[bytes]] | None = None,
    ) -> None:
        self.storage = storage
        self._on_load = on_load
        self._summarize = summarize
        self._settings = settings
        self._device = settings.where()
        self._learners: dict[str, Learner] = {}
        self._unloaded: dict[str, Log] = {}  # in the store, neither loaded nor damaged
        self._wanted: dict[Log, None] = {}  # to be loaded in the background, in this order
        self._behind: set[Log] = set()  # of these, the ones that are being loaded
        self._visited: set[Log] = set()  # to be loaded, or loaded, for their deadlines alone
        self._places = PlaceIndex(storage)
        self._looked_at = -math.inf
        self._summarized: dict[Log, tuple[int, float]] = {}  # offset of the last summary, and when it was written
        self._suspected: set[Log] = set()  # whose place was found wrong at the last look
        self._sizes: dict[Log, tuple[int, int]] = {}  # offset at which a learner was measured, and bytes
        self._unsaved: dict[str, str] = {}  # why a bandit that should leave memory stays
        self._over_limit = 0  # bytes in memory that could not be made room for
        self._evicted: dict[str, float] = {}  # when bandits left for want of memory, and those that came back soon
        self._returned: deque[float] = deque()
        self._loading: dict[Log, asyncio.Task[Learner]] = {}
        self._name_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # see `_name_lock`
        self._damaged: dict[str, BanditDamagedError] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._follower = LogFollower(storage, self._learners, clock=clock, discover=self._discover, unloaded=self._unloaded)
        self.clock = self._follower.clock if storage.shared else clock
        self._cloner = Cloner(storage, clock=self.clock)
        self._load_slots = asyncio.Semaphore(LOADING_AT_ONCE)
        self._room_lock = asyncio.Lock()
        self.evaluations = Evaluations(storage, settings, clock=self.clock)

    async def start(self) -> None:
        """Open the storage and begin to load bandits in the background."""
        await self.storage.start()
        await self._follower.read_store_clock()
        logs = await self.storage.logs()
        self._unloaded.update({log.name: log for log in logs})
        await self._places.read()
        self._wanted = dict.fromkeys(await self._to_load_at_start(logs))
        self._load_behind()
        self._tasks.append(asyncio.create_task(self._sweep()))
        self._tasks.append(asyncio.create_task(keep_trimmed()))
        self.evaluations.start()
        if self.storage.shared:
            self._follower.start()

    async def close(self) -> None:
        """Stop the background tasks, write snapshots, close the storage."""
        self._wanted.clear()
        await self.evaluations.close()
        await self._follower.close()
        for task in [*self._tasks, *self._loading.values()]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        for learner in self._learners.values():
            try:
                await learner.projection.close()
            except Exception as error:  # the next start folds more of the log; the store must be closed all the same
                logger.warning("no snapshot was left", extra={"bandit": learner.log.name, "reason": str(error)})
        sound = [learner for learner in self._learners.values() if learner.versions.fault is None]
        for failed in await asyncio.gather(*map(self._write_rest, sound), return_exceptions=True):
            if isinstance(failed, BaseException):  # the next start loads what has no place
                throttled.warning("what lists and deadlines need of a bandit was not left", reason=str(failed))
        await self.storage.close()

    # -- names -------------------------------------------------------------------------------------------------------------

    async def create(self, created: Created) -> tuple[Learner, bool]:
        """The learner of a new bandit and True, or of the one that has the name already and False."""
        name = _log_name(created.tenant, created.bandit)
        wanted = Log(str(uuid7()), name)
        learner = Learner(self.storage, wanted, created, **self._options())  # an invalid one fails before anything is logged
        for _ in range(CREATE_TRIES):
            async with self._name_lock(name):
                log, receipt = await self.storage.create(wanted, events.encode(created))
                if receipt.first is None:
                    self._learners[name] = learner
                    learner.demand.hold(asyncio.current_task())
                    self._cloner.start(learner)
                    self._unloaded.pop(name, None)
                    self._damaged.pop(name, None)
                    return learner, True
                known = self._learners.get(name)
                if name not in self._damaged and (known is None or known.log != log):
                    self._adopt(log)  # e.g. the request that created it was cut off
            with contextlib.suppress(BanditNotFoundError, LogNotFoundError):  # it was deleted meanwhile: the name is free
                return await self.get_newest(created.tenant, created.bandit), False
        raise StorageUnavailableError("bandits of this name are deleted as fast as they are created; try again")

    async def get(self, tenant: str, bandit: str) -> Learner:
        """The learner of a bandit, which stays in memory until the calling task ends; waits while it is being loaded."""
        name = _log_name(tenant, bandit)
        learner = await self._find(name)
        while learner is not None and self._learners.get(name) is not learner:  # it left memory before this task could hold it
            learner = await self._find(name)
        if learner is None:
            raise BanditNotFoundError(bandit)
        _check_served(learner)
        learner.demand.hold(asyncio.current_task())
        self._visited.discard(learner.log)
        return learner

    async def get_newest(self, tenant: str, bandit: str) -> Learner:
        """The learner of the log that has a name now, folded to its end, whatever news of other processes have come."""
        while True:
            learner = await self.get(tenant, bandit)
            try:
                await learner.projection.refresh()
            except LogNotFoundError:  # another process has deleted it, and may have created it again
                await self._discover(learner.log.name)
            else:
                return learner

    def peek(self, tenant: str, bandit: str) -> Learner | None:
        """The learner of a bandit if it is loaded, without asking for it; raises where it is not served."""
        name = _log_name(tenant, bandit)
        if name in self._damaged:
            raise type(self._damaged[name])(*self._damaged[name].args)
        learner = self._learners.get(name)
        if learner is None or _must_reload(learner):
            return None
        _check_served(learner)
        return learner

    async def summary(self, tenant: str, bandit: str) -> bytes | None:
        """What was kept of a bandit when it was in memory last; None where nothing was. `LogNotFoundError`: it was deleted."""
        log = self._unloaded.get(_log_name(tenant, bandit))
        return None if log is None else await self.storage.find_record(log, SUMMARY)

    async def _find(self, name: str) -> Learner | None:
        """The learner of a log, loaded where it was not; None where there is no such log. Raises damage that is known."""
        learner = self._learners.get(name)
        if learner is not None and _must_reload(learner):
            self._reload(name, learner)
            learner = None
        if learner is None and self.storage.shared and not {name} & (self._unloaded.keys() | self._damaged.keys()):
            await self._discover(name)
            learner = self._learners.get(name)  # it may have been created meanwhile
        if learner is None and name in self._unloaded:
            learner = await self._loaded(name)
        if name in self._damaged:
            raise type(self._damaged[name])(*self._damaged[name].args)
        return learner

    async def _loaded(self, name: str) -> Learner | None:
        """The learner of a log that is not loaded; of the log that has its name now, where another process created it again."""
        log = self._unloaded[name]
        try:
            return await asyncio.shield(self._start_loading(log))
        except LogNotFoundError:
            if not self.storage.shared:
                raise
        await self._discover(name)
        return await asyncio.shield(self._start_loading(self._unloaded[name])) if name in self._unloaded else None

    async def delete(self, tenant: str, bandit: str) -> None:
        """Remove the bandit and its log, whatever is open; a damaged one can be deleted too."""
        name = _log_name(tenant, bandit)
        log = await self.storage.find_log(name)  # another process may have given the name to another log
        if log is None:
            raise BanditNotFoundError(bandit)
        if log in self._loading:
            await asyncio.wait([self._loading[log]])
        await self.storage.delete(log)
        self._damaged.pop(name, None)
        self._forget(log)
        await self._places.drop(log)
        await asyncio.to_thread(release_memory)

    async def names(self, tenant: str) -> list[str]:
        """The bandits of a tenant, in order."""
        known = {*self._learners, *self._unloaded, *self._damaged}
        return sorted(shown for name in known if (shown := visible_name(name, tenant)) is not None)

    def loaded(self, tenant: str | None) -> list[tuple[str, Learner]]:
        """Names and learners of a tenant, with the tenant left out; None = of all, tenant/bandit."""
        known = ((visible_name(name, tenant), learner) for name, learner in self._learners.items())
        return sorted(((name, learner) for name, learner in known if name is not None), key=itemgetter(0))

    def lag(self, learner: Learner) -> int:
        """Events of its log that it has not folded yet, as far as known."""
        return max(0, self._follower.known_ends.get(learner.log.name, 0) - learner.versions.committed.offset)

    def damaged(self) -> dict[str, str]:
        """Why bandits are not served until an operator looks, by the names of their logs."""
        damaged = {name: str(why) for name, why in self._damaged.items() if not isinstance(why, BanditNewerError)}
        faults = {name: learner.versions.fault for name, learner in self._learners.items()}
        damaged |= {
            name: str(fault)
            for name, fault in faults.items()
            if isinstance(fault, StorageDamagedError) and not isinstance(fault, LogNewerError)
        }
        return dict(sorted(damaged.items()))

    def newer(self) -> list[str]:
        """The names of the logs that a newer version wrote into: not served, and nothing about them is damaged."""
        newer = {name for name, why in self._damaged.items() if isinstance(why, BanditNewerError)}
        return sorted(
            newer | {name for name, learner in self._learners.items() if isinstance(learner.versions.fault, LogNewerError)}
        )

    def state(self) -> dict[str, list[str]]:
        """What is loading, what is damaged, and what only a newer version can read."""
        damaged = [f"{name}: {reason}" for name, reason in self.damaged().items()]
        loading = {log.name for log in [*self._loading, *self._wanted] if self._is_wanted(log)}
        return {"loading": sorted(loading), "damaged": damaged, "newer": self.newer()}

    # -- background --------------------------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "clock": self.clock,
            "snapshot_every": settings.snapshot_every,
            "max_open": settings.max_open,
            "keep_events": settings.kept_events,
            "device": self._device,
        }

    def _load_behind(self) -> None:
        """Load in the background what is wanted: each load that ends begins the next."""
        for log in list(self._wanted):
            if not self._is_wanted(log):
                del self._wanted[log]
            elif log not in self._behind and len(self._behind) < LOADING_BEHIND:
                self._behind.add(log)
                self._start_loading(log).add_done_callback(partial(self._loaded_behind, log))

    def _loaded_behind(self, log: Log, done: asyncio.Task[Learner]) -> None:
        self._behind.discard(log)
        if done.cancelled() or isinstance(done.exception(), StorageUnavailableError | LogTruncatedError):
            return  # the next sweep tries again
        self._wanted.pop(log, None)
        self._load_behind()

    def _start_loading(self, log: Log) -> asyncio.Task[Learner]:
        task = self._loading.get(log)
        if task is None:
            task = self._loading[log] = asyncio.create_task(self._load(log))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # `get` and `state` report it
        return task

    async def _load(self, log: Log) -> Learner:
        """Load one log. If the store is unavailable, the next request tries again; damage is remembered."""
        try:
            async with self._load_slots:
                await self._make_room(log)
                learner = await self._load_learner(log)
        except LogNotFoundError:  # deleted meanwhile
            self._forget(log)
            raise
        except (StorageUnavailableError, LogTruncatedError):
            raise
        except Exception as error:
            if not self._is_wanted(log):
                raise LogNotFoundError(log.name) from error
            self._forget(log)
            is_newer = isinstance(error, LogNewerError | events.NewerEvent)
            self._damaged[log.name] = BanditNewerError(str(error)) if is_newer else BanditDamagedError(str(error))
            logger.critical("a bandit cannot be loaded", extra={"bandit": log.name, "reason": str(error)})
            raise (LogNewerError if is_newer else StorageDamagedError)(f"bandit {log.name!r}", str(error)) from error
        finally:
            self._loading.pop(log, None)
        if not self._is_wanted(log):
            raise LogNotFoundError(log.name)
        del self._unloaded[log.name]
        self._learners[log.name] = learner
        if log not in self._visited:
            learner.demand.note()
        if time.monotonic() - self._evicted.pop(log.name, -math.inf) < RETURNED_S:
            self._returned.append(time.monotonic())
        if self.storage.shared:
            self._follower.follow(log.name)  # what was announced while it was read
        if not self.storage.shared:  # else the process that began it may be at work
            self._cloner.start(learner)
        self._on_load(learner.created)
        return learner

    def _is_wanted(self, log: Log) -> bool:
        """Whether a log that is being loaded was not deleted, and its name not given to another one, meanwhile."""
        return self._unloaded.get(log.name) == log

    def _adopt(self, log: Log) -> None:
        """Know the log that has a name now, whatever had it before."""
        self._learners.pop(log.name, None)
        self._damaged.pop(log.name, None)
        self._unloaded[log.name] = log

    def _forget(self, log: Log) -> None:
        """Drop a log, but not another one that has its name by now."""
        name = log.name
        if name in self._learners and self._learners[name].log == log:
            del self._learners[name]
        if self._unloaded.get(name) == log:
            del self._unloaded[name]
        self._drop_notes(log)

    def _name_lock(self, name: str) -> asyncio.Lock:
        """The lock of one name, held from a call to the store about it until the result is applied here.

        Without it a `_discover` between a creation and its learner would load a second learner of the log, and a result from
        before the creation would drop the first.
        """
        return self._name_locks.setdefault(name, asyncio.Lock())

    async def _load_learner(self, log: Log) -> Learner:
        await self.storage.resync(log)
        try:
            return await Learner.load(self.storage, log, **self._options())
        except LogCompactedError:  # another process wrote snapshots and trimmed behind them meanwhile
            return await Learner.load(self.storage, log, **self._options())

    # -- other processes -----------------------------------------------------------------------------------------------------

    async def _discover(self, name: str) -> None:
        """Make the state of one name here match what the store holds under it."""
        async with self._name_lock(name):
            log = await self.storage.find_log(name)
            learner = self._learners.get(name)
            if log is None:
                self._learners.pop(name, None)
                self._unloaded.pop(name, None)
                self._damaged.pop(name, None)
                self._follower.known_ends.pop(name, None)
                return
            if learner is None or learner.log != log:
                if not (learner is None and self._unloaded.get(name) == log):
                    self._adopt(log)
                return
        if _must_reload(learner):
            self._reload(name, learner)
        else:
            await learner.projection.catch_up()

    def _reload(self, name: str, learner: Learner) -> None:
        """Discard the learner of a log that was truncated, or trimmed past it, and load the log again."""
        if self._learners.get(name) is not learner:
            return  # another request was quicker
        logger.warning(
            "a bandit is reloaded: its log was truncated or trimmed",
            extra={"bandit": name, "reason": str(learner.versions.fault)},
        )
        del self._learners[name]
        self._follower.known_ends.pop(name, None)
        self._unloaded[name] = learner.log
        self._start_loading(learner.log)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            self._load_behind()
            await self._inspect()
            self._cloner.look([learner for learner in self._learners.values() if learner.versions.fault is None])
            for learner in list(self._learners.values()):
                if learner.versions.fault is not None:
                    continue
                try:
                    await learner.outcomes.expire()
                    if self.storage.lacks_snapshot(learner.log):
                        await learner.projection.snapshot()
                except LogNotFoundError:
                    continue  # deleted meanwhile
                except Exception as error:  # a bandit that cannot be swept must not stop the sweep of the others
                    throttled.error("overdue decisions could not be closed", bandit=learner.log.name, reason=str(error))
            try:
                if self.storage.shared:
                    await self._keep_places()
                await self._load_due()
                await self._unload_idle()
                await self._make_room()
            except Exception as error:
                throttled.error("bandits could not be looked at that are out of memory", reason=str(error))

    async def _inspect(self) -> None:
        """Stop every bandit whose log another program has damaged."""
        learners = {learner.log.name: learner for learner in self._learners.values() if learner.versions.fault is None}
        unloaded = dict(self._unloaded)
        try:
            damaged = await self.storage.inspect([*(learner.log for learner in learners.values()), *unloaded.values()])
        except StorageUnavailableError:
            return  # `readyz` asks the store itself, and says so
        except Exception as error:  # a sweep that ends would leave every decision open for ever
            throttled.error("the store could not be inspected", reason=str(error))
            return
        for name, damage in damaged.items():
            if name in learners:
                learners[name].versions.stop(damage)
            elif self._is_wanted(unloaded[name]) and unloaded[name] not in self._loading:
                del self._unloaded[name]
                self._damaged[name] = BanditDamagedError(str(damage))

    # -- out of memory -------------------------------------------------------------------------------------------------------

    async def _to_load_at_start(self, logs: Sequence[Log]) -> list[Log]:
        """What the index says nothing of, or what is newer than it says, which may have deadlines; then, where no other process
        may serve it, what was asked for within `idle_s`, the latest first, as far as the memory goes.
        """
        await self._places.drop_others(logs)
        unknown = [log for log in logs if not await self._is_place_right(log)]
        if self.storage.shared:
            self._suspected.update(unknown)
            return []
        since = self.clock().timestamp() - self._settings.idle_s if self._settings.idle_s else -math.inf
        known = ((log, self._places.get(log)) for log in logs if log not in set(unknown))
        recent = sorted(((log, place) for log, place in known if place and place.asked >= since), key=lambda one: -one[1].asked)
        if self._settings.memory_bytes:
            taken = accumulate(place.size for _, place in recent)
            recent = [one for one, total in zip(recent, taken, strict=True) if total <= self._settings.memory_bytes]
        return [*unknown, *(log for log, _ in recent)]

    async def _is_place_right(self, log: Log) -> bool:
        """Whether the index says when this log is due: its process lives, or was the last to write to it."""
        place = self._places.get(log)
        if place is None or place.owner:
            return place is not None and self.storage.shared
        try:
            return await self.storage.end(log) == place.offset
        except StorageUnavailableError:
            raise
        except StorageError:
            return False  # loading it says what is wrong

    def _place_of(self, learner: Learner, *, owner: str = "") -> Place:
        """What the index has to say of a loaded bandit."""
        now, ledger = self.clock().timestamp(), learner.ledger
        due = now if ledger.cloning is not None and not learner.clone_fault else ledger.next_deadline()
        if owner:
            due = min(now + LONG_LEASE_S, max(now + LEASE_S, math.inf if due is None else due))
        asked = now - learner.demand.idle_s() if learner.log not in self._visited else 0.0
        offset, size = learner.versions.committed.offset, self._size(learner)
        return Place(name=learner.log.name, offset=offset, due=due, owner=owner, asked=asked, size=size)

    async def _keep_places(self) -> None:
        """Renew the leases of loaded bandits, and find places that are wrong."""
        if is_look := time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            await self._places.read()
        now = self.clock().timestamp()
        for learner in list(self._learners.values()):
            known, wanted = self._places.get(learner.log), self._place_of(learner, owner=self._places.owner)
            if learner.versions.fault is not None:
                continue
            held_until = known.due if known is not None and known.owner else None
            assert wanted.due is not None
            if held_until is None or not now + LEASE_S / 2 <= held_until <= wanted.due + 1.0:
                await self._places.write(learner.log, wanted)
            offset, at = self._summarized.get(learner.log, (0, -math.inf))
            if is_look and offset < wanted.offset and time.monotonic() - at >= SUMMARY_S:
                try:
                    await self._write_summary(learner)
                except StorageUnavailableError:
                    raise
                except LogNotFoundError:
                    continue  # deleted meanwhile
                except Exception as error:  # others are to be kept and found all the same
                    throttled.error("what lists say of a bandit was not left", bandit=learner.log.name, reason=str(error))
        if is_look:
            wrong = {log for log in list(self._unloaded.values()) if await self._is_suspect(log)}
            for log in wrong & self._suspected:
                await self._visit(log)
            self._suspected = wrong

    async def _is_suspect(self, log: Log) -> bool:
        has_changed = log.name in self._follower.changed
        if self._places.get(log) is not None and not has_changed and log not in self._suspected:
            return False
        self._follower.changed.discard(log.name)
        return not await self._is_place_right(log)

    async def _load_due(self) -> None:
        """Load the bandits that are due."""
        for log in self._places.due(self.clock().timestamp()):
            if self._is_wanted(log):
                await self._visit(log)
        self._load_behind()

    async def _visit(self, log: Log) -> None:
        """Have a bandit loaded for its deadlines, unless it is to be loaded already, or another replica does."""
        if log in self._loading or log in self._wanted:
            return
        if self.storage.shared:
            known, due = self._places.get(log), self.clock().timestamp() + LEASE_S
            claim = Place(name=log.name, offset=0 if known is None else known.offset, due=due, owner=self._places.owner)
            if not await self._places.write(log, claim):
                return
        self._visited.add(log)
        self._wanted[log] = None

    async def _unload_idle(self) -> None:
        limit, has_unloaded, until = self._settings.idle_s, False, time.monotonic() + UNLOADING_S
        for learner in list(self._learners.values()) if limit else []:
            if time.monotonic() > until:
                break
            if learner.demand.idle_s() >= (min(VISIT_S, limit) if learner.log in self._visited else limit):
                has_unloaded |= await self._unload(learner)
        if has_unloaded:
            await asyncio.to_thread(release_memory)

    async def _make_room(self, coming: Log | None = None) -> None:
        """Unload what was not asked for longest while what is loaded, with the one that is to be loaded, takes more than the
        limit. One stays, however large.
        """
        limit = self._settings.memory_bytes
        if not limit:
            return
        async with self._room_lock:
            has_unloaded, place = False, None if coming is None else self._places.get(coming)
            needed = 0 if place is None else place.size
            for learner in sorted(self._learners.values(), key=lambda one: one.demand.asked_at):
                if self.loaded_bytes() + needed <= limit or (coming is None and len(self._learners) == 1):
                    break
                if await self._unload(learner):
                    self._evicted[learner.log.name] = time.monotonic()
                    has_unloaded = True
            over = self.loaded_bytes() - limit
            if over > 0:
                throttled.warning("loaded bandits take more than NEXTARM_MEMORY_BYTES", bytes=over + limit, limit=limit)
            self._over_limit = max(over, 0)
            if has_unloaded:
                await asyncio.to_thread(release_memory)

    async def _unload(self, learner: Learner) -> bool:
        """Take a bandit out of memory, unless it is at work. It serves requests until all of it is in the store; one that comes
        meanwhile keeps it.
        """
        name = learner.log.name
        if self._is_busy(learner):
            return False
        try:
            if not learner.projection.is_saved:
                await learner.projection.snapshot()
            offset = await self._write_rest(learner)
        except LogNotFoundError:
            return False  # deleted meanwhile
        except Exception as error:
            self._unsaved[name] = str(error)
            throttled.error("a bandit stays in memory, since it cannot be saved", bandit=name, reason=str(error))
            return False
        self._unsaved.pop(name, None)
        is_whole = learner.projection.is_saved and learner.versions.committed.offset == offset
        if not is_whole or self._is_busy(learner):
            return False
        del self._learners[name]  # no await since it was looked at
        self._unloaded[name] = learner.log
        self._drop_notes(learner.log)
        return True

    def _is_busy(self, learner: Learner) -> bool:
        """Whether a bandit must stay: a request, an evaluation, a copy or a shadow is at work, or it is stopped and says why."""
        projection = learner.projection
        return (
            self._learners.get(learner.log.name) is not learner
            or learner.versions.fault is not None
            or learner.demand.is_held
            or not projection.background.is_idle
            or bool(projection.catching_up)
            or bool(learner.versions.in_flight)
            or (learner.ledger.cloning is not None and not learner.clone_fault)
            or self.evaluations.log == learner.log
        )

    async def _write_rest(self, learner: Learner) -> int:
        """Write what is asked of a bandit while it is out of memory: its summary, then its place. The offset of that, 0 where
        another process has written the place meanwhile.
        """
        if self._summarized.get(learner.log, (0, 0.0))[0] < learner.versions.committed.offset:
            await self._write_summary(learner)
        if self.storage.shared:
            await self._places.refresh(learner.log)
        place, known = self._place_of(learner), self._places.get(learner.log)
        if known is not None and known.owner not in ("", self._places.owner):
            return place.offset  # another process has it loaded, too, and the lease
        return place.offset if await self._places.write(learner.log, place) else 0

    async def _write_summary(self, learner: Learner) -> None:
        if self._summarize is None:
            return
        offset, value = learner.versions.committed.offset, await self._summarize(learner)
        known = await self.storage.find_record(learner.log, SUMMARY)
        await self.storage.swap_record(learner.log, SUMMARY, value, expected=known)  # else another replica has written one
        self._summarized[learner.log] = (offset, time.monotonic())

    def _size(self, learner: Learner) -> int:
        """Bytes that a bandit takes, measured again after every tenth event that it has, and a thousand at most."""
        offset, (measured, size) = learner.versions.committed.offset, self._sizes.get(learner.log, (0, 0))
        if not size or offset - measured >= min(1_000, 10 + measured // 10):
            try:
                size = learner.held_bytes()
            except RuntimeError:  # a thread has changed what was being measured
                return size
            self._sizes[learner.log] = (offset, size)
        return size

    def loaded_bytes(self) -> int:
        """Estimated bytes of all loaded bandits."""
        return sum(self._size(learner) for learner in self._learners.values())

    def _drop_notes(self, log: Log) -> None:
        """Forget what is kept of a learner beside it."""
        self._visited.discard(log)
        self._sizes.pop(log, None)
        self._summarized.pop(log, None)
        self._unsaved.pop(log.name, None)

    def notices(self) -> list[str]:
        """What an operator should know of the memory that bandits take; empty where all is well."""
        limit, found = self._settings.memory_bytes, []
        while self._returned and time.monotonic() - self._returned[0] > RETURNED_S:
            self._returned.popleft()
        if self._over_limit:
            found.append(
                f"Loaded bandits take {self._over_limit + limit} bytes, and NEXTARM_MEMORY_BYTES is {limit}: those that are at "
                "work, or larger than that, are served all the same. Raise it, or send them to several replicas."
            )
        if len(self._returned) >= RETURNED:
            found.append(
                f"{len(self._returned)} bandits were loaded again within {RETURNED_S:g} s after they left memory for others: "
                "more are asked for than NEXTARM_MEMORY_BYTES holds. Raise it, or send them to several replicas."
            )
        if self._unsaved:
            why = next(iter(self._unsaved.values()))
            found.append(f"{len(self._unsaved)} bandits stay in memory, since they cannot be saved: {why}")
        return found


def _must_reload(learner: Learner) -> bool:
    """Whether the log is not the one that this learner was folded from any more, or was trimmed past it."""
    return isinstance(learner.versions.fault, LogTruncatedError | LogCompactedError)


def _check_served(learner: Learner) -> None:
    """Raise what stopped a bandit, if anything did."""
    fault = learner.versions.fault
    if isinstance(fault, StorageDamagedError):
        raise BanditNewerError(str(fault)) if isinstance(fault, LogNewerError) else BanditDamagedError(str(fault))


def visible_name(name: str, tenant: str | None) -> str | None:
    """The bandit name of a log as a tenant sees it, None if it belongs to another. tenant: None sees all, as tenant/bandit."""
    if tenant is None:
        return name
    prefix = _log_name(tenant, "")
    rest = name[len(prefix) :]
    return rest if name.startswith(prefix) and "/" not in rest else None


def _log_name(tenant: str, bandit: str) -> str:
    """The name of a log: tenants cannot see each other because they cannot name each other's logs."""
    return f"{tenant}/{bandit}" if tenant else bandit
