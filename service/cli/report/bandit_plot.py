"""`nextarm plot`: one picture of a bandit as it is: who was drawn, what came of it, and what each arm is worth.

shares of the arms over time
reward over time: the mean of the newest tenth, with its interval
every arm: what it would have earned on all prompts, where the log can say it, else what it earned on those it was played for
"""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bandits.evaluation.intervals import Interval
from bandits.evaluation.retrospective import Retrospective
from service.cli.plotting import BLUE, INK, PALE, drawing
from service.cli.report.plots import BLOCKS, colors_of_arms, draw_shares, short
from service.cli.report.report import Report
from service.storage.base import StorageUnavailableError

LEAST_WINDOW = 20
"""Rewards in one mean, at least, where there are so many."""


def save_plot(path: Path, report: Report) -> None:
    """Draw into a file. Raises `StorageUnavailableError` where no decision has a reward of the arm that was drawn."""
    past = report.retrospective
    if past is None:
        count = report.counts["decisions"]
        raise StorageUnavailableError(f"{report.bandit}: none of its {count} decisions has a reward of the arm that was drawn")
    n, arms = len(past.arms), len(report.arms)
    heights = (2.4, 2.2, 0.7 + 0.28 * arms)
    with drawing(path, (9.0, sum(heights) + 1.0), dpi=130) as figure:
        figure.suptitle(f"{report.bandit}: {report.policy}, {n:,} decisions with a reward", x=0.01, ha="left", fontweight="bold")
        upper, middle, lower = figure.subplots(3, 1, height_ratios=heights)
        colors = colors_of_arms(report)
        draw_shares(upper, report, past, colors, blocks=min(BLOCKS, max(n // 5, 1)))
        _reward(middle, report, past)
        _arms(lower, report, past, colors)


def smoothed(
    rewards: np.ndarray, clusters: np.ndarray, *, window: int, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m,) places, means of the `window` rewards up to each, and half widths of their intervals by the normal distribution.
    clusters: (n,) numbers of what is independent, as of `Retrospective`.
    """
    center = rewards.mean()  # a large mean would leave no digits to the variance
    off = rewards - center
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (off, off**2))
    ends = np.unique(np.linspace(window, len(rewards), 200).astype(int))
    means = (sums[ends] - sums[ends - window]) / window
    variances = np.maximum((squares[ends] - squares[ends - window]) / window - means**2, 0.0) / max(window - 1, 1)
    if len(np.unique(clusters)) < len(clusters):
        for place, (end, mean) in enumerate(zip(ends, means, strict=True)):
            part = slice(end - window, end)
            _, names = np.unique(clusters[part], return_inverse=True)
            sums = np.bincount(names, off[part] - mean)
            variances[place] = (sums**2).sum() / window**2 * len(sums) / max(len(sums) - 1, 1)
    return ends, center + means, NormalDist().inv_cdf(0.5 + confidence / 2.0) * np.sqrt(variances)


def _reward(axes: Any, report: Report, past: Retrospective) -> None:
    window = min(max(len(past.rewards) // 10, LEAST_WINDOW), len(past.rewards))
    places, means, reach = smoothed(past.rewards, past.clusters, window=window, confidence=report.confidence)
    axes.fill_between(places, means - reach, means + reach, color=BLUE, alpha=0.18, linewidth=0)
    if len(places) == 1:  # a point, with its interval
        axes.errorbar(places, means, yerr=reach, color=BLUE, marker="o", markersize=6.5, clip_on=False, gid="reward")
    axes.plot(places, means, color=BLUE, linewidth=1.8)
    axes.axhline(float(past.rewards.mean()), color=INK, linewidth=0.9, linestyle=":")
    axes.set_xlim(0, len(past.rewards) if len(places) > 1 else 2 * len(past.rewards))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel(f"decisions with a reward; mean of the last {window:,} with its interval ({report.percent}); dotted: of all")
    axes.set_ylabel("reward")


def _arms(axes: Any, report: Report, past: Retrospective, colors: dict[int, str]) -> None:
    """The best on top. Filled: on all prompts. Hollow: on those that it was played for."""
    rows = [(arm, *_value(report, past, arm)) for arm in range(len(report.arms))]
    known = sorted((row for row in rows if row[1] is not None), key=lambda row: -(row[1] or 0.0))
    for place, (arm, value, interval, is_fixed) in enumerate(known):
        face = colors[arm] if is_fixed else "white"
        axes.plot(interval, [place, place], color=colors[arm], linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=colors[arm], markersize=6.5, markerfacecolor=face, markeredgewidth=1.6)
    unknown = [arm for arm, value, *_ in rows if value is None]
    for place in range(len(known), len(rows)):
        axes.text(0.01, place, "no reward yet", transform=axes.get_yaxis_transform(), va="center", color=PALE)
    order = [row[0] for row in known] + unknown
    axes.set_yticks(range(len(order)), [short(report.name(arm)) for arm in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(
        f"reward of each arm ({report.percent}); filled: had it always been played; hollow: where it was played, of which alone "
        "the log can speak",
        fontsize=8.5,
    )


def _value(report: Report, past: Retrospective, arm: int) -> tuple[float | None, Interval, bool]:
    """Reward and interval, and whether it is that of always playing the arm."""
    fixed = report.arms[arm].fixed
    if fixed is not None:
        return fixed.value, fixed.interval, True
    where = past.arms == arm
    if not where.any():
        return None, Interval(0.0, 0.0), False
    count = int(where.sum())
    _, (mean,), (reach,) = smoothed(past.rewards[where], past.clusters[where], window=count, confidence=report.confidence)
    return float(mean), Interval(float(mean - reach), float(mean + reach)), False
