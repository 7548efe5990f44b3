"""What bandits cost that nothing asks for: memory of a process with many of which few are asked, and the first request for one.

    .venv/bin/python -m bench.performance.many_bandits [--bandits 2000] [--asked 50] [--quick] [--write]

Two stores are made, in SQLite: one with all of the bandits (pak-ucb, 256 features, ten arms), one with a fifth more than are
asked, all of them asked. Those that are asked have learned from 20 decisions and have left memory with a snapshot; of the
others there is the creation and the place in the index. A process for each store loads what is asked, in the first store, or
all of it, in the second; what it takes is resident memory less that of a process with no bandit. `behind`: events of the log
that no snapshot holds. Times are CPU time of the process, with its threads, from the request to the bandit: medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import torch
from rich.console import Console
from uuid_utils.compat import uuid7

from bench import pages
from bench.performance.shadows import created_of
from service.engine import events
from service.engine.decisions import DecisionRequest
from service.engine.events import Created
from service.engine.learner import Learner
from service.engine.memory import release_memory
from service.engine.outcomes import OutcomeReport
from service.engine.places import Place, PlaceIndex
from service.engine.repository import BanditRepository
from service.settings import Settings
from service.storage.base import Log, Storage

DIM = 384
DECISIONS = 20
BEHIND = 400
"""Events behind the snapshot of some bandits, half of them decisions."""
BEHIND_BANDITS = 5
COLUMNS = ("what", "value", "target")


def settings_of(store: Path) -> Settings:
    return Settings(store=f"sqlite:///{store}", durability="process", sweep_s=1000.0)


def resident_bytes() -> int:
    release_memory()
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


async def apart(work: Coroutine[Any, Any, Any]) -> Any:
    """A request: what it asks for is in use until its task ends."""
    result = await asyncio.create_task(work)
    await asyncio.sleep(0)
    return result


@contextlib.asynccontextmanager
async def hosted(store: Path) -> AsyncIterator[BanditRepository]:
    hosting = BanditRepository((settings := settings_of(store)).open_storage(), settings)
    await hosting.start()
    try:
        yield hosting
    finally:
        await hosting.close()


def name_of(number: int) -> str:
    return f"bandit-{number:05}"


async def serve(learner: Learner, decisions: int, *, first: int = 0) -> None:
    """Decide and learn; ids and digests of bodies are as long, and as random, as those of requests."""
    g = np.random.default_rng(first)
    for _ in range(decisions):
        vector = g.standard_normal(learner.created.dim).astype(np.float32)
        features = events.vector_bytes(vector / np.linalg.norm(vector))
        decision, body = str(UUID(bytes=g.bytes(16))), g.bytes(32).hex()
        await learner.decisions.submit(DecisionRequest(id=decision, features=features, body=body))
        await learner.outcomes.submit(decision, OutcomeReport(reward=float(g.random()), body=body))


async def make(store: Path, *, bandits: int, asked: int, created: Created) -> None:
    """A store of so many bandits, none in memory."""
    storage = settings_of(store).open_storage()
    await storage.start()
    index = PlaceIndex(storage)

    async def add(number: int) -> None:
        name = name_of(number)
        event = events.encode(_renamed(created, name))
        log, _ = await storage.create(Log(str(uuid7()), name), event)
        await index.write(log, Place(name=name, offset=1, due=None))

    await asyncio.gather(*(add(number) for number in range(bandits)))
    await storage.close()
    async with hosted(store) as hosting:
        for number in range(asked):
            learner = await apart(hosting.get("", name_of(number)))
            await apart(serve(learner, DECISIONS))
            await learner.projection.background.finish()
            assert await hosting._unload(learner)
        if bandits > asked:
            await _leave_behind(hosting.storage, [name_of(number) for number in range(BEHIND_BANDITS)])


async def _leave_behind(storage: Storage, names: list[str]) -> None:
    """Events that no snapshot holds, as after the end of a process."""
    for name in names:
        log = await storage.find_log(name)
        assert log is not None
        learner = await Learner.load(storage, log)
        await serve(learner, BEHIND // 2, first=DECISIONS)
        await learner.projection.background.finish()


def _renamed(created: Created, name: str) -> Created:
    return msgspec.structs.replace(created, bandit=name)


async def measure(store: Path, *, asked: int) -> dict[str, Any]:
    """Of a process that is asked for so many bandits: bytes, and CPU seconds of each first request."""
    torch.set_num_threads(1)
    before = resident_bytes()
    async with hosted(store) as hosting:
        hosting._wanted.clear()  # what the start has found would be loaded in the background, and be no first request
        while hosting._loading:
            await asyncio.wait(hosting._loading.values())
        for learner in list(hosting._learners.values()):
            assert await hosting._unload(learner)
        took = []
        for number in range(asked):
            began = time.process_time()
            await apart(hosting.get("", name_of(number)))
            took.append(time.process_time() - began)
        return {"bytes": resident_bytes() - before, "took": took, "loaded": len(hosting._learners)}


def measured(store: Path, asked: int) -> dict[str, Any]:
    """`measure` in another process."""
    command = [sys.executable, "-m", "bench.performance.many_bandits", "--measure", str(store), "--asked", str(asked)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def rows_of(many: dict[str, Any], few: dict[str, Any], *, bandits: int, asked: int) -> list[tuple[str, ...]]:
    """The table."""
    behind, plain = median(many["took"][:BEHIND_BANDITS]), median(many["took"][BEHIND_BANDITS:])
    all_loaded = len(few["took"])
    return [
        (
            f"memory, {bandits:,} bandits of which {asked} are asked",
            f"{many['bytes'] / 1e6:.0f} MB",
            f"{few['bytes'] / 1e6:.0f} MB",
        ),
        (f"memory, {all_loaded} bandits, all loaded", f"{few['bytes'] / 1e6:.0f} MB", ""),
        ("first request, nothing behind its snapshot", f"{1e3 * plain:.0f} ms", "100 ms"),
        (f"first request, {BEHIND} events behind it", f"{1e3 * behind:.0f} ms", f"{100 + 0.2 * BEHIND:.0f} ms"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandits", type=int, default=2_000)
    parser.add_argument("--asked", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="200 bandits of which 10 are asked")
    parser.add_argument("--write", action="store_true", help="bring docs/performance.md up to date")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(asyncio.run(measure(chosen.measure, asked=chosen.asked))))
        return
    bandits, asked = (200, 10) if chosen.quick else (chosen.bandits, chosen.asked)
    created = created_of("pak-ucb", dim=DIM)
    with tempfile.TemporaryDirectory() as folder:
        stores = Path(folder) / "many.db", Path(folder) / "few.db"
        asyncio.run(make(stores[0], bandits=bandits, asked=asked, created=created))
        asyncio.run(make(stores[1], bandits=asked * 6 // 5, asked=asked * 6 // 5, created=created))
        many, few = measured(stores[0], asked), measured(stores[1], asked * 6 // 5)
    rows = rows_of(many, few, bandits=bandits, asked=asked)
    pages.show("Bandits out of memory", COLUMNS, rows, Console())
    if chosen.write:
        pages.write({"many bandits": pages.markdown(COLUMNS, rows, right=COLUMNS[1:])})


if __name__ == "__main__":
    main()
