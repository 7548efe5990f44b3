"""The routes of the facade, as OpenAI's clients call them. They are there only where the server has upstreams."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.auth import check_role
from service.api.dependencies import BanditName, Reader, Router, Shared
from service.api.error_mapping import body_error_to_problem
from service.api.facade.errors import FacadeError, to_facade_error
from service.api.facade.gateway import Gateway
from service.api.facade.surfaces import ChatCompletions, Embeddings, ImageGenerations, Responses, Surface
from service.api.json_bodies import StrictJSONRoute
from service.api.responses import answer

CHAT, RESPONSES, IMAGES, EMBEDDINGS = ChatCompletions(), Responses(), ImageGenerations(), Embeddings()
SURFACES: dict[str, Surface] = {f"/v1{surface.path}": surface for surface in (CHAT, RESPONSES, IMAGES, EMBEDDINGS)}


class FacadeFailure(BaseModel):
    """What went wrong. type: `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or
    `server_error`.
    """

    message: str = Field(description="What is wrong, and what helps.")
    type: str = Field(description="The kind of the error.")
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None = Field(description="A stable word, such as `model_not_found`.")


class FacadeErrorAnswer(BaseModel):
    """An error as OpenAI's clients read it."""

    error: FacadeFailure = Field(description="The error.")


class ModelAnswer(BaseModel):
    """A bandit, as a model."""

    id: str = Field(description="`bandit/` and its name: the `model` of a request.", examples=["bandit/router"])
    object: str = Field(description="Always `model`.")
    created: int = Field(description="Always 0.")
    owned_by: str = Field(description="Always `nextarm`.")


class ModelsAnswer(BaseModel):
    """The models of the key's tenant."""

    object: str = Field(description="Always `list`.")
    data: list[ModelAnswer] = Field(description="One per bandit.")


STATUSES = {
    400: "The request is wrong, or the upstream says so.",
    401: "No key that this server knows.",
    403: "The key may not call.",
    404: "`model_not_found`",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests, of this key or of the upstreams.",
    502: "No arm answered.",
    503: "Overloaded, or the store refused.",
    504: "No arm answered in time.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    described = {status: STATUSES[status] for status in statuses} | {"4XX": "Any other error of the request."}
    return {status: {"model": FacadeErrorAnswer, "description": text} for status, text in described.items()}


DECIDED: dict[str, Any] = {
    "x-nextarm-decision-id": {"description": "Of the decision: for its outcome.", "schema": {"type": "string"}},
    "x-nextarm-arm": {"description": "The arm that answered, percent-encoded.", "schema": {"type": "string"}},
    "x-nextarm-propensity": {"description": "Its probability; missing in a session that goes on.", "schema": {"type": "string"}},
}
MODEL_FIELD = {"type": "string", "description": "`bandit/` and the name of a bandit.", "examples": ["bandit/router"]}


def _described(surface: Surface) -> dict[str, Any]:
    """Of the OpenAPI document: a body of OpenAI's, which is passed on as it came."""
    schema = {
        "type": "object",
        "required": ["model", surface.prompt_field],
        "properties": {"model": MODEL_FIELD, surface.prompt_field: {"description": "As in OpenAI's API."}},
        "additionalProperties": True,
    }
    kinds = ["application/json", *(["text/event-stream"] if surface.streams else [])]
    answered = {"description": "The answer of the upstream, with `model` as it was asked for.", "headers": DECIDED}
    return {
        "responses": {**_errors(*STATUSES), 200: {**answered, "content": {kind: {"schema": {}} for kind in kinds}}},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


class FacadeHotPath:
    """ASGI app that answers calls without the framework, and passes every other request on: to the routes below, too, which
    document calls and take what is rare.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        surface = SURFACES.get(scope["path"]) if scope["method"] == "POST" and not scope["query_string"] else None
        if surface is None:
            await self._app(scope, receive, send)
            return
        scope["nextarm.route"] = scope["path"]
        response = await respond(self._gateway, surface, scope, scope["nextarm.body"])
        await response(scope, receive, send)


async def respond(gateway: Gateway, surface: Surface, scope: Scope, body: bytes) -> Response:
    """The answer to a call, whatever it is."""
    session = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-session-id"), None)

    def named(bandit: str) -> None:
        scope["nextarm.bandit"] = bandit  # for the access line

    try:
        try:
            check_role(scope["nextarm.caller"], "router")
            return await gateway.answer(surface, scope["nextarm.caller"], body, session=session, named=named)
        except FacadeError:
            raise
        except Exception as error:
            raise to_facade_error(body_error_to_problem(error)) from error
    except FacadeError as error:
        scope["nextarm.problem"] = error.code  # counted by the middleware
        return error.response()


def facade_router(gateway: Gateway) -> APIRouter:
    """The routes over a gateway."""
    made = APIRouter(tags=["openai"], route_class=StrictJSONRoute)

    @made.post("/v1/chat/completions", summary="Chat, by the arm that a bandit chooses", **_described(CHAT))
    async def create_chat_completion(request: Request, caller: Router) -> Response:
        """As OpenAI's API, streams too. `model` is `bandit/` and the name of a bandit; all else is passed on as it came."""
        return await respond(gateway, CHAT, request.scope, await request.body())

    @made.post("/v1/responses", summary="A response, by the arm that a bandit chooses", **_described(RESPONSES))
    async def create_response(request: Request, caller: Router) -> Response:
        """As OpenAI's API, streams too, without `background`. `previous_response_id` is known to the upstream that made it."""
        return await respond(gateway, RESPONSES, request.scope, await request.body())

    @made.post("/v1/images/generations", summary="Pictures, by the arm that a bandit chooses", **_described(IMAGES))
    async def create_images(request: Request, caller: Router) -> Response:
        """As OpenAI's API."""
        return await respond(gateway, IMAGES, request.scope, await request.body())

    @made.post("/v1/embeddings", summary="Embeddings, by the arm that a bandit chooses", **_described(EMBEDDINGS))
    async def create_embeddings(request: Request, caller: Router) -> Response:
        """As OpenAI's API. Vectors of two models cannot be compared: use a session, or a bandit whose arms run one model."""
        return await respond(gateway, EMBEDDINGS, request.scope, await request.body())

    @made.get("/v1/models", summary="The bandits, as models", response_model=ModelsAnswer, responses=_errors(401, 403, 429, 503))
    async def list_models(caller: Reader, services: Shared) -> Response:
        """Every bandit of the key's tenant."""
        names = await services.repository.names(caller.tenant)
        return answer({"object": "list", "data": [_model(name) for name in names]})

    @made.get(
        "/v1/models/bandit/{name}",
        summary="One bandit, as a model",
        response_model=ModelAnswer,
        responses=_errors(401, 403, 404, 429, 503),
    )
    async def show_model(name: BanditName, caller: Reader, services: Shared) -> Response:
        """404 `model_not_found` where there is none."""
        await services.repository.get(caller.tenant, name)
        return answer(_model(name))

    return made


def _model(name: str) -> dict[str, Any]:
    return {"id": f"bandit/{name}", "object": "model", "created": 0, "owned_by": "nextarm"}
