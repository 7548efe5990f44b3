"""Who tells other processes that a log grew, and who listens.

append ──> pipeline: events, XADD news ──> XREAD BLOCK in every other process ──> its bell
                                       └─> each SWEEP_S, and after every reconnection: a look at every log's end

There is one stream of news, whatever the number of logs. (Blocking on the streams of all logs themselves sends every name and
registers every wait anew for each wake-up: with 1,000 logs 1.2 ms of this process' CPU time and 1.3 ms of Redis', with one stream
0.3 ms each.) Its messages are names, a hint to look; the position of whoever listens is kept in his process. Where the news were
cut off between the event and its message, the look at all ends finds it.
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
"""How often every log's end is looked at, seconds: who was told of it by nobody learns of it then."""
BLOCK_S = 1.0
NEWS_KEPT = 1000
RETRY_S = 0.2
NOTHING = Head("", 0)


class _Opened(Protocol):
    """What is there once the store is open."""

    def __call__(self) -> RedisClient: ...


Look = Callable[[Mapping[str, str]], Awaitable[dict[str, Head]]]
"""name -> id of logs that were there -> every log that is there now."""


class NotificationStream:
    """See the module. asking: how the store is asked, once it is open.  look: at every log.  known: what the last look found."""

    def __init__(self, bell: Notifier, asking: _Opened, look: Look, *, key: bytes) -> None:
        self.known: dict[str, Head] = {}
        self._bell, self._asking, self._look, self._key = bell, asking, look, key
        self._origin = os.urandom(8).hex().encode()  # tells this process' own news from others'
        self._tasks: list[asyncio.Task[None]] = []
        self._telling: asyncio.Task[None] | None = None
        self._untold: set[str] = set()
        self._identities: dict[str, str] = {}  # place of a node -> identity then

    async def start(self) -> None:
        """From now on whatever changes rings."""
        self.known = await self._look({})
        self._tasks.append(asyncio.create_task(self._follow()))

    async def close(self) -> None:
        """Stop listening."""
        for task in (*self._tasks, self._telling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    # -- telling -----------------------------------------------------------------------------------------------------------

    def piggyback(self, topics: set[str]) -> list[Command]:
        """What goes along with a pipeline, behind its events: whose logs have (perhaps) grown."""
        return [self._message(topics)] if topics and not self._asking().nodes.is_cluster else []

    def publish(self, topic: str) -> None:
        """On a cluster the news live on another node than the log: they are told once it has grown."""
        self._untold.add(topic)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        while self._untold:
            topics, self._untold = self._untold, set()
            with contextlib.suppress(StorageError):  # the look at all ends finds it later
                await self._asking().execute(self._key, self._message(topics), writing=True, confirmed=False)

    def _message(self, topics: set[str]) -> Command:
        names = [part for name in topics for part in (b"n", name.encode())]
        return (b"XADD", self._key, b"MAXLEN", b"~", NEWS_KEPT, b"*", b"o", self._origin, *names)

    # -- listening ---------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """For as long as the store is open; whatever goes wrong, look at everything and listen again."""
        while True:
            try:
                await self._listen()
            except (Reconnected, Redirected, StorageError) as error:
                self._asking().nodes.mark_stale()
                logger.debug("news are interrupted", extra={"reason": str(error)})
            except Exception as error:
                throttled.error("news are interrupted in an unforeseen way", exc_info=error)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        node = await self._asking().nodes.node(self._key)
        kind = (await node.tail.call((b"TYPE", self._key))).values[0]
        if kind not in ("none", "stream", b"none", b"stream"):
            throttled.warning("another program has replaced the news, which hold nothing of worth: they are started again")
            await self._asking().execute(self._key, (b"UNLINK", self._key), writing=True, confirmed=False)
        newest, identity = await node.tail.call((b"XREVRANGE", self._key, b"+", b"-", b"COUNT", 1))
        last = newest[0][0][0] if newest[0] else b"0-0"
        while True:
            await self._reconcile()
            until = loop.time() + SWEEP_S
            while (left := until - loop.time()) > 0:
                block_s = min(BLOCK_S, left)
                command = (b"XREAD", b"COUNT", NEWS_KEPT, b"BLOCK", int(block_s * 1000) + 1, b"STREAMS", self._key, last)
                told = (await node.tail.call(command, identity=identity, patience_s=block_s)).values[0]
                for number, fields in told[0][1] if told else ():
                    last = number
                    if fields[1] != self._origin:
                        for name in fields[3::2]:
                            self._bell.publish(bytes(name).decode())

    async def _reconcile(self) -> None:
        """Ring for every log whose end is another one than at the last look; where a server is not the one of then, for all: also
        for those that are not there any more, which nobody else would ever tell of.
        """
        identities = {node.place: await node.look_again() for node in await self._asking().nodes.all()}
        before, is_same = self.known, self._identities in ({}, identities)
        heard = set(self._bell.heard)  # also what came and went since the last look
        self.known = await self._look({**dict.fromkeys(heard, ""), **{name: head.id for name, head in before.items()}})
        self._identities = identities
        for name in {*before, *self.known, *heard}:
            was, now = before.get(name, NOTHING), self.known.get(name, NOTHING)
            if was.changed(now) or now == NOTHING or not is_same:
                self._bell.publish(name, now.end if is_same and was.id == now.id and now.end > was.end else 0)
        self._bell.heard -= heard - self.known.keys()
