"""Many decisions or outcomes in one request, answered in order; one bad item is its own problem and harms no other.
Where nothing was accepted because the store refused, the whole request is a 503, so that clients and proxies see it and retry.

    items ──> validate ──┬─ plain: into the learner's line at once, without a task of its own ──┬──> answers
                         └─ what is embedded, scored, or goes on to a next decision: a task ────┘

An item that goes into the line costs no more than its validation, its mathematics and its share of one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.deciding import decide, observe, outcome_of, question
from service.dependencies import Services
from service.errors import Problem, refusal_of
from service.learner import Kept, Learner
from service.routes.answers import decision_json, receipt_json
from service.schemas import DecisionBody, OutcomeItem
from service.scorers.base import CLIENT

Answer = dict[str, Any]


async def decide_all(services: Services, learner: Learner, items: Sequence[Any]) -> list[Answer]:
    """Decisions or problems."""

    async def begin(item: Any) -> Awaitable[Kept | Answer]:
        body = DecisionBody.model_validate(item)
        if _is_plain_decision(body):
            try:
                return learner.decide_soon(await question(services, learner, body))
            except Exception:
                if not body.id:  # else it may have been decided before
                    raise
        return asyncio.ensure_future(_decided(services, learner, body))

    def tell(kept: Kept) -> Answer:
        return decision_json(learner, kept.event, offset=kept.offset)

    return await _all(services, items, begin, tell)


async def observe_all(services: Services, learner: Learner, items: Sequence[Any]) -> list[Answer]:
    """Receipts or problems."""

    async def begin(item: Any) -> Awaitable[Kept | Answer]:
        body = OutcomeItem.model_validate(item)
        if _is_plain_outcome(learner, body):
            return learner.observe_soon(body.decision, await outcome_of(services, learner, body.decision, body))
        return asyncio.ensure_future(observe(services, learner, body.decision, body))

    def tell(kept: Kept) -> Answer:
        return receipt_json(kept, following=None)

    return await _all(services, items, begin, tell)


async def _all(
    services: Services,
    items: Sequence[Any],
    begin: Callable[[Any], Awaitable[Awaitable[Kept | Answer]]],
    tell: Callable[[Kept], Answer],
) -> list[Answer]:
    begun: list[Awaitable[Kept | Answer]] = []
    for item in items:
        try:
            begun.append(await begin(item))
        except Exception as error:
            begun.append(_failed(error))
    found = await asyncio.gather(*begun, return_exceptions=True)
    results = [_problem(one) if isinstance(one, BaseException) else tell(one) if isinstance(one, Kept) else one for one in found]
    problems = [one for one in results if isinstance(one, Problem)]
    if len(problems) == len(results):
        for problem in problems:
            if problem.code == "storage_unavailable":
                raise problem
    for problem in problems:
        services.meter.count_problem(problem.code)
    return [one.document() if isinstance(one, Problem) else one for one in results]


async def _decided(services: Services, learner: Learner, body: DecisionBody) -> Answer:
    return (await decide(services, learner, body))[0]


def _is_plain_decision(body: DecisionBody) -> bool:
    """Nothing is embedded, and no earlier attempt counts."""
    return not body.dry_run and not body.episode and (body.prompt is None or body.prompt.vector is not None)


def _is_plain_outcome(learner: Learner, body: OutcomeItem) -> bool:
    return learner.created.reward_source == CLIENT and body.output is None and body.reference is None and not body.next


def _failed(error: Exception) -> asyncio.Future[Kept | Answer]:
    future: asyncio.Future[Kept | Answer] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _problem(error: BaseException) -> Problem:
    if isinstance(error, Exception):
        return refusal_of(error)
    raise error
