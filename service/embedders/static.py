"""WordLlama: a text as 256 numbers of length one, the mean of one fixed vector per token; numpy only, some 20 microseconds.

    y = mean over the tokens of table[token], scaled to length one

It hears which words are there, not their order: hundreds of times cheaper than `minilm`, and good enough to tell topics apart.

Weights and tokenizer: github.com/dleemiller/WordLlama (MIT), shipped inside the package wordllama. The files are read without
importing that package: its own `load` looks for the tokenizer in a folder that it does not ship, then on the network, and its
import reconfigures the root logger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from service.embedders.base import Keep, Spec, Tally, Vector

DIM = 256
MAX_CHARACTERS = 65_536  # a departure: what follows is not read, so that one giant text costs 15 ms at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Static:
    """See `base.Embedder`. A text without tokens (the empty one) is a vector of zeros."""

    name: str
    version: str
    tokenizer: Tokenizer
    table: np.ndarray  # (32000, 256) float16, as shipped
    dim: int = DIM
    unit_norm: bool = True
    tally: Tally = field(default_factory=Tally)

    def embed(self, texts: Sequence[str], keep: Keep = "start") -> Vector:
        self.tally.cut += sum(len(text) > MAX_CHARACTERS for text in texts)
        shortened = [self.tally.kept(text, MAX_CHARACTERS, keep) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(shortened, add_special_tokens=False)
        embedded = np.zeros((len(texts), DIM), dtype=np.float32)
        for row, encoding in zip(embedded, encodings, strict=True):
            if encoding.ids:
                tokens, counts = np.unique(encoding.ids, return_counts=True)  # at most 32,000 rows, however long the text
                total = counts.astype(np.float32) @ self.table[tokens].astype(np.float32)
                row[:] = total / np.linalg.norm(total)  # the count of the mean cancels
        return embedded


def load(spec: Spec) -> Static:
    """Read the files of the package (18 MB; about 0.1 s)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in minilm.load: no pool of threads that never ends
    return Static(
        name=spec.name,
        version=spec.version(),
        tokenizer=Tokenizer.from_file(str(spec.file("tokenizers/l2_supercat_tokenizer_config.json"))),
        table=load_file(spec.file(spec.weights))["embedding.weight"],
    )
