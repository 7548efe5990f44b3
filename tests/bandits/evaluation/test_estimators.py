"""Estimates of what another policy would have earned: golden numbers, closed forms, and what a log without support says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator, default_rng

from bandits.evaluation import estimators
from bandits.evaluation.estimators import Estimate, LoggedDecisions

ORACLE = Path(__file__).parents[4] / "shared" / "design" / "oracle"


def random_log(g: Generator, *, count: int = 60, arms: int = 3) -> LoggedDecisions:
    """Arms drawn from a different distribution in each row."""
    logged, evaluated = g.dirichlet(np.ones(arms), count), g.dirichlet(np.ones(arms), count)
    played = np.array([g.choice(arms, p=row) for row in logged])
    model = g.random((count, arms))
    return LoggedDecisions(arms=played, rewards=g.random(count), logged=logged, evaluated=evaluated, model=model)


def by_hand(log: LoggedDecisions) -> dict[str, float]:
    """The same estimates, one decision at a time."""
    terms: dict[str, list[float]] = {name: [] for name in ("ips", "dm", "dr")}
    weights, weighted, residual = [], [], []
    for arm, reward, logged, evaluated, model in zip(log.arms, log.rewards, log.logged, log.evaluated, log.model, strict=True):
        w = evaluated[arm] / logged[arm]
        expected = sum(p * q for p, q in zip(evaluated, model, strict=True))
        terms["ips"].append(w * reward)
        terms["dm"].append(expected)
        terms["dr"].append(expected + w * (reward - model[arm]))
        weights.append(w)
        weighted.append(w * reward)
        residual.append(w * (reward - model[arm]))
    found = {name: sum(values) / len(values) for name, values in terms.items()}
    found["snips"] = sum(weighted) / sum(weights)
    found["sndr"] = found["dm"] + sum(residual) / sum(weights)
    return found


def test_estimates_equal_those_that_are_added_up_by_hand() -> None:
    log = random_log(default_rng(1))
    for name, value in by_hand(log).items():
        assert getattr(estimators, name)(log).value == pytest.approx(value, abs=1e-13), name


def test_golden_numbers_of_two_libraries() -> None:
    if not ORACLE.is_dir():
        pytest.skip("the oracle's log is not beside the checkout")
    table, golden = np.load(ORACLE / "ope_log.npz"), json.loads((ORACLE / "ope.json").read_text())
    given = {"arms": table["action"], "rewards": table["reward"], "logged": table["behaviour"], "model": table["reward_model"]}
    log = LoggedDecisions(**given, evaluated=table["evaluation"])
    fixed = LoggedDecisions(**given, evaluated=np.eye(4)[table["deterministic"]])
    found = {
        "IPS": estimators.ips(log),
        "IPS_lambda10": estimators.ips(log, clip=10.0),
        "SNIPS": estimators.snips(log),
        "DM": estimators.dm(log),
        "DR": estimators.dr(log),
        "DR_lambda10": estimators.dr(log, clip=10.0),
        "SNDR": estimators.sndr(log),
        **{f"SwitchDR_{above}": estimators.switch_dr(log, above=above) for above in (1, 5, 20)},
        **{f"DRos_{shrinkage}": estimators.dr_shrunk(log, shrinkage=shrinkage) for shrinkage in (1, 5, 20)},
        **{f"SGIPW_{power}": estimators.ips_subgaussian(log, power=power) for power in (0.1, 0.5)},
        **{f"SGDR_{power}": estimators.dr_subgaussian(log, power=power) for power in (0.1, 0.5)},
        "replay_deterministic": estimators.replay(fixed),
    }
    assert len(found) == 18
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(golden[name], abs=1e-12), name
    (ess,), (mean,) = log.moments().effective_sample, log.moments().mean_weight
    assert ess == pytest.approx(golden["weights"]["ess"], abs=1e-9)
    assert mean == pytest.approx(golden["weights"]["mean"], abs=1e-12)


@pytest.mark.parametrize("name", ["ips", "snips", "dr", "sndr"])
def test_standard_errors_are_those_of_repeated_logs(name: str) -> None:
    """Over 400 logs of one world, the estimates spread as each says that they do."""
    g, found = default_rng(3), []
    odds, means = 0.5 + g.random((300, 3)), g.random((300, 3))
    logged, evaluated = odds / odds.sum(1, keepdims=True), g.dirichlet(np.ones(3), 300)
    for _ in range(400):
        arms = (g.random((300, 1)) > logged.cumsum(1)).sum(1).clip(0, 2)
        rewards = (g.random(300) < means[np.arange(300), arms]).astype(float)
        log = LoggedDecisions(arms=arms, rewards=rewards, logged=logged, evaluated=evaluated, model=0.5 * means + 0.25)
        found.append(getattr(estimators, name)(log))
    values = np.array([estimate.value for estimate in found])
    truth = float((evaluated * means).sum(1).mean())
    assert abs(values.mean() - truth) < 4.0 * values.std() / 20.0 + (0.01 if name == "snips" else 0.0)
    spread = float(np.mean([estimate.error for estimate in found]))
    assert 0.7 < values.std() / spread < 1.05, "rows are not alike, so the independent error is a little too wide"


def test_mass_without_support_is_counted() -> None:
    logged = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    evaluated = np.array([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]])
    log = LoggedDecisions(arms=np.array([0, 0]), rewards=np.array([1.0, 0.0]), logged=logged, evaluated=evaluated)
    np.testing.assert_allclose(log.terms.supported[:, 0], [0.5, 0.9])
    assert log.moments().supported == pytest.approx([1.4])
    rare = LoggedDecisions(arms=log.arms, rewards=log.rewards, logged=np.array([[0.9995, 0.0005, 0.0]] * 2), evaluated=evaluated)
    assert rare.moments().support == pytest.approx([(0.2 + 0.9) / 2]), "a thousandth is the least that counts"


def test_a_policy_that_never_played_as_the_log_did_has_no_estimate() -> None:
    log = LoggedDecisions(
        arms=np.array([0, 0]), rewards=np.ones(2), logged=np.full((2, 2), 0.5), evaluated=np.tile([0.0, 1.0], (2, 1))
    )
    for estimate in (estimators.snips(log), estimators.replay(log)):
        assert np.isnan(estimate.value)
    assert estimators.ips(log) == Estimate(0.0, 0.0)
    assert log.moments().effective_sample == [0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": np.array([], dtype=np.int64)}, "no decisions"),
        ({"evaluated": np.ones((2, 3))}, "a column per arm"),
        ({"model": np.ones((1, 2))}, "the model"),
        ({"logged": np.array([[0.0, 1.0], [0.5, 0.5]])}, "probability 0"),
    ],
)
def test_a_log_that_cannot_be_evaluated_is_refused(changes: dict[str, Any], message: str) -> None:
    whole = {"arms": np.array([0, 1]), "rewards": np.ones(2), "logged": np.full((2, 2), 0.5), "evaluated": np.full((2, 2), 0.5)}
    with pytest.raises(ValueError, match=message):
        LoggedDecisions(**{**whole, **changes})
