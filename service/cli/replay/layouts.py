"""Layouts of input files: groups rows into prompts with one set of cells per arm.

long   one row per prompt and model:   prompt_id, prompt, model, score, cost
wide   one row per prompt:             prompt_id, prompt, small, large, cost:small, cost:large
                                       {"prompt": "...", "vector": [..], "rewards": {"small": 1}, "costs": {"small": 0.01}}
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from service.cli.replay.errors import BadInput
from service.cli.replay.records import Row, is_missing, number

Layout = Literal["auto", "long", "wide"]

KNOWN: dict[str, tuple[str, ...]] = {
    "prompt_id": ("prompt_id", "task_id", "question_id", "sample_id", "id"),
    "prompt": ("prompt", "text", "question", "input", "instruction"),
    "model": ("model", "model_name", "arm", "llm"),
    "score": ("score", "scores", "reward", "rewards", "correct", "accuracy", "passed"),
    "cost": ("cost", "costs", "cost_usd", "usd"),
    "expected": ("expected", "expected_score", "expected_reward"),
    "vector": ("vector", "embedding", "features"),
}
"""Default names of the columns; the first that the file has is used, in any letter case."""

_INDEX = frozenset({"row", "index"})  # columns of numbers that are never a model


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what; "" = found by name (`KNOWN`). group and one_hot are used only where named."""

    prompt_id: str = ""
    prompt: str = ""
    model: str = ""
    score: str = ""
    cost: str = ""
    expected: str = ""
    vector: str = ""
    group: str = ""
    one_hot: str = ""


