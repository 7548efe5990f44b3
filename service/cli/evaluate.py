"""`nextarm evaluate`: what other policies would have earned, from a log in the store or an exported one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bandits.errors import InvalidHyperparameter
from service.cli.logs import Source
from service.engine import events
from service.engine.evaluation import Evaluated, Evaluation
from service.storage.base import StorageDamagedError, StorageUnavailableError


class InvalidCandidate(StorageUnavailableError):
    """A policy that was asked for cannot be evaluated on this log."""


def parse_candidate(text: str) -> dict[str, Any]:
    """`pak-ucb`, or a JSON object as the `policy` of a bandit."""
    if not text.lstrip().startswith("{"):
        return {"kind": text.strip()}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidCandidate(f"--policy {text!r} is no JSON object: {error}") from None
    if not isinstance(found.get("kind"), str):
        raise InvalidCandidate(f'--policy {text!r} has no "kind"')
    return dict(found)


async def evaluate(
    source: Source,
    candidates: Sequence[dict[str, Any]],
    *,
    since: str = "",
    quiet: bool = False,
) -> Evaluation:
    """The log read once, with all candidates."""
    evaluation: Evaluation | None = None
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(f"evaluating on {source.name}", total=None)
        async with aclosing(source.entries()) as entries:
            async for offset, payload in entries:
                evaluation = _added(evaluation, source.name, offset, payload, candidates=candidates, since=since)
                progress.update(task, completed=offset)
    if evaluation is None:
        raise StorageDamagedError(source.name, "the log is empty")
    return evaluation


def _added(
    evaluation: Evaluation | None, source: str, offset: int, payload: bytes, *, candidates: Sequence[dict[str, Any]], since: str
) -> Evaluation:
    """The evaluation with one more entry; the first one begins it."""
    event = _decode(source, offset, payload)
    if evaluation is None:
        if not isinstance(event, events.Created):
            raise StorageDamagedError(f"{source}, entry {offset}", "a log begins with the event that creates the bandit")
        return _begun(event, candidates, since)
    if isinstance(event, events.Created):
        raise StorageDamagedError(f"{source}, entry {offset}", "here another bandit's log begins; give one log at a time")
    try:
        evaluation.add(offset, event)
    except Exception as error:
        raise StorageDamagedError(f"{source}, entry {offset}", str(error)) from error
    return evaluation


def _decode(source: str, offset: int, payload: bytes) -> events.AnyEvent:
    try:
        return events.decode(payload)
    except events.UnreadableEvent as error:
        raise StorageDamagedError(f"{source}, entry {offset}", str(error)) from None


def _begun(created: events.Created, candidates: Sequence[dict[str, Any]], since: str) -> Evaluation:
    try:
        start = datetime.fromisoformat(since) if since and not since.isdigit() else None
    except ValueError:
        raise InvalidCandidate(f"--since {since!r} is neither an offset nor a time such as 2026-01-31T12:00:00Z") from None
    if start is not None and start.tzinfo is None:
        raise InvalidCandidate(f"--since {since!r} has no time zone; write {since}Z for UTC")
    try:
        return Evaluation(created, candidates, since_offset=int(since) if since.isdigit() else 0, since_time=start)
    except InvalidHyperparameter as error:
        raise InvalidCandidate(f"--policy: {error}") from None


def as_json(evaluation: Evaluation, results: Sequence[Evaluated]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "bandit": evaluation.created.bandit,
        "decisions": len(evaluation.rows),
        "left_out": dict(evaluation.left_out),
        "policies": [_without_nan(asdict(one)) for one in results],
    }


def _without_nan(value: Any) -> Any:
    """What has no value is null: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def as_table(evaluation: Evaluation, results: Sequence[Evaluated]) -> Table:
    """The same to look at, the best value first."""
    left_out = ", ".join(f"{count} {why}" for why, count in sorted(evaluation.left_out.items()) if count)
    table = Table(
        title=f"{evaluation.created.bandit}: {len(evaluation.rows)} decisions with a reward"
        + (f" (left out: {left_out})" if left_out else "")
    )
    for name in ("policy", "reward", "interval", "anytime", "support", "effective sample", "verdict"):
        table.add_column(name, justify="left" if name in ("policy", "verdict") else "right")
    for one in sorted(results, key=lambda each: -each.value if each.value == each.value else float("inf")):
        table.add_row(
            one.label,
            f"{one.value:.4g}",
            f"{one.interval.low:.4g} to {one.interval.high:.4g}",
            "" if one.anytime is None else f"{one.anytime.low:.4g} to {one.anytime.high:.4g}",
            f"{one.support:.3f}",
            f"{one.effective_sample:.0f}",
            f"{one.verdict.kind}: {one.verdict.reason}" if one.verdict.reason else one.verdict.kind,
        )
    return table


def finished(evaluation: Evaluation, options: Mapping[str, Any]) -> list[Evaluated]:
    """The results; a failure in words of the command line."""
    try:
        return evaluation.results(**options)
    except ValueError as error:
        raise InvalidCandidate(str(error)) from None
