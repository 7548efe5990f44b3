"""Routers that decide and report through the load balancer, as the pages say, and what the log must hold of it afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

PATIENCE_S = 180.0
ADMIN, READER = "k-admin", "k-reader"
BANDIT = {
    "policy": {"kind": "pak-ucb", "random_features": 32},
    "arms": [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}],
    "prompt": {"embedder": "vector", "dim": 3},
    "seed": 11,
}


class Acknowledged(NamedTuple):
    """What a router was answered. decided, observed: offsets."""

    id: str
    decided: int
    arm: str
    observed: int
    reward: float


class Client:
    """Decides and reports through nginx; what is refused by 503, or answered by half, it sends again, as it was."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=PATIENCE_S, trust_env=False
        )
        self.repeated = 0

    def send(self, method: str, path: str, body: Any, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                response = self.client.request(method, path, json=body, headers=headers)
            except httpx.TransportError:  # between the head of an answer and the rest, or on a connection that was being closed
                self.repeated += 1
                continue
            if response.status_code != 503:
                assert response.status_code in (200, 201), response.text
                found: dict[str, Any] = response.json()
                return found
            assert response.headers["content-type"] == "application/problem+json"
            self.repeated += 1
            time.sleep(0.05)
        raise AssertionError("it was refused for too long")

    def round(self, number: int) -> Acknowledged:
        """A decision and its outcome."""
        name, reward = f"d{number}", (number % 17) / 17
        vector = [number % 5 - 2.0, number % 3 / 3, 1.0]
        decision = self.send("POST", "/v1/bandits/b/decisions", {"id": name, "prompt": {"vector": vector}})
        receipt = self.send("PUT", f"/v1/bandits/b/decisions/{name}/outcome", {"reward": reward})
        return Acknowledged(name, decision["offset"], decision["arm"], receipt["offset"], reward)


def check_log(text: str, acknowledged: Sequence[Acknowledged]) -> int:
    """The number of events in a log of bandit `b`: it has no gap, nothing twice, and all that was acknowledged, as it was."""
    log = [json.loads(line) for line in text.splitlines()]
    assert [event["offset"] for event in log] == list(range(1, len(log) + 1)), "there is a gap, or an event is there twice"
    ids = [(event["event"], event["id"]) for event in log if event["event"] in ("decided", "observed")]
    assert len(set(ids)) == len(ids), "something was decided or learned twice"
    for answer in acknowledged:
        decided, observed = log[answer.decided - 1], log[answer.observed - 1]
        assert (decided["event"], decided["id"]) == ("decided", answer.id)
        assert BANDIT["arms"][decided["arm"]]["name"] == answer.arm  # type: ignore[index]
        assert (observed["event"], observed["id"], observed["reward"]) == ("observed", answer.id, answer.reward)
    return len(log)
