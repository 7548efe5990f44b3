"""Evaluation of policies along a log: what each would have chosen at every decision, and what came of the decisions.

    entries ──> decisions with their outcomes ──block by block──> Moments ──> estimates, intervals, verdicts
        └─────> Ledger ──> context of each decision ──> weights of the candidates      (only where there are any)

The log is read once for all candidates, and only what is needed of it is kept. A candidate that learns sees what was logged and
nothing else: at each decision it has learned the outcomes before it, of arms that the logged policy chose, and what was imported.
A fixed arm and a frozen state are evaluated as they are.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from bandits import state as states
from bandits.errors import InvalidHyperparameter
from bandits.evaluation import intervals
from bandits.evaluation.estimators import ESTIMATORS, Estimate
from bandits.evaluation.intervals import AnytimeSums, Interval
from bandits.evaluation.moments import Block, Floats, Moments
from bandits.evaluation.verdict import Diagnostics, judge
from bandits.objective import REWARD
from bandits.policies.baselines import OneArm
from bandits.registry import POLICIES, build
from bandits.types import Policy, State
from service.engine import events
from service.engine.events import Created
from service.engine.ledger import Effect, Ledger, Reset, View
from service.engine.policies import Learned, apply_effect, deciding_policy, policy_of, shadow_policy
from service.engine.sessions import FirstDecisions
from service.storage.base import Log

BLOCK = 2_048
"""Decisions that are summed together, where there are few policies and arms; in all `BLOCK_NUMBERS` at most in one array."""
BLOCK_NUMBERS = 2**20
WITHOUT_WEIGHTS = "imported without weights"
WITHOUT_SHADOW = "without weights of a shadow"
WITHOUT_FIRST = "sticky, its session's first decision unknown"
SESSION_NUMBERS = 2**21
"""Kept of first decisions of sessions, at most: later ones have their weights."""
ELSEWHERE = 0
"""The number of no policy of this bandit."""
ROUNDING = 1e-6
"""By which logged weights may miss a sum of 1, and a propensity the weight of its arm."""


class InvalidRow(ValueError):
    """An entry of a log that cannot be evaluated. The message names the field and the fix."""

    def __init__(self, offset: int, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.offset = offset


class InvalidRequest(ValueError):
    """An evaluation that this log cannot give. field: what of the request is wrong."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.field = where
        self.message = message


# -- what is read of an entry: a fourth of the time that decoding all of it takes --------------------------------------------


class _Scores(msgspec.Struct, frozen=True):
    estimate: list[float | None] | None = None
    weighed: list[float | None] | None = msgspec.field(name=f"signals.{REWARD}", default=None)


class _Decided(msgspec.Struct, frozen=True, tag_field="event", tag="decided"):
    id: str
    at: datetime
    arm: int
    propensity: float | None
    weights: list[float]
    allowed: list[int]
    scores: _Scores = _Scores()
    session: str = ""
    sticky: bool = False
    chosen_by: str = ""


class _Observed(msgspec.Struct, frozen=True, tag_field="event", tag="observed"):
    id: str
    arm: int
    reward: float | None
    propensity: float | None


class _Expired(msgspec.Struct, frozen=True, tag_field="event", tag="expired"):
    id: str


class _Cancelled(msgspec.Struct, frozen=True, tag_field="event", tag="cancelled"):
    id: str


class _ArmAdded(msgspec.Struct, frozen=True, tag_field="event", tag="arm_added"):
    name: str


class _Created(msgspec.Struct, frozen=True, tag_field="event", tag="created"):
    bandit: str


class _Imported(msgspec.Struct, frozen=True, tag_field="event", tag="imported"):
    id: str
    at: datetime
    arm: int
    reward: float | None
    weights: list[float] | None = None
    session: str = ""

    def as_decided(self, weights: list[float]) -> _Decided:
        """The decision that it was elsewhere; arms of weight 0 may not have been there."""
        allowed = [arm for arm, weight in enumerate(weights) if weight > 0.0]
        propensity = weights[self.arm] if self.arm < len(weights) else 0.0
        return _Decided(
            id=self.id, at=self.at, arm=self.arm, propensity=propensity, weights=weights, allowed=allowed, session=self.session
        )


