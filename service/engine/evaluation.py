"""Evaluation of policies along a log: what each would have chosen at every decision, and what came of the decisions.

events ──> Ledger ──> context of each decision ──> weights of every candidate ──> LoggedDecisions ──> estimate, interval, verdict

A candidate that learns sees what was logged and nothing else: at each decision it has learned the outcomes before it, of
arms that the logged policy chose, and what was imported. A fixed arm is evaluated as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from bandits import state as states
from bandits.errors import InvalidHyperparameter
from bandits.evaluation import intervals
from bandits.evaluation.estimators import ESTIMATORS, Floats, LoggedDecisions
from bandits.evaluation.intervals import LARGEST_WEIGHT, Interval
from bandits.evaluation.verdict import Verdict, judge
from bandits.objective import REWARD
from bandits.registry import POLICIES, build
from bandits.types import Policy, State
from service.engine import events
from service.engine.events import AnyEvent, Cancelled, Created, Decided, Expired, Imported, Observed
from service.engine.ledger import Effect, Ledger, View
from service.engine.projection import apply_effect


class Row(NamedTuple):
    """A decision and what the candidates would have done. logged, estimates: (K,).  candidates: (C, K).  allowed: (K,)."""

    arm: int
    logged: Floats
    allowed: np.ndarray
    estimates: Floats
    candidates: Floats


@dataclass
class Candidate:
    """A policy that is replayed along the log."""

    label: str
    policy: Policy
    state: State
    is_prepared: bool = False

    @staticmethod
    def of(created: Created, spec: dict[str, Any]) -> Candidate:
        """spec: as the `policy` of a bandit. Raises `InvalidHyperparameter`."""
        given = dict(spec)
        kind = given.pop("kind", "")
        signals = created.learned if kind in POLICIES and POLICIES[kind].weighs_signals else (REWARD,)
        policy = build(kind, given, dim=created.dim, output_dim=created.output_dim, seed=created.seed, signals=signals)
        if "output" in policy.needs and not created.output_dim:
            raise InvalidHyperparameter("kind", f"{kind} learns from outputs, and this log has none")
        if policy.contextual and not created.dim:
            raise InvalidHyperparameter("kind", f"{kind} decides by the prompt, and this log has none")
        label = kind if not given else f"{kind} {json.dumps(given)}"
        return Candidate(label, policy, states.start(policy, arms=len(created.arms)))

    def learn(self, effects: Iterable[Effect]) -> None:
        """What follows from an event."""
        for effect in effects:
            self.state, self.is_prepared = apply_effect(self.policy, self.state, effect, is_live=False), False

    def weights(self, ledger: Ledger, event: Decided) -> Floats:
        """(K,) its distribution at this decision."""
        if not self.is_prepared:
            self.state, self.is_prepared = self.policy.prepare(self.state), True
        allowed = {index: event.price if index == event.arm else None for index in event.allowed}
        features = events.vector_tensor(event.features)
        context = ledger.context(View.of(ledger.arms, {}), features=features, allowed=allowed, episode=event.episode)
        found: Floats = self.policy.weights(self.state, [context]).values[0].numpy()
        return found


@dataclass(frozen=True)
class Evaluated:
    """What is known of one candidate."""

    label: str
    estimates: dict[str, float]
    value: float
    interval: Interval
    anytime: Interval | None
    support: float
    effective_sample: float
    mean_weight: float
    largest_weight: float
    verdict: Verdict


@dataclass
class Evaluation:
    """Reads a log once. specs: candidates as the `policy` of a bandit; every fixed arm is one, too.

    since_offset, since_time: earlier decisions are learned by the candidates, and not counted.

    left_out: why decisions are not used, and how many.
    """

    created: Created
    specs: Sequence[dict[str, Any]] = ()
    since_offset: int = 0
    since_time: datetime | None = None
    rows: list[Row] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.created)
        self.policy = build(
            self.created.policy,
            self.created.hyperparameters,
            dim=self.created.dim,
            output_dim=self.created.output_dim,
            seed=self.created.seed,
            signals=self.created.learned,
        )
        self.candidates = [Candidate.of(self.created, spec) for spec in self.specs]
        self._open: dict[str, Row] = {}
        self._sums = np.zeros((0, 2))  # per arm: outcomes, and the sum of their rewards

    def add(self, offset: int, event: AnyEvent) -> None:
        """The next entry of the log."""
        if isinstance(event, Decided):
            if event.arm < 0:
                self.left_out["stops"] += 1
            elif offset >= self.since_offset and (self.since_time is None or event.at >= self.since_time):
                self._open[event.id] = self._row(event)
        effects = self.ledger.apply(offset, event, self.policy)
        match event:
            case Observed():
                self._observed(event)
            case Expired(id=decision):
                self._open.pop(decision, None)
                self.left_out["expired"] += 1
            case Cancelled(id=decision):
                self._open.pop(decision, None)
                self.left_out["cancelled"] += 1
            case Imported():
                self.left_out["imported"] += 1
        for candidate in self.candidates:
            candidate.learn(effects)

    def _row(self, event: Decided) -> Row:
        arms = len(event.weights)
        allowed = np.zeros(arms, dtype=bool)
        allowed[event.allowed] = True
        name = f"signals.{REWARD}" if f"signals.{REWARD}" in event.scores else "estimate"
        known = np.array(event.scores.get(name) or [None] * arms, dtype=np.float64)  # None becomes NaN
        weights = [candidate.weights(self.ledger, event) for candidate in self.candidates]
        return Row(event.arm, np.array(event.weights), allowed, self._expected(known), np.array(weights).reshape(-1, arms))

    def _expected(self, known: Floats) -> Floats:
        """(K,) what the deciding policy expected of each arm; where it did not say, the mean of the rewards so far."""
        if len(self._sums) < len(known):
            self._sums = np.concatenate([self._sums, np.zeros((len(known) - len(self._sums), 2))])
        counts, sums = self._sums[: len(known)].T
        overall = sums.sum() / max(counts.sum(), 1.0)
        return np.where(np.isnan(known), (sums + overall) / (counts + 1.0), known)

    def _observed(self, event: Observed) -> None:
        row = self._open.pop(event.id, None)
        if row is None:
            return  # before `since`
        if event.reward is None:
            self.left_out["without a reward"] += 1
        elif event.propensity is None or event.arm != row.arm:
            self.left_out["overridden"] += 1
        else:
            self.rows.append(row)
            self.rewards.append(event.reward)
            self._sums[row.arm] += (1.0, event.reward)

    # -- results -----------------------------------------------------------------------------------------------------------

    @property
    def arms(self) -> int:
        """How many arms the log has."""
        return len(self.ledger.arms)

    def results(
        self, *, confidence: float = 0.95, reward_range: tuple[float, float] | None = None, estimator: str = "snips"
    ) -> list[Evaluated]:
        """The logged policy itself first, then the candidates, then every fixed arm. Raises ValueError without any outcome."""
        if not self.rows:
            raise ValueError("the log holds no decision with a reward that could be used")
        self.left_out["open"] = len(self._open)
        logged = self._table([row.logged for row in self.rows])
        tables = {"as logged": logged}
        for index, candidate in enumerate(self.candidates):
            tables[candidate.label] = self._table([row.candidates[index] for row in self.rows])
        allowed = self._table([row.allowed for row in self.rows]) > 0.0
        for index, arm in enumerate(self.ledger.arms):
            tables[f"always {arm.name}"] = _fixed(allowed, index)
        model = self._table([row.estimates for row in self.rows])
        return [
            self._evaluate(label, logged, table, model, confidence=confidence, reward_range=reward_range, estimator=estimator)
            for label, table in tables.items()
        ]

    def _table(self, rows: Sequence[np.ndarray]) -> Floats:
        """(n, K): arms that came later had the weight 0."""
        table = np.zeros((len(rows), self.arms))
        for place, row in enumerate(rows):
            table[place, : len(row)] = row
        return table

    def _evaluate(
        self,
        label: str,
        logged: Floats,
        evaluated: Floats,
        model: Floats,
        *,
        confidence: float,
        reward_range: tuple[float, float] | None,
        estimator: str,
    ) -> Evaluated:
        arms = np.array([row.arm for row in self.rows])
        log = LoggedDecisions(arms=arms, rewards=np.array(self.rewards), logged=logged, evaluated=evaluated, model=model)
        found = {name: estimate(log) for name, estimate in ESTIMATORS.items()}
        interval = intervals.ordinary(found[estimator], confidence=confidence)
        anytime = None
        if reward_range is not None:
            anytime = intervals.anytime(log, reward_range=reward_range, confidence=confidence)
        return Evaluated(
            label,
            {name: one.value for name, one in found.items()},
            found[estimator].value,
            interval,
            anytime,
            log.supported_above(1.0 / LARGEST_WEIGHT),
            log.effective_sample,
            float(log.weights.mean()),
            float(log.weights.max()),
            judge(log, interval),
        )


def _fixed(allowed: np.ndarray, arm: int) -> Floats:
    """(n, K) always this arm; where it was not allowed, the lowest one that was."""
    table = np.zeros(allowed.shape)
    table[np.arange(len(allowed)), np.where(allowed[:, arm], arm, allowed.argmax(1))] = 1.0
    return table
