"""CLIP by open_clip: texts and images as unit vectors, whose cosines say how well they match. The only import of open_clip.

    text  --tokens--> text tower --> scaled to length one                    similarity = text . image
    image --RGB, shorter side to `size`, center, normalized--> image tower --> scaled to length one

Source: Radford et al. 2021 (arXiv 2103.00020), sec. 2; open_clip (github.com/mlfoundations/open_clip, MIT).
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from service.embedders import images
from service.embedders.base import EmbedderUnavailable, Keep, Pixels, Tally, Vector
from service.embedders.checkpoints import TOKENS, ClipSpec

MAX_CHARACTERS = 4_096
"""Later text is not even cut into pieces: 77 tokens, CLIP's context, end long before."""

Tokenize = Callable[[Sequence[str], Keep, Tally], Tensor]

_importing = threading.Lock()
_declared: list[torch.library.Library] = []


def package(*, offline: bool = True) -> ModuleType:
    """open_clip. Blocks for the first call (3.4 s). offline: the hub's client must not use the network, whatever it is asked for;
    the first call decides for the process.
    """
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with _importing:
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            # The Linux wheels of torchvision are CUDA builds: beside a CPU torch two operators have no schema, and the import
            # stops. Nothing here calls them. Where torchvision imports, nothing is touched.
            if "torchvision::nms" not in str(error):
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
            _declared.append(library)  # they live as long as this object
        import open_clip

        found: ModuleType = open_clip
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A CLIP model of texts and images: see `base.TextEmbedder` and `base.ImageEmbedder`."""

    name: str
    version: str
    dim: int
    model: Any  # open_clip.CLIP or CustomTextCLIP
    tokenize: Tokenize
    transform: Callable[[Any], Tensor]
    device: torch.device
    unit_norm: bool = True
    tally: Tally = field(default_factory=Tally)

    def embed(self, texts: Sequence[str], keep: Keep = "start") -> Vector:
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        with torch.inference_mode():
            tokens = self.tokenize(texts, keep, self.tally).to(self.device)
            return _rows(self.model.encode_text(tokens, normalize=True))

    def read(self, file: bytes) -> Pixels:
        pixels: Pixels = self.transform(images.decode(file)).numpy()
        return pixels

    def embed_images(self, pictures: Sequence[Pixels]) -> Vector:
        if not pictures:
            return np.empty((0, self.dim), dtype=np.float32)
        with torch.inference_mode():
            return _rows(self.model.encode_image(torch.from_numpy(np.stack(pictures)).to(self.device), normalize=True))


def _rows(vectors: Tensor) -> Vector:
    rows: Vector = vectors.float().cpu().numpy()
    return rows


def load(spec: ClipSpec) -> Clip:
    """Build the towers and read the weights. Blocks (seconds). Never downloads."""
    offline = not spec.sources.allow_downloads
    open_clip = package(offline=offline)
    weights, transforms = spec.path(), importlib.import_module("open_clip.transform")
    if spec.folder is None:
        model = open_clip.create_model(spec.model, pretrained=None, pretrained_text=False, **_as_trained(open_clip, spec))
        open_clip.load_checkpoint(model, str(weights), weights_only=True)  # tensors and nothing else: no pickled code runs
        tokenizer = open_clip.get_tokenizer(spec.model)
        simple = type(tokenizer) is open_clip.SimpleTokenizer and tokenizer.reduction_fn is None
        tokenize: Tokenize = Words(tokenizer, context_length=tokenizer.context_length) if simple else _beginnings(tokenizer)
        preprocessing = model.visual.preprocess_cfg
    else:
        model = open_clip.CLIP(**spec.configuration())
        model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
        tokenize = KeptWords(spec.folder, context_length=model.context_length, tokenizer=open_clip.SimpleTokenizer())
        preprocessing = {"size": model.visual.image_size, **spec.preprocessing()}
    assert spec.dim is not None
    where = torch.device(spec.device)
    model.eval().requires_grad_(False).to(where)
    clip = Clip(
        name=spec.name,
        version=spec.version(),
        dim=spec.dim,
        model=model,
        tokenize=tokenize,
        transform=transforms.image_transform_v2(transforms.PreprocessCfg(**preprocessing), is_train=False),
        device=where,
    )
    clip.embed([""])
    clip.embed_images([clip.read(images.BLANK)])
    return clip


def _as_trained(open_clip: ModuleType, spec: ClipSpec) -> dict[str, Any]:
    """How a published checkpoint differs from its architecture's defaults: activation, and what it does to pictures."""
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(spec.model, spec.checkpoint)
    names = ("size", "mean", "std", "interpolation", "resize_mode", "mode", "fill_color")
    chosen = {name: tag[name] for name in names if tag.get(name) is not None}
    return {"force_quick_gelu": bool(tag.get("quick_gelu")), "force_preprocess_cfg": chosen}


