"""Is the process alive, and can it do its work?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from service.answer_schemas import HealthAnswer, ReadinessAnswer
from service.dependencies import Shared
from service.routes.answers import answer
from service.storage.base import StorageError

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="The process is alive", response_model=HealthAnswer, openapi_extra={"security": []})
async def healthz() -> Response:
    """Always 200 while the event loop turns."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    summary="Storage reachable, bandits loaded",
    response_model=ReadinessAnswer,
    responses={503: {"model": ReadinessAnswer, "description": "Not ready; see `reasons`."}},
    openapi_extra={"security": []},
)
async def readyz(services: Shared) -> Response:
    """503 while the store cannot be written or bandits are still being loaded. A damaged bandit is listed, and does not take the
    others out of service.
    """
    state = services.hosting.state()
    reasons = [f"loading: {name}" for name in state["loading"]]
    try:
        await services.hosting.storage.ping()
    except StorageError as error:
        reasons.append(f"storage: {error}")
    lag = {name: services.hosting.lag(learner) for name, learner in services.hosting.loaded(None)}
    body: dict[str, Any] = {
        "status": "not ready" if reasons else "ready",
        "reasons": reasons,
        "damaged": state["damaged"],
        "notices": services.hosting.storage.notices(),
        "lag": max(lag.values(), default=0),
    }
    return answer(body, status=503 if reasons else 200)
