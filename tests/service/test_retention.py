"""A service that trims its logs beside one that keeps them: every reader is answered the same, from archive and store."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.cli.evaluate import evaluate
from service.cli.logs import backup, digests, export
from service.cli.migrate import migrate
from service.engine import retention
from service.engine.evaluation_process import Plan
from service.settings import InvalidSettings, Settings
from service.storage.archive import Archive
from service.storage.base import LogCompactedError, StorageUnavailableError
from tests.service.http_client import ARMS, Clock, Json, Service, answered, failed, opened
from tests.service.storages import STORAGES, store_of

URL = "/v1/bandits/b/decisions"
EVALUATIONS = "/v1/bandits/b/evaluations"
DAY = 86_400.0
BODY: Json = {
    "policy": {"kind": "pak-ucb", "random_features": 8, "exploration": 0.5},
    "arms": ARMS,
    "prompt": {"embedder": "vector", "dim": 3},
    "reward": {"timeout_s": DAY},
    "amend_until_s": DAY,
    "seed": 7,
}
TIMES = {"at", "deadline", "happened_at", "decided_at", "closed_at", "amended_at"}
ROWS = {"rows": [{"id": "row", "prompt": {"vector": [1.0, 0.0, 0.0]}, "arm": "small", "reward": 0.5}]}


async def decide(service: Service, number: int) -> Json:
    return await service.decide("b", {"prompt": {"vector": [0.5, number / 7, -1.0]}, "id": f"d{number}"})


async def work(service: Service, clock: Clock, first: int, last: int) -> None:
    """Decisions with outcomes; the last of them younger than a day."""
    for number in range(first, last):
        await decide(service, number)
        await service.observe(f"d{number}", {"reward": number % 5 / 4})
        clock.forward(0.1 * DAY)
        if number % 5 == 4:
            await service.settle()


async def play(service: Service, clock: Clock) -> None:
    """A life of some days: history, changes, corrections."""
    await service.create("b", BODY)
    await service.post("/v1/bandits/b/import", ROWS)
    await work(service, clock, 0, 10)
    await service.patch(f"{URL}/d9/outcome", {"reward": 0.0, "id": "corrected"})
    await service.patch("/v1/bandits/b", {"policy": {"exploration": 0.25}})
    await service.put("/v1/bandits/b/arms/third", {"price": 1.0})
    await work(service, clock, 10, 40)


def kept(folder: Path, **others: Any) -> Json:
    (folder / "archive").mkdir(exist_ok=True)
    return {"keep_events": 5, "snapshot_every": 10, "archive": str(folder / "archive")} | others


@asynccontextmanager
async def pair(store: str, folder: Path, **settings: Any) -> AsyncIterator[tuple[Service, Service, Clock, Json]]:
    """The service that trims and its twin, after the same life; the clock of the first; its settings."""
    clock, other = Clock(), Clock()
    given = store_of(store, folder) | kept(folder, **settings)
    async with opened(clock=clock, **given) as service, opened(clock=other) as twin:
        await play(service, clock)
        await play(twin, other)
        await service.settle()
        yield service, twin, clock, given


async def first_kept(service: Service) -> int:
    learner = await service._learner("b")
    return await learner.projection.storage.trim(learner.log, before=1, lasting=())


async def archive_of(service: Service) -> Archive:
    archive = (await service._learner("b")).projection.storage.archive
    assert archive is not None
    return archive


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


async def cloned(service: Service, body: Json) -> Json:
    assert (await service.post("/v1/bandits/b/clone", body)).status_code == 202
    await service.settle(body["name"])
    return answered(await service.get(f"/v1/bandits/{body['name']}/digest"))


@pytest.mark.parametrize("store", STORAGES)
async def test_a_service_that_trims_answers_like_one_that_keeps_its_log(store: str, tmp_path: Path) -> None:
    async with pair(store, tmp_path) as (service, twin, clock, given):
        first = await first_kept(service)
        assert 40 < first < 75
        digest = answered(await twin.get("/v1/bandits/b/digest"))
        for path in (
            "/v1/bandits/b/digest",
            f"{URL}/d0",
            f"{URL}/d9",
            f"{URL}/d39",
            f"{URL}?limit=200",
            f"{URL}?limit=7&before={first + 3}",
            f"{URL}?state=observed&limit=30",
        ):
            found, expected = answered(await service.get(path)), answered(await twin.get(path))
            assert timeless(found) == timeless(expected), path
        for query in ("", "?limit=1", f"?after=7&limit={first}", f"?after={first - 2}", "?after=3&limit=2&vectors=0"):
            assert timeless(await service.log(query=query)) == timeless(await twin.log(query=query)), query
        assert await service.replayed() == await service.ledger()
        # what is repeated is known, what is corrected too late is refused
        assert (await service.observe("d0", {"reward": 0.0}))["duplicate"] is True
        assert (await decide(service, 0))["offset"] == 3
        assert failed(await service.put(f"{URL}/d0/outcome", {"reward": 1.0})) == (409, "outcome_conflict")
        assert failed(await service.patch(f"{URL}/d0/outcome", {"reward": 1.0})) == (410, "decision_expired")
        assert answered(await service.patch(f"{URL}/d9/outcome", {"reward": 0.0, "id": "corrected"}))["duplicate"] is True
        assert answered(await service.post("/v1/bandits/b/import", ROWS))["learned"] == 0
        # what reads the log from its beginning
        copy = {"name": "copy", "policy": {"kind": "lin-ucb"}}
        assert await cloned(service, copy) == await cloned(twin, copy)
        shadow = {"policy": {"kind": "lin-ucb"}, "from": "start"}
        for each in (service, twin):
            assert (await each.put("/v1/bandits/b/shadows/s", shadow)).status_code == 201
            await (await each._learner("b")).projection.wait_for_shadows()
        with_shadow = answered(await twin.get("/v1/bandits/b/digest"))
        assert answered(await service.get("/v1/bandits/b/digest")) == with_shadow != digest
        assert await first_kept(service) == first, "nothing younger than a day goes, whatever the snapshots are"
        if store == "memory":
            return
        (line,) = await digests(Settings(**given), "b", quiet=True)
        assert (line.offset, line.sha256, line.snapshot_agrees) == (with_shadow["offset"], with_shadow["sha256"], True)
    async with opened(clock=clock, **given) as again:
        assert answered(await again.get("/v1/bandits/b/digest")) == with_shadow
        assert (await again.observe("d0", {"reward": 0.0}))["duplicate"] is True


async def test_commands_read_archive_and_store_as_one(tmp_path: Path) -> None:
    async with pair("sqlite", tmp_path) as (service, twin, clock, given):
        expected = answered(await twin.get("/v1/bandits/b/digest"))
        lines = (await service.get("/v1/bandits/b/log")).content
        here = Settings(**given)
        (line,) = await digests(here, "b", quiet=True)
        assert (line.offset, line.sha256, line.snapshot_agrees) == (expected["offset"], expected["sha256"], True)
        with (tmp_path / "out").open("wb") as out:
            assert await export(here, "b", out, quiet=True) == expected["offset"]
        assert (tmp_path / "out").read_bytes() == lines
        found = await evaluate(Plan(source="b", settings=here.model_dump(), policies=[{"kind": "greedy"}]), quiet=True)
        assert found["decisions"] == 40
        backup(here, tmp_path / "copy.db")
    there = Settings(store=f"sqlite:///{tmp_path}/there.db")
    (copied,) = await migrate(here, there, quiet=True)
    assert (copied.events, copied.sha256) == (expected["offset"], expected["sha256"])
    with (tmp_path / "again").open("wb") as out:
        await export(there, "b", out, quiet=True)
    assert (tmp_path / "again").read_bytes() == lines, "a store that holds everything"
    # a backup needs the archive as the store does
    with pytest.raises(LogCompactedError):
        await migrate(Settings(store=f"sqlite:///{tmp_path}/copy.db"), Settings(store=f"sqlite:///{tmp_path}/x.db"), quiet=True)
    async with opened(clock=clock, **(given | {"store": f"sqlite:///{tmp_path}/copy.db"})) as restored:
        assert answered(await restored.get("/v1/bandits/b/digest")) == expected
        assert (await restored.get("/v1/bandits/b/log")).content == lines
    # a segment that is gone is named
    gone = sorted((tmp_path / "archive").rglob("*.gz"))[1]
    first, last, _ = gone.name.split("-")
    gone.unlink()
    named = f"entries {int(first)} to {int(last)} were trimmed"
    with pytest.raises(StorageUnavailableError, match=named):
        await evaluate(Plan(source="b", settings=here.model_dump()), quiet=True)
    async with opened(clock=clock, **given) as lacking:
        answer = await lacking.get("/v1/bandits/b/log")
        assert failed(answer) == (410, "log_trimmed")
        assert named in answer.json()["detail"]
        assert answered(await lacking.get("/v1/bandits/b/digest")) == expected, "what is served does not need it"
        assert failed(await lacking.get(f"{URL}/d{int(first) // 2}")) == (410, "decision_archived")


@pytest.mark.parametrize("has_archive", [True, False])
async def test_an_id_is_not_used_again_before_the_outcome_under_it_is_forgotten_too(has_archive: bool, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(clock=clock, **kept(tmp_path, **({} if has_archive else {"archive": "none"}))) as service:
        await service.create("b", BODY | {"amend_until_s": 20 * DAY, "reward": {"timeout_s": 60 * DAY}})

        async def work(first: int, last: int) -> None:
            for number in range(first, last):
                await decide(service, number)
                await service.observe(f"d{number}")
                clock.forward(DAY)
                if number % 5 == 4:
                    await service.settle()

        async def again(decision: str) -> Json:
            response = await service.post(URL, {"prompt": {"vector": [1.0, 1.0, 1.0]}, "id": decision})
            return {"conflict": failed(response)} if response.status_code == 409 else answered(response)

        for number in (1000, 1001, 1002):
            await decide(service, number)
        await service.observe("d1001")
        await work(0, 18)
        await service.observe("d1000")
        assert (await service.patch(f"{URL}/d1001/outcome", {"reward": 0.5})).status_code == 200
        await work(18, 40)
        taken = {"conflict": (409, "decision_conflict")}
        for decision in ("d1000", "d1001", "d1002"):
            assert failed(await service.get(f"{URL}/{decision}")) == (404, "decision_not_found")
            assert await again(decision) == taken, decision
        assert await again("d0") != taken, "all of it is forgotten"
        assert (await service.observe("d0"))["duplicate"] is False
        await service.observe("d1002")
        await work(40, 70)
        assert await again("d1000") != taken
        assert (await service.observe("d1000", {"reward": 0.25}))["duplicate"] is False
        if has_archive:
            assert await service.replayed() == await service.ledger()


@pytest.mark.parametrize("store", STORAGES)
async def test_without_an_archive_what_was_trimmed_is_gone_and_its_ids_are_not(store: str, tmp_path: Path) -> None:
    async with pair(store, tmp_path, archive="none") as (service, _, clock, _):
        first = await first_kept(service)
        assert first > 40
        archived = (410, "decision_archived")
        offset = answered(await service.get("/v1/bandits/b/digest"))["offset"]
        assert failed(await service.get("/v1/bandits/b/log")) == (410, "log_trimmed")
        assert failed(await service.get(f"{URL}/d0")) == archived
        assert failed(await service.put(f"{URL}/d0/outcome", {"reward": 0.0})) == archived
        assert failed(await service.patch(f"{URL}/d0/outcome", {"reward": 1.0})) == archived
        assert failed(await service.post(URL, {"id": "d0", "prompt": {"vector": [0.5, 0.0, -1.0]}})) == archived
        assert failed(await service.post("/v1/bandits/b/import", ROWS)) == archived
        assert failed(await service.get(f"{URL}/none")) == (404, "decision_not_found")
        assert answered(await service.get("/v1/bandits/b/digest"))["offset"] == offset, "nothing was accepted"
        # after a month an id of a decision is unknown, and that of a row is not
        clock.forward(31 * DAY)
        await work(service, clock, 100, 120)
        assert failed(await service.get(f"{URL}/d0")) == (404, "decision_not_found")
        assert failed(await service.put(f"{URL}/d0/outcome", {"reward": 0.0})) == (404, "decision_not_found")
        assert failed(await service.post("/v1/bandits/b/import", ROWS)) == archived
        assert (await decide(service, 0))["offset"] > offset


async def test_a_bandit_that_leaves_memory_before_a_snapshot_is_due_is_trimmed_when_it_comes_back(tmp_path: Path) -> None:
    clock = Clock()
    given = kept(tmp_path, snapshot_every=30, store=f"sqlite:///{tmp_path}/b.db")
    floors = []
    for part in range(8):
        async with opened(clock=clock, **given) as service:
            answered(await service.put("/v1/bandits/b", BODY))
            await service.settle()
            floors.append(await first_kept(service))
            await work(service, clock, 5 * part, 5 * part + 5)  # and a snapshot, as it leaves memory
            await service.settle()
            digest = answered(await service.get("/v1/bandits/b/digest"))
    assert floors[:3] == [1, 1, 1], "few entries wait for more"
    assert floors[-1] > 30
    assert len(list((tmp_path / "archive").rglob("*.gz"))) == len(set(floors)) - 1
    (line,) = await digests(Settings(**given), "b", quiet=True)
    assert (line.offset, line.sha256) == (digest["offset"], digest["sha256"])


async def evaluated(service: Service) -> Json:
    """An evaluation under one id, once it is done or has failed."""
    assert (await service.post(EVALUATIONS, {"id": "e"})).status_code == 202
    async with asyncio.timeout(60):
        while (found := answered(await service.get(f"{EVALUATIONS}/e")))["state"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    return found


async def test_an_archive_that_is_gone_stops_the_trimming_and_nothing_else(tmp_path: Path) -> None:
    async with pair("sqlite", tmp_path, archive=str(tmp_path / "mount")) as (service, twin, clock, _):
        assert await first_kept(service) == 1
        assert answered(await service.get("/v1/bandits/b/digest")) == answered(await twin.get("/v1/bandits/b/digest"))
        (notice,) = answered(await service.get("/readyz"))["notices"]
        assert f"the archive {tmp_path}/mount cannot be written" in notice
        assert not (tmp_path / "mount").exists()
        (tmp_path / "mount").mkdir()
        await work(service, clock, 40, 50)
        assert answered(await service.get("/readyz"))["notices"] == []
        assert await first_kept(service) > 40
        shutil.move(tmp_path / "mount", tmp_path / "away")
        assert failed(await service.get("/v1/bandits/b/log")) == (503, "storage_unavailable")
        assert failed(await service.get(f"{URL}/d0")) == (503, "storage_unavailable")
        (notice,) = answered(await service.get("/readyz"))["notices"]
        assert f"the archive {tmp_path}/mount cannot be read" in notice
        lacking = await evaluated(service)
        assert lacking["state"] == "failed"
        assert (
            f"the archive {tmp_path}/mount cannot be read: it is not there: create the folder, or mount it" in lacking["failure"]
        )
        assert lacking["failure"].endswith("; to ask again under this id, delete the evaluation first")
        (tmp_path / "mount").mkdir()  # as an empty mount point is there where nothing is mounted
        floor = await first_kept(service)
        await work(service, clock, 50, 60)
        assert await first_kept(service) == floor
        notice, _ = answered(await service.get("/readyz"))["notices"]  # the other one is that of before
        assert f"{tmp_path}/mount/b/" in notice
        assert "is not there: mount the archive, or create the folder if you removed it" in notice
        (tmp_path / "mount").rmdir()
        shutil.move(tmp_path / "away", tmp_path / "mount")
        assert (await evaluated(service))["failure"] == lacking["failure"], "the same request is the same evaluation"
        assert (await service.delete(f"{EVALUATIONS}/e")).status_code == 204
        assert (await evaluated(service))["state"] == "done"
        assert answered(await service.get(f"{URL}/d0"))["id"] == "d0"
        await work(service, clock, 60, 70)
        assert answered(await service.get("/readyz"))["notices"] == []
        assert await first_kept(service) > floor
        segment = min((tmp_path / "mount").rglob("*.gz"))
        content = segment.read_bytes()
        segment.write_bytes(b"damaged" + content)
        (await archive_of(service))._unpacked.clear()
        assert failed(await service.get(f"{URL}/d0")) == (503, "storage_unavailable")
        (notice,) = answered(await service.get("/readyz"))["notices"]
        assert f"{segment}" in notice
        segment.write_bytes(content)
        assert answered(await service.get(f"{URL}/d0"))["id"] == "d0"
        assert answered(await service.get("/readyz"))["notices"] == []


async def test_a_life_in_small_segments_is_archived_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SEGMENT_ENTRIES", 7)
    async with pair("memory", tmp_path) as (service, twin, _, _):
        paths = sorted((tmp_path / "archive").rglob("*.gz"))
        assert len(paths) > 5
        archived = b"".join(gzip.decompress(path.read_bytes()) for path in paths)
        assert (await twin.get("/v1/bandits/b/log")).content.startswith(archived)
        assert archived.count(b"\n") == await first_kept(service) - 1


def test_events_are_trimmed_without_an_archive_only_where_that_is_said() -> None:
    with pytest.raises(InvalidSettings, match=r"NEXTARM_ARCHIVE: .*NEXTARM_KEEP_EVENTS"):
        Settings.load(keep_events=10)
    assert Settings.load(keep_events=10, archive="none").open_archive() is None
    assert Settings.load(redis_keep_events=10, store="redis://localhost").kept_events == 10
    assert Settings.load(redis_keep_events=10).kept_events == 0
