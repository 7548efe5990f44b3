"""Reads a bandit's log and joins each decision with what came of it. It needs the standard library alone.

    lines of NDJSON ──> LogReader ──> Decision, when it closes; `still_open` at the end

A decision may be amended long after it has closed, so a first pass collects the newest amendments (`amendments`), and the second
joins them. Events and fields that it does not know are skipped, as docs/log.md asks of readers.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from service.engine.sessions import FirstDecisions

KEPT_SESSIONS = 100_000
"""First decisions of sessions that are kept, those that were needed last."""

Closed = Literal["observed", "expired", "cancelled"]
State = Closed | Literal["open", "partial", "stop"]


class LogError(ValueError):
    """A log that cannot be read, with the place and the reason."""


@dataclass(slots=True)
class Arm:
    """An arm as of the entries read so far."""

    name: str
    price: float
    is_active: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A decision, and what came of it.

    offset, at: of the decision.  arm, allowed, played: indices of arms; -1 = a stop.  weights: by arm index, those that existed.
    scores: name -> by arm index, None = not scored.  features: little-endian float32, empty without a prompt.
    played: the arm that was called, None where none is known.  reward: what was learned; of an expired one the default.
    state: `partial` = something came, and the reward not yet.  is_amended: the outcome is that of the newest amendment.
    propensity: null where the arm is that of its session; then `first` is the decision that has drawn it, None where that is not
    known.
    is_overridden: another arm was called than the one that was drawn, so the outcome has no propensity.
    """

    offset: int
    at: datetime
    id: str
    episode: str
    attempt: int
    arm: int
    propensity: float | None
    weights: tuple[float, ...]
    scores: Mapping[str, tuple[float | None, ...]]
    allowed: tuple[int, ...]
    price: float
    features: bytes
    state: State = "open"
    closed_offset: int | None = None
    closed_at: datetime | None = None
    played: int | None = None
    reward: float | None = None
    cost: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    is_overridden: bool = False
    is_amended: bool = False
    session: str = ""
    first: Decision | None = None

    @property
    def drawn(self) -> Decision | None:
        """The decision that has drawn its arm, with the weights that it was drawn from; None where that is not known."""
        return self.first if self.propensity is None else self

    @property
    def has_outcome(self) -> bool:
        """Whether its client reported one, in time or by an amendment."""
        return self.state == "observed" or (self.state == "expired" and self.is_amended)

    @property
    def vector(self) -> tuple[float, ...]:
        """(d,) the prompt's features."""
        return struct.unpack(f"<{len(self.features) // 4}f", self.features)


def amendments(lines: Iterable[bytes | str]) -> dict[str, Mapping[str, Any]]:
    """The newest amendment of each decision that has one, by its id. Other lines are not parsed, nor checked."""
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if (b'"amended"' if isinstance(line, bytes) else '"amended"') in line:  # type: ignore[operator]
            event = json.loads(line)
            if event.get("event") == "amended":
                found[event["id"]] = event
    return found


