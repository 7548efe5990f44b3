"""Rows and factors that only ever grow: appending costs one row, and every older version stays as it was."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.errors import NotPositiveDefinite
from bandits.functional.kernels import product
from bandits.functional.linalg import cholesky

Floats = NDArray[np.float64]


class Rows:
    """Rows that only ever grow, sharing one buffer: appending costs one row, and every older view stays as it was.

    A second append to the same older version copies, so that no reader ever sees another branch's rows.
    """

    def __init__(self, rows: Tensor) -> None:
        self._buffer = [rows.clone()]  # one-element list: the buffer and its fill are shared by all versions
        self._filled = [len(rows)]
        self._length = len(rows)

    def append(self, row: Tensor) -> Rows:
        """A longer version; `self` does not change."""
        grown = Rows.__new__(Rows)
        grown._length = self._length + 1
        if self._filled[0] == self._length:
            grown._buffer, grown._filled = self._buffer, self._filled
        else:
            grown._buffer, grown._filled = [self.tensor.clone()], [self._length]
        buffer = grown._buffer[0]
        if grown._length > len(buffer):
            larger = buffer.new_zeros((max(16, 2 * len(buffer)), *row.shape))
            larger[: self._length] = buffer[: self._length]
            grown._buffer[0] = buffer = larger
        buffer[self._length] = row
        grown._filled[0] = grown._length
        return grown

    def __len__(self) -> int:
        return self._length

    def extends(self, older: Rows) -> bool:
        """Whether these are the rows of an older version and those appended since, by descent: no row is compared."""
        return self._filled is older._filled and self._length >= older._length

    @property
    def tensor(self) -> Tensor:
        """The rows as a view (n, ...); do not write into it."""
        return self._buffer[0][: self._length]


_BLOCK = 64
"""Rows of a factor that are solved at once. From 64 to 256 the time is the same; more waste the upper half of the corners."""


def _factor(gram: Tensor, *, ridge: float) -> Tensor:
    """(n, n) lower factor of gram + ridge I, which has one wherever its rows could be appended one by one.

    Rounding can make a Gram matrix that drowns its ridge indefinite. Appending survives that, as a pivot is never taken below the
    ridge, so here rows are appended too: a log that was learned live can be learned again after a restart.
    """
    try:
        return cholesky(gram + ridge * torch.eye(len(gram), dtype=torch.float64), what="kernel matrix + ridge")
    except NotPositiveDefinite:
        with np.errstate(all="ignore"):
            grown = GrowingCholesky(gram[:0, :0], ridge=ridge)
            for n in range(len(gram)):
                grown = grown.append(gram[n, :n], float(gram[n, n]))
            return grown.factor


class GrowingCholesky:
    """Lower factor L of a Gram matrix plus ridge that grows by one row at a time in O(n^2), sharing its blocks like `Rows`.

        block b: rows (64, 64 b + 64) of L up to the diagonal, and the inverse (64, 64) of the triangle at their end

    A solve reads the lower triangle once, each block in the order in which it lies in memory: n^2 / 2 numbers are what it costs
    (16 MB at n = 2,000), as the inverses turn every step into a product. A branch copies one block, not the factor. Products are
    NumPy's, whose BLAS reads a matrix for one vector up to twice as fast as torch's. Measured at n = 2,000: .95 ms, not 1.65.
    """

    def __init__(self, gram: Tensor, *, ridge: float) -> None:
        n = len(gram)
        eye = torch.eye(n, dtype=torch.float64)
        dense = _factor(gram, ridge=ridge) if n else gram
        self._blocks: list[tuple[Floats, Floats]] = []
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            rows, corner = _empty_block(start)
            rows[: stop - start, :stop] = dense[start:stop, :stop].numpy()
            triangle = dense[start:stop, start:stop]
            inverse = torch.linalg.solve_triangular(triangle, eye[start:stop, start:stop], upper=False)
            corner[: stop - start, : stop - start] = inverse.numpy()
            self._blocks.append((rows, corner))
        self._filled = [n]
        self._length = n
        self._ridge = ridge

    def __len__(self) -> int:
        return self._length

    @property
    def factor(self) -> Tensor:
        """(n, n) a copy of L."""
        dense = np.zeros((self._length, self._length))
        for start in range(0, self._length, _BLOCK):
            stop = min(start + _BLOCK, self._length)
            dense[start:stop, :stop] = self._blocks[start // _BLOCK][0][: stop - start, :stop]
        return torch.from_numpy(dense)

    @property
    def last(self) -> tuple[Tensor, float]:
        """The last row without its diagonal entry (n - 1,), a view, and that entry."""
        at = self._length - 1
        row = self._blocks[at // _BLOCK][0][at % _BLOCK]
        return torch.from_numpy(row[:at]), float(row[at])

    def solve(self, rows: Tensor, *, after: Tensor | None = None) -> Tensor:
        """L^-1 rows for (n,) or (n, m).

        after: the first j rows of the answer, known from an older version; `rows` are then those after them, (n - j, ...). That
        costs O(n (n - j)), because a longer factor solves its first rows as the shorter one did.
        """
        right, begin = rows.numpy(), 0 if after is None else len(after)
        solved = np.empty((self._length, *right.shape[1:]))
        if after is not None:
            solved[:begin] = after.numpy()
        for start in range(begin - begin % _BLOCK, self._length, _BLOCK):
            block, corner = self._blocks[start // _BLOCK]
            first, stop = max(begin, start), min(start + _BLOCK, self._length)
            inside = slice(first - start, stop - start)
            rest = right[first - begin : stop - begin]
            if first:
                rest = rest - product(block[inside, :first], solved[:first])
            np.matmul(corner[inside, inside], rest, out=solved[first:stop])
        return torch.from_numpy(solved)

    def append(self, k: Tensor, kxx: float) -> GrowingCholesky:
        """Add one point with kernel column k (n,) and k(x, x)."""
        return self.append_solved(self.solve(k), kxx)

    def append_solved(self, row: Tensor, kxx: float) -> GrowingCholesky:
        """`append` of a point whose L^-1 k (n,) is known: O(n). The pivot is clamped at the ridge, its exact lower bound."""
        n, values = self._length, row.numpy()
        pivot = math.sqrt(max(kxx + self._ridge - float(values @ values), self._ridge))
        grown = GrowingCholesky.__new__(GrowingCholesky)
        grown._ridge, grown._length = self._ridge, n + 1
        at, start = n % _BLOCK, n - n % _BLOCK
        # The newest version writes its row into the blocks that all versions share: no older one reads past its own length.
        # A second child of one version would overwrite the first's row: it copies the open block and shares the full ones.
        if self._filled[0] == n:
            grown._blocks, grown._filled = self._blocks, self._filled
        else:
            grown._blocks, grown._filled = self._blocks[: start // _BLOCK], [n]
            if at:
                rows, corner = self._blocks[start // _BLOCK]
                grown._blocks.append((rows.copy(), corner.copy()))
        if not at:
            grown._blocks.append(_empty_block(start))
        rows, corner = grown._blocks[-1]
        rows[at, :n], rows[at, n] = values, pivot
        corner[at, :at], corner[at, at] = (values[start:] @ corner[:at, :at]) / -pivot, 1.0 / pivot
        grown._filled[0] = n + 1
        return grown


def _empty_block(start: int) -> tuple[Floats, Floats]:
    return np.zeros((_BLOCK, start + _BLOCK)), np.zeros((_BLOCK, _BLOCK))


# -- small factors that lose a point ---------------------------------------------------------------------------------------


def without(factor: Tensor, index: int) -> Tensor:
    """The lower factor (q - 1, q - 1) of a matrix without row and column `index`, from its factor (q, q): O(q^2).

    Taking the row away leaves one number above each later diagonal; a rotation of two neighboring columns removes each of them
    and changes no inner product of rows. Nothing is subtracted, so nothing can turn indefinite.
    """
    columns = factor.numpy().T.copy()
    for j in range(index, len(columns) - 1):
        _rotate(columns, j, row=j + 1)
    return torch.from_numpy(np.delete(columns[:-1], index, axis=1).T.copy())


def schur_complement_factor(factor: Tensor, index: int) -> Tensor:
    """The lower factor (q - 1, q - 1) of what is left of a matrix when point `index` is known, its Schur complement: O(q^2).

    Rotations move that point to the front, where the factor of the others follows its column. For the first point that
    is where it is already.
    """
    columns = factor.numpy().T.copy()
    for j in reversed(range(index)):
        _rotate(columns, j, row=index)
    return torch.from_numpy(np.delete(columns[1:], index, axis=1).T.copy())


def _rotate(columns: Floats, j: int, *, row: int) -> None:
    """Rotate columns j and j + 1, given as rows of an array of ours, so that the second is 0 in this row."""
    length = math.hypot(columns[j, row], columns[j + 1, row])
    if length == 0.0:
        return
    cosine, sine = columns[j, row] / length, columns[j + 1, row] / length
    columns[j : j + 2] = np.array([[cosine, sine], [-sine, cosine]]) @ columns[j : j + 2]
    columns[j + 1, row] = 0.0
