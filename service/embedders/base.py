"""The embedder protocol, the specification of an embedder that is not loaded yet, and the errors.

    registry.spec(identity) --> Spec --load()--> Embedder --embed(texts) ---------------> (n, dim) float32
       nothing is imported        torch, weights      |     read(file) -> embed_images --> (n, dim) float32
                                                      blocking: all of it runs in the worker thread of queue.py

A content is a text (str) or an image file (bytes of PNG, JPEG or WebP). Whatever knows one embedder from another goes by its
*identity*: `minilm`, `static/2`, `imagenet`, `imagenet/classes`, `open-clip/shapes`, `open-clip/ViT-B-32/laion2b_s34b_b79k`.

EmbedderError
├── UnknownEmbedder        no embedder has that name
├── EmbedderUnavailable    its package is not installed, or its files cannot be read
├── EmbeddingFailed        it was loaded, and failed on a batch
├── InvalidContent         a text or an image that cannot be read, or an embedder that takes none
├── QueueFull              too much waits; try again after `retry_after_s`
└── QueueClosed            the server is shutting down

No failure ever holds a prompt or an output: neither in its message nor in its chain of causes.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from service import install_hint

Vector = npt.NDArray[np.float32]
"""(dim,) one embedding, or (n, dim) one per row."""

Pixels = npt.NDArray[np.float32]
"""(3, side, side) a picture as one embedder takes it: resized, cropped, normalized."""

Content = str | bytes
"""A text, or an image file."""

Keep = Literal["start", "end", "both"]
"""Which part is read of a text that is longer than an embedder reads; `both` = half of it from either end."""

Modality = Literal["vector", "text", "image", "both"]
Kind = Literal["vector", "probabilities"]


class EmbedderError(Exception):
    """Base of every failure that embedders raise on purpose."""


class UnknownEmbedder(EmbedderError, ValueError):
    """No embedder has that name."""

    def __init__(self, name: str, *, known: Sequence[str]) -> None:
        super().__init__(f"there is no embedder {name!r}; it must be one of {', '.join(known)}")
        self.name = name


class EmbedderUnavailable(EmbedderError):
    """The embedder cannot be loaded on this machine."""

    def __init__(self, name: str, reason: str, *, install: str) -> None:
        super().__init__(f"the embedder {name!r} cannot be loaded: {reason}; {install}")
        self.name = name


class EmbeddingFailed(EmbedderError):
    """The embedder failed on a batch. `reason` says where, never on what."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the embedder {name!r} failed: {reason}")
        self.name = name
        self.reason = reason


