"""Diversity scores: entropies of a spectrum, where the spectrum is that of a kernel matrix over n, or of a second moment.

    kernel matrix K (n, n), k(x, x) = 1 --> eigenvalues of K / n        --+--> lambda, sum 1 --> exp(H_q(lambda))
    features phi (n, p), |phi| = 1      --> eigenvalues of phi'phi / n  --+    (the same, but for zeros)

    H_q = ln(sum lambda^q) / (1 - q);  H_1 = -sum lambda ln lambda;  H_inf = -ln max lambda;  H_0 = ln #{lambda > 0}

Vendi of order q = exp(H_q) (Friedman & Dieng 2023; Pasarkar & Dieng 2024). RKE is the order 2 (Jalali et al. 2023) and needs no
eigenvalues; FKEA is the form by random features (Ospanov et al. 2024). A score is an effective number of kinds, from 1 to n.

Departure from the released FKEA code: eigenvalues below 1e-12 are dropped and the rest renormalized. It clamps them at 1e-10
and does not renormalize, which biases orders below 1 by up to 2D 1e-10^q; it also rounds to two digits and works in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEGLIGIBLE = 1e-12
"""Share of the spectrum below which an eigenvalue is rounding."""


def spectrum(matrix: Tensor) -> Tensor:
    """(p,) eigenvalues of a positive semi-definite matrix (p, p) as shares that sum to 1, ascending; rounding dropped to 0."""
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2.0)
    return shares(values)


def shares(values: Tensor) -> Tensor:
    """(p,) eigenvalues divided by their sum; what is below 1e-12 of it is 0, and the rest renormalized."""
    values = values.clamp_min(0.0) / values.clamp_min(0.0).sum()
    values = torch.where(values < NEGLIGIBLE, 0.0, values)
    return values / values.sum()


def gram_spectrum(gram: Tensor) -> Tensor:
    """(n,) the spectrum of a kernel matrix (n, n)."""
    return spectrum(gram)


def feature_spectrum(features: Tensor) -> Tensor:
    """(min(n, p),) the spectrum of features (n, p) with rows of length one: of their second moment, by singular values.

    With `kernels.random_features` this is FKEA: O(n p min(n, p)) instead of O(n^3), error about D^-1/2.
    """
    return shares(torch.linalg.svdvals(features).square().flip(0))


def entropy(spectrum: Tensor, *, order: float = 1.0) -> float:
    """Renyi entropy H_q in nats of shares (p,) that sum to 1, for any order q in [0, inf].

    >>> round(entropy(torch.tensor([0.5, 0.5]), order=2.0), 12) == round(math.log(2.0), 12)
    True
    """
    if not order >= 0.0:
        raise ValueError(f"the order of an entropy is at least 0, got {order}")
    positive = spectrum[spectrum > 0.0].to(torch.float64)
    if math.isinf(order):
        return -math.log(float(positive.max()))
    logs = positive.log()
    if abs(order - 1.0) < 1e-6:  # its first two terms at 1: the quotient below has no digits left here
        mean = float((positive * logs).sum())
        return -mean - 0.5 * (order - 1.0) * float((positive * (logs - mean).square()).sum())
    return float(torch.logsumexp(order * logs, dim=0)) / (1.0 - order)  # lambda^q alone underflows for large orders


def vendi(spectrum: Tensor, *, order: float = 1.0) -> float:
    """Vendi score exp(H_q) of shares (p,) that sum to 1: between 1 and the number of positive shares.

    >>> round(vendi(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)), 10)  # golden D3
    3.5961154666
    """
    return math.exp(entropy(spectrum, order=order))


def truncate_spectrum(spectrum: Tensor, *, keep: int) -> Tensor:
    """(keep,) the largest shares, each plus an equal part of what was cut off (truncated Vendi, Ospanov & Farnia 2024).

    >>> truncate_spectrum(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), keep=2).tolist()
    [0.55, 0.45]
    """
    if keep < 1:
        raise ValueError(f"keep at least one eigenvalue, got {keep}")
    largest = torch.sort(spectrum, descending=True).values[:keep]
    return largest + (1.0 - largest.sum()) / len(largest)


def rke(gram: Tensor) -> float:
    """RKE = (Tr K)^2 / sum K_ij^2 = n^2 / sum k^2 for k(x, x) = 1: the order-2 Vendi score of a kernel matrix (n, n)."""
    return float(gram.diagonal().sum().square() / gram.square().sum())


def kernel_distance(within_x: Tensor, within_y: Tensor, between: Tensor, *, unbiased: bool) -> float:
    """Kernel distance KD = squared MMD of samples x and y from their kernel matrices (n, n), (m, m), (n, m).

    unbiased: the U form leaves the pairs of a sample with itself out (needs two samples each, may be below 0); the V form keeps
    them and is never negative up to rounding.
    """
    return _mean_pair(within_x, unbiased) + _mean_pair(within_y, unbiased) - 2.0 * float(between.mean())


def _mean_pair(gram: Tensor, unbiased: bool) -> float:
    n = len(gram)
    if not unbiased:
        return float(gram.mean())
    if n < 2:
        raise ValueError("the U form needs at least two samples")
    return float(gram.sum() - gram.diagonal().sum()) / (n * (n - 1))


def entropy_of_mixture(moments: Sequence[Tensor], weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """S(a) = -Tr(C_a ln C_a), C_a = sum a_i C_i, and its gradient -Tr(C_i (ln C_a + 1)) (m,). Concave in a.

    moments: m matrices C_i (p, p), positive semi-definite; of trace one for weights that sum to one.
    Eigenvalues below 1e-12 count as 1e-12 in the logarithm, so that the gradient stays finite where C_a loses rank.
    """
    mixed = torch.zeros_like(moments[0])
    for weight, moment in zip(weights.tolist(), moments, strict=True):
        mixed.add_(moment, alpha=weight)
    values, vectors = torch.linalg.eigh(mixed)
    values = values.clamp_min(0.0)
    value = -float(torch.xlogy(values, values).sum())
    logarithm = (vectors * values.clamp_min(NEGLIGIBLE).log()) @ vectors.T
    slopes = [-float(torch.dot(moment.flatten(), logarithm.flatten())) - float(moment.trace()) for moment in moments]
    return value, np.array(slopes)
