"""Two replicas whose clocks are an hour apart: do they agree on which decisions are overdue?

a decision at one, its outcome at the other, at once       must be accepted: nothing is overdue
a decision at one, and no outcome                          must expire after the bandit's 3 s, neither before nor much later
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from bench.faults.clients import Record, decision_body, outcome_body
from bench.faults.replicas import Replicas, judge
from bench.faults.rows import Options, Row, judged_row
from bench.faults.server import Server
from tools.processes import EVERYSEC, RedisServer, wait_until

SHIFT_S, TIMEOUT_S = 3600.0, 3.0
BANDIT: dict[str, Any] = {
    "policy": {"kind": "greedy"},
    "arms": [{"name": name} for name in "abc"],
    "reward": {"default": 0.125, "timeout_s": TIMEOUT_S},
    "seed": 4,
}


def run(options: Options) -> list[Row]:
    """Both ways round."""
    number = 40 if options.quick else 400
    folder = options.space("clocks")
    with RedisServer(*EVERYSEC, folder=folder / "redis") as redis, Replicas(folder, redis.url, number=1) as here:
        ahead = Server(folder, store=redis.url, name="an-hour-ahead", program=("-m", "bench.faults.shifted"))
        ahead.environment["SHIFT_S"] = str(SHIFT_S)
        here.servers.append(ahead)
        here.start({"hourly": BANDIT})
        record = Record()
        for i in range(number):
            options.tell(i, number)
            one, other = (here.servers, here.servers[::-1])[i % 2]
            _decide(one, f"d{i}", record)
            _observe(other, f"d{i}", record)
        for i in range(20):
            _decide(here.servers[i % 2], f"left-{i}", record)
        time.sleep(TIMEOUT_S)
        first = here.servers[0]
        wait_until(lambda: not first.ask("GET", "/v1/bandits/hourly").body["open"], "overdue decisions are closed", 30.0)
        judged = judge(here, record, bandits=["hourly"])
    row = judged_row("two replicas with clocks an hour apart, Redis", record, judged, seen="")
    lived = _lived(judged.logs["hourly"])
    if len(lived) != 20 or min(lived) < TIMEOUT_S or max(lived) > TIMEOUT_S + 2.0:
        row.broken.append(f"{len(lived)} of 20 decisions expired, after {min(lived or [0]):.2f} to {max(lived or [0]):.2f} s")
    row.seen = (
        f"{record.counts['accepted']} of {number} outcomes accepted by the replica that did not decide; {len(lived)} decisions "
        f"without one expired {min(lived or [0]):.2f} to {max(lived or [0]):.2f} s after they were made (timeout {TIMEOUT_S:g} "
        "s): both go by Redis' clock"
    )
    return [row]


def _decide(server: Server, decision: str, record: Record) -> None:
    answer = server.ask("POST", "/v1/bandits/hourly/decisions", decision_body(("hourly", decision)))
    if answer.status == 201:
        record.decided["hourly", decision] = (answer.body["offset"], answer.body["arm"])
    else:
        record.broken.append(f"decision {decision} at {server.name}: {answer.status} {answer.body.get('code')}")


def _observe(server: Server, decision: str, record: Record) -> None:
    body = outcome_body(("hourly", decision))
    answer = server.ask("PUT", f"/v1/bandits/hourly/decisions/{decision}/outcome", body)
    if answer.status == 200:
        record.counts["accepted"] += 1
        record.observed["hourly", decision] = answer.body["offset"]
    else:
        record.broken.append(f"outcome {decision} at {server.name}: {answer.status} {answer.body.get('code')}")


def _lived(events: list[dict[str, Any]]) -> list[float]:
    """Seconds from each decision to its expiry, as the log has them."""
    made = {event["id"]: datetime.fromisoformat(event["at"]) for event in events if event["event"] == "decided"}
    closed = [event for event in events if event["event"] == "expired"]
    return [(datetime.fromisoformat(event["at"]) - made[event["id"]]).total_seconds() for event in closed]
