"""Cloning over HTTP: the first event of a bandit that learns from the log of another one."""

from __future__ import annotations

import asyncio

import msgspec

from bandits.registry import POLICIES
from service.api.change import configuration
from service.api.create import created_event
from service.api.dependencies import Services
from service.api.embedder_choice import load_for
from service.api.problems import Problem, invalid
from service.api.requests import BanditBody, CloneBody
from service.engine.clones import check_cloneable
from service.engine.events import CloneOf, Created
from service.engine.learner import Learner

EMBEDDED = ("dim", "prompt_embedder", "prompt_version", "prompt_takes", "output_dim", "output_embedder", "output_version")
"""How the vectors in the log came to be, which the clone takes over."""


async def clone(services: Services, source: Learner, body: CloneBody) -> Learner:
    """The new bandit, which goes on learning. 409 `not_cloneable` says what the log lacks, `bandit_exists` that the name is
    taken by another one. The same request again gets the same bandit.
    """
    await source.projection.catch_up()
    source.ledger.check_ready()
    end = source.versions.committed.offset
    if body.until is not None and body.until > end:
        raise invalid("until", f"is behind the end of the log, which is {end}")
    created = await asyncio.to_thread(_created, services, source, body, body.until or end)
    await check_cloneable(services.repository.storage, source.log, created)
    await load_for(services.embeddings, created)
    learner, is_new = await services.repository.create(created)
    if not is_new and not _is_same(learner.created, created, body):
        raise Problem("bandit_exists", "a bandit of this name exists; choose another name, or delete it first")
    return learner


def _created(services: Services, source: Learner, body: CloneBody, until: int) -> Created:
    """The first event. Blocks, as `created_event` does."""
    kept = configuration(source)
    if not POLICIES[body.policy.kind].weighs_signals and source.policy.weighs_signals:
        for name in ("objective", "budget", "prices_per", "signals"):
            if kept.get(name) is not None:
                raise Problem("not_cloneable", f"{body.policy.kind} weighs no signals, and this bandit has {name}")
    wanted = BanditBody.model_validate({**kept, "policy": body.policy.model_dump(), "seed": source.created.seed})
    settings = services.settings
    try:
        created = created_event(
            body.name,
            source.created.tenant,
            wanted,
            default_timeout_s=settings.default_timeout_s,
            max_bytes=settings.max_state_bytes,
            clock=services.repository.clock,
            sources=settings.sources(),
        )
    except Problem as problem:
        if any(path.split(".")[0] in ("prompt", "output", "reward") for path, _ in problem.errors):
            raise Problem("not_cloneable", f"this bandit is not made for {body.policy.kind}: {problem.detail}") from None
        raise
    return msgspec.structs.replace(
        created,
        arms=source.created.arms,
        clone_of=CloneOf(bandit=source.created.bandit, log=source.log.id, until=until),
        **{name: getattr(source.created, name) for name in EMBEDDED},
    )


def _is_same(known: Created, wanted: Created, body: CloneBody) -> bool:
    """Whether a bandit is what the request asks for: of the same log, and up to the same offset where that is given."""
    one, other = known.clone_of, wanted.clone_of
    if not isinstance(one, CloneOf) or not isinstance(other, CloneOf):
        return False
    is_as_far = body.until is None or one.until == other.until
    return one.log == other.log and is_as_far and (known.policy, known.hyperparameters) == (wanted.policy, wanted.hyperparameters)