def _beginnings(tokenizer: Any) -> Tokenize:
    """A tokenizer of another kind, which reads from the start and does not say what it left out."""
    return lambda texts, keep, tally: tokenizer([tally.kept(text, MAX_CHARACTERS, "start") for text in texts])


class Words:
    """open_clip's own tokenizer, which also reads the end of a text: start-of-text, the pieces that fit, end-of-text, zeros."""

    def __init__(self, tokenizer: Any, *, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._length = context_length
        self._start, self._end = tokenizer.sot_token_id, tokenizer.eot_token_id

    def __call__(self, texts: Sequence[str], keep: Keep, tally: Tally) -> Tensor:
        rows = torch.zeros((len(texts), self._length), dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            pieces = self._pieces(tally.kept(text, MAX_CHARACTERS, keep), tally)
            pieces = tally.pieces(pieces, self._length - 2, keep, is_short=len(text) <= MAX_CHARACTERS)
            row[: len(pieces) + 2] = torch.tensor([self._start, *pieces, self._end])
        return rows

    def _pieces(self, text: str, tally: Tally) -> list[int]:
        return list(self._tokenizer.encode(text))


class KeptWords(Words):
    """The same, cut down to the tokens that a small model knows; the others are dropped from a text.

    tokens.json lists the ids that are kept, in order: the place in the list is the new id. The first pads, start-of-text is the
    last but one and end-of-text the last, because open_clip reads a text's vector at its largest id.
    """

    def __init__(self, folder: Path, *, context_length: int, tokenizer: Any) -> None:
        super().__init__(tokenizer, context_length=context_length)
        kept: list[int] = json.loads((folder / TOKENS).read_text())
        if kept[-2:] != [tokenizer.sot_token_id, tokenizer.eot_token_id]:
            raise ValueError(f"{TOKENS} must end with start-of-text and end-of-text")
        self._start, self._end = len(kept) - 2, len(kept) - 1
        self._places = {token: place for place, token in enumerate(kept[:-2]) if place}

    def _pieces(self, text: str, tally: Tally) -> list[int]:
        tokens = self._tokenizer.encode(text)
        tally.unknown += any(token not in self._places and self._tokenizer.decode([token]).strip().isalnum() for token in tokens)
        return [self._places[token] for token in tokens if token in self._places]


def cached(spec: ClipSpec, *, download: bool) -> Path:
    """The file of a pretrained tag in the local cache; with `download` it is brought there first. Blocks."""
    open_clip = package(offline=not spec.sources.allow_downloads)
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(spec.model, spec.checkpoint)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(spec.model)) or "none"
        raise EmbedderUnavailable(
            spec.name,
            f"{spec.checkpoint!r} is no pretrained tag of it (known: {known})",
            install="or name a file in NEXTARM_MODELS",
        )
    path = _in_cache(tag)
    if path is None and download:
        try:
            path = Path(open_clip.download_pretrained(tag))
        except Exception as error:
            raise EmbedderUnavailable(
                spec.name, f"the download failed: {type(error).__name__}", install="look at the connection, or at the disk"
            ) from error
    if path is None:
        raise EmbedderUnavailable(
            spec.name,
            "its checkpoint is not in the local cache, and requests download nothing",
            install="set NEXTARM_ALLOW_DOWNLOADS=1 and create the bandit again, or put the file into NEXTARM_MODELS",
        )
    return path


def _in_cache(tag: dict[str, Any]) -> Path | None:
    """Where open_clip keeps what it has downloaded."""
    hub, filename = os.path.split(tag.get("hf_hub") or "")
    if hub:
        from huggingface_hub import try_to_load_from_cache

        names = (filename,) if filename else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        safe = tuple(f"{name.rpartition('.')[0]}.safetensors" for name in names)
        for name in (*safe, *names):
            found = try_to_load_from_cache(hub, name)
            if isinstance(found, str):
                return Path(found)
    if tag.get("url"):
        old = Path.home() / ".cache" / "clip" / os.path.basename(tag["url"])
        return old if old.is_file() else None
    return None
