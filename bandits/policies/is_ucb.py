"""IS-UCB (AISTATS 2025): the one generative model with the highest Inception score, from the class probabilities of its outputs.

    estimate = log IS = H(pbar) - hbar        pbar: mean class probabilities, hbar: mean entropy of one output's probabilities
    play the allowed arm of highest index = estimate + bonus

    released   e_j = sqrt(2 V_j L / n) + 7 L / (3 (n - 1)) per class, e_h likewise with span ln C;  L = ln(4 / delta)
               index = entropy of the classes, each moved by e_j towards 1/e  -  (hbar - e_h)
    kl         psi = KL(p || pbar), whose mean is log IS;  b = sum_j V_j / (2 n pbar_j)
               index = H(pbar) + b - hbar + sqrt(2 Var(psi) L / n) + 7 ln(C) L / (3 (n - 1))

`released` is the authors' rule without their defect: their optimistic marginal is a view of the running one, which it overwrites,
so that every class drifts to 1/e and only hbar still ranks. Its C additive terms of 10 / n each make it explore uniformly while
n is below about 10 C.

`kl` is ours, not the paper's: one radius for one number. log IS is the mean of psi, so its error is that of a mean of n numbers,
not of C + 1 means; and H(pbar) is biased downwards by b = sum_j V_j / (2 n pbar_j) to second order (the delta method: -1/2 sum
Var(pbar_j) / p_j). psi depends on where pbar stood when the output came (itself included, so psi is finite and at most ln n): the
variance of psi, and so the index, depends on the *order* of the outputs. The statistic is a fold all the same: log order defines
it, however it was batched.

Measured, share of best picks in 1,000 rounds of 5 outputs, 3 arms: C = 10 released .830, kl .967; C = 1,000 released .338
(uniform), kl .94 over 40 seeds, of which one stayed with a worse arm: there is no t in either radius, so each may fail for good,
with delta.

An arm is forced, index +infinity, while it has fewer than 2 outputs. An index changes with the arm's own outcomes only, so
pending decisions do not move it; they spread in the burn-in, over forced arms and over ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bandits import draw
from bandits.errors import InvalidHyperparameter, InvalidObservation
from bandits.functional import concentration
from bandits.functional.entropy import divergence, entropy, optimistic_marginal
from bandits.hyperparameters import exploration_floor_field, hyper, initial_pulls_field
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights, cached_field

TOLERANCE = 1e-3
"""How far the probabilities of one output may be from summing to 1; they are divided by their sum."""


@dataclass(frozen=True)
class IsScore:
    """An arm's log IS and bonus, and the policy that they were computed for."""

    policy: IsUcb
    estimate: float
    bonus: float


@dataclass(frozen=True)
class IsArm:
    """Sums over the outputs of one arm, each added in turn. h is an output's entropy; psi stays 0 unless the bonus is `kl`."""

    pulls: int  # observations, of one or more outputs each
    count: int  # outputs
    p: Tensor  # (C,) sum p
    p_squared: Tensor  # (C,) sum p^2
    h: float
    h_squared: float
    psi: float
    psi_squared: float
    cache: IsScore | None = cached_field()


