"""Kernels and their random features. Rows are points: x is (n, d), y is (m, d), a kernel matrix is (n, m)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) of |x_i - y_j|^2, clamped at 0 (the expanded form loses digits for near-duplicates)."""
    if len(y) == 1 and _is_plain(x) and _is_plain(y):
        return torch.from_numpy(_to_one(x.numpy(), y[0].numpy()))[:, None]
    if len(x) == 1 and _is_plain(x) and _is_plain(y):
        return torch.from_numpy(_to_one(y.numpy(), x[0].numpy()))[None]
    return (_squared_lengths(x)[:, None] + _squared_lengths(y)[None, :] - 2.0 * (x @ y.T)).clamp_min(0.0)


def _squared_lengths(x: Tensor) -> Tensor:
    """(n,) of |x_i|^2. Through the root, as a norm runs without a matrix of squares: 3 to 5 times faster at 2,000 x 384."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1)
    return lengths.square()


_CHUNK = 1 << 16
"""Numbers, 512 KB, that are multiplied with a point and with themselves before the next are read: they fit a core's cache."""


def _to_one(rows: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) `squared_distances` of rows (n, d) to one point (d,), reading the rows once: what a decision's kernel column costs.

    Measured at 2,000 x 384, rows from memory: .30 ms; whole products of torch .65 ms.
    """
    squares, step = np.empty(len(rows)), max(8, _CHUNK // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        lengths = np.matmul(part[:, None, :], part[:, :, None])[:, 0, 0]  # a product of BLAS per row: half the time of einsum
        squares[start : start + step] = lengths - 2.0 * (part @ point)
    squares += point @ point
    return np.maximum(squares, 0.0, out=squares)


def _is_plain(x: Tensor) -> bool:
    return x.dtype == torch.float64 and x.device.type == "cpu" and not x.requires_grad


def gaussian(x: Tensor, y: Tensor, *, bandwidth: float) -> Tensor:
    """exp(-|x - y|^2 / (2 bandwidth^2)).

    >>> float(gaussian(torch.zeros(1, 2), torch.ones(1, 2), bandwidth=1.0))  # exp(-1)
    0.3678794503211975
    """
    if _are_far(x, y, bandwidth):
        return of_squares(torch.cdist(x, y, compute_mode=DIRECT).square(), bandwidth=bandwidth)
    return of_squares(squared_distances(x, y), bandwidth=bandwidth)


def of_squares(squares: Tensor, *, bandwidth: float) -> Tensor:
    """The same of squared distances."""
    return torch.exp(squares / (-2.0 * bandwidth**2))


FAR = 1e6
"""Squared length, in units of the squared bandwidth, beyond which |x|^2 + |y|^2 - 2 x.y costs the kernel more than 1e-9: points
far from the origin are then subtracted before they are squared. Slower, and no digit depends on where the origin lies."""
DIRECT = "donot_use_mm_for_euclid_dist"


def _are_far(x: Tensor, y: Tensor, bandwidth: float) -> bool:
    """Whether some of both may be far from the origin. Where those of one alone are, no digits cancel."""
    fewer = x if len(x) < len(y) else y
    return bool(len(fewer)) and not float(_squared_lengths(fewer).max()) <= FAR * bandwidth**2


def polynomial(x: Tensor, y: Tensor, *, scale: float, offset: float, degree: int) -> Tensor:
    """(scale x.y + offset)^degree."""
    return (scale * (x @ y.T) + offset) ** degree


def linear(x: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
    """Scale x.y."""
    return scale * (x @ y.T)


def frequencies(*, seed: int, count: int, dim: int, bandwidth: float) -> Tensor:
    """(D, d) frequencies of a Gaussian kernel, float64: `numpy.random.default_rng(seed).standard_normal((D, d)) / bandwidth`.

    NumPy does not promise this stream for ever, so a bandit keeps `fingerprint` of it in its log and refuses to run on another.
    """
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim)) / bandwidth)


def fingerprint(matrix: Tensor) -> str:
    """sha256 of the bytes of a float64 matrix, row-major."""
    return hashlib.sha256(matrix.contiguous().numpy().tobytes()).hexdigest()


ONE_THREAD = 1 << 18
"""Numbers of a matrix that are multiplied with a vector at once: OpenBLAS, which NumPy brings, wakes its threads from 460,800."""


def _rows_of_one_thread(matrix: NDArray[np.float64]) -> int:
    """How many rows of a matrix (n, d) go into one product: all n where it is small enough, else a multiple of 8."""
    columns: int = matrix.shape[1]
    return len(matrix) if matrix.size <= ONE_THREAD else max(8, ONE_THREAD // max(columns, 1) // 8 * 8)


def product(matrix: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) of (n, d) and (d,), or (n, m) of (d, m), a vector on one thread whatever the thread settings of torch are.

    Threads that wait for each other on busy cores took 3 ms for 2,048 x 768 where one takes .2 to .6.
    """
    found: NDArray[np.float64]
    rows = _rows_of_one_thread(matrix)
    if rows >= len(matrix):
        found = matrix @ vector
        return found
    found = np.empty((len(matrix), *vector.shape[1:]))
    for start in range(0, len(matrix), rows):
        np.matmul(matrix[start : start + rows], vector, out=found[start : start + rows])
    return found


def random_features(x: Tensor, w: Tensor) -> Tensor:
    """(..., 2D) random Fourier features of (..., d): cosines first, then sines, over sqrt(D); every row has length one.

    Rahimi & Recht 2007; the inner product of two rows estimates the Gaussian kernel of the bandwidth that `w` was drawn for.
    """
    if x.ndim == 1 and x.device.type == "cpu":  # NumPy's calls cost a third of torch's, and here they are all there is
        angles, features = product(w.numpy(), x.numpy()), np.empty(2 * len(w))
        np.cos(angles, out=features[: len(w)])
        np.sin(angles, out=features[len(w) :])
        return torch.from_numpy(features / np.sqrt(len(w)))
    projection = x @ w.T
    return torch.cat([torch.cos(projection), torch.sin(projection)], dim=-1) / float(np.sqrt(len(w)))


def random_features_of_each(x: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2D) `random_features` of the rows of x (n, d), each with the bits that it has alone.

    BLAS multiplies row by row, since a product of several rows rounds otherwise; cosines and sines of NumPy depend on their
    argument alone. Half of the time of as many calls.
    """
    count = len(w)
    angles, features = np.empty((len(x), count)), np.empty((len(x), 2 * count))
    rows = _rows_of_one_thread(w)
    for start in range(0, count, rows):
        np.matmul(w[start : start + rows], x[:, :, None], out=angles[:, start : start + rows, None])
    np.cos(angles, out=features[:, :count])
    np.sin(angles, out=features[:, count:])
    features /= np.sqrt(count)
    return features
