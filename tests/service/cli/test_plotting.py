"""What all plots share: places of names, colors, small files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli.plotting import BROWN, FREE, GREY, PALETTE, End, colors_of, drawing, name_ends, shades, spread


def test_labels_stay_where_they_are_wanted_where_there_is_room() -> None:
    assert spread([0.1, 0.5, 0.9], [0.05, 0.05, 0.05], 0.0, 1.0) == pytest.approx([0.1, 0.5, 0.9])


def test_labels_of_one_place_are_spread_around_it() -> None:
    assert spread([0.5, 0.5, 0.5], [0.1, 0.2, 0.1], 0.0, 1.0) == pytest.approx([0.35, 0.5, 0.65])


def test_labels_are_the_nearest_places_that_do_not_overlap() -> None:
    """Against the constrained least squares of brute force on a grid."""
    wanted, height, grid = [0.30, 0.32, 0.60], 0.1, np.linspace(0.0, 1.0, 101)
    a, b, c = np.meshgrid(grid, grid, grid, indexing="ij")
    cost = (a - wanted[0]) ** 2 + (b - wanted[1]) ** 2 + (c - wanted[2]) ** 2
    cost[(b - a < height - 1e-9) | (c - b < height - 1e-9)] = np.inf
    best = [grid[place] for place in np.unravel_index(cost.argmin(), cost.shape)]
    assert spread(wanted, [height] * 3, 0.0, 1.0) == pytest.approx(best, abs=0.006)


def test_labels_stay_within_the_ends() -> None:
    assert spread([0.0, 0.0], [0.1, 0.1], 0.0, 1.0) == pytest.approx([0.05, 0.15])
    assert spread([1.0, 1.0], [0.1, 0.1], 0.0, 1.0) == pytest.approx([0.85, 0.95])


def test_names_beside_lines_do_not_overlap(tmp_path: Path) -> None:
    from matplotlib.text import Annotation

    with drawing(tmp_path / "names.png", (6.4, 4.8)) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        name_ends(axes, [End(0.5, "one", "C0"), End(0.5, "two\nlines", "C1"), End(0.51, "three", "C2"), End(0.9, "far", "C3")])
    boxes = sorted((text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)), key=lambda box: box.y0)
    assert all(upper.y0 >= lower.y1 - 1.0 for lower, upper in pairwise(boxes))
    assert max(text.xy[1] for text in axes.texts) == pytest.approx(0.9)
    with Image.open(tmp_path / "names.png") as picture:
        assert (picture.size, picture.mode) == ((640, 480), "P")


def test_a_baseline_has_one_color_everywhere_and_no_other_name_has_it() -> None:
    for names in (["pak-ucb", "random", "greedy"], ["random", *(f"policy {n}" for n in range(9))]):
        colors = colors_of(names)
        assert (colors["random"], colors["greedy"]) == (GREY, BROWN)
        assert not {colors[name] for name in names if name not in ("random", "greedy")} & {GREY, BROWN}
    assert len(set(FREE)) == len(FREE) == len(PALETTE) - 2


@pytest.mark.parametrize("count", [1, 8, 13])
def test_arms_have_different_shades(count: int) -> None:
    assert len({*shades(count)}) == count
