"""The queue in front of the embedders: every distinct content is embedded once, and contents that wait share a forward pass.

    embed(name, text) --> cache? --> already waiting or running? --> waiting lane --up to 32--> worker thread --> cache
                            |                |                          | full                    (one per embedder,
                            v                v                          v                          loads at first use)
                         answer      wait for that one              QueueFull

Natural batching: a free worker takes what waits at the end of the current turn of the event loop, and never waits for more, so a
lonely content is not delayed. Everything but hashing and reading images and the forward pass runs in the event loop, which is
why there is no lock. Contents are kept only while they wait: the cache has their sha256 alone, and neither
logs nor failures repeat them. `name` is an identity of the registry: requests for the same model share its lane and its cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from service.embedders import registry
from service.embedders.base import Content, EmbedderError, InvalidContent, Keep, QueueClosed, QueueFull, Spec, Vector
from service.embedders.worker import Done, Worker

log = logging.getLogger(__name__)

HASHED_APART = 2**20
"""Bytes; the sha256 of more is made in another thread: at worst 3 ms per megabyte."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counters of one embedder since the start.

    cached: contents answered from the cache.  shared: contents that joined one that waited or ran.  cut, unknown: texts read in
    part, and with words that it does not know; the cache answers without counting again.  passes: turns of the worker.
    embedded: contents in them.  texts: of these, the texts.  refused: requests that found the queue full.  waiting: now.
    """

    cached: int
    shared: int
    passes: int
    embedded: int
    refused: int
    waiting: int
    cut: int = 0
    unknown: int = 0
    texts: int = 0


@dataclass(eq=False, slots=True)
class _Pending:
    """A content that waits or is being embedded. waiters: requests that want it; with none left it leaves the lane."""

    content: Content
    vector: asyncio.Future[Vector]
    keep: Keep
    waiters: int = 0


@dataclass(eq=False, kw_only=True)
class _EmbedderLane:
    """The contents waiting for one embedder, or in its forward pass; its thread touches nothing here."""

    worker: Worker
    thread: ThreadPoolExecutor
    waiting: dict[bytes, _Pending] = field(default_factory=dict)
    running: dict[bytes, _Pending] = field(default_factory=dict)
    warmup_waiters: list[asyncio.Future[str]] = field(default_factory=list)
    is_scheduled: bool = False
    job: asyncio.Future[Done] | None = None
    seconds_each: float = 0.0
    cached: int = 0
    shared: int = 0
    passes: int = 0
    embedded: int = 0
    refused: int = 0
    cut: int = 0
    unknown: int = 0
    texts: int = 0


class EmbeddingQueue:
    """Embeds texts and images without blocking the event loop. Belongs to one event loop; all methods are called from it.

    find:          identity -> what is known of the embedder; raises `UnknownEmbedder`. Called once per identity.
    cache_entries: vectors kept, the least recently used goes first (384 numbers are 1.5 KiB). 0 = none.
    waiting_limit: contents that may wait per embedder; the default holds the largest batch of decisions. A request that finds
                   the lane empty is never refused, however many it brings: it could not succeed later either.
    waiting_bytes: the same in bytes: a thousand pictures of ten megabytes are too much to keep.
    batch:         contents per forward pass.
    """

    def __init__(
        self,
        *,
        find: Callable[[str], Spec] = registry.spec,
        cache_entries: int = 16_384,
        waiting_limit: int = 1_024,
        waiting_bytes: int = 256 * 2**20,
        batch: int = 32,
    ) -> None:
        if cache_entries < 0 or min(waiting_limit, waiting_bytes, batch) < 1:
            raise ValueError("cache_entries must be at least 0, waiting_limit, waiting_bytes and batch at least 1")
        self._find = find
        self._cache_entries = cache_entries
        self._waiting_limit = waiting_limit
        self._waiting_bytes = waiting_bytes
        self._batch = batch
        self._cache: OrderedDict[bytes, Vector] = OrderedDict()
        self._lanes: dict[str, _EmbedderLane] = {}
        self._closed = False

    async def embed(self, name: str, content: Content) -> Vector:
        """(dim,) the vector of one text or image file; the caller's own copy.

        Raises `UnknownEmbedder`, `InvalidContent`, `EmbedderUnavailable`, `EmbeddingFailed`, `QueueFull`, `QueueClosed`.
        """
        return (await self._vectors(name, [content]))[0].copy()

    async def embed_many(self, name: str, contents: Sequence[Content], *, keep: Keep = "start") -> Vector:
        """(n, dim) one row per content, in order. keep: what is read of longer texts. Raises as `embed`, `InvalidContent` with
        the position of the first that is. Either every content is admitted, or none is.
        """
        vectors = await self._vectors(name, contents, keep=keep)
        return np.stack(vectors) if vectors else np.empty((0, self._lane(name).worker.spec.dim or 0), dtype=np.float32)

    async def warm(self, name: str) -> str:
        """Load the embedder ahead of its first content; the answer is its version. Raises as `embed`."""
        lane = self._lane(name)
        version: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        lane.warmup_waiters.append(version)
        self._wake(lane)
        return await version

    def prefetch(self, name: str) -> None:
        """Begin to load the embedder and do not wait for it; a failure is logged, and met again by the first content. Raises
        `UnknownEmbedder`, and `EmbedderUnavailable` where that is known without loading.
        """
        lane = self._lane(name)
        version: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        version.add_done_callback(_consume_exception)
        lane.warmup_waiters.append(version)
        self._wake(lane)

    def warming(self) -> list[str]:
        """The embedders that are being loaded now."""
        return sorted(name for name, lane in self._lanes.items() if lane.warmup_waiters)

    def counts(self) -> dict[str, Counts]:
        """Per embedder that was used."""
        return {
            name: Counts(
                cached=lane.cached,
                shared=lane.shared,
                passes=lane.passes,
                embedded=lane.embedded,
                refused=lane.refused,
                waiting=len(lane.waiting),
                cut=lane.cut,
                unknown=lane.unknown,
                texts=lane.texts,
            )
            for name, lane in self._lanes.items()
        }

    def close(self) -> None:
        """Fail what waits with `QueueClosed`, at once. A forward pass that runs cannot be stopped; its thread ends with it."""
        self._closed = True
        for lane in self._lanes.values():
            lane.thread.shutdown(wait=False)
            _fail([pending.vector for pending in (*lane.running.values(), *lane.waiting.values())], QueueClosed())
            _fail(lane.warmup_waiters, QueueClosed())
            lane.running, lane.waiting, lane.warmup_waiters = {}, {}, []

    # -- one request ---------------------------------------------------------------------------------------------------------

    async def _vectors(self, name: str, contents: Sequence[Content], *, keep: Keep = "start") -> list[Vector]:
        """The cache's own arrays, one per content."""
        lane = self._lane(name)
        keys = await _keys(lane.worker.spec, contents, keep)
        found: dict[bytes, Vector] = {}
        absent: dict[bytes, Content] = {}
        for key, content in zip(keys, contents, strict=True):
            vector = self._cached(key)
            if vector is None:
                absent[key] = content
            else:
                found[key] = vector
        lane.cached += sum(key in found for key in keys)
        if absent:
            joined = self._join(lane, absent, keep)
            try:
                await asyncio.wait([pending.vector for pending in joined.values()], return_when=asyncio.FIRST_EXCEPTION)
            finally:
                _release_waiters(lane, joined)
            found |= _results(joined, keys)
        return [found[key] for key in keys]

    def _join(self, lane: _EmbedderLane, contents: Mapping[bytes, Content], keep: Keep) -> dict[bytes, _Pending]:
        """Enqueue these contents, sharing those that other requests wait for already."""
        if self._closed:  # meanwhile: hashing may have taken a while
            raise QueueClosed
        new = [key for key in contents if key not in lane.running and key not in lane.waiting]
        if new and lane.waiting and self._is_full(lane, [contents[key] for key in new]):
            lane.refused += 1
            seconds = max(1, math.ceil(len(lane.waiting) * lane.seconds_each))
            raise QueueFull(lane.worker.spec.name, waiting=len(lane.waiting), retry_after_s=seconds)
        loop = asyncio.get_running_loop()
        for key in new:
            vector: asyncio.Future[Vector] = loop.create_future()
            vector.add_done_callback(_consume_exception)
            lane.waiting[key] = _Pending(contents[key], vector, keep)
        lane.shared += len(contents) - len(new)
        joined = {key: lane.running.get(key) or lane.waiting[key] for key in contents}
        for pending in joined.values():
            pending.waiters += 1
        self._wake(lane)
        return joined

    def _is_full(self, lane: _EmbedderLane, more: list[Content]) -> bool:
        if len(lane.waiting) + len(more) > self._waiting_limit:
            return True
        waiting = (pending.content for pending in lane.waiting.values())
        return sum(map(len, (*waiting, *more))) > self._waiting_bytes

    def _lane(self, name: str) -> _EmbedderLane:
        if self._closed:
            raise QueueClosed
        if name not in self._lanes:
            known = self._find(name)
            if not (known.takes_text or known.takes_images):
                raise InvalidContent(f'the embedder {name!r} reads no text; send {{"vector": [...]}}')
            thread = ThreadPoolExecutor(1, thread_name_prefix=f"embed-{name}")
            self._lanes[name] = _EmbedderLane(worker=Worker(known), thread=thread)
        return self._lanes[name]

    # -- one forward pass ----------------------------------------------------------------------------------------------------

    def _wake(self, lane: _EmbedderLane) -> None:
        """Start the worker at the end of this iteration of the event loop: requests of the same iteration share the pass."""
        if not lane.is_scheduled and lane.job is None:
            lane.is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start, lane)

    def _start(self, lane: _EmbedderLane) -> None:
        lane.is_scheduled = False
        if not (lane.waiting or lane.warmup_waiters):  # the requests were cancelled, or the queue was closed
            return
        lane.running = dict(islice(lane.waiting.items(), self._batch))
        for key in lane.running:
            del lane.waiting[key]
        contents = [pending.content for pending in lane.running.values()]
        keeps = [pending.keep for pending in lane.running.values()]
        lane.job = asyncio.get_running_loop().run_in_executor(lane.thread, lane.worker.run, contents, keeps)
        lane.job.add_done_callback(partial(self._finish, lane))

    def _finish(self, lane: _EmbedderLane, job: asyncio.Future[Done]) -> None:
        done, ran, lane.running, lane.job = job.result(), lane.running, {}, None
        if isinstance(done.rows, EmbedderError):
            log.warning("a batch of %d contents failed: %s", len(ran), done.rows)
            _fail([pending.vector for pending in ran.values()], done.rows)
        elif ran:
            lane.passes += 1
            lane.embedded += len(ran)
            lane.texts += sum(isinstance(pending.content, str) for pending in ran.values())
            lane.seconds_each = done.seconds / len(ran)
            lane.cut, lane.unknown = done.cut, done.unknown
            for (key, pending), row in zip(ran.items(), done.rows, strict=True):
                if isinstance(row, EmbedderError):
                    _fail([pending.vector], row)
                    continue
                vector = row.copy()  # a view would keep the whole batch in memory
                self._cache_vector(key, vector)
                pending.vector.set_result(vector)
        self._finish_warmup(lane, done)
        self._start(lane)

    def _finish_warmup(self, lane: _EmbedderLane, done: Done) -> None:
        warming, lane.warmup_waiters = lane.warmup_waiters, []
        if done.version is not None:  # "" is that of an embedder without weights
            for version in warming:
                if not version.done():
                    version.set_result(done.version)
        elif isinstance(done.rows, EmbedderError):
            _fail(warming, done.rows)

    # -- the cache -----------------------------------------------------------------------------------------------------------

    def _cached(self, key: bytes) -> Vector | None:
        vector = self._cache.get(key)
        if vector is not None:
            self._cache.move_to_end(key)
        return vector

    def _cache_vector(self, key: bytes, vector: Vector) -> None:
        self._cache[key] = vector
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


