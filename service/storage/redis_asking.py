"""How keys are named, and how the node that serves one is asked, wherever it is by now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from service.storage.base import StorageDamaged, StorageUnavailable
from service.storage.redis_link import Answer, Command, Link, Reconnected, Redirected
from service.storage.redis_nodes import Node, Nodes

ATTEMPTS = 8


@dataclass(frozen=True)
class LogKeys:
    """The keys of one log. They share a hash tag, so that one node of a cluster has them all."""

    head: bytes
    log: bytes
    keys: bytes
    snapshots: bytes
    alive: bytes


class Keyspace:
    """Every key of one service."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.names = self.prefix + b":logs"
        self.news = self.prefix + b":news"

    def of(self, name: str) -> LogKeys:
        """Those of the log that has a name."""
        stem = self.prefix + b":{" + name.encode() + b"}:"
        return LogKeys(stem + b"head", stem + b"log", stem + b"keys", stem + b"snapshots", stem + b"alive")


class Asking:
    """See the module. told: of every topic whose log is on another node than the news."""

    def __init__(self, nodes: Nodes, keyspace: Keyspace, told: Callable[[str], None]) -> None:
        self.nodes = nodes
        self.keyspace = keyspace
        self._told = told

    async def ask(
        self,
        key: bytes,
        *commands: Command,
        writing: bool = False,
        confirmed: bool = True,
        compare: Callable[[Link], Awaitable[str]] | None = None,
        topic: str = "",
        patience_s: float = 0.0,
    ) -> Answer:
        """What the node that serves a key answers.

        writing: by the connection for events; confirmed: then, when enough replicas have it.  compare: the identity that the
        connection must have.  topic, patience_s: see `Link.call`.
        """
        nodes, asking = self.nodes, None
        for _ in range(ATTEMPTS):
            try:
                node = nodes.at(asking) if asking else await nodes.node(key)
                link = node.writer if writing else node.reader
                # A key on its way between two nodes is asked for where it is, and compared once it has arrived.
                identity = "" if compare is None or asking else await compare(link)
                sent = [part for command in commands for part in ((b"ASKING",), command)] if asking else commands
                answer = await link.call(
                    *sent, identity=identity, confirmed=writing and confirmed, topic=topic, patience_s=patience_s
                )
                if topic and nodes.is_cluster:
                    self._told(topic)
                return Answer(answer.values[1::2], answer.identity) if asking else answer
            except Reconnected:
                continue
            except Redirected as error:
                asking = error.endpoint if error.asking else None
                await nodes.moved(error)
            except StorageUnavailable:
                nodes.doubt()
                raise
        raise StorageUnavailable("the cluster keeps sending its callers elsewhere")

    async def heads(self) -> dict[str, tuple[str, int]]:
        """Name -> (id, end) of every log that exists."""
        flat = (await self.ask(self.keyspace.names, (b"HGETALL", self.keyspace.names))).values[0]
        names = {bytes(name).decode(): bytes(log_id).decode() for name, log_id in zip(flat[::2], flat[1::2], strict=True)}
        by_node: dict[Node, list[str]] = {}
        for name in names:
            by_node.setdefault(await self.nodes.node(self.keyspace.of(name).head), []).append(name)
        heads: dict[str, tuple[str, int]] = {}
        for node, those in by_node.items():
            answer = await node.reader.call(*(self._head(name) for name in those), raising=False)
            for name, found in zip(those, answer.values, strict=True):
                log_id, end = await self._head_alone(name, names[name]) if isinstance(found, Exception) else found
                if log_id is not None:
                    heads[name] = (bytes(log_id).decode(), int(end or 0))
        return heads

    def _head(self, name: str) -> Command:
        return (b"HMGET", self.keyspace.of(name).head, b"id", b"end")

    async def _head_alone(self, name: str, registered: str) -> list[Any]:
        """Where it was not found with the others: it has moved to another node, or it is damaged, which harms no other log."""
        try:
            found: list[Any] = (await self.ask(self.keyspace.of(name).head, self._head(name))).values[0]
        except StorageDamaged:
            return [registered.encode(), b"0"]
        return found
