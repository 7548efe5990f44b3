"""What happened over time, per arm: counts, and sums of signals, in buckets of three widths that the log fills as it is folded.

    decided, observed, expired ──> the current bucket of each width        amended ──> the buckets in which its outcome is
    select ──> buckets of one width ──merge──> Row ...

Time is that of the log. Of each width at least the newest `KEPT` buckets are kept, in a ring: one goes when a later one needs its
place. Like the tallies they are functions of the log, kept in its snapshots, and no digest covers them; where a snapshot is older
than they are, they begin at its offset. Imported outcomes do not count.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from bandits.objective import COST, REWARD
from service.engine.events import AnyDecision
from service.engine.tallies import LARGEST, RECENT_OUTCOMES

WIDTHS = (10, 300, 21_600)
"""Seconds of a bucket: an hour, 30 hours and 90 days are kept. Each is a multiple of the one before."""
KEPT = 361
"""Buckets of each width: 360 that are over, and the one of now."""
APART = 64
"""Arms of a bucket that are counted apart, the first ones in the order of the log; the others are counted together."""
OTHER = -1
"""The index under which they are."""


TRAFFIC, TRAFFIC_S = 24, WIDTHS[1]
"""Buckets that a list of bandits shows, and their seconds."""


class Sums(msgspec.Struct, array_like=True):
    """Count, sum and sum of squares of one signal."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0


class ArmCounts(msgspec.Struct, array_like=True):
    """The counts of one arm in one bucket. decisions: those that chose it.  outcomes: reported for it, those with an error too.
    expired: decisions that were closed without an outcome.  signals: by name, of what came with both.
    """

    decisions: int = 0
    outcomes: int = 0
    expired: int = 0
    errors: int = 0
    signals: dict[str, Sums] = {}

    def sums(self, name: str) -> Sums:
        """Of a signal."""
        return self.signals.setdefault(name, Sums())

    def merge(self, other: ArmCounts) -> None:
        """Count what another bucket has."""
        self.decisions += other.decisions
        self.outcomes += other.outcomes
        self.expired += other.expired
        self.errors += other.errors
        for name, sums in other.signals.items():
            own = self.sums(name)
            own.count += sums.count
            own.total += sums.total
            own.squares += sums.squares


class Latest(msgspec.Struct, array_like=True):
    """Weights and scores of the last decision that was drawn in a bucket, as `Decided` has them; arms: indices of their entries,
    empty = all arms.
    """

    weights: list[float]
    scores: dict[str, list[float | None]]
    arms: list[int] = []

    @property
    def indices(self) -> Sequence[int]:
        """Of the arms, in the order of the entries."""
        return self.arms or range(len(self.weights))

    def shortened(self) -> Latest:
        """As it is kept: without estimates of single signals; of more than `APART` arms, those with the largest weights."""
        scores = {name: values for name, values in self.scores.items() if "." not in name}
        if len(self.weights) <= APART:
            return Latest(self.weights, scores, self.arms)
        largest = heapq.nsmallest(APART, range(len(self.weights)), key=lambda arm: (-self.weights[arm], arm))
        arms = sorted(largest)
        picked = {name: [values[arm] for arm in arms] for name, values in scores.items()}
        return Latest([self.weights[arm] for arm in arms], picked, arms)


class Bucket(msgspec.Struct, array_like=True):
    """Number n is the time from n to n + 1 widths after 1970. first, last: offsets of its events."""

    number: int
    first: int
    last: int
    arms: dict[int, ArmCounts] = {}
    latest: Latest | None = None

    def arm(self, index: int) -> ArmCounts:
        """The counts of an arm, or those of the others."""
        counts = self.arms.get(index)
        if counts is None:
            key = index if len(self.arms) - (OTHER in self.arms) < APART else OTHER
            counts = self.arms.setdefault(key, ArmCounts())
        return counts


class Cell:
    """The counts of one arm in one bucket of each width."""

    __slots__ = ("_sums", "counts")

    def __init__(self, counts: list[ArmCounts]) -> None:
        self.counts = counts
        self._sums: dict[str, list[Sums]] = {}

    def add(self, name: str, value: float) -> None:
        """A signal of one more outcome."""
        several = self._sums.get(name)
        if several is None:
            several = self._sums[name] = [counts.sums(name) for counts in self.counts]
        square = value * value
        for sums in several:
            sums.count += 1
            sums.total += value
            sums.squares += square


class Packed(msgspec.Struct):
    """What a snapshot holds. buckets: per width.  rewards, costs: as of `Series`."""

    buckets: list[list[Bucket]]
    rewards: dict[int, float]
    costs: dict[int, float]


class Selection(NamedTuple):
    """Buckets of one width, to be merged into `rows` rows of `merged` of them each. start: number of the first, in rows.
    buckets: msgpack.
    """

    width: int
    merged: int
    start: int
    rows: int
    buckets: bytes

    @property
    def width_s(self) -> int:
        """Seconds of a row."""
        return self.width * self.merged


