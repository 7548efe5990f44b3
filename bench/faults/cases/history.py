"""kill -9 while history is imported, and while a bandit is cloned: every row is learned once, in order, whatever was cut off."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from random import Random
from typing import Any

from bench.faults.replicas import Replicas, digests, persistently, replayed
from bench.faults.rows import Options, Row
from bench.faults.server import Server
from tools.processes import EVERYSEC, Answer, RedisServer, ServerFailed

CHUNK = 128
BODY: dict[str, Any] = {
    "policy": {"kind": "pak-ucb", "random_features": 32},
    "arms": [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}],
    "prompt": {"dim": 4},
    "seed": 7,
}
PATIENCE_S = 300.0


def run(options: Options) -> list[Row]:
    """One process over SQLite, then two replicas over Redis."""
    found = []
    folder = options.space("import-sqlite")
    with Replicas(folder, "", number=1) as one:
        found.append(_play(options, one, "kill -9 during an import and a clone, SQLite"))
    folder = options.space("import-redis")
    with RedisServer(*EVERYSEC, folder=folder / "redis") as redis, Replicas(folder, redis.url, number=2) as two:
        found.append(_play(options, two, "kill -9 during an import and a clone, 2 replicas, Redis"))
    return found


def rows_of(number: int, seed: int) -> list[dict[str, Any]]:
    """Rows with ids of their own."""
    g = Random(seed)
    return [
        {
            "id": f"row-{i}",
            "arm": g.choice(("small", "large")),
            "prompt": {"vector": [round(g.gauss(0.0, 1.0), 3) for _ in range(4)]},
            "reward": round(g.random(), 3),
            "propensity": 0.5,
        }
        for i in range(number)
    ]


def _play(options: Options, replicas: Replicas, fault: str) -> Row:
    kills = options.kills or (2 if options.quick else 10)
    rows = rows_of(options.events or (8_000 if options.quick else 40_000), options.seed)
    g = Random(options.seed)
    replicas.start({"b": BODY, "whole": BODY})
    importer = _Importer(replicas.servers, rows)
    importer.start()
    killed = _kill(replicas, kills, g, until=importer.is_done)
    importer.join(PATIENCE_S)
    _post_all(replicas.servers, "whole", rows)
    ask = replicas.servers[0].ask
    clone = {"name": "copy", "policy": BODY["policy"]}
    persistently(lambda: ask("POST", "/v1/bandits/b/clone", clone, timeout_s=PATIENCE_S))
    killed_cloning = _kill(replicas, kills, g, until=lambda: _is_complete(replicas.servers))
    _wait_for_clone(replicas.servers)
    replicas.wait_until_ready()
    return _judged(fault, replicas, importer, rows, f"{killed} kills during the import, {killed_cloning} during the clone")


class _Importer(threading.Thread):
    """Posts every chunk until it is acknowledged, to any replica."""

    def __init__(self, servers: list[Server], rows: list[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.learned = self.again = 0
        self._servers, self._rows = servers, rows

    def run(self) -> None:
        self.learned, self.again = _post_all(self._servers, "b", self._rows)

    def is_done(self) -> bool:
        return not self.is_alive()


def _post_all(servers: list[Server], bandit: str, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Rows that the last answer of each chunk calls learned now, and learned before."""
    learned = again = 0
    for first in range(0, len(rows), CHUNK):
        body = {"rows": rows[first : first + CHUNK]}
        answer = _asked(servers, first // CHUNK, "POST", f"/v1/bandits/{bandit}/import", body)
        if answer.status != 200:
            raise ServerFailed(f"rows from {first}: {answer}")
        learned, again = learned + answer.body["learned"], again + answer.body["duplicates"]
    return learned, again


def _asked(servers: list[Server], at: int, method: str, path: str, body: Any = None) -> Answer:
    """The first answer that is neither a cut connection nor a 503."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            answer = servers[at % len(servers)].ask(method, path, body, timeout_s=60.0)
            if answer.status != 503:
                return answer
        except (OSError, http.client.HTTPException):
            pass
        at += 1
        time.sleep(0.05)
    raise ServerFailed(f"{method} {path} was never answered")


def _kill(replicas: Replicas, kills: int, g: Random, *, until: Any) -> int:
    """Kill a random replica so often, or until that is so; each is ready again before the next is killed."""
    for kill in range(kills):
        time.sleep(g.uniform(0.02, 0.4))
        if until():
            return kill
        victim = g.choice(replicas.servers)
        victim.kill()
        victim.start()
        victim.wait_until_ready()
    return kills


def _is_complete(servers: list[Server]) -> bool:
    try:
        answer = servers[0].ask("GET", "/v1/bandits/copy")
    except (OSError, http.client.HTTPException):
        return False
    return answer.status == 200 and answer.body["cloning"] is None


def _wait_for_clone(servers: list[Server]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _is_complete(servers):
        if time.monotonic() > deadline:
            raise ServerFailed("the clone was never complete")
        time.sleep(0.1)


def _judged(fault: str, replicas: Replicas, importer: _Importer, rows: list[dict[str, Any]], seen: str) -> Row:
    logs = {name: [event for event in replicas.servers[0].events(name) if event["event"] == "imported"] for name in ("b", "copy")}
    asked = Counter(row["id"] for row in rows)
    found = Counter(event["id"] for event in logs["b"])
    row = Row(fault=fault, acknowledged=len(rows))
    row.lost = (asked - found).total()
    row.twice = (found - asked).total()
    contents = [(event["id"], event["reward"]) for event in logs["b"]]
    if contents != [(one["id"], one["reward"]) for one in rows]:
        row.broken.append("the rows are not in the log as they were sent, in order")
    if [(event["id"], event["reward"]) for event in logs["copy"]] != contents:
        row.broken.append("the clone has other outcomes than its source")
    if importer.learned + importer.again != len(rows):
        row.broken.append(f"{importer.learned} rows learned and {importer.again} known before are not {len(rows)}")
    first, names = replicas.servers[0], ("b", "copy", "whole")
    ends = {name: first.ask("GET", f"/v1/bandits/{name}/digest").body["offset"] for name in names}
    found_at = {server.name: digests(server, ends) for server in replicas.servers}
    found_at["replayed"] = {name: one[:2] for name, one in replayed(first.store).items()}
    said = [(f"{name} at {where}", one[1]) for where, of in found_at.items() for name, one in of.items()]
    most = Counter(sha256 for _, sha256 in said).most_common(1)[0]
    row.digests = f"{most[1]} of {len(said)}"
    row.broken += [f"{name} has another digest" for name, sha256 in said if sha256 != most[0]]
    row.broken += [f"{row.lost} rows lost"] * bool(row.lost) + [f"{row.twice} rows learned twice"] * bool(row.twice)
    row.seen = (
        f"{len(rows):,} rows in requests of {CHUNK}, {seen}; the import, its clone, a bandit that imported the same rows without "
        f"a kill, and replays have one digest; {importer.again:,} rows were found as learned by the request that was repeated"
    )
    return row
