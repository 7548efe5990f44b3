"""Errors of a replay, each with its exit code.

ReplayError
├── BadInput      2   the file, an option or the reward expression is wrong; nothing was played
└── ServerError   1   the server could not be reached, refused a request, or did not start
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import click


class ReplayError(click.ClickException):
    """Base of every failure that a replay reports."""

    def show(self, file: IO[Any] | None = None) -> None:
        """One line on stderr, as the other commands write theirs."""
        click.echo(f"nextarm: {' '.join(self.format_message().split())}", file=file, err=file is None)


class BadInput(ReplayError):
    """The file, an option or the reward expression is wrong."""

    exit_code = 2


class ServerError(ReplayError):
    """The server could not be reached, refused a request, or did not start. wrong: (path, message) of fields that it named."""

    exit_code = 1

    def __init__(self, message: str, *, wrong: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.wrong = tuple(wrong)
