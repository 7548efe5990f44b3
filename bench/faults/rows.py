"""The fault table: one row per fault, shown in a terminal and kept in a Markdown document between two marks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from bench.faults.clients import Record
from bench.faults.replicas import Judged
from bench.pages import MARKED, markdown, written

COUNTS = ("acknowledged", "lost", "twice")
COLUMNS = ("fault", "acknowledged", "lost", "twice", "digests", "what was seen", "promise", "run")


@dataclass(kw_only=True)
class Row:
    """One fault and what came of it.

    lost: acknowledged events that are not in the log; None where nothing is counted.  twice: in the log, or learned, more than
    once.  digests: how many of those asked agree.  may_lose: a loss is counted and no broken promise.
    """

    fault: str
    acknowledged: int | None = None
    lost: int | None = None
    twice: int | None = None
    digests: str = ""
    seen: str = ""
    may_lose: bool = False
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    run: str = ""

    @property
    def promise(self) -> str:
        """Whether what the service promises of this fault was kept."""
        return "BROKEN" if self.broken else "none; counted" if self.may_lose else "kept"

    def cells(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`."""
        counts = ("" if count is None else f"{count:,}" for count in (self.acknowledged, self.lost, self.twice))
        return (self.fault, *counts, self.digests, self.seen, self.promise, self.run)


def judged_row(fault: str, record: Record, judged: Judged, *, seen: str, may_lose: bool = False) -> Row:
    """The row of a load that was judged. Where a loss is no broken promise, answers that contradict it are none either."""
    verdict = judged.verdict
    holes = [line for line in verdict.lost if "gap" in line or "differs" in line]
    row = Row(fault=fault, acknowledged=len(record), lost=len(verdict.lost) - len(holes), twice=len(verdict.twice))
    row.digests, row.seen, row.may_lose = judged.agreement(), seen, may_lose
    row.broken = holes + verdict.twice + verdict.differing
    if not may_lose:
        row.broken += [f"lost: {line}" for line in verdict.lost if line not in holes] + record.broken
    if record.counts["never answered"]:
        row.broken.append(f"{record.counts['never answered']} requests were never answered")
    return row


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of a run. kills: where a case kills, how often; None = as the case says.  limit_s: after this no further kill is begun.

    tell: called with what is done and the whole, for a progress bar.
    """

    seed: int
    quick: bool
    folder: Path
    kills: int | None = None
    events: int | None = None
    clients: int | None = None
    limit_s: float = 1800.0
    tell: Callable[[float, float], object] = lambda done, whole: None

    def space(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder


@dataclass(frozen=True)
class Case:
    """A name for `--only`, what it does in one line, and the function that does it."""

    name: str
    what: str
    run: Callable[[Options], list[Row]]


def shown(rows: Iterable[Row]) -> Table:
    """For a terminal."""
    table = Table(title="faults", show_lines=True)
    for column in COLUMNS[:-1]:
        table.add_column(column, justify="right" if column in COUNTS else "left")
    for row in rows:
        table.add_row(*row.cells()[:-1], style="red" if row.broken else None)
    return table


def write(document: Path, rows: Iterable[Row], order: Iterable[str] = ()) -> None:
    """Put rows into the table of a document; rows of other faults stay. order: of faults, by how their names begin."""
    page = document.read_text()
    kept = next(found[3] or "" for found in MARKED.finditer(page) if found[2] == "faults")
    lines = {line[2:].split(" | ")[0]: line[2:-2].split(" | ") for line in kept.splitlines()[2:] if line}
    for row in rows:
        cells = [cell.replace("|", "/") or " " for cell in row.cells()]
        lines[cells[0]] = [*cells[:-1], f"`{row.run}`" if row.run else " "]
    ranks = list(order)
    ranked = sorted(lines, key=lambda fault: next((i for i, start in enumerate(ranks) if fault.startswith(start)), len(ranks)))
    document.write_text(written(page, {"faults": markdown(COLUMNS, [lines[fault] for fault in ranked], right=COUNTS)}))
