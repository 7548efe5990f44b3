"""Bodies are measured before they are parsed: what would hold up the event loop is refused, however it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import json_bodies
from service.errors import Problem
from service.json_bodies import MAX_PARTS, MAX_VALUES, check_structure, parse_json
from tests.service.calls import JSON, PROMPT, VECTOR, Service, failed

texts = st.text(alphabet='ab\\"[]{}:,/\né\U0001f600', max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def counted(value: Any) -> Iterator[str]:
    """What there is to count in a value, found by walking it."""
    if isinstance(value, list | dict):
        yield "part"
        yield from ["comma"] * max(len(value) - 1, 0)
        for name in value if isinstance(value, dict) else ():
            yield "part"
            assert isinstance(name, str)
        for item in value.values() if isinstance(value, dict) else value:
            yield from counted(item)


@given(value=values, piece=st.integers(1, 9), ascii_only=st.booleans())
def test_what_is_counted_is_what_a_walk_over_the_value_finds(value: Any, piece: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    found = list(counted(value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_bodies, "_PIECE", piece)
        assert json_bodies._outside_of_strings(body) == (found.count("part"), found.count("comma"))


EXPENSIVE = {
    "lists": b"[" + b"[]," * MAX_PARTS + b"[]]",
    "objects": b"[" + b"{}," * MAX_PARTS + b"{}]",
    "names": b"{" + b",".join(b'"%d":1' % i for i in range(MAX_PARTS + 1)) + b"}",
    "objects in each other": b'{"a":' * MAX_PARTS + b"1" + b"}" * MAX_PARTS,
    "lists that are never closed": b"[" * (MAX_PARTS + 1),
    "lists behind a text of quotes": b'["' + b'\\"\\\\' * 1000 + b'"' + b",[]" * MAX_PARTS + b"]",
    "numbers": b"[" + b"0," * (MAX_VALUES + 1) + b"0]",
    "texts": b"[" + b'"",' * (MAX_VALUES + 1) + b'""]',
}


@pytest.mark.parametrize("body", EXPENSIVE.values(), ids=EXPENSIVE.keys())
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/bandits/b/decisions"),
        ("POST", "/v1/bandits/b/decisions/batch"),
        ("PUT", "/v1/bandits/b/decisions/d/outcome"),
        ("PUT", "/v1/bandits/new"),
    ],
)
async def test_a_body_of_too_many_parts_is_refused_before_it_is_parsed(
    service: Service, method: str, path: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.create(body=VECTOR)
    monkeypatch.setattr(json_bodies, "from_json", None)  # calling it would be an internal error
    for headers in (JSON, {"content-type": "text/plain"}):
        response = await service.ask(method, path, content=body, headers=headers)
        assert failed(response) == (413, "payload_too_large")
        assert "split it" in response.json()["detail"]


def test_a_text_may_hold_as_many_brackets_as_it_has_room_for() -> None:
    text = '[{"a": 1}, \\' * MAX_VALUES
    body = json.dumps({"prompt": text}).encode()
    check_structure(body)
    assert parse_json(body) == {"prompt": text}


def test_a_thousand_long_vectors_pass() -> None:
    body = json.dumps({"decisions": [{"prompt": {"vector": [0] * 1_490}}] * 1_000}, separators=(",", ":")).encode()
    check_structure(body)


def test_what_is_at_the_limit_passes_and_one_more_does_not() -> None:
    check_structure(b"[" + b"[]," * (MAX_PARTS - 2) + b"[]" + b" " * MAX_PARTS + b"]")
    with pytest.raises(Problem):
        check_structure(b"[" + b"[]," * (MAX_PARTS - 1) + b"[]" + b" " * MAX_PARTS + b"]")


async def test_large_bodies_are_answered_together(service: Service) -> None:
    """Each waits for its turn to be parsed; none waits for ever."""
    await service.create(body=VECTOR)
    padding = " " * 2**19
    bodies = [json.dumps({**PROMPT, "id": f"d{i}"}) + padding for i in range(5)]
    asked = [service.ask("POST", "/v1/bandits/b/decisions", content=body, headers=JSON) for body in bodies]
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [201] * 5
