"""Duplicate storms: the same decision, then the same outcome, posted over and over to several replicas at once."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from queue import Empty, SimpleQueue
from random import Random
from typing import Any

from bench.faults.cases.shared import over_redis
from bench.faults.clients import Key, Record, decision_body, outcome_body
from bench.faults.replicas import judge
from bench.faults.rows import Options, Row, judged_row
from bench.faults.server import Server
from tools.processes import Answer, ask

CLIENTS, COPIES = 64, 40


def run(options: Options) -> list[Row]:
    """Decisions, then their outcomes."""
    posts = options.events or (2_000 if options.quick else 8_000)
    keys = [("prompts", f"storm-{i}") for i in range(posts // COPIES)]
    g = Random(options.seed)
    with over_redis(options, "duplicates") as (_, three):
        decided = _storm(three.servers, [("POST", key) for key in keys], g)
        options.tell(1, 3)
        observed = _storm(three.servers, [("PUT", key) for key in keys], g)
        options.tell(2, 3)
        record = Record()
        for key, answers in decided.items():
            _check_alike(key, answers, record, news=sum(answer.status == 201 for answer in answers))
            record.decided[key] = (answers[0].body["offset"], answers[0].body["arm"])
        for key, answers in observed.items():
            _check_alike(key, answers, record, news=sum(not answer.body["duplicate"] for answer in answers))
            record.observed[key] = answers[0].body["offset"]
        judged = judge(three, record)
    seen = (
        f"{posts:,} posts of {len(keys)} decisions and {posts:,} of their outcomes, {COPIES} of each at once by {CLIENTS} "
        "connections to 3 replicas: each new once, and all others answered alike"
    )
    return [judged_row("duplicate storm at 3 replicas, Redis", record, judged, seen=seen)]


def _storm(servers: list[Server], asked: list[tuple[str, Key]], g: Random) -> dict[Key, list[Answer]]:
    """Answers to every copy; those of a few keys are on their way at any time, in any order, to any replica."""
    queue: SimpleQueue[tuple[str, Key, int]] = SimpleQueue()
    for first in range(0, len(asked), 4):
        copies = [(*one, g.randrange(len(servers))) for one in asked[first : first + 4] for _ in range(COPIES)]
        g.shuffle(copies)
        for copy in copies:
            queue.put(copy)
    found: dict[Key, list[Answer]] = defaultdict(list)

    def work() -> None:
        connections = [server.connect() for server in servers]
        while True:
            try:
                method, key, at = queue.get_nowait()
            except Empty:
                return
            base = f"/v1/bandits/{key[0]}/decisions"
            path = base if method == "POST" else f"{base}/{key[1]}/outcome"
            body: dict[str, Any] = decision_body(key) if method == "POST" else outcome_body(key)
            found[key].append(ask(connections[at], method, path, body))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return found


def _check_alike(key: Key, answers: list[Answer], record: Record, *, news: int) -> None:
    statuses = Counter(answer.status for answer in answers)
    told = {(answer.body.get("offset"), answer.body.get("arm")) for answer in answers}
    if len(answers) != COPIES or set(statuses) - {200, 201} or len(told) != 1 or news != 1:
        record.broken.append(f"{key}: {len(answers)} answers, {dict(statuses)}, {len(told)} different, {news} of them new")
