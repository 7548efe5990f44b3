"""An evaluation from a store or a file, here or in a process of its own, which takes no CPU time from decisions.

    parent ──plan (a line of JSON)──> stdin   python -m service.engine.evaluation_process
           <──offsets, then results── stdout

The process reads the store by itself, and ends when its standard input does: when its parent is gone, whatever ended it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from bandits.errors import BanditError
from service.engine import events
from service.engine.evaluation import Evaluation, InvalidRequest, InvalidRow
from service.settings import Settings
from service.storage.base import PAGE, ArchiveGapError, Log, LogCompactedError, Storage, StorageError, pages

LONGEST_LINE = 2**26
PRIORITY = 10
"""What is added to the niceness of the process."""

Pages = AsyncGenerator[Sequence[tuple[int, bytes]]]


class EvaluationFailed(Exception):
    """No result. field: what of the request is to blame, "" = the log."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.field = where
        self.message = message


FIRST_MISSING = 2
"""An archive that lacks entries from here on is younger than the log: they were dropped before there was one."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to evaluate. source: a file, or the name of a log of the store that `settings` name.

    since: an offset, a time, or "" = the beginning.  until: the last offset that is read; 0 = the end.
    shadows: the number of the policy of each shadow by name; where one is named that is not there, the log is read twice.
    """

    source: str
    settings: dict[str, Any] | None = None
    policies: list[dict[str, Any]] = []
    since: int | str = ""
    until: int = 0
    estimators: tuple[str, ...] = ("snips",)
    confidence: float = 0.95
    reward_range: tuple[float, float] | None = None
    shadows: dict[str, int] = {}


# -- where entries come from -------------------------------------------------------------------------------------------------


async def stored(storage: Storage, log: Log, *, until: int = 0) -> Pages:
    """Of a log. One that is trimmed begins with entry 1 and goes on with the first that is kept, in the store or the archive.

    Raises `ArchiveGapError` where entries in between are missing.
    """
    offset, is_complete = 0, False
    while not is_complete:
        try:
            async for entries in pages(storage, log, after=offset, until=until or None):
                yield [(entry.offset, entry.payload) for entry in entries]
                offset = entries[-1].offset
            is_complete = True
        except LogCompactedError as error:
            if isinstance(error, ArchiveGapError) and error.missing > FIRST_MISSING:
                raise
            if offset == 0:
                (first,) = await storage.read(log, after=0, limit=1)
                yield [(1, first.payload)]
            offset = error.first - 1


