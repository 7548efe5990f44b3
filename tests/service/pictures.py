"""Pictures as clients send them, and a CLIP with random weights in the folder format of the shipped one."""

from __future__ import annotations

import base64
import importlib.util
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WORDS = ("red", "blue", "green", "circle", "square", "a", "on", "large")
SMALL: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 10, "width": 16, "heads": 2, "layers": 1},
}


def picture(*, red: int = 200, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Any:
    """A gradient with a bright corner, so that turning it changes it."""
    from PIL import Image

    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = red
    pixels[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)[None, :]
    pixels[: height // 2, : width // 2, 2] = 255
    return Image.fromarray(pixels).convert(mode)


def file(image: Any = None, *, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = BytesIO()
    (picture() if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def posted(content: bytes) -> str:
    """As it stands in a request."""
    return base64.b64encode(content).decode()


def write_clip(folder: Path, *, seed: int = 3) -> Path:
    """A model that knows eight words and sees 16 x 16 pixels, its weights drawn from `seed`."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip not installed")
    from safetensors.torch import save_file

    from service.embedders import clip

    open_clip: Any = clip.package()
    tokenizer = open_clip.SimpleTokenizer()
    used = sorted({token for word in WORDS for token in tokenizer.encode(word)})
    tokens = [0, *used, tokenizer.sot_token_id, tokenizer.eot_token_id]
    config = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "vocab_size": len(tokens)}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    (folder / "tokens.json").write_text(json.dumps(tokens))
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, folder / "weights.safetensors")
    return folder
