"""A gateway in front of several chat models: nextarm picks one for each request, and learns from what users say of the answers.

    export UPSTREAMS='{"small": {"url": "https://example.com/v1", "model": "small-2", "key": "...", "usd_per_token": 2e-7}, ...}'
    python -m examples.gateway                    # needs nextarm-client, starlette and uvicorn; nextarm on NEXTARM_URL

    curl localhost:9000/v1/chat/completions --json '{"messages": [{"role": "user", "content": "Bonjour!"}]}' -i
    curl localhost:9000/feedback --json '{"decision": "(x-decision of the answer)", "reward": 1}'

Requests go on with the first of the models while nextarm is away; what is learned of them is reported when it is back.
`python -m examples.upstream` stands in for the models: {"url": "http://127.0.0.1:9100/v1", "model": "abacus"}.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from nextarm import AsyncClient, NextarmError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

BANDIT = "gateway"


def gateway(service: AsyncClient, models: httpx2.AsyncClient, upstreams: Mapping[str, Mapping[str, Any]]) -> Starlette:
    """The application. upstreams: arm -> url, model, key, usd_per_token."""
    fallback = next(iter(upstreams))
    costs: dict[str, float] = {}  # of answers that wait for feedback

    async def chat(request: Request) -> Response:
        body = await request.json()
        try:
            async with service.decision(BANDIT, prompt={"messages": body["messages"]}, fallback=fallback) as decision:
                chosen = upstreams[decision.arm or fallback]
                answer = await models.post(
                    f"{chosen['url']}/chat/completions",
                    json={**body, "model": chosen["model"]},
                    headers={"authorization": f"Bearer {chosen['key']}"} if chosen.get("key") else {},
                )
                answer.raise_for_status()  # leaves the block: the decision is cancelled, and nothing is learned
        except httpx2.HTTPError as error:
            return JSONResponse({"error": {"message": f"the model failed: {error}"}}, 502)
        tokens = answer.json().get("usage", {}).get("total_tokens", 0)
        costs[decision.id] = tokens * chosen.get("usd_per_token", 0.0)
        return JSONResponse(answer.json(), headers={"x-decision": decision.id, "x-arm": str(decision.arm)})

    async def feedback(request: Request) -> Response:
        given = await request.json()
        cost = costs.pop(given["decision"], None)
        try:
            receipt = await service.observe(BANDIT, given["decision"], reward=given["reward"], cost=cost)
        except NextarmError as error:
            return JSONResponse({"error": {"message": str(error)}}, error.status or 502)
        return JSONResponse({"learned": receipt.reward})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service, models:
            prices = [{"name": arm, "price": 1000 * given.get("usd_per_token", 0.0)} for arm, given in upstreams.items()]
            await service.create_bandit(
                BANDIT, arms=prices, prompt={"embedder": "static"}, objective={"reward": 1.0, "cost": -1.0}
            )
            yield

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/feedback", feedback, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    import uvicorn

    client = AsyncClient(os.environ.get("NEXTARM_URL", "http://127.0.0.1:8000"))
    uvicorn.run(gateway(client, httpx2.AsyncClient(timeout=60.0), json.loads(os.environ["UPSTREAMS"])), port=9000)
