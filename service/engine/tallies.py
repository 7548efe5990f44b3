"""Sums over the log by which the health of a bandit is judged (health.py): gain, calibration, signals, missing outcomes.

    value of arm a   V = sum w r / sum w            w = 1 / propensity, capped at MAX_WEIGHT, over the outcomes of a
    its variance     sum w^2 (r - V)^2 / (sum w)^2  (delta method)
    gain             R - V of the best arm, R the mean reward of what was played

A decision that got the arm of its session has the propensity of the one that has drawn it, and those of one session depend on
each other: it is their sum that has a square, as in bandits/evaluation/moments.py. So the products are summed over sessions.

They are functions of the log, folded with it and kept in its snapshots, and no digest covers them. Where a snapshot is older than
they are, they begin at its offset. Memory grows with arms, not with outcomes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

MAX_WEIGHT = 1000.0
"""Of one outcome, so that no estimate hangs on a single rare draw; what is cut off makes that arm look rarer than it was."""
RECENT_OUTCOMES = 1000
"""Outcomes over which a `RecentMean` forgets."""
LARGEST = 1e100
"""Rewards beyond it are taken for it: the square of a larger one is no number that a snapshot could hold."""
LEAST_STEPS, FEW_STEPS, FEW, FAR = 20, 4, 0.01, 10
"""Distances between rewards below which nothing is said of a typical one; how many, and which share of them, are few (one reward
makes two); and how many powers of two beyond the typical one is far.
"""
LEAST_EFFECTIVE = 50.0
"""Outcomes, in effect, below which nothing is said of an arm's value."""
DEVIATIONS, LEAST_SUPPORT = 3.0, 0.99
"""An arm was drawn widely enough where its mean weight is 1 within so many standard errors, or within 1 - LEAST_SUPPORT."""
Z = 1.96
"""Of a 95 % interval."""
KEPT_CLUSTERS = 10_000
"""Sessions whose sums are kept, those that an outcome came of last; a decision of another one begins a cluster."""


