"""Worlds with known answers for fd-ucb and is-ucb: what every arm returns, and how good it is in truth.

    I1, I2   Gaussian outputs, scored by the squared Frechet distance to a standard normal reference (lower is better)
    I3, I8   class probabilities, scored by the Inception score (higher is better)

`play` runs a policy in one of them: a decision, a batch of samples of the chosen arm, the next decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bandits import draw
from bandits import state as states
from bandits.types import Context, Moments, Observation, Policy

Floats = npt.NDArray[np.float64]
Sampler = Callable[[np.random.Generator, int], Floats]
"""(generator, n) -> (n, e) samples."""


@dataclass(frozen=True, kw_only=True)
class SampleWorld:
    """A world of samples.

    samplers: one per arm.  regret: per arm, in the score's own unit, 0 for the best.  dim: length e of one sample.
    """

    samplers: tuple[Sampler, ...]
    regret: tuple[float, ...]
    dim: int
    reference: Moments | None = None
    rounds: int
    batch: int = 5

    def optimal_pick_ratio(self, picks: npt.NDArray[np.int64]) -> float:
        """Share of picks of a best arm."""
        return float(np.mean(np.asarray(self.regret)[picks] == 0.0))


def gaussian_arm(mean: Floats, variance: float) -> Sampler:
    """Samples of N(mean, variance I)."""
    return lambda rng, n: mean + np.sqrt(variance) * rng.standard_normal((n, len(mean)))


def class_arm(*, classes: int, used: int, doubt: float) -> Sampler:
    """Probabilities of an output of one of `used` equally likely classes: 1 - doubt on it, the rest even over the others."""

    def sample(rng: np.random.Generator, n: int) -> Floats:
        rows = np.full((n, classes), doubt / (classes - 1))
        rows[np.arange(n), rng.integers(0, used, n)] = 1.0 - doubt
        return rows

    return sample


def inception_score(*, classes: int, used: int, doubt: float) -> float:
    """The true score of such an arm."""
    other = doubt / (classes - 1)
    inside = (1.0 - doubt) / used + (used - 1) * other / used
    marginal = np.array([inside] * used + [other] * (classes - used))
    return float(np.exp(-np.sum(marginal * np.log(marginal)) + (1 - doubt) * np.log(1 - doubt) + doubt * np.log(other)))


def _normal_reference(d: int) -> Moments:
    return Moments(mean=torch.zeros(d, dtype=torch.float64), covariance=torch.eye(d, dtype=torch.float64), count=1_000_000)


def _along_first_axis(d: int, length: float) -> Floats:
    mean = np.zeros(d)
    mean[0] = length
    return mean


def i1() -> SampleWorld:
    """Shifted normals in R^8: distances .09, 4, 16."""
    shifts = (0.3, 2.0, 4.0)
    samplers = tuple(gaussian_arm(_along_first_axis(8, shift), 1.0) for shift in shifts)
    regret = tuple(shift**2 - shifts[0] ** 2 for shift in shifts)
    return SampleWorld(samplers=samplers, regret=regret, dim=8, reference=_normal_reference(8), rounds=400)


def i2() -> SampleWorld:
    """A perfect arm, a collapsed one and a shifted one in R^32: distances 0, 8, 2.25. Greedy stays with the collapsed one."""
    samplers = (
        gaussian_arm(np.zeros(32), 1.0),
        gaussian_arm(np.zeros(32), 0.25),
        gaussian_arm(_along_first_axis(32, 1.5), 1.0),
    )
    return SampleWorld(samplers=samplers, regret=(0.0, 8.0, 2.25), dim=32, reference=_normal_reference(32), rounds=400)


def class_world(classes: int, arms: tuple[tuple[int, float], ...], *, batch: int = 5) -> SampleWorld:
    """Arms of so many used classes and such a doubt, 1,000 rounds."""
    scores = [inception_score(classes=classes, used=used, doubt=doubt) for used, doubt in arms]
    samplers = tuple(class_arm(classes=classes, used=used, doubt=doubt) for used, doubt in arms)
    regret = tuple(max(scores) - score for score in scores)
    return SampleWorld(samplers=samplers, regret=regret, dim=classes, rounds=1000, batch=batch)


def i3() -> SampleWorld:
    """Ten classes: a good arm, one that misses three classes, one in doubt: scores 5.800, 4.568, 1.667."""
    return class_world(10, ((10, 0.1), (7, 0.1), (10, 0.5)))


def i8() -> SampleWorld:
    """A thousand classes: scores 68.37, 60.02, 58.60."""
    return class_world(1000, ((1000, 0.3), (700, 0.3), (1000, 0.32)))


def play(
    policy: Policy, world: SampleWorld, *, seed: int, each: Callable[[int], object] = lambda t: None
) -> npt.NDArray[np.int64]:
    """(T,) the arms that were picked. each: called after every round (progress bars)."""
    rng = np.random.default_rng(seed)
    arms = len(world.samplers)
    state = states.start(policy, arms=arms)
    if world.reference is not None and "reference" in policy.needs:
        state = states.fold(policy, state, Observation(moments=world.reference))
    context = Context(allowed=(True,) * arms)
    picks = np.empty(world.rounds, dtype=np.int64)
    for t in range(world.rounds):
        arm = draw.draw_at(policy.weights(state, [context]).values[0], rng.random()).arm
        samples = torch.from_numpy(world.samplers[arm](rng, world.batch))
        state = policy.prepare(states.fold(policy, state, Observation(arm=arm, output=samples)))
        picks[t] = arm
        each(t)
    return picks
