"""The few directions of the features in which prompts differ most: what a posterior of `auto` is kept in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DECISION_COST, FEWEST, MOST = 93_000, 8, 64
"""K (blocks x directions)^2, which a decision costs, and the bounds of directions per block: 64 for two arms, 32 for ten."""


@dataclass(frozen=True)
class Basis:
    """B: the leading directions of each block of z, centered; w[0] = 1.

    blocks: of z.  directions: per block (r, block length), scaled such that a block of w has variance 1 in all.
    centers: per block (r,).  spans: per block, its place in w.
    """

    blocks: tuple[slice, ...]
    directions: tuple[Floats, ...]
    centers: tuple[Floats, ...]

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """Where in w each block is."""
        ends = np.cumsum([1, *(len(one) for one in self.directions)]).tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @cached_property
    def size(self) -> int:
        """Q."""
        return 1 + sum(len(one) for one in self.directions)

    def project(self, z: Floats) -> Floats:
        """(q,) w of z (p,)."""
        w = np.empty(self.size)
        w[0] = 1.0
        for block, directions, _, span in self._parts:
            np.dot(directions, z[block], out=w[span])
        w[1:] -= self._center
        return w

    @cached_property
    def _center(self) -> Floats:
        """(q - 1,) of all blocks."""
        return np.concatenate([*self.centers, np.empty(0)])

    @cached_property
    def _parts(self) -> list[tuple[slice, Floats, Floats, slice]]:
        return list(zip(self.blocks, self.directions, self.centers, self.spans, strict=True))

    def apply(self, columns: Floats) -> Floats:
        """(q, n) B times a matrix (p, n), block by block: a third of the time of a dense B."""
        found = np.empty((self.size, columns.shape[1]))
        found[0] = columns[0]
        for block, directions, center, span in self._parts:
            found[span] = directions @ columns[block] - np.outer(center, columns[0])
        return found

    @staticmethod
    def of(gram: Floats, blocks: Sequence[slice], *, arms: int) -> Basis:
        """Of the pooled sum z z' (p, p) over the prompts of `arms` arms, at least one."""
        rank = int(np.clip(np.sqrt(DECISION_COST / arms) / max(len(blocks), 1), FEWEST, MOST))
        count = gram[0, 0]  # z[0] = 1: also prompts of which parts of an outcome came so far
        mean = gram[0] / count
        used, directions, centers = [], [], []
        for block in blocks:
            covariance = gram[block, block] / count - np.outer(mean[block], mean[block])
            variances, vectors = np.linalg.eigh(covariance)
            variances, vectors = variances[::-1][:rank], vectors[:, ::-1][:, :rank]
            keep = variances > 1e-9 * max(np.trace(covariance), 1e-12)
            if keep.any():
                rows = np.ascontiguousarray(vectors[:, keep].T) / np.sqrt(variances[keep].sum())
                used.append(block)
                directions.append(rows)
                centers.append(rows @ mean[block])
        return Basis(tuple(used), tuple(directions), tuple(centers))
