"""A batch that the store refuses: one answer, counted, and a line of the log instead of one per item."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from service.api import error_mapping as errors
from service.storage.base import Durability, Log, LogDamagedError, Receipt, StorageUnavailableError
from service.storage.memory import MemoryStorage
from service.storage.throttling import ThrottledLogger
from tests.service.api.routes.test_metrics import of, scraped
from tests.service.http_client import Json, Service, answered, failed

ITEMS = 512


@pytest.fixture(autouse=True)
def _fresh_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "throttled", ThrottledLogger(errors.logger))


def refuse(monkeypatch: pytest.MonkeyPatch, *, accepted_first: int = 0, failure: Exception | None = None) -> None:
    """The store takes so many entries yet, and then no more."""
    append_all, left = MemoryStorage.append_all, accepted_first

    async def full(self: MemoryStorage, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        nonlocal left
        if left < len(entries):
            raise failure or StorageUnavailableError("the disk is full")
        left -= len(entries)
        return await append_all(self, log, entries, durability)

    monkeypatch.setattr(MemoryStorage, "append_all", full)


def decisions(number: int = ITEMS) -> Json:
    return {"decisions": [{"id": f"d{i}"} for i in range(number)]}


def outcomes(number: int = ITEMS) -> Json:
    return {"outcomes": [{"decision": f"d{i}", "reward": 0.25} for i in range(number)]}


async def test_many_requests_that_the_store_refuses_are_one_line_of_level_error_and_an_access_line_each(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await service.create()
    await service.decide(body={"id": "d"})
    await asyncio.sleep(0)  # access lines are written at the end of an iteration of the loop
    capsys.readouterr()
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        refuse(patch)
        for i in range(20):
            assert failed(await service.post("/v1/bandits/b/decisions", {"id": f"e{i}"})) == (503, "storage_unavailable")
            refused = await service.put("/v1/bandits/b/decisions/d/outcome", {"reward": 0.5})
            assert failed(refused) == (503, "storage_unavailable")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == ["the store refused"]
    await asyncio.sleep(0)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["message"], line["status"], line["level"]) for line in lines] == [("request", 503, "INFO")] * 40


async def test_a_batch_that_the_store_refuses_as_a_whole_is_a_503_and_one_line_of_the_log(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await service.create()
    with monkeypatch.context() as patch:
        refuse(patch)
        refused = await service.post("/v1/bandits/b/decisions/batch", decisions())
        assert failed(refused) == (503, "storage_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
    assert [record.message for record in caplog.records].count("the store refused") == 1
    assert of(await scraped(service), "nextarm_problems_total", code="storage_unavailable") == ITEMS
    assert await service.offset() == 1
    accepted = answered(await service.post("/v1/bandits/b/decisions/batch", decisions()))["decisions"]
    assert [one["id"] for one in accepted] == [f"d{i}" for i in range(ITEMS)]
    with monkeypatch.context() as patch:
        refuse(patch)
        assert failed(await service.post("/v1/bandits/b/outcomes/batch", outcomes())) == (503, "storage_unavailable")
    assert len(answered(await service.post("/v1/bandits/b/outcomes/batch", outcomes()))["outcomes"]) == ITEMS


async def test_items_that_the_store_refuses_are_counted_where_others_were_accepted(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await service.create()
    with monkeypatch.context() as patch:
        refuse(patch, accepted_first=64)
        answer = await service.post("/v1/bandits/b/decisions/batch", decisions(100))
    assert answer.status_code == 200
    items = answered(answer)["decisions"]
    refused = [item for item in items if item.get("code") == "storage_unavailable"]
    assert 0 < len(refused) < len(items)
    assert of(await scraped(service), "nextarm_problems_total", code="storage_unavailable") == len(refused)
    assert [record.message for record in caplog.records].count("the store refused") == 1


async def test_a_bad_item_does_not_hide_that_the_store_refused_all_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.create()
    body: dict[str, Any] = decisions(8)
    body["decisions"][3] = {"nonsense": 1}
    with monkeypatch.context() as patch:
        refuse(patch, failure=LogDamagedError("log 'b'", "another program has removed it"))
        assert failed(await service.post("/v1/bandits/b/decisions/batch", body)) == (503, "storage_unavailable")
    counts = await scraped(service)
    assert of(counts, "nextarm_problems_total", code="storage_unavailable") == 7
    assert of(counts, "nextarm_problems_total", code="invalid_request") == 1
    assert failed(await service.post("/v1/bandits/b/decisions/batch", body)) == (503, "storage_unavailable"), "it stops"


async def test_items_that_are_refused_for_themselves_are_counted_by_their_codes(service: Service) -> None:
    await service.create()
    answer = await service.post("/v1/bandits/b/outcomes/batch", outcomes(3))
    assert [item["code"] for item in answered(answer)["outcomes"]] == ["decision_not_found"] * 3
    assert of(await scraped(service), "nextarm_problems_total", code="decision_not_found") == 3
