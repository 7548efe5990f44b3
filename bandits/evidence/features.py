"""The features of `auto`: the prompt at several bandwidths at once, so that the evidence weighs them and no one sets one.

    z = [1 | x | RFF(bandwidth 1) | RFF(bandwidth 1/2)]        x scaled to length one; p = 1 + min(d, 512) + 4 * 64

Random Fourier features: Rahimi & Recht 2007. A prompt of zeros stays zero: its kernel features are those of the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.functional import kernels

if TYPE_CHECKING:
    from bandits.evidence.basis import Basis

Floats = NDArray[np.float64]

BANDWIDTHS = (1.0, 0.5)
FREQUENCIES = 64
"""Per bandwidth."""
LINEAR = 512
"""Numbers of the linear block at most: the sums of an arm grow with the square of what is kept."""
_REMEMBERED_BYTES = 2**21


class Lifted:
    """A prompt as features. z: (p,), not to be written into."""

    __slots__ = ("_projected", "z")

    def __init__(self, z: Floats) -> None:
        self.z = z
        self._projected: tuple[Basis, Floats] | None = None

    def within(self, basis: Basis) -> Floats:
        """(q,) w of z. The last one is remembered: a prompt is projected when it is scored and when it is learned."""
        kept = self._projected
        if kept is None or kept[0] is not basis:
            self._projected = kept = basis, basis.project(self.z)
        return kept[1]


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

    @cached_property
    def _rows(self) -> Floats:
        return self.frequencies.numpy()

    @cached_property
    def linear(self) -> int:
        """Numbers of the linear block."""
        return min(self.dim, LINEAR)

    @cached_property
    def size(self) -> int:
        """P."""
        return int(self.blocks[-1].stop) if self.blocks else 1

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Where in z the blocks after the intercept are."""
        if not self.dim:
            return ()
        ends = np.cumsum([1, self.linear, *(2 * FREQUENCIES for _ in BANDWIDTHS)]).tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @cached_property
    def _signed_order(self) -> tuple[NDArray[np.int64], Floats]:
        """A permutation of the coordinates of a long prompt, and a sign for each."""
        generator = np.random.default_rng(self.seed + 1000 * len(BANDWIDTHS))
        return generator.permutation(self.dim), generator.choice([-1.0, 1.0], size=self.dim)

    def _folded(self, x: Floats) -> Floats:
        """(..., 512) of longer prompts (..., d): coordinates in random order with random signs, added up in equal groups. Inner
        products are kept in the mean (feature hashing, Weinberger et al. 2009), at the price of reading the prompt once.
        """
        order, signs = self._signed_order
        padded = np.zeros((*x.shape[:-1], -(-self.dim // LINEAR) * LINEAR))
        padded[..., : self.dim] = x[..., order] * signs
        folded: Floats = padded.reshape(*x.shape[:-1], -1, LINEAR).sum(-2)
        return folded

    @cached_property
    def _remembered(self) -> Callable[[bytes], Lifted]:
        @lru_cache(maxsize=max(16, _REMEMBERED_BYTES // (8 * self.size)))
        def lifted(key: bytes) -> Lifted:
            return Lifted(self._lift(np.frombuffer(key, dtype=np.float64)) if self.dim else np.ones(1))

        return lifted

    def lift(self, x: Tensor) -> Lifted:
        """Of a prompt (d,). The last ones are remembered: a prompt is lifted when it is scored and when it is learned."""
        return self.lift_bytes(x.numpy().astype(np.float64, copy=False).tobytes())

    def lift_bytes(self, x: bytes) -> Lifted:
        """`lift` of the bytes of a prompt (d,) in float64; without a prompt all are alike."""
        return self._remembered(x if self.dim else b"")

    def lift_all(self, rows: Floats) -> Floats:
        """(n, p) of prompts (n, d), in products of matrices: a tenth of the time, and other last digits than one by one."""
        z = np.ones((len(rows), self.size))
        if not self.dim or not len(rows):
            return z
        x = rows / np.maximum(np.sqrt((rows * rows).sum(1)), 1e-300)[:, None]
        z[:, self.blocks[0]] = x if self.dim <= LINEAR else self._folded(x)
        self._periodic(x @ self._rows.T, z)
        return z

    def _lift(self, x: Floats) -> Floats:
        z = np.empty(self.size)
        z[0] = 1.0
        x = x / max(math.sqrt(x @ x), 1e-300)
        z[self.blocks[0]] = x if self.dim <= LINEAR else self._folded(x)
        self._periodic(kernels.product(self._rows, x), z)
        return z

    def _periodic(self, angles: Floats, z: Floats) -> None:
        """Fill in the kernel blocks of z (..., p): cosines first, then sines."""
        angles = angles.reshape(*angles.shape[:-1], len(BANDWIDTHS), FREQUENCIES)
        out = z[..., 1 + self.linear :].reshape(*angles.shape[:-1], 2 * FREQUENCIES)
        np.cos(angles, out=out[..., :FREQUENCIES])
        np.sin(angles, out=out[..., FREQUENCIES:])
        out *= 1.0 / math.sqrt(FREQUENCIES)  # a power of two
