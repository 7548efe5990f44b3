"""What `Client` and `AsyncClient` have in common besides their routes: how they are set up, and the scope of a decision."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from nextarm._reports import ReportBuffer, Stats
from nextarm._session import Options, Send, Session, State
from nextarm._version import __version__
from nextarm.models import Decision

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = 60.0
"""Creating the first bandit of an embedder takes seconds."""


class Setup(TypedDict, total=False):
    """The arguments of `Client` and `AsyncClient` besides the URL; `Client` describes them."""

    api_key: str | None
    tenant: str
    timeout: float | httpx2.Timeout
    max_retries: int
    backoff_s: float
    fallback: str
    fallback_after_s: float
    buffer_size: int
    buffer_bytes: int
    headers: Mapping[str, str]


class Changes(TypedDict, total=False):
    """What `with_options` can change. min_offset: answer from at least this offset, for a client of several replicas."""

    timeout: float | httpx2.Timeout
    max_retries: int
    backoff_s: float
    fallback: str
    fallback_after_s: float
    headers: Mapping[str, str]
    min_offset: int
    request_id: str


OPTIONS = {option.name for option in fields(Options)} - {"timeout", "headers"}


def _options(given: Mapping[str, Any], *, headers: Mapping[str, str], timeout: float | httpx2.Timeout) -> dict[str, Any]:
    """The fields of `Options` that are given, with headers and timeout in their final form."""
    import httpx2

    named = {name: value for name, value in given.items() if name in OPTIONS}
    if given.get("timeout") is not None:
        timeout = given["timeout"]
    if not isinstance(timeout, httpx2.Timeout):
        timeout = httpx2.Timeout(timeout, connect=min(timeout, 5.0))
    return {**named, "headers": headers, "timeout": timeout}


class Configured:
    """What both clients have: options, shared state, and a look at it."""

    def __init__(self, url: str, setup: Setup) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must start with http:// or https://, not {url!r}")
        if unknown := setup.keys() - Setup.__annotations__:
            raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}; there are {', '.join(Setup.__annotations__)}")
        key = setup.get("api_key")
        key = os.environ.get("NEXTARM_API_KEY", "") if key is None else key
        headers = {"user-agent": f"nextarm-python/{__version__}", **setup.get("headers", {})}
        if key:
            headers["authorization"] = f"Bearer {key}"
        if tenant := setup.get("tenant"):
            headers["x-nextarm-tenant"] = tenant
        reports = ReportBuffer(setup.get("buffer_size", 10_000), setup.get("buffer_bytes", 64 * 2**20))
        options = Options(**_options(setup, headers=headers, timeout=TIMEOUT_S))
        self._session = Session(State(url.rstrip("/"), reports=reports), options)

    @property
    def url(self) -> str:
        """Of the service."""
        return self._session.state.url

    @property
    def stats(self) -> Stats:
        """What was decided without the service, and what became of the reports."""
        return self._session.state.reports.stats

    def _changed(self, changes: Changes) -> Session:
        """A session that shares everything but the options."""
        options = self._session.options
        headers = {**options.headers, **changes.get("headers", {})}
        if "min_offset" in changes:
            headers["x-nextarm-min-offset"] = str(changes["min_offset"])
        if "request_id" in changes:
            headers["x-request-id"] = changes["request_id"]
        return Session(self._session.state, replace(options, **_options(changes, headers=headers, timeout=options.timeout)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.url}>"  # without the key


class Scope:
    """What both scopes of a decision have. answer: the whole decision."""

    answer: Decision
    _is_closed = False

    @property
    def id(self) -> str:
        """Of the decision."""
        return self.answer.id or ""

    @property
    def arm(self) -> str | None:
        """The model to query; null where none is worth it."""
        return self.answer.arm

    @property
    def _is_open(self) -> bool:
        """Whether it is in the log and still needs an outcome or a cancel."""
        return not (self._is_closed or self.answer.stop) and bool(self.id)


def request_of(send: Send, session: Session) -> dict[str, Any]:
    """The arguments of httpx2's `request`."""
    call, options = send.call, session.options
    headers = {**options.headers, **call.headers}
    if call.content is not None:
        headers["content-type"] = "application/json"
    return {
        "method": call.method,
        "url": session.state.url + call.path,
        "params": call.query or None,
        "content": call.content,
        "headers": headers,
        "timeout": options.timeout_within(send.timeout_s),
    }