class LogReader:
    """The entries of one log, fed in order. amended: the `amendments` of this log; without them outcomes are as they first came.

    created: the first event.  arms: by index.  offset: of the newest entry.  imported: outcomes without a decision of this log.
    policy: the kind that decides at this offset.
    """

    def __init__(self, amended: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.amended = amended or {}
        self.created: Mapping[str, Any] = {}
        self.arms: list[Arm] = []
        self.offset = 0
        self.imported = 0
        self.policy = ""
        self._shadows: dict[str, str] = {}
        self._open: dict[str, Decision] = {}
        self._firsts: FirstDecisions[Decision] = FirstDecisions()

    @property
    def bandit(self) -> str:
        """Its name."""
        return str(self.created.get("bandit", ""))

    def read(self, lines: Iterable[bytes | str]) -> Iterator[Decision]:
        """Every decision as it closes, in the order in which they do, then those that are open at the end.

        Raises `LogError` with the number of the line.
        """
        for number, line in enumerate(lines, 1):
            if line[-1:] not in ("\n", b"\n"):
                raise LogError(f"line {number}: it is torn, the export was cut off; export again")
            try:
                closed = self.add(line)
            except LogError as error:
                raise LogError(f"line {number}: {error}") from None
            if closed is not None:
                yield closed
        yield from self.still_open()

    def add(self, entry: bytes | str, *, offset: int | None = None) -> Decision | None:
        """The decision that this entry closes. offset: where the entry does not carry its own. Raises `LogError`, also where
        entries are missing or come twice.
        """
        try:
            event = json.loads(entry)
            kind = event["event"]
            offset = int(event.get("offset", self.offset + 1 if offset is None else offset))
            if not self.created and kind != "created":
                raise LogError("a log begins with the event that creates the bandit")
            if offset != self.offset + 1 and self.offset and kind != "created":
                raise LogError(self._gap(offset))
            closed = self._apply(kind, event, offset)
        except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
            if isinstance(error, LogError):
                raise
            lacking = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise LogError(f"this is no entry of a log: {lacking}") from None
        self.offset = offset
        return closed

    def _gap(self, offset: int) -> str:
        if offset <= self.offset:
            return f"offset {offset} follows {self.offset}: lines come twice, or are of several logs; export again"
        missing = f"entry {offset - 1} is" if offset == self.offset + 2 else f"entries {self.offset + 1} to {offset - 1} are"
        return f"{missing} missing before offset {offset}; export the whole log again"

    def still_open(self) -> Iterator[Decision]:
        """Decisions that no entry has closed, in their order."""
        yield from self._open.values()

    def _apply(self, kind: str, event: Mapping[str, Any], offset: int) -> Decision | None:
        match kind:
            case "created":
                if self.created:
                    raise LogError("here another bandit's log begins; give one log at a time")
                self.arms = [Arm(arm["name"], arm.get("price", 0.0)) for arm in event["arms"]]
                self.created, self.policy = event, event["policy"]
            case "shadow_created":
                self._shadows[event["shadow"]] = event["policy"]
            case "shadow_promoted":  # the policy that decided becomes the shadow of this name
                self.policy, self._shadows[event["shadow"]] = self._shadows[event["shadow"]], self.policy
            case "arm_added":
                self.arms.append(Arm(event["name"], event["price"]))
            case "arm_changed":
                self.arms[event["arm"]] = replace(self.arms[event["arm"]], price=event["price"], is_active=True)
            case "arm_retired":
                self.arms[event["arm"]].is_active = False
            case "imported":
                self.imported += 1
            case "decided":
                return self._decided(event, offset)
            case "partial":
                self._partial(event)
            case "observed" | "expired" | "cancelled":
                return self._closed(kind, event, offset)
        return None

    def _decided(self, event: Mapping[str, Any], offset: int) -> Decision | None:
        decision = Decision(
            offset=offset,
            at=datetime.fromisoformat(event["at"]),
            id=event["id"],
            episode=event["episode"],
            attempt=event["attempt"],
            arm=event["arm"],
            propensity=event["propensity"],
            weights=tuple(event["weights"]),
            scores={name: tuple(values) for name, values in event["scores"].items()},
            allowed=tuple(event["allowed"]),
            price=event["price"],
            features=base64.b64decode(event["features"]),
            state="stop" if event["arm"] < 0 else "open",
            session=event.get("session", ""),
        )
        if decision.state == "stop":
            return decision
        if event.get("sticky"):
            first = self._firsts.find(event["chosen_by"], decision.arm, most=KEPT_SESSIONS)
            decision = replace(decision, first=first)
        elif decision.session:
            self._firsts.keep(decision.id, decision.arm, decision, most=KEPT_SESSIONS)
        if self._open.setdefault(decision.id, decision) is not decision:
            raise LogError(f"decision {decision.id!r} was made before; are these two logs in one?")
        return None

    def _partial(self, event: Mapping[str, Any]) -> None:
        """What came first stays; behind the event that closes the decision it counts for nothing."""
        decision = self._open.get(event["id"])
        if decision is None:
            return
        cost, played = decision.cost, event["arm"] if decision.played is None else decision.played
        self._open[decision.id] = replace(
            decision,
            state="partial",
            played=played,
            cost=event.get("cost") if cost is None else cost,
            signals={**event.get("signals", {}), **decision.signals},
            is_overridden=played != decision.arm,
        )

    def _closed(self, kind: Closed, event: Mapping[str, Any], offset: int) -> Decision | None:
        decision = self._open.pop(event["id"], None)
        if decision is None:
            return None
        amended = self.amended.get(decision.id)
        played = decision.played
        if played is None and kind == "observed":
            played = event["arm"]
        if played is None and amended is not None:
            played = amended["arm"]
        outcome = event if amended is None else amended
        # the arm of the first part stays, and with it the propensity of the decision
        is_whole = decision.played is None or amended is not None
        is_unknown = is_whole and decision.propensity is not None and outcome.get("propensity", 0.0) is None
        return replace(
            decision,
            state=kind,
            closed_offset=offset,
            closed_at=datetime.fromisoformat(event["at"]),
            played=played,
            reward=outcome.get("reward"),
            cost=outcome.get("cost") if decision.cost is None or amended is not None else decision.cost,
            signals={**outcome.get("signals", {}), **({} if amended is not None else decision.signals)},
            is_overridden=played is not None and (played != decision.arm or is_unknown),
            is_amended=amended is not None,
        )
