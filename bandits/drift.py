"""Detection of an arm whose outcomes have changed: a two-sided CUSUM of standardized surprises (Page 1954).

    e = surprise / root mean square of the earlier ones, clipped to [-2, 2]
    up = max(up + e - slack, 0)     down = max(down - e - slack, 0)     alarm where either exceeds the limit

A policy measures surprises in whatever unit it likes (`Policy.surprise`): the noise of an arm is learned here, from the logged
numbers alone. Clipping keeps skewed rewards from an alarm (a model that fails one time in ten is 3 deviations off each time),
and one absurd value from being enough for one. The mean of what is clipped at c is at most (sqrt(1 + c^2) - c) / 2 = .118 off,
less than the slack, so nothing adds up while nothing changes.

An arm that gets better while it is not played is not seen: only a floor of exploration finds that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SLACK = 0.25
"""Deviations per outcome that are taken for noise."""
LIMIT = 20.0
"""Reached after some twelve outcomes that are two deviations off."""
LARGEST = 2.0
"""Deviations of one outcome that count."""
FIRST = 10
"""Surprises that tell the noise before any outcomes."""


class Sums(NamedTuple):
    """What is kept of one arm. outcomes, squares: surprises since its last alarm, and the sum of their squares."""

    up: float = 0.0
    down: float = 0.0
    outcomes: int = 0
    squares: float = 0.0


START = Sums()


def add(sums: Sums, surprise: float) -> tuple[Sums, bool]:
    """The sums after one more surprise, and whether that is an alarm; after an alarm they start again.

    >>> add(Sums(up=19.0, down=0.0, outcomes=10, squares=10.0), 1.5)
    (Sums(up=0.0, down=0.0, outcomes=0, squares=0.0), True)
    """
    up, down, outcomes, squares = sums
    if outcomes >= FIRST:
        error = surprise / math.sqrt(squares / outcomes) if squares else math.copysign(LARGEST, surprise) if surprise else 0.0
        error = min(max(error, -LARGEST), LARGEST)
        up, down = max(up + error - SLACK, 0.0), max(down - error - SLACK, 0.0)
        if max(up, down) > LIMIT:
            return START, True
    return Sums(up, down, outcomes + 1, squares + surprise * surprise), False
