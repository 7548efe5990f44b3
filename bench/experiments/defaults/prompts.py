"""Sweeps over policies that look at the prompt: dak-ucb, promptwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from bandits.episodes import play_episodes
from bandits.functional import diversity, joint_diversity, kernels
from bandits.registry import build
from bench.experiments.defaults.sweeps import Measure, Place, Sweep, Values
from tools.simulated_tasks.contextual import SIGMA, Floats, OutputWorld, Picks, collapsed_and_diverse, play, unit
from tools.simulated_tasks.episodes import EpisodeWorld, cheap_to_expensive, retries

# -- dak-ucb ---------------------------------------------------------------------------------------------------------------

REGRET = Measure(name="fidelity regret", better="low")
VENDI = Measure(name="conditional Vendi", better="high", digits=2)
JOINT = Measure(name="fidelity - I-JRKE", better="high")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A world of outputs, and (T, K) the expected fidelity of every arm for every prompt."""

    world: OutputWorld
    expected: Floats

    def reached(self, picks: Picks) -> Values:
        """What was served: expected fidelity lost, conditional Vendi score, and fidelity minus I-JRKE, the sum at weight 1."""
        rows = np.arange(len(picks))
        fidelity = self.expected[rows, picks]
        prompts, outputs = (
            kernels.gaussian(x, x, bandwidth=SIGMA)
            for x in map(torch.from_numpy, (self.world.features, self.world.outputs[rows, picks]))
        )
        spectra = (diversity.gram_spectrum(gram) for gram in (prompts * outputs, prompts))
        return {
            REGRET.name: float((self.expected.max(axis=1) - fidelity).mean()),
            VENDI.name: joint_diversity.conditional_vendi(*spectra),
            JOINT.name: float(fidelity.mean()) - joint_diversity.inverse_joint_rke(prompts, outputs),
        }


@cache
def repeats(seed: int) -> Serving:
    """Two kinds of prompt; two arms (.80) repeat one output per kind, one (.75) never repeats. Golden G4's kind of world."""
    world = collapsed_and_diverse(seed=17 + seed, rounds=300)
    return Serving(world=world, expected=np.broadcast_to(np.array([0.80, 0.80, 0.75]), world.rewards.shape))


@cache
def many_kinds(seed: int) -> Serving:
    """The same with twelve kinds of prompt in R^12, where pairs of prompts are seldom alike."""
    fidelity = np.array([[0.80] * 12, [0.80] * 12, [0.75] * 12])
    return kinds(seed=seed, dim=12, noise=0.05, fidelity=fidelity, spread=(0.02, 0.02, math.inf))


@cache
def experts(seed: int) -> Serving:
    """Three kinds of prompt, each with its expert (.9, others .5) whose outputs differ a little; a bad arm (.4) never repeats."""
    fidelity = np.array([[0.9, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.5, 0.9], [0.4, 0.4, 0.4]])
    return kinds(seed=seed, dim=4, noise=0.1, fidelity=fidelity, spread=(0.3, 0.3, 0.3, math.inf))


def kinds(*, seed: int, dim: int, noise: float, fidelity: Floats, spread: tuple[float, ...], rounds: int = 300) -> Serving:
    """Clusters of prompts in R^dim; arm k answers near its output for the kind of prompt, or anywhere if its spread is infinite.

    fidelity: (K, kinds).  spread: (K,) standard deviation of an output's four numbers before it is scaled to length one.
    """
    g = np.random.default_rng(seed)
    arms, count = fidelity.shape
    kind = g.integers(0, count, rounds)
    features = unit(unit(g.standard_normal((count, dim)))[kind] + noise * g.standard_normal((rounds, dim)))
    centres = unit(g.standard_normal((arms, count, 4)))
    outputs = np.empty((rounds, arms, 4))
    for arm, wide in enumerate(spread):
        fresh = g.standard_normal((rounds, 4))
        outputs[:, arm] = unit(fresh if math.isinf(wide) else centres[arm, kind] + wide * fresh)
    expected = fidelity.T[kind]
    rewards = np.clip(expected + 0.05 * g.standard_normal((rounds, arms)), 0, 1)
    references = unit(g.standard_normal((rounds, 4)))
    world = OutputWorld(features=features, outputs=outputs, rewards=rewards, references=references, uniforms=g.random(rounds))
    return Serving(world=world, expected=expected)


def serving(name: str, world: Any, *, seeds: int) -> Place:
    def run(setting: Mapping[str, Any], seed: int) -> Values:
        here: Serving = world(seed)
        known = {"output_bandwidth": SIGMA, **setting}
        policy = build("dak-ucb", known, dim=here.world.features.shape[1], output_dim=4, seed=seed)
        return here.reached(play(policy, here.world))

    return Place(name=name, play=run, measures=(REGRET, VENDI, JOINT), seeds=seeds)


