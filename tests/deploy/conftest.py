"""Fixtures that keep the environment variables of the developer out of the tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NEXTARM_"):
            monkeypatch.delenv(name)
