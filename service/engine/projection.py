"""The projection of one bandit's log: its ledger and its policy's state, derived from the log alone.

    log ──read──> Ledger.apply ──effects──> fold ──> committed   (state, offset, arms): for receipts, digests, snapshots
                                                         └─ prepare ──> scoring   the same with its derived caches: for decisions

`catch_up` is the only code that advances it: at the start, live, and in a replay. `committed` and `scoring` are each replaced by
one assignment, so readers take no lock. Where preparing is quick, `scoring` is `committed`. Where it is slow (the spectra of a
Frechet distance take seconds), decisions use the newest prepared version, and the decisions it lacks count as pending.

Invariant: a decision is pending exactly once. It is in `_in_flight` from before its append until `scoring` holds it, and counted
by `scoring` from then on; `_folded_in_flight` says at which offset it moves from one to the other.
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
"""Outputs of this many numbers are summed in blocks (functional/moments.py), one fold in many taking tenths of a second."""
ANSWER_BELOW_S = 5e-3
"""A decision's answer waits for its own fold, where an event is known to take less than this."""
WAIT_BELOW_S = 0.25
"""A receipt waits until `scoring` holds its event if preparing is known to take less; at most `PATIENCE_S` if that was wrong."""
PATIENCE_S = 5.0
REMEMBERED_IDS = 10_000
"""Decisions whose ids are remembered, so that a repeated request is known before anything is scored: 1.5 MB."""


class Version(NamedTuple):
    """An immutable version of the projection: the state, its offset, and the arms at that offset."""

    state: State
    offset: int
    arms: tuple[ArmRecord, ...]


class LogNewerError(StorageDamagedError):
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


class InFlightState(NamedTuple):
    """A scoring state with the decisions in flight added. base: the version it extends; ids: of the decisions added."""

    base: Version
    ids: frozenset[str]
    state: State


