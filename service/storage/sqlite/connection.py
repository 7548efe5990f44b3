"""Connections to an SQLite store, the checks that a damaged file can fail, and the mapping of SQLite's errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from service.storage.base import StorageDamagedError, StorageError, StorageUnavailableError

SCHEMA_VERSION = 3
FIRST = """
CREATE TABLE IF NOT EXISTS logs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY,              -- log number * 2^40 + offset: the order of a log is the order of the table
    log INTEGER NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS events_by_key ON events (log, key);
CREATE TABLE IF NOT EXISTS snapshots (
    log INTEGER NOT NULL, "offset" INTEGER NOT NULL, blob BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (log, "offset"));
"""
RECORDS = """
CREATE TABLE IF NOT EXISTS records (              -- log 0 = of the store itself
    log INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (log, key));
"""
RETENTION = """
CREATE TABLE IF NOT EXISTS trimmed (             -- floor: the first offset that is kept behind entry 1
    log INTEGER PRIMARY KEY, floor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS trimmed_keys (         -- lasting: 1 = is never forgotten
    log INTEGER NOT NULL, key TEXT NOT NULL, "offset" INTEGER NOT NULL, lasting INTEGER NOT NULL, PRIMARY KEY (log, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS trimmed_keys_by_offset ON trimmed_keys (log, "offset") WHERE NOT lasting;
"""
SCHEMAS = {1: FIRST, 2: FIRST + RECORDS, 3: FIRST + RECORDS + RETENTION}
"""By version. Compared, text for text, with what a store holds: a table that is missing is damage. A change is a new version."""
CHECKED_BYTES = 64 * 2**20
"""Up to this size the whole file is checked at the start; beyond it, what is read is checked as it is read."""
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def primary(error: BaseException) -> int:
    """SQLite's code of a failure without its extension (an index that is corrupt is corrupt); 0 where it is not SQLite's."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def failure(path: Path, error: sqlite3.Error) -> StorageError:
    """What a failure to open or to read means."""
    if primary(error) in DAMAGE:
        return StorageDamagedError(str(path), f"{error}; restore a backup")
    return StorageUnavailableError(f"{path}: {error}")


def open_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes; the file is created, or checked."""
    connection = open_reader(path)
    with _closed_on_failure(path, connection):
        _check_version(path, connection)
        if not is_new(connection):
            check_schema(path, connection)
        if schema_version(connection) < SCHEMA_VERSION:  # tables that an earlier version lacks
            connection.executescript(f"BEGIN; {SCHEMAS[SCHEMA_VERSION]} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            check_schema(path, connection)
        if path.stat().st_size <= CHECKED_BYTES:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise StorageDamagedError(str(path), f"{found}; restore a backup")
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection of the process that also writes."""
    connection = _connect(path, str(path), timeout=5.0)
    with _closed_on_failure(path, connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA cache_size=-16384")
    return connection


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection beside the process that serves the store, which is not disturbed."""
    connection = _connect(path, f"{path.absolute().as_uri()}?mode=ro", uri=True)
    with _closed_on_failure(path, connection):
        _check_version(path, connection)
    return connection


def _connect(path: Path, database: str, **options: Any) -> sqlite3.Connection:
    try:
        connection: sqlite3.Connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False, **options)
    except sqlite3.Error as error:
        raise failure(path, error) from error
    return connection


@contextmanager
def _closed_on_failure(path: Path, connection: sqlite3.Connection) -> Iterator[None]:
    """Close a connection that cannot be used, and say what SQLite's errors mean."""
    try:
        yield
    except sqlite3.Error as error:
        connection.close()
        raise failure(path, error) from error
    except BaseException:
        connection.close()
        raise


def _check_version(path: Path, connection: sqlite3.Connection) -> None:
    version = schema_version(connection)
    if version > SCHEMA_VERSION:
        raise StorageDamagedError(str(path), f"schema version {version}, this build reads up to {SCHEMA_VERSION}")


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether nothing was ever stored there."""
    return schema_version(connection) == 0


def schema_version(connection: sqlite3.Connection) -> int:
    """With which the store was written; 0 = nothing was."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """`StorageDamagedError` where a table is missing, or another."""
    if _schema(connection) != _fresh_schema(schema_version(connection)):
        raise StorageDamagedError(str(path), "its tables are not those of this service; restore a backup")


def _schema(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")]


def _fresh_schema(version: int) -> list[str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMAS[version])
        return _schema(connection)
