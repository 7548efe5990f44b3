"""Entropies in nats, with 0 ln 0 = 0. Rows are distributions over C classes.

IS = exp(H(marginal) - mean H(row)) = exp(mean KL(row || marginal))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PEAK = math.exp(-1.0)
"""Where -p ln p is largest."""


def entropy(p: Tensor) -> Tensor:
    """-sum p ln p over the last dimension; p need not sum to 1.

    >>> float(entropy(torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)))  # ln 2
    0.6931471805599453
    """
    return -torch.xlogy(p, p).sum(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum p ln (p / q) over the last dimension; infinite where q is 0 and p is not."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def optimistic_marginal(marginal: Tensor, radius: Tensor) -> Tensor:
    """(C,) every class moved by its radius towards 1/e, and no further: the largest entropy sum within the radii. Not
    renormalized.

    IS-UCB release; its predecessor compared without the absolute value, and overshot for classes above 1/e. A new tensor: the
    release moves the running marginal itself, which then drifts to 1/e in every class.
    """
    way = PEAK - marginal
    return torch.where(radius >= way.abs(), PEAK, marginal + way.sign() * radius)
