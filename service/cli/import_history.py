"""`nextarm import`: the rows of a file become outcomes that a running bandit learns, through its HTTP route.

    CSV, JSONL, Parquet ──read_rows──> Columns ──> chunks ──POST .../import──> learned, once by id

A row without an id gets one from the name of the file and its content, so that a file that was cut off, or mended, is imported
again and only what is new is learned.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.progress import Progress

from service.cli.replay.errors import BadInput, ReplayError, ServerError
from service.cli.replay.layouts import KNOWN
from service.cli.replay.player import Api, connect
from service.cli.replay.records import Row, is_missing, number, read_rows

CHUNK = 1_024
"""Rows of one request."""
CHUNK_BYTES = 4 * 2**20
"""Of one request, from which on it takes no further row."""

ROLES = {"arm": "model", "prompt": "prompt", "prompt.vector": "vector", "reward": "score", "cost": "cost"}
"""Field -> the columns that are taken for it where they have one of its usual names."""
NUMBERS = ("reward", "cost", "propensity")
TEXTS = ("id", "arm", "session", "at")
CONTENTS = ("prompt", "output", "reference")
KINDS = ("text", "vector", "image", "probabilities", "messages")
OBJECTS = ("signals", "weights", "metadata")
FIELDS = (*NUMBERS, *TEXTS, *CONTENTS, *OBJECTS)
_PATH = re.compile(r"^rows\.(\d+)\.?(.*)$", re.DOTALL)


class Summary(NamedTuple):
    """The result of an import. unused: columns that are no field."""

    rows: int
    learned: int
    duplicates: int
    offset: int
    unused: tuple[str, ...]


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """The field of each column, from `column=field`."""
    found: dict[str, str] = {}
    for pair in pairs:
        column, _, field = (part.strip() for part in pair.rpartition("="))
        if not column:
            raise BadInput(f"--map {pair!r} is not COLUMN=FIELD")
        if not _is_field(field):
            raise BadInput(f"--map {pair!r}: {field!r} is no field; there are {', '.join(FIELDS)}, prompt.vector, signals.NAME")
        if column in found:
            raise BadInput(f"--map names the column {column!r} twice")
        found[column] = field
    fields = Counter(found.values())
    if twice := [field for field, times in fields.items() if times > 1]:
        raise BadInput(f"--map gives {twice[0]!r} two columns")
    return found


def _is_field(field: str) -> bool:
    whole, dot, part = field.partition(".")
    if not dot:
        return whole in FIELDS
    return (whole in CONTENTS and part in KINDS) or (whole in OBJECTS and bool(part))


@dataclass(frozen=True)
class Columns:
    """The columns of a file by what they hold. fields: column -> field of a row."""

    fields: Mapping[str, str]

    @staticmethod
    def of(columns: Sequence[str], given: Mapping[str, str]) -> Columns:
        """Those that are named, those called like a field, and the usual names of the others."""
        if missing := [column for column in given if column not in columns]:
            raise BadInput(f"--map names {missing[0]!r}, which is not a column; there are {', '.join(columns)}")
        fields = dict(given)
        free = [column for column in columns if column not in fields]
        for column in free:
            if _is_field(column) and column not in fields.values():
                fields[column] = column
        by_lower = {column.lower(): column for column in reversed(free) if column not in fields}
        for field, role in ROLES.items():
            taken = {name.partition(".")[0] if field.startswith("prompt") else name for name in fields.values()}
            if field.partition(".")[0] in taken:
                continue
            names = ("vector", *KNOWN[role]) if field == "prompt.vector" else KNOWN[role]
            if column := next((by_lower[name] for name in names if name in by_lower), ""):
                fields[column] = field
        if "arm" not in fields.values():
            raise BadInput(f"no column is the arm; name it with --map COLUMN=arm, the file has {', '.join(columns)}")
        return Columns(fields)

    def body(self, row: Row) -> dict[str, Any]:
        """The row as the route takes it. `BadInput` names line and column."""
        body: dict[str, Any] = {}
        for column, field in self.fields.items():
            cell = row.cells.get(column)
            if is_missing(cell):
                continue
            try:
                _put(body, field, cell)
            except ValueError as error:
                raise BadInput(f"line {row.line}: {column} {error}") from None
        return body


def _put(body: dict[str, Any], field: str, cell: Any) -> None:
    whole, dot, part = field.partition(".")
    if whole in NUMBERS or (whole == "signals" and dot):
        value: Any = number(cell)
    elif whole in TEXTS:
        value = cell.isoformat() if isinstance(cell, datetime) else str(cell)
    elif whole in CONTENTS:
        _put_content(body, whole, part, cell)
        return
    elif dot:
        value = cell if isinstance(cell, str | int | float | bool | list | dict) else str(cell)
    else:
        value = _from_json(cell, dict)
    if dot:
        body.setdefault(whole, {})[part] = value
    elif isinstance(value, dict):
        body.setdefault(whole, {}).update(value)
    else:
        body[whole] = value


def _put_content(body: dict[str, Any], field: str, kind: str, cell: Any) -> None:
    if not kind and isinstance(cell, dict | list) and not _is_vector(cell):
        body[field] = cell  # as the route takes it: an object, or several outputs
    elif kind in ("vector", "probabilities") or (not kind and _is_vector(cell)):
        body[field] = {kind or "vector": _vector(_from_json(cell, list))}
    elif kind == "messages":
        body[field] = {kind: _from_json(cell, list)}
    else:
        body[field] = {kind or "text": str(cell)}


def _is_vector(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(type(item) in (int, float) for item in cell)


def _vector(numbers: list[Any]) -> str:
    """Base64 of little-endian float32."""
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(item) for item in numbers], dtype="<f4")
    except (TypeError, ValueError, OverflowError):
        raise ValueError("is not a list of numbers") from None
    if not vector.size or not np.isfinite(vector).all():
        raise ValueError("must hold finite numbers, at least one")
    return base64.b64encode(vector.tobytes()).decode()


def _from_json(cell: Any, kind: type) -> Any:
    """An object or a list, as it is or written as JSON."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError("is not JSON") from None
    if not isinstance(cell, kind):
        raise ValueError("is not a JSON object" if kind is dict else "is not a list")
    return cell


