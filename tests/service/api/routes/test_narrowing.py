"""`exclude`, `max_price` and `metadata` of decisions and outcomes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.service.http_client import GREEDY, PROMPT, VECTOR, Json, Service, answered, failed, opened, paths
from tests.service.storages import STORAGES, store_of

FIVE: Json = {
    "policy": {"kind": "epsilon-greedy", "epsilon": 1.0, "initial_pulls": 0},
    "arms": [{"name": f"arm {i}", "price": 0.5 * i} for i in range(5)],
    "seed": 7,
}


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ({"exclude": ["arm 0", "arm 3", "unknown"]}, [1, 2, 4]),
        ({"max_price": 1.0}, [0, 1, 2]),
        ({"arms": ["arm 1", {"name": "arm 4", "price": 0.1}, "arm 3"], "max_price": 0.5, "exclude": []}, [1, 4]),
        ({"exclude": ["arm 0"], "max_price": 0.5}, [1]),
    ],
)
async def test_propensities_are_of_what_is_left(service: Service, asked: Json, allowed: list[int]) -> None:
    await service.create(body=FIVE)
    dry = await service.decide(body={**asked, "dry_run": True})
    single = await service.decide(body=asked)
    (batched,) = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [asked]}))["decisions"]
    names = {f"arm {i}" for i in allowed}
    for decision in (dry, single, batched):
        assert decision["arm"] in names
        assert decision["propensity"] == pytest.approx(1 / len(names))
        assert {arm for arm, weight in decision["weights"].items() if weight} == names == set(decision["scores"])
    for logged in (await service.log())[1:]:
        assert logged["allowed"] == allowed
        assert logged.get("exclude", []) == asked.get("exclude", [])
        assert logged.get("max_price") == asked.get("max_price")


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"exclude": [f"arm {i}" for i in range(5)]}, "exclude"),
        ({"arms": ["arm 2", "arm 3"], "max_price": 0.75}, "max_price"),
        ({"arms": ["arm 2"], "exclude": ["arm 2"]}, "exclude"),
        ({"max_price": -1.0}, "max_price"),
        ({"exclude": "arm 1"}, "exclude"),
    ],
)
async def test_where_no_arm_is_left_nothing_is_decided(service: Service, asked: Json, path: str) -> None:
    await service.create(body=FIVE)
    for response in (
        await service.post("/v1/bandits/b/decisions", asked),
        await service.post("/v1/bandits/b/decisions", {**asked, "dry_run": True}),
    ):
        assert failed(response) == (422, "invalid_request")
        assert paths(response) == [path]
    batch = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [asked, {}]}))["decisions"]
    assert batch[0]["errors"][0]["path"] == path
    assert batch[1]["arm"] is not None
    assert await service.offset() == 2


async def test_a_decision_that_was_made_is_answered_again_when_nothing_is_left(service: Service) -> None:
    await service.create(body=FIVE)
    asked = {"id": "mine", "arms": ["arm 2"], "max_price": 1.0}
    made = await service.decide(body=asked)
    await service.put("/v1/bandits/b/arms/arm 2", {"price": 2.0})
    assert await service.decide(body=asked) == made
    batch = answered(await service.post("/v1/bandits/b/decisions/batch", {"decisions": [asked]}))["decisions"]
    assert batch == [made]
    other = await service.post("/v1/bandits/b/decisions", {**asked, "max_price": 1.5})
    assert failed(other) == (409, "decision_conflict")


async def test_the_next_decision_is_narrowed_as_the_one_before_it(service: Service) -> None:
    await service.create(body=FIVE)
    asked = {"exclude": ["arm 0"], "max_price": 0.5}
    made = await service.decide(body=asked)
    receipt = await service.observe(made["id"], {"reward": 0.5, "next": True})
    assert receipt["next"]["arm"] == "arm 1"
    assert receipt["next"]["propensity"] == 1.0
    again = await service.observe(receipt["next"]["id"], {"reward": 0.5, "next": True})
    assert again["next"]["arm"] == "arm 1", "and so on"
    await service.delete("/v1/bandits/b/arms/arm 1")
    last = await service.observe(again["next"]["id"], {"reward": 0.5, "next": True})
    assert last["next"] is None, "the outcome is learned, and there is no arm for a decision"


async def test_attempts_of_an_episode_are_narrowed_and_do_not_stop_for_it(service: Service) -> None:
    body = {**VECTOR, "policy": {"kind": "promptwise", "max_attempts": 3, "forced_pulls": 0}}
    await service.create(body=body)
    first = await service.decide(body={**PROMPT, "max_price": 1.0})
    assert first["arm"] == "small"
    following = (await service.observe(first["id"], {"reward": 0.0, "next": True}))["next"]
    assert following["stop"] or following["arm"] == "small"
    refused = await service.post("/v1/bandits/b/decisions", {**PROMPT, "exclude": ["small", "large"]})
    assert failed(refused) == (422, "invalid_request")


METADATA = {"team": "search", "tags": ["a", None, 1.5], "nested": {"deep": True}}


@pytest.mark.parametrize("storage", STORAGES)
async def test_metadata_are_kept_returned_and_never_learned(storage: str, tmp_path: Path) -> None:
    digests = []
    async with opened(**store_of(storage, tmp_path)) as service:
        for name, about in (("plain", {}), ("tagged", {"metadata": METADATA})):
            await service.create(name)
            for t in range(4):
                made = await service.decide(name, {"id": f"d{t}", **about})
                assert made.get("metadata", {}) == about.get("metadata", {})
                await service.observe(f"d{t}", {"reward": 0.25 * t, **about}, name=name)
            digests.append(answered(await service.get(f"/v1/bandits/{name}/digest"))["sha256"])
        same_body = {"id": "d0", "metadata": dict(reversed(METADATA.items()))}
        assert (await service.decide("tagged", same_body))["metadata"] == METADATA
        other = await service.post("/v1/bandits/tagged/decisions", {"id": "d0", "metadata": {}})
        assert failed(other) == (409, "decision_conflict")
        conflict = await service.put("/v1/bandits/tagged/decisions/d0/outcome", {"reward": 0.0, "metadata": {"a": 1}})
        assert failed(conflict) == (409, "outcome_conflict")
        assert (await service.observe("d0", {"reward": 0.0, "metadata": METADATA}, name="tagged"))["duplicate"]
        shown = answered(await service.get("/v1/bandits/tagged/decisions/d1"))
        assert (shown["metadata"], shown["outcome_metadata"]) == (METADATA, METADATA)
        shown = answered(await service.get("/v1/bandits/plain/decisions/d1"))
        assert not {"metadata", "outcome_metadata"} & set(shown)
        large = {"metadata": {"a": "x" * 4_096}}
        for response in (
            await service.post("/v1/bandits/tagged/decisions", large),
            await service.put("/v1/bandits/tagged/decisions/d0/outcome", {"reward": 0.0, **large}),
        ):
            assert (failed(response)[0], paths(response)) == (422, ["metadata"])
        logged = [entry for entry in await service.log("tagged") if "metadata" in entry]
        assert [entry["event"] for entry in logged] == ["decided", "observed"] * 4
    assert digests[0] == digests[1]


async def test_bodies_without_the_new_fields_keep_their_digests(service: Service) -> None:
    await service.create(body=GREEDY)
    await service.decide(body={"id": "mine", "exclude": [], "max_price": None, "metadata": None})
    logged = (await service.log())[-1]
    parts = json.dumps([None, None, None], separators=(",", ":")).encode()
    assert logged["body"] == hashlib.sha256(parts).hexdigest()[:32]
    assert not {"exclude", "max_price", "metadata"} & set(logged)
