"""Many decisions or outcomes in one request, answered in order; one bad item is its own problem and harms no other.
Where nothing was accepted because the store refused, the whole request is a 503, so that clients and proxies see it and retry.

    items ──> validate ──┬─ plain: into the learner's batcher at once, without a task of its own ─┬──> answers
                         └─ what is embedded, scored, or goes on to a next decision: a task ──────┘

An item that goes into the batcher costs no more than its validation, its mathematics and its share of one commit.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.api.decide import decide, parse_decision_request
from service.api.dependencies import Services
from service.api.error_mapping import body_error_to_problem
from service.api.observe import observe, parse_outcome_report
from service.api.problems import Problem
from service.api.requests import DecisionBody, OutcomeItem
from service.api.responses import FULL_TABLE, decision_json, receipt_json
from service.engine.commit import Recorded
from service.engine.learner import Learner
from service.scorers.base import CLIENT

Answer = dict[str, Any]


async def decide_all(services: Services, learner: Learner, items: Sequence[Any]) -> list[Answer]:
    """Decisions or problems."""

    async def begin(item: Any) -> asyncio.Future[Any]:
        body = DecisionBody.model_validate(item)
        if _is_plain_decision(body):
            try:
                return learner.decisions.submit(await parse_decision_request(services, learner, body))
            except Exception:
                if not body.id:  # else it may have been decided before
                    raise
        return asyncio.ensure_future(_decide(services, learner, body))

    def write(recorded: Recorded) -> Answer:
        return decision_json(learner, recorded.event, offset=recorded.offset)

    with services.batch_room.taken(len(items) * min(len(learner.versions.committed.arms), FULL_TABLE)):
        return await _all(services, items, begin, write)


async def observe_all(services: Services, learner: Learner, items: Sequence[Any]) -> list[Answer]:
    """Receipts or problems."""

    async def begin(item: Any) -> asyncio.Future[Any]:
        body = OutcomeItem.model_validate(item)
        if _is_plain_outcome(learner, body):
            return learner.outcomes.submit(body.decision, await parse_outcome_report(services, learner, body.decision, body))
        return asyncio.ensure_future(observe(services, learner, body.decision, body))

    def write(recorded: Recorded) -> Answer:
        return receipt_json(recorded, following=None)

    return await _all(services, items, begin, write)


async def _all(
    services: Services,
    items: Sequence[Any],
    begin: Callable[[Any], Awaitable[asyncio.Future[Any]]],
    write: Callable[[Recorded], Answer],
) -> list[Answer]:
    """The answer of every item is written as soon as its event is there, and the event is let go: an event holds the weights and
    scores of every arm, and a thousand of them for a thousand arms are hundreds of megabytes.
    """
    answers: list[Answer | Problem] = [{}] * len(items)
    waiting: dict[int, asyncio.Future[Any]] = {}
    settled = asyncio.Event()

    def settle(i: int, future: asyncio.Future[Any]) -> None:
        del waiting[i]
        answers[i] = _answer_of(future, write)
        settled.set()

    try:
        for i, item in enumerate(items):
            try:
                future = await begin(item)
            except Exception as error:
                answers[i] = body_error_to_problem(error)
            else:
                waiting[i] = future
                future.add_done_callback(functools.partial(settle, i))
        while waiting:
            settled.clear()
            await settled.wait()
    finally:
        for future in waiting.values():
            future.cancel()
    return _documents(services, answers)


def _answer_of(future: asyncio.Future[Any], write: Callable[[Recorded], Answer]) -> Answer | Problem:
    if future.cancelled():
        return {}  # with the request
    try:
        found: Recorded | Answer = future.result()
        return write(found) if isinstance(found, Recorded) else found
    except Exception as error:
        return body_error_to_problem(error)


def _documents(services: Services, answers: Sequence[Answer | Problem]) -> list[Answer]:
    problems = [one for one in answers if isinstance(one, Problem)]
    is_nothing_accepted = len(problems) == len(answers)
    whole = next((one for one in problems if is_nothing_accepted and one.code == "storage_unavailable"), None)
    for problem in problems:
        if problem is not whole:  # which is counted with the request
            services.meter.count_problem(problem.code)
    if whole is not None:
        raise whole
    return [one.document() if isinstance(one, Problem) else one for one in answers]


async def _decide(services: Services, learner: Learner, body: DecisionBody) -> Answer:
    return (await decide(services, learner, body, brief=True))[0]


def _is_plain_decision(body: DecisionBody) -> bool:
    """Nothing is embedded, no earlier attempt counts, and what the engine may refuse was not decided before."""
    narrows = body.exclude is not None or body.max_price is not None
    return not (body.dry_run or body.episode or (narrows and body.id)) and (body.prompt is None or body.prompt.vector is not None)


def _is_plain_outcome(learner: Learner, body: OutcomeItem) -> bool:
    return learner.created.reward_source == CLIENT and body.output is None and body.reference is None and not body.next
