"""Where a bench ran: cores, CPU, versions, how busy the machine was."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.performance.load_testing.wrk import ROOT

PACKAGES = ("torch", "numpy", "uvicorn", "uvloop", "httptools", "fastapi", "starlette", "pydantic", "msgspec", "redis")


def described() -> dict[str, Any]:
    """For JSON; `load_at_end` is set by `finished`."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": processor(),
        "load": _load(),
        "versions": versions,
        "commit": _commit(),
    }


def end_on_sigterm() -> None:
    """Turn SIGTERM into an ordinary exit, so that the processes which were started are ended."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def finished(machine: dict[str, Any]) -> dict[str, Any]:
    """With the load at the end."""
    return {**machine, "load_at_end": _load()}


def processor() -> str:
    """As the system calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        " with changes" if git("status", "--porcelain", "--", "service", "bandits") else ""
    )
