"""What every text embedder promises, with its real weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.embedders import registry
from service.embedders.base import TextEmbedder
from service.embedders.static import normalized

Loaded = Callable[[str], TextEmbedder]
NAMES = [*(name for name, spec in registry.EMBEDDERS.items() if spec.modality == "text"), "static/2"]
TEXTS = [
    "Write a Python function that sorts a list of numbers.",
    "?",
    "What is the capital of France?",
    "A story about a lighthouse keeper who finds a letter in a bottle, told in five short chapters. " * 3,
    "naïve café — 東京は晴れです 🌞",
]
each = pytest.mark.parametrize("name", NAMES)


@each
def test_it_is_what_the_registry_says(name: str, loaded: Loaded) -> None:
    embedder, spec = loaded(name), registry.spec(name)
    assert (embedder.name, embedder.dim, embedder.unit_norm) == (name, spec.dim, spec.unit_norm)
    assert embedder.version == spec.version()


@each
def test_there_is_one_float32_row_of_length_one_per_text(name: str, loaded: Loaded) -> None:
    rows = loaded(name).embed(TEXTS)
    assert rows.shape == (len(TEXTS), registry.spec(name).dim)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)
    assert np.linalg.matrix_rank(rows) == len(TEXTS)


@each
def test_no_text_gives_no_row(name: str, loaded: Loaded) -> None:
    rows = loaded(name).embed([])
    assert rows.shape == (0, registry.spec(name).dim)
    assert rows.dtype == np.float32


@each
def test_the_same_texts_give_the_same_bits(name: str, loaded: Loaded) -> None:
    assert loaded(name).embed(TEXTS).tobytes() == loaded(name).embed(TEXTS).tobytes()


@each
def test_a_text_alone_agrees_with_itself_in_a_batch_of_any_company_and_order(name: str, loaded: Loaded) -> None:
    embedder = loaded(name)
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert embedder.embed(TEXTS) == pytest.approx(alone, abs=1e-6)
    assert embedder.embed(TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-6)
    assert embedder.embed([TEXTS[1], TEXTS[3], TEXTS[1]]) == pytest.approx(alone[[1, 3, 1]], abs=1e-6)


@each
def test_what_is_said_alike_is_nearer_than_what_is_not(name: str, loaded: Loaded) -> None:
    sort, quicksort, capital, paris, soup = loaded(name).embed(
        [
            "Write a Python function that sorts a list of numbers.",
            "Implement quicksort in Python.",
            "What is the capital of France?",
            "Paris is the largest city of which country?",
            "A recipe for tomato soup with basil.",
        ]
    )
    near = min(sort @ quicksort, capital @ paris)
    far = max(sort @ capital, sort @ paris, sort @ soup, quicksort @ capital, quicksort @ soup, capital @ soup, paris @ soup)
    assert near > far + 0.25


@each
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=3))
@example(texts=["", " \r\n", "\u00ad"])
def test_any_text_gives_length_one_or_zeros(name: str, loaded: Loaded, texts: list[str]) -> None:
    lengths = np.linalg.norm(loaded(name).embed(texts), axis=1)
    for text, length in zip(texts, lengths, strict=True):
        read = normalized(text) if name == "static/2" else text  # of white space alone nothing is left
        assert length == pytest.approx(1.0, abs=1e-6) or (length == 0.0 and not read)


@each
def test_a_megabyte_of_text_costs_little_more_than_what_is_read_of_it(name: str, loaded: Loaded) -> None:
    text = "A story about a lighthouse keeper who finds a letter in a bottle. " * 1_000  # 66,000 characters
    assert (
        loaded(name).embed([text + "It ends well."]).tobytes() == loaded(name).embed([text + "It ends badly." * 99_999]).tobytes()
    )


@each
def test_the_number_of_torch_threads_is_left_alone(name: str, loaded: Loaded) -> None:
    loaded(name)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        fresh = registry.spec(name).load()
        assert isinstance(fresh, TextEmbedder)
        fresh.embed(TEXTS[1:2])
        assert torch.get_num_threads() == before + 1
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@each
def test_no_pool_of_threads_is_started(name: str, loaded: Loaded) -> None:
    loaded(name)
    code = f"""
import os
from service.embedders import registry
embedder = registry.spec({name!r}).load()
before = len(os.listdir("/proc/self/task"))
embedder.embed(["one", "two", "three"] * 8)
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"} | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
