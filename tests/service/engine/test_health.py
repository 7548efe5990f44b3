"""What a bandit's checks say, of every policy and of each kind of trouble."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from bandits import drift
from bandits.registry import POLICIES, build
from service.engine import health, tallies
from service.engine.events import ArmAdded, ArmRetired, BudgetSet, Expired
from service.engine.health import Check, Subject, examine, notices, worst
from service.engine.learner import Learner
from service.engine.ledger import Ledger
from service.storage.memory import MemoryStorage
from tests.bandits.examples import EXAMPLES
from tests.service.drivers import Clients, Clock, created, learner_of
from tests.service.engine.test_ledger import NOW, decided, observed

GENERAL = ["arms", "estimates", "entropy", "starved_arms", "missing_outcomes", "last_outcome"]
OF_REWARDS = {"reward_scale", "reward_range", "drift", "calibration", "variance", "prompt_pays", "gain", "objective"}


class Log:
    """A bandit's ledger, written to by decisions with their outcomes."""

    def __init__(self, *, kind: str = "greedy", arms: int = 2, **facts: Any) -> None:
        self.policy = build(kind, {}, dim=facts.get("dim", 0), signals=tuple(facts.get("signals", ["reward"])))
        self.ledger = Ledger(created(arms=arms, **facts))
        self.made = 0

    def add(self, *events: Any) -> None:
        for event in events:
            self.ledger.apply(self.ledger.offset + 1, event, self.policy)

    def play(self, arm: int, reward: float | None = 0.5, *, estimate: float | None = None, **outcome: Any) -> None:
        self.made += 1
        scores = {} if estimate is None else {"estimate": [estimate] * len(self.ledger.arms)}
        self.add(decided(f"d{self.made}", arm, scores=scores))
        self.add(observed(f"d{self.made}", arm, reward=reward, **outcome))

    def subject(self, **facts: Any) -> Subject:
        return Subject(policy=self.policy, ledger=self.ledger, **facts)

    def checks(self, **facts: Any) -> dict[str, Check]:
        return {check.name: check for check in examine(self.subject(**facts))}


# -- every policy ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
async def test_every_policy_has_its_health_and_the_same_after_a_replay(kind: str) -> None:
    storage, clock = MemoryStorage(), Clock()
    bandit = await learner_of(storage, EXAMPLES[kind][0], options={"clock": clock, "snapshot_every": 0})
    before = {check.name for check in await bandit.health(clock())}
    await Clients(EXAMPLES[kind][0], bandit, clock, seed=3).work(12)
    await bandit.projection.catch_up()
    await bandit.projection.background.finish()
    found = await bandit.health(clock())
    names = [check.name for check in found]
    assert names[: len(GENERAL)] == GENERAL
    assert before == set(names), "what applies does not depend on what was learned"
    learns_reward = "reward" in bandit.policy.needs
    assert ({"reward_range", "gain"} <= set(names)) == learns_reward
    assert learns_reward or not OF_REWARDS & set(names)
    assert all(check.detail.endswith(".") and check.fix.endswith(".") for check in found)
    assert worst(found) in ("ok", "warn", "alarm")
    again = await Learner.load(storage, bandit.log)
    await again.projection.background.finish()
    assert again.ledger.tallies == bandit.ledger.tallies
    assert _known(await again.health(clock())) == _known(found)


def _known(checks: list[Check]) -> Any:
    """As they are answered."""
    return [
        check for check in msgspec.json.decode(msgspec.json.encode(checks)) if check["name"] not in ("variance", "prompt_pays")
    ]


def test_the_worst_check_is_the_status() -> None:
    checks = [Check(status, status, None, "", "") for status in ("ok", "alarm", "warn")]
    assert (worst(checks), worst(checks[::2]), worst(checks[:1]), worst([])) == ("alarm", "warn", "ok", "ok")


async def test_a_snapshot_that_is_older_than_the_tallies_is_read_and_they_begin_there() -> None:
    log = Log(signals=["reward", "latency_s"])
    for _ in range(30):
        log.play(0, signals={"latency_s": 1.0})
    older = msgspec.json.decode(log.ledger.pack())
    del older["tallies"]
    for arm in older["arms"]:
        del arm["alarms"]
        arm["surprise"] = arm["surprise"][:4]
    resumed = Ledger.unpack(log.ledger.created, msgspec.json.encode(older))
    assert resumed.tallies == tallies.Tallies.start(arms=2, signals=2)
    assert [arm.surprise for arm in resumed.arms] == [drift.START] * 2
    log.ledger = resumed
    assert log.checks()["missing_outcomes"].value is None
    log.play(1, signals={"latency_s": 2.0})
    assert log.ledger.tallies.arms[1].carried == [1, 1]


