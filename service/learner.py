"""One bandit at work: the only class with mathematics and I/O in reach.

    decide   validate ──> wait together ──> Ledger.context ──> policy.weights ──> draw ──> append Decided ──> catch_up ──> answer
    observe  validate ──> append Observed (first come closes the decision) ──> catch_up ──> receipt
    catch_up read the log ──> Ledger.apply ──> fold ──> publish (state, offset) by one assignment

`catch_up` is the only code that changes what is known: at the start, live, and in a replay. Readers take no lock.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, ParamSpec, TypeVar

import msgspec
from torch import Tensor

from bandits import draw
from bandits import state as states
from bandits.errors import BanditError
from bandits.registry import build
from bandits.types import Context, NoReference, Policy, State, Weights, empty
from service import events, snapshots
from service.events import AnyEvent, Cancelled, Created, Decided, Expired, Matrix, Observed
from service.ledger import Anticipate, ArmRecord, Effect, GrowArms, Inconsistent, Learn, Ledger, OpenDecision, Release
from service.storage.base import Durability, Entry, Log, LogMissing, Receipt, Storage, StorageDamaged, StorageUnavailable

logger = logging.getLogger("nextarm.learner")

P = ParamSpec("P")
T = TypeVar("T")

READ_BATCH = 256
MICRO_BATCH = 32
"""Requests that wait together are scored together, up to this many: between two batches their pending widths are applied."""
THREAD_ABOVE_S = 1e-3
"""Mathematics that takes more CPU time (running mean) leaves the event loop for a worker thread; a hand-over costs 0.1 ms."""


class DecisionMissing(Exception):
    """No decision has this id."""


class DecisionConflict(Exception):
    """The id stands for another request already."""


class OutcomeConflict(Exception):
    """The decision has another outcome already."""


class DecisionExpired(Exception):
    """The decision expired before its outcome came."""


class DecisionCancelled(Exception):
    """The decision was cancelled before its outcome came."""


class NothingToObserve(Exception):
    """The decision was a stop; no arm was played."""


class EpisodeFinished(Exception):
    """No further attempt can be made in this episode."""


class TooManyOpen(Exception):
    """More decisions are open than the bandit keeps."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A validated request for a decision. allowed: arm index -> price for it alone (None = the arm's own); empty = all."""

    id: str
    features: bytes = b""
    allowed: Mapping[int, float | None] = field(default_factory=dict)
    episode: str = ""
    body: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A validated outcome. arm: index where the client overrode the suggestion."""

    reward: float | None
    cost: float | None = None
    arm: int | None = None
    output: Matrix = events.EMPTY
    reference: Matrix = events.EMPTY
    body: str = ""


class Kept(NamedTuple):
    """An event of the log with its offset; repeated = it stood there before this request."""

    event: Any
    offset: int
    repeated: bool


class Published(NamedTuple):
    """What was learnt up to an offset, and the arms as of then. Replaced as a whole."""

    state: State
    offset: int
    arms: tuple[ArmRecord, ...]


def policy_of(created: Created) -> Policy:
    """The policy that a log's first event names; refuses to run on other random numbers than it was started with."""
    policy = build(created.policy, created.hyperparameters, dim=created.dim, output_dim=created.output_dim, seed=created.seed)
    if policy.fingerprint != created.fingerprint:
        raise BanditError("the random frequencies differ from those that the bandit was created with (another NumPy?)")
    return policy


