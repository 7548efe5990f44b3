"""Where a client is in the event stream of a bandit, and when it connects again, without I/O."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from nextarm import errors
from nextarm._calls import Call
from nextarm._retries import pause_s
from nextarm._session import Send, Session
from nextarm._setup import request_of
from nextarm.errors import NextarmError
from nextarm.models import Problem

log = logging.getLogger("nextarm.client")

MOST_DOUBLED = 16
SILENT_S = 45.0
"""Three comments of the service that did not come: the connection is dead."""


class EventFollower:
    """The position in one stream. since: the offset behind which it begins, None = what comes from now on."""

    def __init__(self, session: Session, bandit: str, since: int | None) -> None:
        self._session = session
        self._bandit = bandit
        self._since = since
        self._last: str | None = None  # the id that was read last
        self._rest = b""
        self._failures = 0

    def request(self) -> dict[str, Any]:
        """The arguments of httpx2's `stream` for the next connection."""
        import httpx2

        self._rest = b""
        call = Call(
            method="GET",
            template="/v1/bandits/{name}/events",
            values={"name": self._bandit},
            query={} if self._since is None else {"since": str(self._since)},
            headers={"accept": "text/event-stream", **({} if self._last is None else {"last-event-id": self._last})},
            answer=bytes,
        )
        request = request_of(Send(call), self._session)
        bounds = self._session.options.timeout.as_dict()
        if bounds["read"] is not None:
            bounds["read"] = max(bounds["read"], SILENT_S)
        return {**request, "timeout": httpx2.Timeout(**bounds)}

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The events that a chunk completes; raises what the service says at the end."""
        *messages, self._rest = (self._rest + chunk).split(b"\n\n")
        for message in messages:
            fields = dict(line.split(b": ", 1) for line in message.split(b"\n") if b": " in line and not line.startswith(b":"))
            if fields.get(b"event") == b"end":
                raise errors.of_problem(Problem.model_validate_json(fields[b"data"]))
            self._last = fields[b"id"].decode() if b"id" in fields else self._last
            if self._failures:
                self._failures = 0
                log.info("the events of %s go on", self._bandit)
            if b"data" in fields:
                yield json.loads(fields[b"data"])

    def pause_s(self, failure: NextarmError | None) -> float:
        """Seconds until the next connection; raises a failure that stays. None: the service ended the stream, which it does when
        it stops. Once a stream has begun, it is taken up again for as long as the service is away.
        """
        if failure is not None and not failure.is_transient:
            raise failure
        options = self._session.options
        if failure is not None and self._last is None and self._failures >= options.max_retries:
            raise failure
        asked_s = None if failure is None else failure.retry_after_s
        wait = pause_s(min(self._failures, MOST_DOUBLED), backoff_s=options.backoff_s, retry_after_s=asked_s)
        if failure is not None and wait is None:
            raise failure
        if not self._failures:
            log.info("the events of %s are interrupted: %s", self._bandit, failure or "the service ended the stream")
        self._failures += 1
        return wait or 0.0
