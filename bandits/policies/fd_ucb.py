"""FD-UCB (AISTATS 2025): the one generative model whose outputs come closest to a reference in Frechet distance.

    estimate = |muhat - mu_r|^2 + Tr Shat + Tr S_r - 2 Tr (R Shat R)^1/2      R = S_r^1/2, covariances divided by n - 1
    bonus    = bonus_scale * radius(n, spread of Shat, |muhat - mu_r|, Tr R)   functional/concentration.py
    play the allowed arm of *lowest* estimate - bonus

The distance is the squared one, so the lowest estimate is the best arm; estimate - bonus is what it may be at best. The estimate
is biased upwards by about Tr S / n, more for diverse arms, which is why a greedy rule (`bonus_scale: 0`) locks on collapsed ones.

An arm is forced, index -infinity, while it has fewer than 2 samples, or while all its samples are identical: r = Tr S / s in the
radius is 0 / 0 then. Departure: the release forces an arm of identical samples for ever. Here, once `identical_samples(delta)` of
them came (60 at 0.05), it is taken for what it seems, with the radius's limit 0: a model that has collapsed to one output must
not hold every decision.

An index changes with the arm's own outcomes only (there is no t in it), so pending decisions do not move it: requests that are
made before an outcome comes back meet the same best arm. They spread where they can: in the burn-in, over forced arms, over ties.

`update` adds sums, O(e^2) per sample; `prepare` finds the spectra of the arm that changed. Measured at e = 2,048, one thread:
0.3 ms per sample; 0.1 s per prepare up to 255 samples, 2.4 s beyond; 2.4 s once for the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bandits import draw
from bandits.errors import InvalidObservation, ReferenceMissing
from bandits.functional import concentration, moments
from bandits.functional.moments import MomentSums, Spread
from bandits.hyperparameters import exploration_floor_field, hyper, initial_pulls_field
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights, cached_field

LARGEST = 1e60
"""Outputs and moments beyond this magnitude are refused: fourth powers, and the sums of them, must stay numbers."""


@dataclass(frozen=True)
class Target:
    """The moments of the reference, prepared. mean: (e,).  trace: Tr S_r.  root: (e, k) F with F F' = S_r.  root_trace: Tr R."""

    mean: Tensor
    trace: float
    root: Tensor
    root_trace: float


@dataclass(frozen=True, kw_only=True)
class FdReference(MomentSums):
    """The reference: sums of samples, or moments that were given (`from_moments` 1)."""

    from_moments: int = 0
    cache: Target | None = cached_field()

    def target(self) -> Target:
        """The derived values: O(e^3), once."""
        if self.cache is None:
            covariance = self.covariance()
            root = moments.psd_root(covariance)
            target = Target(self.mean(), float(covariance.trace()), root, moments.root_trace(root))
            object.__setattr__(self, "cache", target)  # a memo, not a change
        assert self.cache is not None
        return self.cache


@dataclass(frozen=True)
class FdScore:
    """An arm's estimate and radius (before `bonus_scale`), and what they were computed for: they hold for no other policy or
    reference.
    """

    policy: FdUcb
    reference: FdReference
    estimate: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class FdArm(MomentSums):
    """The samples of one arm as sums. pulls: observations, of one or more samples each."""

    pulls: int = 0
    cache: FdScore | None = cached_field()


