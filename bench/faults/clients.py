"""Clients that decide, observe, repeat and cancel in any order, and write down what was acknowledged.

    new or repeated decision --> 201/200: acknowledged     connection cut: unsure, may be sent again with the same id and body
    outcome, again, by another client, with another body --> 200 / 409 / 410
    cancellation --> 204 / 409

What a client sends for a decision follows from its id alone, so that any client can send or repeat it.
"""

from __future__ import annotations

import http.client
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench.faults.server import Server
from tools.processes import Answer, ask

DIM = 8
PATIENCE_S = 30.0
BANDITS: dict[str, dict[str, Any]] = {
    "prompts": {
        "policy": {"kind": "pak-ucb", "random_features": 12},
        "arms": [{"name": name, "price": 0.1 * i} for i, name in enumerate("abcd")],
        "prompt": {"dim": DIM},
        "seed": 5,
    },
    "chance": {"policy": {"kind": "epsilon-greedy", "epsilon": 0.6}, "arms": [{"name": name} for name in "abc"], "seed": 6},
    "late": {
        "policy": {"kind": "greedy", "exploration_floor": 0.3},
        "arms": [{"name": name} for name in "abc"],
        "reward": {"default": 0.125, "timeout_s": 2.0},
        "seed": 7,
    },
}
"""A contextual one, one that draws, and one whose decisions time out after 2 s with a reward."""

Key = tuple[str, str]
"""bandit, decision."""


@dataclass
class Record:
    """What the service acknowledged to one client: offsets and contents that must be in the log."""

    decided: dict[Key, tuple[int, str | None]] = field(default_factory=dict)  # -> offset, arm
    observed: dict[Key, int] = field(default_factory=dict)  # -> offset
    cancelled: set[Key] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)  # promises that were seen to be broken at once

    def __len__(self) -> int:
        """Events that were acknowledged, each counted once."""
        return len(self.decided) + len(self.observed) + len(self.cancelled)

    def add(self, other: Record) -> None:
        """Merge the record of another client; answers about the same key must agree."""
        for key, answer in other.decided.items():
            if self.decided.setdefault(key, answer) != answer:
                self.broken.append(f"decision {key}: {answer} and {self.decided[key]} were answered")
        for key, offset in other.observed.items():
            if self.observed.setdefault(key, offset) != offset:
                self.broken.append(f"outcome {key}: offsets {offset} and {self.observed[key]} were answered")
        self.cancelled |= other.cancelled
        self.counts += other.counts
        self.broken += other.broken


def decision_body(key: Key) -> dict[str, Any]:
    """The request behind a decision's id."""
    bandit, decision = key
    body: dict[str, Any] = {"id": decision}
    if bandit == "prompts":
        body["prompt"] = {"vector": [((zlib.crc32(f"{decision}/{i}".encode()) % 2001) - 1000) / 1000 for i in range(DIM)]}
    return body


def outcome_body(key: Key) -> dict[str, Any]:
    """The outcome of a decision; one in eight is of another arm than the suggested one."""
    code = zlib.crc32(key[1].encode())
    body: dict[str, Any] = {"reward": code % 1024 / 1024, "cost": code % 7 / 8}
    return body | {"arm": "b"} if code % 8 == 3 else body


class Pool:
    """Decisions that some client knows to be made, shared by all of them."""

    def __init__(self) -> None:
        self._open: deque[Key] = deque(maxlen=2000)
        self._closed: deque[Key] = deque(maxlen=2000)
        self._known: set[tuple[Key, bool]] = set()

    def add(self, key: Key, *, closed: bool = False) -> None:
        """Add a key once, however often it is repeated. Deque and set need no lock for this; two of one key do no harm."""
        if (key, closed) not in self._known:
            self._known.add((key, closed))
            (self._closed if closed else self._open).append(key)

    def take(self) -> Key | None:
        """The oldest open one, for one client alone; None while there is none."""
        try:
            return self._open.popleft()
        except IndexError:
            return None

    def any(self, g: Random, *, closed: bool = False) -> Key | None:
        """One of the newest, which other clients may hold too; None while there is none."""
        pool = self._closed if closed else self._open
        try:
            return pool[-1 - int(len(pool) * g.random() ** 3)]
        except IndexError:
            return None


