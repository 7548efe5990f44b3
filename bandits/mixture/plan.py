"""The plan of a mixture policy: the loss of all arms together, and the weights that minimize it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bandits.functional.simplex import Solution, Vector
from bandits.mixture.samples import MixtureSamples
from bandits.mixture.statistics import Loss, PairSums
from bandits.types import ArmState

Mask = tuple[bool, ...]
"""(K,) a set of arms."""


@dataclass(frozen=True)
class Solved:
    """A solution for one set of arms.

    weights: (K,) the rule's answer.  gradient: (K,) of the loss there, NaN for arms without samples.  solution: its source.
    """

    weights: Vector
    gradient: Vector
    solution: Solution


@dataclass(frozen=True)
class Plan:
    """The plan derived from the statistics of all arms together; valid for the policy, arms and reference it was made for.

    known:  (K,) arms with samples; no other has a place in a mixture yet.
    solved: per set of arms, the best weights (K,) over them.  asked: sets that decisions asked for, and how many plans ago.
    curvatures: per set of arms, the curvature of the loss that an iterative solver found last (m, m).
    """

    policy: MixtureSamples
    arms: tuple[ArmState, ...]
    reference: ArmState
    loss: Loss
    known: Mask
    sums: PairSums | None = None
    solved: dict[Mask, Solved] = field(default_factory=dict)
    asked: dict[Mask, int] = field(default_factory=dict)
    curvatures: dict[tuple[int, ...], Vector] = field(default_factory=dict)

    def at(self, weights: Vector) -> tuple[float, Vector]:
        """The loss at weights (K,) over known arms, and its gradient (K,): NaN for arms without samples."""
        arms = np.flatnonzero(self.known).tolist()
        gradient = np.full(len(self.known), np.nan)
        value, gradient[arms] = self.loss.only(arms).at(weights[arms])
        return value, gradient

    def slopes(self, weights: Vector) -> Vector:
        """(K,) the gradient of the loss."""
        return self.at(weights)[1]
