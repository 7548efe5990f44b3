"""The service in one process and over one connection, and the bodies that most tests send."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from service.api.app import running
from service.engine.learner import Learner
from service.settings import Settings

Json = dict[str, Any]

JSON = {"content-type": "application/json"}
ARMS = [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}]
GREEDY: Json = {"policy": {"kind": "greedy"}, "arms": ARMS, "seed": 7}
VECTOR: Json = {
    "policy": {"kind": "pak-ucb", "random_features": 16, "exploration": 0.5},
    "arms": ARMS,
    "prompt": {"embedder": "vector", "dim": 3},
    "seed": 7,
}
PROMPT: Json = {"prompt": {"vector": [0.25, -0.5, 2.0]}}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Service:
    """Requests to a service; answers are checked for what holds for every one of them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def ask(self, method: str, path: str, **sent: Any) -> httpx.Response:
        response = await self.client.request(method, path, **sent)
        check_answer(response)
        return response

    async def put(self, path: str, body: Any = None) -> httpx.Response:
        return await self.ask("PUT", path, json=body)

    async def patch(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.ask("PATCH", path, json=body, headers=headers)

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.ask("POST", path, json=body)

    async def get(self, path: str) -> httpx.Response:
        return await self.ask("GET", path)

    async def delete(self, path: str) -> httpx.Response:
        return await self.ask("DELETE", path)

    # -- what most tests do ------------------------------------------------------------------------------------------------

    async def create(self, name: str = "b", body: Json | None = None) -> Json:
        response = await self.put(f"/v1/bandits/{name}", GREEDY if body is None else body)
        assert response.status_code == 201, response.text
        return answered(response)

    async def decide(self, name: str = "b", body: Json | None = None) -> Json:
        response = await self.post(f"/v1/bandits/{name}/decisions", {} if body is None else body)
        assert response.status_code in (200, 201), response.text
        return answered(response)

    async def observe(self, decision: str, body: Json | None = None, *, name: str = "b") -> Json:
        response = await self.put(f"/v1/bandits/{name}/decisions/{decision}/outcome", {"reward": 0.75} if body is None else body)
        assert response.status_code == 200, response.text
        return answered(response)

    async def bandit(self, name: str = "b") -> Json:
        return answered(await self.get(f"/v1/bandits/{name}"))

    async def settle(self, name: str = "b") -> None:
        """Wait until all is prepared that is due."""
        await (await self._learner(name)).projection.background.finish()

    async def _learner(self, name: str) -> Learner:
        transport: Any = self.client._transport
        learner: Learner = await transport.app.state.services.repository.get("", name)
        return learner

    async def ledger(self, name: str = "b") -> bytes:
        """What is folded of the log, as a snapshot has it."""
        return (await self._learner(name)).ledger.pack()

    async def replayed(self, name: str = "b") -> bytes:
        """The same, folded from the first entry on."""
        learner = await self._learner(name)
        return (await Learner.load(learner.projection.storage, learner.log, use_snapshots=False)).ledger.pack()

    async def arm(self, arm: str, name: str = "b") -> Json:
        return next(item for item in (await self.bandit(name))["arms"] if item["name"] == arm)

    async def log(self, name: str = "b", query: str = "") -> list[Json]:
        response = await self.get(f"/v1/bandits/{name}/log{query}")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.text.splitlines()]

    async def offset(self, name: str = "b") -> int:
        return int((await self.log(name))[-1]["offset"])


def check_answer(response: httpx.Response) -> None:
    """No answer is a failure of the server, and every error is a problem document that says where it is wrong."""
    assert response.status_code != 500, f"{response.request.method} {response.request.url}: {response.text}"
    assert response.headers["x-request-id"]
    if response.status_code < 400 or response.request.method == "HEAD" or "readyz" in str(response.request.url):
        return
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    fields = {"type", "title", "status", "code", "detail", "request_id"}
    assert fields <= set(problem) <= fields | {"errors"}
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["status"] == response.status_code
    for wrong in problem.get("errors", []):
        assert set(wrong) == {"path", "message"}
    if problem["code"] not in ("not_live", "bandit_exists"):  # which may name fields, too
        assert (problem["code"] == "invalid_request") == bool(problem.get("errors"))
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    assert "Traceback" not in response.text


def answered(response: httpx.Response) -> Json:
    body: Json = response.json()
    return body


def failed(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return response.status_code, response.json()["code"]


def paths(response: httpx.Response) -> list[str]:
    """The fields that a 422 names."""
    return [wrong["path"] for wrong in response.json()["errors"]]


def float32(numbers: Sequence[float]) -> str:
    """Base64 of little-endian float32, packed by another way than the service's."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@asynccontextmanager
async def opened(*, clock: Callable[[], datetime] | None = None, **settings: Any) -> AsyncIterator[Service]:
    """A service in this process, in memory by default. The sweeper sleeps, so that only requests expire decisions."""
    given: Json = {"store": "memory://", "sweep_s": 3600.0} | settings
    clocked: Json = {} if clock is None else {"clock": clock}
    async with running(Settings.load(**given), **clocked) as app, connected(app) as service:
        yield service


@asynccontextmanager
async def connected(app: Any, *, key: str = "", address: str = "127.0.0.1") -> AsyncIterator[Service]:
    """A client of a running app."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(address, 50_000))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        yield Service(client)


Send = Callable[..., httpx.Response]
"""(method, path, **as httpx takes it) -> the answer, not checked."""


@contextmanager
def blocking(prepare: Callable[[Service], Awaitable[None]], **settings: Any) -> Iterator[Send]:
    """A service for tests that cannot await: it runs while a request is under way."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def enter() -> Service:
            service = await stack.enter_async_context(opened(**settings))
            await prepare(service)
            return service

        service = runner.run(enter())
        try:
            yield lambda method, path, **sent: runner.run(service.client.request(method, path, **sent))
        finally:
            runner.run(stack.aclose())
