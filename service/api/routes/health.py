"""Is the process alive, and can it do its work?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.auth import Caller
from service.api.dependencies import Services, Shared
from service.api.responses import HealthAnswer, ReadinessAnswer, answer
from service.api.routes import problems
from service.engine.repository import visible_name
from service.storage.base import StorageError

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="The process is alive", response_model=HealthAnswer, openapi_extra={"security": []})
async def healthz() -> Response:
    """Always 200 while the event loop turns."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    summary="Storage reachable, requests accepted",
    response_model=ReadinessAnswer,
    responses={**problems(), 503: {"model": ReadinessAnswer, "description": "Not ready; see `reasons`."}},
)
async def readyz(request: Request, services: Shared) -> Response:
    """503 while the store cannot be written. Bandits that are being loaded in the background keep no request out: one for such a
    bandit loads it at once. A damaged bandit is listed as soon as that is known, and one whose log a newer version wrote into is
    among the reasons; neither takes the others out of service. Without a key everything is only
    counted; a key of a tenant gets the names of that tenant's bandits, one without a tenant everything. Embedders that are
    still being loaded keep no request out: those that need one wait for it.
    """
    view = _View(services, request.scope.get("nextarm.caller"))
    reasons: list[str] = []
    damaged = services.repository.damaged()
    newer = [f"written by a newer version: {name}" for name in view.named(services.repository.newer())]
    try:
        await services.repository.storage.ping()
    except StorageError as error:
        reasons.append(f"storage: {error if view.of_operator else 'it cannot be written or read now'}")
    lag = {name: services.repository.lag(learner) for name, learner in services.repository.loaded(None)}
    notices = [*services.repository.storage.notices(), *services.repository.notices()]
    warming = services.embeddings.warming()
    body: dict[str, Any] = {
        "status": "not ready" if reasons else "ready",
        "reasons": reasons + newer,
        "damaged": view.named(damaged, reasons=damaged),
        "notices": notices
        if view.of_operator or not notices
        else [f"{len(notices)} about the store and memory, for a key without a tenant"],
        "lag": max(lag.values(), default=0),
    }
    if loading := view.named(services.repository.state()["loading"]):
        body["loading"] = loading
    if warming:
        body["warming"] = warming if view.of_operator else [f"{len(warming)} of the embedders"]
    return answer(body, status=503 if reasons else 200)


class _View:
    """How much of the state a caller may know. caller: None where no key was sent."""

    def __init__(self, services: Services, caller: Caller | None) -> None:
        self.of_operator = services.authenticator.is_open or (caller is not None and not caller.tenant)
        self._is_stranger = caller is None
        self._tenant = caller.tenant if caller else ""

    def named(self, logs: Iterable[str], *, reasons: Mapping[str, str] | None = None) -> list[str]:
        """Names of the bandits of these logs, and how many more there are. reasons: may hold paths of files; the operator's."""
        if self.of_operator:
            return [f"{name}: {reasons[name]}" if reasons else name for name in logs]
        shown = [None if self._is_stranger else visible_name(name, self._tenant) for name in logs]
        hidden = shown.count(None)
        more = f"{hidden} bandit{'s' * (hidden > 1)}, for a key that may see {'them' if hidden > 1 else 'it'}"
        return [*(name for name in shown if name is not None), *([more] if hidden else [])]
