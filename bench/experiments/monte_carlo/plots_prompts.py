"""Pictures of the policies that look at the prompt: pak-ucb, dak-ucb, promptwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.experiments.monte_carlo import contextual, episodes
from bench.experiments.monte_carlo.pictures import Everything, Floats, bands, line, moving, panels, picks_of
from bench.experiments.monte_carlo.studies import Run, Runs
from service.cli.plotting import BLUE, BROWN, GREEN, GREY, NAME_SIZE, ORANGE, PINK, SKY, YELLOW, name_ends

# -- pak-ucb ---------------------------------------------------------------------------------------------------------------


def pak_ucb(path: Path, runs: Everything) -> None:
    """Optimal picks on clusters of prompts; on recorded answers, how many more were right than with the best model."""
    clusters = {
        "pak-ucb, defaults": ("pak-ucb\n(defaults)", BLUE, "-"),
        "lin-ucb": ("lin-ucb", GREEN, "-"),
        "pak-ucb, exact rbf": ("pak-ucb, prior\nmean 0", SKY, "-"),
        "pak-ucb, exact rbf, released exploration": ("… with released\nexploration", ORANGE, "-"),
        "one linear regression for all arms": ("linear, all\narms at once", PINK, "-"),
        "greedy": ("greedy", BROWN, "-"),
        "random": ("random", GREY, ":"),
    }
    recorded = {
        "best model per language": ("best model\nper language", "black", "--"),
        "pak-ucb, defaults": ("pak-ucb\n(defaults)", BLUE, "-"),
        "lin-ucb": ("lin-ucb", GREEN, "-"),
        "pak-ucb, exploration 1": ("pak-ucb, prior\nmean 0", SKY, "-"),
        "greedy": ("greedy", BROWN, "-"),
        "random": ("random", GREY, ":"),
    }
    count = len(runs["G2"]["lin-ucb"]), len(runs["G6"]["lin-ucb"])
    with panels(
        path,
        "pak-ucb learns which arm each kind of prompt needs",
        f"lines: mean of {count[0]} worlds (left) and {count[1]} orders (right); bands: ±1 standard deviation",
    ) as (first, second):
        ends = []
        for label, (name, color, style) in clusters.items():
            played = runs["G2"][label]
            right = np.stack([contextual.clusters(seed).optimal(run.series["picks"]) for seed, run in enumerate(played)])
            ends.append(line(first, np.arange(1, 601)[9::3], moving(right, 100)[:, 9::3], name, color, style=style))
        first.set(xlabel="round", ylabel="share of optimal picks, last 100 rounds", ylim=(0, 1), xlim=(0, 600))
        first.set_title("three clusters of prompts, three arms")
        name_ends(first, ends)
        ends = []
        for label, (name, color, style) in recorded.items():
            rows = _answers_more(runs["G6"][label])
            ends.append(line(second, np.arange(1, 2001)[::10], rows[:, ::10], name, color, style=style))
        second.axhline(0.0, color="black", linewidth=0.8)
        second.set(xlabel="round", ylabel="answers passed more than with the best model", xlim=(0, 2000))
        second.set_title("two models' recorded answers to 328 tasks")
        name_ends(second, ends)


def _answers_more(played: Sequence[Run]) -> Floats:
    """(S, T) expected passes so far, less those of the model that is best on average."""
    rows = []
    for seed, run in enumerate(played):
        world = contextual.recorded(seed)
        rows.append(np.cumsum(world.earned(run.series["picks"]) - world.expected[:, world.best_arm]))
    return np.stack(rows)


# -- dak-ucb ---------------------------------------------------------------------------------------------------------------


def dak_ucb(path: Path, runs: Everything) -> None:
    """Share of the diverse arm over time; fidelity against diversity of what was served."""
    shown = {
        "dak-ucb, diversity weight 1": ("weight 1", BLUE),
        "dak-ucb, jkd": ("weight 1, jkd", SKY),
        "dak-ucb, mixture": ("weight 1, mixture", GREEN),
        "dak-ucb, diversity weight .2": ("weight .2", YELLOW),
        "pak-ucb (diversity weight 0)": ("weight 0\n= pak-ucb", ORANGE),
    }
    study = runs["G4"]
    heading = "dak-ucb trades a little fidelity for outputs that do not repeat themselves"
    with panels(path, heading, bands(len(study["dak-ucb, mixture"]))) as (first, second):
        ends = [
            line(first, np.arange(1, 401)[4::2], moving(picks_of(study[label]) == 2, 60)[:, 4::2], name, color)
            for label, (name, color) in shown.items()
        ]
        first.set(xlabel="round", ylabel="share of the diverse arm, last 60 rounds", ylim=(0, 1), xlim=(0, 400))
        first.set_title("two arms repeat one output, a third never does")
        name_ends(first, ends)
        alone = {f"arm {arm} alone": (f"arm {arm} alone", GREY) for arm in range(3)}
        for label, (name, color) in {**shown, **alone}.items():
            x = np.array([run.values[contextual.FIDELITY] for run in study[label]])
            y = 1.0 / np.array([run.values[contextual.REPEATS] for run in study[label]])
            _point(second, x, y, name.replace("\n", " "), color, place=_PLACES.get(label, (9, 5)))
        second.set(xlabel="mean fidelity", ylabel="joint RKE: effective number of different answers", ylim=(0, 27))
        second.margins(x=0.16)
        second.set_title("what 400 rounds served")


_PLACES = {
    "dak-ucb, jkd": (9, -13),
    "arm 0 alone": (9, 6),
    "arm 1 alone": (9, -11),
    "arm 2 alone": (9, 7),
}


def _point(axes: Any, x: Floats, y: Floats, name: str, color: str, *, place: tuple[int, int]) -> None:
    """Mean and standard deviation of the seeds, and its name at an offset in points."""
    error = {"xerr": x.std(ddof=1), "yerr": y.std(ddof=1)} if len(x) > 1 else {}
    axes.errorbar(x.mean(), y.mean(), **error, fmt="o", color=color, markersize=6.5, elinewidth=1.0, zorder=3)
    side = "right" if place[0] < 0 else "left"
    axes.annotate(name, (x.mean(), y.mean()), xytext=place, textcoords="offset points", ha=side, fontsize=8.8, color=color)


# -- promptwise ------------------------------------------------------------------------------------------------------------


def promptwise(path: Path, runs: Everything) -> None:
    """Cost against solved; which arm is asked at which call."""
    shown: dict[str, tuple[str, tuple[int, int]]] = {
        "promptwise": (BLUE, (-9, 5)),
        "promptwise, discount .4": (BLUE, (9, 6)),
        "cheap first": (ORANGE, (30, 4)),
        "greedy till success": (BROWN, (9, -13)),
        "cheapest arm, one call": (GREY, (9, -3)),
        "dearest arm, one call": (GREY, (-9, -3)),
        "knowing, horizon": ("black", (9, 6)),
    }
    study = runs["G6 episodes"]
    heading = "promptwise asks cheap models first, and decides when another call pays"
    count = len(study["promptwise; cost weight 0.05"])
    note = f"points and bars: mean of {count} seeds; whiskers: ±1 standard deviation"
    with panels(path, heading, note, widths=(1.0, 1.3)) as (first, second):
        for label, (color, place) in shown.items():
            played = study[f"{label}; cost weight 0.05"]
            cost = np.array([run.values[episodes.COST] for run in played])
            solved = np.array([run.values[episodes.SOLVED] for run in played])
            _point(first, cost, solved, _NAMES.get(label, label), color, place=place)
        first.set(xlabel="cost per prompt (prices: .75 and 1.6 per call)", ylabel="share of prompts solved")
        first.margins(x=0.1, y=0.1)
        first.set_title("two models' recorded answers; cost weight .05")
        _escalation(second, runs["G5"], ("promptwise", "promptwise, discount .4", "promptwise, horizon", "cheap first"))


_NAMES = {"knowing, horizon": "knowing every probability"}


def _escalation(axes: Any, study: Runs, labels: Sequence[str]) -> None:
    """Per policy five bars, one per call: the share of prompts that got it, by arm."""
    colors, names = (SKY, GREEN, YELLOW, ORANGE), (".75", "1.37", "5.5", "12.5")
    for group, label in enumerate(labels):
        played = study[f"{label}; cost weight 0.02"]
        shares = np.mean([episodes.escalation(run, arms=4) for run in played], axis=0)
        x, bottom = group * 6.3 + np.arange(5), np.zeros(5)
        for arm, color in enumerate(colors):
            axes.bar(x, shares[:, arm], bottom=bottom, color=color, width=0.9)
            bottom += shares[:, arm]
            if label == "cheap first":  # its bars are one arm each
                place = (x[arm] - 0.45, bottom[arm] + 0.015)
                axes.text(*place, names[arm], color=color, fontsize=NAME_SIZE, fontweight="bold")
        means = {name: float(np.mean([run.values[name] for run in played])) for name in played[0].values}
        text = f"solved {means[episodes.SOLVED]:.1%}\ncost {means[episodes.COST]:.2f}\nutility {means[episodes.UTILITY]:.3f}"
        axes.text(x[0] - 0.45, 1.36, label.replace(", ", ",\n"), va="top", fontsize=8.8, fontweight="bold")
        axes.text(x[0] - 0.45, 1.22, text, va="top", fontsize=8.8)
    axes.set(ylabel="share of prompts that got this call", ylim=(0, 1.4), xlabel="call")
    axes.set_yticks(np.arange(0, 1.01, 0.2), [f"{share:.0%}" for share in np.arange(0, 1.01, 0.2)])
    axes.set_xticks([g * 6.3 + k for g in range(len(labels)) for k in range(5)], ["1", "2", "3", "4", "5"] * len(labels))
    axes.grid(axis="x", visible=False)
    axes.set_title("four arms from cheap to dear (prices at the right); cost weight .02")
