"""The command line.

Exit codes: 0 done, 1 failed (a store, a server, a file), 2 wrong usage or settings, 3 two digests differ.
"""

from __future__ import annotations

import asyncio
import errno
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from rich.console import Console

from bandits.errors import BanditError
from service.settings import InvalidSettings, Settings
from service.storage.base import StorageError

if TYPE_CHECKING:
    from service.cli.logs import Source

P = ParamSpec("P")
T = TypeVar("T")


def _plainly(command: Callable[P, T]) -> Callable[P, T]:
    """One clear line instead of a trace for what an operator can mend."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except InvalidSettings as error:
            raise _ended(error, code=2) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has enough; click ends quietly
                raise
            raise _ended(f"{error.filename or 'error'}: {error.strerror or error}", code=1) from None
        except Exception as error:
            if not _expected(error):
                raise
            raise _ended(error, code=1) from None

    return run


def _ended(reason: object, *, code: int) -> SystemExit:
    """One line, whatever a library's message looks like."""
    click.echo(f"nextarm: {' '.join(str(reason).split())}", err=True)
    return SystemExit(code)


def _expected(error: Exception) -> bool:
    """Whether the message says all that an operator needs. (The import takes a second: it brings torch.)"""
    from service.engine.events import UnreadableEvent

    return isinstance(error, StorageError | BanditError | UnreadableEvent)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="nextarm")
def main() -> None:
    """Online model selection: which generative model should answer the next prompt?"""


@main.command()
@click.option("--host", help="Address to listen on. [NEXTARM_HOST, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port, 0 = any free one. [NEXTARM_PORT, 8000]")
@click.option("--store", help="sqlite:///PATH, redis://HOST or memory://. [NEXTARM_STORE, sqlite:///./data/nextarm.db]")
@_plainly
def serve(host: str | None, port: int | None, store: str | None) -> None:
    """Start the service. Everything else is set by NEXTARM_* variables (docs/settings.md)."""
    from service.cli.serve import CannotListen, run

    given = {"host": host, "port": port, "store": store}
    settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
    try:
        run(settings)
    except CannotListen as error:
        raise _ended(error, code=1) from None


store_option = click.option(
    "--store", help="The store to read; a running server does not mind. [NEXTARM_STORE, sqlite:///./data/nextarm.db]"
)


def _of_log(command: Callable[P, T]) -> Callable[P, T]:
    """The argument and options that say which log a command reads, and where from."""
    for add in (
        click.option("--api-key", default="", envvar="NEXTARM_API_KEY", help="For --url, of any role. [NEXTARM_API_KEY]"),
        click.option("--url", default="", help="A running service that has the bandit SOURCE; its log is read over HTTP."),
        store_option,
        click.argument("source"),
    ):
        command = add(command)
    return command


def _settings(store: str | None) -> Settings:
    settings = Settings.load(**({} if store is None else {"store": store}))
    if settings.store == "memory://":
        raise InvalidSettings("NEXTARM_STORE: memory:// ends with its server; name another store, sqlite:///PATH or redis://HOST")
    return settings


def _source(name: str, store: str | None, *, url: str = "", api_key: str = "") -> Source:
    """A bandit of the service at `url`, else the file of that name, else a bandit of the store."""
    from service.cli.logs import Source

    if url:
        return Source(name, url=url, api_key=api_key)
    return Source(name) if Path(name).is_file() else Source(name, _settings(store))


@main.command()
@click.argument("bandit", required=False)
@store_option
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_plainly
def digest(bandit: str | None, store: str | None, quiet: bool) -> None:
    """Replay the log of BANDIT (or of every bandit) from its first event and print offset and sha256 of the folded state.

    They equal what `GET /v1/bandits/BANDIT/digest` answers at the same offset. Exit code 3 if a kept snapshot, replayed to the
    end, gives another digest.
    """
    from service.cli.logs import digests

    differing = False
    for line in asyncio.run(digests(_settings(store), bandit, quiet=quiet)):
        click.echo(f"{line.bandit}\t{line.offset}\t{line.sha256}")
        differing = differing or not line.snapshot_agrees
    if differing:
        click.echo("nextarm: a snapshot and the log disagree", err=True)
        sys.exit(3)


@main.command()
@click.argument("bandit")
@store_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; default: standard output.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--format", "form", type=click.Choice(["ndjson", "parquet", "obp", "dsjson"]), default="ndjson", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_plainly
def export(bandit: str, store: str | None, out: Path | None, *, force: bool, form: str, quiet: bool) -> None:
    """Write the log of BANDIT as NDJSON, one event per line, as `GET /v1/bandits/BANDIT/log` streams it.

    --format parquet is a table of all decisions with what came of each; obp is a NumPy archive for Open Bandit Pipeline, dsjson
    is for Vowpal Wabbit: decisions with their rewards.
    """
    from service.cli.formats import convert
    from service.cli.logs import check_free
    from service.cli.logs import export as run

    if out is None:
        if form != "ndjson":
            raise click.UsageError(f"--format {form} needs --out FILE")
        asyncio.run(run(_settings(store), bandit, sys.stdout.buffer, quiet=True))
        return
    check_free(out, force=force)
    partial, raw = out.with_name(out.name + ".partial"), out.with_name(out.name + ".events")
    try:
        with partial.open("wb") as file:
            if form == "ndjson":
                asyncio.run(run(_settings(store), bandit, file, quiet=quiet))
            else:
                with raw.open("wb") as events:
                    asyncio.run(run(_settings(store), bandit, events, quiet=quiet))
                convert(raw, file, form)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
        raw.unlink(missing_ok=True)


