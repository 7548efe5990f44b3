"""What `nextarm report` does once its options are parsed."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.cli.logs import Source, check_free
from service.cli.report.report import as_json, as_text, build, read

SUFFIXES = {".json": "json", ".html": "html", ".htm": "html"}


def run(source: Source, *, form: str | None, out: Path | None, force: bool, quiet: bool, **options: Any) -> None:
    """Read the log, and write the report. form: None = by the ending of `out`."""
    form = form or SUFFIXES.get(out.suffix.lower() if out else "", "text")
    if form == "html" and out is None:
        raise click.UsageError("--format html needs -o FILE")
    if out is not None:
        check_free(out, force=force)
    reader, history = asyncio.run(read(source, quiet=quiet))
    try:
        report = build(reader, history, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if out is None and form == "text":
        Console().print(as_text(report))
        return
    match form:
        case "html":
            from service.cli.report.page import as_html

            content = as_html(report)
        case "json":
            content = json.dumps(as_json(report)) + "\n"
        case _:
            plain = io.StringIO()
            Console(file=plain, width=100).print(as_text(report))
            content = plain.getvalue()
    if out is None:
        click.echo(content, nl=False)
        return
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_text(content)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def draw(source: Source, *, out: Path, force: bool, quiet: bool, confidence: float) -> None:
    """Read the log, and write its plot."""
    from service.cli.plotting import check_plot
    from service.cli.report.bandit_plot import save_plot

    check_plot(out, option="-o")
    check_free(out, force=force)
    reader, history = asyncio.run(read(source, quiet=quiet))
    save_plot(out, build(reader, history, confidence=confidence, groups=2, reward_range=None))
