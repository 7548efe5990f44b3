"""Do the intervals of an evaluation hold? Logs of policies that learn, a fixed policy evaluated on each, its true value known.

    python -m bench.experiments.coverage                        1,000 logs of each policy, 2,000 decisions
    python -m bench.experiments.coverage --logs 100 --write     also docs/evaluation.md

All logs of a policy are played side by side. Arms are Bernoulli; each log has its own means, and its own mixture to evaluate.
Counted is, at every n of a grid, in how many logs the interval after n decisions holds the value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import ndtr

from bandits.evaluation import estimators, intervals
from bandits.evaluation.estimators import LoggedDecisions
from bandits.evaluation.moments import LARGEST_WEIGHT
from bench.pages import markdown, show, write

Floats = NDArray[np.float64]
GRID = (50, 100, 200, 500, 1_000, 2_000)
CONFIDENCE = 0.95
COLUMNS = ("policy of the log", "n", "anytime holds", "its width", "ordinary holds", "its width ")


def softmax(sums: Floats, pulls: Floats) -> Floats:
    """(L, K) weights by the exponentials of the mean rewards."""
    odds: Floats = np.exp(6.0 * (sums + 0.5) / (pulls + 1.0))
    weights: Floats = odds / odds.sum(1, keepdims=True)
    return weights


def epsilon_greedy(sums: Floats, pulls: Floats) -> Floats:
    """(L, K) nine tenths on the best mean reward."""
    best = ((sums + 0.5) / (pulls + 1.0)).argmax(1)
    weights: Floats = 0.1 / sums.shape[1] + 0.9 * np.eye(sums.shape[1])[best]
    return weights


def thompson(sums: Floats, pulls: Floats) -> Floats:
    """(L, 2) the probability that each of two normal posteriors is the larger, with a floor of .01."""
    means, variances = (sums + 0.5) / (pulls + 1.0), 0.25 / (pulls + 1.0)
    first = ndtr((means[:, 0] - means[:, 1]) / np.sqrt(variances.sum(1)))
    return np.stack([0.99 * first + 0.005, 0.99 * (1.0 - first) + 0.005], 1)


LOGGED: Mapping[str, tuple[Callable[[Floats, Floats], Floats], int]] = {
    "softmax": (softmax, 3),
    "epsilon-greedy": (epsilon_greedy, 3),
    "thompson, floor .01": (thompson, 2),
}
"""The rule, and how many arms."""


class Logs(NamedTuple):
    """L logs of n decisions. logged: (n, L, K).  evaluated: (L, K).  values: (L,) of the evaluated policies."""

    arms: NDArray[np.int64]
    rewards: Floats
    logged: Floats
    evaluated: Floats
    values: Floats


def play(rule: Callable[[Floats, Floats], Floats], g: Generator, *, logs: int, arms: int, rounds: int) -> Logs:
    """Side by side; every log has its own means, and its own mixture to evaluate."""
    means, evaluated, rows = g.random((logs, arms)), g.dirichlet(np.ones(arms), logs), np.arange(logs)
    sums, pulls = np.zeros((2, logs, arms))
    chosen, rewards = np.empty((rounds, logs), dtype=np.int64), np.empty((rounds, logs))
    logged = np.empty((rounds, logs, arms))
    for t in range(rounds):
        logged[t] = rule(sums, pulls)
        chosen[t] = (g.random((logs, 1)) > logged[t].cumsum(1)[:, :-1]).sum(1)
        rewards[t] = g.random(logs) < means[rows, chosen[t]]
        sums[rows, chosen[t]] += rewards[t]
        pulls[rows, chosen[t]] += 1.0
    return Logs(chosen, rewards, logged, evaluated, (evaluated * means).sum(1))


class Coverage(NamedTuple):
    """At n decisions: the share of logs whose interval holds the value, and its mean width."""

    n: int
    anytime: float
    anytime_width: float
    ordinary: float
    ordinary_width: float


def coverage(found: Logs, grid: Sequence[int]) -> list[Coverage]:
    """Of both intervals, at every n of the grid."""
    count = len(found.values)
    rows = np.arange(count)
    weights = found.evaluated[rows, found.arms] / np.take_along_axis(found.logged, found.arms[:, :, None], 2)[:, :, 0]
    clipped, risk = np.minimum(weights, LARGEST_WEIGHT), (1.0 - CONFIDENCE) / 2.0
    low, rest, before, results = intervals.LowerBounds(count), intervals.LowerBounds(count), 0, []
    for n in grid:
        low.add(clipped[before:n] * found.rewards[before:n])
        rest.add(clipped[before:n] * (1.0 - found.rewards[before:n]))
        before = n
        bottom, top = low.after(risk=risk), 1.0 - rest.after(risk=risk)
        normal = np.array([_ordinary(found, log, n) for log in range(count)])
        held = [(ends[0] <= found.values) & (found.values <= ends[1]) for ends in ((bottom, top), normal.T)]
        width = float(np.nanmean(normal[:, 1] - normal[:, 0]))
        results.append(Coverage(n, float(held[0].mean()), float((top - bottom).mean()), float(held[1].mean()), width))
    return results


def _ordinary(found: Logs, log: int, n: int) -> intervals.Interval:
    rows = LoggedDecisions(
        arms=found.arms[:n, log],
        rewards=found.rewards[:n, log],
        logged=found.logged[:n, log],
        evaluated=np.tile(found.evaluated[log], (n, 1)),
    )
    return intervals.ordinary(estimators.snips(rows), confidence=CONFIDENCE)


def main() -> None:
    """Print the table; exit code 1 where the anytime interval holds too rarely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=int, default=1_000)
    parser.add_argument("--write", action="store_true", help="bring docs/evaluation.md up to date")
    options = parser.parse_args()
    least = CONFIDENCE - 2.0 * float(np.sqrt(CONFIDENCE * (1.0 - CONFIDENCE) / options.logs))
    table, missed = [], False
    for place, (name, (rule, arms)) in enumerate(LOGGED.items()):
        logs = play(rule, default_rng(place), logs=options.logs, arms=arms, rounds=GRID[-1])
        for one in coverage(logs, GRID):
            missed = missed or one.anytime < least
            table.append((
                name, f"{one.n:,}", f"{one.anytime:.1%}", f"{one.anytime_width:.3f}", f"{one.ordinary:.1%}",
                f"{one.ordinary_width:.3f}",
            ))  # fmt: skip
    show(f"{options.logs} logs of each policy; {least:.1%} is the least", COLUMNS, table, Console())
    if options.write:
        write({"coverage": markdown(COLUMNS, table, right=COLUMNS[1:])})
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
