"""The static embedder against wordllama 0.4.0's own inference on the same files."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pytest

from service.embedders.base import TextEmbedder
from service.embedders.static import MAX_CHARACTERS, normalized

Loaded = Callable[[str], TextEmbedder]

# WordLlamaInference(table, tokenizer).embed(text, norm=True)[:5]
GOLDEN = {
    "Write a Python function that sorts a list of numbers.": [
        0.10010162740945816,
        0.02448568120598793,
        -0.11506973952054977,
        -0.10106654465198517,
        0.03984697908163071,
    ],
    "What is the capital of France?": [
        0.040680188685655594,
        -0.04467719793319702,
        -0.0011198841966688633,
        0.02730504237115383,
        -0.1231795996427536,
    ],
    "naïve café — 東京は晴れです 🌞": [
        -0.0597129687666893,
        0.09260101616382599,
        -0.012893847189843655,
        -0.08904577046632767,
        0.0139293372631073,
    ],
    "the " * 400 + "end": [
        0.003572816262021661,
        0.10068397969007492,
        0.03367643058300018,
        0.1098230853676796,
        -0.07995052635669708,
    ],
}


def test_vectors_equal_those_of_wordllama(loaded: Loaded) -> None:
    rows = loaded("static").embed(list(GOLDEN))
    assert rows[:, :5] == pytest.approx(np.array(list(GOLDEN.values())), abs=1e-6)


def test_the_order_of_words_does_not_matter(loaded: Loaded) -> None:
    rows = loaded("static").embed(["dog bites man bites dog", "bites dog dog man bites", "bites dog man bites"])
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)
    assert float(abs(rows[0] - rows[2]).max()) > 1e-2


def test_a_repeated_text_says_the_same(loaded: Loaded) -> None:
    rows = loaded("static").embed(["tall tree", "tall tree " * 30 + "tall tree"])
    assert rows[0] == pytest.approx(rows[1], abs=0.02)  # the blanks between are tokens too


def test_a_text_without_tokens_is_zeros_and_harms_no_other(loaded: Loaded) -> None:
    rows = loaded("static").embed(["tall tree", "", "tall tree"])
    assert not rows[1].any()
    assert rows[0].tobytes() == rows[2].tobytes() == loaded("static").embed(["tall tree"])[0].tobytes()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("가장 빠른 정렬 알고리즘은 무엇입니까?", unicodedata.normalize("NFD", "가장 빠른 정렬 알고리즘은 무엇입니까?")),
        ("naïve café", unicodedata.normalize("NFD", "naïve café")),
        ("translate this sentence", "TRANSLATE This Sentence"),
        ("die straße", "DIE STRASSE"),
        ("one two", "  one\u00a0\n\t two\u3000"),
        ("a fine office", "a \ufb01ne o\ufb03ce"),
        ("42 ABC", "４２ ＡＢＣ"),
        ("software", "\ufeffsoft\u00adwa\u200bre"),
    ],
)
def test_a_text_that_looks_the_same_has_the_same_vector(loaded: Loaded, text: str, written: str) -> None:
    first, second = loaded("static/2").embed([text, written])
    assert float(first @ second) == pytest.approx(1.0, abs=1e-6)
    assert normalized(normalized(written)) == normalized(written) == normalized(text)


def test_a_bandit_of_an_earlier_version_keeps_its_vectors(loaded: Loaded) -> None:
    """Their bits stand in no log for the next prompt: only the same code gives them again."""
    lower, upper = loaded("static").embed(["translate this sentence", "TRANSLATE THIS SENTENCE"])
    assert float(lower @ upper) < 0.5
    plain = "what is the capital of france?"
    assert loaded("static/2").embed([plain]).tobytes() == loaded("static").embed([plain]).tobytes()
    assert loaded("static/2").version != loaded("static").version


def test_a_character_that_becomes_many_costs_no_more_than_a_long_text(loaded: Loaded) -> None:
    embedder = loaded("static/2")
    rows = embedder.embed(["\ufdfa" * MAX_CHARACTERS, normalized("\ufdfa" * MAX_CHARACTERS)[:MAX_CHARACTERS]])
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)
