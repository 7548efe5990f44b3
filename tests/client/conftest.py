"""The real service in a process of its own for clients that block, and in this process for clients that await."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from nextarm import AsyncClient, Client

from service.api.app import running
from service.settings import Settings
from tools.processes import Server


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NEXTARM_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a key of each role, and one of a tenant."""
    keys = "admin:boss,router:routes,reader:reads,admin@acme:acme"
    server = Server(tmp_path_factory.mktemp("client"), store="memory://", settings={"API_KEYS": keys})
    server.start()
    server.wait_until_ready()
    yield server
    server.end()


@pytest.fixture
def url(server: Server) -> str:
    return f"http://{server.host}:{server.port}"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """Of an admin."""
    with Client(url, api_key="boss") as client:
        yield client


@pytest.fixture
async def awaited(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """In this process, over ASGI."""
    async with (
        running(Settings.load(store="memory://", sweep_s=3600.0)) as app,
        AsyncClient("http://localhost", http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))) as client,
    ):
        yield client
