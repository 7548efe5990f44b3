"""G5 and the episodes of G6: promptwise against rules that need no learning, greedy ones, and who knows every probability.

Seed 0 is the golden run, whose picks must be the expected ones; other seeds are other worlds of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from bandits.episodes import play_episodes
from bandits.policies.baselines import OneArm
from bandits.policies.promptwise import PromptWise
from bandits.types import Policy
from bench.experiments.monte_carlo.baselines_episodes import (
    CheapFirst,
    Floats,
    GreedyTillSuccess,
    Knowing,
    recorded_rates,
    true_rates,
)
from bench.experiments.monte_carlo.goldens import G5, G6_EPISODES
from bench.experiments.monte_carlo.studies import Claim, Contender, Each, Golden, Run, Study
from tools.simulated_tasks.episodes import EpisodeWorld, cheap_to_expensive, retries

UTILITY = "utility"
SOLVED = "solved"
COST = "cost per episode"

Known = tuple[EpisodeWorld, Floats]
"""A world, and the success probability (T, K) of every arm on every prompt."""


@cache
def tiers(seed: int) -> Known:
    """The world of golden G5, or another one of its kind."""
    world = cheap_to_expensive(seed=31 + seed)
    return world, true_rates(world)


@cache
def answers(seed: int) -> Known:
    """The episodes of golden G6, or another draw of them."""
    return retries(seed=2026 + seed), recorded_rates(seed=2026 + seed)


GOLDEN: dict[str, Any] = {
    "normalize": False,
    "bias": False,
    "exploration": 1.0,
    "ridge": 1.0,
    "forced_pulls": 1,
    "rule": "ratio",
    "retry_discount": 1.0,
    "stop_optimism": 0.0,
    "max_attempts": 5,
}
"""What the golden runs chose, whatever the defaults are. The features of the worlds bring their own constant."""


def policies(dim: int, arms: int, cost_weight: float) -> dict[str, Policy]:
    """What plays."""

    def wise(**chosen: Any) -> Policy:
        return PromptWise(**{"dim": dim, "cost_weight": cost_weight, **GOLDEN, **chosen})

    return {
        "promptwise": wise(),
        "promptwise, exploration .3": wise(exploration=0.3),
        "promptwise, discount .4": wise(retry_discount=0.4),
        "promptwise, discount .2": wise(retry_discount=0.2),
        "promptwise, horizon": wise(rule="horizon"),
        "promptwise, horizon, discount .4": wise(rule="horizon", retry_discount=0.4),
        "cheap first": CheapFirst(),
        "greedy till success": GreedyTillSuccess(cost_weight=cost_weight),
        "greedy, one call": GreedyTillSuccess(cost_weight=cost_weight, max_attempts=1),
        "cheapest arm, one call": OneArm(arm=0),
        "dearest arm, one call": OneArm(arm=arms - 1),
        "knowing, ratio": Knowing(rule="ratio", cost_weight=cost_weight),
        "knowing, horizon": Knowing(rule="horizon", cost_weight=cost_weight),
    }


def _contender(policy: Policy, world: Callable[[int], Known], *, cost_weight: float, rounds: int) -> Contender:
    def run(seed: int, each: Each) -> Run:
        here, rates = world(seed)
        seen = rates if isinstance(policy, Knowing) else here.features
        trace = play_episodes(policy, seen, here.rewards, here.prices, each=each)
        values = {
            UTILITY: trace.utility(cost_weight=cost_weight),
            SOLVED: float(trace.best.mean()),
            COST: float(trace.costs.mean()),
        }
        series = {"picks": trace.picks, "episodes": trace.episodes, "best": trace.best, "costs": trace.costs}
        return Run(values=values, series=series)

    return Contender(play=run, rounds=rounds)


def _study(
    name: str,
    title: str,
    world: Callable[[int], Known],
    golden: Mapping[str, tuple[float, str]],
    *,
    shape: tuple[int, int, int],
    cost_weights: Sequence[float],
    note: str,
) -> Study:
    rounds, dim, arms = shape
    contenders = {
        f"{label}; cost weight {weight:g}": _contender(policy, world, cost_weight=weight, rounds=rounds)
        for weight in cost_weights
        for label, policy in policies(dim, arms, weight).items()
    }
    return Study(
        name=name,
        title=title,
        contenders=contenders,
        claims=[Claim(label, UTILITY, Golden(utility, sha)) for label, (utility, sha) in golden.items()],
        measures=(UTILITY,),
        beside=(SOLVED, COST),
        seeds=3,
        quick=1,
        note=note,
    )


def studies() -> list[Study]:
    """The two worlds. The utilities of three cost weights come from separate runs: only the ratio rule ignores the weight."""
    return [
        _study(
            "G5",
            "Four arms from cheap to dear (.75, 1.37, 5.5, 12.5), two kinds of prompt, 800 episodes; retries are independent",
            tiers,
            G5,
            shape=(800, 4, 4),
            cost_weights=(0.001, 0.02, 0.05),
            note="Calling the arms in the order of their prices beats the ratio rule where cost hardly matters, not beyond.",
        ),
        _study(
            "G6 episodes",
            "Recorded answers: 1,000 episodes, two models (.75, 1.6); a model that failed tends to fail again",
            answers,
            G6_EPISODES,
            shape=(1000, 17, 2),
            cost_weights=(0.001, 0.05, 0.2),
            note="With a discount on retries promptwise moves on to the other model, and solves more.",
        ),
    ]


def escalation(run: Run, *, arms: int, calls: int = 5) -> Floats:
    """(calls, K) the share of all episodes whose k-th call went to each arm."""
    picks, episodes = run.series["picks"].astype(np.int64), run.series["episodes"].astype(np.int64)
    first = np.searchsorted(episodes, episodes, side="left")  # where the episode of each call begins
    share = np.zeros((calls, arms))
    np.add.at(share, (np.arange(len(picks)) - first, picks), 1.0)
    return share / len(run.series["best"])
