"""One declaration per hyperparameter (default, range, meaning, unit, source), read by validation, HTTP schema and docs alike."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from bandits.errors import InvalidHyperparameter

LARGEST = 1e12
"""The bound of a hyperparameter without a closer one, as of a reward: beyond it small addends are rounded away. Where 0 is
excluded, its inverse is the smallest value."""
SMALLEST_RIDGE = 1e-9
"""A ridge below it keeps too few digits beside vectors of length one."""


def unit_scale(prior_mean: float) -> tuple[float, float] | None:
    """The range of rewards that a policy with this prior mean is meant for: [0, 1], as its defaults, or whatever else was set."""
    return (0.0, 1.0) if 0.0 <= prior_mean <= 1.0 else None


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """The declaration of one field of a policy. The bounds are inclusive, except `above`.

    former: defaults of earlier versions. A bandit that was created with one keeps it, and the body that created it, which may
    have left the field out, is still the same request.
    sound_at_least: what a new bandit may have at least (see `check_sound`); logs of earlier versions may hold less.
    live: no statistic depends on it, so it can change while the bandit lives.
    """

    doc: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    source: str = ""
    unit: str = ""
    former: tuple[Any, ...] = ()
    sound_at_least: float | None = None
    live: bool = False

    @property
    def sound(self) -> tuple[float | None, float | None]:
        """The smallest and the largest number (inclusive) that a new bandit may have; None where the bounds above say it all."""
        low: float | None = self.sound_at_least
        if low is None:
            low = 1.0 / LARGEST if self.above == 0 else -LARGEST if self.at_least is None and self.above is None else None
        return low, LARGEST if self.at_most is None else None


def hyper(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    source: str = "",
    unit: str = "",
    former: tuple[Any, ...] = (),
    sound_at_least: float | None = None,
    live: bool = False,
) -> Any:
    """Declare a hyperparameter as a dataclass field."""
    facts = Hyperparameter(
        doc=doc,
        at_least=at_least,
        above=above,
        at_most=at_most,
        source=source,
        unit=unit,
        former=former,
        sound_at_least=sound_at_least,
        live=live,
    )
    return dataclasses.field(default=default, metadata={"hyperparameter": facts})


def setting(default: Any, doc: str) -> Any:
    """Declare a field that the bandit fills in, not the client's policy."""
    return dataclasses.field(default=default, metadata={"setting": doc})


# -- hyperparameters that several policies share: the same meaning, range and words everywhere -----------------------------


def initial_pulls_field() -> Any:
    """The length of the burn-in."""
    return hyper(1, "Pulls per arm before the rule applies, least-pulled first.", at_least=0, live=True)


def exploration_floor_field() -> Any:
    """The weight of uniform exploration."""
    return hyper(
        0.0, "Weight mixed in uniformly over the allowed arms, so that no propensity is 0.", at_least=0, at_most=1, live=True
    )


def normalize_field(default: bool = True, *, what: str = "prompt vector") -> Any:
    """The switch that scales vectors to length one. what: the noun for these vectors in the documentation."""
    return hyper(default, f"Scale every {what} to length one first; a zero vector is then refused.")


def prior_mean_field() -> Any:
    """The reward that a regression begins with."""
    return hyper(
        1.0,
        "r0: what an unseen region is believed to be worth. 1 is optimistic for rewards in [0, 1]; 0 reproduces the papers.",
        unit="reward",
    )


def drift_field() -> Any:
    """What happens when an arm changes."""
    return hyper(
        "off",
        "detect: an arm whose rewards have come out lower, or higher, than expected for long is learned from the start.",
        source="Page 1954 (CUSUM)",
    )


def forget_half_life_field() -> Any:
    """How long outcomes are remembered."""
    return hyper(
        None,
        "Outcomes of the bandit after which half of what it knows is dropped: it remembers between one and two of these; null = "
        "nothing is forgotten.",
        at_least=2,
        at_most=1_000_000_000,
        unit="outcomes of all arms",
    )


def ridge_field(doc: str, *, source: str) -> Any:
    """The regularizer of a regression: any positive number in a log, at least `SMALLEST_RIDGE` in a new bandit."""
    return hyper(1.0, doc, above=0, sound_at_least=SMALLEST_RIDGE, source=source)


# -- reading and validating declarations -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A hyperparameter as declared on a policy class: its name, type and default beside its facts."""

    name: str
    type: Any
    default: Any
    facts: Hyperparameter


def declared(policy: type) -> tuple[Declared, ...]:
    """Every hyperparameter of a policy class, in the order of declaration."""
    hints = typing.get_type_hints(policy)
    return tuple(
        Declared(name=f.name, type=hints[f.name], default=f.default, facts=f.metadata["hyperparameter"])
        for f in dataclasses.fields(policy)
        if "hyperparameter" in f.metadata
    )


def validate(policy: Any) -> None:
    """Raise `InvalidHyperparameter`, naming the field, for the first value that is outside its declared type or range."""
    for item in declared(type(policy)):
        value = getattr(policy, item.name)
        _check_type(item.name, item.type, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_range(item.name, item.facts, value)


def check_sound(policy: Any) -> None:
    """Raise `InvalidHyperparameter` for a number so small or large that sums of float64 would keep no digits of anything else.

    For new bandits alone: what a log holds was accepted once, and must stay readable.
    """
    for item in declared(type(policy)):
        value = getattr(policy, item.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = item.facts.sound
        if low is not None and value < low:
            raise InvalidHyperparameter(item.name, f"must be at least {low:g}: the numbers would keep too few digits")
        if high is not None and value > high:
            raise InvalidHyperparameter(item.name, f"must be at most {high:g}: the numbers would keep too few digits")


_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def _check_type(name: str, kind: Any, value: Any) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InvalidHyperparameter(name, f"must be one of {', '.join(map(repr, get_args(kind)))}")
        return
    allowed = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    matches = (
        value is None
        if t is type(None)
        else isinstance(value, bool)
        if t is bool
        else isinstance(value, int if t is int else (int, float)) and not isinstance(value, bool)
        for t in allowed
    )
    if not any(matches):
        raise InvalidHyperparameter(name, f"must be {' or '.join(_IN_WORDS[t] for t in allowed)}")


def _check_range(name: str, facts: Hyperparameter, value: float) -> None:
    if not math.isfinite(value):
        raise InvalidHyperparameter(name, "must be finite")
    if facts.at_least is not None and value < facts.at_least:
        raise InvalidHyperparameter(name, f"must be at least {facts.at_least:g}")
    if facts.above is not None and value <= facts.above:
        raise InvalidHyperparameter(name, f"must be greater than {facts.above:g}")
    if facts.at_most is not None and value > facts.at_most:
        raise InvalidHyperparameter(name, f"must be at most {facts.at_most:g}")
