"""Decisions that began a session: those that follow have their arm, and so the weights that it was drawn from.

It needs the standard library alone.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class FirstDecisions(Generic[T]):
    """First decisions of sessions by their id, `most` at a time: those that were needed last."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[int, T]] = {}

    def keep(self, decision: str, arm: int, found: T, *, most: int) -> None:
        """A decision of a session that has drawn its arm."""
        self._kept.pop(decision, None)
        self._kept[decision] = arm, found
        if len(self._kept) > most:
            del self._kept[next(iter(self._kept))]

    def find(self, chosen_by: str, arm: int, *, most: int) -> T | None:
        """The decision that has drawn this arm for a later one of its session; None where it is not known."""
        kept = self._kept.get(chosen_by)
        if kept is None or kept[0] != arm:
            return None
        self.keep(chosen_by, *kept, most=most)
        return kept[1]

    def drop(self, decision: str) -> None:
        """Forget one, if it is there."""
        self._kept.pop(decision, None)