def dak_ucb() -> Sweep:
    """What optimism, prior, weight and labels do to fidelity and to diversity."""
    little = {"exploration": 0.1, "diversity_exploration": 0.1}
    changes: list[Mapping[str, Any]] = [
        {"exploration": e, "diversity_exploration": d}
        for e, d in ((0.3, 0.3), (0.1, 0.1), (0.0, 0.0), (0.1, 0.0), (0.1, 1.0), (1.0, 0.1))
    ]
    changes += [{**little, "prior_mean": r} for r in (0.0, 0.5)] + [{"prior_mean": 0.0}]
    changes += [{**little, "diversity_weight": weight} for weight in (0.0, 0.2, 0.5, 2.0)]
    changes += [{**little, "normalise_labels": True, "diversity_weight": weight} for weight in (0.1, 0.3, 1.0)]
    changes += [{**little, "mixture": True}, {"mixture": True}]
    changes += [{**little, "label_features": count} for count in (512, None)]
    base = {
        "exploration": 1.0,
        "diversity_exploration": 1.0,
        "prior_mean": 1.0,
        "diversity_weight": 1.0,
        "normalise_labels": False,
        "label_features": 2048,
    }
    places = (
        serving("two kinds", repeats, seeds=8),
        serving("twelve kinds", many_kinds, seeds=8),
        serving("experts", experts, seeds=8),
    )
    return Sweep(name="dak-ucb", base=base, changes=changes, places=places)


# -- promptwise ------------------------------------------------------------------------------------------------------------

UTILITY = Measure(name="utility", better="high")


@cache
def tiers(seed: int) -> EpisodeWorld:
    """300 episodes of golden G5's kind of world: retries are independent."""
    return cheap_to_expensive(seed=31 + seed, rounds=300)


@cache
def answers(seed: int) -> EpisodeWorld:
    """400 episodes of golden G6's kind: recorded answers, retries are correlated."""
    return retries(seed=2026 + seed, rounds=400)


def calling(name: str, world: Any, *, cost_weight: float, seeds: int) -> Place:
    """The constant column of the world is left out: the policy has a bias of its own."""

    def run(setting: Mapping[str, Any], seed: int) -> Values:
        here: EpisodeWorld = world(seed)
        features = np.ascontiguousarray(here.features[:, :-1])
        policy = build("promptwise", {"cost_weight": cost_weight, **setting}, dim=features.shape[1], seed=seed)
        trace = play_episodes(policy, features, here.rewards, here.prices)
        return {
            UTILITY.name: trace.utility(cost_weight=cost_weight),
            "solved": float(trace.best.mean()),
            "cost": float(trace.costs.mean()),
        }

    return Place(name=name, play=run, measures=(UTILITY,), seeds=seeds)


def promptwise() -> Sweep:
    """The paper's rule and others with a discount on retries; then what else there is, around the default."""
    changes: list[Mapping[str, Any]] = [{"retry_discount": kappa} for kappa in (0.8, 0.6, 0.4, 0.2)]
    changes += [{"rule": "horizon", "retry_discount": kappa} for kappa in (1.0, 0.8, 0.6, 0.4, 0.2)]
    changes += [{"exploration": 0.3}]
    better = {"rule": "horizon", "retry_discount": 0.8, "stop_optimism": 0.35}
    changes += [better]
    changes += [{**better, **one} for one in ({"exploration": 0.3}, {"exploration": 0.0}, {"ridge": 0.3}, {"ridge": 3.0})]
    changes += [{**better, "forced_pulls": 4}]
    changes += [{**better, "features": "rff"}]
    places = (
        calling("independent, weight .001", tiers, cost_weight=0.001, seeds=8),
        calling("independent, .05", tiers, cost_weight=0.05, seeds=8),
        calling("independent, .2", tiers, cost_weight=0.2, seeds=8),
        calling("recorded, .001", answers, cost_weight=0.001, seeds=8),
        calling("recorded, .05", answers, cost_weight=0.05, seeds=8),
        calling("recorded, .2", answers, cost_weight=0.2, seeds=8),
    )
    base = {
        "rule": "ratio",
        "retry_discount": 1.0,
        "stop_optimism": 0.0,
        "exploration": 1.0,
        "ridge": 1.0,
        "forced_pulls": 1,
        "features": "linear",
    }
    return Sweep(name="promptwise", base=base, changes=changes, places=places)
