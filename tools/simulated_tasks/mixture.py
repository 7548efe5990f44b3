"""Worlds with known answers for mixture-ucb and mixture-greedy: what every arm returns, and how good every mixture is in truth.

    I4   Gaussian arms in the plane, RKE or distance to a target: kernel means in closed form
    I5   Gaussian arms in R^3, squared Frechet distance to a Gaussian
    I6   arms of disjoint equally likely modes, Vendi score
    I7   two Gaussian arms, one of them the target: the optimum is a vertex, and greedy may starve it

All losses are minimised. `play` runs a policy in one of them and answers each arm's share; `world.excess` is what it fell short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bandits import draw
from bandits import state as states
from bandits.functional import frechet_mixture
from bandits.types import Context, Moments, Observation, Policy

Floats = npt.NDArray[np.float64]
Sampler = Callable[[np.random.Generator, int], Floats]
"""(generator, n) -> (n, e) samples."""


@dataclass(frozen=True, kw_only=True)
class MixtureWorld:
    """A world of samples with a best mixture.

    samplers: one per arm.  loss: weights (K,) -> the true loss, minimised.  best: (K,) the weights that minimise it.

    hyperparameters: what a policy needs to know here (objective, kernel).
    reference: a sampler, drawn from afresh in every run, or moments.
    """

    samplers: tuple[Sampler, ...]
    loss: Callable[[Floats], float]
    best: Floats
    dim: int
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    reference: Sampler | Moments | None = None
    reference_samples: int = 5000
    rounds: int
    batch: int = 1

    def excess(self, shares: Floats) -> float:
        """How much worse this mixture is than the best one, in the loss's own unit."""
        return self.loss(shares) - self.loss(self.best)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, variance I). mean: (d,)."""

    mean: tuple[float, ...]
    variance: float

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """(n, d) samples."""
        samples: Floats = np.array(self.mean) + np.sqrt(self.variance) * rng.standard_normal((n, len(self.mean)))
        return samples

    def similarity(self, other: Gaussian, bandwidth: float) -> float:
        """E exp(-|X - Y|^2 / (2 bandwidth^2)) of independent samples, in closed form."""
        spread = bandwidth**2 + self.variance + other.variance
        gap = float(np.sum((np.array(self.mean) - np.array(other.mean)) ** 2))
        return float((bandwidth**2 / spread) ** (len(self.mean) / 2) * np.exp(-gap / (2 * spread)))


PLANE = (Gaussian((0, 0), 0.16), Gaussian((3, 0), 0.16), Gaussian((0, 3), 0.49), Gaussian((0.3, 0.2), 0.25))
"""Four arms, the last close to the first."""


def similarities(arms: Sequence[Gaussian], bandwidth: float) -> Floats:
    """(K, K) mean kernel between arms."""
    return np.array([[x.similarity(y, bandwidth) for y in arms] for x in arms])


def i4_rke() -> MixtureWorld:
    """Diversity of the plane's arms: best 4.93, the best single arm 2.25, uniform 4.08."""
    k = similarities(PLANE, 1.25 / np.sqrt(2.0))
    return MixtureWorld(
        samplers=tuple(arm.sample for arm in PLANE),
        loss=lambda a: float(a @ k @ a),
        best=np.array([0.10414733575981684, 0.2753844085536283, 0.4348627260489007, 0.1856055296376542]),
        dim=2,
        hyperparameters={"objective": "rke", "bandwidth": 1.25},
        rounds=2000,
    )


def i4_kid() -> MixtureWorld:
    """Distance of the plane's arms to N((1, 1), .36 I), which none of them is: best .2236, the best single arm .3331."""
    target = Gaussian((1, 1), 0.36)
    loss = _distance(PLANE, target, 1.25)
    return MixtureWorld(
        samplers=tuple(arm.sample for arm in PLANE),
        loss=loss,
        best=np.array([0.0, 0.1464666644780777, 0.2077720666760506, 0.6457612688458717]),
        dim=2,
        hyperparameters={"objective": "kid", "bandwidth": 1.25},
        reference=target.sample,
        rounds=2000,
    )


