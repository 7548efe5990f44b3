"""Sums of many policies by blocks: those of one policy and all rows at once, and a copy that takes the same past."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from bandits.evaluation.estimators import ESTIMATORS, LoggedDecisions
from bandits.evaluation.moments import Block, Moments
from tests.bandits.evaluation.test_estimators import random_log


def block_of(log: LoggedDecisions, rows: slice) -> Block:
    return Block(arms=log.arms[rows], rewards=log.rewards[rows], logged=log.logged[rows], model=log.model[rows])


def test_blocks_of_two_policies_are_the_sums_of_each_alone() -> None:
    g, count = default_rng(4), 60
    log = random_log(g, count=count)
    chosen = g.integers(0, 3, count)
    fixed = LoggedDecisions(**{**vars_of(log), "evaluated": np.eye(3)[chosen]})
    found = Moments(2)
    for rows in (slice(0, 1), slice(1, 23), slice(23, count)):
        block = block_of(log, rows)
        found.add(block, block.of_tables(log.evaluated[rows, None]).beside(block.of_arms(chosen[rows, None])))
    found.copy_policy(1)
    for policy, alone in enumerate((log.moments(), fixed.moments(), fixed.moments())):
        for name, estimate in ESTIMATORS.items():
            for together, one in zip(estimate(found), estimate(alone), strict=True):
                assert together[policy] == pytest.approx(one[0], rel=1e-10), name
        for name in ("support", "mean_weight", "weight_error", "effective_sample", "largest"):
            assert getattr(found, name)[policy] == pytest.approx(getattr(alone, name)[0], rel=1e-12), name
    assert found.spread == pytest.approx(log.rewards.std())


def vars_of(log: LoggedDecisions) -> dict[str, np.ndarray]:
    return {"arms": log.arms, "rewards": log.rewards, "logged": log.logged, "evaluated": log.evaluated, "model": log.model}


def test_a_probability_near_zero_is_taken_as_none() -> None:
    """Its weight, or the square of it, would be infinite."""
    for least in (5e-324, 1e-320, 1e-200):
        block = Block(
            arms=np.array([0, 1, 0]),
            rewards=np.array([1.0, 2.0, 4.0]),
            logged=np.array([[0.5, 0.5], [0.5, 0.5], [least, 1.0]]),
            model=np.zeros((3, 2)),
        )
        moments = Moments(4)
        tables = block.of_tables(np.tile([[1.0, 0.0], [0.25, 0.75]], (3, 1, 1)))
        moments.add(block, tables.beside(block.of_arms(np.tile([0, 1], (3, 1)))))
        np.testing.assert_allclose(moments.mean_weight, [2 / 3, 2 / 3, 2 / 3, 2 / 3])
        np.testing.assert_allclose(moments.support, [2 / 3, (1 + 1 + 0.75) / 3, 2 / 3, 1.0])
        np.testing.assert_allclose(moments.effective_sample, [1.0, 1.6, 1.0, 1.0])
        for estimate in ESTIMATORS.values():
            assert np.isfinite(estimate(moments)).all()
