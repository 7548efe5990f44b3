"""The projection of one bandit's log: its ledger and its policy's state, derived from the log alone.

    log ──read──> Ledger.apply ──effects──> Learned.fold ──> Versions.commit   (policies.py, readiness.py)
                                            once for the policy that decides, and once for each shadow

`fold_log` is the only code that advances it: at the start, live, and in a replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bandits import state as states
from bandits.gpu.mirror import DeviceMirror
from bandits.types import Policy, State
from service.engine import events, snapshots
from service.engine.errors import OffsetBeyondEndError, ReplicaBehindError, ShadowBehindError, damage_at
from service.engine.events import AnyEvent, Created, Decided, FoldedDecision, ShadowCreated, ShadowDeleted, ShadowPromoted
from service.engine.executor import BACKGROUND_POOL, SNAPSHOT_POOL, AdaptiveExecutor, TaskGroup
from service.engine.ledger import Effect, Ledger, ShadowRecord
from service.engine.policies import Learned, shadow_policy, takes_features
from service.engine.readiness import Version, Versions
from service.engine.retention import REMEMBERED, Retention
from service.storage.archive import SEGMENT_ENTRIES
from service.storage.base import (
    Entry,
    Log,
    LogCompactedError,
    LogNotFoundError,
    LogTruncatedError,
    Storage,
    StorageDamagedError,
    StorageError,
    StorageUnavailableError,
)

logger = logging.getLogger("nextarm.folding")

READ_BATCH = 256
WIDE = 256
"""Outputs of this many numbers are summed in blocks (functional/moments.py), one fold in many taking tenths of a second."""
ANSWER_BELOW_S = 5e-3
"""A decision's answer waits for its own fold, where an event is known to take less than this."""
REMEMBERED_IDS = 2_000
"""Decisions whose ids are remembered, so that a repeated request is known before anything is scored: .25 MB. Open decisions are
known anyway; the repetition of one that is closed and older is known once it was scored.
"""


DECISIONS, CHANGES_OF_SHADOWS = (Decided, FoldedDecision), (ShadowCreated, ShadowDeleted, ShadowPromoted)

CAUGHT_UP = READ_BATCH
"""Entries behind the end from which on a shadow that learns from the start is made to catch up within one fold."""


RETRY_S = 1.0
"""Until a shadow that catches up asks a store again that was unavailable."""


class CatchingUp:
    """A shadow that learns the log from its start, and is not at its end yet."""

    def __init__(self, created: Created, record: ShadowRecord, policy: Policy) -> None:
        self.record = record
        self.ledger = Ledger(created)
        self.learned = Learned.start(record.number, policy, arms=len(created.arms), layout=self.ledger.layout)
        self.lock = asyncio.Lock()

    def fold(self, log: Log, entries: list[Entry]) -> None:
        """Learn what these entries say. The effects do not depend on the policy that decided."""
        effects: list[tuple[int, Effect]] = []
        for entry in entries:
            event = events.decode_to_fold(entry.payload)
            applied = self.ledger.apply(entry.offset, event, self.learned.policy, is_live=False)
            effects += zip(itertools.repeat(entry.offset), applied)
        self.learned = self.learned.fold_safely(log, effects, is_live=False)


