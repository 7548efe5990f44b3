"""Whether a bandit is asked for in this process, which decides how soon it folds what other processes write.

request ──> note
follow  ──> gather ──> fold everything that has come meanwhile, at once
"""

from __future__ import annotations

import asyncio
import contextlib
import math

ASKED_S = 1.0
"""For so long after a request for a bandit it is followed closely."""
GATHER_S = 0.02
"""Of a bandit that is being asked for: how long the entries of others gather before they are folded together. To fold one costs a
multiple of its share in a fold of many."""
IDLE_GATHER_S = 1.0
"""Of a bandit that is not being asked for here; the next request for it ends the wait."""


class Demand:
    """When a bandit was last asked for in this process, which decides how soon it folds what others write."""

    def __init__(self) -> None:
        self._asked_at = -math.inf
        self._asked = asyncio.Event()

    def note(self) -> None:
        """It is asked for."""
        self._asked_at = asyncio.get_running_loop().time()
        self._asked.set()

    async def gather(self) -> None:
        """Wait while entries gather."""
        if asyncio.get_running_loop().time() - self._asked_at < ASKED_S:
            await asyncio.sleep(GATHER_S)
            return
        self._asked.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), IDLE_GATHER_S)
