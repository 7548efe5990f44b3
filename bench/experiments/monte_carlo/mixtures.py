"""I4 to I7: mixture-ucb and mixture-greedy, whose gathered samples shall be good, against the release's rules and the oracles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bandits.policies.mixture import MixtureGreedy, MixtureUcb
from bandits.types import Policy
from bench.experiments.monte_carlo.baselines import FixedWeights, OneArmUcb, ReleasedVendi, ShortSteps
from bench.experiments.monte_carlo.studies import AtMost, Band, Claim, Contender, Each, Proportion, Run, Study
from tools.simulated_tasks.mixture import Floats, MixtureWorld, Sampler, i4_kid, i4_rke, i5, i6, i7, play

EXCESS = "loss above the best"
DISTANCE = "|n/T - best|"
SHARE = "share of arm 0"
STARVED = "arm 0 below .1"
FID = "FID"
VENDI = "Vendi score"

RELEASED: dict[str, Any] = {"delta_l": 0.6 * math.sqrt(2.0)}
"""The released width .6 sqrt(ln t / n) in terms of eq. (7), which has ln t / (2 n)."""


def played(policy: Policy, world: MixtureWorld, *, seed: int, each: Each) -> npt.NDArray[np.uint8]:
    """(T,) the arms that were picked: `play` itself answers their shares alone."""
    picks: list[int] = []

    def recording(arm: int, sampler: Sampler) -> Sampler:
        def sample(rng: np.random.Generator, n: int) -> Floats:
            picks.append(arm)
            return sampler(rng, n)

        return sample

    samplers = tuple(recording(arm, sampler) for arm, sampler in enumerate(world.samplers))
    play(policy, replace(world, samplers=samplers), seed=seed, each=each)
    return np.array(picks, dtype=np.uint8)


def shares_over_time(picks: npt.NDArray[np.uint8], arms: int) -> Floats:
    """(T, K) the share of each arm in the first t picks."""
    return np.asarray(np.cumsum(np.eye(arms)[picks], axis=0) / np.arange(1, len(picks) + 1)[:, None])


def contender(policy: Policy, world: MixtureWorld, *, at_most: int = 1_000_000) -> Contender:
    """The policy in this world; a run keeps its picks."""
    arms = len(world.samplers)

    def run(seed: int, each: Each) -> Run:
        picks = played(policy, world, seed=seed, each=each)
        shares = np.bincount(picks, minlength=arms) / len(picks)
        values = {
            EXCESS: world.excess(shares),
            DISTANCE: float(np.abs(shares - world.best).sum()),
            SHARE: float(shares[0]),
            STARVED: float(shares[0] < 0.1),
            FID: world.loss(shares),
            VENDI: math.exp(-world.loss(shares)),
        }
        return Run(values=values, series={"picks": picks})

    return Contender(play=run, rounds=world.rounds, at_most=at_most)


def _contenders(policies: Mapping[str, Policy], world: MixtureWorld) -> dict[str, Contender]:
    return {label: contender(policy, world) for label, policy in policies.items()}


def fixed(shares: Sequence[float] | Floats) -> FixedWeights:
    """The same weights in every round."""
    return FixedWeights(shares=tuple(float(share) for share in shares))


# -- I4 --------------------------------------------------------------------------------------------------------------------


def _plane(world: MixtureWorld) -> dict[str, Contender]:
    known: dict[str, Any] = {**world.hyperparameters, "output_dim": world.dim}
    exact: dict[str, Any] = {**known, "random_features": None, "initial_pulls": 5}
    once, thrice = {**exact, "initial_pulls": 1}, {**exact, "initial_pulls": 3}
    alone = [world.loss(row) for row in np.eye(4)]
    policies: dict[str, Policy] = {
        "cab, theory": MixtureUcb(**once, method="cab", preset="theory"),
        "cab, released constants": MixtureUcb(**exact, method="cab", **RELEASED),
        "cab, practical": MixtureUcb(**exact, method="cab"),
        "ogd, theory": MixtureUcb(**once, preset="theory"),
        "ogd, released constants": MixtureUcb(**exact, **RELEASED),
        "ogd, practical": MixtureUcb(**exact),
        "ogd, practical, 2,048 random features (default)": MixtureUcb(**known),
        "greedy": MixtureGreedy(**thrice),
        "greedy, 5 % uniform": MixtureGreedy(**thrice, exploration_floor=0.05),
        "greedy, released eg steps": ShortSteps(**thrice),
        "one-arm ucb": OneArmUcb(**exact),
        "best arm alone": fixed(np.eye(4)[int(np.argmin(alone))]),
        "random": fixed([0.25] * 4),
        "best mixture": fixed(world.best),
    }
    contenders = _contenders(policies, world)
    contenders["best arm alone"] = replace(contenders["best arm alone"], at_most=1)
    return contenders


def _plane_study(name: str, title: str, world: MixtureWorld, golden: Sequence[tuple[str, float, float, float, float]]) -> Study:
    claims = [Claim(label, EXCESS, Band(mean, error, 10)) for label, mean, error, _, _ in golden]
    claims += [Claim(label, DISTANCE, Band(mean, error, 10)) for label, _, _, mean, error in golden]
    claims.append(Claim("ogd, practical", DISTANCE, AtMost(0.15)))
    return Study(name=name, title=title, contenders=_plane(world), claims=claims, measures=(EXCESS, DISTANCE), seeds=10, quick=1)


RKE = (
    ("cab, theory", 0.006801870758958345, 0.00038445809529068535, 0.1630269418554735, 0.004299355759940384),
    ("cab, released constants", 0.0013909491385968558, 0.00024417244179853674, 0.10659780163746371, 0.006200899171832479),
    ("ogd, theory", 0.004349365436153277, 0.00010703405810775658, 0.1344978016374637, 0.001592238834579226),
    ("ogd, released constants", 0.0004250920214588727, 3.230684986672782e-05, 0.0834440382160124, 0.0033666671830732396),
    ("greedy", 0.0015309065849948705, 0.00032367830259112066, 0.23817290396495894, 0.045626019283135366),
    ("greedy, 5 % uniform", 0.0008922538596944057, 0.00017709204664841875, 0.11679976702148695, 0.019898652989755742),
    ("greedy, released eg steps", 0.047038128427954976, 0.008024352384885374, 0.4513301003762054, 0.032113885865280765),
    ("one-arm ucb", 0.211353290103508, 0.004652036716448953, 1.0551745479021988, 0.013161771241828433),
    ("best arm alone", 0.24091762328246796, 0.0, 1.1302745479021987, 0.0),
    ("random", 0.044890407315284896, 0.0017408933616702932, 0.43159426920505795, 0.009770079039825857),
    ("best mixture", 0.00022138146670800662, 7.137700934924769e-05, 0.029896841479268084, 0.005018505940275209),
)
"""Golden I4 for RKE: contender, loss above the best and its standard error, |n/T - best| and its standard error; 10 seeds."""

KID = (
    ("cab, theory", 0.04303954594803456, 0.0003141987187997119, 0.5980225376917434, 0.004094033599167341),
    ("cab, released constants", 0.005827537374086417, 0.0004638725268577142, 0.11967028392256904, 0.009306775829391918),
    ("ogd, theory", 0.043014068828355935, 0.0002733107592261298, 0.5994225376917434, 0.003257299494980454),
    ("ogd, released constants", 0.005389478532933556, 0.00037010034601383027, 0.10083136436216364, 0.007339650628102108),
    ("greedy", 0.022209515511588902, 0.014368105673841938, 0.2860700955162919, 0.166841420827785),
    ("greedy, 5 % uniform", 0.0038577158766421706, 0.0008338453351620194, 0.07048127015902508, 0.010046980961190338),
    ("greedy, released eg steps", 0.08948214886359092, 0.017760745563434023, 0.8218791105929892, 0.0501274209989288),
    ("one-arm ucb", 0.10782241837487845, 0.0002588117982925171, 0.6975774623082567, 0.00040688518719111954),
    ("best arm alone", 0.10946362131177238, 0.0, 0.7084774623082566, 0.0),
    ("random", 0.06153276987492906, 0.0008342064829755867, 0.7826225376917433, 0.0068983895060932676),
    ("best mixture", 0.00020950462883074228, 7.916288541757946e-05, 0.023267747543979034, 0.004829179186776818),
)
"""The same for KID."""


# -- I5 to I7 --------------------------------------------------------------------------------------------------------------


def _frechet() -> Study:
    world = i5()
    policies: dict[str, Policy] = {
        "greedy": MixtureGreedy(**world.hyperparameters, output_dim=3, initial_pulls=5, refresh=5),
        "greedy, every outcome": MixtureGreedy(**world.hyperparameters, output_dim=3, initial_pulls=5),
        "random": fixed([0.25] * 4),
        "best mixture": fixed(world.best),
    }
    golden = {
        "greedy": (0.28341851523813943, 0.005766012297256119, 0.06743272589728151, 0.013228632007263848),
        "random": (2.8470253158012317, 0.06589496108594572, 0.4666274575706474, 0.006984606089266749),
        "best mixture": (0.27152939476882776, 0.001118967384237209, 0.03636195441040913, 0.006794812485256816),
    }
    claims = [Claim(label, FID, Band(mean, error, 8)) for label, (mean, error, _, _) in golden.items()]
    claims += [Claim(label, DISTANCE, Band(mean, error, 8)) for label, (_, _, mean, error) in golden.items()]
    title = "Frechet distance of mixtures of four Gaussians in R^3, best .2661; 600 rounds, re-optimised every 5"
    return Study(
        name="I5",
        title=title,
        contenders=_contenders(policies, world),
        claims=claims,
        measures=(FID, DISTANCE),
        seeds=8,
        quick=4,
    )


def _modes() -> Study:
    world = i6()
    known: dict[str, Any] = {**world.hyperparameters, "output_dim": 8, "initial_pulls": 10}
    policies: dict[str, Policy] = {
        "greedy": MixtureGreedy(**known),
        "greedy, released steps": ReleasedVendi(**known),
        "greedy, released steps without decay": ReleasedVendi(**known, decay=False),
        "random": fixed([0.5, 0.5]),
    }
    golden = {
        "greedy": (0.2519, 0.0028638552104927853, 7.998348896293197, 0.0005674846023960688),
        "greedy, released steps": (0.28874999999999995, 0.013382098324087873, 7.938690513920856, 0.029397951301554103),
        "greedy, released steps without decay": (0.2573, 0.008586795418289385, 7.984821690195804, 0.003362657386872446),
        "random": (0.5009, 0.001426534261768708, 6.921169758383051, 0.010945077672135334),
    }
    claims = [Claim(label, SHARE, Band(mean, error, 5)) for label, (mean, error, _, _) in golden.items()]
    claims += [Claim(label, VENDI, Band(mean, error, 5)) for label, (_, _, mean, error) in golden.items()]
    return Study(
        name="I6",
        title="Vendi score of two arms with 2 and 6 modes, best 8 at shares .25, .75; 4,000 rounds of 2",
        contenders=_contenders(policies, world),
        claims=claims,
        measures=(SHARE, VENDI),
        seeds=5,
        quick=1,
        note="The golden figures do not say how many seeds they had; 5 are assumed for their standard errors.",
    )


def _vertex() -> Study:
    world = i7()
    known: dict[str, Any] = {**world.hyperparameters, "output_dim": 2, "random_features": None, "initial_pulls": 1}
    policies: dict[str, Policy] = {
        "greedy": MixtureGreedy(**known),
        "greedy, 5 % uniform": MixtureGreedy(**known, exploration_floor=0.05),
        "cab, released constants": MixtureUcb(**known, method="cab", **RELEASED),
    }
    golden = {
        "greedy": (0.095, 0.8025399999999999, 0.004513950578709261),
        "greedy, 5 % uniform": (0.005, 0.83583, 0.001861136400560596),
        "cab, released constants": (0.0, 0.6302800000000001, 0.005336929531259343),
    }
    claims = [Claim(label, STARVED, Proportion(share, 200)) for label, (share, _, _) in golden.items()]
    claims += [Claim(label, SHARE, Band(mean, None, 200)) for label, (_, mean, _) in golden.items()]
    claims += [Claim(label, EXCESS, Band(mean, None, 200)) for label, (_, _, mean) in golden.items()]
    return Study(
        name="I7",
        title="Kernel distance to a target that arm 0 is: the best mixture is a vertex; 1 initial pull, 500 rounds",
        contenders=_contenders(policies, world),
        claims=claims,
        measures=(STARVED, SHARE, EXCESS),
        seeds=100,
        quick=5,
        note="Greedy has the worst tail, CAB the worst mean; a small floor is better than both.",
    )


def studies() -> list[Study]:
    """The four worlds; I4 with two objectives."""
    return [
        _plane_study("I4 rke", "Diversity (RKE) of mixtures of four Gaussians in the plane; 2,000 rounds", i4_rke(), RKE),
        _plane_study(
            "I4 kid", "Kernel distance of the same four to a Gaussian that none of them is; 2,000 rounds", i4_kid(), KID
        ),
        _frechet(),
        _modes(),
        _vertex(),
    ]
