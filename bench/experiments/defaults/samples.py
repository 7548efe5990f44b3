"""Sweeps over policies that learn from samples: mixture-ucb, mixture-greedy, fd-ucb, is-ucb."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bandits.registry import build
from bandits.types import Moments
from bench.experiments.defaults.sweeps import Measure, Place, Sweep, Values
from tools.simulated_tasks import fd_is as worlds_fd_is
from tools.simulated_tasks.fd_is import Floats, Sampler, SampleWorld, class_world, i1, i2, i3, i8
from tools.simulated_tasks.mixture import MixtureWorld, i4_kid, i4_rke, i5, i6, i7, play

# -- mixtures --------------------------------------------------------------------------------------------------------------

EXCESS = Measure(name="1000 x loss above the best", better="low", digits=2, factor=1000.0)
STARVED = Measure(name="% starved", better="low", digits=0, factor=100.0)


def mixing(name: str, kind: str, world: MixtureWorld, *, rounds: int, seeds: int, starved: bool = False) -> Place:
    """starved: count runs in which the arm of the largest best share got less than a tenth."""

    def run(setting: Mapping[str, Any], seed: int) -> Values:
        policy = build(kind, {**world.hyperparameters, **setting}, output_dim=world.dim, seed=seed)
        shares = play(policy, world, seed=seed, rounds=rounds)
        return {EXCESS.name: world.excess(shares), STARVED.name: float(shares[int(np.argmax(world.best))] < 0.1)}

    quadratic = world.hyperparameters["objective"] in ("rke", "kid")
    measures = (EXCESS, STARVED) if starved else (EXCESS,)
    return Place(
        name=name,
        play=run,
        measures=measures,
        seeds=seeds,
        leaves_out=lambda changed: not quadratic and "random_features" in changed,
    )


def mixture_ucb() -> Sweep:
    """Method, constants of the width, first pulls, random features; RKE and KID, best mixtures inside and at a vertex."""
    changes: list[Mapping[str, Any]] = [
        {"delta_l": 0.0},
        {"delta_l": 0.1},
        {"delta_l": 0.2},
        {"delta_l": 0.3},
        {"preset": "theory", "delta_l": None},
        {"method": "cab"},
        {"method": "cab", "delta_l": 0.2},
        {"method": "cab", "preset": "theory", "delta_l": None},
        {"initial_pulls": 1},
        {"initial_pulls": 1, "delta_l": 0.2},
        {"initial_pulls": 10},
        {"exploration_floor": 0.05},
        {"random_features": 512},
        {"random_features": None},
    ]
    places = (
        mixing("RKE, 300 decisions", "mixture-ucb", i4_rke(), rounds=300, seeds=16),
        mixing("RKE, 1,000", "mixture-ucb", i4_rke(), rounds=1000, seeds=16),
        mixing("KID, 300", "mixture-ucb", i4_kid(), rounds=300, seeds=16),
        mixing("KID, 1,000", "mixture-ucb", i4_kid(), rounds=1000, seeds=16),
        mixing("KID, one arm is best, 300", "mixture-ucb", i7(), rounds=300, seeds=40, starved=True),
    )
    base = {
        "method": "ogd",
        "preset": "practical",
        "delta_l": 0.6,
        "initial_pulls": 5,
        "exploration_floor": 0.0,
        "random_features": 2048,
    }
    return Sweep(name="mixture-ucb", base=base, changes=changes, places=places)


def mixture_greedy() -> Sweep:
    """Floor and first pulls, for each objective."""
    changes: list[Mapping[str, Any]] = [
        {"floor": 0.02},
        {"floor": 0.05},
        {"initial_pulls": 1},
        {"initial_pulls": 1, "floor": 0.05},
        {"initial_pulls": 10},
        {"random_features": 512},
    ]
    places = (
        mixing("RKE, 300 decisions", "mixture-greedy", i4_rke(), rounds=300, seeds=8),
        mixing("KID, 300", "mixture-greedy", i4_kid(), rounds=300, seeds=8),
        mixing("KID, one arm is best, 300", "mixture-greedy", i7(), rounds=300, seeds=40, starved=True),
        mixing("FID, 300", "mixture-greedy", i5(), rounds=300, seeds=8),
        mixing("Vendi, 300", "mixture-greedy", i6(), rounds=300, seeds=8),
    )
    base = {"floor": 0.0, "initial_pulls": 5}
    return Sweep(name="mixture-greedy", base=base, changes=changes, places=places)


# -- one best arm ----------------------------------------------------------------------------------------------------------

REGRET = Measure(name="regret per round", better="low")
WORST = Measure(name="% of seeds that stayed with a worse arm", better="low", digits=0, factor=100.0)


def seeking(name: str, kind: str, world: SampleWorld, *, seeds: int) -> Place:
    """A seed stayed with a worse arm if the best one got less than half of the last quarter of the rounds, and less than a third
    of them all: neither found nor still explored evenly.
    """

    def run(setting: Mapping[str, Any], seed: int) -> Values:
        policy = build(kind, setting, output_dim=world.dim, seed=seed)
        regret = np.asarray(world.regret)[worlds_fd_is.play(policy, world, seed=seed)]
        best = regret == 0.0
        late = best[-len(best) // 4 :].mean()
        return {REGRET.name: float(regret.mean()), WORST.name: float(late < 0.5 and best.mean() < 0.3)}

    return Place(name=name, play=run, measures=(REGRET, WORST), seeds=seeds)


def shrunken(*, spectrum: Floats, factors: tuple[float, ...], rounds: int, batch: int) -> SampleWorld:
    """Normals around 0 with covariance factor * diag(spectrum), per arm a factor, against factor 1. An arm of smaller variance is
    worse, but its estimate is biased less.
    """
    d, root = len(spectrum), np.sqrt(spectrum)

    def arm(factor: float) -> Sampler:
        return lambda rng, n: math.sqrt(factor) * root * rng.standard_normal((n, d))

    covariance = torch.diag(torch.from_numpy(spectrum))
    reference = Moments(mean=torch.zeros(d, dtype=torch.float64), covariance=covariance, count=1_000_000)
    return SampleWorld(
        samplers=tuple(map(arm, factors)),
        regret=tuple(float(spectrum.sum()) * (1.0 - math.sqrt(factor)) ** 2 for factor in factors),
        dim=d,
        reference=reference,
        rounds=rounds,
        batch=batch,
    )


def fd_ucb() -> Sweep:
    """The radius and its factor, where arms are shifted, collapsed, and hardly different."""
    changes: list[Mapping[str, Any]] = [{"bonus_scale": scale} for scale in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 2.0)]
    changes += [
        {"bonus": "rigorous"},
        {"bonus": "rigorous", "bonus_scale": 0.1},
        {"bonus_scale": 0.0, "exploration_floor": 0.05},
    ]
    falling = 64.0 / np.arange(1.0, 65.0)
    worlds = {
        "I1, shifts in R^8": i1(),
        "I2, a collapse in R^32": i2(),
        "mild collapses in R^64": shrunken(spectrum=np.ones(64), factors=(0.7, 1.0, 0.4), rounds=300, batch=5),
        "collapses in R^16, one sample a round": shrunken(spectrum=np.ones(16), factors=(0.5, 1.0, 0.2), rounds=600, batch=1),
        "collapses in R^64, variances 64 / i": shrunken(spectrum=falling, factors=(0.5, 1.0, 0.2), rounds=300, batch=5),
        "the same, one sample a round": shrunken(spectrum=falling, factors=(0.5, 1.0, 0.2), rounds=600, batch=1),
    }
    places = tuple(seeking(name, "fd-ucb", world, seeds=16) for name, world in worlds.items())
    base = {"bonus": "released", "bonus_scale": 1.0, "exploration_floor": 0.0}
    return Sweep(name="fd-ucb", base=base, changes=changes, places=places)


def is_ucb() -> Sweep:
    """The radius, for few and many classes, near arms, and one output per round."""
    changes: list[Mapping[str, Any]] = [
        {"bonus": "kl"},
        {"bonus": "kl", "delta": 0.01},
        {"bonus": "kl", "exploration_floor": 0.05},
        {"union": True},
        {"exploration_floor": 0.05},
    ]

    def near(classes: int, batch: int) -> SampleWorld:
        return class_world(classes, ((classes, 0.2), (7 * classes // 10, 0.2), (classes, 0.25)), batch=batch)

    places = (
        seeking("I3, 10 classes", "is-ucb", i3(), seeds=20),
        seeking("10, one output", "is-ucb", near(10, 1), seeds=20),
        seeking("100", "is-ucb", near(100, 5), seeds=20),
        seeking("100, one output", "is-ucb", near(100, 1), seeds=20),
        seeking("I8, 1,000", "is-ucb", i8(), seeds=20),
    )
    base = {"bonus": "released", "delta": 0.05, "union": False, "exploration_floor": 0.0}
    return Sweep(name="is-ucb", base=base, changes=changes, places=places)
