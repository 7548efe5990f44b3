"""Outcomes of one bandit: what closes a decision. The first event that does is in the log, any later one is refused.

submit ──> micro-batch ──> LogCommitter.commit(Observed) ──> Recorded
cancel, expire ──> LogCommitter.commit(Cancelled, Expired)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from bandits.objective import COST
from bandits.types import Observation
from service.engine import events
from service.engine.batcher import MicroBatcher
from service.engine.commit import LogCommitter, Recorded
from service.engine.errors import (
    DecisionCancelledError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionWasStopError,
    OutcomeConflictError,
)
from service.engine.events import AnyEvent, Cancelled, Expired, Matrix, Observed
from service.engine.ledger import InconsistentEventError, OpenDecision
from service.engine.policies import takes_features
from service.engine.projection import READ_BATCH, Projection
from service.engine.readiness import Versions
from service.storage.base import Durability, Receipt, StorageError


@dataclass(frozen=True, kw_only=True)
class OutcomeReport:
    """A validated outcome. arm: index where the client overrode the suggestion. source: of the reward; "" = all are posted.
    signals: others than reward and cost.  metadata: stored, and never learned from.
    """

    reward: float | None
    source: str = ""
    cost: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    arm: int | None = None
    output: Matrix = events.EMPTY
    reference: Matrix = events.EMPTY
    metadata: Mapping[str, Any] | None = None
    body: str = ""


class OutcomeRecorder:
    """Closes decisions: by an outcome, by a client that cancels, or when their time is over. clock: the time of events."""

    def __init__(self, projection: Projection, committer: LogCommitter, *, clock: Callable[[], datetime]) -> None:
        self._storage = projection.storage
        self._log = projection.log
        self._projection = projection
        self._ledger = projection.ledger
        self._committer = committer
        self._clock = clock
        self._batcher = MicroBatcher(self._observe_batch, limit=READ_BATCH, background=projection.background)

    def submit(self, decision_id: str, outcome: OutcomeReport) -> asyncio.Future[Recorded]:
        """Accept an outcome, once; it is enqueued when this returns. The same body again is answered with the first receipt."""
        return self._batcher.submit((decision_id, outcome))

    async def cancel(self, decision_id: str) -> None:
        """Withdraw an open decision. Cancelling twice is cancelling once."""
        first: AnyEvent | None = None
        if (await self._still_open([decision_id]))[0] is not None:
            (receipt,) = await self._close([Cancelled(at=self._clock(), id=decision_id)])
            if isinstance(receipt, StorageError):
                raise receipt
            first = None if receipt.first is None else events.decode(receipt.first)
        else:
            first = (await self._closing_event(decision_id)).event
        if isinstance(first, Observed):
            raise OutcomeConflictError(decision_id)
        if isinstance(first, Expired):
            raise DecisionExpiredError(decision_id)

    async def expire(self) -> int:
        """Close every overdue decision; returns how many."""
        due = self._ledger.overdue(self._clock())
        await self._expire(due)
        return len(due)

    async def look_up(self, decision_id: str) -> tuple[Recorded, Recorded | None]:
        """The decision and what closed it, None while it is open."""
        entry = await self._storage.find(self._log, events.decided_key(decision_id))
        if entry is None:
            raise DecisionNotFoundError(decision_id)
        decided = Recorded(events.decode(entry.payload), entry.offset, True)
        if (await self._still_open([decision_id]))[0] is not None or decided.event.arm < 0:
            return decided, None
        return decided, await self._closing_event(decision_id)

    # -- a micro-batch -------------------------------------------------------------------------------------------------------

    async def _observe_batch(self, outcomes: Sequence[tuple[str, OutcomeReport]]) -> list[Recorded | Exception]:
        """Accept a micro-batch of outcomes with one flush."""
        opened = await self._still_open([decision_id for decision_id, _ in outcomes])
        made: dict[int, Observed] = {}  # by place in the batch, since an id can be there twice
        now = self._clock()
        for place, (decision, (_, outcome)) in enumerate(zip(opened, outcomes, strict=True)):
            if decision is not None:
                made[place] = self._to_observed(decision, outcome, now)
        committed = await self._committer.commit(list(made.values()), Durability.POWER) if made else []
        receipts = dict(zip(made, committed, strict=True))
        return [
            await self._to_result(made.get(place), receipts.get(place), decision_id, outcome)
            for place, (decision_id, outcome) in enumerate(outcomes)
        ]

    def _to_observed(self, decision: OpenDecision, outcome: OutcomeReport, now: datetime) -> Observed:
        arm = decision.arm if outcome.arm is None else outcome.arm
        overridden = arm != decision.arm
        price = self._ledger.arms[arm].price if overridden else decision.price
        learns_cost = COST in self._projection.created.learned
        surprise: float | msgspec.UnsetType | None = msgspec.UNSET
        surprises: dict[str, float | None] = {}
        for track in (self._projection.versions, *self._projection.shadows().values()):
            if not track.policy.watches_drift or outcome.reward is None:
                continue
            features = events.vector_tensor(decision.features)
            found = self._surprise(track, Observation(arm=arm, features=features, reward=outcome.reward))
            if track is self._projection.versions:
                surprise = found
            else:
                surprises[str(track.number)] = found
        return Observed(
            at=now,
            id=decision.id,
            arm=arm,
            reward=outcome.reward,
            source=outcome.source or msgspec.UNSET,
            cost=price if outcome.cost is None else outcome.cost,
            propensity=None if overridden else decision.propensity,
            signals=dict(outcome.signals) or msgspec.UNSET,
            cost_posted=outcome.cost is not None if learns_cost else msgspec.UNSET,
            surprise=surprise,
            surprises=surprises or msgspec.UNSET,
            metadata=msgspec.UNSET if outcome.metadata is None else dict(outcome.metadata),
            output=outcome.output,
            reference=outcome.reference,
            body=outcome.body,
        )

    def _surprise(self, track: Versions, seen: Observation) -> float | None:
        """What a policy says of a reward; None = nothing was expected."""
        is_own = track.number == events.FIRST and not self._ledger.promotions
        if not is_own and not takes_features(track.policy, seen.features):
            return None
        surprise = track.policy.surprise(track.committed.state, seen)
        return surprise if surprise is not None and math.isfinite(surprise) else None  # JSON has no other numbers

    async def _to_result(
        self, event: Observed | None, receipt: Receipt | StorageError | None, decision_id: str, outcome: OutcomeReport
    ) -> Recorded | Exception:
        """receipt: None where nothing was open."""
        if isinstance(receipt, StorageError):
            return receipt
        try:
            if event is None or receipt is None:
                closing = await self._closing_event(decision_id)
                return self._duplicate(closing.event, closing.offset, outcome.body)
            if receipt.first is not None:
                return self._duplicate(events.decode(receipt.first), receipt.offset, outcome.body)
        except Exception as error:
            return error
        return Recorded(event, receipt.offset, False)

    def _duplicate(self, first: AnyEvent, offset: int, body: str) -> Recorded:
        match first:
            case Observed() if first.body == body:
                self._committer.duplicates += 1
                return Recorded(first, offset, True)
            case Observed():
                raise OutcomeConflictError(first.id)
            case Expired():
                raise DecisionExpiredError(first.id)
            case Cancelled():
                raise DecisionCancelledError(first.id)
            case _:
                raise InconsistentEventError(f"{type(first).__name__} closes a decision")

    # -- closing -------------------------------------------------------------------------------------------------------------

    async def _still_open(self, decision_ids: Sequence[str]) -> list[OpenDecision | None]:
        """Each decision if it is open and not overdue, else None; overdue ones are expired first."""
        open_ = self._ledger.open
        if any(decision_id not in open_ for decision_id in decision_ids):
            await self._projection.catch_up()
        found = [open_.get(decision_id) for decision_id in decision_ids]
        now = self._clock()
        overdue = [decision for decision in found if decision is not None and self._ledger.is_overdue(decision, now)]
        if not overdue:
            return found
        await self._expire(overdue)
        return [open_.get(decision_id) for decision_id in decision_ids]

    async def _expire(self, due: Sequence[OpenDecision]) -> None:
        now, reward = self._clock(), self._ledger.live.default_reward
        for first in range(0, len(due), READ_BATCH):
            closing = [Expired(at=now, id=each.id, reward=reward) for each in due[first : first + READ_BATCH]]
            for receipt in await self._close(closing):
                if isinstance(receipt, StorageError):
                    raise receipt

    async def _close(self, closing: Sequence[Expired | Cancelled]) -> list[Receipt | StorageError]:
        return await self._projection.background.run_shielded(self._committer.commit(closing, Durability.PROCESS))

    async def _closing_event(self, decision_id: str) -> Recorded:
        entry = await self._storage.find(self._log, events.closed_key(decision_id))
        if entry is not None:
            return Recorded(events.decode(entry.payload), entry.offset, True)
        if await self._storage.find(self._log, events.decided_key(decision_id)) is not None:
            raise DecisionWasStopError(decision_id)  # decided, never opened: it was a stop
        raise DecisionNotFoundError(decision_id)
