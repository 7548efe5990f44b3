"""WordLlama: a text as 256 numbers of length one, the mean of one fixed vector per token; numpy only, some 20 microseconds.

    y = mean over the tokens of table[token], scaled to length one

It hears which words are there, not their order: hundreds of times cheaper than `minilm`, and good enough to tell topics apart.

The tokens depend on case, on white space and on how a letter is written in Unicode: the same word in capitals shares hardly a
token with itself. `static/2` therefore embeds the text as `normalized` writes it; `static`, which logs of earlier versions name,
embeds it as it came.

Weights and tokenizer: github.com/dleemiller/WordLlama (MIT), shipped inside the package wordllama. The files are read without
importing that package: its own `load` looks for the tokenizer in a folder that it does not ship, then on the network, and its
import reconfigures the root logger.
"""

from __future__ import annotations

import os
import unicodedata
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
    """Averages of static word vectors: see `base.Embedder`.

    A text without tokens (the empty one) is a vector of zeros. normalizes: texts are `normalized`.
    """

    name: str
    version: str
    tokenizer: Tokenizer
    table: np.ndarray  # (32000, 256) float16, as shipped
    normalizes: bool = False
    dim: int = DIM
    unit_norm: bool = True
    tally: Tally = field(default_factory=Tally)

    def embed(self, texts: Sequence[str], keep: Keep = "start") -> Vector:
        self.tally.cut += sum(len(text) > MAX_CHARACTERS for text in texts)
        shortened = [self.tally.kept(text, MAX_CHARACTERS, keep) for text in texts]
        if self.normalizes:  # some characters become eighteen: so the text is cut before, for its cost, and after
            shortened = [self.tally.kept(normalized(text), MAX_CHARACTERS, keep) for text in shortened]
        encodings = self.tokenizer.encode_batch_fast(shortened, add_special_tokens=False)
        embedded = np.zeros((len(texts), DIM), dtype=np.float32)
        for row, encoding in zip(embedded, encodings, strict=True):
            if encoding.ids:
                tokens, counts = np.unique(encoding.ids, return_counts=True)  # at most 32,000 rows, however long the text
                total = counts.astype(np.float32) @ self.table[tokens].astype(np.float32)
                row[:] = total / np.linalg.norm(total)  # the count of the mean cancels
        return embedded


def normalized(text: str) -> str:
    r"""A text without the differences that readers do not see: case, compatible spellings (NFKC), white space, format characters.

    >>> normalized("  CAFE\u0301\n\ufb01ne so\u00adft ")
    'café fine soft'
    """
    if not text.isascii():
        text = "".join(character for character in unicodedata.normalize("NFKC", text) if unicodedata.category(character) != "Cf")
    text = " ".join(text.casefold().split())
    return text if text.isascii() else unicodedata.normalize("NFKC", text)  # what folding and dropping left side by side


def load(spec: Spec, *, normalizes: bool = False) -> Static:
    """Read the files of the package (18 MB; about 0.1 s)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in minilm.load: no pool of threads that never ends
    return Static(
        name=spec.name,
        version=spec.version(),
        tokenizer=Tokenizer.from_file(str(spec.file("tokenizers/l2_supercat_tokenizer_config.json"))),
        table=load_file(spec.file(spec.weights))["embedding.weight"],
        normalizes=normalizes,
    )