# -- what is chosen --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("active", "status"), [(2, "ok"), (1, "warn"), (0, "alarm")])
def test_one_arm_leaves_nothing_to_choose(active: int, status: str) -> None:
    log = Log()
    log.add(*(ArmRetired(at=NOW, arm=index) for index in range(active, 2)))
    check = log.checks()["arms"]
    assert (check.status, check.value) == (status, active)


def test_numbers_that_were_lost_are_an_alarm() -> None:
    check = Log().checks(lost=[1])["estimates"]
    assert (check.status, check.value) == ("alarm", 1)
    assert "arm 1" in check.detail


def test_the_entropy_of_what_was_chosen_is_measured_against_equal_shares() -> None:
    log = Log(arms=4)
    for arm in (0, 0, 1, 1):
        log.play(arm)
    assert log.checks()["entropy"].value == pytest.approx(0.5)
    assert "as 2 equally likely ones" in log.checks()["entropy"].detail


def test_choices_that_are_as_good_as_random_are_noticed_in_time() -> None:
    equal, better, blind, routed = Log(), Log(), Log(kind="random"), Log(kind="lin-ucb", dim=2)
    for k in range(1000):
        equal.play(k % 2)
        routed.play(k % 2)
        better.play(int(k % 5 > 1))
        blind.play(k % 2)
    assert equal.checks()["entropy"].status == "warn"
    assert better.checks()["entropy"].status == blind.checks()["entropy"].status == "ok"
    assert routed.checks()["entropy"].status == "ok", "by the prompt, either arm may be the best of half of them"


def test_an_arm_whose_outcomes_never_come_is_starved() -> None:
    log = Log()
    for k in range(99):
        log.play(k % 2, 0.5) if k % 2 else log.add(decided(f"open {k}", 0))
    assert log.checks()["starved_arms"].status == "ok", "it is early"
    log.play(1)
    check = log.checks()["starved_arms"]
    assert (check.status, check.value) == ("warn", ["arm 0"])


# -- outcomes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expired", "of", "status"), [(19, 19, "ok"), (1, 20, "ok"), (3, 20, "warn"), (9, 20, "warn"), (11, 20, "alarm")]
)
def test_outcomes_that_do_not_come_are_counted(expired: int, of: int, status: str) -> None:
    log = Log()
    for k in range(expired):
        log.add(decided(f"e{k}", 0), Expired(at=NOW, id=f"e{k}", reward=0.0 if k % 2 else None))
    for _ in range(of - expired):
        log.play(0)
    check = log.checks()["missing_outcomes"]
    assert check.status == status
    assert check.value == pytest.approx(expired / of)


def test_the_time_since_the_last_outcome_is_a_matter_of_the_timeout() -> None:
    log = Log(timeout_s=60.0)
    check = log.checks(now=NOW + timedelta(days=1))["last_outcome"]
    assert (check.status, check.value) == ("ok", None)
    log.play(0)
    assert log.checks(now=NOW + timedelta(seconds=61))["last_outcome"].status == "ok", "nothing was decided since"
    log.add(decided("open", 0, at=30.0))
    assert log.checks(now=NOW + timedelta(seconds=60))["last_outcome"].status == "ok"
    check = log.checks(now=NOW + timedelta(seconds=61))["last_outcome"]
    assert (check.status, check.value) == ("warn", 61.0)
    assert "last_outcome" not in log.checks(), "without a clock"
    never = Log(timeout_s=60.0)
    never.add(decided("open", 0, at=30.0))
    check = never.checks(now=never.ledger.created.at + timedelta(seconds=61))["last_outcome"]
    assert (check.status, check.value) == ("warn", None)


def test_rewards_that_are_all_alike_are_said_and_noticed() -> None:
    log = Log()
    for _ in range(19):
        log.play(0, 0.25)
    assert log.checks()["reward_range"].status == "ok"
    assert notices(log.subject()) == []
    log.play(1, 0.25)
    check = log.checks()["reward_range"]
    assert (check.status, check.value) == ("warn", (0.25, 0.25))
    (notice,) = notices(log.subject())
    assert notice.startswith("All 20 rewards so far are 0.25: they tell no arm from another.")
    log.play(1, 0.5)
    assert (log.checks()["reward_range"].status, notices(log.subject())) == ("ok", [])


def test_rewards_out_of_scale_are_said_with_the_notice() -> None:
    log = Log(kind="pak-ucb", dim=2)
    log.play(0, 40.0)
    assert log.checks()["reward_scale"].status == "warn"
    assert log.checks()["reward_scale"].detail.startswith("Rewards from 40 to 40 were learned")


