"""The policy sidecar that Weave's router asks (`policy_router_v1`), for one bandit, at `.../adapters/weave/NAME`.

    /route     a decision among the candidates that are arms; in shadow mode, and where training is not allowed, a dry run
    /outcome   what the call cost and how long it took, which waits for a reward; or the error that it ended with
    /feedback  the reward: up is 1, down is 0

Nothing is kept of what may not be learned.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Response
from pydantic import Field, FiniteFloat

from service.api.adapters.route import AdapterRoute, ForeignBody, decision_id
from service.api.decide import any_active, decide
from service.api.dependencies import ReadLearner, RoutedLearner, Services, Shared
from service.api.error_mapping import body_error_to_problem
from service.api.observe import amend, observe
from service.api.problems import Problem
from service.api.requests import MAX_ARMS, MAX_ERROR, AmendmentBody, DecisionBody, OutcomeBody
from service.engine import events
from service.engine.errors import DecisionExpiredError, OutcomeConflictError
from service.engine.learner import Learner

SCHEMA = "policy_router_v1"
CAPABILITIES = {
    "schema_version": SCHEMA,
    "reports_outcomes": True,
    "reports_feedback": True,
    "honors_preferred_models": False,
    "honors_quality_price_bias": False,
    "supports_debug_route_detail": False,
    "supports_preview": False,
    "supports_shadow": True,
    "authoritative_per_turn_selection": False,
}
REWARDS = {"up": 1.0, "down": 0.0}
LONGEST_SESSION = 128


class WeaveRoute(AdapterRoute):
    """A route whose errors are those of a policy sidecar."""

    @staticmethod
    def failure(problem: Problem) -> Response:
        """`{"error": "..."}`."""
        content = msgspec.json.encode({"error": problem.detail})
        return Response(content, problem.status, headers=problem.headers, media_type="application/json")


router = APIRouter(prefix="/adapters/weave/{name}", route_class=WeaveRoute, include_in_schema=False)


class Candidate(ForeignBody):
    """A model that may be selected."""

    roster_id: Annotated[str, Field(min_length=1, max_length=128)]
    estimated_cost_usd: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    effective_estimated_cost_usd: Annotated[FiniteFloat, Field(ge=0)] = 0.0

    @property
    def price(self) -> float | None:
        """Of this call; None where the router says nothing, so that the arm's own price holds."""
        return self.effective_estimated_cost_usd or self.estimated_cost_usd or None


class RouteMessage(ForeignBody):
    """One turn of the conversation."""

    role: str
    text: str = ""


class RouteBody(ForeignBody):
    """The request of /route."""

    schema_version: Literal["policy_router_v1"]
    route_id: Annotated[str, Field(min_length=1, max_length=256)]
    execution_mode: Literal["serving", "shadow", ""] = "serving"
    training_allowed: bool = False
    client_session_id: str = ""
    prompt_text: str = ""
    conversation_messages: list[RouteMessage] = Field([])
    candidates: Annotated[list[Candidate], Field(min_length=1, max_length=MAX_ARMS)]

    @property
    def is_learned(self) -> bool:
        """Whether anything of it may be kept."""
        return self.training_allowed and self.execution_mode != "shadow"

    def prompt(self) -> dict[str, Any] | None:
        """The conversation where a user speaks in it, else the text."""
        messages = [{"role": one.role, "content": one.text} for one in self.conversation_messages if one.text.strip()]
        if any(message["role"] == "user" for message in messages):
            return {"messages": messages}
        return {"text": self.prompt_text} if self.prompt_text.strip() else None


class ReportBody(ForeignBody):
    """What /outcome and /feedback have in common."""

    route_id: Annotated[str, Field(min_length=1, max_length=256)]
    training_allowed: bool = False


class OutcomeReportBody(ReportBody):
    """The request of /outcome."""

    served_model: str = ""
    status: int = 0
    error: str = ""
    cost_usd: Annotated[FiniteFloat, Field(ge=0)] | None = None
    upstream_latency_ms: Annotated[FiniteFloat, Field(ge=0)] | None = None


class FeedbackBody(ReportBody):
    """The request of /feedback."""

    rating: Literal["up", "down"]


@router.get("/livez")
async def livez() -> Response:
    """The process is alive."""
    return _answer({"ok": True})


@router.get("/readyz")
async def readyz(learner: ReadLearner) -> Response:
    """Whether the bandit can decide."""
    learner.ledger.check_ready()
    learner.policy.check_ready(learner.versions.committed.state)
    if not any_active(learner.ledger):
        raise Problem("not_ready", "the bandit has no active arm; add one")
    return _answer({"ok": True})


