"""What fd-ucb, is-ucb and the mixture policies are compared with: rules of the releases that the package does not ship.

FixedWeights                 random, or an oracle that knows the best mixture
NaiveFd, NaiveIs, GreedyIs   the release's yardsticks: radii that ignore the samples, or none
OverwrittenIs                is-ucb as released, defect included: its optimistic marginal overwrites the running one
OneArmUcb                    the release's `one-arm-ucb`: the best single arm by the same loss ("vanilla UCB")
ShortSteps                   the release's `mixture-greedy-eg`: ten small exponentiated steps from n / t
ReleasedVendi                the release's Vendi rule: ten z-scored steps whose length decays with the rounds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bandits.functional import concentration
from bandits.functional.entropy import entropy, optimistic_marginal
from bandits.functional.moments import Spread
from bandits.functional.simplex import Solution, Vector, frank_wolfe_gap, tidy
from bandits.mixture.plan import Plan
from bandits.mixture.statistics import Quadratic
from bandits.policies.fd_ucb import FdArm, FdUcb
from bandits.policies.is_ucb import IsArm, IsUcb
from bandits.policies.mixture import MixtureGreedy, MixtureUcb
from bandits.regression.ridge import MeanArm
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights, empty


@dataclass(frozen=True, kw_only=True)
class FixedWeights(Policy):
    """The same distribution in every round; learns nothing. shares: (K,)."""

    kind: ClassVar[str] = "fixed-weights"
    needs: ClassVar[frozenset[Need]] = frozenset()
    summary: ClassVar[str] = "Yardstick: the same distribution in every round."

    shares: tuple[float, ...]

    def init(self) -> MeanArm:
        return MeanArm()

    def update(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].update(seen.reward)

    def update_reference(self, state: State, seen: Observation) -> ArmState:
        return state.reference

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        return Weights(torch.tensor(self.shares, dtype=torch.float64).expand(len(contexts), -1).clone())


# -- Frechet distance and Inception score ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NaiveFd(FdUcb):
    """`fd-naive-ucb`: the radius of outputs of unit variance."""

    kind: ClassVar[str] = "fd-naive-ucb"

    def _radius(self, arm: FdArm, spread: Spread, gap: float, root_trace: float) -> float:
        radius = concentration.fd_naive(
            n=arm.count, dim=self.output_dim, gap=gap, root_trace=root_trace, delta=self.delta, kappa=self.kappa
        )
        return radius.total


@dataclass(frozen=True, kw_only=True)
class NaiveIs(IsUcb):
    """`is-naive-ucb`: the radii of the largest possible variances, 1/4 per class and (ln C)^2 / 4 for the entropy."""

    kind: ClassVar[str] = "is-naive-ucb"

    def _measure(self, arm: IsArm) -> tuple[float, float]:
        n, marginal, span = arm.count, arm.p / arm.count, math.log(self.output_dim)
        log_term = math.log(4.0 / self.delta)
        quarter = torch.full_like(marginal, 0.25)
        radius = concentration.empirical_bernstein(quarter, n=n, log_term=log_term, span=1.0)
        of_entropy = concentration.empirical_bernstein(quarter[0] * span**2, n=n, log_term=log_term, span=span)
        marginal_entropy = float(entropy(marginal))
        optimistic = float(entropy(optimistic_marginal(marginal, radius)))
        return marginal_entropy - arm.h / n, optimistic - marginal_entropy + float(of_entropy)


@dataclass(frozen=True, kw_only=True)
class GreedyIs(IsUcb):
    """`is-naive-greedy`: the highest estimate."""

    kind: ClassVar[str] = "is-naive-greedy"

    def _measure(self, arm: IsArm) -> tuple[float, float]:
        return super()._measure(arm)[0], 0.0


@dataclass(frozen=True)
class OverwrittenArm(IsArm):
    """The sums of `IsArm`, and what the release makes of its running marginal (C,)."""

    marginal: Tensor = field(default_factory=empty)


@dataclass(frozen=True, kw_only=True)
class OverwrittenIs(IsUcb):
    """The released rule with its defect: scoring an arm writes the optimistic marginal over the running one, so that every class
    drifts to 1/e and only the entropy of the single outputs still ranks.
    """

    kind: ClassVar[str] = "is-ucb-overwritten"

    def init(self) -> OverwrittenArm:
        return OverwrittenArm(**{**vars(super().init()), "marginal": torch.zeros(self.output_dim, dtype=torch.float64)})

    def update(self, state: State, seen: Observation) -> ArmState:
        before: OverwrittenArm = state.arms[seen.arm]
        sums: IsArm = super().update(state, seen)
        fresh = sums.p - before.p
        running = (before.count * before.marginal + fresh) / sums.count
        variance = (sums.p_squared / sums.count - (sums.p / sums.count).square()).clamp_min(0.0)
        radius = concentration.empirical_bernstein(variance, n=sums.count, log_term=math.log(4.0 / self.delta), span=1.0)
        return OverwrittenArm(**{**vars(sums), "marginal": optimistic_marginal(running, radius)})

    def _measure(self, arm: IsArm) -> tuple[float, float]:
        assert isinstance(arm, OverwrittenArm)
        estimate, _ = super()._measure(arm)
        span, log_term = math.log(self.output_dim), math.log(4.0 / self.delta)
        variance = torch.tensor(max(arm.h_squared / arm.count - (arm.h / arm.count) ** 2, 0.0), dtype=torch.float64)
        radius = float(concentration.empirical_bernstein(variance, n=arm.count, log_term=log_term, span=span))
        index = float(entropy(arm.marginal)) - arm.h / arm.count + radius
        return estimate, index - estimate


# -- mixtures --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OneArmUcb(MixtureUcb):
    """argmin of K_ii + f_i - delta_l sqrt(beta ln t / (2 n_i)): as if the best mixture were the best arm."""

    kind: ClassVar[str] = "one-arm-ucb"

    def decide(
        self, plan: Plan, contexts: Sequence[Context], first: list[int], values: Vector, scores: dict[str, Vector]
    ) -> None:
        assert isinstance(plan.loss, Quadratic)
        index = np.diagonal(plan.loss.matrix) + plan.loss.linear - self.bonus(plan)
        for row, context in enumerate(contexts):
            if first[row] < 0:
                values[row, int(np.argmin(np.where(context.allowed, index, np.inf)))] = 1.0


def _gathered(plan: Plan, arms: list[int]) -> Vector:
    """(m,) n / t of these arms."""
    return tidy(np.array([float(plan.arms[arm].count) for arm in arms]))


@dataclass(frozen=True, kw_only=True)
class ShortSteps(MixtureGreedy):
    """Ten exponentiated steps of length .01 / sqrt(step) from n / t."""

    kind: ClassVar[str] = "mixture-greedy-eg"

    def minimize(self, plan: Plan, arms: list[int], start: Vector) -> Solution:
        loss, weights = plan.loss.only(arms), _gathered(plan, arms)
        for step in range(1, 11):
            slopes = loss.at(weights)[1]
            weights = tidy(weights * np.exp(-0.01 / math.sqrt(step) * (slopes - slopes.min())))
        value, slopes = loss.at(weights)
        return Solution(weights, value, frank_wolfe_gap(weights, slopes), 10)


@dataclass(frozen=True, kw_only=True)
class ReleasedVendi(MixtureGreedy):
    """Ten exponentiated steps along the z-scored gradient from n / t, of length .1 / sqrt(round), or .1 without the decay."""

    kind: ClassVar[str] = "mixture-greedy-released"

    decay: bool = True

    def minimize(self, plan: Plan, arms: list[int], start: Vector) -> Solution:
        loss, weights = plan.loss.only(arms), _gathered(plan, arms)
        rounds = sum(arm.pulls for arm in plan.arms)
        length = 0.1 / math.sqrt(rounds) if self.decay else 0.1
        for _ in range(10):
            slopes = loss.at(weights)[1]
            weights = tidy(weights * np.exp(-length * (slopes - slopes.mean()) / max(float(slopes.std()), 1e-12)))
        value, slopes = loss.at(weights)
        return Solution(weights, value, frank_wolfe_gap(weights, slopes), 10)
