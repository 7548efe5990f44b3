"""From posted content to the vectors that the log keeps: given vectors are checked, texts are embedded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from service import events
from service.dependencies import Services
from service.embedders.base import InvalidText
from service.errors import invalid
from service.events import Created, Matrix
from service.schemas import Content


async def prompt_vector(
    services: Services, created: Created, prompt: Content | None, *, required: bool = True, path: str = "prompt"
) -> bytes:
    """The features of a decision. A bandit without `prompt` ignores a prompt: it is neither embedded nor logged, so that a
    router can switch to a policy that needs none without changing its requests. required: the policy decides by the prompt.
    """
    if not created.prompt_embedder or (prompt is None and not required):
        return b""
    if prompt is None:
        raise invalid(path, "is missing; this bandit decides by the prompt")
    vector = await _embed(services, created.prompt_embedder, created.dim, prompt, path=path)
    return events.vector_bytes(vector)


async def output_matrix(services: Services, created: Created, outputs: Sequence[Content], *, paths: Sequence[str]) -> Matrix:
    """(n, e) samples. paths: where each of them stands in the request."""
    if not created.output_embedder:
        raise invalid(paths[0].partition(".")[0], "this bandit takes no outputs; create it with `output`, or post a reward alone")
    embedder, dim = created.output_embedder, created.output_dim
    rows = await asyncio.gather(
        *(_embed(services, embedder, dim, content, path=path) for content, path in zip(outputs, paths, strict=True))
    )
    return Matrix.of(np.stack(rows))


async def _embed(services: Services, embedder: str, dim: int, content: Content, *, path: str) -> np.ndarray:
    if content.image is not None:
        raise invalid(f"{path}.image", f"the embedder {embedder!r} takes no images")
    if content.text is not None:
        if embedder in ("vector", "probabilities"):
            kind = "a vector" if embedder == "vector" else "probabilities"
            raise invalid(path, f"this bandit takes {kind}, not text; post it, or create the bandit with a text embedder")
        if len(content.text) > services.settings.max_prompt_chars:
            raise invalid(f"{path}.text", f"is longer than {services.settings.max_prompt_chars} characters")
        try:
            return await services.embeddings.embed(embedder, content.text)
        except InvalidText as error:
            raise invalid(f"{path}.text", str(error)) from None
    field = "probabilities" if content.probabilities is not None else "vector"
    if (embedder == "probabilities") != (field == "probabilities"):
        raise invalid(f"{path}.{field}", f"this bandit takes {embedder!r} here")
    given = content.probabilities if content.probabilities is not None else content.vector
    assert given is not None
    if len(given) != dim:
        raise invalid(f"{path}.{field}", f"has {len(given)} numbers, this bandit takes {dim}")
    return given
