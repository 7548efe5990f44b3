"""Turns posted content into vectors for the log: vectors are checked, texts and images are embedded.

    Content --read--> a text, an image file (its header checked), or a vector --embed--> (n, e) rows

All contents of a request are queued together: either every one is admitted, or none is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.api.dependencies import Services
from service.api.embedder_choice import PROBABILITIES
from service.api.problems import invalid
from service.api.requests import Content, Message, Prompt
from service.embedders import base, images, registry
from service.embedders.base import InvalidContent, Keep, Vector
from service.engine import events
from service.engine.events import Created, Matrix
from service.scorers import registry as scorers
from service.scorers.base import CLIENT

PostedContent = str | bytes | Vector
"""A text, an image file, or what the client computed."""

LARGE = 2**18
"""Characters of base64 beyond which an image is decoded and looked at in another thread."""
SHARPNESS = 100.0
"""Cosines are multiplied by it before the softmax: CLIP's own scale, where its training caps it (arXiv 2103.00020, sec. 2.5)."""


async def prompt_vector(
    services: Services, created: Created, prompt: Prompt | None, *, required: bool = True, path: str = "prompt"
) -> bytes:
    """The features of a decision. A bandit without `prompt` ignores a prompt: it is neither embedded nor logged, so that a
    router can switch to a policy that needs none without changing its requests. required: the policy decides by the prompt.
    """
    if not created.prompt_embedder or (prompt is None and not required):
        return b""
    if prompt is None:
        raise invalid(path, "is missing; send one, as this bandit decides by the prompt")
    if prompt.vector is not None:  # there is nothing to read or to embed, whatever the embedder is
        _check_length(prompt.vector, created.dim, path=f"{path}.vector")
        return events.vector_bytes(prompt.vector)
    return events.vector_bytes((await prompt_rows(services, created, [prompt], paths=[path]))[0])


async def prompt_rows(services: Services, created: Created, prompts: Sequence[Prompt], *, paths: Sequence[str]) -> Vector:
    """(n, d) one row per prompt."""
    takes = created.prompt_takes or ("both" if registry.reads_images(created.prompt_embedder) else "text")
    spec = created.request.get("prompt") or {}
    said = [_said(services, spec, prompt, path=path) for prompt, path in zip(prompts, paths, strict=True)]
    given = await _read_all(services, created.prompt_embedder, takes, said, paths=paths)
    keep: Keep = spec.get("keep") or "start"
    return await _rows(services, created.prompt_embedder, created.dim, given, paths=paths, keep=keep)


def _said(services: Services, spec: Mapping[str, Any], prompt: Prompt, *, path: str) -> Content:
    """The text that is read of messages; any other prompt as it is. spec: `prompt` of the bandit."""
    if prompt.messages is None:
        return prompt
    text = messages_text(spec, prompt.messages)
    if text is None:
        raise invalid(f"{path}.messages", "holds none of role 'user'; send one, or set prompt.reads 'conversation'")
    if not text.strip():
        raise invalid(f"{path}.messages", 'holds no text where it is read; send a text, or {"image": ...} in place of messages')
    if len(text) > services.settings.max_prompt_chars:
        raise invalid(f"{path}.messages", f"says more than {services.settings.max_prompt_chars} characters where it is read")
    return Content(text=text)


def messages_text(spec: Mapping[str, Any], messages: Sequence[Message]) -> str | None:
    """What is read of a conversation; None where none of its messages is of the role that is read. spec: as of `_said`."""
    if spec.get("reads") == "conversation":
        read: Sequence[Message] = messages
    else:
        read = [message for message in messages if message.role == "user"][-1:]
    return "\n".join(filter(None, (message.text() for message in read))) if read else None


async def output_matrix(services: Services, created: Created, outputs: Sequence[Content], *, paths: Sequence[str]) -> Matrix:
    """(n, e) samples. paths: of each of them in the request."""
    if not created.output_embedder:
        raise invalid(paths[0].partition(".")[0], "this bandit takes no outputs; create it with `output`, or post a reward alone")
    return await embed_outputs(services, created, await read_outputs(services, created, outputs, paths=paths), paths=paths)


async def embed_outputs(services: Services, created: Created, given: Sequence[PostedContent], *, paths: Sequence[str]) -> Matrix:
    """(n, e) what was read of outputs, as the log keeps it."""
    classes = (created.request.get("output") or {}).get("classes")
    if not classes:
        rows = await _rows(services, created.output_embedder, created.output_dim, given, paths=paths)
        return Matrix.of(rows)
    return Matrix.of(await _zero_shot(services, created, given, classes, paths=paths))


async def read_outputs(
    services: Services, created: Created, outputs: Sequence[Content], *, paths: Sequence[str]
) -> list[PostedContent]:
    """What was posted, checked for what its size and its first bytes say; also of a bandit whose outputs are only scored."""
    embedder = created.output_embedder
    reads_images = registry.reads_images(embedder) if embedder else _judges_images(created.reward_source)
    takes = created.output_takes or ("both" if reads_images else "text")
    return await _read_all(services, embedder, takes, outputs, paths=paths)


