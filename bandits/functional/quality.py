"""Quality of single samples against a reference: precision and density, by the reference's own neighborhoods.

    radius(y)    = distance from the reference point y to its k-th nearest *other* reference point
    precision(x) = 1 if |x - y| < radius(y) for some y, else 0                  (Kynkaanniemi et al. 2019)
    density(x)   = #{y : |x - y| < radius(y)} / k, from 0 to n / k              (Naeem et al. 2020)

Both are averages over the samples of a generator, so of a mixture they are linear in its weights. Recall and coverage are not:
they ask which reference points the samples reach *together*, and two arms that reach the same point do not reach it twice.

Distances are summed differences, not |x|^2 + |y|^2 - 2 x.y: a comparison with a radius must not hang on lost digits, and a sample
that is a reference point has distance exactly 0. Letters: n reference points, e length of one, k neighbors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bandits.functional import kernels

BLOCK = 512
"""Reference points whose distances to all others are held at once."""


def neighbor_radii(reference: Tensor, *, neighbors: int) -> Tensor:
    """(n,) distance from every reference point (n, e) to its k-th nearest other one.

    Candidates come from the quick form of the distance, their distances from the exact one.
    """
    n = len(reference)
    if n <= neighbors:
        raise ValueError(f"{neighbors} neighbors need more than {neighbors} reference points, there are {n}")
    centered = reference - reference.mean(0)
    radii = torch.empty(n, dtype=torch.float64)
    for first in range(0, n, BLOCK):
        rows = torch.arange(first, min(first + BLOCK, n))
        quick = kernels.squared_distances(centered[rows], centered)
        quick[torch.arange(len(rows)), rows] = torch.inf  # itself is no neighbor
        nearest = quick.topk(neighbors, dim=1, largest=False).indices
        radii[rows] = torch.cdist(reference[rows, None], reference[nearest], compute_mode=kernels.DIRECT).amax((1, 2))
    return radii


def memberships(x: Tensor, reference: Tensor, radii: Tensor) -> Tensor:
    """(b,) in how many of the reference's neighborhoods each of (b, e) samples lies."""
    return (distances(x, reference) < radii).sum(1)


def precision(x: Tensor, reference: Tensor, radii: Tensor) -> Tensor:
    """(b,) 1.0 for samples (b, e) inside the reference's neighborhoods, 0.0 outside."""
    return (memberships(x, reference, radii) > 0).to(torch.float64)


def density(x: Tensor, reference: Tensor, radii: Tensor, *, neighbors: int) -> Tensor:
    """(b,) neighborhoods around each sample (b, e), in units of k."""
    return memberships(x, reference, radii).to(torch.float64) / neighbors


def distances(x: Tensor, y: Tensor) -> Tensor:
    """(b, n) |x_i - y_j| of (b, e) and (n, e), pair by pair."""
    return torch.cdist(x, y, compute_mode=kernels.DIRECT)
