"""The gateway between a client, two models and the service, all in this process."""

from __future__ import annotations

import httpx2
import pytest
from nextarm import AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from examples.gateway import BANDIT, gateway
from service.api.app import running
from service.settings import Settings

UPSTREAMS = {
    "small": {"url": "http://small/v1", "model": "small-2", "key": "secret", "usd_per_token": 1e-6},
    "large": {"url": "http://small/v1", "model": "large-7", "usd_per_token": 1e-5},
}
FRENCH = {"messages": [{"role": "user", "content": "Translate this to French: good morning"}]}


async def model(request: Request) -> Response:
    """Answers its own name; fails where it is asked to."""
    body = await request.json()
    assert request.headers.get("authorization") == ("Bearer secret" if body["model"] == "small-2" else None)
    if "fail" in body["messages"][0]["content"]:
        return JSONResponse({}, 500)
    return JSONResponse({"choices": [{"message": {"content": body["model"]}}], "usage": {"total_tokens": 100}})


async def test_the_gateway_asks_the_chosen_model_and_learns_from_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXTARM_API_KEY", raising=False)
    upstream = httpx2.ASGITransport(app=Starlette(routes=[Route("/v1/chat/completions", model, methods=["POST"])]))
    async with running(Settings.load(store="memory://", sweep_s=3600.0)) as app:
        service = AsyncClient("http://localhost", http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)))
        application = gateway(service, httpx2.AsyncClient(transport=upstream), UPSTREAMS)
        async with (
            application.router.lifespan_context(application),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=application), base_url="http://gateway") as user,
        ):
            arms = {(await user.post("/v1/chat/completions", json=FRENCH)).headers["x-arm"] for _ in UPSTREAMS}
            assert arms == set(UPSTREAMS), "each is tried first"
            answer = await user.post("/v1/chat/completions", json=FRENCH)
            arm, decision = answer.headers["x-arm"], answer.headers["x-decision"]
            assert answer.json()["choices"][0]["message"]["content"] == UPSTREAMS[arm]["model"]
            feedback = {"decision": decision, "reward": 0.75}
            assert (await user.post("/feedback", json=feedback)).json() == {"learned": 0.75}
            state = await service.show_decision(BANDIT, decision)
            assert (state.state, state.reward) == ("observed", 0.75)
            assert state.cost == pytest.approx(100 * float(str(UPSTREAMS[arm]["usd_per_token"])))
            failing = {"messages": [{"role": "user", "content": "fail"}]}
            assert (await user.post("/v1/chat/completions", json=failing)).status_code == 502
            assert [event["event"] for event in await service.read_log(BANDIT)][-2:] == ["decided", "cancelled"]
            assert (await user.post("/feedback", json={"decision": "unknown", "reward": 1.0})).status_code == 404
