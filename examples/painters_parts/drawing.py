"""Pictures drawn from a description, and captions that say it, both varied by a random generator.

    Description(shape, colour, size, background)  --draw-->     a picture: where, how turned, which shade, how noisy is chance
                                                  --caption-->  one of several phrasings, of all of it or of a part

The same description, touch and generator draw the same picture, byte for byte. Lengths are fractions of the picture's width.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Points = NDArray[np.float64]
Outline = tuple[Points, bool]
"""Corners (n, 2) of a polygon around (0, 0), and whether it adds to the shape or cuts a hole."""

COLOURS: dict[str, Rgb] = {
    "red": (214, 39, 40),
    "orange": (255, 135, 15),
    "yellow": (248, 220, 40),
    "green": (44, 150, 60),
    "turquoise": (40, 205, 200),
    "blue": (40, 80, 215),
    "purple": (125, 45, 165),
    "pink": (250, 130, 190),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (246, 246, 244),
    "grey": (140, 140, 142),
    "black": (18, 18, 22),
    "brown": (110, 74, 46),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.15, 0.20), "large": (0.30, 0.38)}
"""Radius of the circle around the shape, from and to."""

OVERSAMPLING = 2  # drawn so many times larger, then averaged, for smooth edges


@dataclass(frozen=True)
class Description:
    """What a picture shows."""

    shape: str
    colour: str
    size: str
    background: str


@dataclass(frozen=True)
class Touch:
    """How much chance there is in a drawing. 0 everywhere: always the same picture.

    wander: largest distance from the centre; it is cut so that the shape stays inside the picture.  turn: largest angle, degrees.
    shade: standard deviation of each colour channel, 0 to 255.  grain: standard deviation of each pixel.  wobble: of each corner,
    as a fraction of the radius.
    """

    wander: float = 0.2
    turn: float = 20.0
    shade: float = 9.0
    grain: float = 5.0
    wobble: float = 0.0


# -- shapes ------------------------------------------------------------------------------------------------------------------


def _round(radius: float = 1.0, *, centre: tuple[float, float] = (0.0, 0.0), corners: int = 40) -> Points:
    angles = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    ring: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + np.array(centre)
    return ring


def _spokes(radii: Collection[float], corners: int) -> Points:
    """Corners at equal angles from the top, at radii that repeat."""
    angles = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False) - np.pi / 2.0
    lengths: Points = np.resize(np.array(list(radii)), corners)
    spokes: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
    return spokes


def _heart() -> Points:
    t = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
    x = 16.0 * np.sin(t) ** 3
    y = 13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.0], axis=1) / 16.0


def _cross(arm: float = 0.36) -> Points:
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    turns = [quarter]
    for _ in range(3):
        turns.append(turns[-1] @ np.array([(0.0, 1.0), (-1.0, 0.0)]))
    return np.concatenate(turns)


SHAPES: dict[str, tuple[Outline, ...]] = {
    "circle": ((_round(), True),),
    "ring": ((_round(), True), (_round(0.58), False)),
    "square": ((np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.84, True),),
    "triangle": ((_spokes([1.05], 3) + np.array([0.0, 0.15]), True),),
    "star": ((_spokes([1.1, 0.45], 10), True),),
    "heart": ((_heart(), True),),
    "cross": ((_cross(), True),),
    "moon": ((_round(), True), (_round(0.88, centre=(0.5, -0.12)), False)),
}

EVERYTHING: tuple[Description, ...] = tuple(
    Description(*parts) for parts in itertools.product(SHAPES, COLOURS, SIZES, BACKGROUNDS)
)
"""Every description that can be drawn, 512 of them."""


# -- drawing -----------------------------------------------------------------------------------------------------------------


def draw(what: Description, random: np.random.Generator, *, touch: Touch = Touch(), pixels: int = 64) -> Image.Image:
    """A square RGB picture of the description."""
    radius = random.uniform(*SIZES[what.size]) if touch.wander or touch.turn else float(np.mean(SIZES[what.size]))
    room = min(touch.wander, max(0.5 - radius * 1.05, 0.0))
    centre = 0.5 + random.uniform(-room, room, size=2)
    mask = _mask(what.shape, random, touch=touch, centre=centre, radius=radius, pixels=pixels)[..., None]
    paint = np.array(COLOURS[what.colour]) + touch.shade * random.standard_normal(3)
    ground = np.array(BACKGROUNDS[what.background]) + touch.shade * random.standard_normal(3)
    canvas = ground + (paint - ground) * mask + touch.grain * random.standard_normal((pixels, pixels, 3))
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))


def _mask(
    shape: str, random: np.random.Generator, *, touch: Touch, centre: Points, radius: float, pixels: int
) -> NDArray[np.float64]:
    """(pixels, pixels) how much of each pixel the shape covers, 0 to 1."""
    angle = np.deg2rad(random.uniform(-touch.turn, touch.turn))
    turned = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    canvas = Image.new("L", (pixels * OVERSAMPLING, pixels * OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for corners, adds in SHAPES[shape]:
        bent = corners + touch.wobble * random.standard_normal(corners.shape)
        placed = (bent @ turned * radius + centre) * pixels * OVERSAMPLING
        pen.polygon([(float(x), float(y)) for x, y in placed], fill=255 if adds else 0)
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float64) / 255.0


# -- captions ----------------------------------------------------------------------------------------------------------------

SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
OPENINGS = ("", "", "a picture of ", "a drawing of ", "a painting of ", "an image of ")
GROUNDS = (" on a {} background", " on a {} background", " on {}", " in front of a {} background", ", {} background")


def caption(what: Description, random: np.random.Generator | None = None, *, omit: Collection[str] = ()) -> str:
    """What the picture shows, in words. omit: parts left unsaid, of `colour`, `size` and `background`.
    random: chooses the phrasing; without it the plainest.

    >>> caption(Description("star", "orange", "small", "black"))
    'a small orange star on a black background'
    >>> caption(Description("star", "orange", "small", "black"), omit=("size", "background"))
    'an orange star'
    """
    size = SIZE_WORDS[what.size][_any(random, len(SIZE_WORDS[what.size]))]
    words = ["" if "size" in omit else size, "" if "colour" in omit else what.colour, what.shape]
    thing = " ".join(filter(None, words))
    article = "an" if thing[0] in "aeiou" else "a"
    ground = "" if "background" in omit else GROUNDS[_any(random, len(GROUNDS))].format(what.background)
    return f"{OPENINGS[_any(random, len(OPENINGS))]}{article} {thing}{ground}"


def _any(random: np.random.Generator | None, count: int) -> int:
    return 0 if random is None else int(random.integers(count))
