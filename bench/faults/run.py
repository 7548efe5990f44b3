"""Start, drive, kill, start again, and judge."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.faults.clients import Record
from bench.faults.replicas import Judged, Replicas, at_work, digests, judge
from bench.faults.server import Server


@dataclass
class Result:
    """What a run has shown."""

    record: Record = field(default_factory=Record)
    judged: Judged = field(default_factory=Judged)
    kills: int = 0
    killed_in_start: int = 0
    starts_s: list[float] = field(default_factory=list)
    arms_added: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """Every broken promise, one line each; empty where all were kept."""
        return [*self.record.broken, *self.judged.verdict.broken]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """kills: SIGKILLs.  clients: connections.  pause_s: shortest and longest time between ready and the next kill.

    early: share of kills that come while the service is starting.  limit_s: after this no further kill is begun.
    """

    kills: int
    seed: int
    clients: int = 8
    pause_s: tuple[float, float] = (0.1, 1.2)
    early: float = 0.15
    snapshot_every: int = 300
    limit_s: float = 1800.0


def run(plan: Plan, folder: Path, *, each: Callable[[int], object] = lambda kills: None) -> Result:
    """Play the plan in an empty folder. each: called after every kill."""
    result, g, began = Result(), Random(plan.seed), time.monotonic()
    with Replicas(folder, "", number=1, snapshot_every=plan.snapshot_every) as one:
        (server,) = one.servers
        result.starts_s += one.start()
        with at_work(one.servers, clients=plan.clients, seed=plan.seed) as load:
            while result.kills < plan.kills and time.monotonic() - began < plan.limit_s:
                _kill_once(plan, server, result, g)
                each(result.kills)
            time.sleep(plan.pause_s[1])  # what was unsure is sent again
            result.record.add(load.stop())
        judged = result.judged = judge(one, result.record, arms_added=result.arms_added, fresh=False)
        if code := server.stop():
            result.record.broken.append(f"a clean end has code {code}")
        server.start()
        result.starts_s.append(server.wait_until_ready())
        ends = {name: len(events) for name, events in judged.logs.items()}
        judged.digests["after a clean restart"] = digests(server, ends)
        judged.verdict.check_digests(judged.digests)
        for name, events in judged.logs.items():
            if server.events(name) != events:
                judged.verdict.lost.append(f"{name}: the log differs after a clean restart")
    return result


def _kill_once(plan: Plan, server: Server, result: Result, g: Random) -> None:
    time.sleep(g.uniform(*plan.pause_s))
    if g.random() < 0.3:
        _add_arm(server, result)
    server.kill()
    result.kills += 1
    server.start()
    while result.kills < plan.kills and g.random() < plan.early:
        time.sleep(g.uniform(0.0, 1.2 * max(result.starts_s)))
        server.kill()
        result.kills += 1
        result.killed_in_start += 1
        server.start()
    result.starts_s.append(server.wait_until_ready())


def _add_arm(server: Server, result: Result) -> None:
    """Arms come and go while decisions are made; what is acknowledged must stay."""
    name = f"new-{result.kills}"
    try:
        if server.ask("PUT", f"/v1/bandits/prompts/arms/{name}", {"price": 0.05}).status == 201:
            result.arms_added.append(name)
        if len(result.arms_added) > 2:
            server.ask("DELETE", f"/v1/bandits/prompts/arms/{result.arms_added[-3]}")
    except (OSError, http.client.HTTPException):
        result.record.counts["cut off"] += 1
