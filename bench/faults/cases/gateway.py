"""Routers that go on while the service is killed: the Python client decides by itself, and reports when the service is back.

request --> client.decide(fallback="b") --> the arm is called --> client.observe(reward)      no request may fail
SIGKILL, start again, several times         afterwards: each decision and each outcome is in the log exactly once
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nextarm import Client, NextarmError
from nextarm import Stats as ClientStats

from bench.faults.clients import BANDITS
from bench.faults.rows import Options, Row
from bench.faults.server import Server

BANDIT, FALLBACK = "chance", "b"
ROUTERS = 8
PAUSE_S, AWAY_PAUSE_S = 0.03, 0.4
"""Of a router between two requests; longer while the service is away, so that requests are left for the next kills."""


@dataclass
class Routed:
    """What routers were answered. arms: decision -> arm.  slowest_s: of a decision or an outcome."""

    arms: dict[str, str] = field(default_factory=dict)
    fallbacks: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def reward_of(decision: str) -> float:
    """The reward of a decision, which follows from its id."""
    return sum(decision.encode()) % 64 / 64


class Router(threading.Thread):
    """Asks, calls nothing, and reports; every eighth outcome comes ten requests later."""

    def __init__(self, client: Client, routed: Routed, *, number: int, requests: int) -> None:
        super().__init__(name=f"router {number}", daemon=True)
        self._client, self._routed, self._number, self._requests = client, routed, number, requests
        self.done = 0

    def run(self) -> None:
        late: list[str] = []
        for index in range(self._requests):
            self._timed(self._decide, f"g{self._number}-{index}")
            if index % 8 == 3:
                late.append(f"g{self._number}-{index}")
            else:
                self._timed(self._observe, f"g{self._number}-{index}")
            if index % 80 == 79:
                while late:
                    self._timed(self._observe, late.pop())
            self.done += 1
            time.sleep(AWAY_PAUSE_S if f"g{self._number}-{index}" in self._routed.fallbacks else PAUSE_S)
        while late:
            self._timed(self._observe, late.pop())

    def _timed(self, what: Any, decision: str) -> None:
        began = time.monotonic()
        try:
            what(decision)
        except NextarmError as error:
            self._routed.failures.append(f"{decision}: {error}")
        self._routed.slowest_s = max(self._routed.slowest_s, time.monotonic() - began)

    def _decide(self, decision: str) -> None:
        answer = self._client.decide(BANDIT, id=decision)
        self._routed.arms[decision] = str(answer.arm)
        if answer.is_fallback:
            self._routed.fallbacks.add(decision)

    def _observe(self, decision: str) -> None:
        self._client.observe(BANDIT, decision, reward=reward_of(decision))


def run(options: Options) -> list[Row]:
    """One service over SQLite, killed again and again under eight routers that share a client."""
    kills = options.kills or (2 if options.quick else 5)
    requests = options.events or (2_000 if options.quick else 10_000)
    server = Server(options.space("gateway"))
    try:
        return [_play(options, server, kills=kills, requests=requests)]
    finally:
        server.end()


def _play(options: Options, server: Server, *, kills: int, requests: int) -> Row:
    server.start()
    server.wait_until_ready()
    routed, began = Routed(), time.monotonic()
    with Client(f"http://{server.host}:{server.port}", fallback=FALLBACK) as client:
        client.create_bandit(BANDIT, **BANDITS[BANDIT])
        each = requests // ROUTERS
        routers = [Router(client, routed, number=number, requests=each) for number in range(ROUTERS)]
        for router in routers:
            router.start()
        unnoticed = 0
        for kill in range(kills):
            _wait_for(routers, each * ROUTERS * (2 * kill + 1) // (2 * kills), options, requests)
            before = client.stats.fallbacks
            server.kill()
            server.start()
            server.wait_until_ready()
            unnoticed += client.stats.fallbacks == before
        for router in routers:
            router.join()
        left, stats = client.flush(60.0), client.stats
        row = _judged(server, routed, stats)
        shown = client.show_bandit(BANDIT)
    if unnoticed:
        row.broken.append(f"{unnoticed} kills met no request")
    if left:
        row.broken.append(f"{left} reports were not delivered")
    if sum(arm.outcomes for arm in shown.arms) != len(routed.arms) or len(routed.arms) != each * ROUTERS:
        row.broken.append(f"{sum(arm.outcomes for arm in shown.arms)} outcomes learned of {len(routed.arms)} of {each * ROUTERS}")
    row.seen = (
        f"{kills} kills, {len(routed.arms):,} requests of {ROUTERS} routers, {len(routed.failures)} failed; "
        f"{stats.fallbacks:,} decided by the client, {stats.deferred:,} outcomes put off, {stats.delivered:,} delivered, "
        f"{stats.refused} refused, {stats.dropped} dropped; slowest request {routed.slowest_s:.2f} s; "
        f"{time.monotonic() - began:.0f} s"
    )
    return row


def _wait_for(routers: list[Router], done: int, options: Options, whole: int) -> None:
    while (now := sum(router.done for router in routers)) < done and any(router.is_alive() for router in routers):
        options.tell(now, whole)
        time.sleep(0.02)


def _judged(server: Server, routed: Routed, stats: ClientStats) -> Row:
    """What routers were answered against the log."""
    events = server.events(BANDIT)
    names = [arm["name"] for arm in events[0]["arms"]]
    row = Row(fault="the service killed under routers with the Python client", acknowledged=2 * len(routed.arms), lost=0, twice=0)
    counts = Counter((event["event"], event["id"]) for event in events[1:])
    twice = [key for key, count in counts.items() if count > 1]
    observed = {event["id"]: event for event in events if event["event"] == "observed"}
    lost = []
    for decision, arm in routed.arms.items():
        outcome = observed.get(decision)
        if outcome is None or (names[outcome["arm"]], outcome["reward"]) != (arm, reward_of(decision)):
            lost.append(f"{decision} for {arm}: {outcome}")
    row.lost, row.twice = len(lost), len(twice)
    row.broken = [*routed.failures, *(f"lost: {line}" for line in lost), *(f"twice: {key}" for key in twice)]
    if unasked := observed.keys() - routed.arms.keys():
        row.broken.append(f"outcomes that nothing was asked for: {sorted(unasked)[:5]}")
    if stats.fallbacks != len(routed.fallbacks) or stats.refused or stats.dropped or not routed.fallbacks:
        row.broken.append(f"{len(routed.fallbacks)} fallbacks were seen: {stats}")
    return row
