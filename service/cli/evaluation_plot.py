"""The plot of an evaluation: every policy with its intervals and its verdict, the best value on top, and below the others those
that the log cannot speak of.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.cli.plotting import BLUE, GREEN, GREY, INK, PALE, YELLOW, drawing

MARKS: Mapping[str, tuple[str, str]] = {
    "answer": ("o", BLUE),
    "wide": ("D", YELLOW),
    "bounded": ("s", GREEN),
    "cannot_answer": ("x", GREY),
}
"""Verdict -> marker and color: either alone tells it."""


def save_plot(path: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw into a file. results: of an evaluation.  rows: its policies, the best value first."""
    from matplotlib.lines import Line2D

    known = sorted((row for row in rows if row["value"] is not None), key=lambda row: row["verdict"] == "cannot_answer")
    labels = [_label(row["label"]) for row in known]
    lines = sum(label.count("\n") + 1 for label in labels)
    with drawing(path, (9.0, 1.9 + 0.3 * lines), dpi=130) as figure:
        axes = figure.subplots()
        low, high = _limits(known)
        for place, row in enumerate(known):
            mark, color = MARKS[row["verdict"]]
            if row["anytime_interval"] is not None:
                axes.plot(row["anytime_interval"], [place, place], color=color, linewidth=1.2, alpha=0.8)
            axes.plot(row["interval"], [place, place], color=color, linewidth=4.5, alpha=0.55, solid_capstyle="butt")
            axes.plot(min(max(row["value"], low), high), place, mark, color=color, markersize=7, markeredgewidth=1.8)
        axes.axvline(results["behaviour"]["value"], color=INK, linewidth=0.9, linestyle=":", zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_yticks(range(len(known)), labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"mean reward by {results['estimator']}; dotted: as it was played")
        axes.set_title(f"{_label(results['bandit'])}: {results['decisions']:,} decisions with a reward", fontsize=10.5)
        percent = f"{100 * results['confidence']:g} %"
        handles = [Line2D([], [], color=PALE, linewidth=4.5, alpha=0.55, label=f"ordinary interval, {percent}")]
        if any(row["anytime_interval"] is not None for row in known):
            handles.append(Line2D([], [], color=PALE, linewidth=1.2, label=f"anytime interval, {percent}"))
        for verdict, (mark, color) in MARKS.items():
            if any(row["verdict"] == verdict for row in known):
                handles.append(
                    Line2D([], [], color=color, marker=mark, markeredgewidth=1.8, linestyle="", label=verdict.replace("_", " "))
                )
        figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _label(text: str) -> str:
    """At most three lines."""
    return textwrap.fill(text, 34, max_lines=3, placeholder=" …", break_on_hyphens=False)


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Of the intervals of policies that can be judged; what is wider runs out of the picture."""
    judged = [row for row in rows if row["verdict"] != "cannot_answer"] or rows
    pairs = [pair for row in judged for pair in (row["interval"], row["anytime_interval"] or [])]
    ends = [end for pair in pairs for end in pair if end is not None]
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
