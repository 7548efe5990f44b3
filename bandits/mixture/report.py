"""The report of the mixture policies: how good the gathered samples are, how good they could be, and what each arm is like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bandits.functional import diversity, simplex
from bandits.functional.simplex import Vector
from bandits.mixture.plan import Mask, Plan, Solved
from bandits.mixture.samples import MixtureSamples
from bandits.mixture.statistics import MixtureArm, Quadratic, unbiased
from bandits.types import ArmState

Solve = Callable[[Mask], Solved]
"""The best weights over a set of known arms."""

LARGEST_SPECTRUM = 1024
"""Side of the largest matrix whose eigenvalues a report waits for."""


def report(
    policy: MixtureSamples, plan: Plan, arms: Sequence[ArmState], *, solve: Solve, samples_from_mixture: bool
) -> dict[str, Any]:
    """One object for the whole bandit.  samples_from_mixture: whether the rule answers a solution of the plan.

    objective: name, direction, `value` of the samples gathered so far (weights n / t) and its U-statistic `unbiased` (kernel
               losses), `optimum` = the estimated best value
               of any mixture, `gap` >= loss(n / t) - lowest loss (Frank-Wolfe), in units of the loss that is minimized.
    solver:    `gap` and `steps` of the last solution behind the weights; null for a rule that solves nothing.
    pooled:    RKE and Vendi score of the gathered samples, where the statistic allows it.
    arms:      n, share n / t, weight of the current mixture, `alone` = the objective's value of this arm alone, the arm's own
               mean pair `similarity` as V- and U-statistic, mean quality. Values are those of the plan (see `refresh`).
    """
    n = np.array([float(arm.count) for arm in arms])
    share = n / n.sum()
    known = np.where(plan.known, share, 0.0)
    value, gradient = plan.at(known / known.sum())
    best = _optimum(plan, solve)
    mask = max(plan.solved, key=sum, default=None)
    solved = plan.solved[mask] if mask else None
    return {
        "objective": {
            "name": policy.objective,
            "direction": "maximise" if policy.objective in ("rke", "vendi") else "minimise",
            "value": on_own_scale(policy, value),
            "unbiased": _unbiased(policy, plan, known / known.sum()),
            "optimum": on_own_scale(policy, best),
            "gap": simplex.frank_wolfe_gap(known[list(plan.known)] / known.sum(), gradient[list(plan.known)]),
        },
        "solver": {"gap": solved.solution.gap, "steps": solved.solution.steps} if solved else None,
        "samples": int(n.sum()),
        "pooled": _pooled(policy, plan, known / known.sum()),
        "arms": [
            {
                "n": arm.count,
                "share": float(share[index]),
                "weight": float(solved.weights[index]) if solved else None if samples_from_mixture else float(share[index]),
                **_alone(policy, plan, index),
            }
            for index, arm in enumerate(arms)
        ],
    }


def unknown(policy: MixtureSamples, arms: Sequence[ArmState]) -> dict[str, Any]:
    """The same before the first sample, or before the reference."""
    nothing = {"weight": None, "alone": None, "similarity": None, "similarity_unbiased": None, "quality": None}
    direction = "maximise" if policy.objective in ("rke", "vendi") else "minimise"
    return {
        "objective": {
            "name": policy.objective,
            "direction": direction,
            "value": None,
            "unbiased": None,
            "optimum": None,
            "gap": None,
        },
        "solver": None,
        "samples": sum(arm.count for arm in arms),
        "pooled": {"rke": None, "vendi": None},
        "arms": [{"n": arm.count, "share": None, **nothing} for arm in arms],
    }


def on_own_scale(policy: MixtureSamples, loss: float) -> float | None:
    """The loss on the objective's own scale: RKE = 1 / loss, Vendi = exp(-loss), a distance is at least 0."""
    if policy.objective == "rke":
        return 1.0 / loss if loss > 0.0 else None
    if policy.objective == "vendi":
        return math.exp(-loss)
    return loss if policy.objective == "rke+quality" else max(loss, 0.0)


def _optimum(plan: Plan, solve: Solve) -> float:
    """The lowest loss over all known arms: exact for quadratics, else that of the plan's widest solution."""
    arms = np.flatnonzero(plan.known).tolist()
    if isinstance(plan.loss, Quadratic):
        part = plan.loss.only(arms)
        return simplex.minimize_quadratic(part.matrix, part.linear).value + part.constant
    widest = max(plan.solved, key=sum, default=plan.known)
    return plan.at(solve(widest).weights)[0]


def _unbiased(policy: MixtureSamples, plan: Plan, share: Vector) -> float | None:
    """The objective of the pooled samples without the pairs of a sample with itself."""
    if not isinstance(plan.loss, Quadratic):
        return None
    inside = unbiased(float(share @ plan.loss.matrix @ share), sum(arm.effective_count for arm in plan.arms))
    constant = unbiased(plan.loss.constant, plan.reference.count) if policy.objective == "kid" else 0.0
    if inside is None or constant is None:
        return None
    loss = inside + float(plan.loss.linear @ share) + constant
    return loss if policy.objective == "kid" else on_own_scale(policy, loss)  # an unbiased distance may be negative


def _alone(policy: MixtureSamples, plan: Plan, index: int) -> dict[str, Any]:
    """What is known of one arm by itself."""
    numbers: dict[str, Any] = {"alone": None, "similarity": None, "similarity_unbiased": None, "quality": None}
    arm = plan.arms[index]
    if not plan.known[index]:
        return numbers
    if isinstance(plan.loss, Quadratic) or _side(policy) <= LARGEST_SPECTRUM // 4:
        numbers["alone"] = on_own_scale(policy, plan.loss.only([index]).at(np.ones(1))[0])
    if isinstance(plan.loss, Quadratic):
        v = float(plan.loss.matrix[index, index])
        numbers |= {"similarity": v, "similarity_unbiased": unbiased(v, arm.effective_count)}
        if policy.quality != "none":
            numbers["quality"] = arm.quality / arm.count / (policy.neighbours if policy.quality == "density" else 1)
    return numbers


def _pooled(policy: MixtureSamples, plan: Plan, share: Vector) -> dict[str, float | None]:
    """RKE and Vendi score of all samples together, as far as the statistic tells them."""
    rke: float | None = None
    vendi: float | None = None
    arms = [arm for arm in plan.arms if isinstance(arm, MixtureArm)]
    if policy.squared and isinstance(plan.loss, Quadratic):
        rke = 1.0 / float(share @ plan.loss.matrix @ share)  # golden E2: n'Vn / N^2
    if arms and policy.form.keeps == "second" and policy.form.size <= LARGEST_SPECTRUM:
        spectrum = diversity.spectrum(torch.stack([arm.second for arm in arms]).sum(0))
        rke, vendi = diversity.vendi(spectrum, order=2.0), diversity.vendi(spectrum)
    elif arms and policy.form.keeps == "outputs" and sum(arm.effective_count for arm in arms) <= LARGEST_SPECTRUM:
        gram = policy.gram(torch.cat([arm.outputs for arm in arms]))
        rke, vendi = diversity.rke(gram), diversity.vendi(diversity.gram_spectrum(gram))
    return {"rke": rke, "vendi": vendi}


def _side(policy: MixtureSamples) -> int:
    """Side of the matrices that the loss decomposes."""
    return policy.output_dim if policy.objective == "fid" else policy.form.size
