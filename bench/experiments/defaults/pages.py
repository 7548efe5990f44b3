"""Tables of measured defaults for docs/, each between the markers <!-- measured NAME -->."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DOCS = Path(__file__).resolve().parents[3] / "docs"
MARKED = re.compile(r"(<!-- measured ([\w -]+) -->\n)(.*?\n)?(<!-- /measured \2 -->)", flags=re.DOTALL)

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


def written(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables between their markers; those that are not given stay."""
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[4]}" if match[2] in tables else match[0], page)


def write(tables: Mapping[str, str]) -> None:
    """Bring the pages up to date that hold one of these tables."""
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text()
        after = written(before, tables)
        if after != before:
            path.write_text(after)
            print(f"wrote {path.name}")


def ranked(scores: Scores, *, heads: Mapping[str, str], fixed: Means, grouped: Means) -> str:
    """Mean reward of every setting, nearest to the best of each column first. heads: world -> its title."""
    best = {name: max(np.mean(cell[name]) for cell in scores.values()) for name in heads}
    behind = {setting: float(np.mean([best[name] - np.mean(cell[name]) for name in heads])) for setting, cell in scores.items()}
    lines = [_row("setting", *heads.values(), "behind"), _row(*["---"] * (len(heads) + 2))]
    for setting in sorted(scores, key=lambda setting: behind[setting]):
        cells = (f"{np.mean(runs):.3f} ± {np.std(runs):.3f}" for runs in (scores[setting][name] for name in heads))
        name = "prior_mean=1.0 exploration=1.0" if setting == "base" else setting
        lines.append(_row(f"`{name}`", *cells, f"{behind[setting]:.3f}"))
    lines.append(_row("best fixed arm", *(_short(fixed[name]) for name in heads), ""))
    lines.append(_row("best arm per group", *(_short(grouped[name]) for name in heads), ""))
    return "\n".join(lines)


def choosing(scores: Scores, *, heads: Mapping[str, str], rounds: Mapping[str, int], fixed: Means, grouped: Means) -> str:
    """Mean reward of a few policies; the best of each column in bold. heads: world -> its title."""
    means = {row: {name: float(np.mean(scores[key][name])) for name in heads} for row, key in CHOOSING.items()}
    best = {name: max(row[name] for row in means.values()) for name in heads}
    lines = [
        _row("", *heads.values()),
        _row(*["---"] * (len(heads) + 1)),
        _row("rounds", *(f"{rounds[name]:,}" for name in heads)),
        _row("best fixed model, known beforehand", *(_short(fixed[name]) for name in heads)),
        _row("best model per kind, known beforehand", *(_short(grouped[name]) for name in heads)),
    ]
    for row, mean in means.items():
        cells = (f"**{_short(mean[name])}**" if mean[name] == best[name] else _short(mean[name]) for name in heads)
        lines.append(_row(row, *cells))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
