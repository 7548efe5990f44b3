"""What a deployment needs: measured costs of requests, bandits and events, and the sizes that follow from them.

    .venv/bin/python -m bench.performance.capacity [--quick] [--write]

    cpu       the service under wrk, 16 connections to each replica, decisions and outcomes in turn: on SQLite, on Redis, and
              with two replicas that are both asked for one bandit, and fold what the other one wrote
    memory    a process for each kind of bandit: what 12 more of them, 100 rounds learned by each, add to resident memory
    events    what rounds of one bandit add to an SQLite file, to Redis' `used_memory`, and to the archive
    unloaded  what bandits add to an SQLite file that only were created, and to a repository that does not load them, as estimated

`sized` and `hot_rate` compute the rest, without a measurement of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console
from uuid_utils.compat import uuid7

from bench import pages
from bench.performance.load_testing import machine
from bench.performance.load_testing.cases import Cases
from bench.performance.load_testing.measure import middles, rss_mb
from bench.performance.load_testing.pages import machine_text
from bench.performance.load_testing.rig import service, service_on_redis
from bench.performance.many_bandits import apart, hosted, make, name_of, resident_bytes, serve
from bench.performance.shadows import created_of
from service.engine import events
from service.engine.events import Created, NewArm
from service.engine.learner import Learner
from service.engine.memory import held_bytes
from service.engine.policies import build_for
from service.settings import Settings
from service.storage.archive import Archive
from service.storage.base import Log
from tools.processes import EVERYSEC, RedisServer

COMMAND = "python -m bench.performance.capacity --write"
BUSY = 0.5
"""Share of a core that is planned for: the rest is for peaks, and for a replica that is lost."""
ROOM_BYTES = 8e9
"""Loaded bandits per replica: its NEXTARM_MEMORY_BYTES."""
DAY_S = 86_400
RATES, BANDITS, SLOTS = (100, 1_000, 10_000), (10, 1_000, 100_000), (1, 2, 4)


class Kind(NamedTuple):
    """A kind of bandit. dim: of its prompts; 0 = none.  p: features, of pak-ucb."""

    policy: str
    dim: int
    arms: int
    p: int = 0

    def __str__(self) -> str:
        prompt = f"prompts of {self.dim}" if self.dim else "no prompt"
        return f"`{self.policy}`, {prompt}, {f'p = {self.p}, ' if self.p else ''}{self.arms} arms"

    def created(self, name: str) -> Created:
        """The first event of such a bandit."""
        given = {"random_features": self.p // 2} if self.p else {}
        created = msgspec.structs.replace(
            created_of(self.policy, dim=self.dim),
            bandit=name, arms=[NewArm(name=f"arm {k}") for k in range(self.arms)], hyperparameters=given,
        )  # fmt: skip
        return msgspec.structs.replace(created, fingerprint=build_for(created, self.policy, given).fingerprint)


PLAIN, HEAVY = Kind("thompson", 0, 10), Kind("pak-ucb", 384, 10, 256)
"""Those that are also put under load: the cases `rounds without prompts` and `rounds` of bench.performance.load."""
CASES = {PLAIN: "rounds without prompts", HEAVY: "rounds"}
KINDS = (PLAIN, Kind("auto", 0, 10), Kind("auto", 384, 10), Kind("pak-ucb", 384, 4, 64), Kind("pak-ucb", 384, 4, 256), HEAVY)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one kind of bandit. us of CPU per request: of a replica on Redis, of another one that folds its event, and of Redis.
    Bytes of a loaded bandit, of its snapshot, of an event in Redis and in the archive.
    A request, decision or outcome, is one event.
    """

    request_us: float
    fold_us: float
    redis_us: float
    bandit_bytes: float
    snapshot_bytes: float
    redis_bytes: float
    archive_bytes: float


class Size(NamedTuple):
    """What a deployment needs. slots: replicas that share one bandit.  replicas: without one to spare.  redis: servers, one core
    each.  bytes: of loaded bandits in each replica; of snapshots in Redis; of a day's events in Redis, and in the archive.
    """

    slots: int
    cores: float
    replicas: int
    bandit_bytes: float
    redis: int
    snapshot_bytes: float
    redis_bytes: float
    archive_bytes: float


