"""One measured slice of load; the CPU time of the processes that served it; medians over rounds and ratios to a yardstick."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.performance.load_testing.wrk import Counted

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SETTLED_S = 0.1


class NotAccepted(Exception):
    """What was answered is not what the service says it accepted."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one driver saw of one target for a few seconds.

    case: what was asked.  target: who answered.  items: decisions or outcomes per request.  cpu_us: CPU time of the target's
    processes per item.  per_s: items per second.  p50_ms...: latency of requests.  errors: refused or broken requests.
    store_us: CPU time of a store in a process of its own, per item.  driver_us: CPU time of the drivers, per item.
    """

    case: str
    target: str
    connections: int
    items: int
    requests: int
    seconds: float
    cpu_us: float
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    longest_ms: float
    errors: int
    store_us: float = 0.0
    driver_us: float = 0.0


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all of its threads, user and system (proc(5), stat: fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cpu_of(pids: Iterable[int]) -> float:
    """The same, summed over processes."""
    return sum(map(cpu_s, pids))


def rss_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def threads(pid: int) -> int:
    """Threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def open_files(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def measured(
    drive: Callable[[], Sequence[Counted]],
    *,
    case: str,
    target: str,
    connections: int,
    pids: Sequence[int],
    items: int = 1,
    store: Sequence[int] = (),
    accepted: Callable[[], int] | None = None,
) -> Slice:
    """Drive, and count the CPU time until the server is idle again: what was under way when the driver ended is paid for, too.
    Several drivers at once are one slice; of their quantiles the worst counts.

    accepted: how many decisions or outcomes the server knows of, to divide by; None = what the drivers saw answered.
    """
    known = accepted() if accepted else 0
    before, store_before = cpu_of(pids), cpu_of(store)
    drivers_before = _ended_cpu_s()
    told = drive()
    drivers = _ended_cpu_s() - drivers_before
    settle(pids)
    cpu, store_cpu = cpu_of(pids) - before, cpu_of(store) - store_before
    requests = sum(counted.requests for counted in told)
    seconds = max(counted.seconds for counted in told)
    errors = sum(counted.refused + counted.broken for counted in told)
    done = max(requests, 1) * items
    if accepted:
        done = accepted() - known
        check(done, answered=(requests - errors) * items, under_way=2 * connections * items, what=f"{case} on {target}")
    return Slice(
        case=case,
        target=target,
        connections=connections,
        items=items,
        requests=requests,
        seconds=seconds,
        cpu_us=1e6 * cpu / done,
        per_s=requests * items / seconds,
        p50_ms=max(counted.p50 for counted in told),
        p95_ms=max(counted.p95 for counted in told),
        p99_ms=max(counted.p99 for counted in told),
        longest_ms=max(counted.longest for counted in told),
        errors=errors,
        store_us=1e6 * store_cpu / done,
        driver_us=1e6 * drivers / done,
    )


def _ended_cpu_s() -> float:
    """CPU seconds of the child processes that have ended, as drivers do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def settle(pids: Sequence[int], *, patience_s: float = 20.0) -> None:
    """Wait until these processes use less than a fifth of a core."""
    until = time.monotonic() + patience_s
    used = cpu_of(pids)
    while time.monotonic() < until:
        time.sleep(SETTLED_S)
        before, used = used, cpu_of(pids)
        if used - before <= SETTLED_S / 5:
            return


def check(accepted: int, *, answered: int, under_way: int, what: str) -> None:
    """What was accepted must be what was answered and, at most, what was under way when the driver ended."""
    if not 0 <= accepted - answered <= under_way:
        raise NotAccepted(f"{what}: {answered} answered, {accepted} accepted")


# -- over rounds -------------------------------------------------------------------------------------------------------------


Key = tuple[str, int, str]
"""Case, connections, target."""

MEASURES = ("cpu_us", "store_us", "driver_us", "per_s", "p50_ms", "p95_ms", "p99_ms")


@dataclass(frozen=True, kw_only=True)
class Middle:
    """Medians over the rounds of one target; low and high: of cpu_us over the rounds."""

    rounds: int
    cpu_us: float
    low: float
    high: float
    store_us: float
    driver_us: float
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    longest_ms: float
    errors: int


def middles(slices: Iterable[Slice]) -> dict[Key, Middle]:
    """Per case, connections and target, in the order of their first slice."""
    grouped: dict[Key, list[Slice]] = {}
    for piece in slices:
        grouped.setdefault((piece.case, piece.connections, piece.target), []).append(piece)
    return {key: _middle(pieces) for key, pieces in grouped.items()}


def _middle(pieces: Sequence[Slice]) -> Middle:
    values = {name: statistics.median(getattr(piece, name) for piece in pieces) for name in MEASURES}
    return Middle(
        rounds=len(pieces),
        low=min(piece.cpu_us for piece in pieces),
        high=max(piece.cpu_us for piece in pieces),
        longest_ms=max(piece.longest_ms for piece in pieces),
        errors=sum(piece.errors for piece in pieces),
        **values,
    )


def ratios(slices: Sequence[Slice], *, target: str, to: str, measure: str = "cpu_us") -> dict[tuple[str, int], float]:
    """Per case and connections: the median over the rounds of target / yardstick, each pair measured in the same round.

    A noisy machine is slow for both of a pair; the median of ratios forgets it, a ratio of medians would not.
    """
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for piece in slices:
        if piece.target in (target, to):
            found.setdefault((piece.case, piece.connections), {}).setdefault(piece.target, []).append(getattr(piece, measure))
    return {
        key: statistics.median(ours / theirs for ours, theirs in zip(by[target], by[to], strict=False) if theirs)
        for key, by in found.items()
        if target in by and to in by and any(by[to])
    }


def document(slices: Iterable[Slice]) -> list[Mapping[str, Any]]:
    """For JSON."""
    return [asdict(piece) for piece in slices]
