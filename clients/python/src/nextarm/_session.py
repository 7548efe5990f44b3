"""What both clients do between a call and its answer, without I/O: retries, circuit breaker, fallback, delivery of reports.

A call is a generator of steps. A client carries each out and sends back what came of it:

    Send(call)   -> the httpx2.Response, or the NextarmError of a request without an answer
    Pause(s)     -> nothing, after so many seconds
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from nextarm import errors
from nextarm._calls import Call, encoded
from nextarm._reports import LARGEST_BATCH, Key, Report, ReportBuffer
from nextarm._retries import CircuitBreaker, pause_s
from nextarm.errors import APIStatusError, NextarmError, UnexpectedAnswerError
from nextarm.models import Decision, Decisions, Problem, Receipt, Receipts
from nextarm.raw import RawResponse

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

log = logging.getLogger("nextarm.client")

KEPT = (401, 403)
"""Refusals that an operator can mend without the client: what was put off stays."""
DELIVERY_S = 10.0
"""Bound of one request that delivers reports, retries included."""


@dataclass(frozen=True)
class Send:
    """Send the request of a call. timeout_s: None = as the client is set up."""

    call: Call[Any]
    timeout_s: float | None = None


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Step: TypeAlias = Send | Pause
Came: TypeAlias = "httpx2.Response | NextarmError | None"
Steps: TypeAlias = Generator[Step, Came, T]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How requests are sent. See `Client`."""

    max_retries: int = 2
    backoff_s: float = 0.25
    timeout: httpx2.Timeout
    headers: Mapping[str, str] = field(default_factory=dict)
    fallback: str = ""
    fallback_after_s: float = 1.0

    def timeout_within(self, seconds: float | None) -> httpx2.Timeout:
        """The timeout of an attempt that has so many seconds left."""
        import httpx2

        if seconds is None:
            return self.timeout
        each = {name: seconds if bound is None else min(bound, seconds) for name, bound in self.timeout.as_dict().items()}
        return httpx2.Timeout(**each)


@dataclass
class State:
    """What the copies of a client share."""

    url: str
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    breakers: dict[str, CircuitBreaker] = field(default_factory=dict)
    """Of bandits that the service could not serve while it answered: one that is damaged takes no other along."""
    reports: ReportBuffer = field(default_factory=ReportBuffer)
    has_fallback: bool = False
    is_closing: bool = False


