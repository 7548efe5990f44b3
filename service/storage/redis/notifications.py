"""Notifications between processes: a Redis stream that names the logs that changed.

append ──> pipeline: events, XADD news ──> XREAD BLOCK in every other process ──> its Notifier
                                       └─> each SWEEP_S, and after every reconnection: compare the end of every log

There is one stream, whatever the number of logs. (Blocking on the streams of all logs themselves sends every name and registers
every wait again for each wake-up: with 1,000 logs 1.2 ms of this process' CPU time and 1.3 ms of Redis', with one stream
0.3 ms each.) Its messages are names, hints to read the log; each process keeps its own position. If a process ends between an
event and its message, the comparison of all ends finds the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from service.storage.base import StorageError
from service.storage.notifier import Notifier
from service.storage.redis.client import Head, RedisClient
from service.storage.redis.connection import Command, Reconnected, Redirected
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.storage")
throttled = ThrottledLogger(logger)

SWEEP_S = 5.0
"""Seconds between two comparisons of all ends, which find changes whose message was lost."""
BLOCK_S = 1.0
GATHER_S = 0.02
"""How long messages gather after some were read, unless a request waits for one: each wake-up costs this process 0.3 ms."""
NEWS_KEPT = 1000
RETRY_S = 0.2
NOTHING = Head("", 0)


class _ConnectedClient(Protocol):
    """What is there once the store is open."""

    def __call__(self) -> RedisClient: ...


ScanHeads = Callable[[Mapping[str, str]], Awaitable[dict[str, Head]]]
"""name -> id of logs that were there -> every log that is there now."""


class NotificationStream:
    """Publishes the names of changed logs to other processes, and passes theirs on to the notifier.

    client: of the open store.  scan: the heads of all logs.  known: what the last scan found.
    """

    def __init__(self, notifier: Notifier, client: _ConnectedClient, scan: ScanHeads, *, key: bytes) -> None:
        self.known: dict[str, Head] = {}
        self._notifier, self._client, self._scan, self._key = notifier, client, scan, key
        self._origin = os.urandom(8).hex().encode()  # marks the messages of this process
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: asyncio.Task[None] | None = None
        self._unpublished: set[str] = set()
        self._identities: dict[str, str] = {}  # place of a node -> identity then

    async def start(self) -> None:
        """Begin to listen: every later change reaches the notifier."""
        self.known = await self._scan({})
        self._tasks.append(asyncio.create_task(self._follow()))

    async def close(self) -> None:
        """Stop listening."""
        for task in (*self._tasks, self._publishing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    # -- telling -----------------------------------------------------------------------------------------------------------

    def piggyback(self, topics: set[str]) -> list[Command]:
        """Extra commands for a pipeline, behind its events: one message with these topics. Its reply is discarded."""
        return [self._message(topics)] if topics and not self._client().nodes.is_cluster else []

    def publish(self, topic: str) -> None:
        """Send a message about a topic soon. For clusters, where the stream is on another node than the log."""
        self._unpublished.add(topic)
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.create_task(self._publish_pending())

    async def _publish_pending(self) -> None:
        while self._unpublished:
            topics, self._unpublished = self._unpublished, set()
            with contextlib.suppress(StorageError):  # the next `_reconcile` finds it
                await self._client().execute(self._key, self._message(topics), writing=True, confirmed=False)

    def _message(self, topics: set[str]) -> Command:
        names = [part for name in topics for part in (b"n", name.encode())]
        return (b"XADD", self._key, b"MAXLEN", b"~", NEWS_KEPT, b"*", b"o", self._origin, *names)

    # -- listening ---------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Listen for as long as the store is open; after any failure begin again, with a comparison of all ends."""
        while True:
            try:
                await self._listen()
            except (Reconnected, Redirected, StorageError) as error:
                self._client().nodes.mark_stale()
                logger.debug("news are interrupted", extra={"reason": str(error)})
            except Exception as error:
                throttled.error("news are interrupted in an unforeseen way", exc_info=error)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        node = await self._client().nodes.node(self._key)
        kind = (await node.tail.call((b"TYPE", self._key))).values[0]
        if kind not in ("none", "stream", b"none", b"stream"):
            throttled.warning("another program has replaced the news, which hold nothing of worth: they are started again")
            await self._client().execute(self._key, (b"UNLINK", self._key), writing=True, confirmed=False)
        newest, identity = await node.tail.call((b"XREVRANGE", self._key, b"+", b"-", b"COUNT", 1))
        last = newest[0][0][0] if newest[0] else b"0-0"
        while True:
            await self._reconcile()
            until = loop.time() + SWEEP_S
            while (left := until - loop.time()) > 0:
                block_s = min(BLOCK_S, left)
                command = (b"XREAD", b"COUNT", NEWS_KEPT, b"BLOCK", int(block_s * 1000) + 1, b"STREAMS", self._key, last)
                messages = (await node.tail.call(command, identity=identity, patience_s=block_s)).values[0]
                for number, fields in messages[0][1] if messages else ():
                    last = number
                    if fields[1] != self._origin:
                        for name in fields[3::2]:
                            self._notifier.publish(bytes(name).decode())
                if messages and not self._notifier.is_awaited:
                    await asyncio.sleep(GATHER_S)

    async def _reconcile(self) -> None:
        """Publish every log whose head differs from the last scan; if a server was replaced, publish all of them.

        Deleted logs are published too: no later message would name them. Names published since the last scan are scanned as
        well, since a log may have been created and deleted in between.
        """
        identities = {node.place: await node.recheck() for node in await self._client().nodes.all()}
        before, is_same = self.known, self._identities in ({}, identities)
        known_names = set(self._notifier.known_names)  # includes logs created and deleted since the last scan
        self.known = await self._scan({**dict.fromkeys(known_names, ""), **{name: head.id for name, head in before.items()}})
        self._identities = identities
        for name in {*before, *self.known, *known_names}:
            was, now = before.get(name, NOTHING), self.known.get(name, NOTHING)
            if was.changed(now) or now == NOTHING or not is_same:
                self._notifier.publish(name, now.end if is_same and was.id == now.id and now.end > was.end else 0)
        self._notifier.known_names -= known_names - self.known.keys()
