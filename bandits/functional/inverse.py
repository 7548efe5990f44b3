"""A symmetric inverse under rank-one updates: the last few are kept as a low-rank correction of a base matrix.

    inverse of (A + Z'Z)  =  P - U'U       U = L^-1 Z P,  L L' = I + Z P Z'         (Sherman-Morrison, Woodbury)
    kept as                  base - correction' correction     (p, p) and (q, p), q < BLOCK; a full block is folded into `base`

    Z P is what a score of the rows Z computes, too: a change of an inverse by rows that were scored just now reuses it.

Why a correction. A change of a dense matrix reads and writes all of it. With ten arms of p = 256 these matrices are many
megabytes that no near cache holds, and memory is what a decision waits for: see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bandits.functional import linalg

BLOCK = 32
"""Rows of the correction, at most; they add a share q / p to the cost of a score."""
FEWEST_DIGITS = 1e-6
"""A downdate by a smaller pivot would be wrong by more than about 1e-4: its rounding is 1e-16 over the square of the pivot."""
FEW = 4
"""Rows from which on one matrix product is quicker than a product per row."""

REMEMBERED = 2**26
"""Bytes of products that are kept for the changes that follow. Each memo keeps the whole block of its call, so that an arm that
is not scored again holds it for good: with a thousand arms gigabytes, for the one product that is looked for.
"""


class ScoredRows:
    """Rows z (B, p) that were scored last, for finding the product with one of them again."""

    def __init__(self, z: Tensor) -> None:
        self._z = z

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {row.tobytes(): place for place, row in enumerate(self._z.numpy())}

    def places(self, z: Tensor) -> list[int] | None:
        """The indices of the rows of z (k, p); None where one of them is not there, to the last bit."""
        found = [self._places.get(row.tobytes()) for row in z.numpy()]
        return None if None in found else [place for place in found if place is not None]


class ProductCache:
    """The products of the last score with one base matrix: its rows, and base @ row for each (B, p). Replaced as a whole."""

    def __init__(self) -> None:
        self.last: tuple[ScoredRows, Tensor] | None = None

    def products(self, z: Tensor) -> Tensor | None:
        """(k, p) base @ row for the rows of z (k, p), if all of them were scored last."""
        if self.last is None or z.device.type != "cpu":
            return None
        scored, products = self.last
        places = scored.places(z)
        return None if places is None else products[places]


@dataclass(frozen=True)
class Inverse:
    """A symmetric matrix base - correction' correction, never written to.

    base: (p, p) symmetric.  correction: (q, p), None = no rows.  memo: products of `base`.
    """

    base: Tensor
    correction: Tensor | None = None
    memo: ProductCache = field(default_factory=ProductCache, compare=False, repr=False)

    def times(self, z: Tensor) -> Tensor:
        """(p,) or (p, k): the inverse times a vector, or columns."""
        if z.ndim > 1:
            return self._rows_times(z.T).T
        if z.device.type != "cpu":
            return self._rows_times(z[None])[0]
        row = z.numpy()  # NumPy's product of one vector takes two thirds of torch's time
        known = self.memo.products(z[None])
        product = self.base.numpy() @ row if known is None else known[0].numpy()
        if self.correction is not None:
            rows = self.correction.numpy()
            product -= (rows @ row) @ rows
        return torch.from_numpy(product)

    def products(self, z: Tensor) -> Tensor:
        """(k, k) z_i' P z_j of the rows of z (k, p)."""
        return torch.mm(self._rows_times(z), z.T)

    def updated(self, z: Tensor) -> tuple[Inverse, Tensor]:
        """The inverse of A + z z' for z (p,); also its gain (p,), that inverse times z: what a residual moves coefficients by."""
        v = self.times(z)
        pivot = 1.0 + max(float(z @ v), 0.0)  # its exact lower bound is 1: rounding can make z @ v negative
        return self._with((v / pivot**0.5)[None]), v / pivot

    def updated_all(self, z: Tensor) -> tuple[Inverse, Tensor]:
        """The inverse of A + Z'Z for rows z (k, p) at once; also its gain (p, k)."""
        reach = self._rows_times(z)
        core = torch.mm(z, reach.T)
        core.diagonal().add_(1.0)
        # (k, k) and at least I: its factor can be inverted, in NumPy, whose calls on small matrices cost half of torch's
        try:
            unfold = torch.from_numpy(np.linalg.inv(np.linalg.cholesky(core.cpu().numpy()))).to(z.device)
        except np.linalg.LinAlgError:  # not even I by rounding: one by one every pivot has a lower bound
            return self._updated_one_by_one(z)
        half = torch.mm(unfold, reach)
        return self._with(half), torch.mm(unfold.T, half).T

    def _updated_one_by_one(self, z: Tensor) -> tuple[Inverse, Tensor]:
        now = self
        for row in z:
            now = now.updated(row)[0]
        return now, now.times(z.T)

    def downdated(self, z: Tensor) -> Inverse | None:
        """The inverse of A - z z' for z (p,): folded at once, for the rare decision that expires. None where too few digits are
        left for it: the pivot 1 / (1 + z'(A - z z')^-1 z) comes out as a difference of numbers near 1, and is divided by.
        """
        whole = self.tensor()
        if not 1.0 - float(z @ (whole @ z)) >= FEWEST_DIGITS:
            return None
        return Inverse(linalg.rank_one_inverse(whole, z, sign=-1.0)[0])

    def tensor(self) -> Tensor:
        """(p, p) all of it; do not write into it."""
        return self.base if self.correction is None else torch.addmm(self.base, self.correction.T, self.correction, alpha=-1.0)

    def _rows_times(self, z: Tensor) -> Tensor:
        known = self.memo.products(z)
        product = torch.mm(z, self.base) if known is None else known
        return (
            product
            if self.correction is None
            else torch.addmm(product, torch.mm(z, self.correction.T), self.correction, alpha=-1.0)
        )

    def _with(self, rows: Tensor) -> Inverse:
        correction = rows if self.correction is None else torch.cat([self.correction, rows])
        longer = Inverse(self.base, correction, self.memo)
        return longer if len(correction) < BLOCK else Inverse(longer.tensor())


