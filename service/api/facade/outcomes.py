"""What is learned of a call: its outcome, in the body that a client would have posted."""

from __future__ import annotations

import logging
from typing import Any

from service.api.dependencies import Services
from service.api.error_mapping import body_error_to_problem
from service.api.facade.surfaces import Answer, Usage
from service.api.facade.upstreams import Learned, Prices
from service.api.observe import observe
from service.api.problems import Problem
from service.api.requests import MAX_ERROR, MAX_SAMPLES, OutcomeBody
from service.engine.learner import Learner
from service.scorers.base import CLIENT
from service.storage.throttling import ThrottledLogger

throttled = ThrottledLogger(logging.getLogger("nextarm.facade"))


def cost_of(prices: Prices, usage: Usage | None, *, pictures: int) -> float | None:
    """What a call cost, in the unit of the prices. None where that is not known: then the price of the arm counts, not 0."""
    parts: list[float] = []
    for price, amount in ((prices.call, 1), (prices.image, pictures)):
        if price is not None:
            parts.append(price * amount)
    if prices.input is not None or prices.output is not None:
        if usage is None or not (usage.read or usage.written):
            return None
        cached = min(usage.cached, usage.read or 0)
        price = prices.input or 0.0
        parts.append(price * ((usage.read or 0) - cached) + (price if prices.cached is None else prices.cached) * cached)
        parts.append((prices.output or 0.0) * (usage.written or 0))
    return sum(parts) if parts else None


def signals_of(learned: Learned, answer: Answer, *, latency_s: float, first_token_s: float | None) -> dict[str, float]:
    """The signals that are reported of a complete answer, as far as they are known."""
    usage = answer.usage
    known = {
        "latency_s": latency_s,
        "first_token_s": first_token_s,
        "prompt_tokens": usage.read if usage else None,
        "completion_tokens": usage.written if usage else None,
    }
    return {name: float(value) for name in learned.signals if (value := known[name]) is not None}


async def report_answer(
    services: Services,
    learner: Learner,
    decision: str,
    answer: Answer,
    *,
    learned: Learned,
    cost: float | None,
    signals: dict[str, float],
) -> None:
    """Post the outcome of a complete answer. Without the reward that the policy needs it is a partial one, and the decision stays
    open for the rest.
    """
    needs, is_scored = learner.policy.needs, learner.created.reward_source != CLIENT
    measured: dict[str, Any] = {"cost": cost, "signals": signals or None}
    reward = None if is_scored else learned.reward
    outputs = answer.outputs()[:MAX_SAMPLES]
    takes_outputs = learned.output and (is_scored or bool(learner.created.output_embedder))
    complete: dict[str, Any] = {}
    if outputs and takes_outputs and (is_scored or reward is not None or "reward" not in needs):
        complete["output"] = outputs
    if reward is not None and (complete or "output" not in needs):
        complete["reward"] = reward
    if complete and await _post(services, learner, decision, {**measured, **complete}) is None:
        return
    if "reward" in needs and any(value is not None for value in measured.values()):
        await _post(services, learner, decision, measured)


async def report_failure(services: Services, learner: Learner, decision: str, reason: str) -> None:
    """Close the decision of a call that failed: nothing is learned as quality, and the cooldown counts it."""
    await _post(services, learner, decision, {"error": reason[:MAX_ERROR]})


async def cancel(learner: Learner, decision: str) -> None:
    """Close a decision of which nothing is learned."""
    try:
        await learner.outcomes.cancel(decision)
    except Exception as error:
        _warn(body_error_to_problem(error))


async def _post(services: Services, learner: Learner, decision: str, outcome: dict[str, Any]) -> Problem | None:
    """Why it was not accepted, None where it was. That is a line in the log, never a failure of the client's request."""
    try:
        await observe(
            services, learner, decision, OutcomeBody.model_validate({k: v for k, v in outcome.items() if v is not None})
        )
    except Exception as error:
        return _warn(body_error_to_problem(error))
    return None


def _warn(problem: Problem) -> Problem:
    throttled.warning(f"an outcome was not accepted: {problem.code}", reason=problem.detail)
    return problem
