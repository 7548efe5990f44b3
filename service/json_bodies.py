"""JSON bodies: read by one strict parser, and measured before, because the parser holds the event loop while it works.

body ──> check_structure (413: too many parts) ──> parse_json (400: no JSON) ──> models

Every body passes `check_structure` in the door (transport.py); every parse of one is a call of `parse_json`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic_core import from_json

from service.errors import Problem

MAX_PARTS = 100_000
"""Arrays, objects and names of fields in one body: each costs the parser and the garbage collector up to a microsecond."""
MAX_VALUES = 1_500_000
"""Values that follow a comma: a number costs about 0.1 us. 1,000 vectors of 1,500 numbers pass."""

_PIECE = 2**20
"""Bytes that are looked at together, so that the masks stay small."""
_PARTS = np.isin(np.arange(256), list(b"[{:"))
_COMMAS = np.arange(256) == ord(",")


def parse_json(body: bytes) -> Any:
    """The value of a body; a `Problem` where it is no JSON. Depth is bounded, lone surrogates are refused. NaN and Infinity pass:
    validation refuses them by the name of the field.
    """
    try:
        return from_json(body, allow_inf_nan=True, cache_strings="keys")
    except ValueError:
        raise Problem("malformed_json", "the body is not JSON") from None


def check_structure(body: bytes) -> None:
    """A `Problem` where the body has more parts than the parser can build without holding up every other request. At most some
    10 ms for 16 MiB, most of it without the interpreter's lock.
    """
    if len(body) <= MAX_PARTS:  # each part is a byte at least
        return
    parts, commas = sum(map(body.count, (b"[", b"{", b":"))), body.count(b",")
    if parts > MAX_PARTS or commas > MAX_VALUES:  # unless they stand in texts
        parts, commas = _outside_of_strings(body)
    if parts > MAX_PARTS:
        raise Problem("payload_too_large", f"a body may have {MAX_PARTS:,} arrays, objects and names of fields; split it")
    if commas > MAX_VALUES:
        raise Problem("payload_too_large", f"a body may have {MAX_VALUES:,} values; split it, or send vectors as base64")


def _outside_of_strings(body: bytes) -> tuple[int, int]:
    """How many parts and commas stand outside of strings. Whether a byte does is the parity of the quotes before it."""
    if b"\\" in body:
        # Left to right, as a parser reads: a pair of backslashes is one character, and only then does `\"` not end a string.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = commas = 0
    is_inside = False
    for start in range(0, len(body), _PIECE):
        piece = np.frombuffer(body, np.uint8, min(_PIECE, len(body) - start), start)
        inside = np.logical_xor(np.cumsum(piece == ord('"'), dtype=np.uint8) & 1, is_inside)  # wraps at 256, which is even
        outside = piece[~inside]
        parts += int(np.count_nonzero(_PARTS[outside]))
        commas += int(np.count_nonzero(_COMMAS[outside]))
        is_inside = bool(inside[-1])
    return parts, commas
