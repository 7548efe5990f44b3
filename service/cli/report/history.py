"""The decisions of one log as arrays, taken up one at a time. A decision takes some (3 K + 40) * 8 bytes, K arms."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from bandits.evaluation.moments import Floats
from bandits.evaluation.retrospective import Retrospective, group_prompts, means_before, nearest_group
from service.cli.log_reader import Decision

KEPT_DIMENSIONS = 32
"""Longer vectors of prompts are projected at random onto so many dimensions, which keeps the distances between them nearly."""
LEARNED_FROM = 20_000
"""Prompts that groups are made from, evenly over the log; the others join the nearest."""
LEAST_GROUP = 100
"""Decisions per group that there must be, in the mean."""


class _Table:
    """(n, K) numbers, row by row; arms that came later are NaN before."""

    def __init__(self) -> None:
        self.numbers, self.lengths = array("d"), array("l")

    def add(self, row: list[float]) -> None:
        self.numbers.extend(row)
        self.lengths.append(len(row))

    def array(self, arms: int) -> Floats:
        lengths = np.array(self.lengths)
        table = np.full((len(lengths), arms), np.nan)
        table[np.arange(arms) < lengths[:, None]] = np.array(self.numbers)
        return table


@dataclass
class ArmCounts:
    """What happened to one arm. decisions: that drew it.  outcomes, rewards, costs: of calls of it, overridden ones too."""

    decisions: int = 0
    expired: int = 0
    overridden: int = 0
    outcomes: int = 0
    rewarded: int = 0
    reward: float = 0.0
    cost: float = 0.0


@dataclass
class History:
    """The decisions so far, in the order in which they closed.

    counts: decisions by state, and of the observed ones `without_reward`, `overridden`, `sticky` and of these `without_first`.
    played: (m,) numbers of outcomes with a reward, those for other arms than the drawn one included.
    """

    arms: dict[int, ArmCounts] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""
    last: str = ""

    def __post_init__(self) -> None:
        self._clusters: dict[tuple[bool, str], int] = {}  # of sessions, and of episodes without one
        self._logged, self._allowed, self._estimates, self._rewards = _Table(), _Table(), _Table(), _Table()
        self._drawn, self._offsets, self._closed, self._cluster = array("l"), array("l"), array("l"), array("l")
        self._is_session = array("b")
        self._reward, self._cost = array("d"), array("d")
        self._vectors, self._has_vector, self._projection = array("f"), array("b"), np.empty((0, 0), dtype=np.float32)
        self._ids: list[str] = []
        self.played, self.paid, self.earned, self.paid_cluster = array("l"), array("d"), array("d"), array("l")

    def add(self, decision: Decision) -> None:
        """One more decision that closed, or is still open at the end."""
        at = decision.at.isoformat()
        self.first, self.last = min(self.first or at, at), max(self.last, at)
        self.counts["decisions"] += 1
        self.counts[decision.state] += 1
        if decision.state == "stop":
            return
        drawn = self._of(decision.arm)
        drawn.decisions += 1
        if decision.state == "expired":
            drawn.expired += 1
        if not decision.has_outcome or decision.played is None:
            return
        called = self._of(decision.played)
        called.outcomes += 1
        called.cost += decision.cost or 0.0
        self.counts["overridden"] += decision.is_overridden
        drawn_by = decision.drawn
        self.counts["sticky"] += decision.propensity is None
        self.counts["without_first"] += drawn_by is None and not decision.is_overridden
        drawn.overridden += decision.is_overridden
        if decision.reward is None:
            self.counts["without_reward"] += 1
            return
        called.rewarded += 1
        called.reward += decision.reward
        name = (True, decision.session) if decision.session else (False, decision.episode)
        cluster = self._clusters.setdefault(name, len(self._clusters))
        self.played.append(decision.played)
        self.paid.append(decision.cost or 0.0)
        self.earned.append(decision.reward)
        self.paid_cluster.append(cluster)
        if not decision.is_overridden and drawn_by is not None:
            self._add_drawn(decision, drawn_by, decision.reward, decision.cost or 0.0, cluster)

    def _of(self, arm: int) -> ArmCounts:
        return self.arms.setdefault(arm, ArmCounts())

    def _add_drawn(self, decision: Decision, drawn_by: Decision, reward: float, cost: float, cluster: int) -> None:
        """drawn_by: the decision whose weights and scores count, the first of the session where there is one."""
        arms = len(drawn_by.weights)
        scores = drawn_by.scores
        estimates = scores.get("utility") or scores.get("estimate") or (None,) * arms
        rewards = scores.get("signals.reward") or scores.get("estimate") or (None,) * arms
        self._logged.add(list(drawn_by.weights))
        allowed = [0.0] * arms
        for arm in drawn_by.allowed:
            allowed[arm] = 1.0
        self._allowed.add(allowed)
        self._estimates.add([np.nan if value is None else value for value in estimates])
        self._rewards.add([np.nan if value is None else value for value in rewards])
        self._drawn.append(decision.arm)
        self._offsets.append(drawn_by.offset)
        self._closed.append(decision.closed_offset or decision.offset)
        self._cluster.append(cluster)
        self._is_session.append(bool(decision.session))
        self._reward.append(reward)
        self._cost.append(cost)
        self._ids.append(decision.id)
        vector = np.frombuffer(decision.features, dtype="<f4")
        self._has_vector.append(len(vector) > 0)
        if len(vector):
            self._vectors.extend(self._projected(vector))

    def _projected(self, vector: np.ndarray) -> np.ndarray:
        if len(vector) <= KEPT_DIMENSIONS:
            return vector
        if not self._projection.size:
            g = np.random.default_rng(0)
            scale = np.sqrt(KEPT_DIMENSIONS)
            self._projection = (g.standard_normal((len(vector), KEPT_DIMENSIONS)) / scale).astype(np.float32)
        projected: np.ndarray = vector @ self._projection
        return projected

    def retrospective(self, arms: int, *, groups: int, confidence: float) -> tuple[Retrospective | None, dict[int, list[str]]]:
        """The decisions with a reward of the arm that was drawn, None without any; of each group of prompts the ids of those
        nearest to its center. groups: at most.
        """
        if not self._drawn:
            return None, {}
        drawn, reward = np.array(self._drawn), np.array(self._reward)
        before = means_before(np.array(self._offsets), np.array(self._closed), drawn, reward, count=arms)
        estimates, rewards = self._estimates.array(arms), self._rewards.array(arms)
        labels, examples = self._groups(groups)
        return (
            Retrospective(
                arms=drawn,
                rewards=reward,
                costs=np.array(self._cost),
                logged=np.nan_to_num(self._logged.array(arms)),
                estimates=np.where(np.isnan(estimates), before, estimates),
                model=np.where(np.isnan(rewards), before, rewards),
                allowed=self._allowed.array(arms) > 0.0,
                clusters=np.unique(np.array(self._cluster), return_inverse=True)[1],
                sessions=np.where(np.array(self._is_session, dtype=bool), np.array(self._cluster), -1),
                groups=labels,
                confidence=confidence,
            ),
            examples,
        )

    def _groups(self, most: int) -> tuple[np.ndarray, dict[int, list[str]]]:
        """(n,) groups, and the ids nearest to the center of each."""
        has_vector = np.array(self._has_vector, dtype=bool)
        labels, n = np.full(len(has_vector), -1), int(has_vector.sum())
        count = min(most, n // LEAST_GROUP)
        if count < 2:
            return labels, {}
        vectors = np.array(self._vectors, dtype=np.float32).reshape(n, -1)
        step = max(n // LEARNED_FROM, 1)
        _, centers = group_prompts(vectors[::step].astype(np.float64), count=count)
        labels[has_vector] = np.concatenate(
            [nearest_group(vectors[i : i + LEARNED_FROM].astype(np.float64), centers) for i in range(0, n, LEARNED_FROM)]
        )
        places, examples = np.flatnonzero(has_vector), {}
        for group, center in enumerate(centers):
            mine = np.flatnonzero(labels[has_vector] == group)
            nearest = mine[((vectors[mine] - center) ** 2).sum(1).argsort(kind="stable")[:3]]
            examples[group] = [self._ids[place] for place in places[nearest]]
        return labels, examples
