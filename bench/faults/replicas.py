"""Several replicas of the service over one store, clients at work on them, and the judgement of what was acknowledged.

Replicas ── start, create the bandits, kill, pause ──┐
Load     ── clients fail over between them ──────────┴──> judge: log, what was learned, one digest everywhere
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.faults.clients import BANDITS, Client, Pool, Record
from bench.faults.server import Server
from bench.faults.verdict import Verdict
from tools.processes import ROOT, Answer, ServerFailed, environment, wait_until

SETTLING_S = 60.0
Digests = dict[str, tuple[int, str]]


class Replicas:
    """Servers over one store, which end with their block.

    store: URL, or one per replica where each has a wire of its own.  options: of every `Server`.
    """

    def __init__(self, folder: Path, store: str | Sequence[str], *, number: int = 3, **options: Any) -> None:
        stores = [store] * number if isinstance(store, str) else list(store)
        self.folder = folder
        self.options = options
        self.servers = [Server(folder, store=url, name=f"replica-{i}", **options) for i, url in enumerate(stores)]

    def start(self, bandits: Mapping[str, dict[str, Any]] = BANDITS) -> list[float]:
        """Returns when all are ready and the bandits exist; seconds that each took."""
        for server in self.servers:
            server.start()
        took = [server.wait_until_ready() for server in self.servers]
        self.create(bandits)
        return took

    def create(self, bandits: Mapping[str, dict[str, Any]] = BANDITS) -> None:
        """Make sure that the bandits exist."""
        for name, body in bandits.items():
            created = persistently(partial(self.servers[0].ask, "PUT", f"/v1/bandits/{name}", body))
            if created.status not in (200, 201):
                raise ServerFailed(f"bandit {name}: {created}")

    def wait_until_ready(self, patience_s: float = 120.0) -> float:
        """Seconds until all of them are, each at the same moment."""
        return wait_until(lambda: all(server.is_ready() for server in self.servers), "all replicas are ready", patience_s)

    @contextmanager
    def newcomer(self) -> Iterator[Server]:
        """One more replica, which starts now and ends with its block."""
        server = Server(self.folder, store=self.servers[0].store, name="fresh", **self.options)
        try:
            server.start()
            yield server
        finally:
            server.end()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *failure: object) -> None:
        for server in self.servers:
            server.end()


def persistently(ask: Callable[[], Answer], patience_s: float = 30.0) -> Answer:
    """The first answer that is no 503."""
    until = time.monotonic() + patience_s
    while True:
        answer = Answer(503, {})
        with suppress(OSError, http.client.HTTPException):
            answer = ask()
        if answer.status != 503 or time.monotonic() > until:
            return answer
        time.sleep(0.05)


class Load:
    """Clients at work."""

    def __init__(self, servers: Sequence[Server], *, clients: int, seed: int, prefix: str = "c", pause_s: float = 0.0) -> None:
        pool = Pool()
        self._clients = [
            Client(servers, pool, number=number, seed=seed, prefix=prefix, pause_s=pause_s) for number in range(clients)
        ]

    def acknowledged(self) -> int:
        """New events so far. (One whose first answer was cut off counts as repeated, so there are a few more.)"""
        return sum(self.count(what) for what in ("decisions", "outcomes", "cancellations"))

    def start(self) -> None:
        """All of them."""
        for client in self._clients:
            client.start()

    def let_go(self) -> None:
        """Let the clients end, without waiting for them."""
        for client in self._clients:
            client.over.set()

    def count(self, what: str) -> int:
        """How often so far; see `Record.counts`."""
        return sum(client.record.counts.get(what, 0) for client in self._clients)

    def until(self, acknowledged: int, *, limit_s: float = 600.0) -> bool:
        """Whether so many more were acknowledged in time."""
        goal, until = self.acknowledged() + acknowledged, time.monotonic() + limit_s
        while self.acknowledged() < goal:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> Record:
        """What was acknowledged to all of them, after every request was answered that can be."""
        self.let_go()
        record = Record()
        for client in self._clients:
            client.join(SETTLING_S)
            if client.is_alive():
                record.broken.append(f"{client.name} hangs")
            record.add(client.record)
        return record


@contextmanager
def at_work(servers: Sequence[Server], *, clients: int, seed: int, prefix: str = "c", pause_s: float = 0.0) -> Iterator[Load]:
    """A load for as long as the block; stop it in there to have its record."""
    load = Load(servers, clients=clients, seed=seed, prefix=prefix, pause_s=pause_s)
    load.start()
    try:
        yield load
    finally:
        load.let_go()


# -- judging -----------------------------------------------------------------------------------------------------------------


@dataclass
class Judged:
    """verdict: of all bandits.  digests: who -> bandit -> (offset, sha256).  logs: bandit -> events."""

    verdict: Verdict = field(default_factory=Verdict)
    digests: dict[str, Digests] = field(default_factory=dict)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def agreement(self) -> str:
        """How many of those asked say the same."""
        expected = next(iter(self.digests.values()))
        return f"{sum(found == expected for found in self.digests.values())} of {len(self.digests)}"


def judge(
    replicas: Replicas,
    record: Record,
    *,
    bandits: Iterable[str] = tuple(BANDITS),
    arms_added: Sequence[str] = (),
    fresh: bool = True,
) -> Judged:
    """When nothing changes any more: logs against what was acknowledged, what each replica has learned against its log, digests
    of every replica (through `min_offset`), of a replay from zero and of a replica that starts now. arms_added: to `prompts`.
    """
    judged, first = Judged(), replicas.servers[0]
    settle(first, bandits)
    for name in bandits:
        events = judged.logs[name] = first.events(name)
        judged.verdict.check_log(name, events, record, list(arms_added) if name == "prompts" else [])
    ends = {name: len(events) for name, events in judged.logs.items()}
    for server in replicas.servers:
        judged.digests[server.name] = digests(server, ends)
        for name, events in judged.logs.items():
            judged.verdict.check_learned(name, events, server.ask("GET", f"/v1/bandits/{name}").body)
    judged.digests["replayed from zero"] = {name: found[:2] for name, found in replayed(first.store).items() if name in ends}
    if fresh:
        with replicas.newcomer() as newcomer:
            newcomer.wait_until_ready()
            judged.digests["a fresh replica"] = digests(newcomer, ends)
    judged.verdict.check_digests(judged.digests)
    return judged


def settle(server: Server, bandits: Iterable[str]) -> None:
    """Until the decisions of the bandit with a timeout have expired."""
    if "late" in bandits:
        ask = partial(server.ask, "GET", "/v1/bandits/late")
        wait_until(lambda: not persistently(ask).body.get("open", 1), "overdue decisions are closed", SETTLING_S)


def digests(server: Server, ends: Mapping[str, int]) -> Digests:
    """Of one replica, from these offsets at least."""
    found = {}
    for name, end in ends.items():
        answer = persistently(partial(server.ask, "GET", f"/v1/bandits/{name}/digest?min_offset={end}"))
        found[name] = (answer.body.get("offset", -1), answer.body.get("sha256", f"{answer.status} {answer.body.get('code')}"))
    return found


def replayed(store: str) -> dict[str, tuple[int, str, float, float]]:
    """Bandit -> (offset, sha256, seconds, CPU seconds) of every log, folded from its first event by a process of its own."""
    command = [sys.executable, "-m", "bench.faults.replay", store]
    found = subprocess.run(command, cwd=ROOT, env=environment({}), capture_output=True, check=False, text=True)
    if found.returncode != 0:
        raise ServerFailed(f"replay: code {found.returncode}: {found.stderr[-500:]}")
    return {bandit: (*rest,) for bandit, *rest in map(json.loads, found.stdout.splitlines())}
