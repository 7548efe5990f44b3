"""Start, drive, kill, start again, and judge."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.faults.clients import BANDITS, Client, Pool, Record
from bench.faults.server import Server
from bench.faults.verdict import Verdict
from tools.processes import ServerFailed

SETTLING_S = 60.0


@dataclass
class Result:
    """What a run has shown. broken: every broken promise, one line each."""

    record: Record = field(default_factory=Record)
    verdict: Verdict = field(default_factory=Verdict)
    kills: int = 0
    killed_in_start: int = 0
    starts_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    arms_added: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """Empty where every promise was kept."""
        return [*self.record.broken, *self.verdict.broken]


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
    server = Server(folder, snapshot_every=plan.snapshot_every)
    try:
        server.start()
        result.starts_s.append(server.wait_until_ready())
        for name, body in BANDITS.items():
            created = server.ask("PUT", f"/v1/bandits/{name}", body)
            if created.status != 201:
                raise ServerFailed(f"bandit {name}: {created}")
        pool = Pool()
        clients = [Client([server], pool, number=i, seed=plan.seed) for i in range(plan.clients)]
        for client in clients:
            client.start()
        while result.kills < plan.kills and time.monotonic() - began < plan.limit_s:
            _kill_once(plan, server, result, g)
            each(result.kills)
        time.sleep(plan.pause_s[1])  # what was unsure is sent again
        for client in clients:
            client.over.set()
        for client in clients:
            client.join(SETTLING_S)
            result.record.add(client.record)
        _judge(server, result)
    finally:
        server.end()
        result.seconds = time.monotonic() - began
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


def _judge(server: Server, result: Result) -> None:
    """Log, digests and what was learnt, when nothing changes any more; then once more after a clean restart."""
    _settle(server)
    logs = {name: server.events(name) for name in BANDITS}
    for name, events in logs.items():
        result.verdict.check_log(name, events, result.record, result.arms_added if name == "prompts" else [])
        result.verdict.check_learnt(name, events, server.ask("GET", f"/v1/bandits/{name}").body)
    digests = {"live": _digests(server), "replayed from zero": server.replayed()}
    code = server.stop()
    if code != 0:
        result.record.broken.append(f"a clean end has code {code}")
    server.start()
    result.starts_s.append(server.wait_until_ready())
    digests["after a clean restart"] = _digests(server)
    result.verdict.check_digests(digests)
    for name, events in logs.items():
        if server.events(name) != events:
            result.verdict.lost.append(f"{name}: the log differs after a clean restart")


def _settle(server: Server) -> None:
    """Until the decisions of the bandit with a timeout have expired."""
    until = time.monotonic() + SETTLING_S
    while server.ask("GET", "/v1/bandits/late").body["open"]:
        if time.monotonic() > until:
            raise ServerFailed("overdue decisions are not closed")
        time.sleep(0.05)


def _digests(server: Server) -> dict[str, tuple[int, str]]:
    found = {name: server.ask("GET", f"/v1/bandits/{name}/digest").body for name in BANDITS}
    return {name: (answer["offset"], answer["sha256"]) for name, answer in found.items()}
