"""References: what outputs are compared with."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.service import redis_server
from tests.service.http_client import GREEDY, Json, Service, answered, failed, opened, paths
from tests.service.storages import STORAGES
from tools import processes

FRECHET: Json = {"policy": {"kind": "fd-ucb"}, "arms": [{"name": "a"}, {"name": "b"}], "output": {"dim": 2}, "seed": 7}
SAMPLES = [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}, {"vector": [0.5, -0.5]}]
MOMENTS: Json = {"mean": [0.25, 0.5], "covariance": [[1.0, 0.25], [0.25, 2.0]], "count": 100}


async def test_without_its_reference_the_policy_cannot_decide(service: Service) -> None:
    await service.create(body=FRECHET)
    assert failed(await service.post("/v1/bandits/b/decisions", {})) == (409, "reference_missing")
    assert failed(await service.post("/v1/bandits/b/decisions", {"dry_run": True})) == (409, "reference_missing")
    assert await service.offset() == 1


async def test_samples_are_appended_until_the_first_decision(service: Service) -> None:
    await service.create(body=FRECHET)
    for total, offset in ((3, 2), (6, 3)):
        response = await service.post("/v1/bandits/b/references", {"outputs": SAMPLES})
        assert (response.status_code, answered(response)) == (201, {"count": total, "offset": offset})
    assert (await service.bandit())["references"] == 6
    await service.decide()
    late = await service.post("/v1/bandits/b/references", {"outputs": SAMPLES})
    assert failed(late) == (409, "reference_frozen")
    assert await service.offset() == 4


async def test_moments_are_set_at_once(service: Service) -> None:
    await service.create(body=FRECHET)
    response = await service.post("/v1/bandits/b/references", {"moments": MOMENTS})
    assert (response.status_code, answered(response)) == (201, {"count": 100, "offset": 2})
    assert (await service.decide())["arm"] == "a"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "body"),
        ({"outputs": SAMPLES, "moments": MOMENTS}, "body"),
        ({"outputs": []}, "outputs"),
        ({"outputs": [{"vector": [1.0, 2.0]}] * 1025}, "outputs"),
        ({"outputs": [*SAMPLES, {"vector": [1.0]}]}, "outputs.3.vector"),
        ({"outputs": ["a text"]}, "outputs.0"),
        ({"pairs": [{"prompt": "hello", "output": {"vector": [1.0, 2.0]}}]}, "pairs"),
        ({"pairs": [{"prompt": "hello"}]}, "pairs.0.output"),
        ({"moments": {**MOMENTS, "mean": [0.25]}}, "moments"),
        ({"moments": {**MOMENTS, "covariance": [[1.0, 0.25], [0.25]]}}, "moments"),
        ({"moments": {**MOMENTS, "mean": [0.25], "covariance": [[1.0]]}}, "moments.mean"),
        ({"moments": {**MOMENTS, "covariance": [[1.0, 0.25], [0.75, 2.0]]}}, "moments"),
        ({"moments": {**MOMENTS, "covariance": [[1.0, 2.0], [2.0, 1.0]]}}, "moments"),
        ({"moments": {**MOMENTS, "count": 1}}, "moments.count"),
        ({"moments": {**MOMENTS, "count": 2.5}}, "moments.count"),
        ({"moments": {**MOMENTS, "mean": [0.25, True]}}, "moments.mean.1"),
    ],
)
async def test_a_reference_that_cannot_be_taken_names_its_field(service: Service, body: dict[str, Any], path: str) -> None:
    await service.create(body=FRECHET)
    response = await service.post("/v1/bandits/b/references", body)
    assert failed(response) == (422, "invalid_request")
    assert paths(response)[0].startswith(path)
    assert await service.offset() == 1


async def test_a_policy_that_compares_nothing_takes_no_reference(service: Service) -> None:
    await service.create(body={**GREEDY, "output": {"dim": 2}})
    assert failed(await service.post("/v1/bandits/b/references", {"outputs": SAMPLES})) == (422, "invalid_request")
    assert await service.offset() == 1


# -- an id of the client's -----------------------------------------------------------------------------------------------------


async def post(service: Service, body: Json) -> tuple[int, Json]:
    response = await service.post("/v1/bandits/b/references", body)
    return response.status_code, answered(response)


@pytest.mark.parametrize("store", STORAGES)
async def test_the_same_reference_again_is_learned_once_on_every_storage(store: str, tmp_path: Path) -> None:
    if store == "redis" and processes.REDIS_BINARY is None:
        pytest.skip("there is no redis-server on this machine (apt-get install redis-server)")
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/bandits.db"}
    prefix: Json = {"redis_prefix": f"t{uuid4().hex[:12]}"} if store == "redis" else {}
    url = urls.get(store) or redis_server.shared().url
    async with opened(store=url, **prefix) as service:
        await service.create(body=FRECHET)
        first = await post(service, {"id": "r-1", "outputs": SAMPLES})
        assert first == (201, {"count": 3, "offset": 2})
        assert await post(service, {"id": "r-2", "outputs": SAMPLES}) == (201, {"count": 6, "offset": 3})
        assert await post(service, {"id": "r-1", "outputs": SAMPLES}) == (200, first[1]), (
            "the first receipt, not the present count"
        )
        await service.decide()
        assert await post(service, {"id": "r-1", "outputs": SAMPLES}) == (200, first[1]), "although the reference is frozen"
        other = await service.post("/v1/bandits/b/references", {"id": "r-1", "outputs": SAMPLES[:2]})
        assert failed(other) == (409, "reference_conflict")
        late = await service.post("/v1/bandits/b/references", {"id": "r-3", "outputs": SAMPLES})
        assert failed(late) == (409, "reference_frozen")
        assert await service.offset() == 4
        digest = answered(await service.get("/v1/bandits/b/digest"))
    if store == "memory":
        return
    async with opened(store=url, **prefix) as service:
        assert await post(service, {"id": "r-1", "outputs": SAMPLES}) == (200, first[1]), "after a restart"
        assert answered(await service.get("/v1/bandits/b/digest")) == digest


async def test_sixteen_clients_with_one_id_post_one_reference(service: Service) -> None:
    await service.create(body=FRECHET)
    answers = await asyncio.gather(*(post(service, {"id": "r", "outputs": SAMPLES}) for _ in range(16)))
    assert sorted(status for status, _ in answers) == [200] * 15 + [201]
    assert {tuple(receipt.items()) for _, receipt in answers} == {(("count", 3), ("offset", 2))}
    assert (await service.bandit())["references"] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": SAMPLES[::-1]},
        {"outputs": [*SAMPLES, SAMPLES[0]]},
        {"moments": MOMENTS},
        {"outputs": [{"probabilities": [1.0, 0.0]}]},
    ],
)
async def test_other_reference_material_under_the_same_id_is_a_conflict(service: Service, other: Json) -> None:
    await service.create(body=FRECHET)
    await post(service, {"id": "r", "outputs": SAMPLES})
    assert failed(await service.post("/v1/bandits/b/references", {"id": "r", **other})) == (409, "reference_conflict")
    assert await service.offset() == 2


async def test_moments_with_an_id_are_set_once(service: Service) -> None:
    await service.create(body=FRECHET)
    for status in (201, 200):
        assert await post(service, {"id": "r", "moments": MOMENTS}) == (status, {"count": 100, "offset": 2})


@pytest.mark.parametrize("reference", ["decided", "closed", "arm", "reference"])
async def test_ids_of_references_and_decisions_do_not_meet_in_the_log(service: Service, reference: str) -> None:
    await service.create(body=FRECHET)
    assert (await post(service, {"id": reference, "outputs": SAMPLES}))[0] == 201
    for decision in {"reference", reference}:
        assert (await service.decide(body={"id": decision}))["id"] == decision
        assert not (await service.observe(decision, {"output": SAMPLES}))["duplicate"]


async def test_a_reference_without_an_id_is_appended_each_time_and_logged_as_before(service: Service) -> None:
    await service.create(body=FRECHET)
    for count in (3, 6):
        assert (await post(service, {"outputs": SAMPLES}))[1]["count"] == count
    assert not {"id", "body"} & {*(await service.log())[1]}


@redis_server.needs_redis
async def test_a_reference_is_still_known_when_its_entry_was_trimmed() -> None:
    """Without an archive the ledger in the snapshot knows the id."""
    settings: Json = {"store": redis_server.shared().url, "redis_prefix": f"t{uuid4().hex[:12]}"}
    async with opened(**settings, redis_keep_events=1, snapshot_every=4) as service:
        await service.create(body=FRECHET | {"amend_until_s": 0})
        await post(service, {"id": "r", "outputs": SAMPLES})
        deadline = time.monotonic() + 60.0
        while (await service.get("/v1/bandits/b/log?after=1&limit=1")).status_code != 410:
            assert time.monotonic() < deadline
            await service.observe((await service.decide())["id"], {"output": SAMPLES})
        assert await post(service, {"id": "r", "outputs": SAMPLES}) == (200, {"count": 3, "offset": 2})
        assert failed(await service.post("/v1/bandits/b/references", {"id": "r", "moments": MOMENTS})) == (
            409,
            "reference_conflict",
        )


async def test_a_ledger_that_an_older_version_packed_learns_no_reference_twice(service: Service) -> None:
    await service.create(body=FRECHET)
    await post(service, {"id": "r", "outputs": SAMPLES})
    services = service.client._transport.app.state.services  # type: ignore[attr-defined]
    learner = await services.repository.get("", "b")
    learner.ledger.references.clear()
    assert await post(service, {"id": "r", "outputs": SAMPLES}) == (200, {"count": 3, "offset": 2})
    assert failed(await service.post("/v1/bandits/b/references", {"id": "r", "outputs": SAMPLES[:2]})) == (
        409,
        "reference_conflict",
    )
