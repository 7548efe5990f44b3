"""Structured logs: one JSON object per line, ours and the server's alike, without prompts and keys."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from service.api.access_log import TIME


def configure_logging(level: str) -> None:
    """Everything to standard error as JSON."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "at", "levelname": "level", "name": "logger"},
            datefmt=TIME,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [lines]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        # Where it listens, that it stops, and what it cannot read as HTTP, we say ourselves; the last at most every ten seconds.
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("uvicorn.access").disabled = True  # ours knows the route, the bandit and the request's id
