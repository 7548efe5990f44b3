"""What one bandit knows: ledger and state, folded from its log and from nothing else.

    log ──read──> Ledger.apply ──effects──> fold ──> published   (state, offset, arms): for receipts, digests, snapshots
                                                         └─ prepare ──> ready   the same with its derived caches: for decisions

`catch_up` is the only code that changes what is known: at the start, live, and in a replay. Each of `published` and `ready` is
replaced by one assignment; readers take no lock. Where preparing is quick, `ready` is `published`. Where it is not (the spectra
of a Frechet distance take seconds), decisions go on with the newest `ready` there is: what they miss counts as pending.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from bandits import state as states
from bandits.errors import BanditError
from bandits.gpu.mirror import DeviceMirror
from bandits.hyperparameters import declared
from bandits.registry import POLICIES, build
from bandits.types import REFERENCE, Observation, Policy, State
from service.engine import events, snapshots
from service.engine.events import AnyEvent, Created, Decided
from service.engine.executor import BACKGROUND_POOL, DECAY, SLOW_DECAY, AdaptiveExecutor, TaskGroup
from service.engine.ledger import AddPending, ArmRecord, Effect, GrowArms, Learn, Ledger, RemovePending
from service.storage.base import (
    Entry,
    Log,
    LogCompactedError,
    LogNotFoundError,
    LogTruncatedError,
    Storage,
    StorageDamagedError,
    StorageUnavailableError,
)

logger = logging.getLogger("nextarm.folding")

READ_BATCH = 256
WIDE = 256
"""Outputs of so many numbers are summed in blocks (functional/moments.py), one fold in many taking tenths of a second."""
ANSWER_BELOW_S = 5e-3
"""A decision's answer waits for its own fold, where an event is known to take less than this."""
WAIT_BELOW_S = 0.25
"""A receipt waits until decisions know of it, where that is known to take less than this; `PATIENCE_S` where it was misjudged."""
PATIENCE_S = 5.0
REMEMBERED_IDS = 10_000
"""Decisions whose ids are remembered, so that a repeated request is known before anything is scored: 1.5 MB."""


class Version(NamedTuple):
    """What was learnt up to an offset, and the arms as of then. Replaced as a whole."""

    state: State
    offset: int
    arms: tuple[ArmRecord, ...]


class LogNewer(StorageDamagedError):
    """An entry that only a newer version of nextarm can fold; nothing is damaged."""


def policy_of(created: Created) -> Policy:
    """The policy that a log's first event names; refuses to run on other random numbers than it was started with."""
    if created.policy not in POLICIES:
        raise events.NewerEvent(f"the policy {created.policy[:64]!r}")
    if unknown := set(created.hyperparameters) - {item.name for item in declared(POLICIES[created.policy])}:
        raise events.NewerEvent(f"the hyperparameter {min(unknown)[:64]!r} of {created.policy}")
    policy = build(created.policy, created.hyperparameters, dim=created.dim, output_dim=created.output_dim, seed=created.seed)
    if policy.fingerprint != created.fingerprint:
        raise BanditError("the random frequencies differ from those that the bandit was created with (another NumPy?)")
    return policy


class Ahead(NamedTuple):
    """A state that knows the decisions on their way, too. ready: what it began with; ids: of the decisions."""

    ready: Version
    ids: frozenset[str]
    state: State


