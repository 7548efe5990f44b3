"""More requests than there is room for are refused at once, and those that were accepted are answered."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.drivers import HeldDecisions
from tests.service.http_client import PROMPT, VECTOR, answered, failed, opened


async def test_what_there_is_no_room_for_is_refused_at_once_and_the_rest_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(max_concurrent=3) as service:
        await service.create(body=VECTOR)
        held = HeldDecisions(monkeypatch)
        path = "/v1/bandits/b/decisions"
        accepted = [asyncio.create_task(service.post(path, {**PROMPT, "id": f"d{i}"})) for i in range(3)]
        for _ in accepted:
            await held.arrived.acquire()
        refused = await service.post(path, {**PROMPT, "id": "late"})
        assert failed(refused) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert (await service.get(probe)).status_code == 200
        held.go_on.set()
        assert [(await task).status_code for task in accepted] == [201, 201, 201]
        assert (await service.post(path, {**PROMPT, "id": "late"})).status_code == 201, "there is room again"
        assert answered(await service.get("/v1/bandits/b"))["decisions"] == 4
