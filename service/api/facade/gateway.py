"""The gateway: a request becomes a decision, the decision a call, the call an answer and an outcome.

    request ──> decide ──> call ──> answer ──> outcome
                  ▲           │ failed: outcome with `error`
                  └───────────┘ another decision, without that arm, as long as no byte was sent

Every decision is closed before its request is answered: by what is learned of the answer, by an error, or cancelled. It stays
open on purpose where its reward comes later, from a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from service.api.auth import Caller
from service.api.content import messages_text
from service.api.decide import compares_prompts, decide
from service.api.dependencies import Services
from service.api.error_mapping import body_error_to_problem
from service.api.event_streams import STALLED_S, drop, left
from service.api.facade import outcomes
from service.api.facade.client import Call, CallFailedError, RequestRefusedError, UpstreamClient
from service.api.facade.errors import FacadeError, error_json, to_facade_error
from service.api.facade.sse import Event
from service.api.facade.surfaces import (
    UNREADABLE,
    Answer,
    Fields,
    NotAnAnswerError,
    StreamReader,
    Surface,
    fields_decoder,
    is_given,
)
from service.api.facade.upstreams import Upstream, Upstreams
from service.api.json_bodies import parse_json
from service.api.middleware import ABORT
from service.api.problems import Problem
from service.api.requests import NAME, DecisionBody
from service.engine.executor import TaskGroup
from service.engine.learner import Learner
from service.storage.throttling import ThrottledLogger

OUTCOME_WAIT_S = 1.0
"""Longest that the end of an answer waits for its outcome; behind it a slow scorer goes on."""
DRAIN_S = 1.0
"""Longest wait for the end of a stream whose last event has come, so that its connection can be used again."""
FAILURES = {429: "rate_limit_exceeded", 504: "upstream_timeout"}
"""Status of a request for which every arm has failed -> its code."""
MODEL = re.compile(f"bandit/(?P<name>{NAME.strip('^$')})")

throttled = ThrottledLogger(logging.getLogger("nextarm.facade"))


@dataclass(frozen=True)
class _Request:
    """A request, read. body: its values.  fields: the same as they were written.  model: its name as JSON."""

    surface: Surface
    tenant: str
    learner: Learner
    body: Mapping[str, Any]
    fields: Fields
    model: bytes
    streams: bool
    decision: DecisionBody


@dataclass
class _Attempt:
    """A decision of a request, and the call that follows from it. began: by the clock of `time.perf_counter`.
    is_closed: its outcome is on its way, whatever becomes of the request.
    """

    id: str
    arm: str
    headers: dict[str, str]
    began: float
    is_closed: bool = False


class Gateway:
    """Answers the requests of one process. `close` waits for the outcomes that are still on their way."""

    def __init__(self, services: Services, upstreams: Upstreams) -> None:
        self._services = services
        self._upstreams = upstreams
        self._client = UpstreamClient(connections=upstreams.max_calls)
        self._calls = 0
        self._background = TaskGroup()

    async def close(self) -> None:
        """Wait for outcomes, close the connections."""
        await self._background.finish()
        await self._client.close()

    async def answer(
        self, surface: Surface, caller: Caller, body: bytes, *, session: str | None, named: Callable[[str], None]
    ) -> Response:
        """The answer to a request. Raises `FacadeError` and `Problem`. session: of the header.  named: called with the name of
        the bandit once it is known.
        """
        if self._calls >= self._upstreams.max_calls:
            raise Problem(
                "overloaded", "too many calls are under way (max_calls of the upstreams); try again, or ask another replica"
            )
        self._calls += 1
        answered: Response | None = None
        try:
            answered = await self._answer(await self._read(surface, caller, body, session, named))
            return answered
        finally:
            if not isinstance(answered, EventStream):
                self._release()

    def _release(self) -> None:
        self._calls -= 1

    # -- the request -------------------------------------------------------------------------------------------------------

    async def _read(
        self, surface: Surface, caller: Caller, content: bytes, session: str | None, named: Callable[[str], None]
    ) -> _Request:
        body = parse_json(content)
        if not isinstance(body, dict):
            raise FacadeError(400, "invalid_request", "the body must be a JSON object")
        learner = await self._learner(caller, body.get("model"), named)
        streams = body.get("stream") or False
        if streams is not True and streams is not False:
            raise FacadeError(400, "invalid_request", "stream: must be true or false", param="stream")
        if streams and not surface.streams:
            raise FacadeError(400, "invalid_request", "stream: there are no streams of embeddings; leave it out", param="stream")
        if body.get("background"):
            # its answer would come by another request, of which this server knows nothing
            raise FacadeError(400, "invalid_request", "background: is not served here; leave it out", param="background")
        return _Request(
            surface=surface,
            tenant=caller.tenant,
            learner=learner,
            body=body,
            fields=_as_written(content),
            model=msgspec.json.encode(body["model"]),
            streams=streams,
            decision=self._decision(surface, learner, body, session),
        )

    async def _learner(self, caller: Caller, model: object, named: Callable[[str], None]) -> Learner:
        if not isinstance(model, str):
            raise FacadeError(
                400, "invalid_request", 'model: is missing; send the name of a bandit, e.g. "bandit/router"', param="model"
            )
        match = MODEL.fullmatch(model)
        if match is None:
            raise FacadeError(
                404,
                "model_not_found",
                f'model: {model[:128]!r} is not served here; send "bandit/NAME", GET /v1/models lists them',
                param="model",
            )
        named(match["name"])
        try:
            return await self._services.repository.get(caller.tenant, match["name"])
        except Exception as error:
            raise to_facade_error(body_error_to_problem(error)) from error

    def _decision(self, surface: Surface, learner: Learner, body: Mapping[str, Any], session: str | None) -> DecisionBody:
        metadata = body.get("metadata")
        given = session or (metadata.get("session_id") if isinstance(metadata, dict) else None) or None
        prompt = surface.prompt(body) if learner.created.prompt_embedder else None
        try:
            decision = DecisionBody.model_validate({"prompt": prompt, "session": given})
        except Exception as error:
            raise to_facade_error(body_error_to_problem(error), param=surface.prompt_field) from error
        if decision.prompt is None or not decision.prompt.messages or learner.policy.contextual or compares_prompts(learner):
            return decision
        said = messages_text(learner.created.request.get("prompt") or {}, decision.prompt.messages)
        # without words, as with a picture alone, a policy that can decides without the prompt
        return decision if said and said.strip() else decision.model_copy(update={"prompt": None})

    # -- decisions ---------------------------------------------------------------------------------------------------------

    async def _answer(self, request: _Request) -> Response:
        """Call the arm that is chosen; after a failure choose another one."""
        failures: dict[str, CallFailedError] = {}
        headers: dict[str, str] = {}
        for _ in range(self._upstreams.attempts):
            try:
                attempt = await self._decide(request, failures)
            except FacadeError:
                if failures:  # what failed says more than that no arm is left
                    break
                raise
            headers = attempt.headers
            try:
                return await self._call(request, attempt)
            except CallFailedError as error:
                failures[attempt.arm] = error
                await self._report_failure(request, attempt, str(error))
            except RequestRefusedError as error:
                await self._background.run_shielded(outcomes.cancel(request.learner, attempt.id))
                return _refusal(error, attempt)
            except BaseException:
                self._abandon(request, attempt)
                raise
        last = list(failures.values())[-1]
        said = "; ".join(f"{arm}: {error}" for arm, error in failures.items())
        if last.retry_after:
            headers = {**headers, "retry-after": last.retry_after}
        raise FacadeError(last.status, FAILURES.get(last.status, "upstream_failed"), f"no arm answered; {said}", headers=headers)

    async def _decide(self, request: _Request, failures: Mapping[str, CallFailedError]) -> _Attempt:
        active = [arm.name for arm in request.learner.ledger.arms if arm.active]
        callable_arms = [name for name in active if self._upstream(request, name) is not None]
        if active and not callable_arms:
            raise FacadeError(
                400,
                "no_upstream",
                "model: no arm of this bandit has an upstream; name its arms as the tables [arms.NAME] of the server's upstreams",
                param="model",
            )
        exclude = [name for name in active if name in failures or name not in callable_arms]
        body = request.decision.model_copy(update={"exclude": exclude or None})
        deciding = self._background.spawn(decide(self._services, request.learner, body))
        request.learner.demand.hold(deciding)
        try:
            decided, _ = await asyncio.shield(deciding)
        except asyncio.CancelledError:  # the server ends, and the decision may be in the log by now
            request.learner.demand.hold(self._background.spawn(_cancelled(request.learner, deciding)))
            raise
        except Exception as error:
            raise to_facade_error(body_error_to_problem(error), param=request.surface.prompt_field) from error
        if decided["stop"]:
            raise FacadeError(400, "no_arm", "the policy of this bandit takes no arm to be worth its price for this prompt")
        headers = {"x-nextarm-decision-id": decided["id"], "x-nextarm-arm": quote(decided["arm"], safe="/:@+,; ")}
        if decided["propensity"] is not None:
            headers["x-nextarm-propensity"] = f"{decided['propensity']:.6g}"
        return _Attempt(decided["id"], decided["arm"], headers, time.perf_counter())

    def _upstream(self, request: _Request, arm: str) -> Upstream | None:
        found = self._upstreams.arms.get(arm)
        return found if found is not None and found.serves(request.tenant) else None

    # -- calls -------------------------------------------------------------------------------------------------------------

    async def _call(self, request: _Request, attempt: _Attempt) -> Response:
        upstream = self._upstream(request, attempt.arm)
        if upstream is None:  # it was added to the bandit while the prompt was embedded
            raise CallFailedError("has no upstream")
        sent = (
            request.surface.asking_for_usage(request.fields, request.body)
            if request.streams and upstream.stream_usage
            else request.fields
        )
        body = msgspec.json.encode({**sent, "model": upstream.model})
        call = await self._client.call(upstream, request.surface.path, body, streams=request.streams)
        if request.streams:
            return await self._stream(request, attempt, call)
        try:
            content = await call.read()
        finally:
            await call.close()
        try:
            content, answer = request.surface.read(content, request.model)
        except NotAnAnswerError as error:
            raise CallFailedError(f"status 200 with {error}") from error
        await self._report(request, attempt, answer, first_token_s=None)
        return Response(content, headers=attempt.headers, media_type="application/json")

    async def _stream(self, request: _Request, attempt: _Attempt, call: Call) -> EventStream:
        """The answer once its first event has come: until then, another arm can take over."""
        options = request.body.get("stream_options")
        shows_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        reader = request.surface.events(request.model, shows_usage=shows_usage)
        batches = call.events()
        head = b""
        try:
            async for events in batches:
                head += _taken(reader, events)
                if reader.answer.error:
                    raise CallFailedError(reader.answer.error)
                if reader.has_begun:
                    break
            else:
                raise CallFailedError("a stream without an answer")
        except NotAnAnswerError as error:
            await _closed(batches, call)
            raise CallFailedError(f"a stream with {error}") from error
        except BaseException:
            await _closed(batches, call)
            raise
        first_token_s = time.perf_counter() - attempt.began

        async def relay(send: Send) -> None:
            await self._relay(
                request, attempt, send, call=call, reader=reader, batches=batches, head=head, first_token_s=first_token_s
            )

        return EventStream(relay, headers=attempt.headers, on_end=self._release)

    async def _relay(
        self,
        request: _Request,
        attempt: _Attempt,
        send: Send,
        *,
        call: Call,
        reader: StreamReader,
        batches: AsyncGenerator[list[Event]],
        head: bytes,
        first_token_s: float,
    ) -> None:
        """Pass on what comes. The last event waits for the outcome; a stream that is cut ends with an error. head: what came
        first.
        """
        answer = reader.answer
        failed = ""
        try:
            try:
                while not (answer.is_complete or answer.error):
                    if head:
                        await send({"type": "http.response.body", "body": head, "more_body": True})
                    events = await anext(batches, None)
                    if events is None:
                        head = reader.end()
                        break
                    head = _taken(reader, events)
            except (CallFailedError, NotAnAnswerError) as error:
                failed, head = f"cut off: {error}", b""
            if not failed and not answer.is_complete:
                failed = f"cut off: {answer.error or 'the stream ended before the answer did'}"
            if failed:
                await self._report_failure(request, attempt, failed)
                error_in_stream = error_json(502, "upstream_failed", f"{attempt.arm}: {failed}")["error"]
                head += reader.end_with_error(error_in_stream)
            else:
                await self._report(request, attempt, answer, first_token_s=first_token_s)
            await send({"type": "http.response.body", "body": head, "more_body": False})
        except BaseException:  # the client is gone or takes nothing, or the server ends
            self._abandon(request, attempt)
            raise
        finally:
            # not awaited: a request ends with its last byte, and what ends with it is cancelled
            self._background.spawn(drained(batches, call) if answer.is_complete and not failed else _closed(batches, call))

    # -- outcomes ----------------------------------------------------------------------------------------------------------

    async def _report(self, request: _Request, attempt: _Attempt, answer: Answer, *, first_token_s: float | None) -> None:
        created = request.learner.created
        learned = self._upstreams.learned(created.tenant, created.bandit)
        latency_s = time.perf_counter() - attempt.began
        work = outcomes.report_answer(
            self._services,
            request.learner,
            attempt.id,
            answer,
            learned=learned,
            cost=outcomes.cost_of(self._upstreams.arms[attempt.arm].prices, answer.usage, pictures=answer.pictures),
            signals=outcomes.signals_of(learned, answer, latency_s=latency_s, first_token_s=first_token_s),
        )
        attempt.is_closed = True
        reporting = self._background.spawn(work)
        request.learner.demand.hold(reporting)
        await asyncio.wait({reporting}, timeout=OUTCOME_WAIT_S)

    async def _report_failure(self, request: _Request, attempt: _Attempt, reason: str) -> None:
        """Also where the request is cancelled meanwhile."""
        throttled.warning(f"a call of arm {attempt.arm!r} failed", reason=reason, bandit=request.learner.created.bandit)
        attempt.is_closed = True
        reporting = self._background.spawn(outcomes.report_failure(self._services, request.learner, attempt.id, reason))
        request.learner.demand.hold(reporting)
        await asyncio.shield(reporting)

    def _abandon(self, request: _Request, attempt: _Attempt) -> None:
        """Cancel the decision, unless its outcome is known: of the two, the first in the log would stay."""
        if not attempt.is_closed:
            request.learner.demand.hold(self._background.spawn(outcomes.cancel(request.learner, attempt.id)))


class EventStream(Response):
    """A response of server-sent events that ends when its client goes away, or takes nothing for `STALLED_S`.

    relay: sends the body, and begins the answer with its first part.  on_end: called when it has ended.
    """

    def __init__(
        self, relay: Callable[[Send], Coroutine[Any, Any, None]], *, headers: Mapping[str, str], on_end: Callable[[], None]
    ):
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self._relay = relay
        self._on_end = on_end
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: list[Message] = [{"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}]

        async def bounded(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                while start:
                    await send(start.pop())
                await send(message)

        relay = asyncio.create_task(self._relay(bounded))
        relay.add_done_callback(lambda _: self._on_end())
        gone = asyncio.create_task(left(receive))
        try:
            await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            relay.cancel()  # without effect on one that is done
            await asyncio.wait({relay, gone})
        if relay.cancelled():
            return
        if isinstance(relay.exception(), TimeoutError):
            await drop(scope.get(ABORT, lambda: None), receive)
        else:
            relay.result()


async def _cancelled(learner: Learner, deciding: asyncio.Task[tuple[dict[str, Any], int]]) -> None:
    """Cancel a decision once it is made."""
    with contextlib.suppress(Exception):  # there is none
        decided, _ = await deciding
        if not decided["stop"]:
            await outcomes.cancel(learner, decided["id"])


async def drained(batches: AsyncGenerator[list[Event]], call: Call) -> None:
    """Read a stream whose last event has come to its end, so that its connection can be used again."""
    try:
        with contextlib.suppress(TimeoutError, CallFailedError):
            async with asyncio.timeout(DRAIN_S):
                async for _ in batches:
                    pass
    finally:
        await _closed(batches, call)


async def _closed(batches: AsyncGenerator[list[Event]], call: Call) -> None:
    await batches.aclose()
    await call.close()


def _taken(reader: StreamReader, events: list[Event]) -> bytes:
    """What the client gets of several events, up to the last one of the answer."""
    parts: list[bytes] = []
    for event in events:
        parts.append(reader.take(event))
        if reader.answer.is_complete or reader.answer.error:
            break
    return b"".join(parts)


def _as_written(content: bytes) -> Fields:
    try:
        return fields_decoder.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except msgspec.DecodeError as error:  # NaN and Infinity, which `parse_json` leaves to validation
        raise FacadeError(400, "malformed_json", f"the body is not JSON: {error}") from error


def _refusal(error: RequestRefusedError, attempt: _Attempt) -> Response:
    """What the upstream said of the request, in its own words where they have the form of an error."""
    status = 400 if error.status == 409 else error.status
    try:
        is_error = is_given(fields_decoder.decode(error.body), "error")
    except UNREADABLE:
        is_error = False
    if is_error:
        return Response(error.body, status, headers=attempt.headers, media_type="application/json")
    said = f"{attempt.arm}: the upstream refused the request, with status {error.status}"
    return FacadeError(status, "upstream_refused", said, headers=attempt.headers).response()
