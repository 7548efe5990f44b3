"""What the log says about arms, open decisions and episodes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits import state as states
from bandits.errors import InvalidContext
from bandits.policies.baselines import Greedy
from bandits.policies.promptwise import PromptWise
from bandits.types import REFERENCE, Observation, empty
from service.engine import events, ledger
from service.engine.events import (
    AnyEvent,
    ArmAdded,
    ArmChanged,
    ArmRetired,
    Cancelled,
    Decided,
    Expired,
    Imported,
    Matrix,
    MomentsGiven,
    Observed,
    ReferenceAdded,
)
from service.engine.ledger import (
    AddPending,
    ArmRecord,
    Effect,
    GrowArms,
    InconsistentEventError,
    Learn,
    Ledger,
    RemovePending,
    Retire,
    View,
)
from tests.service.drivers import created

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Greedy()
EPISODIC = PromptWise(dim=2, success_threshold=0.75)
FEATURES = events.vector_bytes(np.array([0.5, -0.25]))


def decided(decision: str, arm: int, *, at: float = 0.0, episode: str = "", **changes: Any) -> Decided:
    facts: dict[str, Any] = {
        "at": NOW + timedelta(seconds=at),
        "id": decision,
        "arm": arm,
        "propensity": 0.625,
        "weights": [],
        "scores": {},
        "allowed": [],
        "price": 0.15,
        "features": FEATURES,
        "episode": episode or decision,
        "attempt": 1,
        "body": "",
    }
    return Decided(**{**facts, **changes})


def observed(decision: str, arm: int, *, reward: float | None = 0.4, **changes: Any) -> Observed:
    return Observed(
        **{"at": NOW, "id": decision, "arm": arm, "reward": reward, "cost": 0.3, "propensity": 0.625, "body": "", **changes}
    )


def ledger_of(*log: AnyEvent, policy: Any = POLICY, **changes: Any) -> tuple[Ledger, list[Effect]]:
    """A ledger that has read these events, and what followed from the last one."""
    book, effects = Ledger(created(**changes)), []
    for event in log:
        effects = book.apply(book.offset + 1, event, policy)
    return book, effects


def same(one: Effect, other: Effect) -> bool:
    """Effects hold tensors, which have no equality of their own."""
    return repr(one) == repr(other)


X = torch.tensor([0.5, -0.25], dtype=torch.float64)


def test_a_decision_is_open_and_its_arm_has_one_more_pending() -> None:
    book, effects = ledger_of(decided("d1", 1))
    assert (book.arms[1].pulls, book.arms[1].pending, book.arms[1].outcomes) == (1, 1, 0)
    assert list(book.open) == ["d1"]
    assert (book.open["d1"].offset, book.open["d1"].price, book.open["d1"].propensity) == (2, 0.15, 0.625)
    assert (book.decided, list(book.recent), book.offset) == (1, [1], 2)
    assert len(effects) == 1
    assert same(effects[0], AddPending(1, X))


def test_an_outcome_closes_its_decision_and_is_learned() -> None:
    book, effects = ledger_of(decided("d1", 1), observed("d1", 1, output=Matrix.of(np.array([[1.5, 2.5]]))))
    assert not book.open
    assert book.arms[1] == ArmRecord("arm 1", 0.5, {}, True, 1, 1, 0, 0.4, 0.3, 1)
    seen = Observation(
        arm=1,
        features=X,
        reward=0.4,
        cost=0.3,
        output=torch.tensor([[1.5, 2.5]], dtype=torch.float64),
        reference=events.EMPTY.tensor(),
        was_pending=True,
        offset=3,
    )
    assert len(effects) == 1
    assert same(effects[0], Learn(seen))


def test_an_outcome_of_another_arm_is_learned_for_that_arm_and_releases_the_suggested_one() -> None:
    book, effects = ledger_of(decided("d1", 1), observed("d1", 2, propensity=None))
    assert [(arm.pulls, arm.pending, arm.outcomes) for arm in book.arms] == [(0, 0, 0), (0, 0, 0), (1, 0, 1)]
    assert same(effects[0], RemovePending(1, X))
    assert isinstance(effects[1], Learn)
    assert (effects[1].observation.arm, effects[1].observation.was_pending) == (2, False)


def imported(row: str, arm: int = 1, **changes: Any) -> Imported:
    facts = {"at": NOW, "id": row, "arm": arm, "reward": 0.4, "cost": 0.3, "price": 0.5, "features": FEATURES, "body": ""}
    return Imported(**{**facts, **changes})


def test_an_imported_outcome_is_learned_and_is_neither_a_pull_nor_open() -> None:
    book, effects = ledger_of(imported("r", 1))
    assert book.arms[1] == ArmRecord("arm 1", 0.5, {}, True, 0, 1, 0, 0.4, 0.3, 1, imported=1)
    assert (book.decided, list(book.recent), book.open) == (0, [], {})
    assert (book.tallies.missing.count, book.tallies.last_outcome, book.tallies.arms[1].outcomes) == (0, None, 0)
    assert len(effects) == 1
    seen = Observation(
        arm=1, features=X, reward=0.4, cost=0.3, output=events.EMPTY.tensor(), reference=events.EMPTY.tensor(), offset=2
    )
    assert same(effects[0], Learn(seen))
    assert View.of(book.arms, {}).decided[1] == 1, "no arm is tried because it is new"
    assert Ledger.unpack(book.created, book.pack()).arms == book.arms


@pytest.mark.parametrize("changes", [{"arm": 3}, {"features": b"\0" * 12}])
def test_an_imported_outcome_that_fits_no_arm_or_prompt_is_damage(changes: dict[str, Any]) -> None:
    book = Ledger(created(dim=2))
    with pytest.raises(InconsistentEventError):
        book.apply(2, imported("r", **changes), POLICY)


def test_a_missing_reward_is_learned_as_zero() -> None:
    effects = ledger_of(decided("d1", 1), observed("d1", 1, reward=None))[1]
    assert isinstance(effects[0], Learn)
    assert effects[0].observation.reward == 0.0


def test_an_expiry_without_a_reward_leaves_nothing_but_the_pull() -> None:
    book, effects = ledger_of(decided("d1", 1), Expired(at=NOW, id="d1", reward=None))
    assert (book.arms[1].pulls, book.arms[1].pending, book.arms[1].outcomes) == (1, 0, 0)
    assert [same(effect, RemovePending(1, X)) for effect in effects] == [True]


def test_an_expiry_with_a_reward_is_learned_at_the_price_of_the_decision() -> None:
    book, effects = ledger_of(decided("d1", 1), Expired(at=NOW, id="d1", reward=-0.75))
    assert (book.arms[1].outcomes, book.arms[1].reward_sum, book.arms[1].cost_sum) == (1, -0.75, 0.15)
    assert isinstance(effects[0], Learn)
    assert (effects[0].observation.reward, effects[0].observation.cost, effects[0].observation.was_pending) == (-0.75, 0.15, True)


def test_a_cancelled_decision_is_released() -> None:
    book, effects = ledger_of(decided("d1", 1), Cancelled(at=NOW, id="d1"))
    assert (book.arms[1].pulls, book.arms[1].pending) == (1, 0)
    assert [same(effect, RemovePending(1, X)) for effect in effects] == [True]


def test_a_stop_is_counted_and_never_open() -> None:
    book, effects = ledger_of(decided("d1", -1))
    assert (book.decided, book.open, list(book.recent), effects) == (1, {}, [], [])


def test_arms_come_change_go_and_come_back() -> None:
    book, effects = ledger_of(ArmAdded(at=NOW, name="new", price=0.7, metadata={"a": 1}))
    assert effects == [GrowArms()]
    assert (book.index("new"), book.index("none")) == (3, None)
    assert book.arms[3] == ArmRecord("new", 0.7, {"a": 1})
    before = tuple(book.arms)
    assert book.apply(3, ArmRetired(at=NOW, arm=3), POLICY) == [Retire(frozenset({3}))]
    assert (book.arms[3].active, before[3].active) == (False, True), "a view that is still held stays as it was"
    assert book.apply(4, ArmChanged(at=NOW, arm=3, price=0.9, metadata={}), POLICY) == [Retire(frozenset())]
    assert book.arms[3] == ArmRecord("new", 0.9, {}, True)


def test_references_are_counted() -> None:
    samples = ReferenceAdded(at=NOW, outputs=Matrix.of(np.ones((5, 2))), prompts=Matrix.of(np.zeros((5, 3))))
    given = MomentsGiven(mean=np.array([0.5]).tobytes(), covariance=np.array([2.25]).tobytes(), count=40)
    book, effects = ledger_of(samples)
    assert book.referenced == 5
    assert isinstance(effects[0], Learn)
    assert effects[0].observation.arm == REFERENCE
    assert effects[0].observation.features.shape == (5, 3)
    book, effects = ledger_of(ReferenceAdded(at=NOW, moments=given))
    assert book.referenced == 40
    assert isinstance(effects[0], Learn)
    assert effects[0].observation.moments is not None
    assert (effects[0].observation.moments.mean.tolist(), effects[0].observation.moments.covariance.tolist()) == ([0.5], [[2.25]])


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ([created()], "created once"),
        ([decided("d1", 0), decided("d1", 1)], "made before"),
        ([observed("d1", 0)], "not open"),
        ([decided("d1", 0), Cancelled(at=NOW, id="d1"), observed("d1", 0)], "not open"),
        ([decided("d1", 7)], "no arm 7"),
        ([decided("d1", 0), observed("d1", -3)], "no arm -3"),
        ([ArmRetired(at=NOW, arm=3)], "no arm 3"),
        ([ArmAdded(at=NOW, name="arm 1", price=0.0, metadata={})], "added before"),
    ],
)
def test_an_event_that_cannot_follow_is_refused(log: list[AnyEvent], reason: str) -> None:
    with pytest.raises(InconsistentEventError, match=reason):
        ledger_of(*log)


@pytest.mark.parametrize("offset", [1, 2, 4, 9])
def test_no_offset_is_left_out_or_read_twice(offset: int) -> None:
    book = ledger_of(decided("d1", 0))[0]
    with pytest.raises(InconsistentEventError, match=f"offset {offset} after 2"):
        book.apply(offset, decided("d2", 0), POLICY)


# -- what a policy learns ----------------------------------------------------------------------------------------------------


def test_a_context_says_what_is_allowed_pending_and_priced() -> None:
    book, _ = ledger_of(decided("d1", 1), decided("d2", 1), decided("d3", 2), ArmRetired(at=NOW, arm=0))
    context = book.context(View.of(book.arms, {1: 1}), features=X, allowed={}, episode="")
    assert context.allowed == (False, True, True)
    assert context.pending == (0, 3, 1)
    assert context.prices == pytest.approx((0.2, 0.5, 0.8))
    assert context.features is X
    restricted = book.context(View.of(book.arms, {}), features=empty(), allowed={2: 0.05, 0: None}, episode="")
    assert restricted.allowed == (False, False, True), "a retired arm is not brought back by asking for it"
    assert restricted.prices == pytest.approx((0.2, 0.5, 0.05))


def test_a_context_can_be_of_an_earlier_moment() -> None:
    book = ledger_of(decided("d1", 1))[0]
    before = tuple(book.arms)
    book.apply(3, ArmAdded(at=NOW, name="new", price=0.7, metadata={}), POLICY)
    book.apply(4, observed("d1", 1), POLICY)
    context = book.context(View.of(before, {}), features=empty(), allowed={}, episode="")
    assert (context.allowed, context.pending) == ((True, True, True), (0, 1, 0))


def test_a_request_for_arms_that_are_gone_is_refused_as_the_callers_fault() -> None:
    book = ledger_of(ArmRetired(at=NOW, arm=2))[0]
    for allowed in ({2: None}, {7: None}):
        with pytest.raises(InvalidContext, match="retired meanwhile"):
            book.context(View.of(book.arms, {}), features=empty(), allowed=allowed, episode="")


def test_failed_attempts_are_counted_within_their_episode() -> None:
    log: list[AnyEvent] = [
        decided("d1", 0, episode="e"),
        observed("d1", 0, reward=0.7),
        decided("d2", 2, episode="e"),
        Expired(at=NOW, id="d2", reward=0.0),
    ]
    book = ledger_of(*log, decided("d3", 2, episode="e"), observed("d3", 0, reward=0.1), policy=EPISODIC)[0]
    assert book.context(View.of(book.arms, {}), features=empty(), allowed={}, episode="e").attempts == (2, 0, 1)
    assert book.context(View.of(book.arms, {}), features=empty(), allowed={}, episode="other").attempts == (0, 0, 0)
    assert (book.episodes["e"].made, book.episodes["e"].finished) == (3, False)


def test_a_success_or_a_stop_ends_an_episode_for_good() -> None:
    succeeded = ledger_of(decided("d1", 0, episode="e"), observed("d1", 0, reward=0.75), policy=EPISODIC)[0]
    stopped = ledger_of(decided("d1", -1, episode="e"), policy=EPISODIC)[0]
    for book in (succeeded, stopped):
        assert book.episodes["e"].finished
    late = ledger_of(
        decided("d1", 0, episode="e"), observed("d1", 0, reward=0.75), decided("d2", 1, episode="e"), policy=EPISODIC
    )[0]
    assert late.episodes["e"].finished, "a decision that was on its way does not open it again"
    (going,), ended = ledger_of(decided("d1", 0, episode="e"), policy=EPISODIC)[0].episodes.values(), [succeeded, stopped, late]
    assert going.features
    assert [book.episodes["e"].features for book in ended] == [b""] * 3, "10,000 of them are remembered"


def test_an_expired_attempt_was_made_and_counts_and_a_cancelled_one_does_not() -> None:
    log: list[AnyEvent] = [
        decided("d1", 0, episode="e"),
        Cancelled(at=NOW, id="d1"),
        decided("d2", 1, episode="e"),
        Expired(at=NOW, id="d2", reward=None),
        decided("d3", 1, episode="e"),
        Expired(at=NOW, id="d3", reward=0.0),
    ]
    book = ledger_of(*log, policy=EPISODIC)[0]
    assert (book.episodes["e"].attempts, book.episodes["e"].finished) == ({1: 2}, False)
    assert book.context(View.of(book.arms, {}), features=empty(), allowed={}, episode="e").attempts == (0, 2, 0)


def test_an_expired_attempt_of_a_retired_arm_counts_like_any_other() -> None:
    log: list[AnyEvent] = [
        decided("d1", 2, episode="e"),
        ArmRetired(at=NOW, arm=2),
        Expired(at=NOW, id="d1", reward=None),
    ]
    book = ledger_of(*log, policy=EPISODIC)[0]
    assert book.context(View.of(book.arms, {}), features=empty(), allowed={}, episode="e").attempts == (0, 0, 1)


def test_an_expired_success_ends_its_episode() -> None:
    log: list[AnyEvent] = [decided("d1", 0, episode="e"), Expired(at=NOW, id="d1", reward=0.75)]
    book = ledger_of(*log, policy=EPISODIC)[0]
    assert (book.episodes["e"].attempts, book.episodes["e"].finished) == ({}, True)


def test_an_outcome_without_a_reward_is_no_success_whatever_the_threshold() -> None:
    log: list[AnyEvent] = [decided("d1", 0, episode="e"), observed("d1", 0, reward=None)]
    book = ledger_of(*log, policy=PromptWise(dim=2, success_threshold=-1.0))[0]
    assert (book.episodes["e"].attempts, book.episodes["e"].finished) == ({0: 1}, False)


def test_an_older_log_with_more_attempts_than_are_given_now_is_still_folded() -> None:
    log: list[AnyEvent] = []
    for number in range(7):
        log += [decided(f"d{number}", 0, episode="e", at=float(number)), Expired(at=NOW, id=f"d{number}", reward=None)]
    policy = PromptWise(dim=2, max_attempts=2)
    book = ledger_of(*log, decided("late", 1, episode="e"), observed("late", 1, reward=1.0), policy=policy)[0]
    context = book.context(View.of(book.arms, {}), features=X, allowed={}, episode="e")
    assert (sum(context.attempts), book.episodes["e"].finished) == (7, True)
    assert not policy.weights(states.start(policy, arms=3), [context]).values.any(), (
        "no call is left, and nothing else goes wrong"
    )


def test_episodes_that_were_stopped_before_any_call_are_counted() -> None:
    log: list[AnyEvent] = [
        decided("d1", -1, episode="a"),
        decided("d2", 0, episode="b"),
        decided("d3", -1, episode="b"),
        decided("d4", -1),
        decided("d5", -1, episode="a"),
    ]
    book = ledger_of(*log, policy=EPISODIC)[0]
    assert book.skipped == 2, "b had a call, and a is counted once"
    assert book.context(View.of(book.arms, {}), features=X, allowed={}, episode="").skipped == 2
    again = Ledger.unpack(created(), book.pack())
    assert again.skipped == 2
    older = msgspec.json.decode(book.pack())
    del older["skipped"]
    assert Ledger.unpack(created(), msgspec.json.encode(older)).skipped == 0, "a snapshot of before it was counted"


def test_the_least_recently_used_episode_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT_EPISODES", 3)
    log = [decided(f"d{i}", 0, episode=episode) for i, episode in enumerate("abcadb")]
    assert list(ledger_of(*log, policy=EPISODIC)[0].episodes) == ["a", "d", "b"]


def test_policies_without_episodes_keep_only_those_that_a_client_named() -> None:
    assert list(ledger_of(decided("d1", 0), decided("d2", 0, episode="e"))[0].episodes) == ["e"]


def test_shares_are_of_the_last_thousand_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.RECENT == 1000
    book = ledger_of(*(decided(f"d{i}", int(i < 5)) for i in range(1003)))[0]
    assert (len(book.recent), sum(book.recent)) == (1000, 2)


# -- time -------------------------------------------------------------------------------------------------------------------


def test_a_decision_is_overdue_when_its_time_is_over_and_not_before() -> None:
    book = ledger_of(decided("d1", 0, at=0.0), decided("d2", 0, at=5.0), decided("d3", 0, at=9.0), timeout_s=30.0)[0]
    for after, expected in ((29.999, []), (30.0, ["d1"]), (35.0, ["d1", "d2"]), (99.0, ["d1", "d2", "d3"])):
        assert [decision.id for decision in book.overdue(NOW + timedelta(seconds=after))] == expected


@pytest.mark.parametrize("timeout", [1e9, 1e12, 1e300])
def test_a_timeout_beyond_the_calendar_never_expires_anything(timeout: float) -> None:
    book = ledger_of(decided("d1", 0), timeout_s=timeout)[0]
    assert book.overdue(NOW + timedelta(days=3650)) == []


# -- bytes ------------------------------------------------------------------------------------------------------------------


@st.composite
def logs(draw: st.DrawFn) -> list[AnyEvent]:
    """Any log that the service could have written."""
    log: list[AnyEvent] = []
    open_, arms, made = [], 3, 0
    for _ in range(draw(st.integers(0, 25))):
        what = draw(st.sampled_from(["decide", "decide", "observe", "expire", "cancel", "add", "change", "retire"]))
        if what == "decide":
            made += 1
            arm = draw(st.integers(-1, arms - 1))
            log.append(decided(f"d{made}", arm, at=float(made), episode=draw(st.sampled_from(["", "e", "f"]))))
            if arm >= 0:
                open_.append((f"d{made}", arm))
        elif what in ("observe", "expire", "cancel") and open_:
            decision, arm = open_.pop(draw(st.integers(0, len(open_) - 1)))
            reward = draw(st.floats(-2.0, 2.0))
            played = draw(st.sampled_from([arm, arm, draw(st.integers(0, arms - 1))]))
            log.append(
                observed(decision, played, reward=reward)
                if what == "observe"
                else Expired(at=NOW, id=decision, reward=draw(st.sampled_from([None, reward])))
                if what == "expire"
                else Cancelled(at=NOW, id=decision)
            )
        elif what == "add":
            arms += 1
            log.append(ArmAdded(at=NOW, name=f"new {arms}", price=0.1, metadata={}))
        elif what == "change":
            log.append(ArmChanged(at=NOW, arm=draw(st.integers(0, arms - 1)), price=0.9, metadata={"a": [1]}))
        elif what == "retire":
            log.append(ArmRetired(at=NOW, arm=draw(st.integers(0, arms - 1))))
    return log


@settings(deadline=None)
@given(log=logs())
def test_the_numbers_of_an_arm_are_those_of_the_log(log: list[AnyEvent]) -> None:
    """Counted once more from the whole log, event by event."""
    book = ledger_of(*log, policy=EPISODIC)[0]
    chosen = {event.id: event.arm for event in log if isinstance(event, Decided) and event.arm >= 0}
    closed = {event.id: event for event in log if isinstance(event, Observed | Expired | Cancelled)}
    played = {**chosen, **{event.id: event.arm for event in closed.values() if isinstance(event, Observed)}}
    for index, arm in enumerate(book.arms):
        learned = [
            event
            for decision, event in closed.items()
            if played[decision] == index and isinstance(event, Observed | Expired) and event.reward is not None
        ]
        assert arm.pulls == sum(each == index for each in played.values())
        assert arm.pending == sum(each == index for decision, each in chosen.items() if decision not in closed)
        assert arm.outcomes == len(learned)
        assert math.isclose(arm.reward_sum, sum(event.reward or 0.0 for event in learned), abs_tol=1e-12)
    assert list(book.open) == [decision for decision in chosen if decision not in closed]


@settings(deadline=None)
@given(log=logs(), cut=st.integers(0, 25))
def test_a_ledger_that_was_packed_goes_on_as_if_nothing_had_happened(log: list[AnyEvent], cut: int) -> None:
    whole = ledger_of(*log, policy=EPISODIC)[0]
    book = ledger_of(*log[:cut], policy=EPISODIC)[0]
    book = Ledger.unpack(book.created, book.pack())
    for event in log[cut:]:
        book.apply(book.offset + 1, event, EPISODIC)
    assert book.pack() == whole.pack()
    assert [book.index(arm.name) for arm in book.arms] == list(range(len(book.arms)))


def test_other_bytes_are_no_ledger() -> None:
    data = ledger_of(decided("d1", 0))[0].pack()
    for garbled in (b"", data[:-1], data.replace(b'"offset":2', b'"offset":"2"'), b"[]"):
        with pytest.raises((msgspec.DecodeError, msgspec.ValidationError)):
            Ledger.unpack(created(), garbled)


def test_the_newest_ids_of_references_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT_REFERENCES", 2)
    book = Ledger(created())
    for offset, name in enumerate(("first", "second", "third"), start=2):
        book.apply(offset, ReferenceAdded(at=NOW, outputs=Matrix.of(np.ones((1, 2))), id=name, body="b"), POLICY)
    assert list(book.references) == ["second", "third"]
