"""One picture of a load run: CPU per request beside the bare routes, latency by connections, and what overload does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.performance.load_testing.measure import Slice, middles
from service.cli.plotting import BLUE, GREEN, GREY, INK, NAME_SIZE, SKY, End, drawing, name_ends, plain

TARGETS = {
    "redis-2": ("Redis,\n2 replicas", SKY, "-"),
    "redis-1": ("Redis", GREEN, "-"),
    "service": ("SQLite", BLUE, "-"),
    "fastapi": ("bare FastAPI", GREY, "--"),
    "starlette": ("bare Starlette", GREY, "-"),
    "raw": ("bare ASGI", GREY, ":"),
}
"""Who answers -> name, color and style: what is gray does nothing but answer."""
CASES = {"select": "decision", "outcome": "outcome"}
CONNECTIONS = (1, 16, 64)


def draw(path: Path, slices: Sequence[Slice], overload: Sequence[Mapping[str, Any]]) -> None:
    """A PNG file of three panels, and one more where overload was measured."""
    with drawing(path, (8.3, 6.3 if overload else 5.8), dpi=200, colors=64) as figure:
        upper, lower = figure.subplots(2, 2)
        for axes, case in zip(upper, CASES, strict=True):
            _costs(axes, slices, case)
        upper[1].sharey(upper[0])
        upper[0].set_ylabel("CPU of the server per request, µs")
        _latencies(lower[0], slices)
        if overload:
            _overload(lower[1], overload)
        else:
            lower[1].axis("off")


def _by_connections(axes: Any) -> None:
    axes.set(xscale="log", xlabel="connections", xlim=(CONNECTIONS[0], CONNECTIONS[-1]))
    plain(axes.xaxis, CONNECTIONS)


def _costs(axes: Any, slices: Sequence[Slice], case: str) -> None:
    found, ends = middles(slices), []
    for target, (name, color, style) in TARGETS.items():
        numbers = [n for n in CONNECTIONS if (case, n, target) in found]
        if numbers:
            values = [found[case, n, target].cpu_us for n in numbers]
            axes.plot(numbers, values, style, color=color, linewidth=1.8, marker="o", markersize=3.5)
            ends.append(End(values[-1], name, color))
    _by_connections(axes)
    highest = max((m.cpu_us for (kind, _, _), m in found.items() if kind in CASES), default=1.0)
    axes.set_ylim(0.0, 1.05 * highest)
    axes.set_title(f"CPU of {'a' if case == 'select' else 'an'} {CASES[case]}")
    name_ends(axes, ends)


def _latencies(axes: Any, slices: Sequence[Slice]) -> None:
    found, ends, highest, lowest = middles(slices), [], 1.0, 1.0
    for target in ("service", "starlette"):
        name, color, _ = TARGETS[target]
        numbers = [n for n in CONNECTIONS if ("select", n, target) in found]
        if not numbers:
            continue
        p50, p99 = ([getattr(found["select", n, target], name) for n in numbers] for name in ("p50_ms", "p99_ms"))
        axes.fill_between(numbers, p50, p99, color=color, alpha=0.13, linewidth=0)
        for values, quantile, style in ((p50, "p50", "-"), (p99, "p99", ":")):
            axes.plot(numbers, values, style, color=color, linewidth=1.8, marker="o", markersize=3.5)
            ends.append(End(values[-1], f"{name}, {quantile}", color))
        lowest, highest = min(lowest, *p50), max(highest, *p99)
    axes.set(yscale="log", ylabel="ms", ylim=(lowest / 1.6, highest * 1.6))
    plain(axes.yaxis, [tick for power in range(-3, 6) for tick in (10.0**power,) if lowest / 1.6 <= tick <= highest * 1.6])
    _by_connections(axes)
    axes.set_title("Latency of a decision at full speed")
    name_ends(axes, ends)


def _overload(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    most = max(row["accepted"] + row["shed"] for row in rows)
    for place, row in enumerate(rows):
        axes.barh(place, row["accepted"], 0.62, color=BLUE)
        axes.barh(place, row["shed"], 0.62, left=row["accepted"], color=GREY, alpha=0.35)
        text = f"{row['accepted']:,.0f} accepted, p99 {row['p99_ms']:,.0f} ms"
        axes.text(0.015 * most, place - 0.36, text, va="bottom", fontsize=NAME_SIZE - 1.0, color=INK)
    axes.set_yticks(range(len(rows)), [str(row["name"]).replace(" (", "\n(") for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(rows) - 0.5, -0.85), xlabel="answers per second")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", visible=False)
    axes.set_title("Overload: accepted (blue), refused (pale)")