def test_a_drift_alarm_is_said_for_a_thousand_outcomes_and_counted_for_ever() -> None:
    log = Log()
    assert "drift" not in log.checks(), "this policy does not watch it"
    for k in range(20):
        log.play(1, 0.05 * k, surprise=1.0 if k % 2 else -1.0)
    while not log.ledger.alarms:
        log.play(1, surprise=-6.0)
    offset = log.ledger.offset
    assert log.ledger.arms[1].alarms == 1
    check = log.checks()["drift"]
    assert check.status == "warn"
    assert f"'arm 1' (last at offset {offset})" in check.detail
    assert "exploration_floor" in check.fix
    assert notices(log.subject()) == [f"{check.detail} {check.fix}"]
    for k in range(21):
        log.play(0, surprise=1.35 if k == 20 else 1.0 if k % 2 else -1.0)
    assert log.checks()["drift"].value == {"arm 0": pytest.approx(1.0 / 25.0), "arm 1": 0.0}
    for k in range(1000):
        log.play(k % 2, k % 3)
    assert (log.checks()["drift"].status, notices(log.subject())) == ("ok", [])
    assert log.ledger.arms[1].alarms == 1


# -- what was learned ------------------------------------------------------------------------------------------------------------


def test_calibration_is_the_reward_less_the_estimate_at_the_decision() -> None:
    log = Log()
    log.play(0, 0.5, estimate=0.25)
    log.play(1, 0.5, estimate=0.75)
    log.play(1, 1.0, estimate=None)
    log.add(decided("other", 0, scores={"estimate": [0.0, 0.0]}), observed("other", 1, propensity=None))
    found = {"outcomes": 2, "mean_error": 0.0, "deviation": 0.25, "relative_deviation": None}
    assert log.checks()["calibration"].value == health.calibration(log.subject()) == found
    found = log.checks(report={"noise": 0.125})["calibration"].value
    assert found["relative_deviation"] == 2.0


@pytest.mark.parametrize(
    ("error", "noise", "status"), [(0.0, 1.0, "ok"), (0.6, 1.0, "warn"), (0.0, 3.0, "warn"), (0.0, 0.4, "warn")]
)
def test_estimates_that_are_off_are_said(error: float, noise: float, status: str) -> None:
    log = Log()
    for k in range(100):
        assert log.checks(report={"noise": noise})["calibration"].status == "ok", "it is early"
        log.play(k % 2, 0.5 + (1.0 if k % 2 else -1.0) + error, estimate=0.5)
    assert log.checks(report={"noise": noise})["calibration"].status == status


def test_with_several_signals_the_estimate_is_that_of_the_reward() -> None:
    log = Log(signals=["reward", "cost"], objective={"reward": 1.0, "cost": -5.0})
    log.add(decided("a", 0, scores={"estimate": [9.0, 9.0], "signals.reward": [0.25, 0.75]}), observed("a", 0, reward=0.5))
    log.add(decided("b", 0, scores={"estimate": [9.0, 9.0]}), observed("b", 0, reward=0.5))
    assert log.ledger.tallies.errors == tallies.RecentMean(1, 0.25, 0.0)


@pytest.mark.parametrize(("trust", "said"), [(None, "Too little is known"), (0.125, "decides which arm is best is 0.12")])
def test_whether_the_prompt_pays_is_what_the_policy_reports(trust: float | None, said: str) -> None:
    check = Log(kind="auto", dim=2, signals=["reward", "cost"]).checks(report={"trust": trust, "variance": None})["prompt_pays"]
    assert (check.status, check.value) == ("ok", trust)
    assert said in check.detail
    plain = Log(kind="auto", signals=["reward", "cost"]).checks(report={"trust": None, "variance": None})["prompt_pays"]
    assert (plain.value, plain.detail) == (None, "The bandit takes no prompt.")


def test_shares_of_variance_are_what_the_policy_reports() -> None:
    shares = {"arm": 0.25, "prompt": 0.125, "arm_and_prompt": 0.125, "noise": 0.5}
    check = Log().checks(report={"variance": shares})["variance"]
    assert check.value == shares
    assert "25% the arm, 12% the prompt, 12% the prompt's choice of the arm, 50% noise" in check.detail


def test_the_gain_is_said_with_its_interval_and_a_loss_is_a_warning() -> None:
    log = Log()
    assert "0 rewards with a propensity are too few" in log.checks()["gain"].detail
    for k in range(499):
        log.play(k % 2, 0.75 - 0.5 * (k % 2) + 0.01 * (k % 3), propensity=0.5)
    assert log.checks()["gain"].status == "ok", "finding out which arm is best has its price"
    log.play(0, 0.75, propensity=0.5)
    check = log.checks()["gain"]
    assert check.status == "warn"
    assert check.value["best_fixed"] == "arm 0"
    assert check.value["interval"][0] < check.value["value"] < check.value["interval"][1] < 0.0
    assert check.value["value"] == pytest.approx(-0.25, abs=0.01)
    assert "capped at 1,000" in check.detail