class Projection:
    """See the module.

    published: everything that was learnt.  ready: the newest of it that decisions can use at once.
    ledger: ahead of both while a fold is under way.  damaged: why nothing is folded any more.  astray: why what was learnt is
    not what the log holds; then this object is thrown away, and another one learns the log anew.
    """

    def __init__(
        self,
        storage: Storage,
        log: Log,
        created: Created,
        background: TaskGroup,
        *,
        policy: Policy,
        snapshot_every: int,
        placement: DeviceMirror | None = None,
    ) -> None:
        self.ledger = Ledger(created)
        self.committed = Version(states.start(policy, arms=len(created.arms)), 1, tuple(self.ledger.arms))
        self.scoring = self.committed
        self.damaged: StorageDamagedError | None = None
        self.log_truncated: LogTruncatedError | LogCompactedError | None = None
        self._storage = storage
        self._log = log
        self._created = created
        self._policy = policy
        self._placement = placement
        self._background = background
        self._lock = asyncio.Lock()
        self._live = True  # while a log is being replayed nobody asks, and nothing is prepared
        self._closing = False
        self._fold_pace = AdaptiveExecutor(spiky="output" in policy.needs and policy.output_dim >= WIDE)
        # only what is derived from outputs takes long now and then: spectra, mixtures
        self._prepare_pace = AdaptiveExecutor(BACKGROUND_POOL, forget=SLOW_DECAY if "output" in policy.needs else DECAY)
        self._preparing: asyncio.Task[None] | None = None
        self._in_flight: dict[str, tuple[int, bytes]] = {}  # decisions that `ready` does not know yet -> arm, features
        self._ahead: Ahead | None = None
        self._decided: dict[str, None] = {}  # ids of the decisions that were folded last
        self._folded_in_flight: deque[tuple[int, str]] = deque()  # those of them that are folded, with their offsets
        self._snapshot_every = snapshot_every
        self._snapshot_at = 1  # of the last one
        self._snapshot_tried = 1

    # -- life --------------------------------------------------------------------------------------------------------------

    async def load(self, *, use_snapshots: bool, until: int | None, each: Callable[[int], object]) -> None:
        """From the newest snapshot that can be read, and the log after it."""
        blobs = [blob for _, blob in await self._storage.load_snapshots(self._log)] if use_snapshots else []
        if not await self._resume_from(blobs) and blobs and await self._is_trimmed():
            logger.warning("the log is trimmed: a snapshot of another build has to do", extra={"bandit": self._log.name})
            await self._resume_from(blobs, any_build=True)
        self._live = False
        while until is None or self.committed.offset < until:
            before = self.committed.offset
            await self.catch_up(before + READ_BATCH, at_most=until)
            each(self.committed.offset)
            if self.committed.offset == before:
                break
        state = await asyncio.to_thread(self._with_open_pending, self.committed.state)
        self.committed = self.scoring = self.committed._replace(state=state)
        await self._prepare()
        self._live = True

    async def _resume_from(self, blobs: list[bytes], *, any_build: bool = False) -> bool:
        for blob in blobs:
            if await self._resume(blob, any_build=any_build):
                return True
        return False

    async def _is_trimmed(self) -> bool:
        """Whether the log cannot be folded from its first entry any more."""
        try:
            await self._storage.read(self._log, after=1, limit=1)
        except LogCompactedError:
            return True
        return False

    async def _resume(self, blob: bytes, *, any_build: bool) -> bool:
        unpack = partial(snapshots.unpack, any_build=any_build)
        try:
            ledger, state = await asyncio.to_thread(unpack, self._policy, self._created, blob)
            if not await self._storage.read(self._log, after=ledger.offset - 1, limit=1):
                raise snapshots.SnapshotRefused(f"it is of offset {ledger.offset}, the log ends before")
        except (StorageUnavailableError, LogNotFoundError, LogTruncatedError):
            raise
        except Exception as error:  # the log is the truth: whatever is wrong with a snapshot costs time and nothing else
            reason = f"{type(error).__name__}: {error}"
            logger.warning("a snapshot cannot be used and is passed over", extra={"bandit": self._log.name, "reason": reason})
            return False
        self.ledger = ledger
        self._snapshot_at = self._snapshot_tried = ledger.offset
        self.committed = self.scoring = Version(state, ledger.offset, tuple(ledger.arms))
        return True

    async def close(self) -> None:
        """Finish what was begun and leave a snapshot behind, so that the next start is quick."""
        self._closing = True
        await self._background.finish()
        if not self.damaged and self.committed.offset > self._snapshot_at:
            await self.snapshot()

    def check_sound(self) -> None:
        """Raise what stopped this bandit, if anything did."""
        if self.damaged is not None:
            raise type(self.damaged)(self.damaged.place, self.damaged.reason)
        if self.log_truncated is not None:
            raise self.log_truncated

    def stop(self, damage: StorageDamagedError) -> None:
        """From now on this bandit answers nothing but its damage; no other bandit is touched. The first damage is kept."""
        if self.damaged is not None:
            return
        self.damaged = damage
        logger.critical("this bandit stops: its log is damaged", extra={"bandit": self._log.name, "damage": str(damage)})

    # -- decisions on their way -----------------------------------------------------------------------------------------------

    def track_in_flight(self, decision: Decided) -> None:
        """Count a decision as pending from now on: it is on its way into the log."""
        self._in_flight[decision.id] = decision.arm, decision.features

    def drop_in_flight(self, decision_id: str) -> None:
        """It will not be in the log."""
        self._in_flight.pop(decision_id, None)

    def in_flight(self) -> Counter[int]:
        """Per arm, the decisions that `ready` does not know yet."""
        return Counter(arm for arm, _ in self._in_flight.values())

    def is_known(self, decision_id: str) -> bool:
        """Whether the log is known to hold this decision: it is open, or one of the last that were folded."""
        return decision_id in self.ledger.open or decision_id in self._decided

    def scored(self) -> Version:
        """`ready` for the next decision: its widths know the decisions on their way as if they had been folded. Where folding
        is quick there are none, and where a policy's rule does not look at widths nothing changes.
        """
        if not self._in_flight:
            self._ahead = None
            return self.scoring
        ahead = self._ahead
        if ahead is None or ahead.ready is not self.scoring or not ahead.ids <= self._in_flight.keys():
            ahead = Ahead(self.scoring, frozenset(), self.scoring.state)
        waiting: dict[int, list[Tensor]] = {}
        for decision_id, (arm, features) in self._in_flight.items():
            if arm >= 0 and decision_id not in ahead.ids:
                waiting.setdefault(arm, []).append(events.vector_tensor(features))
        state = ahead.state
        for arm, several in waiting.items():
            narrowed = self._policy.add_pending_many(state.arms[arm], several)
            if narrowed is not state.arms[arm]:  # else what was derived from these very arms still holds
                state = states.with_arm(state, arm, narrowed)
        self._ahead = Ahead(self.scoring, frozenset(self._in_flight), state)
        return self.scoring._replace(state=state)

    # -- folding -----------------------------------------------------------------------------------------------------------

    @property
    def is_slow(self) -> bool:
        """Whether folding one event may take longer than a decision should wait."""
        return self._fold_pace.bursty or self._fold_pace.peak_s > ANSWER_BELOW_S

    async def catch_up(
        self, at_least: int = 0, *, at_most: int | None = None, known: Mapping[bytes, AnyEvent] = MappingProxyType({})
    ) -> None:
        """Fold what the log holds beyond the published offset. With `at_least`, return as soon as that offset is learnt; with
        `at_most`, fold nothing behind that offset. Must not be cancelled amid a fold (`TaskGroup.run_shielded`).

        known: events by their bytes, which need not be decoded.
        """
        if at_least and self.committed.offset >= at_least:
            return
        async with self._lock:
            while not at_least or self.committed.offset < at_least:
                self.check_sound()
                limit = READ_BATCH if at_most is None else min(READ_BATCH, at_most - self.committed.offset)
                try:
                    entries = await self._storage.read(self._log, after=self.committed.offset, limit=limit)
                except StorageDamagedError as error:
                    self.stop(error)
                    raise
                except (LogTruncatedError, LogCompactedError) as error:
                    self.log_truncated = error
                    raise
                if not entries:
                    break
                await self._fold(entries, known)
        self._maybe_snapshot()

    async def _fold(self, entries: list[Entry], known: Mapping[bytes, AnyEvent]) -> None:
        """All of them, or stop: the ledger may have taken in what the state has not, and nothing may be folded on top of that."""
        effects: list[tuple[int, Effect]] = []
        landed: list[tuple[int, str]] = []
        fault: StorageDamagedError | None = None
        for entry in entries:
            try:
                event = (known.get(entry.payload) if known else None) or events.decode(entry.payload)  # a look is a hash
                effects.extend((entry.offset, effect) for effect in self.ledger.apply(entry.offset, event, self._policy))
            except Exception as error:
                fault = self._damage_at(entry.offset, error)
                break
            if isinstance(event, Decided):
                landed.append((entry.offset, event.id))
                self._decided[event.id] = None
        while len(self._decided) > REMEMBERED_IDS:
            del self._decided[next(iter(self._decided))]
        try:
            state = await self._fold_pace.run(self._apply_all, self.committed.state, effects, units=len(effects))
        except StorageDamagedError as error:  # comes before what the ledger refused
            fault = error
        if fault is not None:
            self.stop(fault)
            raise fault
        if state is not self.committed.state:
            state = replace(state, cache=self.scoring.state.cache)  # it may have been prepared anew meanwhile
        self.committed = Version(state, entries[-1].offset, tuple(self.ledger.arms))
        if self._live:
            self._folded_in_flight.extend(landed)
            await self._schedule_prepare()

    def _apply_all(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        """The state after these effects in log order, whatever the read batches were. What may go together does: decisions that
        are pending, and outcomes where arms are learnt separately.
        """
        for kind, run in itertools.groupby(effects, key=lambda numbered: type(numbered[1])):
            several = list(run)
            together = (
                len(several) > 1 and self._live and (kind is AddPending or (kind is Learn and self._policy.arms_independent))
            )
            state = self._apply_by_arm(state, several) if together else self._apply_each(state, several)
        return state

    def _apply_each(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        for offset, effect in effects:
            try:
                state = self._apply(state, effect)
            except Exception as error:
                raise self._damage_at(offset, error) from error
        return state

    def _apply_by_arm(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        """Arm by arm; where that fails, one by one, to name the entry."""
        by_arm: dict[int, list[Any]] = {}
        for _, effect in effects:
            match effect:
                case Learn(seen) if seen.arm != REFERENCE:
                    by_arm.setdefault(seen.arm, []).append(seen)
                case AddPending(arm, features):
                    by_arm.setdefault(arm, []).append(features)
                case _:
                    return self._apply_each(state, effects)
        arms, policy = list(state.arms), self._policy
        try:
            for index, several in by_arm.items():
                learns = isinstance(several[0], Observation)
                arms[index] = (
                    policy.update_many(state, several) if learns else policy.add_pending_many(state.arms[index], several)
                )
        except Exception:
            return self._apply_each(state, effects)
        return replace(state, arms=tuple(arms))

    def _apply(self, state: State, effect: Effect) -> State:
        """While a log is replayed only sums are added to; what is pending at its end is anticipated then."""
        policy = self._policy
        match effect:
            case Learn(seen):
                return states.fold(policy, state, seen if self._live else replace(seen, was_pending=False))
            case AddPending(arm, features) if self._live:
                return states.with_arm(state, arm, policy.add_pending(state.arms[arm], features))
            case RemovePending(arm, features) if self._live:
                return states.with_arm(state, arm, policy.remove_pending(state.arms[arm], features))
            case GrowArms():
                return states.add_arm(policy, state)
        return state

    def _with_open_pending(self, state: State) -> State:
        """The state of a replay with the widths shrunk by every decision that is open at its end."""
        for decision in self.ledger.open.values():
            try:
                arm = self._policy.add_pending(state.arms[decision.arm], events.vector_tensor(decision.features))
            except Exception as error:
                raise self._damage_at(decision.offset, error) from error
            state = states.with_arm(state, decision.arm, arm)
        return state

    def _damage_at(self, offset: int, error: Exception) -> StorageDamagedError:
        place = f"log {self._log.name!r}, offset {offset}"
        if isinstance(error, events.NewerEvent):
            damage: StorageDamagedError = LogNewer(place, str(error))
        else:
            damage = StorageDamagedError(place, f"{type(error).__name__}: {error}")
        damage.__cause__ = error
        return damage

    # -- preparing ---------------------------------------------------------------------------------------------------------

    async def wait_until_current(self) -> None:
        """Wait until decisions know what was published when this was called, where that is known to be quick: then a client that
        got its receipt finds its outcome in the next decision.
        """
        offset = self.committed.offset
        while self._preparing is not None and self.scoring.offset < offset and self._prepare_pace.peak_s < WAIT_BELOW_S:
            done, _ = await asyncio.wait([self._preparing], timeout=PATIENCE_S)
            if not done:
                return

    async def wait_until_prepared(self) -> None:
        """Wait until decisions know what was published when this was called, however long that takes."""
        offset = self.committed.offset
        while self.scoring.offset < offset and not self._closing:
            self.check_sound()
            await self._schedule_prepare()
            if self._preparing is not None:
                await asyncio.wait([self._preparing])

    async def _schedule_prepare(self) -> None:
        """At once where that is quick; else in the background, always the newest, and never two at a time."""
        if self._preparing is not None:
            return
        if _is_same_statistics(self.committed.state, self.scoring.state):  # nothing to derive anew
            self._publish_scoring(self.committed, replace(self.committed.state, cache=self.scoring.state.cache))
        elif self._prepare_pace.is_slow():
            self._preparing = self._background.spawn(self._prepare_in_background())
        else:
            await self._prepare()

    async def _prepare_in_background(self) -> None:
        try:
            await self._prepare()
        except StorageDamagedError:
            return  # the next request is told
        finally:
            self._preparing = None
        if self.scoring.offset < self.committed.offset and not self._closing:
            await self._schedule_prepare()

    async def _prepare(self) -> None:
        published = self.committed
        try:
            state = await self._prepare_pace.run(self._derived, published.state)
        except Exception as error:
            damage = self._damage_at(published.offset, error)
            self.stop(damage)
            raise damage from error
        if self._placement is not None and self._placement.broken:
            about = {"bandit": self._log.name, "device": str(self._placement.device), "reason": self._placement.broken}
            logger.warning("a device failed: this bandit scores on the CPU until the next start", extra=about)
            self._placement = None
        self._publish_scoring(published, state)

    def _derived(self, state: State) -> State:
        """Prepared; and a device that scores for this bandit knows of it, too."""
        state = self._policy.prepare(state)
        if self._placement is None:
            return state
        self._placement.sync(state.arms)
        return replace(state, cache=self._placement)

    def _publish_scoring(self, published: Version, state: State) -> None:
        self.scoring = published._replace(state=state)
        newest = self.committed
        self.committed = self.scoring if newest is published else newest._replace(state=replace(newest.state, cache=state.cache))
        while (
            self._folded_in_flight and self._folded_in_flight[0][0] <= self.scoring.offset
        ):  # pending in `ready.arms` from here on
            self._in_flight.pop(self._folded_in_flight.popleft()[1], None)

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    def _maybe_snapshot(self) -> None:
        if self._snapshot_every and self.committed.offset - self._snapshot_tried >= self._snapshot_every:
            self._snapshot_tried = self.committed.offset
            self._background.spawn(self._try_snapshot())

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception as error:  # the log is the truth: a snapshot that fails costs time at the next start, nothing else
            logger.warning("no snapshot was written", extra={"bandit": self._log.name, "reason": str(error)})

    async def snapshot(self) -> None:
        """Write one at the published offset."""
        async with self._lock:
            state, offset, _ = self.committed
            ledger = await asyncio.to_thread(self.ledger.pack)  # nothing is folded while the lock is held
        blob = await asyncio.to_thread(snapshots.pack, self._policy, state, ledger, offset)
        await self._storage.save_snapshot(self._log, offset, blob)
        self._snapshot_at = offset


def _is_same_statistics(one: State, other: State) -> bool:
    """Whether two states hold the same statistics, so that what was derived from one holds for the other."""
    return (
        one.reference is other.reference
        and len(one.arms) == len(other.arms)
        and all(a is b for a, b in zip(one.arms, other.arms, strict=True))
    )
