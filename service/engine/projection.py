"""The projection of one bandit's log: its ledger and its policy's state, derived from the log alone.

    log ──read──> Ledger.apply ──effects──> fold ──> Versions.advance   (readiness.py)

`fold_log` is the only code that advances it: at the start, live, and in a replay.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from bandits import state as states
from bandits.errors import BanditError
from bandits.gpu.mirror import DeviceMirror
from bandits.hyperparameters import declared
from bandits.registry import POLICIES, build
from bandits.types import REFERENCE, Observation, Policy, State
from service.engine import events, snapshots
from service.engine.errors import OffsetBeyondEndError, ReplicaBehindError, damage_at
from service.engine.events import AnyEvent, Created, Decided
from service.engine.executor import AdaptiveExecutor, TaskGroup
from service.engine.ledger import AddPending, Effect, GrowArms, Learn, Ledger, RemovePending, Reset, Retire
from service.engine.readiness import Version, Versions
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
REMEMBERED_IDS = 10_000
"""Decisions whose ids are remembered, so that a repeated request is known before anything is scored: 1.5 MB."""


def policy_of(created: Created) -> Policy:
    """The policy that a log's first event names; refuses to run on other random numbers than it was started with."""
    if created.policy not in POLICIES:
        raise events.NewerEvent(f"the policy {created.policy[:64]!r}")
    if unknown := set(created.hyperparameters) - {item.name for item in declared(POLICIES[created.policy])}:
        raise events.NewerEvent(f"the hyperparameter {min(unknown)[:64]!r} of {created.policy}")
    policy = build(
        created.policy,
        created.hyperparameters,
        dim=created.dim,
        output_dim=created.output_dim,
        seed=created.seed,
        signals=created.learned,
    )
    if policy.fingerprint != created.fingerprint:
        raise BanditError("the random frequencies differ from those that the bandit was created with (another NumPy?)")
    return policy


def apply_effect(policy: Policy, state: State, effect: Effect, *, is_live: bool) -> State:
    """The state after one effect. A replay (is_live false) skips pending decisions: those open at its end are added then."""
    match effect:
        case Learn(seen):
            return states.fold(policy, state, seen if is_live else replace(seen, was_pending=False))
        case AddPending(arm, features) if is_live:
            return states.with_arm(state, arm, policy.add_pending(state.arms[arm], features))
        case RemovePending(arm, features) if is_live:
            return states.with_arm(state, arm, policy.remove_pending(state.arms[arm], features))
        case GrowArms():
            return states.add_arm(policy, state)
        case Retire(arms):
            return replace(state, retired=arms)
        case Reset(arm):
            return policy.reset_arm(state, arm)
    return state


