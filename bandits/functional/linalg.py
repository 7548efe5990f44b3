"""Linear algebra that never writes into what a reader may hold: factors, rank-one updates."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from bandits.errors import NotPositiveDefinite


def cholesky(matrix: Tensor, *, what: str) -> Tensor:
    """Lower factor of a positive definite matrix; `NotPositiveDefinite` names `what` otherwise."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) != 0 or not bool(torch.isfinite(factor).all()):
        raise NotPositiveDefinite(what=what)
    return cast(Tensor, factor)


def ridge_inverse(gram: Tensor, ridge: float) -> Tensor:
    """(p, p) inverse of gram + ridge I for a sum of outer products (p, p), whatever rounding has made of it.

    Sums that drown the ridge can come out indefinite, so their Cholesky factor may not exist although the very same log was
    learned step by step. Then their eigenvalues below 0 count as 0, which is what they are without rounding.
    """
    matrix = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) == 0 and bool(torch.isfinite(factor).all()):
        return torch.cholesky_inverse(factor)
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(matrix, torch.nan)  # nothing is known: no arm is chosen by such a score
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2.0)
    return cast(Tensor, (vectors / (values.clamp_min(0.0) + ridge)) @ vectors.T)


def cholesky_of_sums(matrix: Tensor, *, what: str) -> Tensor:
    """`cholesky` of sums of outer products plus a ridge that rounding can drown: where it fails, with as little more on the
    diagonal as makes it succeed. A fixed procedure, whose result may enter a statistic.
    """
    scale = float(matrix.diagonal().max()) if bool(torch.isfinite(matrix).all()) else 0.0
    for jitter in (0.0, *(scale * 10.0**power for power in range(-16, 1))):
        try:
            return cholesky(matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype) if jitter else matrix, what=what)
        except NotPositiveDefinite:
            continue
    raise NotPositiveDefinite(what=what)


def rank_one_inverse(inverse: Tensor, z: Tensor, *, sign: float) -> tuple[Tensor, Tensor, float]:
    """Inverse of (A + sign z z') from the inverse of A; also A^-1 z and the pivot 1 + sign z'A^-1 z (Sherman-Morrison).

    `outer(v, v)` keeps the result exactly symmetric. Measured in float64 at ridge 1: relative error 2e-14 after 3,000 updates.
    The product goes through NumPy, which takes two thirds of torch's time for one vector.
    """
    v = torch.from_numpy(inverse.numpy() @ z.numpy()) if inverse.device.type == "cpu" else torch.mv(inverse, z)
    pivot = 1.0 + sign * float(z @ v)
    if sign > 0.0:
        pivot = max(pivot, 1.0)  # its exact lower bound: rounding can make z @ v negative
    return torch.addr(inverse, v, v, alpha=-sign / pivot), v, pivot
