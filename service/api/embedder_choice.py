"""Resolves the embedder that a request names: its identity, its dimension, its version.

    {"embedder": "open-clip", "model": ...} --resolve--> ResolvedEmbedder(identity, dim, version, gives, classes)

The identity goes into the log with the version of the weights, so that a bandit means the same model for ever, whatever the
server's defaults become. Choosing blocks: weights are hashed, and tags are looked up in open_clip.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

from service.api.problems import invalid
from service.api.requests import EmbedderSpec, ModelChoice, PromptSpec
from service.embedders import checkpoints, registry
from service.embedders.base import EmbedderError, EmbedderUnavailable, Kind, Sources, Spec, UnknownEmbedder
from service.embedders.queue import EmbeddingQueue
from service.engine.events import Created
from service.settings import Settings

log = logging.getLogger("nextarm.embedders")

PROBABILITIES = "probabilities"
"""The client classifies."""
FEW_TEXTS = 4
"""Texts with unknown words that are no reason for a notice yet."""


@dataclass(frozen=True, kw_only=True)
class ResolvedEmbedder:
    """An embedder with its parameters resolved.

    identity: "" where the bandit has none.  classes: texts whose cosines with a content become probabilities.
    kinds: of contents that it embeds; none where the client sends vectors.
    """

    identity: str = ""
    dim: int = 0
    version: str = ""
    gives: Kind = "vector"
    classes: tuple[str, ...] = ()
    kinds: tuple[Literal["text", "image"], ...] = ()


def identity(name: str, choice: ModelChoice, sources: Sources, *, gives: Kind = "vector") -> str:
    """What the registry knows the embedder by; `InvalidChoice` for a model that it cannot have."""
    if name == checkpoints.NAME:
        return checkpoints.identity(choice.model, choice.checkpoint, sources)
    for field in ("model", "checkpoint"):
        if getattr(choice, field) is not None:
            raise checkpoints.InvalidChoice(field, f"is for {checkpoints.NAME!r}; {name!r} has one model")
    if name not in registry.EMBEDDERS:
        raise UnknownEmbedder(name, known=tuple(registry.EMBEDDERS))
    return registry.in_kind(name, gives)


def resolve(
    spec: EmbedderSpec | None, sources: Sources, *, path: Literal["prompt", "output"], gives: Kind = "vector"
) -> ResolvedEmbedder:
    """What is meant, or a 422 that names the field. gives: what the policy learns from."""
    if spec is None:
        return ResolvedEmbedder()
    _check_classes(spec, path=path, gives=gives)
    if path == "output" and spec.embedder == PROBABILITIES:
        return _with_dim(ResolvedEmbedder(identity=PROBABILITIES, gives="probabilities"), spec, None, path=path)
    try:
        if spec.embedder in registry.EMBEDDERS:  # what must be installed comes before what must be chosen
            registry.EMBEDDERS[spec.embedder].check_available()
        known = registry.spec(identity(spec.embedder, spec, sources, gives=gives), sources)
        known.check_available()
        known.fetch()
        found = ResolvedEmbedder(identity=known.name, version=known.version(), gives=known.gives, kinds=known.kinds)
    except checkpoints.InvalidChoice as error:
        raise invalid(f"{path}.{error.field}", str(error)) from error
    except UnknownEmbedder as error:
        raise invalid(f"{path}.embedder", f"must be one of {', '.join(registry.EMBEDDERS)}") from error
    except EmbedderUnavailable as error:
        raise invalid(f"{path}.embedder", str(error)) from error
    if isinstance(spec, PromptSpec):
        _check_reading(spec, known)
    if spec.classes is None:
        return _with_dim(found, spec, known.dim, path=path)
    return _with_dim(replace(found, gives="probabilities", classes=tuple(spec.classes)), spec, len(spec.classes), path=path)


def _check_classes(spec: EmbedderSpec, *, path: str, gives: Kind) -> None:
    if spec.classes is None:
        if spec.embedder == checkpoints.NAME and path == "output" and gives == "probabilities":
            raise invalid(f"{path}.classes", "is needed: a text per class, which outputs are compared with")
        return
    if spec.embedder != checkpoints.NAME:
        raise invalid(f"{path}.classes", f"is for {checkpoints.NAME!r}, whose texts and images can be compared")
    if path == "prompt" or gives != "probabilities":
        raise invalid(f"{path}.classes", "is for the outputs of policies that learn from probabilities")


def _check_reading(spec: PromptSpec, known: Spec) -> None:
    """`reads` and `keep` are for texts that are embedded here."""
    for field in ("reads", "keep"):
        if getattr(spec, field) is not None and not known.takes_text:
            raise invalid(f"prompt.{field}", f"is for texts, and {spec.embedder!r} takes none; leave it out")
    if spec.keep is not None and spec.keep not in known.keeps:
        raise invalid(
            "prompt.keep", f"must be {' or '.join(map(repr, known.keeps))}: the tokenizer of this model reads no other part"
        )


def _with_dim(found: ResolvedEmbedder, spec: EmbedderSpec, dim: int | None, *, path: str) -> ResolvedEmbedder:
    if dim is None:
        if spec.dim is None:
            raise invalid(f"{path}.dim", f"is needed with {spec.embedder!r}: how many numbers does one of your vectors have?")
        return replace(found, dim=spec.dim)
    if spec.dim not in (None, dim):
        raise invalid(f"{path}.dim", f"{spec.embedder!r} gives {dim} numbers here; leave dim out, or set {dim}")
    return replace(found, dim=dim)


def state(known: Spec, sources: Sources) -> tuple[str, str, int | None]:
    """(why it cannot be used, "" if it can; version; dim) of one of the list, as a new bandit gets it. `open-clip` stands for the
    operator's choice, or for the whole family where there is none.
    """
    try:
        if known.name == checkpoints.NAME:
            if not sources.open_clip:
                known.check_available()
                return "", "", None
            known = registry.spec(checkpoints.identity(None, None, sources), sources)
        else:
            known = registry.spec(registry.in_kind(known.name, known.gives), sources)
        return "", known.version(), known.dim
    except (EmbedderError, checkpoints.InvalidChoice) as error:
        return str(error), "", known.dim


def warm(embeddings: EmbeddingQueue, settings: Settings) -> None:
    """Begin to load what the setting names; readiness does not wait for it, and a failure is a line in the server's log."""
    for name in filter(None, (part.strip() for part in settings.warm.split(","))):
        try:
            embeddings.prefetch(identity(name, ModelChoice(), settings.sources()))
        except (EmbedderError, checkpoints.InvalidChoice) as error:
            log.warning("an embedder cannot be warmed", extra={"embedder": name, "reason": str(error)})


