"""The plot of an evaluation: every policy with its intervals and its verdict, the best value on top, and below the others those
that the log cannot speak of.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.storage.base import StorageUnavailableError

SUFFIXES = (".png", ".svg", ".pdf")
MARKS: Mapping[str, tuple[str, str]] = {
    "answer": ("o", "#0072B2"),
    "wide": ("D", "#E69F00"),
    "bounded": ("s", "#009E73"),
    "cannot_answer": ("x", "#8A8A8A"),
}
"""Verdict -> marker and color: either alone tells it."""


def check_plot(path: Path) -> None:
    """`StorageUnavailableError` where a plot cannot be drawn into this file."""
    if path.suffix.lower() not in SUFFIXES:
        raise StorageUnavailableError(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise StorageUnavailableError(f"--plot {path}: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise StorageUnavailableError("--plot needs matplotlib: pip install 'nextarm[report]'")


def save_plot(path: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw into a file. results: of an evaluation.  rows: its policies, the best value first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    look: Any = {
        "text.parse_math": False,
        "svg.fonttype": "none",  # text that can be searched
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    known = sorted((row for row in rows if row["value"] is not None), key=lambda row: row["verdict"] == "cannot_answer")
    with plt.rc_context(look):
        labels = [_label(row["label"]) for row in known]
        lines = sum(label.count("\n") + 1 for label in labels)
        figure = plt.figure(figsize=(9.0, 1.9 + 0.3 * lines), dpi=130, layout="constrained")
        axes = figure.subplots()
        low, high = _limits(known)
        for place, row in enumerate(known):
            mark, color = MARKS[row["verdict"]]
            if row["anytime_interval"] is not None:
                axes.plot(row["anytime_interval"], [place, place], color=color, linewidth=1.2, alpha=0.8)
            axes.plot(row["interval"], [place, place], color=color, linewidth=4.5, alpha=0.55, solid_capstyle="butt")
            axes.plot(min(max(row["value"], low), high), place, mark, color=color, markersize=7, markeredgewidth=1.8)
        axes.axvline(results["behaviour"]["value"], color="black", linewidth=0.9, linestyle=":", zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_yticks(range(len(known)), labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(f"mean reward by {results['estimator']}; dotted: as it was played")
        axes.set_title(
            f"{_label(results['bandit'])}: {results['decisions']:,} decisions with a reward", loc="left", fontsize=10.5
        )
        percent = f"{100 * results['confidence']:g} %"
        handles = [Line2D([], [], color="#555555", linewidth=4.5, alpha=0.55, label=f"ordinary interval, {percent}")]
        if any(row["anytime_interval"] is not None for row in known):
            handles.append(Line2D([], [], color="#555555", linewidth=1.2, label=f"anytime interval, {percent}"))
        for verdict, (mark, color) in MARKS.items():
            if any(row["verdict"] == verdict for row in known):
                handles.append(
                    Line2D([], [], color=color, marker=mark, markeredgewidth=1.8, linestyle="", label=verdict.replace("_", " "))
                )
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path)
        plt.close(figure)


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
