"""The report of a replay: every contender and every baseline by the same four numbers, on the same orders of the prompts.

A way of choosing is a matrix of weights (R, K), one row per round: a one-hot row per pick, 1/K for random, zeros for a stop.

    mean reward  mean_r sum_k w[r,k] expected[r,k]      best arm  mean_r sum_k w[r,k] [arm k is among the best of round r]
    gain         mean reward - that of the best fixed arm on the same rounds      cost per call  sum w costs / sum w
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table as Grid

from service.cli.replay.player import Run
from service.cli.replay.tables import Table

_TIE = 1e-12  # expected rewards closer than this are equally good


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over the seeds; the deviation of a single seed is 0. NaN = nothing to average."""

    mean: float
    sd: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """From one number per seed; a seed without one (NaN) is left out."""
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return Spread(math.nan, 0.0)
        return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the report. reward and gain are in expectation where the table has it; `realised` is what was posted.

    shares: arm -> share of the rounds; what is lacking to 1 are stops.  cost: of a call; NaN where none was made.
    """

    label: str
    baseline: bool
    reward: Spread
    realised: Spread
    best_share: Spread
    gain: Spread
    cost: Spread
    shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every line, the oracle last. notes: what else a reader of the table must know."""

    table: Table
    rounds: int
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def line(self, label: str) -> Line:
        """The line of that label; a baseline may be named by its first words ("best fixed")."""
        return next(line for line in self.lines if line.label == label or (line.baseline and line.label.startswith(label)))

    @property
    def best(self) -> Line:
        """The contender of highest mean reward."""
        return max((line for line in self.lines if not line.baseline), key=lambda line: line.reward.mean)

    def as_json(self) -> dict[str, Any]:
        """Plain values for results.json."""
        return {
            "table": self.table.name,
            "prompts": len(self.table.prompts),
            "dropped_prompts": self.table.dropped,
            "rounds": self.rounds,
            "seeds": list(self.seeds),
            "reward_is": "expected" if self.table.has_expected else "realised",
            "arms": {
                arm: {"mean_reward": float(self.table.expected[:, k].mean()), "mean_cost": float(self.table.costs[:, k].mean())}
                for k, arm in enumerate(self.table.arms)
            },
            "notes": list(self.notes),
            "lines": [_line_as_json(line) for line in self.lines],
        }


def _line_as_json(line: Line) -> dict[str, Any]:
    spreads = {
        "reward": line.reward,
        "realised": line.realised,
        "best_share": line.best_share,
        "gain": line.gain,
        "cost": line.cost,
    }
    numbers = {
        name: {"mean": None if math.isnan(spread.mean) else spread.mean, "sd": spread.sd} for name, spread in spreads.items()
    }
    return {"label": line.label, "baseline": line.baseline, **numbers, "shares": dict(line.shares)}


# -- ways of choosing ------------------------------------------------------------------------------------------------------


def weights_of(picks: np.ndarray, arms: int) -> np.ndarray:
    """(R, K) one-hot rows; a stop (-1) is a row of zeros."""
    weights = np.zeros((len(picks), arms))
    played = picks >= 0
    weights[played, picks[played]] = 1.0
    return weights


def best_fixed(table: Table, order: np.ndarray) -> int:
    """The arm that would have earned most on these rounds, had it always been asked; ties to the lowest index."""
    return int(table.expected[order].mean(axis=0).argmax())


def _random(table: Table, order: np.ndarray) -> np.ndarray:
    return np.full((len(order), len(table.arms)), 1.0 / len(table.arms))


def _fixed(table: Table, order: np.ndarray) -> np.ndarray:
    return weights_of(np.full(len(order), best_fixed(table, order)), len(table.arms))


def _per_group(table: Table, order: np.ndarray) -> np.ndarray:
    groups = np.array(table.groups)[order]
    picks = np.empty(len(order), dtype=np.int64)
    for group in np.unique(groups):
        picks[groups == group] = best_fixed(table, order[groups == group])
    return weights_of(picks, len(table.arms))


def _oracle(table: Table, order: np.ndarray) -> np.ndarray:
    return weights_of(table.expected[order].argmax(axis=1), len(table.arms))


# -- the report ------------------------------------------------------------------------------------------------------------


def summarise(table: Table, runs: Sequence[Run], *, notes: Sequence[str] = ()) -> Report:
    """Compare the runs with each other and with the yardsticks. All contenders must have played the same seeds and orders."""
    orders = {run.seed: run.order for run in runs}
    fixed = sorted({table.arms[best_fixed(table, order)] for order in orders.values()})
    first: list[tuple[str, Callable[[Table, np.ndarray], np.ndarray]]] = [
        ("uniformly random", _random),
        (f"best fixed: {', '.join(fixed)}", _fixed),
    ]
    if table.groups:
        first.append((f"best per group ({len(set(table.groups))})", _per_group))

    def baseline(label: str, choose: Callable[[Table, np.ndarray], np.ndarray]) -> Line:
        return _line(label, table, [(order, choose(table, order)) for order in orders.values()], baseline=True)

    contenders: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for run in runs:
        contenders.setdefault(run.label, []).append((run.order, weights_of(run.picks, len(table.arms))))
    lines = [baseline(*yardstick) for yardstick in first]
    lines += [_line(label, table, played, baseline=False) for label, played in contenders.items()]
    lines.append(baseline("per-prompt oracle", _oracle))
    return Report(table=table, rounds=len(runs[0].order), seeds=tuple(orders), lines=tuple(lines), notes=tuple(notes))