class Projection:
    """The ledger and the versions of one bandit, folded from its log.

    ledger: arms, open decisions and episodes; ahead of both versions while a fold is under way.
    tracks: the versions of every policy that learns here, by its number; versions: those of the one that decides.
    catching_up: shadows that learn the log from its start and are not at its end, by number.
    mirror_of: the device on which a policy is scored, if any.
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
        mirror_of: Callable[[Policy], DeviceMirror | None] = lambda policy: None,
        retention: Retention | None = None,
    ) -> None:
        self.ledger = Ledger(created)
        state = states.start(policy, arms=len(created.arms), layout=self.ledger.layout)
        self.versions = Versions(policy, log, background, Version(state, 1, tuple(self.ledger.arms)), mirror=mirror_of(policy))
        self.tracks = {events.FIRST: self.versions}
        self.catching_up: dict[int, CatchingUp] = {}
        self.recent_ids: dict[str, None] = {}
        self.storage = storage
        self.log = log
        self.created = created
        self._created_policy = policy
        self._mirror_of = mirror_of
        self._hyperparameters = self.ledger.live.hyperparameters  # which `policy` has
        self.background = background
        self._lock = asyncio.Lock()
        self._is_live = True  # false during a replay: there are no decisions, and nothing is prepared
        self._executor = AdaptiveExecutor()
        self._adapt()
        self._retention = retention
        self._snapshot_every = snapshot_every
        self._snapshot_at = 1  # of the last one
        self._snapshot_tried = 1

    # -- the policies that learn here ----------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The one that decides, with the hyperparameters of now."""
        return self.versions.policy

    def shadows(self) -> dict[str, Versions]:
        """Those that have learned the log to its end, by name."""
        return {name: self.tracks[one.number] for name, one in self.ledger.shadows.items() if one.number in self.tracks}

    def learned(self) -> tuple[int, Learned, dict[str, Learned]]:
        """The offset, what the policy that decides has learned, and what each shadow has, all of one moment.

        Raises `ShadowBehindError` where a shadow is not there yet.
        """
        offset = self.versions.committed.offset
        for one in self.catching_up.values():
            raise ShadowBehindError(one.record.name, one.ledger.offset, offset)
        return offset, self._learned(self.versions), {name: self._learned(track) for name, track in self.shadows().items()}

    def _learned(self, track: Versions) -> Learned:
        is_own = track.number == events.FIRST and not self.ledger.promotions
        return Learned(track.number, track.policy, track.committed.state, is_own, track.left, track.failure)

    def track_in_flight(self, decided: Decided, features: Tensor) -> None:
        """Count a decision as pending from now on, for every policy, before it is in the log."""
        for track in self.tracks.values():
            if track is self.versions or (track.fault is None and takes_features(track.policy, features)):
                track.track_in_flight(decided, features)

    def drop_in_flight(self, decision_id: str) -> None:
        """Stop counting a decision that was refused and will not be in the log."""
        for track in self.tracks.values():
            track.drop_in_flight(decision_id)

    def _adapt(self) -> None:
        policies = [track.policy for track in self.tracks.values()]
        self._executor.bursty = any("output" in policy.needs and policy.output_dim >= WIDE for policy in policies)

    # -- life --------------------------------------------------------------------------------------------------------------

    async def load(self, *, use_snapshots: bool, until: int | None, each: Callable[[int], object]) -> None:
        """Restore the newest usable snapshot and fold the log behind it.

        until: the last offset to fold; None = all.  each: called with the offset after every batch.
        """
        self._is_live = False
        found = await self.storage.load_snapshots(self.log) if use_snapshots else []
        blobs = [blob for _, blob in found]
        if not await self._resume_from(blobs) and blobs and await self._is_compacted():
            logger.warning("the log is trimmed: a snapshot of another build has to do", extra={"bandit": self.log.name})
            await self._resume_from(blobs, any_build=True)
        while until is None or self.versions.committed.offset < until:
            before = self.versions.committed.offset
            await self.fold_log(before + READ_BATCH, at_most=until)
            each(self.versions.committed.offset)
            if self.versions.committed.offset == before:
                break
        decisions = list(self.ledger.open.values())
        for track in self.tracks.values():
            learned = await asyncio.to_thread(self._learned(track).with_pending, self.log, decisions)
            track.restart(track.committed._replace(state=learned.state))
            await (track.prepare() if track is self.versions else self._prepare_shadow(track.prepare))
        self._is_live = True
        for one in self.catching_up.values():
            self.background.spawn(self._catch_up_behind(one))
        if (
            len(found) > 1 and self._snapshot_at == found[0][0]
        ):  # one that leaves memory before `snapshot_every` events are there is trimmed when it comes back
            self.background.spawn(self._try_trim(found[1][0], at_least=min(self._snapshot_every, SEGMENT_ENTRIES)))

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
            found = await asyncio.to_thread(unpack, self._created_policy, self.created, blob)
            ledger = found.ledger
            if not await self.storage.read(self.log, after=ledger.offset - 1, limit=1):
                raise snapshots.SnapshotRefused(f"it is of offset {ledger.offset}, the log ends before")
        except (StorageUnavailableError, LogNotFoundError, LogTruncatedError):
            raise
        except Exception as error:  # the log is the truth: an unusable snapshot costs time and nothing else
            reason = f"{type(error).__name__}: {error}"
            logger.warning("a snapshot cannot be used and is passed over", extra={"bandit": self.log.name, "reason": reason})
            return False
        self.ledger.adopt(ledger)
        if ledger.live.number != self.versions.number:
            self.versions = self._track(found.policy, ledger.live.number, found.state)
            self._hyperparameters = ledger.live.hyperparameters
            self.tracks = {self.versions.number: self.versions}
            self.versions.mirror = self._mirror_of(found.policy)
        self._configure()
        self._snapshot_at = self._snapshot_tried = ledger.offset
        self.versions.left = found.left
        self.versions.restart(Version(found.state, ledger.offset, tuple(ledger.arms)))
        for one in found.shadows:
            self._attach(one)
        return True

    def _track(self, policy: Policy, number: int, state: State) -> Versions:
        start = Version(state, self.ledger.offset, tuple(self.ledger.arms))
        return Versions(policy, self.log, self.background, start, number=number)

    async def close(self) -> None:
        """Wait for background work and write a snapshot, so that the next start is quick."""
        for track in self.tracks.values():
            track.is_closing = True
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
        return self._is_live and any(track.policy.folds_slowly(track.committed.state) for track in self.tracks.values())

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
        if offset > self.versions.committed.offset and offset > (end := await self.storage.end(self.log)):
            raise OffsetBeyondEndError(offset, end)
        try:
            async with asyncio.timeout(timeout_s):
                while (reached := self.versions.committed.offset) < offset:
                    end = await self.storage.wait(self.log, after=reached, timeout_s=timeout_s)
                    if end > self.versions.committed.offset:
                        await self.catch_up(min(end, offset))
                await self.versions.wait_until_prepared()
        except TimeoutError:
            raise ReplicaBehindError(offset, self.versions.committed.offset) from None

    async def fold_log(
        self, at_least: int = 0, *, at_most: int | None = None, known: Mapping[bytes, AnyEvent] = MappingProxyType({})
    ) -> None:
        """Fold the entries behind the committed offset. Must not be cancelled during a fold (`TaskGroup.run_shielded`).

        at_least: return as soon as this offset is folded; 0 = fold to the end.  at_most: fold nothing behind this offset.
        known: events by their payload, which saves decoding them.
        """
        if at_least and self.versions.committed.offset >= at_least:
            return
        async with self._lock:
            while not at_least or self.versions.committed.offset < at_least:
                versions = self.versions  # a promotion exchanges them
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
        if self._snapshot_every and self.versions.committed.offset - self._snapshot_tried >= self._snapshot_every:
            self._snapshot_tried = self.versions.committed.offset
            self.background.spawn(self._try_snapshot())

    async def _fold(self, entries: list[Entry], known: Mapping[bytes, AnyEvent]) -> None:
        """Fold the entries up to the first that changes which policies learn here, or that one alone; or stop the bandit: on
        failure the ledger may be ahead of the state.
        """
        versions = self.versions
        effects: list[tuple[int, Effect]] = []
        decided: list[tuple[int, str]] = []
        fault: StorageDamagedError | None = None
        last = 0
        for entry in entries:
            features = None
            try:
                own_event = known.get(entry.payload) if known else None  # a lookup hashes the payload
                event = own_event or events.decode_to_fold(entry.payload)
                if isinstance(event, CHANGES_OF_SHADOWS):
                    break
                if own_event is not None and isinstance(event, Decided):
                    own = versions.in_flight.get(event.id)
                    # Another process may have logged another decision under the id of one that is in flight here.
                    features = own.features if own is not None and own.decided is event else None
                applied = self.ledger.apply(entry.offset, event, self.policy, features, is_live=self._is_live)
                effects += zip(itertools.repeat(entry.offset), applied)
            except Exception as error:
                fault = damage_at(self.log, entry.offset, error)
                break
            last = entry.offset
            if isinstance(event, DECISIONS):
                decided.append((entry.offset, event.id))
                self.recent_ids[event.id] = None
        if not last and fault is None:
            assert isinstance(event, ShadowCreated | ShadowDeleted | ShadowPromoted)
            await self._fold_shadow(entries[0].offset, event)
            return
        self._configure()
        while len(self.recent_ids) > REMEMBERED_IDS:
            del self.recent_ids[next(iter(self.recent_ids))]
        try:
            folding = partial(self._fold_all, effects)
            folded = await (asyncio.to_thread(folding) if self._is_behind else self._executor.run(folding, units=len(effects)))
        except StorageDamagedError as error:  # its offset is before the one that the ledger refused
            fault = error
        if fault is not None:
            versions.stop(fault)
            raise fault
        await self._commit(last, folded, decided)

    def _fold_all(self, effects: list[tuple[int, Effect]]) -> list[Learned]:
        """What every policy knows after these effects: what is learned is learned here, by the one that decides and by its
        shadows alike.
        """
        deciding = self.versions
        return [
            self._learned(track).fold(self.log, effects, is_live=self._is_live)
            if track is deciding
            else self._learned(track).fold_safely(self.log, effects, is_live=self._is_live)
            for track in self.tracks.values()
        ]

    async def _commit(self, offset: int, folded: Sequence[Learned], decided: Sequence[tuple[int, str]] = ()) -> None:
        """Make `folded` the committed versions of their policies, all of them before anything else runs; then prepare them."""
        arms = tuple(self.ledger.arms)
        for one in folded:
            track = self.tracks[one.number]
            track.left, track.failure = one.left, one.failure
            if self._is_live:
                track.commit(Version(one.state, offset, arms), decided if track.fault is None else ())
            else:
                track.restart(Version(one.state, offset, arms))
        if self._is_live:
            await self.versions.schedule_prepare()
            for track in self.shadows().values():
                if track.fault is None:
                    await self._prepare_shadow(track.schedule_prepare)

    async def _prepare_shadow(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A shadow that cannot be prepared has no weights, and the bandit goes on."""
        with contextlib.suppress(StorageDamagedError):
            await work()

    # -- shadows -------------------------------------------------------------------------------------------------------------

    async def _fold_shadow(self, offset: int, event: ShadowCreated | ShadowDeleted | ShadowPromoted) -> None:
        """Fold an entry that changes which policies learn here, or stop the bandit."""
        before, known = self.versions, self.ledger.shadows.get(event.shadow)
        try:
            if isinstance(event, ShadowPromoted) and known is not None and known.number in self.catching_up:
                await self._finish(self.catching_up[known.number])
            self.ledger.apply(offset, event, self.policy)
            if isinstance(event, ShadowCreated):
                await self._start_shadow(self.ledger.shadows[event.shadow])
        except (StorageDamagedError, LogTruncatedError, LogCompactedError) as error:
            before.stop(error)
            raise
        except StorageError:
            raise  # another attempt finishes what was begun
        except Exception as error:
            fault = damage_at(self.log, offset, error)
            before.stop(fault)
            raise fault from error
        if isinstance(event, ShadowDeleted) and known is not None:
            self.tracks.pop(known.number, None)
            self.catching_up.pop(known.number, None)
        if isinstance(event, ShadowPromoted):
            self.versions, self._hyperparameters = self.tracks[self.ledger.live.number], self.ledger.live.hyperparameters
            before.mirror, self.versions.mirror = None, self._mirror_of(self.policy)
        self._adapt()
        await self._commit(offset, [self._learned(track) for track in self.tracks.values()])

    async def _start_shadow(self, record: ShadowRecord) -> None:
        policy = await asyncio.to_thread(shadow_policy, self.created, record)
        if record.learns_from == "start":
            one = self.catching_up[record.number] = CatchingUp(self.created, record, policy)
            if self._is_live:
                self.background.spawn(self._catch_up_behind(one))
            return
        learned = Learned.start(
            record.number,
            policy,
            arms=len(self.ledger.arms),
            retired=self.ledger.retired(),
            since=record.number,
            layout=self.ledger.layout,
        )
        self._attach(learned.with_pending(self.log, list(self.ledger.open.values())) if self._is_live else learned)

    def _attach(self, learned: Learned) -> None:
        """Let a policy learn what comes from here on."""
        track = self.tracks[learned.number] = self._track(learned.policy, learned.number, learned.state)
        track.left, track.failure = learned.left, learned.failure
        for one in self.versions.in_flight.values():
            if one.decided.id not in self.recent_ids and takes_features(learned.policy, one.features):
                track.track_in_flight(*one)
        if self._is_live:
            track.start_preparing()
        self._adapt()

    async def _catch_up_behind(self, one: CatchingUp) -> None:
        """Let a shadow learn the log from its start, while everything else goes on."""
        number = one.record.number
        try:
            while self.catching_up.get(number) is one and not self.versions.is_closing:
                await self._learn_next(one)
                if self.versions.committed.offset - one.ledger.offset <= CAUGHT_UP:
                    async with self._lock:
                        if self.catching_up.get(number) is one:
                            await self._finish(one)
        except StorageUnavailableError:
            await asyncio.sleep(RETRY_S)
            self.background.spawn(self._catch_up_behind(one))
        except LogNotFoundError:
            pass  # deleted meanwhile
        except StorageError as error:  # trimmed meanwhile: create it again, or start again where another process has learned it
            logger.error("a shadow cannot learn from the start", extra={"bandit": self.log.name, "reason": str(error)})

    async def _learn_next(self, one: CatchingUp) -> int:
        """Let a shadow that catches up learn the next entries of the log; how many there were."""
        async with one.lock:
            limit = min(READ_BATCH, self.versions.committed.offset - one.ledger.offset)
            entries = await self.storage.read(self.log, after=one.ledger.offset, limit=limit) if limit > 0 else []
            if entries:
                await asyncio.get_running_loop().run_in_executor(BACKGROUND_POOL, one.fold, self.log, entries)
            return len(entries)

    async def _finish(self, one: CatchingUp) -> None:
        """Let a shadow catch up with what is committed, and learn on with the others; nothing else is folded meanwhile."""
        while await self._learn_next(one):
            pass
        learned = one.learned
        if self._is_live:
            learned = await asyncio.to_thread(learned.with_pending, self.log, list(self.ledger.open.values()))
        del self.catching_up[one.record.number]
        self._attach(learned)

    async def wait_for_shadows(self) -> None:
        """Wait until every shadow has learned the log to its end; raises what keeps one from it."""
        for one in list(self.catching_up.values()):
            async with self._lock:
                if self.catching_up.get(one.record.number) is one:
                    await self._finish(one)

    def _configure(self) -> None:
        """Give the policy the hyperparameters of now. Only those can change that no statistic depends on (`Hyperparameter.live`),
        so it does not matter that effects of earlier entries are applied with it.
        """
        wanted = self.ledger.live.hyperparameters
        if wanted is not self._hyperparameters:
            self._hyperparameters = wanted
            self.versions.policy = replace(self.policy, **wanted)

    def is_old_enough_to_forget(self, now: datetime) -> bool:
        """Whether the log is trimmed, and so old that ids of decisions may be forgotten."""
        return self._retention is not None and now - self.created.at > REMEMBERED

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    @property
    def is_saved(self) -> bool:
        """Whether a snapshot holds all that is committed, or the log holds its creation alone."""
        return self._snapshot_at == self.versions.committed.offset

    async def _try_snapshot(self) -> None:
        try:
            older = await self.snapshot()
        except Exception as error:  # the log is the truth: a snapshot that fails costs time at the next start, nothing else
            logger.warning("no snapshot was written", extra={"bandit": self.log.name, "reason": str(error)})
            return
        await self._try_trim(older)

    async def _try_trim(self, older: int, *, at_least: int = 1) -> None:
        if self._retention is None:
            return
        try:
            end = self.versions.committed.offset
            await self._retention.trim(older=older, end=end, at_least=at_least, is_closing=lambda: self.versions.is_closing)
        except Exception as error:  # the next snapshot tries again
            logger.warning("not all was trimmed", extra={"bandit": self.log.name, "reason": str(error)})

    async def snapshot(self) -> int:
        """Write a snapshot at the committed offset, unless a shadow is not there yet. Returns the offset of the one before it, up
        to which the log can be trimmed; 0 where there is none.
        """
        async with self._lock:
            if self.catching_up:
                return 0  # it would lack a shadow, and the log before it may then be trimmed
            offset, deciding, shadows = self.learned()
            promoted = self.ledger.promotions > 0
            ledger = await asyncio.to_thread(self.ledger.pack)  # nothing is folded while the lock is held
        packing = partial(snapshots.pack, shadows=list(shadows.values()), left=deciding.left, promoted=promoted)
        blob = await asyncio.get_running_loop().run_in_executor(
            SNAPSHOT_POOL, packing, deciding.policy, deciding.state, ledger, offset
        )
        older = await self.storage.save_snapshot(self.log, offset, blob)
        self._snapshot_at = offset
        return older
