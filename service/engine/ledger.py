"""The ledger of a bandit: what the log says about arms, open decisions and episodes. Pure: events in, effects out, no I/O.

    event ──> apply ──> Effect: what the policy's state must do about it (update, add or remove a pending decision, grow, nothing)
    request ──> context ──> Context: what the policy sees when it chooses

Only open decisions are kept; a closed one is found in the log by its key, so that the ledger does not grow with the rounds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from bandits import drift
from bandits.errors import InvalidContext
from bandits.objective import CAP, COST, REWARD, Budget, PricesPer, RewardMoments, learned_cost, terms, variance_over_arms
from bandits.types import REFERENCE, Amendment, Context, Moments, Observation, Policy
from service.engine import events
from service.engine.errors import NotReadyError
from service.engine.events import (
    Amended,
    AnyDecision,
    ArmAdded,
    ArmChanged,
    ArmRetired,
    Cancelled,
    Cloned,
    Configured,
    Created,
    Decided,
    Expired,
    FoldedDecision,
    FoldedEvent,
    Imported,
    Observed,
    Partial,
    ReferenceAdded,
    SessionBegun,
    ShadowCreated,
    ShadowDeleted,
    ShadowPromoted,
    decided_by,
    outcome_values,
    weights_of,
)
from service.engine.series import Packed, Series
from service.engine.tallies import Tallies

RECENT = 1000
"""Decisions over which an arm's share is reported."""
KEPT_EPISODES = 10_000
"""Episodes remembered; beyond it the least recently used one is forgotten."""
KEPT_ALARMS = 100
"""Alarms of the drift detector remembered, the newest."""
KEPT_SESSIONS = 100_000
"""Sessions remembered; beyond it the one that was decided in least recently is forgotten, in the order of the log."""
KEPT_REFERENCES = 10_000
"""Ids of reference material remembered, the newest. An older one is recognized by its key, as long as the store has it."""


class ArmRecord(msgspec.Struct, frozen=True):
    """What the log says about an arm. pulls counts decisions for it, outcomes what was learned, imported those of them that were
    not decided here, pending what is open.

    Replaced, never written to: a tuple of them is a view that stays as it was.
    """

    name: str
    price: float
    metadata: dict[str, Any]
    active: bool = True
    pulls: int = 0
    outcomes: int = 0
    pending: int = 0
    reward_sum: float = 0.0
    cost_sum: float = 0.0
    rewards: int = 0  # outcomes that carried a reward
    surprise: drift.Sums = drift.START  # sums of the drift detector
    alarms: int = 0  # of the drift detector, ever
    imported: int = 0
    errors: int = 0  # outcomes with an error
    failed: int = 0  # those of them of which nothing was learned
    failures: list[datetime] = []  # since the last success, as far as the cooldown counts them
    cooling_until: datetime | None = None

    @property
    def is_gone(self) -> bool:
        """Retired, with nothing open: only what was learned of it is left, under its index, until it comes back."""
        return not self.active and not self.pending


class PartialOutcome(msgspec.Struct, frozen=True):
    """What came of an open decision before its reward. n, offset: of the newest `partial`.  values: by the names of the signals.
    held: the offset of the newest `partial` that something was learned of; 0 = none.
    """

    n: int
    offset: int
    arm: int
    values: dict[str, float]
    held: int = 0


class OpenDecision(msgspec.Struct, frozen=True):
    """A decision without an outcome yet. estimate: of its arm's reward, where the policy gave one.
    session_propensity: of the decision that has drawn the arm of its session; None where this one has, or it is not known.
    """

    id: str
    arm: int
    features: bytes
    propensity: float | None
    price: float
    episode: str
    at: datetime
    offset: int
    timeout_s: float | None = None  # None = the first event's
    estimate: float | None = None
    partial: PartialOutcome | None = None
    session: str = ""
    session_propensity: float | None = None

    def drawn_with(self, arm: int) -> float | None:
        """The probability with which this arm was drawn, here or for the session; None for another arm than the one that was."""
        if arm != self.arm:
            return None
        return self.session_propensity if self.propensity is None else self.propensity


class SessionRecord(msgspec.Struct, array_like=True):
    """A session. arm: its model.  decision: the id of the one that has chosen it, with this propensity.  last: when it was
    decided in last.
    """

    generation: int
    arm: int
    decision: str
    last: datetime
    propensity: float | None = None


class KnownReference(msgspec.Struct, frozen=True):
    """Reference material that carried a client's id. count: reference samples after it. body: digest of the request."""

    offset: int
    count: int
    body: str


class Episode(msgspec.Struct):
    """Decisions on one prompt. attempts: made and without success, per arm index: those that expired count, those that were
    cancelled do not; open: not closed yet, per arm index; made: all decisions; features: of the first one, empty where there
    are none, and once it is finished.  policy: number of the one that began it, which decides to its end.
    """

    attempts: dict[int, int] = {}
    open: dict[int, int] = {}
    features: bytes = b""
    made: int = 0
    finished: bool = False
    policy: int = events.FIRST


class BudgetAccount(msgspec.Struct):
    """What a budget is held by: sums since it was set. rewards: moments per arm, as far as there are any."""

    budget: events.BudgetSet
    count: int = 0
    total: float = 0.0
    rewards: list[RewardMoments] = []

    def add(self, arm: int, values: Mapping[str, float]) -> None:
        """One more outcome. values: the signals that it carried."""
        if self.budget.signal in values:
            self.count += 1
            self.total += values[self.budget.signal]
        if REWARD in values:
            self.rewards = [*self.rewards, *[RewardMoments()] * (arm + 1 - len(self.rewards))]
            self.rewards[arm] = self.rewards[arm].add(values[REWARD])

    @property
    def running(self) -> float | None:
        """The mean of the signal so far."""
        return self.total / self.count if self.count else None

    def _held(self) -> Budget:
        return Budget(self.budget.signal, self.budget.per_decision)

    @property
    def multiplier(self) -> float:
        """The weight that is subtracted from the signal's."""
        variance = variance_over_arms(self.rewards)
        return self._held().multiplier(count=self.count, total=self.total, reward_variance=variance)

    @property
    def is_feasible(self) -> bool:
        """False where the multiplier is at its cap: no mixture of arms that was tried holds the budget."""
        return self._held().pressure(count=self.count, total=self.total) < CAP


