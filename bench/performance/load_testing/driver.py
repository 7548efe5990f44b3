"""A driver of our own, in its own process: rounds of a decision and its outcome, also at a fixed rate, which wrk has not.

    python -m bench.performance.load_testing.driver SPEC   as JSON: url, bandit, connections, seconds, rate (0 = closed loop)

With a rate, requests come at i / rate whether or not earlier ones were answered. One that finds no free connection waits for one
in the driver; its latency counts from when it came (`p99_came`) and from when it was sent (`p99`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop

from bench.performance.load_testing.plans import request, reward
from bench.performance.load_testing.rig import ask_bodies
from bench.performance.load_testing.wrk import MARK

TICK_S = 0.001
REFUSALS = (429, 503)


class Line(asyncio.Protocol):
    """One connection: a request at a time; `answered(line, status, body)` for each answer, status 0 where it broke."""

    def __init__(self, answered: Callable[[Line, int, bytes], None]) -> None:
        self.came = self.sent = 0.0
        self.busy = False
        self.asks_outcome = False
        self.gone = False
        self._answered = answered
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, content: bytes, *, came: float) -> None:
        """Ask."""
        self.busy, self.came, self.sent = True, came, time.perf_counter()
        self._transport.write(content)

    def data_received(self, chunk: bytes) -> None:
        self._buffer += chunk
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length: ", 0, head)
        length = 0 if at < 0 else int(self._buffer[at + 16 : self._buffer.find(b"\r", at)])
        if len(self._buffer) < head + 4 + length:
            return
        status, body = int(self._buffer[9:12]), self._buffer[head + 4 : head + 4 + length]
        self._buffer, self.busy = b"", False
        self._answered(self, status, body)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if self.busy:
            self.busy = False
            self._answered(self, 0, b"")

    def close(self) -> None:
        """Whatever it waits for."""
        self.busy = False
        self._transport.close()


@dataclass
class Seen:
    """Answers as (when, ms since it was sent, ms since it came, status)."""

    answers: list[tuple[float, float, float, int]] = field(default_factory=list)

    def note(self, line: Line, status: int) -> None:
        now = time.perf_counter()
        self.answers.append((now, 1e3 * (now - line.sent), 1e3 * (now - line.came), status))


def quantiles(values: list[float]) -> tuple[float, float, float, float]:
    """p50, p95, p99, longest; 0 where there is nothing."""
    if not values:
        return 0.0, 0.0, 0.0, 0.0
    p50, p95, p99 = (float(value) for value in np.quantile(values, [0.5, 0.95, 0.99]))
    return p50, p95, p99, max(values)


class Rounds:
    """The next request of a round: the outcome of an answered decision where there is one, else another decision."""

    def __init__(self, bandit: str) -> None:
        self._path = f"/v1/bandits/{bandit}/decisions"
        self._asks = [request("POST", self._path, body) for body in ask_bodies()]
        self._open: deque[bytes] = deque()
        self._made = 0

    def next(self, line: Line) -> bytes:
        self._made += 1
        line.asks_outcome = bool(self._open)
        if self._open:
            path = f"{self._path}/{self._open.popleft().decode()}/outcome"
            return request("PUT", path, f'{{"reward":{reward(self._made)}}}')
        return self._asks[self._made % len(self._asks)]

    def learn(self, line: Line, status: int, body: bytes) -> None:
        """Keep the id of a decision."""
        if status == 201 and not line.asks_outcome:
            at = body.find(b'"id":"') + 6
            self._open.append(body[at : body.find(b'"', at)])


async def connect(url: str, answered: Callable[[Line, int, bytes], None]) -> Line:
    host, _, port = urlsplit(url).netloc.partition(":")
    _, line = await asyncio.get_running_loop().create_connection(lambda: Line(answered), host, int(port))
    return line


async def closed(url: str, rounds: Rounds, *, connections: int, seconds: float) -> Seen:
    """Every connection asks again as soon as it is answered."""
    seen, end = Seen(), time.perf_counter() + seconds

    def go_on(line: Line) -> None:
        now = time.perf_counter()
        if now < end and not line.gone:
            line.send(rounds.next(line), came=now)

    def answered(line: Line, status: int, body: bytes) -> None:
        seen.note(line, status)
        rounds.learn(line, status, body)
        go_on(line)

    lines = [await connect(url, answered) for _ in range(connections)]
    for line in lines:
        go_on(line)
    while time.perf_counter() < end and any(line.busy for line in lines):  # noqa: ASYNC110 (an event per answer would cost)
        await asyncio.sleep(0.02)
    for line in lines:
        line.close()
    return seen


async def opened(url: str, rounds: Rounds, *, rate: float, connections: int, seconds: float) -> tuple[Seen, int]:
    """Requests at a fixed rate; (answers, how many never found a connection)."""
    seen = Seen()
    idle: deque[Line] = deque()
    waiting: deque[float] = deque()

    def answered(line: Line, status: int, body: bytes) -> None:
        seen.note(line, status)
        rounds.learn(line, status, body)
        if line.gone:
            return
        if waiting:
            line.send(rounds.next(line), came=waiting.popleft())
        else:
            idle.append(line)

    lines = [await connect(url, answered) for _ in range(connections)]
    idle.extend(lines)
    start, came = time.perf_counter(), 0
    while (now := time.perf_counter() - start) < seconds:
        due = int(now * rate)
        for i in range(came, due):
            if idle:
                line = idle.popleft()
                line.send(rounds.next(line), came=start + i / rate)
            else:
                waiting.append(start + i / rate)
        came = due
        await asyncio.sleep(TICK_S)
    for line in lines:
        line.close()
    return seen, len(waiting)


def per_second(seen: Seen, *, start: float) -> Iterator[dict[str, Any]]:
    """One dict per second of the run."""
    seconds: dict[int, list[tuple[float, float, float, int]]] = {}
    for answer in seen.answers:
        seconds.setdefault(int(answer[0] - start), []).append(answer)
    for second, answers in sorted(seconds.items()):
        accepted = [answer for answer in answers if 200 <= answer[3] < 300]
        refused = [answer for answer in answers if answer[3] in REFUSALS]
        sent = quantiles([answer[1] for answer in accepted])
        yield {
            "second": second,
            "accepted": len(accepted),
            "refused": len(refused),
            "other": len(answers) - len(accepted) - len(refused),
            "p50": sent[0],
            "p99": sent[2],
            "p99_came": quantiles([answer[2] for answer in accepted])[2],
            "p99_refused": quantiles([answer[1] for answer in refused])[2],
        }


async def drive(spec: dict[str, Any]) -> dict[str, Any]:
    """What the command line asks for."""
    url, connections, seconds = spec["url"], spec["connections"], spec["seconds"]
    start, unsent, rounds = time.perf_counter(), 0, Rounds(spec["bandit"])
    if spec["rate"]:
        seen, unsent = await opened(url, rounds, rate=spec["rate"], connections=connections, seconds=seconds)
    else:
        seen = await closed(url, rounds, connections=connections, seconds=seconds)
    accepted = [answer for answer in seen.answers if 200 <= answer[3] < 300]
    p50, p95, p99, longest = (1e3 * value for value in quantiles([answer[1] for answer in accepted]))
    return {
        "requests": len(seen.answers),
        "seconds": max((answer[0] for answer in seen.answers), default=start) - start,
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "max": longest,
        "p99_came": 1e3 * quantiles([answer[2] for answer in accepted])[2],
        "accepted": len(accepted),
        "refused": sum(answer[3] >= 400 for answer in seen.answers),
        "shed": sum(answer[3] in REFUSALS for answer in seen.answers),
        "broken": sum(answer[3] == 0 for answer in seen.answers),
        "unsent": unsent,
        "each": list(per_second(seen, start=start)),
    }


def main() -> None:
    told = uvloop.run(drive(json.loads(sys.argv[1])))
    print(MARK, json.dumps(told))


if __name__ == "__main__":
    main()
