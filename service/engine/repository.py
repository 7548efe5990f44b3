"""The repository of bandits: name -> Learner. Creates, loads, deletes and closes them.

get    ──> a bandit that is not loaded is loaded at the first request for it, which waits
start  ──> every log is loaded in the background, two at a time, so that requests find room to load before them
sweep  ──> overdue decisions expire; a log that another program has damaged stops its bandit
follow ──> bandits that other processes created or deleted are added or dropped (`LogFollower` says which)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
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
from service.engine.memory import release_memory
from service.settings import Settings
from service.storage.base import (
    Log,
    LogCompactedError,
    LogNotFoundError,
    LogTruncatedError,
    Storage,
    StorageDamagedError,
    StorageUnavailableError,
)
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.hosting")
throttled = ThrottledLogger(logger)

LOADING_AT_ONCE, LOADING_BEHIND = 4, 2
"""Loads at once, and those of them that no request may be waiting for: the others are left to requests."""


class BanditRepository:
    """Every bandit of a store, by name, with its learner.

    clock: of this machine; the attribute of this name is the time for events and deadlines, the store's if processes share one.
    on_load: called with the first event of every bandit that is loaded from the store.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = events.utc_now,
        on_load: Callable[[Created], None] = lambda created: None,
    ) -> None:
        self.storage = storage
        self._on_load = on_load
        self._settings = settings
        self._device = settings.where()
        self._learners: dict[str, Learner] = {}
        self._unloaded: dict[str, Log] = {}  # in the store, neither loaded nor damaged
        self._wanted: dict[Log, None] = {}  # to be loaded in the background, in this order
        self._behind: set[Log] = set()  # of these, the ones that are being loaded
        self._loading: dict[Log, asyncio.Task[Learner]] = {}
        self._name_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # see `_name_lock`
        self._damaged: dict[str, BanditDamagedError] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._follower = LogFollower(storage, self._learners, clock=clock, discover=self._discover)
        self.clock = self._follower.clock if storage.shared else clock
        self._cloner = Cloner(storage, clock=self.clock)
        self._load_slots = asyncio.Semaphore(LOADING_AT_ONCE)
        self.evaluations = Evaluations(storage, settings, clock=self.clock)

    async def start(self) -> None:
        """Open the storage and begin to load bandits in the background."""
        await self.storage.start()
        await self._follower.read_store_clock()
        self._unloaded = {log.name: log for log in await self.storage.logs()}
        self._wanted = dict.fromkeys(self._unloaded.values())
        self._load_behind()
        self._tasks.append(asyncio.create_task(self._sweep()))
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
        await self.storage.close()

    # -- names -------------------------------------------------------------------------------------------------------------

    async def create(self, created: Created) -> tuple[Learner, bool]:
        """The learner of a new bandit and True, or of the one that has the name already and False."""
        name = _log_name(created.tenant, created.bandit)
        wanted = Log(str(uuid7()), name)
        learner = Learner(self.storage, wanted, created, **self._options())  # an invalid one fails before anything is logged
        async with self._name_lock(name):
            log, receipt = await self.storage.create(wanted, events.encode(created))
            if receipt.first is None:
                self._learners[name] = learner
                self._cloner.start(learner)
                self._unloaded.pop(name, None)
                self._damaged.pop(name, None)
                return learner, True
            known = self._learners.get(name)
            if name not in self._damaged and (known is None or known.log != log):  # e.g. the request that created it was cut off
                self._adopt(log)
        return await self.get(created.tenant, created.bandit), False

    async def get(self, tenant: str, bandit: str) -> Learner:
        """The learner of a bandit; waits while it is being loaded."""
        name = _log_name(tenant, bandit)
        learner = self._learners.get(name)
        if learner is not None and _must_reload(learner):
            self._reload(name, learner)
            learner = None
        if learner is None and self.storage.shared and not {name} & (self._unloaded.keys() | self._damaged.keys()):
            await self._discover(name)
            learner = self._learners.get(name)  # it may have been created meanwhile
        if learner is None and name in self._unloaded:
            learner = await asyncio.shield(self._start_loading(self._unloaded[name]))
        if name in self._damaged:
            raise type(self._damaged[name])(*self._damaged[name].args)
        if learner is None:
            raise BanditNotFoundError(bandit)
        fault = learner.versions.fault
        if isinstance(fault, StorageDamagedError):
            raise BanditNewerError(str(fault)) if isinstance(fault, LogNewerError) else BanditDamagedError(str(fault))
        learner.demand.note()
        return learner

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
        if not self.storage.shared:  # else the process that began it may be at work
            self._cloner.start(learner)
        self._on_load(learner.created)
        return learner

    def _is_wanted(self, log: Log) -> bool:
        """Whether a log that is being loaded was not deleted, and its name not given to another one, meanwhile."""
        return self._unloaded.get(log.name) == log

    def _adopt(self, log: Log) -> None:
        """Begin to load the log that has a name now, whatever had it before."""
        self._learners.pop(log.name, None)
        self._damaged.pop(log.name, None)
        self._unloaded[log.name] = log
        self._start_loading(log)

    def _forget(self, log: Log) -> None:
        """Drop a log, but not another one that has its name by now."""
        name = log.name
        if name in self._learners and self._learners[name].log == log:
            del self._learners[name]
        if self._unloaded.get(name) == log:
            del self._unloaded[name]

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

    async def _inspect(self) -> None:
        """Stop every bandit whose log another program has damaged."""
        learners = {learner.log.name: learner for learner in self._learners.values() if learner.versions.fault is None}
        try:
            damaged = await self.storage.inspect([learner.log for learner in learners.values()])
        except StorageUnavailableError:
            return  # `readyz` asks the store itself, and says so
        except Exception as error:  # a sweep that ends would leave every decision open for ever
            throttled.error("the store could not be inspected", reason=str(error))
            return
        for name, damage in damaged.items():
            if name in learners:
                learners[name].versions.stop(damage)


def _must_reload(learner: Learner) -> bool:
    """Whether the log is not the one that this learner was folded from any more, or was trimmed past it."""
    return isinstance(learner.versions.fault, LogTruncatedError | LogCompactedError)


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