class InvalidContent(EmbedderError, ValueError):
    """A text or an image that cannot be embedded. position: which of the request's contents it is."""

    def __init__(self, message: str, *, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


class QueueFull(EmbedderError):
    """Too much waits for this embedder. retry_after_s: whole seconds, >= 1, until the line should have been worked off."""

    def __init__(self, name: str, *, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} contents wait for the embedder {name!r}; try again in {retry_after_s} s, or send vectors")
        self.name = name
        self.retry_after_s = retry_after_s


class QueueClosed(EmbedderError):
    """The queue was closed before the content was embedded."""

    def __init__(self) -> None:
        super().__init__("the embedders are shut down")


class Embedder(Protocol):
    """A loaded embedder.

    The vector of a content does not depend on the contents beside it (beyond 1e-6, the rounding of float32; 1e-5 on a GPU), and
    the same content gives the same vector for ever under the same `version`.
    """

    @property
    def name(self) -> str:
        """The identity."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def version(self) -> str:
        """Package, its version and the start of the sha256 of the weights: two vectors are comparable if these are equal."""

    @property
    def unit_norm(self) -> bool:
        """Whether every vector has length one. A text in which the embedder finds no word at all is a vector of zeros."""


@runtime_checkable
class TextEmbedder(Embedder, Protocol):
    """One that takes texts."""

    def embed(self, texts: Sequence[str], keep: Keep = "start") -> Vector:
        """(n, dim) float32, row i for texts[i]. Blocks; called from one thread at a time. keep: one of `Spec.keeps`."""


@runtime_checkable
class ImageEmbedder(Embedder, Protocol):
    """One that takes images."""

    def read(self, file: bytes) -> Pixels:
        """The picture as `embed_images` takes it, or `InvalidContent`. One at a time: sixteen million pixels are 48 MB."""

    def embed_images(self, pictures: Sequence[Pixels]) -> Vector:
        """(n, dim) float32, row i for pictures[i]. Blocks; called from one thread at a time."""


@dataclass
class Tally:
    """What an embedder noticed about texts since it was loaded. cut: those of which only a part was read.  unknown: those with
    words that it does not know, and leaves out.
    """

    cut: int = 0
    unknown: int = 0

    def kept(self, text: str, limit: int, keep: Keep) -> str:
        """At most so many characters of a text, before it is taken to pieces."""
        if len(text) <= limit:
            return text
        half = limit // 2
        return {"start": text[:limit], "end": text[-limit:], "both": f"{text[:half]} {text[-half:]}"}[keep]

    def pieces(self, pieces: list[int], limit: int, keep: Keep, *, is_short: bool) -> list[int]:
        """At most so many pieces of a text. is_short: no characters were left out before."""
        if len(pieces) <= limit:
            self.cut += not is_short
            return pieces
        self.cut += 1
        head = {"start": limit, "end": 0, "both": limit // 2}[keep]
        return pieces[:head] + pieces[len(pieces) - (limit - head) :]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the operator decides about embedders; see the settings of the same names.

    models:    folder of checkpoints that requests may name; None = there is none.
    open_clip: `MODEL` or `MODEL:CHECKPOINT` for requests that name none; "" = they must.
    device:    cpu, cuda:0, ...: one that is there.
    """

    models: Path | None = None
    open_clip: str = ""
    allow_downloads: bool = False
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is known of an embedder without importing anything.

    modality:     what it takes; `vector` passes through what the client embedded.
    gives:        vectors, or probabilities of classes.
    dim:          length of a vector; None = the client says.
    licence:      of the weights (SPDX).
    requires:     modules that must be importable.   install: the command that brings them.
    distribution: the package that ships the weights, as pip names it.   package: the same as Python imports it.
    weights:      path of the weights inside that package.
    revision:     what is done to contents before, where an earlier revision with these weights did something else.
    device:       where it is loaded to: cpu, cuda:0, ....
    summary:      one line for people.
    reach:        how much it reads of a text, for people.
    languages:    that its texts were written in (BCP 47); none where that is not known.
    keeps:        which parts of a longer text it can read.
    """

    name: str
    modality: Modality
    dim: int | None
    unit_norm: bool
    licence: str
    loader: Callable[[Spec], Embedder]
    gives: Kind = "vector"
    requires: tuple[str, ...] = ()
    install: str = install_hint("text")
    distribution: str = ""
    package: str = ""
    weights: str = ""
    revision: str = ""
    device: str = "cpu"
    summary: str = ""
    reach: str = ""
    languages: tuple[str, ...] = ()
    keeps: tuple[Keep, ...] = ("start", "end", "both")

    @property
    def kinds(self) -> tuple[Literal["text", "image"], ...]:
        """Which contents can be embedded."""
        return (*(("text",) if self.takes_text else ()), *(("image",) if self.takes_images else ()))

    @property
    def takes_text(self) -> bool:
        """Whether a text can be embedded."""
        return self.modality in ("text", "both")

    @property
    def takes_images(self) -> bool:
        """Whether an image can be embedded."""
        return self.modality in ("image", "both")

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that cannot be found here."""
        return tuple(module for module in self.requires if not importable(module))

    def check_available(self) -> None:
        """Raise `EmbedderUnavailable`, naming the modules that are missing and the command that installs them."""
        if self.missing:
            raise EmbedderUnavailable(self.name, f"{', '.join(self.missing)} not installed", install=self.install)

    def file(self, path: str) -> Path:
        """A file inside the package that ships the weights, found without importing that package."""
        found = package_file(self.package, path)
        if found is None:
            raise EmbedderUnavailable(self.name, f"{path} is not in the package {self.package}", install=self.install)
        return found

    def fetch(self) -> None:
        """Bring what is missing, where the operator allows downloads; called at creation and to warm, never in between."""

    def version(self) -> str:
        """See `Embedder.version`; "" where there are no weights. Blocks for the first call: it reads the weights once."""
        if not self.weights:
            return ""
        self.check_available()
        weights = f"{self.distribution} {metadata.version(self.distribution)} sha256:{sha256(self.file(self.weights))[:12]}"
        return f"{weights} {self.revision}".rstrip()

    def load(self) -> Embedder:
        """The embedder, ready to use. Blocks (seconds). Raises `EmbedderUnavailable` if it cannot be loaded."""
        self.check_available()
        try:
            return self.loader(self)
        except EmbedderError:
            raise
        except Exception as error:
            raise EmbedderUnavailable(self.name, f"{type(error).__name__}: {error}", install=self.install) from error


def importable(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a missing parent package; a module that something half imported
        return False


def package_file(package: str, path: str) -> Path | None:
    """A file inside a package, found without importing it."""
    found = importlib.util.find_spec(package) if importable(package) else None
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    return None


def sha256(path: Path) -> str:
    """Of a file. Blocks for the first call: it is read once, and again where it was changed."""
    known = path.stat()
    return _sha256(path, known.st_mtime_ns, known.st_size)


@cache
def _sha256(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
