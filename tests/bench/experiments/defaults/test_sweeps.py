"""Sweeps over settings: what counts as better, what is written, and that kept runs are not played again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from rich.progress import Progress

from bench.experiments.defaults.simulated_tasks import SWEEPS, fill
from bench.experiments.defaults.sweeps import Measure, Place, Results, Sweep, compare, label, table

LOSS = Measure(name="loss", better="low", digits=1, factor=10.0)


def sweep(played: list[tuple[float, int]]) -> Sweep:
    """Loss = eta + seed / 10: paired differences do not vary. Every run is noted in `played`."""

    def run(setting: Mapping[str, Any], seed: int) -> Mapping[str, float]:
        played.append((setting["eta"], seed))
        return {LOSS.name: setting["eta"] + seed / 10.0}

    place = Place(name="here", play=run, measures=(LOSS,), seeds=3, leaves_out=lambda changed: changed.get("eta") == 9.0)
    return Sweep(name="one", base={"eta": 1.0}, changes=[{"eta": 0.5}, {"eta": 2.0}, {"eta": 9.0}], places=(place,))


def filled(results: Results, *, seeds: int) -> list[tuple[float, int]]:
    played: list[tuple[float, int]] = []
    fill(sweep(played), results, seeds=seeds, keep=lambda: None, progress=Progress(disable=True))
    return played


def test_a_difference_counts_from_two_of_its_standard_errors_on() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3; the mean is beyond two of them, that of 0, 2, 4 is not."""
    seen = compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], better="high")
    assert (seen.mean, seen.gain) == (4.0, 2.0)
    assert seen.error == pytest.approx(2.0 / math.sqrt(3.0))
    assert seen.spread == pytest.approx(1.0 / math.sqrt(3.0))
    assert seen.verdict == "better"
    assert compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], better="low").verdict == "worse"
    assert compare([1.0, 4.0, 7.0], [1.0, 2.0, 3.0], better="high").verdict == "same"


def test_runs_that_only_one_of_both_has_are_left_out_of_the_comparison() -> None:
    assert compare([3.0, 5.0, 100.0], [1.0, 2.0], better="high").gain == 2.5


def test_kept_runs_are_not_played_again_and_more_seeds_are_added() -> None:
    results: Results = {}
    assert filled(results, seeds=2) == [(1.0, 0), (1.0, 1), (0.5, 0), (0.5, 1), (2.0, 0), (2.0, 1)]
    assert filled(results, seeds=2) == []
    assert filled(results, seeds=1000) == [(1.0, 2), (0.5, 2), (2.0, 2)]


def test_the_table_marks_better_and_worse_rows_and_leaves_blanks() -> None:
    results: Results = {}
    filled(results, seeds=3)
    rows = table(sweep([]), results).splitlines()
    assert rows[0] == "| setting | here: loss (-) |"
    assert rows[2] == "| base: `eta=1.0` | 11.0 ± 0.6 |"
    assert rows[3] == "| `eta=0.5` | **6.0 ± 0.6** |"
    assert rows[4] == "| `eta=2.0` | _21.0 ± 0.6_ |"
    assert rows[5] == "| `eta=9.0` |  |"


@pytest.mark.parametrize("name", SWEEPS)
def test_every_setting_of_a_sweep_is_another_one_and_changes_what_it_names(name: str) -> None:
    here = SWEEPS[name]()
    assert len({here.key(changed) for changed in here.settings()}) == len(here.settings())
    assert all(label(changed) for changed in here.changes)