@dataclass(frozen=True)
class Prompt:
    """One prompt. shared: its own columns.  cells: per arm every column that holds for it; an arm without a row is absent."""

    name: str
    line: int
    shared: Mapping[str, Any]
    cells: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Every prompt of a file. columns: all that were found, by the role that they play ("" = the file has none)."""

    prompts: tuple[Prompt, ...]
    arms: tuple[str, ...]
    columns: Columns
    names: frozenset[str]


def arrange(rows: Sequence[Row], *, columns: Columns, layout: Layout = "auto", models: Sequence[str] = ()) -> Prompts:
    """Sort the rows into prompts. models: the arms to play, in this order; () = every one that the file has."""
    present = dict.fromkeys(name for row in rows for name in row.cells)
    for item in fields(columns):
        named = getattr(columns, item.name)
        if named and named not in present:
            raise BadInput(f"there is no column {named!r}; the file has {_listed(present)}")
    found = replace(columns, **{role: getattr(columns, role) or _known(role, present) for role in KNOWN})
    if layout == "long" and not found.model:
        raise BadInput(f"name the column of the model (--model-column); the file has {_listed(present)}")
    if found.model and layout != "wide":
        return _long(rows, found, models)
    return _wide(rows, found, models)


def _known(role: str, present: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in present}
    return next((by_lower[name] for name in KNOWN[role] if name in by_lower), "")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:30]) + (f" and {len(every) - 30} more" if len(every) > 30 else "")


def _chosen(models: Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """The arms to play, checked against those of the file."""
    for name in models:
        if name not in present:
            raise BadInput(f"there is no model {name!r}; the file has {_listed(present)}")
    arms = tuple(dict.fromkeys(models)) or tuple(present)
    if len(arms) < 2:
        raise BadInput(f"a replay needs at least two models; found {_listed(arms) or 'none'} (see --models, --model-column)")
    return arms


# -- one row per prompt and model ------------------------------------------------------------------------------------------


def _long(rows: Sequence[Row], columns: Columns, models: Sequence[str]) -> Prompts:
    key = columns.prompt_id or columns.prompt
    if not key:
        raise BadInput(f"name the column of the prompt (--prompt-id); the file has {_listed(rows[0].cells)}")
    first: dict[str, Row] = {}
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        name, arm = (_text(row, column) for column in (key, columns.model))
        if arm in cells.setdefault(name, {}):
            raise BadInput(f"line {row.line}: prompt {name[:60]!r} has a second row for model {arm!r}; keep one, or average them")
        cells[name][arm] = row.cells
        first.setdefault(name, row)
    arms = _chosen(models, list(dict.fromkeys(arm for per_arm in cells.values() for arm in per_arm)))
    return Prompts(
        prompts=tuple(Prompt(name, row.line, row.cells, cells[name]) for name, row in first.items()),
        arms=arms,
        columns=columns,
        names=frozenset(name for row in rows for name in row.cells),
    )


def _text(row: Row, column: str) -> str:
    value = row.cells.get(column)
    if is_missing(value) or isinstance(value, dict | list):
        raise BadInput(f"line {row.line}: {column} is missing")
    return str(value).strip()


# -- one row per prompt ----------------------------------------------------------------------------------------------------

_Cells = list[dict[str, dict[str, Any]]]


def _wide(rows: Sequence[Row], columns: Columns, models: Sequence[str]) -> Prompts:
    nested = any(isinstance(row.cells.get(columns.score), dict) for row in rows)
    arms, columns, cells = (_nested if nested else _flat)(rows, columns, models)
    prompts: dict[str, Prompt] = {}
    for row, per_arm in zip(rows, cells, strict=True):
        name = _text(row, columns.prompt_id) if columns.prompt_id else f"line {row.line}"
        if name in prompts:
            raise BadInput(f"line {row.line}: prompt {name[:60]!r} has a second row; a wide file has one row per prompt")
        shared = {column: value for column, value in row.cells.items() if not isinstance(value, dict)}
        prompts[name] = Prompt(name, row.line, shared, {arm: ChainMap(numbers, shared) for arm, numbers in per_arm.items()})
    names = {
        column
        for row, per_arm in zip(rows, cells, strict=True)
        for numbers in (row.cells, *per_arm.values())
        for column in numbers
    }
    return Prompts(prompts=tuple(prompts.values()), arms=arms, columns=columns, names=frozenset(names))


def _nested(rows: Sequence[Row], columns: Columns, models: Sequence[str]) -> tuple[tuple[str, ...], Columns, _Cells]:
    """Columns that hold an object are per model: {"rewards": {"small": 1}, "costs": {"small": 0.01}}."""

    def numbers(row: Row, column: str) -> dict[str, Any]:
        value = row.cells.get(column)
        if value is not None and not isinstance(value, dict):
            raise BadInput(f"line {row.line}: {column} must be an object with one number per model, as in the other rows")
        return value or {}

    per_model = dict.fromkeys(name for row in rows for name, value in row.cells.items() if isinstance(value, dict))
    arms = _chosen(models, list(dict.fromkeys(arm for row in rows for arm in numbers(row, columns.score))))
    cells = []
    for row in rows:
        by_column = {column: numbers(row, column) for column in per_model}
        cells.append({arm: {column: values.get(arm) for column, values in by_column.items()} for arm in arms})
    return arms, columns, cells


def _flat(rows: Sequence[Row], columns: Columns, models: Sequence[str]) -> tuple[tuple[str, ...], Columns, _Cells]:
    """A column per model holds its score; a column `NAME:MODEL` a further number of that model."""
    present = dict.fromkeys(name for row in rows for name in row.cells)
    further = {name for name in present if ":" in name and name.partition(":")[2] in present}
    taken = {getattr(columns, item.name) for item in fields(columns)} | further | _INDEX
    numeric = [name for name in present if name not in taken and _is_numeric(row.cells.get(name) for row in rows)]
    arms = _chosen(models, list(present) if models else numeric)
    prefixes = sorted({name.partition(":")[0] for name in further})
    columns = replace(
        columns,
        score="score",
        cost="cost" if "cost" in prefixes else columns.cost,
        expected="expected" if "expected" in prefixes else columns.expected,
    )
    cells = [
        {arm: {"score": row.cells.get(arm)} | {prefix: row.cells.get(f"{prefix}:{arm}") for prefix in prefixes} for arm in arms}
        for row in rows
    ]
    return arms, columns, cells


def _is_numeric(values: Iterable[Any]) -> bool:
    """Whether a column holds numbers, holes allowed, and at least one number."""
    try:
        return len([value for value in values if number(value) is not None]) > 0
    except ValueError:
        return False
