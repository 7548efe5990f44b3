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
from bandits.gpu.mirror import Placement
from bandits.hyperparameters import declared
from bandits.registry import POLICIES, build
from bandits.types import REFERENCE, Observation, Policy, State
from service.engine import events, snapshots
from service.engine.events import AnyEvent, Created, Decided
from service.engine.executor import FORGET, PATIENT, RARELY, Background, Pace
from service.engine.ledger import Anticipate, ArmRecord, Effect, GrowArms, Learn, Ledger, Release
from service.storage.base import Entry, Log, LogMissing, LogRewound, LogTrimmed, Storage, StorageDamaged, StorageUnavailable

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


class Published(NamedTuple):
    """What was learnt up to an offset, and the arms as of then. Replaced as a whole."""

    state: State
    offset: int
    arms: tuple[ArmRecord, ...]


class LogNewer(StorageDamaged):
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

    ready: Published
    ids: frozenset[str]
    state: State


class Folding:
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
        background: Background,
        *,
        policy: Policy,
        snapshot_every: int,
        placement: Placement | None = None,
    ) -> None:
        self.ledger = Ledger(created)
        self.published = Published(states.start(policy, arms=len(created.arms)), 1, tuple(self.ledger.arms))
        self.ready = self.published
        self.damaged: StorageDamaged | None = None
        self.astray: LogRewound | LogTrimmed | None = None
        self._storage = storage
        self._log = log
        self._created = created
        self._policy = policy
        self._placement = placement
        self._background = background
        self._lock = asyncio.Lock()
        self._live = True  # while a log is being replayed nobody asks, and nothing is prepared
        self._closing = False
        self._fold_pace = Pace(spiky="output" in policy.needs and policy.output_dim >= WIDE)
        # only what is derived from outputs takes long now and then: spectra, mixtures
        self._prepare_pace = Pace(PATIENT, forget=RARELY if "output" in policy.needs else FORGET)
        self._preparing: asyncio.Task[None] | None = None
        self._reserved: dict[str, tuple[int, bytes]] = {}  # decisions that `ready` does not know yet -> arm, features
        self._ahead: Ahead | None = None
        self._decided: dict[str, None] = {}  # ids of the decisions that were folded last
        self._landed: deque[tuple[int, str]] = deque()  # those of them that are folded, with their offsets
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
        while until is None or self.published.offset < until:
            before = self.published.offset
            await self.catch_up(before + READ_BATCH, at_most=until)
            each(self.published.offset)
            if self.published.offset == before:
                break
        state = await asyncio.to_thread(self._anticipated, self.published.state)
        self.published = self.ready = self.published._replace(state=state)
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
        except LogTrimmed:
            return True
        return False

    async def _resume(self, blob: bytes, *, any_build: bool) -> bool:
        unpack = partial(snapshots.unpack, any_build=any_build)
        try:
            ledger, state = await asyncio.to_thread(unpack, self._policy, self._created, blob)
            if not await self._storage.read(self._log, after=ledger.offset - 1, limit=1):
                raise snapshots.SnapshotRefused(f"it is of offset {ledger.offset}, the log ends before")
        except (StorageUnavailable, LogMissing, LogRewound):
            raise
        except Exception as error:  # the log is the truth: whatever is wrong with a snapshot costs time and nothing else
            reason = f"{type(error).__name__}: {error}"
            logger.warning("a snapshot cannot be used and is passed over", extra={"bandit": self._log.name, "reason": reason})
            return False
        self.ledger = ledger
        self._snapshot_at = self._snapshot_tried = ledger.offset
        self.published = self.ready = Published(state, ledger.offset, tuple(ledger.arms))
        return True

    async def close(self) -> None:
        """Finish what was begun and leave a snapshot behind, so that the next start is quick."""
        self._closing = True
        await self._background.finish()
        if not self.damaged and self.published.offset > self._snapshot_at:
            await self.snapshot()

    def check_sound(self) -> None:
        """Raise what stopped this bandit, if anything did."""
        if self.damaged is not None:
            raise type(self.damaged)(self.damaged.place, self.damaged.reason)
        if self.astray is not None:
            raise self.astray

    def stop(self, damage: StorageDamaged) -> None:
        """From now on this bandit answers nothing but its damage; no other bandit is touched. The first damage is kept."""
        if self.damaged is not None:
            return
        self.damaged = damage
        logger.critical("this bandit stops: its log is damaged", extra={"bandit": self._log.name, "damage": str(damage)})

    # -- decisions on their way -----------------------------------------------------------------------------------------------

    def reserve(self, decision: Decided) -> None:
        """Count a decision as pending from now on: it is on its way into the log."""
        self._reserved[decision.id] = decision.arm, decision.features

    def withdraw(self, decision_id: str) -> None:
        """It will not be in the log."""
        self._reserved.pop(decision_id, None)

    def reserved(self) -> Counter[int]:
        """Per arm, the decisions that `ready` does not know yet."""
        return Counter(arm for arm, _ in self._reserved.values())

    def is_known(self, decision_id: str) -> bool:
        """Whether the log is known to hold this decision: it is open, or one of the last that were folded."""
        return decision_id in self.ledger.open or decision_id in self._decided

    def scored(self) -> Published:
        """`ready` for the next decision: its widths know the decisions on their way as if they had been folded. Where folding
        is quick there are none, and where a policy's rule does not look at widths nothing changes.
        """
        if not self._reserved:
            self._ahead = None
            return self.ready
        ahead = self._ahead
        if ahead is None or ahead.ready is not self.ready or not ahead.ids <= self._reserved.keys():
            ahead = Ahead(self.ready, frozenset(), self.ready.state)
        waiting: dict[int, list[Tensor]] = {}
        for decision_id, (arm, features) in self._reserved.items():
            if arm >= 0 and decision_id not in ahead.ids:
                waiting.setdefault(arm, []).append(events.vector_tensor(features))
        state = ahead.state
        for arm, several in waiting.items():
            narrowed = self._policy.anticipate_all(state.arms[arm], several)
            if narrowed is not state.arms[arm]:  # else what was derived from these very arms still holds
                state = states.with_arm(state, arm, narrowed)
        self._ahead = Ahead(self.ready, frozenset(self._reserved), state)
        return self.ready._replace(state=state)

    # -- folding -----------------------------------------------------------------------------------------------------------

    @property
    def slow(self) -> bool:
        """Whether folding one event may take longer than a decision should wait."""
        return self._fold_pace.spiky or self._fold_pace.peak_s > ANSWER_BELOW_S

    async def catch_up(
        self, at_least: int = 0, *, at_most: int | None = None, known: Mapping[bytes, AnyEvent] = MappingProxyType({})
    ) -> None:
        """Fold what the log holds beyond the published offset. With `at_least`, return as soon as that offset is learnt; with
        `at_most`, fold nothing behind that offset. Must not be cancelled amid a fold (`Background.to_the_end`).

        known: events by their bytes, which need not be decoded.
        """
        if at_least and self.published.offset >= at_least:
            return
        async with self._lock:
            while not at_least or self.published.offset < at_least:
                self.check_sound()
                limit = READ_BATCH if at_most is None else min(READ_BATCH, at_most - self.published.offset)
                try:
                    entries = await self._storage.read(self._log, after=self.published.offset, limit=limit)
                except StorageDamaged as error:
                    self.stop(error)
                    raise
                except (LogRewound, LogTrimmed) as error:
                    self.astray = error
                    raise
                if not entries:
                    break
                await self._fold(entries, known)
        self._maybe_snapshot()

    async def _fold(self, entries: list[Entry], known: Mapping[bytes, AnyEvent]) -> None:
        """All of them, or stop: the ledger may have taken in what the state has not, and nothing may be folded on top of that."""
        effects: list[tuple[int, Effect]] = []
        landed: list[tuple[int, str]] = []
        fault: StorageDamaged | None = None
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
            state = await self._fold_pace.run(self._after, self.published.state, effects, units=len(effects))
        except StorageDamaged as error:  # comes before what the ledger refused
            fault = error
        if fault is not None:
            self.stop(fault)
            raise fault
        if state is not self.published.state:
            state = replace(state, cache=self.ready.state.cache)  # it may have been prepared anew meanwhile
        self.published = Published(state, entries[-1].offset, tuple(self.ledger.arms))
        if self._live:
            self._landed.extend(landed)
            await self._make_ready()

    def _after(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        """The state after these effects in log order, whatever the read batches were. What may go together does: decisions that
        are pending, and outcomes where arms are learnt separately.
        """
        for kind, run in itertools.groupby(effects, key=lambda numbered: type(numbered[1])):
            several = list(run)
            together = len(several) > 1 and self._live and (kind is Anticipate or (kind is Learn and self._policy.separate))
            state = self._together(state, several) if together else self._one_by_one(state, several)
        return state

    def _one_by_one(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        for offset, effect in effects:
            try:
                state = self._with(state, effect)
            except Exception as error:
                raise self._damage_at(offset, error) from error
        return state

    def _together(self, state: State, effects: list[tuple[int, Effect]]) -> State:
        """Arm by arm; where that fails, one by one, to name the entry."""
        by_arm: dict[int, list[Any]] = {}
        for _, effect in effects:
            match effect:
                case Learn(seen) if seen.arm != REFERENCE:
                    by_arm.setdefault(seen.arm, []).append(seen)
                case Anticipate(arm, features):
                    by_arm.setdefault(arm, []).append(features)
                case _:
                    return self._one_by_one(state, effects)
        arms, policy = list(state.arms), self._policy
        try:
            for index, several in by_arm.items():
                learns = isinstance(several[0], Observation)
                arms[index] = policy.learn_all(state, several) if learns else policy.anticipate_all(state.arms[index], several)
        except Exception:
            return self._one_by_one(state, effects)
        return replace(state, arms=tuple(arms))

    def _with(self, state: State, effect: Effect) -> State:
        """While a log is replayed only sums are added to; what is pending at its end is anticipated then."""
        policy = self._policy
        match effect:
            case Learn(seen):
                return states.fold(policy, state, seen if self._live else replace(seen, anticipated=False))
            case Anticipate(arm, features) if self._live:
                return states.with_arm(state, arm, policy.anticipate(state.arms[arm], features))
            case Release(arm, features) if self._live:
                return states.with_arm(state, arm, policy.release(state.arms[arm], features))
            case GrowArms():
                return states.add_arm(policy, state)
        return state

    def _anticipated(self, state: State) -> State:
        """The state of a replay with the widths shrunk by every decision that is open at its end."""
        for decision in self.ledger.open.values():
            try:
                arm = self._policy.anticipate(state.arms[decision.arm], events.vector_tensor(decision.features))
            except Exception as error:
                raise self._damage_at(decision.offset, error) from error
            state = states.with_arm(state, decision.arm, arm)
        return state

    def _damage_at(self, offset: int, error: Exception) -> StorageDamaged:
        place = f"log {self._log.name!r}, offset {offset}"
        if isinstance(error, events.NewerEvent):
            damage: StorageDamaged = LogNewer(place, str(error))
        else:
            damage = StorageDamaged(place, f"{type(error).__name__}: {error}")
        damage.__cause__ = error
        return damage

    # -- preparing ---------------------------------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Wait until decisions know what was published when this was called, where that is known to be quick: then a client that
        got its receipt finds its outcome in the next decision.
        """
        offset = self.published.offset
        while self._preparing is not None and self.ready.offset < offset and self._prepare_pace.peak_s < WAIT_BELOW_S:
            done, _ = await asyncio.wait([self._preparing], timeout=PATIENCE_S)
            if not done:
                return

    async def prepared(self) -> None:
        """Wait until decisions know what was published when this was called, however long that takes."""
        offset = self.published.offset
        while self.ready.offset < offset and not self._closing:
            self.check_sound()
            await self._make_ready()
            if self._preparing is not None:
                await asyncio.wait([self._preparing])

    async def _make_ready(self) -> None:
        """At once where that is quick; else in the background, always the newest, and never two at a time."""
        if self._preparing is not None:
            return
        if _same(self.published.state, self.ready.state):  # nothing to derive anew
            self._set_ready(self.published, replace(self.published.state, cache=self.ready.state.cache))
        elif self._prepare_pace.is_slow():
            self._preparing = self._background.go_on(self._prepare_in_background())
        else:
            await self._prepare()

    async def _prepare_in_background(self) -> None:
        try:
            await self._prepare()
        except StorageDamaged:
            return  # the next request is told
        finally:
            self._preparing = None
        if self.ready.offset < self.published.offset and not self._closing:
            await self._make_ready()

    async def _prepare(self) -> None:
        published = self.published
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
        self._set_ready(published, state)

    def _derived(self, state: State) -> State:
        """Prepared; and a device that scores for this bandit knows of it, too."""
        state = self._policy.prepare(state)
        if self._placement is None:
            return state
        self._placement.follow(state.arms)
        return replace(state, cache=self._placement)

    def _set_ready(self, published: Published, state: State) -> None:
        self.ready = published._replace(state=state)
        newest = self.published
        self.published = self.ready if newest is published else newest._replace(state=replace(newest.state, cache=state.cache))
        while self._landed and self._landed[0][0] <= self.ready.offset:  # pending in `ready.arms` from here on
            self._reserved.pop(self._landed.popleft()[1], None)

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    def _maybe_snapshot(self) -> None:
        if self._snapshot_every and self.published.offset - self._snapshot_tried >= self._snapshot_every:
            self._snapshot_tried = self.published.offset
            self._background.go_on(self._try_snapshot())

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception as error:  # the log is the truth: a snapshot that fails costs time at the next start, nothing else
            logger.warning("no snapshot was written", extra={"bandit": self._log.name, "reason": str(error)})

    async def snapshot(self) -> None:
        """Write one at the published offset."""
        async with self._lock:
            state, offset, _ = self.published
            ledger = await asyncio.to_thread(self.ledger.pack)  # nothing is folded while the lock is held
        blob = await asyncio.to_thread(snapshots.pack, self._policy, state, ledger, offset)
        await self._storage.save_snapshot(self._log, offset, blob)
        self._snapshot_at = offset


def _same(one: State, other: State) -> bool:
    """Whether two states hold the same statistics, so that what was derived from one holds for the other."""
    return (
        one.reference is other.reference
        and len(one.arms) == len(other.arms)
        and all(a is b for a, b in zip(one.arms, other.arms, strict=True))
    )
