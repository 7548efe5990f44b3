"""The pictures of the demo: one that shows the idea, for the README, and one per scene.

    a scene:  label | strip of the latest pictures, framed in the painter's color | who painted, over the rounds | numbers

Both are drawn in points of the page that shows them, 830 wide, at twice that resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.painters_parts import scores
from examples.painters_parts.gallery import Gallery, Served
from examples.painters_parts.painters import Painter, Wish
from examples.painters_parts.scenes import Column, Scene
from service.cli.plotting import BLUE, GREEN, GREY, INK, LINE, ORANGE, PALE, PINK, YELLOW, drawing

PAINT = {"stencil": BLUE, "ember": ORANGE, "postcard": PINK, "splash": YELLOW, "atelier": GREEN}
"""A color per painter."""
WIDTH, MARGIN, LABEL, SHOWN, SIDE, PITCH, FRAME = 830, 10, 84, 5, 70, 74, 3
STRIP, SHARE, BINS = SHOWN * PITCH, 76, 22
GOOD, BAD = "#00734F", "#B03000"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contender in the report. learned: a bandit, not a baseline."""

    label: str
    served: Served
    values: Mapping[str, float]
    learned: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A scene with what came of it. rows: everyone.  shown: those with a strip."""

    scene: Scene
    rows: Sequence[Row]

    @property
    def decisive(self) -> Column:
        """What the scene is about."""
        return self.scene.columns[0]

    @property
    def holds(self) -> bool:
        """Whether the scene showed what it was to show."""
        return self.scene.holds({row.label: row.values for row in self.rows})

    @property
    def shown(self) -> list[Row]:
        """Who learned, random, and two of the others."""
        learned = [row for row in self.rows if row.learned]
        if self.scene.beside:
            return [*learned, *(row for row in self.rows if row.label in ("random", *self.scene.beside))]
        others = [row for row in self.rows if not row.learned and row.label != "random"]
        others.sort(key=lambda row: -self.decisive.better * row.values[self.decisive.name])
        return [*learned, *(row for row in self.rows if row.label == "random"), *others[:2]]


def row(scene: Scene, label: str, served: Served, *, learned: bool) -> Row:
    """The numbers of what was served."""
    return Row(
        label=label,
        served=served,
        learned=learned,
        values={column.name: column.score(scene.gallery, served) for column in scene.columns},
    )


def chosen(gallery: Gallery, served: Served, *, count: int = SHOWN) -> Served:
    """(count, 3) the latest pictures, the last of each round; where prompts come again, of the most frequent one alone."""
    last = scores.last(served)
    if gallery.texts.shape[1] and len(set(gallery.wishes)) <= 16:
        ((wish, _),) = Counter(gallery.wishes).most_common(1)
        last = last[[gallery.wishes[t] == wish for t in last[:, 0]]]
    return last[-count:]


@contextmanager
def _canvas(path: Path, height: float, note: str) -> Iterator[Any]:
    """Axes in points from the upper left corner."""
    with drawing(path, (WIDTH / 100, height / 100), dpi=200, colors=256, **{"font.family": "DejaVu Sans"}) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.axis("off")
        axes.text(MARGIN, height - 5, "↑ more is better   ↓ less is better", va="bottom", color=PALE, fontsize=7)
        axes.text(WIDTH - MARGIN, height - 5, note, ha="right", va="bottom", color=PALE, fontsize=6.5)
        yield axes


# -- a scene ---------------------------------------------------------------------------------------------------------------------


def save_scene(path: Path, panel: Panel, *, note: str) -> None:
    """The latest pictures of a few rows, who painted them, and every number."""
    scene = panel.scene
    top = 90
    rows = len(panel.shown) + bool(scene.references)
    with _canvas(path, top + PITCH * rows + 34, note) as axes:
        axes.text(MARGIN, 9, scene.title, fontsize=11.5, fontweight="bold", va="top", color=INK)
        axes.text(MARGIN, 30, scene.question, fontsize=7.5, va="top", color=PALE)
        verdict, color = ("shown: ", GOOD) if panel.holds else ("not shown: ", BAD)
        axes.text(MARGIN, 44, verdict + scene.claim, fontsize=7.5, va="top", color=color)
        left = MARGIN + LABEL + STRIP + 6
        _lines(axes, left, top - 6, ["who painted,", "over time"], step=10, fontsize=6.8, color=PALE)
        for n, column in enumerate(scene.columns):
            *before, last = column.name.split(" ", 1)
            words = [" ".join([_arrow(column), *before]), last]
            weight = "bold" if n == 0 else "normal"
            _lines(axes, _number(n), top - 6, words, step=11, ha="right", fontsize=7.2, fontweight=weight, color=INK)
        if scene.gallery.texts.shape[1]:
            _prompts(axes, top, [scene.gallery.wishes[t] for t in chosen(scene.gallery, panel.shown[0].served)[:, 0]])
        here = float(top)
        if scene.references:
            axes.text(MARGIN, here + SIDE / 2, "the reference", va="center", fontsize=8.5, color=INK, style="italic")
            _strip(axes, here, scene.references[:SHOWN], [None] * SHOWN)
            here += PITCH
        for row in panel.shown:
            _row(axes, panel, row, here)
            here += PITCH
        _key(axes, here + 4, scene.gallery.painters)


def _arrow(column: Column) -> str:
    """Whether more of it is better."""
    return "↑" if column.better > 0 else "↓"


def _row(axes: Any, panel: Panel, row: Row, y: float) -> None:
    gallery = panel.scene.gallery
    weight = "bold" if row.learned else "normal"
    axes.text(
        MARGIN,
        y + SIDE / 2,
        row.label.partition(",")[0].replace(" ", "\n", 1),
        va="center",
        fontsize=8.5,
        fontweight=weight,
        color=INK,
    )
    latest = chosen(gallery, row.served)
    _strip(axes, y, gallery.shown(latest), [gallery.painters[k] for k in latest[:, 1]])
    _shares(axes, gallery, row.served, y)
    for n, column in enumerate(panel.scene.columns):
        text = column.form.format(row.values[column.name])
        bold = weight if n == 0 else "normal"
        axes.text(_number(n), y + SIDE / 2, text, ha="right", va="center", fontsize=8.5, fontweight=bold, color=INK)


def _number(column: int) -> float:
    """Right edge of a column of numbers."""
    return MARGIN + LABEL + STRIP + SHARE + 62 + column * 54


def _key(axes: Any, y: float, painters: Sequence[Painter]) -> None:
    """Whose frame has which color."""
    for n, painter in enumerate(painters):
        x = MARGIN + LABEL + n * PITCH
        axes.text(x, y, painter.name, va="top", fontsize=7.5, fontweight="bold", color=PAINT[painter.name])


def _lines(axes: Any, x: float, y: float, words: Sequence[str], *, step: float, **look: Any) -> None:
    """Lines of text that end at the same baseline as those of any neighbor, whatever their letters."""
    for n, line in enumerate(reversed(words)):
        axes.text(x, y - n * step, line, va="baseline", **look)


def _prompts(axes: Any, y: float, wishes: Sequence[Wish], *, left: float = MARGIN + LABEL) -> None:
    """What was asked for, above each picture of a strip."""
    for n, wish in enumerate(wishes):
        _lines(axes, left + n * PITCH + SIDE / 2, y - 5, [wish.colour, wish.shape], step=9, ha="center", fontsize=6.8, color=PALE)


def _strip(axes: Any, y: float, pictures: Sequence[Image.Image], painters: Sequence[Painter | None]) -> None:
    for n, (picture, painter) in enumerate(zip(pictures, painters, strict=True)):
        x = MARGIN + LABEL + n * PITCH
        color = GREY if painter is None else PAINT[painter.name]
        axes.fill([x, x + SIDE, x + SIDE, x], [y, y, y + SIDE, y + SIDE], color=color, linewidth=0)
        inner = (x + FRAME, x + SIDE - FRAME, y + SIDE - FRAME, y + FRAME)
        axes.imshow(np.asarray(picture), extent=inner, aspect="auto", interpolation="nearest", zorder=3)


def _shares(axes: Any, gallery: Gallery, served: Served, y: float) -> None:
    """Stacked columns: the share of each painter, from the first rounds to the last."""
    table = scores.shares(gallery, served, bins=BINS)
    left, wide = MARGIN + LABEL + STRIP + 6, SHARE / BINS
    for n, stretch in enumerate(table):
        base, x = y + SIDE, left + n * wide
        for share, painter in zip(stretch, gallery.painters, strict=True):
            upper = base - share * SIDE
            axes.fill([x, x + wide, x + wide, x], [base, base, upper, upper], color=PAINT[painter.name], linewidth=0)
            base = upper


# -- all scenes ------------------------------------------------------------------------------------------------------------------


def save_overview(path: Path, panels: Sequence[Panel], *, note: str) -> None:
    """Pictures of the first scene beside random choices, and of every scene the number that it is about."""
    first = panels[0]
    beside = [row for row in first.shown if row.label == "random" or row.learned]
    width, top = (WIDTH - 2 * MARGIN) / 5, 86
    under = top + PITCH * len(beside) + 34
    with _canvas(path, under + 142, note) as axes:
        axes.text(
            MARGIN, 9, "Painters behind the service: whom to ask for which picture?", fontsize=12, fontweight="bold", va="top"
        )
        said = "Their PNG files are posted; the service embeds and scores them, and learns whom to ask. Frames tell who painted."
        axes.text(MARGIN, 31, said, fontsize=8, va="top", color=PALE)
        gallery = first.scene.gallery
        latest = [chosen(gallery, row.served, count=OVERVIEW) for row in beside]
        if gallery.texts.shape[1]:
            _prompts(axes, top, [gallery.wishes[t] for t in latest[0][:, 0]])
        right = MARGIN + LABEL + OVERVIEW * PITCH + 8
        _lines(axes, right, top - 5, [f"{first.decisive.name} {_arrow(first.decisive)}"], step=9, fontsize=8, color=PALE)
        for n, (row, served) in enumerate(zip(beside, latest, strict=True)):
            y = top + n * PITCH
            weight = "bold" if row.learned else "normal"
            axes.text(MARGIN, y + SIDE / 2, row.label, va="center", fontsize=10, fontweight=weight, color=INK)
            _strip(axes, y, gallery.shown(served), [gallery.painters[k] for k in served[:, 1]])
            text = first.decisive.form.format(row.values[first.decisive.name])
            axes.text(right, y + SIDE / 2, text, va="center", fontsize=13, fontweight=weight, color=INK)
        _key(axes, top + PITCH * len(beside) + 2, gallery.painters)
        axes.plot([MARGIN, WIDTH - MARGIN], [under - 10, under - 10], color=LINE, linewidth=0.8)
        for n, panel in enumerate(panels):
            _bars(axes, panel, MARGIN + n * width, under, width - 14)


OVERVIEW = 8
"""Pictures in a row of the overview."""


def _bars(axes: Any, panel: Panel, x: float, y: float, width: float) -> None:
    """The number that a scene is about: of what learned, of the best of all others, of random choices. Where two learned, the
    other one is beside it, and each has its second number as well.
    """
    column = panel.decisive
    (learned, *others), rest = [row for row in panel.rows if row.learned], [row for row in panel.rows if not row.learned]
    fixed = (row for row in rest if row.label != "random")
    beside = others[0] if others else max(fixed, key=lambda row: column.better * row.values[column.name])
    rows = [(learned, BLUE, INK), (beside, LINE, PALE), (next(row for row in rest if row.label == "random"), GREY, PALE)]
    second = panel.scene.columns[1]
    axes.text(x, y + 4, learned.label, fontsize=9, fontweight="bold", va="top", color=INK)
    axes.text(x, y + 19, f"{_arrow(column)} {column.name}", fontsize=7.5, va="top", color=PALE)
    scale = width / max(row.values[column.name] for row, *_ in rows)
    for n, (row, color, ink) in enumerate(rows):
        top = y + 36 + n * 29
        name = row.label.partition(",")[0]
        name += f", {second.name} {second.form.format(row.values[second.name])}" if others else ""
        axes.text(x, top + 8, name, fontsize=6.3 if others else 7, va="baseline", color=ink)
        text = column.form.format(row.values[column.name])
        axes.text(x + width, top + 8, text, fontsize=7.5, va="baseline", ha="right", color=ink, fontweight="bold")
        axes.fill_between([x, x + scale * row.values[column.name]], top + 11, top + 21, color=color, linewidth=0)
