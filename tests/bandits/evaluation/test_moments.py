"""Sums of many policies by blocks: those of one policy and all rows at once, and a copy that takes the same past."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

from bandits.evaluation import moments
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


def vars_of(log: LoggedDecisions) -> dict[str, Any]:
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
        found = Moments(4)
        tables = block.of_tables(np.tile([[1.0, 0.0], [0.25, 0.75]], (3, 1, 1)))
        found.add(block, tables.beside(block.of_arms(np.tile([0, 1], (3, 1)))))
        np.testing.assert_allclose(found.mean_weight, [2 / 3, 2 / 3, 2 / 3, 2 / 3])
        np.testing.assert_allclose(found.support, [2 / 3, (1 + 1 + 0.75) / 3, 2 / 3, 1.0])
        np.testing.assert_allclose(found.effective_sample, [1.0, 1.6, 1.0, 1.0])
        for estimate in ESTIMATORS.values():
            assert np.isfinite(estimate(found)).all()


# -- clusters ----------------------------------------------------------------------------------------------------------------


def clustered(log: LoggedDecisions, labels: np.ndarray, *, blocks: int) -> Moments:
    """Of one policy; label -1 = a decision by itself."""
    found = Moments(1)
    for rows in np.array_split(np.arange(len(labels)), blocks):
        part = slice(rows[0], rows[-1] + 1)
        block = block_of(log, part)
        names = {place: str(label) for place, label in enumerate(labels[part]) if label >= 0}
        found.add(block, block.of_tables(log.evaluated[part, None]), names)
    return found


def repeated(log: LoggedDecisions, times: int) -> LoggedDecisions:
    tiled: dict[str, Any] = {name: np.tile(rows, (times,) + (1,) * (rows.ndim - 1)) for name, rows in vars_of(log).items()}
    return LoggedDecisions(**tiled)


def test_what_is_logged_again_in_its_session_says_nothing_new() -> None:
    """Three copies of every decision are as good as one, whatever lies between them; taken apart they would look like three."""
    log, count = random_log(default_rng(7), count=80), 80
    again, alone = clustered(repeated(log, 3), np.tile(np.arange(count), 3), blocks=7), log.moments()
    apart = repeated(log, 3).moments()
    for name, estimate in ESTIMATORS.items():
        (value,), (error,) = estimate(again)
        assert (value, error) == pytest.approx([part[0] for part in estimate(alone)], rel=1e-9), name
        assert error == pytest.approx(estimate(apart)[1][0] * 3**0.5, rel=1e-9), name
    for name in ("support", "mean_weight", "weight_error", "effective_sample", "largest"):
        assert getattr(again, name)[0] == pytest.approx(getattr(alone, name)[0], rel=1e-9), name
    assert again.count == 240


def test_errors_of_clusters_are_those_of_their_sums() -> None:
    g, count = default_rng(8), 90
    log = random_log(g, count=count)
    labels = np.where(g.random(count) < 0.3, -1, g.integers(0, 12, count))
    found = clustered(log, labels, blocks=4)
    groups = [np.flatnonzero(labels == label) for label in range(12)] + [np.array([row]) for row in np.flatnonzero(labels < 0)]
    terms = log.weights * log.rewards
    off = np.array([(terms[rows] - terms.mean()).sum() for rows in groups])
    (value,), (error,) = ESTIMATORS["ips"](found)
    assert value == pytest.approx(terms.mean())
    assert error == pytest.approx(np.sqrt((off**2).sum()) / count)
    totals = np.array([log.weights[rows].sum() for rows in groups])
    assert found.effective_sample[0] == pytest.approx(totals.sum() ** 2 / (totals**2).sum())


def test_an_arm_that_comes_later_takes_the_past_of_clusters_along() -> None:
    log = random_log(default_rng(9), count=40)
    halves = (slice(0, 20), slice(20, 40))
    names = {place: str(place % 5) for place in range(20)}
    one, two = Moments(1), Moments(1)
    for rows in halves:
        block = block_of(log, rows)
        terms = block.of_tables(log.evaluated[rows, None])
        one.add(block, terms, names)
        two.add(block, terms if two.policies == 1 else terms.beside(terms), names)
        if two.policies == 1:
            two.copy_policy(0)
    for estimate in ESTIMATORS.values():
        assert estimate(two)[1].tolist() == pytest.approx([estimate(one)[1][0]] * 2)


def test_clusters_are_kept_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "CLUSTER_NUMBERS", 2)
    clusters, row = moments.Clusters(1), np.ones(1)
    assert clusters.add("a", row) is None
    assert clusters.add("b", row) is None
    assert clusters.add("a", row) == (1, row)
    assert clusters.add("c", row) is None  # "b" was longest without a member
    assert clusters.add("a", row) == (2, 2 * row)
    assert clusters.add("b", row) is None


def test_a_quantile_of_weights_is_the_exact_one_to_nine_percent() -> None:
    g, weights = default_rng(3), np.concatenate([default_rng(5).lognormal(0.0, 2.0, 4_000), np.zeros(500)])
    g.shuffle(weights)
    found = Moments(1)
    for part in np.array_split(weights, 3):
        found._count_weights(part[:, None])
    found.count, found.largest = len(weights), np.array([weights.max()])
    for share in (0.5, 0.9, 0.99, 0.999):
        exact = np.quantile(weights, share, method="inverted_cdf")
        assert exact <= found.weight_quantile(share)[0] <= exact * 2 ** (1 / 8)
    assert found.weight_quantile(0.05)[0] == 0.0
