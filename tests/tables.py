"""Where the recorded tables are: beside the checkout, on machines that have them. They are not part of this project."""

from __future__ import annotations

from pathlib import Path

import pytest

TABLES = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_table(name: str) -> Path:
    """The folder of a recorded table, or a skip that says why."""
    folder = TABLES / name
    if not folder.is_dir():
        pytest.skip(f"the recorded table {name!r} is not on this machine (looked in {TABLES})")
    return folder
