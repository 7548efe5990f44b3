"""One picture of the whole demo: the painters, then per scene what each contender served, who painted it, and what it is worth.

| label | strip of the latest pictures, framed in the painter's colour | who painted, over the rounds | numbers |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.painters_parts import scores
from examples.painters_parts.gallery import Gallery, Served
from examples.painters_parts.painters import PAINTERS, WISHES, Painter, Wish
from examples.painters_parts.scenes import Scene

PAINT = {"stencil": "#0072B2", "ember": "#D55E00", "postcard": "#CC79A7", "splash": "#E69F00", "atelier": "#009E73"}
"""A colour per painter (Okabe and Ito's, which colour-blind readers tell apart)."""

WIDTH, MARGIN, LABEL, STRIP, SHARE, NUMBER = 1500, 22, 176, 728, 176, 78
SIDE, FRAME, SHOWN, BINS = 46, 3, 14, 22
ROW, HEAD, PROMPTS, BOTTOM = 58, 66, 14, 12
INK, PALE, GOOD, BAD = "#1a1a1a", "#6b6b6b", "#00734f", "#b03000"


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
    def decisive(self) -> str:
        """The column that the scene is about."""
        return self.scene.columns[0].name

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
        others.sort(key=lambda row: -self.scene.better * row.values[self.decisive])
        return [*learned, *(row for row in self.rows if row.label == "random"), *others[:2]]


def row(scene: Scene, label: str, served: Served, *, learned: bool) -> Row:
    """The numbers of what was served."""
    return Row(
        label=label,
        served=served,
        learned=learned,
        values={column.name: column.score(scene.gallery, served) for column in scene.columns},
    )


def save(path: Path, panels: Sequence[Panel], *, note: str) -> None:
    """Draw everything into one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [_head(panel) + ROW * (len(panel.shown) + bool(panel.scene.references)) + BOTTOM for panel in panels]
    top = 92 + 62 * len(PAINTERS) + 20
    height = top + sum(heights) + 24
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 9}), BytesIO() as buffer:
        figure = plt.figure(figsize=(WIDTH / 100, height / 100), dpi=100)
        axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.axis("off")
        _heading(axes)
        _cast(axes, 92)
        for panel, y in zip(panels, top + np.cumsum([0, *heights[:-1]]), strict=True):
            _panel(axes, panel, float(y))
        axes.text(WIDTH - MARGIN, height - 12, note, ha="right", va="bottom", color=PALE, fontsize=8)
        figure.savefig(buffer, format="png")
        plt.close(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _heading(axes: Any) -> None:
    axes.text(MARGIN, 16, "Five painters, five policies", fontsize=19, fontweight="bold", va="top", color=INK)
    axes.text(
        MARGIN, 52,
        "What the policies served was posted to the service as PNG files; the service embedded and scored it with the small "
        "CLIP that it ships. Random and single painters were offered the same prompts.",
        fontsize=10, va="top", color=PALE,
    )  # fmt: skip


def _cast(axes: Any, y: float) -> None:
    """The painters, with what each makes of the same wishes."""
    wishes = [WISHES[i] for i in (2, 2, 11, 11, 20, 29, 29, 37, 37, 46, 48, 55, 57, 60)]
    _prompts(axes, y + 10, wishes)
    for line, painter in enumerate(PAINTERS.values()):
        here = y + 10 + 62 * line
        axes.text(MARGIN, here + 8, painter.name, fontweight="bold", fontsize=11, color=PAINT[painter.name], va="top")
        axes.text(MARGIN, here + 27, f"price {painter.price:g}", fontsize=9, color=PALE, va="top")
        pictures = [painter.paint(wish, np.random.default_rng((n, line)))[0] for n, wish in enumerate(wishes)]
        _strip(axes, here, pictures, [painter] * len(pictures))
        axes.text(MARGIN + LABEL + STRIP + 14, here + SIDE / 2, painter.about, fontsize=10.5, color=INK, va="center")


def _prompts(axes: Any, y: float, wishes: Sequence[Wish]) -> None:
    """What was asked for, above each picture of a strip."""
    for wish, x in zip(wishes, _places(), strict=False):
        _lines(axes, x + SIDE / 2, y - 5, [wish.colour, wish.shape], step=9, ha="center", fontsize=6.5, color=PALE)


def _lines(axes: Any, x: float, y: float, words: Sequence[str], *, step: float, **look: Any) -> None:
    """Lines of text that end at the same baseline as those of any neighbour, whatever their letters."""
    for n, line in enumerate(reversed(words)):
        axes.text(x, y - n * step, line, va="baseline", **look)


def _head(panel: Panel) -> int:
    """Height above the first row."""
    return HEAD + (PROMPTS if panel.scene.gallery.texts.shape[1] else 0)


def _panel(axes: Any, panel: Panel, y: float) -> None:
    scene = panel.scene
    axes.plot([MARGIN, WIDTH - MARGIN], [y, y], color="#d0d0d0", linewidth=0.8)
    axes.text(MARGIN, y + 10, scene.title, fontsize=13, fontweight="bold", va="top", color=INK)
    axes.text(MARGIN, y + 33, scene.question, fontsize=9, va="top", color=PALE)
    verdict, colour = ("shown: ", GOOD) if panel.holds else ("not shown: ", BAD)
    axes.text(WIDTH - MARGIN, y + 11, verdict + scene.claim, fontsize=10, ha="right", va="top", color=colour)
    head = _head(panel)
    for n, column in enumerate(scene.columns):
        weight = "bold" if n == 0 else "normal"
        _lines(axes, _number(n), y + head - 9, column.name.split(" ", 1), step=13, ha="right", fontweight=weight)
    _lines(axes, MARGIN + LABEL + STRIP + 14, y + head - 9, ["who painted,", "first to last round"], step=13)
    here = y + head
    if scene.gallery.texts.shape[1]:
        _prompts(axes, here, [scene.gallery.wishes[t] for t in chosen(scene.gallery, panel.shown[0].served)[:, 0]])
    if scene.references:
        axes.text(MARGIN, here + SIDE / 2, "the reference", va="center", fontsize=10.5, color=INK, style="italic")
        _strip(axes, here, scene.references[:SHOWN], [None] * SHOWN)
        here += ROW
    for row in panel.shown:
        _row(axes, panel, row, here)
        here += ROW


def _row(axes: Any, panel: Panel, row: Row, y: float) -> None:
    gallery = panel.scene.gallery
    weight = "bold" if row.learned else "normal"
    axes.text(MARGIN, y + SIDE / 2, row.label.replace(", ", ",\n"), va="center", fontsize=10.5, fontweight=weight, color=INK)
    latest = chosen(gallery, row.served)
    _strip(axes, y, gallery.shown(latest), [gallery.painters[k] for k in latest[:, 1]])
    _shares(axes, gallery, row.served, y)
    for n, column in enumerate(panel.scene.columns):
        text = column.form.format(row.values[column.name])
        bold = weight if n == 0 else "normal"
        axes.text(_number(n), y + SIDE / 2, text, ha="right", va="center", fontsize=10.5, fontweight=bold)


def chosen(gallery: Gallery, served: Served) -> Served:
    """(SHOWN, 3) the latest pictures, side by side by prompt where prompts come again; of an attempted prompt the last."""
    last = scores.last(served) if gallery.texts.shape[1] else served
    if len(set(gallery.wishes)) > 16 or not gallery.texts.shape[1]:
        return last[-SHOWN:]
    rows = []
    for wish in sorted(set(gallery.wishes), key=lambda wish: -sum(wish == other for other in gallery.wishes))[:2]:
        of_wish = last[[gallery.wishes[t] == wish for t in last[:, 0]]]
        rows.append(of_wish[-SHOWN // 2 :])
    return np.concatenate(rows)


def _strip(axes: Any, y: float, pictures: Sequence[Image.Image], painters: Sequence[Painter | None]) -> None:
    for x, picture, painter in zip(_places(), pictures, painters, strict=False):
        colour = "#9a9a9a" if painter is None else PAINT[painter.name]
        axes.fill([x, x + SIDE, x + SIDE, x], [y, y, y + SIDE, y + SIDE], color=colour, linewidth=0)
        inner = (x + FRAME, x + SIDE - FRAME, y + SIDE - FRAME, y + FRAME)
        axes.imshow(np.asarray(picture), extent=inner, aspect="auto", interpolation="antialiased", zorder=3)


def _shares(axes: Any, gallery: Gallery, served: Served, y: float) -> None:
    """Stacked columns: the share of each painter, from the first rounds to the last."""
    table = scores.shares(gallery, served, bins=BINS)
    left, wide = MARGIN + LABEL + STRIP + 14, (SHARE - 14) / BINS
    for n, stretch in enumerate(table):
        base = y + SIDE
        for share, painter in zip(stretch, gallery.painters, strict=True):
            if share > 0.0:
                x = left + n * wide
                axes.fill(
                    [x, x + wide, x + wide, x],
                    [base, base, base - share * SIDE, base - share * SIDE],
                    color=PAINT[painter.name],
                    linewidth=0,
                )
                base -= share * SIDE


def _places() -> list[float]:
    return [MARGIN + LABEL + n * STRIP / SHOWN for n in range(SHOWN)]


def _number(column: int) -> float:
    """Right edge of a column of numbers."""
    return MARGIN + LABEL + STRIP + SHARE + 70 + column * NUMBER - 6