def warm_for(embeddings: EmbeddingQueue, created: Created) -> None:
    """Begin to load what a bandit uses that was read from the store, so that its first request waits as little as can be."""
    for name in _loadable(created).values():
        try:
            embeddings.prefetch(name)
        except EmbedderError as error:  # the first request meets it again, and answers with it
            log.warning("an embedder cannot be warmed", extra={"embedder": name, "reason": str(error)})


async def load_for(embeddings: EmbeddingQueue, created: Created) -> None:
    """Load what a new bandit will use before it exists: its first request waits for nothing, and one whose model cannot be loaded
    is refused (422).
    """
    for part, name in _loadable(created).items():
        try:
            await embeddings.warm(name)
        except EmbedderUnavailable as error:
            raise invalid(f"{part}.embedder", str(error)) from error


def notices(embeddings: EmbeddingQueue, created: Created) -> list[str]:
    """What the owner of a bandit should know of its embedders: those that often meet words that they do not know."""
    counts, found = embeddings.counts(), []
    for name in dict.fromkeys(_loadable(created).values()):
        seen = counts.get(name)
        if seen is not None and seen.unknown > FEW_TEXTS and 4 * seen.unknown >= seen.texts:
            found.append(
                f"{seen.unknown} of {seen.texts} texts that {name} embedded since the server started have words that it does not "
                "know and leaves out: such texts look alike to it, and choices by them can be no better than random. Create a "
                "bandit with an embedder that knows your words: `GET /v1/embedders` says what each is for."
            )
    return found


def _loadable(created: Created) -> dict[str, str]:
    named = {"prompt": created.prompt_embedder, "output": created.output_embedder}
    return {part: name for part, name in named.items() if name not in ("", "vector", PROBABILITIES)}