class Session:
    """Turns calls into steps."""

    def __init__(self, state: State, options: Options) -> None:
        self.state = state
        self.options = options
        state.has_fallback = state.has_fallback or bool(options.fallback)

    # -- a call ----------------------------------------------------------------------------------------------------------------

    def answer(self, call: Call[T]) -> Steps[T]:
        """The typed answer of a call; with a fallback, also while the service is away."""
        if call.kind == "decision" and (arm := self.options.fallback if call.fallback is None else call.fallback):
            self.state.has_fallback = True
            return self._decide(call, arm)
        if call.kind in ("outcome", "cancel") and self.state.has_fallback:
            return self._conclude(call)
        return self._plain(call)

    def exchange(self, call: Call[T]) -> Steps[RawResponse[T]]:
        """The HTTP response of a call; there is no fallback, as there would be no response."""
        response, attempts = yield from self._attempts(call)
        return RawResponse(response, attempts, lambda response: self._read(call, response))

    def _plain(self, call: Call[T]) -> Steps[T]:
        response, _ = yield from self._attempts(call)
        return self._read(call, response)

    def _read(self, call: Call[T], response: httpx2.Response) -> T:
        if response.status_code == HTTPStatus.NOT_FOUND and call.is_gone_done:
            return call.answer(b"")
        try:
            return call.answer(response.content)
        except ValueError as error:
            about = f"{call.method} {response.url} is not answered as this version expects; is it a nextarm server?"
            request_id = response.headers.get("x-request-id", "")
            raise UnexpectedAnswerError(f"{about} {error}", status=response.status_code, request_id=request_id) from None

    def _attempts(self, call: Call[Any], *, within_s: float | None = None) -> Steps[tuple[httpx2.Response, int]]:
        """The response of the first attempt that succeeds, and its number; raises what the last one came to.

        within_s: no attempt begins after so many seconds, and none may take longer.
        """
        began = time.monotonic()
        end = None if within_s is None else began + within_s
        attempt = 0
        while True:
            left = None if end is None else max(end - time.monotonic(), 0.05)
            came = yield Send(call, left)
            error = self._failure(call, came, attempt)
            if error is None:
                assert not isinstance(came, NextarmError | None)
                return came, attempt + 1
            if not error.is_transient:
                raise error
            wait = pause_s(attempt, backoff_s=self.options.backoff_s, retry_after_s=error.retry_after_s)
            if attempt >= self.options.max_retries or wait is None or (end is not None and time.monotonic() + wait > end):
                self._record_failure(call, error, began)
                raise error
            attempt += 1
            yield Pause(wait)

    def _failure(self, call: Call[Any], came: Came, attempt: int) -> NextarmError | None:
        """What is wrong with what came, if anything is."""
        if isinstance(came, NextarmError):
            return came
        assert came is not None
        is_gone = bool(attempt) and call.is_gone_done and came.status_code == HTTPStatus.NOT_FOUND
        is_answer = came.is_success or came.status_code in call.answers or is_gone
        error = None if is_answer else errors.of_response(came)
        if error is None or _is_of_bandit(error) or not error.is_transient:
            if self.state.breaker.record_answer():
                log.info("the service is back")
            if (own := self.state.breakers.get(call.values.get("name", ""))) and (error is None or not error.is_transient):
                own.record_answer()
        return error

    def _record_failure(self, call: Call[Any], error: NextarmError, began: float) -> None:
        if isinstance(error, errors.APITimeoutError) and self.state.breaker.answered_at > began:
            return  # this request is slow, the service is there
        breaker = self.state.breaker
        if _is_of_bandit(error):
            breaker = self.state.breakers.setdefault(
                call.values.get("name", ""), CircuitBreaker(breaker.open_s, breaker.longest_s)
            )
        if breaker.record_failure(error.retry_after_s):
            log.warning("the service is away: %s", error)

    # -- while the service is away -----------------------------------------------------------------------------------------------

    def _decide(self, call: Call[Any], arm: str) -> Steps[Any]:
        try:
            return (yield from self._soon(call))
        except NextarmError as error:
            if not error.is_transient:
                raise
        assert call.body is not None
        assert call.content is not None
        bandit, decision = call.values["name"], call.body["id"]
        self.state.reports.remember((bandit, decision), arm, call.content)
        episode = call.body.get("episode") or decision
        return Decision(id=decision, bandit=bandit, episode=episode, arm=arm, is_fallback=True)

    def _conclude(self, call: Call[Any]) -> Steps[Any]:
        """An outcome or a cancellation: now, or when the service is back."""
        key = (call.values["name"], call.values["decision"])
        made_here = self.state.reports.find(key)
        if made_here is None:
            try:
                return (yield from self._soon(call))
            except NextarmError as error:
                if not error.is_transient:
                    raise
            self.state.reports.add(Report(key=key, outcome=call.content or b""))
            return None if call.kind == "cancel" else _receipt(call)
        if call.kind == "cancel":
            self.state.reports.forget(key)
            # The first attempt may have reached the service: then the decision is open there.
            self.state.reports.add(Report(key=key))
            return None
        return self._report(call, key)

    def _report(self, call: Call[Any], key: Key) -> Receipt:
        """The outcome of a decision that was made here: for the arm that was called, under the id that was asked for."""
        made_here = self.state.reports.find(key)
        assert made_here is not None
        assert call.body is not None
        outcome = {"arm": made_here.arm, **{name: value for name, value in call.body.items() if name != "next"}}
        content = encoded(outcome)
        if made_here.outcome == content:
            return _receipt(call, is_duplicate=True)
        asked = json.loads(made_here.content)
        # Only the arm that was called could be chosen, and the log says so: its propensity is 1, and no estimate from the log
        # takes the client's choice for one of the policy.
        given = next((arm for arm in asked.get("arms") or () if arm == outcome["arm"] or _name(arm) == outcome["arm"]), None)
        asked["arms"] = [given or outcome["arm"]]
        for name in ("exclude", "max_price"):  # which the arm need not pass
            asked.pop(name, None)
        self.state.reports.conclude(key, Report(key=key, decision=encoded(asked), outcome=content))
        return _receipt(call)

    def _soon(self, call: Call[T]) -> Steps[T]:
        """The answer within `fallback_after_s`; a transient error at once while the service is known to be away."""
        lease_s = 2.0 * self.options.fallback_after_s
        for breaker in (self.state.breaker, self.state.breakers.get(call.values["name"])):
            if breaker is not None and not breaker.is_request_allowed(lease_s):
                raise errors.APIConnectionError(f"{self.state.url} is away; it is asked again in {breaker.wait_s:.1f} s")
        response, _ = yield from self._attempts(call, within_s=self.options.fallback_after_s)
        return self._read(call, response)

    # -- when it is back ---------------------------------------------------------------------------------------------------------

    def deliver(self) -> Steps[None]:
        """Deliver everything that waits; ends when nothing does, or when the client is closing and the service is away.

        Exactly once, although an answer may be lost: every report has an id of the client's, so that sending it again is the
        same decision and the same outcome.
        """
        most, failing = LARGEST_BATCH, set[str]()
        while not self.state.reports.leave_worker():
            if not (batch := self.state.reports.batch(most, without=failing)):
                if self.state.is_closing:
                    self.state.reports.leave_worker(is_forced=True)
                    return
                yield Pause(max(self.state.breaker.wait_s, self.options.backoff_s))
                failing.clear()
                continue
            bandit = next(iter(batch.values())).key[0]
            try:
                yield from self._deliver(bandit, batch)
                most = LARGEST_BATCH
            except NextarmError as error:
                if _stays(error):  # where the service answered, other bandits may go on
                    failing |= {bandit} if error.status else self.state.reports.bandits()
                elif len(batch) > 1:  # one of them is to blame: each alone
                    most = 1
                else:
                    self._refuse(next(iter(batch)), str(error))

    def _deliver(self, bandit: str, batch: Mapping[int, Report]) -> Steps[None]:
        made_here = {number: report for number, report in batch.items() if report.decision}
        known = set(batch)
        if made_here:
            body = b'{"decisions":[' + b",".join(report.decision for report in made_here.values()) + b"]}"
            answer = yield from self._post(_batch(bandit, "decisions", body, Decisions))
            for number, item in zip(made_here, answer.decisions, strict=False):
                # A conflict: the first attempt of the client had reached the service, which made the decision then.
                if isinstance(item, Problem) and item.code != "decision_conflict":
                    known.discard(number)
                    self._look_at(number, item)
        outcomes = {number: report for number, report in batch.items() if number in known and report.outcome}
        if outcomes:
            body = b'{"outcomes":[' + b",".join(_item(report) for report in outcomes.values()) + b"]}"
            receipts = yield from self._post(_batch(bandit, "outcomes", body, Receipts))
            for number, receipt in zip(outcomes, receipts.outcomes, strict=False):
                self._look_at(number, receipt)
        for number in known - outcomes.keys():
            yield from self._cancel(number, batch[number].key)

    def _post(self, call: Call[T]) -> Steps[T]:
        response, _ = yield from self._attempts(call, within_s=DELIVERY_S)
        return self._read(call, response)

    def _cancel(self, number: int, key: Key) -> Steps[None]:
        values = {"name": key[0], "decision": key[1]}
        template = "/v1/bandits/{name}/decisions/{decision}"
        try:
            yield from self._post(Call(method="DELETE", template=template, values=values, answer=bytes))
        except APIStatusError as error:
            if _stays(error):
                raise
            if error.code != "decision_not_found":  # else it never reached the service
                self._refuse(number, str(error))
        self.state.reports.settle(number, is_delivered=True)

    def _look_at(self, number: int, item: Decision | Receipt | Problem) -> None:
        """What became of an item of a batch; a transient problem leaves it where it is."""
        if not isinstance(item, Problem):
            self.state.reports.settle(number, is_delivered=True)
            return
        error = errors.of_problem(item)
        if _stays(error):
            raise error
        self._refuse(number, str(error))

    def _refuse(self, number: int, why: str) -> None:
        log.warning("a report that was put off is refused: %s", why)
        self.state.reports.settle(number, is_delivered=False)


