"""The sums behind gain and calibration, against closed forms and against a log that is counted once more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine import tallies
from service.engine.tallies import MAX_WEIGHT, Gain, RecentMean, Steps, Tallies

Floats = NDArray[np.float64]

Row = tuple[int, float, float | None]
"""(arm, reward, propensity) of one outcome."""


def tallied(rows: list[Row], *, arms: int = 2) -> Tallies:
    found = Tallies.start(arms=arms, signals=1)
    for arm, reward, propensity in rows:
        found.add_reward(arm, reward, propensity)
    return found


def gain_of(rows: list[Row], *, is_contextual: bool = False) -> Gain | None:
    return tallied(rows).gain([0, 1], is_contextual=is_contextual)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few outcomes are enough."""
    monkeypatch.setattr(tallies, "LEAST_EFFECTIVE", 1.0)


def session_rows(g: np.random.Generator, *, count: int) -> list[tuple[int, float, float, str]]:
    """(arm, reward, propensity, session): of three sessions in turn, one of which begins again with another arm; some alone."""
    drawn = {"a": (0, 0.25), "b": (1, 0.5), "c": (2, 0.125)}
    rows = []
    for i in range(count):
        session = ("a", "b", "c", "")[i % 4]
        drawn["b"] = (2, 0.2) if i > count // 2 else drawn["b"]
        arm, propensity = drawn.get(session) or (i % 3, 0.3)
        rows.append((arm, float(g.random()), propensity, session))
    return rows


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("amended", [False, True])
def test_outcomes_of_one_session_are_one_term_of_the_gain(*, amended: bool) -> None:
    """By their definition, with every outcome at hand."""
    rows, found = session_rows(np.random.default_rng(5), count=41), Tallies.start(arms=2, signals=1)
    for i, (arm, reward, propensity, session) in enumerate(rows):
        if i == 3:
            found.add_arm()  # the third, of which nothing came before
        if i == 2:
            continue
        found.add_reward(arm, reward, propensity, session=session)
    del rows[2]
    if amended:
        for place in (0, 1, 6, 30, 38):
            arm, reward, propensity, session = rows[place]
            rows[place] = arm, reward + 0.5 * place, propensity, session
            found.amend_reward(arm, reward, rows[place][1], propensity, session=session)
    gain = found.gain([0, 1, 2], is_contextual=False)
    assert gain is not None
    arms, rewards, w = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), 1.0 / np.array([r[2] for r in rows])
    values = [float((w * rewards)[arms == arm].sum() / w[arms == arm].sum()) for arm in range(3)]
    best = int(np.argmax(values))
    is_best = arms == best
    assert gain.best == best
    assert gain.value == pytest.approx(rewards.mean() - values[best])
    terms = (rewards - rewards.mean()) / len(rows) - np.where(is_best, w * (rewards - values[best]), 0.0) / w[is_best].sum()
    names = np.array([session or f"alone {i}" for i, (*_, session) in enumerate(rows)])
    reach = 1.96 * math.sqrt(sum(terms[names == name].sum() ** 2 for name in np.unique(names)))
    assert gain.interval == pytest.approx((gain.value - reach, gain.value + reach))
    assert gain.deviation == pytest.approx(rewards.std())
    for arm, tally in enumerate(found.arms):
        since = slice(2 if arm == 2 else 0, None)
        weights = np.where(arms == arm, w, 0.0)[since]
        sums = [weights[names[since] == name].sum() for name in np.unique(names)]
        assert tally.effective == pytest.approx(weights.sum() ** 2 / sum(one**2 for one in sums))


def test_the_support_of_an_arm_is_judged_by_sessions() -> None:
    """Ten decisions in each of 20 sessions, 13 of which have drawn the arm with probability 1/2: a mean weight of 1.3, which is
    1.4 standard errors of 20 draws from 1, and 4.4 of 200 draws.
    """
    rows = [(int(session >= 13), 0.0, 0.5, f"s{session}") for session in range(20) for _ in range(10)]
    found, alone = Tallies.start(arms=2, signals=1), Tallies.start(arms=2, signals=1)
    for arm, reward, propensity, session in rows:
        found.add_reward(arm, reward, propensity, session=session)
        alone.add_reward(arm, reward, propensity)
    assert not alone.arms[0].has_support(200)
    assert found.arms[0].has_support(200, found.pairs)


