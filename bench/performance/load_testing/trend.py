"""Is it flat? Samples over time, their slope, and a verdict for each measure of a soak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from service.storage.base import KEPT_SNAPSHOTS

WARM_UP = 0.25
"""Share of the run that is not judged: caches fill, allocators find their size."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the service. files: name -> bytes in the data folder.  lag, unready: of the worst bandit, events.

    events: in all logs.  p50_ms, p99_ms: of the requests since the last look.

    log_bytes: of the store's pages that hold events and their keys.  payload_bytes: of the events themselves.  snapshot_bytes,
    free_bytes: of snapshots, and of pages that wait to be used again.  snapshots: kept of one bandit, at most.
    """

    at_s: float
    rss_mb: float
    open_files: int
    threads: int
    cpu_s: float
    requests: int
    rounds: int
    p50_ms: float
    p99_ms: float
    lag: int
    unready: int
    events: int
    log_bytes: int = 0
    payload_bytes: int = 0
    snapshot_bytes: int = 0
    free_bytes: int = 0
    snapshots: int = 0
    files: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a measure did after the warm-up. slope: per hour.  drift: how much that is over the run, in per cent of the median."""

    measure: str
    unit: str
    first: float
    last: float
    slope: float
    drift: float
    allowed: str
    flat: bool


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Theil-Sen: the median slope over all pairs of samples, which a few outliers do not move; 0 for fewer than two."""
    if len(at) < 2:
        return 0.0
    x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    i, j = np.triu_indices(len(x), k=1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))


def _judged(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.at_s >= WARM_UP * samples[-1].at_s]


def _drifting(samples: Sequence[Sample], measure: str, values: Sequence[float], unit: str, limit: float) -> Verdict:
    at = [sample.at_s for sample in samples]
    each, middle = slope(at, values), float(np.median(values)) or 1.0
    drift = 100 * each * (at[-1] - at[0]) / middle
    third = max(1, len(values) // 3)
    return Verdict(
        measure=measure,
        unit=unit,
        first=float(np.median(values[:third])),
        last=float(np.median(values[-third:])),
        slope=3600 * each,
        drift=drift,
        allowed=f"at most +{limit:g} %",
        flat=drift <= limit,
    )


def _bounded(samples: Sequence[Sample], measure: str, values: Sequence[float], unit: str, *, room: float) -> Verdict:
    """The most of the last third may exceed the most of the rest by `room`."""
    third = max(1, len(values) // 3)
    first, last = max(values[:-third], default=values[-1]), max(values[-third:])
    each = slope([sample.at_s for sample in samples], values)
    return Verdict(
        measure=measure,
        unit=unit,
        first=first,
        last=last,
        slope=3600 * each,
        drift=100 * (last - first) / (first or 1.0),
        allowed=f"at most +{room:g}",
        flat=last <= first + room,
    )


def _kept(samples: Sequence[Sample], measure: str, values: Sequence[float], *, most: int) -> Verdict:
    """A count that may grow up to `most`."""
    found = _bounded(samples, measure, values, "", room=0.0)
    return replace(found, allowed=f"at most {most}", flat=max(values) <= most)


def verdicts(samples: Sequence[Sample], *, store: str) -> list[Verdict]:
    """Memory, latency, CPU, files, lag. store: name of the file that may grow with the events in it.

    Snapshots are in that file, too: none at first, `KEPT_SNAPSHOTS` of each bandit in the end. So bytes per event are those of
    the log alone, and of snapshots it is judged how many are kept.
    """
    late = _judged(samples)
    cost = [1e3 * (b.cpu_s - a.cpu_s) / max(b.requests - a.requests, 1) for a, b in pairwise(late)]
    others = [sum(size for name, size in sample.files.items() if name != store) / 1e6 for sample in late]
    grown = [(b.log_bytes - samples[0].log_bytes) / max(b.events - samples[0].events, 1) for b in late]
    said = [(b.payload_bytes - samples[0].payload_bytes) / max(b.events - samples[0].events, 1) for b in late]
    return [
        _drifting(late, "memory (RSS)", [sample.rss_mb for sample in late], "MB", 3.0),
        _drifting(late, "latency p50", [sample.p50_ms for sample in late], "ms", 20.0),
        _drifting(late, "latency p99", [sample.p99_ms for sample in late], "ms", 50.0),
        _drifting(late[1:], "CPU per request", cost, "ms", 15.0),
        _drifting(late, "log per event", grown, "bytes", 5.0),
        _drifting(late, "of that the events themselves", said, "bytes", 5.0),
        _kept(late, "snapshots of a bandit", [float(sample.snapshots) for sample in late], most=KEPT_SNAPSHOTS),
        _bounded(late, "files beside the store", others, "MB", room=1.0),
        _bounded(late, "open files", [float(sample.open_files) for sample in late], "", room=2.0),
        _bounded(late, "threads", [float(sample.threads) for sample in late], "", room=1.0),
        _bounded(late, "events not learned", [float(sample.lag + sample.unready) for sample in late], "", room=50.0),
    ]
