"""Verdicts: what a log can answer, and why not."""

from __future__ import annotations

import numpy as np
from numpy.random import default_rng

from bandits.evaluation import estimators, intervals
from bandits.evaluation.estimators import LoggedDecisions
from bandits.evaluation.verdict import Diagnostics, Verdict, judge


def drawn(logged: np.ndarray, evaluated: np.ndarray, *, seed: int = 0, claimed: np.ndarray | None = None) -> LoggedDecisions:
    """2,000 decisions drawn from `logged`; the log claims that it was `claimed`."""
    g = default_rng(seed)
    arms = g.choice(len(logged), size=2_000, p=logged)
    return LoggedDecisions(
        arms=arms,
        rewards=(g.random(2_000) < 0.2 + 0.3 * arms).astype(float),
        logged=np.tile(logged if claimed is None else claimed, (2_000, 1)),
        evaluated=np.tile(evaluated, (2_000, 1)),
    )


def verdict(log: LoggedDecisions, **options: int) -> Verdict:
    (found,) = Diagnostics.of(log.moments())
    return judge(found, intervals.ordinary(estimators.snips(log), confidence=0.95), **options)


def test_a_log_that_shows_every_arm_answers() -> None:
    assert verdict(drawn(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.1, 0.8]))).kind == "answer"


def test_mass_that_the_log_cannot_show_is_no_answer() -> None:
    found = verdict(drawn(np.array([0.6, 0.4, 0.0]), np.array([0.5, 0.3, 0.2])))
    assert found.kind == "cannot_answer"
    assert "20.0%" in found.reason
    assert "exploration_floor" in found.reason
    rare = np.array([0.6, 0.3999, 0.0001])
    assert verdict(drawn(rare, np.array([0.5, 0.3, 0.2]))).kind == "cannot_answer", "below a thousandth is as good as nothing"


def test_propensities_that_are_not_true_are_found_out() -> None:
    true, claimed = np.array([0.5, 0.5]), np.array([0.4, 0.6])
    assert verdict(drawn(true, true)).kind == "answer"
    found = verdict(drawn(true, np.array([0.9, 0.1]), claimed=claimed))
    assert found.kind == "cannot_answer"
    assert "not drawn with the probabilities" in found.reason


def test_rare_large_weights_that_were_not_drawn_yet_do_not_raise_suspicion() -> None:
    """The weights at hand are all alike; the standard error comes from the logged distributions."""
    logged = np.array([0.995, 0.005])
    suspected = 0
    for seed in range(60):
        log = drawn(logged, np.array([0.9, 0.1]), seed=seed)
        suspected += "not drawn" in verdict(log).reason
    assert suspected <= 3


def test_a_policy_far_away_leaves_too_few_decisions() -> None:
    found = verdict(drawn(np.array([0.99, 0.01]), np.array([0.0, 1.0])))
    assert found.kind == "cannot_answer"
    assert "wait for more" in found.reason


def test_outcomes_without_a_distribution_bound_the_answer() -> None:
    log = drawn(np.array([0.5, 0.5]), np.array([0.4, 0.6]))
    assert verdict(log, without_weights=10).kind == "bounded"


def test_a_wide_interval_says_so() -> None:
    log = drawn(np.array([0.96, 0.04]), np.array([0.0, 1.0]))
    assert verdict(log).kind == "wide"
