"""What one shadow costs: CPU time per decision and per outcome of one bandit in this process, in memory, without HTTP.

    .venv/bin/python -m bench.performance.shadows [--rounds 400] [--dim 64]

Rounds alternate between a bandit without a shadow and one with, so that a busy machine slows both. Printed are medians over the
rounds, in microseconds, and how many decisions left the shadow out.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from statistics import median

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.engine import events
from service.engine.decisions import DecisionRequest
from service.engine.events import Created, NewArm, ShadowCreated
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.engine.policies import build_for
from service.storage.base import Log
from service.storage.memory import MemoryStorage

DECIDING = "pak-ucb"
SHADOWS = ("greedy", "thompson", "lin-ucb", "pak-ucb", "auto")
ARMS = 10


def created_of(kind: str, *, dim: int) -> Created:
    """The first event of a bandit with ten arms."""
    created = Created(
        at=datetime.now(UTC), bandit="b", tenant="", request={}, policy=kind, hyperparameters={}, seed=1, fingerprint="",
        arms=[NewArm(name=f"arm {k}") for k in range(ARMS)], dim=dim, prompt_embedder="vector" if dim else "", prompt_version="",
        output_dim=0, output_embedder="", output_version="", reward_source="client", default_reward=None, timeout_s=1e6,
    )  # fmt: skip
    return msgspec.structs.replace(created, fingerprint=build_for(created, kind, {}).fingerprint)


async def bandit_of(shadow: str, *, dim: int) -> Learner:
    """A bandit with ten arms, and a shadow of this kind if one is named."""
    event = created_of(DECIDING, dim=dim)
    storage = MemoryStorage()
    log, _ = await storage.create(Log("1", "b"), events.encode(event))
    learner = await Learner.load(storage, log)
    if shadow:
        policy = build_for(event, shadow, {})
        wanted = ShadowCreated(
            at=event.at, shadow="s", policy=shadow, hyperparameters={}, fingerprint=policy.fingerprint, learns_from="now"
        )
        await learner.committer.record(wanted, key="shadow/s/1")
    return learner


async def cpu_seconds(learner: Learner, work: Callable[[], Awaitable[object]]) -> float:
    """CPU time of the process for a request and for what it starts in the background."""
    started = time.process_time()
    await work()
    await learner.projection.background.finish()
    return time.process_time() - started


async def costs(shadow: str, *, rounds: int, dim: int, console: Console) -> tuple[list[float], float]:
    """Median microseconds of a decision and an outcome, without and with the shadow; and the share of decisions without it."""
    learners = [await bandit_of("", dim=dim), await bandit_of(shadow, dim=dim)]
    g = np.random.default_rng(1)
    spent: list[list[float]] = [[], [], [], []]
    for t in track(range(rounds), description=f"{DECIDING} with {shadow}", console=console, transient=True):
        features, reward = events.vector_bytes(g.standard_normal(dim)), float(g.random())
        for place, learner in enumerate(learners):
            request, report = DecisionRequest(id=f"d{t}", features=features), OutcomeReport(reward=reward)
            spent[place].append(await cpu_seconds(learner, partial(learner.decisions.submit, request)))
            spent[2 + place].append(await cpu_seconds(learner, partial(learner.outcomes.submit, f"d{t}", report)))
    return [1e6 * median(values) for values in spent], learners[1].ledger.shadows["s"].left_out / rounds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--dim", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    table = Table("shadow", "decision, us", "with it", "outcome, us", "with it", "left out")
    for shadow in SHADOWS:
        spent, left_out = asyncio.run(costs(shadow, rounds=given.rounds, dim=given.dim, console=console))
        table.add_row(shadow, *(f"{value:.0f}" for value in spent), f"{left_out:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
