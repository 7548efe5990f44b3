"""What the series cost a fold: CPU time per event of a log, with them and without, and how large they are in a snapshot.

    .venv/bin/python -m bench.performance.series [--events 20000] [--rounds 7]

One log per policy is made in this process: a decision every 2 s, its outcome with reward and cost behind it, ten arms. Rounds
alternate between folding it with and without, each from its first entry. Printed are medians over the rounds, with the median of
the differences within a round and their quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.performance.shadows import created_of
from service.engine import events as log_events
from service.engine import ledger
from service.engine.decisions import DecisionRequest
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.engine.series import Series
from service.storage.base import Log
from service.storage.memory import MemoryStorage

POLICIES = {"greedy": 0, "auto": 0, "pak-ucb": 64}
"""Kind -> length of the prompt."""


class NoSeries(Series):
    """Counts nothing."""

    def add_decision(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def add_outcome(self, *_: Any, **__: Any) -> None:
        """Nothing."""


class Clock:
    """Two seconds later at each decision."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def log_of(kind: str, *, events: int, dim: int) -> tuple[MemoryStorage, Log]:
    """A log of so many events behind the first."""
    storage, clock, g = MemoryStorage(), Clock(), np.random.default_rng(1)
    event = created_of(kind, dim=dim)
    log, _ = await storage.create(Log("1", "b"), log_events.encode(event))
    learner = await Learner.load(storage, log, clock=clock, snapshot_every=0)
    for first in range(0, events // 2, 32):
        ids = [f"d{t}" for t in range(first, min(first + 32, events // 2))]
        prompts = [log_events.vector_bytes(g.standard_normal(dim)) if dim else b"" for _ in ids]
        asked = [learner.decisions.submit(DecisionRequest(id=one, features=x)) for one, x in zip(ids, prompts, strict=True)]
        await asyncio.gather(*asked)
        told = [learner.outcomes.submit(one, OutcomeReport(reward=float(g.random()), cost=0.5)) for one in ids]
        await asyncio.gather(*told)
        clock.now += timedelta(seconds=2 * len(ids))
    await learner.projection.background.finish()
    return storage, log


async def fold(storage: MemoryStorage, log: Log, series: type[Series]) -> tuple[float, Learner]:
    """CPU seconds of a fold from the first entry, and the learner."""
    setattr(ledger, "Series", series)  # noqa: B010 - it is no name that this module exports
    try:
        started = time.process_time()
        learner = await Learner.load(storage, log, use_snapshots=False)
        return time.process_time() - started, learner
    finally:
        setattr(ledger, "Series", Series)  # noqa: B010


async def measure(kind: str, *, events: int, rounds: int) -> list[str]:
    """A row of the table."""
    storage, log = await log_of(kind, events=events, dim=POLICIES[kind])
    spent: dict[type[Series], list[float]] = {NoSeries: [], Series: []}
    for number in range(rounds):
        for series in [*spent][:: 1 if number % 2 else -1]:
            seconds, learner = await fold(storage, log, series)
            spent[series].append(1e6 * seconds / events)
            if series is Series:
                size = len(msgspec.json.encode(learner.ledger.series.pack()))
    differences = [one - other for one, other in zip(spent[Series], spent[NoSeries], strict=True)]
    low, _, high = quantiles(differences, n=4)
    without, added = median(spent[NoSeries]), median(differences)
    return [
        kind,
        f"{without:.1f}",
        f"{median(spent[Series]):.1f}",
        f"{added:.1f} ({low:.1f} to {high:.1f})",
        f"{100 * added / without:.1f} %",
        f"{size / 1000:.0f} kB",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("policy", "us per event without", "with", "added, us (quartiles)", "added", "in a snapshot")
    for kind in POLICIES:
        table.add_row(*asyncio.run(measure(kind, events=given.events, rounds=given.rounds)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
