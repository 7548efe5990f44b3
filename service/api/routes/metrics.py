"""For Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.dependencies import Reader, Shared
from service.api.metrics import exposition
from service.api.routes import problems

router = APIRouter(tags=["operations"])


@router.get(
    "/metrics",
    summary="Requests, decisions and rewards per arm, lag, errors, in the text format of Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "One sample per line."},
        **problems(),
    },
)
async def show_metrics(caller: Reader, services: Shared) -> Response:
    """A key of a tenant sees the bandits of that tenant; one without a tenant sees all of them, and the process."""
    tenant = caller.tenant or None
    text = exposition(services.meter, services.repository, services.embeddings, tenant=tenant)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