def _judges_images(source: str) -> bool:
    return source != CLIENT and "image" in scorers.spec(source).reads


async def _read_all(
    services: Services, embedder: str, takes: str, contents: Sequence[Content], *, paths: Sequence[str]
) -> list[PostedContent]:
    """embedder: "" where outputs are only scored.  takes: which contents are meant: `text`, `image` or `both`."""
    given = [await _read(services, embedder, content, path=path) for content, path in zip(contents, paths, strict=True)]
    for content, path in zip(given, paths, strict=True):
        if isinstance(content, bytes) and takes == "text" and registry.reads_images(embedder):
            raise invalid(f"{path}.image", 'is an image, and this bandit takes texts here: post {"text": ...}')
        if isinstance(content, str) and takes != "text":
            _check_is_no_image(content, embedder, takes, path=path)
    return given


def _check_is_no_image(text: str, embedder: str, takes: str, *, path: str) -> None:
    """What reads both would read the letters of a picture's base64, or of its URL, and give a number for them."""
    seems = images.disguised(text)
    if takes == "image":
        what, meant = f"is {seems or 'a text'}, and this bandit takes images here", '"text" or "both"'
    elif seems and (embedder or seems != images.URL):  # a judge of another package may well be asked about addresses
        what, meant = f"is {seems}, which is no text", '"text"'
    else:
        return
    post = '{"image": "<base64 of a PNG, JPEG or WebP file>"}'
    raise invalid(f"{path}.text", f"{what}: post {post}, or create the bandit with `takes`: {meant} where texts are meant")


async def _read(services: Services, embedder: str, content: Content, *, path: str) -> PostedContent:
    settings = services.settings
    if content.text is not None:
        if embedder in ("vector", PROBABILITIES):
            kind = "a vector" if embedder == "vector" else "probabilities"
            raise invalid(path, f"this bandit takes {kind}, not text; post it, or create the bandit with a text embedder")
        if len(content.text) > settings.max_prompt_chars:
            raise invalid(f"{path}.text", f"is longer than {settings.max_prompt_chars} characters")
        return content.text
    if content.image is not None:
        if embedder in ("vector", PROBABILITIES):
            raise invalid(f"{path}.image", f"the embedder {embedder!r} takes no images; see GET /v1/embedders for those that do")
        try:
            if len(content.image) > LARGE:
                return await asyncio.to_thread(images.from_base64, content.image, settings.image_limits())
            return images.from_base64(content.image, settings.image_limits())
        except InvalidContent as error:
            raise invalid(f"{path}.image", str(error)) from None
    field = "probabilities" if content.probabilities is not None else "vector"
    if embedder and (embedder == PROBABILITIES) != (field == "probabilities"):
        raise invalid(f"{path}.{field}", f"this bandit takes {embedder!r} here")
    given = content.probabilities if content.probabilities is not None else content.vector
    assert given is not None
    return given


async def _rows(
    services: Services, embedder: str, dim: int, given: Sequence[PostedContent], *, paths: Sequence[str], keep: Keep = "start"
) -> Vector:
    """(n, dim) one row each; what is no vector yet is embedded, together."""
    rows = np.empty((len(given), dim), dtype=np.float32)
    to_embed: list[int] = []
    for i, content in enumerate(given):
        if isinstance(content, str | bytes):
            to_embed.append(i)
        else:
            _check_length(content, dim, path=f"{paths[i]}.{PROBABILITIES if embedder == PROBABILITIES else 'vector'}")
            rows[i] = content
    if to_embed:
        contents = [content for content in given if isinstance(content, str | bytes)]
        rows[to_embed] = await _embed(services, embedder, contents, paths=[paths[i] for i in to_embed], keep=keep)
    return rows


def _check_length(vector: Vector, dim: int, *, path: str) -> None:
    if len(vector) != dim:
        raise invalid(path, f"has {len(vector)} numbers, this bandit takes {dim}")


async def _embed(
    services: Services, embedder: str, contents: Sequence[base.Content], *, paths: Sequence[str], keep: Keep = "start"
) -> Vector:
    try:
        return await services.embeddings.embed_many(embedder, contents, keep=keep)
    except InvalidContent as error:
        field = "image" if isinstance(contents[error.position], bytes) else "text"
        raise invalid(f"{paths[error.position]}.{field}", str(error)) from None


async def _zero_shot(
    services: Services, created: Created, given: Sequence[PostedContent], classes: Sequence[str], *, paths: Sequence[str]
) -> Vector:
    """(n, classes) softmax of 100 cosines with the texts of the classes; these are embedded once, as any text is."""
    contents: list[base.Content] = []
    for content, path in zip(given, paths, strict=True):
        if not isinstance(content, str | bytes):
            raise invalid(f"{path}.vector", "this bandit compares outputs with its classes: post a text or an image")
        contents.append(content)
    texts = await _embed(services, created.output_embedder, list(classes), paths=["output.classes"] * len(classes))
    rows = await _embed(services, created.output_embedder, contents, paths=paths)
    logits = SHARPNESS * rows.astype(np.float64) @ texts.astype(np.float64).T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Vector = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
