"""The embedders with their real weights, loaded once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from service.embedders import registry
from service.embedders.base import TextEmbedder


@pytest.fixture(scope="session")
def loaded() -> Callable[[str], TextEmbedder]:
    """Name -> loaded embedder; skips where the extra `text` is not installed."""
    torch.set_num_threads(1)  # two threads on two busy cores take ten times as long

    @cache
    def load(name: str) -> TextEmbedder:
        embedder = registry.spec(name).load()
        assert isinstance(embedder, TextEmbedder)
        return embedder

    def get(name: str) -> TextEmbedder:
        if not registry.available(name):
            pytest.skip(f"{', '.join(registry.spec(name).missing)} not installed")
        return load(name)

    return get
