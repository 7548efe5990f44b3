"""The Redis client of the store: names of keys, and commands sent to the node that serves a key at that moment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from service.storage.base import StorageDamagedError, StorageUnavailableError
from service.storage.redis.cluster import Node, Topology
from service.storage.redis.connection import Answer, Command, Redirected

ATTEMPTS = 8
SCANNED = 10_000
"""Keys that one call of SCAN looks at."""


@dataclass(frozen=True)
class LogKeys:
    """The keys of one log. They share a hash tag, so that one node of a cluster has them all."""

    head: bytes
    log: bytes
    keys: bytes
    snapshots: bytes
    alive: bytes
    records: bytes
    trimmed: bytes

    @property
    def three(self) -> list[bytes]:
        """What `sound.lua` looks at."""
        return [self.head, self.log, self.keys]

    def deleted(self, log_id: str) -> bytes:
        """Where the deletion of a log is noted."""
        return self.alive.removesuffix(b"alive") + b"deleted:" + log_id.encode()


class Head(NamedTuple):
    """What a log is now. end: 0 where it is unknown.  damage: why it is not what this service has written; "" = it is.
    rewound: it is an earlier state of what this process has seen.  floor: its first kept offset.  lacks_snapshot: no snapshot
    covers the entries before that.
    """

    id: str
    end: int
    damage: str = ""
    rewound: bool = False
    floor: int = 1
    lacks_snapshot: bool = False

    def changed(self, now: Head) -> bool:
        """Whether something happened that a learner must look at; that it was trimmed is nothing."""
        return self[:4] != now[:4]


class Keyspace:
    """Every key of one service."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.names = self.prefix + b":logs"
        self.news = self.prefix + b":news"
        self.records = self.prefix + b":records"

    def pattern(self) -> bytes:
        """Which keys are heads, for SCAN."""
        return re.sub(rb"([*?\[\]\\])", rb"\\\1", self.prefix) + b":{*}:head"

    def name_of(self, head: bytes) -> str:
        """The name of the log whose head has this key."""
        return head.removeprefix(self.prefix + b":{").removesuffix(b"}:head").decode()

    def of(self, name: str) -> LogKeys:
        """Those of the log that has a name."""
        stem = self.prefix + b":{" + name.encode() + b"}:"
        return LogKeys(*(stem + name for name in (b"head", b"log", b"keys", b"snapshots", b"alive", b"records", b"trimmed")))


class RedisClient:
    """Executes commands on the node of a key, following redirections.

    on_append: called with the topic of an append whose log is on another node than the notifications.
    """

    def __init__(self, nodes: Topology, keyspace: Keyspace, on_append: Callable[[str], None]) -> None:
        self.nodes = nodes
        self.keyspace = keyspace
        self._on_append = on_append

    async def execute(
        self,
        key: bytes,
        *commands: Command,
        writing: bool = False,
        confirmed: bool = True,
        topic: str = "",
        patience_s: float = 0.0,
    ) -> Answer:
        """Run commands on the node that serves a key, and return its answer.

        writing: on the writer connection; confirmed: wait until enough replicas have it.  topic, patience_s: see
        `PipelinedConnection.call`.
        """
        nodes, asking = self.nodes, None
        for _ in range(ATTEMPTS):
            try:
                node = nodes.at(asking) if asking else await nodes.node(key)
                link = node.writer if writing else node.reader
                # A slot that is being migrated: ASKING holds for the one command after it, so it is sent before each, and
                # its own answers (the even ones) are dropped below.
                sent = [part for command in commands for part in ((b"ASKING",), command)] if asking else commands
                answer = await link.call(*sent, confirmed=writing and confirmed, topic=topic, patience_s=patience_s)
                if topic and nodes.is_cluster:
                    self._on_append(topic)
                return Answer(answer.values[1::2], answer.identity) if asking else answer
            except Redirected as error:
                asking = error.endpoint if error.asking else None
                await nodes.moved(error)
            except StorageUnavailableError:
                nodes.mark_stale()
                raise
        raise StorageUnavailableError("the cluster keeps sending its callers elsewhere")

    async def heads(
        self, state_command: Callable[[str, str], Command], also: Mapping[str, str]
    ) -> tuple[dict[str, Head], list[str]]:
        """Every log by name, and the names of those that the register lacks.

        state_command: (name, id) -> the call of `state.lua` for a log.  also: name -> id of logs that may not be registered.
        """
        flat = (await self.execute(self.keyspace.names, (b"HGETALL", self.keyspace.names))).values[0]
        registered = {bytes(name).decode(): bytes(log_id).decode() for name, log_id in zip(flat[::2], flat[1::2], strict=True)}
        ids = {**also, **registered}
        by_node: dict[Node, list[str]] = {}
        for name in ids:
            by_node.setdefault(await self.nodes.node(self.keyspace.of(name).head), []).append(name)
        heads: dict[str, Head] = {}
        for node, names in by_node.items():
            answer = await node.reader.call(*(state_command(name, ids[name]) for name in names), raising=False)
            for name, found in zip(names, answer.values, strict=True):
                head = (
                    await self._head_of(name, ids[name], state_command)
                    if isinstance(found, Exception)
                    else _head(ids[name], found)
                )
                if head is not None:
                    heads[name] = head
        return heads, [name for name, head in heads.items() if name not in registered and head.id]

    async def _head_of(self, name: str, log_id: str, state_command: Callable[[str, str], Command]) -> Head | None:
        """The head of a log that failed in the pipeline: its slot has moved, or it is damaged, which affects no other log."""
        try:
            return _head(log_id, (await self.execute(self.keyspace.of(name).head, state_command(name, log_id))).values[0])
        except StorageDamagedError as error:
            return Head(log_id, 0, error.reason)

    async def scan(self) -> dict[str, str]:
        """Name -> "" of every log whose head is there."""
        names: dict[str, str] = {}
        for node in await self.nodes.all():
            cursor = b"0"
            while True:
                command = (b"SCAN", cursor, b"MATCH", self.keyspace.pattern(), b"COUNT", SCANNED)
                cursor, found = (await node.reader.call(command)).values[0]
                names |= {self.keyspace.name_of(bytes(key)): "" for key in found}
                if cursor == b"0":
                    break
        return names


def _head(log_id: str, found: Sequence[Any]) -> Head | None:
    match found:
        case [b"sound", now, end, floor, *_]:
            return Head(bytes(now).decode(), int(end), floor=int(floor))
        case [b"rewound", end]:
            return Head(log_id, int(end), rewound=True)
        case [b"damaged", reason, _, *now]:
            return Head(bytes(now[0]).decode() if now else log_id, 0, bytes(reason).decode())
        case [b"missing", now] if now is not None:  # another one that has the name by now
            return Head(bytes(now).decode(), 0)
    return None
