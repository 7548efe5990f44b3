"""How every picture looks: size, colours, lines with seed bands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.experiments.monte_carlo.studies import Run, Runs

Everything = Mapping[str, Runs]
"""study -> its runs."""

Floats = npt.NDArray[np.float64]

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BROWN, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C564B",
    "#7F7F7F",
)
"""Okabe and Ito's colours, which colour-blind readers tell apart, and two more."""

LOOK: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.22,
    "legend.frameon": False,
    "legend.fontsize": 8.8,
    "legend.handlelength": 1.6,
}

COLOURS = 160
"""Of the palette that a picture is saved with."""


@contextmanager
def panels(path: Path, heading: str, note: str, *, widths: Sequence[float] = (1.0, 1.0)) -> Iterator[Any]:
    """The two axes of a picture of 1,100 x 500 pixels, which is saved at the end. note: what lines and bands mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    with plt.rc_context(LOOK), BytesIO() as buffer:
        figure, axes = plt.subplots(1, 2, figsize=(11.0, 5.0), dpi=100, width_ratios=list(widths), layout="constrained")
        figure.suptitle(heading, x=0.008, ha="left", fontsize=11.5, fontweight="bold")
        figure.supxlabel(note, x=0.992, ha="right", fontsize=8.5, color=GREY)
        yield axes
        figure.savefig(buffer, format="png")
        plt.close(figure)
        Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


LINE_HEIGHT = 0.036
"""Of a name beside a line, as a share of the height of the axes."""


class End(NamedTuple):
    """Where a line ends, and what it is called."""

    y: float
    name: str
    colour: str


def line(
    axes: Any,
    x: npt.NDArray[Any],
    rows: Floats,
    name: str,
    colour: str,
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
        axes.plot(x, rows.T, color=colour, linestyle=style, linewidth=0.9, alpha=0.7, zorder=2)
        return End(float(np.median(rows[:, -1])), name, colour)
    shown = np.log(np.maximum(rows, 1e-9)) if log else rows
    mean, sd = shown.mean(axis=0), shown.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
    low, middle, high = (np.exp(v) if log else v for v in (mean - sd, mean, mean + sd))
    axes.plot(x, middle, color=colour, linestyle=style, linewidth=width, zorder=3)
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
    return End(float(middle[-1]), name, colour)


def name_ends(axes: Any, ends: Sequence[End]) -> None:
    """Names at the right of the axes, each beside its line's end, none on top of another. To be called once limits are set."""
    x = axes.get_xlim()[1]
    to_share = axes.transData + axes.transAxes.inverted()
    wanted = sorted((float(to_share.transform((x, end.y))[1]), end) for end in ends)
    heights = np.array([LINE_HEIGHT * (1 + end.name.count("\n")) + 0.008 for _, end in wanted])
    gaps = (heights[1:] + heights[:-1]) / 2.0
    places = np.clip([place for place, _ in wanted], 0.0, 1.0)
    for _ in range(300):  # push neighbours apart, a little at a time, so that groups stay centred
        for k, gap in enumerate(gaps):
            overlap = gap - (places[k + 1] - places[k])
            if overlap > 0.0:
                places[k] -= overlap / 2.0
                places[k + 1] += overlap / 2.0
    places += max(0.0, heights[0] / 2.0 - 0.03 - places[0]) - max(0.0, places[-1] + heights[-1] / 2.0 - 1.03)
    look: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    for place, (_, end) in zip(places, wanted, strict=True):
        axes.annotate(end.name, (1.0, place), xytext=(5, 0), va="center", color=end.colour, fontsize=8.8, linespacing=1.1, **look)


def plain(axis: Any, ticks: Sequence[float]) -> None:
    """Plain numbers at these ticks of a logarithmic axis."""
    axis.set_major_locator(_ticker().FixedLocator(ticks))
    axis.set_minor_locator(_ticker().NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


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