def test_sums_of_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "KEPT_CLUSTERS", 2)
    found = Tallies.start(arms=1, signals=1)
    for session in ("a", "b", "a", "c"):
        found.add_reward(0, 1.0, 0.5, session=session)
    assert list(found.clusters) == ["a", "c"]
    found.amend_reward(0, 1.0, 2.0, 0.5, session="b")  # not kept any more: by itself
    assert msgspec.json.decode(msgspec.json.encode(found), type=Tallies) == found


@pytest.mark.usefixtures("tiny")
def test_the_gain_of_three_outcomes_is_what_one_finds_by_hand() -> None:
    """V = (2 + 0) / (2 + 4) = 1/3 and R = 5/12; each outcome moves the gain by (r - R)/3 - w (r - V)/6: -1/36, 3/36, -2/36."""
    found = gain_of([(0, 1.0, 0.5), (0, 0.0, 0.25), (1, 0.25, 0.8)])
    assert found is not None
    assert (found.best, found.skipped) == (0, ())
    assert found.value == pytest.approx(1 / 12, abs=1e-12)
    half = 1.96 * math.sqrt(14 / 1296)
    assert found.interval == pytest.approx((1 / 12 - half, 1 / 12 + half), abs=1e-12)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("shift", "within"), [(0.0, 1e-12), (-7.5, 1e-12), (1e9, 1e-5)])
def test_a_gain_does_not_depend_on_where_rewards_begin(shift: float, within: float) -> None:
    found = gain_of([(arm, reward + shift, p) for arm, reward, p in [(0, 1.0, 0.5), (0, 0.0, 0.25), (1, 0.25, 0.8)]])
    assert found is not None
    assert found.value == pytest.approx(1 / 12, abs=within)


@pytest.mark.usefixtures("tiny")
def test_where_one_arm_is_all_that_is_played_the_gain_is_nothing() -> None:
    assert gain_of([(0, reward, 1.0) for reward in (0.5, 0.75, 0.25)]) == Gain(0.0, (0.0, 0.0), 0, (1,), math.sqrt(1 / 24))


@pytest.mark.usefixtures("tiny")
def test_outcomes_without_a_propensity_do_not_count() -> None:
    rows: list[Row] = [(0, 1.0, 0.5), (0, 0.0, 0.25), (1, 0.25, 0.8)]
    assert gain_of([*rows, (1, 9.0, None), (1, 9.0, 0.0)]) == gain_of(rows)


@pytest.mark.usefixtures("tiny")
def test_weights_are_capped_and_that_is_counted() -> None:
    found = tallied([(0, 1.0, 1e-6), (0, 0.0, 1.0)])
    assert (found.arms[0].w, found.arms[0].capped) == (MAX_WEIGHT + 1.0, 1)
    assert found.arms[0].ww == MAX_WEIGHT**2 + 1.0


def test_too_few_outcomes_say_nothing() -> None:
    rows: list[Row] = [(k % 2, 0.5, 0.5) for k in range(49)]
    assert gain_of(rows) is None
    many: list[Row] = [(0, 0.5, 0.5)] * 100
    found = gain_of(many + [(1, 0.5, 0.5)] * 10)
    assert found is not None
    assert (found.best, found.skipped) == (0, (1,)), "ten outcomes are too few of an arm"


def test_where_the_prompt_alone_decides_the_gain_is_not_known() -> None:
    """Each arm is good where it is played: as a fixed arm either might be anything."""
    rows: list[Row] = [(k % 2, 0.9, 1.0) for k in range(400)]
    assert gain_of(rows, is_contextual=True) is None
    assert gain_of(rows, is_contextual=False) is not None


def test_an_arm_that_came_later_is_compared_over_the_outcomes_since() -> None:
    found = Tallies.start(arms=1, signals=1)
    for _ in range(300):
        found.add_reward(0, 0.2, 1.0)
    found.add_arm()
    for k in range(300):
        found.add_reward(k % 2, 0.2 + 0.6 * (k % 2), 0.5)
    gain = found.gain([0, 1], is_contextual=True)
    assert gain is not None
    assert gain.best == 1


def test_the_interval_holds_the_gain_as_often_as_it_says() -> None:
    """A router that plays the better arm of two kinds of prompts with probability .8, over 300 logs: .68 against .5."""
    g, hits = np.random.default_rng(5), 0
    for _ in range(300):
        kind, chance = g.integers(2, size=400), g.random(400)
        right = chance < 0.8
        arms = np.where(right, kind, 1 - kind)
        means = np.where(arms == kind, 0.8, 0.2) + 0.1 * (arms == 0)
        rewards = means + 0.3 * g.standard_normal(400)
        rows: list[Row] = [(int(a), float(r), 0.8 if ok else 0.2) for a, r, ok in zip(arms, rewards, right, strict=True)]
        found = gain_of(rows, is_contextual=True)
        assert found is not None
        fixed = 0.5 + 0.1 * (found.best == 0)
        hits += found.interval[0] <= 0.68 + 0.05 - fixed <= found.interval[1]
    assert hits >= 274, "95 % less three standard errors"


