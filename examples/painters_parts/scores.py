"""How good, how varied and how dear a set of served pictures is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.functional import kernels
from bandits.functional.diversity import gram_spectrum, rke, vendi
from bandits.functional.joint_diversity import conditional_vendi
from bandits.functional.moments import frechet
from examples.painters_parts.gallery import Gallery, Served

OUTPUT_BANDWIDTH = 0.5
"""Of pictures: two of one wish lie about 0.6 apart, of two wishes 1.3."""
PROMPT_BANDWIDTH = 0.4
"""Of prompts, in the conditional Vendi score: any two wishes count as different."""


def clip_score(gallery: Gallery, served: Served) -> float:
    """Mean cosine of prompt and picture, 0 where it is negative."""
    t, k, i = served.T
    return float(gallery.scores[t, k, i].mean())


def right(gallery: Gallery, served: Served) -> float:
    """Share of pictures that show what was asked for, by the drawing itself."""
    t, k, i = served.T
    return float(gallery.met[t, k, i].mean())


def vendi_score(gallery: Gallery, served: Served) -> float:
    """Effective number of different pictures, order 1."""
    return vendi(gram_spectrum(_kernel(_images(gallery, served), OUTPUT_BANDWIDTH)))


def rke_score(gallery: Gallery, served: Served) -> float:
    """Effective number of different pictures, order 2."""
    return rke(_kernel(_images(gallery, served), OUTPUT_BANDWIDTH))


def conditional_score(gallery: Gallery, served: Served) -> float:
    """Conditional Vendi score: effective number of different pictures per prompt."""
    prompts = _kernel(gallery.texts[served[:, 0]], PROMPT_BANDWIDTH)
    joint = prompts * _kernel(_images(gallery, served), OUTPUT_BANDWIDTH)
    return conditional_vendi(gram_spectrum(joint), gram_spectrum(prompts))


def distance(gallery: Gallery, served: Served, *, reference: Tensor) -> float:
    """Frechet distance (not squared) of what was served to the reference (m, e)."""
    images = _images(gallery, served)
    return float(np.sqrt(max(frechet(images.mean(0), torch.cov(images.T), reference.mean(0), torch.cov(reference.T)), 0.0)))


def _images(gallery: Gallery, served: Served) -> Tensor:
    t, k, i = served.T
    return gallery.images[t, k, i]


def _kernel(x: Tensor, bandwidth: float) -> Tensor:
    return kernels.gaussian(x, x, bandwidth=bandwidth)


def last(served: Served) -> Served:
    """(T, 3) the last picture of each round."""
    ends = np.append(served[1:, 0] != served[:-1, 0], True)
    return np.asarray(served[ends])


# -- what a choice without learning serves ---------------------------------------------------------------------------------------


def fixed(gallery: Gallery, arm: int) -> Served:
    """(T n, 3) always the same painter, every picture of every call."""
    return _calls(gallery, np.full(len(gallery.wishes), arm))


def random(gallery: Gallery, *, seed: int) -> Served:
    """(T n, 3) any painter, drawn again each round."""
    return _calls(gallery, np.random.default_rng((seed, 11)).integers(len(gallery.painters), size=len(gallery.wishes)))


def _calls(gallery: Gallery, arms: NDArray[np.int64]) -> Served:
    count = gallery.images.shape[2]
    rounds = np.arange(len(arms)).repeat(count)
    return np.stack([rounds, arms.repeat(count), np.tile(np.arange(count), len(arms))], axis=1)


def shares(gallery: Gallery, served: Served, *, bins: int) -> NDArray[np.float64]:
    """(bins, K) share of each painter in equal stretches of the rounds."""
    k = len(gallery.painters)
    stretch = served[:, 0] * bins // len(gallery.wishes)
    counts = np.zeros((bins, k))
    np.add.at(counts, (stretch, served[:, 1]), 1.0)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))
