"""The scorers that come with the service. Each builder checks its parameters and gives back a function of one sample.

clip-score       max(0, 100 cos(prompt, output)) / 100         Hessel et al. 2021 (arXiv 2104.08718) with w = 1, scaled to 0..1
exact-match      1 if the text equals the expected one         blanks at the ends and spellings in Unicode do not count
regex            1 if the pattern is found in the text
json-valid       1 if the text is JSON (RFC 8259)
length-penalty   min(1, target / length)                       characters; 1 up to the target, then falling as 1 / length
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from service import install_hint
from service.scorers.base import CannotScore, InvalidParameter, Sample, Scorer, ScorerUnavailable

_FENCED = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n(?P<inside>.*)```", re.DOTALL)
REGEX_S = 0.1
"""Seconds that one search may take."""


def clip_score(parameters: Mapping[str, Any]) -> Scorer:
    """Cosine of prompt and output in the space of one CLIP, clipped to [0, 1]."""

    def score(sample: Sample) -> float:
        if not sample.prompt.size:
            raise CannotScore("output", "was made for a decision without a prompt: there is nothing to compare it with")
        prompt, output = sample.prompt.astype(np.float64), sample.vector.astype(np.float64)
        lengths = float(np.linalg.norm(prompt) * np.linalg.norm(output))
        return min(max(0.0, float(prompt @ output) / lengths), 1.0) if lengths else 0.0  # rounding may pass 1

    return score


def exact_match(parameters: Mapping[str, Any]) -> Scorer:
    """`expected` holds for every outcome; a `reference` that is posted with the outcome comes before it, as the answer to that
    very prompt.
    """
    always: str = parameters.get("expected") or ""

    def score(sample: Sample) -> float:
        expected = sample.reference or always
        if not expected:
            raise CannotScore(
                "reference", "is missing; send the text that is right here, or create the bandit with reward.expected"
            )
        return float(_plain(sample.output) == _plain(expected))

    return score


def _plain(text: str | bytes) -> str:
    assert isinstance(text, str)
    return unicodedata.normalize("NFC", text.strip())


def regex(parameters: Mapping[str, Any]) -> Scorer:
    """1 if the pattern is found in the text. By the package `regex`, whose searches have a timeout: Python's `re` has none, and a
    pattern such as (a+)+$ takes longer than the universe. RE2 would need none, but knows neither look-around nor back-references,
    and is one more package; this one comes with open_clip. `concurrent` lets the other threads run meanwhile.
    """
    try:
        import regex as package
    except ImportError as error:
        raise ScorerUnavailable("the scorer 'regex' needs regex: " + install_hint("scorers")) from error
    try:
        pattern = package.compile(parameters["pattern"])
    except package.error as error:
        raise InvalidParameter("pattern", f"is no regular expression: {error}") from None

    def score(sample: Sample) -> float:
        try:
            return float(pattern.search(sample.output, timeout=REGEX_S, concurrent=True) is not None)
        except TimeoutError:
            timed_out = True
        assert timed_out
        raise CannotScore("output", f"took the pattern longer than {REGEX_S:g} s; make the pattern simpler")

    return score


def json_valid(parameters: Mapping[str, Any]) -> Scorer:
    """1 if the text is JSON. Nesting deeper than the decoder goes (about a thousand levels) is not valid. fences: `strip` takes
    one Markdown fence off first, as chat models put it around an answer that is nothing but JSON.
    """
    strips = parameters.get("fences") == "strip"

    def score(sample: Sample) -> float:
        text = sample.output
        if strips and isinstance(text, str) and (fenced := _FENCED.fullmatch(text.strip())):
            text = fenced["inside"]
        try:
            msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return 0.0
        return 1.0

    return score


def length_penalty(parameters: Mapping[str, Any]) -> Scorer:
    """1 up to `target` characters, then target / length."""
    target: int = parameters["target"]
    return lambda sample: min(1.0, target / max(len(sample.output), 1))
