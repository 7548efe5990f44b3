"""What `auto` costs per decision, outcome and preparation, and in memory, on one thread.

python -m bench.experiments.auto_cost --arms 10 --dim 384 --signals 1 2
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bandits import draw
from bandits import state as states
from bandits.registry import build
from bandits.types import Context, Observation, Policy, State
from bench.pages import markdown

REPEATED = 200


def measured(*, arms: int, dim: int, signals: int, rounds: int) -> list[str]:
    """A row: microseconds of a decision, in the median and at its fastest; of an outcome without preparations, the same and the
    mean; milliseconds of the last preparation; megabytes of the packed sums and of what is derived. Rewards are linear in the
    prompt, every round has another.
    """
    g = np.random.default_rng(0)
    prompts = torch.from_numpy(g.standard_normal((rounds, dim)).astype(np.float32).astype(np.float64))
    directions = torch.from_numpy(g.standard_normal((arms, dim)) / np.sqrt(max(dim, 1)))
    names = tuple(["reward", "cost", *(f"signal_{i}" for i in range(2, signals))][:signals])
    policy = build("auto", {}, dim=dim, signals=names)
    state, pending = states.start(policy, arms=arms), (0,) * arms
    coefficients = tuple(((-0.5) ** k,) * arms for k in range(signals))
    decisions, outcomes, preparation = [], [], 0.0
    for x in prompts:
        context = Context(allowed=(True,) * arms, features=x, pending=pending, coefficients=coefficients)
        start = time.thread_time()
        arm = draw.draw_at(policy.weights(state, [context]).values[0], g.random()).arm
        state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], x))
        decisions.append(time.thread_time() - start)
        values = tuple(float(directions[arm] @ x + 0.5 * g.standard_normal()) for _ in range(signals))
        seen = Observation(arm=arm, features=x, reward=values[0], signals=values, was_pending=True)
        start = time.thread_time()
        state = states.fold(policy, state, seen)
        outcomes.append(time.thread_time() - start)
        if policy.has_to_prepare(state):
            start = time.thread_time()
            state = policy.prepare(state)
            preparation = time.thread_time() - start
    late = slice(rounds // 2, None)
    fastest = _fastest(policy, state, torch.from_numpy(g.standard_normal((REPEATED, dim))), coefficients)
    numbers = [
        1e6 * np.median(decisions[late]),
        fastest[0],
        1e6 * np.median(outcomes[late]),
        fastest[1],
        1e6 * np.mean(outcomes[late]),
        1e3 * preparation,
    ]
    sizes = [len(states.pack(policy, state)) / 2**20, len(policy.pack_derived(state)) / 2**20]
    return [*map(str, (arms, dim, signals)), *(f"{one:.0f}" for one in numbers), *(f"{one:.1f}" for one in sizes)]


def _fastest(policy: Policy, state: State, prompts: Tensor, coefficients: tuple[tuple[float, ...], ...]) -> tuple[float, float]:
    """Microseconds of the fastest of several decisions in a row, and of outcomes: other work hardly touches them."""
    arms = len(state.arms)
    decisions, outcomes = [], []
    for x in prompts:
        context = Context(allowed=(True,) * arms, features=x, coefficients=coefficients)
        start = time.thread_time()
        draw.draw_at(policy.weights(state, [context]).values[0], 0.5)
        policy.add_pending(state.arms[0], x)
        decisions.append(time.thread_time() - start)
    for x in prompts:
        seen = Observation(arm=0, features=x, reward=0.5, signals=(0.5,) * len(coefficients), was_pending=True)
        pending = states.with_arm(state, 0, policy.add_pending(state.arms[0], x))
        start = time.thread_time()
        states.fold(policy, pending, seen)
        outcomes.append(time.thread_time() - start)
    return 1e6 * min(decisions), 1e6 * min(outcomes)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, nargs="+", default=[10])
    parser.add_argument("--dim", type=int, nargs="+", default=[384])
    parser.add_argument("--signals", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=1000)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    cells = [(arms, dim, signals) for arms in asked.arms for dim in asked.dim for signals in asked.signals]
    rows = [measured(arms=arms, dim=dim, signals=signals, rounds=asked.rounds) for arms, dim, signals in cells]
    times = ["decision, us", "fastest", "outcome, us", "fastest", "mean", "prepare, ms"]
    heads = ["arms", "d", "signals", *times, "sums, MB", "derived, MB"]
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
