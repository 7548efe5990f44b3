"""The client for code that blocks. `AsyncClient` is its twin."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack

from nextarm import errors
from nextarm._calls import Call, Direct, DirectRaw
from nextarm._follower import EventFollower
from nextarm._session import Came, Pause, Send, Session, Step, Steps
from nextarm._setup import Changes, Configured, Scope, Setup, request_of
from nextarm.bodies import DecisionRequest, OutcomeBody
from nextarm.errors import NextarmError
from nextarm.models import Receipt
from nextarm.raw import RawResponse
from nextarm.routes import Routes

if TYPE_CHECKING:
    import httpx2

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("nextarm.client")


class _Transport:
    """Carries out the steps of a session; safe to share between threads."""

    def __init__(self, http: httpx2.Client, session: Session) -> None:
        self.http = http
        self.session = session  # reports are delivered by the options of the client, not those of a copy
        self.closing = threading.Event()
        self.worker: threading.Thread | None = None

    def run(self, session: Session, steps: Steps[T], pause: Callable[[float], object] = time.sleep) -> T:
        came: Came = None
        try:
            while True:
                came = self._carry_out(session, steps.send(came), pause)
        except StopIteration as done:
            answer: T = done.value
            return answer

    def _carry_out(self, session: Session, step: Step, pause: Callable[[float], object]) -> Came:
        if isinstance(step, Pause):
            pause(step.seconds)
            return None
        return self._send(session, step)

    def _send(self, session: Session, step: Send) -> Came:
        import httpx2

        try:
            return self.http.request(**request_of(step, session))
        except httpx2.RequestError as error:
            return errors.of_transport(error, session.state.url)

    def deliver(self) -> None:
        """Start delivering what waits, unless that goes on already."""
        if self.session.state.reports.take_worker():
            self.worker = threading.Thread(target=self._deliver, name="nextarm-reports", daemon=True)
            try:
                self.worker.start()
            except (
                RuntimeError
            ):  # the interpreter ends, or has no room for a thread: the request that came here is done all the same
                self.worker = None
                self.session.state.reports.leave_worker(is_forced=True)

    def _deliver(self) -> None:
        try:
            self.run(self.session, self.session.deliver(), pause=self.closing.wait)
        except BaseException:
            self.session.state.reports.leave_worker(is_forced=True)
            log.exception("reports that were put off are not delivered")


class RawClient(Routes, DirectRaw):
    """The methods of `Client`, answering the HTTP response; without fallback."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, RawResponse[T]]:
        session, transport = self._client._session, self._client._transport

        def method(*args: P.args, **kwargs: P.kwargs) -> RawResponse[T]:
            return transport.run(session, session.exchange(build(*args, **kwargs)))

        return method


class Client(Configured, Routes, Direct):
    """A client of one service. It may be shared by threads; close it, or use it in a `with`.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        http_client: of httpx2, for proxies and certificates of your own.
        api_key: left out, it is `NEXTARM_API_KEY` of the environment, if that is set.
        tenant: beside an admin's key without a tenant, the tenant as whose admin requests are made.
        timeout: seconds of one attempt (60).
        max_retries: after 408, 429, 5xx and failed connections, with full jitter and as `Retry-After` says (2). A 409 is final.
        backoff_s: longest first pause, doubled by each further one (0.25).
        fallback: arm to take while the service is away, unless a decision names another one.
        fallback_after_s: how long a decision or an outcome may take until the service counts as away (1).
        buffer_size, buffer_bytes: of what is reported when the service is back (10,000 and 64 MiB).
        headers: further ones, with every request.
    """

    def __init__(self, url: str, *, http_client: httpx2.Client | None = None, **setup: Unpack[Setup]) -> None:
        import httpx2  # not above, nor in the other modules: a program that makes no client does not pay for it

        super().__init__(url, setup)
        self._transport = _Transport(http_client or httpx2.Client(), self._session)

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, T]:
        session, transport = self._session, self._transport

        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            answer = transport.run(session, session.answer(build(*args, **kwargs)))
            transport.deliver()
            return answer

        return method

    @cached_property
    def with_raw_response(self) -> RawClient:
        """The same methods, answering status, headers and body; `parse()` gives the typed answer."""
        return RawClient(self)

    def with_options(self, **changes: Unpack[Changes]) -> Client:
        """A client with other options that shares connections, circuit breaker and reports."""
        copy = object.__new__(Client)
        copy._session, copy._transport = self._changed(changes), self._transport
        return copy

    def decision(self, bandit: str, *, on_error: float | None = None, **request: Unpack[DecisionRequest]) -> DecisionScope:
        """A decision for the block of a `with`: an exception inside cancels it, or is its outcome with the reward `on_error`."""
        return DecisionScope(self, bandit, request, on_error=on_error)

    def iter_log(
        self, bandit: str, *, after: int = 0, page: int = 1000, fields: Sequence[str] | None = None, vectors: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Every event of the log behind an offset, as far as it goes now. page, fields, vectors: of each `read_log`."""
        while events := self.read_log(bandit, after=after, limit=page, fields=fields, vectors=vectors):
            yield from events
            after = events[-1]["offset"]

    def events(self, bandit: str, *, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Every event as it comes, without its vectors; it does not end by itself. since: an offset to begin behind, None = now.

        A connection that breaks is taken up again where it was. Raises `NotFoundError` when the bandit is deleted.
        """
        import httpx2

        follower = EventFollower(self._session, bandit, since)
        while True:
            failure: NextarmError | None = None
            try:
                with self._transport.http.stream(**follower.request()) as response:
                    if not response.is_success:
                        response.read()
                        raise errors.of_response(response)
                    for chunk in response.iter_bytes():
                        yield from follower.feed(chunk)
            except httpx2.RequestError as error:
                failure = errors.of_transport(error, self.url)
            except NextarmError as error:
                failure = error
            time.sleep(follower.pause_s(failure))

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait until everything that was put off is delivered; the number of reports that still wait."""
        self._transport.deliver()
        if (worker := self._transport.worker) is not None:
            worker.join(timeout_s)
        return self.stats.waiting

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver what waits if the service is there, and close the connections."""
        self._session.state.is_closing = True
        self._transport.closing.set()
        if left := self.flush(timeout_s):
            log.warning("closed with %d reports that could not be delivered", left)
        self._transport.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


class DecisionScope(Scope):
    """A decision and its outcome, in a `with`. answer: the whole decision."""

    def __init__(self, client: Client, bandit: str, request: DecisionRequest, *, on_error: float | None) -> None:
        self._client, self._bandit, self._request, self._on_error = client, bandit, request, on_error

    def observe(self, **outcome: Unpack[OutcomeBody]) -> Receipt:
        """Post what came of it."""
        receipt = self._client.observe(self._bandit, self.id, **outcome)
        self._is_closed = True
        return receipt

    def cancel(self) -> None:
        """Nothing is learned from it."""
        self._client.cancel_decision(self._bandit, self.id)
        self._is_closed = True

    def __enter__(self) -> Self:
        self.answer = self._client.decide(self._bandit, **self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not self._is_open:
            return
        try:
            if self._on_error is None:
                self.cancel()
            else:
                self.observe(reward=self._on_error)
        except NextarmError as failure:  # what happened inside is what the caller has to see
            error.add_note(f"decision {self.id} could not be closed: {failure}")
