"""Tables of measured defaults for docs/defaults.md and docs/choosing.md."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.pages import markdown

Scores = Mapping[str, Mapping[str, list[float]]]
"""Setting -> world -> mean reward per seed."""
Means = Mapping[str, float]
"""World -> mean reward of who knows something beforehand."""

CHOOSING = {
    "`random`": "random",
    "`greedy`": "greedy",
    "`epsilon-greedy`": "epsilon-greedy",
    "`lin-ucb`, `exploration` 1": "lin-ucb",
    "`pak-ucb`, as it comes (`exploration` 0.1)": "prior_mean=1.0 exploration=0.1",
    "`pak-ucb`, `exploration` 1": "base",
}
"""The rows of the table in choosing.md, and whose runs they show."""


def ranked(scores: Scores, *, heads: Mapping[str, str], fixed: Means, grouped: Means) -> str:
    """Mean reward of every setting, nearest to the best of each column first. heads: world -> its title."""
    best = {name: max(np.mean(cell[name]) for cell in scores.values()) for name in heads}
    behind = {setting: float(np.mean([best[name] - np.mean(cell[name]) for name in heads])) for setting, cell in scores.items()}
    rows = []
    for setting in sorted(scores, key=lambda setting: behind[setting]):
        cells = (f"{np.mean(runs):.3f} ± {np.std(runs):.3f}" for runs in (scores[setting][name] for name in heads))
        name = "prior_mean=1.0 exploration=1.0" if setting == "base" else setting
        rows.append([f"`{name}`", *cells, f"{behind[setting]:.3f}"])
    rows.append(["best fixed arm", *(_short(fixed[name]) for name in heads), ""])
    rows.append(["best arm per group", *(_short(grouped[name]) for name in heads), ""])
    return markdown(["setting", *heads.values(), "behind"], rows)


def choosing(scores: Scores, *, heads: Mapping[str, str], rounds: Mapping[str, int], fixed: Means, grouped: Means) -> str:
    """Mean reward of a few policies; the best of each column in bold. heads: world -> its title."""
    means = {row: {name: float(np.mean(scores[key][name])) for name in heads} for row, key in CHOOSING.items()}
    best = {name: max(row[name] for row in means.values()) for name in heads}
    rows = [
        ["rounds", *(f"{rounds[name]:,}" for name in heads)],
        ["best fixed model, known beforehand", *(_short(fixed[name]) for name in heads)],
        ["best model per kind, known beforehand", *(_short(grouped[name]) for name in heads)],
    ]
    for row, mean in means.items():
        rows.append([row, *(f"**{_short(mean[name])}**" if mean[name] == best[name] else _short(mean[name]) for name in heads)])
    return markdown(["", *heads.values()], rows)


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
