"""Does a budget hold, and does a new price act at once? `auto` on coderouterbench, score and cost learned apart.

    python -m bench.experiments.budget            what out/budget lacks; most important first, about an hour of two cores
    python -m bench.experiments.budget --show     no runs: the tables of what is kept

The best model is the one of highest mean score. A budget is a share of its mean cost, held by `bandits.objective.Budget`. Orders
are those of `bench.experiments.auto`, 508 to 515, all 2,919 tasks. Rivals of a budget are fixed weights of the cost, of which the
best is known only afterwards: score at equal spending is read off the line through their runs on the same order.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bandits import draw
from bandits import state as states
from bandits.objective import Budget, learned_cost
from bandits.registry import build
from bandits.simulation import Account, Objective
from bandits.types import Context, Observation
from bench.experiments import resumed
from bench.experiments.defaults.tables import CodingTasks, coding_tasks
from bench.pages import markdown
from tools.recorded_tables import DATA

ORDERS = range(508, 516)
SHARES = (0.1, 0.25, 0.5, 0.75)
WEIGHTS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
MARKS = (500, 1000, 2919)
WEIGHT, CHANGE_SHARE, CHEAPER = 5.0, 0.25, -1.0
CHANGES = [(weight, share, factor) for weight, share in ((0.0, CHANGE_SHARE), (WEIGHT, 0.0)) for factor in (10.0, 0.1)]
CASES = [(0.0, 0.25), (0.0, 0.1), *((weight,) for weight in WEIGHTS), *CHANGES, *((0.0, x) for x in (0.5, 0.75, CHEAPER))]
"""Of a job, after its order."""
WINDOW = 20
"""Decisions over which the share of an arm is averaged, beside the orders."""


class Job(NamedTuple):
    """One run. weight: that the cost is subtracted with.  share: the budget, of the best model's mean cost; 0 = none; -1 = half
    of what the cheapest costs.  factor: on the price of the best model from half time on.
    """

    order: int
    weight: float = 0.0
    share: float = 0.0
    factor: float = 1.0


class Run(NamedTuple):
    """Mean score, mean cost after `MARKS`, share of the cheapest in the second half, and per decision the weight of the best."""

    score: float
    costs: list[float]
    cheapest: float
    weights: list[float]


def per_decision(tasks: CodingTasks, share: float) -> float:
    """The budget of a job's `share`."""
    means = tasks.costs.mean(0)
    return float(means.min() / 2.0 if share < 0.0 else share * means[tasks.scores.mean(0).argmax()])


