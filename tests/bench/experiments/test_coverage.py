"""A part of the experiment on intervals: the anytime one holds at every n, and arms are drawn by the logged probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from bench.experiments import coverage

LOGS, GRID = 200, (50, 150, 300)


@pytest.mark.parametrize("name", coverage.LOGGED)
def test_the_anytime_interval_holds_at_every_n_of_a_grid(name: str) -> None:
    rule, arms = coverage.LOGGED[name]
    logs = coverage.play(rule, default_rng(1), logs=LOGS, arms=arms, rounds=GRID[-1])
    np.testing.assert_allclose(logs.logged.sum(2), 1.0)
    found = coverage.coverage(logs, GRID)
    least = 0.95 - 2.0 * np.sqrt(0.95 * 0.05 / LOGS)
    assert [one.n for one in found] == list(GRID)
    assert min(one.anytime for one in found) >= least
    assert found[0].anytime_width > found[-1].anytime_width
    assert all(0.5 < one.ordinary <= 1.0 for one in found)


def test_arms_are_drawn_by_the_logged_probabilities() -> None:
    logs = coverage.play(coverage.softmax, default_rng(2), logs=400, arms=3, rounds=50)
    drawn = np.stack([(logs.arms == arm).mean() for arm in range(3)])
    np.testing.assert_allclose(drawn, logs.logged.mean((0, 1)), atol=4.0 * np.sqrt(0.25 / 20_000))
