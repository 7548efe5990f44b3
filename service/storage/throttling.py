"""A logger for failures that come by the thousand: each message at most once in a while, with the number of those left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

EVERY_S = 10.0


class ThrottledLogger:
    """Writes a message, and then not again for `every_s` seconds. The next line carries `suppressed`, how many were left out.

    A store that refuses, refuses every request and every item of a batch; a line for each would fill the disk that is full.
    """

    def __init__(self, logger: logging.Logger, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._silent_until: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def warning(self, message: str, **extra: object) -> None:
        """One line of level warning, unless the same message was written lately."""
        self._write(logging.WARNING, message, extra)

    def error(self, message: str, *, exc_info: BaseException | None = None, **extra: object) -> None:
        """One line of level error, unless the same message was written lately. exc_info: whose trace goes with it."""
        self._write(logging.ERROR, message, extra, exc_info)

    def _write(self, level: int, message: str, extra: dict[str, object], exc_info: BaseException | None = None) -> None:
        now = self._clock()
        if now < self._silent_until.get(message, now):
            self._suppressed[message] = self._suppressed.get(message, 0) + 1
            return
        self._silent_until[message] = now + self._every_s
        if count := self._suppressed.pop(message, 0):
            extra["suppressed"] = count
        self._logger.log(level, message, exc_info=exc_info, extra=extra)