class Projection:
    """The ledger and the versions of one bandit, folded from its log.

    ledger: arms, open decisions and episodes; ahead of both versions while a fold is under way.
    recent_ids: of the decisions folded last.  background: tasks of this bandit that outlive a request.
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
        start = Version(states.start(policy, arms=len(created.arms)), 1, tuple(self.ledger.arms))
        self.versions = Versions(policy, log, background, start, mirror=mirror)
        self.recent_ids: dict[str, None] = {}
        self.storage = storage
        self.log = log
        self.created = created
        self.policy = policy
        self._hyperparameters = self.ledger.live.hyperparameters  # which `policy` has
        self.background = background
        self._lock = asyncio.Lock()
        self._is_live = True  # false during a replay: there are no decisions, and nothing is prepared
        self._executor = AdaptiveExecutor(bursty="output" in policy.needs and policy.output_dim >= WIDE)
        self._snapshot_every = snapshot_every
        self._snapshot_at = 1  # of the last one
        self._snapshot_tried = 1

    # -- life --------------------------------------------------------------------------------------------------------------

    async def load(self, *, use_snapshots: bool, until: int | None, each: Callable[[int], object]) -> None:
        """Restore the newest usable snapshot and fold the log behind it.

        until: the last offset to fold; None = all.  each: called with the offset after every batch.
        """
        blobs = [blob for _, blob in await self.storage.load_snapshots(self.log)] if use_snapshots else []
        if not await self._resume_from(blobs) and blobs and await self._is_compacted():
            logger.warning("the log is trimmed: a snapshot of another build has to do", extra={"bandit": self.log.name})
            await self._resume_from(blobs, any_build=True)
        self._is_live = False
        versions = self.versions
        while until is None or versions.committed.offset < until:
            before = versions.committed.offset
            await self.fold_log(before + READ_BATCH, at_most=until)
            each(versions.committed.offset)
            if versions.committed.offset == before:
                break
        state = await asyncio.to_thread(self._with_open_pending, versions.committed.state)
        versions.restart(versions.committed._replace(state=state))
        await versions.prepare()
        self._is_live = True

    async def _resume_from(self, blobs: list[bytes], *, any_build: bool = False) -> bool:
        for blob in blobs:
            if await self._resume(blob, any_build=any_build):
                return True
        return False

    async def _is_compacted(self) -> bool:
        """Whether the log cannot be folded from its first entry any more."""
        try:
            await self.storage.read(self.log, after=1, limit=1)
        except LogCompactedError:
            return True
        return False

    async def _resume(self, blob: bytes, *, any_build: bool) -> bool:
        unpack = partial(snapshots.unpack, any_build=any_build)
        try:
            ledger, state = await asyncio.to_thread(unpack, self.policy, self.created, blob)
            if not await self.storage.read(self.log, after=ledger.offset - 1, limit=1):
                raise snapshots.SnapshotRefused(f"it is of offset {ledger.offset}, the log ends before")
        except (StorageUnavailableError, LogNotFoundError, LogTruncatedError):
            raise
        except Exception as error:  # the log is the truth: an unusable snapshot costs time and nothing else
            reason = f"{type(error).__name__}: {error}"
            logger.warning("a snapshot cannot be used and is passed over", extra={"bandit": self.log.name, "reason": reason})
            return False
        self.ledger.adopt(ledger)
        self._configure()
        self._snapshot_at = self._snapshot_tried = ledger.offset
        self.versions.restart(Version(state, ledger.offset, tuple(ledger.arms)))
        return True

    async def close(self) -> None:
        """Wait for background work and write a snapshot, so that the next start is quick."""
        self.versions.is_closing = True
        await self.background.finish()
        if self.versions.fault is None and self.versions.committed.offset > self._snapshot_at:
            await self.snapshot()

    # -- folding -----------------------------------------------------------------------------------------------------------

    @property
    def is_slow(self) -> bool:
        """Whether folding one event may take longer than a decision should wait."""
        return self._executor.bursty or self._executor.peak_s > ANSWER_BELOW_S or self._is_behind

    @property
    def _is_behind(self) -> bool:
        """Whether a fold may have to do now what the background could not do in time: it leaves the event loop for that."""
        return self._is_live and self.policy.folds_slowly(self.versions.committed.state)

    async def catch_up(self, at_least: int = 0) -> None:
        """Fold the log to its end; with `at_least`, return as soon as that offset is folded."""
        await self.background.run_shielded(self.fold_log(at_least))
        await self.versions.wait_until_current()

    async def refresh(self) -> None:
        """`catch_up` if other processes write to the log, too; else everything is folded already."""
        if self.storage.shared:
            await self.catch_up()

    async def wait_for_offset(self, offset: int, *, timeout_s: float) -> None:
        """Wait until decisions are made from at least this offset.

        Raises `ReplicaBehindError` after `timeout_s`, `OffsetBeyondEndError` if the log ends before the offset.
        """
        versions = self.versions
        if offset > versions.committed.offset and offset > (end := await self.storage.end(self.log)):
            raise OffsetBeyondEndError(offset, end)
        try:
            async with asyncio.timeout(timeout_s):
                while (reached := versions.committed.offset) < offset:
                    end = await self.storage.wait(self.log, after=reached, timeout_s=timeout_s)
                    if end > versions.committed.offset:
                        await self.catch_up(min(end, offset))
                await versions.wait_until_prepared()
        except TimeoutError:
            raise ReplicaBehindError(offset, versions.committed.offset) from None

    async def fold_log(
        self, at_least: int = 0, *, at_most: int | None = None, known: Mapping[bytes, AnyEvent] = MappingProxyType({})
    ) -> None:
        """Fold the entries behind the committed offset. Must not be cancelled during a fold (`TaskGroup.run_shielded`).

        at_least: return as soon as this offset is folded; 0 = fold to the end.  at_most: fold nothing behind this offset.
        known: events by their payload, which saves decoding them.
        """
        versions = self.versions
        if at_least and versions.committed.offset >= at_least:
            return
        async with self._lock:
            while not at_least or versions.committed.offset < at_least:
                if versions.fault is not None:
                    versions.check_sound()
                offset = versions.committed.offset
                limit = READ_BATCH if at_most is None else min(READ_BATCH, at_most - offset)
                try:
                    entries = await self.storage.read(self.log, after=offset, limit=limit)
                except (StorageDamagedError, LogTruncatedError, LogCompactedError) as error:
                    versions.stop(error)
                    raise
                if not entries:
                    break
                await self._fold(entries, known)
        if self._snapshot_every and versions.committed.offset - self._snapshot_tried >= self._snapshot_every:
            self._snapshot_tried = versions.committed.offset
            self.background.spawn(self._try_snapshot())

    async def _fold(self, entries: list[Entry], known: Mapping[bytes, AnyEvent]) -> None:
        """Fold all of the entries, or stop the bandit: on failure the ledger may be ahead of the state."""
        versions = self.versions
        effects: list[tuple[int, Effect]] = []
        decided: list[tuple[int, str]] = []
        fault: StorageDamagedError | None = None
        for entry in entries:
            features = None
            try:
                event = (known.get(entry.payload) if known else None) or events.decode(
                    entry.payload
                )  # a lookup hashes the payload
                if isinstance(event, Decided):
                    own = versions.in_flight.get(event.id)
                    # Another process may have logged another decision under the id of one that is in flight here.
                    features = own.features if own is not None and own.decided is event else None
                effects += zip(itertools.repeat(entry.offset), self.ledger.apply(entry.offset, event, self.policy, features))
            except Exception as error:
                fault = damage_at(self.log, entry.offset, error)
                break
            if isinstance(event, Decided):
                decided.append((entry.offset, event.id))
                self.recent_ids[event.id] = None
        self._configure()
        while len(self.recent_ids) > REMEMBERED_IDS:
            del self.recent_ids[next(iter(self.recent_ids))]
        try:
            folding = partial(self._apply_all, versions.committed.state, effects)
            state = await (asyncio.to_thread(folding) if self._is_behind else self._executor.run(folding, units=len(effects)))
        except StorageDamagedError as error:  # its offset is before the one that the ledger refused
            fault = error
        if fault is not None:
            versions.stop(fault)
            raise fault
        version = Version(state, entries[-1].offset, tuple(self.ledger.arms))
        if self._is_live:
            await versions.advance(version, decided)
        else:
            versions.restart(version)

    def _configure(self) -> None:
        """Give the policy the hyperparameters of now. Only those can change that no statistic depends on (`Hyperparameter.live`),
        so it does not matter that effects of earlier entries are applied with it.
        """
        wanted = self.ledger.live.hyperparameters
        if wanted is not self._hyperparameters:
            self._hyperparameters = wanted
            self.policy = self.versions.policy = replace(self.policy, **wanted)

    def _apply_all(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        """The state after these effects in log order; the result does not depend on the read batches.

        Runs of pending decisions are applied together, and runs of outcomes where the policy updates arms independently.
        """
        for kind, run in itertools.groupby(effects, key=lambda numbered: type(numbered[1])):
            several = list(run)
            together = (
                len(several) > 1 and self._is_live and (kind is AddPending or (kind is Learn and self.policy.arms_independent))
            )
            state = self._apply_by_arm(state, several) if together else self._apply_each(state, several)
        return state

    def _apply_each(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        for offset, effect in effects:
            try:
                state = apply_effect(self.policy, state, effect, is_live=self._is_live)
            except Exception as error:
                raise damage_at(self.log, offset, error) from error
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
        arms, policy = list(state.arms), self.policy
        try:
            for index, several in by_arm.items():
                learns = isinstance(several[0], Observation)
                arms[index] = (
                    policy.update_many(state, several) if learns else policy.add_pending_many(state.arms[index], several)
                )
        except Exception:
            return self._apply_each(state, effects)
        return replace(state, arms=tuple(arms))

    def _with_open_pending(self, state: State) -> State:
        """The state of a replay with every decision that is open at its end added as pending."""
        for decision in self.ledger.open.values():
            try:
                arm = self.policy.add_pending(state.arms[decision.arm], events.vector_tensor(decision.features))
            except Exception as error:
                raise damage_at(self.log, decision.offset, error) from error
            state = states.with_arm(state, decision.arm, arm)
        return state

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception as error:  # the log is the truth: a snapshot that fails costs time at the next start, nothing else
            logger.warning("no snapshot was written", extra={"bandit": self.log.name, "reason": str(error)})

    async def snapshot(self) -> None:
        """Write a snapshot at the committed offset."""
        async with self._lock:
            state, offset, _ = self.versions.committed
            ledger = await asyncio.to_thread(self.ledger.pack)  # nothing is folded while the lock is held
        blob = await asyncio.to_thread(snapshots.pack, self.policy, state, ledger, offset)
        await self.storage.save_snapshot(self.log, offset, blob)
        self._snapshot_at = offset
