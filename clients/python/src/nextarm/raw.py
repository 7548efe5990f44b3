"""The HTTP response of a call, with the typed answer beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")


@dataclass(frozen=True)
class RawResponse(Generic[T]):
    """A success as it came. http: the response of httpx2.  attempts: how often the request was sent."""

    http: httpx2.Response
    attempts: int
    _answer: Callable[[httpx2.Response], T]

    @property
    def status_code(self) -> int:
        """Of HTTP: it tells a new decision (201) from a repeated one (200)."""
        return self.http.status_code

    @property
    def headers(self) -> httpx2.Headers:
        """All of them."""
        return self.http.headers

    @property
    def request_id(self) -> str:
        """As in the server's log."""
        return self.http.headers.get("x-request-id", "")

    @property
    def content(self) -> bytes:
        """The body."""
        return self.http.content

    def parse(self) -> T:
        """The answer as the method without `with_raw_response` returns it."""
        return self._answer(self.http)
