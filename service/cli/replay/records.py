"""Reads the rows of a CSV or JSONL file, plain or gzipped, or of a Parquet file, each with its line number."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import install_hint
from service.cli.replay.errors import BadInput

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})  # how spreadsheets, pandas and R write an empty cell
_TRUTH = {"true": 1.0, "false": 0.0}
_LONGEST_CELL = 64 * 1024 * 1024  # characters; the csv module refuses prompts above 128 KiB by default


_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Row:
    """One row: its line in the file (of Parquet its number, from 1), and its cells by column (text from a CSV, any JSON value
    from a JSONL, what the schema says from Parquet).
    """

    line: int
    cells: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Every row, or `BadInput` naming the line that is wrong. Parquet by its first bytes, JSONL where the first character is `{`,
    else CSV.
    """
    try:
        if path.is_file() and not path.name.endswith(".gz"):
            with path.open("rb") as raw:
                if raw.read(len(_PARQUET)) == _PARQUET:
                    return _parquet(path)
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as raw:
            text = raw.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not UTF-8 text (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = list(_jsonl(path.name, text) if text.lstrip()[:1] == "{" else _csv(path.name, text))
    if not rows:
        raise BadInput(f"{path.name} has no rows")
    return rows


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise BadInput(f"{path.name} is Parquet, which needs pyarrow: {install_hint('parquet')}") from None
    try:
        cells = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise BadInput(f"{path.name} cannot be read: {error}") from None
    if not cells:
        raise BadInput(f"{path.name} has no rows")
    return [Row(number, row) for number, row in enumerate(cells, start=1)]


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, NaN, or one of the words for it."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any) -> float | None:
    """The number in a cell, None where it is missing, `ValueError` where it is something else or not finite.

    >>> number(" 0.5 "), number("True"), number("NA"), number(float("nan"))
    (0.5, 1.0, None, None)
    """
    if is_missing(value):
        return None
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    if not isinstance(value, str | bool | int | float) or (isinstance(value, str) and "_" in value):
        raise ValueError("is not a number")  # float("1_000") is 1000 to Python, and a slip to everyone else
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not math.isfinite(result):
        raise ValueError("is not finite")
    return result


def _jsonl(name: str, text: str) -> Iterator[Row]:
    for line, record in enumerate(text.split("\n"), start=1):
        if not record.strip():
            continue
        try:
            cells = json.loads(record)
        except (ValueError, RecursionError):
            raise BadInput(f"{name} line {line} is not JSON") from None
        if not isinstance(cells, dict):
            raise BadInput(f"{name} line {line} is not a JSON object")
        yield Row(line, cells)


def _csv(name: str, text: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        if header and not header[0]:
            header[0] = "row"  # pandas writes its index without a name
        if len(set(header)) != len(header) or "" in header:
            raise BadInput(f"{name} line 1 must name every column, and none twice")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise BadInput(f"{name} line {reader.line_num} has {len(cells)} cells under {len(header)} columns")
            yield Row(reader.line_num, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise BadInput(f"{name} line {reader.line_num} is not CSV: {error}") from None
