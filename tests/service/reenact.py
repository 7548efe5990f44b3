"""Asks a bandit again for what is in a log, so that a test can compare what it writes now with what was written then."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from service.engine import events
from service.engine.decisions import DecisionRequest
from service.engine.events import (
    ArmAdded,
    ArmChanged,
    ArmRetired,
    Cancelled,
    Configured,
    Decided,
    Expired,
    Observed,
    ShadowCreated,
    ShadowDeleted,
    ShadowPromoted,
)
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.storage.base import Durability, Log, Storage
from tests.service.drivers import Clock


async def stored(storage: Storage, log: Log, payloads: Sequence[bytes]) -> Log:
    """A log that holds these events."""
    found, _ = await storage.create(log, payloads[0])
    for number, payload in enumerate(payloads[1:], start=2):
        event = events.decode(payload)
        keyed = isinstance(event, Decided | Observed | Expired | Cancelled)
        await storage.append(found, events.key_of(event) if keyed else f"entry {number}", payload, Durability.PROCESS)
    return found


async def reenact(bandit: Learner, clock: Clock, payload: bytes, *, is_settled: bool = True) -> bytes:
    """What the bandit writes when it is asked for this event of its log, which it does not have yet.

    is_settled: with everything prepared before and after.
    """
    event = events.decode(payload)
    clock.now = event.at
    if is_settled:
        await bandit.projection.background.finish()
    match event:
        case Decided():
            allowed = {} if len(event.allowed) == sum(arm.active for arm in bandit.ledger.arms) else dict.fromkeys(event.allowed)
            episode = "" if event.episode == event.id else event.episode
            request = DecisionRequest(id=event.id, features=event.features, allowed=allowed, episode=episode, body=event.body)
            written = (await bandit.decisions.submit(request)).event
        case Observed():
            overridden = event.propensity is None
            report = OutcomeReport(
                reward=event.reward,
                cost=event.cost if event.cost_posted is True else None,
                signals={} if event.signals is msgspec.UNSET else event.signals,
                arm=event.arm if overridden else None,
                body=event.body,
            )
            written = (await bandit.outcomes.submit(event.id, report)).event
        case Cancelled():
            await bandit.outcomes.cancel(event.id)
            written = event
        case Expired():
            await bandit.outcomes.expire()
            written = event
        case ArmAdded() | ArmChanged() | ArmRetired() | Configured() | ShadowCreated() | ShadowDeleted() | ShadowPromoted():
            await bandit.committer.record(event, key=f"entry {bandit.versions.committed.offset + 1}")
            written = event
        case _:
            raise NotImplementedError(type(event).__name__)
    if is_settled:
        await bandit.projection.background.finish()
    return events.encode(written)
