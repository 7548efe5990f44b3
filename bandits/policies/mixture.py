"""Mixture-UCB (ICLR 2025) and Mixture-Greedy: which mixture of arms makes the gathered samples best.

    L(a) = a'Ka + f'a  with  K_ij = E k(X_i, X_j),  estimated by the V-statistic Khat and fhat; the loss is *minimized*

    Mixture-UCB-CAB (Alg. 1)    a_t = argmin over the simplex of Lhat(a) - eps'a;  arm ~ a_t                  eq. (6)
                                eps_i = delta_l sqrt(beta ln t / (2 n_i)) + delta_kappa / n_i                 eq. (7)
    Mixture-UCB-OGD (Alg. 2)    arm = argmin_i of h = (2 / t) Khat n + fhat - eps                             eq. (8)
    Mixture-Greedy              a_t = argmin of Lhat(a), a_i >= floor, also for FID and Vendi;  arm ~ a_t     no bonus

OGD is one Frank-Wolfe step of length 1 / (t + 1) on the optimistic loss, because one more sample of arm b moves n / t to n / t +
(e_b - n / t) / (t + 1). So it answers one arm, and its mixture is n / t.

Pending decisions. CAB and greedy draw, so requests in flight spread by themselves, and their weights are those of the samples
at hand. OGD would send all of them to one arm. A pending decision of arm i will bring about s_i = (samples / pulls of arm i)
more samples, and counts and widths do not depend on what they are: with q pending decisions per arm it takes the step at n' =
n + q s and t' = sum n', in the gradient and in eps alike; only Khat waits for the samples. Decisions of one call count as
pending for those after them. With batches of one that is the sequence of arms that the algorithm would choose if the outcomes
brought no news.

Departures from the released code: eq. (7) as printed, with its 1/2 and its 1 / n term; the 1 / n term is subtracted in OGD as
well (the release adds it); counts are samples, whatever the batch; the pair of a sample with itself is counted once (the
release counts it twice and overestimates K_ii by k(x, x) / n_i); the weight of the quality term does not scale KID's cross
term; greedy reaches its argmin for every objective (the release's Vendi step travels a bounded distance in all its rounds
together).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from bandits.errors import InvalidHyperparameter
from bandits.functional import simplex
from bandits.functional.simplex import Solution, Vector
from bandits.hyperparameters import hyper
from bandits.mixture.plan import Plan
from bandits.mixture.policy import Mixture
from bandits.mixture.statistics import Quadratic, SpectralMixture
from bandits.types import Context, State


@dataclass(frozen=True)
class Radius:
    """The width of eq. (7).

    delta_l: range of the loss per sample, 2 delta_kappa + delta_f.  beta: a width fails with probability t^-beta.
    delta_kappa: range of the kernel, which bounds the bias of the V-statistic.

    Why: one sample of arm i moves Lhat by at most (a_i / n_i) delta_l; McDiarmid's inequality then bounds the deviation by
    delta_l sqrt(beta ln t sum(a_i^2 / n_i) / 2), and sqrt(sum a_i^2 / n_i) <= sum a_i / sqrt(n_i).
    """

    delta_l: float
    beta: float
    delta_kappa: float

    def at(self, n: Vector, t: float) -> Vector:
        """(K,) eps for n (K,) samples per arm, t in all; infinite for an arm without samples."""
        seen = np.maximum(n, 1.0)
        width = self.delta_l * np.sqrt(self.beta * math.log(max(t, 1.0)) / (2.0 * seen)) + self.delta_kappa / seen
        return np.where(n > 0.0, width, np.inf)


@dataclass(frozen=True, kw_only=True)
class MixtureUcb(Mixture):
    """Mixture-UCB by one of its two algorithms."""

    kind: ClassVar[str] = "mixture-ucb"
    summary: ClassVar[str] = (
        "The mixture of arms whose gathered outputs are most diverse (RKE) or closest to a reference (KID), with optimism."
    )

    objective: Literal["rke", "kid", "rke+quality"] = hyper(
        "rke",
        "rke: highest order-2 Renyi kernel entropy, E k^2 lowest; kid: lowest squared MMD to the reference, with this kernel and "
        "not the cubic one of the original KID; rke+quality: E k^2 - quality_weight E quality lowest.",
        source="Mixture-UCB",
    )
    method: Literal["ogd", "cab"] = hyper(
        "ogd",
        "ogd: one arm per decision, no optimisation; cab: a draw from the optimistic best mixture.",
        source="Mixture-UCB, Alg. 2, 1",
    )
    preset: Literal["practical", "theory"] = hyper(
        "practical",
        "Constants of the width that are not given. practical: delta_l .6, beta 1, delta_kappa 0, those of the published "
        "figures; theory: the ranges of the loss and beta 4, near-uniform for thousands of decisions.",
        source="Mixture-UCB, eq. (7); released code",
    )
    delta_l: float | None = hyper(
        None, "Range of the loss per sample; null = of the preset (theory: 2 delta_kappa + range of the linear term).", at_least=0
    )
    beta: float | None = hyper(
        None, "Confidence exponent: a width fails with probability t^-beta; null = of the preset.", at_least=0
    )
    delta_kappa: float | None = hyper(None, "Range of the kernel, over n; null = of the preset (theory: 1).", at_least=0)

    score_names: ClassVar[tuple[str, ...]] = ("weight", "gradient", "bonus")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset == "theory" and self.quality == "density" and self.delta_l is None:
            raise InvalidHyperparameter(
                "delta_l",
                "give it with preset theory and quality density, whose range grows with the reference: 2 + its range * weight",
            )

    @property
    def radius(self) -> Radius:
        """The width's constants: those given, else those of the preset."""
        if self.preset == "practical":
            delta_l, beta, delta_kappa = 0.6, 1.0, 0.0
        else:
            delta_kappa = 2.0 if self.kernel == "cosine" and self.objective == "kid" else 1.0  # a cosine lies in [-1, 1]
            delta_f = {"rke": 0.0, "kid": 2.0 * delta_kappa, "rke+quality": self.quality_weight}[self.objective]
            delta_l, beta = 2.0 * delta_kappa + delta_f, 4.0
        return Radius(
            delta_l=delta_l if self.delta_l is None else self.delta_l,
            beta=beta if self.beta is None else self.beta,
            delta_kappa=delta_kappa if self.delta_kappa is None else self.delta_kappa,
        )

    @property
    def samples_from_mixture(self) -> bool:
        return self.method == "cab"

    def bonus(self, plan: Plan, more: Vector | float = 0.0) -> Vector:
        """(K,) eps with `more` (K,) samples on their way. n_i are the samples behind Khat, t all that were gathered."""
        kept = np.array([float(arm.effective_count) for arm in plan.arms]) + more
        return self.radius.at(kept, float(sum(arm.count for arm in plan.arms) + np.sum(more)))

    def minimize(self, plan: Plan, arms: list[int], start: Vector) -> Solution:
        part = plan.loss.only(arms)
        assert isinstance(part, Quadratic), "every objective of this policy is quadratic"
        return simplex.minimize_quadratic(part.matrix, part.linear - self.bonus(plan)[arms], start=start)

    def decide(
        self, plan: Plan, contexts: Sequence[Context], first: list[int], values: Vector, scores: dict[str, Vector]
    ) -> None:
        if self.samples_from_mixture:
            self.mixed(plan, contexts, first, values, scores)
            scores["bonus"][np.array(first) < 0] = np.where(plan.known, self.bonus(plan), np.nan)
        else:
            self._step(plan, contexts, first, values, scores)

    def assumed(self, first: list[int], values: Vector) -> Sequence[int]:
        return first if self.samples_from_mixture else np.where(np.array(first) >= 0, first, values.argmax(axis=1)).tolist()

    def _step(self, plan: Plan, contexts: Sequence[Context], first: list[int], values: Vector, scores: dict[str, Vector]) -> None:
        """OGD, eq. (8), with pending decisions as derived above. Its `weight` is the share n' / t' where the step starts."""
        assert isinstance(plan.loss, Quadratic)
        pulls = np.array([float(arm.pulls) for arm in plan.arms])
        n = np.array([float(arm.count) for arm in plan.arms])
        batch = np.where(pulls > 0.0, n / np.maximum(pulls, 1.0), n.sum() / pulls.sum())
        earlier = np.zeros(len(n))  # decisions of this call
        known = np.array(plan.known)
        for row, context in enumerate(contexts):
            chosen = first[row]
            if chosen < 0:
                more = (np.array(context.pending) + earlier) * batch
                share = (n + more) / (n + more).sum()
                gradient = plan.loss.at(share)[1]
                bonus = self.bonus(plan, more)
                usable = known & np.array(context.allowed)
                index = np.where(usable & np.isfinite(gradient - bonus), gradient - bonus, np.inf)
                chosen = int(np.argmin(np.where(usable & np.isinf(index), np.finfo(np.float64).max, index)))
                values[row, chosen] = 1.0
                scores["weight"][row] = share
                scores["gradient"][row] = np.where(known, gradient, np.nan)
                scores["bonus"][row] = np.where(known, bonus, np.nan)
            earlier[chosen] += 1.0


