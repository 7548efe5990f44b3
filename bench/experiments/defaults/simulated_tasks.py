"""Which defaults should the policies other than PAK-UCB have? Settings against a base, over worlds whose answers are known.

    python -m bench.experiments.defaults.simulated_tasks  everything that out/defaults lacks; about half an hour of one core
    python -m bench.experiments.defaults.simulated_tasks --only promptwise,fd-ucb
    python -m bench.experiments.defaults.simulated_tasks --write   no runs: the tables of docs/defaults.md from what is kept

Runs are kept as they come, in worlds.json; a call goes on where the last one ended. `bench.experiments.defaults.tables` does
PAK-UCB.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.experiments.defaults.prompts import dak_ucb, promptwise
from bench.experiments.defaults.samples import fd_ucb, is_ucb, mixture_greedy, mixture_ucb
from bench.experiments.defaults.sweeps import Results, Sweep, table
from bench.pages import write

SWEEPS: dict[str, Callable[[], Sweep]] = {
    "dak-ucb": dak_ucb,
    "promptwise": promptwise,
    "mixture-ucb": mixture_ucb,
    "mixture-greedy": mixture_greedy,
    "fd-ucb": fd_ucb,
    "is-ucb": is_ucb,
}


def fill(sweep: Sweep, results: Results, *, seeds: int, keep: Callable[[], None], progress: Progress) -> None:
    """Play what is missing. seeds: at most so many in each place."""
    jobs = [(place, changed) for changed in sweep.settings() for place in sweep.places if not place.leaves_out(changed)]
    task = progress.add_task(sweep.name, total=sum(min(place.seeds, seeds) for place, _ in jobs))
    for place, changed in jobs:
        cell = results.setdefault(sweep.address(place), {}).setdefault(sweep.key(changed), {})
        for seed in range(min(place.seeds, seeds)):
            if seed >= len(next(iter(cell.values()), [])):
                for name, value in place.play({**sweep.base, **changed}, seed).items():
                    cell.setdefault(name, []).append(value)
            progress.advance(task)
        keep()


def main() -> None:
    """Play what is missing, then show or write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.defaults.simulated_tasks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", default=",".join(SWEEPS), help="policies, separated by commas (default: all)")
    parser.add_argument("--seeds", type=int, default=1000, help="at most so many seeds per cell")
    parser.add_argument("--out", type=Path, default=Path("out/defaults"))
    parser.add_argument("--write", action="store_true", help="play nothing; write what is kept into docs/defaults.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in chosen.only.split(",") if name]
    if unknown := [name for name in names if name not in SWEEPS]:
        parser.error(f"no sweep {unknown[0]!r}; there are {', '.join(SWEEPS)}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "worlds.json"
    results: Results = json.loads(path.read_text()) if path.is_file() else {}
    sweeps = {name: SWEEPS[name]() for name in names}

    def keep() -> None:
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(results, indent=1))
        os.replace(beside, path)

    if not chosen.write:
        columns = (
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for sweep in sweeps.values():
                fill(sweep, results, seeds=chosen.seeds, keep=keep, progress=progress)
    tables = {name: table(sweep, results) for name, sweep in sweeps.items()}
    if chosen.write:
        write({f"measured {name}": text for name, text in tables.items()})
    else:
        for name, text in tables.items():
            print(f"{name}\n{text}\n")


if __name__ == "__main__":
    main()
