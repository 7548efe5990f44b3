"""What a run in containers has seen, for the pages."""

from __future__ import annotations

import time

SEEN: list[str] = []


def say(text: str) -> None:
    """A line of the record, with its time in UTC."""
    SEEN.append(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}")