def hot_rate(costs: Costs, slots: int) -> float:
    """Requests per second for one bandit that so many replicas carry, each of which folds what the others write."""
    return slots * BUSY * 1e6 / (costs.request_us + (slots - 1) * costs.fold_us)


def sized(costs: Costs, *, per_s: float, bandits: int) -> Size:
    """What so many requests a second need, spread evenly over so many bandits that are all loaded.

    `ValueError` where one bandit is asked for more often than any number of replicas can fold.
    """
    budget_us = BUSY * 1e6 * bandits / per_s  # of one replica, for each request for one bandit
    if budget_us <= min(costs.fold_us, costs.request_us):
        raise ValueError(f"{per_s / bandits:,.0f} requests a second for one bandit are more than a replica folds")
    slots = max(1, ceil((costs.request_us - costs.fold_us) / (budget_us - costs.fold_us))) if budget_us < costs.request_us else 1
    cores = per_s * (costs.request_us + (slots - 1) * costs.fold_us) / 1e6
    held = bandits * slots * costs.bandit_bytes
    replicas = max(slots, ceil(cores / BUSY), ceil(held / ROOM_BYTES))
    return Size(
        slots=slots,
        cores=cores,
        replicas=replicas,
        bandit_bytes=held / replicas,
        redis=ceil(per_s * costs.redis_us / 1e6 / BUSY),
        snapshot_bytes=2 * bandits * costs.snapshot_bytes,
        redis_bytes=DAY_S * per_s * costs.redis_bytes,
        archive_bytes=DAY_S * per_s * costs.archive_bytes,
    )


# -- measured --------------------------------------------------------------------------------------------------------------


async def memory_of(kind: Kind, *, bandits: int, rounds: int = 100) -> dict[str, float]:
    """Bytes per loaded bandit: resident, as NEXTARM_MEMORY_BYTES counts it, and of a snapshot."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        async with hosted(Path(folder) / "store.db") as hosting:
            before = 0
            for number in range(bandits + 2):
                learner, _ = await apart(hosting.create(kind.created(name_of(number))))
                await apart(serve(learner, rounds))
                await learner.projection.background.finish()
                if number == 1:  # what the first bandits bring with them is no bandit's
                    before = resident_bytes()
            resident = (resident_bytes() - before) / bandits
            await learner.projection.snapshot()
            blob = (await hosting.storage.load_snapshots(learner.log))[0][1]
            return {"resident": resident, "counted": hosting.loaded_bytes() / (bandits + 2), "snapshot": len(blob)}


async def write_rounds(store: str, kind: Kind, rounds: int, archive: Path) -> int:
    """Add these rounds of a new bandit to the store and to an archive; the number of their events."""
    storage = Settings(store=store, durability="process").open_storage()
    await storage.start()
    log, _ = await storage.create(Log(str(uuid7()), f"bandit-{rounds}"), events.encode(kind.created(f"bandit-{rounds}")))
    await serve(await Learner.load(storage, log), rounds)
    entries = await storage.read(log, after=1, limit=2 * rounds)
    await storage.close()
    await Archive(archive).append(log, entries)
    return len(entries)


def events_of(kind: Kind, *, rounds: int) -> dict[str, float]:
    """Bytes per event: in an SQLite file, in Redis, in the archive."""
    with tempfile.TemporaryDirectory() as name, RedisServer(*EVERYSEC) as redis:
        folder, found = Path(name), {}
        sizes: dict[str, Callable[[], int]] = {
            f"sqlite:///{folder / 'store.db'}": lambda: (folder / "store.db").stat().st_size,
            redis.url: lambda: int(redis.info("memory")["used_memory"]),
        }
        for store, size in sizes.items():
            archive = Path(tempfile.mkdtemp(dir=folder))
            asyncio.run(write_rounds(store, kind, 50, archive))
            before, archived = size(), _archived(archive)
            count = asyncio.run(write_rounds(store, kind, rounds, archive))
            found[store.partition(":")[0]] = (size() - before) / count
            found["archive"] = (_archived(archive) - archived) / count
        return found


def _archived(archive: Path) -> int:
    return sum(path.stat().st_size for path in archive.rglob("*.gz"))


async def unloaded(bandits: int) -> dict[str, float]:
    """Bytes of a bandit that is not loaded: estimated in each replica, and in an SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [Path(folder) / "few.db", Path(folder) / "many.db"]
        known, files = [], []
        for store, number in zip(stores, (20, 20 + bandits), strict=True):
            await make(store, bandits=number, asked=0, created=HEAVY.created("b"))
            files.append(store.stat().st_size)
            async with hosted(store) as hosting:
                known.append(held_bytes(hosting._unloaded, hosting._places._known))
        return {"resident": (known[1] - known[0]) / bandits, "file": (files[1] - files[0]) / bandits}


