import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from service.cli.replay.player import Run
from service.cli.replay.plot import save_plot
from service.cli.replay.report import Report, Spread, render, summarise
from service.cli.replay.tables import Table

#            a     b     c
EXPECTED = [[0.75, 0.25, 0.75],
            [0.50, 0.25, 1.00],
            [0.25, 0.75, 0.00],
            [0.25, 0.50, 0.00]]  # fmt: skip


def table(**changes: object) -> Table:
    expected = np.array(EXPECTED)
    facts = {
        "name": "small.csv",
        "arms": ("a", "b", "c"),
        "prompts": ("p", "q", "r", "s"),
        "rewards": (expected > 0.6).astype(float),
        "expected": expected,
        "costs": np.tile([1.0, 2.0, 4.0], (4, 1)),
        "vectors": np.empty((4, 0), dtype=np.float32),
        "groups": ("x", "x", "y", "y"),
        "has_expected": True,
        "has_costs": True,
    }
    return Table(**(facts | changes))  # type: ignore[arg-type]


def run(label: str, picks: list[int], *, seed: int = 0, order: tuple[int, ...] = (0, 1, 2, 3)) -> Run:
    return Run(label=label, seed=seed, order=np.array(order), picks=np.array(picks))


def report() -> Report:
    return summarise(table(), [run("learner", [2, 2, 1, -1]), run("other", [0, 0, 0, 0])])


def test_a_run_is_scored_by_the_expected_rewards_of_what_it_picked() -> None:
    line = report().line("learner")
    assert line.reward == Spread(0.625, 0.0)  # (.75 + 1 + .75 + 0) / 4
    assert line.realised == Spread(0.75, 0.0)  # (1 + 1 + 1 + 0) / 4
    assert line.gain == Spread(0.1875, 0.0)  # the best fixed arms, a, b and c, earn .4375: the first of them is a
    assert line.best_share == Spread(0.75, 0.0)  # c ties with a on p
    assert line.cost.mean == pytest.approx(10 / 3)  # 4 + 4 + 2 for three calls
    assert line.shares == {"a": 0.0, "b": 0.25, "c": 0.5}  # and a quarter of stops


def test_the_yardsticks_by_hand() -> None:
    random, fixed, group, oracle = (report().line(name) for name in ("uniformly", "best fixed", "best per group", "per-prompt"))
    assert random.reward.mean == pytest.approx(5.25 / 12)
    assert random.best_share.mean == pytest.approx((2 + 1 + 1 + 1) / 12)
    assert random.cost.mean == pytest.approx(7 / 3)
    assert (fixed.label, fixed.reward.mean, fixed.gain.mean, fixed.cost.mean) == ("best fixed: a", 0.4375, 0.0, 1.0)
    assert group.reward.mean == pytest.approx((0.75 + 1.0 + 0.75 + 0.5) / 4)  # c on x, b on y
    assert group.shares == {"a": 0.0, "b": 0.5, "c": 0.5}
    assert oracle.reward.mean == 0.75
    assert oracle.best_share.mean == 1.0
    assert oracle.shares == {"a": 0.25, "b": 0.5, "c": 0.25}  # the tie on p goes to a


def test_a_cost_per_call_is_of_the_calls_and_null_where_none_was_made() -> None:
    stopped, half = [run("stopped", [-1, -1, -1, -1])], [run("half", [-1] * 4), run("half", [2, -1, -1, -1], seed=1)]
    found = summarise(table(), [*stopped, run("stopped", [-1] * 4, seed=1), *half])
    assert math.isnan(found.line("stopped").cost.mean)
    assert found.line("half").cost == Spread(4.0, 0.0), "of the seed that made a call"
    lines = json.loads(json.dumps(found.as_json(), allow_nan=False))["lines"]
    assert next(line for line in lines if line["label"] == "stopped")["cost"] == {"mean": None, "sd": 0.0}
    assert render(found)


def test_seeds_give_a_spread_and_the_gain_is_over_the_same_rounds() -> None:
    runs = [run("learner", [2, 2], order=(0, 1)), run("learner", [2, 1], seed=5, order=(2, 3))]
    found = summarise(table(), runs)
    line = found.line("learner")
    assert found.seeds == (0, 5)
    assert line.reward.mean == pytest.approx((0.875 + 0.25) / 2)
    assert line.reward.sd == pytest.approx(abs(0.875 - 0.25) / 2**0.5)
    assert line.gain.mean == pytest.approx(((0.875 - 0.875) + (0.25 - 0.625)) / 2)  # c is best first, b then
    assert found.line("best fixed").label == "best fixed: b, c"
    assert found.line("best fixed").gain == Spread(0.0, 0.0)


def test_groups_follow_the_order_of_the_rounds() -> None:
    found = summarise(table(), [run("learner", [0, 0, 0, 0], order=(2, 0, 3, 1))])
    assert found.line("best per group").reward.mean == 0.75


def test_without_groups_there_is_no_line_for_them() -> None:
    found = summarise(table(groups=()), [run("learner", [0, 0, 0, 0])])
    assert [line.label for line in found.lines] == ["uniformly random", "best fixed: a", "learner", "per-prompt oracle"]


def test_the_best_contender_is_never_a_yardstick() -> None:
    assert report().best.label == "learner"


def test_the_screen_shows_every_line_and_the_stops() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in render(report()):
        console.print(part)
    console.file.close()
    text = console.export_text()
    for expected in ("small.csv: 3 models, 4 rounds", "learner", "0.6250", "+0.1875", "75.0%", "3.333333", "(stop)", "25%"):
        assert expected in text, expected


def test_results_are_plain_json() -> None:
    answer = json.loads(json.dumps(report().as_json(), allow_nan=False))
    line = next(line for line in answer["lines"] if line["label"] == "learner")
    assert line["gain"] == {"mean": 0.1875, "sd": 0.0}
    assert answer["arms"]["c"] == {"mean_reward": 0.4375, "mean_cost": 4.0}
    assert (answer["rounds"], answer["seeds"], answer["reward_is"]) == (4, [0], "expected")


@pytest.mark.parametrize(("arms", "rounds"), [(2, 1), (15, 3), (3, 200)])
def test_a_plot_is_a_png_for_few_and_many_arms_and_rounds(tmp_path: Path, arms: int, rounds: int) -> None:
    rng = np.random.default_rng(3)
    scores = rng.random((rounds, arms))
    wide = table(
        arms=tuple(f"_${k}$" for k in range(arms)),
        prompts=tuple(map(str, range(rounds))),
        rewards=scores,
        expected=scores,
        costs=np.zeros_like(scores),
        groups=(),
    )
    runs = [
        Run(label=label, seed=seed, order=np.arange(rounds), picks=rng.integers(-1, arms, rounds))
        for seed in (0, 1)
        for label in ("pak-ucb", "lin-ucb", "random", "x <&$_^{$")
    ]
    save_plot(tmp_path / "plot.png", summarise(wide, runs), runs)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