@main.command()
@click.argument("source")
@store_option
@click.option("--url", default="", help="A running service that has the bandit SOURCE, and evaluates it itself.")
@click.option("--api-key", default="", envvar="NEXTARM_API_KEY", help="For --url, of an admin. [NEXTARM_API_KEY]")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    help="Its kind, a JSON object as a bandit's `policy`, frozen:OFFSET for the bandit's own as it was then, or "
    "shadow:NAME; any number.",
)
@click.option("--since", default="", help="Count decisions from this offset or time (RFC 3339) on.")
@click.option(
    "--reward-range", nargs=2, type=float, help="Lowest and highest reward that is possible; adds the anytime interval."
)
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True)
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    type=click.Choice(["snips", "ips", "dr", "sndr", "dm"]),
    help="The first one is shown, JSON has all that are named. [snips]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    help="Processes that share the policies. [1; with --executor, as many as its workers have threads]",
)
@click.option("--executor", default="", help="dask://HOST:PORT, a scheduler on whose workers these processes run. [this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw values and intervals into this PNG, SVG or PDF."
)
@click.option("--force", is_flag=True, help="Replace a plot that exists.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_plainly
def evaluate(
    source: str,
    store: str | None,
    policies: tuple[str, ...],
    reward_range: tuple[float, float] | None,
    estimators: tuple[str, ...],
    *,
    url: str,
    api_key: str,
    jobs: int | None,
    executor: str,
    as_json: bool,
    plot: Path | None,
    force: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """What would other policies have earned on the decisions of SOURCE: a bandit of the store or of --url, or a file of `export`.

    Every fixed arm is evaluated, and each --policy, which learns along the log. Nothing is changed, a running server is not
    disturbed. The verdict says whether the log can answer.
    """
    from service.cli import evaluate as command
    from service.cli.evaluation_plot import save_plot
    from service.cli.logs import check_free
    from service.cli.plotting import check_plot
    from service.engine.evaluation_process import Plan

    if url and (jobs is not None or executor):
        option = "--executor" if executor else "--jobs"
        raise click.UsageError(f"{option} is for an evaluation by this command; with --url the service evaluates, in one process")
    if plot is not None:
        check_plot(plot)
        check_free(plot, force=force)
    plan = Plan(
        source=source,
        settings=None if url or Path(source).is_file() else _settings(store).model_dump(),
        policies=[command.parse_candidate(text) for text in policies],
        reward_range=reward_range,
        estimators=estimators or ("snips",),
        **options,
    )
    if url:
        results = command.evaluate_remotely(plan, url=url, api_key=api_key, quiet=quiet)
    elif executor:
        results = command.evaluate_on(executor, plan, jobs=jobs, quiet=quiet)
    else:
        results = asyncio.run(command.evaluate(plan, jobs=jobs or 1, quiet=quiet))
    if plot is not None:
        save_plot(plot, results, command.ordered(results))
    if as_json:
        click.echo(json.dumps(results))
    else:
        console = Console()
        console.print(command.as_table(results, width=console.width))


@main.command()
@_of_log
@click.option("--format", "form", type=click.Choice(["text", "json", "html"]), help="[default: by the ending of -o, else text]")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; default: standard output.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True)
@click.option(
    "--reward-range", nargs=2, type=float, help="Lowest and highest reward that is possible; adds an interval of the gain."
)
@click.option("--groups", type=click.IntRange(2, 50), default=6, show_default=True, help="Of prompts, at most.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_plainly
def report(source: str, store: str | None, url: str, api_key: str, **options: Any) -> None:
    """What a bandit earned and cost so far, by its own log: SOURCE is a bandit of the store, or a file that `export` wrote.

    The gain over the best fixed arm, what exploration cost, where the prompt pays, cost per solved prompt, what is missing, and
    every arm. Nothing is changed, a running server is not disturbed.
    """
    from service.cli.report.command import run

    run(_source(source, store, url=url, api_key=api_key), **options)


@main.command()
@_of_log
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="PNG, SVG or PDF to write. [default: the bandit's .png]"
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_plainly
def plot(source: str, store: str | None, url: str, api_key: str, out: Path | None, **options: Any) -> None:
    """Draw a bandit as it is: SOURCE is a bandit of the store, or a file that `export` wrote.

    Shares of the arms over time, the reward with its interval, and every arm with its estimate. Nothing is changed, a running
    server is not disturbed.
    """
    from service.cli.report.command import draw

    draw(_source(source, store, url=url, api_key=api_key), out=out or Path(f"{Path(source).stem}.png"), **options)


@main.command()
@click.argument("destination", type=click.Path(dir_okay=False, path_type=Path))
@store_option
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@_plainly
def backup(destination: Path, store: str | None, force: bool) -> None:
    """Copy an SQLite store to DESTINATION while the server runs; the copy is complete and consistent.

    A copy made by `cp` is neither: the newest events are in another file. A file that exists is not overwritten.
    """
    from service.cli.logs import backup as run

    run(_settings(store), destination, force=force)


@main.command()
@click.argument("source")
@click.argument("destination")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_plainly
def migrate(source: str, destination: str, quiet: bool) -> None:
    """Copy every bandit of the store SOURCE into DESTINATION: sqlite:///PATH or redis://HOST, either way.

    No server may use either of them meanwhile. Both sides are replayed afterwards, and their digests compared. What an
    interrupted call has copied stays, and the next call goes on. NEXTARM_REDIS_* settings hold as for `serve`.
    """
    from service.cli.migrate import migrate as run

    for line in asyncio.run(run(_settings(source), _settings(destination), quiet=quiet)):
        click.echo(f"{line.bandit}\t{line.events}\t{line.sha256}")


def _add_replay() -> None:
    from service.cli.replay.command import replay

    main.add_command(replay)


def _add_import() -> None:
    from service.cli.import_command import import_history

    main.add_command(import_history)


_add_replay()
_add_import()

if __name__ == "__main__":
    main()