@dataclass(frozen=True, kw_only=True)
class MixtureGreedy(Mixture):
    """Mixture-Greedy: the best mixture of what was seen so far, without a bonus."""

    kind: ClassVar[str] = "mixture-greedy"
    summary: ClassVar[str] = (
        "The best mixture of arms by what was seen so far: diversity (RKE, Vendi) or distance to a reference (KID, FID)."
    )

    objective: Literal["rke", "kid", "fid", "vendi", "rke+quality"] = hyper(
        "rke",
        "rke: highest order-2 Renyi kernel entropy; vendi: highest Vendi score; kid: lowest squared MMD to the reference, with "
        "this kernel and not the cubic one of the original KID; fid: lowest squared Frechet distance to the reference; "
        "rke+quality: E k^2 - quality_weight E quality lowest.",
        source="Mixture-Greedy",
    )
    floor: float = hyper(
        0.0,
        "Lower bound on each arm's weight, at most 1 / arms. Pure greedy can starve an arm that looked bad in its first samples: "
        ".02 to .05 is recommended.",
        at_least=0,
        at_most=1,
        source="Mixture-Greedy, released code, EPSILON",
    )
    tolerance: float = hyper(
        1e-6, "Frank-Wolfe gap at which the FID and Vendi solvers stop, relative to max(1, loss).", above=0, at_most=0.1
    )
    iterations: int = hyper(
        60,
        "Most evaluations of the FID or Vendi loss per optimisation; the next one goes on from there.",
        at_least=1,
        at_most=10_000,
    )
    refresh: int | None = hyper(
        None,
        "fid and vendi: outcomes between two optimisations, as each costs 10 to 30 eigenvalue problems. null: 1 up to side 256 "
        "of the matrices, beyond it 5 per 256, at most 20.",
        at_least=1,
        at_most=10_000,
        source="5 to 20 beyond d = 256",
    )

    score_names: ClassVar[tuple[str, ...]] = ("weight", "gradient")

    @property
    def every(self) -> int:
        """Outcomes between two optimisations; quadratic losses are minimized after each."""
        if self.objective not in ("fid", "vendi"):
            return 1
        side = self.output_dim if self.objective == "fid" else self.form.size
        return self.refresh or (1 if side <= 256 else min(20, 5 * (side // 256)))

    def is_valid_for(self, plan: Plan, state: State) -> bool:
        """An older plan serves until `every` outcomes came since; not past a new arm, or an arm's first samples."""
        if super().is_valid_for(plan, state):
            return True
        if plan.reference is not state.reference or len(plan.arms) != len(state.arms):
            return False
        behind = [now.pulls - then.pulls for now, then in zip(state.arms, plan.arms, strict=True)]
        same = all(now is then or late > 0 for now, then, late in zip(state.arms, plan.arms, behind, strict=True))
        first_samples = any(arm.count > 0 and not known for arm, known in zip(state.arms, plan.known, strict=True))
        return same and not first_samples and 0 < sum(behind) < self.every

    def minimize(self, plan: Plan, arms: list[int], start: Vector) -> Solution:
        """The argmin over weights >= floor: a = floor + room b for b on the simplex."""
        loss, m = plan.loss.only(arms), len(arms)
        floor = min(self.floor, 1.0 / m)
        room = 1.0 - m * floor
        if room <= 1e-9:
            even = np.ones(m) / m
            return Solution(even, loss.at(even)[0], 0.0, 0)  # one point is left
        inner = simplex.tidy((start - floor) / room)
        if isinstance(loss, Quadratic):
            linear = loss.linear + 2.0 * floor * loss.matrix.sum(1)
            found = simplex.minimize_quadratic(room**2 * loss.matrix, room * linear, start=inner)
        else:

            def above(b: Vector) -> tuple[float, Vector]:
                value, gradient = loss.at(floor + room * b)
                return value, room * gradient

            leaps = 2 if isinstance(loss, SpectralMixture) else 0
            found = simplex.minimize(
                above,
                inner,
                tolerance=self.tolerance,
                steps=self.iterations,
                leaps=leaps,
                curvature=plan.curvatures.pop(tuple(arms), None),
            )
            if found.curvature is not None:
                plan.curvatures[tuple(arms)] = found.curvature
        return replace(found, weights=simplex.tidy(floor + room * found.weights))

    def decide(
        self, plan: Plan, contexts: Sequence[Context], first: list[int], values: Vector, scores: dict[str, Vector]
    ) -> None:
        self.mixed(plan, contexts, first, values, scores)
