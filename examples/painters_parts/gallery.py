"""What every painter would paint in every round, and what a small CLIP sees in it: the world that the demo's bandits play in.

    wishes (T,) --painters (K)--> pictures (T, K, n) --CLIP--> images (T, K, n, e), scores (T, K, n)

All of it is drawn ahead, so that every contender is offered the same pictures, and what random or fixed choices would have served
is known without asking a server. T rounds, K painters, n pictures per call (or calls per round), e length of an embedding.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.painters_parts.clip import Clip
from examples.painters_parts.painters import Painter, Wish

Served = NDArray[np.int64]
"""(N, 3) what was served: round, painter, and which of the n pictures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """The offer.

    pictures: [t][k][i].  met: (T, K, n) whether it shows what was asked for; known from the drawing, no CLIP is asked.
    texts: (T, e) embedded prompts, (T, 0) without prompts.  images: (T, K, n, e).  All of length one.
    """

    painters: tuple[Painter, ...]
    wishes: tuple[Wish, ...]
    pictures: list[list[list[Image.Image]]]
    met: NDArray[np.bool_]
    texts: Tensor
    images: Tensor

    @property
    def scores(self) -> Tensor:
        """(T, K, n) CLIPScore: the cosine of prompt and picture, 0 where it is negative."""
        return torch.einsum("te,tkne->tkn", self.texts, self.images).clamp_min(0.0)

    @property
    def prices(self) -> NDArray[np.float64]:
        """(K,) per call."""
        return np.array([painter.price for painter in self.painters])

    def shown(self, served: Served) -> list[Image.Image]:
        """The pictures that were served."""
        return [self.pictures[t][k][i] for t, k, i in served.tolist()]


def hang(
    painters: Sequence[Painter],
    wishes: Sequence[Wish],
    *,
    clip: Clip,
    seed: int,
    count: int = 1,
    prompted: bool = True,
    each: Callable[[], object] = lambda: None,
) -> Gallery:
    """Have every painter paint every wish `count` times. prompted: the wishes are posted. each: called after each round."""
    pictures: list[list[list[Image.Image]]] = []
    met = np.zeros((len(wishes), len(painters), count), dtype=bool)
    images = []
    for t, wish in enumerate(wishes):
        row: list[list[Image.Image]] = []
        for k, painter in enumerate(painters):
            random = np.random.default_rng((seed, t, k))
            painted = [painter.paint(wish, random) for _ in range(count)]
            met[t, k] = [wish.met(what) for _, what in painted]
            row.append([picture for picture, _ in painted])
        pictures.append(row)
        images.append(clip.images([picture for several in row for picture in several]))
        each()
    return Gallery(
        painters=tuple(painters),
        wishes=tuple(wishes),
        pictures=pictures,
        met=met,
        texts=clip.texts([wish.text for wish in wishes]) if prompted else torch.empty((len(wishes), 0), dtype=torch.float64),
        images=torch.stack(images).reshape(len(wishes), len(painters), count, -1),
    )


def asked(wishes: Sequence[Wish], *, rounds: int, seed: int) -> tuple[Wish, ...]:
    """(T,) wishes, drawn at random."""
    picks = np.random.default_rng((seed, 7)).integers(len(wishes), size=rounds)
    return tuple(wishes[i] for i in picks)


def png(picture: Image.Image) -> str:
    """Base64 of the picture as a PNG file: what the API takes."""
    with BytesIO() as file:
        picture.save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode("ascii")
