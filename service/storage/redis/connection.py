"""A pipelined connection to one Redis server, shared by all callers of a process.

    call ──> waiting line ──> one task: everything that waits goes out as one pipeline [, WAIT n] ──> answers
                              (what arrives meanwhile waits for the next pipeline; there is no timer)

An exchange is bounded in time. When it fails, every call in it or waiting fails at once, and the connection is dropped: what was
sent may have been executed, what waited was not sent. The next call connects again; while that
fails, calls are refused without a try for a while (50 ms, doubling up to a second).

A connection has an identity: the server process and the history that it continues. A call that depends on an
earlier answer names the identity of that answer; after a reconnection to another identity it fails and is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from service.storage.base import StorageDamagedError, StorageError, StorageUnavailableError
from service.storage.throttling import ThrottledLogger

throttled = ThrottledLogger(logging.getLogger("nextarm.storage"))

Command = tuple[Any, ...]

PIPELINE = 256
PIPELINE_BYTES = 8 * 2**20
"""Together in one pipeline, at most: it is bounded in time as a whole."""
BYTES_PER_S = 16 * 2**20
"""Large exchanges are given more time, as if this much could be sent or received in a second."""
BACKOFF_S, BACKOFF_MOST_S = 0.05, 1.0


class Reconnected(Exception):
    """The connection is to another server, or another history, than the call was meant for. Nothing was sent."""


class Redirected(Exception):
    """Another node of the cluster serves the keys; nothing was executed. asking: for this one call; no endpoint: try again."""

    def __init__(self, endpoint: tuple[str, int] | None, *, asking: bool = False) -> None:
        super().__init__(f"moved to {endpoint}")
        self.endpoint = endpoint
        self.asking = asking


class Answer(NamedTuple):
    """What came back, one per command, and the identity of the connection that it came from."""

    values: list[Any]
    identity: str


@dataclass(eq=False)
class _Job:
    commands: Sequence[Command]
    future: asyncio.Future[Answer]
    identity: str
    confirmed: bool
    topic: str
    patience_s: float
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(len(value) for command in self.commands for value in command if isinstance(value, bytes))


class Script:
    """A Lua script, called by its digest."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self._sha = hashlib.sha1(source).hexdigest().encode()  # noqa: S324 (Redis' own name for a script)

    def __call__(self, keys: Sequence[bytes], *values: bytes | int) -> Command:
        """The command that runs it."""
        return (b"EVALSHA", self._sha, len(keys), *keys, *values)


