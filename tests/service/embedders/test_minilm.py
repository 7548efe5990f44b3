"""all-MiniLM-L6-v2 against sentence-transformers 6.2.0 (transformers 5.23.0) on the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from service.embedders import minilm
from service.embedders.base import TextEmbedder

Loaded = Callable[[str], TextEmbedder]

# SentenceTransformer(...).encode(text)[:5]
GOLDEN = {
    "Write a Python function that sorts a list of numbers.": [
        0.009020807221531868,
        0.058264702558517456,
        0.015153110958635807,
        -0.04006769508123398,
        -0.05419938638806343,
    ],
    "What is the capital of France?": [
        0.08204812556505203,
        0.03605549782514572,
        -0.003892855253070593,
        -0.004881102126091719,
        0.02565120905637741,
    ],
    "naïve café — 東京は晴れです 🌞": [
        0.06437983363866806,
        0.04699323698878288,
        0.08400540053844452,
        -0.011996600776910782,
        -0.04343779757618904,
    ],
    "the " * 400 + "end": [
        0.012467015534639359,
        0.06548202782869339,
        -0.019947823137044907,
        -0.012289528734982014,
        -0.07558794319629669,
    ],
}


def test_vectors_equal_those_of_sentence_transformers(loaded: Loaded) -> None:
    rows = loaded("minilm").embed(list(GOLDEN))
    assert rows[:, :5] == pytest.approx(np.array(list(GOLDEN.values())), abs=1e-6)


def test_cosines_equal_those_of_sentence_transformers(loaded: Loaded) -> None:
    first, *others = loaded("minilm").embed(
        [
            "Write a Python function that sorts a list of numbers.",
            "Implement quicksort in Python.",
            "What is the capital of France?",
            "Paris is the largest city of which country?",
            "A recipe for tomato soup with basil.",
            "Translate this to French: the weather is fine today.",
        ]
    )
    assert np.stack(others) @ first == pytest.approx(np.array([0.7038, 0.0598, 0.0927, 0.0791, 0.0599]), abs=5.1e-5)


def test_a_text_is_read_up_to_254_word_pieces(loaded: Loaded) -> None:
    embedder = loaded("minilm")
    read, beyond = "tree " * 253, "tree " * 254
    same = embedder.embed([beyond + "one", beyond + "quite another ending"])
    other = embedder.embed([read + "one", read + "quite another ending"])
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    assert float(abs(other[0] - other[1]).max()) > 1e-3


def test_case_and_accents_do_not_matter(loaded: Loaded) -> None:
    rows = loaded("minilm").embed(["Naïve Café", "naive cafe"])
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_word_order_matters(loaded: Loaded) -> None:
    rows = loaded("minilm").embed(["the dog bites the man", "the man bites the dog"])
    assert 0.5 < float(rows[0] @ rows[1]) < 1 - 1e-3


def test_a_batch_larger_than_one_pass_keeps_its_order(loaded: Loaded) -> None:
    embedder = loaded("minilm")
    texts = [f"{'tree ' * 200} {index}" for index in (3, 1, 4, 15, 92, 6)]  # some 1,220 word pieces
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert embedder.embed(texts) == pytest.approx(alone, abs=1e-6)


def test_passes_hold_as_many_texts_as_fit_and_never_more() -> None:
    pieces = [[0] * length for length in (256, 256, 256, 255, 1, 1, 200, 256, 256, 256, 57)]
    groups = list(minilm._groups(pieces))
    assert [len(group) for group in groups] == [5, 5, 1]
    assert [text for group in groups for text in group] == pieces
    assert list(minilm._groups([])) == []


def test_attention_is_the_softmax_of_query_times_key_within_each_text() -> None:
    generator = np.random.default_rng(11)
    lengths = [3, 1, 4]
    qkv = generator.normal(size=(sum(lengths), 3 * minilm.DIM))
    expected = np.zeros((sum(lengths), minilm.DIM))
    size = minilm.DIM // minilm.HEADS
    start = 0
    for length in lengths:
        for i in range(start, start + length):
            for head in range(minilm.HEADS):
                part = slice(head * size, (head + 1) * size)
                query = qkv[i, : minilm.DIM][part]
                weights = [
                    math.exp(query @ qkv[j, minilm.DIM : 2 * minilm.DIM][part] / math.sqrt(size))
                    for j in range(start, start + length)
                ]
                values = [qkv[j, 2 * minilm.DIM :][part] for j in range(start, start + length)]
                expected[i, part] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        start += length
    import torch

    assert minilm._attention(torch.from_numpy(qkv), lengths).numpy() == pytest.approx(expected, abs=1e-12)


def test_prompts_that_begin_alike_differ_by_their_ends(loaded: Loaded) -> None:
    system = "You are a helpful assistant of a bank. Answer in one sentence, and never give advice about the law. " * 15
    texts = [system + question for question in ("What is the capital of France?", "Sort a list of numbers in Python.")]
    embedder = loaded("minilm")
    start, end, both = (embedder.embed(texts, keep) for keep in ("start", "end", "both"))
    assert start[0] == pytest.approx(start[1], abs=1e-6)
    assert float(end[0] @ end[1]) < 0.99
    assert float(both[0] @ both[1]) < 0.99
    short = embedder.embed([texts[0][:400]], "both")
    assert short[0] == pytest.approx(embedder.embed([texts[0][:400]])[0], abs=1e-6)


def test_a_text_longer_than_is_cut_into_pieces_keeps_the_part_that_is_named(loaded: Loaded) -> None:
    embedder = loaded("minilm")
    filler = "the weather is fine today " * 1_000
    text = "A recipe for apple pie. " + filler + " Proofs about prime numbers."
    for keep, part in (("start", "A recipe for apple pie."), ("end", "Proofs about prime numbers.")):
        near = embedder.embed([text], keep)[0] @ embedder.embed([part])[0]  # type: ignore[arg-type]
        far = embedder.embed([filler])[0] @ embedder.embed([part])[0]
        assert near > far
