"""The static embedder against wordllama 0.4.0's own inference on the same files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from service.embedders.base import TextEmbedder

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
