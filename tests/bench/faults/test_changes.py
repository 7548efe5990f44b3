"""The case that kills during promotions and amendments, small; and its judge, who must see what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.faults.cases import changes
from bench.faults.rows import Options, Row


def test_promotions_and_amendments_are_in_the_log_once_after_a_kill(tmp_path: Path) -> None:
    row = changes.sqlite(Options(seed=1, quick=True, folder=tmp_path, kills=1, clients=3))
    assert row.broken == []
    assert (row.lost, row.twice, row.digests) == (0, 0, "3 of 3")
    assert row.acknowledged is not None
    assert row.acknowledged > 20


EVENTS: tuple[dict[str, Any], ...] = (
    {"event": "created", "arms": [{"name": "small"}]},
    {"event": "shadow_created", "shadow": "linear", "policy": "lin-ucb"},
    {"event": "decided", "id": "d", "arm": 0},
    {"event": "observed", "id": "d", "arm": 0, "reward": 0.5},
    {"event": "amended", "id": "d", "n": 1, "amendment": "x", "reward": 0.25, "cost": 0.0, "before": {"reward": 0.5}},
    {"event": "shadow_promoted", "id": "p", "shadow": "linear", "shadow_offset": 2},
)
BANDIT: dict[str, Any] = {
    "policy": {"kind": "lin-ucb"},
    "arms": [{"name": "small", "outcomes": 1, "mean_reward": 0.25}],
}
SHADOWS = [{"name": "linear", "policy": {"kind": "pak-ucb"}, "offset": 6}]


def judged(*log: dict[str, Any], bandit: dict[str, Any] = BANDIT) -> Row:
    """Of a log, where what `EVENTS` say was acknowledged."""
    acknowledged, events = ([{"offset": offset, **event} for offset, event in enumerate(some, start=1)] for some in (EVENTS, log))
    row = Row(fault="f")
    changes.check_log(row, events, dict(changes.logged(acknowledged)))
    changes.check_learned(row, events, bandit, SHADOWS)
    return row


def test_a_log_that_holds_what_was_acknowledged_is_fine() -> None:
    row = judged(*EVENTS)
    assert row.broken == []
    assert (row.acknowledged, row.lost, row.twice) == (4, 0, 0)


@pytest.mark.parametrize(
    ("log", "counts", "word"),
    [
        (EVENTS[:-1], (1, 0), "lost: ('shadow_promoted', 'p')"),
        ((*EVENTS[:4], EVENTS[5]), (2, 0), "lost: ('amended', 'd/x')"),
        ((*EVENTS[:4], {**EVENTS[4], "reward": 0.75}, EVENTS[5]), (1, 0), "lost: ('amended', 'd/x')"),
        ((*EVENTS, {**EVENTS[4], "n": 2, "before": {"reward": 0.25}}), (1, 1), "twice: ('amended', 'd/x')"),
        ((*EVENTS, {**EVENTS[4], "amendment": "y", "n": 2}), (0, 0), "amendment 2 of d says 0.5 was known"),
        ((*EVENTS, {**EVENTS[5], "shadow_offset": 6}), (1, 1), "twice: ('shadow_promoted', 'p')"),
        ((*EVENTS, {**EVENTS[5], "id": "q"}), (0, 0), "promotion q of 2, and linear was of 6"),
        ((*EVENTS, {**EVENTS[5], "id": "q", "shadow_offset": 6}), (0, 0), "('shadow_promoted', 'q') is in the log, and was not"),
    ],
)
def test_a_log_that_lacks_or_repeats_something_is_not(
    log: tuple[dict[str, Any], ...], counts: tuple[int, int], word: str
) -> None:
    row = judged(*log)
    assert (row.lost, row.twice) == counts
    assert any(line.startswith(word) for line in row.broken), row.broken


def test_what_was_learned_twice_or_is_decided_by_another_policy_is_seen() -> None:
    twice = {**BANDIT, "arms": [{"name": "small", "outcomes": 1, "mean_reward": 0.0}]}
    assert [line.split(":")[0] for line in judged(*EVENTS, bandit=twice).broken] == ["arm small"]
    assert [line.split(" ")[0] for line in judged(*EVENTS, bandit={**BANDIT, "policy": {"kind": "pak-ucb"}}).broken] == ["shown"]
