"""I1, I2, I3, I8: fd-ucb and is-ucb, which look for the one best arm by its samples, against the release's yardsticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bandits.policies.fd_ucb import FdUcb
from bandits.policies.is_ucb import IsUcb
from bandits.types import Policy
from bench.experiments.monte_carlo.baselines import FixedWeights, GreedyIs, NaiveFd, NaiveIs, OverwrittenIs
from bench.experiments.monte_carlo.studies import AtLeast, AtMost, Band, Claim, Contender, Each, Run, Study
from tools.simulated_tasks.fd_is import SampleWorld, i1, i2, i3, i8, play

OPTIMAL = "optimal picks"
REGRET = "regret per round"


def contender(policy: Policy, world: SampleWorld, *, at_most: int = 1_000_000) -> Contender:
    """The policy in this world; a run keeps its picks."""

    def run(seed: int, each: Each) -> Run:
        picks = play(policy, world, seed=seed, each=each)
        regret = float(np.asarray(world.regret)[picks].mean())
        return Run(values={OPTIMAL: world.optimal_pick_ratio(picks), REGRET: regret}, series={"picks": picks.astype(np.uint8)})

    return Contender(play=run, rounds=world.rounds, at_most=at_most)


def _distance_policies(dim: int) -> dict[str, Policy]:
    return {
        "fd-ucb": FdUcb(output_dim=dim),
        "radius of unit variance": NaiveFd(output_dim=dim),
        "greedy": FdUcb(output_dim=dim, bonus_scale=0.0),
        "epsilon-greedy, .05": FdUcb(output_dim=dim, bonus_scale=0.0, exploration_floor=0.05),
        "random": FixedWeights(shares=(1 / 3,) * 3),
    }


def _score_policies(dim: int) -> dict[str, Policy]:
    return {
        "is-ucb, bonus released": IsUcb(output_dim=dim, bonus="released"),
        "is-ucb, bonus kl": IsUcb(output_dim=dim, bonus="kl"),
        "released, marginals overwritten": OverwrittenIs(output_dim=dim),
        "radii of largest variance": NaiveIs(output_dim=dim),
        "greedy": GreedyIs(output_dim=dim),
    }


def _study(
    name: str,
    title: str,
    world: SampleWorld,
    policies: Mapping[str, Policy],
    claims: Sequence[Claim],
    *,
    seeds: int,
    note: str = "",
) -> Study:
    return Study(
        name=name,
        title=title,
        contenders={label: contender(policy, world) for label, policy in policies.items()},
        claims=claims,
        measures=(OPTIMAL, REGRET),
        seeds=seeds,
        quick=3,
        note=note,
    )


def studies() -> list[Study]:
    """The four worlds."""
    return [
        _study(
            "I1",
            "Frechet distance, shifted normals in R^8: distances .09, 4, 16; 400 rounds of 5 samples",
            i1(),
            _distance_policies(8),
            [
                Claim("fd-ucb", OPTIMAL, Band(0.9114999999999999, 0.0017434086394791477, 20)),
                Claim("fd-ucb", REGRET, Band(0.4600349999999998, 0.007008482736167494, 20)),
                Claim("radius of unit variance", OPTIMAL, Band(0.938375, 0.0022961280337490775, 20)),
                Claim("greedy", OPTIMAL, Band(0.945375, 0.049625, 20)),
                Claim("epsilon-greedy, .05", OPTIMAL, Band(0.940625, 0.015151510042861976, 20)),
                Claim("random", OPTIMAL, Band(0.338375, 0.005238631174166336, 20)),
            ],
            seeds=20,
        ),
        _study(
            "I2",
            "Frechet distance, a perfect, a collapsed and a shifted arm in R^32: distances 0, 8, 2.25",
            i2(),
            _distance_policies(32),
            [
                Claim("fd-ucb", OPTIMAL, Band(0.582125, 0.0018872407455274359, 20)),
                Claim("fd-ucb", REGRET, Band(1.0509062500000002, 0.005307461813767973, 20)),
                Claim("fd-ucb", OPTIMAL, AtLeast(0.5)),
                Claim("radius of unit variance", OPTIMAL, Band(0.5293749999999999, 0.0009402372321023991, 20)),
                Claim("greedy", OPTIMAL, Band(0.0025, 0.0, 20)),
                Claim("greedy", OPTIMAL, AtMost(0.05)),
                Claim("epsilon-greedy, .05", OPTIMAL, Band(0.0725, 0.02625093983279957, 20)),
                Claim("random", OPTIMAL, Band(0.34787500000000005, 0.004168628923910492, 20)),
            ],
            seeds=20,
            note="Greedy stays with the collapsed arm: the estimate is biased upwards by about Tr S / n, more for diverse arms.",
        ),
        _study(
            "I3",
            "Inception score, 10 classes: scores 5.800, 4.568, 1.667; 1,000 rounds of 5 outputs",
            i3(),
            _score_policies(10),
            [
                Claim("is-ucb, bonus released", OPTIMAL, Band(0.8302999999999999, 0.00021884866196096646, 20)),
                Claim("is-ucb, bonus released", REGRET, Band(0.2637312438152387, 0.0003870972104802006, 20)),
                Claim("is-ucb, bonus kl", OPTIMAL, Band(0.967, None, 20, digits=3)),
                Claim("released, marginals overwritten", OPTIMAL, Band(0.498, 0.0, 20)),
                Claim("radii of largest variance", OPTIMAL, Band(0.6213, 0.00012773327473170114, 20)),
                Claim("greedy", OPTIMAL, Band(0.6490499999999999, 0.10909605798754163, 20)),
            ],
            seeds=20,
        ),
        _study(
            "I8",
            "Inception score, 1,000 classes: scores 68.37, 60.02, 58.60; 1,000 rounds of 5 outputs",
            i8(),
            _score_policies(1000),
            [
                Claim("is-ucb, bonus released", OPTIMAL, Band(0.338, 0.0, 10, digits=3)),
                Claim("is-ucb, bonus kl", OPTIMAL, Band(0.957, 0.002, 10, digits=3)),
                Claim("released, marginals overwritten", OPTIMAL, Band(0.462, 0.0, 10, digits=3)),
                Claim("radii of largest variance", OPTIMAL, Band(0.334, 0.0, 10, digits=3)),
                Claim("greedy", OPTIMAL, Band(0.300, 0.152, 10, digits=3)),
            ],
            seeds=10,
            note="The released rule explores uniformly here: each of its 1,000 radii adds 10.2 / n. The kl bonus has one radius.",
        ),
    ]
