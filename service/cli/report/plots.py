"""Plots of a report as SVG, in colors that the page sets, so that they follow its light or dark look."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bandits.evaluation.intervals import Interval
from bandits.evaluation.retrospective import Retrospective, self_normalized
from service.cli.plotting import LOOK, PALETTE, stack
from service.cli.report.report import Report

COLORS = {"#010101": "currentColor", "#020202": "var(--faint)", "#030303": "var(--accent)", "#040404": "var(--warm)"}
"""What matplotlib draws with -> what the page has."""
INK, FAINT, ACCENT, WARM = COLORS
BLOCKS = 40
"""Places over time."""


def svg(name: str, label: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """A picture. name: tells its ids from those of others on the page.  label: what a reader who sees no picture hears."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    look: Any = {
        **LOOK,
        "svg.hashsalt": name,
        "font.size": 10,
        "axes.grid": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": FAINT,
        "grid.alpha": 0.35,
    }
    out = io.StringIO()
    with rc_context(look):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.subplots()
        axes.patch.set_alpha(0.0)
        draw(axes)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # numbered alike in every picture
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    for drawn, set_by_page in COLORS.items():
        text = text.replace(drawn, set_by_page)
    described = f'<svg role="img" aria-label="{label}" '
    return text.replace("<svg ", described, 1)


def intervals(axes: Any, rows: Sequence[tuple[str, float, Interval, str]], *, zero: bool = False) -> None:
    """A point and its interval per row, the first on top. rows: name, value, interval, color."""
    for place, (_, value, interval, color) in enumerate(rows):
        axes.plot([interval.low, interval.high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=color, markersize=6)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.tick_params(length=0)
    if zero:
        axes.axvline(0.0, color=INK, linewidth=1.0)


def arms(report: Report) -> str | None:
    """What each fixed arm would have earned, and what was earned."""
    if report.reward is None:
        return None
    known = sorted(
        (arm for arm in report.arms if arm.fixed is not None), key=lambda arm: -(arm.fixed.value if arm.fixed else 0.0)
    )
    rows = [("as played", report.reward.value, report.reward.interval, WARM)]
    rows += [(short(f"always {arm.name}"), arm.fixed.value, arm.fixed.interval, ACCENT) for arm in known if arm.fixed]

    def draw(axes: Any) -> None:
        intervals(axes, rows)
        axes.set_xlabel(f"mean reward, with its interval ({report.percent})")

    return svg("arms", "mean reward as played and of every fixed arm", (10.0, 1.0 + 0.34 * len(rows)), draw)


def groups(report: Report) -> str | None:
    """The gain over the best fixed arm by group of prompts."""
    if report.prompt is None:
        return None
    rows = [
        (f"group {place}", group.gain.value, group.gain.interval, WARM if group.gain.interval.high < 0 else ACCENT)
        for place, group in enumerate(report.prompt.groups, 1)
        if group.gain is not None
    ]
    if not rows:
        return None

    def draw(axes: Any) -> None:
        intervals(axes, rows, zero=True)
        axes.set_xlabel(f"gain per decision over the best fixed arm (all intervals hold at once, {report.percent})")

    return svg("groups", "gain over the best fixed arm by group of prompts", (10.0, 1.0 + 0.34 * len(rows)), draw)


def gain(report: Report) -> str | None:
    """The gain over the best fixed arm up to each moment."""
    past = report.retrospective
    if past is None or report.gain is None or len(past.arms) < 2 * BLOCKS:
        return None
    whole = past.log_of(past.always(past.fixed(report.gain.best)))
    places = np.unique(np.linspace(len(past.arms) // 10, len(past.arms), BLOCKS).astype(int))
    values = []
    for end in places:
        part = past.part(np.arange(len(past.arms)) < end)
        values.append(part.known(part.played - self_normalized(part.log_of(whole.evaluated[:end]))))
    low, high = ([getattr(one.interval, side) for one in values] for side in ("low", "high"))

    def draw(axes: Any) -> None:
        axes.fill_between(places, low, high, color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(places, [one.value for one in values], color=ACCENT, linewidth=2.0)
        axes.axhline(0.0, color=INK, linewidth=1.0)
        axes.set_xlim(places[0], places[-1])
        axes.set_xlabel("decisions with a reward")
        axes.set_ylabel("gain so far")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.grid(axis="y")

    return svg("gain", "gain over the best fixed arm up to each decision", (10.0, 2.6), draw)


def shares(report: Report) -> str | None:
    """Which arms were drawn, over time: those of most decisions by name."""
    past = report.retrospective
    if past is None or len(past.arms) < 2 * BLOCKS:
        return None
    colors = colors_of_arms(report)
    return svg("shares", "share of each arm over time", (10.0, 2.6), lambda axes: draw_shares(axes, report, past, colors))


def colors_of_arms(report: Report) -> dict[int, str]:
    """By arm, in the order of their decisions. Of many arms, those of fewest decisions share the last color."""
    order = np.argsort([-arm.counts.decisions for arm in report.arms], kind="stable").tolist()
    if len(order) <= len(PALETTE):
        return {arm: PALETTE[arm] for arm in order}
    return {arm: PALETTE[min(place, len(PALETTE) - 1)] for place, arm in enumerate(order)}


def draw_shares(axes: Any, report: Report, past: Retrospective, colors: dict[int, str], *, blocks: int = BLOCKS) -> None:
    """Stacked shares of the arms in equal stretches of the decisions."""
    order = list(colors)
    named = order if len(order) <= len(PALETTE) else order[: len(PALETTE) - 1]
    rest = order[len(named) :]
    edges = np.linspace(0, len(past.arms), blocks + 1).astype(int)
    counts = [np.bincount(past.arms[a:b], minlength=len(colors)) / max(b - a, 1) for a, b in pairwise(edges)]
    table = np.array(counts)
    heights = [table[:, arm] for arm in named] + ([table[:, rest].sum(1)] if rest else [])
    names = [short(report.name(arm)) for arm in named]
    names += [f"{len(rest)} more"] * bool(rest)
    axes.set_xlabel("decisions with a reward")
    axes.set_ylabel("share of the arm")
    stack(axes, (edges[:-1] + edges[1:]) / 2, heights, names, [*(colors[arm] for arm in named), PALETTE[-1]][: len(heights)])


def short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= 28 else f"{name[:27]}…"
