"""The client for code that awaits, on asyncio. `Client` is its twin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar, Unpack

import httpx2

from nextarm import errors
from nextarm._calls import Awaited, AwaitedRaw, Call
from nextarm._follower import EventFollower
from nextarm._session import Came, Pause, Session, Step, Steps
from nextarm._setup import Changes, Configured, Scope, Setup, request_of
from nextarm.bodies import DecisionRequest, OutcomeBody
from nextarm.errors import NextarmError
from nextarm.models import Receipt
from nextarm.raw import RawResponse
from nextarm.routes import Routes

P = ParamSpec("P")
T = TypeVar("T")
Wait: TypeAlias = Callable[[float], Coroutine[Any, Any, None]]

log = logging.getLogger("nextarm.client")


class _Transport:
    """Carries out the steps of a session in the event loop that it is used in."""

    def __init__(self, http: httpx2.AsyncClient, session: Session) -> None:
        self.http = http
        self.session = session  # reports are delivered by the options of the client, not those of a copy
        self.closing = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None

    async def run(self, session: Session, steps: Steps[T], pause: Wait = asyncio.sleep) -> T:
        came: Came = None
        try:
            while True:
                came = await self._carry_out(session, steps.send(came), pause)
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def _carry_out(self, session: Session, step: Step, pause: Wait) -> Came:
        if isinstance(step, Pause):
            await pause(step.seconds)
            return None
        try:
            return await self.http.request(**request_of(step, session))
        except httpx2.RequestError as error:
            return errors.of_transport(error, session.state.url)

    def deliver(self) -> None:
        """Start delivering what waits, unless that goes on already."""
        if self.session.state.reports.take_worker():
            self.worker = asyncio.create_task(self._deliver(), name="nextarm-reports")

    async def _deliver(self) -> None:
        try:
            await self.run(self.session, self.session.deliver(), pause=self._pause)
        except BaseException as error:
            self.session.state.reports.leave_worker(is_forced=True)
            if isinstance(error, asyncio.CancelledError):  # the loop ends, or the client is closed
                raise
            log.exception("reports that were put off are not delivered")

    async def _pause(self, seconds: float) -> None:
        """Until then, or until the client is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self.closing.wait()
        except TimeoutError:
            pass


class AsyncRawClient(Routes, AwaitedRaw):
    """The methods of `AsyncClient`, answering the HTTP response; without fallback."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, Coroutine[Any, Any, RawResponse[T]]]:
        session, transport = self._client._session, self._client._transport

        async def method(*args: P.args, **kwargs: P.kwargs) -> RawResponse[T]:
            return await transport.run(session, session.exchange(build(*args, **kwargs)))

        return method


class AsyncClient(Configured, Routes, Awaited):
    """A client of one service, for one event loop; close it by `aclose`, or use it in an `async with`.

    Its arguments are those of `Client`; http_client: an `httpx2.AsyncClient`.
    """

    def __init__(self, url: str, *, http_client: httpx2.AsyncClient | None = None, **setup: Unpack[Setup]) -> None:
        super().__init__(url, setup)
        self._transport = _Transport(http_client or httpx2.AsyncClient(), self._session)

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        session, transport = self._session, self._transport

        async def method(*args: P.args, **kwargs: P.kwargs) -> T:
            answer = await transport.run(session, session.answer(build(*args, **kwargs)))
            transport.deliver()
            return answer

        return method

    @cached_property
    def with_raw_response(self) -> AsyncRawClient:
        """The same methods, answering status, headers and body; `parse()` gives the typed answer."""
        return AsyncRawClient(self)

    def with_options(self, **changes: Unpack[Changes]) -> AsyncClient:
        """A client with other options that shares connections, circuit breaker and reports."""
        copy = object.__new__(AsyncClient)
        copy._session, copy._transport = self._changed(changes), self._transport
        return copy

    def decision(self, bandit: str, *, on_error: float | None = None, **request: Unpack[DecisionRequest]) -> AsyncDecisionScope:
        """A decision for the block of an `async with`: an exception inside cancels it, or is its outcome with `on_error`."""
        return AsyncDecisionScope(self, bandit, request, on_error=on_error)

    async def iter_log(
        self, bandit: str, *, after: int = 0, page: int = 1000, fields: Sequence[str] | None = None, vectors: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """Every event of the log behind an offset, as far as it goes now. page, fields, vectors: of each `read_log`."""
        while events := await self.read_log(bandit, after=after, limit=page, fields=fields, vectors=vectors):
            for event in events:
                yield event
            after = events[-1]["offset"]

    async def events(self, bandit: str, *, since: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Every event as it comes, without its vectors; it does not end by itself. since: an offset to begin behind, None = now.

        A connection that breaks is taken up again where it was. Raises `NotFoundError` when the bandit is deleted.
        """
        follower = EventFollower(self._session, bandit, since)
        while True:
            failure: NextarmError | None = None
            try:
                async with self._transport.http.stream(**follower.request()) as response:
                    if not response.is_success:
                        await response.aread()
                        raise errors.of_response(response)
                    async for chunk in response.aiter_bytes():
                        for event in follower.feed(chunk):
                            yield event
            except httpx2.RequestError as error:
                failure = errors.of_transport(error, self.url)
            except NextarmError as error:
                failure = error
            await asyncio.sleep(follower.pause_s(failure))

    async def flush(self, timeout_s: float = 10.0) -> int:
        """Wait until everything that was put off is delivered; the number of reports that still wait."""
        self._transport.deliver()
        if (worker := self._transport.worker) is not None:
            await asyncio.wait({worker}, timeout=timeout_s)
        return self.stats.waiting

    async def aclose(self, timeout_s: float = 2.0) -> None:
        """Deliver what waits if the service is there, and close the connections."""
        self._session.state.is_closing = True
        self._transport.closing.set()
        if left := await self.flush(timeout_s):
            log.warning("closed with %d reports that could not be delivered", left)
        if (worker := self._transport.worker) is not None:
            worker.cancel()
        await self._transport.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.aclose()


class AsyncDecisionScope(Scope):
    """A decision and its outcome, in an `async with`. answer: the whole decision."""

    def __init__(self, client: AsyncClient, bandit: str, request: DecisionRequest, *, on_error: float | None) -> None:
        self._client, self._bandit, self._request, self._on_error = client, bandit, request, on_error

    async def observe(self, **outcome: Unpack[OutcomeBody]) -> Receipt:
        """Post what came of it."""
        receipt = await self._client.observe(self._bandit, self.id, **outcome)
        self._is_closed = True
        return receipt

    async def cancel(self) -> None:
        """Nothing is learned from it."""
        await self._client.cancel_decision(self._bandit, self.id)
        self._is_closed = True

    async def __aenter__(self) -> Self:
        self.answer = await self._client.decide(self._bandit, **self._request)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not self._is_open:
            return
        try:
            if self._on_error is None:
                await self.cancel()
            else:
                await self.observe(reward=self._on_error)
        except NextarmError as failure:  # what happened inside is what the caller has to see
            error.add_note(f"decision {self.id} could not be closed: {failure}")
