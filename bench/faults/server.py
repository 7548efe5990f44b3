"""The service as the fault bench starts it: small snapshots, quick sweeps, and a look at its logs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools import processes
from tools.processes import ROOT, ServerFailed


class Server(processes.Server):
    """snapshot_every: events between snapshots.  options: as of `processes.Server`."""

    def __init__(
        self, folder: Path, *, snapshot_every: int = 300, settings: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        defaults = {"SNAPSHOT_EVERY": str(snapshot_every), "SWEEP_S": "0.1"}
        super().__init__(folder, settings={**defaults, **(settings or {})}, **options)

    def events(self, bandit: str) -> list[dict[str, Any]]:
        """The whole log of a bandit."""
        connection = self.connect()
        try:
            connection.request("GET", f"/v1/bandits/{bandit}/log")
            return [json.loads(line) for line in connection.getresponse().read().splitlines()]
        finally:
            connection.close()

    def replayed(self) -> dict[str, tuple[int, str]]:
        """Bandit -> (offset, sha256) by `nextarm digest`, which replays every log from zero beside the running service."""
        command = [sys.executable, "-m", "service", "digest", "--store", self.store, "--quiet"]
        found = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, check=False, text=True)
        if found.returncode != 0:
            raise ServerFailed(f"nextarm digest: code {found.returncode}: {found.stderr[-500:]}")
        lines = [line.split("\t") for line in found.stdout.splitlines()]
        return {bandit: (int(offset), sha256) for bandit, offset, sha256 in lines}
