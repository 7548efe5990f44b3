"""Plays studies with a progress bar, and keeps their runs in files, so that tables and pictures can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.experiments.monte_carlo.studies import Contender, Run, Runs, Study


def seeds_of(study: Study, contender: Contender, *, quick: bool, at_most: int) -> int:
    """How many seeds a contender plays; 0 where it is left out."""
    if quick and contender.slow:
        return 0
    return min(study.quick if quick else study.seeds, contender.at_most, at_most)


def play_all(
    studies: Sequence[Study], *, quick: bool, at_most: int, folder: Path, reuse: bool, quiet: bool = False
) -> dict[str, Runs]:
    """Study -> its runs. Each contender's runs are kept as soon as they are done; `reuse` takes what an earlier call kept
    instead of playing it again.
    """
    columns = TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    everything: dict[str, Runs] = {}
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        for study in studies:
            kept = load(folder, study) if reuse else {}
            runs: dict[str, list[Run]] = {}
            jobs = {
                label: (contender, seeds_of(study, contender, quick=quick, at_most=at_most))
                for label, contender in study.contenders.items()
            }
            ticks = sum(contender.rounds * seeds for contender, seeds in jobs.values())
            task = progress.add_task(study.name, total=ticks)
            done = 0
            for label, (contender, seeds) in jobs.items():
                runs[label] = list(kept.get(label, ()))[:seeds]
                for seed in range(len(runs[label]), seeds):
                    runs[label].append(contender.play(seed, partial(_tick, progress, task)))
                done += contender.rounds * seeds
                progress.update(task, completed=done)  # some contenders have no rounds to tell of
                save(folder, study, {**kept, **runs})
            everything[study.name] = runs
    return everything


def _tick(progress: Progress, task: TaskID, round_number: int) -> None:
    progress.advance(task)


def _path(folder: Path, study: Study) -> Path:
    return folder / f"{study.name.replace(' ', '-')}.npz"


def save(folder: Path, study: Study, runs: Runs) -> None:
    """One file per study: the numbers of all runs as JSON, and their series."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {label: [dict(run.values) for run in played] for label, played in runs.items()}
    arrays = {
        f"{label}|{seed}|{name}": series
        for label, played in runs.items()
        for seed, run in enumerate(played)
        for name, series in run.series.items()
    }
    np.savez_compressed(_path(folder, study), **arrays, values=np.array(json.dumps(values)))  # type: ignore[arg-type]


def load(folder: Path, study: Study) -> Mapping[str, Sequence[Run]]:
    """What `save` kept of this study; nothing where it never ran."""
    path = _path(folder, study)
    if not path.is_file():
        return {}
    with np.load(path) as kept:
        values = json.loads(str(kept["values"]))
        series: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for key in kept.files:
            if key != "values":
                label, seed, name = key.split("|")
                series.setdefault((label, int(seed)), {})[name] = kept[key]
    return {
        label: [Run(values=numbers, series=series.get((label, seed), {})) for seed, numbers in enumerate(played)]
        for label, played in values.items()
    }