def play(job: Job) -> Run:
    """One run. Where prices change they are the arms' mean costs, and what is learned is the cost per price."""
    here = coding_tasks(DATA)
    features, arms = torch.from_numpy(here.features), here.scores.shape[1]
    best, cheapest = here.scores.mean(0).argmax(), here.costs.mean(0).argmin()
    order = np.random.default_rng(job.order).permutation(len(features))
    policy = build("auto", {}, dim=features.shape[1], seed=job.order, signals=("reward", "cost"))
    state, budget = states.start(policy, arms=arms), Budget("cost", per_decision(here, job.share)) if job.share else None
    prices, actual = np.zeros(arms) if job.factor == 1.0 else here.costs.mean(0), here.costs.copy()
    picks, paid, scores, weights = (np.zeros(len(order)) for _ in range(4))
    account = Account(Objective(weights={"reward": 1.0, "cost": -job.weight}, prices_per="outcome", budget=budget), arms)
    for t, row in enumerate(order):
        if t == len(order) // 2:
            prices[best] *= job.factor
            actual[:, best] *= job.factor
        terms = account.terms(policy.signals, prices.tolist())
        context = Context(features=features[row], allowed=(True,) * arms, **terms._asdict())
        chances = policy.weights(state, [context]).values[0].tolist()
        arm, _ = draw.draw_at(chances, draw.uniform(f"{policy.seed}/{t}"))
        score, cost = float(here.scores[row, arm]), float(actual[row, arm])
        signals = (score, learned_cost(cost, float(prices[arm]), "outcome"))
        state = states.fold(policy, state, Observation(arm=arm, features=features[row], reward=score, cost=cost, signals=signals))
        state = policy.prepare(state)
        picks[t], paid[t], scores[t], weights[t] = arm, cost, score, chances[best]
        account.add(arm, score, cost)
    means = [float(paid[:mark].mean()) for mark in MARKS]
    cheap = float((picks[len(picks) // 2 :] == cheapest).mean())
    return Run(float(scores.mean()), means, cheap, weights.round(6).tolist() if job.factor != 1.0 else [])


def shown(runs: resumed.Runs) -> str:
    """Every table that the runs can fill, in Markdown."""
    here, rows, fixed = coding_tasks(DATA), [], []
    for share in (*SHARES, CHEAPER):
        if found := {n: run for n in ORDERS if (run := runs.get(Job(n, share=share)))}:
            over = 100.0 * (np.array([run.costs for run in found.values()]) / per_decision(here, share) - 1.0)
            lines = {n: sorted((r.costs[-1], r.score) for w in WEIGHTS if (r := runs.get(Job(n, w)))) for n in found}
            gaps = [run.score - np.interp(run.costs[-1], *np.array(lines[n]).T) for n, run in found.items() if lines[n]]
            means = (" / ".join(f"{x:+.1f}" for x in column) for column in (over.mean(0), over.max(0)))
            cheapest = np.mean([run.cheapest for run in found.values()])
            name = "half of the cheapest" if share < 0.0 else f"{share:.0%}"
            rows.append([name, *means, _with_error([run.score for run in found.values()]), _with_error(gaps), f"{cheapest:.2f}"])
    for weight in WEIGHTS:
        alike = [run for n in ORDERS if (run := runs.get(Job(n, weight)))]
        spent = [1000.0 * run.costs[-1] for run in alike]
        fixed.append([f"{weight:g}", _with_error([run.score for run in alike]), _with_error(spent)])
    over_after = f"% over it after {' / '.join(f'{mark:,}' for mark in MARKS)}"
    heads = ["budget", over_after, "worst order", "score", "minus best fixed weight", "plays the cheapest"]
    changes = [price_change(runs, share, factor) for share in (0.0, CHANGE_SHARE) for factor in (10.0, 0.1)]
    return "\n\n".join([markdown(heads, rows), markdown(["fixed weight", "score", "1000 x cost"], fixed), *filter(None, changes)])


def _with_error(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""


def price_change(runs: resumed.Runs, share: float, factor: float) -> str:
    """How soon the weight of the best model, mean of orders and of `WINDOW` decisions, has gone 90 % of its way."""
    found = [r.weights for n in ORDERS if (r := runs.get(Job(n, 0.0 if share else WEIGHT, share, factor)))]
    if not found:
        return ""
    weights = np.mean(found, axis=0)
    half = len(weights) // 2
    before, after = weights[half - 500 : half].mean(), weights[-500:].mean()
    moved = (np.convolve(weights[half:], np.ones(WINDOW) / WINDOW, "valid") - before) / (after - before)
    reached = f"after {(moved >= 0.9).argmax()}" if (moved >= 0.9).any() else "never"
    what = f"budget {share:.0%}" if share else f"weight {WEIGHT:g}"
    return f"price x {factor:g}, {what}: best model's share {before:.3f} -> {after:.3f}, {reached} decisions, {len(found)} orders"


def main() -> None:
    """Play what is missing, then show the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.budget")
    parser.add_argument("--orders", type=int, default=len(ORDERS), help="how many of the orders (default: all)")
    parser.add_argument("--show", action="store_true", help="play nothing")
    chosen = parser.parse_args()
    path = Path("out/budget/runs.jsonl")
    runs = resumed.kept(path, Job, Run)
    jobs = [Job(n, *case) for case in CASES for n in ORDERS[: chosen.orders]]
    if not chosen.show:
        resumed.fill(path, runs, jobs, play)
    print(shown(runs))


if __name__ == "__main__":
    main()
