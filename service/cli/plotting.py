"""How every plot looks: one palette, plain axes, names at the ends of lines, small files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service import install_hint
from service.storage.base import StorageUnavailableError

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BROWN, GREY = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C564B",
    "#7F7F7F",
)
"""The colors of Okabe and Ito 2008, which color-blind readers tell apart on light and dark, and two more."""
INK, PALE, LINE = "#1A1A1A", "#6B6B6B", "#D0D0D0"
"""Text, notes, and rules between parts."""
FIXED: Mapping[str, str] = {"random": GREY, "greedy": BROWN}
"""Baselines that have the same color in every plot. What cannot be reached, such as an oracle, is black."""
FREE = tuple(color for color in PALETTE if color not in FIXED.values())

LOOK: Mapping[str, Any] = {
    "text.parse_math": False,  # names may hold a dollar sign
    "svg.fonttype": "none",  # text that can be searched
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
SUFFIXES = (".png", ".svg", ".pdf")
NAME_SIZE = 8.8
"""Points, of a name beside its line."""


def check_plot(path: Path, *, option: str = "--plot", extra: str = "report") -> None:
    """`StorageUnavailableError` where a plot cannot be drawn into this file. option: that named it.  extra: of the package."""
    if path.suffix.lower() not in SUFFIXES:
        raise StorageUnavailableError(f"{option} {path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise StorageUnavailableError(f"{option} {path}: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise StorageUnavailableError(f"{option} needs matplotlib: {install_hint(extra)}")


def colors_of(names: Sequence[str], palette: Sequence[str] = FREE) -> dict[str, str]:
    """A color per name: the fixed one, else the next that is free, in the order of the names."""
    others = [name for name in names if name not in FIXED]
    return {**FIXED, **{name: palette[place % len(palette)] for place, name in enumerate(others)}}


@contextmanager
def drawing(path: Path, size: tuple[float, float], *, dpi: int = 100, colors: int = 200, **look: Any) -> Iterator[Any]:
    """A figure of so many inches, saved under this name at the end. colors: that a PNG is reduced to, which halves its size."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {**LOOK, **look}
    with rc_context(settings):
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() != ".png":
            figure.savefig(path)
            return
        from PIL import Image

        with BytesIO() as buffer:
            figure.savefig(buffer, format="png")
            whole = Image.open(buffer).convert("RGB")
            whole.quantize(colors, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


class End(NamedTuple):
    """Where a line ends, and what it is called."""

    y: float
    name: str
    color: str


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels of these heights, none on top of another and all between `low` and `high` where there is room; as near
    as can be to where they are wanted, in ascending order.
    """
    gaps = [(a + b) / 2.0 for a, b in zip(heights[1:], heights[:-1], strict=True)]
    offsets = np.concatenate([[0.0], np.cumsum(gaps)])
    # Least squares under the order is isotonic regression of the places less the room that the labels below take.
    blocks: list[tuple[float, int]] = []
    for value in np.asarray(wanted, dtype=float) - offsets:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    placed = np.concatenate([np.full(count, mean) for mean, count in blocks]) if blocks else np.empty(0)
    bottom, top = low + heights[0] / 2.0, high - heights[-1] / 2.0 - offsets[-1]
    found: list[float] = (np.clip(placed, bottom, max(bottom, top)) + offsets).tolist()
    return found


def name_ends(axes: Any, ends: Sequence[End]) -> None:
    """Names at the right of the axes, each beside its line's end, none on top of another. To be called once limits are set."""
    if not ends:
        return
    root = axes.figure.figure
    root.draw_without_rendering()  # only then the height is known
    points = axes.get_window_extent().height / root.dpi * 72.0
    x = axes.get_xlim()[1]
    to_share = axes.transData + axes.transAxes.inverted()
    wanted = sorted((min(max(float(to_share.transform((x, end.y))[1]), 0.0), 1.0), end) for end in ends)
    heights = [(1.13 * NAME_SIZE * (1 + end.name.count("\n")) + 2.0) / points for _, end in wanted]
    places = spread([place for place, _ in wanted], heights, -0.03, 1.03)
    look: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    for place, (_, end) in zip(places, wanted, strict=True):
        axes.annotate(
            end.name, (1.0, place), xytext=(5, 0), va="center", color=end.color, fontsize=NAME_SIZE, linespacing=1.1, **look
        )


def stack(axes: Any, x: Any, heights: Sequence[Any], names: Sequence[str], colors: Sequence[str], *, named: bool = True) -> None:
    """Shares that sum to 1, one on top of another from the bottom; a single one as wide as the picture.
    named: each is called by its name at its end.
    """
    if len(x) == 1:
        x, heights = (x[0] - 0.5, x[0] + 0.5), [(height[0], height[0]) for height in heights]
    axes.stackplot(x, heights, colors=colors, edgecolor="white", linewidth=0.4)
    axes.set(xlim=(x[0], x[-1]), ylim=(0.0, 1.0))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(visible=False)
    if named:
        last = [float(height[-1]) for height in heights]
        middles = np.cumsum(last) - np.array(last) / 2.0
        name_ends(axes, [End(*one) for one in zip(middles.tolist(), names, colors, strict=True)])


def shades(count: int) -> Sequence[str]:
    """So many colors for arms: those of the palette, and where there are more, steps of a dark-to-light scale."""
    if count <= len(PALETTE):
        return PALETTE[:count]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps["viridis"](np.linspace(0.02, 0.86, count))]


def plain(axis: Any, ticks: Sequence[float]) -> None:
    """Plain numbers at these ticks of a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