class Projection:
    """The ledger and the state of one bandit, folded from its log.

    committed: the newest folded version.  scoring: the newest prepared version, which decisions use.
    ledger: ahead of both while a fold is under way.  damaged: why folding stopped.  log_truncated: why the projection no longer
    matches the log; then this object is discarded, and the log is loaded again.
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
        mirror: DeviceMirror | None = None,
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
        self._mirror = mirror
        self._background = background
        self._lock = asyncio.Lock()
        self._is_live = True  # false during a replay: there are no decisions, and nothing is prepared
        self._is_closing = False
        self._fold_executor = AdaptiveExecutor(bursty="output" in policy.needs and policy.output_dim >= WIDE)
        # only what is derived from outputs takes long now and then: spectra, mixtures
        self._prepare_executor = AdaptiveExecutor(BACKGROUND_POOL, decay=SLOW_DECAY if "output" in policy.needs else DECAY)
        self._preparing: asyncio.Task[None] | None = None
        self._in_flight: dict[str, tuple[int, bytes]] = {}  # decisions that `scoring` lacks, by id -> arm, features
        self._in_flight_state: InFlightState | None = None
        self._recent_ids: dict[str, None] = {}  # ids of the decisions folded last
        self._folded_in_flight: deque[tuple[int, str]] = deque()  # (offset, id) of those in flight that `committed` holds
        self._snapshot_every = snapshot_every
        self._snapshot_at = 1  # of the last one
        self._snapshot_tried = 1

    # -- life --------------------------------------------------------------------------------------------------------------

    async def load(self, *, use_snapshots: bool, until: int | None, each: Callable[[int], object]) -> None:
        """Restore the newest usable snapshot and fold the log behind it.

        until: the last offset to fold; None = all.  each: called with the offset after every batch.
        """
        blobs = [blob for _, blob in await self._storage.load_snapshots(self._log)] if use_snapshots else []
        if not await self._resume_from(blobs) and blobs and await self._is_compacted():
            logger.warning("the log is trimmed: a snapshot of another build has to do", extra={"bandit": self._log.name})
            await self._resume_from(blobs, any_build=True)
        self._is_live = False
        while until is None or self.committed.offset < until:
            before = self.committed.offset
            await self.catch_up(before + READ_BATCH, at_most=until)
            each(self.committed.offset)
            if self.committed.offset == before:
                break
        state = await asyncio.to_thread(self._with_open_pending, self.committed.state)
        self.committed = self.scoring = self.committed._replace(state=state)
        await self._prepare()
        self._is_live = True

    async def _resume_from(self, blobs: list[bytes], *, any_build: bool = False) -> bool:
        for blob in blobs:
            if await self._resume(blob, any_build=any_build):
                return True
        return False

    async def _is_compacted(self) -> bool:
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
        except Exception as error:  # the log is the truth: an unusable snapshot costs time and nothing else
            reason = f"{type(error).__name__}: {error}"
            logger.warning("a snapshot cannot be used and is passed over", extra={"bandit": self._log.name, "reason": reason})
            return False
        self.ledger = ledger
        self._snapshot_at = self._snapshot_tried = ledger.offset
        self.committed = self.scoring = Version(state, ledger.offset, tuple(ledger.arms))
        return True

    async def close(self) -> None:
        """Wait for background work and write a snapshot, so that the next start is quick."""
        self._is_closing = True
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
        """Refuse every request with this damage from now on; the first damage is kept. Other bandits are not affected."""
        if self.damaged is not None:
            return
        self.damaged = damage
        logger.critical("this bandit stops: its log cannot be folded", extra={"bandit": self._log.name, "damage": str(damage)})

    # -- decisions in flight -------------------------------------------------------------------------------------------------

    def track_in_flight(self, decision: Decided) -> None:
        """Count a decision as pending from now on, before it is in the log."""
        self._in_flight[decision.id] = decision.arm, decision.features

    def drop_in_flight(self, decision_id: str) -> None:
        """Stop counting a decision that was refused and will not be in the log."""
        self._in_flight.pop(decision_id, None)

    def in_flight(self) -> Counter[int]:
        """Arm -> number of decisions that `scoring` lacks."""
        return Counter(arm for arm, _ in self._in_flight.values())

    def is_known(self, decision_id: str) -> bool:
        """Whether the log is known to hold this decision: it is open, or among the last `REMEMBERED_IDS` folded."""
        return decision_id in self.ledger.open or decision_id in self._recent_ids

    def with_in_flight(self) -> Version:
        """`scoring` with the decisions in flight added as pending, as if they had been folded.

        Cached between calls, and extended by what is new. Where folding is quick there are no decisions in flight.
        """
        if not self._in_flight:
            self._in_flight_state = None
            return self.scoring
        cached = self._in_flight_state
        if cached is None or cached.base is not self.scoring or not cached.ids <= self._in_flight.keys():
            cached = InFlightState(self.scoring, frozenset(), self.scoring.state)
        waiting: dict[int, list[Tensor]] = {}
        for decision_id, (arm, features) in self._in_flight.items():
            if arm >= 0 and decision_id not in cached.ids:
                waiting.setdefault(arm, []).append(events.vector_tensor(features))
        state = cached.state
        for arm, several in waiting.items():
            updated = self._policy.add_pending_many(state.arms[arm], several)
            if updated is not state.arms[arm]:  # else the cache derived from these arms is still valid
                state = states.with_arm(state, arm, updated)
        self._in_flight_state = InFlightState(self.scoring, frozenset(self._in_flight), state)
        return self.scoring._replace(state=state)

    # -- folding -----------------------------------------------------------------------------------------------------------

    @property
    def is_slow(self) -> bool:
        """Whether folding one event may take longer than a decision should wait."""
        return self._fold_executor.bursty or self._fold_executor.peak_s > ANSWER_BELOW_S

    async def catch_up(
        self, at_least: int = 0, *, at_most: int | None = None, known: Mapping[bytes, AnyEvent] = MappingProxyType({})
    ) -> None:
        """Fold the entries behind the committed offset. Must not be cancelled during a fold (`TaskGroup.run_shielded`).

        at_least: return as soon as this offset is folded; 0 = fold to the end.  at_most: fold nothing behind this offset.
        known: events by their payload, which saves decoding them.
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
        """Fold all of the entries, or stop the bandit: on failure the ledger may be ahead of the state."""
        effects: list[tuple[int, Effect]] = []
        decided: list[tuple[int, str]] = []
        fault: StorageDamagedError | None = None
        for entry in entries:
            try:
                event = (known.get(entry.payload) if known else None) or events.decode(
                    entry.payload
                )  # a lookup hashes the payload
                effects.extend((entry.offset, effect) for effect in self.ledger.apply(entry.offset, event, self._policy))
            except Exception as error:
                fault = self._damage_at(entry.offset, error)
                break
            if isinstance(event, Decided):
                decided.append((entry.offset, event.id))
                self._recent_ids[event.id] = None
        while len(self._recent_ids) > REMEMBERED_IDS:
            del self._recent_ids[next(iter(self._recent_ids))]
        try:
            state = await self._fold_executor.run(self._apply_all, self.committed.state, effects, units=len(effects))
        except StorageDamagedError as error:  # its offset is before the one that the ledger refused
            fault = error
        if fault is not None:
            self.stop(fault)
            raise fault
        if state is not self.committed.state:
            state = replace(state, cache=self.scoring.state.cache)  # `scoring` may have been prepared again meanwhile
        self.committed = Version(state, entries[-1].offset, tuple(self.ledger.arms))
        if self._is_live:
            self._folded_in_flight.extend(decided)
            await self._schedule_prepare()

    def _apply_all(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        """The state after these effects in log order; the result does not depend on the read batches.

        Runs of pending decisions are applied together, and runs of outcomes where the policy updates arms independently.
        """
        for kind, run in itertools.groupby(effects, key=lambda numbered: type(numbered[1])):
            several = list(run)
            together = (
                len(several) > 1 and self._is_live and (kind is AddPending or (kind is Learn and self._policy.arms_independent))
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
        """Apply a run of effects arm by arm; on failure one by one, so that the error names the entry."""
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
        """Apply one effect. A replay skips pending decisions: those open at its end are added by `_with_open_pending`."""
        policy = self._policy
        match effect:
            case Learn(seen):
                return states.fold(policy, state, seen if self._is_live else replace(seen, was_pending=False))
            case AddPending(arm, features) if self._is_live:
                return states.with_arm(state, arm, policy.add_pending(state.arms[arm], features))
            case RemovePending(arm, features) if self._is_live:
                return states.with_arm(state, arm, policy.remove_pending(state.arms[arm], features))
            case GrowArms():
                return states.add_arm(policy, state)
        return state

    def _with_open_pending(self, state: State) -> State:
        """The state of a replay with every decision that is open at its end added as pending."""
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
            damage: StorageDamagedError = LogNewerError(place, str(error))
        else:
            damage = StorageDamagedError(place, f"{type(error).__name__}: {error}")
        damage.__cause__ = error
        return damage

    # -- preparing ---------------------------------------------------------------------------------------------------------

    async def wait_until_current(self) -> None:
        """Wait until `scoring` has reached what is committed now, if preparing is known to be quick.

        So a client that has its receipt finds its outcome in the next decision.
        """
        offset = self.committed.offset
        while self._preparing is not None and self.scoring.offset < offset and self._prepare_executor.peak_s < WAIT_BELOW_S:
            done, _ = await asyncio.wait([self._preparing], timeout=PATIENCE_S)
            if not done:
                return

    async def wait_until_prepared(self) -> None:
        """Wait until `scoring` has reached what is committed now, however long that takes."""
        offset = self.committed.offset
        while self.scoring.offset < offset and not self._is_closing:
            self.check_sound()
            await self._schedule_prepare()
            if self._preparing is not None:
                await asyncio.wait([self._preparing])

    async def _schedule_prepare(self) -> None:
        """Prepare the newest version: inline where that is quick, else in the background, one at a time."""
        if self._preparing is not None:
            return
        if _is_same_statistics(self.committed.state, self.scoring.state):  # the derived cache is still valid
            self._publish_scoring(self.committed, replace(self.committed.state, cache=self.scoring.state.cache))
        elif self._prepare_executor.is_slow():
            self._preparing = self._background.spawn(self._prepare_in_background())
        else:
            await self._prepare()

    async def _prepare_in_background(self) -> None:
        try:
            await self._prepare()
        except StorageDamagedError:
            return  # the next request reports it
        finally:
            self._preparing = None
        if self.scoring.offset < self.committed.offset and not self._is_closing:
            await self._schedule_prepare()

    async def _prepare(self) -> None:
        committed = self.committed
        try:
            state = await self._prepare_executor.run(self._prepare_state, committed.state)
        except Exception as error:
            damage = self._damage_at(committed.offset, error)
            self.stop(damage)
            raise damage from error
        if self._mirror is not None and self._mirror.broken:
            about = {"bandit": self._log.name, "device": str(self._mirror.device), "reason": self._mirror.broken}
            logger.warning("a device failed: this bandit scores on the CPU until the next start", extra=about)
            self._mirror = None
        self._publish_scoring(committed, state)

    def _prepare_state(self, state: State) -> State:
        """The prepared state; the device mirror, if there is one, is synced with it."""
        state = self._policy.prepare(state)
        if self._mirror is None:
            return state
        self._mirror.sync(state.arms)
        return replace(state, cache=self._mirror)

    def _publish_scoring(self, committed: Version, state: State) -> None:
        """Replace `scoring`, and drop from `_in_flight` what it counts now: between the two lines nothing else runs."""
        self.scoring = committed._replace(state=state)
        newest = self.committed
        self.committed = self.scoring if newest is committed else newest._replace(state=replace(newest.state, cache=state.cache))
        while self._folded_in_flight and self._folded_in_flight[0][0] <= self.scoring.offset:  # counted by `scoring` from here on
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
        """Write a snapshot at the committed offset."""
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
