"""The registry of scorers with their parameters, including those of other packages.

A parameter is declared here alone: the body that creates a bandit, its answers, OpenAPI and the errors follow from it.

A package plugs its judge in by an entry point of the group `nextarm.scorers`:

    [project.entry-points."nextarm.scorers"]
    our-judge = "our_package.judge:build"

    def build(options: dict) -> Callable[[Sample], float]      # called once per bandit, blocks; ValueError = a 422 at creation
    reward: {"source": "our-judge", "options": {...}}          # a JSON object of up to 4 KiB

Options that `service.scorers.base.declares` names at the builder are checked before it is called; else any are passed on.
`service.scorers.base` says what a sample is and what may be raised. The names of the scorers below cannot be taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from service import install_hint
from service.scorers import builtin
from service.scorers.base import (
    CLIENT,
    InvalidParameter,
    Parameter,
    Scorer,
    ScorerSpec,
    ScorerUnavailable,
    UnknownScorer,
    check_names,
    declared_by,
)

GROUP = "nextarm.scorers"

# fmt: off
SCORERS: dict[str, ScorerSpec] = {
    spec.name: spec
    for spec in (
        ScorerSpec(name="clip-score", reads=("text", "image", "vector"), in_space=True, build=builtin.clip_score, parameters={},
                   summary="How well the output matches the prompt: max(0, 100 cos) / 100 in the space of one CLIP."),
        ScorerSpec(name="exact-match", reads=("text",), build=builtin.exact_match, gives="0 or 1",
                   parameters={"expected": Parameter(
                       annotation=Annotated[str, Field(min_length=1, max_length=10_000)], of_first_release=True,
                       doc="the right text where the outcome posts no `reference`.")},
                   summary="Whether the text equals the outcome's `reference`, or else `reward.expected`."),
        ScorerSpec(name="regex", reads=("text",), build=builtin.regex, gives="0 or 1",
                   parameters={"pattern": Parameter(
                       annotation=Annotated[str, Field(min_length=1, max_length=1_000)], is_needed=True, of_first_release=True,
                       doc="what must be found in the text.")},
                   requires=("regex",), install=install_hint("scorers"),
                   summary="Whether `reward.pattern` is found in the text; a search ends after 0.1 s."),
        ScorerSpec(name="json-valid", reads=("text",), build=builtin.json_valid, gives="0 or 1",
                   parameters={"fences": Parameter(
                       annotation=Literal["strip"],
                       doc="`strip` takes a Markdown fence off that is around the whole text.")},
                   summary="Whether the text is JSON."),
        ScorerSpec(name="length-penalty", reads=("text",), build=builtin.length_penalty,
                   parameters={"target": Parameter(
                       annotation=Annotated[int, Field(ge=1, le=10**9)], is_needed=True, of_first_release=True,
                       doc="characters up to which the reward is 1.")},
                   summary="1 up to `reward.target` characters, target / length beyond."),
    )
}
# fmt: on

OPTIONS = Parameter(
    annotation=dict[str, Any], of_first_release=True, doc="A scorer of another package: its own parameters, up to 4 KiB."
)
"""The one parameter of every scorer of another package, which checks what is in it."""


def parameters(specs: Iterable[ScorerSpec]) -> dict[str, Parameter]:
    """Of all of these scorers: one field of `reward` each, whose doc names the scorers that have it.

    ValueError where two of them mean different kinds of values by one name: a field has one type.

    >>> parameters([SCORERS["regex"]])["pattern"].doc
    '`regex`: what must be found in the text.'
    """
    merged: dict[str, Parameter] = {}
    for spec in specs:
        for name, own in spec.parameters.items():
            doc = f"`{spec.name}`: {own.doc}"
            if name in merged:
                if _kind(merged[name]) != _kind(own):
                    raise ValueError(
                        f"the scorer {spec.name!r} has a parameter {name!r} of another kind than the scorers before it"
                    )
                doc = f"{merged[name].doc} {doc}"
            merged[name] = replace(own, doc=doc)
    return merged


def _kind(parameter: Parameter) -> tuple[Any, ...]:
    """What two scorers must agree on. Annotations with bounds do not compare equal, their JSON schemas do."""
    return TypeAdapter(parameter.annotation).json_schema(), parameter.of_first_release


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
                parameters={"options": OPTIONS},
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
    options = dict(parameters.get("options") or {})
    if (declared := declared_by(build)) is not None:
        options = _checked(entry.name, declared, options)
    scorer: Scorer = build(options)
    return scorer


def _checked(scorer: str, declared: Mapping[str, Parameter], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as their annotations read them; `InvalidParameter`, whose cause is what pydantic refused. null = not given."""
    given = {name: value for name, value in options.items() if value is not None}
    check_names(scorer, declared, given, within="options.")
    for name, value in given.items():
        try:
            given[name] = TypeAdapter(declared[name].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise InvalidParameter(f"options.{name}", f"is not what the scorer {scorer!r} takes") from error
    return given


def known() -> dict[str, ScorerSpec]:
    """Every one, the service's own first."""
    return SCORERS | plugged()


def spec(name: str) -> ScorerSpec:
    """What is known of the scorer of that name, or `UnknownScorer` listing the names.

    >>> list(spec("regex").parameters)
    ['pattern']
    """
    scorers = known()
    if name not in scorers:
        raise UnknownScorer(f"must be one of {', '.join((CLIENT, *scorers))}")
    return scorers[name]
