"""CLIP checkpoints: a model and checkpoint named by a request become an identity, and an identity a file on this machine.

    {"model": "ViT-B-32", "checkpoint": "laion2b_s34b_b79k"}  -->  open-clip/ViT-B-32/laion2b_s34b_b79k  -->  a file in the cache
    {"model": "ViT-B-32", "checkpoint": "mine.safetensors"}   -->  open-clip/ViT-B-32/mine.safetensors   -->  NEXTARM_MODELS
    {"model": "shapes"}                                       -->  open-clip/shapes                      -->  shapes/, shipped
    {"model": "ours"}                                         -->  open-clip/ours                        -->  NEXTARM_MODELS/ours/

A model is the name of one of open_clip's architectures, or of a folder that holds model.json (open_clip's configuration, and a
`summary` of what the model is for), weights.safetensors and tokens.json (the words that are kept). There is no default but the
operator's: a CLIP that does not know the words of a prompt still gives numbers, which mean nothing. A request names files and
never paths: a name with a slash or a leading dot is refused, and what a symbolic link inside the folder points at is the
operator's own doing.

Nothing here imports open_clip: the dimension is read from its configuration files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from service import install_hint
from service.embedders.base import Embedder, EmbedderUnavailable, Keep, Sources, Spec, UnknownEmbedder, package_file, sha256

NAME = "open-clip"
BUNDLED = Path(__file__).parent
REQUIRES = ("torch", "safetensors", "PIL", "torchvision", "open_clip")
INSTALL = install_hint("images")
WEIGHTS, CONFIG, TOKENS = "weights.safetensors", "model.json", "tokens.json"
CONTEXT = 77
SUFFIXES = (".safetensors", ".pt", ".bin")
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


class InvalidChoice(ValueError):
    """A request names a model or a checkpoint that cannot be meant. field: `model` or `checkpoint`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def identity(model: str | None, checkpoint: str | None, sources: Sources) -> str:
    """`open-clip/MODEL` or `open-clip/MODEL/CHECKPOINT`; the operator's default where the request names no model."""
    if model is None:
        if checkpoint is not None:
            raise InvalidChoice("checkpoint", "needs `model`: the architecture that it belongs to")
        if not sources.open_clip:
            raise InvalidChoice("model", _choices(sources))
        model, _, default = sources.open_clip.partition(":")
        checkpoint = default or None
    for field, name in (("model", model), ("checkpoint", checkpoint)):
        if name is not None and not _PLAIN.match(name):
            raise InvalidChoice(field, "is a name of letters, digits, dots, dashes and underscores; never a path")
    folder = artefact(model, sources)
    if folder is not None and checkpoint is not None:
        raise InvalidChoice("checkpoint", f"the model {model!r} brings its own; leave it out")
    if folder is None and checkpoint is None:
        raise InvalidChoice("checkpoint", f"is needed with the model {model!r}: a pretrained tag, or a file in NEXTARM_MODELS")
    return "/".join((NAME, model, *(() if checkpoint is None else (checkpoint,))))


def models(sources: Sources) -> dict[str, str]:
    """The models that bring their own weights, and what each is for."""
    found: dict[str, str] = {}
    for parent in filter(None, (BUNDLED, sources.models)):
        for config in sorted(parent.glob(f"*/{CONFIG}")):
            if _PLAIN.match(config.parent.name):
                found.setdefault(config.parent.name, _summary(config))
    return found


def _summary(config: Path) -> str:
    try:
        return str(json.loads(config.read_text()).get("summary") or "the operator's own")
    except (OSError, ValueError, AttributeError):
        return f"damaged: {CONFIG} cannot be read"


def files(sources: Sources) -> list[str]:
    """The checkpoints that lie in NEXTARM_MODELS."""
    there = sources.models.iterdir() if sources.models is not None and sources.models.is_dir() else ()
    return sorted(path.name for path in there if path.suffix in SUFFIXES and _PLAIN.match(path.name))


def _choices(sources: Sources) -> str:
    named = [f'{{"model": "{name}"}} ({about})' for name, about in models(sources).items()]
    own = [f'{{"model": its architecture, "checkpoint": "{name}"}} (a file of NEXTARM_MODELS)' for name in files(sources)]
    brings = "which is downloaded where it is missing" if sources.allow_downloads else "which must lie in this server's cache"
    tag = '{"model": "ViT-B-32", "checkpoint": "laion2b_s34b_b79k"}'
    return (
        f"is needed: {NAME!r} is a family, and has no default. There are {'; '.join([*named, *own])}; or a pretrained tag of "
        f"open_clip for everyday prompts and pictures, e.g. {tag}, {brings}"
    )


