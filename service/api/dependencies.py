"""Dependencies of routes: the shared services, the caller with the right role, and the learner of a path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Header, Path, Request

from service.api.auth import Authenticator, Caller, check_role
from service.api.event_streams import EventStreams
from service.api.metrics import Meter
from service.api.problems import Problem
from service.api.request_room import RequestRoom
from service.api.requests import ID, NAME
from service.embedders.queue import EmbeddingQueue
from service.engine.learner import Learner
from service.engine.repository import BanditRepository
from service.scorers.scoring import Scoring
from service.settings import Settings

BATCHED_ROWS = 8 * 1024 * 64
"""Rows of arms in the answers of all batches that are worked on at once: about 400 bytes each, so some 200 MB."""


class BatchRoom:
    """A budget of memory for the answers of all batches together; a single request needs too little to be counted."""

    def __init__(self, rows: int = BATCHED_ROWS) -> None:
        self._left = rows

    @contextlib.contextmanager
    def taken(self, rows: int) -> Iterator[None]:
        """Room for a batch, given back at its end; `Problem` where others have it. rows: items times arms shown."""
        if rows > self._left:
            raise Problem(
                "overloaded", "other batches fill the memory that there is for them; try again, or send smaller batches"
            )
        self._left -= rows
        try:
            yield
        finally:
            self._left += rows


@dataclass(frozen=True)
class Services:
    """The services that all routes of one process share."""

    settings: Settings
    repository: BanditRepository
    embeddings: EmbeddingQueue
    scoring: Scoring
    authenticator: Authenticator
    meter: Meter
    request_room: RequestRoom
    batch_room: BatchRoom = field(default_factory=BatchRoom)
    event_streams: EventStreams = field(default_factory=EventStreams)


def services_of(request: Request) -> Services:
    """The services of the app that this request came to."""
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:
    return services_of(request)


def _caller(request: Request, needs: str) -> Caller:
    caller = cast(Caller, request.scope["nextarm.caller"])  # set by AdmissionMiddleware
    check_role(caller, needs)
    return caller


async def _reader(request: Request) -> Caller:
    return _caller(request, "reader")


async def _router(request: Request) -> Caller:
    return _caller(request, "router")


async def _admin(request: Request) -> Caller:
    return _caller(request, "admin")


Shared = Annotated[Services, Depends(_services)]
Reader = Annotated[Caller, Depends(_reader)]
Router = Annotated[Caller, Depends(_router)]
Admin = Annotated[Caller, Depends(_admin)]

BanditName = Annotated[str, Path(pattern=NAME, description="Name of the bandit.", examples=["demo"])]
ArmPath = Annotated[
    str, Path(max_length=128, description="Name of the arm, percent-encoded; `/` may stand as it is.", examples=["small"])
]
DecisionId = Annotated[str, Path(pattern=ID, description="Id of the decision.", examples=["request-1"])]


MinOffset = Annotated[
    int | None,
    Header(
        alias="X-Nextarm-Min-Offset",
        ge=0,
        description="Answer from at least this offset (of a receipt), or 503 `replica_behind`: for a client of several replicas.",
    ),
]


async def _learner(request: Request, caller: Caller, name: str, min_offset: int | None) -> Learner:
    services = services_of(request)
    learner = await services.repository.get(caller.tenant, name)
    if min_offset is not None:
        await learner.projection.wait_for_offset(min_offset, timeout_s=services.settings.min_offset_wait_s)
    return learner


async def _read_learner(request: Request, caller: Reader, name: BanditName, min_offset: MinOffset = None) -> Learner:
    return await _learner(request, caller, name, min_offset)


async def _routed_learner(request: Request, caller: Router, name: BanditName, min_offset: MinOffset = None) -> Learner:
    return await _learner(request, caller, name, min_offset)


async def _managed_learner(request: Request, caller: Admin, name: BanditName, min_offset: MinOffset = None) -> Learner:
    return await _learner(request, caller, name, min_offset)


ReadLearner = Annotated[Learner, Depends(_read_learner)]
RoutedLearner = Annotated[Learner, Depends(_routed_learner)]
ManagedLearner = Annotated[Learner, Depends(_managed_learner)]