class Alarm(msgspec.Struct, frozen=True):
    """The detector saw that an arm returns something else than before, and what was known of it was dropped.

    outcomes: learned before it, of all arms.
    """

    arm: int
    offset: int
    at: datetime
    outcomes: int = 0


class CloneProgress(msgspec.Struct, frozen=True):
    """How far the copy of another log has come. source: what is copied.  offset: of the source, the last one that was copied.
    learned: outcomes so far.
    """

    source: events.CloneOf
    offset: int = 1
    learned: int = 0


class LiveSettings(msgspec.Struct, frozen=True):
    """What of the configuration can change while the bandit lives, as it is now.

    policy, number, fingerprint: of the policy that decides; policy None = the first event's.
    outcomes: of the bandit, before it began to learn.
    """

    hyperparameters: dict[str, Any]
    objective: dict[str, float]
    default_reward: float | None
    timeout_s: float
    policy: str | None = None
    number: int = events.FIRST
    fingerprint: str = ""
    outcomes: int = 0
    cooldown: events.CooldownSet | None = None
    session_ttl_s: float | None = None

    @staticmethod
    def of(created: Created) -> LiveSettings:
        """As the bandit was created."""
        objective = {REWARD: 1.0} if created.objective is msgspec.UNSET else created.objective
        cooldown = None if created.cooldown is msgspec.UNSET else created.cooldown
        ttl = None if created.session_ttl_s is msgspec.UNSET else created.session_ttl_s
        return LiveSettings(
            created.hyperparameters,
            objective,
            created.default_reward,
            created.timeout_s,
            cooldown=cooldown,
            session_ttl_s=ttl,
        )

    def changed(self, event: Configured) -> LiveSettings:
        """After this event."""
        names = ("default_reward", "timeout_s", "cooldown", "session_ttl_s")
        changes: dict[str, Any] = {name: value for name in names if (value := getattr(event, name)) is not msgspec.UNSET}
        if event.hyperparameters is not msgspec.UNSET:
            changes["hyperparameters"] = self.hyperparameters | event.hyperparameters
        if event.objective is not msgspec.UNSET:
            changes["objective"] = event.objective or {REWARD: 1.0}
        return msgspec.structs.replace(self, **changes)

    def promoted(self, shadow: ShadowRecord) -> LiveSettings:
        """After a promotion of this shadow."""
        return msgspec.structs.replace(
            self,
            hyperparameters=shadow.hyperparameters,
            policy=shadow.policy,
            number=shadow.number,
            fingerprint=shadow.fingerprint,
            outcomes=shadow.outcomes,
        )


class ShadowRecord(msgspec.Struct):
    """What the log says about a shadow.

    offset: of the event that made it what it is: created, or exchanged by a promotion.  number: of its policy, which outlives
    a promotion.  outcomes: of the bandit, before this policy began to learn.

    decisions: with its weights in them.  left_out: without, since `offset`.  overlap: sum over the decisions of the mass that its
    weights share with those that were drawn from.  weights: per arm index, their sum.
    surprise: sums of the drift detector per arm index, as far as there are any.  alarms: of it.
    """

    name: str
    offset: int
    number: int
    policy: str
    hyperparameters: dict[str, Any]
    fingerprint: str
    learns_from: Literal["now", "start"]
    at: datetime
    outcomes: int = 0
    decisions: int = 0
    left_out: int = 0
    overlap: float = 0.0
    weights: list[float] = []
    surprise: list[drift.Sums] = []
    alarms: int = 0

    def add(self, event: AnyDecision) -> None:
        """One more decision, unless this policy made it: of an episode that it began before it became a shadow."""
        if decided_by(event) == self.number or event.sticky:
            return
        own = weights_of(event, self.number)
        if own is None:
            self.left_out += 1
            return
        self.decisions += 1
        self.overlap += sum(map(min, own, event.weights))
        self.weights = [*self.weights, *[0.0] * (len(own) - len(self.weights))]
        for arm, weight in enumerate(own):
            self.weights[arm] += weight

    def watch(self, arm: int, surprise: float, *, offset: int) -> list[Effect]:
        """Add a surprise to the detector of an arm; an alarm resets the arm."""
        self.surprise = [*self.surprise, *[drift.START] * (arm + 1 - len(self.surprise))]
        self.surprise[arm], alarm = drift.add(self.surprise[arm], surprise)
        self.alarms += alarm
        return [Reset(arm, offset, self.number)] if alarm else []


class Snapshot(msgspec.Struct):
    """The ledger as bytes; the log's first event is not repeated."""

    arms: list[ArmRecord]
    open: list[OpenDecision]
    episodes: list[tuple[str, Episode]]
    recent: list[int]
    offset: int
    decided: int
    referenced: int
    references: dict[str, KnownReference] = {}
    skipped: int = 0
    lowest_reward: float | None = None
    highest_reward: float | None = None
    spending: BudgetAccount | None = None
    alarms: list[Alarm] = []
    live: LiveSettings | None = None
    tallies: Tallies | None = None  # none in a snapshot that is older than they are: they begin there
    cloning: CloneProgress | None = None
    shadows: list[ShadowRecord] = []
    promotions: int = 0
    sessions: list[tuple[str, SessionRecord]] = []
    forgotten: int = 0
    series: Packed | None = None  # as of the tallies


_snapshot_decoder = msgspec.json.Decoder(Snapshot)
"""Built at import, since threads that read snapshots at once must not be the first to describe the struct to msgspec."""


class View(NamedTuple):
    """Per-arm values that the contexts of one batch share. pending: with the decisions in flight.  failed: empty = none."""

    active: tuple[bool, ...]
    prices: tuple[float, ...]
    pending: tuple[int, ...]
    decided: tuple[int, ...]
    failed: tuple[int, ...] = ()

    @staticmethod
    def of(arms: Sequence[ArmRecord], in_flight: Mapping[int, int]) -> View:
        """in_flight: arm index -> decisions that `arms` does not count yet."""
        pending = tuple(arm.pending + in_flight.get(i, 0) for i, arm in enumerate(arms))
        decided = tuple(arm.pulls + arm.imported + in_flight.get(i, 0) for i, arm in enumerate(arms))
        failed = tuple(arm.failed for arm in arms)
        return View(
            tuple(arm.active for arm in arms),
            tuple(arm.price for arm in arms),
            pending,
            decided,
            failed if any(failed) else (),
        )

    def present(self) -> list[int]:
        """The arms that are not gone."""
        return [i for i, is_active in enumerate(self.active) if is_active or self.pending[i]]


