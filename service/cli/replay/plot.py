"""The plot of a replay: cumulative mean reward per contender against the baselines, and the share of each arm over time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.cli.replay.player import Run
from service.cli.replay.report import Report, weights_of
from service.cli.replay.tables import Table

_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F")  # Okabe-Ito and two more
_NAMED = 12  # arms with a shade of their own; the others share the last one
_BINS = 25
_PANELS = 4


def save_plot(path: Path, report: Report, runs: Sequence[Run]) -> None:
    """Draw the picture into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = _most_telling(report)
    with plt.rc_context(
        {"text.parse_math": False, "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    ):
        figure = plt.figure(figsize=(11.0, 7.6), dpi=130, layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.5, 1.0), squeeze=False)[:, 0]
        _rewards(upper.subplots(), report, runs)
        _shares(lower, report.table, {label: [run for run in runs if run.label == label] for label in shown})
        figure.savefig(path)
        plt.close(figure)


def _rewards(axes: Any, report: Report, runs: Sequence[Run]) -> None:
    """Cumulative mean reward over the rounds: mean over the seeds, and a band of one standard deviation."""
    table, rounds = report.table, report.rounds
    x = np.arange(1, rounds + 1)
    calm = rounds // 50  # the first rounds jump about: they would set the scale and hide the rest
    contenders = [line for line in report.lines if not line.baseline]
    looks = {line.label: (_LINES[i % len(_LINES)], "-" if i < len(_LINES) else "--") for i, line in enumerate(contenders)}
    extremes = [line.reward.mean for line in report.lines[:-1]]
    for line in sorted(contenders, key=lambda line: -line.reward.mean):
        curves = np.array([_cumulative_mean(table, run) for run in runs if run.label == line.label])
        mean, sd = curves.mean(axis=0), curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(rounds)
        colour, style = looks[line.label]
        label = f"{line.reward.mean:.3f}  {line.label}"
        axes.plot(x[calm:], mean[calm:], style, color=colour, linewidth=1.8, label=label, zorder=3)
        axes.fill_between(x[calm:], (mean - sd)[calm:], (mean + sd)[calm:], color=colour, alpha=0.12, linewidth=0)
        extremes += [float((mean - sd)[2 * calm :].min()), float((mean + sd)[2 * calm :].max())]
    _yardsticks(axes, report, bottom=min(extremes), top=max(extremes))
    axes.set_xlim(calm + 1, max(rounds, calm + 2))
    axes.set_xlabel("round")
    axes.set_ylabel(f"mean {'expected reward' if table.has_expected else 'reward'} up to this round")
    band = f"; band: one standard deviation over {len(report.seeds)} seeds" if len(report.seeds) > 1 else ""
    title = f"{table.name}: {len(table.arms)} models, {rounds:,} rounds{band}"
    axes.set_title("\n".join([title, *report.notes]), loc="left")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _yardsticks(axes: Any, report: Report, *, bottom: float, top: float) -> None:
    """A level line per yardstick, and the scale. An oracle that would squeeze everything else is only named in the legend."""
    margin = 0.08 * max(top - bottom, 1e-6)
    *yardsticks, oracle = (line for line in report.lines if line.baseline)
    dashes: tuple[Any, ...] = (":", "--", (0, (5, 1, 1, 1)))
    for line, style in zip(yardsticks, dashes, strict=False):
        axes.axhline(
            line.reward.mean, linestyle=style, color="black", linewidth=1.0, label=f"{line.reward.mean:.3f}  {line.label}"
        )
    outside = oracle.reward.mean > top + 4 * margin
    level, note = (np.nan, " (above the picture)") if outside else (oracle.reward.mean, "")
    label = f"{oracle.reward.mean:.3f}  {oracle.label}{note}"
    axes.axhline(level, linestyle="-.", color="#009E73", linewidth=1.0, label=label)
    axes.set_ylim(bottom - margin, (top if outside else max(top, level)) + margin)


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
    """Stacked shares of the arms over time, one panel per contender, averaged over the seeds."""
    import matplotlib

    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    order = np.argsort(-table.expected.mean(axis=0), kind="stable")
    named, rest = order[:_NAMED], order[_NAMED:]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.08, 0.98, len(named)))  # dark = good on average
    for axes, (label, played) in zip(panels, runs.items(), strict=True):
        centres, shares = _binned(played, len(table.arms))
        heights = [shares[:, k] for k in named] + ([shares[:, rest].sum(axis=1)] if len(rest) else [])
        names = [f" {table.arms[k]}" for k in named]  # a name that starts with _ would be hidden from the legend
        names += [f" {len(rest)} more"] if len(rest) else []
        axes.stackplot(centres, heights, labels=names, colors=[*shades, "#DDDDDD"], edgecolor="white", linewidth=0.4)
        axes.set_xlim(centres[0], centres[-1] if len(centres) > 1 else centres[0] + 1)
        axes.set_ylim(0, 1)
        axes.set_title(textwrap.fill(label, 104 // len(runs)), loc="left", fontsize=9)
        axes.set_xlabel("round")
    panels[0].set_ylabel("share of the rounds")
    panels[0].yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False, title="model, best on average last")


def _binned(runs: Sequence[Run], arms: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends (n,) of equal stretches of rounds, and the shares (n, K) in each, averaged over the runs."""
    rounds = len(runs[0].picks)
    edges = np.unique(np.linspace(0, rounds, min(_BINS, rounds) + 1).astype(int))
    weights = np.mean([weights_of(run.picks, arms) for run in runs], axis=0)
    totals = np.vstack([np.zeros(arms), weights.cumsum(axis=0)])[edges]
    return (edges[:-1] + edges[1:]) / 2, np.diff(totals, axis=0) / np.diff(edges)[:, None]