class RecentMean(msgspec.Struct, array_like=True):
    """Mean and variance of the last outcomes: of all of them up to `RECENT_OUTCOMES`, exponentially forgetting from then on."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        if not -LARGEST <= value <= LARGEST:
            value = min(max(value, -LARGEST), LARGEST)
        self.count += 1
        share = 1.0 / (self.count if self.count < RECENT_OUTCOMES else RECENT_OUTCOMES)
        off = value - self.mean
        self.mean += share * off
        self.variance = (1.0 - share) * (self.variance + share * off * off)

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.variance)


class Steps(msgspec.Struct, array_like=True):
    """How far rewards that come one after the other are apart, counted by powers of two: it shows one reward of another size,
    whatever their zero is.

    newer, older: exponent -> count, alike rewards left out. With a half life, what is older than two of them is dropped.
    seen: rewards since the last drop.
    """

    newer: dict[int, int] = {}
    older: dict[int, int] = {}
    last: float | None = None
    seen: int = 0

    def add(self, reward: float, *, half_life: int | None = None) -> None:
        """One more reward."""
        if self.last is not None and reward != self.last:
            _, exponent = math.frexp(min(abs(reward - self.last), LARGEST))
            self.newer[exponent] = self.newer.get(exponent, 0) + 1
        self.last = reward
        self.seen += 1
        if half_life is not None and self.seen >= half_life:
            self.older, self.newer, self.seen = self.newer, {}, 0

    def outlying(self) -> tuple[float, float] | None:
        """The typical (median) and the largest distance, each about, where the largest is 1,000 times as far or more and only a
        few are; None otherwise, and before the first `LEAST_STEPS`. (Where many are, they are what there is to learn.)
        """
        counts = Counter(self.newer) + Counter(self.older)
        passed = 0
        for exponent in sorted(counts):
            passed += counts[exponent]
            if 2 * passed >= counts.total() >= LEAST_STEPS:
                largest = max(counts)
                large = sum(count for one, count in counts.items() if one > exponent + FAR)
                is_rare = 0 < large <= FEW_STEPS + FEW * counts.total()
                return (math.ldexp(0.75, exponent), math.ldexp(0.75, largest)) if is_rare else None
        return None


class ArmTally(msgspec.Struct, array_like=True):
    """The sums of one arm. Rewards are measured from `Tallies.origin`.

    since: outcomes with a propensity when it came.  w ... wwrr: sums, w = weight and r = reward, so `wwr` is the sum of w^2 r.
    wn, wr_n, w_r: sums over pairs of decisions i, j of one session, i of this arm: of w_i, w_i r_i and w_i r_j. (Those of
    w_i r_i r_j are in `wrr`, and where j is of this arm too, of w_i w_j, w_i w_j r_j and w_i r_i w_j r_j in `ww` to `wwrr`.)
    since_pairs: `Tallies.pairs` when it came.
    capped: outcomes whose weight was capped.  outcomes: reported ones.
    carried, totals: per learned signal, the outcomes that carried it and the sum of what was learned.
    failing: of its outcomes, 1 = with an error.
    """

    since: int = 0
    w: float = 0.0
    wr: float = 0.0
    wrr: float = 0.0
    ww: float = 0.0
    wwr: float = 0.0
    wwrr: float = 0.0
    capped: int = 0
    outcomes: int = 0
    carried: list[int] = []
    totals: list[float] = []
    failing: RecentMean = msgspec.field(default_factory=RecentMean)
    wn: float = 0.0
    wr_n: float = 0.0
    w_r: float = 0.0
    since_pairs: int = 0

    @property
    def effective(self) -> float:
        """The effective number of outcomes."""
        return self.w * self.w / self.ww if self.ww else 0.0

    @property
    def value(self) -> float:
        """The estimated mean reward of this arm alone, from the origin."""
        return self.wr / self.w

    @property
    def variance(self) -> float:
        """Of `value`."""
        value = self.value
        return max(self.wwrr - 2.0 * value * self.wwr + value * value * self.ww, 0.0) / (self.w * self.w)

    def has_support(self, rounds: int, pairs: int = 0) -> bool:
        """Whether the draws of this arm stand for all prompts. rounds, pairs: outcomes of all arms since it came, and pairs of
        one session.
        """
        mean = self.w / rounds
        squares = self.ww - 2.0 * mean * (self.w + self.wn) + mean * mean * (rounds + pairs)
        error = math.sqrt(max(squares, 0.0)) / rounds
        return abs(mean - 1.0) <= max(DEVIATIONS * error, 1.0 - LEAST_SUPPORT)


class Cluster(msgspec.Struct, array_like=True):
    """The outcomes of one session. count, total: how many with a propensity, and the sum of their rewards.
    arms: by index, the sums of w and w r; it is one arm unless the session began again.
    """

    count: int = 0
    total: float = 0.0
    arms: dict[int, tuple[float, float]] = {}

    def add(self, arm: int, w: float, r: float, sign: int = 1) -> None:
        """One more outcome, or with the sign -1 one less."""
        known_w, known_wr = self.arms.get(arm, (0.0, 0.0))
        self.count += sign
        self.total += sign * r
        self.arms = {**self.arms, arm: (known_w + sign * w, known_wr + sign * w * r)}


class Gain(NamedTuple):
    """What was earned per decision beyond the best fixed arm.

    interval: 95 %, delta method.  best: index of the arm.  skipped: active arms of which too little is known to compare them.
    deviation: of the rewards.
    """

    value: float
    interval: tuple[float, float]
    best: int
    skipped: tuple[int, ...]
    deviation: float


class Tallies(msgspec.Struct):
    """The sums of one bandit.

    arms: by index.  origin: the first reward; others are measured from it, so that large ones do not cancel.
    counted, total, squares: outcomes with a propensity, and the sums of their rewards.
    pairs, r_pairs, rr_pairs: sums over pairs of decisions i, j of one session: of 1, r_i and r_i r_j.  clusters: by session.
    missing: of decisions that closed, 1 = expired.  errors: reward - estimate at the decision.
    lowest, highest: per learned signal.  steps: of rewards.
    """

    arms: list[ArmTally]
    lowest: list[float | None]
    highest: list[float | None]
    origin: float | None = None
    counted: int = 0
    total: float = 0.0
    squares: float = 0.0
    missing: RecentMean = msgspec.field(default_factory=RecentMean)
    errors: RecentMean = msgspec.field(default_factory=RecentMean)
    last_decision: datetime | None = None
    last_outcome: datetime | None = None
    steps: Steps = msgspec.field(default_factory=Steps)
    pairs: int = 0
    r_pairs: float = 0.0
    rr_pairs: float = 0.0
    clusters: dict[str, Cluster] = {}

    @staticmethod
    def start(*, arms: int, signals: int) -> Tallies:
        """Before the first outcome."""
        tallies = Tallies([], [None] * signals, [None] * signals)
        for _ in range(arms):
            tallies.add_arm()
        return tallies

    def add_arm(self) -> None:
        """A new arm, at the next index."""
        signals = len(self.lowest)
        tally = ArmTally(since=self.counted, since_pairs=self.pairs, carried=[0] * signals, totals=[0.0] * signals)
        self.arms.append(tally)

    def add_reward(
        self, arm: int, reward: float, propensity: float | None, *, half_life: int | None = None, session: str = ""
    ) -> None:
        """One more reward. Where the arm was not drawn with a known propensity, it says nothing of another rule.
        half_life: of the policy.
        """
        self.steps.add(reward, half_life=half_life)
        if propensity is None or not propensity > 0.0:
            return
        if self.origin is None:
            self.origin = reward
        r = min(max(reward - self.origin, -LARGEST), LARGEST)
        tally, w = self.arms[arm], 1.0 / propensity
        if w > MAX_WEIGHT:
            w = MAX_WEIGHT
            tally.capped += 1
        wr, ww = w * r, w * w
        tally.w += w
        tally.wr += wr
        tally.wrr += wr * r
        tally.ww += ww
        tally.wwr += w * wr
        tally.wwrr += wr * wr
        self.counted += 1
        self.total += r
        self.squares += r * r
        if session:
            cluster = self.clusters.pop(session, None) or Cluster()
            self.clusters[session] = cluster  # now the last that an outcome came of
            self._pair(cluster, arm, w, r)
            cluster.add(arm, w, r)
            if len(self.clusters) > KEPT_CLUSTERS:
                del self.clusters[next(iter(self.clusters))]

    def _pair(self, others: Cluster, arm: int, w: float, r: float, sign: int = 1) -> None:
        """The products of an outcome with the others of its session, each pair both ways."""
        tally, (other_w, other_wr) = self.arms[arm], others.arms.get(arm, (0.0, 0.0))
        self.pairs += sign * 2 * others.count
        self.r_pairs += sign * (others.count * r + others.total)
        self.rr_pairs += sign * 2.0 * others.total * r
        tally.ww += sign * 2.0 * other_w * w
        tally.wwr += sign * (other_w * w * r + other_wr * w)
        tally.wwrr += sign * 2.0 * other_wr * w * r
        tally.wrr += sign * w * r * others.total
        tally.wn += sign * w * others.count
        tally.wr_n += sign * w * r * others.count
        tally.w_r += sign * w * others.total
        for index, (other_w, other_wr) in others.arms.items():
            other = self.arms[index]
            other.wrr += sign * other_wr * r
            other.wn += sign * other_w
            other.wr_n += sign * other_wr
            other.w_r += sign * other_w * r

    def amend_reward(self, arm: int, old: float, new: float, propensity: float | None, *, session: str = "") -> None:
        """One of the rewards of `add_reward` was corrected."""
        if propensity is None or not propensity > 0.0 or self.origin is None:
            return
        before, after = (min(max(reward - self.origin, -LARGEST), LARGEST) for reward in (old, new))
        tally, w = self.arms[arm], min(1.0 / propensity, MAX_WEIGHT)
        by, squared = after - before, after * after - before * before
        tally.wr += w * by
        tally.wrr += w * squared
        tally.wwr += w * w * by
        tally.wwrr += w * w * squared
        self.total += by
        self.squares += squared
        cluster = self.clusters.get(session) if session else None
        if cluster is not None and arm in cluster.arms:
            cluster.add(arm, w, before, -1)
            self._pair(cluster, arm, w, before, -1)
            self._pair(cluster, arm, w, after)
            cluster.add(arm, w, after)

    def add_outcome(self, arm: int, values: Sequence[float]) -> None:
        """One more reported outcome. values: of the learned signals, NaN = missing."""
        tally = self.arms[arm]
        tally.outcomes += 1
        for k, value in enumerate(values):
            if not math.isnan(value):
                tally.carried[k] += 1
                tally.totals[k] += value
                self._widen(k, value)

    def amend_outcome(self, arm: int, old: Sequence[float], new: Sequence[float]) -> None:
        """New values of the learned signals, NaN = unchanged, in place of the old ones, NaN = missing. Extremes stay extremes."""
        tally = self.arms[arm]
        for k, (before, value) in enumerate(zip(old, new, strict=True)):
            if math.isnan(value):
                continue
            tally.carried[k] += math.isnan(before)
            tally.totals[k] += value - (0.0 if math.isnan(before) else before)
            self._widen(k, value)

    def _widen(self, k: int, value: float) -> None:
        low, high = self.lowest[k], self.highest[k]
        if low is None or value < low:
            self.lowest[k] = value
        if high is None or value > high:
            self.highest[k] = value

    def gain(self, active: Sequence[int], *, is_contextual: bool) -> Gain | None:
        """None where too little is known of every arm.

        active: indices of the arms to compare with.  is_contextual: whether an arm may have been drawn for some prompts only, so
        that its rewards stand for the others if it was drawn there too.
        """
        if self.counted < LEAST_EFFECTIVE:
            return None
        known = [index for index in active if self._is_known(index, is_contextual=is_contextual)]
        if not known:
            return None
        best = max(known, key=lambda index: self.arms[index].value)
        arm, n = self.arms[best], self.counted
        mean = self.total / n
        variance = max(self.squares / n - mean * mean, 0.0)
        within = self.rr_pairs - 2.0 * mean * self.r_pairs + mean * mean * self.pairs
        spread = max(variance + within / n, 0.0) / n
        # what was played includes the draws of that arm: sum w_i (r_i - V) (r_j - R) / (n sum w), j = i or of one session with it
        pairs = mean * arm.wr_n + arm.value * arm.w_r - mean * arm.value * arm.wn
        shared = (arm.wrr - arm.value * arm.wr - pairs) / (n * arm.w)
        value = mean - arm.value
        half = Z * math.sqrt(max(spread + arm.variance - 2.0 * shared, 0.0))
        skipped = tuple(index for index in active if index not in known)
        return Gain(value, (value - half, value + half), best, skipped, math.sqrt(variance))

    def _is_known(self, index: int, *, is_contextual: bool) -> bool:
        tally = self.arms[index]
        if tally.effective < LEAST_EFFECTIVE:
            return False
        return not is_contextual or tally.has_support(self.counted - tally.since, self.pairs - tally.since_pairs)
