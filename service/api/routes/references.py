"""References: what outputs are compared with."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
from fastapi import APIRouter, Response
from uuid_utils.compat import uuid7

from bandits.types import REFERENCE, Observation
from service.api.content import output_matrix, prompt_rows
from service.api.dependencies import RoutedLearner, Services, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import Problem, invalid
from service.api.requests import ReferenceBody
from service.api.responses import ReferenceAnswer, answer
from service.api.routes import problems
from service.engine import events
from service.engine.errors import ReferenceConflictError
from service.engine.events import Matrix, MomentsGiven, ReferenceAdded, body_digest
from service.engine.learner import Learner
from service.engine.ledger import KnownReference, moments_of

router = APIRouter(tags=["references"], route_class=StrictJSONRoute)


@router.post(
    "/v1/bandits/{name}/references",
    summary="Post reference material",
    status_code=201,
    responses={
        201: {"model": ReferenceAnswer, "description": "Learned."},
        200: {"model": ReferenceAnswer, "description": "A repeated request: the first receipt."},
        **problems("bandit_not_found", "reference_conflict", "reference_frozen", "overloaded", body=True),
    },
)
async def post_references(learner: RoutedLearner, body: ReferenceBody, services: Shared) -> Response:
    """Samples are appended; pairs carry the prompt of each real output; moments are set at once. Texts and images are embedded by
    the bandit's own embedders. With an `id`, the same request again is learned once; another one under that id is a 409.
    """
    policy = learner.policy
    if not learner.takes_reference:
        raise invalid("body", f"{policy.kind} takes no reference with this configuration")
    digest = body_digest(*body.canonical()) if body.id else ""
    if body.id:
        await learner.projection.refresh()  # it may have been learned by another replica
        if known := learner.known_reference(body.id, digest):
            return _receipt(known, learner, is_repeated=True)
    event = await _event(services, learner, body)
    if body.id:
        event = msgspec.structs.replace(event, id=body.id, body=digest)
    seen = Observation(
        arm=REFERENCE,
        features=event.prompts.tensor(),
        output=event.outputs.tensor(),
        moments=None if event.moments is None else moments_of(event.moments),
    )

    def check() -> None:
        if body.id and learner.known_reference(body.id, digest):
            raise _LearnedMeanwhile
        if policy.reference_frozen and (learner.ledger.decided or any(arm.imported for arm in learner.ledger.arms)):
            raise Problem("reference_frozen", "the reference cannot change once there is a decision; create another bandit")
        policy.check_reference(learner.versions.committed.state, seen)

    if not body.id:
        receipt = await learner.committer.record(event, key=f"reference/{uuid7()}", check=check)
        return answer({"count": learner.ledger.referenced, "offset": receipt.offset}, status=201)
    try:
        receipt = await learner.committer.record(event, key=events.reference_key(body.id), check=check)
        if receipt.first is not None:  # learned, and the snapshot of an older version forgot the id
            if getattr(events.decode(receipt.first), "body", None) != digest:
                raise ReferenceConflictError(body.id)
            return answer({"count": learner.ledger.referenced, "offset": receipt.offset})
    except _LearnedMeanwhile:
        return _receipt(learner.ledger.references[body.id], learner, is_repeated=True)
    return _receipt(learner.ledger.references[body.id], learner, is_repeated=False)


class _LearnedMeanwhile(Exception):
    """A request with the same id and body was quicker."""


def _receipt(known: KnownReference, learner: Learner, *, is_repeated: bool) -> Response:
    learner.committer.duplicates += is_repeated
    return answer({"count": known.count, "offset": known.offset}, status=200 if is_repeated else 201)


async def _event(services: Services, learner: Learner, body: ReferenceBody) -> ReferenceAdded:
    created, now = learner.created, services.repository.clock()
    if body.moments is not None:
        given = body.moments
        if len(given.mean) != created.output_dim:
            raise invalid("moments.mean", f"has {len(given.mean)} numbers, this bandit takes {created.output_dim}")
        mean, covariance = np.array(given.mean, dtype="<f8"), np.array(given.covariance, dtype="<f8")
        moments = MomentsGiven(mean=mean.tobytes(), covariance=covariance.tobytes(), count=given.count)
        return ReferenceAdded(at=now, moments=moments)
    if body.outputs is not None:
        paths = [f"outputs.{i}" for i in range(len(body.outputs))]
        return ReferenceAdded(at=now, outputs=await output_matrix(services, created, body.outputs, paths=paths))
    assert body.pairs is not None
    if not created.prompt_embedder:
        raise invalid("pairs", "this bandit takes no prompts; post outputs alone")
    several = range(len(body.pairs))
    prompts, outputs = await asyncio.gather(
        prompt_rows(services, created, [pair.prompt for pair in body.pairs], paths=[f"pairs.{i}.prompt" for i in several]),
        output_matrix(services, created, [pair.output for pair in body.pairs], paths=[f"pairs.{i}.output" for i in several]),
    )
    return ReferenceAdded(at=now, prompts=Matrix.of(prompts), outputs=outputs)
