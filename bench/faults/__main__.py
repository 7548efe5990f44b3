"""`python -m bench.faults --kills 50 --seed 1`: does an acknowledged event survive kill -9?

    clients (threads) --decide, observe, repeat, contradict, cancel--> the real service over an SQLite store
    this process      --SIGKILL at random moments, also amid a start--> it starts again

At the end: every acknowledged event is in the log exactly once, nothing is learnt twice, and the digests of the live service,
of a replay from zero and of a clean restart are one. Exit code 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.faults.run import Plan, Result, run


def table(result: Result) -> Table:
    """The numbers of a run."""
    shown = Table(title="kill -9 under load", show_header=False)
    counts, events = result.record.counts, result.verdict.events
    starts = sorted(result.starts_s)
    rows = {
        "kills (of them while starting)": f"{result.kills} ({result.killed_in_start})",
        "acknowledged: decisions / outcomes / cancellations / arms": (
            f"{len(result.record.decided):,} / {len(result.record.observed):,} / "
            f"{len(result.record.cancelled):,} / {len(result.arms_added)}"
        ),
        "repeated and answered alike: decisions / outcomes": (
            f"{counts['decisions repeated']:,} / {counts['outcomes repeated']:,}"
        ),
        "contradicting outcomes refused": f"{counts['contradictions refused']:,}",
        "requests cut off by a kill / refused (429, 503)": f"{counts['cut off']:,} / {counts['refused']:,}",
        "events in the logs": f"{events.total():,} ({', '.join(f'{n:,} {kind}' for kind, n in events.most_common())})",
        "start to ready, s: median / longest": f"{statistics.median(starts):.2f} / {starts[-1]:.2f}",
        "acknowledged and lost": str(len(result.verdict.lost)),
        "in the log or learnt twice": str(len(result.verdict.twice)),
        "digests that differ (live, replay, restart)": str(len(result.verdict.differing)),
        "other broken promises": str(len(result.record.broken)),
        "seconds": f"{result.seconds:.0f}",
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50, help="how often the service is killed (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' and the killer's chance (default: 1)")
    parser.add_argument("--clients", type=int, default=8, help="connections (default: 8)")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="after this no further kill is begun (default: 1800)")
    given = parser.parse_args()
    plan = Plan(kills=given.kills, seed=given.seed, clients=given.clients, limit_s=given.limit_s)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="nextarm-faults-") as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("kills", total=plan.kills)
        result = run(plan, Path(folder), each=lambda kills: progress.update(task, completed=kills))
    console.print(table(result))
    for line in result.broken[:20]:
        console.print(f"BROKEN {line}", style="red", markup=False)
    if result.kills < plan.kills:
        console.print(f"only {result.kills} of {plan.kills} kills within {plan.limit_s:.0f} s", style="yellow")
    sys.exit(1 if result.broken else 0)


if __name__ == "__main__":
    main()
