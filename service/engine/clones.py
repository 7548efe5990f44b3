"""Clones: a new bandit learns the outcomes of another one's log under another policy, and decides when it has all of them.

    source log ──read──> OutcomeJoin ──> imported, arm_added, ..., reference_added ──> the clone's own log, under clone/<offset>
                                                                               └──> cloned: from here on it decides

What was copied is in the clone's log, so a copy that was cut off goes on where it was, in any process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET

from bandits import state as states
from bandits.errors import FieldError, ReferenceMissing
from bandits.objective import COST
from bandits.types import REFERENCE, Context, NoReference, Observation, Policy
from service.engine import events
from service.engine.errors import NotCloneableError
from service.engine.events import (
    Amended,
    AnyEvent,
    ArmAdded,
    ArmChanged,
    ArmRetired,
    Cancelled,
    Cloned,
    CloneOf,
    Configured,
    Created,
    Decided,
    Expired,
    Imported,
    Observed,
    Partial,
    ReferenceAdded,
    SessionBegun,
    ShadowCreated,
    ShadowDeleted,
    ShadowPromoted,
)
from service.engine.learner import Learner
from service.engine.ledger import OpenDecision, PartialOutcome, completed, moments_of
from service.engine.policies import policy_of
from service.engine.projection import READ_BATCH
from service.storage.base import (
    ArchiveGapError,
    Durability,
    Entry,
    Log,
    LogCompactedError,
    Storage,
    StorageConflictError,
    StorageUnavailableError,
    pages,
)

logger = logging.getLogger("nextarm.clones")


class OutcomeJoin:
    """Joins the events of a log, in order, into what a clone learns: outcomes with the prompts, prices and weights of their
    decisions, as they were amended in the end, and the arms and references between them.

    amendments: the newest of each outcome, by the offset of the event that closed its decision.
    """

    def __init__(self, created: Created, amendments: Mapping[int, Amended], *, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._amendments = amendments
        self._prices = [arm.price for arm in created.arms]
        self._open: dict[str, OpenDecision] = {}
        self._weights: dict[str, list[float]] = {}  # of those that are open, or expired and will have an outcome all the same

    def copy(self, offset: int, event: AnyEvent) -> AnyEvent | None:
        """The event for the clone; None where it learns nothing from this one. Raises `NotCloneableError`."""
        match event:
            case Decided():
                self._decided(offset, event)
                return None
            case Partial():
                self._partial(offset, event)
                return None
            case Observed():
                return self._observed(offset, event)
            case Expired():
                return self._expired(offset, event)
            case Amended():
                return self._late(offset, event)
            case Cancelled():
                self._close(event.id)
                return None
            case Imported():
                happened = event.at if event.happened_at is UNSET else event.happened_at
                return msgspec.structs.replace(event, at=self._clock(), happened_at=happened, cloned=offset)
            case ArmAdded(price=price):
                self._prices.append(price)
            case ArmChanged(arm=arm, price=price):
                self._prices[arm] = price
            case ArmRetired() | ReferenceAdded():
                pass
            case Created() | Configured() | Cloned() | SessionBegun() | ShadowCreated() | ShadowDeleted() | ShadowPromoted():
                return None
            case _:
                raise NotCloneableError(f"offset {offset} holds an event that cannot be copied: {type(event).__name__.lower()}")
        return msgspec.structs.replace(event, at=self._clock(), cloned=offset)

    def _decided(self, offset: int, event: Decided) -> None:
        if event.arm < 0:
            return
        known = event.id, event.arm, event.features, event.propensity, event.price, event.episode, event.at, offset
        self._open[event.id] = OpenDecision(*known)
        self._weights[event.id] = [] if event.propensity is None else event.weights  # of what was drawn

    def _partial(self, offset: int, event: Partial) -> None:
        decision = self._open.get(event.id)
        if decision is None:
            return  # it was closed before
        given = decision.partial or PartialOutcome(0, 0, event.arm, {})
        partial = PartialOutcome(event.n, offset, given.arm, event.values | given.values)  # what was accepted first stays
        self._open[event.id] = msgspec.structs.replace(decision, partial=partial)

    def _close(self, decision: str) -> tuple[OpenDecision, list[float]]:
        return self._open.pop(decision), self._weights.pop(decision)

    def _observed(self, offset: int, event: Observed) -> Imported | None:
        decision, weights = self._close(event.id)
        if event.is_failure:
            if offset in self._amendments:
                self._weights[event.id] = weights
            return None
        event = completed(event, decision)
        is_drawn = event.arm == decision.arm
        price = decision.price if is_drawn else self._prices[event.arm] if event.price is UNSET else event.price
        if event.error is not UNSET and event.cost_posted is not True:
            price = 0.0  # with which a cost that was not posted is no signal
        found = Imported(
            at=self._clock(),
            cloned=offset,
            id=event.id,
            arm=event.arm,
            reward=event.reward,
            cost=event.cost,
            price=price,
            features=decision.features,
            propensity=UNSET if event.propensity is None else event.propensity,
            weights=weights or UNSET if is_drawn else UNSET,
            source=event.source,
            signals=event.signals,
            cost_posted=event.cost_posted,
            metadata=event.metadata,
            happened_at=event.at,
            output=event.output,
            reference=event.reference,
            body=event.body,
        )
        return _amended(found, self._amendments.get(offset))

    def _expired(self, offset: int, event: Expired) -> Imported | None:
        """A default reward with the signals that came before. With a price of 0, a cost that was not posted is no signal."""
        decision, weights = self._close(event.id)
        final = self._amendments.get(offset)
        if event.reward is None:
            if final is not None:
                self._weights[event.id] = weights
            return None
        partial = decision.partial or PartialOutcome(0, 0, decision.arm, {})
        signals = {name: value for name, value in partial.values.items() if name != COST}
        is_drawn, cost = partial.arm == decision.arm, partial.values.get(COST)
        found = Imported(
            at=self._clock(),
            cloned=offset,
            id=event.id,
            arm=partial.arm,
            reward=event.reward,
            cost=decision.price if cost is None else cost,
            price=0.0 if cost is None else decision.price if is_drawn else self._prices[partial.arm],
            features=decision.features,
            propensity=UNSET if not is_drawn or decision.propensity is None else decision.propensity,
            weights=weights or UNSET if is_drawn else UNSET,
            signals=signals or UNSET,
            cost_posted=cost is not None,
            happened_at=event.at,
            body="",
        )
        return _amended(found, final)

    def _late(self, offset: int, event: Amended) -> Imported | None:
        """The outcome of an expired decision, where this amendment brought its reward; all others are in what they amend."""
        if event.counts != "now" or event.id not in self._weights:
            return None
        weights = self._weights.pop(event.id)
        found = Imported(
            at=self._clock(),
            cloned=offset,
            id=event.id,
            arm=event.arm,
            reward=event.reward,
            cost=event.price,
            price=0.0,
            features=event.features,
            propensity=UNSET if event.propensity is None else event.propensity,
            weights=UNSET if event.propensity is None else weights,
            cost_posted=False,
            happened_at=event.at,
            body=event.body,
        )
        return _amended(found, self._amendments[event.outcome])


def _amended(row: Imported, final: Amended | None) -> Imported:
    """The outcome as it was amended in the end."""
    if final is None:
        return row
    row = msgspec.structs.replace(row, reward=final.reward, signals=final.signals)
    return row if final.cost is None else msgspec.structs.replace(row, cost=final.cost, price=final.price, cost_posted=True)


AMENDED = b'"event":"amended"'


async def newest_amendments(storage: Storage, source: Log, until: int) -> dict[int, Amended]:
    """The newest amendment of each outcome up to an offset, by the offset of the event that closed its decision."""
    found: dict[int, Amended] = {}
    async for entries in pages(storage, source, until=until, limit=READ_BATCH):
        for entry in entries:
            if AMENDED in entry.payload and isinstance(event := events.decode(entry.payload), Amended):
                found[event.outcome] = event
    return found


async def check_cloneable(storage: Storage, source: Log, clone: Created) -> None:
    """Raise `NotCloneableError` that says what the source's log lacks for the policy of the clone."""
    assert isinstance(clone.clone_of, CloneOf)
    until = clone.clone_of.until
    try:
        check = _Check(clone, await newest_amendments(storage, source, until))
        end = 0
        async for entries in pages(storage, source, until=until, limit=READ_BATCH):
            await asyncio.to_thread(check.add, entries)
            end = entries[-1].offset
        if end < until:
            raise NotCloneableError(f"the log ends at offset {end}, before {until}")
    except ArchiveGapError as error:
        raise NotCloneableError(str(error)) from None
    except LogCompactedError as error:
        raise NotCloneableError(f"events before offset {error.first} are kept in snapshots only") from None
    check.finish()


