"""The bench that kills the service, in small; in large it is `python -m bench.faults --kills 50`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.faults.clients import Record, outcome_body
from bench.faults.run import Plan, run
from bench.faults.verdict import Verdict


def test_three_kills_lose_nothing_and_learn_nothing_twice(tmp_path: Path) -> None:
    result = run(Plan(kills=3, seed=11, clients=6, pause_s=(0.2, 0.6), early=0.0, snapshot_every=60), tmp_path)
    assert result.broken == []
    assert result.kills == 3
    assert len(result.record.decided) > 50
    assert len(result.record.observed) > 20


# -- the judge, who must see what is wrong ------------------------------------------------------------------------------------

KEY = ("chance", "d1")
CREATED: dict[str, Any] = {"event": "created", "arms": [{"name": "a"}, {"name": "b"}]}
DECIDED: dict[str, Any] = {"event": "decided", "id": "d1", "arm": 1}
OBSERVED: dict[str, Any] = {"event": "observed", "id": "d1", "arm": 1, "reward": outcome_body(KEY)["reward"]}
ACKNOWLEDGED = Record(decided={KEY: (2, "b")}, observed={KEY: 3})


def judged(*log: dict[str, Any], record: Record = ACKNOWLEDGED, arms: tuple[str, ...] = ()) -> Verdict:
    verdict = Verdict()
    events = [{"offset": offset, **event} for offset, event in enumerate(log, start=1)]
    verdict.check_log("chance", events, record, list(arms))
    return verdict


def test_a_log_that_holds_what_was_acknowledged_is_fine() -> None:
    assert judged(CREATED, DECIDED, OBSERVED).broken == []
    assert judged(CREATED, DECIDED, OBSERVED, {**DECIDED, "id": "d2"}).broken == [], (
        "what was never acknowledged may be there too"
    )


@pytest.mark.parametrize(
    ("log", "record", "word"),
    [
        ([CREATED], Record(decided={KEY: (2, "b")}), "lost: decision"),
        ([CREATED, {**DECIDED, "arm": 0}], Record(decided={KEY: (2, "b")}), "lost: decision"),
        ([CREATED, {**DECIDED, "id": "d0"}, DECIDED], Record(decided={KEY: (2, "b")}), "lost: decision"),
        ([CREATED, DECIDED], ACKNOWLEDGED, "lost: outcome"),
        ([CREATED, DECIDED, {**OBSERVED, "reward": 7.0}], ACKNOWLEDGED, "lost: outcome"),
        ([CREATED, DECIDED, {"event": "expired", "id": "d1", "reward": None}], ACKNOWLEDGED, "lost: outcome"),
        ([CREATED, DECIDED, OBSERVED], Record(cancelled={KEY}), "lost: cancellation"),
        ([CREATED, DECIDED, OBSERVED, OBSERVED], ACKNOWLEDGED, "twice: chance: observed d1 at 3 and 4"),
        ([CREATED, DECIDED, OBSERVED, {"event": "cancelled", "id": "d1"}], ACKNOWLEDGED, "twice: chance: cancelled d1"),
        ([CREATED, DECIDED, OBSERVED, DECIDED], ACKNOWLEDGED, "twice: chance: decided d1"),
    ],
)
def test_a_log_that_lacks_or_repeats_something_is_not(log: list[dict[str, Any]], record: Record, word: str) -> None:
    broken = judged(*log, record=record).broken
    assert any(line.startswith(word) for line in broken), broken


def test_a_missing_arm_and_a_gap_are_seen() -> None:
    assert judged(CREATED, record=Record(), arms=("new",)).lost == ["chance: arm new"]
    verdict = Verdict()
    verdict.check_log("chance", [{"offset": 1, **CREATED}, {"offset": 3, **DECIDED}], Record(), [])
    assert verdict.lost == ["chance: the offsets have a gap"]


def test_what_is_learned_twice_is_seen() -> None:
    events = [{"offset": i, **event} for i, event in enumerate((CREATED, DECIDED, OBSERVED), start=1)]
    arms = [{"name": "a", "outcomes": 0, "mean_reward": None}, {"name": "b", "outcomes": 1, "mean_reward": OBSERVED["reward"]}]
    for outcomes, mean, is_fine in (
        (1, OBSERVED["reward"], True),
        (2, OBSERVED["reward"], False),
        (1, 5.0, False),
        (1, None, False),
    ):
        verdict = Verdict()
        verdict.check_learned("chance", events, {"arms": [arms[0], {**arms[1], "outcomes": outcomes, "mean_reward": mean}]})
        assert (verdict.twice == []) == is_fine


def test_an_outcome_without_a_reward_is_learned_and_has_no_part_in_the_mean() -> None:
    closed: list[dict[str, Any]] = [
        {"event": "observed", "id": "d2", "arm": 1},
        {"event": "expired", "id": "d3", "reward": None},
        {"event": "expired", "id": "d4", "reward": 0.0},
    ]
    decided = [{**DECIDED, "id": event["id"]} for event in closed]
    events = [{"offset": i, **event} for i, event in enumerate((CREATED, DECIDED, OBSERVED, *decided, *closed), start=1)]
    mean = OBSERVED["reward"] / 2
    shown = {"arms": [{"name": "a", "outcomes": 0, "mean_reward": None}, {"name": "b", "outcomes": 3, "mean_reward": mean}]}
    verdict = Verdict()
    verdict.check_learned("chance", events, shown)
    assert verdict.twice == []


def test_two_clients_with_different_answers_are_seen() -> None:
    record = Record(decided={KEY: (2, "b")}, observed={KEY: 3})
    record.add(Record(decided={KEY: (2, "b")}, observed={KEY: 4}))
    assert len(record.broken) == 1
    record.add(Record(decided={KEY: (2, "a")}))
    assert len(record.broken) == 2


def test_digests_that_differ_are_seen() -> None:
    verdict = Verdict()
    verdict.check_digests({"live": {"a": (7, "x")}, "replayed": {"a": (7, "x")}, "restarted": {"a": (7, "y")}, "other": {}})
    assert len(verdict.differing) == 2
