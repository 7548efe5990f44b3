"""Speed and memory of an evaluation of fixed policies: a synthetic log, read in a process of its own.

python -m bench.performance.evaluation --events 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from service.engine import events
from service.engine.evaluation_process import Plan, evaluate_in_process

START = datetime(2026, 1, 1, tzinfo=UTC)


def log(events_wanted: int, *, arms: int, dim: int, seed: int = 1) -> Iterator[bytes]:
    """Lines of an export: decisions of a policy that plays the arms with random probabilities, each followed by its outcome."""
    g = np.random.default_rng(seed)
    names = [events.NewArm(name=f"model-{arm}", price=0.01) for arm in range(arms)]
    created = events.Created(
        at=START, bandit="synthetic", tenant="", request={}, policy="lin-ucb" if dim else "epsilon-greedy", hyperparameters={},
        arms=names, seed=1, fingerprint="", dim=dim, prompt_embedder="vector" if dim else "", prompt_version="", output_dim=0,
        output_embedder="", output_version="", reward_source="client", default_reward=None, timeout_s=3600.0,
    )  # fmt: skip
    yield events.line(1, events.encode(created))
    offset, allowed = 1, list(range(arms))
    while offset < events_wanted:
        weights = g.dirichlet(np.ones(arms)) * 0.9 + 0.1 / arms
        arm = int(g.choice(arms, p=weights))
        estimates = g.random(arms).tolist()
        at, name = START + timedelta(seconds=offset), f"request-{offset}"
        decided = events.Decided(
            at=at, id=name, arm=arm, propensity=float(weights[arm]), weights=weights.tolist(),
            scores={"estimate": estimates, "bonus": g.random(arms).tolist()}, allowed=allowed, price=0.01,
            features=events.vector_bytes(g.standard_normal(dim)), episode=name, attempt=1, body="0" * 32,
        )  # fmt: skip
        reward = float(g.random() < estimates[arm])
        observed = events.Observed(
            at=at, id=name, arm=arm, reward=reward, cost=0.01, propensity=float(weights[arm]), body="0" * 32
        )
        for event in (decided, observed):
            offset += 1
            yield events.line(offset, events.encode(event))


def main() -> None:
    """Print events per CPU second, and the memory of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.ndjson"
        with path.open("wb") as out:
            out.writelines(log(options.events, arms=options.arms, dim=options.dim))
        plan = Plan(source=str(path), reward_range=(0.0, 1.0))
        results = asyncio.run(evaluate_in_process(plan))
        used, size = resource.getrusage(resource.RUSAGE_CHILDREN), path.stat().st_size
    seconds = used.ru_utime + used.ru_stime
    print(f"{options.events} events, {options.arms} arms, {size / 2**20:.0f} MiB; {results['decisions']} decisions evaluated")
    print(f"{seconds:.2f} CPU s with the start of the process: {options.events / seconds:.0f} events per CPU second")
    print(f"{used.ru_maxrss / 1024:.0f} MiB of memory at most")


if __name__ == "__main__":
    main()
