"""How quick a start is: with a snapshot and 10,000 events behind it, and from the first event (PAK-UCB, 256 numbers).

Each of 128 random frequencies gives two numbers of the 256 that a prompt is for the regression.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from bench.faults.replicas import Replicas, replayed
from bench.faults.rows import Options, Row
from bench.faults.server import Server
from service.engine.decisions import DecisionRequest
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.settings import Settings
from tools.processes import EVERYSEC, RedisServer

DIM, FREQUENCIES, ARMS = 32, 128, 4
BEHIND = 10_000
READY_S, PER_S = 2.0, 20_000
"""What is aimed at."""
BANDIT = {
    "policy": {"kind": "pak-ucb", "random_features": FREQUENCIES},
    "arms": [{"name": f"arm-{i}"} for i in range(ARMS)],
    "prompt": {"dim": DIM},
    "seed": 9,
}


def run(options: Options) -> list[Row]:
    """A long log, whose snapshot is of 10,000 events before its end."""
    events = options.events or (20_000 if options.quick else 60_000)
    folder = options.space("starts")
    with RedisServer(*EVERYSEC, folder=folder / "redis") as redis:
        with Replicas(folder, redis.url, number=1, snapshot_every=10**9) as one:
            server = one.servers[0]
            empty = [_start(server) for _ in range(3)]
            server.start()
            server.wait_until_ready()
            one.create({"long": BANDIT})
            server.kill()
            asyncio.run(_fill(redis.url, events, options))
            full = [_start(server) for _ in range(3)]
        (offset, _, seconds, cpu_s) = replayed(redis.url)["long"]
    wall_s, used_s = (statistics.median(values) for values in zip(*full, strict=True))
    empty_wall_s, empty_used_s = (statistics.median(values) for values in zip(*empty, strict=True))
    learning_s = used_s - empty_used_s
    return [
        Row(
            fault=f"start with a snapshot and {BEHIND:,} events behind, Redis",
            seen=f"snapshot and events take {learning_s:.1f} s of CPU (aim: {READY_S:g} s) on top of a start without any "
            f"bandit, {empty_used_s:.1f} s, most of them imports; seconds until ready, beside whatever else ran: "
            f"{wall_s:.1f}, without any bandit {empty_wall_s:.1f} (medians of 3)",
            broken=[] if learning_s < READY_S else [f"it takes {learning_s:.2f} s of CPU, not {READY_S:g}"],
        ),
        Row(
            fault="full replay (PAK-UCB, p = 256), Redis",
            seen=f"{offset:,} events: {offset / cpu_s:,.0f} per second of CPU (aim: {PER_S:,}), {offset / seconds:,.0f} per "
            "second beside whatever else ran",
        ),
    ]


def _start(server: Server) -> tuple[float, float]:
    """Seconds, and CPU seconds, until it is ready; then it is killed, so that it leaves no newer snapshot."""
    began = time.monotonic()
    server.start()
    server.wait_until_ready()
    took = time.monotonic() - began, server.cpu_s()
    server.kill()
    return took


async def _fill(store: str, events: int, options: Options) -> None:
    """Decide and observe without HTTP, and keep one snapshot, `BEHIND` events before the end."""
    import numpy as np

    g = np.random.default_rng(options.seed)
    storage = Settings.load(store=store).open_storage()
    await storage.start()
    try:
        learner = await Learner.load(storage, (await storage.logs())[0], snapshot_every=0)
        while learner.versions.committed.offset < events:
            ids = [f"e{learner.versions.committed.offset}-{i}" for i in range(64)]
            prompts = g.normal(size=(len(ids), DIM)).astype("<f4")
            await asyncio.gather(
                *(
                    learner.decisions.submit(DecisionRequest(id=i, features=p.tobytes(), body=""))
                    for i, p in zip(ids, prompts, strict=True)
                )
            )
            rewards = g.random(len(ids))
            await asyncio.gather(
                *(learner.outcomes.submit(i, OutcomeReport(reward=float(r))) for i, r in zip(ids, rewards, strict=True))
            )
            if learner.versions.committed.offset <= events - BEHIND:
                await learner.projection.snapshot()
            options.tell(learner.versions.committed.offset, events)
    finally:
        await storage.close()