def artefact(model: str, sources: Sources) -> Path | None:
    """The folder of a model that brings its own weights; what is shipped comes first."""
    for parent in (BUNDLED, sources.models):
        if parent is not None and (parent / model / CONFIG).is_file():
            return parent / model
    return None


def spec(identity: str, sources: Sources) -> ClipSpec:
    """What is known of one CLIP without importing open_clip; raises `EmbedderUnavailable` where even its size is not known."""
    parts = identity.split("/")
    if parts[0] != NAME or len(parts) not in (2, 3) or not all(_PLAIN.match(part) for part in parts):
        raise UnknownEmbedder(identity, known=(NAME,))
    model, checkpoint = parts[1], parts[2] if len(parts) == 3 else ""
    folder = artefact(model, sources)
    made = ClipSpec(
        name=identity,
        modality="both",
        dim=None,
        unit_norm=True,
        licence="Apache-2.0" if folder == BUNDLED / model else "of the checkpoint",
        loader=_load,
        requires=REQUIRES,
        install=INSTALL,
        distribution="open-clip-torch",
        package="open_clip",
        weights=checkpoint or WEIGHTS,
        device=sources.device,
        summary="CLIP: texts and images in one space.",
        model=model,
        checkpoint=checkpoint,
        folder=folder,
        sources=sources,
    )
    made.check_available()
    return made.sized()


@dataclass(frozen=True, kw_only=True)
class ClipSpec(Spec):
    """One CLIP. folder: of a model that brings its own weights; else `checkpoint` is a tag or a file of `sources.models`."""

    model: str
    checkpoint: str
    folder: Path | None
    sources: Sources

    def sized(self) -> ClipSpec:
        """With its dimension, and with what its tokenizer needs, from its configuration."""
        config = self.configuration()
        foreign = {"hf_tokenizer_name", "hf_model_name"} & set(config.get("text_cfg", {}))
        requires = (*self.requires, "transformers") if foreign else self.requires
        length = config.get("text_cfg", {}).get("context_length", CONTEXT)
        # tokenizers of other makers read from the start alone
        keeps: tuple[Keep, ...] = ("start",) if foreign or "siglip" in self.model.lower() else ("start", "end", "both")
        reach = f"{length - 2} word pieces"
        return replace(self, dim=int(config["embed_dim"]), requires=requires, reach=reach, keeps=keeps)

    def configuration(self) -> dict[str, Any]:
        """open_clip's configuration of the model: embed_dim, vision_cfg, text_cfg."""
        if self.folder is not None:
            config: dict[str, Any] = json.loads((self.folder / CONFIG).read_text())
            return dict(config.get("model_cfg", config))
        path = package_file("open_clip", f"model_configs/{self.model}.json")
        if path is None:
            raise EmbedderUnavailable(
                self.name,
                f"there is no model {self.model!r}, neither in open_clip nor shipped nor in NEXTARM_MODELS",
                install="see open_clip.list_models()",
            )
        return dict(json.loads(path.read_text()))

    def preprocessing(self) -> dict[str, Any]:
        """open_clip's preprocess_cfg of a model that brings its own weights; {} = the usual one."""
        if self.folder is None:
            return {}
        return dict(json.loads((self.folder / CONFIG).read_text()).get("preprocess_cfg", {}))

    def path(self, *, download: bool = False) -> Path:
        """The weights on this machine. download: bring them where they are not, if the operator allows it."""
        if self.folder is not None:
            return self._there(self.folder / WEIGHTS)
        if self.checkpoint.endswith(SUFFIXES):
            if self.sources.models is None:
                raise EmbedderUnavailable(self.name, "there is no folder of checkpoints", install="set NEXTARM_MODELS to one")
            return self._there(self.sources.models / self.checkpoint)
        from service.embedders import clip

        return clip.cached(self, download=download and self.sources.allow_downloads)

    def _there(self, path: Path) -> Path:
        if not path.is_file():
            raise EmbedderUnavailable(self.name, f"there is no file {path.name} for it", install="put it into NEXTARM_MODELS")
        return path

    def fetch(self) -> None:
        self.check_available()
        self.path(download=True)

    def version(self) -> str:
        self.check_available()
        named = " ".join(filter(None, (self.model, self.checkpoint)))
        return f"{self.distribution} {metadata.version(self.distribution)} {named} sha256:{sha256(self.path())[:12]}"


def _load(known: Spec) -> Embedder:
    from service.embedders import clip

    assert isinstance(known, ClipSpec)
    return clip.load(known)
