"""`nextarm import FILE`: the command line's options. The work is in `import_history`, imported only once they are parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("import", epilog="Example: nextarm import history.csv --bandit demo --map llm=arm --map latency=signals.latency_s")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--bandit", required=True, help="That learns the rows; PUT /v1/bandits/{name} creates one.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Of the service.")
@click.option("--api-key", default="", envvar="NEXTARM_API_KEY", help="Of an admin. [env: NEXTARM_API_KEY]")
@click.option("--map", "pairs", multiple=True, metavar="COLUMN=FIELD", help="What a column holds; repeatable.")
@click.option(
    "--namespace", default="", help="Tells equal rows of different files apart where they have no ids. [default: the file's name]"
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def import_history(file: Path, **options: Any) -> None:
    """Teach a running bandit what happened before: every row of FILE is one outcome.

    FILE is CSV, JSONL or Parquet, the first two plain or .gz. Fields: arm (or `model`), prompt (a text), prompt.vector (a list of
    numbers), reward (or `score`), cost, signals.NAME, propensity, weights, output, reference, session, metadata.NAME, at, id.
    Columns are found by these names, or named by --map.

    The same command again learns only what is new: rows are known by their id, else by their content.
    """
    from service.cli.import_history import import_file, written

    click.echo(written(import_file(file, **options)))