def test_rewards_beyond_all_measure_leave_numbers_that_a_snapshot_holds() -> None:
    found = tallied([(0, 1e308, 1e-9), (1, -1e308, 1e-9), (0, 1.0, 0.5)])
    found.errors.add(1e308)
    found.errors.add(-1e308)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Tallies) == found


# -- means and signals -----------------------------------------------------------------------------------------------------------


def test_a_recent_mean_is_the_mean_until_it_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    values, found = np.random.default_rng(1).standard_normal(500), RecentMean()
    for value in values:
        found.add(float(value))
    assert (found.mean, found.deviation) == pytest.approx((values.mean(), values.std()), abs=1e-12)
    monkeypatch.setattr(tallies, "RECENT_OUTCOMES", 10)
    for _ in range(200):
        found.add(3.0)
    assert found.count == 700
    assert (found.mean, found.variance) == pytest.approx((3.0, 0.0), abs=1e-6)


def test_signals_are_counted_where_they_come() -> None:
    found = Tallies.start(arms=2, signals=2)
    for arm, values in ((0, (0.5, math.nan)), (0, (0.25, 4.0)), (1, (0.75, -2.0))):
        found.add_outcome(arm, values)
    assert [(arm.outcomes, arm.carried, arm.totals) for arm in found.arms] == [
        (2, [2, 1], [0.75, 4.0]),
        (1, [1, 1], [0.75, -2.0]),
    ]
    assert (found.lowest, found.highest) == ([0.25, -2.0], [0.75, 4.0])


# -- one reward of another size --------------------------------------------------------------------------------------------------


def steps_of(rewards: Sequence[float] | Floats, *, half_life: int | None = None) -> Steps:
    found = Steps()
    for reward in rewards:
        found.add(float(reward), half_life=half_life)
    return found


SMALL: Floats = 0.5 + 0.1 * np.random.default_rng(2).standard_normal(200)


@pytest.mark.parametrize("zero", [0.0, -1000.0, 1e9])
@pytest.mark.parametrize("place", [0, 100, 199])
def test_one_reward_of_another_size_is_seen_wherever_it_comes(zero: float, place: int) -> None:
    rewards = zero + SMALL
    assert steps_of(rewards).outlying() is None
    rewards[place] += 1e12
    found = steps_of(rewards).outlying()
    assert found is not None
    distances = np.abs(np.diff(rewards))
    assert np.array(found) / [np.median(distances), distances.max()] == pytest.approx(1.0, abs=0.51)
    packed = msgspec.json.encode(steps_of(rewards))
    assert msgspec.json.decode(packed, type=Steps).outlying() == found


@pytest.mark.parametrize(
    "rewards",
    [
        pytest.param([1.0, 0.0] * 5, id="few"),
        pytest.param([0.5] * 500, id="all alike"),
        pytest.param(([0.0] * 500 + [1.0]) * 4, id="rare successes"),
        pytest.param(np.exp(np.random.default_rng(1).standard_normal(5000)), id="a long tail"),
        pytest.param(np.where(np.arange(500) % 20, 1.0, 0.0) + 1e-7 * np.resize(SMALL, 500), id="failures beside small changes"),
        pytest.param(np.where(np.arange(500) % 2, 1e6, 0.0) + np.resize(SMALL, 500), id="arms far apart"),
    ],
)
def test_rewards_that_differ_as_rewards_do_are_not(rewards: Floats) -> None:
    assert steps_of(rewards).outlying() is None


def test_what_the_policy_forgets_is_forgotten() -> None:
    rewards = np.concatenate([SMALL[:20], [1e12], SMALL[20:]])
    assert steps_of(rewards).outlying() is not None
    assert steps_of(rewards[:90], half_life=50).outlying() is not None
    assert steps_of(rewards[:101], half_life=50).outlying() is None


def test_a_distance_that_is_no_number_is_taken_for_the_largest() -> None:
    found = steps_of([*SMALL, 1e308, -1e308, *SMALL]).outlying()
    assert found is not None
    assert math.isfinite(found[1])
