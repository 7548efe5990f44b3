"""The tables of a run: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench import pages as tables
from bench.experiments.monte_carlo.studies import Check, Runs, Study

COLOURS = {"ok": "green", "OUT": "bold red", "–": "dim"}


def most_seeds(runs: Runs) -> int:
    """Seeds of the contender that played most."""
    return max((len(played) for played in runs.values()), default=0)


def counted(checks: Sequence[Check]) -> tuple[int, int]:
    """How many checks are ok, and how many were made."""
    made = [check.ok for check in checks if check.ok is not None]
    return sum(made), len(made)


def show(
    studies: Sequence[Study], checks: Mapping[str, Sequence[Check]], runs: Mapping[str, Runs], *, console: Console
) -> list[Check]:
    """Print one table per study, then those that are OUT; answer these."""
    for study in studies:
        ok, made = counted(checks[study.name])
        heading = f"{study.name}: {study.title}; up to {most_seeds(runs[study.name])} seeds; {ok} of {made} ok"
        table = Table(title=heading, title_justify="left", caption=study.note or None, caption_justify="left")
        for column in ("contender", "measure", "ours", "expected", ""):
            table.add_column(column)
        for check in checks[study.name]:
            colour = COLOURS[check.verdict]
            table.add_row(check.contender, check.measure, _ours(check), check.expected, f"[{colour}]{check.verdict}[/]")
        console.print(table)
    everything = [check for study in studies for check in checks[study.name]]
    out = [check for check in everything if check.ok is False]
    ok, made = counted(everything)
    console.print(f"{ok} of {made} checks ok" + ("" if not out else f"; [bold red]{len(out)} OUT[/]:"))
    for check in out:
        console.print(f"  {check.study}, {check.contender}, {check.measure}: {check.ours}, expected {check.expected}")
    return out


def _ours(check: Check) -> str:
    seeds = f"; all seeds {check.over_seeds}" if check.over_seeds else ""
    return check.ours + seeds + (f"; {check.beside}" if check.beside else "")


def markdown(
    studies: Sequence[Study], checks: Mapping[str, Sequence[Check]], runs: Mapping[str, Runs], about: Mapping[str, str]
) -> str:
    """A summary, what is OUT, and one table per study."""
    everything = [check for study in studies for check in checks[study.name]]
    ok, made = counted(everything)
    out = [check for check in everything if check.ok is False]
    head = f"`{about['command']}`, {about['date']}, {about['versions']}, float64 on a CPU. **{ok} of {made} checks ok"
    rows = []
    for study in studies:
        good, all_made = counted(checks[study.name])
        link = f"[{study.name}](#{_anchor(study)})"
        rows.append([link, study.title, str(most_seeds(runs[study.name])), str(good), str(all_made - good)])
    parts = [f"{head}{f', {len(out)} OUT' if out else ''}.**"]
    parts += [tables.markdown(["world", "what is played", "seeds", "ok", "OUT"], rows)]
    if out:
        parts += ["OUT:", "\n".join(f"- {c.study}, {c.contender}, {c.measure}: {c.ours}, expected {c.expected}" for c in out)]
    parts += ["## The worlds, one by one"]
    for study in studies:
        parts += [f"### {_heading(study)}", f"{study.title}. {study.note}".strip()]
        rows = [[c.contender, c.measure, _ours(c), c.expected, _loud(c.verdict)] for c in checks[study.name]]
        parts += [tables.markdown(["contender", "measure", "ours", "expected", ""], rows)]
    return "\n\n".join(parts) + "\n"


def _loud(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "OUT" else verdict


def _heading(study: Study) -> str:
    return f"World {study.name}"


def _anchor(study: Study) -> str:
    return _heading(study).lower().replace(" ", "-")
