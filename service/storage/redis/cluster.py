"""The topology behind an address: one server, the primary that sentinels name, or the primaries of a cluster.

node(key) ──> Node: writer (accepts), reader (everything else), tail (waits for news), three connections of this process

All keys of one log hash to one slot, so that a log lives on one node, wherever it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisError

from service.storage.base import StorageUnavailableError
from service.storage.redis.address import Address, Endpoint, shown
from service.storage.redis.connection import Command, PipelinedConnection, Redirected, Script, exchange, parse_info
from service.storage.redis.server_checks import IDENTIFIED, QUESTIONS, Expected, evaluate, probe

SLOTS = 16384
REFRESH_S = 0.1
"""The map of a cluster is asked for at most this often."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every connection. on_notices: called with a node's place and the notices about its set-up, on every probe."""

    scripts: Sequence[Script]
    timeout_s: float
    confirmations: int
    durable: bool
    piggyback: Callable[[set[str]], list[Command]]
    on_notices: Callable[[str, list[str]], None]


class Node:
    """One server. Its connections open when they are used."""

    def __init__(self, place: str, address: Address, connect: Callable[[], Awaitable[Any]], options: Options) -> None:
        self.place = place
        self._options = options
        self._expected = Expected(
            place=place,
            cluster=address.kind == "cluster",
            durable=options.durable,
            confirmations=options.confirmations,
        )
        link = partial(
            PipelinedConnection,
            place=place,
            connect=connect,
            handshake=self._handshake,
            scripts=options.scripts,
            timeout_s=options.timeout_s,
            redacted=address.redacted,
        )
        self.writer = link(confirmations=options.confirmations, piggyback=options.piggyback)
        self.reader = link()
        self.tail = link(scripts=())
        self.links = (self.writer, self.reader, self.tail)

    async def _handshake(self, connection: Any) -> str:
        identity, notices = await probe(connection, self._expected)
        self._options.on_notices(self.place, notices)
        return identity

    async def recheck(self) -> str:
        """The identity of the server, and its set-up as it is by now: what is refused at the start is refused at any time."""
        answer = await self.reader.call(*QUESTIONS, raising=False)
        try:
            identity, notices = evaluate(answer.values, self._expected)
            if parse_info(answer.values[0]).keys() >= IDENTIFIED and identity != answer.identity:
                raise StorageUnavailableError(f"{self.place} has changed its history")
        except Exception:
            await self.disconnect()  # it changed under the connection; the next call looks at what it is now
            raise
        self._options.on_notices(self.place, notices)
        return answer.identity

    async def disconnect(self) -> None:
        """Drop the connections; the next call connects and probes the server again."""
        for link in self.links:
            await link.disconnect()

    async def close(self) -> None:
        """Finish what waits, then close."""
        await self.tail.disconnect()  # it may be waiting for news
        await asyncio.gather(*(link.close() for link in self.links))


