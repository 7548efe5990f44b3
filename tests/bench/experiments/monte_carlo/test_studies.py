from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench.experiments.monte_carlo import report, result_cache
from bench.experiments.monte_carlo.studies import (
    AtLeast,
    AtMost,
    Band,
    Claim,
    Contender,
    Each,
    Golden,
    Proportion,
    Run,
    Study,
    judge,
)


def runs(*values: float) -> list[Run]:
    return [Run(values={"m": value}) for value in values]


def play(seed: int, each: Each) -> Run:
    for t in range(3):
        each(t)
    return Run(values={"m": 0.25 + seed}, series={"picks": np.array([seed, 1, 2], dtype=np.uint8)})


def study(**changes: object) -> Study:
    made = Study(
        name="X1 y",
        title="a world",
        contenders={"fast": Contender(play=play, rounds=3), "slow": Contender(play=play, rounds=3, slow=True, at_most=1)},
        claims=[Claim("fast", "m", Golden(0.25)), Claim("slow", "m", AtMost(0.5))],
        measures=("m",),
        seeds=4,
        quick=2,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# -- verdicts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "ok"),
    [
        ((1.0, 1.2, 1.4, 1.6), True),  # mean 1.3; error of the difference sqrt(.1^2 + (.2582/2)^2) = .163, times 4 = .653
        ((1.9, 2.1, 2.3, 2.5), False),  # the same spread around 2.2
    ],
)
def test_a_mean_must_lie_within_four_standard_errors_of_the_difference(ours: tuple[float, ...], ok: bool) -> None:
    found = Band(1.0 + 0.5, 0.1, 4).judge(runs(*ours), "m")
    assert found.ok is ok
    assert "within 0.65" in found.expected


def test_one_seed_is_judged_by_the_expected_spread() -> None:
    """Spread .1 * sqrt(9) = .3 for one run; the error of the difference is sqrt(.1^2 + .3^2) = .316, four times that 1.265."""
    assert Band(0.0, 0.1, 9).judge(runs(1.26), "m").ok is True
    assert Band(0.0, 0.1, 9).judge(runs(1.27), "m").ok is False


def test_a_mean_without_an_error_needs_half_of_its_seeds() -> None:
    expected = Band(0.5, None, 8)
    assert expected.judge(runs(0.5, 0.6, 0.7), "m").ok is None
    assert expected.judge(runs(0.4, 0.5, 0.6, 0.7), "m").ok is True
    assert expected.judge(runs(1.4, 1.5, 1.6, 1.7), "m").ok is False


def test_what_rounding_hid_is_allowed_for() -> None:
    assert Band(0.338, 0.0, 10, digits=3).judge(runs(0.3384, 0.3384), "m").ok is True
    assert Band(0.338, 0.0, 10, digits=3).judge(runs(0.3386, 0.3386), "m").ok is False


def test_shares_are_compared_with_their_binomial_error() -> None:
    """20 of 100 against .1 of 200: pooled (20 + 20 + 1) / 302, four standard errors .168; 40 of 100 is further away."""
    assert Proportion(0.1, 200).judge(runs(*[1.0] * 20, *[0.0] * 80), "m").ok is True
    assert Proportion(0.1, 200).judge(runs(*[1.0] * 40, *[0.0] * 60), "m").ok is False
    assert Proportion(0.0, 200).judge(runs(*[0.0] * 5), "m").ok is True


def test_limits_are_limits_of_the_mean() -> None:
    assert AtLeast(0.5).judge(runs(0.4, 0.7), "m").ok is True
    assert AtLeast(0.6).judge(runs(0.4, 0.7), "m").ok is False
    assert AtMost(0.6).judge(runs(0.4, 0.7), "m").ok is True
    assert AtMost(0.5).judge(runs(0.4, 0.7), "m").ok is False


def test_a_golden_run_needs_the_value_and_every_pick() -> None:
    run = Run(values={"m": 0.75}, series={"picks": np.array([0, 1, 1, 2])})
    digest = run.digest[:16]
    assert Golden(0.75, digest).judge([run], "m").ok is True
    assert Golden(0.75 + 1e-7, digest).judge([run], "m").ok is False
    other = Run(values={"m": 0.75}, series={"picks": np.array([0, 1, 2, 1])})
    assert Golden(0.75, digest).judge([other], "m").ok is False
    assert Golden(0.75).judge([other], "m").ok is True


# -- studies ---------------------------------------------------------------------------------------------------------------


def test_a_claim_that_nothing_would_check_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would check 'fats'"):
        study(claims=[Claim("fats", "m", AtLeast(0.0))])
    with pytest.raises(ValueError, match="'n'"):
        study(claims=[Claim("fast", "n", AtLeast(0.0))])


def test_quick_runs_leave_slow_contenders_out_and_say_so(tmp_path: Path) -> None:
    played = result_cache.play_all([study()], quick=True, at_most=99, folder=tmp_path, reuse=False, quiet=True)
    fast, slow = judge(study(), played["X1 y"])
    assert (fast.verdict, fast.ours, fast.over_seeds) == ("ok", "0.2500", "0.7500 ± 0.5")
    assert (slow.verdict, slow.ours) == ("–", "not played, slow")


def test_full_runs_play_every_contender_as_often_as_it_says_something_new(tmp_path: Path) -> None:
    played = result_cache.play_all([study()], quick=False, at_most=3, folder=tmp_path, reuse=False, quiet=True)
    assert [len(played["X1 y"][label]) for label in ("fast", "slow")] == [3, 1]


def test_kept_runs_are_the_runs(tmp_path: Path) -> None:
    calls = []

    def counted(seed: int, each: Each) -> Run:
        calls.append(seed)
        return play(seed, each)

    short = study(contenders={"fast": Contender(play=counted, rounds=3)}, claims=[])
    first = result_cache.play_all([short], quick=False, at_most=2, folder=tmp_path, reuse=True, quiet=True)["X1 y"]["fast"]
    again = result_cache.play_all([short], quick=False, at_most=3, folder=tmp_path, reuse=True, quiet=True)["X1 y"]["fast"]
    assert calls == [0, 1, 2]  # the third alone was missing
    for one, other in zip(first, again, strict=False):
        assert one.values == other.values
        assert one.digest == other.digest
        assert other.series["picks"].dtype == np.uint8


def test_the_tables_say_what_is_out(tmp_path: Path) -> None:
    wrong = study(claims=[Claim("fast", "m", Golden(0.3)), Claim("slow", "m", AtMost(0.5))])
    played = result_cache.play_all([wrong], quick=False, at_most=1, folder=tmp_path, reuse=False, quiet=True)
    checks = {"X1 y": judge(wrong, played["X1 y"])}
    with (tmp_path / "terminal").open("w") as file:
        out = report.show([wrong], checks, played, console=Console(file=file, width=150))
    assert [check.contender for check in out] == ["fast"]
    about = {"command": "python -m bench.experiments.policies", "date": "2025-01-02", "versions": "torch 2"}
    text = report.markdown([wrong], checks, played, about)
    assert text.startswith("`python -m bench.experiments.policies`")
    assert "1 of 2 checks ok, 1 OUT." in text
    assert "| fast | m | 0.2500 | 0.3000 | **OUT** |" in text
