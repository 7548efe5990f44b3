"""The features of `auto`: the prompt at several bandwidths at once, so that the evidence weighs them and no one sets one.

    z = [1 | x | RFF(bandwidth 1) | RFF(bandwidth 1/2)]        x scaled to length one; p = 1 + min(d, 512) + 4 * 64

Random Fourier features: Rahimi & Recht 2007. A prompt of zeros stays zero: its kernel features are those of the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.functional import kernels

Floats = NDArray[np.float64]

BANDWIDTHS = (1.0, 0.5)
FREQUENCIES = 64
"""Per bandwidth."""
LINEAR = 512
"""Numbers of the linear block at most: the sums of an arm grow with the square of what is kept."""
_REMEMBERED_BYTES = 2**21


@dataclass(frozen=True)
class EvidenceFeatures:
    """The map from a prompt (d,) to z (p,) and the blocks of z. dim: d, 0 = no prompt, z = [1].  seed: of the random numbers."""

    dim: int
    seed: int

    @cached_property
    def frequencies(self) -> Tensor:
        """(2 * 64, d): one block of rows per bandwidth."""
        return torch.cat(
            [
                kernels.frequencies(seed=self.seed + 1000 * i, count=FREQUENCIES, dim=self.dim, bandwidth=bandwidth)
                for i, bandwidth in enumerate(BANDWIDTHS)
            ]
        )

    @property
    def linear(self) -> int:
        """Numbers of the linear block."""
        return min(self.dim, LINEAR)

    @property
    def size(self) -> int:
        """p."""
        return sum(block.stop - block.start for block in self.blocks) + 1

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Where in z the blocks after the intercept are."""
        if not self.dim:
            return ()
        ends = np.cumsum([1, self.linear, *(2 * FREQUENCIES for _ in BANDWIDTHS)]).tolist()
        return tuple(slice(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True))

    @cached_property
    def _signed_order(self) -> tuple[NDArray[np.int64], Floats]:
        """A permutation of the coordinates of a long prompt, and a sign for each."""
        generator = np.random.default_rng(self.seed + 1000 * len(BANDWIDTHS))
        return generator.permutation(self.dim), generator.choice([-1.0, 1.0], size=self.dim)

    def _folded(self, x: Floats) -> Floats:
        """(512,) of a longer prompt: coordinates in random order with random signs, added up in equal groups. Inner products are
        kept in the mean (a sparse random projection, Weinberger et al. 2009), at the price of reading the prompt once.
        """
        order, signs = self._signed_order
        padded = np.zeros(-(-self.dim // LINEAR) * LINEAR)
        padded[: self.dim] = x[order] * signs
        return padded.reshape(-1, LINEAR).sum(0)

    @cached_property
    def _remembered(self):  # type: ignore[no-untyped-def]
        @lru_cache(maxsize=max(16, _REMEMBERED_BYTES // (8 * self.size)))
        def lifted(key: bytes) -> Floats:
            return self._lift(np.frombuffer(key, dtype=np.float64))

        return lifted

    def lift(self, x: Tensor) -> Floats:
        """(p,) of a prompt (d,). The last ones are remembered: a prompt is lifted when it is scored and when it is learned. Do not
        write into the result.
        """
        if not self.dim:
            return np.ones(1)
        found: Floats = self._remembered(x.numpy().astype(np.float64, copy=False).tobytes())
        return found

    def lift_all(self, rows: Floats) -> Floats:
        """(n, p) of prompts (n, d)."""
        if not self.dim:
            return np.ones((len(rows), 1))
        return np.stack([self._lift(row) for row in rows]) if len(rows) else np.empty((0, self.size))

    def _lift(self, x: Floats) -> Floats:
        x = x / max(float(np.sqrt(x @ x)), 1e-300)
        z = np.empty(self.size)
        z[0] = 1.0
        z[self.blocks[0]] = x if self.dim <= LINEAR else self._folded(x)
        angles = kernels.product(self.frequencies.numpy(), x)
        for i, block in enumerate(self.blocks[1:]):
            part, out = angles[i * FREQUENCIES : (i + 1) * FREQUENCIES], z[block]
            np.cos(part, out=out[:FREQUENCIES])
            np.sin(part, out=out[FREQUENCIES:])
            out /= np.sqrt(FREQUENCIES)
        return z
