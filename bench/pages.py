"""Tables of results: on the terminal, as Markdown, and between the markers `<!-- NAME -->` and `<!-- /NAME -->` of docs/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARKED = re.compile(r"(<!-- ([\w -]+) -->\n)(.*?\n)?(<!-- /\2 -->)", flags=re.DOTALL)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> str:
    """A Markdown table. right: columns that are aligned so."""
    rule = ["---:" if column in right else "---" for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *rows))


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], console: Any) -> None:
    """The same on a rich console."""
    from rich.table import Table  # the machine with a GPU need not have it

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def written(page: str, texts: Mapping[str, str]) -> str:
    """The page with these texts between their markers; what is not given stays."""
    return MARKED.sub(lambda found: f"{found[1]}{texts[found[2]].rstrip()}\n{found[4]}" if found[2] in texts else found[0], page)


def write(texts: Mapping[str, str], docs: Path = DOCS) -> None:
    """Bring the pages up to date that hold these markers; each must stand somewhere."""
    pages = {path: path.read_text() for path in sorted(docs.glob("*.md"))}
    if missing := texts.keys() - {found[2] for page in pages.values() for found in MARKED.finditer(page)}:
        raise SystemExit(f"no page in {docs} has a place for {', '.join(sorted(missing))}")
    for path, before in pages.items():
        after = written(before, texts)
        if after != before:
            path.write_text(after)
            print(f"wrote {path.name}")
