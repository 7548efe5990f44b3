"""The plot of a replay: cumulative mean reward per contender against the baselines, and the share of each arm over time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.cli.plotting import FREE, INK, LINE, End, colors_of, drawing, name_ends, shades, stack
from service.cli.replay.player import Run
from service.cli.replay.report import Line, Report, weights_of
from service.cli.replay.tables import Table

_NAMED = 12  # arms with a color of their own; the others share one
_BINS = 25
_PANELS = 4


def save_plot(path: Path, report: Report, runs: Sequence[Run]) -> None:
    """Draw the picture into a PNG file."""
    shown = _most_telling(report)
    with drawing(path, (11.0, 7.6), dpi=130) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.5, 1.0), squeeze=False)[:, 0]
        _rewards(upper.subplots(), report, runs)
        _shares(lower, report.table, {label: [run for run in runs if run.label == label] for label in shown})


def _rewards(axes: Any, report: Report, runs: Sequence[Run]) -> None:
    """Cumulative mean reward over the rounds: mean over the seeds, and a band of one standard deviation."""
    table, rounds = report.table, report.rounds
    x = np.arange(1, rounds + 1)
    calm = rounds // 50  # the first rounds jump about: they would set the scale and hide the rest
    contenders = [line for line in report.lines if not line.baseline]
    colors = colors_of([line.label for line in contenders])
    extremes, ends = [line.reward.mean for line in report.lines[:-1]], []
    for place, line in enumerate(contenders):
        curves = np.array([_cumulative_mean(table, run) for run in runs if run.label == line.label])
        mean, sd = curves.mean(axis=0), curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(rounds)
        color, style = colors[line.label], "-" if place < len(FREE) else "--"
        axes.plot(x[calm:], mean[calm:], style, color=color, linewidth=1.8, zorder=3)
        axes.fill_between(x[calm:], (mean - sd)[calm:], (mean + sd)[calm:], color=color, alpha=0.12, linewidth=0)
        extremes += [float((mean - sd)[2 * calm :].min()), float((mean + sd)[2 * calm :].max())]
        ends.append(End(float(mean[-1]), _named(line), color))
    ends += _yardsticks(axes, report, bottom=min(extremes), top=max(extremes))
    axes.set_xlim(calm + 1, max(rounds, calm + 2))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("round")
    axes.set_ylabel(f"mean {'expected reward' if table.has_expected else 'reward'} up to this round")
    band = f"; band: one standard deviation over {len(report.seeds)} seeds" if len(report.seeds) > 1 else ""
    title = f"{table.name}: {len(table.arms)} models, {rounds:,} rounds{band}"
    axes.set_title("\n".join([title, *report.notes]))
    axes.grid(axis="x", visible=False)
    name_ends(axes, ends)


def _named(line: Line, note: str = "") -> str:
    """What stands beside a line; at most two rows."""
    text = f"{line.reward.mean:.3f} {line.label}{note}"
    return textwrap.fill(text, 34, max_lines=2, placeholder=" …", subsequent_indent="      ", break_on_hyphens=False)


def _yardsticks(axes: Any, report: Report, *, bottom: float, top: float) -> list[End]:
    """A black level line per yardstick, and the scale. An oracle that would squeeze everything else is only named."""
    margin = 0.08 * max(top - bottom, 1e-6)
    *yardsticks, oracle = (line for line in report.lines if line.baseline)
    dashes: tuple[Any, ...] = (":", "--", (0, (5, 1, 1, 1)))
    ends = []
    for line, style in zip(yardsticks, dashes, strict=False):
        axes.axhline(line.reward.mean, linestyle=style, color=INK, linewidth=1.0)
        ends.append(End(line.reward.mean, _named(line), INK))
    is_outside = oracle.reward.mean > top + 4 * margin
    highest = (top if is_outside else max(top, oracle.reward.mean)) + margin
    axes.set_ylim(bottom - margin, highest)
    if is_outside:
        return [*ends, End(highest, _named(oracle, ", above the picture"), INK)]
    axes.axhline(oracle.reward.mean, linestyle="-.", color=INK, linewidth=1.0)
    return [*ends, End(oracle.reward.mean, _named(oracle), INK)]


def _cumulative_mean(table: Table, run: Run) -> np.ndarray:
    """(R,) mean reward of the rounds so far; a stop earns nothing."""
    earned = (weights_of(run.picks, len(table.arms)) * table.expected[run.order]).sum(axis=1)
    mean: np.ndarray = earned.cumsum() / np.arange(1, len(earned) + 1)
    return mean


def _most_telling(report: Report) -> list[str]:
    """The contenders whose shares are drawn: the best few, in the order of the report; those that cannot learn only if alone."""
    contenders = [line for line in report.lines if not line.baseline]
    learners = [line for line in contenders if line.label.split()[0] not in {"random", "one-arm"}] or contenders
    best = sorted(learners, key=lambda line: -line.reward.mean)[:_PANELS]
    return [line.label for line in learners if line in best]


def _shares(figure: Any, table: Table, runs: dict[str, list[Run]]) -> None:
    """Stacked shares of the arms over time, one panel per contender, averaged over the seeds; the best arm on average below."""
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    order = np.argsort(-table.expected.mean(axis=0), kind="stable")
    named, rest = order[:_NAMED], order[_NAMED:]
    colors = [*shades(len(named)), LINE][: len(named) + bool(len(rest))]
    names = [textwrap.shorten(table.arms[k], 26, placeholder="…") for k in named] + [f"{len(rest)} more"] * bool(len(rest))
    for place, (axes, (label, played)) in enumerate(zip(panels, runs.items(), strict=True), 1):
        centers, shares = _binned(played, len(table.arms))
        heights = [shares[:, k] for k in named] + ([shares[:, rest].sum(axis=1)] if len(rest) else [])
        axes.set_title(textwrap.fill(label, 104 // len(runs)), fontsize=9)
        axes.set_xlabel("round")
        stack(axes, centers, heights, names, colors, named=place == len(runs))
    panels[0].set_ylabel("share of the rounds")


def _binned(runs: Sequence[Run], arms: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends (n,) of equal stretches of rounds, and the shares (n, K) in each, averaged over the runs."""
    rounds = len(runs[0].picks)
    edges = np.unique(np.linspace(0, rounds, min(_BINS, rounds) + 1).astype(int))
    weights = np.mean([weights_of(run.picks, arms) for run in runs], axis=0)
    totals = np.vstack([np.zeros(arms), weights.cumsum(axis=0)])[edges]
    return (edges[:-1] + edges[1:]) / 2, np.diff(totals, axis=0) / np.diff(edges)[:, None]
