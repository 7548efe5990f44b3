"""Detection of an arm whose outcomes have changed: a two-sided CUSUM of standardized surprises (Page 1954).

    up = max(up + e - slack, 0)     down = max(down - e - slack, 0)     alarm where either exceeds the limit

Surprises are e ~ N(0, 1) as long as nothing changes (`Policy.surprise`). An arm that gets better while it is not played
is not seen: only a floor of exploration finds that.
"""

from __future__ import annotations

SLACK = 0.25
"""Deviations per outcome that are taken for noise."""
LIMIT = 20.0
"""Reached after some seven outcomes that are three deviations off."""

Sums = tuple[float, float]
"""(up, down) of one arm."""

START: Sums = (0.0, 0.0)


def add(sums: Sums, surprise: float) -> tuple[Sums, bool]:
    """The sums after one more surprise, and whether that is an alarm; after an alarm they start again.

    >>> add((19.0, 0.0), 2.0)
    ((0.0, 0.0), True)
    """
    up, down = max(sums[0] + surprise - SLACK, 0.0), max(sums[1] - surprise - SLACK, 0.0)
    return (START, True) if max(up, down) > LIMIT else ((up, down), False)