@dataclass(frozen=True, kw_only=True)
class FdUcb(Policy):
    """Frechet distance UCB."""

    kind: ClassVar[str] = "fd-ucb"
    needs: ClassVar[frozenset[Need]] = frozenset({"output", "reference"})
    summary: ClassVar[str] = (
        "The arm whose outputs may be closest to the reference, by squared Frechet distance (FID on embeddings)."
    )
    reference_frozen: ClassVar[bool] = True

    delta: float = hyper(
        0.05,
        "Probability with which the radius may fail.",
        above=0,
        at_most=1,
        source="FD-UCB, released code",
        unit="probability",
    )
    kappa: float = hyper(
        1.0, "Sub-Gaussian factor of the covariance's radius; 1 for Gaussian outputs.", above=0, source="FD-UCB, released code"
    )
    threshold: float = hyper(
        0.0,
        "M: in the radius, covariances below M sqrt(2 S_ii S_jj ln e / n) count as 0 (variances never do); 0 = off.",
        at_least=0,
        source="FD-UCB, released script (its class has 2); Cai & Liu 2011",
    )
    bonus: Literal["released", "rigorous"] = hyper(
        "released",
        "released: the authors' radius; rigorous: one that holds for Gaussian outputs, several times wider.",
        source="FD-UCB, released code",
    )
    bonus_scale: float = hyper(
        1.0,
        "Factor on the radius. It falls as n^-1/4 and dwarfs the gaps for long: less explores less; 0 is greedy.",
        at_least=0,
        live=True,
    )
    initial_pulls: int = initial_pulls_field()
    exploration_floor: float = exploration_floor_field()

    # -- the statistic -------------------------------------------------------------------------------------------------

    def init(self) -> FdArm:
        return FdArm.init(self.output_dim)

    def update(self, state: State, seen: Observation) -> ArmState:
        arm = state.arms[seen.arm]
        return replace(arm.learn_rows(seen.output), pulls=arm.pulls + 1, cache=None)

    def init_reference(self) -> FdReference:
        return FdReference.init(self.output_dim)

    def update_reference(self, state: State, seen: Observation) -> ArmState:
        if seen.moments is not None:
            given = FdReference.given(seen.moments.mean, seen.moments.covariance, seen.moments.count)
            return replace(given, from_moments=1)
        return replace(state.reference.learn_rows(seen.output), cache=None)

    # -- the decision --------------------------------------------------------------------------------------------------

    def prepare(self, state: State) -> State:
        """Score the arms that changed: the O(e^3) spectra, remembered on the arm; the reference's before any arm needs it."""
        if state.reference.count >= 2:
            state.reference.target()
            for arm in state.arms:
                self._score(arm, state.reference)
        return state

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        scored = [self._score(arm, state.reference) for arm in state.arms]
        estimate = torch.tensor([score.estimate for score in scored], dtype=torch.float64)
        bonus = self.bonus_scale * torch.tensor([score.radius for score in scored], dtype=torch.float64)
        optimism = torch.where(bonus.isnan(), torch.inf, bonus - estimate)  # minimize FD = maximize -FD
        return draw.optimistic_weights(
            optimism,
            contexts,
            estimate=estimate,
            bonus=bonus,
            pulls=[arm.pulls for arm in state.arms],
            initial_pulls=self.initial_pulls,
            floor=self.exploration_floor,
        )

    def _score(self, arm: FdArm, reference: FdReference) -> FdScore:
        """The arm's score, computed where it changed; NaN for what is not known yet."""
        if arm.cache is None or arm.cache.reference is not reference or arm.cache.policy != self:
            estimate, radius = (math.nan, math.nan) if arm.count < 2 else self._measure(arm, reference)
            score = FdScore(self, reference, estimate, radius)
            object.__setattr__(arm, "cache", score)  # a memo, not a change
        assert arm.cache is not None
        return arm.cache

    def _measure(self, arm: FdArm, reference: FdReference) -> tuple[float, float]:
        """Estimate and radius of an arm with two samples or more. Thin while the samples are fewer than their length: O(n e^2),
        else O(e^3).
        """
        if reference.count < 2:
            raise ReferenceMissing(_MISSING)
        target = reference.target()
        if arm.is_thin:
            centered = arm.centered()
            spread = moments.spread_of_rows(centered)
            overlap = moments.overlap_of_rows(centered, target.root)
        else:
            covariance = arm.covariance()
            spread = moments.spread(covariance)
            overlap = moments.overlap(covariance, target.root)
        gap = float(torch.linalg.vector_norm(arm.mean() - target.mean))
        estimate = max(gap * gap + spread.trace + target.trace - 2.0 * overlap, 0.0)
        if spread.top == 0.0:  # identical samples: see the head of this file
            return estimate, 0.0 if arm.count >= concentration.identical_samples(self.delta) else math.nan
        return estimate, self._radius(arm, spread, gap, target.root_trace)

    def _radius(self, arm: FdArm, spread: Spread, gap: float, root_trace: float) -> float:
        if self.threshold > 0.0:
            spread = moments.spread(moments.adaptive_threshold(arm.covariance(), n=arm.count, multiplier=self.threshold))
        rule = concentration.fd_released if self.bonus == "released" else concentration.fd_rigorous
        return rule(n=arm.count, spread=spread, gap=gap, root_trace=root_trace, delta=self.delta, kappa=self.kappa).total

    # -- what it refuses -----------------------------------------------------------------------------------------------

    def check_ready(self, state: State) -> None:
        if state.reference.count < 2:
            raise ReferenceMissing(f"{_MISSING}; it has {state.reference.count}")

    def check_reference(self, state: State, seen: Observation) -> None:
        if seen.moments is None:
            if state.reference.from_moments:
                raise InvalidObservation("outputs", "the reference was given as moments; samples cannot be added to it")
            if seen.output.ndim != 2 or len(seen.output) == 0 or seen.output.shape[1] != self.output_dim:
                shape = "x".join(map(str, seen.output.shape))
                raise InvalidObservation("outputs", f"must be samples of length {self.output_dim}, or moments; got {shape}")
            if not bool((seen.output.to(torch.float64).abs() <= LARGEST).all()):  # no NaN is
                raise InvalidObservation("outputs", f"must be finite and at most {LARGEST:g} in magnitude")
            return
        if seen.output.numel():
            raise InvalidObservation("moments", "cannot come with outputs; post samples or moments")
        if state.reference.count and not state.reference.from_moments:
            raise InvalidObservation("moments", "the reference was started with samples; moments cannot replace them")
        given = seen.moments
        moments.check_given(given.mean, given.covariance, given.count, d=self.output_dim, largest=LARGEST)

    # -- what it tells -------------------------------------------------------------------------------------------------

    def arms_without_estimate(self, state: State) -> list[int]:
        if state.reference.count < 2:
            return []
        scored = [self._score(arm, state.reference) for arm in state.arms]
        return [i for i, arm in enumerate(state.arms) if arm.count >= 2 and not math.isfinite(scored[i].estimate)]

    def report(self, state: State) -> dict[str, Any]:
        """Per arm the samples n, estimate (squared Frechet distance), bonus and index = estimate - bonus; None for what is not
        known, as the index of a forced arm. `reference`: its samples, and whether they are too few for a covariance of full rank.
        """
        if state.reference.count < 2:
            return {
                "arms": [_report_arm(arm.count, math.nan, math.nan) for arm in state.arms],
                "reference": _reference(state.reference),
            }
        scored = [self._score(arm, state.reference) for arm in state.arms]
        arms = [
            _report_arm(arm.count, score.estimate, self.bonus_scale * score.radius)
            for arm, score in zip(state.arms, scored, strict=True)
        ]
        return {"arms": arms, "reference": _reference(state.reference)}


_MISSING = "fd-ucb needs a reference of at least 2 samples, or their moments, before its first decision"


def _report_arm(n: int, estimate: float, bonus: float) -> dict[str, Any]:
    numbers = {"estimate": estimate, "bonus": bonus, "index": estimate - bonus}
    return {"n": n} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _reference(reference: FdReference) -> dict[str, Any]:
    return {"n": reference.count, "singular": reference.count <= reference.dim}
