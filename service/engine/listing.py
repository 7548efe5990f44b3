"""Lists of decisions, read off the log from its end, a bounded number of entries at a time.

    log ──newest page first──> headers ──filter──> Decided ──OutcomeRecorder.join──> DecisionHistory

No index is kept: a filter that fits few decisions is answered piece by piece (`DecisionPage.next_before`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from service.engine import events
from service.engine.commit import Recorded
from service.engine.events import Cancelled, Decided, Expired, Observed
from service.engine.ledger import Ledger
from service.engine.outcomes import OBSERVED, DecisionHistory, OutcomeRecorder
from service.engine.projection import Projection
from service.storage.base import Entry, LogCompactedError

SCANNED = 10_000
"""Entries that one page looks at."""
LOOKED_UP = 1_000
"""Decisions of which one page looks up by their keys what closed them; of most of them the scan has seen it."""
READ = 250
"""Entries that are read at once."""

StateName = Literal["open", "partial", "observed", "expired", "cancelled"]


class DecisionFilter(NamedTuple):
    """Which decisions are listed; None = all. state: by now.  arm: index of the one that was chosen.  session: its name."""

    state: StateName | None = None
    arm: int | None = None
    session: str | None = None


class DecisionPage(NamedTuple):
    """Decisions, the newest first. next_before: where to go on; None = there are no older ones.
    trimmed_before: the first offset that the store still has, where this page ends at it.
    """

    decisions: list[DecisionHistory]
    next_before: int | None
    trimmed_before: int | None = None


class _Header(msgspec.Struct):
    """What the scan reads of an event, of whichever kind; vectors and weights are passed over."""

    event: str
    id: str = ""
    arm: int = 0
    session: str = ""


_header = msgspec.json.Decoder(_Header)
_DECIDED = Decided.__struct_config__.tag
_CLOSING = frozenset(kind.__struct_config__.tag for kind in (Observed, Expired, Cancelled))
_OPEN = ("open", "partial")


async def find_decisions(
    projection: Projection, outcomes: OutcomeRecorder, wanted: DecisionFilter, *, before: int | None, limit: int
) -> DecisionPage:
    """Up to `limit` decisions with a smaller offset than `before` (None: than any). Fewer, or none, where `SCANNED` entries or
    `LOOKED_UP` decisions had to be looked at for them.
    """
    await projection.refresh()
    end = projection.versions.committed.offset
    below = end + 1 if before is None else min(before, end + 1)
    lowest = max(below - SCANNED, 2)  # 1 is the creation
    trimmed = 0
    found: list[Recorded] = []
    closed: dict[str, str] = {}  # what the scan has seen so far, by decision
    looked_up = 0
    while below > lowest and len(found) < limit and looked_up < LOOKED_UP:
        first = max(below - READ, lowest)
        try:
            entries = await projection.storage.read(projection.log, after=first - 1, limit=below - first)
        except LogCompactedError as error:
            lowest = trimmed = error.first
            continue
        below = first
        candidates = await asyncio.to_thread(_candidates, entries, wanted, closed)
        if wanted.state is not None:
            unknown = [one.event.id for one in candidates if one.event.arm >= 0 and one.event.id not in closed]
            if wanted.state in _OPEN:
                unknown = [one for one in unknown if one in projection.ledger.open]
            looked_up += sum(one not in projection.ledger.open for one in unknown)
            closings = dict(zip(unknown, await outcomes.closings(unknown), strict=True))
            candidates = [one for one in candidates if wanted.state == _state(one.event, closed, closings, projection.ledger)]
        found += candidates[: limit - len(found)]
    if len(found) == limit:
        below = found[-1].offset
    is_trimmed = 0 < below <= trimmed
    return DecisionPage(await outcomes.join(found), None if is_trimmed or below <= 2 else below, trimmed if is_trimmed else None)


def _candidates(entries: Sequence[Entry], wanted: DecisionFilter, closed: dict[str, str]) -> list[Recorded]:
    """The decisions among these entries that fit, as far as it is known without looking them up, the newest first. Closings are
    added to `closed`.
    """
    found = []
    for entry in reversed(entries):
        header = _header.decode(entry.payload)
        if header.event in _CLOSING:
            closed[header.id] = header.event
        elif (
            header.event == _DECIDED
            and wanted.arm in (None, header.arm)
            and wanted.session in (None, header.session)
            and (wanted.state is None or closed.get(header.id, wanted.state) == wanted.state)
        ):
            found.append(Recorded(events.decode(entry.payload), entry.offset, True))
    return found


def _state(decided: Decided, closed: Mapping[str, str], closings: Mapping[str, Recorded | None], ledger: Ledger) -> str | None:
    """What a decision is by now; None where it was not looked up."""
    if decided.arm < 0:
        return OBSERVED
    if decided.id in closed:
        return closed[decided.id]
    if decided.id not in closings:
        return None
    closing = closings[decided.id]
    if closing is not None:
        return str(type(closing.event).__struct_config__.tag)
    still = ledger.open.get(decided.id)
    return None if still is None else "open" if still.partial is None else "partial"
