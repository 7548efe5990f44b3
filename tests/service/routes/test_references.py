"""References: what outputs are compared with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.calls import GREEDY, Json, Service, answered, failed, paths

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
