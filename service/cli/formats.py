"""Formats of an exported log beside its own: what other tools read.

    parquet  a table with a row per decision, for pandas, polars, DuckDB and the like
    obp      a NumPy archive with the arrays of Open Bandit Pipeline's `bandit_feedback`
    dsjson   a line of JSON per decision, as Vowpal Wabbit's `--dsjson` reads it

The table has every decision; the other two those with a reward of the arm that was drawn, as the rest have no propensity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from service import install_hint
from service.cli.log_reader import Arm, Decision, LogError, LogReader, amendments
from service.storage.base import StorageDamagedError, StorageUnavailableError

Lines = Iterable[bytes]
Amended = Mapping[str, Mapping[str, Any]]

ROWS = 10_000
"""Of a row group: as many decisions are held at once."""


def _rewarded(reader: LogReader, lines: Lines) -> Iterator[tuple[Decision, float]]:
    """Decisions with a reward of the arm that was drawn, in the order of their outcomes."""
    for decision in reader.read(lines):
        if (
            decision.has_outcome
            and decision.reward is not None
            and not decision.is_overridden
            and decision.propensity is not None
        ):
            yield decision, decision.reward


def write_obp(lines: Lines, out: BinaryIO, amended: Amended | None = None) -> int:
    """How many decisions were written. Arms that came later have the probability 0 before."""
    reader = LogReader(amended)
    rows = list(_rewarded(reader, lines))
    if not rows:
        raise StorageUnavailableError(
            "the log has no decision of its own with a reward of the arm that was drawn, and --format obp holds nothing else; "
            "leave out --format to export the log itself"
        )
    features = [np.frombuffer(decision.features, dtype="<f4") for decision, _ in rows]
    logged = np.zeros((len(rows), len(reader.arms), 1))
    for place, (decision, _) in enumerate(rows):
        logged[place, : len(decision.weights), 0] = decision.weights
    np.savez_compressed(
        out,
        n_rounds=len(rows),
        n_actions=len(reader.arms),
        context=np.array(features, dtype=np.float64).reshape(len(rows), -1),
        action=np.array([decision.arm for decision, _ in rows], dtype=np.int64),
        reward=np.array([reward for _, reward in rows]),
        position=np.zeros(len(rows), dtype=np.int64),
        pscore=np.array([decision.propensity for decision, _ in rows]),
        pi_b=logged,
        action_names=np.array([arm.name for arm in reader.arms]),
    )
    return len(rows)


def write_dsjson(lines: Lines, out: BinaryIO, amended: Amended | None = None) -> int:
    """How many decisions were written. Actions are the allowed arms, the one that was played first, as the format wants it."""
    reader, count = LogReader(amended), 0
    for count, (decision, reward) in enumerate(_rewarded(reader, lines), 1):  # noqa: B007 - counted after the loop
        out.write(json.dumps(_action(decision, reward, reader.arms), separators=(",", ":")).encode() + b"\n")
    return count


def _action(decision: Decision, reward: float, arms: Sequence[Arm]) -> dict[str, object]:
    order = [decision.arm, *(arm for arm in decision.allowed if arm != decision.arm)]
    return {
        "_label_cost": -reward,
        "_label_probability": decision.propensity,
        "_label_Action": decision.allowed.index(decision.arm) + 1,
        "_labelIndex": decision.allowed.index(decision.arm),
        "Timestamp": decision.at.isoformat(),
        "Version": "1",
        "EventId": decision.id,
        "a": [decision.allowed.index(arm) + 1 for arm in order],
        "p": [decision.weights[arm] for arm in order],
        "c": {
            "prompt": {str(i): value for i, value in enumerate(decision.vector)},
            "_multi": [{"arm": {arms[arm].name: 1}} for arm in decision.allowed],
        },
    }


def write_parquet(lines: Lines, out: BinaryIO, amended: Amended | None = None) -> int:
    """How many decisions were written: all, in the order in which they closed, those that are open last.

    allowed: names of the arms that could be chosen.  weights, and each list in scores: in the same order.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise StorageUnavailableError(f"--format parquet needs pyarrow: {install_hint('parquet')}") from None
    numbers, name = pa.list_(pa.float64()), pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        {
            "offset": pa.int64(),
            "at": pa.timestamp("us", tz="UTC"),
            "id": pa.string(),
            "episode": pa.string(),
            "attempt": pa.int32(),
            "state": name,
            "arm": name,
            "propensity": pa.float64(),
            "price": pa.float64(),
            "allowed": pa.list_(pa.string()),
            "weights": numbers,
            "scores": pa.map_(pa.string(), numbers),
            "features": pa.list_(pa.float32()),
            "closed_offset": pa.int64(),
            "closed_at": pa.timestamp("us", tz="UTC"),
            "played": name,
            "is_overridden": pa.bool_(),
            "is_amended": pa.bool_(),
            "reward": pa.float64(),
            "cost": pa.float64(),
            "signals": pa.map_(pa.string(), pa.float64()),
        }
    )
    reader, count = LogReader(amended), 0
    decisions = reader.read(lines)
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while group := list(islice(decisions, ROWS)):
            writer.write_table(pa.Table.from_pylist([_row(decision, reader.arms) for decision in group], schema=schema))
            count += len(group)
    return count


def _row(decision: Decision, arms: Sequence[Arm]) -> dict[str, Any]:
    def of_allowed(values: Sequence[float | None]) -> list[float | None]:
        return [values[arm] for arm in decision.allowed]

    def named(arm: int | None) -> str | None:
        return None if arm is None or arm < 0 else arms[arm].name

    return {
        "offset": decision.offset,
        "at": decision.at,
        "id": decision.id,
        "episode": decision.episode,
        "attempt": decision.attempt,
        "state": decision.state,
        "arm": named(decision.arm),
        "propensity": decision.propensity,
        "price": decision.price,
        "allowed": [arms[arm].name for arm in decision.allowed],
        "weights": of_allowed(decision.weights),
        "scores": [(name, of_allowed(values)) for name, values in decision.scores.items()],
        "features": np.frombuffer(decision.features, dtype="<f4") if decision.features else None,
        "closed_offset": decision.closed_offset,
        "closed_at": decision.closed_at,
        "played": named(decision.played),
        "is_overridden": decision.is_overridden,
        "is_amended": decision.is_amended,
        "reward": decision.reward,
        "cost": decision.cost,
        "signals": list(decision.signals.items()),
    }


WRITERS: Mapping[str, Callable[[Lines, BinaryIO, Amended], int]] = {
    "parquet": write_parquet,
    "obp": write_obp,
    "dsjson": write_dsjson,
}


def convert(source: Path, out: BinaryIO, form: str) -> int:
    """Write an exported log in another form; how many decisions that are."""
    with source.open("rb") as lines:
        try:
            amended = amendments(lines)
            lines.seek(0)
            return WRITERS[form](lines, out, amended)
        except LogError as error:
            raise StorageDamagedError(str(source), str(error)) from None
