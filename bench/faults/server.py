"""The service as the fault bench starts it: small snapshots, quick sweeps, and a look at its logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools import processes


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