@dataclass(frozen=True, kw_only=True)
class IsUcb(Policy):
    """Inception score UCB."""

    kind: ClassVar[str] = "is-ucb"
    needs: ClassVar[frozenset[Need]] = frozenset({"output"})
    outputs: ClassVar[Literal["vectors", "probabilities"]] = "probabilities"
    summary: ClassVar[str] = (
        "The arm whose outputs may have the highest Inception score: sure of their class, and of all classes."
    )

    delta: float = hyper(
        0.05, "Probability with which a radius may fail.", above=0, at_most=1, source="IS-UCB, released code", unit="probability"
    )
    bonus: Literal["released", "kl"] = hyper(
        "released",
        "released: a radius per class; beyond about 100 classes it explores uniformly for thousands of rounds. "
        "kl: one radius for the score, ours and not the paper's; recommended beyond 100 classes.",
        source="IS-UCB, released code",
    )
    union: bool = hyper(False, "released only: a union bound, ln(4 (C + 1) / delta), so that all radii hold at once.")
    initial_pulls: int = initial_pulls_field()
    exploration_floor: float = exploration_floor_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.union and self.bonus == "kl":
            raise InvalidHyperparameter("union", "applies to the radii per class; kl has one radius and needs none")

    # -- the statistic -------------------------------------------------------------------------------------------------

    def init(self) -> IsArm:
        zero = torch.zeros(self.output_dim, dtype=torch.float64)
        return IsArm(0, 0, zero, zero.clone(), 0.0, 0.0, 0.0, 0.0)

    def update(self, state: State, seen: Observation) -> ArmState:
        """One output after the other: the same bits however they were batched."""
        arm = state.arms[seen.arm]
        count, p, p_squared = arm.count, arm.p, arm.p_squared
        h, h_squared, psi, psi_squared = arm.h, arm.h_squared, arm.psi, arm.psi_squared
        for raw in seen.output.to(torch.float64):
            row = raw / raw.sum()
            count, p, p_squared = count + 1, p + row, p_squared + row.square()
            uncertainty = float(entropy(row))
            h, h_squared = h + uncertainty, h_squared + uncertainty**2
            if self.bonus == "kl":
                surprise = float(divergence(row, p / count))
                psi, psi_squared = psi + surprise, psi_squared + surprise**2
        return IsArm(arm.pulls + 1, count, p, p_squared, h, h_squared, psi, psi_squared)

    # -- the decision --------------------------------------------------------------------------------------------------

    def prepare(self, state: State) -> State:
        """Score the arms that changed, O(C) each, remembered on the arm."""
        for arm in state.arms:
            self._score(arm)
        return state

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        scored = [self._score(arm) for arm in state.arms]
        estimate = torch.tensor([score.estimate for score in scored], dtype=torch.float64)
        bonus = torch.tensor([score.bonus for score in scored], dtype=torch.float64)
        index = torch.where(bonus.isnan(), torch.inf, estimate + bonus)
        return draw.optimistic_weights(
            index,
            contexts,
            estimate=estimate,
            bonus=bonus,
            pulls=[arm.pulls for arm in state.arms],
            initial_pulls=self.initial_pulls,
            floor=self.exploration_floor,
        )

    def _score(self, arm: IsArm) -> IsScore:
        """The arm's score, computed where it changed; NaN for what is not known yet."""
        if arm.cache is None or arm.cache.policy != self:
            score = IsScore(self, *((math.nan, math.nan) if arm.count < 2 else self._measure(arm)))
            object.__setattr__(arm, "cache", score)  # a memo, not a change
        assert arm.cache is not None
        return arm.cache

    def _measure(self, arm: IsArm) -> tuple[float, float]:
        """Log IS and bonus of an arm with two outputs or more."""
        n, marginal, mean_entropy = arm.count, arm.p / arm.count, arm.h / arm.count
        variance = (arm.p_squared / n - marginal.square()).clamp_min(0.0)
        marginal_entropy = float(entropy(marginal))
        estimate = marginal_entropy - mean_entropy
        log_term = math.log(4.0 * (self.output_dim + 1 if self.union else 1) / self.delta)
        span = math.log(self.output_dim)
        if self.bonus == "kl":
            bias = float(torch.where(marginal > 0.0, variance / (2.0 * n * marginal), 0.0).sum())
            return estimate, bias + _radius(arm.psi, arm.psi_squared, n, log_term, span)
        radius = concentration.empirical_bernstein(variance, n=n, log_term=log_term, span=1.0)
        optimistic = float(entropy(optimistic_marginal(marginal, radius)))
        return estimate, optimistic - marginal_entropy + _radius(arm.h, arm.h_squared, n, log_term, span)

    # -- what it refuses -----------------------------------------------------------------------------------------------

    def check_observation(self, seen: Observation, *, state: State | None = None) -> None:
        output = seen.output.to(torch.float64)
        sums, lowest = output.sum(dim=1), output.amin(dim=1)
        wrong = (lowest < 0.0) | ~((sums - 1.0).abs() <= TOLERANCE)
        if bool(wrong.any()):
            row = int(wrong.to(torch.uint8).argmax())
            if float(lowest[row]) < 0.0:
                raise InvalidObservation("output", f"row {row}: a probability is {float(lowest[row]):g}, below 0")
            raise InvalidObservation(
                "output", f"row {row}: probabilities sum to {float(sums[row]):.6g}, not to 1 within {TOLERANCE:g}"
            )

    # -- what it tells -------------------------------------------------------------------------------------------------

    def report(self, state: State) -> dict[str, Any]:
        """Per arm the outputs n, estimate = log_is (nats), is = exp(log_is), bonus and index = estimate + bonus; None for what is
        not known, as the index of a forced arm.
        """
        return {"arms": [_report_arm(arm.count, self._score(arm)) for arm in state.arms]}


def _radius(total: float, squares: float, n: int, log_term: float, span: float) -> float:
    """Empirical Bernstein radius of one mean, from its sums."""
    variance = torch.tensor(max(squares / n - (total / n) ** 2, 0.0), dtype=torch.float64)
    return float(concentration.empirical_bernstein(variance, n=n, log_term=log_term, span=span))


def _report_arm(n: int, score: IsScore) -> dict[str, Any]:
    numbers = {
        "estimate": score.estimate,
        "log_is": score.estimate,
        "is": math.exp(score.estimate),
        "bonus": score.bonus,
        "index": score.estimate + score.bonus,
    }
    return {"n": n} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}