def _is_of_bandit(error: NextarmError) -> bool:
    """Whether a failure is one that the service itself answered, and may concern one bandit alone."""
    return isinstance(error, errors.ServerError) and bool(error.code)


def _stays(error: NextarmError) -> bool:
    """Whether what was put off stays: the service is away, the key has to be mended, or no nextarm service answered."""
    return error.is_transient or error.status in KEPT or not error.code


def _name(arm: Any) -> Any:
    return arm.get("name") if isinstance(arm, Mapping) else arm


def _batch(bandit: str, what: str, content: bytes, answer: Any) -> Call[Any]:
    return Call(
        method="POST",
        template="/v1/bandits/{name}/" + what + "/batch",
        values={"name": bandit},
        content=content,
        answer=answer.model_validate_json,
    )


def _item(report: Report) -> bytes:
    """An outcome with the decision that it belongs to."""
    return b'{"decision":' + json.dumps(report.key[1]).encode() + (b"," if report.outcome != b"{}" else b"") + report.outcome[1:]


def _receipt(call: Call[Any], *, is_duplicate: bool = False) -> Receipt:
    """Of an outcome that was put off."""
    assert call.body is not None
    reward = call.body.get("reward")
    reward = None if reward is None else float(reward)
    return Receipt(decision=call.values["decision"], reward=reward, duplicate=is_duplicate, is_deferred=True)
