"""Every policy and option that changes its mathematics, under wild numbers: what is acknowledged can be folded."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from bandits import registry
from service.engine.learner import Learner
from service.storage.base import Durability, Log
from service.storage.memory import MemoryStorage
from tests.service.http_client import Json, Send, Service, blocking
from tests.service.recorded_logs import DIM, OUTPUT_DIM, POLICIES, learner_of, payloads_of

MORE: dict[str, Json] = {
    "pak-ucb-unscaled-linear": {"kind": "pak-ucb", "random_features": None, "kernel": "linear", "normalize": False},
    "pak-ucb-unscaled-rbf": {"kind": "pak-ucb", "random_features": None, "normalize": False},
    "promptwise-unscaled": {"kind": "promptwise", "normalize": False, "max_samples": 4, "forced_pulls": 0},
    "promptwise-ratio": {"kind": "promptwise", "normalize": False, "rule": "ratio"},
    "dak-ucb-unscaled": {
        "kind": "dak-ucb",
        "output_bandwidth": 0.9,
        "random_features": None,
        "normalize": False,
        "mixture": True,
    },
    "dak-ucb-mixture-jkd-unscaled": {
        "kind": "dak-ucb",
        "output_bandwidth": 0.9,
        "random_features": 4,
        "label_features": 6,
        "diversity": "jkd",
        "mixture": True,
        "normalize": False,
    },
    "fd-ucb-rigorous": {"kind": "fd-ucb", "bonus": "rigorous"},
}
ALL = POLICIES | MORE
EXAMPLES = 3

worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "length": st.integers(-12, 12),
        "away": st.sampled_from([0.0, 0.0, 1.0, 1e3, 1e6]),
        "spread": st.sampled_from(["normal", "equal", "nearly equal", "any length"]),
        "ridge": st.sampled_from([None, 1e-9, 1e-4, 1e6, 1e12]),
        "reward": st.sampled_from([1.0, 1e-12, 40.0, 1e12]),
        "moments": st.sampled_from([None, 1, 4, 12]),
    }
)


def numbers(g: Generator, n: int, world: Json) -> list[float]:
    """A vector that float32 holds."""
    x = g.standard_normal(n) + world["away"]
    if world["spread"] == "equal":
        x = np.linspace(0.5, 1.0, n) + world["away"]
    elif world["spread"] == "nearly equal":
        x = np.linspace(0.5, 1.0, n) + world["away"] + 1e-6 * g.standard_normal(n)
    length = float(g.integers(-12, 13)) if world["spread"] == "any length" else world["length"]
    return [float(np.float32(value)) for value in x * 10.0**length]


def is_number(value: Any) -> bool:
    """No NaN and no infinity anywhere; null is "not scored"."""
    if isinstance(value, dict):
        return all(map(is_number, value.values()))
    if isinstance(value, list):
        return all(map(is_number, value))
    return not isinstance(value, float) or math.isfinite(value)


async def digest_of(payloads: list[bytes], *, snapshot_at: int) -> tuple[int, str]:
    """Offset and digest of a bandit that is loaded from a snapshot after so many events, and from the events behind it."""
    storage = MemoryStorage()
    log, _ = await storage.create(Log("1", "wild"), payloads[0])
    for number, payload in enumerate(payloads[1:], start=2):
        if number == snapshot_at + 1:
            await (await Learner.load(storage, log)).projection.close()
            assert await storage.load_snapshots(log)
        await storage.append(log, str(number), payload, Durability.POWER)
    return (await Learner.load(storage, log)).digest()


async def nothing(_: Service) -> None:
    return


@pytest.fixture(scope="module")
def send() -> Any:
    with blocking(nothing, min_offset_wait_s=60.0) as ask:
        yield ask


class Course:
    """One bandit from its creation on; `ok` holds after every request."""

    def __init__(self, send: Send, policy: Json, world: Json) -> None:
        self.send, self.policy, self.world = send, policy, world
        self.g = default_rng(world["seed"])
        self.kind = policy["kind"]
        rule = registry.POLICIES[self.kind]
        self.takes_prompts = "features" in rule.needs or (rule.uses_prompt and policy.get("context", True))
        self.takes_outputs = "output" in rule.needs

    def ask(self, method: str, path: str, body: Json | None = None) -> Any:
        """The answer, or None where it is a refusal that changed nothing."""
        before = self.digest() if path else ""
        response = self.send(method, f"/v1/bandits/wild{path}", json=body)
        assert response.status_code < 500, f"{path}: {response.status_code} {response.text}"
        if response.status_code >= 400:
            assert not path or self.digest() == before, "a refusal comes before the log"
            return None
        answer = response.json() if response.content else {}
        assert is_number(answer)
        return answer

    def digest(self) -> str:
        response = self.send("GET", "/v1/bandits/wild/digest")
        assert response.status_code == 200, response.text
        return str(response.text)

    def output(self) -> list[Json]:
        if self.kind == "is-ucb":
            return [{"probabilities": self.g.dirichlet([10.0 ** (self.world["length"] / 6)] * 4).tolist()} for _ in range(2)]
        return [{"vector": numbers(self.g, OUTPUT_DIM, self.world)} for _ in range(2)]

    def created(self) -> bool:
        policy = dict(self.policy)
        if self.world["ridge"] is not None and self.kind in ("lin-ucb", "pak-ucb", "dak-ucb", "promptwise"):
            policy["ridge"] = self.world["ridge"]
        body: Json = {"policy": policy, "arms": [{"name": "small", "price": 0.2}, {"name": "large", "price": 0.7}], "seed": 7}
        if self.takes_prompts:
            body["prompt"] = {"dim": DIM}
        if self.takes_outputs:
            body["output"] = {"embedder": "probabilities", "dim": 4} if self.kind == "is-ucb" else {"dim": OUTPUT_DIM}
        return self.ask("PUT", "", body) is not None

    def refer(self) -> None:
        if self.policy.get("diversity") == "jkd":
            pairs = [{"prompt": {"vector": numbers(self.g, DIM, self.world)}, "output": self.output()[0]} for _ in range(3)]
            self.ask("POST", "/references", {"pairs": pairs})
        elif self.world["moments"] and (self.kind == "fd-ucb" or self.policy.get("objective") == "fid"):
            side = 10.0 ** (self.world["length"] * self.world["moments"])
            moments = {"mean": [side, -side], "covariance": [[1.1 * side**2, 0.0], [0.0, 0.7 * side**2]], "count": 40}
            self.ask("POST", "/references", {"moments": moments})
        elif self.kind == "fd-ucb" or self.policy.get("objective") in ("kid", "fid", "rke+quality"):
            self.ask("POST", "/references", {"outputs": [*self.output(), *self.output(), *self.output()]})

    def step(self, t: int) -> None:
        body: Json = {"id": f"d{t}"} | ({"prompt": {"vector": numbers(self.g, DIM, self.world)}} if self.takes_prompts else {})
        decision = self.ask("POST", "/decisions", body)
        if decision is None or decision["stop"]:
            return
        total = sum(decision["weights"].values())
        assert abs(total - 1.0) < 1e-9
        if t % 5 == 3:
            self.ask("DELETE", f"/decisions/d{t}")
        elif t % 5 != 4:
            reward = self.world["reward"] * float(self.g.standard_normal() if self.kind != "thompson" else self.g.random())
            outcome: Json = {"reward": max(min(reward, 1e12), -1e12), "cost": abs(reward) if abs(reward) <= 1e12 else 0.0}
            if self.takes_outputs:
                outcome["output"] = self.output()
            self.ask("PUT", f"/decisions/d{t}/outcome", outcome)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(world=worlds)
def test_what_is_acknowledged_can_be_folded_whatever_the_numbers(send: Send, name: str, world: Json) -> None:
    course = Course(send, ALL[name], world)
    if not course.created():
        return
    try:
        course.refer()
        for t in range(16):
            course.step(t)
        assert is_number(course.ask("GET", ""))
        digest = course.digest()
        log = send("GET", "/v1/bandits/wild/log").content

        payloads = payloads_of(log)
        replayed = asyncio.run(learner_of(payloads)).digest()
        assert f'"offset":{replayed[0]}' in digest
        assert replayed[1] in digest
        assert asyncio.run(digest_of(payloads, snapshot_at=len(payloads) // 2)) == replayed, "a restart in the middle"
    finally:
        send("DELETE", "/v1/bandits/wild")
