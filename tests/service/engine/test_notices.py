"""What a bandit tells its owner, and prompts that are refused before they are logged."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bandits.registry import build
from bandits.types import State
from service.engine.learner import Learner
from service.engine.notices import notices_of_rewards
from service.storage.memory import MemoryStorage
from tests.service.drivers import PAK, learner_of
from tests.service.http_client import ARMS, GREEDY, VECTOR, Service, failed


@pytest.mark.parametrize(("rewards", "is_noticed"), [([0.0, 0.5, 1.0], False), ([0.5, 40.0], True), ([-0.25, 0.5], True)])
async def test_rewards_that_are_out_of_scale_are_noticed(service: Service, rewards: list[float], is_noticed: bool) -> None:
    await service.create(body=VECTOR)
    for reward in rewards:
        decision = await service.decide(body={"prompt": {"vector": [0.5, 0.25, 1.0]}})
        await service.observe(decision["id"], {"reward": reward})
    notices = (await service.bandit())["notices"]
    assert bool(notices) == is_noticed
    if is_noticed:
        assert notices[0].startswith(f"Rewards from {min(rewards):g} to {max(rewards):g} were learned")


@pytest.mark.parametrize("policy", [{"kind": "greedy"}, {"kind": "lin-ucb", "prior_mean": 40.0, "exploration": 10.0}])
async def test_a_policy_that_is_set_for_other_rewards_has_nothing_to_tell(service: Service, policy: dict[str, Any]) -> None:
    await service.create(body={**(GREEDY if policy["kind"] == "greedy" else VECTOR), "policy": policy})
    for _ in range(3):
        prompt = {} if policy["kind"] == "greedy" else {"prompt": {"vector": [0.5, 0.25, 1.0]}}
        await service.observe((await service.decide(body=prompt))["id"], {"reward": 35.0})
    assert (await service.bandit())["notices"] == []


@pytest.mark.parametrize(
    ("settings", "count", "rewards", "is_noticed"),
    [
        ({"kind": "pak-ucb"}, 100, (0.0003, 0.0008), True),
        ({"kind": "pak-ucb"}, 99, (0.0003, 0.0008), False),
        ({"kind": "pak-ucb"}, 100, (0.5, 0.5), False),
        ({"kind": "pak-ucb"}, 100, (0.9, 0.94), True),
        ({"kind": "pak-ucb"}, 100, (0.3, 0.36), False),
        ({"kind": "pak-ucb", "prior_mean": 0.0005, "exploration": 0.0001}, 100, (0.0003, 0.0008), False),
        ({"kind": "lin-ucb", "exploration": 0.0}, 100, (0.0003, 0.0008), False),
        ({"kind": "lin-ucb"}, 100, (0.0003, 0.0008), True),
        ({"kind": "dak-ucb", "output_bandwidth": 1.0}, 100, (0.0003, 0.0008), True),
        ({"kind": "thompson", "posterior": "gaussian"}, 100, (0.0003, 0.0008), True),
        ({"kind": "thompson"}, 100, (0.0003, 0.0008), False),
        ({"kind": "greedy"}, 100, (0.0003, 0.0008), False),
    ],
)
async def test_rewards_that_are_small_beside_the_optimism_are_noticed_with_the_fix(
    settings: dict[str, Any], count: int, rewards: tuple[float, float], is_noticed: bool
) -> None:
    learner = await learner_of(MemoryStorage(), PAK)
    learner.versions.policy = build(settings.pop("kind"), settings, dim=2, output_dim=2)
    learner.ledger.reward_range = rewards
    first, *others = learner.ledger.arms
    learner.ledger.arms = type(learner.ledger.arms)([msgspec.structs.replace(first, rewards=count), *others])
    notices = notices_of_rewards(learner.policy, learner.ledger)
    assert bool(notices) == is_noticed
    if is_noticed:
        assert notices[0].startswith(f"The {count} rewards that were learned lie between {rewards[0]:g} and {rewards[1]:g}")
        assert "Post rewards scaled to [0, 1], or create a bandit with prior_mean and a smaller" in notices[0]


async def test_a_snapshot_keeps_the_range_of_the_rewards(service: Service) -> None:
    storage = MemoryStorage()
    learner = await learner_of(storage, PAK)
    learner.ledger.reward_range = (-3.0, 7.0)
    unpacked = type(learner.ledger).unpack(learner.created, learner.ledger.pack())
    assert unpacked.reward_range == (-3.0, 7.0)
    learner.ledger.reward_range = None
    older = learner.ledger.pack().replace(b',"lowest_reward":null,"highest_reward":null', b"")
    assert b"lowest_reward" not in older
    assert type(learner.ledger).unpack(learner.created, older).reward_range is None


async def test_an_arm_without_numbers_is_noticed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    learner: Learner = await learner_of(MemoryStorage(), PAK)

    def second(_: object, state: State) -> list[int]:
        return [1]

    monkeypatch.setattr(type(learner.policy), "arms_without_estimate", second)
    (notice,) = await learner.notices()
    assert notice.startswith("The numbers of arm 'arm 1' are not finite any more")
    assert notice.endswith("create another bandit with a larger ridge.")


@pytest.mark.parametrize(
    ("kind", "settings", "ways"),
    [
        ("lin-ucb", {"normalize": False}, "normalize: true or a larger ridge"),
        ("lin-ucb", {}, "a larger ridge"),
        ("promptwise", {"normalize": False}, "normalize: true or a larger ridge"),
        ("fd-ucb", {}, "outputs (and a reference) that are scaled down"),
        ("mixture-greedy", {"objective": "fid"}, "normalize: true or outputs (and a reference) that are scaled down"),
        ("mixture-greedy", {"objective": "fid", "normalize": True}, "outputs (and a reference) that are scaled down"),
        ("is-ucb", {}, "outputs (and a reference) that are scaled down"),
        ("dak-ucb", {"output_bandwidth": 1.0}, "a larger ridge or outputs (and a reference) that are scaled down"),
    ],
)
async def test_what_is_advised_for_lost_numbers_can_be_set_for_that_policy(
    monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any], ways: str
) -> None:
    learner: Learner = await learner_of(MemoryStorage(), PAK)
    learner.versions.policy = build(kind, settings, dim=2, output_dim=2)
    monkeypatch.setattr(type(learner.policy), "arms_without_estimate", lambda *_: [0])
    (notice,) = await learner.notices()
    assert notice.endswith(f"create another bandit with {ways}.")


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "lin-ucb", "normalize": False},
        {"kind": "pak-ucb", "normalize": False, "random_features": None, "kernel": "polynomial"},
        {"kind": "promptwise", "normalize": False},
    ],
)
async def test_a_prompt_that_cannot_be_computed_is_refused_before_it_is_logged(service: Service, policy: dict[str, Any]) -> None:
    await service.create(body={"policy": policy, "arms": ARMS, "prompt": {"dim": 2}, "seed": 7})
    for t in range(8):
        body = {"prompt": {"vector": [1.7e9 + 60 * t, 100.0 + t]}}
        for path in ("decisions", "decisions/batch"):
            sent = body if path == "decisions" else {"decisions": [body]}
            response = await service.post(f"/v1/bandits/b/{path}", sent)
            problem = response.json() if path == "decisions" else response.json()["decisions"][0]
            assert problem["code"] == "invalid_request"
            assert "too long for the ridge" in problem["detail"]
    assert failed(await service.post("/v1/bandits/b/decisions", {**body, "dry_run": True})) == (422, "invalid_request")
    assert await service.offset() == 1
