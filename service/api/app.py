"""The application: services put together, routes mounted, failures answered as problem documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import embedder_choice as embedding
from service.api import error_mapping
from service.api.adapters import personalizer, weave
from service.api.auth import Authenticator
from service.api.dependencies import Services
from service.api.facade.errors import PATHS, ErrorEnvelope
from service.api.facade.upstreams import load
from service.api.hot_path import HotPath
from service.api.metrics import Meter
from service.api.middleware import ANY, AdmissionMiddleware, AllowedHosts
from service.api.openapi import TAGS, document
from service.api.request_room import RequestRoom
from service.api.responses import stored_summary
from service.api.routes import (
    bandits,
    decisions,
    embedders,
    evaluations,
    health,
    history,
    metrics,
    outcomes,
    pages,
    references,
    shadows,
)
from service.api.routes import log as records
from service.embedders import registry
from service.embedders.queue import EmbeddingQueue
from service.engine.events import utc_now
from service.engine.repository import BanditRepository
from service.scorers.scoring import Scoring
from service.settings import Settings, listed

if TYPE_CHECKING:
    from service.api.facade.gateway import Gateway

DESCRIPTION = """
Post a prompt, receive the next generative model to query; post back what came of it, and the service learns, per prompt,
which model is best. Every error is `application/problem+json` with a stable `code`.
"""


class Application(FastAPI):
    """FastAPI behind `AdmissionMiddleware` and `HotPath`: rejected requests and the two most frequent ones never reach it.

    gateway: answers OpenAI's clients; None where the server has no upstreams, and none of their routes.
    """

    def __init__(self, services: Services, gateway: Gateway | None = None) -> None:
        super().__init__(
            title="nextarm",
            version=version("nextarm"),
            description=DESCRIPTION,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            openapi_tags=TAGS,
            docs_url=None,  # the page of routes/pages.py, which loads nothing from elsewhere
            redoc_url=None,
            redirect_slashes=False,  # a redirect would not be a problem document, and would trust the Host header
        )
        self.state.services = services
        modules = (
            bandits,
            decisions,
            outcomes,
            history,
            evaluations,
            shadows,
            references,
            embedders,
            records,
            metrics,
            health,
            pages,
        )
        routers = [module.router for module in (*modules, personalizer, weave)]
        if gateway is not None:
            from service.api.facade.routes import facade_router

            routers.append(facade_router(gateway))
        for router in routers:
            self.include_router(router)
        error_mapping.install(self, [route for router in routers for route in router.routes])
        document(self)
        app: ASGIApp = HotPath(super().__call__, services)
        if gateway is not None:
            from service.api.facade.routes import FacadeHotPath

            app = ErrorEnvelope(FacadeHotPath(app, gateway))  # below the middleware, which counts what is answered
        settings = services.settings
        middleware = AdmissionMiddleware(
            app,
            authenticator=services.authenticator,
            meter=services.meter,
            room=services.request_room,
            settings=settings,
            hosts=allowed_hosts(settings, has_keys=not services.authenticator.is_open),
            unlimited=PATHS if gateway is not None else (),
            failures={
                "/adapters/personalizer/": personalizer.PersonalizerRoute.failure,
                "/adapters/weave/": weave.WeaveRoute.failure,
            },
        )
        self._middleware: ASGIApp = middleware if gateway is None else ErrorEnvelope(middleware)  # for what itself refuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every request through the middleware."""
        await self._middleware(scope, receive, send)


def allowed_hosts(settings: Settings, *, has_keys: bool) -> AllowedHosts:
    """The hosts that requests may name: loopback only, if there are no keys and anonymous access was not allowed explicitly.

    This stops a web page from using a local server by DNS rebinding. With keys such a page has no key, and a public server is
    reached by names it cannot know.
    """
    is_private = not (has_keys or settings.allow_anonymous)
    names = [name.lower() for name in listed(settings.allowed_hosts)] or ([] if is_private else [ANY])
    return AllowedHosts(names, are_addresses_allowed=not is_private)


@asynccontextmanager
async def running(settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> AsyncIterator[FastAPI]:
    """The application with its storage open and its bandits loading; everything is closed at the end.

    Raises `InvalidSettings` or a `StorageError` with a message for the operator.
    """
    upstreams = load(Path(settings.upstreams)) if settings.upstreams else None
    torch.set_num_threads(1)  # small matrices on shared cores: a second thread stalls more than it helps
    authenticator = Authenticator(keys=settings.api_keys, rate_limit=settings.rate_limit)
    embeddings = EmbeddingQueue(
        find=partial(registry.spec, sources=settings.sources()),
        cache_entries=settings.embedding_cache,
        waiting_limit=settings.embedding_waiting,
    )
    repository = BanditRepository(
        settings.open_storage(), settings, clock=clock, on_load=partial(embedding.warm_for, embeddings), summarize=stored_summary
    )
    await repository.start()
    scoring = Scoring(timeout_s=settings.scorer_timeout_s)
    embedding.warm(embeddings, settings)
    meter = Meter()
    room = RequestRoom(settings.max_concurrent, meter)
    services = Services(settings, repository, embeddings, scoring, authenticator, meter, room)
    gateway = None
    if upstreams is not None:
        from service.api.facade.gateway import Gateway

        gateway = Gateway(services, upstreams)
    try:
        yield Application(services, gateway)
    finally:
        services.event_streams.close()
        if gateway is not None:
            await gateway.close()  # outcomes that are on their way need all of the others
        embeddings.close()
        scoring.close()
        await repository.close()
