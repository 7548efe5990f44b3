from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bench.experiments import auto, budget, resumed


def run(mean: float, *, late: float = 0.7, picks: str = "a") -> auto.Run:
    return auto.Run(mean=mean, late=late, fixed=0.7, fixed_late=0.7, picks=picks, seconds=1.0)


def test_runs_of_an_earlier_call_are_found_again(tmp_path: Path) -> None:
    job = auto.Job("humaneval", "auto", 508)
    line = json.dumps({"job": job._asdict(), "run": run(0.5)._asdict()})
    (tmp_path / "runs.jsonl").write_text(line + "\n")
    assert resumed.kept(tmp_path / "runs.jsonl", auto.Job, auto.Run) == {job: run(0.5)}
    assert resumed.kept(tmp_path / "none.jsonl", auto.Job, auto.Run) == {}


def test_a_difference_is_paired_by_order() -> None:
    runs = {}
    for n, level in ((508, 0.5), (509, 0.8)):
        runs[auto.Job("humaneval", "auto", n)] = run(level + 0.01 + 0.001 * n)
        runs[auto.Job("humaneval", "greedy", n)] = run(level + 0.001 * n - 0.002 * (n - 508))
    assert "| `greedy` |  | +0.0110 ± 0.0010 (+11.0, 2) |" in auto.shown(runs, locks=0)


def test_a_lock_is_a_second_half_far_below_the_best_fixed_arm() -> None:
    lates = (0.66, 0.68, 0.71)
    runs = {auto.Job("mmlu_pro", "auto", n, rounds=auto.LOCK_ROUNDS): run(0.6, late=late) for n, late in enumerate(lates)}
    assert "`auto`: 1 of 3 orders" in auto.shown(runs, locks=100)


def test_a_new_price_has_acted_when_the_share_has_gone_most_of_its_way() -> None:
    weights = np.concatenate([np.full(1000, 0.5), np.full(30, 0.4), np.full(970, 0.1)]).tolist()
    runs = {budget.Job(n, budget.WEIGHT, 0.0, 10.0): budget.Run(0.4, [0.1, 0.1, 0.1], 0.0, weights) for n in budget.ORDERS}
    assert "0.500 -> 0.100, after 28 decisions, 8 orders" in budget.price_change(runs, 0.0, 10.0)