async def _keys(spec: Spec, contents: Sequence[Content], keep: Keep) -> list[bytes]:
    if sum(map(len, contents)) > HASHED_APART:
        return await asyncio.to_thread(lambda: [_key(spec, content, keep, position=i) for i, content in enumerate(contents)])
    return [_key(spec, content, keep, position=i) for i, content in enumerate(contents)]


def _key(spec: Spec, content: Content, keep: Keep, *, position: int) -> bytes:
    """sha256 of embedder, kind, what is kept, and content; refuses what this embedder does not take."""
    if isinstance(content, bytes):
        if not spec.takes_images:
            raise InvalidContent(f"the embedder {spec.name!r} takes no images", position=position)
        return hashlib.sha256(spec.name.encode() + b"\0image\0" + content).digest()
    if not spec.takes_text:
        raise InvalidContent(f"the embedder {spec.name!r} takes images, not text", position=position)
    try:
        encoded = content.encode()
    except UnicodeEncodeError:
        encoded = None  # raised below: this error holds the text, and would be the cause of ours
    if encoded is None:
        raise InvalidContent("the text holds half a character (a lone surrogate), which is not Unicode", position=position)
    return hashlib.sha256(f"{spec.name}\0text {keep}\0".encode() + encoded).digest()


def _release_waiters(lane: _EmbedderLane, joined: Mapping[bytes, _Pending]) -> None:
    """End the wait of one request; contents that no other request wants leave the lane."""
    for key, pending in joined.items():
        pending.waiters -= 1
        if not pending.waiters and lane.waiting.get(key) is pending:
            del lane.waiting[key]


def _results(joined: Mapping[bytes, _Pending], keys: Sequence[bytes]) -> dict[bytes, Vector]:
    """The vectors, or the failure of the first content that has one."""
    for key, pending in joined.items():
        failure = pending.vector.exception() if pending.vector.done() else None
        if isinstance(failure, InvalidContent):  # shared by requests that posted the same content at other positions
            raise InvalidContent(str(failure), position=keys.index(key))
        if failure is not None:
            raise failure
    return {key: pending.vector.result() for key, pending in joined.items()}


def _consume_exception(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio does not report it when every waiter was cancelled."""
    if not future.cancelled():
        future.exception()


def _fail(futures: Iterable[asyncio.Future[Vector]] | Iterable[asyncio.Future[str]], failure: EmbedderError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(failure)
