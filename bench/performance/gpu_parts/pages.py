"""The results as tables: Markdown on the terminal, and the same between the markers of docs/gpu.md."""

from __future__ import annotations

from collections.abc import Sequence

from bandits.gpu.cost_model import Costs
from bench.pages import markdown
from bench.performance.gpu_parts.ceilings import Ceilings
from bench.performance.gpu_parts.problems import Agreement
from bench.performance.gpu_parts.rates import Scoring

SIZES, ARMS = (64, 128, 256, 512, 1024, 2048), (2, 5, 20)
"""Of the table of crossovers."""


def us(seconds: float) -> str:
    """Microseconds; nothing where there is no such time."""
    return f"{1e6 * seconds:,.0f}" if seconds else ""


def ceilings(found: Ceilings) -> str:
    """What the device can do."""
    return (
        f"{found.bandwidth / 1e9:,.0f} GB/s; products {found.float32 / 1e9:,.0f} GFLOP/s in float32 (no TF32), "
        f"{found.float64 / 1e9:,.0f} GFLOP/s in float64"
    )


def scores(rows: Sequence[Scoring], *, cpu: dict[tuple[int, int], float]) -> str:
    """cpu: (p, B) -> seconds on the CPU beside it; empty where the device is the CPU."""
    beside = ["CPU p50 us", "CPU / device"] if cpu else []
    head = ["p", "B", "MB", "GFLOP", "floor us", "binds", "launch us", "reached", "p50 us", "p99 us", *beside]
    cells = []
    for row in rows:
        counted = [f"{row.work.bytes / 1e6:,.1f}", f"{row.work.operations / 1e9:,.2f}", us(row.floor_s), row.binds]
        times = [us(row.device_s), f"{row.reached:.0%}", us(row.p50_s), us(row.p99_s)]
        other = cpu.get((row.size, row.batch), 0.0)
        against = [us(other), f"{other / row.p50_s:.1f}" if other else ""] if cpu else []
        cells.append([f"{row.size:,}", f"{row.batch:,}", *counted, *times, *against])
    return markdown(head, cells)


def agreement(rows: Sequence[Agreement]) -> str:
    """Against float64 on the CPU."""
    head = ["device", "dtype", "p", "arms", "ridge", "how", "mean", "width", "same pick at 0.1", "at 1", "most lost"]
    return markdown(
        head,
        [
            [
                row.device,
                row.dtype,
                f"{row.size:,}",
                f"{row.arms}",
                f"{row.ridge:g}",
                row.how,
                f"{row.mean:.0e}",
                f"{row.width:.0e}",
                *(f"{share:.2%}" for share in row.equal.values()),
                f"{row.lost:.0e}",
            ]
            for row in rows
        ],
    )


def crossover(costs: Costs) -> str:
    """From which batch on the GPU answers sooner, by the rule."""
    rows = []
    for size in SIZES:
        first = [costs.from_batch(arms=arms, size=size) for arms in ARMS]
        rows.append([f"{size:,}", *(f"{batch:,}" if batch else "never" for batch in first)])
    return markdown(["p", *(f"{arms} arms" for arms in ARMS)], rows)


def rule(costs: Costs) -> str:
    """The constants of the rule."""
    return (
        f"CPU {us(costs.cpu_call)} us + {_rate(costs.cpu_operation)} GFLOP/s; GPU {us(costs.gpu_call)} us + "
        f"{_rate(costs.gpu_byte)} GB/s + {_rate(costs.gpu_operation)} GFLOP/s + {_rate(costs.gpu_staged)} G staged numbers/s"
    )


def _rate(seconds_each: float) -> str:
    return f"{1e-9 / seconds_each:,.1f}" if seconds_each else "unlimited"


def verdicts(costs: Costs, rows: Sequence[Scoring], cpu: dict[tuple[int, int], float], *, arms: int) -> str:
    """Does the rule choose what was faster?"""
    both = [row for row in rows if (row.size, row.batch) in cpu]
    right = [
        row
        for row in both
        if costs.prefers_gpu(arms=arms, size=row.size, batch=row.batch) == (row.p50_s < cpu[row.size, row.batch])
    ]
    wrong = [f"p = {row.size}, B = {row.batch}" for row in both if row not in right]
    return f"The rule chooses the faster of the two in {len(right)} of {len(both)} rows" + (
        f"; not at {'; '.join(wrong)}." if wrong else "."
    )
