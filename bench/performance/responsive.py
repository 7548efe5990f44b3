"""Does a heavy bandit stay responsive, and does a light one beside it notice? Over HTTP, against a service of its own.

    python -m bench.performance.responsive                        FD-UCB with 2,048 numbers, FID mixtures with 1,024; 10 arms each
    python -m bench.performance.responsive --seconds 5 --dim 256  smaller

    client 1    decide and post 4 outputs, as fast as it can, at the heavy bandit   --> seconds per decision, per receipt
    client 2    one decision every 20 ms at the heavy bandit                        --> seconds per decision
    client 3    one decision every 20 ms at a light one (PAK-UCB, 16 numbers)       --> seconds per decision

The same three clients with the same bodies come twice: clients 1 and 2 first to a bandit that learns nothing (`random`), then to
the heavy one. The difference for client 3 is what the mathematics costs its neighbours. Clients are processes of their own.
What a decision at the heavy bandit may cost is one look at the last state that is ready.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.table import Table

from service.cli.replay.server import private_server

ARMS = 10
SAMPLES = 4
PACE_S = 0.02
LIGHT: dict[str, Any] = {"policy": {"kind": "pak-ucb"}, "arms": [{"name": n} for n in "abc"], "prompt": {"dim": 16}, "seed": 1}
HEAVY = {
    "fd-ucb": ({"kind": "fd-ucb"}, 2_048, 2_500),
    "mixture-greedy fid": ({"kind": "mixture-greedy", "objective": "fid"}, 1_024, 1_500),
}


class Api:
    """One connection to the service."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def ask(self, method: str, path: str, body: object = None) -> tuple[dict[str, Any], float]:
        """The answer and its seconds; raises for anything but success."""
        payload = None if body is None else json.dumps(body).encode()
        started = time.perf_counter()
        self._connection.request(method, f"/v1/bandits/{path}", payload, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - started
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {content[:300]!r}")
        return (json.loads(content) if content else {}), seconds


def encoded(rows: np.ndarray) -> list[dict[str, str]]:
    """Outputs as the API takes them."""
    return [{"vector": base64.b64encode(row.astype("<f4").tobytes()).decode()} for row in rows]


def samples(seed: int, arm: int, n: int, dim: int) -> np.ndarray:
    """(n, dim) outputs of an arm: spread 1 to 2, shifted by up to 1."""
    rng = np.random.default_rng([seed, arm])
    centre, spread = rng.normal(size=dim) * arm / ARMS, rng.uniform(1.0, 2.0, size=dim)
    return centre + spread * np.random.default_rng([seed, arm, time.perf_counter_ns()]).normal(size=(n, dim))


def working(url: str, bandit: str, dim: int, seconds: float) -> dict[str, list[float]]:
    """Client 1."""
    api, decisions, receipts = Api(url), [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        decision, took = api.ask("POST", f"{bandit}/decisions", {})
        decisions.append(took)
        outputs = encoded(samples(5, int(decision["arm"]), SAMPLES, dim))
        _, took = api.ask("PUT", f"{bandit}/decisions/{decision['id']}/outcome", {"output": outputs, "reward": 0.5})
        receipts.append(took)
    return {"decisions": decisions, "receipts": receipts}


def asking(url: str, bandit: str, body: dict[str, Any], seconds: float) -> list[float]:
    """Clients 2 and 3. What they ask for is cancelled again, outside of what is measured."""
    api, taken = Api(url), []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        decision, took = api.ask("POST", f"{bandit}/decisions", body)
        taken.append(took)
        api.ask("DELETE", f"{bandit}/decisions/{decision['id']}")
        time.sleep(max(0.0, now + PACE_S - time.monotonic()))
    return taken


def measured(url: str, name: str, seconds: float, dim: int | None) -> list[tuple[str, list[float]]]:
    """Rows of the table for one heavy bandit."""
    policy, full, references = HEAVY[name]
    dim, bandit = dim or full, name.replace(" ", "-")
    arms = [{"name": str(arm)} for arm in range(ARMS)]
    for wanted, its in ((bandit, policy), ("company", {"kind": "random"})):
        Api(url).ask("PUT", wanted, {"policy": its, "arms": arms, "output": {"dim": dim}, "seed": 1})
    for first in range(0, references, 250):
        reference = np.random.default_rng(first).normal(size=(min(250, references - first), dim))
        Api(url).ask("POST", f"{bandit}/references", {"outputs": encoded(reference)})
    told: list[tuple[str, list[float]]] = []
    for busy in ("company", bandit):
        with ProcessPoolExecutor(3) as pool:
            work = pool.submit(working, url, busy, dim, seconds)
            other = pool.submit(asking, url, busy, {}, seconds)
            light = pool.submit(asking, url, "light", {"prompt": {"vector": [0.1] * 16}}, seconds)
        label = name if busy == bandit else "random"
        told += [
            (f"{label}: decisions of the client that works", work.result()["decisions"]),
            (f"{label}: receipts of its outcomes ({SAMPLES} outputs each)", work.result()["receipts"]),
            (f"{label}: decisions of another client", other.result()),
            (f"light bandit beside {label}: decisions", light.result()),
        ]
        Api(url).ask("DELETE", busy)
    return told


def show(rows: Sequence[tuple[str, list[float]]], console: Console) -> None:
    """Counts and milliseconds."""
    table = Table("what", "n", "p50 ms", "p99 ms", "max ms")
    for what, taken in rows:
        p50, p99 = np.quantile(taken, [0.5, 0.99])
        table.add_row(what, str(len(taken)), *(f"{1e3 * value:.1f}" for value in (p50, p99, max(taken))))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="per bandit")
    parser.add_argument("--dim", type=int, help="length of the outputs instead of 2,048 and 1,024")
    parser.add_argument("--only", choices=list(HEAVY), help="one of the two")
    chosen = parser.parse_args()
    console = Console(width=110)
    with private_server() as url:
        Api(url).ask("PUT", "light", LIGHT)
        for name in [chosen.only] if chosen.only else HEAVY:
            show(measured(url, name, chosen.seconds, chosen.dim), console)


if __name__ == "__main__":
    main()
