"""A bandit whose clients send vectors, beside one whose texts keep an embedder busy: does it notice?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.performance.load_testing import wrk
from bench.performance.load_testing.overload import drive
from bench.performance.load_testing.plans import Plan
from bench.performance.load_testing.rig import Rig

RATE = 100.0
"""Requests per second of the quiet neighbor."""


def beside_an_embedder(rig: Rig, folder: Path, *, embedder: str, seconds: float) -> dict[str, Any]:
    """ms: p50 and p99 of the neighbor alone and beside; new texts per second that were embedded meanwhile."""
    with rig.bandit() as quiet, rig.bandit(embedder=embedder, learned=16) as busy:
        alone = drive(rig.urls[0], quiet, rate=RATE, connections=16, seconds=seconds)
        plan = Plan(kind="texts", path=f"/v1/bandits/{busy}/decisions", prefix="beside-", different=10**9)
        load = wrk.begin(rig.urls[0], plan, folder=folder, connections=8, seconds=seconds + 2)
        beside = drive(rig.urls[0], quiet, rate=RATE, connections=16, seconds=seconds)
        told = wrk.ended(load)
    return {
        "embedder": embedder,
        "texts_per_s": told.requests / told.seconds,
        **{f"{name}_alone_ms": alone[name] / 1e3 for name in ("p50", "p99")},
        **{f"{name}_beside_ms": beside[name] / 1e3 for name in ("p50", "p99")},
    }
