"""Evaluations that clients ask for: small records in the store, so that any replica answers, and one process at a time works.

    submit ──> record (queued) ──claim──> running, with a heartbeat ──> done, or failed
               └─ name in the index of what is not finished: every process looks there for work

A record is replaced only if it is what its owner has left (`Storage.swap_record`), so an evaluation that another process has
taken up, or that was deleted, is given up. One whose heartbeat stopped is taken up by the next process that looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from uuid_utils.compat import uuid7

from service.engine.errors import EvaluationConflictError, EvaluationNotFoundError, TooManyEvaluationsError
from service.engine.evaluation_process import EvaluationFailed, Plan, evaluate, evaluate_in_process, stored
from service.settings import Settings
from service.storage.base import Log, LogNotFoundError, Storage, StorageError
from service.storage.throttling import ThrottledLogger

logger = logging.getLogger("nextarm.evaluations")
throttled = ThrottledLogger(logger)

KEPT = 100
"""Evaluations of one bandit; older ones that are finished go."""
KEPT_FOR = timedelta(days=30)
LEASE = timedelta(seconds=15)
"""A heartbeat that is older is of a process that ended."""
HEARTBEAT_S = 3.0
LOOK_S = 5.0
ATTEMPTS = 3
"""Processes that may end over one evaluation until it fails."""
SMALL = 2_000
"""Entries that are read in a thread; starting a process takes longer."""

State = Literal["queued", "running", "done", "failed"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation in the store.

    body: digest of the request.  until: the end of the log when it was asked for, which is read and no further.
    offset: read so far.  owner: of the process that works on it.  results: of `evaluation.Results.as_json`.
    """

    id: str
    body: str
    request: dict[str, Any]
    plan: Plan
    created_at: datetime
    state: State = "queued"
    attempts: int = 0
    owner: str = ""
    beat_at: datetime | None = None
    offset: int = 0
    finished_at: datetime | None = None
    failure: str | None = None
    results: dict[str, Any] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it does not change any more."""
        return self.state in ("done", "failed")

    @property
    def progress(self) -> float:
        """From 0 to 1, by entries of the log."""
        return 1.0 if self.state == "done" else min(self.offset / max(self.plan.until, 1), 1.0)


_decoder = msgspec.json.Decoder(Record)


def _decode(value: bytes) -> Record | None:
    """None for one that a newer version wrote otherwise."""
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError:
        return None


class Evaluations:
    """The evaluations of all bandits of a store, and the task of this process that works on them, one at a time.

    log: of the bandit that is evaluated now.
    """

    def __init__(self, storage: Storage, settings: Settings, *, clock: Callable[[], datetime]) -> None:
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._owner = str(uuid7())
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.log: Log | None = None

    def start(self) -> None:
        """Look for work from now on."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Leave what is under way to another process, or to the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- what clients ask --------------------------------------------------------------------------------------------------

    async def known(self, log: Log, name: str, body: str) -> Record | None:
        """The evaluation of this id, if there is one; `EvaluationConflictError` where its request was another."""
        with contextlib.suppress(EvaluationNotFoundError):
            return _same(await self.find(log, name), body)
        return None

    async def submit(self, log: Log, plan: Plan, *, wanted: str, body: str, request: dict[str, Any]) -> Record:
        """The record of a new evaluation, or of the one that has this id already.

        wanted: the id, "" = any.  Raises `EvaluationConflictError`, `TooManyEvaluationsError`.
        """
        await self._prune(log, await self._records(log))
        record = Record(id=wanted or str(uuid7()), body=body, request=request, plan=plan, created_at=self._clock())
        place = _place(log, record.id)
        await self._storage.swap_record(None, place, msgspec.json.encode(self._clock()), expected=None)
        if not await self._storage.swap_record(log, record.id, msgspec.json.encode(record), expected=None):
            return _same(await self.find(log, record.id), body)
        self._wanted.set()
        return record

    async def find(self, log: Log, name: str) -> Record:
        """Raises `EvaluationNotFoundError`."""
        value = await self._storage.find_record(log, name)
        record = None if value is None else _decode(value)
        if record is None:
            raise EvaluationNotFoundError(name)
        return record

    async def all(self, log: Log) -> list[Record]:
        """Newest first."""
        return sorted((one for one, _ in (await self._records(log)).values()), key=lambda one: (one.created_at, one.id))[::-1]

    async def delete(self, log: Log, name: str) -> None:
        """Forget it; one that is running is given up within seconds."""
        while (value := await self._storage.find_record(log, name)) is not None:
            if await self._storage.swap_record(log, name, None, expected=value):
                await self._drop_place(_place(log, name))
                return
        raise EvaluationNotFoundError(name)

    async def _records(self, log: Log) -> dict[str, tuple[Record, bytes]]:
        found = {name: (_decode(value), value) for name, value in (await self._storage.records(log)).items()}
        return {name: (record, value) for name, (record, value) in found.items() if record is not None}

    async def _prune(self, log: Log, known: dict[str, tuple[Record, bytes]]) -> None:
        """Make room for one more."""
        finished = sorted((one for one in known.values() if one[0].is_finished), key=lambda one: one[0].created_at)
        if len(known) - len(finished) >= KEPT:
            raise TooManyEvaluationsError(KEPT)
        oldest = self._clock() - KEPT_FOR
        for place, (record, value) in enumerate(finished):
            if place <= len(known) - KEPT or record.created_at < oldest:
                await self._storage.swap_record(log, record.id, None, expected=value)

    # -- work --------------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            self._wanted.clear()
            try:
                for place in sorted(await self._storage.records(None)):
                    if place.startswith(PLACES):
                        await self._try(place)
            except StorageError as error:
                throttled.error("evaluations could not be looked for", reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # not `wait_for`, which loses a cancellation that comes with the event
                    await self._wanted.wait()

    async def _try(self, place: str) -> None:
        """`_take`, which keeps none of the other places waiting, whatever becomes of this one."""
        try:
            await self._take(place)
        except StorageError as error:
            throttled.error("an evaluation could not be read or kept", reason=str(error))
        except Exception:
            logger.exception("an evaluation could not be worked on")

    async def _take(self, place: str) -> None:
        """Work on the evaluation at a place of the index, unless another process does."""
        log_id, name, bandit = place.removeprefix(PLACES).split("\n", 2)
        log = Log(log_id, bandit)
        try:
            value = await self._storage.find_record(log, name)
        except LogNotFoundError:
            await self._drop_place(place)
            return
        record = None if value is None else _decode(value)
        now = self._clock()
        if record is None:
            noted = await self._storage.find_record(None, place)
            if noted is not None and now - msgspec.json.decode(noted, type=datetime) > LEASE:  # else it is just being made
                await self._drop_place(place)
            return
        if record.is_finished:
            await self._drop_place(place)
            return
        if record.state == "running" and record.beat_at is not None and now - record.beat_at < LEASE:
            return
        claimed = msgspec.structs.replace(record, state="running", owner=self._owner, beat_at=now, attempts=record.attempts + 1)
        held = _Held(self._storage, log, claimed, value)
        if record.attempts >= ATTEMPTS:
            failure = f"the processes that worked on it ended, {ATTEMPTS} times; ask for fewer policies, or later decisions alone"
            await held.rewrite(state="failed", failure=failure, finished_at=now)
        elif await held.rewrite():
            await self._run(held)
        await self._drop_place(place)

    async def _run(self, held: _Held) -> None:
        """Evaluate, and keep the results."""
        work = asyncio.create_task(self._evaluate(held))
        self.log = held.log
        try:
            while not work.done():
                await asyncio.wait([work], timeout=HEARTBEAT_S)
                if not work.done() and not await held.rewrite(beat_at=self._clock(), offset=held.reached):
                    return  # deleted, or taken up by another process that found no heartbeat
            try:
                results = work.result()
            except EvaluationFailed as error:
                # what the log or its archive lacks can be mended, and the request stay as it is
                failure = str(error) if error.field else f"{error}; to ask again under this id, delete the evaluation first"
                await held.rewrite(state="failed", failure=failure, finished_at=self._clock())
            except Exception as error:  # it would end in the same way again
                logger.exception("an evaluation failed", extra={"bandit": held.log.name, "evaluation": held.record.id})
                failure = f"an internal error, {type(error).__name__}; the log of this server has its traceback; please report it"
                await held.rewrite(state="failed", failure=failure, finished_at=self._clock())
            else:
                await held.rewrite(state="done", results=results, finished_at=self._clock())
        except asyncio.CancelledError:  # the service ends
            with contextlib.suppress(StorageError):
                await held.rewrite(state="queued", owner="", beat_at=None, attempts=held.record.attempts - 1)
            raise
        finally:
            self.log = None
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work

    async def _evaluate(self, held: _Held) -> dict[str, Any]:
        plan, log = held.record.plan, held.log

        def each(offset: int) -> None:
            held.reached = offset

        if plan.until <= SMALL or self._settings.store == "memory://":
            return await evaluate(plan, lambda: stored(self._storage, log, until=plan.until), each, in_thread=True)
        return await evaluate_in_process(msgspec.structs.replace(plan, settings=self._settings.model_dump()), each)

    async def _drop_place(self, place: str) -> None:
        value = await self._storage.find_record(None, place)
        if value is not None:
            await self._storage.swap_record(None, place, None, expected=value)


PLACES = "evaluations/"
"""What keys of the index begin with."""


def _place(log: Log, name: str) -> str:
    return f"{PLACES}{log.id}\n{name}\n{log.name}"


def _same(record: Record, body: str) -> Record:
    if record.body != body:
        raise EvaluationConflictError(record.id)
    return record


class _Held:
    """The record that this process works on. reached: the offset that was read last."""

    def __init__(self, storage: Storage, log: Log, record: Record, value: bytes | None) -> None:
        self.log = log
        self.record = record
        self.reached = record.offset
        self._storage = storage
        self._value = value

    async def rewrite(self, **changes: Any) -> bool:
        """Write the record with these changes; false where it is not what this process has left."""
        record = msgspec.structs.replace(self.record, **changes)
        value = msgspec.json.encode(record)
        try:
            is_ours = await self._storage.swap_record(self.log, record.id, value, expected=self._value)
        except LogNotFoundError:
            return False
        if is_ours:
            self.record, self._value = record, value
        return is_ours
