"""The base of the mixture policies: a plan that is made after every outcome, and weights that are read off it.

    outcome --> learn: sums of one arm --> prepare: Plan = the loss of all arms together, and its minimisers
                                              |
    decision --> weights: burn-in, or the rule of the policy, read off the plan

A mixture is one distribution over the arms that makes the *gathered samples* good, where a mean reward would ask for the one
best arm. One decision may bring a batch of samples: counts n_i are samples, t is their sum; burn-in counts decisions (pulls).

The plan is a cache: it follows from the arms' statistics, is never stored, and is made again where it is missing. Quadratic
losses are minimised exactly, so their weights do not depend on what was cached; those of FID and Vendi agree to the tolerance.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from bandits import draw
from bandits.functional.frechet_mixture import FrechetMixture
from bandits.functional.simplex import Solution, Vector
from bandits.mixture import report as mixture_report
from bandits.mixture.plan import Mask, Plan, Solved
from bandits.mixture.samples import MixtureSamples
from bandits.mixture.statistics import Loss, PairSums, SpectralMixture, quadratic
from bandits.types import Context, State, Weights

REMEMBERED = 16
"""A set of arms that no decision asked for during so many plans is not solved ahead any more."""


@dataclass(frozen=True, kw_only=True)
class Mixture(MixtureSamples):
    """Base of the mixture policies: `minimize` and `decide` are the rule."""

    score_names: ClassVar[tuple[str, ...]]

    # -- the plan ------------------------------------------------------------------------------------------------------

    def prepare(self, state: State) -> State:
        """Make the plan, and solve it for the sets of arms that decisions asked for since the last one."""
        if not any(arm.count for arm in state.arms) or self._lacking(state):
            return state
        return replace(state, cache=self.plan(state))

    def plan(self, state: State) -> Plan:
        """The plan of this state: the cached one, or a new one that takes over from it what still holds."""
        old = state.cache if isinstance(state.cache, Plan) and state.cache.policy == self else None
        if old is not None and self.is_valid_for(old, state):
            return old
        self.check_ready(state)
        # What is taken over saves time and decides nothing: pair sums are extended by new samples, solutions and curvatures are
        # warm starts. Only the sets of arms that decisions asked for lately are solved ahead, as there are 2^K of them.
        loss, sums = self._loss(state, old)
        plan = Plan(self, state.arms, state.reference, loss, tuple(arm.count > 0 for arm in state.arms), sums)
        plan.curvatures.update(old.curvatures if old else {})
        plan.asked.update(_remembered(plan, old))
        if self.samples_from_mixture:
            for mask in plan.asked or [plan.known]:  # during the burn-in as well: a decision never waits for a first solution
                self.solution(plan, mask, old)
        object.__setattr__(state, "cache", plan)  # a memo, not a change
        return plan

    def is_valid_for(self, plan: Plan, state: State) -> bool:
        """Whether a plan may be used for this state. Here: it was made for these very statistics."""
        return (
            plan.reference is state.reference
            and len(plan.arms) == len(state.arms)
            and all(a is b for a, b in zip(plan.arms, state.arms, strict=True))
        )

    def _loss(self, state: State, old: Plan | None) -> tuple[Loss, PairSums | None]:
        if self.objective == "fid":
            target = state.reference.target()
            return FrechetMixture(tuple(arm.component(target) for arm in state.arms), target.trace), None
        if self.objective == "vendi":
            return SpectralMixture(state.arms), None
        distance = self.objective == "kid"
        members = (state.reference, *state.arms) if distance else state.arms
        sums = PairSums.update(self.form, members, before=old.sums if old else None)
        scale = self.neighbours if self.quality == "density" else 1
        return quadratic(state.arms, sums, distance=distance, quality_weight=self.quality_weight / scale), sums

    def solution(self, plan: Plan, mask: Mask, old: Plan | None = None) -> Solved:
        """The best weights over a set of known arms; solved once per plan, warm-started from an older plan's."""
        if mask not in plan.solved:
            arms = [arm for arm, member in enumerate(mask) if member]
            start, weights = np.zeros(len(mask)), np.zeros(len(mask))
            before = old.solved.get(mask[: len(old.known)]) if old else None
            if before is None:
                start[arms] = 1.0 / len(arms)
            else:
                start[: len(before.weights)] = before.weights
            found = self.minimize(plan, arms, start[arms])
            weights[arms] = found.weights
            plan.solved[mask] = Solved(weights, plan.slopes(weights), found)
        return plan.solved[mask]

    def is_prepared(self, state: State, contexts: Sequence[Context]) -> bool:
        plan = state.cache if isinstance(state.cache, Plan) and state.cache.policy == self else None
        if plan is None or not self.is_valid_for(plan, state):
            return all(arm >= 0 for arm in self._first(state, contexts))
        lacking = [context for context in contexts if self.samples_from_mixture and _mixed_by(context, plan) not in plan.solved]
        return not lacking or all(arm >= 0 for arm in self._first(state, lacking))

    @property
    def samples_from_mixture(self) -> bool:
        """Whether the rule answers a solution of the plan."""
        return True

    @abstractmethod
    def minimize(self, plan: Plan, arms: list[int], start: Vector) -> Solution:
        """The policy's rule: weights over these arms, warm-started."""

    # -- the decision --------------------------------------------------------------------------------------------------

    @property
    def burn_in_pulls(self) -> int:
        """Decisions per arm before the rule applies."""
        return max(self.initial_pulls, {"fid": 5, "vendi": 2}.get(self.objective, 1))

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        first = self._first(state, contexts)
        shape = (len(contexts), len(state.arms))
        values = np.zeros(shape)
        scores = {name: np.full(shape, np.nan) for name in self.score_names}
        if any(arm < 0 for arm in first):
            self.decide(self.plan(state), contexts, first, values, scores)
        allowed = draw.allowed_mask(contexts)
        finished = draw.apply_burn_in_and_floor(torch.from_numpy(values), first, allowed, floor=self.exploration_floor)
        tables = {name: torch.from_numpy(score) for name, score in scores.items()}
        return Weights(finished, tables, self.assumed(first, values))

    def assumed(self, first: list[int], values: Vector) -> Sequence[int]:
        """See `Weights.assumed`. values: (B, K) of the rule. In the rows of a mixture only the burn-in matters."""
        return first

    def _first(self, state: State, contexts: Sequence[Context]) -> list[int]:
        """Per context the arm that burn-in wants, or -1. It goes on, least pulls and pending decisions first, while every allowed
        arm has its decisions but none came back yet.
        """
        pulls, known = [arm.pulls for arm in state.arms], [arm.count > 0 for arm in state.arms]
        first = draw.burn_in_arms(pulls, contexts, self.burn_in_pulls)
        unknown = [not any(a and k for a, k in zip(context.allowed, known, strict=True)) for context in contexts]
        if any(unknown):
            onwards = draw.burn_in_arms(pulls, contexts, sys.maxsize)
            first = [onwards[row] if unknown[row] else arm for row, arm in enumerate(first)]
        return first

    @abstractmethod
    def decide(
        self, plan: Plan, contexts: Sequence[Context], first: list[int], values: Vector, scores: dict[str, Vector]
    ) -> None:
        """Fill the rows of values (B, K) that are not in the burn-in, -1 in `first`, and of the scores that explain them.

        The arrays come fresh, zeros and NaN, and are the only ones that a policy here writes into.
        """

    def mixed(self, plan: Plan, contexts: Sequence[Context], first: list[int], values: Vector, scores: dict[str, Vector]) -> None:
        """`decide` for rules that answer the best weights over the arms that a context allows."""
        for row, context in enumerate(contexts):
            if first[row] < 0:
                mask = _mixed_by(context, plan)
                plan.asked[mask] = 0
                solved = self.solution(plan, mask)
                values[row], scores["weight"][row], scores["gradient"][row] = solved.weights, solved.weights, solved.gradient

    # -- what it tells -------------------------------------------------------------------------------------------------

    def report(self, state: State) -> dict[str, Any]:
        """See `mixture_report.report`."""
        if not any(arm.count for arm in state.arms) or self._lacking(state):
            return mixture_report.unknown(self, state.arms)
        plan = self.plan(state)
        return mixture_report.report(
            self, plan, state.arms, solve=partial(self.solution, plan), samples_from_mixture=self.samples_from_mixture
        )


def _mixed_by(context: Context, plan: Plan) -> Mask:
    """The arms that can have a place in the mixture of this decision."""
    return tuple(a and k for a, k in zip(context.allowed, plan.known, strict=True))


def _remembered(plan: Plan, old: Plan | None) -> dict[Mask, int]:
    """The sets of arms that the next decisions may ask for: those of late. Who asked for every known arm goes on to do so."""
    if old is None:
        return {}
    more = (False,) * (len(plan.known) - len(old.known))
    late = [(mask, age + 1) for mask, age in list(old.asked.items()) if age < REMEMBERED]
    return {plan.known if mask == old.known else mask + more: age for mask, age in late}
