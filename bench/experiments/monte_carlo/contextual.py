"""G2, G4 and G6: pak-ucb on clusters of prompts and on recorded answers, dak-ucb where good arms repeat themselves.

Seed 0 is the golden run, whose picks must be the expected ones; other seeds are other worlds of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bandits.policies.baselines import Greedy
from bandits.policies.dak_ucb import DakUcb
from bandits.policies.lin_ucb import LinUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.simulation import simulate
from bandits.types import Policy
from bench.experiments.monte_carlo.baselines_contextual import ReleasedDak, shared_linear, shared_rbf, shared_ucb
from bench.experiments.monte_carlo.goldens import G2, G2_SWEEPS, G4, G6
from bench.experiments.monte_carlo.studies import Band, Claim, Contender, Each, Golden, Run, Study
from tools.simulated_tasks.contextual import (
    SIGMA,
    GroupedWorld,
    OutputWorld,
    Picks,
    collapsed_and_diverse,
    play,
    prompt_clusters,
    recorded_answers,
)

OPTIMAL = "optimal picks"
GAIN = "above the best arm"
EARNED = "mean expected reward"
DIVERSE = "share of the diverse arm"
REPEATS = "I-JRKE"
FIDELITY = "mean fidelity"

Chooser = Callable[[GroupedWorld, Each], npt.NDArray[Any]]


@cache
def clusters(seed: int) -> GroupedWorld:
    """The world of golden G2, or another one of its kind."""
    return prompt_clusters(seed=7 + seed)


@cache
def recorded(seed: int) -> GroupedWorld:
    """The rounds of golden G6, or another draw of them."""
    return recorded_answers(seed=2025 + seed)


@cache
def diverse(seed: int) -> OutputWorld:
    """The world of golden G4, or another one of its kind."""
    return collapsed_and_diverse(seed=17 + seed)


def _choosing(
    world: Callable[[int], GroupedWorld], choose: Chooser, *, rounds: int, at_most: int = 1_000_000, slow: bool = False
) -> Contender:
    def run(seed: int, each: Each) -> Run:
        here = world(seed)
        picks = choose(here, each)
        values = {
            OPTIMAL: float(here.optimal(picks).mean()),
            GAIN: here.gain(picks),
            EARNED: float(here.earned(picks).mean()),
        }
        return Run(values=values, series={"picks": picks})

    return Contender(play=run, rounds=rounds, at_most=at_most, slow=slow)


def _learner(policy: Policy) -> Chooser:
    return lambda world, each: simulate(policy, world, each=each).picks


_GOLDEN: dict[str, Any] = {"prior_mean": 0.0, "normalize": False, "exploration": 1.0, "ridge": 1.0}


def _pak(dim: int, **chosen: Any) -> PakUcb:
    """The policy of the golden runs, whatever the defaults are: prior mean 0, vectors as they are, here with an exact kernel."""
    return PakUcb(**{**_GOLDEN, "dim": dim, "seed": 11, "random_features": None, "bandwidth": 1.0, **chosen})


def _lin(dim: int) -> LinUcb:
    return LinUcb(dim=dim, **_GOLDEN)


def _papers(*counts: int) -> float:
    """The released exploration sqrt(2 ln(2 m .. / .05))."""
    return math.sqrt(2.0 * math.log(2.0 * math.prod(counts) / 0.05))


# -- G2 --------------------------------------------------------------------------------------------------------------------


def _clusters() -> Study:
    choosers: dict[str, Chooser] = {
        "pak-ucb, exact rbf": _learner(_pak(8)),
        "pak-ucb, exact rbf, released exploration": _learner(_pak(8, exploration=_papers(600, 3))),
        "pak-ucb, polynomial": _learner(_pak(8, kernel="polynomial")),
        "pak-ucb, exact rbf, no exploration": _learner(_pak(8, exploration=0.0)),
        "pak-ucb, 64 random features": _learner(_pak(8, random_features=64)),
        "pak-ucb, 64 random features, released exploration": _learner(_pak(8, random_features=64, exploration=_papers(3))),
        "pak-ucb, defaults": _learner(PakUcb(dim=8, seed=11)),
        "lin-ucb": _learner(_lin(8)),
        "one rbf regression for all arms": lambda world, each: shared_ucb(world, shared_rbf, each=each),
        "one linear regression for all arms": lambda world, each: shared_ucb(world, shared_linear, each=each),
        "greedy": _learner(Greedy()),
        "random": _uniform,
        "best arm on average": lambda world, each: np.full(len(world.rewards), world.best_arm),
    }
    contenders = {label: _choosing(clusters, choose, rounds=600) for label, choose in choosers.items()}
    claims = [Claim(label, OPTIMAL, Golden(ratio, sha)) for label, (ratio, _, sha) in G2.items()]
    claims += [Claim(label, GAIN, Golden(gain)) for label, (_, gain, _) in G2.items()]
    return Study(
        name="G2",
        title="Three clusters of prompts in R^8, three arms, 600 rounds",
        contenders=contenders,
        claims=claims,
        measures=(OPTIMAL, GAIN),
        seeds=10,
        quick=2,
        note="The released exploration explores nearly uniformly; without any, and a prior mean of 0, the first good arm stays.",
    )


def _uniform(world: GroupedWorld, each: Each) -> Picks:
    return np.random.default_rng(99).integers(0, world.rewards.shape[1], size=len(world.rewards)).astype(np.uint8)


def _sweeps() -> Study:
    policies: dict[str, PakUcb] = {f"D = {count}": _pak(8, random_features=count) for count in (4, 8, 16, 32, 64, 128, 256)}
    for r0 in (1.0, 0.5):
        for eta in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0):
            policies[f"D = 64, prior mean {r0:g}, exploration {eta:g}"] = _pak(
                8, random_features=64, prior_mean=r0, exploration=eta
            )
    policies |= {f"exact rbf, exploration {eta:g}": _pak(8, exploration=eta) for eta in (0.1, 0.25, 0.5, 2.0, 4.0)}
    contenders = {label: _choosing(clusters, _learner(policy), rounds=600, at_most=1) for label, policy in policies.items()}
    any_frequencies = "D = 64, other random frequencies"

    def redrawn(seed: int, each: Each) -> Run:
        picks = simulate(_pak(8, random_features=64, seed=seed), clusters(0), each=each).picks
        return Run(values={OPTIMAL: float(clusters(0).optimal(picks).mean())}, series={"picks": picks})

    contenders[any_frequencies] = Contender(play=redrawn, rounds=600)
    claims = [Claim(label, OPTIMAL, Golden(ratio)) for label, ratio in G2_SWEEPS.items()]
    claims.append(Claim(any_frequencies, OPTIMAL, Band(0.8051666666666668, 0.029462311141147394 / math.sqrt(10), 10)))
    return Study(
        name="G2 sweeps",
        title="pak-ucb in the same world: random features, prior mean, exploration",
        contenders=contenders,
        claims=claims,
        measures=(OPTIMAL,),
        seeds=10,
        quick=3,
        note="An optimistic prior mean does the exploring: with it, less exploration is better; without it, 1 is best.",
    )


# -- G6 --------------------------------------------------------------------------------------------------------------------


def _recorded() -> Study:
    def features(**chosen: Any) -> Chooser:
        return _learner(_pak(256, **{"random_features": 100, **chosen}))

    quick: dict[str, Chooser] = {
        "pak-ucb, exploration 1": features(),
        "pak-ucb, exploration .3": features(exploration=0.3),
        "pak-ucb, exploration .3, prior mean .5": features(exploration=0.3, prior_mean=0.5),
        "pak-ucb, exploration .3, prior mean 1": features(exploration=0.3, prior_mean=1.0),
        "pak-ucb, exploration .1, prior mean 1": features(exploration=0.1, prior_mean=1.0),
        "pak-ucb, exploration 0, prior mean 1": features(exploration=0.0, prior_mean=1.0),
        "pak-ucb, exploration 1, bandwidth .5": features(bandwidth=0.5),
        "pak-ucb, exploration 1, ridge .1": features(ridge=0.1),
        "pak-ucb, defaults": _learner(PakUcb(dim=256, seed=11)),
        "lin-ucb": _learner(_lin(256)),
        "greedy": _learner(Greedy()),
        "random": _uniform,
        "best model": lambda world, each: np.full(len(world.rewards), world.best_arm),
        "best model per language": lambda world, each: world.best_per_group,
        "best model per task": lambda world, each: world.expected.argmax(axis=1),
    }
    slow: dict[str, Chooser] = {
        "pak-ucb, exact rbf, exploration 1": _learner(_pak(256)),
        "pak-ucb, exact rbf, no exploration": _learner(_pak(256, exploration=0.0)),
        "one rbf regression for both models": lambda world, each: shared_ucb(world, shared_rbf, each=each),
        "one linear regression for both models": lambda world, each: shared_ucb(world, shared_linear, each=each),
    }
    contenders = {label: _choosing(recorded, choose, rounds=2000) for label, choose in quick.items()}
    contenders |= {label: _choosing(recorded, choose, rounds=2000, at_most=1, slow=True) for label, choose in slow.items()}
    claims = [Claim(label, EARNED, Golden(earned, sha)) for label, (earned, _, _, sha) in G6.items()]
    claims += [Claim(label, OPTIMAL, Golden(ratio)) for label, (_, ratio, _, _) in G6.items()]
    claims += [Claim(label, GAIN, Golden(gain)) for label, (_, _, gain, _) in G6.items()]
    return Study(
        name="G6",
        title="Recorded answers: 328 programming tasks, two models, 2,000 rounds, 100 random features of hashed text",
        contenders=contenders,
        claims=claims,
        measures=(EARNED, OPTIMAL, GAIN),
        seeds=5,
        quick=1,
        note="Labels as released, Markdown fences included; most of the gap between the models in C++ is those fences.",
    )


# -- G4 --------------------------------------------------------------------------------------------------------------------


def dak(policy: type[DakUcb] = DakUcb, **chosen: Any) -> DakUcb:
    """The policy of the golden runs: exact, all bandwidths sqrt(1/2), prior mean 0."""
    golden: dict[str, Any] = {
        "dim": 4,
        "output_dim": 4,
        "seed": 3,
        "prompt_bandwidth": SIGMA,
        "output_bandwidth": SIGMA,
        "prior_mean": 0.0,
        "normalize": False,
        "exploration": 1.0,
        "diversity_exploration": 1.0,
        "diversity_weight": 1.0,
        "ridge": 1.0,
        "random_features": None,
        "label_features": None,
    }
    return policy(**{**golden, **chosen})


def _serving(choose: Callable[[OutputWorld, Each], Picks]) -> Contender:
    def run(seed: int, each: Each) -> Run:
        world = diverse(seed)
        picks = choose(world, each)
        values = {
            DIVERSE: float(np.mean(picks == 2)),
            REPEATS: world.inverse_joint_rke(picks),
            FIDELITY: world.fidelity(picks),
        }
        return Run(values=values, series={"picks": picks})

    return Contender(play=run, rounds=400)


def _diverse() -> Study:
    policies: Mapping[str, Policy] = {
        "pak-ucb (diversity weight 0)": dak(diversity_weight=0.0),
        "dak-ucb, diversity weight .2": dak(diversity_weight=0.2),
        "dak-ucb, diversity weight 1": dak(),
        "dak-ucb, jkd": dak(diversity="jkd"),
        "dak-ucb, mixture": dak(mixture=True),
        "dak-ucb, released bonus": dak(ReleasedDak, exploration=_released_bonus(), diversity_exploration=0.0),
        "dak-ucb, random features (default form)": dak(random_features=128, label_features=2048),
    }
    contenders = {label: _serving(_with_outcomes(policy)) for label, policy in policies.items()}
    for arm in range(3):
        contenders[f"arm {arm} alone"] = _serving(lambda world, each, arm=arm: np.full(len(world.rewards), arm, np.uint8))  # type: ignore[misc]
    claims = [Claim(label, DIVERSE, Golden(share, sha)) for label, (share, _, _, sha) in G4.items() if sha]
    claims += [Claim(label, REPEATS, Golden(repeats)) for label, (_, repeats, _, _) in G4.items()]
    claims += [Claim(label, FIDELITY, Golden(fidelity)) for label, (_, _, fidelity, _) in G4.items()]
    return Study(
        name="G4",
        title="Two arms that repeat one output per cluster (fidelity .80) and one that never repeats (.75), 400 rounds",
        contenders=contenders,
        claims=claims,
        measures=(DIVERSE, REPEATS, FIDELITY),
        seeds=10,
        quick=2,
    )


def _with_outcomes(policy: Policy) -> Callable[[OutputWorld, Each], Picks]:
    return lambda world, each: play(policy, world, each=each)


def _released_bonus() -> float:
    """sqrt(2 ln(2 m / delta)) with the release's delta of 5.8, which is no probability: .2604."""
    return math.sqrt(2.0 * math.log(2.0 * 3 / 5.8))


def studies() -> list[Study]:
    """The three worlds, and the sweeps in the first."""
    return [_clusters(), _sweeps(), _diverse(), _recorded()]
