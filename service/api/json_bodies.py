"""JSON bodies and the routes that take them: one strict parser, and a measure before it, because it holds the event loop.

body ──> check_structure (413: too many parts) ──> parse_json (400: no JSON) ──> models

Every body passes `check_structure` in the middleware; every parse of one is a call of `parse_json`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from service.api.problems import NAMED, Problem, invalid_fields

MAX_PARTS = 100_000
"""Arrays, objects and names of fields in one body: each costs the parser and the garbage collector up to a microsecond."""
MAX_VALUES = 1_500_000
"""Values that follow a comma: a number costs about 0.1 us. 1,000 vectors of 1,500 numbers pass."""

MAX_DEPTH = 200
"""Arrays and objects in each other: the parser's own limit."""

_BLANK_BEFORE_COLON = re.compile(rb'"[ \t\r\n]+:')
_TOKEN = re.compile(rb'(?P<name>"(?:[^"\\]|\\.)*")(?=[ \t\r\n]*:)|"(?:[^"\\]|\\.)*"|[{}]')
_PLACED = 2**18
"""Bytes of a body up to which the place of a repeated name is looked for."""

_PIECE = 2**20
"""Bytes that are looked at together, so that the masks stay small."""
_PARTS = np.isin(np.arange(256), list(b"[{:"))
_COMMAS = np.arange(256) == ord(",")


def parse_json(body: bytes) -> Any:
    """The value of a body; a `Problem` that says where it is no JSON, or names a field twice in one object. Depth is bounded,
    lone surrogates are refused, a byte order mark is left out. NaN and Infinity pass: validation refuses them by field.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        value = from_json(body, allow_inf_nan=True, cache_strings="keys")
    except ValueError as error:
        problem, _, place = str(error).partition(" at line ")  # what was expected, and where; no content
        if problem == "recursion limit exceeded":
            detail = f"the body is nested too deeply, at line {place}; at most {MAX_DEPTH} levels of arrays and objects are read"
            raise Problem("malformed_json", detail) from None
        raise Problem("malformed_json", f"the body is not JSON: {error}") from None
    if not _has_distinct_names(body, value):
        _refuse_repeated_names(body)
    return value


def _has_distinct_names(body: bytes, value: Any) -> bool:
    """Whether every name in the body is certainly in the value, too; False where only a second parse can tell.

    Each name is followed by a colon: as many colons as names leave none for a repeated one. Colons in texts are distinguished by
    the quote before them, if no name is followed by a blank.
    """
    colons = body.count(b":")
    if isinstance(value, dict) and colons == len(value):  # nothing has names but the outermost object
        return True
    names = _count_names(value, body.count(b"{"))
    return colons == names or (body.count(b'":') == names and _BLANK_BEFORE_COLON.search(body) is None)


def _count_names(value: Any, objects: int) -> int:
    """Names in all objects of a value. objects: how many there are at most; once they are found, no list of numbers is read."""
    names = 0
    found: list[Any] = [value] if isinstance(value, dict | list) else []
    while found and objects > 0:  # level by level: what stands near the top is found before any list of numbers is
        inner: list[Any] = []
        for item in found:
            if isinstance(item, dict):
                names += len(item)
                objects -= 1
            inner.extend(item.values() if isinstance(item, dict) else item)
        found = [item for item in inner if isinstance(item, dict | list)]
    return names


def _refuse_repeated_names(body: bytes) -> None:
    """A `Problem` where an object has a name twice."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise _RepeatedName(name)
            names.add(name)

    try:
        json.loads(body, object_pairs_hook=check)
    except _RepeatedName as error:
        place = _place_of_repeated_name(body) if len(body) <= _PLACED else ""
        name = error.args[0][:NAMED]
        raise Problem("malformed_json", f"the body has the field {name!r} twice in one object{place}; send it once") from None


class _RepeatedName(Exception):
    """An object has this name twice."""


def _place_of_repeated_name(body: bytes) -> str:
    """`, at line 1 column 17`: of the first name that its object has already. Read token by token, only after one was found."""
    objects: list[set[str]] = []
    for token in _TOKEN.finditer(body):
        match body[token.start() : token.start() + 1]:
            case b"{":
                objects.append(set())
            case b"}":
                objects.pop()
            case _ if token["name"]:
                name = json.loads(token["name"])
                if name in objects[-1]:
                    before = body[: token.start()]
                    line, column = before.count(b"\n") + 1, token.start() - before.rfind(b"\n")
                    return f", at line {line} column {column}"
                objects[-1].add(name)
    return ""


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


class StrictJSONRequest(Request):
    """Reads JSON by `parse_json`, as the hot path does."""

    async def json(self) -> Any:
        try:
            return parse_json(await self.body())
        except Problem as problem:
            # The framework turns any other exception of a body into its own 400; `error_mapping.install` answers with the cause.
            raise HTTPException(problem.status) from problem


class StrictJSONRoute(APIRoute):
    """Routes of /v1: their bodies are read strictly, and a query parameter that a route does not declare is a 422.

    Probes, metrics and pages are no such routes: load balancers and scrapers may add parameters of their own.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = sorted(_query_parameters(self.dependant))
        taken = f"this takes {', '.join(known)}" if known else "this takes none"

        async def strictly(request: Request) -> Response:
            if request.scope["query_string"]:
                unknown = [name for name in request.query_params if name not in known]
                if unknown:
                    raise invalid_fields([(name[:NAMED], f"is not a query parameter here; {taken}") for name in unknown])
            return await handle(StrictJSONRequest(request.scope, request.receive))

        return strictly


def _query_parameters(dependant: Dependant) -> set[str]:
    """Names of the query parameters of a route and of what it depends on."""
    return {field.alias for field in dependant.query_params}.union(*map(_query_parameters, dependant.dependencies))