class _Check:
    """Looks whether a policy can learn what a log holds. It learns references alone, which it may need before it can decide."""

    def __init__(self, clone: Created, amendments: Mapping[int, Amended]) -> None:
        self._clone = clone
        self._amendments = amendments
        self._policy: Policy = policy_of(clone)
        self._state = states.start(self._policy, arms=len(clone.arms))
        self._join: OutcomeJoin | None = None

    def add(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            event = events.decode(entry.payload)
            if isinstance(event, Created):
                self._join = OutcomeJoin(event, self._amendments, clock=lambda: self._clone.at)
            assert self._join is not None
            copied = self._join.copy(entry.offset, event)
            try:
                if isinstance(copied, Imported):
                    self._check_outcome(copied)
                elif isinstance(copied, ReferenceAdded):
                    self._refer(copied)
            except FieldError as error:
                raise NotCloneableError(f"offset {entry.offset}: {error.field}: {error.message}") from None

    def _check_outcome(self, event: Imported) -> None:
        policy = self._policy
        for needed, is_there in (("reward", event.reward is not None), ("output", bool(event.output.rows))):
            if needed in policy.needs and not is_there:
                raise FieldError(needed, f"is missing in this outcome, and {policy.kind} learns from it")
        if policy.contextual and not event.features:
            raise FieldError("prompt", f"is missing in this decision, and {policy.kind} decides by the prompt")
        if event.features:
            policy.check_context(Context(allowed=(True,), features=events.vector_tensor(event.features)))
        reward = 0.0 if event.reward is None else event.reward
        seen = Observation(arm=0, reward=reward, output=event.output.tensor(), reference=event.reference.tensor())
        policy.check_observation(seen, state=self._state)

    def _refer(self, event: ReferenceAdded) -> None:
        if isinstance(self._state.reference, NoReference):
            return
        moments = None if event.moments is None else moments_of(event.moments)
        seen = Observation(arm=REFERENCE, features=event.prompts.tensor(), output=event.outputs.tensor(), moments=moments)
        self._policy.check_reference(self._state, seen)
        self._state = states.fold(self._policy, self._state, seen)

    def finish(self) -> None:
        try:
            self._policy.check_ready(self._state)
        except ReferenceMissing as error:
            raise NotCloneableError(f"it holds no reference material: {error}") from None


class Cloner:
    """Copies into clones that are not complete. One task per clone in this process; of several processes one is ahead, and the
    others leave it alone until it stands still.
    """

    def __init__(self, storage: Storage, *, clock: Callable[[], datetime]) -> None:
        self._storage = storage
        self._clock = clock
        self._running: set[Log] = set()
        self._seen: dict[Log, int] = {}  # how far clones were at the last look

    def start(self, clone: Learner) -> None:
        """Copy in the background, unless that is under way here."""
        if clone.ledger.cloning is None or clone.log in self._running:
            return
        self._running.add(clone.log)
        clone.projection.background.spawn(self._run(clone))

    def look(self, clones: Sequence[Learner]) -> None:
        """Go on with every copy that has not moved since the last look: the process that made it may be gone."""
        unfinished = {clone.log: clone for clone in clones if clone.ledger.cloning is not None and not clone.clone_fault}
        seen = {log: clone.ledger.offset for log, clone in unfinished.items()}
        for log, clone in unfinished.items():
            if self._seen.get(log) == seen[log]:
                self.start(clone)
        self._seen = seen

    async def _run(self, clone: Learner) -> None:
        try:
            await self._copy(clone)
        except (StorageConflictError, StorageUnavailableError):
            await clone.projection.catch_up()  # another process copies, too, or the next look tries again
        except Exception as error:  # the source was deleted or trimmed: it cannot be completed any more
            clone.clone_fault = str(error)
            logger.error("a clone cannot be completed", extra={"bandit": clone.log.name, "reason": str(error)})
        finally:
            self._running.discard(clone.log)

    async def _copy(self, clone: Learner) -> None:
        await clone.projection.catch_up()
        cloning = clone.ledger.cloning
        if cloning is None:
            return
        source, until = Log(cloning.source.log, _sibling(clone, cloning.source.bandit)), cloning.source.until
        amendments = await newest_amendments(self._storage, source, until)
        join: OutcomeJoin | None = None
        end = 0
        async for entries in pages(self._storage, source, until=until, limit=READ_BATCH):
            if clone.versions.is_closing:
                return
            decoded = [(entry.offset, events.decode(entry.payload)) for entry in entries]
            if join is None:
                first = decoded[0][1]
                assert isinstance(first, Created)
                join = OutcomeJoin(first, amendments, clock=self._clock)
            copies = [(offset, join.copy(offset, event)) for offset, event in decoded]
            await self._append(clone, [one for offset, one in copies if one is not None and _is_due(clone, offset, one)])
            end = entries[-1].offset
            await asyncio.sleep(0)
        if end < until:
            raise NotCloneableError(f"the log of {cloning.source.bandit!r} ends at offset {end}, before {until}")
        if clone.ledger.cloning is not None:
            await self._append(clone, [Cloned(at=self._clock(), learned=clone.ledger.cloning.learned)])

    async def _append(self, clone: Learner, copies: Sequence[AnyEvent]) -> None:
        """Each at its offset or not at all: two processes that copy at the same time cannot change the order."""
        if not copies:
            return
        expected = clone.versions.committed.offset
        accepted: list[Any] = await asyncio.gather(
            *(
                self._storage.append(
                    clone.log, events.key_of(one), events.encode(one), Durability.POWER, expected=expected + place
                )
                for place, one in enumerate(copies)
            ),
            return_exceptions=True,
        )
        for result in accepted:
            if isinstance(result, BaseException):
                raise result
        await clone.projection.fold_log()
        await clone.versions.wait_until_current()


def _is_due(clone: Learner, offset: int, event: AnyEvent) -> bool:
    """Whether the event was not copied yet, and the policy of the clone learns it."""
    cloning = clone.ledger.cloning
    is_new = cloning is not None and offset > cloning.offset
    return is_new and (clone.takes_reference or not isinstance(event, ReferenceAdded))


def _sibling(clone: Learner, bandit: str) -> str:
    """The name of the log of another bandit of the same tenant."""
    return clone.log.name[: len(clone.log.name) - len(clone.created.bandit)] + bandit
