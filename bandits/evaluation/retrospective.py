"""What a bandit's own log says of its past: gain over the best fixed arm, cost of exploration, value of the prompt.

    w = evaluated[a] / logged[a]      q = what was expected of each arm      greedy = the allowed arm of the highest estimate

Estimates come with their influence: one term per decision, whose sum has the variance of the estimate. Differences of estimates
on the same decisions are differences of their terms. Terms of one cluster are added up first: the attempts of an episode are on
one prompt, and the decisions of a session have one arm.
Letters: n decisions with a reward of the arm that was drawn, K arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.evaluation import intervals
from bandits.evaluation.estimators import LoggedDecisions, snips
from bandits.evaluation.intervals import Interval
from bandits.evaluation.moments import Floats, Integers
from bandits.evaluation.verdict import LEAST_EFFECTIVE_SAMPLE, Diagnostics, Verdict, judge


class Influence(NamedTuple):
    """An estimate and its terms (n,), which have the mean 0."""

    value: float
    terms: Floats

    def __sub__(self, other: Influence) -> Influence:
        return Influence(self.value - other.value, self.terms - other.terms)


class Known(NamedTuple):
    """A number with its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class FixedArm:
    """What always playing one arm would have earned; where it was not allowed, the lowest one that was.

    value: self-normalized.  doubly_robust: the other estimate, by what was expected of the arms.
    """

    arm: int
    value: Known
    doubly_robust: Known
    cost_per_reward: Known | None
    support: float
    effective_sample: float
    verdict: Verdict

    @property
    def is_known(self) -> bool:
        """Whether the log can say it."""
        return self.verdict.kind != "cannot_answer"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What was earned per decision beyond the best fixed arm.

    best: of the arms that the log can speak of.  unknown: the other arms.  anytime: needs the range of rewards.
    """

    best: int
    value: Known
    doubly_robust: Known
    anytime: Interval | None
    unknown: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What was given up for learning, per decision.

    probability: of other arms than the greedy one.  expected: sum_a logged[a] (estimate[greedy] - estimate[a]), by the estimates
    at the decision.  earned: reward of always playing the greedy arm, less what was earned; by outcomes.
    """

    probability: float
    expected: Known
    earned: Known
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class GroupGain:
    """The gain over the best fixed arm (of all prompts) on one group of prompts. arm: drawn most often there."""

    group: int
    decisions: int
    reward: float
    gain: Known | None
    arm: int
    share: float


@dataclass(frozen=True, kw_only=True)
class PromptValue:
    """Whether the prompt says which arm to play, whatever the policy made of it.

    value: reward of playing in each group of prompts the arm that is best there, less that of the best fixed arm. Both are chosen
    on the other half of the decisions, so neither is judged by the outcomes that it was chosen by.
    chosen: share of the decisions in whose group an arm was known well enough to be chosen; elsewhere it is the best fixed one.
    groups: simultaneous intervals: all of them hold with the confidence.
    """

    value: Known
    verdict: Verdict
    chosen: float
    groups: tuple[GroupGain, ...]


