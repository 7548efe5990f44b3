"""`nextarm replay FILE`: the command line's options. The work is in `run`, imported only once they are parsed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from service import install_hint
from service.cli.replay.errors import BadInput, ReplayError

_EXAMPLE = 'Example: nextarm replay scores.csv --policy pak-ucb,lin-ucb,greedy --reward "score - 5*cost" --seeds 4'
_COLUMNS = ("prompt_id", "prompt", "model", "score", "cost", "expected", "vector")


def _seeds(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """`4` = seeds 0 to 3; `1,5,9` = these; `7,` = seed 7 alone."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise click.BadParameter("must be a number of seeds, or seeds with commas between")
    numbers = tuple(dict.fromkeys(map(int, parts))) if "," in value else tuple(range(int(parts[0])))
    if not numbers or len(numbers) > 1000 or max(numbers) >= 2**63:
        raise click.BadParameter("must be 1 to 1000 seeds below 2^63")
    return numbers


def _names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise click.BadParameter("must start with http:// or https://")
    return value


@click.command("replay", epilog=_EXAMPLE)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--policy", "policies", multiple=True, help="KIND or KIND:name=value:..., commas between; repeatable. [default: pak-ucb]"
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter, for every --policy that has it.")
@click.option("--policy-json", "objects", multiple=True, metavar="JSON", help="A policy object as the API takes it; repeatable.")
@click.option("--reward", default="score", show_default=True, help="Arithmetic over columns, such as 'score - 5*cost'.")
@click.option("--rounds", type=click.IntRange(1, 10_000_000), help="Rounds per run. [default: every prompt once]")
@click.option("--seeds", default="1", show_default=True, callback=_seeds, help="How many (4), or which (1,5,9).")
@click.option("--order", type=click.Choice(["shuffle", "file"]), default="shuffle", show_default=True, help="Of the prompts.")
@click.option("--bandit-seed", type=click.IntRange(0), help="Seed of the random features. [default: the run's seed]")
@click.option("--models", default="", callback=_names, help="Only these, commas between.")
@click.option("--prompt-embedder", default="", help="vector, minilm, static. [default: vector if the file has one, else minilm]")
@click.option("--vector-from", "one_hot", default="", metavar="COLUMN", help="One-hot of this column as the prompt's vector.")
@click.option("--group", default="", metavar="COLUMN", help="For the best model per group. [default: that of --vector-from]")
@click.option(
    "--price-from", type=click.Choice(["mean", "none"]), default="mean", show_default=True, help="Price of an arm: its mean cost."
)
@click.option("--layout", type=click.Choice(["auto", "long", "wide"]), default="auto", show_default=True, help="Rows per prompt.")
@click.option("--missing", type=click.Choice(["refuse", "drop"]), default="refuse", show_default=True, help="Prompts with holes.")
@click.option("--prompt-id", default="", metavar="COLUMN", help="Name of the prompt.")
@click.option("--prompt-column", "prompt", default="", metavar="COLUMN", help="Text of the prompt.")
@click.option("--model-column", "model", default="", metavar="COLUMN", help="Name of the model (long files).")
@click.option("--score-column", "score", default="", metavar="COLUMN", help="What `score` means in --reward.")
@click.option(
    "--cost-column", "cost", default="", metavar="COLUMN", help="What `cost` means in --reward, and is posted as the cost."
)
@click.option("--expected-column", "expected", default="", metavar="COLUMN", help="Expected score, for the report only.")
@click.option("--vector-column", "vector", default="", metavar="COLUMN", help="Vector of the prompt, a JSON list.")
@click.option("--url", default="", callback=_url, help="A running server. [default: a private one, gone afterwards]")
@click.option("--api-key", default="", envvar="NEXTARM_API_KEY", help="For --url. [env: NEXTARM_API_KEY]")
@click.option("--keep", is_flag=True, help="Leave the bandits on the server of --url.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of plot.png and results.json. [default: out/NAME]"
)
@click.option("--force", is_flag=True, help="Replace plot.png and results.json that are there.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def replay(file: Path, **options: Any) -> None:
    """Play a recorded prompts x models table through the HTTP API.

    FILE is CSV or JSONL, plain or .gz. Long: one row per prompt and model (prompt_id, model, score, cost). Wide: one row per
    prompt with a column per model (and `cost:MODEL` columns where there are costs), or JSON objects {"prompt": "...",
    "vector": [...], "rewards": {"small": 1}, "expected": {...}, "costs": {...}}. Columns are found by their usual names, or named
    by options.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ReplayError(f"nextarm replay needs matplotlib: {install_hint('replay')}")
    from service.cli.replay.layouts import Columns
    from service.cli.replay.run import Options, run

    named = {role: options.pop(role) for role in _COLUMNS}
    group = options.pop("group") or options["one_hot"]
    if options["keep"] and not options["url"]:
        raise BadInput("--keep needs --url: a private server is gone afterwards")
    columns = Columns(**named, group=group, one_hot=options.pop("one_hot"))
    out = options.pop("out") or Path("out") / file.name.split(".")[0]
    run(Options(file=file, columns=columns, out=out, **options))
