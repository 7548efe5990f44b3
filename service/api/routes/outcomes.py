"""Outcomes: what came of a decision."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.api.batch import observe_all
from service.api.dependencies import DecisionId, RoutedLearner, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.observe import observe
from service.api.requests import OutcomeBatch, OutcomeBody
from service.api.responses import OutcomeAnswer, OutcomesAnswer, answer
from service.api.routes import problems

router = APIRouter(tags=["outcomes"], route_class=StrictJSONRoute)


@router.put(
    "/v1/bandits/{name}/decisions/{decision}/outcome",
    summary="Post what came of a decision",
    response_model=OutcomeAnswer,
    responses=problems(
        "bandit_not_found",
        "arm_not_found",
        "decision_not_found",
        "outcome_conflict",
        "decision_expired",
        "decision_cancelled",
        "overloaded",
        body=True,
    ),
)
async def put_outcome(learner: RoutedLearner, decision: DecisionId, body: OutcomeBody, services: Shared) -> Response:
    """Learned exactly once: the same body again gets the first receipt with `duplicate: true`, another body a 409."""
    return answer(await observe(services, learner, decision, body))


@router.post(
    "/v1/bandits/{name}/outcomes/batch",
    summary="Up to 1,024 outcomes in one request",
    response_model=OutcomesAnswer,
    responses=problems("bandit_not_found", body=True),
)
async def post_outcomes(learner: RoutedLearner, body: OutcomeBatch, services: Shared) -> Response:
    """Receipts or problems, in order. One bad item is its own problem and harms no other. Where the store refused and nothing was
    accepted, the answer is one 503 with `Retry-After`: send the same request again.
    """
    return answer({"outcomes": await observe_all(services, learner, body.outcomes)})