def load(*, turns: int, seconds: float) -> dict[str, Any]:
    """CPU per request, us, of the service and of Redis, by case and set-up; and bytes of a process without a bandit."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rigs = [stack.enter_context(service()), *(stack.enter_context(service_on_redis(replicas=n)) for n in (1, 2))]
        empty = rss_mb(rigs[0].pids[0]) * 2**20
        cases = Cases(folder, bare=("", 0), seconds=seconds)
        slices = [
            play(rig, 16 * len(rig.urls))
            for _ in range(turns)
            for play in (cases.rounds, cases.rounds_without_prompts)
            for rig in rigs
        ]
    cpu: dict[str, dict[str, tuple[float, float]]] = {case: {} for case in CASES.values()}
    for (case, _, target), one in middles(slices).items():
        cpu[case][target] = one.cpu_us, one.store_us
    return {"empty": empty, "cpu": cpu}


def measure(parts: list[str], *, quick: bool) -> dict[str, Any]:
    """What each part measures, by part and kind of bandit."""
    found: dict[str, Any] = {}
    kinds = (PLAIN, HEAVY) if quick else KINDS
    if "cpu" in parts:
        found["cpu"] = load(turns=1 if quick else 3, seconds=1)
    if "memory" in parts:
        command = [sys.executable, "-m", "bench.performance.capacity", "--memory-of"]
        for kind in kinds:
            told = subprocess.run([*command, str(KINDS.index(kind))], check=True, capture_output=True, text=True).stdout
            found.setdefault("memory", {})[kind] = json.loads(told)
    if "events" in parts:
        found["events"] = {kind: events_of(kind, rounds=150 if quick else 300) for kind in kinds}
    if "unloaded" in parts:
        found["unloaded"] = asyncio.run(unloaded(200 if quick else 1_000))
    return found


def costs_of(found: dict[str, Any], kind: Kind) -> Costs:
    """The constants of a kind that was put under load."""
    cpu, memory, written = found["cpu"]["cpu"][CASES[kind]], found["memory"][kind], found["events"][kind]
    return Costs(
        request_us=cpu["redis-1"][0],
        fold_us=max(0.0, cpu["redis-2"][0] - cpu["redis-1"][0]),  # both replicas together, so each request and one fold of it
        redis_us=cpu["redis-1"][1],
        bandit_bytes=memory["resident"],
        snapshot_bytes=memory["snapshot"],
        redis_bytes=written["redis"],
        archive_bytes=written["archive"],
    )


# -- tables ----------------------------------------------------------------------------------------------------------------

COST_COLUMNS = ("what", "measured", "by")
KIND_COLUMNS = ("kind of bandit", "loaded", "as counted", "a snapshot", "event: SQLite", "Redis", "archive")
SIZE_COLUMNS = (
    *("bandits", "requests a second", "cores", "replicas", "slots", "memory for bandits, each", "Redis servers"),
    *("Redis: snapshots", "Redis: events of a day", "archived a day"),
)


def amount(count: float) -> str:
    """Bytes to two digits or three."""
    unit, name = next(
        pair for pair in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if count >= pair[0] or pair[0] == 1
    )
    return f"{count / unit:.{0 if count >= 10 * unit or unit == 1 else 1}f} {name}"


def cost_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The first table."""
    rows = []
    for kind, case in CASES.items() if "cpu" in found else ():
        cpu = found["cpu"]["cpu"][case]
        one, two = cpu["redis-1"], cpu["redis-2"]
        rows += [
            (f"request, {kind}: SQLite", f"{cpu['service'][0]:.0f} us: {1e6 / cpu['service'][0]:,.0f} a second and core", "cpu"),
            ("on Redis", f"{one[0]:.0f} us: {1e6 / one[0]:,.0f} a second and core; {one[1]:.0f} us of Redis", "cpu"),
            ("added by a second replica that is asked for the same bandit", f"{max(0.0, two[0] - one[0]):.0f} us", "cpu"),
        ]
    if "cpu" in found:
        rows.append(("memory of a process before its first bandit", amount(found["cpu"]["empty"]), "cpu"))
    if "unloaded" in found:
        rows.append(("memory of a bandit that is not loaded, in each replica", amount(found["unloaded"]["resident"]), "unloaded"))
        rows.append(("the same in an SQLite file", amount(found["unloaded"]["file"]), "unloaded"))
    return [(what, value, f"`--only {part}`") for what, value, part in rows]


