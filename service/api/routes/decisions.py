"""Decisions: the next model to query."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.api.batch import decide_all
from service.api.decide import decide
from service.api.dependencies import DecisionId, ReadLearner, RoutedLearner, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.requests import DecisionBatch, DecisionBody
from service.api.responses import DecisionAnswer, DecisionsAnswer, DecisionState, answer, closed_json, decision_json, time_text
from service.api.routes import problems

router = APIRouter(tags=["decisions"], route_class=StrictJSONRoute)


@router.post(
    "/v1/bandits/{name}/decisions",
    summary="Ask for the next model to query",
    status_code=201,
    responses={
        201: {"model": DecisionAnswer, "description": "Decided and logged."},
        200: {"model": DecisionAnswer, "description": "A repeated request, or a dry run."},
        **problems(
            "bandit_not_found",
            "arm_not_found",
            "decision_conflict",
            "reference_missing",
            "episode_finished",
            "overloaded",
            body=True,
        ),
    },
)
async def make_decision(learner: RoutedLearner, body: DecisionBody, services: Shared) -> Response:
    """The decision is in the log before the answer leaves. Post its outcome under the `id`."""
    content, status = await decide(services, learner, body)
    return answer(content, status=status)


@router.post(
    "/v1/bandits/{name}/decisions/batch",
    summary="Up to 1,024 decisions in one request",
    response_model=DecisionsAnswer,
    responses=problems("bandit_not_found", "overloaded", body=True),
)
async def make_decisions(learner: RoutedLearner, body: DecisionBatch, services: Shared) -> Response:
    """Decisions or problems, in order. One bad item is its own problem and harms no other. Where the store refused and nothing
    was accepted, the answer is one 503 with `Retry-After`: send the same request again.
    """
    return answer({"decisions": await decide_all(services, learner, body.decisions)})


@router.get(
    "/v1/bandits/{name}/decisions/{decision}",
    summary="A decision and what became of it",
    response_model=DecisionState,
    responses=problems("bandit_not_found", "decision_not_found"),
)
async def show_decision(learner: ReadLearner, decision: DecisionId) -> Response:
    """`state` is open, partial, observed, expired or cancelled; the outcome is shown as it is by now, with its amendments. Every
    arm's weight and scores are shown, however many arms there are.
    """
    found = await learner.outcomes.look_up_all(decision)
    decided = found.decided
    return answer(
        {
            **decision_json(learner, decided.event, offset=decided.offset, full=True),
            **closed_json(learner, found),
            "decided_at": time_text(decided.event.at),
        }
    )


@router.delete(
    "/v1/bandits/{name}/decisions/{decision}",
    summary="Cancel an open decision",
    status_code=204,
    response_class=Response,
    responses=problems("bandit_not_found", "decision_not_found", "outcome_conflict", "decision_expired"),
)
async def cancel_decision(learner: RoutedLearner, decision: DecisionId) -> Response:
    """Nothing is learned from it. Cancelling twice is cancelling once; a decision with an outcome cannot be cancelled."""
    await learner.outcomes.cancel(decision)
    return Response(status_code=204)
