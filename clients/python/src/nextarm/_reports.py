"""Reports that wait until the service is back: bounded in number and in bytes, the oldest are dropped first, all is counted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

LARGEST_BATCH, LARGEST_BATCH_BYTES = 64, 2**20

Key = tuple[str, str]
"""Bandit, decision."""


@dataclass(frozen=True)
class Stats:
    """Counts since the client was made.

    fallbacks: decisions made while the service was away.  deferred: outcomes and cancellations put off.  delivered: of those,
    accepted by the service.  refused: of those, refused for good, such as an outcome that came too late.  dropped: of those and
    of the decisions, lost because the buffer was full.  waiting: in the buffer now.
    """

    fallbacks: int = 0
    deferred: int = 0
    delivered: int = 0
    refused: int = 0
    dropped: int = 0
    waiting: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """One outcome, or one cancellation, to deliver.

    decision: body of a decision that was made by the client, which the service may not know; empty where the service made it.
    outcome: the body; empty = cancel.
    """

    key: Key
    decision: bytes = b""
    outcome: bytes = b""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.decision) + len(self.outcome)


@dataclass
class FallbackDecision:
    """A decision that the client made. outcome: the last one, or the last part of it, that was reported."""

    arm: str
    content: bytes
    outcome: bytes = b""


@dataclass
class ReportBuffer:
    """What waits, shared by the threads of a client.

    most, most_bytes: of reports, and again of fallback decisions without an outcome.
    """

    most: int = 10_000
    most_bytes: int = 64 * 2**20
    _stats: Stats = field(default_factory=Stats)
    _decisions: OrderedDict[Key, FallbackDecision] = field(default_factory=OrderedDict)
    _decision_bytes: int = 0
    _reports: OrderedDict[int, Report] = field(default_factory=OrderedDict)
    _report_bytes: int = 0
    _added: int = 0
    _has_worker: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def stats(self) -> Stats:
        """A snapshot."""
        with self._lock:
            return replace(self._stats, waiting=len(self._reports))

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + number for name, number in more.items()})

    # -- decisions made here ---------------------------------------------------------------------------------------------------

    def remember(self, key: Key, arm: str, content: bytes) -> None:
        """A decision was made here; its outcome will come."""
        with self._lock:
            self._count(fallbacks=1)
            self._decisions[key] = FallbackDecision(arm, content)
            self._decision_bytes += len(content)
            while len(self._decisions) > self.most or self._decision_bytes > self.most_bytes:
                _, oldest = self._decisions.popitem(last=False)
                self._decision_bytes -= len(oldest.content)
                self._count(dropped=not oldest.outcome)

    def find(self, key: Key) -> FallbackDecision | None:
        """A decision that was made here."""
        with self._lock:
            return self._decisions.get(key)

    def conclude(self, key: Key, report: Report) -> None:
        """Put off the outcome of a decision that was made here."""
        with self._lock:
            if (found := self._decisions.get(key)) is not None:
                found.outcome = report.outcome
                self._decisions.move_to_end(key, last=False)  # kept to know a repeated outcome; the first to go
            self.add(report)

    def forget(self, key: Key) -> FallbackDecision | None:
        """A decision that was made here and is cancelled."""
        with self._lock:
            found = self._decisions.pop(key, None)
            if found is not None:
                self._decision_bytes -= len(found.content)
            return found

    # -- reports ---------------------------------------------------------------------------------------------------------------

    def add(self, report: Report) -> None:
        """Put off a report."""
        with self._lock:
            self._count(deferred=1)
            self._added += 1
            self._reports[self._added] = report
            self._report_bytes += report.size
            while len(self._reports) > self.most or self._report_bytes > self.most_bytes:
                _, oldest = self._reports.popitem(last=False)
                self._report_bytes -= oldest.size
                self._count(dropped=1)

    def bandits(self) -> set[str]:
        """Those that have reports."""
        with self._lock:
            return {report.key[0] for report in self._reports.values()}

    def batch(self, most: int, *, without: Collection[str] = ()) -> dict[int, Report]:
        """The oldest reports of one bandit, by number; they stay until they are settled. without: bandits that have to wait."""
        with self._lock:
            chosen: dict[int, Report] = {}
            keys: set[Key] = set()
            size = 0
            for number, report in self._oldest(without):
                size += report.size
                # Parts of one outcome go one after the other: items of a batch have no order among themselves.
                if chosen and (size > LARGEST_BATCH_BYTES or report.key in keys):
                    break
                chosen[number] = report
                keys.add(report.key)
                if len(chosen) == most:
                    break
            return chosen

    def _oldest(self, without: Collection[str]) -> Iterator[tuple[int, Report]]:
        bandit = None
        for number, report in self._reports.items():
            if bandit is None and report.key[0] not in without:
                bandit = report.key[0]
            if report.key[0] == bandit:
                yield number, report

    def settle(self, number: int, *, is_delivered: bool) -> None:
        """A report was accepted, or refused for good."""
        with self._lock:
            report = self._reports.pop(number, None)
            if report is not None:  # else it was dropped while it was on its way, and counted as that
                self._report_bytes -= report.size
                self._count(**{"delivered" if is_delivered else "refused": 1})

    # -- the worker that delivers ------------------------------------------------------------------------------------------------

    def take_worker(self) -> bool:
        """True where there is something to deliver, and the caller has to start what delivers it."""
        with self._lock:
            if self._has_worker or not self._reports:
                return False
            self._has_worker = True
            return True

    def leave_worker(self, *, is_forced: bool = False) -> bool:
        """True where the worker may end, because nothing waits."""
        with self._lock:
            if self._reports and not is_forced:
                return False
            self._has_worker = False
            return True