@dataclass(frozen=True, kw_only=True)
class Retrospective:
    """Decisions with a reward of the arm that was drawn.

    arms: (n,).  rewards, costs: (n,).  logged, estimates, model: (n, K): the distribution; what the policy maximizes, and the
    reward, as expected at the decision.  allowed: (n, K).  clusters: (n,) numbers of sessions, and of episodes without one.
    sessions, groups: (n,) numbers; -1 = none.
    """

    arms: Integers
    rewards: Floats
    costs: Floats
    logged: Floats
    estimates: Floats
    model: Floats
    allowed: NDArray[np.bool_]
    clusters: Integers
    sessions: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    groups: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    confidence: float = 0.95

    # -- estimates -----------------------------------------------------------------------------------------------------------

    @cached_property
    def played(self) -> Influence:
        """The mean reward."""
        mean = float(self.rewards.mean())
        return Influence(mean, self.rewards - mean)

    def known(self, influence: Influence, *, claims: int = 1) -> Known:
        """With its interval. claims: how many of them shall hold at once (Bonferroni)."""
        sums = np.bincount(self.clusters, influence.terms)
        error = float(np.sqrt((sums**2).sum())) / len(self.arms)
        reach = NormalDist().inv_cdf(1.0 - (1.0 - self.confidence) / (2.0 * claims)) * error
        return Known(influence.value, Interval(influence.value - reach, influence.value + reach))

    def log_of(self, evaluated: Floats) -> LoggedDecisions:
        """These decisions with another policy."""
        return LoggedDecisions(
            arms=self.arms,
            rewards=self.rewards,
            logged=self.logged,
            evaluated=evaluated,
            model=self.model,
            clusters=self._sessions_by_row,
        )

    @cached_property
    def _sessions_by_row(self) -> dict[int, str]:
        return {int(row): str(self.sessions[row]) for row in np.flatnonzero(self.sessions >= 0)}

    def always(self, choices: Integers) -> Floats:
        """(n, K) plays these arms (n,)."""
        table = np.zeros(self.logged.shape)
        table[np.arange(len(table)), choices] = 1.0
        return table

    def fixed(self, arm: int) -> Integers:
        """(n,) this arm; where it was not allowed, the lowest one that was."""
        return np.where(self.allowed[:, arm], arm, self.allowed.argmax(1))

    def judge(self, log: LoggedDecisions) -> tuple[Diagnostics, Verdict]:
        """Whether the log can say what this policy would have earned, and by what."""
        (found,) = Diagnostics.of(log.moments())
        return found, judge(found, intervals.ordinary(snips(log), confidence=self.confidence))

    @cached_property
    def fixed_arms(self) -> list[FixedArm]:
        """By index."""
        found = []
        for arm in range(self.logged.shape[1]):
            log = self.log_of(self.always(self.fixed(arm)))
            diagnostics, verdict = self.judge(log)
            found.append(
                FixedArm(
                    arm=arm,
                    value=self.known(self_normalized(log)),
                    doubly_robust=self.known(doubly_robust(log)),
                    cost_per_reward=self.ratio(log.weights * self.costs, log.weights * self.rewards),
                    support=diagnostics.support,
                    effective_sample=diagnostics.effective_sample,
                    verdict=verdict,
                )
            )
        return found

    def best(self, among: Sequence[int]) -> FixedArm | None:
        """The best fixed arm of which the log can speak."""
        known = [self.fixed_arms[arm] for arm in among if self.fixed_arms[arm].is_known]
        return max(known, key=lambda fixed: fixed.value.value, default=None)

    def gain(self, among: Sequence[int], *, reward_range: tuple[float, float] | None = None) -> Gain | None:
        """None where the log can speak of none of these arms. reward_range: lowest and highest reward that is possible."""
        best = self.best(among)
        if best is None:
            return None
        log, anytime = self.log_of(self.always(self.fixed(best.arm))), None
        if reward_range is not None:  # each bound is wrong with half of the risk
            confidence = 0.5 + self.confidence / 2.0
            mine = intervals.anytime(self.log_of(self.logged), reward_range=reward_range, confidence=confidence)
            other = intervals.anytime(log, reward_range=reward_range, confidence=confidence)
            anytime = Interval(mine.low - other.high, mine.high - other.low)
        return Gain(
            best=best.arm,
            value=self.known(self.played - self_normalized(log)),
            doubly_robust=self.known(self.played - doubly_robust(log)),
            anytime=anytime,
            unknown=tuple(arm for arm in among if not self.fixed_arms[arm].is_known),
        )

    def exploration(self) -> Exploration:
        """The greedy arm of a tie is the lowest."""
        rows = np.arange(len(self.arms))
        greedy = np.where(self.allowed, self.estimates, -np.inf).argmax(1)
        regret = self.estimates[rows, greedy][:, None] - self.estimates
        lost = np.where(self.logged > 0.0, self.logged * regret, 0.0).sum(1)
        log = self.log_of(self.always(greedy))
        return Exploration(
            probability=float(1.0 - self.logged[rows, greedy].mean()),
            expected=self.known(Influence(float(lost.mean()), lost - lost.mean())),
            earned=self.known(self_normalized(log) - self.played),
            verdict=self.judge(log)[1],
        )

    # -- prompts -------------------------------------------------------------------------------------------------------------

    def prompt_value(self, among: Sequence[int]) -> PromptValue | None:
        """None without groups, and where the log can speak of none of these arms."""
        best, labels = self.best(among), np.unique(self.groups[self.groups >= 0])
        if best is None or len(labels) < 2:
            return None
        table, fixed, chosen = self._chosen_on_the_other_half(among, labels)
        log = self.log_of(self.always(table))
        value = self.known(self_normalized(log) - self_normalized(self.log_of(self.always(fixed))))
        groups = tuple(self._group(int(label), best.arm, claims=len(labels)) for label in labels)
        return PromptValue(value=value, verdict=self.judge(log)[1], chosen=chosen, groups=groups)

    def _chosen_on_the_other_half(self, among: Sequence[int], labels: Integers) -> tuple[Integers, Integers, float]:
        """(n,) arms, the best of the group and the best of all, and the share of decisions in whose group one was known."""
        table, fixed = np.zeros((2, len(self.arms)), dtype=np.int64)
        half, chosen = self.clusters % 2, 0
        choices = {arm: self.fixed(arm) for arm in among}
        for mine in (0, 1):
            others = half != mine
            overall = max(self._values_where(others, choices).items(), key=lambda item: item[1], default=(among[0], 0.0))[0]
            fixed[~others] = choices[overall][~others]
            table[~others] = fixed[~others]
            for label in labels:
                values = self._values_where(others & (self.groups == label), choices)
                place = ~others & (self.groups == label)
                if values:
                    chosen += int(place.sum())
                    table[place] = choices[max(values, key=lambda arm: values[arm])][place]
        return table, fixed, chosen / len(self.arms)

    def _values_where(self, where: NDArray[np.bool_], choices: Mapping[int, Integers]) -> dict[int, float]:
        """The mean reward of each arm on these decisions; of those with too few of them nothing is said."""
        found = {}
        for arm, chosen in choices.items():
            hits = where & (self.arms == chosen)
            weights = 1.0 / self.logged[hits, self.arms[hits]]
            if len(weights) and weights.sum() ** 2 / (weights**2).sum() >= LEAST_EFFECTIVE_SAMPLE:
                found[arm] = float((weights * self.rewards[hits]).sum() / weights.sum())
        return found

    def _group(self, label: int, best: int, *, claims: int) -> GroupGain:
        part = self.part(self.groups == label)
        counts = np.bincount(part.arms, minlength=part.logged.shape[1])
        log = part.log_of(part.always(part.fixed(best)))
        known = None
        if part.judge(log)[1].kind != "cannot_answer":
            known = part.known(part.played - self_normalized(log), claims=claims)
        arm = int(counts.argmax())
        return GroupGain(
            group=label,
            decisions=len(part.arms),
            reward=part.played.value,
            gain=known,
            arm=arm,
            share=float(counts[arm] / len(part.arms)),
        )

    def part(self, where: NDArray[np.bool_]) -> Retrospective:
        """Of these decisions alone."""
        return replace(
            self,
            arms=self.arms[where],
            rewards=self.rewards[where],
            costs=self.costs[where],
            logged=self.logged[where],
            estimates=self.estimates[where],
            model=self.model[where],
            allowed=self.allowed[where],
            clusters=np.unique(self.clusters[where], return_inverse=True)[1],
            sessions=self.sessions[where] if len(self.sessions) else self.sessions,
            groups=self.groups[where],
        )

    def ratio(self, above: Floats, below: Floats) -> Known | None:
        """Of two sums; None where `ratio_of_sums` has no interval."""
        return ratio_of_sums(above, below, clusters=self.clusters, confidence=self.confidence)


