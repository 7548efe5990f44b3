"""A study: contenders play a world with several seeds, and what they reach is held against what is expected.

    Study --run--> Runs: contender -> one Run per seed --judge--> Check: ours, expected, verdict

What can be expected: a mean with its standard error (`Band`), a probability (`Proportion`), an inequality (`AtLeast`, `AtMost`),
or the very picks of a golden run (`Golden`), which is always the run of seed 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

WIDTH = 4.0
"""Half-width of a band, in standard errors of the difference between the two means."""

Each = Callable[[int], object]
"""Called after every round, with its number."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One contender, one seed. values: measure -> number.  series: name -> array, `picks` (T,) uint8 where there are any."""

    values: Mapping[str, float]
    series: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of the picks, as uint8."""
        return hashlib.sha256(self.series["picks"].astype(np.uint8).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Contender:
    """play: (seed, each) -> Run.  rounds: how often it calls `each`.  at_most: seeds; 1 where another seed says nothing new.
    slow: left out of quick runs.
    """

    play: Callable[[int, Each], Run]
    rounds: int
    at_most: int = 1_000_000
    slow: bool = False


Runs = Mapping[str, Sequence[Run]]
"""contender -> runs, seed 0 first."""


@dataclass(frozen=True)
class Judged:
    """What a row of the table says."""

    ours: str
    expected: str
    ok: bool | None  # None: no verdict


class Expected(Protocol):
    """What is expected of one measure of one contender."""

    def judge(self, runs: Sequence[Run], measure: str) -> Judged:
        """Ours beside it."""


@dataclass(frozen=True)
class Band:
    """mean +- error over `seeds` runs. Ours must lie within WIDTH standard errors of the difference, and what was lost when the
    expected mean was rounded to `digits` decimals.

    With few seeds our own standard error says little, so the expected one stands for ours wherever it is the larger one;
    where no error is known (None), our spread stands for both, and less than half of the seeds give no verdict.
    """

    mean: float
    error: float | None
    seeds: int
    digits: int = 9

    def judge(self, runs: Sequence[Run], measure: str) -> Judged:
        """Compare the means."""
        values = _values(runs, measure)
        ours = spread(values)
        theirs = ours if self.error is None else self.error * math.sqrt(self.seeds)
        error_of_difference = math.hypot(theirs / math.sqrt(self.seeds), max(ours, theirs) / math.sqrt(len(values)))
        band = WIDTH * error_of_difference + 0.5 * 10.0**-self.digits
        error = "" if self.error is None else f" ± {self.error:.2g}"
        if self.error is None and len(values) < self.seeds / 2:
            return Judged(mean_and_error(values), f"{number(self.mean)} (too few seeds to compare)", None)
        ok = abs(float(values.mean()) - self.mean) <= band
        return Judged(mean_and_error(values), f"{number(self.mean)}{error} (within {band:.2g})", ok)


@dataclass(frozen=True)
class Proportion:
    """The share of `seeds` runs in which something happened; the measure is 0 or 1."""

    share: float
    seeds: int

    def judge(self, runs: Sequence[Run], measure: str) -> Judged:
        """Compare two binomial shares, by their pooled share with one more of either kind (so that 0 of n has an error too)."""
        hits, n = sum(run.values[measure] for run in runs), len(runs)
        pooled = (hits + self.share * self.seeds + 1.0) / (n + self.seeds + 2.0)
        band = WIDTH * math.sqrt(pooled * (1.0 - pooled) * (1.0 / n + 1.0 / self.seeds))
        ours = hits / n
        return Judged(f"{ours:.4g} ({hits:.0f} of {n})", f"{self.share:.4g} (within {band:.2g})", abs(ours - self.share) <= band)


@dataclass(frozen=True)
class AtLeast:
    """A lower limit of the mean."""

    limit: float

    def judge(self, runs: Sequence[Run], measure: str) -> Judged:
        """Compare."""
        values = _values(runs, measure)
        return Judged(mean_and_error(values), f"> {self.limit:g}", float(values.mean()) > self.limit)


@dataclass(frozen=True)
class AtMost:
    """An upper limit of the mean."""

    limit: float

    def judge(self, runs: Sequence[Run], measure: str) -> Judged:
        """Compare."""
        values = _values(runs, measure)
        return Judged(mean_and_error(values), f"< {self.limit:g}", float(values.mean()) < self.limit)


@dataclass(frozen=True)
class Golden:
    """The value of the golden run, to nine digits, and how the sha256 of its picks begins ("" = not known)."""

    value: float
    picks: str = ""

    def judge(self, runs: Sequence[Run], measure: str) -> Judged:
        """Compare the run of seed 0."""
        run = runs[0]
        value = run.values[measure]
        ok = math.isclose(value, self.value, rel_tol=1e-9, abs_tol=1e-9)
        if not self.picks:
            return Judged(number(value), number(self.value), ok)
        same = run.digest.startswith(self.picks)
        ours = f"{number(value)}, picks {run.digest[:8]}" + (" (identical)" if same else "")
        return Judged(ours, f"{number(self.value)}, picks {self.picks[:8]}", ok and same)


class Claim(NamedTuple):
    """What is expected of one measure of one contender."""

    contender: str
    measure: str
    expected: Expected


@dataclass(frozen=True, kw_only=True)
class Study:
    """seeds, quick: runs per contender, in full and in a quick run.  measures: a row each.  beside: shown in the first row."""

    name: str
    title: str
    contenders: Mapping[str, Contender]
    claims: Sequence[Claim]
    measures: Sequence[str]
    beside: Sequence[str] = ()
    seeds: int
    quick: int
    note: str = ""

    def __post_init__(self) -> None:
        for claim in self.claims:
            if claim.contender not in self.contenders or claim.measure not in self.measures:
                raise ValueError(f"{self.name}: nothing would check {claim.contender!r}, {claim.measure!r}")


@dataclass(frozen=True, kw_only=True)
class Check:
    """A row of the table; `ok` is None where nothing is expected, where the contender did not play, or with too few seeds.

    over_seeds: the mean of all seeds, beside a golden run.  beside: other measures.
    """

    study: str
    contender: str
    measure: str
    ours: str
    expected: str = ""
    ok: bool | None = None
    over_seeds: str = ""
    beside: str = ""

    @property
    def verdict(self) -> str:
        """ok, OUT or a dash."""
        return "–" if self.ok is None else "ok" if self.ok else "OUT"


def judge(study: Study, runs: Runs) -> list[Check]:
    """One check per claim, and a row for every other measure. A golden run says nothing about other seeds, so their mean stands
    beside it.
    """
    checks = []
    for contender in study.contenders:
        played = runs.get(contender, ())
        for measure in study.measures:
            claims = [claim.expected for claim in study.claims if claim[:2] == (contender, measure)]
            row = Check(study=study.name, contender=contender, measure=measure, ours="not played, slow")
            if played and measure == study.measures[0]:
                others = [f"{name} {mean_and_error(_values(played, name))}" for name in study.beside]
                row = replace(row, beside=", ".join(others))
            if not played:
                checks += [row] * bool(claims)
            elif measure in played[0].values:
                row = replace(row, ours=mean_and_error(_values(played, measure)))
                checks += [_against(claim, played, row) for claim in claims] or [row]
    return checks


def _values(played: Sequence[Run], measure: str) -> npt.NDArray[np.float64]:
    return np.array([run.values[measure] for run in played])


def _against(claim: Expected, played: Sequence[Run], row: Check) -> Check:
    found = claim.judge(played, row.measure)
    others = row.ours if isinstance(claim, Golden) and len(played) > 1 else ""
    return replace(row, ours=found.ours, expected=found.expected, ok=found.ok, over_seeds=others)


def spread(values: npt.NDArray[np.float64]) -> float:
    """Standard deviation over the seeds; 0 for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def mean_and_error(values: npt.NDArray[np.float64]) -> str:
    """Mean and standard error."""
    if len(values) == 1:
        return number(float(values[0]))
    return f"{number(float(values.mean()))} ± {spread(values) / math.sqrt(len(values)):.2g}"


def number(value: float) -> str:
    """Four digits that count, never fewer than four decimals below 1."""
    return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.4g}"
