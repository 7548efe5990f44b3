"""What routes ask for: the hosting, the embedding queue, the settings, and the caller with the right role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from service.access import Caller, Gate, check_role
from service.embedders.queue import EmbeddingQueue
from service.hosting import Hosting
from service.learner import Learner
from service.schemas import ID, NAME
from service.settings import Settings


@dataclass(frozen=True)
class Services:
    """What one process shares."""

    settings: Settings
    hosting: Hosting
    embeddings: EmbeddingQueue
    gate: Gate


def services_of(request: Request) -> Services:
    """The services of the app that this request came to."""
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:
    return services_of(request)


def _caller(request: Request, needs: str) -> Caller:
    caller = cast(Caller, request.scope["nextarm.caller"])  # the doorkeeper put it there
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
ArmPath = Annotated[str, Path(max_length=128, description="Name of the arm.", examples=["small"])]
DecisionId = Annotated[str, Path(pattern=ID, description="Id of the decision.", examples=["request-1"])]


async def _read_learner(request: Request, caller: Reader, name: BanditName) -> Learner:
    return await services_of(request).hosting.get(caller.tenant, name)


async def _routed_learner(request: Request, caller: Router, name: BanditName) -> Learner:
    return await services_of(request).hosting.get(caller.tenant, name)


async def _managed_learner(request: Request, caller: Admin, name: BanditName) -> Learner:
    return await services_of(request).hosting.get(caller.tenant, name)


ReadLearner = Annotated[Learner, Depends(_read_learner)]
RoutedLearner = Annotated[Learner, Depends(_routed_learner)]
ManagedLearner = Annotated[Learner, Depends(_managed_learner)]
