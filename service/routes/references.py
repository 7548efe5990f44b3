"""References: what outputs are compared with."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Response
from uuid_utils.compat import uuid7

from bandits.types import REFERENCE, Observation
from service.contents import output_matrix, prompt_vector
from service.dependencies import RoutedLearner, Services, Shared
from service.errors import Problem, invalid
from service.events import Matrix, MomentsGiven, ReferenceAdded, vector_tensor
from service.learner import Learner
from service.ledger import moments_of
from service.routes import problems
from service.routes.answers import answer
from service.schemas import ReferenceAnswer, ReferenceBody
from service.transport import StrictRoute

router = APIRouter(tags=["references"], route_class=StrictRoute)


@router.post(
    "/v1/bandits/{name}/references",
    summary="Post reference material",
    status_code=201,
    responses={201: {"model": ReferenceAnswer}, **problems("bandit_not_found", "reference_frozen")},
)
async def post_references(learner: RoutedLearner, body: ReferenceBody, services: Shared) -> Response:
    """Samples are appended; pairs carry the prompt of each real output; moments are set at once."""
    policy = learner.policy
    if not learner.takes_reference:
        raise invalid("body", f"{policy.kind} takes no reference with this configuration")
    event = await _event(services, learner, body)
    prompts = event.prompts.tensor()
    seen = Observation(
        arm=REFERENCE,
        features=prompts,
        output=event.outputs.tensor(),
        moments=None if event.moments is None else moments_of(event.moments),
    )
    if policy.reference_frozen and learner.ledger.decided:
        raise Problem("reference_frozen", "the reference cannot change after the first decision; create another bandit")
    policy.check_reference(learner.state, seen)
    receipt = await learner.record(event, key=f"reference/{uuid7()}")
    return answer({"count": learner.ledger.referenced, "offset": receipt.offset}, status=201)


async def _event(services: Services, learner: Learner, body: ReferenceBody) -> ReferenceAdded:
    created, now = learner.created, services.hosting.clock()
    if body.moments is not None:
        given = body.moments
        if len(given.mean) != created.output_dim:
            raise invalid("moments.mean", f"has {len(given.mean)} numbers, this bandit takes {created.output_dim}")
        mean, covariance = np.array(given.mean, dtype="<f8"), np.array(given.covariance, dtype="<f8")
        moments = MomentsGiven(mean=mean.tobytes(), covariance=covariance.tobytes(), count=given.count)
        return ReferenceAdded(at=now, moments=moments)
    if body.outputs is not None:
        return ReferenceAdded(at=now, outputs=await output_matrix(services, created, body.outputs, path="outputs"))
    assert body.pairs is not None
    vectors = [vector_tensor(await prompt_vector(services, created, pair.prompt)).numpy() for pair in body.pairs]
    outputs = await output_matrix(services, created, [pair.output for pair in body.pairs], path="pairs")
    return ReferenceAdded(at=now, prompts=Matrix.of(np.stack(vectors)), outputs=outputs)