@dataclass(frozen=True)
class Learn:
    """Fold this observation. has_reward: false where the outcome carried none, which some policies need.
    decision: the offset of the decision that it closes; 0 = of none.
    """

    observation: Observation
    has_reward: bool = True
    decision: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Amend:
    """Fold new values of an outcome, or signals that came before the rest of it."""

    change: Amendment


@dataclass(frozen=True)
class AddPending:
    """A decision is pending for this arm."""

    arm: int
    features: Tensor


@dataclass(frozen=True)
class RemovePending:
    """A pending decision has no outcome to fold. decision: its offset."""

    arm: int
    features: Tensor
    decision: int = field(default=0, repr=False)


@dataclass(frozen=True)
class GrowArms:
    """One more arm."""


@dataclass(frozen=True)
class Retire:
    """These arms are retired, and no others."""

    arms: frozenset[int]


@dataclass(frozen=True)
class Reset:
    """Forget what was learned of this arm before an offset. policy: the number of the one that shall."""

    arm: int
    offset: int
    policy: int = events.FIRST


def moments_of(given: events.MomentsGiven) -> Moments:
    """Reference moments as the policies take them."""
    mean = np.frombuffer(given.mean, dtype="<f8").copy()
    covariance = np.frombuffer(given.covariance, dtype="<f8").reshape(len(mean), len(mean)).copy()
    return Moments(torch.from_numpy(mean), torch.from_numpy(covariance), given.count)


Effect = Learn | Amend | AddPending | RemovePending | GrowArms | Retire | Reset


class InconsistentEventError(Exception):
    """An event that cannot follow the ones before it; a log that contains one is damaged."""


def completed(event: Observed, decision: OpenDecision) -> Observed:
    """The outcome with what came before its reward. As a rule that stands in the event already; another replica may have accepted
    a `partial` meanwhile, and what was accepted first stays.
    """
    partial = decision.partial
    if partial is None:
        return event
    signals = ({} if event.signals is msgspec.UNSET else event.signals) | partial.values
    cost = signals.pop(COST, None)
    posted = event.cost_posted if cost is None or event.cost_posted is msgspec.UNSET else True
    return msgspec.structs.replace(
        event,
        arm=partial.arm,
        propensity=decision.propensity if partial.arm == decision.arm else None,
        cost=event.cost if cost is None else cost,
        cost_posted=posted,
        signals=signals or msgspec.UNSET,
    )


