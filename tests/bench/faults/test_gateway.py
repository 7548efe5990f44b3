"""The case with routers, small, against a real service that is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.faults.cases import gateway
from bench.faults.rows import Options


def test_routers_go_on_while_the_service_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXTARM_API_KEY", raising=False)
    (row,) = gateway.run(Options(seed=1, quick=True, folder=tmp_path, kills=1, events=800))
    assert row.broken == []
    assert (row.acknowledged, row.lost, row.twice) == (1600, 0, 0)
