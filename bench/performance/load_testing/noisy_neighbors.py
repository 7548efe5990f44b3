"""A bandit whose clients send vectors, beside one whose texts keep an embedder busy: does it notice?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.performance.load_testing import wrk
from bench.performance.load_testing.plans import Plan
from bench.performance.load_testing.rig import Rig
from bench.performance.load_testing.wrk import MARK, ROOT

RATE = 100.0
"""Requests per second of the quiet neighbour."""


def beside_an_embedder(rig: Rig, folder: Path, *, embedder: str, seconds: float) -> dict[str, Any]:
    """ms: p50 and p99 of the neighbour alone and beside; new texts per second that were embedded meanwhile."""
    with rig.bandit() as quiet, rig.bandit(embedder=embedder, learnt=16) as busy:
        alone = _paced(rig.urls[0], quiet, seconds)
        plan = Plan(kind="texts", path=f"/v1/bandits/{busy}/decisions", prefix="beside-", different=10**9)
        load = wrk.begin(rig.urls[0], plan, folder=folder, connections=8, seconds=seconds + 2)
        beside = _paced(rig.urls[0], quiet, seconds)
        told = wrk.ended(load)
    return {
        "embedder": embedder,
        "texts_per_s": told.requests / told.seconds,
        **{f"{name}_alone_ms": alone[name] / 1e3 for name in ("p50", "p99")},
        **{f"{name}_beside_ms": beside[name] / 1e3 for name in ("p50", "p99")},
    }


def _paced(url: str, bandit: str, seconds: float) -> dict[str, Any]:
    spec = json.dumps({"url": url, "bandit": bandit, "rate": RATE, "connections": 16, "seconds": seconds})
    ran = subprocess.run(
        [sys.executable, "-m", "bench.performance.load_testing.driver", spec],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=600,
    )
    told: dict[str, Any] = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith(MARK)).removeprefix(MARK))
    return told
