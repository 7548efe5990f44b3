"""Detection of an arm whose outcomes have changed: a two-sided CUSUM of standardized surprises (Page 1954).

    e = surprise / scale, clipped to [-3, 3]
    up = max(up + e - slack, 0)     down = max(down - e - slack, 0)     alarm where either exceeds the limit

A policy measures surprises in whatever unit it likes (`Policy.surprise`): the noise of an arm is learned here, from the logged
numbers alone, as the root mean square of its earlier surprises. Each of the two sums keeps the scale that was known when it last
stood at 0: the first surprises of a change would otherwise widen the scale so far that those after them, of a policy that is
adapting already, no longer add up to the limit.

Clipping keeps skewed rewards from an alarm (a model that fails one time in fifty is 7 deviations off each time), and one absurd
value from being enough for one. The mean of what is clipped at c is at most (sqrt(1 + c^2) - c) / 2 = .081 off, less than the
slack, so nothing adds up while nothing changes. The squares are not clipped: where fewer than one outcome in 1 + c^2 fails, the
scale would shrink until the clipped failures no longer balance the rest.

The first surprises of an arm are not counted: a posterior that knows next to nothing yet may be a thousand of its deviations off,
and such squares would hide every later change.

The constants were chosen on arms in which nothing changes for 5,000 outcomes, with rewards of 0 and 1 and means from .02 to .98,
and noise with light, heavy and skewed tails: six such arms in ten thousand raise an alarm. (With a slack of .25, a limit of 20
and clipping at 2 it is 45 in a thousand, with a slack of .4 two in ten thousand, but a fall from .6 to .3 is seen in 77 % of runs
within 400 outcomes instead of 94 %.) A change of less than half a deviation is mostly taken for noise.

An arm that gets better while it is not played is not seen: only a floor of exploration finds that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SLACK = 0.35
"""Deviations per outcome that are taken for noise."""
LIMIT = 25.0
"""Reached after ten outcomes that are three deviations off."""
LARGEST = 3.0
"""Deviations of one outcome that count."""
SETTLING = 10
"""First surprises of an arm that are left out."""
FIRST = 10
"""Surprises behind these that tell the noise before any is tested."""


class Sums(NamedTuple):
    """What is kept of one arm. outcomes, squares: surprises since its last alarm, and the sum of the squares
    of those that are counted.

    scale_up, scale_down: what `up` and `down` are measured by, 0 = not known yet.
    """

    up: float = 0.0
    down: float = 0.0
    outcomes: int = 0
    squares: float = 0.0
    scale_up: float = 0.0
    scale_down: float = 0.0


START = Sums()


def add(sums: Sums, surprise: float) -> tuple[Sums, bool]:
    """The sums after one more surprise, and whether that is an alarm; after an alarm they start again.

    >>> add(Sums(up=24.0, outcomes=20, squares=10.0, scale_up=1.0), 1.5)
    (Sums(up=0.0, down=0.0, outcomes=0, squares=0.0, scale_up=0.0, scale_down=0.0), True)
    """
    up, down, outcomes, squares, scale_up, scale_down = sums
    counted = outcomes - SETTLING
    if counted < 0:
        return Sums(outcomes=outcomes + 1), False
    if counted >= FIRST:
        scale = math.sqrt(squares / counted)
        # A scale of 0 measures nothing: it is replaced even in the middle of a sum, as soon as any surprise was not 0.
        scale_up = scale_up if up and scale_up else scale
        scale_down = scale_down if down and scale_down else scale
        up = max(up + _clipped(surprise, scale_up) - SLACK, 0.0)
        down = max(down - _clipped(surprise, scale_down) - SLACK, 0.0)
        if max(up, down) > LIMIT:
            return START, True
    return Sums(up, down, outcomes + 1, squares + surprise * surprise, scale_up, scale_down), False


def _clipped(surprise: float, scale: float) -> float:
    error = surprise / scale if scale else math.copysign(math.inf, surprise) if surprise else 0.0
    return min(max(error, -LARGEST), LARGEST)
