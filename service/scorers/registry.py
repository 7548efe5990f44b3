"""Every scorer that can be named: one line each, and whatever other packages bring.

A package plugs its judge in by an entry point of the group `nextarm.scorers`:

    [project.entry-points."nextarm.scorers"]
    our-judge = "our_package.judge:build"

    def build(options: dict) -> Callable[[Sample], float]      # called once per bandit, blocks; ValueError = a 422 at creation
    reward: {"source": "our-judge", "options": {...}}          # a free JSON object of up to 4 KiB

`service.scorers.base` says what a sample is and what may be raised. The names of the scorers below cannot be taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from service.scorers import builtin
from service.scorers.base import CLIENT, Scorer, ScorerSpec, ScorerUnavailable, UnknownScorer

GROUP = "nextarm.scorers"

# fmt: off
SCORERS: dict[str, ScorerSpec] = {
    spec.name: spec
    for spec in (
        ScorerSpec(name="clip-score", reads=("text", "image", "vector"), in_space=True, build=builtin.clip_score, parameters={},
                   summary="How well the output matches the prompt: max(0, 100 cos) / 100 in the space of one CLIP."),
        ScorerSpec(name="exact-match", reads=("text",), build=builtin.exact_match, parameters={"expected": False}, gives="0 or 1",
                   summary="Whether the text equals the outcome's `reference`, or else `reward.expected`."),
        ScorerSpec(name="regex", reads=("text",), build=builtin.regex, parameters={"pattern": True}, gives="0 or 1",
                   requires=("regex",), install='pip install "nextarm[scorers]"',
                   summary="Whether `reward.pattern` is found in the text; a search ends after 0.1 s."),
        ScorerSpec(name="json-valid", reads=("text",), build=builtin.json_valid, parameters={"fences": False}, gives="0 or 1",
                   summary="Whether the text is JSON."),
        ScorerSpec(name="length-penalty", reads=("text",), build=builtin.length_penalty, parameters={"target": True},
                   summary="1 up to `reward.target` characters, target / length beyond."),
    )
}
# fmt: on


@cache
def plugged() -> dict[str, ScorerSpec]:
    """The scorers of other packages; looked for once, and imported where a bandit names them."""
    found = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in SCORERS and entry.name != CLIENT:
            origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
            found[entry.name] = ScorerSpec(
                name=entry.name,
                reads=("text", "image", "vector"),
                summary="From another package.",
                build=lambda parameters, entry=entry: _build(entry, parameters),  # type: ignore[misc]
                parameters={"options": False},
                gives="any number",
                licence="",
                plugged=True,
                origin=origin,
            )
    return found


def _build(entry: EntryPoint, parameters: Mapping[str, Any]) -> Scorer:
    try:
        build = entry.load()
    except Exception as error:  # whatever the other package does when it is imported
        raise ScorerUnavailable(f"the scorer {entry.name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    scorer: Scorer = build(dict(parameters.get("options") or {}))
    return scorer


def known() -> dict[str, ScorerSpec]:
    """Every one, the service's own first."""
    return SCORERS | plugged()


def spec(name: str) -> ScorerSpec:
    """What is known of the scorer of that name, or `UnknownScorer` listing the names.

    >>> spec("regex").parameters
    {'pattern': True}
    """
    scorers = known()
    if name not in scorers:
        raise UnknownScorer(f"must be one of {', '.join((CLIENT, *scorers))}")
    return scorers[name]
