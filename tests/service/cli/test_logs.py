"""What the command line does with a store beside a running service: digest, export, backup."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bandits import state as states
from service.cli import logs as offline
from service.engine import events, projection, snapshots
from service.engine.learner import Learner
from service.settings import Settings
from service.storage.base import StorageUnavailableError
from service.storage.sqlite.store import SqliteStorage
from tests.service.drivers import PAK, Clients, Clock, learner_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[tuple[SqliteStorage, Learner, Clients]]:
    """A store that is being served, with a bandit that clients use."""
    storage = SqliteStorage(settings.sqlite_path())
    await storage.start()
    clock = Clock()
    bandit = await learner_of(storage, PAK, options={"clock": clock, "snapshot_every": 25})
    clients = Clients(PAK, bandit, clock, seed=1)
    await clients.work(12)
    await bandit.projection.background.finish()  # snapshots that are due
    yield storage, bandit, clients
    await bandit.projection.close()
    await storage.close()


async def test_the_digest_is_that_of_the_running_service(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bandit, _ = serving
    await bandit.projection.catch_up()
    for batch in (1, 256):
        monkeypatch.setattr(projection, "READ_BATCH", batch)
        (found,) = await offline.digests(settings, "greeter", quiet=True)
        assert found == offline.Digest("greeter", *bandit.digest(), True)
    with pytest.raises(StorageUnavailableError, match="no bandit 'other'; the store has greeter"):
        await offline.digests(settings, "other", quiet=True)


async def test_both_digests_are_of_one_offset_while_the_service_goes_on(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bandit, clients = serving
    load = Learner.load
    seen: list[int] = []

    async def while_clients_work(*values: object, **options: object) -> Learner:
        loaded = await load(*values, **options)  # type: ignore[arg-type]
        seen.append(loaded.versions.committed.offset)
        await clients.work(2)
        return loaded

    monkeypatch.setattr(Learner, "load", while_clients_work)
    (found,) = await offline.digests(settings, None, quiet=True)
    assert found.snapshot_agrees
    assert seen == [found.offset, found.offset]
    assert bandit.versions.committed.offset > found.offset


async def test_a_snapshot_that_disagrees_with_the_log_is_reported(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients]
) -> None:
    storage, bandit, clients = serving
    await bandit.projection.snapshot()
    wrong = states.fold(bandit.policy, bandit.versions.committed.state, PAK.seen(clients.g, 1, PAK.features(clients.g)))
    blob = snapshots.pack(bandit.policy, wrong, bandit.ledger.pack(), bandit.versions.committed.offset)
    await storage.save_snapshot(bandit.log, bandit.versions.committed.offset, blob)
    (found,) = await offline.digests(settings, None, quiet=True)
    assert not found.snapshot_agrees
    assert found.sha256 == bandit.digest()[1], "the log is the truth"


async def test_reading_a_store_leaves_no_snapshot_and_no_trace_in_it(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], caplog: pytest.LogCaptureFixture
) -> None:
    storage, bandit, _ = serving
    before = await storage.load_snapshots(bandit.log)
    await offline.digests(settings, None, quiet=True)
    assert await storage.load_snapshots(bandit.log) == before
    assert caplog.records == []


async def test_an_export_is_the_log_line_by_line(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, bandit, _ = serving
    monkeypatch.setattr(offline, "PAGE", 7)
    out = io.BytesIO()
    count = await offline.export(settings, "greeter", out, quiet=True)
    entries = await storage.read(bandit.log, after=0, limit=9999)
    assert count == len(entries)
    assert out.getvalue() == b"".join(events.line(entry.offset, entry.payload) for entry in entries)
    assert [json.loads(line)["offset"] for line in out.getvalue().splitlines()] == list(range(1, count + 1))


async def test_a_backup_is_a_store_of_its_own(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], tmp_path: Path
) -> None:
    _, bandit, _ = serving
    await bandit.projection.catch_up()
    (tmp_path / "copy.db.partial").write_text("what a backup that was cut off has left")
    offline.backup(settings, tmp_path / "copy.db")
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]
    (found,) = await offline.digests(Settings(store=f"sqlite:///{tmp_path / 'copy.db'}"), None, quiet=True)
    assert (found.offset, found.sha256) == bandit.digest()


async def test_a_backup_overwrites_no_file_unless_it_is_forced_to(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    copy.write_text("yesterday's")
    with pytest.raises(StorageUnavailableError, match="--force"):
        offline.backup(settings, copy)
    assert copy.read_text() == "yesterday's"
    offline.backup(settings, copy, force=True)
    (found,) = await offline.digests(Settings(store=f"sqlite:///{copy}"), None, quiet=True)
    assert found.snapshot_agrees


async def test_a_backup_never_overwrites_the_store_itself(
    settings: Settings, serving: tuple[SqliteStorage, Learner, Clients], tmp_path: Path
) -> None:
    (tmp_path / "link.db").symlink_to(settings.sqlite_path())
    inode = settings.sqlite_path().stat().st_ino
    for name in ("store.db", "link.db", f"../{tmp_path.name}/store.db"):
        with pytest.raises(StorageUnavailableError, match="the store itself"):
            offline.backup(settings, tmp_path / name)
    assert settings.sqlite_path().stat().st_ino == inode


def test_a_backup_that_fails_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="no such store"):
        offline.backup(settings, tmp_path / "copy.db")
    with contextlib.closing(sqlite3.connect(settings.sqlite_path())) as connection, connection:
        connection.execute("CREATE TABLE t (a)")
    with pytest.raises(StorageUnavailableError, match=r"none/copy\.db"):
        offline.backup(settings, tmp_path / "none" / "copy.db")
    settings.sqlite_path().write_bytes(b"this is no database " * 300)
    with pytest.raises(StorageUnavailableError, match="not a database"):
        offline.backup(settings, tmp_path / "copy.db")
    assert list(tmp_path.glob("copy*")) == []


async def test_a_store_that_is_not_there_is_not_created(settings: Settings) -> None:
    with pytest.raises(StorageUnavailableError, match="no such store"):
        await offline.digests(settings, None, quiet=True)
    assert not settings.sqlite_path().exists()
