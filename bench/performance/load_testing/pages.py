"""The results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import pages as tables
from bench.performance.load_testing.bare import ROUTES
from bench.performance.load_testing.cases import SINGLES
from bench.performance.load_testing.measure import Middle, Slice, middles, ratios

LIMITS = (
    *(("rounds", connections, 4.5) for connections in (1, 16, 64)),
    ("rounds without prompts", 16, 3.0),
    ("select", 64, 4.0),
    ("outcome", 64, 3.0),
)
"""Case, connections, and what its CPU may be as a multiple of that of the Starlette route."""
Rows = tuple[str, list[str], list[list[str]]]
"""A title, the columns, and the cells."""


def singles(slices: Sequence[Slice]) -> Rows:
    """Rounds, single decisions and outcomes beside the bare routes; driver: CPU of wrk per request."""
    columns = ["", "connections", "who", "CPU us", "lowest to highest", "x raw", "x Starlette", "x FastAPI", "per s"]
    columns += ["p50 ms", "p95 ms", "p99 ms", "errors", "driver us"]
    chosen = [piece for piece in slices if piece.case in SINGLES]
    factors = {
        (target, to): ratios(chosen, target=target, to=to) for target in {piece.target for piece in chosen} for to in ROUTES
    }
    cells = []
    for (case, connections, target), m in middles(chosen).items():
        store = f" + {m.store_us:.0f} redis" if m.store_us else ""
        found = (factors[target, to].get((case, connections)) if target != to else None for to in ROUTES)
        beside = ["" if factor is None else f"{factor:.2f}" for factor in found]
        row = [case, str(connections), target, f"{m.cpu_us:.0f}{store}", f"{m.low:.0f} to {m.high:.0f}", *beside, *_common(m)]
        cells.append([*row, f"{m.driver_us:.0f}"])
    cells.sort(key=lambda row: (SINGLES.index(row[0]), int(row[1]), row[2] not in ROUTES, row[2]))
    return "Single requests", columns, cells


def others(slices: Sequence[Slice]) -> Rows:
    """Everything else; costs per decision or outcome, latencies per request."""
    columns = ["", "connections", "who", "CPU us each", "lowest to highest", "per s", "p50 ms", "p95 ms", "p99 ms", "errors"]
    cells = [
        [case, str(connections), target, f"{m.cpu_us:.0f}", f"{m.low:.0f} to {m.high:.0f}", *_common(m)]
        for (case, connections, target), m in middles(slices).items()
        if case not in SINGLES
    ]
    return "Batches of 256, texts, healthz", columns, cells


def _common(m: Middle) -> list[str]:
    return [f"{m.per_s:,.0f}", f"{m.p50_ms:.2f}", f"{m.p95_ms:.2f}", f"{m.p99_ms:.2f}", str(m.errors)]


def overload(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """What happened under too much load."""
    columns = ["load", "came per s", "accepted per s", "shed", "other failures", "p50 ms", "p99 ms", "first fifth", "last fifth"]
    columns += ["p99 since it came", "p99 of the shed", "memory MB: before, most, after", "recovered after s"]
    cells = [
        [
            row["name"],
            f"{row['offered']:,.0f}",
            f"{row['accepted']:,.0f}",
            f"{row['share_shed']:.0%}",
            str(row["other"]),
            *(f"{row[name]:.0f}" for name in ("p50_ms", "p99_ms", "first_p99_ms", "late_p99_ms", "p99_came_ms", "p99_shed_ms")),
            ", ".join(f"{size:.0f}" for size in row["memory_mb"]),
            f"{row['recovered_s']:.1f}",
        ]
        for row in rows
    ]
    return "Overload (rounds of a decision and its outcome)", columns, cells


def beside(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Vectors beside a busy embedder."""
    names = ("p50_alone_ms", "p50_beside_ms", "p99_alone_ms", "p99_beside_ms")
    columns = ["embedder kept busy", "new texts per s", "p50 ms alone", "beside", "p99 ms alone", "beside"]
    cells = [[row["embedder"], f"{row['texts_per_s']:.0f}", *(f"{row[name]:.1f}" for name in names)] for row in rows]
    return "Decisions with vectors (100 per s) beside a bandit that embeds", columns, cells


def targets(slices: Sequence[Slice], rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Targets and what came of them, as far as they were measured."""
    found: list[list[str]] = []
    middle, to = middles(slices), ratios(slices, target="service", to="starlette")

    def add(what: str, value: float, limit: float, *, at_least: bool = False) -> None:
        met = value >= limit if at_least else value <= limit
        found.append([what, f"{value:.2f}", f"{'at least' if at_least else 'at most'} {limit:g}", "met" if met else "**missed**"])

    for case, connections, limit in LIMITS:
        if (case, connections) in to:
            add(f"{case}, {_of(connections)}: CPU / that of Starlette + msgspec", to[case, connections], limit)
    singles = middle.get(("select", 16, "service"))
    batches = [m.cpu_us for (case, _, target), m in middle.items() if case == "select batch" and target == "service"]
    if singles is not None and batches:
        add("select, 16 connections: CPU / that of one in a batch of 256", singles.cpu_us / min(batches), 2.5, at_least=True)
    by = {row["name"]: row for row in rows}
    saturated, twice, most = (by.get(name) for name in ("64 connections (saturation)", "2x the rate", "4x the rate"))
    if saturated and twice:
        add("overload of 2x: p99 of accepted / p99 at saturation", twice["p99_ms"] / saturated["p99_ms"], 2.0)
    if most:
        add("overload of 4x: most memory / memory before", most["memory_mb"][1] / most["memory_mb"][0], 1.1)
        add("overload of 4x: seconds to recover", most["recovered_s"], 1.0)
    return "Targets", ["", "measured", "target", ""], found


def _of(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"


# -- writing -----------------------------------------------------------------------------------------------------------------


def markdown(rows: Rows) -> str:
    """As a Markdown table under its title."""
    title, columns, cells = rows
    return f"### {title}\n\n{tables.markdown(columns, cells)}"


def machine_text(machine: Mapping[str, Any]) -> str:
    """One paragraph."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, load average at the start {machine['load']}, "
        f"at the end {machine['load_at_end']}; {versions}; commit {machine['commit']}."
    )
