"""Runs of experiments, kept as they come: one JSON line each, so that a call goes on where the last one ended."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

Runs = dict[Any, Any]
"""Job -> run."""


def kept(path: Path, job: Callable[..., Any], run: Callable[..., Any]) -> Runs:
    """The runs of earlier calls. job, run: make a named tuple of its fields."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {job(**one["job"]): run(**one["run"]) for one in map(json.loads, lines)}


def fill(path: Path, runs: Runs, jobs: Iterable[Any], play: Callable[[Any], Any], *, processes: int = 2) -> None:
    """Play the jobs that have no run, in order, in processes of one thread each that let others go first.

    play: a job -> its run; named tuples both. It must be known to a process that imports its module.
    """
    missing = [job for job in dict.fromkeys(jobs) if job not in runs]
    if not missing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.nice(max(0, 5 - os.nice(0)))
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # read by the processes that start now
    spawned = multiprocessing.get_context("spawn")
    with spawned.Pool(processes, torch.set_num_threads, (1,)) as pool, path.open("a") as lines:
        for job, run in zip(missing, pool.imap(play, missing), strict=True):
            runs[job] = run
            lines.write(json.dumps({"job": job._asdict(), "run": run._asdict()}) + "\n")
            lines.flush()