class _Amended(msgspec.Struct, frozen=True, tag_field="event", tag="amended"):
    id: str
    reward: float | None


_Read = _Amended | _Imported | _Decided | _Observed | _Expired | _Cancelled | _ArmAdded | _Created
_decoder: msgspec.json.Decoder[_Read] = msgspec.json.Decoder(_Read)
_FIELD = re.compile(r"field `(\w+)`|at `\$\.([\w.\[\]]+)`")
FIXES = {
    "weights": "a log without the distribution of every decision cannot be evaluated; evaluate what nextarm logged or exported",
    "propensity": "it is the probability, above 0 and at most 1, with which the arm was drawn",
}
"""What to do where a field of a decision is missing or wrong."""


def _read(offset: int, payload: bytes) -> _Read | None:
    """What of an entry is evaluated; None = nothing. Raises `InvalidRow`."""
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError as error:
        if not isinstance(error, msgspec.ValidationError):
            raise InvalidRow(offset, "the line", f"it is no JSON ({error}); export the log again") from None
        try:
            events.decode(payload)
        except events.UnreadableEvent as unreadable:
            named = _FIELD.search(str(error))
            name = "" if named is None else named[1] or named[2]
            fix = FIXES.get(name.partition("[")[0], "")
            raise InvalidRow(offset, f"field {name}" if name else "event", f"{unreadable}{'; ' * bool(fix)}{fix}") from None
        return None  # an event that says nothing about rewards


# -- candidates --------------------------------------------------------------------------------------------------------------


class Candidate(Protocol):
    """What is evaluated beside the fixed arms. spec: as it was asked for.  label: for tables."""

    spec: Mapping[str, Any]
    label: str

    def fold(self, offset: int, effects: Iterable[Effect]) -> None:
        """What follows from the entry at `offset`."""

    def weights(self, ledger: Ledger, event: events.Decided) -> Floats | None:
        """Its distribution at a decision; arms behind the last number have the weight 0. None = it is not known."""


def policy_for(created: Created, spec: Mapping[str, Any]) -> Policy:
    """Another policy for a bandit's log. Raises `InvalidHyperparameter`, or `InvalidRequest` for what the log cannot give."""
    given = dict(spec)
    kind = given.pop("kind", "")
    signals = created.learned if kind in POLICIES and POLICIES[kind].weighs_signals else (REWARD,)
    policy = build(kind, given, dim=created.dim, output_dim=created.output_dim, seed=created.seed, signals=signals)
    if "output" in policy.needs and not created.output_dim:
        raise InvalidRequest(
            "kind", f"{kind} learns from outputs, and this log has none; only a bandit that takes outputs logs them"
        )
    if policy.contextual and not created.dim:
        raise InvalidRequest("kind", f"{kind} decides by the prompt, and this log has none; evaluate one without prompts")
    return policy


def check_arm(policy: Policy, *, arms: int) -> None:
    """Whether the one arm of `one-arm` is there. Raises `InvalidRequest`."""
    if isinstance(policy, OneArm) and policy.arm >= arms:
        raise InvalidRequest("arm", f"there is no arm {policy.arm}; the bandit has the arms 0 to {arms - 1}")