async def exported(path: Path) -> Pages:
    """Of a file that `nextarm export` wrote. Lines without an offset are counted."""
    page: list[tuple[int, bytes]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                raise EvaluationFailed(f"{path}, line {number}: the line is torn: the export was cut off; export again")
            page.append((_offset(line, number), line))
            if len(page) == PAGE:
                yield page
                page = []
    if page:
        yield page


def _offset(line: bytes, number: int) -> int:
    begin = b'{"offset":'
    if not line.startswith(begin):
        return number
    digits = line[len(begin) : line.find(b",", len(begin), 40)]
    return int(digits) if digits.isdigit() else number


# -- evaluating --------------------------------------------------------------------------------------------------------------


async def evaluate(
    plan: Plan, read: Callable[[], Pages], each: Callable[[int], object] = lambda offset: None, *, in_thread: bool = False
) -> dict[str, Any]:
    """The results as JSON values. read: the log from its beginning; twice where rewards were amended.

    each: called with the offset after every page.  in_thread: leave the event loop.
    """
    try:
        evaluation = await _pass(plan, read, each, in_thread=in_thread, amended={})
        if evaluation.amendments:
            evaluation = await _pass(plan, read, each, in_thread=in_thread, amended=evaluation.amendments)
        results = evaluation.results(confidence=plan.confidence, estimator=plan.estimators[0])
    except InvalidRow as error:
        raise EvaluationFailed(f"{plan.source}, entry {error.offset}: {error}") from error
    except InvalidRequest as error:
        raise EvaluationFailed(error.message, where=error.field) from error
    except (StorageError, BanditError, OSError) as error:
        raise EvaluationFailed(f"{plan.source}: {error}") from error
    return _shown(results.as_json(), plan.estimators)


async def _pass(
    plan: Plan,
    read: Callable[[], Pages],
    each: Callable[[int], object],
    *,
    in_thread: bool,
    amended: Mapping[str, float | None],
) -> Evaluation:
    """The evaluation after the last entry."""
    evaluation: Evaluation | None = None

    def add(page: Sequence[tuple[int, bytes]]) -> None:
        nonlocal evaluation
        for offset, payload in page:
            if evaluation is None:
                evaluation = _begun(plan, offset, payload, amended)
            else:
                evaluation.add(offset, payload)

    async with aclosing(read()) as pages:
        async for page in pages:
            await (asyncio.to_thread(add, page) if in_thread else _now(add, page))
            each(page[-1][0])
    if evaluation is None:
        raise EvaluationFailed(f"{plan.source}: the log is empty")
    return evaluation


async def _now(add: Callable[[Sequence[tuple[int, bytes]]], None], page: Sequence[tuple[int, bytes]]) -> None:
    add(page)


def _shown(results: dict[str, Any], estimators: Sequence[str]) -> dict[str, Any]:
    """With the estimates of these estimators alone."""
    best = [results["best_fixed_arm"]] if results["best_fixed_arm"] else []
    for one in [results["behaviour"], *results["policies"], *results["fixed_arms"], *best]:
        one["estimates"] = {name: one["estimates"][name] for name in estimators}
    return results


def _begun(plan: Plan, offset: int, payload: bytes, amended: Mapping[str, float | None]) -> Evaluation:
    try:
        created = events.decode(payload)
    except events.UnreadableEvent as error:
        raise InvalidRow(offset, "event", str(error)) from None
    if not isinstance(created, events.Created):
        raise InvalidRow(
            offset, "event", "a log begins with the event that creates the bandit; this one lacks its beginning: export all of it"
        )
    since = parse_since(plan.since)
    return Evaluation(created, plan.policies, since=since, reward_range=plan.reward_range, shadows=plan.shadows, amended=amended)


def parse_since(since: int | str) -> int | datetime | None:
    """An offset, a time, or None for the beginning. Raises `InvalidRequest`."""
    if isinstance(since, int):
        return since
    if not since:
        return None
    if since.isascii() and since.isdigit():
        return int(since)
    try:
        found = datetime.fromisoformat(since)
    except ValueError:
        raise InvalidRequest("since", f"{since!r} is neither an offset nor a time such as 2026-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise InvalidRequest("since", f"{since!r} has no time zone; write {since}Z for UTC")
    return found


async def shadow_numbers(pages: Pages) -> dict[str, int]:
    """The number of the policy that each shadow has at the end of a log."""
    found, deciding = dict[str, int](), events.FIRST
    async for page in pages:
        for offset, payload in page:
            if b'"shadow_' not in payload:
                continue
            match events.decode(payload):
                case events.ShadowCreated(shadow=name):
                    found[name] = offset
                case events.ShadowDeleted(shadow=name):
                    found.pop(name, None)
                case events.ShadowPromoted(shadow=name) if name in found:
                    found[name], deciding = deciding, found[name]
    return found


async def _with_shadows(plan: Plan, open_pages: Callable[[], Pages]) -> Plan:
    if all(one.get("shadow", "") in ("", *plan.shadows) for one in plan.policies):
        return plan
    async with aclosing(open_pages()) as pages:
        return msgspec.structs.replace(plan, shadows=await shadow_numbers(pages))


async def evaluate_source(plan: Plan, each: Callable[[int], object] = lambda offset: None) -> dict[str, Any]:
    """`evaluate` on what the plan names."""
    if plan.settings is None:
        path = Path(plan.source)
        return await evaluate(await _with_shadows(plan, lambda: exported(path)), lambda: exported(path), each)
    storage = Settings(**plan.settings).open_storage_to_read()
    await storage.start()
    try:
        log = await storage.find_log(plan.source)
        if log is None:
            names = ", ".join(one.name for one in await storage.logs()) or "none"
            raise EvaluationFailed(f"there is no bandit {plan.source!r}; the store has {names}")

        def read() -> Pages:
            return stored(storage, log, until=plan.until)

        return await evaluate(await _with_shadows(plan, read), read, each)
    finally:
        await storage.close()


# -- a process of its own ------------------------------------------------------------------------------------------------------


async def evaluate_in_process(plan: Plan, each: Callable[[int], object] = lambda offset: None) -> dict[str, Any]:
    """`evaluate_source` in a process of low priority, which ends with this call however that ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.engine.evaluation_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        async for line in process.stdout:
            answer = msgspec.json.decode(line)
            if "results" in answer:
                return dict(answer["results"])
            if "failed" in answer:
                raise EvaluationFailed(answer["failed"], where=answer["field"])
            each(answer["offset"])
        raise EvaluationFailed(f"its process ended with exit code {await process.wait()}; the log of this server may say why")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """The process."""
    import torch

    torch.set_num_threads(1)  # as in the server: the same sums in the same order
    os.nice(PRIORITY)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(answer: Mapping[str, Any]) -> None:
        out.write(msgspec.json.encode(answer) + b"\n")
        out.flush()

    try:
        say({"results": asyncio.run(evaluate_source(plan, lambda offset: say({"offset": offset})))})
    except EvaluationFailed as error:
        say({"failed": error.message, "field": error.field})
    except (StorageError, OSError) as error:
        say({"failed": str(error), "field": ""})


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
