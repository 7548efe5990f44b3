"""Records one small log per policy and option that changes what is summed, for `test_recorded_logs.py` to read for ever.

    python -m tests.service.recorded_logs          records what is not in tests/data/policies yet

A recorded log is never recorded again: it is what a release wrote. Beside each stands its packed state, and `digests.json` says
how far the log goes, what its digest was, and on which arithmetic.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator, default_rng

from bandits import registry
from bandits import state as states
from bandits.functional import kernels
from service.engine.learner import Learner
from service.storage.base import Durability, Log
from service.storage.memory import MemoryStorage
from tests.service.http_client import Clock, Json, Service, opened

DATA = Path(__file__).parents[1] / "data" / "policies"
DIM, OUTPUT_DIM = 3, 2
ROUNDS = 10
MANY = 150
"""Samples of an outcome: two of them fill a block of a second moment."""
HISTORY = 130
"""Rows that a log of `BLOCKS` imports, of two arms in turn: each closes two blocks of 32 in its sums, and holds the others."""

_RKE: Json = {"kind": "mixture-ucb", "bandwidth": 1.1, "random_features": 6, "initial_pulls": 1}
_GREEDY: Json = {"kind": "mixture-greedy", "bandwidth": 1.1, "random_features": 6, "initial_pulls": 1}
_DAK: Json = {"kind": "dak-ucb", "output_bandwidth": 0.9, "random_features": 4, "label_features": 6}
_EXACT: Json = {"random_features": None}

POLICIES: dict[str, Json] = {
    "auto": {"kind": "auto", "drift": "detect"},
    "auto-no-prompt": {"kind": "auto", "forget_half_life": 4},
    "random": {"kind": "random"},
    "one-arm": {"kind": "one-arm", "arm": 1},
    "greedy": {"kind": "greedy"},
    "epsilon-greedy": {"kind": "epsilon-greedy", "epsilon": 0.3},
    "thompson-beta": {"kind": "thompson", "posterior": "beta"},
    "thompson-gaussian": {"kind": "thompson", "posterior": "gaussian"},
    "thompson-student": {"kind": "thompson", "posterior": "student"},
    "lin-ucb": {"kind": "lin-ucb"},
    "lin-ucb-unscaled": {"kind": "lin-ucb", "normalize": False, "ridge": 0.5},
    "pak-ucb": {"kind": "pak-ucb", "random_features": 6},
    "pak-ucb-linear-added": {"kind": "pak-ucb", "random_features": 4, "add_linear": True, "normalize": False},
    "pak-ucb-rbf-exact": {"kind": "pak-ucb", **_EXACT, "bandwidth": 0.7},
    "pak-ucb-window": {"kind": "pak-ucb", **_EXACT, "max_samples": 4},
    "pak-ucb-polynomial": {"kind": "pak-ucb", **_EXACT, "kernel": "polynomial", "normalize": False},
    "pak-ucb-linear": {"kind": "pak-ucb", **_EXACT, "kernel": "linear"},
    "dak-ucb": _DAK,
    "dak-ucb-mixture": {**_DAK, "mixture": True, "normalise_labels": True},
    "dak-ucb-jkd": {**_DAK, "diversity": "jkd"},
    "dak-ucb-exact": {**_DAK, **_EXACT, "label_features": None, "diversity": "jkd", "mixture": True, "max_samples": 5},
    "promptwise": {"kind": "promptwise", "success_threshold": 0.6},
    "promptwise-window": {"kind": "promptwise", "success_threshold": 0.6, "max_samples": 4, "rule": "horizon", "costs": "price"},
    "promptwise-rff": {"kind": "promptwise", "success_threshold": 0.6, "features": "rff", "random_features": 4, "bias": False},
    "fd-ucb": {"kind": "fd-ucb", "bonus_scale": 0.3},
    "fd-ucb-moments": {"kind": "fd-ucb", "bonus": "rigorous", "threshold": 1.0},
    "is-ucb": {"kind": "is-ucb"},
    "is-ucb-kl": {"kind": "is-ucb", "bonus": "kl"},
    "mixture-ucb": _RKE,
    "mixture-ucb-cab-kid": {**_RKE, "method": "cab", "objective": "kid"},
    "mixture-ucb-cosine": {**_RKE, "kernel": "cosine", "bandwidth": None},
    "mixture-ucb-exact": {**_RKE, **_EXACT, "max_samples": 5, "normalize": True},
    "mixture-ucb-quality": {**_RKE, "objective": "rke+quality", "quality": "density", "neighbours": 2},
    "mixture-greedy": {**_GREEDY, "floor": 0.05},
    "mixture-greedy-vendi": {**_GREEDY, "objective": "vendi", "random_features": 4},
    "mixture-greedy-fid": {**_GREEDY, "objective": "fid"},
    "mixture-greedy-kid-cosine": {**_GREEDY, "objective": "kid", "kernel": "cosine", "bandwidth": None},
    "mixture-greedy-precision": {**_GREEDY, "objective": "rke+quality", "quality": "precision", "neighbours": 2},
    "lin-ucb-blocks": {"kind": "lin-ucb"},
    "pak-ucb-blocks": {"kind": "pak-ucb", "random_features": 6},
    "pak-ucb-forgetting-blocks": {"kind": "pak-ucb", "random_features": 4, "forget_half_life": 40},
    "dak-ucb-blocks": _DAK,
    "promptwise-blocks": {"kind": "promptwise", "success_threshold": 0.6, "max_samples": 50},
}
"""name -> policy of a recorded log."""

BLOCKS = [name for name in POLICIES if name.endswith("-blocks")]
"""Logs of layout 2 that are long enough for its blocks."""

FIELDS: dict[str, Json] = {
    "auto": {
        "signals": ["tokens"],
        "objective": {"reward": 2.0, "cost": -0.5, "latency_s": -0.1},
        "budget": {"signal": "cost", "per_decision": 0.4},
    },
    "auto-no-prompt": {"prices_per": "outcome", "budget": {"signal": "latency_s", "per_decision": 1.2}},
    "thompson-student": {"signals": ["latency_s"], "objective": {"reward": 1.0, "cost": -0.5}},
    "lin-ucb-blocks": {"signals": ["latency_s"], "objective": {"reward": 1.0, "cost": -0.5}},
}
"""name -> further fields of the bandit's body."""


