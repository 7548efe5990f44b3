"""The shared storage: logs on Redis Streams, for as many replicas of the service as there are.

    PREFIX:logs                 hash    name -> id of a log that may exist
    PREFIX:{NAME}:head          hash    id, end, floor (first kept offset) [, first, crc: entry 1 once it was trimmed]
    PREFIX:{NAME}:log           stream  OFFSET-0 -> k key, p payload, c crc32 of both
    PREFIX:{NAME}:keys          hash    key -> offset
    PREFIX:{NAME}:snapshots     hash    offset -> crc32, blob
    PREFIX:{NAME}:alive         string  written where nothing else is, so that WAIT has something to wait for
    PREFIX:news                 stream  names of logs that grew, came or went; the last thousand or so

    append ──> one Lua call: log there? key free? ends as expected? ──> XADD, key ──> offset         (`redis_link`: pipelined)
    news   ──> one blocking XREAD per process: who follows a log is told within milliseconds

All keys of a log share a hash tag, so that on a cluster one Lua call can accept an event. Names are unique because a name's keys
are: `head` is the truth, and one Lua call creates or deletes a log as a whole. The register of names is only for listing. It is
written before a log is created and settled after it was, or was deleted; a crash between leaves a name without a log, which
`logs` passes over and the next one who creates the name takes; or, where somebody else deleted the name at the same time, a log
that is not listed until its creation is asked for again (it was not acknowledged).

Replicas read every entry in order; there are no consumer groups, and nobody's position is kept in Redis. They wait for news
(`redis_news`), by one blocking connection per process, however many logs there are.

What this process has seen of a log, its last offset and checksum, is compared with what stands there after every reconnection to
another server process or another history (`run_id`, `master_replid`): see `redis_past` and `LogRewound`.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

from service.storage.base import (
    KEPT_SNAPSHOTS,
    Durability,
    Entry,
    Log,
    LogDamaged,
    LogMissing,
    LogTrimmed,
    Receipt,
    StorageConflict,
    StorageDamaged,
    StorageUnavailable,
)
from service.storage.bell import Bell
from service.storage.redis_address import Address
from service.storage.redis_asking import Asking, Keyspace, LogKeys
from service.storage.redis_link import Answer, Command, Link, Redirected, Script
from service.storage.redis_news import News
from service.storage.redis_nodes import Nodes, Options
from service.storage.redis_past import Past

logger = logging.getLogger("nextarm.storage")

TRIM_BATCH = 256
"""Entries that one call trims: it keeps everybody waiting for about a millisecond."""
SNAPSHOT_PATIENCE_S = 30.0
ALIVE_S = 3600


def _script(name: str) -> Script:
    return Script(resources.files("service.storage").joinpath(f"lua/{name}.lua").read_bytes())


CREATE, ACCEPT, FIND, CHECK, DELETE, SETTLE, SAVE, TRIM = map(
    _script, ("create", "accept", "find", "check", "delete", "settle", "save", "trim")
)


class RedisStorage:
    """See the module.

    prefix: of every key.  confirmations: replicas that must have an event before it is acknowledged (WAIT).
    timeout_s: an exchange takes no longer.  keep_events: the last so many entries are never trimmed; 0 = nothing is.
    """

    shared = True

    def __init__(
        self,
        address: Address,
        *,
        prefix: str = "nextarm",
        confirmations: int = 0,
        timeout_s: float = 2.0,
        keep_events: int = 0,
        durability: Durability = Durability.POWER,
    ) -> None:
        self._address = address
        self._keyspace = Keyspace(prefix)
        self._confirmations = confirmations
        self._timeout_s = timeout_s
        self._keep_events = keep_events
        self._durability = durability
        self._bell = Bell()
        self._news = News(self._bell, self._opened, key=self._keyspace.news)
        self._past = Past(self._bell.ring)
        self._asking: Asking | None = None
        self._noticed: dict[str, list[str]] = {}  # place of a node -> what its set-up means

    # -- life --------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        options = Options(
            scripts=(CREATE, ACCEPT, FIND, CHECK, DELETE, SETTLE, SAVE, TRIM),
            timeout_s=self._timeout_s,
            confirmations=self._confirmations,
            durable=self._durability is Durability.POWER,
            rider=self._news.rider,
            noticed=self._note,
        )
        self._asking = Asking(Nodes(self._address, options), self._keyspace, self._news.tell)
        try:
            await self.ping()
            await self._news.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._news.close()
        if self._asking is not None:
            await self._asking.nodes.close()
        self._asking = None

    async def ping(self) -> None:
        """Write something on every node: a replica, full memory, a failed disk and missing replicas refuse it."""
        nodes = self._opened().nodes
        try:
            for node in await nodes.all():
                alive = nodes.key_on(node, self._keyspace.prefix)
                await node.writer.call((b"SET", alive, b"", b"EX", ALIVE_S), confirmed=True)
        except Redirected as error:
            nodes.doubt()
            raise StorageUnavailable(f"{self._address}: slots of the cluster are on the move") from error
        except StorageUnavailable:
            nodes.doubt()
            raise

    async def inspect(self, logs: Sequence[Log]) -> dict[str, LogDamaged]:
        return {}

    def notices(self) -> list[str]:
        return [notice for notices in self._noticed.values() for notice in notices]

    def _note(self, place: str, notices: list[str]) -> None:
        for notice in notices:
            if notice not in self._noticed.get(place, ()):
                logger.warning(notice)
        self._noticed[place] = notices

    async def time(self) -> datetime:
        seconds, micros = (await self._ask(self._keyspace.names, (b"TIME",))).values[0]
        return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))

    # -- logs --------------------------------------------------------------------------------------------------------------

    async def create(self, log: Log, payload: bytes) -> tuple[Log, Receipt]:
        name, new = log.name.encode(), log.id.encode()
        keys, names = self._keys(log.name), self._keyspace.names
        await self._ask(names, (b"HSET", names, name, new), writing=True)
        command = CREATE([keys.head, keys.log, keys.keys, keys.snapshots], new, b"created", payload, _crc(b"created", payload))
        answer = await self._ask(keys.head, command, writing=True, topic=log.name)
        verdict, *rest = answer.values[0]
        if verdict == b"created":
            self._past.saw(log, 1, _crc(b"created", payload), answer.identity)
            await self._ask(names, (b"HSET", names, name, new), writing=True)
            self._bell.ring(log.name, 1)
            return log, Receipt(1)
        kept = Log(bytes(rest[0]).decode(), log.name)
        if verdict == b"damaged":
            raise StorageDamaged(f"log {log.name!r}, offset 1", "the entry is missing")
        first = _entry(kept, b"1", rest[1:])
        await self._ask(names, SETTLE([names], name, new, rest[0]), writing=True)
        return kept, Receipt(1, first.payload)

    async def delete(self, log: Log) -> None:
        keys, names = self._keys(log.name), self._keyspace.names
        command = DELETE([keys.head, keys.log, keys.keys, keys.snapshots], log.id.encode())
        await self._ask(keys.head, command, writing=True, topic=log.name)
        await self._ask(names, SETTLE([names], log.name.encode(), log.id.encode(), b""), writing=True)
        self._past.forget(log)
        self._bell.ring(log.name)

    async def logs(self) -> list[Log]:
        heads = await self._opened().heads()
        return [Log(log_id, name) for name, (log_id, _) in sorted(heads.items())]

    async def find_log(self, name: str) -> Log | None:
        head = self._keys(name).head
        found = (await self._ask(head, (b"HGET", head, b"id"))).values[0]
        return None if found is None else Log(bytes(found).decode(), name)

    async def end(self, log: Log) -> int:
        head = self._keys(log.name).head
        found, last = (await self._about(log, (b"HMGET", head, b"id", b"end"))).values[0]
        if found != log.id.encode():
            raise self._gone(log)
        return int(last)

    # -- entries -----------------------------------------------------------------------------------------------------------

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        return (await self._accept(log, [(key, payload)], expected=expected))[0]

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        return await self._accept(log, entries)

    async def _accept(self, log: Log, entries: Sequence[tuple[str, bytes]], *, expected: int | None = None) -> list[Receipt]:
        """In one exchange; calls of other processes may come in between."""
        keys, log_id = self._keys(log.name), log.id.encode()
        three, wanted = [keys.head, keys.log, keys.keys], b"" if expected is None else b"%d" % expected
        sums = [_crc(key.encode(), payload) for key, payload in entries]
        commands = [
            ACCEPT(three, log_id, key.encode(), payload, crc, wanted) for (key, payload), crc in zip(entries, sums, strict=True)
        ]
        answer = await self._about(log, *commands, writing=True, topic=log.name)
        receipts = []
        for value, (key, payload), crc in zip(answer.values, entries, sums, strict=True):
            match value:
                case [b"accepted", offset]:
                    self._past.appended(log, int(offset), payload, crc, answer.identity)
                    self._bell.ring(log.name, int(offset))
                    receipts.append(Receipt(int(offset)))
                case [b"duplicate", offset, *first]:
                    if self._confirmations and await self._confirm(log, key) is None:
                        raise StorageUnavailable(f"log {log.name!r}: an entry was lost while it was looked at; try again")
                    receipts.append(Receipt(int(offset), _entry(log, offset, first).payload))
                case [b"conflict", last]:
                    raise StorageConflict(log.name, expected=expected or 0, end=int(last))
                case [b"damaged", offset]:
                    raise StorageDamaged(f"log {log.name!r}, offset {int(offset)}", "an entry that was accepted is missing")
                case _:
                    raise self._gone(log)
        return receipts

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        if limit <= 0:
            return []  # XRANGE would answer nothing at all
        if recent := self._past.recent(log, after=after, limit=limit):
            return recent
        keys = self._keys(log.name)
        answer = await self._about(
            log,
            (b"XRANGE", keys.log, b"%d-0" % (after + 1), b"+", b"COUNT", limit),
            (b"HMGET", keys.head, b"id", b"floor", b"first", b"crc"),  # after the entries: its floor is not older than they are
        )
        rows, (found, floor, first, crc) = answer.values
        if found != log.id.encode():
            raise self._gone(log)
        if after == 0 and limit == 1 and first is not None:
            return [_entry(log, b"1", (b"created", first, crc))]
        if int(floor) > after + 1 and not (rows and rows[0][0] == b"%d-0" % (after + 1)):
            raise LogTrimmed(log.name, first=int(floor))
        entries = [_row(log, row, expected) for expected, row in enumerate(rows, start=after + 1)]
        if entries:
            self._past.saw(log, entries[-1].offset, int(rows[-1][1][5]), answer.identity)
        return entries

    async def find(self, log: Log, key: str) -> Entry | None:
        found = await self._find(log, key)
        return await self._confirm(log, key) if found is not None and self._confirmations else found

    async def _confirm(self, log: Log, key: str) -> Entry | None:
        """Look again, with WAIT, at what is going to be acknowledged once more: whoever appended it may have been refused because
        too few replicas had it, and who repeats the request must not be told that it is safe.
        """
        alive = self._keys(log.name).alive
        mark = (b"SET", alive, b"", b"EX", ALIVE_S)  # WAIT waits for what its connection has written, and all before it
        return await self._find(log, key, mark, writing=True)

    async def _find(self, log: Log, key: str, *more: Command, writing: bool = False) -> Entry | None:
        keys = self._keys(log.name)
        look = FIND([keys.head, keys.log, keys.keys], log.id.encode(), key.encode())
        answer = await self._about(log, look, *more, writing=writing)
        match answer.values[0]:
            case [b"nothing"]:
                return None
            case [b"found", offset, *entry]:
                return _entry(log, offset, entry)
            case [b"damaged", offset]:
                raise StorageDamaged(f"log {log.name!r}, offset {int(offset)}", "an entry that was accepted is missing")
        raise self._gone(log)

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    async def save_snapshot(self, log: Log, offset: int, blob: bytes) -> None:
        keys = self._keys(log.name)
        sealed = zlib.crc32(blob).to_bytes(4, "little") + blob
        command = SAVE([keys.head, keys.snapshots], log.id.encode(), offset, sealed, KEPT_SNAPSHOTS)
        answer = await self._about(log, command, writing=True, confirmed=False, patience_s=SNAPSHOT_PATIENCE_S)
        match answer.values[0]:
            case [b"missing"]:
                raise self._gone(log)
            case [b"ahead", last]:
                raise self._past.rewound(log, end=int(last))
        if self._keep_events:
            await self._trim(log)

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        keys = self._keys(log.name)
        answer = await self._about(log, (b"HGETALL", keys.snapshots), (b"HGET", keys.head, b"id"), patience_s=SNAPSHOT_PATIENCE_S)
        flat, found = answer.values
        if found != log.id.encode():
            raise self._gone(log)
        kept = [(int(offset), bytes(sealed)) for offset, sealed in zip(flat[::2], flat[1::2], strict=True)]
        whole = [(offset, sealed[4:]) for offset, sealed in kept if zlib.crc32(sealed[4:]).to_bytes(4, "little") == sealed[:4]]
        return sorted(whole, key=lambda pair: -pair[0])

    async def _trim(self, log: Log) -> None:
        """Forget entries behind the older snapshot, a few at a time: nobody waits long for one call."""
        keys = self._keys(log.name)
        four = [keys.head, keys.log, keys.keys, keys.snapshots]
        command = TRIM(four, log.id.encode(), self._keep_events, KEPT_SNAPSHOTS, TRIM_BATCH)
        while True:
            verdict, *rest = (await self._about(log, command, writing=True, confirmed=False)).values[0]
            if verdict != b"trimmed" or not int(rest[1]):
                return

    # -- news --------------------------------------------------------------------------------------------------------------

    async def wait(self, log: Log, *, after: int, timeout_s: float) -> int:
        return await self._bell.wait(log.name, lambda: self.end(log), after=after, timeout_s=timeout_s)

    async def news(self, *, timeout_s: float) -> dict[str, int]:
        return await self._bell.news(timeout_s=timeout_s)

    # -- what was seen -----------------------------------------------------------------------------------------------------

    async def begin_anew(self, log: Log) -> None:
        self._past.begin_anew(log)

    def _gone(self, log: Log) -> LogMissing:
        self._past.forget(log)
        return LogMissing(log.name)

    async def _compare(self, link: Link, log: Log, epoch: int) -> str:
        keys = self._keys(log.name)
        return await self._past.compare(
            log, link.identity, lambda offset: link.call(CHECK([keys.head, keys.log], log.id.encode(), offset)), epoch=epoch
        )

    # -- asking ------------------------------------------------------------------------------------------------------------

    async def _about(self, log: Log, *commands: Command, **options: Any) -> Answer:
        """Ask about a log whose past, as far as this process knows it, is still the past of what stands there."""
        head, epoch = self._keys(log.name).head, self._past.epoch(log)
        return await self._ask(head, *commands, compare=lambda link: self._compare(link, log, epoch), **options)

    async def _ask(self, key: bytes, *commands: Command, **options: Any) -> Answer:
        return await self._opened().ask(key, *commands, **options)

    def _opened(self) -> Asking:
        if self._asking is None:
            raise StorageUnavailable("the store is closed")
        return self._asking

    def _keys(self, name: str) -> LogKeys:
        return self._keyspace.of(name)


def _crc(key: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key))


def _entry(log: Log, offset: Any, fields: Sequence[Any]) -> Entry:
    """The entry of (key, payload, checksum), if the checksum holds."""
    place = f"log {log.name!r}, offset {int(offset)}"
    if len(fields) != 3 or not all(isinstance(value, bytes) for value in fields):
        raise StorageDamaged(place, "it is no entry of this service")
    key, payload, crc = fields
    if b"%d" % _crc(key, payload) != crc:
        raise StorageDamaged(place, "the checksum does not match")
    return Entry(int(offset), payload)


def _row(log: Log, row: Any, expected: int) -> Entry:
    """A row of the stream, which must be the next entry."""
    number, fields = row
    if number != b"%d-0" % expected:
        raise StorageDamaged(f"log {log.name!r}, offset {expected}", f"the entry is missing; {bytes(number).decode()} follows")
    if len(fields) != 6 or fields[::2] != [b"k", b"p", b"c"]:
        raise StorageDamaged(f"log {log.name!r}, offset {expected}", "it is no entry of this service")
    return _entry(log, expected, fields[1::2])