class Topology:
    """The nodes of an address, and which of them serves a key."""

    def __init__(self, address: Address, options: Options) -> None:
        self._address, self._options = address, options
        self._nodes: dict[str, Node] = {}
        self._slots: list[Endpoint | None] = [None] * SLOTS
        self._sentinels = list(address.endpoints)  # the one that answered last comes first
        self._stale = True
        self._refreshing = asyncio.Lock()
        self._refreshed_at = float("-inf")

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on several nodes."""
        return self._address.kind == "cluster"

    async def node(self, key: bytes) -> Node:
        """The one that serves a key."""
        if not self.is_cluster:
            return self._single_node()
        slot = key_slot(key)
        if self._stale or self._slots[slot] is None:
            await self._refresh()
        endpoint = self._slots[slot]
        if endpoint is None:
            raise StorageUnavailableError(f"{self._address}: no node serves slot {slot}")
        return self.at(endpoint)

    def at(self, endpoint: Endpoint) -> Node:
        """The node of a cluster at an endpoint."""
        place = f"Redis ({shown(endpoint)})"
        if place not in self._nodes:
            self._nodes[place] = Node(place, self._address, lambda: self._connect(endpoint), self._options)
        return self._nodes[place]

    async def all(self) -> list[Node]:
        """Every node that serves slots."""
        if not self.is_cluster:
            return [self._single_node()]
        if self._stale:
            await self._refresh()
        return [self.at(endpoint) for endpoint in dict.fromkeys(self._slots) if endpoint is not None]

    def key_on(self, node: Node, prefix: bytes) -> bytes:
        """A key that the node serves, for finding out whether it can be written."""
        for number in count():
            key = b"%s:{%d}:alive" % (prefix, number)
            endpoint = self._slots[key_slot(key)]
            if endpoint is None or self.at(endpoint) is node:
                return key
        raise AssertionError

    def mark_stale(self) -> None:
        """A node failed, or a key has moved: ask where everything is."""
        self._stale = True

    async def close(self) -> None:
        """Finish what waits, then close."""
        await asyncio.gather(*(node.close() for node in self._nodes.values()))

    def _single_node(self) -> Node:
        place = str(self._address)
        if place not in self._nodes:
            self._nodes[place] = Node(place, self._address, self._connect_single, self._options)
        return self._nodes[place]

    # -- connections -------------------------------------------------------------------------------------------------------

    async def _connect(self, endpoint: Endpoint) -> Any:
        connection = self._address.connection(endpoint, timeout_s=self._options.timeout_s)
        await connection.connect()
        return connection

    async def _connect_single(self) -> Any:
        if self._address.kind != "sentinel":
            return await self._connect(self._address.endpoints[0] if self._address.endpoints else ("", 0))
        return await self._connect(await self._primary())

    async def _primary(self) -> Endpoint:
        """Ask the sentinels for the primary; the first answer counts. (A stale sentinel names a replica, which is refused.)"""
        for endpoint in list(self._sentinels):
            question = (b"SENTINEL", b"get-master-addr-by-name", self._address.service.encode())
            for found in await self._ask(self._address.sentinel, [endpoint], question):
                if isinstance(found, list) and len(found) == 2:
                    return bytes(found[0]).decode(), int(found[1])
            self._sentinels.remove(endpoint)
            self._sentinels.append(endpoint)
        raise StorageUnavailableError(f"{self._address}: no sentinel names a primary of {self._address.service!r}")

    async def _ask(self, connect: Callable[..., Any], endpoints: Iterable[Endpoint], question: Command) -> list[Any]:
        """The answer of the first that gives one, in a list."""
        for endpoint in endpoints:
            connection = connect(endpoint, timeout_s=self._options.timeout_s)
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._options.timeout_s / 2):
                    try:
                        await connection.connect()
                        (answer,) = await exchange(connection, question)
                    finally:
                        await connection.disconnect(nowait=True)
                if not isinstance(answer, Exception):
                    return [answer]
        return []

    async def _refresh(self) -> None:
        async with self._refreshing:
            now = asyncio.get_running_loop().time()
            if now - self._refreshed_at < REFRESH_S:
                return
            self._refreshed_at = now
            known = [endpoint for endpoint in dict.fromkeys(self._slots) if endpoint is not None]
            endpoints = list(dict.fromkeys([*known, *self._address.endpoints]))
            for endpoint in endpoints:
                for ranges in await self._ask(self._address.connection, [endpoint], (b"CLUSTER", b"SLOTS")):
                    self._assign_slots(ranges, endpoint)
                    self._stale = False
                    return
        raise StorageUnavailableError(f"{self._address}: none of its nodes answers")

    def _assign_slots(self, ranges: list[Any], source: Endpoint) -> None:
        self._slots = [None] * SLOTS
        for first, last, primary, *_ in ranges:
            host = bytes(primary[0] or b"").decode()
            endpoint = (source[0] if host in ("", "?") else host, int(primary[1]))
            self._slots[first : last + 1] = [endpoint] * (last + 1 - first)

    async def moved(self, redirected: Redirected) -> None:
        """Follow what a node of the cluster said; where it said "not now", wait a moment."""
        if redirected.endpoint is None:
            await asyncio.sleep(0.02)
        elif not redirected.asking:
            self._stale = True
            self._refreshed_at = float("-inf")