class _Chunk(NamedTuple):
    """The rows of one request, and the line of each."""

    bodies: list[dict[str, Any]]
    lines: list[int]


def _chunks(bodies: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[_Chunk]:
    chunk, size = _Chunk([], []), 0
    for line, body in bodies:
        chunk.bodies.append(body)
        chunk.lines.append(line)
        size += len(json.dumps(body))
        if len(chunk.bodies) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = _Chunk([], []), 0
    if chunk.bodies:
        yield chunk


def _with_ids(rows: Sequence[Row], mapping: Columns, namespace: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, body); equal rows without ids are numbered."""
    seen: Counter[str] = Counter()
    for row in rows:
        body = mapping.body(row)
        if "id" not in body:
            content = json.dumps([namespace, body], sort_keys=True)
            digest = hashlib.sha256(content.encode()).hexdigest()[:32]
            seen[digest] += 1
            body["id"] = f"{digest}-{seen[digest]}"
        yield row.line, body


def import_file(
    path: Path, bandit: str, *, url: str, api_key: str = "", pairs: Sequence[str] = (), namespace: str = "", quiet: bool = False
) -> Summary:
    """Import every row of a file. Raises `BadInput` for what is wrong in it, with the line, and `ServerError`."""
    given = parse_mapping(pairs)
    rows = read_rows(path)
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    try:
        mapping = Columns.of(columns, given)
        bodies = _with_ids(rows, mapping, namespace or path.name)
        unused = tuple(column for column in columns if column not in mapping.fields)
        with (
            connect(url, private=False, api_key=api_key) as api,
            Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress,
        ):
            task = progress.add_task(f"importing {path.name}", total=len(rows))
            learned, duplicates, offset = _post_all(api, bandit, bodies, each=lambda n: progress.advance(task, n))
    except BadInput as error:
        raise BadInput(error.message if error.message.startswith("--map") else f"{path.name}: {error.message}") from None
    return Summary(len(rows), learned, duplicates, offset, unused)


def _post_all(
    api: Api, bandit: str, bodies: Iterator[tuple[int, dict[str, Any]]], *, each: Callable[[int], object]
) -> tuple[int, int, int]:
    learned = duplicates = offset = 0
    try:
        for chunk in _chunks(bodies):
            receipt = _post(api, bandit, chunk)
            learned, duplicates = learned + receipt["learned"], duplicates + receipt["duplicates"]
            offset = max(offset, receipt["offset"])
            each(len(chunk.bodies))
    except ReplayError as error:
        done = learned + duplicates
        hint = f" ({done:,} rows before are learned; run the same command again, it learns only what is new)" if done else ""
        raise type(error)(error.message + hint) from None
    return learned, duplicates, offset


def _post(api: Api, bandit: str, chunk: _Chunk) -> dict[str, Any]:
    """The receipt; a row that the server refuses is named by its line."""
    try:
        receipt: dict[str, Any] = api.call("POST", f"/v1/bandits/{quote(bandit, safe='')}/import", {"rows": chunk.bodies})
    except ServerError as error:
        named = [(match, message) for path, message in error.wrong if (match := _PATH.match(path))]
        if not named:
            raise
        match, message = named[0]
        more = f" (and {len(named) - 1} more in these {len(chunk.lines)} rows)" if len(named) > 1 else ""
        raise BadInput(f"line {chunk.lines[int(match[1])]}: {match[2]} {message}{more}") from None
    return receipt


def written(summary: Summary) -> str:
    """What happened, in one line."""
    text = f"{summary.learned:,} rows learned, {summary.duplicates:,} known before; the log is at offset {summary.offset}"
    return text + (f"; columns not used: {', '.join(summary.unused)}" if summary.unused else "")
