"""Clients of a soak: a bandit per policy in its default form, but for PromptWise's window; rounds at a constant rate, and what
real clients do besides.

Of 100 rounds 5 never get an outcome (they expire), 2 are cancelled, 3 post their outcome twice; the rest post it once, with an
output where the policy learns from one. PromptWise plays whole episodes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.performance.load_testing.driver import Line, connect
from bench.performance.load_testing.plans import request

ARMS, DIM, OUTPUT, CLASSES = 4, 16, 8, 10
TIMEOUT_S = 20.0
REFERENCES = 64
LINES = 64
LOST, CANCELLED, REPEATED = 0.05, 0.02, 0.03
WINDOW = 200
"""Observations that PromptWise keeps per arm: filled within the warm-up. Its default of 2,000 takes 22 minutes at 6 rounds a
second, and until a window is full memory and cost grow as they should.
"""

PROMPT: dict[str, Any] = {"prompt": {"embedder": "vector", "dim": DIM}}
VECTORS: dict[str, Any] = {"output": {"embedder": "vector", "dim": OUTPUT}}
BANDITS: dict[str, dict[str, Any]] = {
    "pak-ucb": {"policy": {"kind": "pak-ucb"}, **PROMPT},
    "dak-ucb": {"policy": {"kind": "dak-ucb", "output_bandwidth": 6.0}, **PROMPT, **VECTORS},
    "promptwise": {"policy": {"kind": "promptwise", "max_samples": WINDOW}, **PROMPT},
    "fd-ucb": {"policy": {"kind": "fd-ucb"}, **VECTORS},
    "is-ucb": {"policy": {"kind": "is-ucb"}, "output": {"embedder": "probabilities", "dim": CLASSES}},
    "mixture-ucb": {"policy": {"kind": "mixture-ucb", "bandwidth": 6.0}, **VECTORS},
    "mixture-greedy": {"policy": {"kind": "mixture-greedy", "bandwidth": 6.0}, **VECTORS},
}
NEED_REWARD = ("pak-ucb", "dak-ucb", "promptwise")


class Unexpected(Exception):
    """An answer that no client should get."""


@dataclass
class Clients:
    """A fixed number of connections, shared, so that open files tell of the service alone; and what was seen.

    taken: ms per request since it was last emptied, waiting for a connection included.
    """

    url: str
    rng: np.random.Generator
    taken: list[float] = field(default_factory=list)
    rounds: int = 0
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    _lines: list[Line] = field(default_factory=list)
    _idle: asyncio.Queue[Line] = field(default_factory=asyncio.Queue)
    _waiting: dict[Line, asyncio.Future[tuple[int, bytes]]] = field(default_factory=dict)

    async def open(self) -> None:
        """All connections, before anything is asked."""
        self._lines = [await connect(self.url, self._answered) for _ in range(LINES)]
        for line in self._lines:
            self._idle.put_nowait(line)

    async def ask(self, method: str, path: str, body: object = None, *, expected: tuple[int, ...] = (200, 201)) -> dict[str, Any]:
        """The answer; its time is noted."""
        started = time.perf_counter()
        line = await self._idle.get()
        future = asyncio.get_running_loop().create_future()
        self._waiting[line] = future
        content = "" if body is None else json.dumps(body, separators=(",", ":"))
        line.send(request(method, f"/v1/bandits/{path}", content), came=started)
        status, answer = await asyncio.wait_for(future, 60)
        self.taken.append(1e3 * (time.perf_counter() - started))
        self.asked += 1
        self._idle.put_nowait(await connect(self.url, self._answered) if line.gone else line)
        if status not in expected:
            raise Unexpected(f"{method} {path}: {status} {answer[:200]!r}")
        told: dict[str, Any] = json.loads(answer) if answer else {}
        return told

    def _answered(self, line: Line, status: int, body: bytes) -> None:
        future = self._waiting.pop(line)
        if not future.done():
            future.set_result((status, bytes(body)))

    def close(self) -> None:
        """Every connection."""
        for line in self._lines:
            line.close()


async def create(clients: Clients) -> None:
    """The bandits, with references where they need them."""
    await clients.open()
    for kind, given in BANDITS.items():
        arms = [{"name": f"model-{arm}", "price": 0.1 * (arm + 1)} for arm in range(ARMS)]
        body = {**given, "arms": arms, "reward": {"timeout_s": TIMEOUT_S}, "seed": 3}
        await clients.ask("PUT", kind, body)
    outputs = [{"vector": encoded(row)} for row in np.random.default_rng(5).normal(size=(REFERENCES, OUTPUT))]
    await clients.ask("POST", "fd-ucb/references", {"outputs": outputs})


def encoded(row: np.ndarray) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


async def play(clients: Clients, kind: str, *, rate: float, until: float) -> None:
    """Rounds at a constant rate; one that falls behind is not made up for. until: of `time.monotonic`."""
    running: set[asyncio.Task[None]] = set()
    came = time.monotonic() + float(clients.rng.random()) / rate
    while came < until:
        await asyncio.sleep(max(0.0, came - time.monotonic()))
        task = asyncio.create_task(_guarded(clients, kind))
        running.add(task)
        task.add_done_callback(running.discard)
        came = max(came + 1 / rate, time.monotonic() - 1)
    if running:
        await asyncio.wait(running)


async def _guarded(clients: Clients, kind: str) -> None:
    try:
        await _round(clients, kind)
        clients.rounds += 1
    except (Unexpected, TimeoutError) as error:
        clients.failures.append(f"{type(error).__name__}: {error}")


async def _round(clients: Clients, kind: str) -> None:
    asked = {} if "prompt" not in BANDITS[kind] else {"prompt": {"vector": encoded(clients.rng.normal(size=DIM))}}
    decision: dict[str, Any] | None = await clients.ask("POST", f"{kind}/decisions", asked)
    while decision is not None and not decision["stop"]:
        path = f"{kind}/decisions/{decision['id']}"
        fate = clients.rng.random()
        if fate < LOST:
            return
        if fate < LOST + CANCELLED:
            await clients.ask("DELETE", path, expected=(204,))
            return
        body = _outcome(clients.rng, kind, int(decision["arm"].removeprefix("model-")))
        receipt = await clients.ask("PUT", f"{path}/outcome", body)
        if fate < LOST + CANCELLED + REPEATED:
            again = await clients.ask("PUT", f"{path}/outcome", body)
            if not again["duplicate"] or again["offset"] != receipt["offset"]:
                raise Unexpected(f"{kind}: a repeated outcome was learned twice")
        decision = receipt["next"]


def _outcome(rng: np.random.Generator, kind: str, arm: int) -> dict[str, Any]:
    """Better arms have higher numbers; outputs of different arms differ in centre and spread."""
    body: dict[str, Any] = {}
    if kind in NEED_REWARD:
        body["reward"] = float(rng.random() < 0.3 + 0.1 * arm)
    if kind == "promptwise":
        body |= {"cost": 0.1 * (arm + 1), "next": True}
    elif kind == "is-ucb":
        body["output"] = {"probabilities": rng.dirichlet(np.full(CLASSES, 0.3 + arm)).astype(np.float32).tolist()}
    elif "output" in BANDITS[kind]:
        body["output"] = {"vector": encoded(0.3 * arm + (1 + 0.2 * arm) * rng.normal(size=OUTPUT))}
    return body
