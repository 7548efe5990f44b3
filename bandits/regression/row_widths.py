"""The rows of one call, decided in order: what was chosen for a row is pending for the rows after it.

    mean, width of all rows at once --> row 0: rule --> choose --> narrow --> row 1: rule --> choose --> narrow --> ...

Scoring costs what it did: all rows are scored together. What a pending row i of an arm does to the widths of the others follows
from their covariances under that arm, one (B, B) matrix of products, and is exact (Sherman-Morrison, row by row):

    c_j = z_j' P z_i        width_j^2 -= c_j^2 / (1 + c_i)        P = (A + ridge I)^-1 with what was pending before
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.draw import STOP
from bandits.types import Choose, Context, Weights

Floats = NDArray[np.float64]
Rule = Callable[[Sequence[int], Sequence[Context], slice, list[Tensor]], Weights]
"""(pulls per arm, contexts of some rows, which rows these are, their widths (b, K) per signal) -> their weights."""


class RowWidths:
    """(B, K) widths of B rows under K arms, narrowed as rows become pending.

    covariances: arm -> (B, B) z_j' P z_i, asked for once per arm and only where a row of it becomes pending.
    """

    def __init__(self, widths: Tensor, covariances: Callable[[int], Tensor]) -> None:
        self._widths = widths.numpy().copy()
        self._covariances = covariances
        self._of: dict[int, Floats] = {}

    def of(self, row: int) -> Tensor:
        """(1, K)."""
        return torch.from_numpy(self._widths[row : row + 1])

    def narrow(self, row: int, arm: int) -> None:
        """Take this row as pending for the arm."""
        later = slice(row + 1, None)
        if row + 1 == len(self._widths):
            return
        if arm not in self._of:
            self._of[arm] = self._covariances(arm).numpy().copy()
        covariances = self._of[arm]
        reach = covariances[row, later] / np.sqrt(1.0 + max(covariances[row, row], 0.0))
        left = covariances[later, later]
        left -= reach[:, None] * reach
        self._widths[later, arm] = np.sqrt(np.maximum(left.diagonal(), 0.0))


def in_order(
    contexts: Sequence[Context], *, pulls: Sequence[int], widths: Sequence[RowWidths], rule: Rule, choose: Choose
) -> Weights:
    """`Policy.weights_in_order` of a rule that looks at pulls and widths. widths: per signal, before any row is pending."""
    counts, parts = list(pulls), []
    for row in range(len(contexts)):
        rows = slice(row, row + 1)
        part = rule(counts, contexts[rows], rows, [one.of(row) for one in widths])
        parts.append(part)
        arm = choose(row, part.values[0].tolist())
        if arm != STOP:
            counts[arm] += 1
            for one in widths:
                one.narrow(row, arm)
    return Weights.joined(parts)
