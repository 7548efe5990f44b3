"""The worker thread of one embedder: loads it at first use, reads, embeds and checks; failures are returned as values."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.embedders.base import (
    Content,
    Embedder,
    EmbedderError,
    EmbeddingFailed,
    ImageEmbedder,
    InvalidContent,
    Keep,
    Pixels,
    Spec,
    Tally,
    TextEmbedder,
    Vector,
)

log = logging.getLogger(__name__)

Row = Vector | EmbedderError
"""(dim,) the vector of one content, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """The result of one forward pass.

    version: of the embedder, None if it could not be loaded.  rows: one per content, or the failure of all of them.
    seconds: of reading and embedding, without loading.  cut, unknown: texts since the start, see `base.Tally`.
    """

    version: str | None = None
    rows: Sequence[Row] | EmbedderError
    seconds: float = 0.0
    cut: int = 0
    unknown: int = 0


class Worker:
    """One embedder, used from one thread only."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._embedder: Embedder | None = None

    def run(self, contents: Sequence[Content], keeps: Sequence[Keep] = ()) -> Done:
        """Embed the contents, or only load for none. keeps: one per content; () = the start of each. Never raises, so that every
        waiter hears of a failure. A load that failed is tried again the next time.
        """
        version: str | None = None
        try:
            embedder = self._loaded()
            version, started = embedder.version, time.perf_counter()
            rows = self._rows(embedder, contents, keeps or ["start"] * len(contents))
            tally = getattr(embedder, "tally", Tally())  # embedders of images have none
            seconds = time.perf_counter() - started
            return Done(version=version, rows=rows, seconds=seconds, cut=tally.cut, unknown=tally.unknown)
        except EmbedderError as failure:
            return Done(version=version, rows=failure)
        except BaseException as error:  # a panic of the tokenizer is no Exception
            return Done(version=version, rows=EmbeddingFailed(self.spec.name, _where(error)))

    def _loaded(self) -> Embedder:
        if self._embedder is None:
            started = time.perf_counter()
            self._embedder = self.spec.load()
            log.info("embedder %s loaded in %.1f s: %s", self.spec.name, time.perf_counter() - started, self._embedder.version)
        return self._embedder

    def _rows(self, embedder: Embedder, contents: Sequence[Content], keeps: Sequence[Keep]) -> list[Row]:
        """One forward pass for the texts of each `keep` and one for the images. An image that cannot be read harms no other
        content.
        """
        rows: dict[int, Row] = {}
        texts: dict[Keep, dict[int, str]] = {}
        for i, (content, keep) in enumerate(zip(contents, keeps, strict=True)):
            if isinstance(content, str):
                texts.setdefault(keep, {})[i] = content
        pictures: dict[int, Pixels] = {}
        for i, content in enumerate(contents):
            if isinstance(content, bytes):
                assert isinstance(embedder, ImageEmbedder)  # the queue asked the specification
                try:
                    pictures[i] = embedder.read(content)
                except InvalidContent as failure:
                    rows[i] = failure
        for keep, kept in texts.items():
            assert isinstance(embedder, TextEmbedder)
            some = list(kept.values())
            embedded = embedder.embed(some) if keep == "start" else embedder.embed(some, keep)
            rows |= zip(kept, self._checked(embedded, count=len(kept)), strict=True)
        if pictures:
            assert isinstance(embedder, ImageEmbedder)
            embedded = embedder.embed_images(list(pictures.values()))
            rows |= zip(pictures, self._checked(embedded, count=len(pictures)), strict=True)
        return [rows[i] for i in range(len(contents))]

    def _checked(self, rows: Vector, *, count: int) -> Vector:
        """(n, dim) what the embedder promised, or `EmbeddingFailed`: a wrong vector must not reach the log of decisions."""
        if rows.shape != (count, self.spec.dim) or rows.dtype != np.float32:
            raise EmbeddingFailed(self.spec.name, f"{rows.dtype} {rows.shape} came back, not float32 {(count, self.spec.dim)}")
        if not np.isfinite(rows).all():
            raise EmbeddingFailed(self.spec.name, "a vector that is not finite came back")
        return rows


def _where(error: BaseException) -> str:
    """The kind of an error and its last line of code. Its message may repeat a prompt, so it goes no further."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