class Client(threading.Thread):
    """One connection, one request at a time. Where a server is gone, or says 503, the same request goes to any of them.

    pause_s: after each request; 0 = as fast as it can.
    """

    def __init__(
        self, servers: Sequence[Server], pool: Pool, *, number: int, seed: int, prefix: str = "c", pause_s: float = 0.0
    ) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.record = Record()
        self.over = threading.Event()
        self._servers, self._pool = tuple(servers), pool
        self._g = Random(f"{seed}/{number}")
        self._prefix = f"{prefix}{number}"
        self._pause_s = pause_s
        self._made = 0
        self._unsure: deque[tuple[str, Key]] = deque()
        self._connection = self._servers[number % len(self._servers)].connect()

    def run(self) -> None:
        while not self.over.is_set():
            self._ask(*self._next())
            if self._pause_s:
                time.sleep(self._pause_s)
        until = time.monotonic() + PATIENCE_S
        while self._unsure and time.monotonic() < until:  # what was on its way, or refused, is asked for until it is answered
            self._ask(*self._unsure.popleft())
        self.record.counts["never answered"] += len(self._unsure)
        self._connection.close()

    def _ask(self, what: str, key: Key) -> None:
        try:
            self._do(what, key)
        except ConnectionRefusedError:  # it is down
            self._elsewhere(what, key)
        except (OSError, http.client.HTTPException):
            self.record.counts["cut off"] += 1
            self._elsewhere(what, key)

    def _elsewhere(self, what: str, key: Key) -> None:
        self._unsure.append((what, key))
        self._connection.close()
        self._connection = self._g.choice(self._servers).connect()
        time.sleep(0.05)

    def _next(self) -> tuple[str, Key]:
        roll = self._g.random()
        if self._unsure and self._g.random() < 0.5:
            return self._unsure.popleft()
        if roll < 0.5 and (key := self._pool.take()):
            return "observe", key
        if 0.5 <= roll < 0.54 and (key := self._pool.any(self._g)):
            return self._g.choice(("observe", "decide", "cancel")), key
        if 0.54 <= roll < 0.6 and (key := self._pool.any(self._g, closed=True)):
            return self._g.choice(("observe", "contradict")), key
        self._made += 1
        return "decide", (self._g.choice(tuple(BANDITS)), f"{self._prefix}-{self._made}")

    def _do(self, what: str, key: Key) -> None:
        base = f"/v1/bandits/{key[0]}/decisions"
        if what == "decide":
            self._decided(key, ask(self._connection, "POST", base, decision_body(key)))
        elif what == "cancel":
            self._cancelled(key, ask(self._connection, "DELETE", f"{base}/{key[1]}"))
        else:
            body = outcome_body(key)
            body = body if what == "observe" else body | {"reward": -body["reward"] - 1.0}
            answer = ask(self._connection, "PUT", f"{base}/{key[1]}/outcome", body)
            (self._observed if what == "observe" else self._contradicted)(key, answer)

    def _decided(self, key: Key, answer: Answer) -> None:
        if self._expected("decide", key, answer, {200, 201}):
            told = (answer.body["offset"], answer.body["arm"])
            if self.record.decided.setdefault(key, told) != told:
                self.record.broken.append(f"decision {key}: first {self.record.decided[key]}, now {told}")
            self.record.counts["decisions" if answer.status == 201 else "decisions repeated"] += 1
            self._pool.add(key)

    def _observed(self, key: Key, answer: Answer) -> None:
        if self._expected("observe", key, answer, {200, 410}) and answer.status == 200:
            offset = answer.body["offset"]
            if self.record.observed.setdefault(key, offset) != offset:
                self.record.broken.append(f"outcome {key}: first offset {self.record.observed[key]}, now {offset}")
            self.record.counts["outcomes repeated" if answer.body["duplicate"] else "outcomes"] += 1
            self._pool.add(key, closed=True)

    def _contradicted(self, key: Key, answer: Answer) -> None:
        if self._expected("contradict", key, answer, {409, 410}):
            self.record.counts["contradictions refused"] += 1

    def _cancelled(self, key: Key, answer: Answer) -> None:
        if self._expected("cancel", key, answer, {204, 409, 410}) and answer.status == 204:
            self.record.cancelled.add(key)
            self.record.counts["cancellations"] += 1

    def _expected(self, what: str, key: Key, answer: Answer, statuses: set[int]) -> bool:
        if answer.status in statuses:
            return True
        if answer.status in (429, 503):  # nothing was promised; over a network it may have been accepted all the same
            self.record.counts["refused"] += 1
            self._elsewhere(what, key)
        else:
            self.record.broken.append(f"{what} {key}: {answer.status} {answer.body.get('code')}")
        return False