class Row(NamedTuple):
    """What happened from `at` on (seconds since 1970), by the index of the arm, `OTHER` for those that are not apart."""

    at: int
    arms: dict[int, ArmCounts]
    latest: Latest | None


_buckets = msgspec.msgpack.Decoder(list[Bucket])


def _keep(kept: dict[int, float], offset: int, value: float) -> None:
    kept[offset] = value
    if len(kept) > RECENT_OUTCOMES:
        del kept[next(iter(kept))]


class Series:
    """The buckets of one bandit. signals: names of those that are summed, beside reward and cost.

    rewards, costs: of the newest `RECENT_OUTCOMES` outcomes that had one, by the offset that closed the decision, as they are by
    now.
    """

    def __init__(self, signals: Iterable[str] = ()) -> None:
        self._names = frozenset((REWARD, COST, *signals))
        self._rings: list[dict[int, Bucket]] = [{} for _ in WIDTHS]
        self.rewards: dict[int, float] = {}
        self.costs: dict[int, float] = {}
        self._current: list[Bucket] = []  # one per width, for times from _begin to _end
        self._begin, self._end = math.inf, -math.inf
        self._cells: dict[int, Cell] = {}  # by arm, in the current buckets
        self._last = 0  # offset of the newest event in them
        self._drawn: AnyDecision | None = None  # the last one that was drawn in them, since `_settle`

    # -- folding -------------------------------------------------------------------------------------------------------------

    def add_decision(self, offset: int, event: AnyDecision) -> None:
        """A decision for an arm."""
        for counts in self._cell(event.at, offset, event.arm).counts:
            counts.decisions += 1
        if event.sticky is not True:
            self._drawn = event

    def add_outcome(self, offset: int, at: datetime, arm: int, values: Mapping[str, float], *, is_error: bool) -> None:
        """A reported outcome. values: of the signals that it carried, with the cost that was counted."""
        cell = self._cell(at, offset, arm)
        for counts in cell.counts:
            counts.outcomes += 1
            if is_error:
                counts.errors += 1
        self._add(cell, offset, values)

    def add_expired(self, offset: int, at: datetime, arm: int, values: Mapping[str, float]) -> None:
        """A decision without an outcome. values: the default reward, and what came before it."""
        cell = self._cell(at, offset, arm)
        for counts in cell.counts:
            counts.expired += 1
        self._add(cell, offset, values)

    def _add(self, cell: Cell, offset: int, values: Mapping[str, float]) -> None:
        for name, value in self._clipped(values).items():
            cell.add(name, value)
            if name == REWARD:
                _keep(self.rewards, offset, value)
            elif name == COST:
                _keep(self.costs, offset, value)

    def amend(self, outcome: int, arm: int, values: Mapping[str, float], old: Mapping[str, float | None]) -> None:
        """New values of the outcome at an offset. old: what was counted, None = nothing. Buckets are found by their offsets: only
        the events themselves have the time, and where the times of the log go back, a bucket beside it may be meant.
        """
        self._settle()
        added = self._clipped(values)
        known = self._clipped({name: value for name, value in old.items() if value is not None})
        for ring in self._rings:
            found = [bucket for bucket in ring.values() if bucket.first <= outcome <= bucket.last]
            if found:
                counts = max(found, key=lambda bucket: bucket.first).arm(arm)
                for name, value in added.items():
                    sums, before = counts.sums(name), known.get(name)
                    sums.count += before is None
                    sums.total += value - (before or 0.0)
                    sums.squares += value * value - (before or 0.0) * (before or 0.0)
        self._remember(outcome, added, known)

    def _clipped(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those of the signals that are summed. Squares of larger ones are no numbers that a snapshot could hold."""
        names = self._names
        return {
            name: float(value) if -LARGEST <= value <= LARGEST else float(min(max(value, -LARGEST), LARGEST))
            for name, value in values.items()
            if name in names
        }

    def _remember(self, offset: int, values: Mapping[str, float], old: Collection[str]) -> None:
        for name, kept in ((REWARD, self.rewards), (COST, self.costs)):
            if name in values and (offset in kept or name not in old):  # else it is older than all that are kept
                _keep(kept, offset, values[name])

    def _cell(self, at: datetime, offset: int, arm: int) -> Cell:
        """The counts of an arm in the buckets of a time."""
        seconds = at.timestamp()
        if not self._begin <= seconds < self._end:
            self._turn_to(seconds, offset)
        self._last = offset
        cell = self._cells.get(arm)
        if cell is None:
            cell = self._cells[arm] = Cell([bucket.arm(arm) for bucket in self._current])
        return cell

    def _settle(self) -> None:
        """Write into the current buckets what is the same for all of them, and changes with every event."""
        latest = None if self._drawn is None else Latest(self._drawn.weights, self._drawn.scores)
        for bucket in self._current:
            bucket.last = self._last
            bucket.latest = latest or bucket.latest
        self._drawn = None

    def _turn_to(self, seconds: float, offset: int) -> None:
        self._settle()
        for bucket in self._current:
            bucket.latest = bucket.latest and bucket.latest.shortened()
        self._cells = {}
        self._current = []
        for width, ring in zip(WIDTHS, self._rings, strict=True):
            number = int(seconds // width)
            found = ring.get(number % KEPT)
            if found is None or found.number != number:
                found = ring[number % KEPT] = Bucket(number, offset, offset)
            self._current.append(found)
        self._begin = self._current[0].number * WIDTHS[0]
        self._end = self._begin + WIDTHS[0]

    # -- asking --------------------------------------------------------------------------------------------------------------

    def select(self, since: float, until: float, *, rows: int) -> Selection:
        """The buckets from `since` to `until` (seconds since 1970), of the smallest width of which all are kept, for at most
        `rows` rows; `since` is moved to the first bucket that is kept of the largest width.
        """
        self._settle()
        width, ring, kept_since = WIDTHS[0], self._rings[0], -math.inf
        for width, ring in zip(WIDTHS, self._rings, strict=True):
            newest = max(ring.values(), key=lambda bucket: bucket.last, default=None)
            kept_since = -math.inf if newest is None else width * (newest.number + 1 - KEPT)
            if kept_since <= since:
                break
        since = max(since, kept_since)
        if since >= until:
            return Selection(width, 1, int(since // width), 0, msgspec.msgpack.encode([]))
        merged = math.ceil((until - since) / (width * rows))
        while (count := math.ceil(until / (width * merged)) - int(since // (width * merged))) > rows:
            merged += 1
        start = int(since // (width * merged))
        picked = [bucket for bucket in ring.values() if 0 <= bucket.number // merged - start < count]
        return Selection(width, merged, start, count, msgspec.msgpack.encode(picked))

    def traffic(self, now: float) -> list[dict[int, int]]:
        """Decisions per arm index in each of the last `TRAFFIC` buckets, the one of now last."""
        ring, last, found = self._rings[WIDTHS.index(TRAFFIC_S)], int(now // TRAFFIC_S), []
        for number in range(last + 1 - TRAFFIC, last + 1):
            bucket = ring.get(number % KEPT)
            arms = bucket.arms if bucket is not None and bucket.number == number else {}
            found.append({index: counts.decisions for index, counts in arms.items() if counts.decisions})
        return found

    def mean(self, name: str, since: float, until: float) -> float | None:
        """The mean of a signal over the buckets of six hours that begin between these times; None where it has not come."""
        count, total = 0, 0.0
        for bucket in self._rings[-1].values():
            if since <= bucket.number * WIDTHS[-1] < until:
                for counts in bucket.arms.values():
                    if name in counts.signals:
                        count += counts.signals[name].count
                        total += counts.signals[name].total
        return total / count if count else None

    # -- bytes ---------------------------------------------------------------------------------------------------------------

    def pack(self) -> Packed:
        """For a snapshot."""
        self._settle()
        for bucket in self._current:
            bucket.latest = bucket.latest and bucket.latest.shortened()
        return Packed([list(ring.values()) for ring in self._rings], self.rewards, self.costs)

    @staticmethod
    def unpack(packed: Packed | None, signals: Iterable[str]) -> Series:
        """What `pack` wrote; None = nothing."""
        series = Series(signals)
        if packed is not None:
            series._rings = [{bucket.number % KEPT: bucket for bucket in ring} for ring in packed.buckets]
            series.rewards, series.costs = packed.rewards, packed.costs
        return series


def merge(selection: Selection) -> tuple[list[int], list[Row]]:
    """The arms that are apart, and the rows of a selection, one after the other without a gap."""
    rows = [Row((selection.start + k) * selection.width_s, {}, None) for k in range(selection.rows)]
    buckets = sorted(_buckets.decode(selection.buckets), key=lambda bucket: bucket.number)
    apart = _largest(buckets)
    for bucket in buckets:
        place = bucket.number // selection.merged - selection.start
        row = rows[place]
        for index, counts in bucket.arms.items():
            key = index if index in apart else OTHER
            if key in row.arms:
                row.arms[key].merge(counts)
            else:
                row.arms[key] = counts
        if bucket.latest is not None:
            rows[place] = row._replace(latest=bucket.latest.shortened())
    return sorted(apart), rows


def _largest(buckets: Sequence[Bucket]) -> set[int]:
    """The arms that are apart in all rows: those with most decisions and outcomes, then those that were only weighed."""
    totals: dict[int, int] = {}
    for bucket in buckets:
        for index, counts in bucket.arms.items():
            if index != OTHER:
                totals[index] = totals.get(index, 0) + counts.decisions + counts.outcomes + counts.expired
        for index in () if bucket.latest is None else bucket.latest.indices:
            totals.setdefault(index, 0)
    return set(heapq.nsmallest(APART, totals, key=lambda index: (-totals[index], index)))
