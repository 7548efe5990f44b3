"""One replay from file to report: read the table, find a server, play, print, save."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli.replay.contenders import contenders, offered
from service.cli.replay.errors import ReplayError
from service.cli.replay.layouts import Columns, Layout
from service.cli.replay.player import Api, Contender, Each, Plan, Run, bandit_name, connect, play_all
from service.cli.replay.plot import save_plot
from service.cli.replay.report import Report, render, summarise
from service.cli.replay.server import private_server
from service.cli.replay.tables import Table, read_table

RESULTS, PLOT = "results.json", "plot.png"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, understood. See `nextarm replay --help`."""

    file: Path
    columns: Columns
    out: Path
    policies: Sequence[str]
    settings: Sequence[str]
    objects: Sequence[str]
    reward: str
    rounds: int | None
    seeds: tuple[int, ...]
    order: Literal["shuffle", "file"]
    bandit_seed: int | None
    models: Sequence[str]
    prompt_embedder: str
    price_from: Literal["mean", "none"]
    layout: Layout
    missing: Literal["refuse", "drop"]
    url: str
    api_key: str
    keep: bool
    force: bool
    quiet: bool


def run(options: Options) -> Report:
    """Play, and show what came of it; the report is also returned."""
    if not options.force:
        check_free(options.out)
    table = read_table(
        options.file,
        reward=options.reward,
        columns=options.columns,
        layout=options.layout,
        models=options.models,
        missing=options.missing,
    )
    plan = _plan(table, options)
    with serving(options.url, api_key=options.api_key) as api:
        policies = options.policies or (() if options.objects else ("pak-ucb",))
        players = contenders(policies, settings=options.settings, objects=options.objects, known=offered(api))
        runs = play_with_progress(api, table, players, plan, quiet=options.quiet)
    notes = [f"reward: {options.reward}"] if options.reward != "score" else []
    notes += [f"set for all that have it: {', '.join(options.settings)}"] if options.settings else []
    return finish(table, players, runs, plan, out=options.out, notes=notes)


def check_free(out: Path) -> None:
    """`ReplayError` where results of an earlier replay would be overwritten."""
    for path in (out / RESULTS, out / PLOT):
        if path.exists() or path.is_symlink():
            raise ReplayError(f"{path} exists; name another folder by --out, or give --force to replace what is in it")


@contextmanager
def serving(url: str, *, api_key: str = "") -> Iterator[Api]:
    """The server at a URL, or a private one that is gone afterwards."""
    if url:
        with connect(url, private=False, api_key=api_key) as api:
            yield api
    else:
        with private_server() as own, connect(own, private=True) as api:
            yield api


def _plan(table: Table, options: Options) -> Plan:
    mean = options.price_from == "mean"
    return Plan(
        rounds=options.rounds or len(table.prompts),
        seeds=options.seeds,
        embedder=options.prompt_embedder or ("vector" if table.vectors.size else "minilm"),
        prices=tuple(table.costs.mean(axis=0).tolist()) if mean else (0.0,) * len(table.arms),
        shuffle=options.order == "shuffle",
        bandit_seed=options.bandit_seed,
        prefix=f"replay-{secrets.token_hex(4)}" if options.url else "replay",
        keep=options.keep,
    )


def play_with_progress(api: Api, table: Table, players: Sequence[Contender], plan: Plan, *, quiet: bool) -> list[Run]:
    """`play_all` under a progress bar (on stderr), which also shows the mean reward of the run so far."""
    with _bar(quiet=quiet) as bar:
        task = bar.add_task("starting", total=plan.rounds * len(plan.seeds) * len(players), mean="")
        current: dict[str, list[float]] = {}
        return play_all(api, table, players, plan, each=_telling(bar, task, current))


def _telling(bar: Progress, task: TaskID, current: dict[str, list[float]]) -> Each:
    """After each round: move the bar, and show the mean reward of this run."""

    def each(label: str, reward: float) -> None:
        sums = current.setdefault(label, [0.0, 0.0])
        sums[0] += reward
        sums[1] += 1.0
        bar.update(task, advance=1, description=label, mean=f"mean reward {sums[0] / sums[1]:.3f}")

    return each


def _bar(*, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[mean]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
        refresh_per_second=4,
    )


def finish(
    table: Table, players: Sequence[Contender], runs: Sequence[Run], plan: Plan, *, out: Path, notes: Sequence[str]
) -> Report:
    """Print the report, and save plot.png and results.json into a folder."""
    report = summarise(table, runs, notes=notes)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in render(report):
        console.print(part)
    results = {
        **report.as_json(),
        "order": "shuffle" if plan.shuffle else "file",
        "bandit_seed": plan.bandit_seed,
        "embedder": plan.embedder if any(player.contextual for player in players) else None,
        "prices": dict(zip(table.arms, plan.prices, strict=True)),
        "policies": {player.label: dict(player.policy) for player in players},
        "rounds_per_second": len(runs) * plan.rounds / max(sum(played.seconds for played in runs), 1e-9),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        save_plot(out / PLOT, report, runs)
    except OSError as error:
        raise ReplayError(f"cannot write into {out}: {error.strerror or error}") from None
    click.echo(f"plot: {out / PLOT}\nresults: {out / RESULTS}")
    if plan.keep:
        click.echo("\n".join(f"kept: {bandit_name(plan.prefix, played.label, played.seed)}" for played in runs))
    return report
