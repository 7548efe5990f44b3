"""Speed and memory of an evaluation, and what the decisions of another bandit notice of it.

python -m bench.performance.evaluation --events 1000000           fixed policies: a synthetic log, read in a process of its own
python -m bench.performance.evaluation --neighbor --events 50000  decisions of a bandit beside the evaluation of another one
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.engine import events
from service.engine.evaluation_process import Plan, evaluate_in_process
from tools.processes import Answer, Server, ServerFailed, ask

START = datetime(2026, 1, 1, tzinfo=UTC)
RATE = 100.0
"""Decisions per second of the neighbor."""
ROUNDS = 3
BATCH = 1024
POLICIES = [{"kind": "greedy"}]
"""Evaluated beside the fixed arms."""
ALONE_S = (5.0, 15.0)
"""Shortest and longest slice without an evaluation; else it takes as long as one."""


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


# -- decisions beside an evaluation ------------------------------------------------------------------------------------------


def neighbor(events_wanted: int, *, arms: int, dim: int) -> None:
    """Print the latency of decisions alone and during an evaluation of another bandit of the same service, over SQLite."""
    with tempfile.TemporaryDirectory(prefix="nextarm-evaluation-") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            server.wait_until_ready()
            body = {"arms": [{"name": f"model-{arm}"} for arm in range(arms)], "prompt": {"dim": dim}, "seed": 1}
            for name, policy in (
                ("deciding", {"kind": "pak-ucb"}),
                ("evaluated", {"kind": "lin-ucb", "exploration_floor": 0.1}),
            ):
                _accepted(server.ask("PUT", f"/v1/bandits/{name}", {**body, "policy": policy}))
            fill(server, "deciding", 2 * BATCH, dim=dim)
            fill(server, "evaluated", events_wanted, dim=dim)
            _print_latencies(server, dim=dim)
        finally:
            server.end()


def fill(server: Server, bandit: str, events_wanted: int, *, dim: int) -> None:
    """Decisions with their outcomes, in batches."""
    g = np.random.default_rng(2)
    for first in range(0, events_wanted // 2, BATCH):
        ids = [f"request-{i}" for i in range(first, min(first + BATCH, events_wanted // 2))]
        decisions = [{"id": name, "prompt": {"vector": g.standard_normal(dim).round(3).tolist()}} for name in ids]
        outcomes = [{"decision": name, "reward": round(float(g.random()), 3)} for name in ids]
        for kind, items in (("decisions", decisions), ("outcomes", outcomes)):
            _accepted(server.ask("POST", f"/v1/bandits/{bandit}/{kind}/batch", {kind: items}, timeout_s=120.0))


def _print_latencies(server: Server, *, dim: int) -> None:
    alone, beside, ratios, took = list[float](), list[float](), list[list[float]](), list[float]()
    seconds = ALONE_S[0]
    for number in range(ROUNDS + 1):
        before = latencies(
            server,
            partial(_is_past, time.perf_counter() + min(max(seconds, ALONE_S[0]), ALONE_S[1])),
            dim=dim,
            prefix=f"alone-{number}",
        )
        path = "/v1/bandits/evaluated/evaluations"
        body = {"id": f"e{number}", "policies": POLICIES, "reward_range": [0, 1]}
        began = time.perf_counter()
        _accepted(server.ask("POST", path, body))
        during = latencies(server, partial(_is_done, server, f"{path}/e{number}"), dim=dim, prefix=f"beside-{number}")
        seconds = time.perf_counter() - began
        if number == 0:  # warms the service up, and says how long the others take
            continue
        took.append(seconds)
        alone += before
        beside += during
        ratios.append([float(np.quantile(during, q) / np.quantile(before, q)) for q in (0.5, 0.99)])
    print(f"{ROUNDS} evaluations, {np.median(took):.1f} s each (median); load average {os.getloadavg()[0]:.1f}")
    for name, times in (("alone", alone), ("during", beside)):
        median, late = (1e3 * np.quantile(times, q) for q in (0.5, 0.99))
        print(f"{name:7} p50 {median:7.2f} ms   p99 {late:7.2f} ms   of {len(times)} decisions")
    for name, of_rounds in zip(("p50", "p99"), zip(*ratios, strict=True), strict=True):
        print(f"{name} during / alone: {np.median(of_rounds):.2f} (median), {min(of_rounds):.2f} to {max(of_rounds):.2f}")


def latencies(server: Server, is_over: Callable[[], bool], *, dim: int, prefix: str) -> list[float]:
    """Seconds from the moment at which a decision was due to its answer, at `RATE`. is_over: asked twice per second."""
    g, found = np.random.default_rng(3), list[float]()
    connection = server.connect()
    due = time.perf_counter()
    try:
        while len(found) % int(RATE / 2) or not is_over():
            body = {"id": f"{prefix}-{len(found)}", "prompt": {"vector": g.standard_normal(dim).round(3).tolist()}}
            due = max(due + 1 / RATE, time.perf_counter() - 1.0)  # after a second without an answer, a new beginning
            time.sleep(max(0.0, due - time.perf_counter()))
            _accepted(ask(connection, "POST", "/v1/bandits/deciding/decisions", body))
            found.append(time.perf_counter() - due)
    finally:
        connection.close()
    return found


def _is_past(moment: float) -> bool:
    return time.perf_counter() >= moment


def _is_done(server: Server, path: str) -> bool:
    state: dict[str, Any] = server.ask("GET", path).body
    if state["state"] == "failed":
        raise ServerFailed(f"the evaluation: {state['failure']}")
    return bool(state["state"] == "done")


def _accepted(answer: Answer) -> None:
    if answer.status >= 300:
        raise ServerFailed(f"{answer}")


def main() -> None:
    """Print events per CPU second, and the memory of the process; or the latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--neighbor", action="store_true", help="decisions beside an evaluation of so many events")
    options = parser.parse_args()
    if options.neighbor:
        neighbor(options.events, arms=options.arms, dim=options.dim)
        return
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
