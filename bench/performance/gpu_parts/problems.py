"""Are the answers right? Prompts in clusters, seen through random features, against sums inverted in float64 on the CPU.

loaded    the float64 inverse is cast to the precision of the device
appended  the arm starts empty and is sent the columns of every row, computed in float64: 1,000 changes without a load
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bandits.functional import kernels, linalg
from bandits.gpu.stack import Stack

DIM, CLUSTERS, SPREAD, STEP = 64, 12, 0.1, 16


@dataclass(frozen=True, kw_only=True)
class Problem:
    """rows: (m, n, p) what each arm has seen.  inverses: (m, p, p).  thetas: (m, p).  queries: (B, p), a quarter of them unlike
    anything seen.  means, widths: (B, m) of these queries.
    """

    ridge: float
    rows: Tensor
    inverses: Tensor
    thetas: Tensor
    queries: Tensor
    means: Tensor
    widths: Tensor


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """mean: largest error over the root mean square of the true means.  width: largest relative error.  equal: exploration ->
    share of queries with the arm that float64 picks.  lost: most that another pick cost, in reward, over all explorations.
    """

    device: str
    dtype: str
    how: str
    ridge: float
    arms: int
    size: int
    mean: float
    width: float
    equal: dict[float, float]
    lost: float


def problem(*, arms: int, size: int, ridge: float, seen: int = 1000, queries: int = 512, seed: int = 3) -> Problem:
    """Arms that are good at different prompts, and the truth of them."""
    rng = np.random.default_rng(seed)
    frequencies = kernels.frequencies(seed=seed, count=size // 2, dim=DIM, bandwidth=1.0)
    centres = rng.standard_normal((CLUSTERS, DIM))

    def lifted(count: int, *, strange: int = 0) -> tuple[np.ndarray, Tensor]:
        x = centres[rng.integers(0, CLUSTERS, count)] + SPREAD * rng.standard_normal((count, DIM))
        x[:strange] = rng.standard_normal((strange, DIM))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x, kernels.random_features(torch.from_numpy(x), frequencies)

    rows, inverses, thetas = [], [], []
    for _ in range(arms):
        x, z = lifted(seen)
        reward = 1.0 / (1.0 + np.exp(-4.0 * x @ rng.standard_normal(DIM))) + 0.1 * rng.standard_normal(seen)
        gram = z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64)
        inverse = torch.cholesky_inverse(linalg.cholesky(gram, what="gram + ridge"))
        rows.append(z)
        inverses.append(inverse)
        thetas.append(inverse @ (z.T @ torch.from_numpy(reward)))
    _, asked = lifted(queries, strange=queries // 4)
    widths = [((asked @ inverse) * asked).sum(1).sqrt() for inverse in inverses]
    return Problem(
        ridge=ridge,
        rows=torch.stack(rows),
        inverses=torch.stack(inverses),
        thetas=torch.stack(thetas),
        queries=asked,
        means=asked @ torch.stack(thetas).T,
        widths=torch.stack(widths, 1),
    )


def agreements(truth: Problem, *, device: torch.device, dtype: torch.dtype) -> Iterator[Agreement]:
    """Both ways by which a stack may know what it knows."""
    arms, _, size = truth.rows.shape
    for how in ("loaded", "appended"):
        with Stack(arms=arms, size=size, ridge=truth.ridge, device=device, dtype=dtype) as stack:
            for arm in range(arms):
                if how == "loaded":
                    stack.load(arm, inverse=truth.inverses[arm], theta=truth.thetas[arm])
                else:
                    for columns in _columns(truth, arm):
                        stack.append(arm, columns)
                    stack.set_theta(arm, truth.thetas[arm])
            yield _compared(truth, stack, how=how)


def _columns(truth: Problem, arm: int) -> Iterator[Tensor]:
    """Blocks (n, p) of L^-1 Z M, by which the inverse M shrinks for rows Z, where L L' = I + Z M Z'."""
    inverse = torch.eye(truth.rows.shape[2], dtype=torch.float64) / truth.ridge
    for z in torch.split(truth.rows[arm], STEP):
        products = z @ inverse
        factor = torch.linalg.cholesky(torch.eye(len(z), dtype=torch.float64) + products @ z.T)
        columns = torch.linalg.solve_triangular(factor, products, upper=False)
        inverse = torch.addmm(inverse, columns.T, columns, alpha=-1.0)
        yield columns


def _compared(truth: Problem, stack: Stack, *, how: str) -> Agreement:
    mean, width = stack.scores(truth.queries)
    equal, lost = {}, 0.0
    for exploration in (0.1, 1.0):
        value = truth.means + exploration * truth.widths
        best, arm = value.max(dim=1)
        ours = (mean + exploration * width).argmax(dim=1)
        equal[exploration] = float((ours == arm).double().mean())
        lost = max(lost, float((best - value.gather(1, ours[:, None])[:, 0]).max()))
    return Agreement(
        device=stack.device.type,
        dtype=str(stack.dtype).removeprefix("torch."),
        how=how,
        ridge=truth.ridge,
        arms=stack.arms,
        size=stack.size,
        mean=float((mean - truth.means).abs().max() / truth.means.square().mean().sqrt()),
        width=float((width / truth.widths - 1.0).abs().max()),
        equal=equal,
        lost=lost,
    )
