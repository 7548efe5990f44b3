"""The scorer protocol, the specification of a scorer that is not built yet, and the errors.

    registry.spec(name) --> ScorerSpec --build(parameters)--> Scorer: Sample --> number
                              nothing is imported                 runs in a worker thread of scoring.py

ScorerError
├── UnknownScorer          no scorer has that name
├── InvalidParameter       a parameter of `reward` is missing, wrong, or not this scorer's
├── ScorerUnavailable      a package that it needs is not installed, or a plug-in cannot be loaded
├── CannotScore            this output (or what it should be compared with) cannot be judged
└── ScoringFailed          the scorer itself failed, took too long, or gave no number
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from service.embedders.base import Vector, importable

CLIENT = "client"
"""The source of rewards that are posted."""


class ScorerError(Exception):
    """Base of every failure that scorers raise on purpose."""


class UnknownScorer(ScorerError, ValueError):
    """No scorer has that name."""


class InvalidParameter(ScorerError, ValueError):
    """A parameter of a scorer is invalid. field: of `reward` in the body that creates a bandit."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ScorerUnavailable(ScorerError):
    """The scorer cannot be used here; the message says what is missing, and the command that installs it."""


class CannotScore(ScorerError, ValueError):
    """The outcome cannot be scored. field: of its body, `output` or `reference`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ScoringFailed(ScorerError):
    """The scorer failed. The message says where, never on what input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One output as a scorer sees it; what is not there is empty.

    output:    a text, the bytes of an image file, or "" where the client sent a vector.
    vector:    (e,) float32, its embedding, where the bandit embeds outputs.
    prompt:    (d,) float32, the prompt's embedding, where the bandit embeds prompts. (The text of a prompt is not kept.)
    reference: the text that was posted as the outcome's `reference`.
    """

    output: str | bytes
    vector: Vector
    prompt: Vector
    reference: str = ""


Scorer = Callable[[Sample], float]
"""The reward of one sample: a finite number, higher is better. Called from several threads at once. It raises `CannotScore`, or
any ValueError, where the sample is at fault (422), and anything else where the scorer is (503).
"""

Build = Callable[[Mapping[str, Any]], Scorer]
"""From the parameters that were given to the scorer; blocks. Raises `InvalidParameter`, or any ValueError, for wrong ones."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One field of `reward` that belongs to a scorer: what the body, the answers, OpenAPI and the checks know of it.

    annotation:       type and bounds as pydantic reads them, without null: a field that is not given is null by itself.
    doc:              what it means.
    is_needed:        a bandit must give it.
    of_first_release: null stands in stored requests. A later one is left out of them, so that a request that does not give it
                      is the same request as before.
    """

    annotation: Any
    doc: str
    is_needed: bool = False
    of_first_release: bool = False


_Builder = TypeVar("_Builder", bound=Callable[..., Any])


def declares(**parameters: Parameter) -> Callable[[_Builder], _Builder]:
    """A decorator for the builder of a plug-in: its parameters, which are then checked in `reward.options` before it is called.

    >>> @declares(limit=Parameter(annotation=int, doc="characters at most.", is_needed=True))
    ... def build(options):
    ...     return lambda sample: float(len(sample.output) <= options["limit"])
    >>> list(declared_by(build))
    ['limit']
    """

    def mark(builder: _Builder) -> _Builder:
        builder.__nextarm_parameters__ = parameters  # type: ignore[attr-defined]
        return builder

    return mark


def declared_by(builder: Callable[..., Any]) -> Mapping[str, Parameter] | None:
    """What `declares` said of a builder; None where it takes any options and checks them itself."""
    return getattr(builder, "__nextarm_parameters__", None)


def check_names(scorer: str, parameters: Mapping[str, Parameter], given: Collection[str], *, within: str = "") -> None:
    """`InvalidParameter` for a parameter that is missing or not this scorer's. within: the field that holds them, with a dot."""
    for name, parameter in parameters.items():
        if parameter.is_needed and name not in given:
            raise InvalidParameter(f"{within}{name}", f"is needed by the scorer {scorer!r}")
    for name in given:
        if name not in parameters:
            raise InvalidParameter(f"{within}{name[:64]}", f"is not a parameter of the scorer {scorer!r}; leave it out")


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """What is known of a scorer without importing anything.

    reads:      what an output may be: text, image, vector.
    parameters: its fields of `reward` by name.
    gives:      the range of the reward, for people.
    in_space:   prompt and output must be embedded by the same CLIP.
    plugged:    from another package: `origin`.
    """

    name: str
    reads: tuple[str, ...]
    summary: str
    build: Build
    parameters: Mapping[str, Parameter]
    gives: str = "0 to 1"
    in_space: bool = False
    requires: tuple[str, ...] = ()
    install: str = ""
    licence: str = "Apache-2.0"
    plugged: bool = False
    origin: str = "nextarm"

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that cannot be found here."""
        return tuple(module for module in self.requires if not importable(module))

    def check_parameters(self, given: Sequence[str]) -> None:
        """`InvalidParameter` for one that is missing or not this scorer's; `ScorerUnavailable` where a package is missing."""
        check_names(self.name, self.parameters, given)
        if self.missing:
            raise ScorerUnavailable(f"the scorer {self.name!r} needs {', '.join(self.missing)}: {self.install}")
