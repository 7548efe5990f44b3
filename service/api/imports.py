"""Importing over HTTP: rows of the past become `Imported` events. Every row is checked before the first one is appended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from msgspec import UNSET
from pydantic import ValidationError

from bandits.types import Context
from service.api.content import prompt_rows, prompt_vector
from service.api.decide import compares_prompts
from service.api.dependencies import Services
from service.api.error_mapping import body_error_to_problem
from service.api.observe import checked_outcome
from service.api.problems import LISTED, invalid_fields
from service.api.requests import ImportBody, ImportRow, Outcome, OutcomeBody
from service.api.validation import wrong_fields
from service.engine import events
from service.engine.events import Imported, body_digest
from service.engine.learner import Learner

AT_ONCE = 32
"""Rows that are checked, or whose contents are embedded, before other requests get their turn."""

POSTED = tuple(Outcome.model_fields)
"""Fields of a row that an outcome has, too."""

Wrong = list[tuple[str, str]]


async def import_rows(services: Services, learner: Learner, body: ImportBody) -> dict[str, Any]:
    """The receipt; a 422 names every wrong row, and nothing is learned."""
    await learner.projection.refresh()  # arms may have come in another replica
    learner.policy.check_ready(learner.versions.committed.state)
    wrong: Wrong = []
    rows: list[ImportRow] = []
    for first, several in _parts(body.rows):
        rows += [row for i, item in enumerate(several, first) if (row := _parsed(item, i, body.id, wrong)) is not None]
        await asyncio.sleep(0)
    _refuse(wrong)
    _check_ids(learner, rows, wrong)
    _refuse(wrong)
    made: list[Imported] = []
    for first, several in _parts(rows):
        made += await _events(services, learner, several, first=first, wrong=wrong)
        if len(wrong) >= LISTED:
            break
        await asyncio.sleep(0)
    _refuse(wrong)
    receipt = await learner.imports.submit(made)
    return receipt._asdict()


def _parts(rows: list[Any]) -> Iterator[tuple[int, list[Any]]]:
    for first in range(0, len(rows), AT_ONCE):
        yield first, rows[first : first + AT_ONCE]


def _refuse(wrong: Wrong) -> None:
    if wrong:
        raise invalid_fields(wrong)


def _parsed(item: Any, place: int, request: str | None, wrong: Wrong) -> ImportRow | None:
    """The row, its id filled in; None where it is not one."""
    try:
        row = ImportRow.model_validate(item)
    except ValidationError as error:
        wrong += wrong_fields(error, within=f"rows.{place}")
        return None
    if row.id is None and request is None:
        wrong.append((f"rows.{place}.id", "is missing; give every row an id, or the request, so that nothing is learned twice"))
        return None
    return row if row.id is not None else row.model_copy(update={"id": f"{request}/{place}"})


def _check_ids(learner: Learner, rows: list[ImportRow], wrong: Wrong) -> None:
    """That ids differ, and that arms are known."""
    places: dict[str, int] = {}
    for place, row in enumerate(rows):
        first = places.setdefault(row.id or "", place)
        if first != place:
            wrong.append((f"rows.{place}.id", f"is that of rows.{first}, too; give each row its own"))
        for path, name in (("arm", row.arm), *((f"weights.{name}", name) for name in row.weights or ())):
            if learner.ledger.index(name) is None:
                wrong.append(
                    (f"rows.{place}.{path}", "is no arm of this bandit; PUT .../arms/{arm} adds one (retired ones are fine)")
                )


async def _events(services: Services, learner: Learner, rows: list[ImportRow], *, first: int, wrong: Wrong) -> list[Imported]:
    """What these rows are in the log. first: the place of the first one in the request."""
    paths = [f"rows.{place}" for place in range(first, first + len(rows))]
    try:
        embedded = await _embedded(services, learner, rows, paths)
    except Exception as error:
        _note(error, "", wrong)
        return []
    made = await asyncio.gather(
        *(_event(services, learner, row, embedded.get(place)) for place, row in enumerate(rows)), return_exceptions=True
    )
    for one, path in zip(made, paths, strict=True):
        if isinstance(one, BaseException):
            _note(one, f"{path}.", wrong)
    return [one for one in made if isinstance(one, Imported)]


def _note(error: BaseException, prefix: str, wrong: Wrong) -> None:
    """Add the wrong fields of a row; any other failure is that of the request."""
    problem = body_error_to_problem(error) if isinstance(error, Exception) else None
    if problem is None or problem.code not in ("invalid_request", "arm_not_found"):
        raise problem or error
    wrong += [(f"{prefix}{path}", message) for path, message in problem.errors]


async def _embedded(services: Services, learner: Learner, rows: list[ImportRow], paths: list[str]) -> dict[int, bytes]:
    """The features of the prompts that have to be embedded, by the place of their rows; they are embedded together."""
    if not learner.created.prompt_embedder:
        return {}
    prompts = {i: row.prompt for i, row in enumerate(rows) if row.prompt is not None and row.prompt.vector is None}
    if not prompts:
        return {}
    found = await prompt_rows(services, learner.created, [*prompts.values()], paths=[f"{paths[i]}.prompt" for i in prompts])
    return {i: events.vector_bytes(vector) for i, vector in zip(prompts, found, strict=True)}


async def _event(services: Services, learner: Learner, row: ImportRow, features: bytes | None) -> Imported:
    """Refuses what a decision on this prompt, and its outcome, would be refused for. features: None = not embedded."""
    ledger, policy = learner.ledger, learner.policy
    if features is None:
        required = policy.contextual or compares_prompts(learner)
        features = await prompt_vector(services, learner.created, row.prompt, required=required)
    if features:
        policy.check_context(Context(allowed=(True,), features=events.vector_tensor(features)))
    posted = {name: getattr(row, name) for name in POSTED}
    outcome = await checked_outcome(services, learner, OutcomeBody.model_construct(**posted), features=features)
    index = ledger.index(row.arm)
    assert index is not None  # see `_check_ids`
    price = ledger.arms[index].price
    weights = None if row.weights is None else [row.weights.get(arm.name, 0.0) for arm in ledger.arms]
    propensity = row.propensity if weights is None else weights[index]
    return Imported(
        at=services.repository.clock(),
        id=row.id or "",
        arm=index,
        reward=outcome.reward,
        cost=price if outcome.cost is None else outcome.cost,
        price=price,
        features=features,
        propensity=UNSET if propensity is None else propensity,
        weights=UNSET if weights is None else weights,
        source=outcome.source or UNSET,
        signals=dict(outcome.signals) or UNSET,
        cost_posted=outcome.cost is not None,
        session=UNSET if row.session is None else row.session,
        metadata=UNSET if row.metadata is None else row.metadata,
        happened_at=UNSET if row.at is None else row.at,
        output=outcome.output,
        reference=outcome.reference,
        body=body_digest(*row.canonical()),
    )
