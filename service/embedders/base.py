"""The promise of an embedder, what is known of it before it is loaded, and how it fails.

    registry.spec(name) --> Spec --load()--> Embedder --embed(texts)--> (n, dim) float32
       nothing is imported         torch, tokenizers, weights     blocking: runs in the worker thread of queue.py

EmbedderError
├── UnknownEmbedder        no embedder has that name
├── EmbedderUnavailable    its package is not installed, or its files cannot be read
├── EmbeddingFailed        it was loaded, and failed on a batch
├── InvalidText            a text that no embedder can read, or an embedder that takes none
├── QueueFull              too many texts wait; try again after `retry_after_s`
└── QueueClosed            the server is shutting down

No failure ever holds a prompt: neither in its message nor in its chain of causes.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
"""(dim,) one embedding, or (n, dim) one per row."""

Modality = Literal["vector", "text"]


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
    """The embedder failed on a batch of texts. `reason` says where, never on what."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the embedder {name!r} failed: {reason}")
        self.name = name
        self.reason = reason


class InvalidText(EmbedderError, ValueError):
    """A text that cannot be embedded."""


class QueueFull(EmbedderError):
    """Too many texts wait for this embedder. retry_after_s: whole seconds, >= 1, until the line should have been worked off."""

    def __init__(self, name: str, *, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} texts wait for the embedder {name!r}; try again in {retry_after_s} s, or send vectors")
        self.name = name
        self.retry_after_s = retry_after_s


class QueueClosed(EmbedderError):
    """The queue was closed before the text was embedded."""

    def __init__(self) -> None:
        super().__init__("the embedders are shut down")


class Embedder(Protocol):
    """A loaded embedder.

    The vector of a text does not depend on the texts beside it (beyond 1e-6, the rounding of float32), and the same text gives
    the same vector for ever under the same `version`.
    """

    @property
    def name(self) -> str:
        """The name in the registry."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def version(self) -> str:
        """Package, its version and the start of the sha256 of the weights: two vectors are comparable if these are equal."""

    @property
    def unit_norm(self) -> bool:
        """Whether every vector has length one. A text in which the embedder finds no word at all is a vector of zeros."""

    def embed(self, texts: Sequence[str]) -> Vector:
        """(n, dim) float32, row i for texts[i]. Blocks; called from one thread at a time."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is known of an embedder without importing anything.

    modality:     what it takes; `vector` passes through what the client embedded.
    dim:          length of a vector; None = the client says.
    licence:      of the weights (SPDX).
    requires:     modules that must be importable.   install: the command that brings them.
    distribution: the package that ships the weights, as pip names it.   package: the same as Python imports it.
    weights:      path of the weights inside that package.
    """

    name: str
    modality: Modality
    dim: int | None
    unit_norm: bool
    licence: str
    loader: Callable[[Spec], Embedder]
    requires: tuple[str, ...] = ()
    install: str = 'pip install "nextarm[text]"'
    distribution: str = ""
    package: str = ""
    weights: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that cannot be found here."""
        return tuple(module for module in self.requires if not _importable(module))

    def check_available(self) -> None:
        """Raise `EmbedderUnavailable`, naming the modules that are missing and the command that installs them."""
        if self.missing:
            raise EmbedderUnavailable(self.name, f"{', '.join(self.missing)} not installed", install=self.install)

    def file(self, path: str) -> Path:
        """A file inside the package that ships the weights, found without importing that package."""
        found = importlib.util.find_spec(self.package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (Path(folder) / path).is_file():
                return Path(folder) / path
        raise EmbedderUnavailable(self.name, f"{path} is not in the package {self.package}", install=self.install)

    def version(self) -> str:
        """See `Embedder.version`; "" where there are no weights. Blocks for the first call: it reads the weights once."""
        if not self.weights:
            return ""
        self.check_available()
        return f"{self.distribution} {metadata.version(self.distribution)} sha256:{_sha256(self.file(self.weights))[:12]}"

    def load(self) -> Embedder:
        """The embedder, ready to use. Blocks (seconds). Raises `EmbedderUnavailable` for whatever stands in its way."""
        self.check_available()
        try:
            return self.loader(self)
        except EmbedderError:
            raise
        except Exception as error:
            raise EmbedderUnavailable(self.name, f"{type(error).__name__}: {error}", install=self.install) from error


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a missing parent package; a module that something half imported
        return False


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
