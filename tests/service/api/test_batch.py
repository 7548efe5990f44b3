"""Batches: what they answer is bounded, and what was answered is not held until the last item is."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

from service.api.batch import Answer, _all
from service.api.dependencies import BatchRoom
from service.api.responses import BEST_SHOWN, FULL_TABLE
from service.engine.commit import Recorded
from tests.service.http_client import GREEDY, VECTOR, Json, Service, answered, failed, opened

MANY = [{"name": f"arm {i}", "price": 0.1} for i in range(1000)]


NONE: Any = None
"""Services are asked only where something was refused."""


class Event:
    """Stands for an event, which holds a number per arm."""


async def test_an_event_is_let_go_as_soon_as_its_answer_is_written() -> None:
    futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(3)]
    alive: list[weakref.ref[Event]] = []

    async def begin(item: int) -> asyncio.Future[Any]:
        return futures.pop(0)

    def tell(kept: Recorded) -> Answer:
        return {"offset": kept.offset}

    held = list(futures)
    batch = asyncio.create_task(_all(NONE, range(3), begin, tell))
    for offset in range(3):
        event = Event()
        alive.append(weakref.ref(event))
        while futures:
            await asyncio.sleep(0)
        held.pop(0).set_result(Recorded(event, offset, False))
        del event
        if offset < 2:
            for _ in range(3):
                await asyncio.sleep(0)
            assert alive[-1]() is None
    assert await batch == [{"offset": 0}, {"offset": 1}, {"offset": 2}]


async def test_a_cancelled_batch_cancels_what_waits() -> None:
    waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def begin(item: int) -> asyncio.Future[Any]:
        return waiting

    batch = asyncio.create_task(_all(NONE, [0], begin, lambda kept: {}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert waiting.cancelled()


async def test_a_full_batch_over_a_thousand_arms_answers_the_chosen_and_the_best_few(service: Service) -> None:
    await service.create(body={**VECTOR, "arms": MANY, "policy": {"kind": "pak-ucb", "random_features": 2}})
    bodies = [{"prompt": {"vector": [0.5, -0.5, i / 512]}} for i in range(256)]
    response = await service.post("/v1/bandits/b/decisions/batch", {"decisions": bodies})
    assert len(response.content) < 256 * 2_500, "60 kB each without a bound"
    for decision in answered(response)["decisions"]:
        assert decision["arm"] in decision["weights"]
        assert decision["weights"].keys() == decision["scores"].keys()
        assert BEST_SHOWN <= len(decision["weights"]) <= BEST_SHOWN + 1
        assert decision["propensity"] == decision["weights"][decision["arm"]]


async def test_every_arm_is_shown_up_to_sixty_four_and_where_one_decision_is_looked_at(service: Service) -> None:
    for arms, shown in ((FULL_TABLE, FULL_TABLE), (FULL_TABLE + 1, BEST_SHOWN)):
        name = f"b{arms}"
        await service.create(name, {**GREEDY, "arms": MANY[:arms]})
        decision = await service.decide(name)
        assert len(decision["weights"]) == len(decision["scores"]) == shown
        answer = answered(await service.get(f"/v1/bandits/{name}/decisions/{decision['id']}"))
        assert len(answer["weights"]) == len(answer["scores"]) == arms
        assert answer["weights"].items() >= decision["weights"].items()
        preview = await service.decide(name, {"dry_run": True})
        assert len(preview["weights"]) == arms
        batch = answered(await service.post(f"/v1/bandits/{name}/decisions/batch", {"decisions": [{"dry_run": True}]}))
        assert len(batch["decisions"][0]["weights"]) == shown


async def test_of_many_arms_those_are_shown_that_were_nearly_chosen(service: Service) -> None:
    """Rewards rise with the number of the arm."""
    await service.create(body={**GREEDY, "policy": {"kind": "greedy", "initial_pulls": 1}, "arms": MANY[:80]})
    for i in range(80):
        decision = await service.decide(body={"arms": [f"arm {i}"]})
        await service.observe(decision["id"], {"reward": i / 80})
    shown: Json = (await service.decide())["scores"]
    assert list(shown) == [f"arm {i}" for i in range(80 - BEST_SHOWN, 80)]


async def test_batches_that_would_fill_the_memory_together_are_refused_until_there_is_room_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, arrived = asyncio.Event(), asyncio.Event()

    async def waits(*args: Any) -> list[Answer]:
        arrived.set()
        await gate.wait()
        return await _all(*args)

    monkeypatch.setattr(BatchRoom.__init__, "__defaults__", (5,))
    monkeypatch.setattr("service.api.batch._all", waits)
    async with opened() as small:
        await small.create(body=GREEDY)
        path = "/v1/bandits/b/decisions/batch"
        first = asyncio.create_task(small.post(path, {"decisions": [{}, {}]}))  # of two arms: four rows
        await arrived.wait()
        refused = await small.post(path, {"decisions": [{}]})
        assert failed(refused) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        gate.set()
        assert len(answered(await first)["decisions"]) == 2
        assert len(answered(await small.post(path, {"decisions": [{}, {}]}))["decisions"]) == 2