class PipelinedConnection:
    """Sends everything that waits as one pipeline, and reconnects with a backoff.

    connect: opens and authenticates a connection.  handshake: probes the server; returns its identity or refuses it.
    confirmations: replicas that must have what calls with `confirmed` have written; 0 = none.
    piggyback: extra commands sent in the same pipeline as calls of these topics; their replies are discarded.
    """

    def __init__(
        self,
        *,
        place: str,
        connect: Callable[[], Awaitable[Any]],
        handshake: Callable[[Any], Awaitable[str]],
        scripts: Iterable[Script],
        timeout_s: float,
        confirmations: int = 0,
        piggyback: Callable[[set[str]], list[Command]] = lambda topics: [],
        redacted: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.place = place
        self.identity = ""  # of the present or the last connection
        self._open, self._handshake, self._piggyback, self._redacted = connect, handshake, piggyback, redacted
        self._scripts = tuple(scripts)
        self._timeout_s = timeout_s
        self._confirmations = confirmations
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._connection: Any = None
        self._failures = 0
        self._refused_until = 0.0
        self._refusal = ""
        self._closed = False
        self._task = asyncio.create_task(self._serve())

    async def call(
        self,
        *commands: Command,
        identity: str = "",
        confirmed: bool = False,
        topic: str = "",
        patience_s: float = 0.0,
        raising: bool = True,
    ) -> Answer:
        """Run commands one after the other. Raises what the first failed one means, or answers exceptions as values.

        identity: of the connection it must be, "" = any.  confirmed: only when enough replicas have it.
        topic: the log of whose growth this call tells.  patience_s: more time than usual.
        """
        if self._closed:
            raise StorageUnavailableError("the store is closed")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(commands, future, identity, confirmed, topic, patience_s))
        self._arrived.set()
        answer = await future
        if raising:
            for value in answer.values:
                if isinstance(value, Exception):
                    raise self._to_storage_error(value) from value
        return answer

    async def disconnect(self) -> None:
        """Drop the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Finish what waits, then close."""
        self._closed = True
        self._arrived.set()
        await self._task
        await self.disconnect()

    # -- the task ----------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while self._jobs or not self._closed:
            if not self._jobs:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            jobs = self._take()
            try:
                await self._exchange(jobs)
            except Exception as error:
                await self.disconnect()
                failure = self._exchange_error(error)
                for job in (*jobs, *self._jobs):
                    _fail(job, failure)
                self._jobs.clear()

    def _take(self) -> list[_Job]:
        jobs: list[_Job] = []
        size = 0
        while self._jobs and len(jobs) < PIPELINE and size < PIPELINE_BYTES:
            job = self._jobs.popleft()
            if not job.future.done():  # else its request was cancelled before anything was sent
                jobs.append(job)
                size += job.size
        return jobs

    async def _exchange(self, jobs: list[_Job]) -> None:
        limit = self._timeout_s + max((job.patience_s for job in jobs), default=0.0)
        async with asyncio.timeout(limit + sum(job.size for job in jobs) / BYTES_PER_S):
            again = await self._pipeline(jobs)
            if again:  # Redis has forgotten the scripts (restarted, flushed): nothing of these was executed
                await self._load_scripts(self._connection)
                if await self._pipeline(again):
                    raise ResponseError("the server forgets scripts as soon as they are loaded")

    async def _pipeline(self, jobs: list[_Job]) -> list[_Job]:
        """Send the jobs, receive, resolve their futures; returns the jobs whose script the server does not know.

        Answers are assigned by position, so the list of jobs must not change between building the commands and reading: it is
        filtered once more after connecting, which may have changed the identity. WAIT comes last, since it confirms every write
        of the connection before it.
        """
        connection = await self._ensure_connected()
        for job in jobs:
            if job.identity not in ("", self.identity):
                _fail(job, Reconnected())
        jobs = [job for job in jobs if not job.future.done()]
        commands = [command for job in jobs for command in job.commands]
        commands += self._piggyback({job.topic for job in jobs if job.topic})
        confirm = self._confirmations and any(job.confirmed for job in jobs)
        if confirm:
            commands.append((b"WAIT", self._confirmations, int(self._timeout_s * 500)))
        if not commands:
            return []
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        answers = [await _answer(connection) for _ in commands]
        short = "" if not confirm else self._missing_acknowledgments(answers[-1])
        left, at = [], 0
        for job in jobs:
            values = answers[at : at + len(job.commands)]
            at += len(job.commands)
            if any(isinstance(value, NoScriptError) for value in values):
                left.append(job)
            elif job.confirmed and short:
                _fail(job, StorageUnavailableError(short))
            elif not job.future.done():
                job.future.set_result(Answer(values, self.identity))
        if any(_is_read_only(value) for value in answers):  # a primary no more: the next call looks for the new one
            await self.disconnect()
        return left

    def _missing_acknowledgments(self, acknowledged: Any) -> str:
        """Why what was written does not count; "" where enough replicas have it."""
        if isinstance(acknowledged, Exception):
            return f"{self.place}: {acknowledged}"
        if acknowledged < self._confirmations:
            return f"{self.place}: {acknowledged} of {self._confirmations} replicas acknowledged in time (NEXTARM_REDIS_WAIT)"
        return ""

    # -- the connection ----------------------------------------------------------------------------------------------------

    async def _ensure_connected(self) -> Any:
        if self._connection is not None and await _is_broken(self._connection):
            await self.disconnect()
        if self._connection is not None:
            return self._connection
        now = asyncio.get_running_loop().time()
        if now < self._refused_until:
            raise StorageUnavailableError(self._refusal)
        try:
            connection = await self._open()
            try:
                identity = await self._handshake(connection)
                await self._load_scripts(connection)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        except BaseException as error:
            self._refused_until = now + min(BACKOFF_MOST_S, BACKOFF_S * 2.0**self._failures)
            self._refused_until = max(self._refused_until, asyncio.get_running_loop().time() + BACKOFF_S)
            self._failures = min(self._failures + 1, 10)
            self._refusal = str(self._exchange_error(error))
            raise
        self._failures = 0
        if self.identity not in ("", identity):
            throttled.warning("Redis is another process, or continues another history, than before", store=self.place)
        self._connection, self.identity = connection, identity
        return connection

    async def _load_scripts(self, connection: Any) -> None:
        for value in await exchange(connection, *((b"SCRIPT", b"LOAD", script.source) for script in self._scripts)):
            if isinstance(value, Exception):
                raise value

    # -- failures ----------------------------------------------------------------------------------------------------------

    def _exchange_error(self, error: BaseException) -> Exception:
        """The error of every call in an exchange that failed."""
        if isinstance(error, StorageError):
            return error
        if isinstance(error, TimeoutError | asyncio.CancelledError):
            return StorageUnavailableError(f"{self.place} did not answer within {self._timeout_s:g} s")
        if isinstance(error, AuthenticationError | AuthorizationError):
            return StorageUnavailableError(f"{self.place} refuses the user name or the password")
        reason = _code(error) + self._redacted(str(error)) or type(error).__name__
        if not isinstance(error, RedisError | OSError):
            throttled.error("an exchange with Redis failed in an unforeseen way", exc_info=error)
        return StorageUnavailableError(f"{self.place}: {reason}")

    def _to_storage_error(self, error: Exception) -> Exception:
        """What an error that the server answered means."""
        if isinstance(error, AskError):  # MOVED is one, too
            return Redirected((error.host, error.port), asking=not isinstance(error, MovedError))
        if isinstance(error, TryAgainError):
            return Redirected(None)
        text = self._redacted(str(error))
        if "WRONGTYPE" in text or "The ID specified" in text:
            return StorageDamagedError(self.place, f"the keys of a log hold what this service has not written: {text}")
        return StorageUnavailableError(f"{self.place}: {_code(error)}{text}")


async def exchange(connection: Any, *commands: Command) -> list[Any]:
    """Answers of a pipeline, errors as values."""
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    return [await _answer(connection) for _ in commands]


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


async def _is_broken(connection: Any) -> bool:
    """Whether an idle connection has data or was closed: no command is pending, so either means it is unusable."""
    look = getattr(connection, "can_read", None) or connection.can_read_destructive  # its name before redis-py 8
    try:
        return bool(await look())
    except (RedisError, OSError):
        return True


def _is_read_only(value: Any) -> bool:
    return isinstance(value, ResponseError) and ("READONLY" in str(value) or getattr(value, "status_code", "") == "READONLY")


def _code(error: BaseException) -> str:
    """The first word of what the server said, which redis-py cuts off where it has a class for it."""
    code = getattr(error, "status_code", "") or ""
    return f"{code} " if code and not str(error).startswith(code) else ""


def _fail(job: _Job, failure: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(failure)


def parse_info(section: Any) -> Mapping[str, str]:
    """The lines of INFO."""
    lines = (line.partition(":") for line in bytes(section).decode(errors="replace").splitlines())
    return {name: value.strip() for name, sign, value in lines if sign}