def _line(label: str, table: Table, played: Sequence[tuple[np.ndarray, np.ndarray]], *, baseline: bool) -> Line:
    """From the order and the weights of every seed."""
    numbers: dict[str, list[float]] = {"reward": [], "realised": [], "best": [], "gain": [], "cost": []}
    for order, weights in played:
        expected = table.expected[order]
        reward = float((weights * expected).sum(axis=1).mean())
        among_best = expected >= expected.max(axis=1, keepdims=True) - _TIE
        numbers["reward"].append(reward)
        numbers["realised"].append(float((weights * table.rewards[order]).sum(axis=1).mean()))
        numbers["best"].append(float((weights * among_best).sum(axis=1).mean()))
        numbers["gain"].append(reward - float(expected[:, best_fixed(table, order)].mean()))
        calls = float(weights.sum())
        numbers["cost"].append(float((weights * table.costs[order]).sum()) / calls if calls else math.nan)
    shares = np.mean([weights.mean(axis=0) for _, weights in played], axis=0)
    return Line(
        label=label,
        baseline=baseline,
        reward=Spread.of(numbers["reward"]),
        realised=Spread.of(numbers["realised"]),
        best_share=Spread.of(numbers["best"]),
        gain=Spread.of(numbers["gain"]),
        cost=Spread.of(numbers["cost"]),
        shares=dict(zip(table.arms, shares.tolist(), strict=True)),
    )


# -- on the screen ---------------------------------------------------------------------------------------------------------


def render(report: Report) -> list[RenderableType]:
    """The two tables of a report: how every line did, and which arms it asked."""
    return [_scores(report), _shares(report)]


def _scores(report: Report) -> Grid:
    several = len(report.seeds) > 1
    table = report.table
    seeds = f", {len(report.seeds)} seeds (± sd)" if several else ""
    grid = Grid(title=f"{escape(table.name)}: {len(table.arms)} models, {report.rounds:,} rounds{seeds}", title_style="bold")
    grid.add_column("#", justify="right")
    grid.add_column("policy", overflow="fold")
    for heading in ("mean reward", "best arm", "gain over best fixed", *(["cost per call"] if table.has_costs else [])):
        grid.add_column(heading, justify="right")
    numbers = _numbered(report)
    for line in report.lines:
        gain = f"{line.gain.mean:+.4f}" + (f" ± {line.gain.sd:.4f}" if several else "")
        colour = "green" if line.gain.mean > 0 else "red" if line.gain.mean < 0 else "dim"
        cells = [
            f"{line.reward.mean:.4f}" + (f" ± {line.reward.sd:.4f}" if several else ""),
            f"{line.best_share.mean:.1%}",
            f"[{colour}]{gain}[/]",
            *(["" if math.isnan(line.cost.mean) else f"{line.cost.mean:.6f}"] if table.has_costs else []),
        ]
        grid.add_row(numbers.get(line.label, ""), escape(line.label), *cells, style="dim" if line.baseline else "")
    notes = [*report.notes, "best arm: share of the rounds in which an arm of highest reward was asked, ties included"]
    if table.has_expected:
        notes.append("rewards are the expected ones of the table; the policies learned from single outcomes")
    if table.dropped:
        notes.append(f"{table.dropped} prompts with holes were left out")
    grid.caption = escape("; ".join(notes))
    return grid


def _shares(report: Report) -> Grid:
    table = report.table
    numbers = _numbered(report)
    grid = Grid(title="share of the rounds per model", title_style="bold")
    grid.add_column("model", overflow="fold")
    for heading in ("mean reward", *(["mean cost"] if table.has_costs else []), *(f"#{number}" for number in numbers.values())):
        grid.add_column(heading, justify="right")
    by_label = {line.label: line for line in report.lines if not line.baseline}
    for k in np.argsort(-table.expected.mean(axis=0), kind="stable"):
        arm = table.arms[k]
        cells = [f"{table.expected[:, k].mean():.4f}", *([f"{table.costs[:, k].mean():.6f}"] if table.has_costs else [])]
        grid.add_row(escape(arm), *cells, *(f"{by_label[label].shares[arm]:.0%}" for label in numbers))
    stopped = [1.0 - sum(by_label[label].shares.values()) for label in numbers]
    if max(stopped) > 1e-9:
        grid.add_row("(stop)", "", *([""] if table.has_costs else []), *(f"{share:.0%}" for share in stopped))
    return grid


def _numbered(report: Report) -> dict[str, str]:
    """Contender -> its number in the tables."""
    return {line.label: str(i) for i, line in enumerate((line for line in report.lines if not line.baseline), start=1)}
