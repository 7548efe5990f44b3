"""Decisions: the next model to query."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.batch import decide_all
from service.api.decide import decide
from service.api.dependencies import DecisionId, ReadLearner, RoutedLearner, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import arm_not_found
from service.api.requests import DecisionBatch, DecisionBody
from service.api.responses import DecisionAnswer, DecisionPage, DecisionsAnswer, DecisionState, answer, history_json
from service.api.routes import problems
from service.engine.listing import DecisionFilter, StateName, find_decisions

router = APIRouter(tags=["decisions"], route_class=StrictJSONRoute)

MAX_LISTED = 200
"""Decisions in a page."""


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
    "/v1/bandits/{name}/decisions",
    summary="The decisions of the log, the newest first",
    response_model=DecisionPage,
    responses=problems("bandit_not_found", "arm_not_found"),
)
async def list_decisions(
    learner: ReadLearner,
    *,
    before: Annotated[int | None, Query(ge=1, description="Decisions with a smaller offset; left out, the newest.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 50,
    state: Annotated[StateName | None, Query(description="Those in this state by now.")] = None,
    arm: Annotated[str | None, Query(max_length=128, description="Those that chose this arm.")] = None,
    session: Annotated[str | None, Query(min_length=1, max_length=128, description="Those of this session.")] = None,
) -> Response:
    """Each with its outcome, as `GET .../decisions/{id}` shows it; of more than 64 arms, the 16 best. Go on with `next_before`
    until that is null, also behind a page with fewer than `limit`, or none.
    """
    index = None
    if arm is not None and (index := learner.ledger.index(arm)) is None:
        raise arm_not_found("arm")
    wanted = DecisionFilter(state=state, arm=index, session=session)
    page = await find_decisions(learner.projection, learner.outcomes, wanted, before=before, limit=limit)
    return answer(
        {
            "decisions": [history_json(learner, found, full=False) for found in page.decisions],
            "next_before": page.next_before,
            "trimmed_before": page.trimmed_before,
        }
    )


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
    return answer(history_json(learner, await learner.outcomes.look_up_all(decision), full=True))


@router.delete(
    "/v1/bandits/{name}/decisions/{decision}",
    summary="Cancel an open decision",
    status_code=204,
    response_class=Response,
    responses=problems("bandit_not_found", "decision_not_found", "outcome_conflict", "decision_expired", "decision_archived"),
)
async def cancel_decision(learner: RoutedLearner, decision: DecisionId) -> Response:
    """Nothing is learned from it. Cancelling twice is cancelling once; a decision with an outcome cannot be cancelled."""
    await learner.outcomes.cancel(decision)
    return Response(status_code=204)