def kind_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The second table."""
    rows = []
    for kind in found.get("memory", found.get("events", {})):
        memory, written = found.get("memory", {}).get(kind, {}), found.get("events", {}).get(kind, {})
        cells = [memory.get(name) for name in ("resident", "counted", "snapshot")]
        cells += [written.get(name) for name in ("sqlite", "redis", "archive")]
        rows.append((str(kind), *("" if cell is None else amount(cell) for cell in cells)))
    return rows


def size_rows(costs: Costs) -> list[tuple[str, ...]]:
    """What `sized` says, for each number of bandits and rate."""
    rows = []
    for bandits in BANDITS:
        for per_s in RATES:
            try:
                size = sized(costs, per_s=per_s, bandits=bandits)
            except ValueError:
                rows.append((f"{bandits:,}", f"{per_s:,}", *["more bandits"], *[""] * (len(SIZE_COLUMNS) - 3)))
                continue
            count = "1" if size.replicas == 1 else f"{size.replicas:,} + 1"
            cells = (size.snapshot_bytes, size.redis_bytes, size.archive_bytes)
            asked = (f"{bandits:,}", f"{per_s:,}", f"{size.cores:.1f}", count, f"{size.slots}", amount(size.bandit_bytes))
            rows.append((*asked, f"{size.redis}", *map(amount, cells)))
    return rows


def computed(found: dict[str, Any]) -> str:
    """The section of the page that `sized` and `hot_rate` fill."""
    parts = []
    for kind in (PLAIN, HEAVY):
        costs = costs_of(found, kind)
        hot = "; ".join(f"{slots}: {hot_rate(costs, slots):,.0f}" for slots in SLOTS)
        table = pages.markdown(SIZE_COLUMNS, size_rows(costs), right=SIZE_COLUMNS)
        parts.append(f"### {kind}\n\n{table}\n\nOne hot bandit, requests a second by the number of its slots: {hot}.")
    return "\n\n".join(parts)


def main() -> None:
    every = ("cpu", "memory", "events", "unloaded")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(every), help=f"some of {','.join(every)}")
    parser.add_argument("--quick", action="store_true", help="two kinds of bandits, one round of load")
    parser.add_argument("--write", action="store_true", help="bring docs/capacity.md up to date; needs every part")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory_of is not None:
        print(json.dumps(asyncio.run(memory_of(KINDS[chosen.memory_of], bandits=12))))
        return
    machine.end_on_sigterm()
    parts, console, begun = chosen.only.split(","), Console(width=180), machine.described()
    if unknown := set(parts) - set(every):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    is_whole = set(parts) == set(every)
    if chosen.write and not is_whole:
        parser.error("--write needs every part: leave --only out")
    found = measure(parts, quick=chosen.quick)
    for title, columns, rows in (
        ("Costs", COST_COLUMNS, cost_rows(found)),
        ("By kind of bandit", KIND_COLUMNS, kind_rows(found)),
    ):
        if rows:
            pages.show(title, columns, rows, console)
    if is_whole:
        console.print(computed(found), soft_wrap=True)
    if chosen.write:
        head = f"`{COMMAND}{' --quick' * chosen.quick}`.\n{machine_text(machine.finished(begun))}"
        tables = (
            pages.markdown(COST_COLUMNS, cost_rows(found)),
            pages.markdown(KIND_COLUMNS, kind_rows(found), right=KIND_COLUMNS[1:]),
        )
        pages.write({"capacity measured": "\n\n".join((head, *tables)), "capacity computed": computed(found)})


if __name__ == "__main__":
    main()
