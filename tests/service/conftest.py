"""A service in this process, a real server in another one, and environment variables that cannot leak in."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.service.http_client import Clock, Service, opened
from tests.service.servers import Server
from tests.service.storages import STORAGES, Opener


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NEXTARM_"):
            monkeypatch.delenv(name)


@pytest.fixture(params=sorted(STORAGES))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens each of the storages in turn, in a folder of the test's own."""
    return STORAGES[request.param](tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def service(clock: Clock) -> AsyncIterator[Service]:
    """In memory, without keys, with a clock that the test moves."""
    async with opened(clock=clock) as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts `nextarm serve` in other processes; ends those, and only those, after the test."""
    started: list[Server] = []

    def start(*, store: str | None = None, **settings: str) -> Server:
        server = Server.launch(store=store or f"sqlite:///{tmp_path}/bandits.db", folder=tmp_path, settings=settings)
        started.append(server)
        return server

    yield start
    for server in started:
        server.end()


@pytest.fixture
def own_logging() -> Iterator[None]:
    """What `configure_logging` does to the root logger is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
