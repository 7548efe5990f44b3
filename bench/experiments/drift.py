"""What a policy loses when its best arm falls, and how often it sees a fall that is none.

    python -m bench.experiments.drift --policy auto
    python -m bench.experiments.drift --policy auto --noise .3
    python -m bench.experiments.drift --part detector

Five arms, prompts N(0, I_8), rewards 0 or 1 or with Gaussian noise, whatever the prompt. Probe: 2,000 rounds, of which the second
half is reported; at half time the best arm falls from .9 to .1, and the next best stays at .5, which is all that can be had from
there on. Stationary: 5,000 rounds in which nothing changes, where every alarm is false. Detector: one arm without a policy, whose
mean so far is what is expected of it; 5,000 rewards of many distributions, where every alarm is false, and falls.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from bandits import drift
from bandits.registry import build
from bandits.regression.ridge import MeanArm
from bandits.simulation import World, simulate

ARMS, DIM = 5, 8
BEFORE, AFTER = [0.9, 0.5, 0.3, 0.3, 0.3], [0.1, 0.5, 0.3, 0.3, 0.3]
STATIONARY = 5_000


def zeros_and_ones(p: float, g: Generator, n: int) -> np.ndarray:
    """Rewards that are 1 with probability p."""
    return (g.random(n) < p).astype(np.float64)


SUCCESSES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
REWARDS: dict[str, Callable[[Generator, int], np.ndarray]] = {
    **{f"1 with probability {p}": partial(zeros_and_ones, p) for p in SUCCESSES},
    "uniform": lambda g, n: g.random(n),
    "Gaussian": lambda g, n: g.standard_normal(n),
    "Student t, 3 degrees of freedom": lambda g, n: g.standard_t(3, n),
    "Student t, 2 degrees of freedom": lambda g, n: g.standard_t(2, n),
    "exponential": lambda g, n: g.exponential(size=n),
    "lognormal": lambda g, n: np.exp(g.standard_normal(n)),
}
FALLS = ((20, 0.9, 0.1), (100, 0.9, 0.1), (500, 0.9, 0.1), (100, 0.9, 0.5), (500, 0.9, 0.5), (500, 0.6, 0.3), (1_000, 0.7, 0.5))
"""Outcomes before a fall, and probabilities of a 1 before and after it."""


def world(seed: int, *, rounds: int, changes: bool, noise: float) -> World:
    """The rewards of every arm; the best is another arm for every seed. noise: standard deviation, 0 = rewards are 0 or 1."""
    g = np.random.default_rng(seed)
    expected = np.tile(BEFORE, (rounds, 1))
    if changes:
        expected[rounds // 2 :] = AFTER
    expected = np.roll(expected, seed % ARMS, axis=1)
    binary = (g.random((rounds, ARMS)) < expected).astype(np.float64)
    features = g.standard_normal((rounds, DIM))
    rewards = expected + noise * g.standard_normal((rounds, ARMS)) if noise else binary
    return World(features=features, rewards=rewards, expected=expected)


def probe(kind: str, settings: dict[str, Any], seed: int, *, noise: float) -> tuple[float, int | None, int]:
    """The mean of the second half; how many outcomes of the fallen arm the alarm took, None = there was none; other alarms."""
    rounds = 2_000
    played, best = world(seed, rounds=rounds, changes=True, noise=noise), seed % ARMS
    trace = simulate(build(kind, settings, dim=DIM, seed=seed), played)
    right = [t for t, arm in trace.alarms if arm == best and t >= rounds // 2]
    took = int((trace.picks[rounds // 2 : right[0] + 1] == best).sum()) if right else None
    return float(trace.rewards[rounds // 2 :].mean()), took, len(trace.alarms) - bool(right)


def stationary(kind: str, settings: dict[str, Any], seed: int, *, noise: float) -> int:
    """False alarms."""
    still = world(seed, rounds=STATIONARY, changes=False, noise=noise)
    return len(simulate(build(kind, settings, dim=DIM, seed=seed), still).alarms)


def alarms(rewards: np.ndarray) -> list[int]:
    """Where the rewards of one arm raise alarms, if its mean since the last one is what is expected of it."""
    arm, sums, found = MeanArm(), drift.START, []
    for t, reward in enumerate(rewards.tolist()):
        if (surprise := arm.surprise(reward)) is not None:
            sums, alarm = drift.add(sums, surprise)
            if alarm:
                found.append(t)
                arm = MeanArm()
        arm = arm.update(reward)
    return found


def detector(seeds: Sequence[int]) -> None:
    """Print the false alarms per distribution, and per fall how many are seen within 300 outcomes, and after how many."""
    for name, draws in REWARDS.items():
        counts = [len(alarms(draws(np.random.default_rng(seed), STATIONARY))) for seed in seeds]
        print(f"{name}: false alarms {sum(counts)} in {len(counts)} runs", flush=True)
    for before, high, low in FALLS:
        took = []
        for seed in seeds:
            g = np.random.default_rng(seed)
            probabilities = np.repeat([high, low], [before, 300])
            seen = [t for t in alarms((g.random(before + 300) < probabilities).astype(np.float64)) if t >= before]
            took += [seen[0] - before + 1] if seen else []
        middle = float(np.median(took)) if took else None
        print(f"{high} to {low} after {before} outcomes: {len(took)} of {len(seeds)} seen, median after {middle}", flush=True)


def main() -> None:
    """Print one line per seed, and the means."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--settings", default="{}", help='hyperparameters as JSON, beside "drift": "detect"')
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the rewards; 0: they are 0 or 1")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--part", choices=["probe", "stationary", "detector"], action="append", help="default: probe, stationary")
    asked = parser.parse_args()
    settings = {"drift": "detect", **json.loads(asked.settings)}
    seeds, parts = range(asked.first, asked.first + asked.seeds), asked.part or ["probe", "stationary"]
    if "probe" in parts:
        means, delays = [], []
        for seed in seeds:
            mean, took, others = probe(asked.policy, settings, seed, noise=asked.noise)
            means.append(mean)
            delays.append(took)
            print(f"probe {seed}: second half {mean:.3f}, alarm after {took} outcomes, other alarms {others}", flush=True)
        error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")
        seen = [took for took in delays if took is not None]
        middle = float(np.median(seen)) if seen else None
        print(f"probe: second half {np.mean(means):.4f} +- {error:.4f}; {len(seen)} alarms, median after {middle} outcomes")
    if "stationary" in parts:
        false = [stationary(asked.policy, settings, seed, noise=asked.noise) for seed in seeds]
        print(f"stationary: false alarms {sum(false)} in {len(false)} runs ({sum(map(bool, false))} runs with any)")
    if "detector" in parts:
        detector(seeds)


if __name__ == "__main__":
    main()
