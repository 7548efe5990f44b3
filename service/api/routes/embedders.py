"""Embedders and scorers: which there are, and loading one ahead of its first use."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Response

from service.api import embedder_choice as embedding
from service.api.dependencies import Admin, Reader, Shared
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import Problem, invalid
from service.api.requests import ModelChoice
from service.api.responses import EmbeddersAnswer, WarmAnswer, answer
from service.api.routes import problems
from service.embedders import checkpoints
from service.embedders import registry as embedders
from service.embedders.base import EmbedderUnavailable, Sources, Spec, UnknownEmbedder
from service.scorers import registry as scorers
from service.scorers.base import ScorerSpec

router = APIRouter(tags=["operations"], route_class=StrictJSONRoute)

TAKES = {"vector": ["vector"], "text": ["text", "vector"], "image": ["image", "vector"], "both": ["text", "image", "vector"]}
"""A vector is taken by all: a client may have embedded with the same weights itself."""


@router.get(
    "/v1/embedders",
    summary="Every embedder and every scorer, and whether this server has what it needs",
    response_model=EmbeddersAnswer,
    responses=problems(),
)
async def list_embedders(caller: Reader, services: Shared) -> Response:
    """`open-clip` is a family: `models` lists those that are here, and version and dim are of NEXTARM_OPEN_CLIP, where it is set.
    Nothing is loaded.
    """
    return answer(await asyncio.to_thread(_listed, services.settings.sources()))


def _listed(sources: Sources) -> dict[str, Any]:
    return {
        "embedders": [_embedder_json(spec, sources) for spec in embedders.EMBEDDERS.values()],
        "scorers": [_scorer_json(spec) for spec in scorers.known().values()],
    }


def _embedder_json(spec: Spec, sources: Sources) -> dict[str, Any]:
    reason, version, dim = embedding.state(spec, sources)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "takes": TAKES[spec.modality],
        "dim": dim,
        "reads": spec.reach,
        "languages": list(spec.languages),
        "unit_norm": spec.unit_norm,
        "licence": spec.licence,
        "available": not reason,
        "reason": reason,
        "version": version,
        "models": checkpoints.models(sources) if spec.name == checkpoints.NAME else {},
    }


def _scorer_json(spec: ScorerSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "summary": spec.summary,
        "reads": list(spec.reads),
        "parameters": list(spec.parameters),
        "gives": spec.gives,
        "licence": spec.licence,
        "available": not spec.missing,
        "reason": f"{', '.join(spec.missing)} not installed; {spec.install}" if spec.missing else "",
        "origin": spec.origin,
    }


@router.post(
    "/v1/embedders/{embedder}/warm",
    summary="Load an embedder ahead of its first use",
    response_model=WarmAnswer,
    responses=problems("not_found", "overloaded", body=True),
)
async def warm_embedder(
    caller: Admin,
    services: Shared,
    embedder: Annotated[str, Path(max_length=64, description="Name of the embedder.", examples=["open-clip"])],
    body: Annotated[ModelChoice | None, Body()] = None,
) -> Response:
    """Answers when it is loaded, which takes seconds. Where the operator allows downloads, a pretrained tag is fetched."""
    sources = services.settings.sources()
    try:
        name = embedding.identity(embedder, body or ModelChoice(), sources)
        spec = embedders.spec(name, sources)
        if not (spec.takes_text or spec.takes_images):
            raise invalid("embedder", "there is nothing to load: the client embeds")
        await asyncio.to_thread(spec.fetch)
        version = await services.embeddings.warm(name)
    except UnknownEmbedder as error:
        raise Problem("not_found", str(error)) from error
    except checkpoints.InvalidChoice as error:
        raise invalid(error.field, str(error)) from error
    except EmbedderUnavailable as error:  # and stays so until its files are installed: waiting does not help
        raise invalid("checkpoint" if body and body.checkpoint else "embedder", str(error)) from error
    return answer({"embedder": name, "dim": spec.dim, "version": version})