def arithmetic() -> str:
    """A fingerprint of how this machine rounds sums, products, cosines and logarithms of a few hundred sizes and kinds that occur
    in the statistics. Where it is the recorded one, digests must be the recorded ones.
    """
    g, found = default_rng(1), hashlib.sha256()
    for n in (2, 3, 4, 5, 6, 8, 12, 16, 44, 256):
        matrix, vector = g.standard_normal((n, n)), g.standard_normal(n)
        both = torch.from_numpy(matrix)
        for piece in (
            kernels.product(matrix, vector),
            np.cos(matrix),
            np.sin(matrix),
            np.float64(vector @ vector),
            np.sqrt(np.abs(matrix)),
            (both @ both).numpy(),
            (both.T @ both).numpy(),
            torch.addr(both, both[0], both[1]).numpy(),
            torch.baddbmm(both[None], both[None], both[None]).numpy(),
            torch.cos(both).numpy(),
            torch.sin(both).numpy(),
            both.sum(0).numpy(),
            torch.xlogy(both.abs(), both.abs()).numpy(),
            torch.exp(both).numpy(),
            torch.linalg.vector_norm(both, dim=1).numpy(),
            torch.linalg.cholesky(both @ both.T + torch.eye(n)).numpy(),
        ):
            found.update(np.ascontiguousarray(piece).tobytes())
    return found.hexdigest()


async def learner_of(payloads: list[bytes]) -> Learner:
    """A bandit folded from these events."""
    storage = MemoryStorage()
    log, _ = await storage.create(Log("1", "recorded"), payloads[0])
    for number, payload in enumerate(payloads[1:], start=2):
        await storage.append(log, str(number), payload, Durability.POWER)
    return await Learner.load(storage, log)


def payloads_of(lines: bytes) -> list[bytes]:
    """The events of an exported log, without their offsets."""
    return [b"{" + line.split(b",", 1)[1] for line in lines.splitlines()]


async def recorded(name: str, policy: Json) -> bytes:
    """The log of a bandit under a bit of everything, as `GET .../log` streams it."""
    clock, g = Clock(), default_rng([ord(letter) for letter in name])
    kind = policy["kind"]
    rule = registry.POLICIES[kind]
    takes_prompts = "features" in rule.needs or (rule.uses_prompt and "no-prompt" not in name)
    takes_outputs = "output" in rule.needs
    body: Json = {
        "policy": policy,
        "arms": [{"name": "small", "price": 0.2}, {"name": "large", "price": 0.7}],
        "reward": {"timeout_s": 50.0} | ({} if takes_outputs else {"default": 0.25}),
        "seed": 7,
        **FIELDS.get(name, {}),
    }
    if takes_prompts:
        body["prompt"] = {"dim": DIM}
    if takes_outputs:
        probabilities = {"embedder": "probabilities", "dim": 4} if kind == "is-ucb" else {"dim": OUTPUT_DIM}
        body["output"] = probabilities
    async with opened(clock=clock) as service:
        await service.create(body=body)
        await _refer(service, name, policy, g)
        for t in range(ROUNDS):
            if t == 6 and name in BLOCKS:
                rows = [_row(name, i, g, takes_outputs=takes_outputs) for i in range(HISTORY)]
                assert (await service.post("/v1/bandits/b/import", {"id": "history", "rows": rows})).status_code == 200
            await _round(service, name, t, g, clock, takes_prompts=takes_prompts, takes_outputs=takes_outputs, policy=policy)
        return (await service.get("/v1/bandits/b/log")).content