def self_normalized(log: LoggedDecisions) -> Influence:
    """The self-normalized estimate (SNIPS)."""
    total = float(log.weights.sum())
    if not total:
        return Influence(float("nan"), np.full(len(log.weights), np.nan))
    value = float((log.weights * log.rewards).sum()) / total
    return Influence(value, log.weights * (log.rewards - value) * (len(log.weights) / total))


def doubly_robust(log: LoggedDecisions) -> Influence:
    """The doubly robust estimate (DR), by the model of the log."""
    rows = np.arange(len(log.arms))
    terms = (log.evaluated * log.model).sum(1) + log.weights * (log.rewards - log.model[rows, log.arms])
    value = float(terms.mean())
    return Influence(value, terms - value)


def ratio_of_sums(above: Floats, below: Floats, *, clusters: Integers, confidence: float) -> Known | None:
    """The ratio of two sums with the interval of Fieller 1954: all ratios that the data do not refute.

    None where the lower sum may be 0 or negative: then every ratio is possible.
    """
    size = max(len(np.unique(clusters)), 1)
    x, y = np.bincount(clusters, above), np.bincount(clusters, below)
    top, bottom = float(x.sum()), float(y.sum())
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2.0) ** 2
    xx, xy, yy = (size * float(np.mean((u - u.mean()) * (v - v.mean()))) for u, v in ((x, x), (x, y), (y, y)))
    a, b, c = bottom**2 - z2 * yy, bottom * top - z2 * xy, top**2 - z2 * xx
    if bottom <= 0.0 or a <= 0.0:
        return None
    reach = float(np.sqrt(max(b * b - a * c, 0.0)))
    return Known(top / bottom, Interval((b - reach) / a, (b + reach) / a))


