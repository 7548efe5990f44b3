"""Evaluations: what other policies would have earned on the decisions of a bandit."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Response

from service.api.dependencies import ManagedLearner, ReadLearner, Shared
from service.api.evaluations import plan_of
from service.api.json_bodies import StrictJSONRoute
from service.api.requests import ID, EvaluationBody
from service.api.responses import (
    EvaluationAnswer,
    EvaluationsAnswer,
    EvaluationSummary,
    answer,
    evaluation_json,
    evaluation_summary_json,
)
from service.api.routes import problems
from service.engine.events import body_digest

router = APIRouter(tags=["evaluations"], route_class=StrictJSONRoute)

EvaluationId = Annotated[str, Path(pattern=ID, description="Id of the evaluation.", examples=["january"])]


@router.post(
    "/v1/bandits/{name}/evaluations",
    summary="Ask what other policies would have earned",
    status_code=202,
    responses={
        202: {"model": EvaluationSummary, "description": "Accepted, or asked for before: the same evaluation."},
        **problems("bandit_not_found", "shadow_not_found", "evaluation_conflict", "rate_limited", body=True),
    },
)
async def post_evaluation(learner: ManagedLearner, body: EvaluationBody, services: Shared) -> Response:
    """Reads the log up to its present end, beside the decisions, which do not wait for it. `GET .../evaluations/{id}` says how
    far it has come. With an `id`, the same request again is the same evaluation, and another one under that id is a 409.
    """
    request = body.model_dump(exclude_unset=True)
    evaluations = services.repository.evaluations
    digest = body_digest(request)
    if body.id is not None and (known := await evaluations.known(learner.log, body.id, digest)) is not None:
        return answer(evaluation_summary_json(known), status=202)
    plan = await asyncio.to_thread(partial(plan_of, learner, body, max_bytes=services.settings.max_state_bytes))
    record = await evaluations.submit(learner.log, plan, wanted=body.id or "", body=digest, request=request)
    return answer(evaluation_summary_json(record), status=202)


@router.get(
    "/v1/bandits/{name}/evaluations",
    summary="The evaluations of a bandit, newest first",
    response_model=EvaluationsAnswer,
    responses=problems("bandit_not_found"),
)
async def list_evaluations(learner: ReadLearner, services: Shared) -> Response:
    """Without their results."""
    found = await services.repository.evaluations.all(learner.log)
    return answer({"evaluations": [evaluation_summary_json(record) for record in found]})


@router.get(
    "/v1/bandits/{name}/evaluations/{evaluation}",
    summary="An evaluation and its results",
    response_model=EvaluationAnswer,
    responses=problems("bandit_not_found", "evaluation_not_found"),
)
async def show_evaluation(learner: ReadLearner, evaluation: EvaluationId, services: Shared) -> Response:
    """Any replica answers. `state` is queued, running, done or failed; results are null until it is done."""
    return answer(evaluation_json(await services.repository.evaluations.find(learner.log, evaluation)))


@router.delete(
    "/v1/bandits/{name}/evaluations/{evaluation}",
    summary="Forget an evaluation",
    status_code=204,
    response_class=Response,
    responses=problems("bandit_not_found", "evaluation_not_found"),
)
async def delete_evaluation(learner: ManagedLearner, evaluation: EvaluationId, services: Shared) -> Response:
    """One that is under way is given up within seconds."""
    await services.repository.evaluations.delete(learner.log, evaluation)
    return Response(status_code=204)