async def _refer(service: Service, name: str, policy: Json, g: Generator) -> None:
    if name == "fd-ucb-moments":
        moments = {"mean": [0.1, -0.2], "covariance": [[1.1, 0.2], [0.2, 0.7]], "count": 40}
        assert (await service.post("/v1/bandits/b/references", {"moments": moments})).status_code == 201
    elif policy.get("diversity") == "jkd":
        pairs = [{"prompt": {"vector": _numbers(g, DIM)}, "output": {"vector": _numbers(g, OUTPUT_DIM)}} for _ in range(3)]
        assert (await service.post("/v1/bandits/b/references", {"pairs": pairs})).status_code == 201
    elif policy["kind"] == "fd-ucb" or policy.get("objective") in ("kid", "fid", "rke+quality"):
        outputs = [{"vector": _numbers(g, OUTPUT_DIM)} for _ in range(5)]
        assert (await service.post("/v1/bandits/b/references", {"outputs": outputs})).status_code == 201


def _numbers(g: Generator, n: int) -> list[float]:
    return [float(x) for x in g.standard_normal(n).round(3)]


def _output(g: Generator, policy: Json, *, many: bool) -> list[Json]:
    if policy["kind"] == "is-ucb":
        return [{"probabilities": [float(x) for x in g.dirichlet([0.7] * 4)]} for _ in range(2)]
    samples = MANY if many else 2
    return [{"vector": _numbers(g, OUTPUT_DIM)} for _ in range(samples)]


def _row(name: str, i: int, g: Generator, *, takes_outputs: bool) -> Json:
    """A row of history; every seventh lacks a signal."""
    row: Json = {"arm": ("small", "large")[i % 2], "prompt": {"vector": _numbers(g, DIM)}, "reward": round(float(g.random()), 3)}
    row["cost"] = round(float(g.random()), 3)
    if name in FIELDS and i % 7:
        row["signals"] = {"latency_s": round(float(g.random()), 3)}
    if takes_outputs:
        row["output"] = {"vector": _numbers(g, OUTPUT_DIM)}
    return row


async def _round(
    service: Service,
    name: str,
    t: int,
    g: Generator,
    clock: Clock,
    *,
    takes_prompts: bool,
    takes_outputs: bool,
    policy: Json,
) -> None:
    """A decision and its outcome; on the way an arm comes and one goes, a decision expires, one is cancelled, one stays open."""
    clock.forward(1.0)
    prompt = {"prompt": {"vector": _numbers(g, DIM)}} if takes_prompts else {}
    decision = await service.decide(body={"id": f"d{t}", **prompt})
    if decision["stop"] or t == ROUNDS - 1:
        return
    path = f"/v1/bandits/b/decisions/d{t}"
    if t == 3:
        assert (await service.delete(path)).status_code == 204
    else:
        moments = name.startswith("fd-ucb") or policy.get("objective") == "fid"
        outcome: Json = {"reward": float(g.random().__round__(3)), "cost": float(g.random().__round__(3))}
        if name in FIELDS:
            outcome["signals"] = {"latency_s": float(g.random().__round__(3)), **({"stars": 4.0} if t % 2 else {})}
            if t == 5:
                del outcome["cost"]
        if takes_outputs:
            outcome["output"] = _output(g, policy, many=moments and t in (1, 2))
        if policy.get("diversity") == "jkd" and t % 2:
            outcome["reference"] = {"vector": _numbers(g, OUTPUT_DIM)}
        if t == 4:
            assert (await service.put("/v1/bandits/b/arms/new", {"price": 0.4})).status_code == 201
            clock.forward(51.0)
            assert (await service.put(f"{path}/outcome", outcome)).status_code == 410, "it expired"
            return
        if t in (1, 2) and moments:
            outcome["arm"] = "small"
        elif t == 6:
            outcome["arm"] = "large"
        await service.observe(f"d{t}", outcome)
    if t == 7:
        assert (await service.delete("/v1/bandits/b/arms/new")).status_code == 204


async def _record_all() -> None:
    DATA.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    index = DATA / "digests.json"
    known: Json = json.loads(index.read_text()) if index.exists() else {}
    for name, policy in POLICIES.items():
        if name in known:
            continue
        lines = await recorded(name, policy)
        learner = await learner_of(payloads_of(lines))
        offset, sha256 = learner.digest()
        (DATA / f"{name}.ndjson").write_bytes(lines)
        (DATA / f"{name}.safetensors").write_bytes(states.pack(learner.policy, learner.versions.committed.state))
        known[name] = {"offset": offset, "sha256": sha256, "arithmetic": arithmetic()}
    index.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(_record_all())
