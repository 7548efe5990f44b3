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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import torch

from bandits import draw
from bandits import state as states
from bandits.errors import BanditError, CorruptState
from bandits.registry import build
from bandits.types import NoReference, Policy, State, Weights, empty
from service import events
from service.events import AnyEvent, Cancelled, Created, Decided, Expired, Matrix, Observed, UnreadableEvent
from service.ledger import Anticipate, Effect, GrowArms, Inconsistent, Learn, Ledger, OpenDecision, Release
from service.storage.base import Durability, Entry, Log, Receipt, Storage, StorageDamaged

logger = logging.getLogger("nextarm.learner")

READ_BATCH = 256
MICRO_BATCH = 32
"""Requests that wait together are scored together, up to this many: between two batches their pending widths are applied."""
THREAD_ABOVE_S = 1e-3
"""Mathematics that takes longer (running mean) leaves the event loop for a worker thread; a hand-over costs about 0.1 ms."""


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
    """What was learnt up to an offset. Replaced as a whole."""

    state: State
    offset: int


class SnapshotBlob(msgspec.Struct):
    """A snapshot: sums, ledger, offset, codec version, and the build that wrote it."""

    version: int
    offset: int
    build: str
    ledger: bytes
    state: bytes


BUILD = f"torch {torch.__version__}"


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
        snapshot_every: int = 10_000,
        max_open: int = 100_000,
    ) -> None:
        self.log = log
        self.created = created
        self.policy = policy_of(created)
        self.ledger = Ledger(created)
        self.damage = ""
        self._storage = storage
        self._clock = clock
        self._snapshot_every = snapshot_every
        self._max_open = max_open
        self._published = Published(states.start(self.policy, arms=len(created.arms)), 1)
        self._reserved: dict[int, int] = {}  # decisions per arm on their way into the log
        self._waiting: list[tuple[Ask, asyncio.Future[Decided]]] = []
        self._draining: asyncio.Task[None] | None = None
        self._folding = asyncio.Lock()
        self._snapshot_at = 1
        self._snapshotting: asyncio.Task[None] | None = None
        self._weigh_s = 0.0  # running means of what one call costs
        self._fold_s = 0.0

    # -- life --------------------------------------------------------------------------------------------------------------

    @staticmethod
    async def load(
        storage: Storage,
        log: Log,
        *,
        use_snapshots: bool = True,
        each: Callable[[int], object] = lambda offset: None,
        **options: Any,
    ) -> Learner:
        """From the newest snapshot that can be read, and the log after it. Damage stops this bandit and no other.

        each: called with the offset after every batch that was folded (progress bars).
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
        behind = True
        while behind:
            before = learner.offset
            await learner.catch_up(before + READ_BATCH)
            each(learner.offset)
            behind = learner.offset > before
        return learner

    async def _resume(self, blob: bytes) -> bool:
        try:
            kept = msgspec.msgpack.decode(blob, type=SnapshotBlob)
            if kept.version != events.VERSION:
                return False
            ledger = Ledger.unpack(kept.ledger)
            state = await asyncio.to_thread(states.unpack, self.policy, kept.state)
        except (msgspec.MsgspecError, CorruptState) as error:
            logger.warning("a snapshot cannot be read and is passed over", extra={"bandit": self.log.name, "reason": str(error)})
            return False
        for decision in ledger.open.values():
            arm = self.policy.anticipate(state.arms[decision.arm], events.vector_tensor(decision.features))
            state = states.with_arm(state, decision.arm, arm)
        self.ledger, self._snapshot_at = ledger, kept.offset
        self._published = Published(self.policy.prepare(state), kept.offset)
        return True

    async def close(self) -> None:
        """Leave a snapshot behind, so that the next start is quick."""
        if not self.damage and self.offset > self._snapshot_at:
            await self.snapshot()

    @property
    def state(self) -> State:
        """The last published state."""
        return self._published.state

    @property
    def offset(self) -> int:
        """The offset up to which everything is learnt."""
        return self._published.offset

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
        state, offset = self._published
        return offset, states.digest(self.policy, state)

    # -- deciding ----------------------------------------------------------------------------------------------------------

    async def decide(self, ask: Ask) -> Kept:
        """Choose an arm and log it. The same id again is the same decision."""
        if len(self.ledger.open) >= self._max_open:
            raise TooManyOpen(f"{self._max_open} decisions are open")
        future: asyncio.Future[Decided] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        try:
            decided = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._unreserve(future.result().arm)
            raise
        try:
            receipt = await self._storage.append(
                self.log, events.decided_key(decided.id), events.encode(decided), Durability.PROCESS
            )
            await self.catch_up(receipt.offset)
        finally:
            self._unreserve(decided.arm)
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
        return self._choose([ask], await self._weigh([ask]))[0]

    async def _drain(self) -> None:
        """Score what waits, in the order in which it came, without ever waiting for more."""
        while self._waiting:
            batch, self._waiting = self._waiting[:MICRO_BATCH], self._waiting[MICRO_BATCH:]
            asks = [ask for ask, _ in batch]
            try:
                chosen = self._choose(asks, await self._weigh(asks))
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), decided in zip(batch, chosen, strict=True):
                if future.done():  # the request was cancelled meanwhile
                    continue
                self._reserved[decided.arm] = self._reserved.get(decided.arm, 0) + 1
                future.set_result(decided)
        self._draining = None

    def _unreserve(self, arm: int) -> None:
        self._reserved[arm] -= 1

    async def _weigh(self, asks: list[Ask]) -> Weights:
        reserved = [self._reserved.get(i, 0) for i in range(len(self.ledger.arms))]
        contexts = [
            self.ledger.context(
                features=events.vector_tensor(ask.features) if ask.features else empty(),
                allowed=ask.allowed,
                reserved=reserved,
                episode=ask.episode,
            )
            for ask in asks
        ]
        state = self.state
        started = time.perf_counter()
        if self._weigh_s > THREAD_ABOVE_S:
            weights = await asyncio.to_thread(self.policy.weights, state, contexts)
        else:
            weights = self.policy.weights(state, contexts)
        self._weigh_s += 0.1 * (time.perf_counter() - started - self._weigh_s)
        return weights

    def _choose(self, asks: list[Ask], weights: Weights) -> list[Decided]:
        rows = weights.values.tolist()
        scores = {name: table.tolist() for name, table in weights.scores.items()}
        now = self._clock()
        chosen = []
        for i, ask in enumerate(asks):
            arm, propensity = draw.draw(weights.values[i], f"{self.log.name}/{self.created.seed}/{ask.id}")
            episode = self.ledger.episodes.get(ask.episode)
            allowed = [k for k, record in enumerate(self.ledger.arms) if record.active and (not ask.allowed or k in ask.allowed)]
            price = 0.0 if arm < 0 else ask.allowed.get(arm)
            chosen.append(
                Decided(
                    at=now,
                    id=ask.id,
                    arm=arm,
                    propensity=propensity,
                    weights=rows[i],
                    scores={name: [_finite(value) for value in table[i]] for name, table in scores.items()},
                    allowed=allowed,
                    price=self.ledger.arms[arm].price if price is None else price,
                    features=ask.features,
                    episode=ask.episode or ask.id,
                    attempt=1 if episode is None else episode.made + 1,
                    body=ask.body,
                )
            )
        return chosen

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
        for decision in due:
            await self._expire(decision)
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
        if decision is not None and (self._clock() - decision.at).total_seconds() >= self.created.timeout_s:
            await self._expire(decision)
            decision = self.ledger.open.get(decision_id)
        return decision

    async def _expire(self, decision: OpenDecision) -> None:
        await self._close(
            decision.id, Expired(at=self._clock(), id=decision.id, reward=self.created.default_reward), Durability.PROCESS
        )

    async def _close(self, decision_id: str, event: AnyEvent, durability: Durability) -> Receipt:
        receipt = await self._storage.append(self.log, events.closed_key(decision_id), events.encode(event), durability)
        await self.catch_up(receipt.offset)
        return receipt

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

    async def record(self, event: AnyEvent, *, key: str) -> Receipt:
        """Append any other event (arms, references) and learn it."""
        receipt = await self._storage.append(self.log, key, events.encode(event), Durability.POWER)
        await self.catch_up(receipt.offset)
        return receipt

    # -- folding -----------------------------------------------------------------------------------------------------------

    async def catch_up(self, at_least: int = 0) -> None:
        """Fold what the log holds beyond the published offset. With `at_least`, return as soon as that offset is learnt."""
        if at_least and self.offset >= at_least:
            return
        async with self._folding:
            while not at_least or self.offset < at_least:
                try:
                    entries = await self._storage.read(self.log, after=self.offset, limit=READ_BATCH)
                except StorageDamaged as error:
                    self._stop(str(error))
                    raise
                if not entries:
                    break
                await self._fold(entries)
        self._maybe_snapshot()

    async def _fold(self, entries: list[Entry]) -> None:
        effects: list[Effect] = []
        offset = self.offset
        try:
            for entry in entries:
                offset = entry.offset
                effects.extend(self.ledger.apply(offset, events.decode(entry.payload), self.policy))
            started = time.perf_counter()
            if self._fold_s * len(effects) > THREAD_ABOVE_S:
                state = await asyncio.to_thread(self._after, effects)
            else:
                state = self._after(effects)
            self._fold_s += 0.1 * ((time.perf_counter() - started) / max(len(effects), 1) - self._fold_s)
        except (UnreadableEvent, Inconsistent, BanditError, IndexError, ValueError, RuntimeError) as error:
            damage = StorageDamaged(f"log {self.log.name!r}, offset {offset}", f"{type(error).__name__}: {error}")
            self._stop(str(damage))
            raise damage from error
        self._published = Published(state, offset)

    def _stop(self, damage: str) -> None:
        """From now on this bandit answers nothing but its damage; no other bandit is touched."""
        self.damage = damage
        logger.critical("this bandit stops: its log cannot be folded", extra={"bandit": self.log.name, "damage": damage})

    def _after(self, effects: list[Effect]) -> State:
        """The state after these effects, one by one in log order, whatever the read batches were."""
        policy, state = self.policy, self.state
        for effect in effects:
            match effect:
                case Learn(seen):
                    state = states.fold(policy, state, seen)
                case Anticipate(arm, features):
                    state = states.with_arm(state, arm, policy.anticipate(state.arms[arm], features))
                case Release(arm, features):
                    state = states.with_arm(state, arm, policy.release(state.arms[arm], features))
                case GrowArms():
                    state = states.add_arm(policy, state)
        return policy.prepare(state) if effects else state

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    def _maybe_snapshot(self) -> None:
        due = self.offset - self._snapshot_at >= self._snapshot_every
        if due and (self._snapshotting is None or self._snapshotting.done()):
            self._snapshotting = asyncio.create_task(self._try_snapshot())

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception as error:  # the log is the truth: a snapshot that fails costs time at the next start, nothing else
            logger.warning("no snapshot was written", extra={"bandit": self.log.name, "reason": str(error)})

    async def snapshot(self) -> None:
        """Write one at the published offset."""
        async with self._folding:
            state, offset = self._published
            ledger = self.ledger.pack()
        packed = await asyncio.to_thread(states.pack, self.policy, state)
        blob = msgspec.msgpack.encode(SnapshotBlob(events.VERSION, offset, BUILD, ledger, packed))
        await self._storage.save_snapshot(self.log, offset, blob)
        self._snapshot_at = offset


def body_digest(*parts: Any) -> str:
    """A short fingerprint of a request's content, for telling a repeated request from another one."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _finite(value: float) -> float | None:
    return value if -1e308 < value < 1e308 else None
