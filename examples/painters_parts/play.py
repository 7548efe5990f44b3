"""Plays a bandit of the HTTP API over a gallery: post the prompt, have the chosen painter paint, post the picture.

PUT bandit --(references)--> each round: POST decision --> picture --> PUT outcome --> ... --> DELETE bandit
episodes: PUT outcome with reward 1 or 0 and `next` answers the next attempt, until one passes or the policy stops
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from examples.painters_parts.gallery import Gallery, Served, png


class Api(Protocol):
    """Anything that answers requests with JSON; `service.cli.replay.player.Api` does."""

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of one request."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A bandit that takes part.

    policy, reward: objects of the API.  embeds: which of `prompt` and `output` the server embeds.
    passing: of episodes, the CLIPScore from which on a picture is accepted (the client computes it and posts 1 or 0).
    """

    label: str
    policy: Mapping[str, Any]
    embeds: Sequence[str]
    reward: Mapping[str, Any] = field(default_factory=dict)
    passing: float | None = None


Each = Callable[[int], object]
"""Called after each round with the painter of its last call, or -1."""

EMBEDDER = {"embedder": "open-clip", "model": "shapes"}
REFERENCES_PER_CALL = 64


def play(
    api: Api, name: str, gallery: Gallery, entrant: Entrant, *, seed: int, references: Sequence[Image.Image] = (), each: Each
) -> Served:
    """(N, 3) what was served over all rounds; the bandit is deleted afterwards."""
    path = f"/v1/bandits/{name}"
    api.call("PUT", path, configuration(gallery, entrant, seed=seed))
    try:
        for start in range(0, len(references), REFERENCES_PER_CALL):
            outputs = [{"image": png(picture)} for picture in references[start : start + REFERENCES_PER_CALL]]
            api.call("POST", f"{path}/references", {"outputs": outputs})
        one = _single if entrant.passing is None else _episode
        served: list[tuple[int, int, int]] = []
        for t in range(len(gallery.wishes)):
            served += one(api, path, gallery, entrant, t)
            each(served[-1][1] if served and served[-1][0] == t else -1)
    finally:
        api.call("DELETE", path)
    return np.array(served, dtype=np.int64).reshape(-1, 3)


def configuration(gallery: Gallery, entrant: Entrant, *, seed: int) -> dict[str, Any]:
    """The body of `PUT /v1/bandits/{name}`."""
    return {
        "policy": dict(entrant.policy),
        "arms": [{"name": painter.name, "price": painter.price} for painter in gallery.painters],
        "seed": seed,
        **{part: dict(EMBEDDER) for part in entrant.embeds},
        **({"reward": dict(entrant.reward)} if entrant.reward else {}),
    }


def _asking(gallery: Gallery, entrant: Entrant, t: int) -> dict[str, Any]:
    prompt = {"prompt": gallery.wishes[t].text} if "prompt" in entrant.embeds else {}
    return {"id": f"r{t}", **prompt}


def _index(gallery: Gallery, name: str) -> int:
    return [painter.name for painter in gallery.painters].index(name)


def _single(api: Api, path: str, gallery: Gallery, entrant: Entrant, t: int) -> list[tuple[int, int, int]]:
    """One decision, and every picture of the call posted as its output."""
    decision = api.call("POST", f"{path}/decisions", _asking(gallery, entrant, t))
    k = _index(gallery, decision["arm"])
    outputs = [{"image": png(picture)} for picture in gallery.pictures[t][k]]
    api.call("PUT", f"{path}/decisions/r{t}/outcome", {"output": outputs})
    return [(t, k, i) for i in range(len(outputs))]


def _episode(api: Api, path: str, gallery: Gallery, entrant: Entrant, t: int) -> list[tuple[int, int, int]]:
    """Attempts until a picture passes; the a-th call of a painter in a round brings its a-th picture."""
    served: list[tuple[int, int, int]] = []
    scores = gallery.scores
    decision = api.call("POST", f"{path}/decisions", _asking(gallery, entrant, t))
    while decision is not None and not decision["stop"]:
        k = _index(gallery, decision["arm"])
        i = sum(arm == k for _, arm, _ in served)
        served.append((t, k, i))
        passed = float(scores[t, k, i]) >= (entrant.passing or 0.0)
        body = {"reward": float(passed), "cost": gallery.painters[k].price, "next": not passed}
        decision = api.call("PUT", f"{path}/decisions/{decision['id']}/outcome", body)["next"]
    return served
