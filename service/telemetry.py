"""Structured logs: one JSON object per line, ours and the server's alike, without prompts and keys."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter


def configure_logging(level: str) -> None:
    """Everything to standard error as JSON."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "at", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [lines]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.WARNING)  # where it listens and that it stops, we say ourselves
    logging.getLogger("uvicorn.access").disabled = True  # one line per request belongs to the proxy; ours tells failures
