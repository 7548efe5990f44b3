"""Outcomes of one bandit: what closes a decision. The first event that does is in the log, any later one is refused.

submit ──> micro-batch ──> LogCommitter.commit(Observed, or Partial before its reward) ──> Recorded
amend ──> look_up_all ──> LogCommitter.commit(Amended, the n-th) ──> Recorded
cancel, expire ──> LogCommitter.commit(Cancelled, Expired)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from bandits.errors import FieldError
from bandits.objective import COST, REWARD
from bandits.types import Observation
from service.engine import events
from service.engine.batcher import MicroBatcher
from service.engine.commit import LogCommitter, Recorded
from service.engine.errors import (
    AmendmentConflictError,
    DecisionCancelledError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionOpenError,
    DecisionPartialError,
    DecisionWasStopError,
    NotAmendableError,
    OutcomeConflictError,
    TooLateToAmendError,
)
from service.engine.events import Amended, AnyEvent, Cancelled, Decided, Expired, Matrix, Observed, Partial
from service.engine.ledger import InconsistentEventError, OpenDecision, PartialOutcome, completed
from service.engine.policies import takes_features
from service.engine.projection import READ_BATCH, Projection
from service.engine.readiness import Versions
from service.engine.retention import AMEND_UNTIL_S
from service.storage.base import Durability, Receipt, StorageError, StorageUnavailableError

MAX_SIGNALS_OF_OUTCOME = 32
"""Beside reward and cost, with those that came in parts or by amendments."""
AMEND_TRIES = 100
"""Attempts to append an amendment: another one of the same decision may come first each time."""
OBSERVED = str(Observed.__struct_config__.tag)
"""The state of a decision with an outcome."""


@dataclass(frozen=True, kw_only=True)
class OutcomeReport:
    """A validated outcome. arm: index where the client overrode the suggestion. source: of the reward; "" = all are posted.
    signals: others than reward and cost.  metadata: stored, and never learned from.  is_partial: the reward that the policy needs
    comes later.  error: why the call failed; "" = it did not.
    """

    reward: float | None
    source: str = ""
    cost: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    arm: int | None = None
    output: Matrix = events.EMPTY
    reference: Matrix = events.EMPTY
    error: str = ""
    metadata: Mapping[str, Any] | None = None
    body: str = ""
    is_partial: bool = False

    @property
    def values(self) -> dict[str, float]:
        """Signals by name, as far as they were given."""
        return events.outcome_values(self.reward, self.cost, dict(self.signals))


@dataclass(frozen=True, kw_only=True)
class AmendmentReport:
    """Validated corrections. values: new ones, by the names of the signals.  id: the client's; "" = it gave none."""

    values: Mapping[str, float]
    id: str = ""
    body: str = ""


class DecisionHistory(NamedTuple):
    """All that the log says of one decision. partials: those that came before it was closed."""

    decided: Recorded
    partials: list[Recorded]
    closing: Recorded | None
    amendments: list[Recorded]

    @property
    def state(self) -> str:
        """`open`, `partial`, `observed`, `expired` or `cancelled`. A stop has no outcome to wait for: it counts as observed."""
        if self.closing is not None:
            return str(type(self.closing.event).__struct_config__.tag)
        return OBSERVED if self.decided.event.arm < 0 else "partial" if self.partials else "open"