class Learner:
    """See the module."""

    def __init__(
        self,
        storage: Storage,
        log: Log,
        created: Created,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        snapshot_every: int = 10_000,  # events between two snapshots; 0 = none
        max_open: int = 100_000,
    ) -> None:
        self.log = log
        self.created = created
        self.policy = policy_of(created)
        self.ledger = Ledger(created)
        self.damaged: StorageDamaged | None = None
        self._storage = storage
        self._clock = clock
        self._snapshot_every = snapshot_every
        self._max_open = max_open
        self._published = Published(states.start(self.policy, arms=len(created.arms)), 1, tuple(self.ledger.arms))
        self._reserved: dict[str, int] = {}  # decisions on their way into the log -> arm, until they are pending in `arms`
        self._waiting: list[tuple[Ask, asyncio.Future[Decided]]] = []
        self._draining: asyncio.Task[None] | None = None
        self._folding = asyncio.Lock()
        self._recording = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()  # what goes on although its request may be gone
        self._snapshot_at = 1  # of the last one
        self._snapshot_tried = 1
        self._weigh_s = 0.0  # running means of what one call costs
        self._fold_s = 0.0

    # -- life --------------------------------------------------------------------------------------------------------------

    @staticmethod
    async def load(
        storage: Storage,
        log: Log,
        *,
        use_snapshots: bool = True,
        until: int | None = None,
        each: Callable[[int], object] = lambda offset: None,
        **options: Any,
    ) -> Learner:
        """From the newest snapshot that can be read, and the log after it. Damage stops this bandit and no other.

        until: the last offset to fold; None = all.  each: called with the offset after every batch (progress bars).
        """
        first = await storage.read(log, after=0, limit=1)
        if not first:
            raise StorageDamaged(f"log {log.name!r}, offset 1", "the log is empty")
        created = events.decode(first[0].payload)
        if not isinstance(created, Created):
            raise StorageDamaged(f"log {log.name!r}, offset 1", "the first entry does not create a bandit")
        learner = Learner(storage, log, created, **options)
        for _, blob in await storage.load_snapshots(log) if use_snapshots else ():
            if await learner._resume(blob):
                break
        while until is None or learner.offset < until:
            before = learner.offset
            await learner.catch_up(before + READ_BATCH, at_most=until)
            each(learner.offset)
            if learner.offset == before:
                break
        return learner

    async def _resume(self, blob: bytes) -> bool:
        try:
            ledger, state = await asyncio.to_thread(snapshots.unpack, self.policy, self.created, blob)
            if not await self._storage.read(self.log, after=ledger.offset - 1, limit=1):
                raise snapshots.SnapshotRefused(f"it is of offset {ledger.offset}, the log ends before")
        except (StorageUnavailable, LogMissing):
            raise
        except Exception as error:  # the log is the truth: whatever is wrong with a snapshot costs time and nothing else
            reason = f"{type(error).__name__}: {error}"
            logger.warning("a snapshot cannot be used and is passed over", extra={"bandit": self.log.name, "reason": reason})
            return False
        self.ledger = ledger
        self._snapshot_at = self._snapshot_tried = ledger.offset
        self._published = Published(state, ledger.offset, tuple(ledger.arms))
        return True

    async def close(self) -> None:
        """Finish what was begun and leave a snapshot behind, so that the next start is quick."""
        while self._running:
            await asyncio.wait(self._running)
        if not self.damaged and self.offset > self._snapshot_at:
            await self.snapshot()

    @property
    def damage(self) -> str:
        """Why this bandit answers nothing any more; "" while it is well."""
        return "" if self.damaged is None else str(self.damaged)

    @property
    def state(self) -> State:
        """The last published state."""
        return self._published.state

    @property
    def offset(self) -> int:
        """The offset up to which everything is learnt."""
        return self._published.offset

    @property
    def arms(self) -> tuple[ArmRecord, ...]:
        """The arms as of `offset`, as many as `state` has. (The ledger's are ahead of both while a fold is under way.)"""
        return self._published.arms

    @property
    def takes_reference(self) -> bool:
        """Whether reference material can be posted: the policy keeps a statistic of it."""
        return not isinstance(self.policy.blank_reference(), NoReference)

    async def entries(self, *, after: int, limit: int) -> list[tuple[int, bytes]]:
        """(offset, event as it was written) of the log; for streaming it."""
        if limit <= 0:
            return []
        return [(entry.offset, entry.payload) for entry in await self._storage.read(self.log, after=after, limit=limit)]

    def digest(self) -> tuple[int, str]:
        """(offset, sha256 of the packed state)."""
        state, offset, _ = self._published
        return offset, states.digest(self.policy, state)

    # -- deciding ----------------------------------------------------------------------------------------------------------

    async def decide(self, ask: Ask) -> Kept:
        """Choose an arm and log it. The same id again is the same decision."""
        self._check_sound()
        if len(self.ledger.open) >= self._max_open:
            raise TooManyOpen(f"{self._max_open} decisions are open")
        future: asyncio.Future[Decided] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        try:
            decided = await future
        except asyncio.CancelledError:
            self._reserved.pop(ask.id, None)
            raise
        receipt = await self._append(events.decided_key(decided.id), decided, Durability.PROCESS)
        if receipt.first is not None:
            return self._same_decision(receipt, ask.body)
        return Kept(decided, receipt.offset, False)

    async def decided(self, decision_id: str, body: str) -> Kept | None:
        """The decision that has this id already, if any."""
        entry = await self._storage.find(self.log, events.decided_key(decision_id))
        return None if entry is None else self._same_decision(Receipt(entry.offset, entry.payload), body)

    def _same_decision(self, receipt: Receipt, body: str) -> Kept:
        assert receipt.first is not None
        first = events.decode(receipt.first)
        assert isinstance(first, Decided)
        if first.body != body:
            raise DecisionConflict(first.id)
        return Kept(first, receipt.offset, True)

    async def preview(self, ask: Ask) -> Decided:
        """What would be decided now; nothing is logged."""
        return (await self._choose([ask]))[0]

    async def _drain(self) -> None:
        """Score what waits, in the order in which it came, without ever waiting for more."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MICRO_BATCH], self._waiting[MICRO_BATCH:]
                await self._answer(batch)
        finally:
            self._draining = None

    async def _answer(self, batch: list[tuple[Ask, asyncio.Future[Decided]]]) -> None:
        batch = [(ask, future) for ask, future in batch if not future.done()]  # a request may be cancelled meanwhile
        try:
            chosen = await self._choose([ask for ask, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0][1], error)
            else:
                for one in batch:  # it is the fault of one of them, and harms no other
                    await self._answer([one])
            return
        for (_, future), decided in zip(batch, chosen, strict=True):
            if not future.done():
                self._reserved[decided.id] = decided.arm
                future.set_result(decided)

    async def _choose(self, asks: list[Ask]) -> list[Decided]:
        if not asks:
            return []
        state, _, arms = self._published  # one moment for all of it, whatever is folded meanwhile
        reserved = Counter(self._reserved.values())
        contexts = [
            self.ledger.context(
                features=events.vector_tensor(ask.features) if ask.features else empty(),
                allowed=ask.allowed,
                reserved=[reserved[i] for i in range(len(arms))],
                episode=ask.episode,
                arms=arms,
            )
            for ask in asks
        ]
        weights = await self._weigh(state, contexts)
        tables = {name: table.tolist() for name, table in weights.scores.items()}
        now = self._clock()
        chosen = []
        for i, (ask, context) in enumerate(zip(asks, contexts, strict=True)):
            scores = {name: [_finite(value) for value in table[i]] for name, table in tables.items()}
            chosen.append(self._decision(ask, context, weights.values[i], scores, now))
        return chosen

    async def _weigh(self, state: State, contexts: list[Context]) -> Weights:
        if self._weigh_s > THREAD_ABOVE_S:
            weights, seconds = await asyncio.to_thread(_timed, self.policy.weights, state, contexts)
        else:
            weights, seconds = _timed(self.policy.weights, state, contexts)
        self._weigh_s += 0.1 * (seconds - self._weigh_s)
        return weights

    def _decision(
        self, ask: Ask, context: Context, weights: Tensor, scores: dict[str, list[float | None]], now: datetime
    ) -> Decided:
        row = weights.tolist()
        _check_distribution(row, context, self.policy)
        arm, propensity = draw.draw(weights, f"{self.log.name}/{self.created.seed}/{ask.id}")
        episode = self.ledger.episodes.get(ask.episode)
        return Decided(
            at=now,
            id=ask.id,
            arm=arm,
            propensity=propensity,
            weights=row,
            scores=scores,
            allowed=[k for k, is_allowed in enumerate(context.allowed) if is_allowed],
            price=0.0 if arm < 0 else context.prices[arm],
            features=ask.features,
            episode=ask.episode or ask.id,
            attempt=1 if episode is None else episode.made + 1,
            body=ask.body,
        )

    # -- learning ----------------------------------------------------------------------------------------------------------

    async def observe(self, decision_id: str, outcome: Outcome) -> Kept:
        """Accept an outcome, once. The same body again is answered with the first receipt."""
        decision = await self._open(decision_id)
        if decision is None:
            return await self._already_closed(decision_id, outcome.body)
        arm = decision.arm if outcome.arm is None else outcome.arm
        overridden = arm != decision.arm
        price = self.ledger.arms[arm].price if overridden else decision.price
        event = Observed(
            at=self._clock(),
            id=decision_id,
            arm=arm,
            reward=outcome.reward,
            cost=price if outcome.cost is None else outcome.cost,
            propensity=None if overridden else decision.propensity,
            output=outcome.output,
            reference=outcome.reference,
            body=outcome.body,
        )
        receipt = await self._close(decision_id, event, Durability.POWER)
        if receipt.first is not None:
            return self._same_outcome(events.decode(receipt.first), receipt.offset, outcome.body)
        return Kept(event, receipt.offset, False)

    async def cancel(self, decision_id: str) -> None:
        """Withdraw an open decision. Cancelling twice is cancelling once."""
        decision = await self._open(decision_id)
        first: AnyEvent | None = None
        if decision is not None:
            receipt = await self._close(decision_id, Cancelled(at=self._clock(), id=decision_id), Durability.PROCESS)
            first = None if receipt.first is None else events.decode(receipt.first)
        else:
            first = (await self._closing(decision_id)).event
        if isinstance(first, Observed):
            raise OutcomeConflict(decision_id)
        if isinstance(first, Expired):
            raise DecisionExpired(decision_id)

    async def expire(self) -> int:
        """Close every decision whose time is over; how many were."""
        due = self.ledger.overdue(self._clock())
        for first in range(0, len(due), READ_BATCH):  # together: they share commits
            await asyncio.gather(*(self._expire(decision) for decision in due[first : first + READ_BATCH]))
        return len(due)

    async def look_up(self, decision_id: str) -> tuple[Kept, Kept | None]:
        """The decision and what closed it, None while it is open."""
        entry = await self._storage.find(self.log, events.decided_key(decision_id))
        if entry is None:
            raise DecisionMissing(decision_id)
        decided = Kept(events.decode(entry.payload), entry.offset, True)
        if await self._open(decision_id) is not None or decided.event.arm < 0:
            return decided, None
        return decided, await self._closing(decision_id)

    async def _open(self, decision_id: str) -> OpenDecision | None:
        """The decision if it is open and its time is not over; an overdue one is expired here and now."""
        decision = self.ledger.open.get(decision_id)
        if decision is None:
            await self.catch_up()
            decision = self.ledger.open.get(decision_id)
        if decision is not None and self.ledger.is_overdue(decision, self._clock()):
            await self._expire(decision)
            decision = self.ledger.open.get(decision_id)
        return decision

    async def _expire(self, decision: OpenDecision) -> None:
        await self._close(
            decision.id, Expired(at=self._clock(), id=decision.id, reward=self.created.default_reward), Durability.PROCESS
        )

    async def _close(self, decision_id: str, event: AnyEvent, durability: Durability) -> Receipt:
        return await self._append(events.closed_key(decision_id), event, durability)

    async def _closing(self, decision_id: str) -> Kept:
        entry = await self._storage.find(self.log, events.closed_key(decision_id))
        if entry is not None:
            return Kept(events.decode(entry.payload), entry.offset, True)
        if await self._storage.find(self.log, events.decided_key(decision_id)) is not None:
            raise NothingToObserve(decision_id)  # decided, never opened: it was a stop
        raise DecisionMissing(decision_id)

    async def _already_closed(self, decision_id: str, body: str) -> Kept:
        closing = await self._closing(decision_id)
        return self._same_outcome(closing.event, closing.offset, body)

    def _same_outcome(self, first: AnyEvent, offset: int, body: str) -> Kept:
        match first:
            case Observed() if first.body == body:
                return Kept(first, offset, True)
            case Observed():
                raise OutcomeConflict(first.id)
            case Expired():
                raise DecisionExpired(first.id)
            case Cancelled():
                raise DecisionCancelled(first.id)
            case _:
                raise Inconsistent(f"{type(first).__name__} closes a decision")

    async def record(self, event: AnyEvent, *, key: str, check: Callable[[], object] = lambda: None) -> Receipt:
        """Append any other event (arms, references) and learn it.

        check: raises where the event cannot follow what was learnt; called when all of it is learnt and nothing else is recorded
        before this event, so that two requests which are fine one by one cannot spoil the log together.
        """

        async def run() -> Receipt:
            async with self._recording:
                await self._learn()
                check()
                return await self._log(key, event, Durability.POWER)

        return await self._to_the_end(run())

    async def _append(self, key: str, event: AnyEvent, durability: Durability) -> Receipt:
        return await self._to_the_end(self._log(key, event, durability))

    async def _log(self, key: str, event: AnyEvent, durability: Durability) -> Receipt:
        try:
            self._check_sound()
            receipt = await self._storage.append(self.log, key, events.encode(event), durability)
            await self._learn(receipt.offset)
            return receipt
        finally:
            if isinstance(event, Decided):
                self._reserved.pop(event.id, None)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """The result; where the request is cancelled meanwhile, the work goes on: what is in the log is learnt, and no fold is
        left half done.
        """
        return await asyncio.shield(self._go_on(work))

    def _go_on(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    # -- folding -----------------------------------------------------------------------------------------------------------

    async def catch_up(self, at_least: int = 0, *, at_most: int | None = None) -> None:
        """Fold what the log holds beyond the published offset. With `at_least`, return as soon as that offset is learnt; with
        `at_most`, fold nothing behind that offset.
        """
        if not at_least or self.offset < at_least:
            await self._to_the_end(self._learn(at_least, at_most=at_most))

    async def _learn(self, at_least: int = 0, *, at_most: int | None = None) -> None:
        if at_least and self.offset >= at_least:
            return
        async with self._folding:
            while not at_least or self.offset < at_least:
                self._check_sound()
                limit = READ_BATCH if at_most is None else min(READ_BATCH, at_most - self.offset)
                try:
                    entries = await self._storage.read(self.log, after=self.offset, limit=limit)
                except StorageDamaged as error:
                    self._stop(error)
                    raise
                if not entries:
                    break
                await self._fold(entries)
        self._maybe_snapshot()

    async def _fold(self, entries: list[Entry]) -> None:
        """All of them, or stop: the ledger may have taken in what the state has not, and nothing may be folded on top of that."""
        effects: list[tuple[int, Effect]] = []
        made: list[str] = []
        fault: StorageDamaged | None = None
        for entry in entries:
            try:
                event = events.decode(entry.payload)
                effects.extend((entry.offset, effect) for effect in self.ledger.apply(entry.offset, event, self.policy))
            except Exception as error:
                fault = self._damage_at(entry.offset, error)
                break
            if isinstance(event, Decided):
                made.append(event.id)
        try:
            if self._fold_s * len(effects) > THREAD_ABOVE_S:
                state, seconds = await asyncio.to_thread(_timed, self._after, effects)
            else:
                state, seconds = _timed(self._after, effects)
        except StorageDamaged as error:  # comes before what the ledger refused
            fault = error
        if fault is not None:
            self._stop(fault)
            raise fault
        self._fold_s += 0.1 * (seconds / max(len(effects), 1) - self._fold_s)
        self._published = Published(state, entries[-1].offset, tuple(self.ledger.arms))
        for decision in made:  # pending from here on
            self._reserved.pop(decision, None)

    def _stop(self, damage: StorageDamaged) -> None:
        """From now on this bandit answers nothing but its damage; no other bandit is touched."""
        self.damaged = damage
        logger.critical("this bandit stops: its log cannot be folded", extra={"bandit": self.log.name, "damage": str(damage)})

    def _damage_at(self, offset: int, error: Exception) -> StorageDamaged:
        damage = StorageDamaged(f"log {self.log.name!r}, offset {offset}", f"{type(error).__name__}: {error}")
        damage.__cause__ = error
        return damage

    def _check_sound(self) -> None:
        if self.damaged is not None:
            raise StorageDamaged(self.damaged.place, self.damaged.reason)

    def _after(self, effects: list[tuple[int, Effect]]) -> State:
        """The state after these effects, one by one in log order, whatever the read batches were."""
        state, offset = self.state, self.offset
        try:
            for offset, effect in effects:  # noqa: B007 (the failure names it)
                state = self._with(state, effect)
            return self.policy.prepare(state) if effects else state
        except Exception as error:
            raise self._damage_at(offset, error) from error

    def _with(self, state: State, effect: Effect) -> State:
        policy = self.policy
        match effect:
            case Learn(seen):
                return states.fold(policy, state, seen)
            case Anticipate(arm, features):
                return states.with_arm(state, arm, policy.anticipate(state.arms[arm], features))
            case Release(arm, features):
                return states.with_arm(state, arm, policy.release(state.arms[arm], features))
            case GrowArms():
                return states.add_arm(policy, state)

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    def _maybe_snapshot(self) -> None:
        if self._snapshot_every and self.offset - self._snapshot_tried >= self._snapshot_every:
            self._snapshot_tried = self.offset
            self._go_on(self._try_snapshot())

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception as error:  # the log is the truth: a snapshot that fails costs time at the next start, nothing else
            logger.warning("no snapshot was written", extra={"bandit": self.log.name, "reason": str(error)})

    async def snapshot(self) -> None:
        """Write one at the published offset."""
        async with self._folding:
            state, offset, _ = self._published
            ledger = await asyncio.to_thread(self.ledger.pack)  # nothing is folded while the lock is held
        blob = await asyncio.to_thread(snapshots.pack, self.policy, state, ledger, offset)
        await self._storage.save_snapshot(self.log, offset, blob)
        self._snapshot_at = offset


def body_digest(*parts: Any) -> str:
    """A short fingerprint of a request's content, for telling a repeated request from another one."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _timed(work: Callable[P, T], *values: P.args, **options: P.kwargs) -> tuple[T, float]:
    """The result, and what it cost: time of this very thread, so that neither a busy machine nor the hand-over to a worker thread
    is taken for mathematics (which would keep it in the worker thread for ever).
    """
    started = time.thread_time()
    return work(*values, **options), time.thread_time() - started


def _fail(future: asyncio.Future[Decided], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _check_distribution(row: list[float], context: Context, policy: Policy) -> None:
    """Nothing else may reach the log: a NaN there could never be read back."""
    total = sum(row)
    sound = abs(total - 1.0) < 1e-9 or total == 0.0
    if not sound or min(row) < 0.0 or any(weight and not ok for weight, ok in zip(row, context.allowed, strict=True)):
        raise BanditError(f"{policy.kind} gave weights that are no distribution over the allowed arms")


def _finite(value: float) -> float | None:
    return value if -1e308 < value < 1e308 else None
