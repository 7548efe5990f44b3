"""Diversity of outputs *given* their prompts: scores of pairs (prompt t, output x), and the labels that a bandit regresses on.

    I-JRKE = E[k_T(t, t')^2 k_X(x, x')^2]                 inverse joint RKE, from 1/n to 1; low = diverse
    JKD    = |E[Phi(t, x) - Phi(t, y)]|^2                 joint kernel distance to the references y; 0 = alike
    conditional Vendi = exp(H(joint) - H(prompts))        diversity that the prompts do not explain
    information Vendi = exp(H(outputs) + H(prompts) - H(joint))

Phi is the feature map of the product kernel k_T k_X; k(u, u) = 1 for both. Means run over all ordered pairs: the V form keeps the
pairs of a sample with itself and is never negative, the U form leaves them out and has no bias.

Exact forms take kernel matrices. With Gaussian kernels the product kernel is Gaussian too, in [t / sigma_T, x / sigma_X], and its
square in sqrt(2) times that; so one projection serves both, and every mean over pairs is an inner product of sums:

    prompts (n, d) -- phases --> (n, D) --+
    outputs (n, e) -- phases --> (n, D) --+-- phase_features of the sum --> (n, 2D) --> sum (2D,)

Sources: DAK-UCB (arXiv 2603.23140) for I-JRKE, JKD and their labels (Proposition 1); conditional Vendi (Jalali et al. 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bandits.functional.diversity import entropy
from bandits.functional.kernels import product

SQUARED = math.sqrt(2.0)
"""Multiplying the phases by this squares a Gaussian kernel."""


# -- scores, exact ---------------------------------------------------------------------------------------------------------


def inverse_joint_rke(prompts: Tensor, outputs: Tensor, *, unbiased: bool = False) -> float:
    """I-JRKE from kernel matrices (n, n) of prompts and outputs: the mean over pairs of k_T^2 k_X^2."""
    return _mean_pair(prompts.square() * outputs.square(), unbiased=unbiased)


def joint_rke(prompts: Tensor, outputs: Tensor) -> float:
    """JRKE = 1 / I-JRKE (V form), from 1 to n: the effective number of different pairs."""
    return 1.0 / inverse_joint_rke(prompts, outputs)


def joint_kernel_distance(
    prompts: Tensor, outputs: Tensor, references: Tensor, across: Tensor, *, unbiased: bool = False
) -> float:
    """JKD of n outputs x_i and references y_i of the same prompts: the mean over pairs of k_T [k_xx + k_yy - k_xy - k_yx].

    prompts, outputs, references: kernel matrices (n, n).  across: (n, n) of k_X(x_i, y_j).
    """
    return _mean_pair(prompts * (outputs + references - across - across.T), unbiased=unbiased)


def conditional_rke(prompts: Tensor, outputs: Tensor) -> float:
    """The ratio sum k_T^2 / sum k_T^2 k_X^2, from 1 to n: the conditional Vendi score of order 2, without eigenvalues."""
    return float(prompts.square().sum() / (prompts.square() * outputs.square()).sum())


def conditional_vendi(joint: Tensor, prompts: Tensor, *, order: float = 1.0) -> float:
    """exp(H_q(joint) - H_q(prompts)) from two spectra (see `diversity`), of any order q in [0, inf].

    Exact: `gram_spectrum` of the product K_T * K_X and of K_T. By random features: `feature_spectrum` of both, or `spectrum` of
    second moments. One prompt and far outputs: n. Far prompts: 1, whatever the outputs, because the prompts explain it all.
    """
    return math.exp(entropy(joint, order=order) - entropy(prompts, order=order))


def information_vendi(joint: Tensor, prompts: Tensor, outputs: Tensor, *, order: float = 1.0) -> float:
    """exp(H_q(outputs) + H_q(prompts) - H_q(joint)) from three spectra: how much of the diversity the prompts explain."""
    return math.exp(entropy(outputs, order=order) + entropy(prompts, order=order) - entropy(joint, order=order))


def _mean_pair(values: Tensor, *, unbiased: bool) -> float:
    n = len(values)
    if not unbiased:
        return float(values.mean())
    if n < 2:
        raise ValueError("the U form needs at least two samples")
    return float(values.sum() - values.diagonal().sum()) / (n * (n - 1))


# -- labels, exact ---------------------------------------------------------------------------------------------------------


def inverse_joint_rke_label(prompts: Tensor, outputs: Tensor, *, normalize: bool) -> float:
    """The label of one answer against a history of n: the mean of k_T^2 k_X^2, an unbiased sample of I-JRKE given its prompt.

    prompts: (n,) k_T(t, t_j).  outputs: (s, n) k_X(x_i, x_j), one row per sample of the answer.
    normalize: divide by the sum of k_T^2 instead of n, as in the conditional RKE: the label then does not shrink when the prompts
    lie far apart. Released code sums in its first-visit branch; here the mean is taken everywhere. An empty history: 0.
    """
    return _label(prompts.square(), outputs.square(), normalize=normalize)


def joint_kernel_distance_label(
    prompts: Tensor, outputs: Tensor, references: Tensor, to_references: Tensor, from_reference: Tensor, *, normalize: bool
) -> float:
    """The label of one answer against a history of n: the mean of k_T [k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)].

    prompts: (n,) k_T(t, t_j).  The four output kernels: (s, n) in this order, one row per sample of the answer.
    normalize: divide by the sum of k_T instead of n.  An empty history: 0, where the released code divides by zero.
    """
    return _label(prompts, outputs + references - to_references - from_reference, normalize=normalize)


def _label(weights: Tensor, values: Tensor, *, normalize: bool) -> float:
    total = float(weights.sum()) if normalize else float(len(weights))
    return float((values @ weights).mean()) / total if total > 0.0 else 0.0


# -- random features -------------------------------------------------------------------------------------------------------


def phases(points: Tensor, w: Tensor, *, bandwidth: float) -> Tensor:
    """(..., D) phases of points (..., d) for standard normal frequencies w (D, d).

    With independent frequencies for prompts and outputs, `phase_features` of the prompts' phases stand for k_T, of the outputs'
    for k_X, of their sum for k_T k_X, and of `SQUARED` times any of these for its square.
    """
    if points.shape[:-1].numel() == 1 and points.device.type == "cpu":  # read w once, as fast as memory gives it: NumPy's product
        return torch.from_numpy(product(w.numpy(), points.numpy().reshape(-1)) / bandwidth).reshape(*points.shape[:-1], -1)
    return points @ w.T / bandwidth


def phase_features(phases: Tensor) -> Tensor:
    """(..., 2D) random features of (..., D) phases: cosines first, then sines, over sqrt(D); every row has length one."""
    return torch.cat([torch.cos(phases), torch.sin(phases)], dim=-1) / math.sqrt(phases.shape[-1])


def label_error(count: int, *, kernels: int, delta: float) -> float:
    """How far a label by D random frequencies may be from the exact one, with probability 1 - delta: c sqrt(2 ln(2/delta) / D).

    count: D.  kernels: c, the kernel values in one term: 1 for I-JRKE, 4 for JKD.
    Hoeffding (1963): the label is a mean over D independent frequencies of numbers in [-c, c], each without bias, however long
    the history is. The standard deviation is at most c / sqrt(D), and smaller where the history spreads.
    Not for normalized labels: those are ratios, and their error is that of the sums over the mean of k_T^2 (or k_T).

    >>> round(label_error(2048, kernels=1, delta=0.05), 4)
    0.06
    """
    return kernels * math.sqrt(2.0 * math.log(2.0 / delta) / count)