@router.get("/capabilities")
async def capabilities(learner: ReadLearner) -> Response:
    """What of the contract is used."""
    return _answer(CAPABILITIES)


@router.post("/route")
async def route(learner: RoutedLearner, services: Shared, body: RouteBody) -> Response:
    """One of the candidates; 503 where none can be chosen."""
    try:
        decision = await _decided(services, learner, body)
    except Exception as error:
        problem = body_error_to_problem(error)
        raise Problem("not_ready", problem.detail, headers=problem.headers) from error
    weights = {one.roster_id: decision["weights"].get(one.roster_id, 0.0) for one in body.candidates}
    selected = decision["arm"]
    return _answer(
        {
            "schema_version": SCHEMA,
            "route_id": body.route_id,
            "selected_roster_id": selected,
            "score": weights[selected],
            "score_kind": "probability",
            "candidate_scores": weights,
            "propensity": 1.0 if decision["propensity"] is None else decision["propensity"],  # the session has this model
            "policy_artifact_id": f"{learner.created.bandit}@{decision['offset']}",
            "policy_artifact_sha256": hashlib.sha256(events.encode(learner.created)).hexdigest(),
        }
    )


async def _decided(services: Services, learner: Learner, body: RouteBody) -> dict[str, Any]:
    offered = {one.roster_id: one for one in reversed(body.candidates)}  # of several bindings of one model, the first
    if any(learner.ledger.index(name) is None for name in offered):
        await learner.projection.refresh()
    arms = [
        {"name": name, "price": offered[name].price}
        for name in sorted(offered)
        if (index := learner.ledger.index(name)) is not None and learner.ledger.arms[index].active
    ]
    if not arms:
        raise Problem(
            "not_ready", f"no candidate is an active arm of this bandit; add the roster ids as arms: {min(offered)}, ..."
        )
    asked: dict[str, Any] = {
        "id": decision_id(body.route_id),
        "arms": arms,
        "dry_run": not body.is_learned,
    }
    if learner.created.prompt_embedder and (prompt := body.prompt()) is not None:
        asked["prompt"] = prompt
    if body.client_session_id and len(body.client_session_id) <= LONGEST_SESSION:
        asked["session"] = body.client_session_id
    decision, _ = await decide(services, learner, DecisionBody.model_validate(asked))
    if decision["stop"]:
        raise Problem("not_ready", f"{learner.policy.kind} chose to call none of the candidates")
    return decision


@router.post("/outcome")
async def outcome(learner: RoutedLearner, services: Shared, body: OutcomeReportBody) -> Response:
    """What came of the call. Without an error it waits for feedback, as a partial outcome, or amends what feedback has closed."""
    if not body.training_allowed:
        return _answer({"ok": True, "learned": False})
    decision = decision_id(body.route_id)
    decided, _ = await learner.outcomes.look_up(decision)
    selected = learner.ledger.arms[decided.event.arm].name
    given: dict[str, Any] = {} if body.cost_usd is None else {"cost": body.cost_usd}
    if body.served_model not in ("", selected):
        if learner.ledger.index(body.served_model) is None:  # which says nothing of any arm
            await learner.outcomes.cancel(decision)
            return _answer({"ok": True, "learned": False})
        given["arm"] = body.served_model
    if body.error or body.status >= 400:
        given["error"] = (body.error.strip() or f"status {body.status}")[:MAX_ERROR]
    elif body.upstream_latency_ms is not None:
        given["signals"] = {"latency_s": body.upstream_latency_ms / 1e3}
    if not given:
        return _answer({"ok": True, "learned": False})
    try:
        await observe(services, learner, decision, OutcomeBody.model_validate(given))
    except OutcomeConflictError:  # feedback came first
        if not given.keys() <= {"cost", "signals"}:
            raise
        await amend(learner, decision, AmendmentBody.model_validate(given))
    return _answer({"ok": True, "learned": True})


@router.post("/feedback")
async def feedback(learner: RoutedLearner, services: Shared, body: FeedbackBody) -> Response:
    """The reward; of several ratings the last one."""
    if not body.training_allowed:
        return _answer({"ok": True, "learned": False})
    decision, reward = decision_id(body.route_id), REWARDS[body.rating]
    try:
        await observe(services, learner, decision, OutcomeBody(reward=reward))
    except (OutcomeConflictError, DecisionExpiredError):
        await amend(learner, decision, AmendmentBody(reward=reward))
    return _answer({"ok": True, "learned": True})


def _answer(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
