"""Detects whether the files of an SQLite store are still those that this process opened, and as it left them.

An open file that is removed can still be written, and everything written to it is gone with the process. So the names are looked
up again around every commit: two calls of stat(2) each, some microseconds.
"""

from __future__ import annotations

import os
from pathlib import Path

from service.storage.sqlite.acknowledged import acknowledged_path

Identity = tuple[int, int]
"""Device and inode."""
Written = tuple[int, int]
"""Size, and time of the last write in ns."""


class StoreFiles:
    """The files of an open store and their state after the last write of this process. Made when all of them are open.

    store: the name that a restart would open, which may be a link; the files beside it carry the name that it leads to.
    """

    def __init__(self, store: Path) -> None:
        target = store.resolve()
        # Strings: they are looked up around every commit, and a `Path` makes that half as dear again.
        self._store, self._wal = str(store.absolute()), f"{target}-wal"
        self._lock = str(lock_path(store))
        self._beside = (f"{target}-shm", self._lock, str(acknowledged_path(target)))
        self._identities = {path: _identity(os.stat(path)) for path in (self._store, self._wal, *self._beside)}
        self._written: tuple[Written, Written] = ((0, 0), (0, 0))
        self.remember()

    def remember(self) -> None:
        """They are now as this process left them. Raises `OSError` where one is gone."""
        self._written = (_written(os.stat(self._store)), _written(os.stat(self._wal)))

    def look(self) -> tuple[str, bool]:
        """(which one was removed or replaced, "" = none; whether another program wrote to them). Before a commit."""
        try:
            store, wal, lock = os.stat(self._store), os.stat(self._wal), os.stat(self._lock)
        except OSError as error:
            return _gone(error), True
        for path, found in ((self._store, store), (self._wal, wal), (self._lock, lock)):
            if _identity(found) != self._identities[path]:
                return f"{path} was replaced by another file", True
        return "", (_written(store), _written(wal)) != self._written

    def look_after_commit(self) -> tuple[str, bool]:
        """The same when this process has just written to the write-ahead log."""
        try:
            store, wal = os.stat(self._store), os.stat(self._wal)
        except OSError as error:
            return _gone(error), True
        for path, found in ((self._store, store), (self._wal, wal)):
            if _identity(found) != self._identities[path]:
                return f"{path} was replaced by another file", True
        written = (_written(store), _written(wal))
        is_changed = written[0] != self._written[0]
        if not is_changed:
            self._written = written
        return "", is_changed

    def look_at_all(self) -> tuple[str, bool]:
        """`look` at every file, and whether a restart could open them. At every sweep."""
        reason, is_changed = self.look()
        if reason:
            return reason, True
        for path in self._beside:
            try:
                if _identity(os.stat(path)) != self._identities[path]:
                    return f"{path} was replaced by another file", True
            except OSError as error:
                return _gone(error), True
        return "", is_changed

    def unreadable(self) -> str:
        """Which of them this user may not read and write any more, so that a restart would fail; "" = none."""
        for path in (self._store, self._wal):
            if not os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                return f"{path}: its permissions were changed, a restart could not open it"
        return ""

    @property
    def wal_bytes(self) -> int:
        """Size of the write-ahead log after the last commit."""
        return self._written[1][0]


def lock_path(store: Path) -> Path:
    """One lock for one file, by whatever name it is reached."""
    target = store.resolve()
    return target.with_name(target.name + ".lock")


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _written(found: os.stat_result) -> Written:
    return found.st_size, found.st_mtime_ns


def _gone(error: OSError) -> str:
    return (
        f"{error.filename} was removed or renamed"
        if isinstance(error, FileNotFoundError)
        else f"{error.filename}: {error.strerror}"
    )
