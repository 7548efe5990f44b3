"""What a policy loses when its best arm falls, and how often it sees a fall that is none.

    python -m bench.experiments.drift --policy auto

Five arms, prompts N(0, I_8), rewards 0 or 1, whatever the prompt. Probe: 2,000 rounds, of which the second half is reported; at
half time the best arm falls from .9 to .1, and the next best stays at .5, which is all that can be had from there on.
Stationary: 5,000 rounds in which nothing changes, where every alarm is false.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from bandits.registry import build
from bandits.simulation import World, simulate

ARMS, DIM = 5, 8
BEFORE, AFTER = [0.9, 0.5, 0.3, 0.3, 0.3], [0.1, 0.5, 0.3, 0.3, 0.3]


def world(seed: int, *, rounds: int, changes: bool) -> World:
    """The rewards of every arm; the best is another arm for every seed."""
    g = np.random.default_rng(seed)
    expected = np.tile(BEFORE, (rounds, 1))
    if changes:
        expected[rounds // 2 :] = AFTER
    expected = np.roll(expected, seed % ARMS, axis=1)
    rewards = (g.random((rounds, ARMS)) < expected).astype(np.float64)
    return World(features=g.standard_normal((rounds, DIM)), rewards=rewards, expected=expected)


def probe(kind: str, settings: dict[str, Any], seed: int) -> tuple[float, int | None, int]:
    """The mean of the second half; how many outcomes of the fallen arm the alarm took, None = there was none; other alarms."""
    rounds = 2_000
    played, best = world(seed, rounds=rounds, changes=True), seed % ARMS
    trace = simulate(build(kind, settings, dim=DIM, seed=seed), played)
    right = [t for t, arm in trace.alarms if arm == best and t >= rounds // 2]
    took = int((trace.picks[rounds // 2 : right[0] + 1] == best).sum()) if right else None
    return float(trace.rewards[rounds // 2 :].mean()), took, len(trace.alarms) - bool(right)


def stationary(kind: str, settings: dict[str, Any], seed: int) -> int:
    """False alarms."""
    return len(simulate(build(kind, settings, dim=DIM, seed=seed), world(seed, rounds=5_000, changes=False)).alarms)


def main() -> None:
    """Print one line per seed, and the means."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--settings", default="{}", help='hyperparameters as JSON, beside "drift": "detect"')
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--skip", choices=["probe", "stationary"])
    asked = parser.parse_args()
    settings = {"drift": "detect", **json.loads(asked.settings)}
    if asked.skip != "probe":
        means, delays = [], []
        for seed in range(asked.seeds):
            mean, took, others = probe(asked.policy, settings, seed)
            means.append(mean)
            delays.append(took)
            print(f"probe {seed}: second half {mean:.3f}, alarm after {took} outcomes, other alarms {others}", flush=True)
        error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")
        seen = [took for took in delays if took is not None]
        middle = float(np.median(seen)) if seen else None
        print(f"probe: second half {np.mean(means):.4f} +- {error:.4f}; {len(seen)} alarms, median after {middle} outcomes")
    if asked.skip != "stationary":
        alarms = [stationary(asked.policy, settings, seed) for seed in range(asked.seeds)]
        print(f"stationary: false alarms {sum(alarms)} in {len(alarms)} runs ({sum(map(bool, alarms))} runs with any)")


if __name__ == "__main__":
    main()
