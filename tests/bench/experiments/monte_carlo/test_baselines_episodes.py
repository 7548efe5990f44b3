from __future__ import annotations

import hashlib

import pytest

from bandits.episodes import play_episodes
from bandits.policies.baselines import OneArm
from bandits.types import Policy
from bench.experiments.monte_carlo.baselines_episodes import CheapFirst, GreedyTillSuccess
from tests.tables import shared_table
from tools.simulated_tasks.episodes import EpisodeWorld, cheap_to_expensive, retries


def played(policy: Policy, world: EpisodeWorld, cost_weight: float) -> tuple[str, float, float]:
    """First digits of the picks' sha256, utility, share solved."""
    trace = play_episodes(policy, world.features, world.rewards, world.prices)
    digest = hashlib.sha256(trace.picks.tobytes()).hexdigest()
    return digest[:8], round(trace.utility(cost_weight=cost_weight), 10), float(trace.best.mean())


@pytest.mark.parametrize(
    ("cost_weight", "digest", "utility", "solved"),
    [(0.001, "c16b76f9", 0.9864808, 1.0), (0.02, "6bd26969", 0.736316, 1.0), (0.05, "43d220cb", 0.631486875, 0.9975)],
)
def test_greedy_till_success_is_golden_g5(cost_weight: float, digest: str, utility: float, solved: float) -> None:
    assert played(GreedyTillSuccess(cost_weight=cost_weight), cheap_to_expensive(), cost_weight) == (digest, utility, solved)


def test_cheap_first_is_golden_g5() -> None:
    assert played(CheapFirst(), cheap_to_expensive(), 0.05) == ("4151cde2", 0.801365, 0.99875)


def test_the_cheapest_and_the_dearest_arm_are_golden_g5() -> None:
    assert played(OneArm(arm=0), cheap_to_expensive(), 0.05) == ("67042dfd", 0.44, 0.4775)
    assert played(OneArm(arm=3), cheap_to_expensive(), 0.05) == ("df929040", 0.29625, 0.92125)


def test_the_baselines_are_golden_g6() -> None:
    world = retries(recorded=shared_table("humaneval_pair").parent)
    assert played(GreedyTillSuccess(cost_weight=0.05), world, 0.05) == ("0070d06d", 0.877365, 0.934)
    assert played(CheapFirst(), world, 0.05) == ("b74d5057", 0.85166, 0.927)
