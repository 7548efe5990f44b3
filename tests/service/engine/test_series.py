"""The rings of buckets: what is kept, what goes, and that a snapshot holds it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from service.engine import series
from service.engine.events import Decided
from service.engine.ledger import Ledger
from service.engine.series import KEPT, OTHER, WIDTHS, ArmCounts, Bucket, Packed, Series, merge
from tests.service.drivers import created

START = datetime(2026, 1, 1, tzinfo=UTC)


def decided(at: datetime, arm: int = 0, **changes: Any) -> Decided:
    facts: dict[str, Any] = {
        "at": at,
        "id": "d",
        "arm": arm,
        "propensity": 1.0,
        "weights": [1.0, 0.0],
        "scores": {},
        "allowed": [0, 1],
        "price": 0.0,
        "features": b"",
        "episode": "d",
        "attempt": 1,
        "body": "",
    }
    return Decided(**facts | changes)


def buckets(found: Series, width: int) -> dict[int, Bucket]:
    """By number, of one width."""
    (ring,) = (ring for each, ring in zip(WIDTHS, found.pack().buckets, strict=True) if each == width)
    return {bucket.number: bucket for bucket in ring}


def test_the_last_buckets_of_each_width_are_kept_and_an_answer_uses_the_smallest_that_reach_back() -> None:
    found, seconds = Series(), [37.0 * k for k in range(4000)]
    for k, after in enumerate(seconds):
        found.add_decision(k + 2, decided(START + timedelta(seconds=after)))
    times = [START.timestamp() + after for after in seconds]
    for width in WIDTHS:
        numbers = sorted({int(at // width) for at in times})
        assert set(buckets(found, width)) == set({number % KEPT: number for number in numbers}.values())
        assert set(buckets(found, width)) >= {number for number in numbers if numbers[-1] - KEPT < number}
    end = times[-1]
    for back, width, rows in ((3600.0, 10, 400), (3700.0, 300, 400), (108_000.0, 300, 400), (109_000.0, 21_600, 400)):
        selection = found.select(end - back, end + 1, rows=rows)
        assert (selection.width, selection.merged) == (width, 1), back
        _, shown = merge(selection)
        begin = shown[0].at
        assert begin <= end - back < begin + width
        assert sum(row.arms[0].decisions for row in shown if row.arms) == sum(at >= begin for at in times)
    assert [found.select(end - 3600, end, rows=rows).rows for rows in (1, 2, 7, 361)] == [1, 2, 7, 361]


def test_a_clock_that_was_wrong_for_a_moment_costs_one_bucket_of_each_width() -> None:
    found = Series()
    for k in range(50):
        found.add_decision(k + 2, decided(START + timedelta(seconds=10 * k)))
    found.add_decision(52, decided(START + timedelta(days=9000)))
    for k in range(50, 100):
        found.add_decision(k + 3, decided(START + timedelta(seconds=10 * k)))
    _, rows = merge(found.select(START.timestamp(), START.timestamp() + 1000, rows=100))
    assert [row.arms[0].decisions for row in rows if row.arms].count(1) >= 99


def test_values_that_are_amended_are_those_of_the_outcome_they_belong_to() -> None:
    found = Series(("reward", "cost", "latency_s"))
    g, now, values = np.random.default_rng(3), START, {}
    for offset in range(2, 200):
        now += timedelta(seconds=float(g.exponential(5.0)))
        reward = float(g.standard_normal())
        found.add_outcome(offset, now, offset % 2, {"reward": reward, "unknown": 1.0}, is_error=False)
        values[offset] = (int(now.timestamp() // 10), offset % 2, reward)
    for offset in range(2, 200, 3):
        number, arm, old = values[offset]
        found.amend(offset, arm, {"reward": 0.5, "latency_s": 2.0}, {"reward": old, "latency_s": None})
        values[offset] = (number, arm, 0.5)
    for number, arm in {(number, arm) for number, arm, _ in values.values()}:
        counts = buckets(found, 10)[number].arms[arm]
        own = [(offset, reward) for offset, (n, a, reward) in values.items() if (n, a) == (number, arm)]
        assert set(counts.signals) <= {"reward", "latency_s"}
        sums = counts.signals["reward"]
        assert sums.count == counts.outcomes == len(own)
        assert (sums.total, sums.squares) == pytest.approx((sum(r for _, r in own), sum(r * r for _, r in own)), abs=1e-9)
        late = [offset for offset, _ in own if offset % 3 == 2]
        assert (counts.signals["latency_s"].count if late else 0) == len(late)
    assert list(found.rewards.values()) == [reward for *_, reward in values.values()]


def test_an_amendment_of_what_a_ring_no_longer_has_changes_the_wider_ones_alone() -> None:
    found = Series()
    for offset, after in ((2, 0.0), (3, 10.0), (4, 10.0 + 10 * KEPT)):  # the last takes the place of the second
        found.add_outcome(offset, START + timedelta(seconds=after), 0, {"reward": 1.0}, is_error=False)
    found.amend(3, 0, {"reward": 4.0}, {"reward": 1.0})
    totals = {width: sum(one.arms[0].signals["reward"].total for one in buckets(found, width).values()) for width in WIDTHS}
    assert totals == {10: 2.0, 300: 6.0, 21_600: 6.0}
    assert list(found.rewards.values()) == [1.0, 4.0, 1.0]


def test_the_newest_rewards_are_kept_and_an_old_one_that_is_amended_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "RECENT_OUTCOMES", 5)
    found = Series()
    for offset in range(2, 12):
        found.add_outcome(offset, START, 0, {"reward": float(offset)}, is_error=False)
    found.amend(2, 0, {"reward": 70.0}, {"reward": 2.0})
    found.amend(9, 0, {"reward": 90.0}, {"reward": 9.0})
    assert found.rewards == {7: 7.0, 8: 8.0, 9: 90.0, 10: 10.0, 11: 11.0}
    found.amend(3, 0, {"reward": 30.0}, {"reward": None})  # one that had none so far
    assert found.rewards == {8: 8.0, 9: 90.0, 10: 10.0, 11: 11.0, 3: 30.0}


def test_arms_beyond_the_first_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "APART", 2)
    found = Series()
    weights = [0.125, 0.25, 0.0, 0.5, 0.125]
    for offset, arm in enumerate((4, 0, 3, 4, 2), start=2):
        scores = {"estimate": [0.0, 1.0, 2.0, 3.0, None], "signals.reward": [1.0] * 5}
        found.add_decision(offset, decided(START, arm, weights=weights, scores=scores))
    (bucket,) = buckets(found, 10).values()
    assert {arm: counts.decisions for arm, counts in bucket.arms.items()} == {4: 2, 0: 1, OTHER: 2}
    assert bucket.latest is not None
    assert (bucket.latest.arms, bucket.latest.weights) == ([1, 3], [0.25, 0.5])
    assert bucket.latest.scores == {"estimate": [1.0, 3.0]}
    found.add_decision(7, decided(START, 4, weights=[0.0, 0.0, 0.0, 0.0, 1.0], sticky=True))
    assert buckets(found, 10).popitem()[1].latest == bucket.latest, "a sticky decision was not drawn"
    apart, rows = merge(found.select(START.timestamp(), START.timestamp() + 10, rows=5))
    assert apart == [0, 4]
    assert {arm: counts.decisions for arm, counts in rows[0].arms.items()} == {4: 3, 0: 1, OTHER: 2}


def test_rewards_beyond_all_measure_leave_numbers_that_a_snapshot_holds() -> None:
    found = Series()
    for offset, reward in enumerate((1e308, -1e308, 1.0), start=2):
        found.add_outcome(offset, START, 0, {"reward": reward, "cost": 1e308}, is_error=True)
    found.amend(3, 0, {"reward": 1e308}, {"reward": -1e308})
    packed = found.pack()
    assert msgspec.json.decode(msgspec.json.encode(packed), type=Packed) == packed
    assert math.isfinite(sum(found.rewards.values()))
    assert ArmCounts(outcomes=3, errors=3, signals=packed.buckets[0][0].arms[0].signals) == packed.buckets[0][0].arms[0]


def test_a_snapshot_from_before_there_were_series_is_read_and_they_begin_there() -> None:
    event = created()
    older = msgspec.json.decode(Ledger(event).pack())
    assert older.pop("series")
    resumed = Ledger.unpack(event, msgspec.json.encode(older))
    assert resumed.series.pack() == Ledger(event).series.pack()
    resumed.series.add_decision(9, decided(START))
    again = Ledger.unpack(event, resumed.pack())
    assert again.pack() == resumed.pack()
    for book in (resumed, again):
        book.series.add_decision(10, decided(START + timedelta(seconds=1)))
    assert again.pack() == resumed.pack()
