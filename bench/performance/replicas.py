"""What more replicas cost: CPU time of the service per request, one process over SQLite beside one and three over Redis.

    python -m bench.performance.replicas                  7 rounds of 1,500 decisions and their outcomes per set-up, medians
    python -m bench.performance.replicas --quick          1 round of 200, and 1 and 4 replicas: less than a minute
    python -m bench.performance.replicas --write          and the table in docs/faults.md

All set-ups run at the same time and take turns, so that a noisy machine is noisy for all of them. Counted is the time of the
service's processes (user and system, /proc), until every replica has learned what was acknowledged; Redis' own is shown apart.

    SQLite       1 process
    Redis 1      1 replica
    Redis 3      3 replicas, each request at the next one: the sum of all three, so every event's fold on three replicas
    one of 3     3 replicas, all requests at one: what that one takes; "others" is what each of the two others takes to learn

Then 1, 2 and 4 replicas over a Redis each, the CPU of all of them per request (a decision or its outcome):

    affinity     64 bandits, each asked at one replica alone, as a balancer that hashes their names does
    spread       one bandit, each request at the next replica

The share of a follower is what one more replica adds to a request of the spread bandit, over what it costs at one replica.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from bench.faults.clients import decision_body
from bench.faults.replicas import Replicas, digests
from bench.faults.server import Server
from bench.pages import markdown, show, write
from tools.processes import EVERYSEC, TICKS_PER_S, RedisServer, ServerFailed, ask

CLIENTS = 8
SELECT_AT_MOST, OUTCOME_AT_MOST = 1.15, 1.5
"""Times SQLite; an outcome's without the fold on the other replicas."""
BANDIT: dict[str, Any] = {
    "policy": {"kind": "pak-ucb", "random_features": 128},
    "arms": [{"name": name} for name in "abcd"],
    "prompt": {"dim": 8},
    "seed": 3,
}
SETTINGS = {"SWEEP_S": "0.5"}
MANY = [f"bandit-{i}" for i in range(64)]
AFFINITY_AT_MOST, SPREAD_AT_MOST, FOLLOWED_AT_MOST = 1.1, 1.4, 0.1
"""Times one replica, of the sum over all; and the share of a follower."""


class Cost(NamedTuple):
    """Microseconds of CPU per request: of the service's processes, of each replica that was not asked, of Redis."""

    service: float
    others: float
    redis: float


class SetUp(NamedTuple):
    """name, replicas, those of them that are asked, Redis if there is one."""

    name: str
    servers: list[Server]
    asked: list[Server]
    redis: RedisServer | None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.performance.replicas", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, help="per set-up (default: 7)")
    parser.add_argument("--requests", type=int, help="decisions, and as many outcomes, per round (default: 1,500)")
    parser.add_argument("--quick", action="store_true", help="1 round of 200, and 1 and 4 replicas alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/faults.md")
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 7)
    requests = given.requests or (200 if given.quick else 1_500)
    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="nextarm-replicas-") as folder, ExitStack() as stack:
        set_ups = _start(Path(folder), stack)
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
            for set_up in set_ups[number % len(set_ups) :] + set_ups[: number % len(set_ups)]:
                found = _round(set_up, requests, number)
                for kind, cost in found.items():
                    if number:  # the first one warms up
                        costs[set_up.name, kind].append(cost)
    lines = _lines(costs, [set_up.name for set_up in set_ups])
    show("CPU per request", COLUMNS, lines, Console(width=None if sys.stdout.isatty() else 140))
    ratios = _ratios(costs)
    scaled, scaling = _scaling((1, 4) if given.quick else (1, 2, 4), rounds, requests)
    show("CPU of all replicas per request", SCALING_COLUMNS, scaled, Console(width=None if sys.stdout.isatty() else 140))
    if given.write:
        command = f"python -m bench.performance.replicas --rounds {rounds} --requests {requests}"
        table = markdown(COLUMNS, lines, right=COLUMNS[1:])
        scaled_table = markdown(SCALING_COLUMNS, scaled, right=SCALING_COLUMNS[1:])
        write({"replicas": f"{table}\n\n{scaled_table}\n\n`{command}`; medians of {rounds} rounds. {ratios} {scaling}"})
    print(ratios)
    print(scaling)


