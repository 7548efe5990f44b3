"""A validated prompts x models table: what every model would have earned on every prompt.

A number that the reward needs and the file lacks is a hole. Holes are refused, with the first of them named, or their prompts are
dropped (`missing="drop"`) and counted; a hole is never read as 0, because that would punish the model that was not asked.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from service.cli.replay.errors import BadInput
from service.cli.replay.expression import Expression, parse
from service.cli.replay.layouts import Columns, Layout, Prompt, Prompts, arrange
from service.cli.replay.records import is_missing, number, read_rows


@dataclass(frozen=True, kw_only=True)
class Table:
    """T prompts x K arms.

    texts: T prompts, () = none.  vectors: (T, d) float32, (T, 0) = none.  groups: T names, () = none.
    rewards: (T, K) what an outcome would report.  expected: (T, K) its expectation; equal to `rewards` unless `has_expected`.
    costs: (T, K) >= 0, zeros unless `has_costs`.  dropped: prompts left out because of holes.
    """

    name: str
    arms: tuple[str, ...]
    prompts: tuple[str, ...]
    rewards: np.ndarray
    expected: np.ndarray
    costs: np.ndarray
    texts: tuple[str, ...] = ()
    vectors: np.ndarray
    groups: tuple[str, ...] = ()
    has_expected: bool = False
    has_costs: bool = False
    dropped: int = 0

    def bodies(self, embedder: str) -> list[dict[str, str]]:
        """The prompts as the API takes them: the vectors for the embedder `vector`, else the texts."""
        if embedder == "vector":
            if not self.vectors.size:
                raise BadInput(f"{self.name} has no vectors; name their column, or use --vector-from or --prompt-embedder minilm")
            packed = self.vectors.astype("<f4")
            return [{"vector": base64.b64encode(row.tobytes()).decode()} for row in packed]
        empty = (
            next((name for name, text in zip(self.prompts, self.texts, strict=True) if not text), "") if self.texts else "every"
        )
        if empty:
            raise BadInput(f"{self.name} has no text for prompt {empty!r}, which the embedder {embedder!r} needs")
        return [{"text": text} for text in self.texts]


def read_table(
    path: Path,
    *,
    reward: str = "score",
    columns: Columns | None = None,
    layout: Layout = "auto",
    models: Sequence[str] = (),
    missing: Literal["refuse", "drop"] = "refuse",
) -> Table:
    """The table in a file, or `BadInput` saying what is wrong with it and where."""
    columns = columns or Columns()
    expression = parse(reward)
    try:
        prompts = arrange(read_rows(path), columns=columns, layout=layout, models=models)
        return _table(path.name, prompts, expression, drop=missing == "drop")
    except BadInput as error:
        if error.message.startswith(path.name):
            raise
        raise BadInput(f"{path.name}: {error.message}") from None


def _table(name: str, found: Prompts, reward: Expression, *, drop: bool) -> Table:
    reads = {variable: _column(variable, found) for variable in reward.names}
    columns = found.columns
    expects = {variable: columns.expected if column == columns.score else column for variable, column in reads.items()}
    has_expected = bool(columns.expected) and expects != reads
    rewards, holes = _numbers(found, reward, reads)
    expected, more = _numbers(found, reward, expects) if has_expected else (rewards, [])
    costs, still_more = _numbers(found, parse("cost"), {"cost": columns.cost}) if columns.cost else (np.zeros_like(rewards), [])
    keep = _without_holes([*holes, *more, *still_more], found, drop=drop)
    prompts = [found.prompts[t] for t in keep]
    negative = np.argwhere(costs[keep] < 0)
    if len(negative):
        t, k = negative[0]
        raise BadInput(f"line {prompts[t].line}: {columns.cost} of {found.arms[k]} is negative")
    return Table(
        name=name,
        arms=found.arms,
        prompts=tuple(prompt.name for prompt in prompts),
        rewards=rewards[keep],
        expected=expected[keep],
        costs=costs[keep],
        texts=tuple(_text(prompt, columns.prompt) for prompt in prompts) if columns.prompt else (),
        vectors=_one_hot(prompts, columns.one_hot) if columns.one_hot else _vectors(prompts, columns.vector),
        groups=tuple(_text(prompt, columns.group) or "(none)" for prompt in prompts) if columns.group else (),
        has_expected=has_expected,
        has_costs=bool(columns.cost),
        dropped=len(found.prompts) - len(keep),
    )


# -- numbers ---------------------------------------------------------------------------------------------------------------


def _column(variable: str, found: Prompts) -> str:
    """The column that a name in the reward stands for: its own, one that differs in punctuation only, or one of that role."""
    if variable in found.names:
        return variable
    spelt = {re.sub(r"\W", "_", name): name for name in sorted(found.names, reverse=True)}
    if variable in spelt:
        return spelt[variable]
    columns = found.columns
    roles = {"score": columns.score, "reward": columns.score, "cost": columns.cost, "expected": columns.expected}
    if roles.get(variable):
        return roles[variable]
    raise BadInput(f"the reward reads {variable!r}, which is not a column; there are {', '.join(sorted(found.names)[:30])}")


def _numbers(found: Prompts, reward: Expression, columns: Mapping[str, str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """(T, K) values of an expression, NaN in the holes; and the holes: index of the prompt, and what is missing there."""
    values = np.full((len(found.prompts), len(found.arms)), np.nan)
    holes: list[tuple[int, str]] = []
    for t, prompt in enumerate(found.prompts):
        for k, arm in enumerate(found.arms):
            if arm not in prompt.cells:
                holes.append((t, f"model {arm} has no row"))
                continue
            given = {variable: _cell(prompt, arm, column) for variable, column in columns.items()}
            lacking = next((columns[variable] for variable, value in given.items() if value is None), None)
            if lacking is not None:
                holes.append((t, f"{lacking} of {arm} is missing"))
                continue
            try:
                values[t, k] = reward({variable: value for variable, value in given.items() if value is not None})
            except BadInput as error:
                raise BadInput(f"line {prompt.line}, model {arm}: {error.message}") from None
    return values, holes


def _cell(prompt: Prompt, arm: str, column: str) -> float | None:
    value = prompt.cells[arm].get(column)
    try:
        return number(value)
    except ValueError as error:
        raise BadInput(f"line {prompt.line}: {column} of {arm} {error}: {str(value)[:40]!r}") from None


def _without_holes(holes: Sequence[tuple[int, str]], found: Prompts, *, drop: bool) -> list[int]:
    """Indices of the prompts to play."""
    broken = {t for t, _ in holes}
    if holes and not drop:
        t, what = min(holes)
        raise BadInput(
            f"line {found.prompts[t].line}: {what}; {len(broken)} of {len(found.prompts)} prompts have holes "
            "(--missing drop leaves them out)"
        )
    keep = [t for t in range(len(found.prompts)) if t not in broken]
    if not keep:
        raise BadInput("every prompt has a hole; nothing is left to play")
    return keep


# -- prompts ---------------------------------------------------------------------------------------------------------------


def _text(prompt: Prompt, column: str) -> str:
    value = prompt.shared.get(column)
    return "" if value is None else str(value).strip()


def _one_hot(prompts: Sequence[Prompt], column: str) -> np.ndarray:
    """(T, d) one coordinate per distinct value of a column, in sorted order."""
    values = [_text(prompt, column) for prompt in prompts]
    if "" in values:
        raise BadInput(f"line {prompts[values.index('')].line}: {column} is missing, and the vector is made from it")
    order = {value: i for i, value in enumerate(sorted(set(values)))}
    return np.eye(len(order), dtype=np.float32)[[order[value] for value in values]]


def _vectors(prompts: Sequence[Prompt], column: str) -> np.ndarray:
    """(T, d) float32 from a column of JSON lists; (T, 0) without one."""
    if not column:
        return np.empty((len(prompts), 0), dtype=np.float32)
    rows = [_vector(prompt, column) for prompt in prompts]
    odd = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), 0)
    if odd:
        raise BadInput(f"line {prompts[odd].line}: {column} has {len(rows[odd])} numbers, the first row has {len(rows[0])}")
    return np.stack(rows)


def _vector(prompt: Prompt, column: str) -> np.ndarray:
    value: Any = prompt.shared.get(column)
    if is_missing(value):
        raise BadInput(f"line {prompt.line}: {column} is missing")
    try:
        numbers = json.loads(value) if isinstance(value, str) else value
        with np.errstate(over="ignore"):
            row = np.array([float(x) for x in numbers], dtype=np.float32)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise BadInput(f"line {prompt.line}: {column} is not a list of numbers") from None
    if not row.size or not np.isfinite(row).all():
        raise BadInput(f"line {prompt.line}: {column} must hold finite numbers, at least one")
    return row
