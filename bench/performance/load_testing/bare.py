"""The yardstick: routes with the bodies and answers of the service and nothing in between, on the same server software.

    python -m bench.performance.load_testing.bare PORT

    /raw/...         raw ASGI, msgspec in and out         the floor of uvicorn + uvloop + httptools
    /starlette/...   a Starlette route, msgspec in and out, in the FastAPI application
    /fastapi/...     a FastAPI route, pydantic in and out

Each has `.../decisions` and `.../decisions/{id}/outcome`. A body is read and checked against its schema, its vector stays the
base64 text that it is; the answer has as many bytes as the service's. None of them has middleware of its own.
"""

from __future__ import annotations

import sys

import msgspec
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

ROUTES = ("raw", "starlette", "fastapi")
ARMS = 10
NAMES = [f"model-{arm}" for arm in range(ARMS)]
ID = "01a201f9-c653-7294-bcb0-9425d7e2e671"
WEIGHTS = {name: float(name == "model-2") for name in NAMES}
ESTIMATE, BONUS = 0.86512345678901234, 0.07071067811865477
JSON = [(b"content-type", b"application/json")]


# -- msgspec -----------------------------------------------------------------------------------------------------------------


class Prompt(msgspec.Struct, forbid_unknown_fields=True):
    """Of a decision."""

    vector: str


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a decision."""

    prompt: Prompt | None = None


class Score(msgspec.Struct):
    """Of one arm."""

    estimate: float
    bonus: float


class Decision(msgspec.Struct):
    """Answer to it."""

    id: str
    bandit: str
    episode: str
    attempt: int
    arm: str
    stop: bool
    propensity: float
    weights: dict[str, float]
    scores: dict[str, Score]
    offset: int


class Outcome(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an outcome."""

    reward: float


class Receipt(msgspec.Struct):
    """Answer to it."""

    decision: str
    reward: float
    offset: int
    duplicate: bool
    next: None


decode_ask = msgspec.json.Decoder(Ask).decode
decode_outcome = msgspec.json.Decoder(Outcome).decode
encode = msgspec.json.Encoder().encode


def decided(body: bytes) -> bytes:
    """Body of a decision -> its answer, which is put together for each request."""
    asked = decode_ask(body)
    scores = {name: Score(ESTIMATE, BONUS) for name in NAMES}
    attempt = 0 if asked.prompt is None else len(asked.prompt.vector) // 2048
    return encode(Decision(ID, "b", ID, attempt, "model-2", False, 1.0, dict(WEIGHTS), scores, 4711))


def received(body: bytes, decision: str) -> bytes:
    """Body of an outcome -> its receipt."""
    return encode(Receipt(decision, decode_outcome(body).reward, 4712, False, None))


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """Raw ASGI."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    path: str = scope["path"]
    if path.endswith("/outcome"):
        status, content = 200, received(body, path.split("/")[-2])
    else:
        status, content = 201, decided(body)
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*JSON, length]})
    await send({"type": "http.response.body", "body": content})


async def starlette_decision(request: Request) -> Response:
    """A Starlette route."""
    return Response(decided(await request.body()), 201, media_type="application/json")


async def starlette_outcome(request: Request) -> Response:
    """A Starlette route."""
    return Response(received(await request.body(), request.path_params["decision"]), media_type="application/json")


# -- pydantic ----------------------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """As strict as the service's."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PromptModel(Model):
    """Of a decision."""

    vector: str


class AskModel(Model):
    """Body of a decision."""

    prompt: PromptModel | None = None


class ScoreModel(Model):
    """Of one arm."""

    estimate: float
    bonus: float


class DecisionModel(Model):
    """Answer to it."""

    id: str
    bandit: str
    episode: str
    attempt: int
    arm: str
    stop: bool
    propensity: float
    weights: dict[str, float]
    scores: dict[str, ScoreModel]
    offset: int


class OutcomeModel(Model):
    """Body of an outcome."""

    reward: float


class ReceiptModel(Model):
    """Answer to it."""

    decision: str
    reward: float
    offset: int
    duplicate: bool
    next: None


async def fastapi_decision(body: AskModel) -> DecisionModel:
    """A FastAPI route."""
    return DecisionModel(
        id=ID,
        bandit="b",
        episode=ID,
        attempt=0 if body.prompt is None else len(body.prompt.vector) // 2048,
        arm="model-2",
        stop=False,
        propensity=1.0,
        weights=dict(WEIGHTS),
        scores={name: ScoreModel(estimate=ESTIMATE, bonus=BONUS) for name in NAMES},
        offset=4711,
    )


async def fastapi_outcome(decision: str, body: OutcomeModel) -> ReceiptModel:
    """A FastAPI route."""
    return ReceiptModel(decision=decision, reward=body.reward, offset=4712, duplicate=False, next=None)


def create_app() -> ASGIApp:
    """All three; raw requests do not pass the framework."""
    app = FastAPI()
    app.add_api_route("/fastapi/decisions", fastapi_decision, methods=["POST"], status_code=201)
    app.add_api_route("/fastapi/decisions/{decision}/outcome", fastapi_outcome, methods=["PUT"])
    app.router.routes.append(Route("/starlette/decisions", starlette_decision, methods=["POST"]))
    app.router.routes.append(Route("/starlette/decisions/{decision}/outcome", starlette_outcome, methods=["PUT"]))

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await (raw if scope["path"].startswith("/raw/") else app)(scope, receive, send)

    return either


def main() -> None:
    uvicorn.run(
        create_app(), port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False
    )


if __name__ == "__main__":
    main()
