"""Is the process alive, can it work; and what is no resource at all."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from service.api.routes import bandits
from service.engine import events
from service.engine.events import Cancelled
from service.engine.repository import BanditRepository
from service.storage.base import Durability, Log, StorageUnavailableError
from service.storage.memory import MemoryStorage
from service.storage.sqlite.store import SqliteStorage
from tests.service.http_client import GREEDY, Clock, Json, Service, answered, failed, opened


async def test_a_process_that_answers_is_alive_and_ready(service: Service) -> None:
    assert answered(await service.get("/healthz")) == {"status": "ok"}
    ready = await service.get("/readyz")
    well = {"status": "ready", "reasons": [], "damaged": [], "notices": [], "lag": 0}
    assert (ready.status_code, answered(ready)) == (200, well)


async def test_probes_need_no_key(tmp_path: Path) -> None:
    async with opened(api_keys="secret-key") as service:
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
            assert (await service.get(path)).status_code == 200


READERS = {"nobody": "", "operator": "root", "blue": "sky", "red": "rose"}


async def readiness(service: Service, key: str, **headers: str) -> Json:
    """What `readyz` tells a key; "" sends none."""
    sent = {"authorization": f"Bearer {key}"} if key else {}
    return answered(await service.ask("GET", "/readyz", headers=sent | headers))


async def test_readiness_names_bandits_and_files_only_to_a_key_that_may_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "secret-folder" / "bandits.db"
    keys: Json = {"api_keys": "reader:root,admin@blue:sky,reader@red:rose,admin:boss"}
    async with opened(store=f"sqlite:///{store}", **keys) as service:
        for key, name in (("boss", "plain"), ("sky", "cloud"), ("sky", "storm")):
            created = await service.ask("PUT", f"/v1/bandits/{name}", json=GREEDY, headers={"authorization": f"Bearer {key}"})
            assert created.status_code == 201
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        logs = "SELECT number FROM logs WHERE name IN ('plain', 'blue/cloud')"
        database.execute(f"UPDATE events SET payload = x'00' WHERE log IN ({logs})")

    async def fail(storage: SqliteStorage) -> None:
        raise StorageUnavailableError(f"{store}: the disk is full")

    async with opened(store=f"sqlite:///{store}", **keys) as service:
        for key, name in (("boss", "plain"), ("sky", "cloud"), ("sky", "storm")):  # waits until it is loaded
            await service.ask("GET", f"/v1/bandits/{name}", headers={"authorization": f"Bearer {key}"})
        monkeypatch.setattr(SqliteStorage, "ping", fail)
        monkeypatch.setattr(SqliteStorage, "notices", lambda storage: [f"{store} is odd"])
        answers = {who: await readiness(service, key) for who, key in READERS.items()}
        as_blue = await readiness(service, "boss", **{"x-nextarm-tenant": "blue"})
        assert (await service.ask("GET", "/readyz", headers={"authorization": "Bearer guess"})).status_code == 401
    assert [line.split(":")[0] for line in answers["operator"]["damaged"]] == ["blue/cloud", "plain"]
    assert answers["operator"]["reasons"] == [f"storage: {store}: the disk is full"]
    assert answers["operator"]["notices"] == [f"{store} is odd"]
    assert answers["blue"] == as_blue
    assert answers["blue"]["damaged"] == ["cloud", "1 bandit, for a key that may see it"]
    assert answers["red"]["damaged"] == answers["nobody"]["damaged"] == ["2 bandits, for a key that may see them"]
    for who in ("blue", "red", "nobody"):
        assert answers[who]["reasons"] == ["storage: it cannot be written or read now"]
        assert answers[who]["notices"] == ["1 about the store and memory, for a key without a tenant"]
        text = str(answers[who])
        assert not [word for word in ("plain", "storm", "secret-folder", "blue", "disk") if word in text], who
        assert who == "blue" or "cloud" not in text


async def test_a_bandit_that_a_newer_version_wrote_into_has_a_reason_of_its_own_and_is_not_listed_as_damaged(
    tmp_path: Path,
) -> None:
    """It leaves the service ready: the other bandits are served."""
    keys: Json = {"store": f"sqlite:///{tmp_path}/bandits.db", "api_keys": "reader:root,admin@blue:sky,reader@red:rose"}
    async with opened(**keys) as service:
        for name in ("cloud", "storm"):
            created = await service.ask("PUT", f"/v1/bandits/{name}", json=GREEDY, headers={"authorization": "Bearer sky"})
            assert created.status_code == 201
        hosting = service.client._transport.app.state.services.repository  # type: ignore[attr-defined]
        log = (await hosting.get("blue", "cloud")).log
        event = events.encode(Cancelled(at=Clock()(), id="d1")).replace(b'"v":1', b'"v":2')
        await hosting.storage.append(log, "newer", event, Durability.POWER)
    async with opened(**keys) as service:
        for name, status in (("cloud", 503), ("storm", 200)):  # waits until it is loaded
            asked = await service.ask("GET", f"/v1/bandits/{name}", headers={"authorization": "Bearer sky"})
            assert asked.status_code == status
        answers = {who: await readiness(service, key) for who, key in READERS.items()}
        metrics = await service.ask("GET", "/metrics", headers={"authorization": "Bearer root"})
    assert {who: answer["reasons"] for who, answer in answers.items()} == {
        "operator": ["written by a newer version: blue/cloud"],
        "blue": ["written by a newer version: cloud"],
        "red": ["written by a newer version: 1 bandit, for a key that may see it"],
        "nobody": ["written by a newer version: 1 bandit, for a key that may see it"],
    }
    for answer in answers.values():
        assert (answer["status"], answer["damaged"]) == ("ready", [])
    assert "nextarm_bandits_damaged 1.0" in metrics.text, "the alert on bandits that answer nothing still fires"


async def test_bandits_that_are_still_loaded_are_counted_for_a_caller_without_a_key(tmp_path: Path) -> None:
    async with opened(api_keys="admin:root") as service:
        hosting = service.client._transport.app.state.services.repository  # type: ignore[attr-defined]
        hosting._unloaded = {"a": Log("1", "a"), "blue/b": Log("2", "blue/b")}
        hosting._wanted = dict.fromkeys(hosting._unloaded.values())
        assert (await readiness(service, ""))["loading"] == ["2 bandits, for a key that may see them"]
        assert (await readiness(service, "root"))["loading"] == ["a", "blue/b"]


async def test_a_store_that_cannot_be_written_makes_it_unready(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **named: object) -> None:
        raise StorageUnavailableError("the disk is full")

    await service.create()
    with monkeypatch.context() as patch:
        for method in ("ping", "append", "create", "find"):
            patch.setattr(MemoryStorage, method, fail)
        unready = await service.get("/readyz")
        assert (unready.status_code, answered(unready)["reasons"]) == (503, ["storage: the disk is full"])
        for response in (
            await service.post("/v1/bandits/b/decisions", {}),
            await service.post("/v1/bandits/b/decisions", {"id": "mine"}),
            await service.put("/v1/bandits/b/decisions/mine/outcome", {"reward": 0.5}),
            await service.put("/v1/bandits/c", GREEDY),
            await service.put("/v1/bandits/b/arms/new", {}),
        ):
            assert failed(response) == (503, "storage_unavailable")
        assert (await service.get("/healthz")).status_code == 200
    assert (await service.get("/readyz")).status_code == 200
    assert await service.offset() == 1
    await service.decide()


async def test_bandits_that_are_still_loaded_keep_no_request_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.engine.learner import Learner

    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(store=store) as service:
        await service.create()
    go_on = asyncio.Event()
    load = Learner.load

    async def slowly(storage: MemoryStorage, log: Log, **options: object) -> Learner:
        await go_on.wait()
        return await load(storage, log, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "load", staticmethod(slowly))
    monkeypatch.setattr(bandits, "LOADING_WAIT_S", 0.01)
    async with opened(store=store) as service:
        ready = answered(await service.get("/readyz"))
        assert (ready["status"], ready["reasons"], ready["loading"]) == ("ready", [], ["b"])
        waiting = asyncio.create_task(service.decide())
        (item,) = answered(await service.get("/v1/bandits"))["bandits"]
        assert (item["name"], item["decisions"], item["as_of"], item["fault"]) == ("b", 0, 1, None), "as it was left"
        with monkeypatch.context() as patch:

            async def nothing(*_: object) -> None: ...

            patch.setattr(BanditRepository, "summary", nothing)
            (item,) = answered(await service.get("/v1/bandits"))["bandits"]
            assert (item["name"], item["decisions"]) == ("b", None)
            assert "loaded" in item["fault"]
        assert not waiting.done()
        go_on.set()
        assert (await waiting)["arm"] == "small"
        assert "loading" not in answered(await service.get("/readyz"))


# -- what is no resource -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1", "/v2/bandits", "/v1/bandits/b/nothing"])
async def test_what_is_not_there_is_a_problem_document(service: Service, path: str) -> None:
    await service.create()
    assert failed(await service.get(path)) == (404, "not_found")


@pytest.mark.parametrize("path", ["/v1/", "/v1/bandits/", "/v1/bandits/b/", "/docs/", "/..%2f", "//v1/bandits"])
async def test_a_path_with_an_empty_segment_says_how_it_is_sent(service: Service, path: str) -> None:
    await service.create()
    response = await service.ask("GET", f"http://localhost{path}")
    assert failed(response) == (400, "malformed_path")
    assert "send it without" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/bandits", "GET, HEAD"),
        ("/v1/bandits/b", "DELETE, GET, HEAD, PATCH, PUT"),
        ("/v1/bandits/b/arms/small", "DELETE, PUT"),
        ("/v1/bandits/b/decisions", "GET, HEAD, POST"),
        ("/v1/bandits/b/decisions/x", "DELETE, GET, HEAD"),
        ("/v1/bandits/b/decisions/x/outcome", "PATCH, PUT"),
        ("/healthz", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_there_is_answered_with_those_that_are(service: Service, path: str, methods: str) -> None:
    await service.create()
    for method in {"PATCH", "OPTIONS", "TRACE"} - {*methods.split(", ")}:
        response = await service.ask(method, path)
        assert response.headers["allow"] == methods
        assert failed(response) == (405, "method_not_allowed")
    assert await service.offset() == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/bandits", "/v1/bandits/b", "/nothing"])
async def test_head_is_answered_as_get_is_without_a_body(service: Service, path: str) -> None:
    await service.create()
    head, get = await service.ask("HEAD", path), await service.get(path)
    assert head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.content == b""


async def test_head_of_what_takes_no_get_is_refused(service: Service) -> None:
    await service.create()
    response = await service.ask("HEAD", "/v1/bandits/b/import")
    assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"")
    assert await service.offset() == 1
