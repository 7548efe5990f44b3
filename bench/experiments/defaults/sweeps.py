"""A sweep: one policy, its settings and the places where each is played; and what the runs say against those of the base.

setting = base + what is changed      every setting plays the same seeds of the same places, so that differences are paired
better  = the mean paired difference to the base, towards better, is beyond two of its standard errors; worse likewise
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.pages import markdown

Values = Mapping[str, float]
"""Measure -> what one run reached."""
Results = dict[str, dict[str, dict[str, list[float]]]]
"""Place -> setting (as JSON) -> measure -> one number per seed."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is counted in a run. factor: what it is multiplied by in the table."""

    name: str
    better: Literal["high", "low"]
    digits: int = 3
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A world with seeds. play: (setting, seed) -> what was reached.  leaves_out: changes that make no sense here."""

    name: str
    play: Callable[[Mapping[str, Any], int], Values]
    measures: tuple[Measure, ...]
    seeds: int
    leaves_out: Callable[[Mapping[str, Any]], bool] = lambda changed: False


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """base: the setting that everything is held against.  changes: what the other settings change in it, in the table's order."""

    name: str
    base: Mapping[str, Any]
    changes: Sequence[Mapping[str, Any]]
    places: tuple[Place, ...]

    def settings(self) -> list[Mapping[str, Any]]:
        """The changes of every row, the base first."""
        return [{}, *self.changes]

    def key(self, changed: Mapping[str, Any]) -> str:
        """The whole setting, under which its runs are kept."""
        return json.dumps({**self.base, **changed}, sort_keys=True)

    def address(self, place: Place) -> str:
        """Under which the runs of a place are kept."""
        return f"{self.name}: {place.name}"


def label(changed: Mapping[str, Any]) -> str:
    """A row's name: what it changes."""
    return " ".join(f"{name}={json.dumps(value).strip(chr(34))}" for name, value in changed.items())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """mean: of the runs.  error: its standard error.  gain: over the base, seed by seed; above 0 = better.  spread: its error."""

    mean: float
    error: float
    gain: float
    spread: float

    @property
    def verdict(self) -> Literal["better", "worse", "same"]:
        """Two standard errors decide; where both never vary, any difference does."""
        if abs(self.gain) <= 2.0 * self.spread + 1e-12:
            return "same"
        return "better" if self.gain > 0.0 else "worse"


def compare(runs: Sequence[float], base: Sequence[float], *, better: Literal["high", "low"]) -> Comparison:
    """The runs of one setting against those of the base on the same seeds, as many as both have."""
    n = min(len(runs), len(base))
    own, other = np.asarray(runs[:n]), np.asarray(base[:n])
    gain = (own - other) * (1.0 if better == "high" else -1.0)
    return Comparison(mean=float(own.mean()), error=_error(own), gain=float(gain.mean()), spread=_error(gain))


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def table(sweep: Sweep, results: Results) -> str:
    """Markdown: one row per setting, one column per place and measure; **better** or _worse_ than the base."""
    columns = [(place, measure) for place in sweep.places for measure in place.measures]
    heads = [f"{place.name}: {measure.name} ({'+' if measure.better == 'high' else '-'})" for place, measure in columns]
    rows = []
    for changed in sweep.settings():
        name = f"`{label(changed)}`" if changed else f"base: `{label(sweep.base)}`"
        rows.append([name, *(_cell(sweep, results, changed, place, measure) for place, measure in columns)])
    return markdown(["setting", *heads], rows)


def _cell(sweep: Sweep, results: Results, changed: Mapping[str, Any], place: Place, measure: Measure) -> str:
    kept = results.get(sweep.address(place), {})
    runs, base = (kept.get(sweep.key(one), {}).get(measure.name, []) for one in (changed, {}))
    if not runs or not base:
        return ""
    seen = compare(runs, base, better=measure.better)
    text = f"{seen.mean * measure.factor:.{measure.digits}f} ± {seen.error * measure.factor:.{measure.digits}f}"
    if not changed:
        return text
    return {"better": f"**{text}**", "worse": f"_{text}_", "same": text}[seen.verdict]
