"""The Redis storage: logs on Redis Streams, shared by any number of replicas of the service.

    PREFIX:logs                 hash    name -> id of a log that may exist
    PREFIX:{NAME}:head          hash    id, end, floor (first kept offset) [, first, crc: entry 1, trimmed: keys without entries]
    PREFIX:{NAME}:log           stream  OFFSET-0 -> k key, p payload, c crc32 of both
    PREFIX:{NAME}:keys          hash    key -> offset; minus the offset of an entry that was trimmed
    PREFIX:{NAME}:trimmed       list    OFFSET key, of trimmed entries whose keys will be forgotten, in their order
    PREFIX:{NAME}:snapshots     hash    offset -> crc32, blob
    PREFIX:{NAME}:records       hash    key -> crc32, value; PREFIX:records are those of the store itself
    PREFIX:{NAME}:alive         string  written where nothing else is, so that WAIT has something to wait for
    PREFIX:{NAME}:deleted:ID    string  for an hour after the log was deleted: one that is missing without it was lost
    PREFIX:news                 stream  names of logs that grew, came or went; the last thousand or so

    append ──> one Lua call: log there? key free? ends as expected? ──> XADD, key ──> offset         (`connection.py`: pipelined)
    news   ──> one blocking XREAD per process: a change reaches every replica within some tens of milliseconds

All keys of a log share a hash tag, so that on a cluster one Lua call can accept an event. Names are unique because a name's keys
are: `head` is the truth, and one Lua call creates or deletes a log as a whole. The register of names is only for listing. It is
written before a log is created and settled after it was, or was deleted; a crash between leaves a name without a log, which
`logs` passes over and the next one who creates the name takes; or, where another process deleted the name at the same time, a log
that is not listed until its creation is asked for again (it was not acknowledged).

Replicas read every entry in order; there are no consumer groups, and no position is kept in Redis. They wait for
notifications (`notifications.py`) on one blocking connection per process, however many logs there are.

Other programs can write to Redis, and Redis itself may evict keys or come back without them. So every script about a log first
checks, in the same step, that head, entries and keys belong together (`sound.lua`: counts, which do not grow with the log) and
that the last entry which this process has seen is still there (`consistency.py`). If not, the call raises `LogDamagedError` or
`LogTruncatedError`: nothing is accepted, and nothing is answered from what is left. Each `notifications.SWEEP_S` every log is
checked.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

from service.storage.archive import Archive, read_entry, read_trimmed
from service.storage.base import (
    KEPT_SNAPSHOTS,
    Durability,
    Entry,
    Log,
    LogDamagedError,
    LogNotFoundError,
    LogTruncatedError,
    Receipt,
    StorageConflictError,
    StorageDamagedError,
    StorageUnavailableError,
)
from service.storage.notifier import Notifier
from service.storage.redis.address import Address
from service.storage.redis.client import Head, Keyspace, LogKeys, RedisClient
from service.storage.redis.cluster import Options, Topology
from service.storage.redis.connection import Answer, Command, Redirected, Script
from service.storage.redis.consistency import ConsistencyGuard
from service.storage.redis.notifications import NotificationStream

logger = logging.getLogger("nextarm.storage")

TRIM_BATCH = 256
"""Entries that one call trims: it blocks the server for about a millisecond."""
SNAPSHOT_PATIENCE_S = 30.0
ALIVE_S = 3600
DELETED_S = 3600
"""How long a deletion is remembered: a process that was away for longer reports it as a loss, wrongly."""


def _script(*names: str) -> Script:
    return Script(b"".join(resources.files("service.storage.redis").joinpath(f"lua/{name}.lua").read_bytes() for name in names))


CREATE, DELETE, SETTLE, SWAP = map(_script, ("create", "delete", "settle", "swap"))
STATE, ACCEPT, FIND, SAVE, TRIM = (_script("sound", name) for name in ("state", "accept", "find", "save", "trim"))
SCRIPTS = (CREATE, DELETE, SETTLE, SWAP, STATE, ACCEPT, FIND, SAVE, TRIM)


class RedisStorage:
    """Logs on a Redis server, behind sentinels, or on a cluster.

    prefix: of every key.  confirmations: replicas that must have an event before it is acknowledged (WAIT).
    timeout_s: an exchange takes no longer.  archive: where trimmed entries are.
    """

    shared = True

    def __init__(
        self,
        address: Address,
        *,
        prefix: str = "nextarm",
        confirmations: int = 0,
        timeout_s: float = 2.0,
        durability: Durability = Durability.POWER,
        archive: Archive | None = None,
    ) -> None:
        self.archive = archive
        self._address = address
        self._keyspace = Keyspace(prefix)
        self._confirmations = confirmations
        self._timeout_s = timeout_s
        self._durability = durability
        self._notifier = Notifier()
        self._notifications = NotificationStream(
            self._notifier, self._connected_client, self._scan_heads, key=self._keyspace.news
        )
        self._guard = ConsistencyGuard(self._notifier.publish)
        self._client: RedisClient | None = None
        self._noticed: dict[str, list[str]] = {}  # place of a node -> what its set-up means

    # -- life --------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        options = Options(
            scripts=SCRIPTS,
            timeout_s=self._timeout_s,
            confirmations=self._confirmations,
            durable=self._durability is Durability.POWER,
            piggyback=self._notifications.piggyback,
            on_notices=self._note,
        )
        self._client = RedisClient(Topology(self._address, options), self._keyspace, self._notifications.publish)
        try:
            await self.ping()
            await self._find_names()
            await self._notifications.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._notifications.close()
        if self._client is not None:
            await self._client.nodes.close()
        self._client = None

    async def ping(self) -> None:
        """Write something on every node: a replica, full memory, a failed disk and missing replicas refuse it. And look at the
        register of names, by which a start finds the logs.
        """
        nodes = self._connected_client().nodes
        await self._ask(self._keyspace.names, (b"HLEN", self._keyspace.names))
        try:
            for node in await nodes.all():
                alive = nodes.key_on(node, self._keyspace.prefix)
                await node.writer.call((b"SET", alive, b"", b"EX", ALIVE_S), confirmed=True)
        except Redirected as error:
            nodes.mark_stale()
            raise StorageUnavailableError(f"{self._address}: slots of the cluster are on the move") from error
        except StorageUnavailableError:
            nodes.mark_stale()
            raise

    async def inspect(self, logs: Sequence[Log]) -> dict[str, LogDamagedError]:
        """What the last look at all logs found."""
        heads = self._notifications.known
        found = [(log, heads[log.name]) for log in logs if log.name in heads]
        return {log.name: _damaged(log, head.damage) for log, head in found if head.damage and head.id == log.id}

    def lacks_snapshot(self, log: Log) -> bool:
        head = self._notifications.known.get(log.name)
        return head is not None and head.lacks_snapshot and head.id == log.id

    def notices(self) -> list[str]:
        notices = [notice for notices in self._noticed.values() for notice in notices]
        notices += [] if self.archive is None else self.archive.notices()
        if self._guard.losses:
            lost = "acknowledged entries were lost, or taken back to an earlier state"
            count = self._guard.losses
            notices.append(f"{self._address}: {lost}, in {count} log(s) since this process began; its log names them")
        return notices

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
        five = [keys.head, keys.log, keys.keys, keys.snapshots, keys.trimmed]
        command = CREATE(five, new, b"created", payload, _crc(b"created", payload))
        answer = await self._ask(keys.head, command, writing=True, topic=log.name)
        verdict, *rest = answer.values[0]
        if verdict == b"created":
            self._guard.observe_entry(log, 1, _crc(b"created", payload))
            await self._ask(names, (b"HSET", names, name, new), writing=True)
            self._notifier.publish(log.name, 1)
            return log, Receipt(1)
        if verdict == b"damaged":
            raise _damaged(log, bytes(rest[0]).decode())
        kept = Log(bytes(rest[0]).decode(), log.name)
        first = _entry(kept, b"1", rest[1:])
        await self._ask(names, SETTLE([names], name, new, rest[0]), writing=True)
        return kept, Receipt(1, first.payload)

    async def delete(self, log: Log) -> None:
        keys, names = self._keys(log.name), self._keyspace.names
        four, note = [keys.head, keys.log, keys.keys, keys.snapshots], keys.deleted(log.id)
        command = DELETE([*four, note, keys.records, keys.trimmed], log.id.encode(), DELETED_S)
        await self._ask(keys.head, command, writing=True, topic=log.name)
        await self._ask(names, SETTLE([names], log.name.encode(), log.id.encode(), b""), writing=True)
        self._guard.forget(log)
        self._notifier.publish(log.name)

    async def logs(self) -> list[Log]:
        heads = await self._scan_heads({})
        return [Log(head.id, name) for name, head in sorted(heads.items())]

    async def find_log(self, name: str) -> Log | None:
        """Also one that is damaged: reading it says so."""
        keys, names = self._keys(name), self._keyspace.names
        try:
            found = (await self._ask(keys.head, STATE(keys.three, b"", b"", b""))).values[0]
        except StorageDamagedError:
            found = [b"damaged"]
        if found[0] == b"damaged" and len(found) > 3 and found[3] is not None:
            return Log(bytes(found[3]).decode(), name)
        if found[0] == b"damaged":
            registered = (await self._ask(names, (b"HGET", names, name.encode()))).values[0]
            return Log("of unknown id" if registered is None else bytes(registered).decode(), name)
        return None if found[1] is None else Log(bytes(found[1]).decode(), name)

    async def end(self, log: Log) -> int:
        return int((await self._state(log))[2])

    async def _state(self, log: Log) -> list[Any]:
        epoch = self._guard.epoch(log)
        return await self._interpret(log, (await self._execute_on_log(log, self._call(log, STATE))).values[0], epoch)

    async def _scan_heads(self, also: Mapping[str, str]) -> dict[str, Head]:
        """Every log that there is. also: name -> id of logs that may have lost their place in the register; they return to it."""
        heads, unregistered = await self._connected_client().heads(self._state_command, also)
        names = self._keyspace.names
        for name in unregistered:
            logger.warning("a log that was not in the register of names returns to it", extra={"log": name})
            log_id = heads[name].id.encode()
            await self._ask(names, SETTLE([names], name.encode(), log_id, log_id), writing=True)
        for name, head in heads.items():
            if head.rewound:
                self._guard.rewound(Log(head.id, name), end=head.end)
            if head.floor > 1 and not await self._has_snapshots(name):
                heads[name] = head._replace(lacks_snapshot=True)
        return heads

    async def _has_snapshots(self, name: str) -> bool:
        key = self._keys(name).snapshots
        return bool((await self._ask(key, (b"EXISTS", key))).values[0])

    def _state_command(self, name: str, log_id: str) -> Command:
        return STATE(self._keys(name).three, log_id.encode(), *self._guard.known(log_id))

    async def _find_names(self) -> None:
        """Where the register is gone, or was never written, the logs themselves say which there are."""
        names = self._keyspace.names
        if (await self._ask(names, (b"EXISTS", names))).values[0]:
            return
        await self._scan_heads(await self._connected_client().scan())

    # -- entries -----------------------------------------------------------------------------------------------------------

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        return (await self._accept(log, [(key, payload)], expected=expected))[0]

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        return await self._accept(log, entries)

    async def _accept(self, log: Log, entries: Sequence[tuple[str, bytes]], *, expected: int | None = None) -> list[Receipt]:
        """In one exchange; calls of other processes may come in between."""
        wanted, epoch = b"" if expected is None else b"%d" % expected, self._guard.epoch(log)
        sums = [_crc(key.encode(), payload) for key, payload in entries]
        commands = [
            self._call(log, ACCEPT, key.encode(), payload, crc, wanted) for (key, payload), crc in zip(entries, sums, strict=True)
        ]
        answer = await self._execute_on_log(log, *commands, writing=True, topic=log.name)
        receipts = []
        for value, (key, payload), crc in zip(answer.values, entries, sums, strict=True):
            match await self._interpret(log, value, epoch):
                case [b"accepted", offset]:
                    self._guard.appended(log, int(offset), payload, crc)
                    self._notifier.publish(log.name, int(offset))
                    receipts.append(Receipt(int(offset)))
                case [b"duplicate", offset, *first]:
                    if self._confirmations and await self._confirm(log, key) is None:
                        raise StorageUnavailableError(f"log {log.name!r}: an entry was lost while it was looked at; try again")
                    receipts.append(Receipt(int(offset), _entry(log, offset, first, key=key).payload))
                case [b"trimmed", offset]:
                    receipts.append(Receipt(int(offset), b"", is_trimmed=True))
                case [_, last]:
                    raise StorageConflictError(log.name, expected=expected or 0, end=int(last))
        return receipts

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        if limit <= 0:
            return []  # XRANGE would answer nothing at all
        if recent := self._guard.recent(log, after=after, limit=limit):
            return recent
        epoch = self._guard.epoch(log)
        read_range = (b"XRANGE", self._keys(log.name).log, b"%d-0" % (after + 1), b"+", b"COUNT", limit)
        # The state comes after the entries, so that its floor is not older than they are.
        rows, state = (await self._execute_on_log(log, read_range, self._call(log, STATE))).values
        if state[0] == b"damaged" and int(state[2]) <= after + 1:
            _rows(log, rows, after)  # it may be seen here which entry is missing or bad
        _, _, _, floor, first, crc = await self._interpret(log, state, epoch)
        if after == 0 and limit == 1 and first is not None:
            return [_entry(log, b"1", (b"created", first, crc))]
        if int(floor) > after + 1 and not (rows and rows[0][0] == b"%d-0" % (after + 1)):
            return await read_trimmed(self, log, after=after, limit=limit, floor=int(floor))
        entries = _rows(log, rows, after)
        if entries:
            self._guard.observe_entry(log, entries[-1].offset, int(rows[-1][1][5]))
        return entries

    async def find(self, log: Log, key: str) -> Entry | None:
        found = await self._find(log, key)
        return await self._confirm(log, key) if found is not None and self._confirmations else found

    async def _confirm(self, log: Log, key: str) -> Entry | None:
        """Find the entry again, with WAIT, before it is acknowledged once more: the first append may have been refused because
        too few replicas had it, and a repeated request must not be answered as if it were safe.
        """
        alive = self._keys(log.name).alive
        mark = (b"SET", alive, b"", b"EX", ALIVE_S)  # WAIT waits for what its connection has written, and all before it
        return await self._find(log, key, mark, writing=True)

    async def _find(self, log: Log, key: str, *more: Command, writing: bool = False) -> Entry | None:
        epoch = self._guard.epoch(log)
        answer = await self._execute_on_log(log, self._call(log, FIND, key.encode()), *more, writing=writing)
        match await self._interpret(log, answer.values[0], epoch):
            case [b"found", offset, *entry]:
                return _entry(log, offset, entry, key=key)
            case [b"trimmed", offset]:
                return await read_entry(self, log, key, int(offset))
        return None

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    async def save_snapshot(self, log: Log, offset: int, blob: bytes) -> int:
        epoch = self._guard.epoch(log)
        command = self._call(log, SAVE, offset, _sealed(blob), KEPT_SNAPSHOTS, snapshots=True)
        answer = await self._execute_on_log(log, command, writing=True, confirmed=False, patience_s=SNAPSHOT_PATIENCE_S)
        _, older = await self._interpret(log, answer.values[0], epoch)
        if self.lacks_snapshot(log):
            self._notifications.known[log.name] = self._notifications.known[log.name]._replace(lacks_snapshot=False)
        return int(older)

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        key = self._keys(log.name).snapshots
        try:
            flat = (await self._execute_on_log(log, (b"HGETALL", key), patience_s=SNAPSHOT_PATIENCE_S)).values[0]
        except StorageDamagedError as error:  # the log is the truth
            logger.warning("snapshots cannot be read and are passed over", extra={"log": log.name, "reason": str(error)})
            flat = []
        end = int((await self._state(log))[2])  # after the snapshots, so that none of them is newer
        kept = [(int(offset), bytes(sealed)) for offset, sealed in zip(flat[::2], flat[1::2], strict=True) if offset.isdigit()]
        ahead = [b"%d" % offset for offset, _ in kept if offset > end]
        if ahead:  # of entries that were lost, in whose place others may come
            await self._execute_on_log(log, (b"HDEL", key, *ahead), writing=True, confirmed=False)
        whole = [(offset, sealed[4:]) for offset, sealed in kept if zlib.crc32(sealed[4:]).to_bytes(4, "little") == sealed[:4]]
        return sorted(((offset, blob) for offset, blob in whole if offset <= end), key=lambda pair: -pair[0])

    async def trim(self, log: Log, *, before: int, lasting: Collection[int], forget: int = 0) -> int:
        """A few at a time, so that no call blocks the server for long."""
        floor, _ = await self._trim_few(log, 0, lasting, 0)
        while True:
            # not beyond what `lasting` is known for, should another process trim meanwhile
            reached, is_more = await self._trim_few(log, min(before, floor + TRIM_BATCH), lasting, forget, behind=floor)
            if not is_more and (reached == floor or reached >= before):
                return reached
            floor = reached

    async def _trim_few(
        self, log: Log, before: int, lasting: Collection[int], forget: int, *, behind: int = 0
    ) -> tuple[int, bool]:
        epoch = self._guard.epoch(log)
        keep = [offset for offset in lasting if behind <= offset < before]
        command = self._call(log, TRIM, before, KEPT_SNAPSHOTS, TRIM_BATCH, forget, *keep, snapshots=True)
        answer = await self._execute_on_log(log, command, writing=True, confirmed=False)
        _, floor, left = await self._interpret(log, answer.values[0], epoch)
        return int(floor), bool(int(left))

    # -- records -----------------------------------------------------------------------------------------------------------

    async def records(self, log: Log | None) -> dict[str, bytes]:
        flat = await self._of_records(log, b"HGETALL")
        pairs = zip(flat[::2], flat[1::2], strict=True)
        opened = {bytes(key).decode(): _unsealed(bytes(sealed)) for key, sealed in pairs}
        return {key: value for key, value in opened.items() if value is not None}

    async def find_record(self, log: Log | None, key: str) -> bytes | None:
        sealed = await self._of_records(log, b"HGET", key.encode())
        return None if sealed is None else _unsealed(bytes(sealed))

    async def _of_records(self, log: Log | None, command: bytes, *values: bytes) -> Any:
        """Read the hash of records; that of a log only while the log is there."""
        if log is None:
            return (await self._ask(self._keyspace.records, (command, self._keyspace.records, *values))).values[0]
        keys = self._keys(log.name)
        found, now = (await self._execute_on_log(log, (command, keys.records, *values), (b"HGET", keys.head, b"id"))).values
        if now != log.id.encode():
            raise await self._missing_log_error(log)
        return found

    async def swap_record(self, log: Log | None, key: str, value: bytes | None, *, expected: bytes | None) -> bool:
        was, becomes = (b"" if one is None else _sealed(one) for one in (expected, value))
        if log is None:
            records = self._keyspace.records
            command = SWAP([records], b"", key.encode(), was, becomes)
            answer = (await self._ask(records, command, writing=True)).values[0]
        else:
            keys, epoch = self._keys(log.name), self._guard.epoch(log)
            command = SWAP([keys.records, keys.head], log.id.encode(), key.encode(), was, becomes)
            found = (await self._execute_on_log(log, command, writing=True)).values[0]
            answer = await self._interpret(log, found, epoch)
        return bool(answer[0] == b"swapped")

    # -- notifications -----------------------------------------------------------------------------------------------------

    async def wait(self, log: Log, *, after: int, timeout_s: float) -> int:
        return await self._notifier.wait(log.name, lambda: self.end(log), after=after, timeout_s=timeout_s)

    async def wait_for_changes(self, *, timeout_s: float) -> dict[str, int]:
        return await self._notifier.wait_for_changes(timeout_s=timeout_s)

    # -- what was seen -----------------------------------------------------------------------------------------------------

    async def resync(self, log: Log) -> None:
        self._guard.resync(log)

    async def _interpret(self, log: Log, value: list[Any], epoch: int) -> list[Any]:
        """What a script about the log answered, or what its answer means. epoch: when the call began. (An outcome that waited for
        a reconnection may close a decision which was lost meanwhile.)
        """
        match value:
            case [b"missing", *_]:
                raise await self._missing_log_error(log)
            case [b"rewound", last] if epoch == self._guard.epoch(log):
                raise self._guard.rewound(log, end=int(last))
            case [b"rewound", _]:
                raise StorageUnavailableError(
                    f"log {log.name!r} is being reloaded, and this rests on what was known before; try again"
                )
            case [b"damaged", reason, *_]:
                raise _damaged(log, bytes(reason).decode())
            case [b"lost", offset]:
                raise LogDamagedError(f"log {log.name!r}, offset {int(offset)}", "an entry that was accepted is missing")
        return value

    async def _missing_log_error(self, log: Log) -> LogNotFoundError | LogTruncatedError:
        """It was deleted, or, where nothing says so, lost."""
        if self._guard.known(log.id)[0]:
            note = self._keys(log.name).deleted(log.id)
            if (await self._ask(note, (b"EXISTS", note))).values[0] == 0:
                return self._guard.rewound(log, end=0)
        self._guard.forget(log)
        return LogNotFoundError(log.name)

    # -- asking ------------------------------------------------------------------------------------------------------------

    def _call(self, log: Log, script: Script, *values: bytes | int, snapshots: bool = False) -> Command:
        """A script that begins with `sound.lua`. snapshots: it takes their key and that of trimmed keys, too."""
        of = self._keys(log.name)
        keys = [*of.three, of.snapshots, of.trimmed] if snapshots else of.three
        return script(keys, log.id.encode(), *self._guard.known(log.id), *values)

    async def _execute_on_log(self, log: Log, *commands: Command, **options: Any) -> Answer:
        """Execute commands about a log, unless it was found to be truncated."""
        self._guard.check(log)
        try:
            return await self._ask(self._keys(log.name).head, *commands, **options)
        except StorageDamagedError as error:  # a key of another type
            raise _damaged(log, error.reason) from error

    async def _ask(self, key: bytes, *commands: Command, **options: Any) -> Answer:
        return await self._connected_client().execute(key, *commands, **options)

    def _connected_client(self) -> RedisClient:
        if self._client is None:
            raise StorageUnavailableError("the store is closed")
        return self._client

    def _keys(self, name: str) -> LogKeys:
        return self._keyspace.of(name)


def _sealed(value: bytes) -> bytes:
    """With its checksum."""
    return zlib.crc32(value).to_bytes(4, "little") + value


def _unsealed(sealed: bytes) -> bytes | None:
    return sealed[4:] if zlib.crc32(sealed[4:]).to_bytes(4, "little") == sealed[:4] else None


def _crc(key: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key))


def _damaged(log: Log, reason: str) -> LogDamagedError:
    return LogDamagedError(f"log {log.name!r}", reason)


def _entry(log: Log, offset: Any, fields: Sequence[Any], *, key: str | None = None) -> Entry:
    """The entry of (key, payload, checksum), if the checksum holds. key: which it must be; None = any."""
    found, payload, crc = fields if len(fields) == 3 else (None, None, None)
    if not (isinstance(found, bytes) and isinstance(payload, bytes) and isinstance(crc, bytes)):
        reason = "it is no entry of this service"
    elif b"%d" % _crc(found, payload) != crc:
        reason = "the checksum does not match"
    elif key is not None and found != key.encode():
        reason = "it stands under the key of another entry"
    else:
        return Entry(int(offset), payload)
    raise LogDamagedError(f"log {log.name!r}, offset {int(offset)}", reason)


def _rows(log: Log, rows: Sequence[Any], after: int) -> list[Entry]:
    """Rows of the stream, which must be the entries behind `after`."""
    return [_row(log, row, expected) for expected, row in enumerate(rows, start=after + 1)]


def _row(log: Log, row: Any, expected: int) -> Entry:
    number, fields = row
    if number != b"%d-0" % expected:
        raise LogDamagedError(f"log {log.name!r}, offset {expected}", f"the entry is missing; {bytes(number).decode()} follows")
    if len(fields) != 6 or fields[::2] != [b"k", b"p", b"c"]:
        raise LogDamagedError(f"log {log.name!r}, offset {expected}", "it is no entry of this service")
    return _entry(log, expected, fields[1::2])
