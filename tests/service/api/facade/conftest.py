"""A service with upstreams, over real connections, in the loop of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from service.api.app import running
from service.settings import Settings
from tests.service.upstreams import Upstreams, upstreams

Json = dict[str, Any]
PRICES = "prices = {input = 0.001, output = 0.01, cached = 0.0001}"
FILE = """
attempts = {attempts}
[arms.small]
base_url = "{small}"
model = "small-2"
key_env = "SMALL_KEY"
timeout_s = {timeout_s}
{prices}
[arms."big/large"]
base_url = "{large}"
model = "large-7"
{prices}
{more}
"""


class Facade:
    """A client of the service, the application itself, and the upstreams behind it."""

    def __init__(self, client: httpx.AsyncClient, app: ASGIApp, upstream: Upstreams) -> None:
        self.client = client
        self.app = app
        self.upstream = upstream

    async def create(self, name: str = "router", arms: tuple[str, ...] = ("small", "big/large"), **body: Any) -> None:
        given = {"policy": {"kind": "thompson"}, "arms": [{"name": arm, "price": 0.5} for arm in arms], "seed": 3, **body}
        made = await self.client.put(f"/v1/bandits/{name}", json=given)
        assert made.status_code == 201, made.text

    async def chat(self, text: str = "good morning", *, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": "bandit/router", "messages": [{"role": "user", "content": text}], **more}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def decision(self, response: httpx.Response, name: str = "router") -> Json:
        """What became of the decision of an answer."""
        state = await self.client.get(f"/v1/bandits/{name}/decisions/{response.headers['x-nextarm-decision-id']}")
        found: Json = state.json()
        return found

    async def events(self, name: str = "router") -> list[Json]:
        log = await self.client.get(f"/v1/bandits/{name}/log")
        return [json.loads(line) for line in log.text.splitlines()]


PATIENCE_S = 60.0
"""Nothing waits so long; it keeps a broken test from hanging."""


async def until(is_so: Callable[[], Awaitable[bool] | bool]) -> None:
    """Returns once it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found if isinstance(found := is_so(), bool) else await found):
            await asyncio.sleep(0.001)


Start = Callable[..., AbstractAsyncContextManager[Facade]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts it. more: of the file of upstreams.  timeout_s: of the arm `small`.  Others are settings."""
    monkeypatch.setenv("SMALL_KEY", "sk-small")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    @asynccontextmanager
    async def started(
        more: str = "", *, attempts: int | str = 3, timeout_s: float = 60.0, key: str = "", **settings: Any
    ) -> AsyncIterator[Facade]:
        async with upstreams() as upstream:
            path = tmp_path / "upstreams.toml"
            text = FILE.format(
                small=upstream.url("small"),
                large=upstream.url("large"),
                attempts=attempts,
                timeout_s=timeout_s,
                prices=PRICES,
                more=more,
            )
            path.write_text(text)
            given = {"store": "memory://", "sweep_s": 3600.0, "upstreams": str(path), **settings}
            async with running(Settings.load(**given)) as app, served(app) as url:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                about: Json = {"timeout": 60.0, "trust_env": False, "verify": False}
                async with httpx.AsyncClient(base_url=url, headers=headers, **about) as client:
                    yield Facade(client, app, upstream)

    return started


@pytest.fixture
async def facade(start: Start) -> AsyncIterator[Facade]:
    """With two arms, `small` and `big/large`, and a bandit `router`."""
    async with start() as made:
        await made.create()
        yield made


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The URL of an application on a port that the system chose."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", ws="none", log_config=None, access_log=False))
    with server.capture_signals():
        serving = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.001)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await serving
