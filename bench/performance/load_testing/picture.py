"""One picture of a load run: CPU per request beside the bare routes, latency by connections, and what overload does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.performance.load_testing.bare import ROUTES
from bench.performance.load_testing.measure import Slice, middles

COLOURS = {
    "raw": "#c7c7c7",
    "starlette": "#9a9a9a",
    "fastapi": "#6b6b6b",
    "service": "#1f77b4",
    "redis-1": "#2ca02c",
    "redis-2": "#98df8a",
}
NAMES = {"raw": "raw ASGI", "starlette": "Starlette + msgspec", "fastapi": "FastAPI + pydantic", "service": "service, SQLite"}
NAMES |= {"redis-1": "service, Redis", "redis-2": "service, Redis, 2 replicas"}


def draw(path: Path, slices: Sequence[Slice], overload: Sequence[Mapping[str, Any]]) -> None:
    """A PNG file of three panels; the third only where overload was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 3 if overload else 2, figsize=(14 if overload else 9.5, 4.2))
    _costs(panels[0], slices)
    _latencies(panels[1], slices)
    if overload:
        _overload(panels[2], overload)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _costs(axes: Axes, slices: Sequence[Slice]) -> None:
    found = middles(slices)
    places = [(case, n) for case in ("select", "outcome") for n in (1, 16, 64) if (case, n, "service") in found]
    targets = [
        target for target in (*ROUTES, "service", "redis-1", "redis-2") if any((*place, target) in found for place in places)
    ]
    width = 0.8 / max(len(targets), 1)
    for i, target in enumerate(targets):
        at = [(j, found[*place, target]) for j, place in enumerate(places) if (*place, target) in found]
        xs = [j + (i - (len(targets) - 1) / 2) * width for j, _ in at]
        axes.bar(xs, [m.cpu_us for _, m in at], width, color=COLOURS[target], label=NAMES[target])
    axes.set_xticks(range(len(places)), [f"{case}\n{n}" for case, n in places], fontsize=8)
    axes.set_xlabel("connections")
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.set_ylabel("server CPU per request, us")
    axes.set_title("Cost beside the bare routes", fontsize=10)
    axes.legend(fontsize=7, ncols=2, loc="upper left")
    axes.grid(axis="y", alpha=0.3)


def _latencies(axes: Axes, slices: Sequence[Slice]) -> None:
    found = middles(slices)
    for case, style in (("select", "-"), ("outcome", "--")):
        for target in ("starlette", "service"):
            numbers = [n for n in (1, 16, 64) if (case, n, target) in found]
            for quantile, marker in (("p50_ms", "o"), ("p99_ms", "^")):
                values = [getattr(found[case, n, target], quantile) for n in numbers]
                label = f"{case}, {'service' if target == 'service' else 'bare'}, {quantile[:3]}"
                axes.plot(numbers, values, style, marker=marker, markersize=4, color=COLOURS[target], label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 16, 64], ["1", "16", "64"])
    axes.set_yscale("log")
    axes.set_xlabel("connections")
    axes.set_ylabel("ms")
    axes.set_title("Latency at full speed (SQLite; bare: Starlette)", fontsize=10)
    axes.set_ylim(top=30 * axes.get_ylim()[1])
    axes.legend(fontsize=6.5, ncols=2, loc="upper left")
    axes.grid(alpha=0.3)


def _overload(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [str(row["name"]).replace(" (", "\n(").replace(" connections", "\nconnections") for row in rows]
    at = range(len(rows))
    axes.bar(at, [row["accepted"] for row in rows], 0.6, color=COLOURS["service"], label="accepted per s")
    axes.bar(
        at, [row["shed"] for row in rows], 0.6, bottom=[row["accepted"] for row in rows], color="#ff9896", label="shed per s"
    )
    axes.set_xticks(at, names, fontsize=7)
    axes.set_ylabel("answers per s")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(fontsize=7, loc="upper left")
    late = axes.twinx()
    late.plot(at, [row["p99_ms"] for row in rows], "k^", markersize=7, markerfacecolor="white")
    late.set_ylabel("p99 of accepted, ms (triangles)")
    late.set_ylim(0, 1.25 * late.get_ylim()[1])
    axes.set_title("Overload", fontsize=10)
