"""The worlds, yardsticks and measures behind `bench.experiments.policies`: golden runs that take a second, and what is counted
by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.experiments.monte_carlo import contextual, episodes, mixtures
from bench.experiments.monte_carlo.pictures import moving, so_far
from bench.experiments.monte_carlo.studies import Check, Run, Study, judge
from bench.experiments.policies import all_studies, chosen_studies
from tools.simulated_tasks.contextual import collapsed_and_diverse, prompt_clusters
from tools.simulated_tasks.mixture import i5


def found(study: Study, contender: str) -> list[Check]:
    """The checks of the golden run of one contender."""
    run = study.contenders[contender].play(0, lambda t: None)
    return [check for check in judge(study, {contender: [run]}) if check.contender == contender and check.ok is not None]


def named(name: str) -> Study:
    return next(study for study in all_studies() if study.name == name)


def test_the_world_of_golden_g2() -> None:
    world = prompt_clusters()
    assert world.features.sum() == pytest.approx(-526.4124928832235, abs=1e-9)
    assert world.rewards.sum(axis=0).tolist() == [318, 283, 322]
    assert np.bincount(world.group).tolist() == [192, 199, 209]
    assert world.best_arm == 2


def test_the_world_of_golden_g4() -> None:
    world = collapsed_and_diverse()
    assert world.features[0] == pytest.approx([0.6521308756366965, 0.13075367092753087, -0.32155555662146773, -0.673966484764746])
    assert world.uniforms[:2] == pytest.approx([0.86489760769812, 0.8078035108271963])
    assert world.fidelity(np.zeros(400)) == pytest.approx(0.7979574524351917)
    assert world.inverse_joint_rke(np.full(400, 2)) == pytest.approx(0.04231336207931246, rel=1e-9)


@pytest.mark.parametrize(
    ("study", "contender", "checks"),
    [
        ("G2", "pak-ucb, 64 random features", 2),
        ("G2", "lin-ucb", 2),
        ("G2", "one rbf regression for all arms", 2),
        ("G2", "one linear regression for all arms", 2),
        ("G4", "dak-ucb, released bonus", 3),
        ("G4", "dak-ucb, mixture", 3),
        ("G5", "knowing, horizon; cost weight 0.02", 1),
        ("G5", "knowing, ratio; cost weight 0.05", 1),
        ("I3", "released, marginals overwritten", 1),
        ("I3", "radii of largest variance", 1),
        ("I2", "radius of unit variance", 1),
        ("I5", "random", 2),
    ],
)
def test_golden_runs_are_reproduced(study: str, contender: str, checks: int) -> None:
    rows = found(named(study), contender)
    assert [row.verdict for row in rows] == ["ok"] * checks, rows


def test_picks_are_recorded_in_the_order_in_which_they_were_made() -> None:
    world = i5()
    picks = mixtures.played(mixtures.fixed([0.0, 1.0, 0.0, 0.0]), world, seed=3, each=lambda t: None)
    assert picks.tolist() == [1] * 600
    shares = mixtures.shares_over_time(np.array([0, 1, 1, 0], dtype=np.uint8), 2)
    assert shares == pytest.approx(np.array([[1, 0], [1 / 2, 1 / 2], [1 / 3, 2 / 3], [1 / 2, 1 / 2]]))


def test_calls_are_counted_within_their_episode() -> None:
    """Episode 0: arms 0, 0, 1. Episode 1: none. Episode 2: arm 1."""
    run = Run(values={}, series={"picks": np.array([0, 0, 1, 1]), "episodes": np.array([0, 0, 0, 2]), "best": np.zeros(3)})
    assert episodes.escalation(run, arms=2, calls=3) == pytest.approx(np.array([[1, 1], [1, 0], [0, 1]]) / 3)


def test_the_released_exploration_is_the_formula_of_the_release() -> None:
    assert contextual._papers(5000, 5) == pytest.approx(5.2565, abs=5e-5)
    assert contextual._papers(5) == pytest.approx(3.2552, abs=5e-5)


def test_studies_are_chosen_by_name_or_first_word() -> None:
    assert [study.name for study in chosen_studies("I4,I1,G2 sweeps")] == ["I1", "I4 rke", "I4 kid", "G2 sweeps"]
    with pytest.raises(SystemExit, match="I9"):
        chosen_studies("I9")


def test_without_the_recorded_answers_g6_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [study.name for study in chosen_studies("", recorded=tmp_path)]
    assert not any(name.startswith("G6") for name in names)
    assert len(names) == len(all_studies()) - 2
    assert "G6: left out" in capsys.readouterr().err


# -- pictures --------------------------------------------------------------------------------------------------------------


def test_means_move_and_accumulate() -> None:
    rows = np.array([[1.0, 3.0, 5.0, 7.0]])
    assert moving(rows, 2).tolist() == [[1.0, 2.0, 4.0, 6.0]]
    assert so_far(rows).tolist() == [[1.0, 2.0, 3.0, 4.0]]