def _start(folder: Path, stack: ExitStack) -> list[SetUp]:
    redis = [stack.enter_context(RedisServer(*EVERYSEC, folder=folder / f"redis-{i}")) for i in range(2)]
    stores = {"sqlite": (f"sqlite:///{folder / 'store.db'}", 1), "one": (redis[0].url, 1), "three": (redis[1].url, 3)}
    groups = {}
    for name, (store, number) in stores.items():
        (folder / name).mkdir()
        groups[name] = stack.enter_context(
            Replicas(folder / name, store, number=number, settings=SETTINGS, snapshot_every=10_000)
        )
        groups[name].start({"cost": BANDIT})
    three = groups["three"].servers
    return [
        SetUp("SQLite", groups["sqlite"].servers, groups["sqlite"].servers, None),
        SetUp("Redis 1", groups["one"].servers, groups["one"].servers, redis[0]),
        SetUp("Redis 3", three, three, redis[1]),
        SetUp("one of 3", three, three[:1], redis[1]),
    ]


def _round(set_up: SetUp, requests: int, number: int) -> dict[str, Cost]:
    path = "/v1/bandits/cost/decisions"
    bodies = [decision_body(("prompts", f"{set_up.name}-{number}-{i}")) for i in range(requests)]
    for body in bodies:
        del body["id"]  # the server's own id: no look whether it is known
    decided: list[str] = []
    cost = {}
    cost["select"] = _cost(
        set_up, requests, lambda: decided.extend(_all(set_up.asked, [("POST", path, body) for body in bodies]))
    )
    outcomes = [("PUT", f"{path}/{decision}/outcome", {"reward": i % 100 / 100}) for i, decision in enumerate(decided)]
    cost["outcome"] = _cost(set_up, requests, lambda: _all(set_up.asked, outcomes))
    return cost


def _cost(set_up: SetUp, requests: int, work: Callable[[], object]) -> Cost:
    def spent() -> list[float]:
        return [*(server.cpu_s() for server in set_up.servers), 0.0 if set_up.redis is None else _redis_s(set_up.redis)]

    before = spent()
    work()
    end = set_up.asked[0].ask("GET", "/v1/bandits/cost/digest").body["offset"]
    for server in set_up.servers:
        digests(server, {"cost": end})
    used = [(after - first) / requests * 1e6 for after, first in zip(spent(), before, strict=True)]
    service, others = used[: len(set_up.asked)], used[len(set_up.asked) : len(set_up.servers)]
    return Cost(sum(service), statistics.mean(others) if others else 0.0, used[-1])


def _scaling(numbers: Sequence[int], rounds: int, requests: int) -> tuple[list[tuple[str, ...]], str]:
    """The table of 1 replica and more, and its ratios against what is aimed at. All replicas run at the same time."""
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="nextarm-replicas-") as folder, ExitStack() as stack:
        groups = {}
        for number in numbers:
            place = Path(folder) / str(number)
            place.mkdir()
            redis = stack.enter_context(RedisServer(*EVERYSEC, folder=place / "redis"))
            groups[number] = stack.enter_context(
                Replicas(place, redis.url, number=number, settings=SETTINGS, snapshot_every=10_000)
            )
            groups[number].start({"cost": BANDIT, **dict.fromkeys(MANY, BANDIT)})
        for turn in track(range(rounds + 1), "1 replica and more", console=Console(stderr=True), transient=True):
            for number in (*numbers[turn % len(numbers) :], *numbers[: turn % len(numbers)]):
                for name, bandits in (("affinity", MANY), ("spread", ["cost"])):
                    used = _cost_of_all(groups[number].servers, bandits, requests, f"{name}-{turn}")
                    if turn:  # the first one warms up
                        costs[name, number].append(used)
    medians = {key: statistics.median(values) for key, values in costs.items()}
    lines, told = list[tuple[str, ...]](), list[str]()
    for name, limit in (("affinity", AFFINITY_AT_MOST), ("spread", SPREAD_AT_MOST)):
        ratios = {n: statistics.median(map(truediv, costs[name, n], costs[name, 1])) for n in numbers}
        lines += [(f"{name}, {n}", f"{medians[name, n]:.0f}", f"{ratios[n]:.2f}") for n in numbers]
        last = ratios[numbers[-1]]
        told.append(f"{name}: {last:.2f}x (aim: at most {limit:g}x, {'met' if last <= limit else 'missed'})")
        if name == "spread":
            share = (last - 1.0) / (numbers[-1] - 1)
            aim = f"aim: at most {FOLLOWED_AT_MOST:g}, {'met' if share <= FOLLOWED_AT_MOST else 'missed'}"
            told.append(f"followed event / served request: {share:.2f} ({aim})")
    return lines, f"All of {numbers[-1]} replicas against one: {'; '.join(told)}."


