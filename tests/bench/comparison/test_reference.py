"""The textbooks that our costs are held against: they compute what we compute, and count what they should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bench.comparison import environment, textbook
from bench.comparison.head_to_head import Round, dak, frechet_picks, mixture, pak, weights_alone
from bench.comparison.reference import measured, milliseconds
from bench.comparison.textbook import GeneralRoot, Kept, Running, gaussian, regression


@pytest.mark.parametrize(
    ("duel", "n", "ours"),
    [(pak, 20, "exact kernel"), (dak, 20, "exact kernel"), (mixture, 60, "exact kernel, cab"), (weights_alone, 5, "active set")],
)
def test_a_textbook_and_we_choose_the_same_arm_in_every_round(
    duel: Callable[[int], dict[str, Round]], n: int, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "borrowed", lambda name: None)  # the modelling layer takes long to import
    sides = duel(n)
    mine = next(play for name, play in sides.items() if name.startswith(ours))
    book = next(play for name, play in sides.items() if name.startswith("textbook"))
    assert [book(t) for t in range(12)] == [mine(t) for t in range(12)]


def test_the_general_matrix_root_chooses_as_the_symmetric_spectrum_does() -> None:
    assert frechet_picks(rounds=25, dim=6) == (25, 25)


def test_a_regression_from_scratch_is_the_closed_form_of_two_points() -> None:
    """x = 0 and 1, k = exp(-1/2): K + ridge I is [[1.5, k], [k, 1.5]]; at x = 0 the kernel row is [1, k]."""
    x, y, at, k = np.array([[0.0], [1.0]]), np.array([2.0, -1.0]), np.array([0.0]), np.exp(-0.5)
    inverse = np.array([[1.5, -k], [-k, 1.5]]) / (1.5**2 - k**2)
    row = np.array([1.0, k])
    expected = row @ inverse @ y, np.sqrt((1.0 - row @ inverse @ row) / 0.5)
    for general in (False, True):
        assert regression(x, y, at, bandwidth=1.0, ridge=0.5, general=general) == pytest.approx(expected, rel=1e-12)


def test_the_textbook_of_fd_ucb_gives_the_golden_distance_and_radius() -> None:
    """Golden 10.F: distance 1.1309, radius 9.5342."""
    rows = np.array([[1, 0], [0, 2], [1, 1], [-1, 3], [2, -1], [0, 0], [1, 2], [3, 1]], dtype=float)
    book = GeneralRoot([Running(np.zeros(2), np.zeros((2, 2)))], np.array([0.5, 0.5]), np.array([[2.0, 0.5], [0.5, 1.0]]))
    book.learn(0, rows)
    assert book.measure(0) == pytest.approx((1.130907510720374, 9.5342057116581), rel=1e-9)
    assert book.scores[0] == pytest.approx(-8.403298200937726, rel=1e-9)


def test_kernel_sums_of_a_mixture_grow_as_if_summed_afresh() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(9, 2))
    grown = textbook.SolvedMixture.of([rows[:2], rows[2:4]], bandwidth=1.5, delta_l=0.6, solver=textbook.by_slsqp)
    for row in rows[4:]:
        grown.learn(1, row)
    pairs = gaussian(rows, rows, 1.5) ** 2
    np.testing.assert_allclose(
        grown.sums, [[pairs[:2, :2].sum(), pairs[:2, 2:].sum()], [pairs[2:, :2].sum(), pairs[2:, 2:].sum()]]
    )


def test_kept_rows_grow_without_moving_what_was_seen() -> None:
    kept = Kept(np.zeros((0, 2)))
    for i in range(40):
        kept.append(np.array([i, -i], dtype=float))
    assert len(kept) == 40
    np.testing.assert_array_equal(kept.rows[:, 0], np.arange(40))


def test_all_sides_play_the_same_rounds_and_only_those_that_shall_agree_are_compared() -> None:
    played: dict[str, list[int]] = {"textbook": [], "ours": [], "other": []}

    def side(name: str, pick: int) -> Round:
        def play(t: int) -> int:
            played[name].append(t)
            return pick if t % 4 == 0 else 0

        return play

    found = measured(
        {"textbook": side("textbook", 0), "ours": side("ours", 1), "other": side("other", 2)}, agree=["ours"], seconds=5
    )
    assert played["textbook"] == played["ours"] == played["other"] == list(range(found.of))
    assert found.of - found.same == len([t for t in range(found.of) if t % 4 == 0])
    assert all(cost > 0.0 for cost in found.seconds.values())


def test_milliseconds_are_short() -> None:
    assert [milliseconds(x) for x in (0.00123, 0.25, 12.34)] == ["1.23 ms", "250 ms", "12.3 s"]