def means_before(offsets: Integers, closed: Integers, arms: Integers, rewards: Floats, *, count: int) -> Floats:
    """(n, K) the mean reward of each arm over the outcomes that came before each decision, with one outcome of the mean of all.

    offsets, closed: (n,) places in the log of decisions and of their outcomes, the latter in order.
    """
    ones = np.zeros((len(arms) + 1, count))
    ones[np.arange(1, len(arms) + 1), arms] = 1.0
    counts = ones.cumsum(0)
    sums = (ones * np.concatenate([[0.0], rewards])[:, None]).cumsum(0)
    before = np.searchsorted(closed, offsets)
    counts, sums = counts[before], sums[before]
    overall = sums.sum(1, keepdims=True) / np.maximum(counts.sum(1, keepdims=True), 1.0)
    means: Floats = (sums + overall) / (counts + 1.0)
    return means


def group_prompts(vectors: Floats, *, count: int, iterations: int = 25) -> tuple[Integers, Floats]:
    """(n,) the group of each vector, and (k, d) centers, k at most `count`: k-means from a k-means++ start with a seed of its own
    (Lloyd 1982; Arthur & Vassilvitskii 2007). Rewards play no part, so groups may be compared by them.
    """
    g = np.random.default_rng(0)
    centers = vectors[[int(g.integers(len(vectors)))]]
    while len(centers) < count:
        nearest = _square_distances(vectors, centers).min(1)
        if not nearest.sum() > 1e-9 * len(vectors):
            break  # as many different prompts as there are
        centers = np.vstack([centers, vectors[g.choice(len(vectors), p=nearest / nearest.sum())]])
    labels = _square_distances(vectors, centers).argmin(1)
    for _ in range(iterations):
        sizes = np.bincount(labels, minlength=len(centers))
        sums = np.zeros(centers.shape)
        np.add.at(sums, labels, vectors)
        centers = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centers)
        moved = _square_distances(vectors, centers).argmin(1)
        if (moved == labels).all():
            break
        labels = moved
    return labels, centers


def nearest_group(vectors: Floats, centers: Floats) -> Integers:
    """(n,) the group of each vector."""
    nearest: Integers = _square_distances(vectors, centers).argmin(1)
    return nearest


def _square_distances(vectors: Floats, centers: Floats) -> Floats:
    """(n, k)."""
    distances: Floats = (vectors**2).sum(1)[:, None] - 2.0 * vectors @ centers.T + (centers**2).sum(1)
    return np.maximum(distances, 0.0)