def test_a_gain_that_cannot_be_known_says_why() -> None:
    log = Log(kind="lin-ucb", dim=2)
    for k in range(200):
        log.play(k % 2, 0.75, propensity=1.0)
    check = log.checks()["gain"]
    assert (check.status, check.value) == ("ok", None)
    assert "no active arm was drawn widely enough" in check.detail
    assert check.fix.startswith("Set exploration_floor to 0.01")


# -- objectives ------------------------------------------------------------------------------------------------------------------


def test_a_budget_is_held_overspent_or_cannot_be_held() -> None:
    log = Log(signals=["reward", "cost"], budget=BudgetSet(signal="cost", per_decision=0.3))
    assert log.checks()["budget"].value["running"] is None
    for k in range(100):
        log.play(k % 2, float(k % 2), cost=0.3)
    check = log.checks()["budget"]
    assert (check.status, check.value["running"]) == ("ok", pytest.approx(0.3))
    for k in range(100):
        log.play(k % 2, float(k % 2), cost=0.4)
    assert log.checks()["budget"].status == "warn"
    for k in range(100):
        log.play(k % 2, float(k % 2), cost=9.0)
    check = log.checks()["budget"]
    assert (check.status, check.value["feasible"]) == ("alarm", False)
    assert "nearly the cheapest is played" in check.detail
    assert notices(log.subject()) == [f"{check.detail} {check.fix}"]
    assert "budget" not in Log().checks()


LATENCY: dict[str, Any] = {"signals": ["reward", "latency_s"]}


@pytest.mark.parametrize(
    ("values", "said", "value"),
    [
        ([None] * 40, "none of 40 outcomes carried it: it counts 0", 0.0),
        ([1.0, None] * 40, "never came with outcomes of 'arm 1'", 0.5),
        ([1.0, 2.0] + [None] * 38, "came with 2 of 40 outcomes", 0.05),
        ([3.0] * 40, "was 3 every time", 1.0),
    ],
)
def test_a_signal_that_does_not_come_as_it_should_is_said(values: list[float | None], said: str, value: float) -> None:
    log = Log(**LATENCY)
    rare = value == 0.05
    for k, latency in enumerate(values):
        arm = 0 if rare and k < 2 else k % 2
        log.play(arm, 0.1 * (k % 7), signals={} if latency is None else {"latency_s": latency})
    if rare:
        log.play(1, signals={"latency_s": 4.0})
        value = 3 / 41
        said = "came with 3 of 41 outcomes"
    check = log.checks()["signals"]
    assert (check.status, check.value) == ("warn", {"latency_s": pytest.approx(value)})
    assert said in check.detail
    assert notices(log.subject()) == [f"{check.detail} {check.fix}"]


def test_signals_that_come_are_in_order() -> None:
    log = Log(**LATENCY)
    for k in range(40):
        log.play(k % 2, 0.1 * (k % 7), signals={"latency_s": float(k)})
    assert (log.checks()["signals"].status, notices(log.subject())) == ("ok", [])
    assert "signals" not in Log().checks()


def test_weights_that_leave_no_difference_are_said() -> None:
    zero = Log(objective={"reward": 0.0}).checks()["objective"]
    assert zero.status == "warn"
    assert zero.detail.startswith("Every weight of objective is 0")
    log = Log(**LATENCY, objective={"reward": 1.0, "latency_s": -2.0})
    for k in range(40):
        log.play(k % 2, 0.1 * (k % 7), signals={"latency_s": 1e12 * (k % 2)})
    check = log.checks()["objective"]
    assert (check.status, check.value) == ("warn", {"reward": pytest.approx(0.6), "latency_s": 2e12})
    assert "beside it the reward decides nothing" in check.detail
    assert "objective" not in Log().checks()


def test_learned_costs_with_prices_per_outcome_are_shown_per_arm() -> None:
    log = Log(signals=["reward", "cost"], prices_per="outcome")
    log.play(0, cost=0.3, cost_posted=True)
    log.play(0, cost=0.6, cost_posted=True)
    check = log.checks()["cost_ratio"]
    ratio = (0.3 + 0.6) / 2 / 0.15  # the price at the decision
    assert check.status == "ok"
    assert check.value["arm 0"] == {"ratio": pytest.approx(ratio), "expected": pytest.approx(0.2 * ratio)}
    assert check.value["arm 1"] == {"ratio": None, "expected": None}
    log.add(ArmAdded(at=NOW, name="free", price=0.0, metadata={}))
    check = log.checks()["cost_ratio"]
    assert check.status == "warn"
    assert "no price of 'free'" in check.detail
    assert not math.isnan(check.value["arm 0"]["ratio"])
