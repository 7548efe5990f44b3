"""What this process has seen of logs that somebody else keeps, and whether what stands there continues it.

    saw(log, offset, crc, identity) ──> compare(log, ask) ──> the identity of a server that holds what was seen, or `LogRewound`

A server is asked again whenever its identity (process, history) is another one than that with which it was compared last. Once a
log was found to be rewound, every call about it is refused, until its learner begins anew: whoever comes first must not hide it
from the others.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from service.storage.base import Entry, Log, LogRewound, StorageUnavailable
from service.storage.redis_link import Answer

logger = logging.getLogger("nextarm.storage")

TAIL = 256
"""Entries per log kept in memory after this process appended them, so that folding what was just accepted asks nobody."""


class _Seen(NamedTuple):
    offset: int
    crc: int


class Past:
    """See the module. Logs are told apart by their ids. rang: told the name of a log that was found to be rewound."""

    def __init__(self, rang: Callable[[str], None]) -> None:
        self._rang = rang
        self._seen: dict[str, _Seen] = {}  # the last entry that this process knows
        self._compared: dict[str, str] = {}  # the identity with which it was compared last
        self._rewound: dict[str, LogRewound] = {}
        self._tails: dict[str, dict[int, bytes]] = {}
        self._epochs: dict[str, int] = {}

    def epoch(self, log: Log) -> int:
        """How often the log's learner began anew. What was begun in an earlier epoch rests on entries that were lost."""
        return self._epochs.get(log.id, 0)

    def begin_anew(self, log: Log) -> None:
        """The log's learner has dropped everything; what is still on its way in its name must not come through."""
        self._epochs[log.id] = self.epoch(log) + 1
        self.forget(log)

    def forget(self, log: Log) -> None:
        """The log is gone."""
        self._seen.pop(log.id, None)
        self._compared.pop(log.id, None)
        self._rewound.pop(log.id, None)
        self._tails.pop(log.id, None)

    def saw(self, log: Log, offset: int, crc: int, identity: str) -> None:
        """An entry was read from, or accepted by, the server of this identity."""
        seen = self._seen.get(log.id)
        if seen is None or offset > seen.offset:
            self._seen[log.id] = _Seen(offset, crc)
        self._compared[log.id] = identity

    def appended(self, log: Log, offset: int, payload: bytes, crc: int, identity: str) -> None:
        """An entry of this process was accepted."""
        self.saw(log, offset, crc, identity)
        tail = self._tails.setdefault(log.id, {})
        tail[offset] = payload
        while len(tail) > TAIL:
            del tail[next(iter(tail))]

    def recent(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        """The unbroken run of entries behind `after` that this process has just appended."""
        tail = self._tails.get(log.id, {})
        for offset in [offset for offset in tail if offset <= after]:
            del tail[offset]  # who folds has come past it
        run: list[Entry] = []
        while len(run) < limit and (payload := tail.get(after + 1)) is not None:
            after += 1
            run.append(Entry(after, payload))
        return run

    def rewound(self, log: Log, *, end: int) -> LogRewound:
        """The failure of everything about this log from now on."""
        seen = self._seen.get(log.id)
        error = LogRewound(log.name, seen=end + 1 if seen is None else seen.offset, end=end)
        if log.id not in self._rewound:
            logger.critical("acknowledged entries were lost: the log is read anew", extra={"log": log.name, "reason": str(error)})
            self._rang(log.name)
        self._rewound[log.id] = error
        self._tails.pop(log.id, None)
        return error

    async def compare(self, log: Log, identity: str, ask: Callable[[int], Awaitable[Answer]], *, epoch: int) -> str:
        """The identity of a server that holds what was seen of the log; "" = any, where nothing was seen yet.

        identity: of the server that is asked, as far as known.  ask: offset -> what `check.lua` answers.  epoch: when the call
        began that this is for. (An outcome that waited for a reconnection may close a decision which was lost meanwhile.)
        """
        if epoch != self.epoch(log):
            raise StorageUnavailable(f"log {log.name!r} is learnt anew, and this rests on what was known before; try again")
        if (error := self._rewound.get(log.id)) is not None:
            raise LogRewound(log.name, seen=error.seen, end=error.end)
        seen = self._seen.get(log.id)
        if seen is None:
            return ""
        if identity and self._compared.get(log.id) == identity:
            return identity
        answer = await ask(seen.offset)
        if self._seen.get(log.id) != seen:  # more was seen meanwhile
            return await self.compare(log, answer.identity, ask, epoch=epoch)
        verdict, *found = answer.values[0]
        if verdict == b"missing":
            if answer.identity == self._compared.get(log.id):
                return answer.identity  # deleted, as the call itself will find
            raise self.rewound(log, end=0)
        end, floor, crc = int(found[0]), int(found[1]), bytes(found[2])
        if end < seen.offset or (seen.offset >= floor and crc != b"%d" % seen.crc):
            raise self.rewound(log, end=end)
        self._compared[log.id] = answer.identity
        return answer.identity
