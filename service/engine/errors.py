"""The errors of the engine, under one base: the HTTP surface maps each to a problem document."""

from __future__ import annotations

from service.engine.events import NewerEvent
from service.storage.base import Log, StorageDamagedError


class EngineError(Exception):
    """Base of every request that the engine refuses."""


class BanditNotFoundError(EngineError):
    """No bandit has this name (for this tenant)."""


class BanditDamagedError(EngineError):
    """The log of this bandit cannot be folded; it refuses every request until an operator has looked at it."""


class BanditNewerError(BanditDamagedError):
    """The log of this bandit was written by a newer version of nextarm; this one refuses every request of it."""


class DecisionNotFoundError(EngineError):
    """No decision has this id."""


class DecisionConflictError(EngineError):
    """The id belongs to another request already."""


class ReferenceConflictError(EngineError):
    """The id belongs to other reference material already."""


class NotReadyError(EngineError):
    """The bandit is a clone that has not learned everything yet."""


class NotCloneableError(EngineError):
    """The log lacks what the policy of the clone learns from."""


class ImportConflictError(EngineError):
    """The id of a row belongs to another row already. row: its id."""

    def __init__(self, row: str) -> None:
        super().__init__(f"row {row!r} was imported with another content")
        self.row = row


class EvaluationNotFoundError(EngineError):
    """No evaluation has this id."""


class EvaluationConflictError(EngineError):
    """The id belongs to another evaluation already."""


class TooManyEvaluationsError(EngineError):
    """A bandit has as many unfinished evaluations as it may."""

    def __init__(self, kept: int) -> None:
        super().__init__(f"{kept} evaluations of this bandit are not finished")


class OutcomeConflictError(EngineError):
    """The decision has another outcome already."""


class AmendmentConflictError(EngineError):
    """The id of an amendment was used for another one of the same decision."""


class DecisionPartialError(EngineError):
    """The decision cannot be cancelled, since parts of its outcome are learned."""


class DecisionExpiredError(EngineError):
    """The decision expired before its outcome came."""


class DecisionCancelledError(EngineError):
    """The decision was cancelled before its outcome came."""


class DecisionOpenError(EngineError):
    """The decision has no outcome yet that could be amended."""


class NotAmendableError(EngineError):
    """A policy cannot take an old value out of what it learned."""

    def __init__(self, signal: str, kind: str) -> None:
        super().__init__(f"{signal}: what {kind} learned of it cannot be taken back; amend other signals, or post it right")


class TooLateToAmendError(EngineError):
    """The time is over in which an outcome of this bandit can be amended."""

    def __init__(self, until_s: float) -> None:
        super().__init__(f"the outcome can be amended for {until_s:g} s after its decision, which are over")


class DecisionWasStopError(EngineError):
    """The decision was a stop; no arm was played."""


class EpisodeFinishedError(EngineError):
    """No further attempt can be made in this episode."""


class OpenDecisionLimitError(EngineError):
    """The bandit has as many open decisions as it may."""


class ShadowBehindError(EngineError):
    """A shadow has not learned the log up to now yet. reached, end: offsets."""

    def __init__(self, shadow: str, reached: int, end: int) -> None:
        super().__init__(f"shadow {shadow!r} has learned the log up to offset {reached} of {end}; wait until it has caught up")


class ReplicaBehindError(EngineError):
    """An offset was not folded by this process in time. offset: the one wanted.  reached: the one folded."""

    def __init__(self, offset: int, reached: int) -> None:
        super().__init__(f"offset {offset} is not folded here yet, {reached} is; try again, or ask another replica")
        self.offset = offset
        self.reached = reached


class OffsetBeyondEndError(EngineError):
    """An offset behind the end of the log, which no receipt can have named."""

    def __init__(self, offset: int, end: int) -> None:
        super().__init__(f"the log ends at offset {end}; {offset} is in no receipt of this bandit")


class LogNewerError(StorageDamagedError):
    """An entry that only a newer version of nextarm can fold; nothing is damaged."""


def damage_at(log: Log, offset: int, error: Exception) -> StorageDamagedError:
    """The damage that an error means which came up when the entry at `offset` was folded."""
    place = f"log {log.name!r}, offset {offset}"
    damage: StorageDamagedError
    if isinstance(error, NewerEvent):
        damage = LogNewerError(place, str(error))
    else:
        damage = StorageDamagedError(place, f"{type(error).__name__}: {error}")
    damage.__cause__ = error
    return damage
