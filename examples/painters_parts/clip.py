"""A CLIP of open_clip in a folder: `model.json`, `weights.safetensors` (float16), `tokens.json`; written and read here.

    text --SimpleTokenizer--> open_clip's ids --the kept, renumbered--> [start, words ..., end, 0, ...] --text tower--+
    picture --resize, centre, normalise as model.json says--> (3, s, s) -------------------------------image tower--+--> cosine

`tokens.json` lists the ids of open_clip's vocabulary that are kept; the place in the list is the new id. The first is 0, which
pads; start-of-text is the last but one and end-of-text the last, because open_clip reads the text's vector at the largest id.
Words outside the list are dropped. A full word table would be 49,408 rows, of which the captions use some sixty.

The service has its own reader of these folders; this one is for training and for measuring, and each is the other's test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.embedders.clip import package

FOLDER = Path(__file__).resolve().parents[2] / "service" / "embedders" / "shapes"
"""The model that the service ships."""


def open_clip() -> Any:
    """The package, through the service's one door to it."""
    return package()


@dataclass(frozen=True)
class Vocabulary:
    """The kept ids of open_clip's tokenizer."""

    tokens: tuple[int, ...]
    context_length: int

    @staticmethod
    def of(texts: Sequence[str], *, context_length: int) -> Vocabulary:
        """What these texts use."""
        tokenizer = open_clip().SimpleTokenizer()
        used = {token for text in texts for token in tokenizer.encode(text)}
        return Vocabulary((0, *sorted(used - {0}), tokenizer.sot_token_id, tokenizer.eot_token_id), context_length)

    @cached_property
    def _tokenizer(self) -> Any:
        return open_clip().SimpleTokenizer()

    @cached_property
    def _place(self) -> dict[int, int]:
        return {token: place for place, token in enumerate(self.tokens) if 0 < place < len(self.tokens) - 2}

    def ids(self, texts: Sequence[str]) -> Tensor:
        """(n, context_length) ids, padded with 0."""
        start, end = len(self.tokens) - 2, len(self.tokens) - 1
        rows = torch.zeros((len(texts), self.context_length), dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            known = [self._place[token] for token in self._tokenizer.encode(text) if token in self._place]
            kept = [start, *known[: self.context_length - 2], end]
            row[: len(kept)] = torch.tensor(kept)
        return rows


@dataclass(frozen=True)
class Clip:
    """Two towers and what they read. Embeddings have length one."""

    model: Any  # open_clip.CLIP
    vocabulary: Vocabulary
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]

    @cached_property
    def _transform(self) -> Any:
        transforms = open_clip().transform
        return transforms.image_transform_v2(transforms.PreprocessCfg(**self.preprocess_cfg), is_train=False)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, 3, s, s) as the image tower takes them."""
        return torch.stack([self._transform(picture) for picture in pictures])

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, e) float64 embeddings."""
        self.model.eval()
        parts = torch.split(self.pixels(pictures), 256)
        with torch.inference_mode():
            return torch.cat([self.model.encode_image(rows, normalize=True) for rows in parts]).double()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, e) float64 embeddings."""
        self.model.eval()
        with torch.inference_mode():
            rows: Tensor = self.model.encode_text(self.vocabulary.ids(texts), normalize=True)
        return rows.double()


def blank(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], vocabulary: Vocabulary) -> Clip:
    """Random weights, from torch's seed."""
    text = {**model_cfg["text_cfg"], "vocab_size": len(vocabulary.tokens), "context_length": vocabulary.context_length}
    model_cfg = {**model_cfg, "text_cfg": text}
    return Clip(open_clip().CLIP(**model_cfg), vocabulary, model_cfg, preprocess_cfg)


def save(clip: Clip, folder: Path, *, summary: str = "") -> None:
    """Write the three files. summary: what the model is for, as `GET /v1/embedders` says it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"summary": summary, "model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg}
    (folder / "model.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokens.json").write_text(json.dumps(clip.vocabulary.tokens) + "\n")
    state = clip.model.state_dict()
    weights = {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in state.items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "weights.safetensors").chmod(0o644)  # the library writes files that their owner alone may read


def load(folder: Path = FOLDER) -> Clip:
    """Read the three files; computes in float32."""
    config = json.loads((folder / "model.json").read_text())
    tokens = tuple(json.loads((folder / "tokens.json").read_text()))
    vocabulary = Vocabulary(tokens, config["model_cfg"]["text_cfg"]["context_length"])
    clip = blank(config["model_cfg"], config["preprocess_cfg"], vocabulary)
    clip.model.load_state_dict(load_file(folder / "weights.safetensors"))  # copies into float32
    return clip
