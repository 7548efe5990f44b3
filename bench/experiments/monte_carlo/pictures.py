"""What pictures of studies share: two panels, lines with seed bands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.experiments.monte_carlo.studies import Run, Runs
from service.cli.plotting import GREY, End, drawing

Everything = Mapping[str, Runs]
"""study -> its runs."""

Floats = npt.NDArray[np.float64]


@contextmanager
def panels(path: Path, heading: str, note: str, *, widths: Sequence[float] = (1.0, 1.0)) -> Iterator[Any]:
    """The two axes of a picture of 1,100 x 500 pixels, which is saved at the end. note: what lines and bands mean."""
    with drawing(path, (11.0, 5.0), colors=160) as figure:
        axes = figure.subplots(1, 2, width_ratios=list(widths))
        figure.suptitle(heading, x=0.008, ha="left", fontsize=11.5, fontweight="bold")
        figure.supxlabel(note, x=0.992, ha="right", fontsize=8.5, color=GREY)
        yield axes


def line(
    axes: Any,
    x: npt.NDArray[Any],
    rows: Floats,
    name: str,
    color: str,
    *,
    style: Any = "-",
    width: float = 1.8,
    log: bool = False,
    single: bool = False,
) -> End:
    """Mean of the seeds (S, n) and a band of one standard deviation; on a logarithmic scale, of the logarithm.

    single: every seed by itself instead, where a mean would hide that they do one thing or another.
    """
    if single:
        axes.plot(x, rows.T, color=color, linestyle=style, linewidth=0.9, alpha=0.7, zorder=2)
        return End(float(np.median(rows[:, -1])), name, color)
    shown = np.log(np.maximum(rows, 1e-9)) if log else rows
    mean, sd = shown.mean(axis=0), shown.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
    low, middle, high = (np.exp(v) if log else v for v in (mean - sd, mean, mean + sd))
    axes.plot(x, middle, color=color, linestyle=style, linewidth=width, zorder=3)
    axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0, zorder=2)
    return End(float(middle[-1]), name, color)


def moving(rows: npt.NDArray[Any], window: int) -> Floats:
    """(S, n) the mean of the last `window` values of each row, of fewer at its start."""
    sums = np.cumsum(np.pad(rows.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, rows.shape[1] + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[:, ends] - sums[:, starts]) / (ends - starts))


def so_far(rows: npt.NDArray[Any]) -> Floats:
    """(S, n) the mean of each row up to every column."""
    return np.asarray(np.cumsum(rows, axis=1) / np.arange(1, rows.shape[1] + 1))


def bands(count: int) -> str:
    """What lines and bands mean."""
    return f"lines: mean of {count} seeds; bands: ±1 standard deviation" if count > 1 else "one seed"


def picks_of(played: Sequence[Run]) -> npt.NDArray[np.uint8]:
    """(S, T) the picks of every seed."""
    return np.stack([run.series["picks"].astype(np.uint8) for run in played])
