"""What each of the seven policies refuses over HTTP: the field is named, and nothing reaches the log."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.http_client import ARMS, PROMPT, Json, Service, failed, paths

OUTPUT: Json = {"dim": 2}
VECTORS: Json = {"prompt": {"dim": 3}}
SAMPLES = [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}, {"vector": [0.5, -0.5]}]
LOPSIDED: Json = {"mean": [0.0, 0.0], "covariance": [[1.0, 2.0], [2.0, 1.0]], "count": 9}


def body(kind: str, *, prompt: bool = False, output: Json | None = None, **settings: Any) -> Json:
    """A bandit of this kind."""
    asked: Json = {"policy": {"kind": kind, **settings}, "arms": ARMS, "seed": 7}
    return asked | (VECTORS if prompt else {}) | ({"output": output} if output else {})


FD = body("fd-ucb", output=OUTPUT)
IS = body("is-ucb", output={"embedder": "probabilities", "dim": 3})
RKE = body("mixture-ucb", output=OUTPUT, bandwidth=1.5)
KID = body("mixture-ucb", output=OUTPUT, objective="kid", bandwidth=1.5)
FID = body("mixture-greedy", output=OUTPUT, objective="fid")
QUALITY = body("mixture-greedy", output=OUTPUT, objective="rke+quality", quality="precision", bandwidth=1.5, neighbours=2)
PAK = body("pak-ucb", prompt=True, random_features=8)
DAK = body("dak-ucb", prompt=True, output=OUTPUT, random_features=8, output_bandwidth=1.5)
JKD = body("dak-ucb", prompt=True, output=OUTPUT, random_features=8, output_bandwidth=1.5, diversity="jkd")
WISE = body("promptwise", prompt=True)
REFERRED = (FD, KID, FID, QUALITY)
PAIR: Json = {"prompt": {"vector": [0.25, 0.5, 1.0]}, "output": {"vector": [1.0, 0.0]}}
GOOD: Json = {"output": {"vector": [0.5, 0.25]}}


async def prepared(service: Service, bandit: Json) -> Json:
    """The bandit with its reference, and one open decision of it."""
    await service.create(body=bandit)
    if bandit in REFERRED:
        assert (await service.post("/v1/bandits/b/references", {"outputs": SAMPLES})).status_code == 201
    return await service.decide(body=PROMPT if "prompt" in bandit else {})


@pytest.mark.parametrize(
    ("bandit", "outcome", "field"),
    [
        (IS, {"output": {"probabilities": [0.5, 0.25, 0.26]}}, "output"),
        (IS, {"output": {"probabilities": [1.25, -0.25, 0.0]}}, "output"),
        (IS, {"output": {"probabilities": [0.5, 0.5]}}, "output.probabilities"),
        (IS, {"output": []}, "output"),
        (IS, {"reward": 0.5}, "output"),
        (FD, {"reward": 0.5}, "output"),
        (FD, {"output": {"vector": [0.5, 0.25, 1.0]}}, "output.vector"),
        (FD, {"output": []}, "output"),
        (FD, {"output": [GOOD["output"], {"vector": [1e39, 0.0]}]}, "output"),
        (RKE, {}, "output"),
        (RKE, {"output": [GOOD["output"], {"vector": [0.5]}]}, "output.1.vector"),
        (RKE, {"output": []}, "output"),
        (KID, {"reward": 0.5}, "output"),
        (FID, {"output": {"vector": [0.5]}}, "output.vector"),
        (QUALITY, {"output": []}, "output"),
        (PAK, {}, "reward"),
        (PAK, {"reward": 0.5, "cost": -1.0}, "cost"),
        (DAK, {"reward": 0.5}, "output"),
        (DAK, GOOD, "reward"),
        (DAK, {"reward": 0.5, "output": {"vector": [0.5]}}, "output.vector"),
        (JKD, {"reward": 0.5, **GOOD}, "reference"),
        (WISE, {}, "reward"),
    ],
)
async def test_an_outcome_that_cannot_be_learned(service: Service, bandit: Json, outcome: Json, field: str) -> None:
    decision = await prepared(service, bandit)
    before = await service.offset()
    response = await service.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", outcome)
    assert failed(response) == (422, "invalid_request"), response.text
    assert paths(response)[0].startswith(field)
    assert await service.offset() == before
    assert (await service.get(f"/v1/bandits/b/decisions/{decision['id']}")).json()["state"] == "open"


@pytest.mark.parametrize("bandit", REFERRED)
async def test_a_reference_after_the_first_decision(service: Service, bandit: Json) -> None:
    await prepared(service, bandit)
    before = await service.offset()
    response = await service.post("/v1/bandits/b/references", {"outputs": SAMPLES})
    assert failed(response) == (409, "reference_frozen")
    assert await service.offset() == before


@pytest.mark.parametrize("bandit", REFERRED)
async def test_a_decision_before_the_reference(service: Service, bandit: Json) -> None:
    await service.create(body=bandit)
    assert failed(await service.post("/v1/bandits/b/decisions", {})) == (409, "reference_missing")
    assert await service.offset() == 1


@pytest.mark.parametrize("bandit", [FD, FID])
async def test_a_covariance_that_no_samples_have(service: Service, bandit: Json) -> None:
    await service.create(body=bandit)
    response = await service.post("/v1/bandits/b/references", {"moments": LOPSIDED})
    assert failed(response) == (422, "invalid_request")
    assert paths(response)[0].startswith("moments")
    assert "positive semidefinite" in response.text
    assert await service.offset() == 1


async def test_reference_pairs_of_the_wrong_length(service: Service) -> None:
    await service.create(body=JKD)
    for place, pair in (("prompt", {**PAIR, "prompt": {"vector": [1.0]}}), ("output", {**PAIR, "output": {"vector": [1.0]}})):
        response = await service.post("/v1/bandits/b/references", {"pairs": [PAIR, pair]})
        assert failed(response) == (422, "invalid_request")
        assert paths(response)[0].startswith(f"pairs.1.{place}")
    assert await service.offset() == 1


async def test_an_attempt_in_a_finished_episode(service: Service) -> None:
    decision = await prepared(service, WISE)
    await service.observe(decision["id"], {"reward": 1.0})
    before = await service.offset()
    response = await service.post("/v1/bandits/b/decisions", {"episode": decision["episode"]})
    assert failed(response) == (409, "episode_finished")
    assert await service.offset() == before


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-0.5", "1e999"])
async def test_a_price_is_a_finite_number_from_zero_on(service: Service, price: str) -> None:
    await service.create(body=WISE)
    sent = f'{{"prompt": {{"vector": [0.25, -0.5, 2.0]}}, "arms": [{{"name": "small", "price": {price}}}]}}'
    response = await service.ask(
        "POST", "/v1/bandits/b/decisions", content=sent.encode(), headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422)
    assert failed(response) in [(400, "malformed_json"), (422, "invalid_request")]
    assert await service.offset() == 1


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({**QUALITY["policy"], "quality": "recall"}, "policy.quality"),
        ({**KID["policy"], "bandwidth": None}, "policy.bandwidth"),
        ({**FID["policy"], "objective": "recall"}, "policy.objective"),
        ({**DAK["policy"], "diversity": "vendi"}, "policy.diversity"),
        ({**WISE["policy"], "cost_weight": -1.0}, "policy.cost_weight"),
        ({**PAK["policy"], "ridge": 0.0}, "policy.ridge"),
        ({**IS["policy"], "delta": 1.5}, "policy.delta"),
        ({**FD["policy"], "threshhold": 1.0}, "policy.threshhold"),
    ],
)
async def test_a_configuration_that_no_policy_has(service: Service, policy: Json, field: str) -> None:
    response = await service.put("/v1/bandits/b", {"policy": policy, "arms": ARMS, "output": OUTPUT, **VECTORS})
    assert failed(response) == (422, "invalid_request")
    assert any(path.startswith(field) for path in paths(response)), paths(response)
