"""What the Python client costs: `python -m bench.performance.client`.

Decisions by vector and their outcomes, one after the other on one connection: by httpx2 alone, by `Client`, by `AsyncClient`, in
turns, against one service.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from nextarm import AsyncClient, Client, float32

from tools.processes import Server

DIM = 384
BANDIT: dict[str, Any] = {
    "policy": {"kind": "pak-ucb", "random_features": 64},
    "arms": [{"name": name} for name in "abcd"],
    "prompt": {"dim": DIM},
}
Times = dict[str, list[float]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.performance.client", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3000, help="decisions of each kind (default: 3000)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="nextarm-client-") as folder:
        server = Server(Path(folder), store="memory://")
        server.start()
        try:
            server.wait_until_ready()
            times = asyncio.run(measured(f"http://{server.host}:{server.port}", rounds))
        finally:
            server.end()
    bare = statistics.median(times["httpx2"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:12} p50 {middle * 1e3:6.3f} ms   p99 {np.quantile(seconds, 0.99) * 1e3:6.3f} ms   {middle / bare:5.2f} x")


async def measured(url: str, rounds: int) -> Times:
    """Seconds of each decision, by who asked; the three take turns, so that they see the same machine."""
    g = np.random.default_rng(1)
    times: Times = {"httpx2": [], "Client": [], "AsyncClient": []}
    with httpx2.Client() as bare, Client(url, api_key="") as client:
        async with AsyncClient(url, api_key="") as awaited:
            client.create_bandit("b", **BANDIT)

            async def ask_bare(vector: str, number: int) -> None:
                body = {"id": f"bare-{number}", "prompt": {"vector": vector}}
                bare.post(f"{url}/v1/bandits/b/decisions", json=body).json()

            async def ask_client(vector: str, number: int) -> None:
                client.decide("b", prompt={"vector": vector})

            async def ask_awaited(vector: str, number: int) -> None:
                await awaited.decide("b", prompt={"vector": vector})

            askers: list[tuple[str, Callable[[str, int], Awaitable[None]]]] = [
                ("httpx2", ask_bare),
                ("Client", ask_client),
                ("AsyncClient", ask_awaited),
            ]
            for number in range(rounds + 50):
                vector = float32(g.standard_normal(DIM))
                for name, ask in askers:
                    began = time.perf_counter()
                    await ask(vector, number)
                    if number >= 50:  # connections and models are there
                        times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