def quadratics(inverses: Sequence[Inverse], z: Tensor) -> Tensor:
    """(B, K) z'Pz, at least 0, of rows z (B, p) under K inverses P.

    A lonely row goes through NumPy, inverse by inverse: all that it costs is reading them.
    """
    products = torch.empty((len(inverses), *z.shape), dtype=z.dtype, device=z.device)
    forms = _few(inverses, z, products) if len(z) < FEW and z.device.type == "cpu" else _many(inverses, z, products)
    if products.nbytes > REMEMBERED:
        for inverse in inverses:
            inverse.memo.last = None
        return forms.clamp_min_(0.0)
    scored = ScoredRows(z)
    for inverse, product in zip(inverses, products, strict=True):
        inverse.memo.last = scored, product
    return forms.clamp_min_(0.0)


def _few(inverses: Sequence[Inverse], z: Tensor, products: Tensor) -> Tensor:
    forms = np.empty((len(z), len(inverses)))
    for column, (inverse, product) in enumerate(zip(inverses, products.numpy(), strict=True)):
        for place, row in enumerate(z.numpy()):
            np.matmul(inverse.base.numpy(), row, out=product[place])
            form = row @ product[place]
            if inverse.correction is not None:
                corrected = inverse.correction.numpy() @ row
                form -= corrected @ corrected
            forms[place, column] = form
    return torch.from_numpy(forms)


def _many(inverses: Sequence[Inverse], z: Tensor, products: Tensor) -> Tensor:
    for inverse, product in zip(inverses, products, strict=True):
        torch.mm(z, inverse.base, out=product)
    forms: Tensor = torch.linalg.vecdot(products, z).T
    for column, inverse in enumerate(inverses):
        if inverse.correction is not None:
            forms[:, column] -= torch.mm(z, inverse.correction.T).square_().sum(1)
    return forms