def _cost_of_all(servers: Sequence[Server], bandits: Sequence[str], requests: int, prefix: str) -> float:
    """Microseconds of CPU of all replicas per request: of several bandits, each at its own replica; one goes to all of them."""
    homes = [[servers[zlib.crc32(name.encode()) % len(servers)]] for name in bandits] if len(bandits) > 1 else [servers]
    shares = [(name, home, range(i, requests, len(bandits))) for i, (name, home) in enumerate(zip(bandits, homes, strict=True))]
    for name, home, _ in shares:  # loaded, which is no cost of these requests
        for server in home:
            digests(server, {name: 1})
    before = sum(server.cpu_s() for server in servers)
    for name, home, mine in shares:
        path = f"/v1/bandits/{name}/decisions"
        asked = []
        for i in mine:
            body = decision_body(("prompts", f"{prefix}-{name}-{i}"))
            del body["id"]
            asked.append(("POST", path, body))
        decided = _all(home, asked)
        _all(home, [("PUT", f"{path}/{decision}/outcome", {"reward": i % 100 / 100}) for i, decision in enumerate(decided)])
        end = home[0].ask("GET", f"/v1/bandits/{name}/digest").body["offset"]
        for server in home:
            digests(server, {name: end})
    return (sum(server.cpu_s() for server in servers) - before) / (2 * requests) * 1e6


def _redis_s(redis: RedisServer) -> float:
    fields = Path(f"/proc/{redis.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _all(servers: Sequence[Server], asked: Sequence[tuple[str, str, Any]]) -> list[str]:
    """Ids of decisions, by clients each of which asks one replica after the other."""
    found: list[str] = []
    failures: list[str] = []

    def work(mine: Sequence[tuple[str, str, Any]]) -> None:
        connections = [server.connect() for server in servers]
        try:
            for i, (method, path, body) in enumerate(mine):
                answer = ask(connections[i % len(connections)], method, path, body)
                if answer.status not in (200, 201):
                    failures.append(f"{method} {path}: {answer}")
                found.append(answer.body.get("id", ""))
        except (OSError, http.client.HTTPException) as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=(asked[i::CLIENTS],)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise ServerFailed(failures[0])
    return found


def _median(costs: dict[tuple[str, str], list[Cost]], name: str, kind: str) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs[name, kind], strict=True)))


def _lines(costs: dict[tuple[str, str], list[Cost]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """set-up, then per kind: CPU, times SQLite, each of the others, Redis."""
    lines = []
    for name in names:
        cells = [name]
        for kind in ("select", "outcome"):
            cost, base = _median(costs, name, kind), _median(costs, "SQLite", kind)
            cells += [f"{cost.service:.0f}", f"{cost.service / base.service:.2f}", f"{cost.others:.0f}" if cost.others else ""]
            cells.append(f"{cost.redis:.0f}" if cost.redis else "")
        lines.append(tuple(cells))
    return lines


def _ratios(costs: dict[tuple[str, str], list[Cost]]) -> str:
    """The request at one of three replicas, against SQLite's, and whether it is what is aimed at."""
    told = []
    for kind, limit in (("select", SELECT_AT_MOST), ("outcome", OUTCOME_AT_MOST)):
        ratio = _median(costs, "one of 3", kind).service / _median(costs, "SQLite", kind).service
        told.append(f"{kind}: {ratio:.2f}x of SQLite (aim: at most {limit:g}x{', met' if ratio <= limit else ', missed'})")
    return f"The replica that is asked, of three: {'; '.join(told)}."


COLUMNS = (
    "set-up",
    *(f"{kind}: {what}" for kind in ("select", "outcome") for what in ("CPU us", "x SQLite", "others us", "Redis us")),
)

SCALING_COLUMNS = ("bandits, replicas", "CPU us of all replicas", "x one replica")


if __name__ == "__main__":
    main()