@dataclass
class KnownOutcome:
    """A closed decision as it is known by now. values, learned: by the names of the signals, what is known of them and the offset
    of the event that brought it.  counts: whether it is an outcome of its arm.  held: as of `Amended`.
    cost: the cost that was assumed, where none is known.  is_failure: the call failed, and no reward has come since.
    """

    values: dict[str, float] = field(default_factory=dict)
    learned: dict[str, int] = field(default_factory=dict)
    counts: bool = False
    held: int = 0
    cost: float | None = None
    is_failure: bool = False

    def add(self, values: Mapping[str, float], offset: int) -> None:
        """Values that came with the event at this offset; what was known before stays."""
        for name, value in values.items():
            if name not in self.values:
                self.values[name], self.learned[name] = value, offset


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
        if (opened := (await self._still_open([decision_id]))[0]) is not None:
            if opened.partial is not None:
                raise DecisionPartialError(decision_id)
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

    async def look_up_all(self, decision_id: str) -> DecisionHistory:
        """The decision with everything that came of it, in log order."""
        return await self._history(*await self.look_up(decision_id))

    async def join(self, decided: Sequence[Recorded]) -> list[DecisionHistory]:
        """Decisions of the log, each with everything that came of it."""
        closings = iter(await self.closings([one.event.id for one in decided if one.event.arm >= 0]))
        pairs = [(one, next(closings) if one.event.arm >= 0 else None) for one in decided]
        return await asyncio.gather(*(self._history(*pair) for pair in pairs))

    async def closings(self, decision_ids: Sequence[str]) -> list[Recorded | None]:
        """What closed each of these decisions, None while it is open."""
        opened = await self._still_open(decision_ids) if decision_ids else []
        closed = [one for one, still in zip(decision_ids, opened, strict=True) if still is None]
        found = dict(zip(closed, await asyncio.gather(*map(self._closing_event, closed)), strict=True))
        return [found.get(one) for one in decision_ids]

    async def _history(self, decided: Recorded, closing: Recorded | None) -> DecisionHistory:
        decision_id = decided.event.id
        if decided.event.arm < 0:
            return DecisionHistory(decided, [], None, [])
        partials = await self._numbered(decision_id, events.partial_key)
        if closing is None:
            return DecisionHistory(decided, partials, None, [])
        before = [one for one in partials if one.offset < closing.offset]
        return DecisionHistory(decided, before, closing, await self._numbered(decision_id, events.amended_key))

    async def _numbered(self, decision_id: str, key: Callable[[str, int], str]) -> list[Recorded]:
        """The events under the keys 1, 2, ... of a decision."""
        found: list[Recorded] = []
        while (entry := await self._storage.find(self._log, key(decision_id, len(found) + 1))) is not None:
            found.append(Recorded(events.decode(entry.payload), entry.offset, True))
        return found

    # -- amendments ----------------------------------------------------------------------------------------------------------

    async def amend(self, decision_id: str, amendment: AmendmentReport) -> Recorded:
        """Correct or add signals of a closed decision, once per id. Values are absolute: those that are known already change
        nothing.
        """
        for _ in range(AMEND_TRIES):
            if decision_id in self._ledger.open:  # as far as this process has read: another one may have closed it
                await self._projection.refresh()
            found = await self.look_up_all(decision_id)
            known = self._amendable(found, amendment)
            if isinstance(known, Recorded):
                self._committer.duplicates += 1
                return known
            event = self._to_amended(found, known, amendment)
            commit = self._committer.commit([event], Durability.POWER)
            (receipt,) = await self._projection.background.run_shielded(commit)
            if isinstance(receipt, StorageError):
                raise receipt
            if receipt.first is None:
                return Recorded(event, receipt.offset, False)
        raise StorageUnavailableError("this decision is amended faster than an amendment can be appended; try again")

    def _amendable(self, found: DecisionHistory, amendment: AmendmentReport) -> KnownOutcome | Recorded:
        """What is known so far; or the event that answers a request which changes nothing. Raises where it is refused."""
        decided, closing = found.decided.event, found.closing
        if decided.arm < 0:
            raise DecisionWasStopError(decided.id)
        if closing is None:
            raise DecisionOpenError(decided.id)
        if isinstance(closing.event, Cancelled):
            raise DecisionCancelledError(decided.id)
        for earlier in found.amendments:
            if amendment.id and earlier.event.amendment == amendment.id:
                if earlier.event.body != amendment.body:
                    raise AmendmentConflictError(amendment.id)
                return earlier
        known = self.known_outcome(found)
        if not amendment.id and all(known.values.get(name) == value for name, value in amendment.values.items()):
            return found.amendments[-1] if found.amendments else closing
        _check_count(known.values, amendment.values)
        if refused := sorted(self._projection.policy.not_amendable & set(amendment.values)):
            raise NotAmendableError(refused[0], self._projection.policy.kind)
        created = self._projection.created
        until_s = AMEND_UNTIL_S if created.amend_until_s is msgspec.UNSET else created.amend_until_s
        if (self._clock() - decided.at).total_seconds() > until_s:
            raise TooLateToAmendError(until_s)
        return known

    def known_outcome(self, found: DecisionHistory) -> KnownOutcome:
        """What is known of a closed decision, by its events in their order."""
        known, learned = KnownOutcome(), self._projection.created.learned
        for partial in found.partials:
            known.add(partial.event.values, partial.offset)
            if not set(learned).isdisjoint(partial.event.values):
                known.held = partial.offset
        assert found.closing is not None
        closing, offset = found.closing.event, found.closing.offset
        price = self._price(found)
        if isinstance(closing, Observed):
            # a cost that was not posted is none, unless it was learned as the price
            failed = closing.error is not msgspec.UNSET
            assumed = closing.cost_posted is False and (self._ledger.prices_per == "call" or price == 0.0 or failed)
            known.cost = closing.cost
            if not closing.is_failure:  # of which nothing was learned
                known.add(events.outcome_values(closing.reward, None if assumed else closing.cost, closing.signals), offset)
        elif isinstance(closing, Expired) and closing.reward is not None:
            known.cost = price
            known.add({REWARD: closing.reward}, offset)
        known.counts = (isinstance(closing, Observed) and not closing.is_failure) or (
            isinstance(closing, Expired) and closing.reward is not None
        )
        known.held = offset if known.counts else known.held
        for amendment in found.amendments:
            event = amendment.event
            for name, before in event.before.items():
                known.values[name] = event.values[name]
                if before is None:
                    known.learned[name] = amendment.offset
                    known.held = amendment.offset if name in learned else known.held
            known.counts = known.counts or event.counts == "now"
            known.cost = event.cost
        known.is_failure = isinstance(closing, Observed) and closing.is_failure and not known.counts
        return known

    def _played(self, found: DecisionHistory) -> int:
        """The index of the arm that was played."""
        assert found.closing is not None
        for recorded in (*found.partials, found.closing):
            if isinstance(recorded.event, Partial | Observed):
                return recorded.event.arm
        decided: Decided = found.decided.event
        return decided.arm

    def _price(self, found: DecisionHistory) -> float:
        """Of the call; where another arm was played, as its outcome says."""
        assert found.closing is not None
        decided, closing, arm = found.decided.event, found.closing.event, self._played(found)
        price: float = decided.price
        if arm != decided.arm:
            price = self._ledger.arms[arm].price
            if isinstance(closing, Observed):
                price = price if closing.price is msgspec.UNSET else closing.price
        return price

    def _to_amended(self, found: DecisionHistory, known: KnownOutcome, amendment: AmendmentReport) -> Amended:
        decided, arm = found.decided.event, self._played(found)
        assert found.closing is not None
        closing, price = found.closing, self._price(found)
        values = known.values | dict(amendment.values)
        counts = "before" if known.counts else "no"
        if not known.counts and REWARD in values and "reward" in self._projection.policy.needs:
            counts = "now"
        before = {name: known.values.get(name) for name in amendment.values}
        is_first_cost = known.counts and before.get(COST, 0.0) is None
        learned = {name: offset for name in before if (offset := known.learned.get(name, closing.offset)) != closing.offset}
        drawn = self._ledger.session_propensity(decided)
        return Amended(
            at=self._clock(),
            id=decided.id,
            n=len(found.amendments) + 1,
            outcome=closing.offset,
            amendment=amendment.id or msgspec.UNSET,
            body=amendment.body,
            reward=values.get(REWARD),
            cost=values.get(COST, known.cost),
            signals={name: value for name, value in values.items() if name not in (REWARD, COST)} or msgspec.UNSET,
            before=before,
            learned=learned or msgspec.UNSET,
            counts=counts,  # type: ignore[arg-type]
            held=known.held,
            spent=known.cost if known.is_failure and known.cost is not None else msgspec.UNSET,
            assumed=known.cost if is_first_cost and known.cost not in (None, price) else msgspec.UNSET,
            has_output=True if isinstance(closing.event, Observed) and closing.event.output.rows else msgspec.UNSET,
            arm=arm,
            propensity=decided.propensity if arm == decided.arm else None,
            price=price,
            features=decided.features,
            session=decided.session,
            session_propensity=drawn if decided.sticky is True and arm == decided.arm and drawn is not None else msgspec.UNSET,
        )

    # -- a micro-batch -------------------------------------------------------------------------------------------------------

    async def _observe_batch(self, outcomes: Sequence[tuple[str, OutcomeReport]]) -> list[Recorded | Exception]:
        """Accept a micro-batch of outcomes with one flush, and one more for every further part of the same outcome."""
        results: dict[int, Recorded | Exception] = {}  # by place in the batch, since an id can be there twice
        places = list(range(len(outcomes)))
        while places:
            now: dict[str, bool] = {}  # id -> whether a part of its outcome is in this round
            later: list[int] = []
            for place in places:
                decision_id, outcome = outcomes[place]
                if decision_id in now and (outcome.is_partial or now[decision_id]):
                    later.append(place)
                else:
                    now[decision_id] = outcome.is_partial
            taken = sorted(set(places) - set(later))
            places = sorted(later + await self._observe_round(outcomes, taken, results))
        return [results[place] for place in range(len(outcomes))]

    async def _observe_round(
        self, outcomes: Sequence[tuple[str, OutcomeReport]], places: Sequence[int], results: dict[int, Recorded | Exception]
    ) -> list[int]:
        """Accept these with one flush. Returns those that must look again: another part of the same outcome came first."""
        opened = await self._still_open([outcomes[place][0] for place in places])
        made: dict[int, Observed | Partial] = {}
        now = self._clock()
        for place, decision in zip(places, opened, strict=True):
            if decision is None:
                continue
            outcome = outcomes[place][1]
            try:
                self._check_parts(decision, outcome)
            except (OutcomeConflictError, FieldError) as error:
                results[place] = error
                continue
            if not outcome.is_partial:
                made[place] = self._to_observed(decision, outcome, now)
            elif decision.partial is not None and set(outcome.values) <= set(decision.partial.values):
                self._committer.duplicates += 1
                event = self._to_partial(decision, outcome, now)
                results[place] = Recorded(event, decision.partial.offset, True)
            else:
                made[place] = self._to_partial(decision, outcome, now)
        committed = await self._committer.commit(list(made.values()), Durability.POWER) if made else []
        receipts = dict(zip(made, committed, strict=True))
        again = []
        for place in places:
            if place in results:
                continue
            accepted, receipt = made.get(place), receipts.get(place)
            if isinstance(accepted, Partial) and isinstance(receipt, Receipt) and receipt.first is not None:
                again.append(place)
                continue
            results[place] = await self._to_result(accepted, receipt, *outcomes[place])
        return again

    def _check_parts(self, decision: OpenDecision, outcome: OutcomeReport) -> None:
        """Raise `OutcomeConflictError` where it says something else than the parts that came before, `FieldError` where it
        adds too many signals to them.
        """
        given = decision.partial
        if given is None:
            return
        differs = any(given.values.get(name, value) != value for name, value in outcome.values.items())
        if differs or outcome.arm not in (None, given.arm):
            raise OutcomeConflictError(decision.id)
        _check_count(given.values, outcome.values)

    def _to_partial(self, decision: OpenDecision, outcome: OutcomeReport, now: datetime) -> Partial:
        given = decision.partial or PartialOutcome(0, 0, decision.arm if outcome.arm is None else outcome.arm, {})
        added = {name: value for name, value in outcome.values.items() if name not in given.values}
        cost = added.pop(COST, None)
        return Partial(
            at=now,
            id=decision.id,
            n=given.n + 1,
            arm=given.arm,
            cost=msgspec.UNSET if cost is None else cost,
            signals=added or msgspec.UNSET,
        )

    def _to_observed(self, decision: OpenDecision, outcome: OutcomeReport, now: datetime) -> Observed:
        arm = decision.arm if outcome.arm is None else outcome.arm
        if decision.partial is not None:
            arm = decision.partial.arm
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
        observed = Observed(
            at=now,
            id=decision.id,
            arm=arm,
            reward=outcome.reward,
            source=outcome.source or msgspec.UNSET,
            cost=(0.0 if outcome.error else price) if outcome.cost is None else outcome.cost,
            propensity=None if overridden else decision.propensity,
            signals=dict(outcome.signals) or msgspec.UNSET,
            cost_posted=outcome.cost is not None if learns_cost else msgspec.UNSET,
            surprise=surprise,
            surprises=surprises or msgspec.UNSET,
            error=outcome.error or msgspec.UNSET,
            metadata=msgspec.UNSET if outcome.metadata is None else dict(outcome.metadata),
            price=price if overridden and learns_cost else msgspec.UNSET,
            output=outcome.output,
            reference=outcome.reference,
            body=outcome.body,
        )
        return completed(observed, decision)

    def _surprise(self, track: Versions, seen: Observation) -> float | None:
        """What a policy says of a reward; None = nothing was expected."""
        is_own = track.number == events.FIRST and not self._ledger.promotions
        if not is_own and not takes_features(track.policy, seen.features):
            return None
        surprise = track.policy.surprise(track.committed.state, seen)
        return surprise if surprise is not None and math.isfinite(surprise) else None  # JSON has no other numbers

    async def _to_result(
        self,
        event: Observed | Partial | None,
        receipt: Receipt | StorageError | None,
        decision_id: str,
        outcome: OutcomeReport,
    ) -> Recorded | Exception:
        """receipt: None where nothing was open."""
        if isinstance(receipt, StorageError):
            return receipt
        try:
            if event is None or receipt is None:
                closing = await self._closing_event(decision_id)
                return await self._duplicate(closing.event, closing.offset, outcome)
            if receipt.first is not None:
                return await self._duplicate(events.decode(receipt.first), receipt.offset, outcome)
            if isinstance(event, Partial) and decision_id not in self._ledger.open:
                closing = await self._closing_event(decision_id)
                if closing.offset < receipt.offset:  # another replica closed it meanwhile
                    return await self._duplicate(closing.event, closing.offset, outcome)
        except Exception as error:
            return error
        return Recorded(event, receipt.offset, False)

    async def _duplicate(self, first: AnyEvent, offset: int, outcome: OutcomeReport) -> Recorded:
        match first:
            case Observed() if first.body == outcome.body or (outcome.is_partial and _contains(first, outcome)):
                self._committer.duplicates += 1
                return Recorded(first, offset, True)
            case Observed() if _says_the_same(first, outcome) and await self._comes_in_parts(first.id):
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

    async def _comes_in_parts(self, decision_id: str) -> bool:
        return await self._storage.find(self._log, events.partial_key(decision_id, 1)) is not None

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


def _check_count(known: Mapping[str, float], given: Mapping[str, float]) -> None:
    """Raise `FieldError` where these would be too many signals beside reward and cost."""
    count = len((known.keys() | given.keys()) - {REWARD, COST})
    if count > MAX_SIGNALS_OF_OUTCOME and not given.keys() - {REWARD, COST} <= known.keys():
        raise FieldError("signals", f"would be {count} with those that are known; at most {MAX_SIGNALS_OF_OUTCOME} fit")


def _says_the_same(first: Observed, outcome: OutcomeReport) -> bool:
    """Whether an outcome is another one with parts of it merged; no part has anything else than signals."""
    facts = (outcome.output, outcome.reference, outcome.error or msgspec.UNSET)
    is_known = outcome.metadata is None or first.metadata == outcome.metadata
    return (first.output, first.reference, first.error) == facts and is_known and _contains(first, outcome)


def _contains(first: Observed, outcome: OutcomeReport) -> bool:
    """Whether an outcome says all that this part of it says."""
    known = events.outcome_values(first.reward, first.cost, first.signals)
    return outcome.arm in (None, first.arm) and all(known.get(name) == value for name, value in outcome.values.items())
