"""History: what was learned elsewhere."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.api.dependencies import ManagedLearner, Shared
from service.api.imports import import_rows
from service.api.json_bodies import StrictJSONRoute
from service.api.requests import ImportBody
from service.api.responses import ImportAnswer, answer
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
