"""The health of a bandit over HTTP, and what is said of input that nothing good can come of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng

from tests.service.http_client import ARMS, GREEDY, VECTOR, Clock, Json, Service, answered, failed, opened

TWO: Json = {"arms": [{"name": "small"}, {"name": "large"}], "seed": 7}
PROMPTED: Json = {**TWO, "prompt": {"dim": 3}}


async def health(service: Service, name: str = "b") -> tuple[str, dict[str, Json]]:
    """The status, and the checks by name."""
    await service.settle(name)
    response = await service.get(f"/v1/bandits/{name}/health")
    assert response.status_code == 200
    body = answered(response)
    assert list(body) == ["status", "checks"]
    assert body["status"] == max((check["status"] for check in body["checks"]), key=["ok", "warn", "alarm"].index)
    for check in body["checks"]:
        assert list(check) == ["name", "status", "value", "detail", "fix"]
    return body["status"], {check["name"]: check for check in body["checks"]}


async def play(service: Service, rounds: int, *, dim: int = 0, zeros: bool = False, **outcome: Any) -> None:
    """Decisions with their outcomes, under ids that draw alike in every run. outcome: what is posted, or a function of
    (arm, draw) that gives it.
    """
    g, made = default_rng(4), (await service.bandit())["decisions"]
    for number in range(made, made + rounds):
        x = [0.0] * dim if zeros else [float(value) for value in g.standard_normal(dim)]
        decision = await service.decide(body={"id": f"d{number}", **({"prompt": {"vector": x}} if dim else {})})
        arm, noise = decision["arm"], float(g.standard_normal())
        posted = {name: value(arm, noise) if callable(value) else value for name, value in outcome.items()}
        await service.observe(decision["id"], {name: value for name, value in posted.items() if value is not None})


def better(arm: str, noise: float) -> float:
    """A reward; the second arm is the better one."""
    return 0.3 + 0.4 * (arm == "large") + 0.1 * noise


# -- who, where, when ------------------------------------------------------------------------------------------------------------


async def test_a_reader_may_look_and_a_stranger_may_not() -> None:
    async with opened(api_keys="admin:root,reader:eye,reader@red:rose") as service:
        created = await service.ask("PUT", "/v1/bandits/b", json=GREEDY, headers={"authorization": "Bearer root"})
        assert created.status_code == 201
        path = "/v1/bandits/b/health"
        assert (await service.ask("GET", path, headers={"authorization": "Bearer eye"})).status_code == 200
        assert failed(await service.get(path)) == (401, "unauthenticated")
        assert failed(await service.ask("GET", path, headers={"authorization": "Bearer rose"})) == (404, "bandit_not_found")


async def test_a_bandit_that_is_not_there_has_no_health(service: Service) -> None:
    assert failed(await service.get("/v1/bandits/b/health")) == (404, "bandit_not_found")
    await service.create("health")
    assert (await health(service, "health"))[0] == "ok"


async def test_a_bandit_that_was_just_created_is_well(service: Service) -> None:
    await service.create(body=PROMPTED)
    status, checks = await health(service)
    assert status == "ok"
    assert {"arms", "entropy", "reward_range", "calibration", "variance", "prompt_pays", "gain", "objective"} <= set(checks)
    assert not {"budget", "signals", "cost_ratio", "reward_scale"} & set(checks)
    assert [checks[name]["value"] for name in ("gain", "calibration", "prompt_pays", "variance")] == [None] * 4


async def test_a_restart_gives_the_same_health_and_report(tmp_path: Path, clock: Clock) -> None:
    store: Json = {"store": f"sqlite:///{tmp_path}/b.db", "clock": clock}
    async with opened(**store) as service:
        await service.create(body={**PROMPTED, "signals": ["latency_s"], "budget": {"signal": "cost", "per_decision": 0.5}})
        await play(service, 120, dim=3, reward=better, cost=lambda arm, _: 0.2 + 0.1 * (arm == "large"))
        found, bandit = await health(service), await service.bandit()
    assert bandit["report"]["gain"]["best_fixed"] in ("small", "large")
    assert bandit["report"]["calibration"]["outcomes"] > 100
    async with opened(**store) as service:
        assert await health(service) == found
        again = await service.bandit()
        assert (again["report"], again["notices"]) == (bandit["report"], bandit["notices"])


async def test_the_gain_of_a_router_and_of_the_prompt_is_said(service: Service) -> None:
    await service.create(body={**VECTOR, "policy": {"kind": "pak-ucb", "exploration_floor": 0.5}})
    g = default_rng(1)
    for number in range(300):
        x = float(g.choice([-1.0, 1.0]))
        decision = await service.decide(body={"id": f"d{number}", "prompt": {"vector": [x, 0.5, 0.25]}})
        await service.observe(decision["id"], {"reward": 0.9 if (decision["arm"] == "small") == (x > 0.0) else 0.1})
    status, checks = await health(service)
    assert status == "ok"
    gain = checks["gain"]["value"]
    assert gain == (await service.bandit())["report"]["gain"]
    assert gain["interval"][0] > 0.0, "three of four decisions are right, and of a fixed arm two of four"
    assert checks["gain"]["detail"].startswith(f"Decisions earned +{gain['value']:.3g} each beyond always '{gain['best_fixed']}'")


async def test_missing_outcomes_and_silence_are_seen_by_the_clock(service: Service, clock: Clock) -> None:
    await service.create(body={**GREEDY, "reward": {"timeout_s": 60}})
    await play(service, 20, reward=better)
    for _ in range(30):
        await service.decide()
    clock.forward(61)
    assert (await health(service))[1]["last_outcome"]["status"] == "ok", "they were decided at the moment of the last outcome"
    late = await service.decide()
    clock.forward(61)
    assert (await health(service))[1]["last_outcome"]["value"] == 122.0
    assert (await health(service))[1]["last_outcome"]["status"] == "warn"
    assert failed(await service.put(f"/v1/bandits/b/decisions/{late['id']}/outcome", {"reward": 1.0})) == (
        410,
        "decision_expired",
    )
    assert (await health(service))[1]["missing_outcomes"]["value"] == pytest.approx(1 / 21)


# -- nothing good can come of it -------------------------------------------------------------------------------------------------


async def test_rewards_that_are_all_alike(service: Service) -> None:
    await service.create(body=PROMPTED)
    await play(service, 24, dim=3, reward=0.25)
    status, checks = await health(service)
    assert (status, checks["reward_range"]["status"]) == ("warn", "warn")
    (notice,) = (await service.bandit())["notices"]
    assert notice.startswith("All 24 rewards so far are 0.25")


async def test_one_arm_alone(service: Service) -> None:
    await service.create(body={**PROMPTED, "arms": [{"name": "large"}]})
    await play(service, 60, dim=3, reward=better)
    status, checks = await health(service)
    assert (status, checks["arms"]["detail"]) == ("warn", "One arm is active: there is nothing to choose.")
    assert checks["gain"]["value"] == {"value": 0.0, "interval": [0.0, 0.0], "best_fixed": "large"}
    assert (checks["prompt_pays"]["value"], checks["variance"]["value"]) == (None, None), "there is nothing to decide"
    report = (await service.bandit())["report"]
    assert (report["trust"], report["variance"]) == (None, None)
    assert report["noise"] > 0.0
    assert 'nextarm_prompt_trust{bandit="b"}' not in (await service.get("/metrics")).text
    await service.put("/v1/bandits/b/arms/small", {})
    await play(service, 24, dim=3, reward=better)
    status, checks = await health(service)
    assert status == "ok"
    assert checks["prompt_pays"]["value"] >= 0.1
    assert sum(checks["variance"]["value"].values()) == pytest.approx(1.0)


async def test_one_reward_of_another_size(service: Service) -> None:
    await service.create(body=TWO)
    await play(service, 40, reward=better)
    assert (await health(service))[0] == "ok"
    await play(service, 1, reward=1e12)
    await play(service, 3, reward=better)
    status, checks = await health(service)
    assert (status, checks["reward_range"]["status"]) == ("warn", "warn")
    assert "apart by some 0.2, and a few by up to 8e+11" in checks["reward_range"]["detail"]
    assert "Cap rewards or take their logarithm" in checks["reward_range"]["fix"]
    assert (await service.bandit())["notices"] == [f"{checks['reward_range']['detail']} {checks['reward_range']['fix']}"]


async def test_rewards_that_are_next_to_nothing(service: Service) -> None:
    await service.create(body=TWO)
    await play(service, 24, reward=lambda arm, noise: 1e-160 * better(arm, noise))
    status, checks = await health(service)
    assert (status, checks["reward_range"]["status"]) == ("warn", "warn")
    assert "the square of it is next to 0" in (await service.bandit())["notices"][0]
    assert "multiplied by a constant" in checks["reward_range"]["fix"]


async def test_prompts_of_zeros_are_prompts(service: Service) -> None:
    await service.create(body=PROMPTED)
    for rounds in (20, 60):
        await play(service, rounds, dim=3, zeros=True, reward=better)
        await health(service)  # waits for what is prepared
    status, checks = await health(service)
    assert status == "ok"
    assert (checks["prompt_pays"]["value"], checks["prompt_pays"]["detail"][-25:]) == (None, "or all prompts are alike.")
    assert checks["entropy"]["value"] < 0.8, "the better arm is found"


@pytest.mark.parametrize(
    ("latency", "said"),
    [
        (None, "none of 60 outcomes carried it: it counts 0"),
        (lambda arm, _: {"latency_s": 1.0 + _} if arm == "small" else None, "never came with outcomes of 'large'"),
        ({"latency_s": 2.0}, "was 2 every time"),
    ],
)
async def test_a_declared_signal_that_does_not_come_as_it_should(service: Service, latency: Any, said: str) -> None:
    await service.create(body={**TWO, "policy": {"kind": "epsilon-greedy", "epsilon": 1.0}, "signals": ["latency_s"]})
    await play(service, 60, reward=better, signals=latency)
    status, checks = await health(service)
    assert (status, checks["signals"]["status"]) == ("warn", "warn")
    assert said in checks["signals"]["detail"]
    assert f"{checks['signals']['detail']} {checks['signals']['fix']}" in (await service.bandit())["notices"]


async def test_a_signal_that_drowns_the_reward(service: Service) -> None:
    await service.create(body={**PROMPTED, "objective": {"reward": 1.0, "tokens": -1.0}})
    await play(service, 40, dim=3, reward=better, signals=lambda _, noise: {"tokens": 1e12 * (noise > 0.0)})
    status, checks = await health(service)
    assert status == "warn"
    assert "beside it the reward decides nothing" in checks["objective"]["detail"]
    assert checks["signals"]["value"] == {"tokens": 1.0}
    decision = await service.decide(body={"prompt": {"vector": [0.5, 0.25, 1.0]}})
    assert sum(decision["weights"].values()) == pytest.approx(1.0)


async def test_costs_that_drown_the_reward_where_there_are_no_prices(service: Service) -> None:
    """With prices, what is posted is not what is weighed."""
    for name, arms in (("b", TWO["arms"]), ("priced", ARMS)):
        await service.create(name, {"arms": arms, "seed": 7, "objective": {"reward": 1.0, "cost": -1.0}})
        for number in range(24):
            decision = await service.decide(name, {"id": f"d{number}"})
            await service.observe(decision["id"], {"reward": 0.1 * (number % 5), "cost": 1e12 if number == 9 else 0.1}, name=name)
    _, checks = await health(service)
    assert "'cost' by 1e+12: beside it the reward decides nothing" in checks["objective"]["detail"]
    assert (await health(service, "priced"))[1]["objective"]["status"] == "ok"


async def test_weights_that_make_all_arms_equal(service: Service) -> None:
    await service.create(body={**PROMPTED, "objective": {"reward": 0.0}})
    await play(service, 20, dim=3, reward=better)
    status, checks = await health(service)
    assert (status, checks["objective"]["status"]) == ("warn", "warn")
    assert "Every weight of objective is 0" in (await service.bandit())["notices"][0]


async def test_a_budget_that_no_arm_can_hold(service: Service) -> None:
    budget = {"signal": "cost", "per_decision": 0.001}
    await service.create(body={"arms": ARMS, "seed": 7, "budget": budget})
    await play(service, 60, reward=better)
    status, checks = await health(service)
    assert (status, checks["budget"]["status"]) == ("alarm", "alarm")
    bandit = await service.bandit()
    assert checks["budget"]["value"] == bandit["budget"]
    assert any("nearly the cheapest is played" in notice for notice in bandit["notices"])
    assert (await service.decide())["arm"] == "small"


async def test_no_arm_is_left(service: Service) -> None:
    await service.create()
    for arm in ("small", "large"):
        await service.delete(f"/v1/bandits/b/arms/{arm}")
    status, checks = await health(service)
    assert (status, checks["arms"]["status"], checks["entropy"]["value"]) == ("alarm", "alarm", None)


async def test_drift_is_seen_in_health_notices_and_metrics(service: Service) -> None:
    await service.create(body={**TWO, "policy": {"kind": "greedy", "drift": "detect"}})
    await play(service, 60, reward=better)
    status, checks = await health(service)
    assert (status, checks["drift"]["status"]) == ("ok", "ok")
    await play(service, 60, reward=lambda arm, noise: better(arm, noise) - 2.0 * (arm == "large"))
    status, checks = await health(service)
    assert (status, checks["drift"]["status"]) == ("warn", "warn")
    assert "'large'" in checks["drift"]["detail"]
    assert any("exploration_floor" in notice for notice in (await service.bandit())["notices"])
    text = (await service.get("/metrics")).text
    assert 'nextarm_drift_alarms_total{arm="large",bandit="b"} 1.0' in text
    assert 'nextarm_drift_alarms_total{arm="small",bandit="b"} 0.0' in text


async def test_budget_and_trust_are_metrics(service: Service) -> None:
    await service.create(body={**PROMPTED, "budget": {"signal": "cost", "per_decision": 0.5}})
    await service.create("plain")
    await play(service, 60, dim=3, reward=better, cost=0.75)
    await health(service)  # waits for what is prepared
    lines = dict(line.rsplit(" ", 1) for line in (await service.get("/metrics")).text.splitlines() if not line.startswith("#"))
    bandit = await service.bandit()
    for name, field in (("multiplier", "multiplier"), ("running", "running"), ("per_decision", "per_decision")):
        assert float(lines[f'nextarm_budget_{name}{{bandit="b"}}']) == pytest.approx(bandit["budget"][field])
    assert 0.0 <= float(lines['nextarm_prompt_trust{bandit="b"}']) <= 1.0
    assert not [line for line in lines if line.startswith(("nextarm_budget", "nextarm_prompt")) and "plain" in line]
