"""What a deployment needs, from costs that are small enough to compute by hand."""

from __future__ import annotations

import pytest

from bench.performance.capacity import BUSY, ROOM_BYTES, Costs, amount, hot_rate, sized

COSTS = Costs(
    request_us=500.0,
    fold_us=100.0,
    redis_us=50.0,
    bandit_bytes=10e6,
    snapshot_bytes=5e6,
    redis_bytes=1_000.0,
    archive_bytes=400.0,
)


def test_requests_by_cores_of_which_half_is_planned_for() -> None:
    assert BUSY == 0.5
    size = sized(COSTS, per_s=4_000, bandits=1_000)
    # 4,000 x 500 us = 2 cores, half used: 4 replicas; 1,000 x 10 MB on 4; Redis: 4,000 x 50 us = .2 of a core
    assert size == (1, 2.0, 4, 2.5e9, 1, 10e9, 345.6e9, 138.24e9)


def test_memory_decides_where_there_are_many_bandits() -> None:
    assert ROOM_BYTES == 8e9
    size = sized(COSTS, per_s=100, bandits=100_000)  # 1 TB
    assert (size.cores, size.replicas, size.bandit_bytes) == (0.05, 125, 8e9)


def test_a_hot_bandit_is_folded_by_every_replica_that_shares_it() -> None:
    # a core that is half used: 1,000 requests at 500 us; two: 500 us + 100 us for each request; four: 500 + 300
    assert [hot_rate(COSTS, slots) for slots in (1, 2, 4)] == pytest.approx([1_000, 1_666.67, 2_500], abs=0.01)
    assert sized(COSTS, per_s=1_000, bandits=1).slots == 1
    assert sized(COSTS, per_s=1_001, bandits=1).slots == 2
    assert sized(COSTS, per_s=2_500, bandits=1)[:3] == (4, 2.0, 4)
    assert sized(COSTS, per_s=20_000, bandits=10).slots == 3  # two carry 1,667
    with pytest.raises(ValueError, match="5,000 requests a second for one bandit"):
        sized(COSTS, per_s=5_000, bandits=1)  # every replica would do nothing but fold


def test_more_redis_servers_where_one_core_is_too_little() -> None:
    assert sized(COSTS, per_s=10_000, bandits=100).redis == 1
    assert sized(COSTS, per_s=10_001, bandits=100).redis == 2


def test_bytes_are_shown_to_two_digits_or_more() -> None:
    assert [amount(count) for count in (0, 988, 1_940, 10_600, 5.3e6, 2.5e9, 1e12)] == [
        *("0 B", "988 B", "1.9 kB", "11 kB", "5.3 MB", "2.5 GB", "1.0 TB"),
    ]
