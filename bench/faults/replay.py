"""`python -m bench.faults.replay STORE`: every log of a store, folded from its first event, without snapshots or a server.

One JSON line per bandit: name, offset, sha256, seconds, and seconds of CPU among them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import torch

from service.engine.learner import Learner
from service.settings import Settings
from service.storage.base import Storage
from service.storage.sqlite.store import SqliteStorage


async def replay(store: str) -> list[tuple[str, int, str, float, float]]:
    """(bandit, offset, sha256, seconds, CPU seconds) of every log."""
    torch.set_num_threads(1)  # as in the server: the same sums in the same order
    settings = Settings.load(store=store)
    storage: Storage = settings.open_storage()
    if settings.scheme == "sqlite":  # beside the process that serves it
        storage = SqliteStorage(settings.sqlite_path(), read_only=True)
    await storage.start()
    try:
        found = []
        for log in await storage.logs():
            began, used = time.perf_counter(), time.process_time()
            learner = await Learner.load(storage, log, use_snapshots=False, snapshot_every=0)
            seconds = time.perf_counter() - began, time.process_time() - used
            found.append((log.name, *learner.digest(), *seconds))
        return found
    finally:
        await storage.close()


if __name__ == "__main__":
    for line in asyncio.run(replay(sys.argv[1])):
        print(json.dumps(line))
