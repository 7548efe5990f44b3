"""Server-sent events as bytes: a stream is cut into events, and what is not looked at passes as it came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 32 * 2**20
"""Of one event; a picture in base64 fits."""

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")


class EventTooLargeError(Exception):
    """The upstream sends an event without an end."""


class Event(NamedTuple):
    """One event. raw: as it came, with its end.  data: of its `data` lines; None where it has none, as a comment."""

    raw: bytes
    data: bytes | None


class EventReader:
    """Cuts pieces of a stream into events, wherever the pieces end."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that hold no end of an event

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that are complete with this piece. Raises `EventTooLargeError`."""
        self._buffer += piece
        while end := _END.search(self._buffer, self._searched):
            raw = bytes(self._buffer[: end.end()])
            del self._buffer[: end.end()]
            self._searched = 0
            yield Event(raw, _data(raw))
        self._searched = max(0, len(self._buffer) - 3)
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise EventTooLargeError

    def rest(self) -> Event | None:
        """What came after the last end of an event, when the stream is over: a last event may lack its blank line."""
        raw = bytes(self._buffer)
        return Event(raw + b"\n\n", data) if (data := _data(raw)) is not None else None


def _data(raw: bytes) -> bytes | None:
    if raw.startswith(b"data:") and b"\r" not in raw and b"\n" not in raw[:-2]:  # most are one line
        return raw[5:].strip()
    found = [line[5:].removeprefix(b" ") for line in raw.splitlines() if line.startswith(b"data:")]
    return b"\n".join(found) if found else None


def with_data(raw: bytes, data: bytes) -> bytes:
    """The event with other data; its further lines stay."""
    others = [line for line in raw.splitlines() if line and not line.startswith(b"data:")]
    return b"\n".join([*others, b"data: " + data]) + b"\n\n"
