"""What PromptWise must beat: policies that repeat a fixed preference until a call succeeds, and a table that compares them.

    python -m bench.experiments.baselines_episodes [--seeds 8] [--rounds 800]

Utility, 800 episodes, mean of 8 seeds (standard errors up to .013, greedy-till-success .030), cost_weight .001 / .02 / .05:

                          cheap to expensive        retries (real answers)
    ratio (the paper's)   .9361  .9028  .8504       .9318  .9093  .8739
    ratio, discount .6    .9572  .9218  .8659       .9522  .9282  .8905
    ratio, discount .4    .9787  .9330  .8608       .9515  .9268  .8877
    horizon               .9949  .9496  .8816       .9409  .9218  .8826
    greedy-till-success   .9870  .7613  .6868       .9167  .8865  .8439
    cheap-first           .9955  .9156  .7894       .9357  .9078  .8637

Where retries are independent (left) the horizon rule is the best of ours, and the cascade beats it by a hair only when cost
hardly matters; where they are correlated (right) a discount of .6 is best. The plain ratio rule is never the best.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bandits import draw
from bandits.episodes import play_episodes
from bandits.hyperparameters import hyper
from bandits.policies.promptwise import PromptWise
from bandits.regression.ridge import MeanArm
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights
from bench.experiments.worlds.episodes import RECORDED, EpisodeWorld, cheap_to_expensive, free_and_paid, retries

UNSEEN = 1e300
"""Mean of an arm without outcomes: above all others, and so large that prices leave it as it is. Infinity is not drawn."""


@dataclass(frozen=True, kw_only=True)
class _UntilSuccess(Policy):
    """Calls the best arm of a score until one succeeds."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reward", "cost"})
    episodic: ClassVar[bool] = True

    max_attempts: int = hyper(5, "Calls per episode at most.", at_least=1)

    def init(self) -> MeanArm:
        return MeanArm()

    def update(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].update(seen.reward)

    def succeeded(self, reward: float) -> bool:
        return reward >= 1.0

    def score(self, state: State, context: Context) -> Sequence[float]:
        """(K,) what is maximised."""
        raise NotImplementedError

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        scores = torch.tensor([self.score(state, context) for context in contexts], dtype=torch.float64)
        going_on: Tensor = torch.tensor([sum(context.attempts) < self.max_attempts for context in contexts])
        return Weights(draw.greedy_weights(scores, draw.allowed_mask(contexts)) * going_on[:, None])


@dataclass(frozen=True, kw_only=True)
class GreedyTillSuccess(_UntilSuccess):
    """The arm of highest mean reward - cost_weight * price, again and again; arms without any outcome first (PromptWise C5)."""

    kind: ClassVar[str] = "greedy-till-success"
    summary: ClassVar[str] = "Baseline: the best average reward minus cost, until success."

    cost_weight: float = hyper(0.05, "What one unit of cost is worth in successes.", at_least=0)

    def score(self, state: State, context: Context) -> Sequence[float]:
        return [arm.mean(unseen=UNSEEN) - self.cost_weight * price for arm, price in zip(state.arms, context.prices, strict=True)]


@dataclass(frozen=True, kw_only=True)
class CheapFirst(_UntilSuccess):
    """Each arm once, in the order of the prices, then the dearest again: the cascade that needs no learning (PromptWise C5)."""

    kind: ClassVar[str] = "cheap-first"
    summary: ClassVar[str] = "Baseline: the arms in the order of their prices until success."

    def score(self, state: State, context: Context) -> Sequence[float]:
        untried = any(n == 0 and is_allowed for n, is_allowed in zip(context.attempts, context.allowed, strict=True))
        if not untried:
            return context.prices
        return [-price if n == 0 else -float("inf") for n, price in zip(context.attempts, context.prices, strict=True)]


def contenders(dim: int, cost_weight: float) -> dict[str, Policy]:
    """What the table compares. The features of the worlds bring their own constant."""

    def wise(**others: object) -> Policy:
        shared = {
            "dim": dim,
            "normalize": False,
            "bias": False,
            "cost_weight": cost_weight,
            "rule": "ratio",
            "retry_discount": 1.0,
        }
        return PromptWise(**{**shared, **others})  # type: ignore[arg-type]

    return {
        "promptwise": wise(),
        "promptwise, discount .6": wise(retry_discount=0.6),
        "promptwise, discount .4": wise(retry_discount=0.4),
        "promptwise, discount .3": wise(retry_discount=0.3),
        "promptwise, discount .2": wise(retry_discount=0.2),
        "promptwise, horizon": wise(rule="horizon"),
        "promptwise, horizon, discount .8 (the default)": wise(rule="horizon", retry_discount=0.8),
        "promptwise, horizon, discount .6": wise(rule="horizon", retry_discount=0.6),
        "promptwise, horizon, discount .4": wise(rule="horizon", retry_discount=0.4),
        "promptwise, exploration .3": wise(exploration=0.3),
        "greedy-till-success": GreedyTillSuccess(cost_weight=cost_weight),
        "cheap-first": CheapFirst(),
    }


def table(name: str, worlds: Sequence[EpisodeWorld], cost_weights: Sequence[float]) -> None:
    """Prints utility, mean and standard error over the worlds, then share of episodes solved and calls per episode."""
    print(f"\n{name}, {len(worlds)} seeds, {len(worlds[0].features)} episodes")
    for cost_weight in cost_weights:
        print(f"  cost_weight {cost_weight:g}{'':27} utility          solved   cost  calls")
        for label, policy in contenders(worlds[0].features.shape[1], cost_weight).items():
            traces = [play_episodes(policy, w.features, w.rewards, w.prices) for w in worlds]
            utility = np.array([trace.utility(cost_weight=cost_weight) for trace in traces])
            error = utility.std(ddof=1) / np.sqrt(len(utility)) if len(utility) > 1 else 0.0
            solved, cost = (float(np.mean([getattr(t, field).mean() for t in traces])) for field in ("best", "costs"))
            calls = float(np.mean([len(t.picks) / len(t.best) for t in traces]))
            print(f"    {label:34} {utility.mean():.4f} +-{error:.4f}  {solved:.3f}  {cost:5.2f}  {calls:.2f}", flush=True)


def main() -> None:
    """Prints one table per world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=800)
    parser.add_argument("--cost-weights", type=float, nargs="+", default=[0.001, 0.02, 0.05])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    makers: dict[str, Callable[[int], EpisodeWorld]] = {
        "cheap to expensive": lambda seed: cheap_to_expensive(rounds=asked.rounds, seed=31 + seed),
        "free and paid": lambda seed: free_and_paid(rounds=asked.rounds, seed=seed),
    }
    if (RECORDED / "humaneval_pair" / "labels.npz").exists():
        makers["retries"] = lambda seed: retries(rounds=asked.rounds, seed=2026 + seed)
    else:
        print("retries: left out, the recorded answers are not here")
    for name, make in makers.items():
        table(name, [make(seed) for seed in range(asked.seeds)], asked.cost_weights)


if __name__ == "__main__":
    main()
