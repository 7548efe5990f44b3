"""Consistency with a shared log: the last entry this process has seen is sent with every call, and Redis compares it.

    observe_entry(log, offset, crc) ──> known(log) ──> a script compares it with the log ──> the answer, or `LogTruncatedError`

The comparison and what depends on it are one step of one script, so that nothing can come in between: neither another server
process or another history (a restart, a failover) nor a copy from another time that was restored under a running server. Once a
log was found to be truncated, every call about it is refused until its learner calls `resync`: one caller must not hide it from
the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from service.storage.base import Entry, Log, LogTruncatedError

logger = logging.getLogger("nextarm.storage")

TAIL = 256
"""Entries per log kept in memory after this process appended them, so that folding what was just accepted needs no call."""


class _Seen(NamedTuple):
    offset: int
    crc: int


class ConsistencyGuard:
    """The last entry seen of each log, by log id, and the logs that were found to be truncated.

    on_truncated: called with the name of such a log.  losses: how many there were since this process began.
    """

    def __init__(self, on_truncated: Callable[[str], None]) -> None:
        self.losses = 0
        self._on_truncated = on_truncated
        self._seen: dict[str, _Seen] = {}  # the last entry that this process knows
        self._rewound: dict[str, LogTruncatedError] = {}
        self._tails: dict[str, dict[int, bytes]] = {}
        self._epochs: dict[str, int] = {}

    def epoch(self, log: Log) -> int:
        """Number of `resync` calls for the log. A call that began in an earlier epoch rests on entries that were lost."""
        return self._epochs.get(log.id, 0)

    def resync(self, log: Log) -> None:
        """The log's learner has dropped everything; calls of the earlier epoch must not take effect."""
        self._epochs[log.id] = self.epoch(log) + 1
        self.forget(log)

    def forget(self, log: Log) -> None:
        """The log is gone."""
        self._seen.pop(log.id, None)
        self._rewound.pop(log.id, None)
        self._tails.pop(log.id, None)

    def known(self, log_id: str) -> tuple[bytes, bytes]:
        """Offset and checksum of the last entry that this process knows, as the scripts take them; empty where it knows none."""
        seen = self._seen.get(log_id)
        return (b"", b"") if seen is None else (b"%d" % seen.offset, b"%d" % seen.crc)

    def observe_entry(self, log: Log, offset: int, crc: int) -> None:
        """An entry was read from the log, or accepted into it."""
        seen = self._seen.get(log.id)
        if seen is None or offset > seen.offset:
            self._seen[log.id] = _Seen(offset, crc)

    def appended(self, log: Log, offset: int, payload: bytes, crc: int) -> None:
        """An entry of this process was accepted."""
        self.observe_entry(log, offset, crc)
        tail = self._tails.setdefault(log.id, {})
        tail[offset] = payload
        while len(tail) > TAIL:
            del tail[next(iter(tail))]

    def recent(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        """The unbroken run of entries behind `after` that this process has just appended."""
        tail = self._tails.get(log.id, {})
        for offset in [offset for offset in tail if offset <= after]:
            del tail[offset]  # folded already
        run: list[Entry] = []
        while len(run) < limit and (payload := tail.get(after + 1)) is not None:
            after += 1
            run.append(Entry(after, payload))
        return run

    def check(self, log: Log) -> None:
        """Raise `LogTruncatedError` if the log was found to be truncated and `resync` was not called since."""
        if (error := self._rewound.get(log.id)) is not None:
            raise LogTruncatedError(log.name, seen=error.seen, end=error.end)

    def rewound(self, log: Log, *, end: int) -> LogTruncatedError:
        """The failure of everything about this log from now on."""
        seen = self._seen.get(log.id)
        error = LogTruncatedError(log.name, seen=end + 1 if seen is None else seen.offset, end=end)
        if log.id not in self._rewound:
            self.losses += 1
            logger.critical(
                "acknowledged entries were lost: the log is read again", extra={"log": log.name, "reason": str(error)}
            )
            self._on_truncated(log.name)
        self._rewound[log.id] = error
        self._tails.pop(log.id, None)
        return error