def i7() -> MixtureWorld:
    """The first arm is the target, the second lies .6 away."""
    arms = (Gaussian((0, 0), 1.0), Gaussian((0.6, 0), 1.0))
    return MixtureWorld(
        samplers=tuple(arm.sample for arm in arms),
        loss=_distance(arms, arms[0], 1.0),
        best=np.array([1.0, 0.0]),
        dim=2,
        hyperparameters={"objective": "kid", "bandwidth": 1.0},
        reference=arms[0].sample,
        rounds=500,
    )


def _distance(arms: Sequence[Gaussian], target: Gaussian, bandwidth: float) -> Callable[[Floats], float]:
    k = similarities(arms, bandwidth)
    to_target = np.array([arm.similarity(target, bandwidth) for arm in arms])
    constant = target.similarity(target, bandwidth)
    return lambda a: float(a @ k @ a - 2.0 * to_target @ a) + constant


def i5() -> MixtureWorld:
    """Four Gaussian arms around a Gaussian reference in R^3: best .2661, the best single arm 3.198, uniform 2.698."""
    means = np.array([[2.0, 0, 0], [-1, 1, 0], [0, -2, 1], [3, 3, 3]])
    covariances = np.array([np.eye(3), np.diag([2, 1, 0.5]), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]], np.eye(3)])
    mean = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
    covariance = torch.tensor([[2, 0.3, 0], [0.3, 2, 0], [0, 0, 1.5]], dtype=torch.float64)
    target = frechet_mixture.target(mean, covariance)
    components = [
        frechet_mixture.component(torch.from_numpy(m), torch.from_numpy(c), target)
        for m, c in zip(means, covariances, strict=True)
    ]
    return MixtureWorld(
        samplers=tuple(_correlated(m, c) for m, c in zip(means, covariances, strict=True)),
        loss=frechet_mixture.FrechetMixture(tuple(components), target.trace).value,
        best=np.array([0.29131032164980947, 0.3868145312076134, 0.29623054259456744, 0.02564460454800958]),
        dim=3,
        hyperparameters={"objective": "fid"},
        reference=Moments(mean=mean, covariance=covariance, count=1_000_000),
        rounds=600,
    )


def _correlated(mean: Floats, covariance: Floats) -> Sampler:
    factor = np.linalg.cholesky(covariance)
    return lambda rng, n: mean + rng.standard_normal((n, len(mean))) @ factor.T


def i6() -> MixtureWorld:
    """Two arms of 2 and 6 modes that share none: best weights .25 and .75, Vendi score 8; the loss is minus its logarithm."""
    sizes = np.array([2, 6])

    def modes(first: int, count: int) -> Sampler:
        return lambda rng, n: np.eye(8)[first + rng.integers(0, count, n)]

    def loss(a: Floats) -> float:
        used = a[a > 0]
        return float(np.sum(used * np.log(used / sizes[a > 0])))

    return MixtureWorld(
        samplers=(modes(0, 2), modes(2, 6)),
        loss=loss,
        best=sizes / sizes.sum(),
        dim=8,
        hyperparameters={"objective": "vendi", "kernel": "cosine"},
        rounds=4000,
        batch=2,
    )


def play(
    policy: Policy, world: MixtureWorld, *, seed: int, rounds: int = 0, each: Callable[[int], object] = lambda t: None
) -> Floats:
    """(K,) the share of samples that came from each arm, after the world's rounds or fewer. each: called after every round."""
    rng = np.random.default_rng(seed)
    arms = len(world.samplers)
    state = states.start(policy, arms=arms)
    if isinstance(world.reference, Moments):
        state = states.fold(policy, state, Observation(moments=world.reference))
    elif world.reference is not None:
        rows = torch.from_numpy(world.reference(rng, world.reference_samples))
        state = states.fold(policy, state, Observation(output=rows))
    context = Context(allowed=(True,) * arms)
    counts: Floats = np.zeros(arms)
    for t in range(rounds or world.rounds):
        arm = draw.draw_at(policy.weights(state, [context]).values[0], rng.random()).arm
        samples = torch.from_numpy(world.samplers[arm](rng, world.batch))
        state = policy.prepare(states.fold(policy, state, Observation(arm=arm, output=samples)))
        counts[arm] += world.batch
        each(t)
    counts /= counts.sum()
    return counts
