"""Each scorer against what it promises, and all of them against whatever clients send."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scorers import registry, scoring
from service.scorers.base import CannotScore, InvalidParameter, Sample

NONE = np.empty(0, dtype=np.float32)


def score(
    name: str, output: str | bytes = "", *, reference: str = "", prompt: Any = NONE, vector: Any = NONE, **given: Any
) -> float:
    spec = registry.spec(name)
    of_output, of_prompt = np.asarray(vector, np.float32), np.asarray(prompt, np.float32)
    sample = Sample(output=output, vector=of_output, prompt=of_prompt, reference=reference)
    return scoring.score(spec, scoring.build(spec, given), sample)


def test_the_clip_score_is_the_cosine_from_zero_on() -> None:
    assert score("clip-score", prompt=[3.0, 4.0], vector=[4.0, 3.0]) == pytest.approx(24 / 25, abs=1e-7)
    assert score("clip-score", prompt=[3.0, 4.0], vector=[-4.0, -3.0]) == 0.0
    assert score("clip-score", prompt=[0.1, 0.7], vector=[0.2, 1.4]) == 1.0
    assert score("clip-score", prompt=[0.0, 0.0], vector=[0.2, 1.4]) == 0.0
    with pytest.raises(CannotScore, match="without a prompt"):
        score("clip-score", vector=[1.0])


def test_an_exact_match_forgives_blanks_at_the_ends_and_spellings_in_unicode() -> None:
    assert score("exact-match", " caf\u00e9\n", expected="cafe\u0301") == 1.0
    assert score("exact-match", "Cafe", expected="cafe") == 0.0
    assert score("exact-match", "4", reference="4", expected="5") == 1.0
    assert score("exact-match", "5", reference="4", expected="5") == 0.0
    with pytest.raises(CannotScore) as caught:
        score("exact-match", "4")
    assert caught.value.field == "reference"


def test_a_pattern_is_found_anywhere_in_the_text() -> None:
    assert score("regex", "the answer is 42.", pattern=r"\b\d+\b") == 1.0
    assert score("regex", "no number", pattern=r"\b\d+\b") == 0.0
    with pytest.raises(InvalidParameter, match="is no regular expression") as caught:
        score("regex", pattern="(")
    assert caught.value.field == "pattern"


def test_a_pattern_that_would_take_longer_than_the_universe_is_given_up() -> None:
    started = time.perf_counter()
    with pytest.raises(CannotScore, match="longer than"):
        score("regex", "a" * 60 + "b", pattern="^(a|aa)+$")
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize("text", ['{"a": [1, 2.5e3, null]}', "3", '"x"', " [] ", "-0.0"])
def test_json_is_valid(text: str) -> None:
    assert score("json-valid", text) == 1.0


@pytest.mark.parametrize("text", ["{a: 1}", "NaN", "[1,]", "{} {}", "Infinity", "'x'", "[" * 100_000, '"\\ud800', "01", " "])
def test_json_is_not_valid(text: str) -> None:
    assert score("json-valid", text) == 0.0


@settings(max_examples=100, deadline=None)
@given(document=st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), st.lists, max_leaves=8))
def test_whatever_a_json_writer_writes_is_valid(document: Any) -> None:
    assert score("json-valid", json.dumps(document)) == 1.0


def test_length_costs_nothing_up_to_the_target_and_then_as_one_over_length() -> None:
    assert [score("length-penalty", "x" * n, target=40) for n in (1, 40, 50, 400)] == pytest.approx([1.0, 1.0, 0.8, 0.1])


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_every_text_gets_a_reward_between_zero_and_one(text: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "exact-match": {"expected": "x"},
        "regex": {"pattern": "x+"},
        "json-valid": {},
        "length-penalty": {"target": 7},
    }
    for name, parameters in given.items():
        assert 0.0 <= score(name, text, **parameters) <= 1.0


@pytest.mark.parametrize(
    ("name", "given", "field"),
    [
        ("regex", {}, "pattern"),
        ("length-penalty", {}, "target"),
        ("json-valid", {"pattern": "x"}, "pattern"),
        ("clip-score", {"target": 3}, "target"),
        ("exact-match", {"options": {}}, "options"),
    ],
)
def test_parameters_that_are_missing_or_not_the_scorers_are_refused(name: str, given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        score(name, **given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text", ['```json\n{"a": 1}\n```', "\n```\n[1]\n```\n", "[1]", '```JSON\r\n{"a": "```"}\r\n```', "```\n[1]```"]
)
def test_json_in_a_fence_is_valid_where_the_bandit_says_so(text: str) -> None:
    assert score("json-valid", text, fences="strip") == 1.0
    assert score("json-valid", text) == float(text == "[1]")


@pytest.mark.parametrize(
    "text", ["```json\n{\n```", "Here it is:\n```json\n[1]\n```", "Here:\n```\n[1]```", "```[1]```", "```\n[1]\n"]
)
def test_a_fence_around_something_else_is_not_valid(text: str) -> None:
    assert score("json-valid", text, fences="strip") == 0.0
