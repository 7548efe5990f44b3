"""Evaluation along a log: frozen states are exact, sums by block are those of all rows, arms may come later, rows are checked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from bandits.evaluation import estimators, intervals
from bandits.evaluation.estimators import LoggedDecisions
from service.engine import evaluation as module
from service.engine import events
from service.engine.evaluation import WITHOUT_FIRST, Evaluation, InvalidRequest, InvalidRow
from service.engine.evaluation_process import Pages, Plan, evaluate
from service.engine.events import Amended, ArmAdded, Created, Decided, Imported, NewArm, Observed, ShadowCreated, ShadowWeights
from service.engine.learner import Learner
from service.storage.memory import MemoryStorage
from tests.bandits.examples import DIM, Example
from tests.service.drivers import ask, created, learner_of, outcome

AT = datetime(2026, 1, 1, tzinfo=UTC)
EPSILON = Example(kind="epsilon-greedy", settings={"epsilon": 0.3})


def written(*, rounds: int = 300, seed: int = 1, later_arm: bool = False) -> list[events.AnyEvent]:
    """A log of random distributions over three arms, the fourth arm after half of it."""
    g, log = np.random.default_rng(seed), list[events.AnyEvent]([created(EPSILON)])
    for i in range(rounds):
        if later_arm and i == rounds // 2:
            log.append(ArmAdded(at=AT, name="later", price=0.0, metadata={}))
        arms = 4 if later_arm and i >= rounds // 2 else 3
        allowed = [0, *range(2, arms)] if i % 5 == 0 else list(range(arms))
        weights = np.zeros(arms)
        weights[allowed] = 0.7 * g.dirichlet(np.ones(len(allowed))) + 0.3 / len(allowed)
        arm = int(g.choice(arms, p=weights))
        estimate = [None if g.random() < 0.2 else float(g.random()) for _ in range(arms)]
        log.append(decided(f"d{i}", arm, weights.tolist(), allowed=allowed, scores={"estimate": estimate}))
        log.append(observed(f"d{i}", arm, float(g.random())))
    return log


def decided(name: str, arm: int, weights: list[float], **changes: Any) -> Decided:
    facts = {
        "at": AT, "id": name, "arm": arm, "propensity": weights[arm], "weights": weights, "scores": {}, "price": 0.0,
        "allowed": list(range(len(weights))), "features": b"", "episode": name, "attempt": 1, "body": "b",
    }  # fmt: skip
    return Decided(**{**facts, **changes})


def observed(name: str, arm: int, reward: float) -> Observed:
    return Observed(at=AT, id=name, arm=arm, reward=reward, cost=0.0, propensity=0.5, body="b")


def evaluated(log: list[events.AnyEvent], *policies: dict[str, Any], **options: Any) -> Evaluation:
    first = log[0]
    assert isinstance(first, Created)
    found = Evaluation(first, policies, **options)
    for offset, event in enumerate(log[1:], 2):
        found.add(offset, events.encode(event))
    return found


def always(log: list[events.AnyEvent], arm: int, *, arms: int) -> LoggedDecisions:
    """The rows of a fixed arm, put together by hand; there is no model."""
    rows = [event for event in log if isinstance(event, Decided)]
    outcomes = [event for event in log if isinstance(event, Observed)]
    logged, chosen = np.zeros((len(rows), arms)), np.zeros((len(rows), arms))
    for place, row in enumerate(rows):
        logged[place, : len(row.weights)] = row.weights
        chosen[place, arm if arm in row.allowed else min(row.allowed)] = 1.0
    rewards = np.array([each.reward for each in outcomes], dtype=np.float64)
    return LoggedDecisions(arms=np.array([row.arm for row in rows]), rewards=rewards, logged=logged, evaluated=chosen)


@pytest.mark.parametrize("block", [1, 7, 2_048])
def test_blocks_of_any_size_give_the_estimates_of_all_rows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    log = written(later_arm=True)
    found = evaluated(log, reward_range=(0.0, 1.0)).results(confidence=0.9)
    assert [one.label for one in found.fixed_arms] == ["always arm 0", "always arm 1", "always arm 2", "always later"]
    for arm, one in enumerate(found.fixed_arms):
        rows = always(log, arm, arms=4)
        for name in ("ips", "snips"):
            expected = getattr(estimators, name)(rows)
            value, interval = one.estimates[name]
            assert value == pytest.approx(expected.value, rel=1e-9)
            assert interval == pytest.approx(intervals.ordinary(expected, confidence=0.9), rel=1e-9)
        anytime = intervals.anytime(rows, reward_range=(0.0, 1.0), confidence=0.9)
        assert one.anytime_interval == pytest.approx(anytime, rel=1e-9)
        assert one.max_weight == pytest.approx(rows.weights.max())
    best = max(found.fixed_arms, key=lambda one: one.value)
    assert found.best_fixed_arm is not None
    assert found.best_fixed_arm.policy == best.policy
    assert found.best_fixed_arm.interval.low < best.interval.low, "it was chosen among four on the same rows"


async def lived(kind: str, *, rounds: int, **settings: Any) -> tuple[Learner, Example]:
    """A bandit with prompts after some rounds; outcomes come at once."""
    example = Example(kind=kind, dim=DIM, settings=settings)
    bandit, g = await learner_of(MemoryStorage(), example), np.random.default_rng(5)
    for i in range(rounds):
        kept = await bandit.decisions.submit(ask(example, g, f"d{i}"))
        await bandit.outcomes.submit(f"d{i}", outcome(example, g, kept.event.arm))
    return bandit, example


@pytest.mark.parametrize(("kind", "settings"), [("auto", {}), ("pak-ucb", {"exploration_floor": 0.05}), ("thompson", {})])
async def test_a_frozen_state_chooses_as_the_bandit_did_at_that_offset(kind: str, settings: dict[str, Any]) -> None:
    bandit, example = await lived(kind, rounds=60, **settings)
    await bandit.projection.versions.wait_until_prepared()
    while bandit.policy.has_to_prepare(bandit.versions.committed.state) and bandit.policy.prepares_rarely:
        await bandit.projection.background.finish()
    offset, g = bandit.versions.committed.offset, np.random.default_rng(9)
    asked = [ask(example, g, f"later{i}") for i in range(6)]
    shown = [(await bandit.decisions.preview(one)).weights for one in asked]
    for i in range(40):
        kept = await bandit.decisions.submit(ask(example, g, f"e{i}"))
        await bandit.outcomes.submit(f"e{i}", outcome(example, g, kept.event.arm))
    found = Evaluation(bandit.created, [{"frozen": offset}])
    for at, payload in await bandit.entries(after=1, limit=10_000):
        found.add(at, payload)
    one = found.candidates[0]
    assert found._own is not None
    for request, weights in zip(asked, shown, strict=True):
        event = decided("x", 0, [0.4, 0.3, 0.3], features=request.features)
        chosen = one.weights(found._own.ledger, event)
        assert chosen is not None
        assert chosen.tolist() == weights
    results = found.results()
    assert results.policies[0].label == f"frozen at {offset}"
    assert results.decisions == 40, "outcomes that it has learned do not judge it"


def test_a_frozen_state_is_judged_by_later_outcomes_alone() -> None:
    log = written()
    with pytest.raises(InvalidRequest, match="since: a state frozen at offset 100 has learned"):
        evaluated(log, {"frozen": 100}, since=50)
    with pytest.raises(InvalidRequest, match="the log ends at offset 601, before it is frozen at 900"):
        evaluated(log, {"frozen": 900}).results()


def test_a_frozen_state_ignores_arms_that_came_later() -> None:
    found = evaluated(written(later_arm=True), {"frozen": 200}).results()
    assert found.decisions == 200
    assert found.policies[0].mean_weight > 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": 0.0}, "field propensity: 0 is out of range"),
        ({"propensity": 1.5}, "field propensity: 1.5 is out of range"),
        ({"propensity": 0.7}, "field propensity: it is 0.7 where `weights` give the arm 0.5"),
        ({"arm": 3}, "field arm: arm 3, or one of `allowed`, is unknown"),
        ({"allowed": [0, 9]}, "or one of `allowed`, is unknown"),
        ({"weights": [0.25] * 4, "propensity": 0.25}, "field weights: there are 4, and 3 arms"),
        ({"weights": [0.5, 0.2, 0.2]}, "field weights: they are no distribution"),
        ({"weights": [0.5, 0.7, -0.2]}, "field weights: they are no distribution"),
        ({"id": "d0"}, None),
    ],
)
def test_a_row_that_cannot_be_true_is_named_with_its_field(changes: dict[str, Any], message: str | None) -> None:
    log = [*written(rounds=3), decided("bad", 0, [0.5, 0.3, 0.2]), observed("bad", 0, 1.0)]
    bad = msgspec.structs.replace(log[-2], **changes)
    if message is None:  # the first one is closed by now: the same id again is another decision
        evaluated([*log[:-2], bad, bad][:-1]).results()
        with pytest.raises(InvalidRow, match="was made before"):
            evaluated([*log[:-2], bad, bad])
        return
    with pytest.raises(InvalidRow, match=message) as raised:
        evaluated([*log[:-2], bad, log[-1]]).results()
    assert raised.value.offset == 8


def test_rows_that_lack_what_is_needed_say_what_to_do() -> None:
    found = evaluated(written(rounds=3))
    line = msgspec.json.decode(events.encode(decided("bad", 0, [0.5, 0.3, 0.2])))
    for name, message in (("weights", "without the distribution of every decision"), ("propensity", "the probability, above 0")):
        bad = {field: value for field, value in line.items() if field != name}
        with pytest.raises(InvalidRow, match=f"field {name}: .*{message}"):
            found.add(found.offset + 1, msgspec.json.encode(bad))
    with pytest.raises(InvalidRow, match=r"field weights\[1\]: "):
        found.add(found.offset + 1, msgspec.json.encode({**line, "weights": [0.5, "x", 0.2]}))
    with pytest.raises(InvalidRow, match="newer version"):
        found.add(found.offset + 1, msgspec.json.encode({**line, "event": "invented"}))
    with pytest.raises(InvalidRow, match="it is no JSON"):
        found.add(found.offset + 1, b'{"event": "decided", ')
    with pytest.raises(InvalidRow, match="put together from several"):
        found.add(2, events.encode(log_event()))


def log_event() -> Observed:
    return observed("none", 0, 1.0)


def test_rewards_outside_of_the_range_are_named() -> None:
    log = [*written(rounds=3), decided("far", 0, [0.5, 0.3, 0.2]), observed("far", 0, 7.0)]
    with pytest.raises(InvalidRow, match="field reward: 7 is outside of reward_range, 0 to 1"):
        evaluated(log, reward_range=(0.0, 1.0))


def test_a_log_without_its_middle_serves_fixed_arms_and_no_replay() -> None:
    log = written(rounds=20)
    first = log[0]
    assert isinstance(first, Created)
    found = Evaluation(first)
    for offset, event in enumerate(log[21:], 22):
        found.add(offset, events.encode(event))
    assert found.results().decisions == 10
    with pytest.raises(InvalidRow, match="entries 2 to 21 are missing"):
        Evaluation(first, [{"kind": "greedy"}]).add(22, events.encode(log[21]))


def test_imported_rows_count_where_they_have_their_weights() -> None:
    """The first half of the decisions as history of another service, and two rows that say less."""
    log = written(rounds=200)
    imported: list[events.AnyEvent] = [log[0]]
    for made, closed in zip(log[1:201:2], log[2:202:2], strict=True):
        assert isinstance(made, Decided)
        assert isinstance(closed, Observed)
        imported.append(row_of(made.id, made.arm, closed.reward, weights=made.weights))
    found = evaluated([*imported, *log[201:]], {"kind": "greedy"}).results()
    whole = evaluated(log, {"kind": "greedy"}).results()
    for name in ("ips", "snips"):
        for one, other in zip(found.fixed_arms[1:], whole.fixed_arms[1:], strict=True):
            assert one.estimates[name][0] == pytest.approx(other.estimates[name][0])
        assert found.policies[0].estimates[name][0] == pytest.approx(whole.policies[0].estimates[name][0], rel=0.05)
    assert found.behaviour.verdict == "answer"
    found = evaluated([*imported, row_of("less", 0, 1.0), row_of("least", 0, None), *log[201:]]).results()
    assert found.left_out == {"imported without weights": 1, "without a reward": 1}
    assert found.behaviour.verdict == "bounded"


def test_a_shadow_is_judged_by_the_weights_that_were_logged() -> None:
    g, log = np.random.default_rng(8), written(rounds=120)
    log.insert(1, ShadowCreated(at=AT, shadow="s", policy="greedy", hyperparameters={}, fingerprint="", learns_from="now"))
    rows, chosen = [], []
    for place, event in enumerate(log):
        if isinstance(event, Decided) and place % 6:
            weights = g.dirichlet(np.ones(3)) * np.isin(np.arange(3), event.allowed)
            chosen.append(weights / weights.sum())
            log[place] = msgspec.structs.replace(event, shadows={"s": ShadowWeights(2, chosen[-1].tolist())})
            rows += [log[place], log[place + 1]]
    found = evaluated(log, {"shadow": "s"}, shadows={"s": 2}).results()
    assert found.left_out == {"without weights of a shadow": 120 - len(chosen)}
    expected = estimators.snips(evaluating(always(rows, 0, arms=3), np.array(chosen)))
    assert found.policies[0].label == "shadow s"
    assert found.policies[0].value == pytest.approx(expected.value)
    with pytest.raises(InvalidRequest, match="this bandit has no such shadow; it has s"):
        evaluated(log, {"shadow": "t"}, shadows={"s": 2})


async def test_amended_rewards_count_as_they_were_corrected() -> None:
    bandit = await learner_of(MemoryStorage(), EPSILON)
    g = np.random.default_rng(2)
    for i in range(60):
        kept = await bandit.decisions.submit(ask(EPSILON, g, f"d{i}"))
        await bandit.outcomes.submit(f"d{i}", outcome(EPSILON, g, kept.event.arm, reward=0.0))
    entries = await bandit.entries(after=0, limit=1_000)
    closed = {getattr(events.decode(payload), "id", ""): offset for offset, payload in entries}
    for place, name in enumerate(("d3", "d40")):
        entries.append((len(entries) + 1, events.encode(amended(name, closed[name], reward=6.0 * (place + 1)))))

    async def read() -> Pages:
        yield entries[:50]
        yield entries[50:]

    found = await evaluate(Plan(source="greeter"), read)
    assert found["decisions"] == 60
    assert found["behaviour"]["value"] == pytest.approx((6.0 + 12.0) / 60)


def amended(name: str, closed: int, *, reward: float) -> Amended:
    return Amended(
        at=AT, id=name, n=1, outcome=closed, body="b", reward=reward, cost=0.0, before={"reward": 0.0}, counts="before", held=0,
        arm=0, propensity=0.5, price=0.0, features=b"",
    )  # fmt: skip


def evaluating(log: LoggedDecisions, chosen: np.ndarray) -> LoggedDecisions:
    return LoggedDecisions(arms=log.arms, rewards=log.rewards, logged=log.logged, evaluated=chosen)


def row_of(name: str, arm: int, reward: float | None, **changes: Any) -> Imported:
    return Imported(at=AT, id=name, arm=arm, reward=reward, cost=0.0, price=0.0, features=b"", body="b", **changes)


def test_large_rewards_keep_their_digits() -> None:
    log = written(rounds=200)
    moved = [
        msgspec.structs.replace(each, reward=(each.reward or 0.0) + 1e9) if isinstance(each, Observed) else each for each in log
    ]
    for name in ("snips", "ips"):
        here, there = (evaluated(one).results(estimator=name).behaviour for one in (log, moved))
        assert there.interval.high - there.interval.low == pytest.approx(here.interval.high - here.interval.low, rel=1e-4)


def test_an_arm_of_the_first_event_is_enough() -> None:
    log: list[events.AnyEvent] = [created(EPSILON), decided("a", 0, [0.4, 0.3, 0.3]), observed("a", 0, 1.0)]
    found = evaluated(log).results()
    assert found.behaviour.value == 1.0
    assert found.best_fixed_arm is None, "one decision says nothing of any arm"
    assert [arm.policy for arm in found.fixed_arms] == [{"arm": arm.name} for arm in first_arms(log)]


def first_arms(log: list[events.AnyEvent]) -> list[NewArm]:
    first = log[0]
    assert isinstance(first, Created)
    return first.arms


# -- sessions ------------------------------------------------------------------------------------------------------------------


SESSIONS = Example(
    kind="epsilon-greedy", settings={"epsilon": 0.7}, reward=lambda g, arm: float(g.random() < (0.2, 0.5, 0.8)[arm])
)


async def test_a_session_is_one_cluster_with_the_weight_of_its_first_decision() -> None:
    learner, g = await learner_of(MemoryStorage(), SESSIONS, session_ttl_s=3600.0), np.random.default_rng(2)
    for i in range(240):
        session = f"s{i % 80}" if i % 3 else None
        decided = (await learner.decisions.submit(ask(SESSIONS, g, f"d{i}", session=session))).event
        await learner.outcomes.submit(f"d{i}", outcome(SESSIONS, g, decided.arm))
    entries = await learner.entries(after=0, limit=10_000)
    found = [(offset, events.decode(payload)) for offset, payload in entries]
    decisions = {event.id: event for _, event in found if isinstance(event, events.Decided)}
    rewards = {event.id: event.reward or 0.0 for _, event in found if isinstance(event, events.Observed)}
    assert sum(one.sticky is True for one in decisions.values()) > 50
    evaluation = Evaluation(learner.created, [{"kind": "random"}])
    for offset, payload in entries[1:]:
        evaluation.add(offset, payload)
    results = evaluation.results(estimator="ips")
    assert (results.decisions, dict(results.left_out)) == (240, {})
    firsts = {name: decisions[one.chosen_by] if isinstance(one.chosen_by, str) else one for name, one in decisions.items()}
    clusters: dict[str, list[str]] = {}
    for name, one in decisions.items():
        clusters.setdefault(one.session if isinstance(one.session, str) else name, []).append(name)

    def weight(label: str, one: Decided) -> float:
        if label == "as logged":
            return 1.0
        mine = 1 / 3 if label == "random" else float(label == f"always arm {one.arm}")
        return mine / one.weights[one.arm]

    for policy in (results.behaviour, *results.policies, *results.fixed_arms):
        terms = {name: weight(policy.label, firsts[name]) * rewards[name] for name in decisions}
        value = sum(terms.values()) / 240
        off = [sum(terms[name] - value for name in names) for names in clusters.values()]
        reach = 1.959964 * sum(one**2 for one in off) ** 0.5 / 240
        assert policy.value == pytest.approx(value), policy.label
        assert tuple(policy.interval) == pytest.approx((value - reach, value + reach), abs=1e-6), policy.label


async def test_a_sticky_decision_whose_first_one_does_not_count_is_left_out() -> None:
    learner, g = await learner_of(MemoryStorage(), SESSIONS, session_ttl_s=3600.0), np.random.default_rng(2)
    for i in range(12):
        decided = (await learner.decisions.submit(ask(SESSIONS, g, f"d{i}", session=f"s{i % 4}"))).event
        await learner.outcomes.submit(f"d{i}", outcome(SESSIONS, g, decided.arm))
    entries = await learner.entries(after=0, limit=100)
    third = next(offset for offset, payload in entries if b'"decided"' in payload and b'"id":"d3"' in payload)
    evaluation = Evaluation(learner.created, since=third)
    for offset, payload in entries[1:]:
        evaluation.add(offset, payload)
    results = evaluation.results()
    assert (results.decisions, dict(results.left_out)) == (3, {WITHOUT_FIRST: 6})