class Ledger:
    """Arms, open decisions, episodes and references of one bandit. `apply` is the only method that changes anything."""

    def __init__(self, created: Created) -> None:
        self.created = created
        self.learned = created.learned  # names of the learned signals, in order
        self.arms = [ArmRecord(arm.name, arm.price, arm.metadata) for arm in created.arms]
        self.open: dict[str, OpenDecision] = {}
        self.episodes: dict[str, Episode] = {}
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.offset = 1
        self.decided = 0  # decisions ever
        self.referenced = 0  # reference samples ever
        self.references: dict[str, KnownReference] = {}  # by the client's id; kept here, because a store may trim old entries
        self.skipped = 0  # episodes ever that were stopped before any call
        self.reward_range: tuple[float, float] | None = None  # lowest and highest reward learned; None before the first
        self.live = LiveSettings.of(created)
        self._timeouts_differ = False  # whether open decisions may expire in another order than they came
        self.spending = None if created.budget is msgspec.UNSET else BudgetAccount(created.budget)
        self.alarms: list[Alarm] = []  # the newest KEPT_ALARMS
        self.tallies = Tallies.start(arms=len(self.arms), signals=len(created.learned))
        self.series = Series(created.learned)
        self.cloning = None if created.clone_of is msgspec.UNSET else CloneProgress(created.clone_of)  # None = it decides
        self.shadows: dict[str, ShadowRecord] = {}
        self.promotions = 0  # ever
        self.layout = 1 if created.layout is msgspec.UNSET else created.layout  # of the sums of every policy here
        self.sessions: dict[str, SessionRecord] = {}  # the least recently used first
        self.forgotten = 0  # the highest generation of a session that was forgotten
        self._index = {arm.name: i for i, arm in enumerate(self.arms)}

    # -- asking ------------------------------------------------------------------------------------------------------------

    def index(self, name: str) -> int | None:
        """The index of an arm, retired ones included."""
        return self._index.get(name)

    def check_ready(self) -> None:
        """Raise `NotReadyError` for a clone that is not complete: nothing but its copy is written into its log."""
        if self.cloning is not None:
            raise NotReadyError(f"{self.cloning.learned} outcomes of {self.cloning.source.bandit!r} are learned so far")

    def is_cooling(self, index: int, now: datetime) -> bool:
        """Whether an arm is left out of decisions after errors."""
        until = self.arms[index].cooling_until
        return until is not None and now < until

    def session(self, name: str, now: datetime) -> SessionRecord | None:
        """A session whose model decisions still get; None where the next decision begins it (again), or sessions do not count."""
        known, ttl = self.sessions.get(name) if name else None, self.live.session_ttl_s
        return known if known is not None and ttl is not None and (now - known.last).total_seconds() <= ttl else None

    def next_generation(self, name: str) -> int:
        """Of a session that begins now. Generations of one name never come twice, whatever was forgotten."""
        known = self.sessions.get(name)
        return 1 + (self.forgotten if known is None else known.generation)

    def is_overdue(self, decision: OpenDecision, now: datetime) -> bool:
        """Whether its time is over. (A difference of times cannot overflow, a time in the far past would.)"""
        return (now - decision.at).total_seconds() >= self._timeout_s(decision)

    @property
    def outcomes(self) -> int:
        """Learned so far, of all arms."""
        return sum(arm.outcomes for arm in self.arms)

    def retired(self) -> frozenset[int]:
        """Indices of the arms that are not active."""
        return frozenset(i for i, arm in enumerate(self.arms) if not arm.active)

    def multipliers(self) -> dict[str, float]:
        """Of the signal that has a budget, the weight that is subtracted: 0 until every active arm has an outcome, or a decision
        that was closed without one.
        """
        if self.spending is None:
            return {}
        ready = all(arm.outcomes > arm.imported or arm.pulls > arm.pending for arm in self.arms if arm.active)
        return {self.spending.budget.signal: self.spending.multiplier if ready else 0.0}

    @property
    def prices_per(self) -> PricesPer:
        """What a price is for."""
        return "call" if self.created.prices_per is msgspec.UNSET else self.created.prices_per

    def overdue(self, now: datetime) -> list[OpenDecision]:
        """Open decisions whose time is over, oldest first (the dictionary is in log order)."""
        due = []
        for decision in self.open.values():
            if self.is_overdue(decision, now):
                due.append(decision)
            elif not self._timeouts_differ:  # else one behind it may be due before it
                break
        return due

    def next_deadline(self) -> float | None:
        """When the next open decision becomes overdue, POSIX seconds; None where there is none."""
        first = self.open.values() if self._timeouts_differ else islice(self.open.values(), 1)
        return min((decision.at.timestamp() + self._timeout_s(decision) for decision in first), default=None)

    def _timeout_s(self, decision: OpenDecision) -> float:
        return self.created.timeout_s if decision.timeout_s is None else decision.timeout_s

    def context(
        self,
        view: View,
        *,
        features: Tensor,
        allowed: Mapping[int, float | None],
        exclude: Sequence[str] = (),
        max_price: float | None = None,
        episode: str,
        now: datetime | None = None,
    ) -> Context:
        """The policy's context of one decision.

        allowed: arm index -> price for this decision alone (None = the arm's own); empty = every active arm.
        exclude, max_price: narrow them. Names that no arm has are ignored.
        now: arms that cool down then are left out, unless all do; None = whatever cools down.
        """
        usable, prices = view.active, view.prices
        if allowed:
            usable = tuple(active and i in allowed for i, active in enumerate(usable))
            own = [allowed.get(i) for i in range(len(prices))]
            prices = tuple(price if mine is None else mine for price, mine in zip(prices, own, strict=True))
        if not any(usable):
            raise InvalidContext("arms", "none of them can be chosen now: an arm was retired meanwhile, or is only being added")
        usable = self._narrowed(usable, prices, exclude, max_price)
        if now is not None and self.live.cooldown is not None:
            awake = tuple(ok and not self.is_cooling(i, now) for i, ok in enumerate(usable))
            usable = awake if any(awake) else usable
        known = self.episodes.get(episode)
        attempts: tuple[int, ...] = ()
        if known is not None:
            # an attempt that is still open counts as one that failed: else an impatient client could make any number of them
            attempts = tuple(known.attempts.get(i, 0) + known.open.get(i, 0) for i in range(len(prices)))
        return Context(
            features=features,
            allowed=usable,
            pending=view.pending,
            attempts=attempts,
            prices=prices,
            skipped=self.skipped,
            decided=view.decided,
            failed=view.failed,
            **self._terms(prices),
        )

    def _narrowed(
        self, usable: tuple[bool, ...], prices: Sequence[float], exclude: Sequence[str], max_price: float | None
    ) -> tuple[bool, ...]:
        """Which of the usable arms a decision still may choose."""
        if exclude:
            excluded = {self._index.get(name) for name in exclude}
            usable = tuple(ok and i not in excluded for i, ok in enumerate(usable))
            if not any(usable):
                raise InvalidContext("exclude", "leaves no arm to choose; name fewer, or allow others in `arms`")
        if max_price is not None:
            usable = tuple(ok and price <= max_price for ok, price in zip(usable, prices, strict=True))
            if not any(usable):
                raise InvalidContext("max_price", f"leaves no arm to choose: each costs more than {max_price:g} now; raise it")
        return usable

    def _terms(self, prices: Sequence[float]) -> dict[str, Any]:
        """What is maximized, where that is not the reward alone."""
        if self.spending is None and self.live.objective == {REWARD: 1.0}:
            return {}
        found = terms(self.learned, self.live.objective, self.multipliers(), prices=prices, prices_per=self.prices_per)
        return {"coefficients": found.coefficients, "constants": found.constants}

    # -- folding -----------------------------------------------------------------------------------------------------------

    def apply(
        self, offset: int, event: FoldedEvent, policy: Policy, features: Tensor | None = None, *, is_live: bool = True
    ) -> list[Effect]:
        """Take in the entry at `offset` (the next one); what follows from it for the state.

        features: (d,) those of a decision, where the caller has them as a tensor already.  is_live: false where decisions are
        not pending, as in a replay: `AddPending` is left out.
        """
        if offset != self.offset + 1:
            raise InconsistentEventError(f"offset {offset} after {self.offset}")
        effects = self._apply(offset, event, policy, features, is_live=is_live)
        if self.cloning is not None and event.cloned is not msgspec.UNSET:
            learned = self.cloning.learned + isinstance(event, Imported)
            self.cloning = msgspec.structs.replace(self.cloning, offset=event.cloned, learned=learned)
        self.offset = offset
        return effects

    def _apply(  # noqa: C901, PLR0912 - one case per kind of event
        self, offset: int, event: FoldedEvent, policy: Policy, features: Tensor | None, *, is_live: bool
    ) -> list[Effect]:
        match event:
            case Decided() | FoldedDecision():
                return self._decided(offset, event, policy, features, is_live=is_live)
            case Observed():
                return self._observed(event, policy)
            case SessionBegun():
                one = event.decision
                self._keep_session(event.session, SessionRecord(event.generation, one.arm, one.id, event.at, one.propensity))
            case Partial():
                return self._partial(offset, event)
            case Expired():
                return self._expired(event, policy)
            case Cancelled():
                return self._remove_pending(self._close(event.id))
            case Amended():
                return self._amended(offset, event, policy)
            case Configured():
                self._configured(event)
            case ArmAdded():
                if event.name in self._index:
                    raise InconsistentEventError(f"arm {event.name} was added before")
                self._index[event.name] = len(self.arms)
                self.arms.append(ArmRecord(event.name, event.price, event.metadata))
                self.tallies.add_arm()
                return [GrowArms()]
            case ArmChanged() | ArmRetired():
                values = {"price": event.price, "metadata": event.metadata} if isinstance(event, ArmChanged) else {}
                self._update(event.arm, active=bool(values), **values)
                return [Retire(self.retired())]
            case ReferenceAdded():
                return self._referenced(offset, event)
            case Imported():
                return [self._imported(event, policy)]
            case Cloned():
                self.cloning = None
            case ShadowCreated() | ShadowDeleted() | ShadowPromoted():
                self._change_shadows(offset, event)
            case Created():
                raise InconsistentEventError("a log is created once")
        return []

    def _configured(self, event: Configured) -> None:
        self.live = self.live.changed(event)
        self._timeouts_differ = self._timeouts_differ or event.timeout_s is not msgspec.UNSET
        if event.budget is not msgspec.UNSET:
            self.spending = None if event.budget is None else BudgetAccount(event.budget)
        if event.cooldown is None:
            for index in range(len(self.arms)):
                self._update(index, failures=[], cooling_until=None)

    def _count_error(self, event: Observed) -> None:
        """Let an arm cool down after errors that come close together, by the times of the log. One success ends the count."""
        arm, cooldown = self._arm(event.arm), self.live.cooldown
        is_error = event.error is not msgspec.UNSET
        self.tallies.arms[event.arm].failing.add(float(is_error))
        if not is_error:
            if arm.failures:
                self._update(event.arm, failures=[])
            return
        failures, until = arm.failures, arm.cooling_until
        if cooldown is not None:
            recent = [at for at in failures if (event.at - at).total_seconds() <= cooldown.within_s]
            failures = [*recent, event.at][-cooldown.errors :]
            until = event.at + timedelta(seconds=cooldown.for_s) if len(failures) >= cooldown.errors else until
        self._update(event.arm, errors=arm.errors + 1, failures=failures, cooling_until=until)

    def _keep_session(self, name: str, session: SessionRecord) -> None:
        self.sessions.pop(name, None)
        self.sessions[name] = session  # now the most recently used one
        while len(self.sessions) > KEPT_SESSIONS:
            self.forgotten = max(self.forgotten, self.sessions.pop(next(iter(self.sessions))).generation)

    def _change_shadows(self, offset: int, event: ShadowCreated | ShadowDeleted | ShadowPromoted) -> None:
        is_known = event.shadow in self.shadows
        if isinstance(event, ShadowCreated) == is_known:
            raise InconsistentEventError(f"shadow {event.shadow} {'was created before' if is_known else 'is not there'}")
        match event:
            case ShadowCreated():
                self._shadow_created(offset, event)
            case ShadowDeleted():
                del self.shadows[event.shadow]
            case ShadowPromoted():
                self._promoted(offset, event)

    def _shadow_created(self, offset: int, event: ShadowCreated) -> None:
        self.shadows[event.shadow] = ShadowRecord(
            name=event.shadow,
            offset=offset,
            number=offset,
            policy=event.policy,
            hyperparameters=event.hyperparameters,
            fingerprint=event.fingerprint,
            learns_from=event.learns_from,
            at=event.at,
            outcomes=self.outcomes if event.learns_from == "now" else 0,
        )

    def _promoted(self, offset: int, event: ShadowPromoted) -> None:
        """Exchange the policy that decides with a shadow's, and the sums of their drift detectors with them."""
        new = self.shadows[event.shadow]
        if new.offset != event.shadow_offset:
            raise InconsistentEventError(f"shadow {event.shadow} is of offset {new.offset}, not {event.shadow_offset}")
        self.shadows[event.shadow] = ShadowRecord(
            name=event.shadow,
            offset=offset,
            number=self.live.number,
            policy=self.live.policy or self.created.policy,
            hyperparameters=self.live.hyperparameters,
            fingerprint=self.created.fingerprint if self.live.policy is None else self.live.fingerprint,
            learns_from="start" if self.live.outcomes == 0 else "now",
            at=event.at,
            outcomes=self.live.outcomes,
            surprise=[arm.surprise for arm in self.arms],
        )
        for index in range(len(self.arms)):
            self._update(index, surprise=new.surprise[index] if index < len(new.surprise) else drift.START)
        self.live = self.live.promoted(new)
        self.promotions += 1

    def _decided(
        self, offset: int, event: AnyDecision, policy: Policy, features: Tensor | None, *, is_live: bool
    ) -> list[Effect]:
        if event.id in self.open:
            raise InconsistentEventError(f"decision {event.id} was made before")
        self._check_features(event)
        self.decided += 1
        for shadow in self.shadows.values():
            shadow.add(event)
        session = self.sessions.get(event.session) if isinstance(event.session, str) else None
        if session is not None and session.decision in (event.id, event.chosen_by):
            self._keep_session(event.session or "", msgspec.structs.replace(session, last=event.at))
        known = self.episodes.get(event.episode)
        self.skipped += event.arm < 0 and (known is None or known.made == 0)
        if policy.episodic or event.episode != event.id:  # else no later request can name this episode
            episode = self._episode(event.episode)
            if not episode.made:
                episode.policy = decided_by(event)
            episode.made += 1
            if event.arm >= 0:
                episode.open[event.arm] = episode.open.get(event.arm, 0) + 1
            episode.finished = episode.finished or event.arm < 0  # a success may have come while this decision was on its way
            episode.features = b"" if episode.finished else episode.features or event.features
        if event.arm < 0:
            return []
        arm = self._arm(event.arm)
        self.arms[event.arm] = msgspec.structs.replace(arm, pulls=arm.pulls + 1, pending=arm.pending + 1)
        self.tallies.last_decision = event.at
        self.series.add_decision(offset, event)
        self.recent.append(event.arm)
        self.open[event.id] = OpenDecision(
            id=event.id,
            arm=event.arm,
            features=event.features,
            propensity=event.propensity,
            price=event.price,
            episode=event.episode,
            at=event.at,
            offset=offset,
            timeout_s=None if event.timeout_s is msgspec.UNSET else event.timeout_s,
            estimate=self._expected_reward(event, policy),
            session=event.session or "",
            session_propensity=self.session_propensity(event) if event.sticky is True else None,
        )
        if not is_live:
            return []
        return [AddPending(event.arm, events.vector_tensor(event.features) if features is None else features)]

    def session_propensity(self, event: AnyDecision) -> float | None:
        """That of the decision which has drawn the arm of this one's session; None where it is not known any more."""
        session = self.sessions.get(event.session or "")
        return session.propensity if session is not None and session.decision == event.chosen_by else None

    def _expected_reward(self, event: AnyDecision, policy: Policy) -> float | None:
        """What the policy expected of the arm that it chose, where its scores say it."""
        if "reward" not in policy.needs or policy.episodic:  # an episodic policy estimates successes
            return None
        found = event.estimates
        scores = found.reward
        if scores is None and self.spending is None and self.live.objective == {REWARD: 1.0}:
            scores = found.estimate
        return scores[event.arm] if scores and event.arm < len(scores) else None

    def _partial(self, offset: int, event: Partial) -> list[Effect]:
        """Its signals are learned; the decision stays pending for all of them until it is closed."""
        decision = self.open.get(event.id)
        if decision is None:
            return []  # it was closed before
        given = decision.partial or PartialOutcome(0, 0, event.arm, {})
        added = {name: value for name, value in event.values.items() if name not in given.values}
        values = self._learned(added, self._price_of(decision, given.arm))
        teaches = not all(map(math.isnan, values))
        partial = PartialOutcome(event.n, offset, given.arm, given.values | added, offset if teaches else given.held)
        self.open[event.id] = msgspec.structs.replace(decision, partial=partial)
        change = Amendment(
            arm=given.arm,
            features=events.vector_tensor(decision.features),
            old=(math.nan,) * len(values),
            new=values,
            learned=(0,) * len(values),
            offset=offset,
            held=given.held,
        )
        return [Amend(change)] if teaches else []

    def _amended(self, offset: int, event: Amended, policy: Policy) -> list[Effect]:
        """Values that were known become differences, those that were missing are learned now. Neither the detector of drift nor
        the budget sees it.
        """
        arm, changed = self._arm(event.arm), {name: event.values[name] for name in event.before}
        known = {name: value for name, value in event.before.items() if value is not None}
        old, new = self._learned(known, event.price), self._learned(changed, event.price)
        if event.counts == "before":
            self._correct(event, changed, known)
        elif not event.held and not all(map(math.isnan, new)):
            self.tallies.arms[event.arm].outcomes += 1
        self.tallies.amend_outcome(event.arm, old, new)
        self._amend_series(event, changed)
        if event.spent is not msgspec.UNSET:  # with its reward it is counted below like any other outcome
            is_learned = event.counts == "now"
            cost = 0.0 if is_learned or event.cost is None else event.cost
            self._update(event.arm, failed=arm.failed - is_learned, cost_sum=arm.cost_sum + (cost - event.spent))
        at = {} if event.learned is msgspec.UNSET else event.learned
        change = Amendment(
            arm=event.arm,
            features=events.vector_tensor(event.features),
            old=old,
            new=new,
            learned=tuple(at.get(name, event.outcome) for name in self.learned),
            offset=offset,
            held=event.held,
            has_output=event.has_output is True,
        )
        if event.counts != "now" or event.reward is None:
            return [] if change.is_empty else [Amend(change)]
        # of an expired decision: with its reward it is an outcome like any other, which comes late
        is_added = [math.isnan(value) for value in old]
        corrected = tuple(math.nan if added else value for added, value in zip(is_added, new, strict=True))
        learned = tuple(value if added else math.nan for added, value in zip(is_added, new, strict=True))
        self.tallies.add_reward(
            event.arm, event.reward, event.drawn_with, half_life=policy.forget_half_life, session=event.session or ""
        )
        learn = self._learn(
            event.features,
            event.arm,
            reward=event.reward,
            cost=event.price if event.cost is None else event.cost,
            was_pending=False,
            signals=learned if len(learned) > 1 else (),
            held=event.held,
        )
        change = replace(change, new=corrected)
        return [learn] if change.is_empty else [Amend(change), learn]

    def _amend_series(self, event: Amended, changed: Mapping[str, float]) -> None:
        """As the sums of the arm have it: a cost that was not posted was counted as `charged`, or as `spent` of a failure."""
        values, old = dict(changed), dict(event.before)
        if event.spent is not msgspec.UNSET and event.cost is not None:
            values[COST], old[COST] = event.cost, event.spent
        elif event.counts == "before" and old.get(COST, 0.0) is None:
            old[COST] = event.charged
        elif event.counts == "now" and event.cost is None:
            values[COST] = event.price
        self.series.amend(event.outcome, event.arm, values, old)

    def _correct(self, event: Amended, changed: Mapping[str, float], known: Mapping[str, float]) -> None:
        """The sums of an arm over outcomes that count."""
        arm = self._arm(event.arm)
        if COST in changed:
            self._update(event.arm, cost_sum=arm.cost_sum + (changed[COST] - known.get(COST, event.charged)))
        reward = changed.get(REWARD)
        if reward is None:
            return
        low, high = self.reward_range or (reward, reward)
        self.reward_range = min(low, reward), max(high, reward)
        if REWARD in known:
            self._update(event.arm, reward_sum=arm.reward_sum + (reward - known[REWARD]))
            self.tallies.amend_reward(event.arm, known[REWARD], reward, event.drawn_with, session=event.session or "")
        else:
            self._update(event.arm, reward_sum=arm.reward_sum + reward, rewards=arm.rewards + 1)
            self.tallies.add_reward(event.arm, reward, event.drawn_with, session=event.session or "")

    def _observed(self, event: Observed, policy: Policy) -> list[Effect]:
        decision = self._close(event.id)
        if decision.partial is not None:
            event = completed(event, decision)
        self._count_error(event)
        is_error, earlier = event.error is not msgspec.UNSET, decision.partial.values if decision.partial else {}
        carried = outcome_values(event.reward, event.cost, msgspec.UNSET if event.is_failure else event.signals)
        values = earlier | carried if earlier else carried
        self.series.add_outcome(self.offset + 1, event.at, event.arm, values, is_error=is_error)
        if event.is_failure:
            return self._failed(event, decision)
        reward = 0.0 if event.reward is None else event.reward
        effects = self._move_pull(decision, event.arm)
        price = self._price_of(decision, event.arm)
        if event.arm != decision.arm and event.price is not msgspec.UNSET:
            price = event.price
        signals = self._signals(event, price)
        self._tally(event, decision, signals, policy)
        effects += self._watch(event)
        new = signals  # what came before is learned already
        if earlier:
            new = tuple(math.nan if name in earlier else one for name, one in zip(self.learned, signals, strict=False))
        learn = self._learn(
            decision.features,
            event.arm,
            reward=reward,
            cost=event.cost,
            output=event.output,
            reference=event.reference,
            was_pending=event.arm == decision.arm,
            signals=new,
            held=decision.partial.held if decision.partial else 0,
            has_reward=event.reward is not None,
            decision=decision.offset,
        )
        effects.append(learn)
        if self.spending is not None:
            self.spending.add(event.arm, outcome_values(event.reward, event.cost, event.signals))
        self._advance(decision.episode, event.arm, success=event.reward is not None and policy.succeeded(reward))
        return effects

    def _failed(self, event: Observed, decision: OpenDecision) -> list[Effect]:
        """The call was made and paid, and counts as an attempt and for burn-in; of its arm it says nothing. What signals came
        before it are learned already.
        """
        effects = self._move_pull(decision, event.arm) or self._remove_pending(decision)
        arm = self._arm(event.arm)
        self._update(event.arm, failed=arm.failed + 1, cost_sum=arm.cost_sum + event.cost)
        self.tallies.last_outcome = event.at
        self.tallies.missing.add(0.0)
        if decision.partial is not None and decision.partial.held:
            price = self._price_of(decision, event.arm)
            self.tallies.add_outcome(event.arm, self._learned(decision.partial.values, price))
        if self.spending is not None:
            self.spending.add(event.arm, outcome_values(None, event.cost, event.signals))
        self._advance(decision.episode, event.arm, success=False)
        return effects

    def _move_pull(self, decision: OpenDecision, arm: int) -> list[Effect]:
        """The pull was another arm's, where the client played another one."""
        if arm == decision.arm:
            return []
        self._update(decision.arm, pulls=self._arm(decision.arm).pulls - 1)
        self._update(arm, pulls=self._arm(arm).pulls + 1)
        return self._remove_pending(decision)

    def _tally(self, event: Observed, decision: OpenDecision, signals: tuple[float, ...], policy: Policy) -> None:
        tallies, reward = self.tallies, event.reward
        tallies.last_outcome = event.at
        tallies.missing.add(0.0)
        tallies.add_outcome(event.arm, signals or (() if reward is None else (reward,)))
        if reward is None:
            return
        propensity = decision.drawn_with(event.arm) if event.propensity is None else event.propensity
        tallies.add_reward(event.arm, reward, propensity, half_life=policy.forget_half_life, session=decision.session)
        if decision.estimate is not None and event.arm == decision.arm:
            tallies.errors.add(reward - decision.estimate)

    def _expired(self, event: Expired, policy: Policy) -> list[Effect]:
        """The call was made whatever came of it, so it counts as an attempt: else an episode whose outcomes never come would have
        no end.
        """
        decision = self._close(event.id)
        partial = decision.partial or PartialOutcome(0, 0, decision.arm, {})
        arm, values = partial.arm, partial.values
        effects = self._move_pull(decision, arm)
        self._advance(decision.episode, arm, success=event.reward is not None and policy.succeeded(event.reward))
        self.tallies.missing.add(1.0)
        if partial.held:
            self.tallies.add_outcome(arm, self._learned(values, self._price_of(decision, arm)))
        if event.reward is None:
            self.series.add_expired(self.offset + 1, event.at, arm, values)
            if self.spending is not None and values:
                self.spending.add(arm, values)
            return effects or self._remove_pending(decision)
        cost = values.get(COST, decision.price)
        known = {COST: cost} | values | {REWARD: event.reward}
        self.series.add_expired(self.offset + 1, event.at, arm, known)
        if self.spending is not None:
            self.spending.add(arm, known)
        propensity = decision.drawn_with(arm)
        self.tallies.add_reward(arm, event.reward, propensity, half_life=policy.forget_half_life, session=decision.session)
        learn = self._learn(
            decision.features,
            arm,
            reward=event.reward,
            cost=cost,
            was_pending=arm == decision.arm,
            held=partial.held,
            decision=decision.offset,
        )
        return [*effects, learn]

    def _imported(self, event: Imported, policy: Policy) -> Learn:
        """What was learned elsewhere says nothing of how this bandit decides: it is neither a pull nor spent, and of the tallies
        only its size counts.
        """
        self._check_features(event)
        arm = self._arm(event.arm)
        if event.reward is not None:
            self.tallies.steps.add(event.reward, half_life=policy.forget_half_life)
        self._update(event.arm, imported=arm.imported + 1)
        return self._learn(
            event.features,
            event.arm,
            reward=0.0 if event.reward is None else event.reward,
            cost=event.cost,
            output=event.output,
            reference=event.reference,
            was_pending=False,
            signals=self._signals(event, event.price),
            has_reward=event.reward is not None,
        )

    def _learn(
        self,
        features: bytes,
        index: int,
        *,
        reward: float,
        cost: float,
        output: events.Matrix = events.EMPTY,
        reference: events.Matrix = events.EMPTY,
        was_pending: bool,
        signals: tuple[float, ...] = (),
        has_reward: bool = True,
        held: int = 0,
        decision: int = 0,
    ) -> Learn:
        """Count an outcome. has_reward: else `reward` is 0 and is none.  decision: the offset of the one that it closes."""
        arm, known = self._arm(index), self.reward_range
        if known is None or not known[0] <= reward <= known[1]:
            low, high = known or (reward, reward)
            self.reward_range = min(low, reward), max(high, reward)
        self.arms[index] = msgspec.structs.replace(
            arm,
            outcomes=arm.outcomes + 1,
            reward_sum=arm.reward_sum + reward,
            cost_sum=arm.cost_sum + cost,
            rewards=arm.rewards + has_reward,
        )
        seen = Observation.of(
            arm=index,
            features=events.vector_tensor(features),
            reward=reward,
            cost=cost,
            output=output.tensor(),
            reference=reference.tensor(),
            moments=None,
            signals=signals,
            was_pending=was_pending,
            offset=self.offset + 1,
            held=held,
        )
        return Learn(seen, has_reward, decision)

    def _signals(self, event: Observed | Imported, price: float) -> tuple[float, ...]:
        """Values of the learned signals, NaN = missing; empty where the reward alone is learned.

        A cost that is only the price by default is not learned with prices per call: there the expected cost is the price.
        """
        if self.learned == (REWARD,):
            return ()
        values = outcome_values(event.reward, event.cost, event.signals)
        failed = isinstance(event, Observed) and event.error is not msgspec.UNSET
        if event.cost_posted is not True and (self.prices_per == "call" or price == 0.0 or failed):
            del values[COST]
        return self._learned(values, price)

    def _learned(self, values: Mapping[str, float], price: float) -> tuple[float, ...]:
        """(S,) what the policy learns of these values, NaN = missing. price: of the call."""
        found = dict(values)
        if COST in found:
            found[COST] = learned_cost(found[COST], price, self.prices_per)
        return tuple(found.get(name, math.nan) for name in self.learned)

    def _watch(self, event: Observed) -> list[Effect]:
        """Add the surprises of an outcome to the detectors of its arm; an alarm resets the arm. The sums are of logged numbers
        alone, so every replica and every replay resets at the same offset.
        """
        index = event.arm
        others = {} if event.surprises is msgspec.UNSET else event.surprises
        effects: list[Effect] = []
        for shadow in self.shadows.values():
            surprise = others.get(str(shadow.number))
            if surprise is not None:
                effects += shadow.watch(index, surprise, offset=self.offset + 1)
        if event.surprise is msgspec.UNSET or event.surprise is None:
            return effects
        sums, alarm = drift.add(self._arm(index).surprise, event.surprise)
        self._update(index, surprise=sums)
        if not alarm:
            return effects
        self.alarms = [*self.alarms, Alarm(index, self.offset + 1, event.at, self.outcomes)][-KEPT_ALARMS:]
        self._update(index, alarms=self._arm(index).alarms + 1)
        return [*effects, Reset(index, self.offset + 1, self.live.number)]

    def _referenced(self, offset: int, event: ReferenceAdded) -> list[Effect]:
        moments = None if event.moments is None else moments_of(event.moments)
        self.referenced = self.referenced + event.outputs.rows if moments is None else moments.count  # moments replace moments
        if isinstance(event.id, str) and isinstance(event.body, str):
            self.references[event.id] = KnownReference(offset, self.referenced, event.body)
            if len(self.references) > KEPT_REFERENCES:
                del self.references[next(iter(self.references))]
        observation = Observation(arm=REFERENCE, features=event.prompts.tensor(), output=event.outputs.tensor(), moments=moments)
        return [Learn(observation)]

    def _close(self, decision_id: str) -> OpenDecision:
        decision = self.open.pop(decision_id, None)
        if decision is None:
            raise InconsistentEventError(f"decision {decision_id} is not open")
        arm = self._arm(decision.arm)
        self.arms[decision.arm] = msgspec.structs.replace(arm, pending=arm.pending - 1)
        episode = self.episodes.get(decision.episode)
        if episode is not None and episode.open.get(decision.arm):
            episode.open[decision.arm] -= 1
            if not any(episode.open.values()):
                episode.open = {}  # a dictionary that was filled and emptied keeps its table: a quarter of an episode's memory
        return decision

    def _remove_pending(self, decision: OpenDecision) -> list[Effect]:
        return [RemovePending(decision.arm, events.vector_tensor(decision.features), decision.offset)]

    def _check_features(self, event: AnyDecision | Imported) -> None:
        if self.created.dim and len(event.features) not in (0, 4 * self.created.dim):
            what = "row" if isinstance(event, Imported) else "decision"
            raise InconsistentEventError(f"{what} {event.id} has {len(event.features) // 4} features, not {self.created.dim}")

    def _price_of(self, decision: OpenDecision, arm: int) -> float:
        """Of the call: as it was when the decision was made, or the present one of another arm that was played."""
        return decision.price if arm == decision.arm else self._arm(arm).price

    def _arm(self, index: int) -> ArmRecord:
        if not 0 <= index < len(self.arms):
            raise InconsistentEventError(f"there is no arm {index}")
        return self.arms[index]

    def _update(self, index: int, **changes: Any) -> None:
        self.arms[index] = msgspec.structs.replace(self._arm(index), **changes)

    def _episode(self, episode_id: str) -> Episode:
        episode = self.episodes.pop(episode_id, None) or Episode({})
        self.episodes[episode_id] = episode  # now the most recently used one
        while len(self.episodes) > KEPT_EPISODES:
            del self.episodes[next(iter(self.episodes))]
        return episode

    def _advance(self, episode_id: str, arm: int, *, success: bool) -> None:
        if episode_id not in self.episodes:
            return
        episode = self.episodes[episode_id]
        if success:
            episode.finished, episode.features = True, b""
        else:
            episode.attempts[arm] = episode.attempts.get(arm, 0) + 1

    def adopt(self, other: Ledger) -> None:
        """Hold what another ledger of this bandit holds, for all who have this one."""
        vars(self).update(vars(other))

    # -- bytes -------------------------------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """Everything, as JSON."""
        lowest, highest = self.reward_range or (None, None)
        return msgspec.json.encode(
            Snapshot(
                self.arms,
                list(self.open.values()),
                list(self.episodes.items()),
                list(self.recent),
                self.offset,
                self.decided,
                self.referenced,
                self.references,
                self.skipped,
                lowest,
                highest,
                self.spending,
                self.alarms,
                self.live,
                self.tallies,
                self.cloning,
                list(self.shadows.values()),
                self.promotions,
                list(self.sessions.items()),
                self.forgotten,
                self.series.pack(),
            )
        )

    @staticmethod
    def unpack(created: Created, data: bytes) -> Ledger:
        """What `pack` wrote of this bandit; raises `msgspec.DecodeError` or `msgspec.ValidationError` for anything else."""
        kept = _snapshot_decoder.decode(data)
        ledger = Ledger(created)
        ledger.arms = kept.arms
        ledger.open = {decision.id: decision for decision in kept.open}
        ledger.episodes = dict(kept.episodes)
        ledger.recent.extend(kept.recent)
        ledger.offset, ledger.decided, ledger.referenced = kept.offset, kept.decided, kept.referenced
        ledger.references = kept.references
        ledger.skipped = kept.skipped
        if kept.lowest_reward is not None and kept.highest_reward is not None:
            ledger.reward_range = kept.lowest_reward, kept.highest_reward
        ledger.spending = kept.spending or ledger.spending
        ledger.alarms = kept.alarms
        ledger.live = kept.live or ledger.live
        ledger._timeouts_differ = any(decision.timeout_s is not None for decision in kept.open)
        if kept.live is not None:
            ledger.spending = kept.spending  # which may have been taken away
        ledger.tallies = kept.tallies or Tallies.start(arms=len(kept.arms), signals=len(created.learned))
        ledger.series = Series.unpack(kept.series, created.learned)
        ledger.cloning = kept.cloning
        ledger.shadows = {shadow.name: shadow for shadow in kept.shadows}
        ledger.promotions = kept.promotions
        ledger.sessions, ledger.forgotten = dict(kept.sessions), kept.forgotten
        ledger._index = {arm.name: i for i, arm in enumerate(ledger.arms)}
        return ledger
