"""History: what was learned elsewhere."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.api.clone import clone
from service.api.dependencies import ManagedLearner, Shared
from service.api.embedder_choice import notices
from service.api.imports import import_rows
from service.api.json_bodies import StrictJSONRoute
from service.api.requests import CloneBody, ImportBody
from service.api.responses import BanditAnswer, ImportAnswer, answer, bandit_json
from service.api.routes import problems

router = APIRouter(tags=["history"], route_class=StrictJSONRoute)


@router.post(
    "/v1/bandits/{name}/import",
    summary="Learn from up to 1,024 outcomes of the past",
    response_model=ImportAnswer,
    responses=problems("bandit_not_found", "import_conflict", "reference_missing", body=True),
)
async def post_import(learner: ManagedLearner, body: ImportBody, services: Shared) -> Response:
    """All rows or none: a 422 names every wrong field as `rows.3.reward`. Learned once by id, in order, like outcomes; the same
    request again learns what is missing of it. Budgets, the watch on drift and the statistics of decisions leave imports out.
    """
    return answer(await import_rows(services, learner, body))


@router.post(
    "/v1/bandits/{name}/clone",
    summary="A new bandit that learns this one's log under another policy",
    status_code=202,
    response_model=BanditAnswer,
    responses=problems("bandit_not_found", "bandit_exists", "not_cloneable", body=True),
)
async def post_clone(learner: ManagedLearner, body: CloneBody, services: Shared) -> Response:
    """It is there at once, and copies the outcomes of this log in the background. Until it has them all `cloning` says how far it
    is, and decisions are a 503 `not_ready`. Open decisions are not copied. The old bandit goes on undisturbed.
    """
    made = await clone(services, learner, body)
    return answer(await bandit_json(made, notices(services.embeddings, made.created)), status=202)
