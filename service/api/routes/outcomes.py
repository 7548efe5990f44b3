"""Outcomes: what came of a decision."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.api.batch import observe_all
from service.api.dependencies import DecisionId, RoutedLearner, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.observe import amend, observe
from service.api.requests import AmendmentBody, OutcomeBatch, OutcomeBody
from service.api.responses import AmendmentAnswer, OutcomeAnswer, OutcomesAnswer, answer
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
        "decision_archived",
        "decision_cancelled",
        "overloaded",
        body=True,
    ),
)
async def put_outcome(learner: RoutedLearner, decision: DecisionId, body: OutcomeBody, services: Shared) -> Response:
    """Learned exactly once: the same body again gets the first receipt with `duplicate: true`, another body a 409.

    Without the reward that the policy needs, cost and signals are learned at once, and the decision stays open for it. A later
    body may repeat them or leave them out.
    """
    return answer(await observe(services, learner, decision, body))


@router.patch(
    "/v1/bandits/{name}/decisions/{decision}/outcome",
    summary="Correct what came of a decision",
    response_model=AmendmentAnswer,
    responses=problems(
        "bandit_not_found",
        "decision_not_found",
        "outcome_conflict",
        "decision_open",
        "not_amendable",
        "decision_expired",
        "decision_archived",
        "decision_cancelled",
        body=True,
    ),
)
async def patch_outcome(learner: RoutedLearner, decision: DecisionId, body: AmendmentBody) -> Response:
    """Corrects or adds signals of a decision that was observed or has expired, for `amend_until_s` after it. Values are absolute,
    and are learned once, as differences to what was learned before; what the policy has dropped since is corrected in the log
    alone.
    """
    return answer(await amend(learner, decision, body))


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
