"""`python -m bench.faults`: what survives when processes, Redis, disks, clocks and networks fail, by real processes that do.

    python -m bench.faults --quick                  every fault, small: some minutes
    python -m bench.faults --write                  every fault, and the table in docs/faults.md
    python -m bench.faults --only failover,paused   some of them; --list says which there are
    python -m bench.faults --kills 50 --seed 1      one process over SQLite alone, killed so often

Everything runs on loopback: redis-server and `nextarm serve` in processes and on ports of the bench's own, ended by their
process ids. Exit code 1 where a promise was broken, 2 where a case could not be played.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bench.faults.cases import CASES, ORDER
from bench.faults.rows import Case, Options, Row, shown, write

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"


def main() -> None:
    """The command."""
    given = _parser().parse_args()
    if given.list:
        for case in CASES:
            print(f"{case.name:16} {case.what}")
        return
    chosen = _chosen(given)
    rows: list[Row] = []
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with (
        nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory(prefix="nextarm-faults-") as folder,
        Progress(*columns, console=Console(stderr=True), disable=given.quiet) as progress,
    ):
        options = Options(
            seed=given.seed,
            quick=given.quick,
            folder=Path(folder),
            kills=given.kills,
            events=given.events,
            clients=given.clients,
            limit_s=given.limit_s,
        )
        for case in chosen:
            try:
                rows += _play(case, options, progress, _command(given, case))
            except Exception as error:  # the others are played all the same
                failed.append(f"{case.name}: {type(error).__name__}: {error}")
                traceback.print_exc()
            if given.write:
                write(DOCUMENT, rows, ORDER)
    _show(rows, failed)
    sys.exit(2 if failed else 1 if any(row.broken for row in rows) else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--only", default="", help="names of cases, separated by commas (default: all; with --kills: sqlite-kills)"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--quick", action="store_true", help="every case small")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' and the killer's chance (default: 1)")
    parser.add_argument("--kills", type=int, help="how often a case that kills does (default: what the case says)")
    parser.add_argument("--events", type=int, help="events of the cases that count them (default: what the case says)")
    parser.add_argument("--clients", type=int, help="connections (default: what the case says)")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="after this no further kill is begun (default: 1800)")
    parser.add_argument("--write", action="store_true", help=f"put the rows into {DOCUMENT.parent.name}/{DOCUMENT.name}")
    parser.add_argument("--folder", help="an empty folder to play in and to keep, with the logs of every process")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _chosen(given: argparse.Namespace) -> list[Case]:
    names = given.only.split(",") if given.only else ["sqlite-kills"] if given.kills else [case.name for case in CASES]
    unknown = set(names) - {case.name for case in CASES}
    if unknown:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}; --list names them")
    return [case for case in CASES if case.name in names]


def _command(given: argparse.Namespace, case: Case) -> str:
    """What plays this case alone again."""
    numbers = (f" --{name} {value}" for name in ("kills", "events", "clients") if (value := getattr(given, name)))
    return f"--only {case.name}{' --quick' if given.quick else ''}{''.join(numbers)} --seed {given.seed}"


def _play(case: Case, options: Options, progress: Progress, command: str) -> list[Row]:
    task = progress.add_task(case.name, total=1.0)

    def tell(done: float, whole: float) -> None:
        progress.update(task, completed=min(done, whole), total=whole)

    began = time.monotonic()
    rows = case.run(replace(options, tell=tell))
    for row in rows:
        row.run, row.seconds = command, time.monotonic() - began
    progress.update(task, completed=1.0, total=1.0)
    return rows


def _show(rows: list[Row], failed: list[str]) -> None:
    console = Console(width=160) if not sys.stdout.isatty() else Console()
    console.print(shown(rows))
    for row in rows:
        for line in row.broken[:20]:
            console.print(f"BROKEN {row.fault}: {line}", style="red", markup=False)
    for line in failed:
        console.print(f"NOT PLAYED {line}", style="red", markup=False)


if __name__ == "__main__":
    main()
