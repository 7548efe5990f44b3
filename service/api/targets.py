"""The path of a request as it was sent: refused where a client or a proxy could read it as another path than this server does."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from service.api.problems import Problem

_SUSPECT = re.compile(rb"%|//|/\.|/$|[^\x21-\x7e]")
_HALF_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_FOLDED = ("", ".", "..")
"""Segments that clients and proxies leave out or resolve: `DELETE .../arms/..` becomes the deletion of the bandit."""


def check_target(raw: bytes) -> None:
    """400 `malformed_path` for a path, encoded as it was sent, with an empty, `.` or `..` segment (encoded or not), a broken
    escape, or bytes that are not UTF-8.
    """
    if raw == b"/" or not _SUSPECT.search(raw):  # nearly every request: one scan, nothing is decoded
        return
    if _HALF_ESCAPE.search(raw):
        raise Problem(
            "malformed_path", "the path holds a % that two hexadecimal digits do not follow; send a percent sign as %25"
        )
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Problem("malformed_path", "the path is not UTF-8; encode names as UTF-8, then percent-encode them") from None
    segments = path.split("/")[1:]
    if segments[-1] == "" and not {*segments[:-1]} & {*_FOLDED}:
        raise Problem("malformed_path", "the path ends with a slash; send it without")
    if {*segments} & {*_FOLDED}:
        raise Problem("malformed_path", "the path holds an empty segment, `.` or `..`; send it without, and percent-encode names")
