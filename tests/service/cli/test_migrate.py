"""From one store into another: the same events, the same digest, and nothing half done that cannot be gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bandits.registry import POLICIES
from service.cli import migrate as migration
from service.cli.migrate import CannotMigrate, migrate
from service.engine import events
from service.engine.learner import Learner
from service.settings import InvalidSettings, Settings
from service.storage.base import Durability, Log, Receipt, StorageLockedError, StorageUnavailableError
from service.storage.sqlite.store import SqliteStorage
from tests.bandits.examples import EXAMPLES
from tests.service.drivers import PAK, Clients, Clock, created, learner_of
from tests.service.http_client import opened
from tests.service.redis_server import needs_redis
from tools.processes import RedisServer


def sqlite(path: Path) -> Settings:
    return Settings(store=f"sqlite:///{path}")


async def served(settings: Settings, kind: str, *, name: str) -> tuple[int, str]:
    """A bandit that clients used for a while; its digest."""
    storage, clock = settings.open_storage(), Clock()
    await storage.start()
    bandit = await learner_of(storage, EXAMPLES[kind][0], options={"clock": clock}, name=name)
    await Clients(EXAMPLES[kind][0], bandit, clock, seed=3).work(9)
    await bandit.projection.catch_up()
    found = bandit.digest()
    await bandit.projection.close()
    await storage.close()
    return found


@needs_redis
async def test_there_and_back_again_every_policy_keeps_its_digest(tmp_path: Path) -> None:
    first, last = sqlite(tmp_path / "first.db"), sqlite(tmp_path / "last.db")
    digests = {kind: await served(first, kind, name=kind) for kind in POLICIES}
    with RedisServer("--appendonly", "yes") as server:
        shared = Settings(store=server.url)
        for source, destination in ((first, shared), (shared, last)):
            found = await migrate(source, destination, quiet=True)
            assert {line.bandit: (line.events, line.sha256) for line in found} == digests
    logs = []
    for settings in (first, last):
        storage = settings.open_storage()
        await storage.start()
        logs.append([await storage.read(log, after=0, limit=10_000) for log in await storage.logs()])
        await storage.close()
    assert logs[0] == logs[1], "byte for byte"


async def test_what_came_over_can_be_gone_on_with(tmp_path: Path) -> None:
    """Ids are still known: the same decision and the same outcome again are answered with the first."""
    source, destination = sqlite(tmp_path / "a.db"), sqlite(tmp_path / "b.db")
    storage, clock = source.open_storage(), Clock()
    await storage.start()
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    clients = Clients(PAK, bandit, clock, seed=4)
    await clients.work(9)
    await bandit.projection.close()
    await storage.close()
    await migrate(source, destination, quiet=True)
    storage = destination.open_storage()
    await storage.start()
    clients.learner = await Learner.load(storage, (await storage.logs())[0], clock=clock)
    for decision, (arm, propensity) in clients.kept.items():
        kept = await clients.learner.decisions.find(decision, f"body of {decision}")
        assert kept is not None
        assert (kept.event.arm, kept.event.propensity) == (arm, propensity)
    await clients.work(6)
    await storage.close()


async def test_an_interrupted_migration_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, destination = sqlite(tmp_path / "a.db"), sqlite(tmp_path / "b.db")
    digest = await served(source, "pak-ucb", name="greeter")
    monkeypatch.setattr(migration, "PAGE", 5)
    append = SqliteStorage.append

    async def cut(
        storage: SqliteStorage, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None
    ) -> Receipt:
        if "d9" in key:
            raise StorageUnavailableError("somebody pulled the plug")
        return await append(storage, log, key, payload, durability, expected=expected)

    monkeypatch.setattr(SqliteStorage, "append", cut)
    with pytest.raises(StorageUnavailableError):
        await migrate(source, destination, quiet=True)
    monkeypatch.setattr(SqliteStorage, "append", append)
    for _ in range(2):
        assert [line[1:] for line in await migrate(source, destination, quiet=True)] == [digest]


async def test_another_log_of_the_same_name_is_not_touched(tmp_path: Path) -> None:
    source, destination = sqlite(tmp_path / "a.db"), sqlite(tmp_path / "b.db")
    await served(source, "pak-ucb", name="greeter")
    theirs = await served(destination, "greedy", name="greeter")
    with pytest.raises(CannotMigrate, match="greeter"):
        await migrate(source, destination, quiet=True)
    storage = destination.open_storage()
    await storage.start()
    assert (await Learner.load(storage, (await storage.logs())[0])).digest() == theirs
    await storage.close()


async def test_a_destination_that_went_on_by_itself_is_reported(tmp_path: Path) -> None:
    source, destination = sqlite(tmp_path / "a.db"), sqlite(tmp_path / "b.db")
    await served(source, "greedy", name="greeter")
    await migrate(source, destination, quiet=True)
    storage = destination.open_storage()
    await storage.start()
    (log,) = await storage.logs()
    late = events.encode(events.ArmAdded(at=created().at, name="late", price=0.0, metadata={}))
    await storage.append(log, "arm//late", late, Durability.POWER)
    await storage.close()
    with pytest.raises(CannotMigrate, match="more"):
        await migrate(source, destination, quiet=True)


async def test_a_store_that_is_being_served_is_left_alone(tmp_path: Path) -> None:
    source, destination = sqlite(tmp_path / "a.db"), sqlite(tmp_path / "b.db")
    await served(source, "greedy", name="greeter")
    for busy in (source, destination):
        storage = busy.open_storage()
        await storage.start()
        with pytest.raises(StorageLockedError):
            await migrate(source, destination, quiet=True)
        await storage.close()
    with pytest.raises(StorageUnavailableError, match="no such store"):
        await migrate(sqlite(tmp_path / "nothing.db"), destination, quiet=True)
    assert not (tmp_path / "nothing.db").exists()
    with pytest.raises(InvalidSettings, match="one"):
        await migrate(source, source, quiet=True)


async def test_the_id_of_a_reference_is_still_known_in_the_new_store(tmp_path: Path) -> None:
    source, destination = sqlite(tmp_path / "a.db"), sqlite(tmp_path / "b.db")
    body = {"id": "r", "outputs": [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}]}
    frechet = {"policy": {"kind": "fd-ucb"}, "arms": [{"name": "a"}], "output": {"dim": 2}, "seed": 7}
    async with opened(store=source.store) as service:
        await service.create(body=frechet)
        first = await service.post("/v1/bandits/b/references", body)
        assert first.status_code == 201
    await migrate(source, destination, quiet=True)
    storage = destination.open_storage()
    await storage.start()
    entry = await storage.find((await storage.logs())[0], events.reference_key("r"))
    assert entry is not None
    assert entry.offset == 2
    await storage.close()
    async with opened(store=destination.store) as service:
        again = await service.post("/v1/bandits/b/references", body)
        assert (again.status_code, again.json()) == (200, first.json())
        assert await service.offset() == 2
