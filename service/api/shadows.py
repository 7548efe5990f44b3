"""Shadows over HTTP: a body becomes an event, or a problem that says what the bandit's log lacks for this policy."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from bandits.errors import InvalidHyperparameter
from bandits.hyperparameters import declared
from bandits.registry import POLICIES
from service.api.change import configuration
from service.api.create import check_size, dry_run_policy
from service.api.embedder_choice import PROBABILITIES
from service.api.problems import Problem, invalid
from service.api.requests import YOUNGER_PARTS, PromotionBody, ShadowBody
from service.engine.errors import ShadowBehindError
from service.engine.events import ShadowCreated, ShadowPromoted
from service.engine.learner import Learner
from service.engine.policies import build_for, takes_reference

MAX_SHADOWS = 4
"""Of a bandit: a decision computes the weights of each."""
WEIGHING = "weighs no signals, and this bandit has {name}; choose a policy that learns the reward and weighs signals"


def shadow_not_found(path: str = "", known: Iterable[str] = ()) -> Problem:
    """A 404 about a shadow. path: where the request names it, unless that is the URL.  known: the shadows that are there."""
    if path:
        return Problem("shadow_not_found", f"{path}: this bandit has no such shadow; it has {', '.join(known) or 'none'}")
    return Problem("shadow_not_found", "shadow not found; GET /v1/bandits/{name}/shadows lists those that are there")


def shadow_event(learner: Learner, name: str, body: ShadowBody, now: datetime, *, max_bytes: int) -> ShadowCreated:
    """The event, or a 422 that names the field. Blocks: random frequencies are drawn, and the policy is tried once."""
    kind = body.policy.kind
    _check_what_is_logged(learner, body)
    hyperparameters = {item.name: getattr(body.policy, item.name) for item in declared(POLICIES[kind])}
    try:
        policy = build_for(learner.created, kind, hyperparameters)
        policy.check_new()
    except InvalidHyperparameter as error:
        raise invalid(f"policy.{error.field}", error.message) from error
    if body.learns_from != "start" and takes_reference(policy) and learner.ledger.referenced:
        raise invalid("from", f'must be "start": {kind} compares with the reference, which was posted before')
    check_size(policy, hyperparameters, arms=len(learner.ledger.arms), max_bytes=max_bytes)
    dry_run_policy(policy)
    return ShadowCreated(
        at=now,
        shadow=name,
        policy=kind,
        hyperparameters=hyperparameters,
        fingerprint=policy.fingerprint,
        learns_from=body.learns_from or "now",
    )


def _check_what_is_logged(learner: Learner, body: ShadowBody) -> None:
    """Raise where this policy needs what the bandit does not log, or plays another game."""
    kind, created, deciding = body.policy.kind, learner.created, learner.policy
    policy = POLICIES[kind]
    if policy.episodic != deciding.episodic:
        one, other = (kind, deciding.kind) if policy.episodic else (deciding.kind, kind)
        raise invalid("policy.kind", f"{one} decides in episodes, and {other} does not: neither can be the other's shadow")
    threshold = getattr(deciding, "success_threshold", None)
    if policy.episodic and getattr(body.policy, "success_threshold", None) != threshold:
        raise invalid("policy.success_threshold", f"must be {threshold:g}, as in the bandit: it ends an episode for both")
    if "features" in policy.needs and not created.dim:
        raise invalid("policy.kind", f"{kind} decides by the prompt, and this bandit takes none; create one with `prompt`")
    if "output" in policy.needs:
        given = "probabilities" if created.output_embedder.endswith((PROBABILITIES, "/classes")) else "vectors"
        if not created.output_dim:
            raise invalid("policy.kind", f"{kind} learns from outputs, and this bandit takes none; create one with `output`")
        if policy.outputs != given:
            raise invalid("policy.kind", f"{kind} learns from {policy.outputs}, and the outputs of this bandit are {given}")
        if learner.ledger.live.default_reward is not None:
            raise invalid("policy.kind", f"{kind} learns from outputs, and this bandit has reward.default, which holds none")
    if (name := _unweighed(learner, kind)) is not None:
        raise invalid("policy.kind", f"{kind} {WEIGHING.format(name=name)}")


def _unweighed(learner: Learner, kind: str) -> str | None:
    """What of the configuration a policy of this kind would ignore, if anything."""
    if POLICIES[kind].weighs_signals:
        return None
    kept = configuration(learner)
    return next((name for name in YOUNGER_PARTS if kept.get(name) is not None), None)


def is_known(learner: Learner, event: ShadowCreated) -> bool:
    """Whether there is this shadow already; `shadow_conflict` where one of its name is another, or there is no room."""
    known = learner.ledger.shadows.get(event.shadow)
    if known is None:
        if len(learner.ledger.shadows) >= MAX_SHADOWS:
            raise Problem("shadow_conflict", f"a bandit has at most {MAX_SHADOWS} shadows; delete one first")
        return False
    of_known: dict[str, Any] = {"policy.kind": known.policy, "from": known.learns_from}
    of_event: dict[str, Any] = {"policy.kind": event.policy, "from": event.learns_from}
    if known.policy == event.policy:
        of_known |= {f"policy.{key}": value for key, value in known.hyperparameters.items()}
        of_event |= {f"policy.{key}": value for key, value in event.hyperparameters.items()}
    differing = [key for key in of_event if of_known.get(key) != of_event[key]]
    if differing:
        now = ", ".join(f"{key} is {of_known.get(key)!r}" for key in differing)
        raise Problem(
            "shadow_conflict",
            f"a shadow of this name is there with another policy ({now}); delete it first, or choose another name",
        )
    return True


def check_promotable(learner: Learner, event: ShadowPromoted) -> None:
    """Raise where the shadow is not what the client looked at, or cannot decide."""
    known, projection = learner.ledger.shadows.get(event.shadow), learner.projection
    if known is None:
        raise shadow_not_found()
    if known.offset != event.shadow_offset:
        raise Problem("shadow_conflict", f"this shadow is of offset {known.offset}, not {event.shadow_offset}; look at it again")
    if (behind := projection.catching_up.get(known.number)) is not None:
        raise ShadowBehindError(event.shadow, behind.ledger.offset, learner.versions.committed.offset)
    track = projection.tracks[known.number]
    if track.failure or track.fault is not None:
        raise Problem("shadow_conflict", f"this shadow learns nothing more: {track.failure or track.fault}; delete it")
    if (name := _unweighed(learner, known.policy)) is not None:
        raise Problem("shadow_conflict", f"{known.policy} {WEIGHING.format(name=name)}")
    track.policy.check_ready(track.committed.state)


def check_same(body: PromotionBody, name: str, first: ShadowPromoted) -> None:
    """Raise `shadow_conflict` where the id was used for another promotion."""
    if (first.shadow, first.shadow_offset) != (name, body.shadow_offset):
        raise Problem("shadow_conflict", "this id was used for another promotion; choose a new id")
