"""Pictures of the policies that look at what came back alone: fd-ucb, is-ucb, mixture-ucb, mixture-greedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bandits import state as states
from bandits.policies.fd_ucb import FdUcb
from bandits.types import Observation
from bench.experiments.monte_carlo.mixtures import shares_over_time
from bench.experiments.monte_carlo.pictures import Everything, Floats, bands, line, panels, picks_of, so_far
from bench.experiments.monte_carlo.studies import Runs
from service.cli.plotting import BLUE, BROWN, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, End, name_ends, plain
from tools.simulated_tasks.fd_is import SampleWorld, i2, i3, i8
from tools.simulated_tasks.mixture import i4_rke, i5

DASHED = (0, (6, 4))


# -- fd-ucb and is-ucb -----------------------------------------------------------------------------------------------------


def _optimal_so_far(axes: Any, study: Runs, shown: Mapping[str, tuple[str, str, Any]], world: SampleWorld) -> None:
    """Share of optimal picks; contenders that end well in some seeds and badly in others are drawn seed by seed."""
    ends, step = [], world.rounds // 200
    for label, (name, color, style) in shown.items():
        rows = so_far(np.asarray(world.regret)[picks_of(study[label])] == 0.0)
        x, single = np.arange(1, world.rounds + 1), bool(rows[:, -1].std() > 0.2)
        name = f"{name},\neach seed" if single else name  # noqa: PLW2901
        ends.append(line(axes, x[step::step], rows[:, step::step], name, color, style=style, single=single))
    axes.axhline(1 / 3, color=GREY, linewidth=1.0, linestyle=":", zorder=1)
    axes.set(xlabel="round", ylabel="share of optimal picks so far", ylim=(0, 1.01), xlim=(0, world.rounds))
    name_ends(axes, [*ends, End(1 / 3, "random", GREY)])


def fd_ucb(path: Path, runs: Everything) -> None:
    """Optimal picks so far where greedy fails, and why it fails."""
    shown = {
        "fd-ucb": ("fd-ucb", BLUE, "-"),
        "radius of unit variance": ("radius blind\nto samples", SKY, "-"),
        "epsilon-greedy, .05": ("epsilon-\ngreedy, .05", YELLOW, "-"),
        "greedy": ("greedy", BROWN, "-"),
    }
    heading = "fd-ucb does not fall for a model that has collapsed"
    with panels(path, heading, bands(len(runs["I2"]["fd-ucb"]))) as (first, second):
        _optimal_so_far(first, runs["I2"], shown, i2())
        first.set_title("a perfect, a collapsed and a shifted arm in 32 dimensions")
        _estimates(second)


def _estimates(axes: Any) -> None:
    """Each arm of I2 by itself: what is estimated after n samples, and what it may be at best."""
    world, policy = i2(), FdUcb(output_dim=32)
    counts = np.unique(np.geomspace(1, 200, 24).astype(int)) * 5
    names = ("perfect", "collapsed", "shifted")
    assert world.reference is not None
    ends = []
    for arm, (name, color) in enumerate(zip(names, (GREEN, ORANGE, PINK), strict=True)):
        curves = np.array([_learned(policy, world, arm, counts, seed=seed) for seed in range(8)])
        ends.append(line(axes, counts, curves[:, :, 0], name, color))
        ends.append(line(axes, counts, curves[:, :, 1], f"{name}, at best", color, style=":"))
        axes.axhline((0.0, 8.0, 2.25)[arm], color=color, linewidth=0.9, linestyle=DASHED, alpha=0.8)
    axes.set(xscale="log", xlabel="samples of the arm", ylabel="squared Frechet distance", xlim=(5, 1000), ylim=(-90, 50))
    plain(axes.xaxis, (5, 10, 50, 100, 500, 1000))
    axes.text(
        26, -86, "solid: estimate      dashed: truth\ndotted: estimate - radius; the lowest is played", va="bottom", fontsize=8.8
    )
    axes.set_title("few samples overestimate, the most diverse arm most")
    name_ends(axes, ends)


def _learned(policy: FdUcb, world: SampleWorld, arm: int, counts: npt.NDArray[Any], *, seed: int) -> list[tuple[float, float]]:
    """(estimate, index) of one arm after each of these numbers of samples."""
    rng, state = np.random.default_rng(seed), states.start(policy, arms=1)
    state, curve = states.fold(policy, state, Observation(moments=world.reference)), []
    for n in counts:
        samples = torch.from_numpy(world.samplers[arm](rng, int(n) - state.arms[0].count))
        state = states.fold(policy, state, Observation(arm=0, output=samples))
        told = policy.report(state)["arms"][0]
        curve.append((told["estimate"], told["index"]))
    return curve


def is_ucb(path: Path, runs: Everything) -> None:
    """Optimal picks so far with few and with many classes."""
    shown = {
        "is-ucb, bonus kl": ("is-ucb, bonus\nkl", GREEN, "-"),
        "is-ucb, bonus released": ("is-ucb, bonus\nreleased", BLUE, "-"),
        "greedy": ("greedy", BROWN, "-"),
        "radii of largest variance": ("radii blind\nto samples", SKY, "-"),
        "released, marginals overwritten": ("authors' code,\nwith its defect", ORANGE, "--"),
    }
    heading = "is-ucb finds the model that is sharp and varied; with many classes it takes the kl bonus"
    count = len(runs["I3"]["greedy"]), len(runs["I8"]["greedy"])
    note = f"lines: mean of {count[0]} (left) and {count[1]} seeds (right); bands: ±1 standard deviation"
    with panels(path, heading, note) as axes:
        _optimal_so_far(axes[0], runs["I3"], shown, i3())
        axes[0].set_title("10 classes: scores 5.8, 4.6, 1.7")
        _optimal_so_far(axes[1], runs["I8"], shown, i8())
        axes[1].set_title("1,000 classes: scores 68, 60, 59")


# -- mixtures --------------------------------------------------------------------------------------------------------------


def _losses(loss: Callable[[Floats], float], arms: int, picks: npt.NDArray[np.uint8], steps: npt.NDArray[Any]) -> Floats:
    """(n,) the true loss of the samples gathered after these steps."""
    over_time = shares_over_time(picks, arms)
    return np.array([loss(over_time[step - 1]) for step in steps])


def mixture_ucb(path: Path, runs: Everything) -> None:
    """How far the gathered samples are from the best mixture, and the shares of the arms on the way there."""
    shown = {
        "best arm alone": ("best arm alone", BROWN, "--"),
        "one-arm ucb": ("one-arm ucb", PINK, "-"),
        "random": ("random", GREY, "-"),
        "cab, theory": ("cab, theory", YELLOW, "-"),
        "ogd, theory": ("ogd, theory", ORANGE, "-"),
        "cab, practical": ("cab, practical", GREEN, "-"),
        "ogd, practical": ("ogd, practical\n(default)", BLUE, "-"),
        "best mixture": ("best mixture,\ndrawn", "black", ":"),
    }
    world, study, arms = i4_rke(), runs["I4 rke"], 4
    steps = np.unique(np.geomspace(20, 2000, 45).astype(int))
    heading = "mixture-ucb gathers samples more diverse than those of any single model"
    with panels(path, heading, bands(len(study["random"]))) as (first, second):
        ends = []
        for label, (name, color, style) in shown.items():
            rows = np.stack([_losses(world.loss, arms, picks, steps) for picks in picks_of(study[label])])
            ends.append(line(first, steps, rows - world.loss(world.best), name, color, style=style, log=True))
        first.set(xscale="log", yscale="log", xlabel="round", ylabel="1 / RKE of the samples so far, above the best")
        first.set(xlim=(20, 2000), ylim=(1e-4, 0.5))
        plain(first.xaxis, (20, 50, 100, 200, 500, 1000, 2000))
        plain(first.yaxis, (0.0001, 0.001, 0.01, 0.1))
        first.set_title("four arms in the plane: how far from the best mixture")
        name_ends(first, ends)
        over_time = np.stack([shares_over_time(picks, arms) for picks in picks_of(study["ogd, practical"])])
        grid = np.unique(np.geomspace(20, 2000, 160).astype(int))
        ends = []
        for arm, color in enumerate((ORANGE, GREEN, BLUE, PINK)):
            ends.append(line(second, grid, over_time[:, grid - 1, arm], f"arm {arm}", color))
            second.axhline(world.best[arm], color=color, linewidth=1.0, linestyle=DASHED, zorder=1)
        second.set(xlabel="round", ylabel="share of the samples so far", xlim=(20, 2000), ylim=(0, 0.5), xscale="log")
        plain(second.xaxis, (20, 50, 100, 200, 500, 1000, 2000))
        second.set_title("ogd, practical: shares of the arms; dashed: best mixture")
        name_ends(second, ends)


def mixture_greedy(path: Path, runs: Everything) -> None:
    """The distance of the gathered samples over the rounds; and how often greedy starves the best arm."""
    shown = {
        "random": ("random", GREY, "-"),
        "greedy": ("mixture-\ngreedy, fid", BLUE, "-"),
        "best mixture": ("best mixture,\ndrawn", "black", ":"),
    }
    world, study = i5(), runs["I5"]
    steps = np.unique(np.geomspace(20, 600, 40).astype(int))
    heading = "mixture-greedy needs no bonus where mixing pays, and a small floor where it may not"
    with panels(path, heading, f"{bands(len(study['greedy']))} (left)") as (first, second):
        ends = []
        for label, (name, color, style) in shown.items():
            rows = np.stack([_losses(world.loss, 4, picks, steps) for picks in picks_of(study[label])])
            ends.append(line(first, steps, rows, name, color, style=style, log=True))
        for level, name, color in (
            (min(world.loss(row) for row in np.eye(4)), "best arm alone", BROWN),
            (world.loss(world.best), "best mixture", GREEN),
        ):
            first.axhline(level, color=color, linestyle=DASHED, linewidth=1.1)
            ends.append(End(level, name, color))
        first.set(xscale="log", yscale="log", xlabel="round", ylabel="squared Frechet distance of the samples so far")
        first.set(xlim=(20, 600), ylim=(0.2, 6))
        plain(first.xaxis, (20, 50, 100, 200, 600))
        plain(first.yaxis, (0.2, 0.5, 1, 2, 5))
        first.set_title("four arms around a reference in three dimensions")
        name_ends(first, ends)
        _starved(second, runs["I7"])


def _starved(axes: Any, study: Runs) -> None:
    """The share of the best arm in every run, sorted: runs that starve it stand at the left."""
    shown = {
        "greedy": ("greedy", BLUE),
        "greedy, 5 % uniform": ("greedy,\n5 % uniform", GREEN),
        "cab, released constants": ("mixture-ucb,\ncab", YELLOW),
    }
    ends = []
    for label, (name, color) in shown.items():
        shares = np.sort([float(np.mean(run.series["picks"] == 0)) for run in study[label]])
        starved = float(np.mean(shares < 0.1))
        axes.plot(np.arange(1, len(shares) + 1) / len(shares), shares, color=color, linewidth=1.8)
        ends.append(End(float(shares[-1]), f"{name}:\n{starved:.1%} starved", color))
    axes.axhspan(0.0, 0.1, color=ORANGE, alpha=0.12, linewidth=0)
    axes.text(0.985, 0.05, "the best arm is starved", ha="right", va="center", fontsize=8.8, color=ORANGE)
    axes.set(xlabel="runs, sorted", ylabel="share of the best arm after 500 rounds", xlim=(0, 1), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(f"one of two arms is the target; {len(study['greedy'])} runs, 1 initial pull")
    name_ends(axes, ends)
