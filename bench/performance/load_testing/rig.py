"""What is under load: the service on its store, the bare routes beside it, and the bandits that are asked."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.server import Server
from tools.processes import EVERYSEC, RedisServer, free_port, running

DIM, FEATURES, ARMS = 384, 128, 10
SEED = 7
BODIES = 256
"""Different prompts that a script sends in turn."""
BATCH = 256
LEARNED = 512
"""Rounds that a bandit has behind it before it is measured."""
WARM = 100
"""Single rounds after these, so that what the service remembers of its own pace is of single requests."""
SETTINGS = {"MAX_OPEN": "10000000", "SNAPSHOT_EVERY": "10000", "SWEEP_S": "0.5", "LOG_LEVEL": "warning"}
"""Unlike the defaults: as many open decisions as a slice without outcomes makes."""


def vector_text(row: np.ndarray) -> str:
    """A vector as base64 of little-endian float32."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def prompts(n: int, *, seed: int = SEED) -> list[str]:
    """So many random prompt vectors, base64."""
    return [vector_text(row) for row in np.random.default_rng(seed).normal(size=(n, DIM))]


def ask_bodies(n: int = BODIES) -> list[str]:
    """So many bodies of decisions."""
    return [json.dumps({"prompt": {"vector": vector}}, separators=(",", ":")) for vector in prompts(n)]


def batch_bodies(n: int = 4) -> list[str]:
    """So many bodies of batches of decisions."""
    vectors = prompts(n * BATCH)
    parts = [vectors[first : first + BATCH] for first in range(0, len(vectors), BATCH)]
    return [json.dumps({"decisions": [{"prompt": {"vector": v}} for v in part]}, separators=(",", ":")) for part in parts]


@dataclass
class Rig:
    """One service (or replicas of it) and how to ask it. store_pids: of a store in a process of its own."""

    name: str
    servers: list[Server]
    store_pids: list[int] = field(default_factory=list)
    _made: int = 0

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{server.port}" for server in self.servers]

    @property
    def pids(self) -> list[int]:
        return [server.process.pid for server in self.servers]

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer; `SystemExit` for anything but success."""
        answer = self.servers[0].ask(method, f"/v1/bandits{path}", body, timeout_s=120)
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body

    @contextmanager
    def bandit(self, *, embedder: str = "vector", learned: int = LEARNED) -> Iterator[str]:
        """A fresh bandit with 10 arms that has learned from some rounds; deleted at the end. PAK-UCB with 2 x 128 features, or
        Thompson sampling without prompts where `embedder` is empty.
        """
        self._made += 1
        name = f"b{self._made}"
        prompt: dict[str, Any] = {"embedder": embedder, **({"dim": DIM} if embedder == "vector" else {})}
        arms = [{"name": f"model-{arm}", "price": 0.001 * arm} for arm in range(ARMS)]
        body: dict[str, Any] = {"policy": {"kind": "thompson"}, "arms": arms, "seed": SEED}
        if embedder:
            body |= {"policy": {"kind": "pak-ucb", "random_features": FEATURES}, "prompt": prompt}
        self.ask("PUT", f"/{name}", body)
        rng = np.random.default_rng(SEED)
        for first in range(0, learned, BATCH):
            asked = self._asked(embedder, first)
            made = self.ask("POST", f"/{name}/decisions/batch", {"decisions": asked})["decisions"]
            outcomes = [{"decision": one["id"], "reward": float(rng.random() < 0.5)} for one in made]
            self.ask("POST", f"/{name}/outcomes/batch", {"outcomes": outcomes})
        self._warm(name, WARM if learned and embedder in ("", "vector") else 0, with_prompts=bool(embedder))
        yield name
        self.ask("DELETE", f"/{name}")

    def _warm(self, bandit: str, rounds: int, *, with_prompts: bool) -> None:
        """Single requests one after the other: the service has to see how quick they are after the batches before."""
        for vector in prompts(rounds, seed=SEED + 2):
            made = self.ask("POST", f"/{bandit}/decisions", {"prompt": {"vector": vector}} if with_prompts else {})
            self.ask("PUT", f"/{bandit}/decisions/{made['id']}/outcome", {"reward": 0.5})

    def _asked(self, embedder: str, first: int) -> list[dict[str, Any]]:
        if not embedder:
            return [{}] * BATCH
        if embedder == "vector":
            return [{"prompt": {"vector": vector}} for vector in prompts(BATCH, seed=SEED + 1 + first)]
        return [{"prompt": f"Learned before: {first + i % 16}"} for i in range(BATCH)]

    def open_decisions(self, bandit: str, n: int, *, prefix: str) -> None:
        """Decisions PREFIX1 ... PREFIXn, without outcomes."""
        vectors = prompts(BODIES)
        for first in range(1, n + 1, BATCH):
            asked = [
                {"id": f"{prefix}{i}", "prompt": {"vector": vectors[i % BODIES]}} for i in range(first, min(first + BATCH, n + 1))
            ]
            self.ask("POST", f"/{bandit}/decisions/batch", {"decisions": asked})

    def counts(self, bandit: str) -> tuple[int, int]:
        """(decisions, outcomes) that the service knows of."""
        told = self.ask("GET", f"/{bandit}")
        return told["decisions"], sum(arm["outcomes"] for arm in told["arms"])


@contextmanager
def service(
    name: str = "service", *, settings: Mapping[str, str] | None = None, store: str = "", replicas: int = 1
) -> Iterator[Rig]:
    """The real service, ended at the end. store: "" = SQLite in a folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="nextarm-load-") as folder:
        servers = [
            Server(Path(folder), store=store, name=f"{name}-{i}", settings={**SETTINGS, **(settings or {})})
            for i in range(replicas)
        ]
        try:
            for server in servers:
                server.start()
            for server in servers:
                server.wait_until_ready()
            yield Rig(name, servers)
        finally:
            for server in servers:
                server.end()


@contextmanager
def service_on_redis(*, replicas: int) -> Iterator[Rig]:
    """The service on a redis-server of its own, with an append-only file flushed each second."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nextarm-load-"))
        redis = stack.enter_context(RedisServer(*EVERYSEC, folder=Path(folder) / "redis"))
        pid = int(redis.info("server")["process_id"])
        rig = stack.enter_context(service(f"redis-{replicas}", store=redis.url, replicas=replicas))
        rig.store_pids = [pid]
        yield rig


@contextmanager
def bare() -> Iterator[tuple[str, int]]:
    """The bare routes: URL and pid; ended at the end."""
    port = free_port()
    command = [sys.executable, "-m", "bench.performance.load_testing.bare", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="nextarm-load-") as folder,
        running(command, port=port, folder=Path(folder)) as pid,
    ):
        yield f"http://127.0.0.1:{port}", pid
