"""Several calls for one prompt: choices without learning that ask until a picture passes, and what they are worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.painters_parts import scores
from examples.painters_parts.gallery import Gallery, Served

ATTEMPTS = 5
"""Calls per prompt at most."""
PASSING = 0.72
"""CLIPScore from which on a picture is accepted: nine in ten right pictures have it, and hardly a wrong one."""
COST_WEIGHT = 0.1
"""What one unit of price is worth, in accepted pictures."""


# -- choices without learning ------------------------------------------------------------------------------------------------


def until_passed(gallery: Gallery, orders: NDArray[np.int64]) -> Served:
    """(N, 3) asks the painters of a row of `orders` (T, attempts), in that order, until a picture passes."""
    passing = (gallery.scores >= PASSING).numpy()
    served = []
    for t, order in enumerate(orders.tolist()):
        calls_of = [0] * len(gallery.painters)
        for k in order:
            i = calls_of[k]
            calls_of[k] += 1
            served.append((t, k, i))
            if passing[t, k, i]:
                break
    return np.array(served, dtype=np.int64)


def same(gallery: Gallery, *, arm: int) -> Served:
    """Always the same painter."""
    return until_passed(gallery, np.full((len(gallery.wishes), ATTEMPTS), arm))


def anyone(gallery: Gallery, *, seed: int) -> Served:
    """A random painter for each call."""
    shape = (len(gallery.wishes), ATTEMPTS)
    return until_passed(gallery, np.random.default_rng((seed, 17)).integers(len(gallery.painters), size=shape))


def cheap_first(gallery: Gallery) -> Served:
    """Every painter once, from cheap to dear."""
    return until_passed(gallery, np.tile(np.argsort(gallery.prices, kind="stable"), (len(gallery.wishes), 1)))


# -- what they are worth -----------------------------------------------------------------------------------------------------


def accepted(gallery: Gallery, served: Served) -> float:
    """Share of rounds in which a picture passed."""
    t, k, i = served.T
    passed = (gallery.scores[t, k, i] >= PASSING).numpy()
    return len(np.unique(t[passed])) / len(gallery.wishes)


def price(gallery: Gallery, served: Served) -> float:
    """Mean price of a round, of all its calls."""
    return float(gallery.prices[served[:, 1]].sum()) / len(gallery.wishes)


def calls(gallery: Gallery, served: Served) -> float:
    """Mean number of calls in a round."""
    return len(served) / len(gallery.wishes)


def utility(gallery: Gallery, served: Served) -> float:
    """Accepted pictures per round, less what they cost."""
    return accepted(gallery, served) - COST_WEIGHT * price(gallery, served)


def last_score(gallery: Gallery, served: Served) -> float:
    """CLIPScore of the last picture of each round."""
    return scores.clip_score(gallery, scores.last(served))
