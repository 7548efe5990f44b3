"""When a request is sent again, and when it is not sent at all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST_PAUSE_S = 8.0
LONGEST_RETRY_AFTER_S = 10.0
"""A service that asks to wait longer is not asked again: the error carries `retry_after_s`."""

_CHANCE = random.Random()  # noqa: S311 - spreads retries; nothing secret depends on it


def pause_s(attempt: int, *, backoff_s: float, retry_after_s: float | None) -> float | None:
    """Seconds before the next attempt, with full jitter; None where the service asks for too many. attempt: 0 for the first."""
    jitter = _CHANCE.uniform(0.0, min(backoff_s * 2.0**attempt, LONGEST_PAUSE_S))
    if retry_after_s is None:
        return jitter
    # The jitter comes on top: clients that were refused together do not come back together.
    return retry_after_s + jitter if retry_after_s <= LONGEST_RETRY_AFTER_S else None


@dataclass
class CircuitBreaker:
    """Remembers that the service is away, so that requests with a fallback do not find out one by one.

    It opens for `open_s` after a failure, doubled by each further one up to `longest_s`. Then one request at a time is let
    through, as a probe, and the first answer closes it.
    """

    open_s: float = 0.5
    longest_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    answered_at: float = -1.0
    _until: float = 0.0
    _failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_request_allowed(self, lease_s: float) -> bool:
        """Whether a request may be sent. While the service is away, an allowed one is the only probe for `lease_s`."""
        if not self._failures:
            return True
        with self._lock:
            now = self.clock()
            if now < self._until:
                return False
            # A lease and no flag: a probe that is abandoned (a cancelled task, a killed thread) must not block those behind it.
            self._until = now + lease_s
            return True

    @property
    def wait_s(self) -> float:
        """Until the next probe."""
        return max(self._until - self.clock(), 0.0) if self._failures else 0.0

    def record_answer(self) -> bool:
        """The service answered; true where it had been away."""
        self.answered_at = self.clock()
        if not self._failures:
            return False
        with self._lock:
            was_away, self._failures = self._failures > 0, 0
        return was_away

    def record_failure(self, retry_after_s: float | None = None) -> bool:
        """The service did not answer, or could not; true where this is news."""
        with self._lock:
            wait = min(self.open_s * 2.0**self._failures, self.longest_s)
            self._failures = min(self._failures + 1, 16)
            self._until = self.clock() + max(wait, min(retry_after_s or 0.0, self.longest_s))
            return self._failures == 1
