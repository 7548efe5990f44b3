"""The squared Frechet distance (FID) of a mixture of arms to a reference, as a convex function of the weights.

    m_i = mu_i - mu_r      M_i = Sigma_i + m_i m_i'       F F' = Sigma_r     v = sum a_i F'm_i
    B(a) = sum a_i F'M_i F - v v'  = F'Sigma_a F          Sigma_a: covariance of the mixture
    FID(a) = sum a_i Tr M_i + Tr Sigma_r - 2 Tr B(a)^1/2
    dFID/da_i = Tr M_i - <P, F'M_i F> + 2 (F'm_i)'P v     P = B^-1/2

Why convex: the first two terms are linear in a; Sigma_a is matrix-concave in a and A -> Tr (F'A F)^1/2 is concave and monotone,
so minus it is convex. One start is enough, and the Frank-Wolfe gap certifies the answer; the released code restarts a general
optimizer four times per round.

Moments are taken about the reference mean, so that nothing depends on where the embedding's origin lies. F (d, k) has one column
per positive eigenvalue of Sigma_r: a reference of few samples makes every step cheaper, without any loss.
An evaluation costs one k x k eigenvalue problem, one product of that size and O(m k^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bandits.functional import moments
from bandits.functional.moments import MomentSums
from bandits.functional.simplex import Vector

FLOOR = 1e-12
"""In the gradient no eigenvalue of B counts as less than this share of the largest: the slope of a root is infinite at 0."""


@dataclass(frozen=True)
class Target:
    """The moments of the reference, prepared. mean: (d,).  root: (d, k) F, see `moments.psd_root`.  trace: Tr Sigma_r."""

    mean: Tensor
    root: Tensor
    trace: float


@dataclass(frozen=True)
class Component:
    """The moments of one arm in terms of the reference. spread: Tr M_i.  inner: (k, k) F'M_i F.  lean: (k,) F'm_i."""

    spread: float
    inner: Tensor
    lean: Tensor


def target(mean: Tensor, covariance: Tensor) -> Target:
    """From the moments (d,), (d, d) of the reference: one d x d eigenvalue problem, once."""
    return Target(mean, moments.psd_root(covariance), float(covariance.trace()))


def component(mean: Tensor, covariance: Tensor, target: Target) -> Component:
    """From the moments (d,), (d, d) of one arm: two products, once per change of the arm."""
    return _component(mean, float(covariance.trace()), target.root.T @ covariance @ target.root, target)


def component_of(sums: MomentSums, target: Target) -> Component:
    """From the sums of one arm, covariance with n - 1. While n <= d the samples themselves are used: O(n d k).

    One sample has no covariance; it counts as 0, because then the pooled second moment is right.
    """
    if sums.is_thin:
        centered = sums.centered() / max(sums.count - 1, 1) ** 0.5
        narrow = centered @ target.root
        return _component(sums.mean(), float(centered.square().sum()), narrow.T @ narrow, target)
    return component(sums.mean(), sums.covariance() if sums.count > 1 else sums.scatter(), target)


def _component(mean: Tensor, trace: float, inner: Tensor, target: Target) -> Component:
    offset = mean - target.mean
    lean = target.root.T @ offset
    return Component(trace + float(offset @ offset), torch.addr((inner + inner.T) / 2.0, lean, lean), lean)


@dataclass(frozen=True)
class FrechetMixture:
    """FID(a) of m components. constant: Tr Sigma_r."""

    components: tuple[Component, ...]
    constant: float

    def only(self, arms: Sequence[int]) -> FrechetMixture:
        """The same distance for mixtures of some of the arms."""
        return replace(self, components=tuple(self.components[arm] for arm in arms))

    def at(self, weights: Vector) -> tuple[float, Vector]:
        """FID(a) and its gradient (m,). Not clamped at 0: a solver needs the function itself; see `value`.

        Eigenvalues that are rounding count as 0 in the value. In the gradient they count as the floor, not as a pseudo-inverse
        would have it: at a vertex the arms left out may add directions that this arm lacks, and that slope must not vanish.
        """
        mixed = torch.zeros_like(self.components[0].inner)
        lean = torch.zeros_like(self.components[0].lean)
        for weight, part in zip(weights.tolist(), self.components, strict=True):
            if weight:
                mixed.add_(part.inner, alpha=weight)
                lean.add_(part.lean, alpha=weight)
        eigenvalues, vectors = torch.linalg.eigh(mixed.addr_(lean, lean, alpha=-1.0))
        top = eigenvalues[-1:].clamp_min(0.0)
        real = eigenvalues > top * (len(eigenvalues) ** 0.5 * torch.finfo(eigenvalues.dtype).eps)
        slopes = eigenvalues.clamp_min(float(top.sum()) * FLOOR or 1.0).rsqrt()
        inverse_root = (vectors * slopes) @ vectors.T
        pull = 2.0 * (inverse_root @ lean)
        spreads = np.array([part.spread for part in self.components])
        gradient = spreads + [
            float(part.lean @ pull) - float(torch.dot(inverse_root.flatten(), part.inner.flatten())) for part in self.components
        ]
        root = float(torch.where(real, eigenvalues, 0.0).sqrt().sum())
        return float(spreads @ weights) + self.constant - 2.0 * root, gradient

    def value(self, weights: Vector) -> float:
        """FID(a), clamped at 0: identical distributions come out as -1e-13."""
        return max(self.at(weights)[0], 0.0)