@dataclass
class Replayed:
    """A policy that learns along the log. spec: as the `policy` of a bandit."""

    spec: Mapping[str, Any]
    label: str
    policy: Policy
    state: State
    is_prepared: bool = False

    @staticmethod
    def of(created: Created, spec: Mapping[str, Any]) -> Replayed:
        """Raises as `policy_for` does."""
        policy, given = policy_for(created, spec), {name: value for name, value in spec.items() if name != "kind"}
        label = policy.kind if not given else f"{policy.kind} {json.dumps(given)}"
        return Replayed(spec, label, policy, states.start(policy, arms=len(created.arms)))

    def fold(self, offset: int, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.state, self.is_prepared = apply_effect(self.policy, self.state, effect, is_live=False), False

    def weights(self, ledger: Ledger, event: events.Decided) -> Floats:
        if not self.is_prepared:
            self.state, self.is_prepared = self.policy.prepare(self.state), True
        context = _context(ledger, event)
        found: Floats = self.policy.weights(self.state, [context]).values[0].numpy()
        return found


@dataclass
class Frozen:
    """The bandit's own policy, with all that it had learned at an offset and no outcome after it. Nothing is pending."""

    spec: Mapping[str, Any]
    label: str
    offset: int
    own: Own
    policy: Policy | None = None
    state: State | None = None
    decided: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    skipped: int = 0

    def fold(self, offset: int, effects: Iterable[Effect]) -> None:
        if offset == self.offset:
            self.policy, ledger = self.own.policy, self.own.ledger
            self.state = self.policy.prepare(self.own.state)
            self.decided, self.skipped = tuple(arm.pulls for arm in ledger.arms), ledger.skipped
            self.failed = tuple(arm.failed for arm in ledger.arms)

    def weights(self, ledger: Ledger, event: events.Decided) -> Floats:
        assert self.policy is not None
        assert self.state is not None
        known = len(self.decided)
        context = _context(ledger, event)
        allowed = context.allowed[:known]
        if not any(allowed):  # arms that came later are all that may be chosen: as a fixed arm that is not there
            lowest: Floats = np.eye(len(ledger.arms))[min(event.allowed)]
            return lowest
        context = replace(
            context,
            allowed=allowed,
            pending=(),
            attempts=context.attempts[:known],
            prices=context.prices[:known],
            skipped=self.skipped,
            decided=self.decided,
            failed=self.failed,
            coefficients=tuple(row[:known] for row in context.coefficients),
            constants=context.constants[:known],
        )
        found: Floats = self.policy.weights(self.state, [context]).values[0].numpy()
        return found


@dataclass
class Shadow:
    """A policy whose weights were logged, before and after a promotion. number: of the policy."""

    spec: Mapping[str, Any]
    label: str
    number: int

    def fold(self, offset: int, effects: Iterable[Effect]) -> None: ...

    def weights(self, ledger: Ledger, event: events.Decided) -> Floats | None:
        found = events.weights_of(event, self.number)
        return None if found is None else np.array(found)


class Own:
    """The bandit itself. policy: the one that decides, with the hyperparameters of now.  state: its, folded up to `until`."""

    def __init__(self, created: Created, *, until: int) -> None:
        self.until = until
        self.created = created
        self._log = Log(created.bandit, created.bandit)  # as errors name it
        self.ledger = Ledger(created)
        self.policy = policy_of(created)
        start = Learned.start(events.FIRST, self.policy, arms=len(created.arms), is_own=True, layout=self.ledger.layout)
        self._learned = {events.FIRST: start}
        self._hyperparameters = self.ledger.live.hyperparameters

    @property
    def state(self) -> State:
        """Of the policy that decides. Raises `InvalidRequest` for one that had learned the log from its start as a shadow: this
        reads the log once.
        """
        if self.ledger.live.number not in self._learned:
            raise InvalidRequest(
                "frozen",
                f"the policy that decided at offset {self.ledger.offset} was a shadow that learned from the start, and cannot be "
                "frozen here; evaluate it as a policy that learns, or clone the bandit until that offset",
            )
        return self._learned[self.ledger.live.number].state

    def fold(self, offset: int, event: events.AnyEvent) -> list[Effect]:
        """The next entry, and what follows from it for a policy that learns along."""
        effects = self.ledger.apply(offset, event, self.policy)
        live = self.ledger.live
        if live.hyperparameters is not self._hyperparameters:
            self._hyperparameters, self.policy = live.hyperparameters, deciding_policy(self.created, live)
        if offset <= self.until:
            self._learn(offset, event, effects)
        return [one for one in effects if not isinstance(one, Reset) or one.policy == live.number]

    def _learn(self, offset: int, event: events.AnyEvent, effects: list[Effect]) -> None:
        if isinstance(event, events.ShadowCreated) and event.learns_from == "now":
            policy = shadow_policy(self.created, self.ledger.shadows[event.shadow])
            arms, retired = len(self.ledger.arms), self.ledger.retired()
            self._learned[offset] = Learned.start(
                offset, policy, arms=arms, retired=retired, since=offset, layout=self.ledger.layout
            )
        for number, one in self._learned.items():
            policy = self.policy if number == self.ledger.live.number else one.policy
            known = replace(one, policy=policy, is_own=one.is_own and not self.ledger.promotions)
            self._learned[number] = known.fold(self._log, [(offset, effect) for effect in effects], is_live=False)


def _elsewhere(event: events.Imported, decided: _Decided) -> events.Decided:
    """An imported row as the decision that it was."""
    return events.Decided(
        at=event.at, id=event.id, arm=event.arm, propensity=decided.propensity, weights=decided.weights, scores={},
        allowed=decided.allowed, price=event.price, features=event.features, episode="", attempt=1, body="", policy=ELSEWHERE,
    )  # fmt: skip


def _context(ledger: Ledger, event: events.Decided) -> Any:
    """The context in which a logged decision was made, with what the ledger knew before it."""
    allowed = {index: event.price if index == event.arm else None for index in event.allowed}
    features = events.vector_tensor(event.features)
    return ledger.context(View.of(ledger.arms, {}), features=features, allowed=allowed, episode=event.episode)


# -- results -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    """What is known of one policy. estimates: of every estimator, with its ordinary interval."""

    policy: Mapping[str, Any]
    label: str
    value: float
    interval: Interval
    anytime_interval: Interval | None
    support: float
    effective_sample: float
    mean_weight: float
    max_weight: float
    p99_weight: float
    verdict: str
    reason: str
    estimates: Mapping[str, tuple[float, Interval]]

    def as_json(self) -> dict[str, Any]:
        """Plain values; what has no value is None, as JSON has no NaN."""
        return {
            "policy": dict(self.policy),
            "label": self.label,
            "value": _number(self.value),
            "interval": _pair(self.interval),
            "anytime_interval": None if self.anytime_interval is None else _pair(self.anytime_interval),
            "support": self.support,
            "effective_sample": self.effective_sample,
            "mean_weight": self.mean_weight,
            "max_weight": self.max_weight,
            "p99_weight": self.p99_weight,
            "verdict": self.verdict,
            "reason": self.reason,
            "estimates": {
                name: {"value": _number(value), "interval": _pair(interval)} for name, (value, interval) in self.estimates.items()
            },
        }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _pair(interval: Interval) -> list[float | None]:
    return [_number(end) for end in interval]


@dataclass(frozen=True)
class Results:
    """The results of one evaluation.

    behaviour: the policy that decided, on the same decisions.  policies: as they were asked for.
    best_fixed_arm: chosen among all arms on these very decisions; its intervals hold for all of them at once. None where the log
    can say nothing of any arm.  left_out: why decisions were not used, and how many.
    """

    bandit: str
    decisions: int
    left_out: Mapping[str, int]
    estimator: str
    confidence: float
    behaviour: Evaluated
    policies: Sequence[Evaluated]
    fixed_arms: Sequence[Evaluated]
    best_fixed_arm: Evaluated | None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints and the route answers."""
        return {
            "bandit": self.bandit,
            "decisions": self.decisions,
            "left_out": dict(self.left_out),
            "estimator": self.estimator,
            "confidence": self.confidence,
            "behaviour": self.behaviour.as_json(),
            "policies": [one.as_json() for one in self.policies],
            "fixed_arms": [one.as_json() for one in self.fixed_arms],
            "best_fixed_arm": None if self.best_fixed_arm is None else self.best_fixed_arm.as_json(),
        }


class _Row(NamedTuple):
    """A decision that waits for its outcome. candidates: (C, K), empty without candidates.

    event: of a sticky decision the one that has drawn its arm, with the weights that it was drawn from.
    """

    offset: int
    event: _Decided
    model: list[float]
    candidates: list[list[float]]
    is_sticky: bool = False


@dataclass
class Evaluation:
    """Reads a log once; `add` takes its entries in order.

    specs: candidates, each `{"kind": ...}` with hyperparameters, `{"frozen": offset}` or `{"shadow": name}`.
    shadows: the number of the policy of each shadow by name.  reward_range: for anytime intervals.
    amended: rewards by decision, as they were corrected later in the log. A decision that is added up cannot be taken out again,
    so where `amendments` are found, the log is read again with them.
    since: the first offset or time whose decisions count; None = all, or those after the last offset that is frozen. Earlier
    entries are learned and not counted.
    """

    created: Created
    specs: Sequence[Mapping[str, Any]] = ()
    since: int | datetime | None = None
    reward_range: tuple[float, float] | None = None
    shadows: Mapping[str, int] = field(default_factory=dict)
    amended: Mapping[str, float | None] = field(default_factory=dict)
    amendments: dict[str, float | None] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.arms = [arm.name for arm in self.created.arms]
        self.offset = 1
        self.decisions = 0
        frozen = [spec["frozen"] for spec in self.specs if "frozen" in spec]
        last = max(frozen, default=0)
        if self.since is None and frozen:
            self.since = last + 1
        if frozen and (not isinstance(self.since, int) or self.since <= last):
            raise InvalidRequest(
                "since",
                f"a state frozen at offset {last} has learned the outcomes before it, and may be judged by those after it alone; "
                f"leave since out, or set it to {last + 1} or more",
            )
        self._own = Own(self.created, until=last) if self.specs else None
        self.candidates = [self._candidate(place, spec) for place, spec in enumerate(self.specs)]
        for candidate in self.candidates:
            candidate.fold(self.offset, ())  # the entry that creates the bandit: one frozen there has learned nothing
        self._open: dict[str, _Row] = {}
        self._firsts: FirstDecisions[_Row] = FirstDecisions()
        self._waiting: list[tuple[_Row, float]] = []  # for the next block, with their rewards
        self._counts, self._totals = [0] * len(self.arms), [0.0] * len(self.arms)  # per arm: outcomes, sum of their rewards
        # Columns: the logged policy, the candidates, an arm that is never there, the fixed arms. An arm that comes later has the
        # past of the one that is never there.
        self._absent = 1 + len(self.candidates)
        policies = self._absent + 1 + len(self.arms)
        self._moments = Moments(policies)
        self._anytime = None if self.reward_range is None else AnytimeSums(policies, reward_range=self.reward_range)

    def _candidate(self, place: int, spec: Mapping[str, Any]) -> Candidate:
        if "frozen" in spec:
            assert self._own is not None
            return Frozen(spec, f"frozen at {spec['frozen']}", spec["frozen"], self._own)
        if "shadow" in spec:
            if spec["shadow"] not in self.shadows:
                known = ", ".join(self.shadows) or "none"
                raise InvalidRequest(f"policies.{place}.shadow", f"this bandit has no such shadow; it has {known}")
            return Shadow(spec, f"shadow {spec['shadow']}", self.shadows[spec["shadow"]])
        try:
            return Replayed.of(self.created, spec)
        except InvalidHyperparameter as error:
            raise InvalidRequest(f"policies.{place}.{error.field}", error.message) from None
        except InvalidRequest as error:
            raise InvalidRequest(f"policies.{place}.{error.field}", error.message) from None

    # -- reading -----------------------------------------------------------------------------------------------------------

    def add(self, offset: int, payload: bytes) -> None:
        """The next entry, behind the one that creates the bandit. Raises `InvalidRow`."""
        if offset != self.offset + 1:
            self._check_gap(offset)
        self.offset = offset
        event = _read(offset, payload)
        row = self._before_fold(offset, event)
        if self._own is not None:
            row = self._fold(self._own, offset, events.decode(payload), row)
        match event:
            case _Observed():
                self._observed(offset, event)
            case _Imported(reward=float(reward)) if row is not None:
                self._take(offset, row, reward)
            case _Expired():
                self._expired(offset, event.id)
            case _Amended():
                self.amendments[event.id] = event.reward
            case _Cancelled():
                self.left_out["cancelled"] += self._open.pop(event.id, None) is not None

    def _check_gap(self, offset: int) -> None:
        if offset <= self.offset:
            raise InvalidRow(
                offset, "offset", f"follows {self.offset}; the log was put together from several: give one at a time"
            )
        if self.candidates:
            raise InvalidRow(
                offset,
                "offset",
                f"entries {self.offset + 1} to {offset - 1} are missing, which a policy that is replayed must have learned; "
                "evaluate fixed arms alone, or a log from its beginning",
            )

    def _before_fold(self, offset: int, event: _Read | None) -> _Row | None:
        """What is to be known of an entry before it is learned: the row of one that counts, if it has an outcome."""
        match event:
            case _Decided():
                row = self._row(offset, event)
                if row is not None and self._open.setdefault(event.id, row) is not row:
                    raise InvalidRow(offset, "field id", f"decision {event.id!r} was made before; are these two logs in one?")
                return row
            case _Imported() if self._is_counted(offset, event.at):
                if event.reward is not None and event.weights is not None:
                    return self._row(offset, event.as_decided(event.weights))
                self.left_out["without a reward" if event.reward is None else WITHOUT_WEIGHTS] += 1
            case _Created():
                raise InvalidRow(offset, "event", "here another bandit's log begins; give one log at a time")
            case _ArmAdded():
                self._add_arm(event.name)
        return None

    def _fold(self, own: Own, offset: int, event: events.AnyEvent, row: _Row | None) -> _Row | None:
        """Let the candidates decide and learn. The row, unless the log lacks what one of them needs of it."""
        if row is not None and not row.is_sticky:
            if isinstance(event, events.Imported):
                event_here = _elsewhere(event, row.event)
            else:
                assert isinstance(event, events.Decided)
                event_here = event
            found = [candidate.weights(own.ledger, event_here) for candidate in self.candidates]
            known = [weights.tolist() for weights in found if weights is not None]
            row.candidates.extend(known)
            if len(known) < len(found):
                self.left_out[WITHOUT_SHADOW] += 1
                self._open.pop(event_here.id, None)
                self._firsts.drop(event_here.id)
                row = None
        try:
            effects = own.fold(offset, event)
        except Exception as error:
            raise InvalidRow(offset, "event", str(error)) from error
        for candidate in self.candidates:
            candidate.fold(offset, effects)
        return row

    def _add_arm(self, name: str) -> None:
        self._flush()
        self.arms.append(name)
        self._counts.append(0)
        self._totals.append(0.0)
        self._moments.copy_policy(self._absent)
        if self._anytime is not None:
            self._anytime.copy_policy(self._absent)

    def _row(self, offset: int, event: _Decided) -> _Row | None:
        """The row of a decision that counts, if its outcome comes. Raises `InvalidRow`."""
        if event.arm < 0:
            self.left_out["stops"] += 1
            return None
        if not self._is_counted(offset, event.at):
            return None
        if event.sticky:
            return self._sticky_row(offset, event)
        arms, played = len(event.weights), event.arm
        if arms > len(self.arms):
            raise InvalidRow(
                offset, "field weights", f"there are {arms}, and {len(self.arms)} arms; is this another bandit's decision?"
            )
        if played >= arms or not event.allowed or min(event.allowed) < 0 or max(event.allowed) >= arms:
            raise InvalidRow(
                offset, "field arm", f"arm {played}, or one of `allowed`, is unknown: the log has the arms 0 to {arms - 1}"
            )
        propensity = 0.0 if event.propensity is None else event.propensity
        if not 0.0 < propensity <= 1.0 + ROUNDING:
            raise InvalidRow(offset, "field propensity", f"{propensity:g} is out of range; {FIXES['propensity']}")
        if abs(event.weights[played] - propensity) > ROUNDING:
            raise InvalidRow(
                offset,
                "field propensity",
                f"it is {propensity:g} where `weights` give the arm {event.weights[played]:g}; both are the probability with "
                "which it was drawn",
            )
        row = _Row(offset, event, self._model(event.scores, arms), [])
        if event.session:
            self._firsts.keep(event.id, played, row, most=self._most_firsts)
        return row

    @property
    def _most_firsts(self) -> int:
        return SESSION_NUMBERS // ((len(self.candidates) + 2) * len(self.arms))

    def _sticky_row(self, offset: int, event: _Decided) -> _Row | None:
        """The row of a decision that got the arm of its session: its weight is that of the decision which has drawn the arm, for
        every policy. Not the model's of now: it has learned what that draw brought.
        """
        first = self._firsts.find(event.chosen_by, event.arm, most=self._most_firsts)
        if first is None:
            self.left_out[WITHOUT_FIRST] += 1
            return None
        return first._replace(offset=offset, is_sticky=True)

    def _model(self, scores: _Scores, arms: int) -> list[float]:
        """(K,) what the deciding policy expected of each arm; where it did not say, the mean of the rewards so far."""
        known = scores.weighed or scores.estimate
        if known is not None and None not in known:
            return known  # type: ignore[return-value]
        overall = sum(self._totals) / max(sum(self._counts), 1)
        means = [(total + overall) / (count + 1) for total, count in zip(self._totals, self._counts, strict=True)]
        if known is None:
            return means[:arms]
        return [mean if said is None else said for said, mean in zip(known, means, strict=False)]

    def _is_counted(self, offset: int, at: datetime) -> bool:
        return self.since is None or (offset >= self.since if isinstance(self.since, int) else at >= self.since)

    def _observed(self, offset: int, event: _Observed) -> None:
        row = self._open.pop(event.id, None)
        if row is None:
            return  # before `since`
        reward = self.amended.get(event.id, event.reward)
        if reward is None:
            self.left_out["without a reward"] += 1
        elif (event.propensity is None and not row.is_sticky) or event.arm != row.event.arm:
            self.left_out["overridden"] += 1
        else:
            self._take(offset, row, reward)

    def _expired(self, offset: int, decision: str) -> None:
        row, reward = self._open.pop(decision, None), self.amended.get(decision)
        if row is not None and reward is not None:
            self._take(offset, row, reward)  # its outcome came after all
        elif row is not None:
            self.left_out["expired"] += 1

    def _take(self, offset: int, row: _Row, reward: float) -> None:
        """Count a decision whose reward is known."""
        if self.reward_range is not None and not self.reward_range[0] <= reward <= self.reward_range[1]:
            raise InvalidRow(
                offset,
                "field reward",
                f"{reward:g} is outside of reward_range, {self.reward_range[0]:g} to {self.reward_range[1]:g}; name the lowest "
                "and the highest reward that is possible, or leave it out (then there is no anytime interval)",
            )
        self._counts[row.event.arm] += 1
        self._totals[row.event.arm] += reward
        self._waiting.append((row, reward))
        if len(self._waiting) >= min(BLOCK, max(BLOCK_NUMBERS // (self._absent * len(self.arms)), 1)):
            self._flush()

    def _flush(self) -> None:
        """Add the decisions that wait to the sums."""
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        arms, count = len(self.arms), len(rows)
        logged = _table([row.event.weights for row, _ in rows], arms)
        wrong = (logged < 0.0).any(1) | (np.abs(logged.sum(1) - 1.0) > ROUNDING)
        if wrong.any():
            row, _ = rows[int(wrong.argmax())]
            raise InvalidRow(row.offset, "field weights", "they are no distribution: none is below 0, and they add up to 1")
        block = Block(
            arms=np.array([row.event.arm for row, _ in rows], dtype=np.int64),
            rewards=np.array([reward for _, reward in rows]),
            logged=logged,
            model=_table([row.model for row, _ in rows], arms),
        )
        tables = [logged]
        tables += [_table([row.candidates[place] for row, _ in rows], arms) for place in range(len(self.candidates))]
        allowed = np.zeros((count, arms), dtype=bool)
        lengths = [len(row.event.allowed) for row, _ in rows]
        allowed[np.repeat(np.arange(count), lengths), np.concatenate([row.event.allowed for row, _ in rows])] = True
        lowest = allowed.argmax(1)[:, None]
        fixed = np.concatenate([lowest, np.where(allowed, np.arange(arms), lowest)], 1)
        terms = block.of_tables(np.stack(tables, 1)).beside(block.of_arms(fixed))
        sessions = {place: row.event.session for place, (row, _) in enumerate(rows) if row.event.session}
        self._moments.add(block, terms, sessions)
        if self._anytime is not None:
            self._anytime.add(terms.weights, block.rewards, sessions)
        self.decisions += count

    # -- results -----------------------------------------------------------------------------------------------------------

    def results(self, *, confidence: float = 0.95, estimator: str = "snips") -> Results:
        """After the last entry. Raises `InvalidRequest` where there is nothing to estimate from."""
        self._flush()
        left_out = {why: count for why, count in {**self.left_out, "open": len(self._open)}.items() if count}
        if self._own is not None and self.offset < self._own.until:
            raise InvalidRequest("policies", f"the log ends at offset {self.offset}, before it is frozen at {self._own.until}")
        for place, one in enumerate(self.candidates):
            if isinstance(one, Replayed):
                try:
                    check_arm(one.policy, arms=len(self.arms))
                except InvalidRequest as error:
                    raise InvalidRequest(f"policies.{place}.{error.field}", error.message) from None
        if not self.decisions:
            seen = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items())) or "it holds none"
            raise InvalidRequest("since", f"the log holds no decision with a reward that could be used ({seen})")
        found = self._found(confidence)
        diagnostics = Diagnostics.of(self._moments)

        def evaluated(column: int, policy: Mapping[str, Any], label: str, of: _Found = found) -> Evaluated:
            interval = of.intervals[estimator][column]
            verdict = judge(diagnostics[column], interval, without_weights=left_out.get(WITHOUT_WEIGHTS, 0))
            return Evaluated(
                policy=policy,
                label=label,
                value=float(of.values[estimator][column]),
                interval=interval,
                anytime_interval=None if of.anytime is None else of.anytime[column],
                support=diagnostics[column].support,
                effective_sample=diagnostics[column].effective_sample,
                mean_weight=diagnostics[column].mean_weight,
                max_weight=diagnostics[column].largest,
                p99_weight=diagnostics[column].percentile,
                verdict=verdict.kind,
                reason=verdict.reason,
                estimates={name: (float(of.values[name][column]), of.intervals[name][column]) for name in ESTIMATORS},
            )

        first = self._absent + 1
        fixed = [evaluated(first + arm, {"arm": name}, f"always {name}") for arm, name in enumerate(self.arms)]
        known = [arm for arm, one in enumerate(fixed) if one.verdict != "cannot_answer"]
        best = None
        if known:
            arm = max(known, key=lambda index: fixed[index].value)
            at_once = self._found(1.0 - (1.0 - confidence) / len(self.arms))  # Bonferroni: for all arms at once
            best = evaluated(first + arm, {"arm": self.arms[arm]}, f"best fixed arm: {self.arms[arm]}", at_once)
        return Results(
            bandit=self.created.bandit,
            decisions=self.decisions,
            left_out=left_out,
            estimator=estimator,
            confidence=confidence,
            behaviour=evaluated(0, {"logged": True}, "as logged"),
            policies=[evaluated(1 + place, one.spec, one.label) for place, one in enumerate(self.candidates)],
            fixed_arms=fixed,
            best_fixed_arm=best,
        )

    def _found(self, confidence: float) -> _Found:
        values, found = {}, {}
        for name, estimate in ESTIMATORS.items():
            means, errors = estimate(self._moments)
            values[name] = means
            pairs = zip(means.tolist(), errors.tolist(), strict=True)
            found[name] = [intervals.ordinary(Estimate(*pair), confidence=confidence) for pair in pairs]
        return _Found(values, found, None if self._anytime is None else self._anytime.intervals(confidence=confidence))


class _Found(NamedTuple):
    """By name of the estimator, and then by column."""

    values: dict[str, Floats]
    intervals: dict[str, list[Interval]]
    anytime: list[Interval] | None


def _table(rows: Sequence[Sequence[float]], arms: int) -> Floats:
    """(n, K): arms that came later had the weight 0."""
    if all(len(row) == arms for row in rows):
        return np.array(rows, dtype=np.float64)
    table = np.zeros((len(rows), arms))
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
