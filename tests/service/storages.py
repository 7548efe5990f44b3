"""Every storage that the contract suites run over. A new one is one line in `STORAGES`: a folder -> how to open the store in it.

Opening twice, with `close` between, is a restart of the service: what was accepted is there again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from service.storage.base import Storage
from service.storage.memory import MemoryStorage
from service.storage.sqlite import SqliteStorage

Opener = Callable[[], Storage]


def memory(folder: Path) -> Opener:
    """Lives as long as its test does."""
    kept = MemoryStorage()
    return lambda: kept


def sqlite(folder: Path) -> Opener:
    """A file in the folder."""
    return lambda: SqliteStorage(folder / "store.db")


STORAGES: dict[str, Callable[[Path], Opener]] = {"memory": memory, "sqlite": sqlite}


@asynccontextmanager
async def started(opener: Opener) -> AsyncIterator[Storage]:
    """The store, open for a while."""
    storage = opener()
    await storage.start()
    try:
        yield storage
    finally:
        await storage.close()
