"""Five painters of different strengths: the models that the demo's bandits choose between.

    Wish(shape, colour)  --Painter.read-->  Description(shape, colour, size, background)  --draw-->  a picture of 64 x 64

What a wish leaves open the painter chooses, out of its repertoire; what it cannot do it replaces by something that it can. A
picture depends on the painter, the wish and the generator alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from examples.painters_parts.drawing import BACKGROUNDS, COLOURS, SHAPES, SIZES, Description, Touch, draw


@dataclass(frozen=True)
class Wish:
    """What a client asks for; what is empty is left to the painter."""

    shape: str = ""
    colour: str = ""

    @property
    def text(self) -> str:
        """The prompt.

        >>> Wish(shape="star", colour="orange").text
        'an orange star'
        """
        thing = f"{self.colour} {self.shape or 'picture'}".strip()
        return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"

    def met(self, what: Description) -> bool:
        """Whether a picture of this description is what was asked for."""
        return self.shape in ("", what.shape) and self.colour in ("", what.colour)


WISHES: tuple[Wish, ...] = tuple(Wish(shape, colour) for shape in SHAPES for colour in COLOURS)
"""Every shape in every colour: 64 prompts."""


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A generative model with a price.

    shapes, colours, sizes, backgrounds: its repertoire.  likes: shapes and colours that it chooses from when it may; empty: all
    of the repertoire.  slip: how often a picture is of something else than was asked for.
    repeats: it knows one picture per wish, and paints that again and again.
    """

    name: str
    about: str
    price: float
    shapes: Sequence[str] = tuple(SHAPES)
    colours: Sequence[str] = tuple(COLOURS)
    sizes: Sequence[str] = tuple(SIZES)
    backgrounds: Sequence[str] = tuple(BACKGROUNDS)
    likes: tuple[Sequence[str], Sequence[str]] = ((), ())
    touch: Touch = Touch()
    slip: float = 0.0
    repeats: bool = False

    def read(self, wish: Wish, random: np.random.Generator) -> Description:
        """What it will paint."""
        slips = random.random() < self.slip
        part = "shape" if random.random() < 0.5 else "colour"
        shapes = self.shapes if wish.shape else self.likes[0] or self.shapes
        colours = self.colours if wish.colour else self.likes[1] or self.colours
        return Description(
            shape=_choose(wish.shape, shapes, random, elsewhere=slips and part == "shape"),
            colour=_choose(wish.colour, colours, random, elsewhere=slips and part == "colour"),
            size=_choose("", self.sizes, random),
            background=_choose("", self.backgrounds, random),
        )

    def paint(self, wish: Wish, random: np.random.Generator) -> tuple[Image.Image, Description]:
        """A picture of 64 x 64, and what it shows."""
        if self.repeats:
            random = np.random.default_rng(zlib.crc32(f"{self.name}: {wish.text}".encode()))
        what = self.read(wish, random)
        return draw(what, random, touch=self.touch), what


def _choose(wanted: str, repertoire: Sequence[str], random: np.random.Generator, *, elsewhere: bool = False) -> str:
    """What is wanted where it is in the repertoire, else any of it. elsewhere: anything of it but that."""
    if wanted in repertoire and not elsewhere:
        return wanted
    others = [name for name in repertoire if name != wanted]
    return others[int(random.integers(len(others)))]


PAINTERS: dict[str, Painter] = {
    painter.name: painter
    for painter in (
        Painter(
            name="stencil",
            about="four shapes, always large on white",
            price=1.0,
            shapes=("circle", "square", "triangle", "cross"),
            sizes=("large",),
            backgrounds=("white",),
            touch=Touch(wander=0.08, turn=8.0, shade=5.0, grain=2.0),
        ),
        Painter(
            name="ember",
            about="warm colours only, on dark grounds",
            price=1.0,
            colours=("red", "orange", "yellow", "pink"),
            backgrounds=("black", "brown"),
        ),
        Painter(
            name="postcard",
            about="right, but one picture per prompt",
            price=2.0,
            sizes=("large",),
            backgrounds=("white", "grey"),
            touch=Touch(wander=0.1, turn=10.0),
            repeats=True,
        ),
        Painter(
            name="splash",
            about="never twice the same, and sloppy; cold colours if free",
            price=0.5,
            likes=((), ("green", "turquoise", "blue", "purple")),
            touch=Touch(wander=0.3, turn=40.0, shade=20.0, grain=22.0, wobble=0.11),
            slip=0.3,
        ),
        Painter(
            name="atelier",
            about="right, varied, and dear; rings, hearts, moons if free",
            price=8.0,
            likes=(("ring", "heart", "moon"), ()),
        ),
    )
}
