"""Every storage that the contract suites run over. A new one is one line in `STORAGES`: a folder -> how to open the store in it.

Opening twice, with `close` between, is a restart of the service: what was accepted is there again.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.storage.base import Storage
from service.storage.memory import MemoryStorage
from service.storage.redis.address import parse
from service.storage.redis.store import RedisStorage
from service.storage.sqlite.store import SqliteStorage
from tests.service import redis_server
from tools import processes

Opener = Callable[[], Storage]


def memory(folder: Path) -> Opener:
    """Lives as long as its test does."""
    kept = MemoryStorage()
    return lambda: kept


def sqlite(folder: Path) -> Opener:
    """A file in the folder."""
    return lambda: SqliteStorage(folder / "store.db")


def redis(folder: Path) -> Opener:
    """A key prefix in the server that tests share."""
    if processes.REDIS_BINARY is None:
        pytest.skip("there is no redis-server on this machine (apt-get install redis-server)")
    prefix, address = f"t{uuid.uuid4().hex[:12]}", parse(redis_server.shared().url)
    return lambda: RedisStorage(address, prefix=prefix)


STORAGES: dict[str, Callable[[Path], Opener]] = {"memory": memory, "redis": redis, "sqlite": sqlite}


def store_of(name: str, folder: Path) -> dict[str, Any]:
    """The settings of a service over one of `STORAGES`, and of every other replica or later start of it."""
    if name == "memory":
        return {"store": "memory://"}
    if name == "sqlite":
        return {"store": f"sqlite:///{folder}/store.db"}
    if processes.REDIS_BINARY is None:
        pytest.skip("there is no redis-server on this machine (apt-get install redis-server)")
    prefix = f"t{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    return {"store": redis_server.shared().url, "redis_prefix": prefix}


@asynccontextmanager
async def started(opener: Opener) -> AsyncIterator[Storage]:
    """The store, open for a while."""
    storage = opener()
    await storage.start()
    try:
        yield storage
    finally:
        await storage.close()
