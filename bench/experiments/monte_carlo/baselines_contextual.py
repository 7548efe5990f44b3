"""What pak-ucb and dak-ucb are compared with: one regression for all arms, and DAK-UCB with optimism frozen into its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bandits.diversity.history import ExactHistory
from bandits.diversity.statistics import DiversityArm
from bandits.functional.growing import GrowingCholesky
from bandits.policies.dak_ucb import DakUcb
from bandits.simulation import World
from tools.simulated_tasks.contextual import Picks

# -- one regression for all arms -------------------------------------------------------------------------------------------


def shared_rbf(x: Tensor, rows: Tensor, differs: Tensor) -> Tensor:
    """Gaussian kernel of bandwidth 1 on [x; one-hot]: another arm lies sqrt 2 away, a factor of 1/e."""
    return torch.exp(-((rows - x).square().sum(1) + 2.0 * differs) / 2.0)


def shared_linear(x: Tensor, rows: Tensor, differs: Tensor) -> Tensor:
    """x.y, plus 1 for the same arm: every arm has its own constant, and all share the slope."""
    return rows @ x + (1.0 - differs)


def shared_ucb(
    world: World,
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    exploration: float = 1.0,
    ridge: float = 1.0,
    each: Callable[[int], object] = lambda t: None,
) -> Picks:
    """(T,) the picks of KernelUCB on [prompt; one-hot arm], prior mean 0: one regression, so what one arm earns for a prompt
    speaks for the others too (PAK-UCB A5). Arms without a pull first.
    """
    x, (rounds, arms) = torch.from_numpy(world.features), world.rewards.shape
    factor = GrowingCholesky(torch.zeros((0, 0), dtype=torch.float64), ridge=ridge)
    rows, played = torch.zeros_like(x), torch.zeros(rounds, dtype=torch.int64)
    solved = torch.zeros(rounds, dtype=torch.float64)  # L^-1 rewards
    for t in range(rounds):
        columns = torch.stack([kernel(x[t], rows[:t], (played[:t] != arm).to(torch.float64)) for arm in range(arms)], dim=1)
        prior = float(kernel(x[t], x[t][None], torch.zeros(1, dtype=torch.float64)))
        shadow = factor.solve(columns) if t else columns
        width = ((prior - shadow.square().sum(0)).clamp_min(0.0) / ridge).sqrt()
        arm = t if t < arms else int((shadow.T @ solved[:t] + exploration * width).argmax())
        factor = factor.append(columns[:, arm], prior)
        row, pivot = factor.last
        solved[t] = (float(world.rewards[t, arm]) - float(row @ solved[:t])) / pivot
        rows[t], played[t] = x[t], arm
        each(t)
    return played.numpy().astype(np.uint8)


# -- optimism in the labels ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OptimisticHistory(ExactHistory):
    """Labels less sqrt(1e-4 / n) against a history of n, as the release freezes them (1 for an empty one)."""

    def update(self, arm: DiversityArm, rows: Tensor, *, against: Sequence[DiversityArm]) -> tuple[Tensor, DiversityArm]:
        labels, grown = super().update(arm, rows, against=against)
        sizes = torch.tensor([float(max(other.outputs, 1)) for other in against], dtype=torch.float64)
        return labels - (1e-4 / sizes).sqrt(), grown


@dataclass(frozen=True, kw_only=True)
class ReleasedDak(DakUcb):
    """Optimism on diversity enters by the labels alone; the arm is the best one, where the release samples a near-vertex."""

    kind: ClassVar[str] = "dak-ucb-released"

    @cached_property
    def history(self) -> OptimisticHistory:
        exact = super().history
        return OptimisticHistory(**{item.name: getattr(exact, item.name) for item in fields(exact)})
