"""One request of the API as a value, and the descriptor that makes a method of each of four clients from its description."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from array import array
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote
from uuid import UUID

from nextarm.raw import RawResponse

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Kind = Literal["", "decision", "outcome", "cancel"]
"""Of the calls that the client can do without the service, or put off until it is back."""

_FIELD = re.compile(r"\{(\w+)\}")
_VECTORS = ("vector", "probabilities")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request.

    template: the path of the OpenAPI document; `values` stand for its fields.  content: the encoded body.
    answer: makes the typed answer from the body of a success.  fallback: arm that a decision gets while the service is away;
    None = that of the client.  is_gone_done: a 404 of a retry says that the attempt before was carried out.
    answers: further statuses that are an answer and no failure.
    """

    method: str
    template: str
    answer: Callable[[bytes], T]
    values: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    kind: Kind = ""
    fallback: str | None = None
    is_gone_done: bool = False
    answers: tuple[int, ...] = ()
    content: bytes | None = None

    def __post_init__(self) -> None:
        """Encode once: every attempt sends the same bytes."""
        if self.body is not None and self.content is None:
            object.__setattr__(self, "content", encoded(self.body))

    @property
    def path(self) -> str:
        """With names quoted, slashes too, so that a name cannot reach another resource."""
        return _FIELD.sub(lambda match: quote(self.values[match[1]], safe=""), self.template) if self.values else self.template


def encoded(body: Any) -> bytes:
    """JSON. Numbers and arrays of numpy and torch are taken; ValueError for a number that is not finite."""
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain).encode()
    except ValueError as error:
        raise ValueError(f"the request cannot be sent as JSON: {error}; numbers must be finite, texts valid Unicode") from None
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def float32(numbers: Any) -> str:
    """Base64 of little-endian float32, which the service reads much faster than a list of numbers."""
    if hasattr(numbers, "tolist"):
        numbers = numbers.tolist()
    try:
        packed = array("f", numbers)
    except TypeError:
        raise TypeError("a vector must be a sequence of numbers, or base64 of little-endian float32") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return b64encode(packed.tobytes()).decode()


def content(value: Any) -> Any:
    """A prompt or an output, or a list of them, with vectors as base64."""
    if isinstance(value, Mapping):
        return {
            name: float32(item) if name in _VECTORS and not isinstance(item, str | None) else item for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [content(item) for item in value]
    return value


def new_id() -> str:
    """A UUIDv7: ids that follow each other in time are neighbors in the service's index."""
    millis, chance = time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big")
    return str(UUID(int=millis << 80 | 7 << 76 | (chance >> 68) << 64 | 2 << 62 | chance & (1 << 62) - 1))


# -- one description, four clients ---------------------------------------------------------------------------------------------


class Direct:
    """A client whose methods return the answer."""

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, T]:
        raise NotImplementedError


class Awaited:
    """A client whose methods return a coroutine of the answer."""

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        raise NotImplementedError


class DirectRaw:
    """A client whose methods return the HTTP response."""

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, RawResponse[T]]:
        raise NotImplementedError


class AwaitedRaw:
    """A client whose methods return a coroutine of the HTTP response."""

    def _bind(self, build: Callable[P, Call[T]]) -> Callable[P, Coroutine[Any, Any, RawResponse[T]]]:
        raise NotImplementedError


class Route(Generic[P, T]):
    """A method of a client, described by the function that makes its `Call`; what it returns depends on the client."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self.build = build
        self.__doc__ = build.__doc__
        self.__wrapped__ = build

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Direct, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaited, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: DirectRaw, owner: type) -> Callable[P, RawResponse[T]]: ...
    @overload
    def __get__(self, client: AwaitedRaw, owner: type) -> Callable[P, Coroutine[Any, Any, RawResponse[T]]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self
        bound = self.build.__get__(client, owner)
        method = wraps(bound)(client._bind(bound))
        client.__dict__[self.name] = method  # the next access finds it without this descriptor
        return method
