"""Bodies are measured before they are parsed: what would hold up the event loop is refused, however it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import json_bodies
from service.api.json_bodies import MAX_DEPTH, MAX_PARTS, MAX_VALUES, check_structure, parse_json
from service.api.problems import Problem
from tests.service.http_client import JSON, PROMPT, VECTOR, Service, failed

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


# -- where it is wrong ---------------------------------------------------------------------------------------------------------


def detail_of(body: bytes) -> str:
    with pytest.raises(Problem) as caught:
        parse_json(body)
    assert caught.value.code == "malformed_json"
    return caught.value.detail


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"reward": 0.5,}', "line 1 column 16"),
        (b'{\n  "reward": nought\n}', "line 2 column 14"),
        (b'{"reward": 1' + b"0" * 4300 + b"}", "line 1 column"),
        (b"[" * 300 + b"]" * 300, "line 1 column"),
        (b'{"prompt": "\xff"}', "line 1 column"),
        (b"", "line 1 column 0"),
        (b"\xef\xbb\xbf", "line 1 column 0"),
        (b'{"reward": 1, "reward": 2}', "'reward' twice in one object, at line 1 column 15"),
        (b'{"a": [{"b": 1,\n "c": 2,\n "b" : 3}]}', "'b' twice in one object, at line 3 column 2"),
        (b'{"a": 1, "\\u0061": 2}', "'a' twice in one object, at line 1 column 10"),
        (b'{"a" :1, "b":1, "b":2}', "'b' twice in one object, at line 1 column 17"),
        (b'{"": 1, "": 1}', "'' twice in one object, at line 1 column 9"),
        (b'{"a\\":": "x:y\\":", "b": {"a": 1}, "a\\":": {}}', "at line 1 column 35"),
    ],
)
def test_what_is_no_json_and_what_is_given_twice_is_named_with_its_place(body: bytes, place: str) -> None:
    assert place in detail_of(body)


def test_of_a_large_body_a_repeated_name_is_named_without_its_place() -> None:
    body = b'{"a": "' + b"x" * json_bodies._PLACED + b'", "a": 1}'
    assert detail_of(body) == "the body has the field 'a' twice in one object; send it once"


@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_that_is_nested_too_deeply_is_refused_with_the_depth_that_is_read(begin: bytes, end: bytes) -> None:
    for body in (begin * (MAX_DEPTH + 1) + b"1" + end * (MAX_DEPTH + 1), begin * (MAX_PARTS // 2)):
        assert "nested too deeply, at line 1 column" in detail_of(body)
        assert f"at most {MAX_DEPTH} levels" in detail_of(body)
    parse_json(begin * MAX_DEPTH + b"1" + end * MAX_DEPTH)


def test_a_byte_order_mark_is_left_out() -> None:
    assert parse_json(b'\xef\xbb\xbf{"reward": 0.5}') == {"reward": 0.5}


@given(value=values, ascii_only=st.booleans(), blanks=st.sampled_from([(",", ":"), (", ", ": "), (" , ", " \n: ")]))
def test_distinct_names_pass_however_they_are_written(value: Any, ascii_only: bool, blanks: tuple[str, str]) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only, separators=blanks).encode()) == value


pairs = st.lists(st.tuples(st.sampled_from(["a", 'b":', "c{"]), st.integers(0, 9) | texts), max_size=5)


@given(pairs=pairs, blank=st.sampled_from(["", " "]))
def test_a_repeated_name_is_always_found(pairs: list[tuple[str, Any]], blank: str) -> None:
    inner = "{" + ",".join(f"{json.dumps(name)}{blank}:{json.dumps(value)}" for name, value in pairs) + "}"
    body = f'{{"list": [[1, {inner}]], "text": "a:{{"}}'.encode()
    if len(dict(pairs)) == len(pairs):
        assert parse_json(body)["list"][0][1] == dict(pairs)
    else:
        assert "twice in one object, at line 1" in detail_of(body)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/bandits/b/decisions"),
        ("PUT", "/v1/bandits/b/decisions/d/outcome"),
        ("POST", "/v1/bandits/b/outcomes/batch"),
        ("PUT", "/v1/bandits/new"),
    ],
)
async def test_every_route_refuses_a_name_that_is_given_twice(service: Service, method: str, path: str) -> None:
    await service.create(body=VECTOR)
    response = await service.ask(method, path, content=b'{"x": 1, "x": 2}', headers=JSON)
    assert failed(response) == (400, "malformed_json")
    assert "line 1 column 10" in response.json()["detail"]
    assert await service.offset() == 1
