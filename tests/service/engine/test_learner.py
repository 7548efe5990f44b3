"""One bandit under clients, restarts, cancellations, failing stores and damaged bytes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from bandits import state as states
from bandits.errors import BanditError, InvalidContext, InvalidObservation
from bandits.policies.baselines import Greedy
from bandits.registry import POLICIES
from bandits.types import State, Weights
from service.engine import events, readiness, snapshots
from service.engine import executor as pace
from service.engine import projection as folding
from service.engine.commit import Recorded
from service.engine.errors import (
    DecisionCancelledError,
    DecisionConflictError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionWasStopError,
    OpenDecisionLimitError,
    OutcomeConflictError,
)
from service.engine.events import ArmAdded, ArmRetired, Cancelled, Decided, Observed
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.storage.base import (
    Durability,
    Entry,
    Log,
    LogCompactedError,
    LogNotFoundError,
    Receipt,
    Storage,
    StorageDamagedError,
    StorageUnavailableError,
)
from service.storage.memory import MemoryStorage
from tests.bandits.examples import EXAMPLES, Example
from tests.service.drivers import GREEDY, PAK, Clients, Clock, ask, learner_of, outcome
from tests.service.storages import STORAGES, Opener, started

PATIENCE_S = 20
FORMS = [  # every form over memory, the first form of each kind over every storage
    pytest.param(example, storage, id=f"{kind}-{number}-{storage}")
    for kind in POLICIES
    for number, example in enumerate(EXAMPLES.get(kind, ()))
    for storage in (sorted(STORAGES) if number == 0 else ["memory"])
]
every_form = pytest.mark.parametrize(("example", "opener"), FORMS, indirect=["opener"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


async def replayed(bandit: Learner, storage: Storage, **options: Any) -> Learner:
    """The same log, folded by another learner."""
    return await Learner.load(storage, bandit.log, **options)


def facts(bandit: Learner) -> tuple[Any, ...]:
    """Everything that must not depend on how it came about."""
    return bandit.digest(), bandit.ledger.pack(), bandit.versions.committed.arms


def close(one: Decided, other: Decided, *, within: float = 1e-9) -> bool:
    """Whether two decisions were scored alike."""
    pairs = [(np.array(one.scores[name], float), np.array(other.scores[name], float)) for name in one.scores]
    alike = all(np.allclose(a, b, rtol=within, atol=within, equal_nan=True) for a, b in pairs)
    return one.scores.keys() == other.scores.keys() and alike


# -- live = replay = snapshot + tail ----------------------------------------------------------------------------------------


@every_form
async def test_live_replay_and_snapshot_with_tail_end_at_the_same_bytes(
    example: Example, opener: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"clock": clock, "snapshot_every": 9}
    async with started(opener) as storage:
        bandit = await learner_of(storage, example, options=options)
        clients = Clients(example, bandit, clock, seed=5)
        await clients.work(6)
        for threads in (0.0, math.inf):  # all mathematics in a worker thread, then all in the event loop
            monkeypatch.setattr(pace, "THREAD_ABOVE_S", threads)
            await clients.work(4)
        await bandit.projection.catch_up()
        live = facts(bandit)
        for batch in (1, 7, 256):
            monkeypatch.setattr(folding, "READ_BATCH", batch)
            assert facts(await replayed(bandit, storage, use_snapshots=False)) == live, f"replayed in batches of {batch}"
            assert facts(await replayed(bandit, storage)) == live, f"from a snapshot, in batches of {batch}"
        assert await storage.load_snapshots(bandit.log)
        await bandit.projection.close()
        assert (await storage.load_snapshots(bandit.log))[0][0] == bandit.versions.committed.offset
    async with started(opener) as storage:
        again = await Learner.load(storage, bandit.log)
        assert facts(again) == live, "after a restart"


@pytest.mark.parametrize("kind", POLICIES)
async def test_restarts_at_any_moment_change_nothing(kind: str, opener: Opener, clock: Clock) -> None:
    example, g = EXAMPLES[kind][0], default_rng(6)
    storage = opener()
    await storage.start()
    bandit = await learner_of(storage, example, options={"clock": clock})
    clients = Clients(example, bandit, clock, seed=7)
    for _ in range(5):
        await clients.work(2)
        if g.random() < 0.5:
            await bandit.projection.close()  # leaves a snapshot; else the log is all there is
        live = facts(bandit)
        await storage.close()
        storage = opener()
        await storage.start()
        bandit = clients.learner = await Learner.load(storage, bandit.log, clock=clock)
        assert facts(bandit) == live
    assert facts(await replayed(bandit, storage, use_snapshots=False)) == facts(bandit)
    for decision, (arm, propensity) in clients.kept.items():
        kept = await bandit.decisions.find(decision, f"body of {decision}")
        assert kept is not None
        assert (kept.event.arm, kept.event.propensity, kept.is_duplicate) == (arm, propensity, True)
    await bandit.projection.close()
    await storage.close()


@pytest.mark.parametrize("kind", POLICIES)
async def test_a_restarted_bandit_scores_like_the_one_that_went_on(kind: str, storage: MemoryStorage, clock: Clock) -> None:
    """What is derived is derived again, pending decisions included."""
    example, g = EXAMPLES[kind][0], default_rng(31)
    bandit = await learner_of(storage, example, options={"clock": clock})
    await Clients(example, bandit, clock, seed=32).work(5)
    await asyncio.gather(*(bandit.decisions.submit(ask(example, g, f"p{i}", allowed={i % 3: None})) for i in range(5)))
    await bandit.projection.snapshot()
    await bandit.decisions.submit(ask(example, g, "p5", allowed={1: None}))
    for again in (await replayed(bandit, storage), await replayed(bandit, storage, use_snapshots=False)):
        for i in range(4):
            asked = ask(example, g, f"q{i}")
            assert close(await bandit.decisions.preview(asked), await again.decisions.preview(asked), within=1e-6)


async def test_a_replay_can_end_at_any_offset(storage: MemoryStorage, clock: Clock) -> None:
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    await Clients(PAK, bandit, clock, seed=8).work(6)
    digests = {}
    for until in range(1, bandit.versions.committed.offset + 1):
        part = await replayed(bandit, storage, use_snapshots=False, until=until)
        assert part.versions.committed.offset == until
        digests[until] = part.digest()
    assert digests[bandit.versions.committed.offset] == bandit.digest()


# -- deciding ---------------------------------------------------------------------------------------------------------------


async def test_a_decision_is_in_the_log_before_it_is_answered(storage: MemoryStorage, clock: Clock) -> None:
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    kept = await bandit.decisions.submit(ask(PAK, default_rng(1), "d1", allowed={1: 0.05, 2: None}))
    entry = await storage.find(bandit.log, events.decided_key("d1"))
    assert entry is not None
    assert entry.offset == kept.offset == bandit.versions.committed.offset
    assert events.decode(entry.payload) == kept.event
    assert (kept.event.allowed, kept.event.at, kept.event.attempt, kept.event.episode) == ([1, 2], clock.now, 1, "d1")
    assert kept.event.price == {1: 0.05, 2: pytest.approx(0.8)}[kept.event.arm]
    assert sum(kept.event.weights) == 1.0


async def test_the_same_id_again_is_the_same_decision(opener: Opener, clock: Clock) -> None:
    example = EXAMPLES["epsilon-greedy"][0]
    example = replace(example, settings={"epsilon": 0.9, "initial_pulls": 0})
    g = default_rng(2)
    async with started(opener) as storage:
        bandit = await learner_of(storage, example, options={"clock": clock})
        first = [await bandit.decisions.submit(ask(example, g, f"d{i}")) for i in range(20)]
        assert len({kept.event.arm for kept in first}) == 3, "this test needs a policy that draws"
        for i, kept in enumerate(first[:10]):
            await bandit.outcomes.submit(f"d{i}", outcome(example, g, kept.event.arm))
        again = [await bandit.decisions.submit(ask(example, g, f"d{i}")) for i in range(20)]
        assert [(kept.event, kept.offset) for kept in again] == [(kept.event, kept.offset) for kept in first]
        assert [kept.is_duplicate for kept in first + again] == [False] * 20 + [True] * 20
        with pytest.raises(DecisionConflictError):
            await bandit.decisions.submit(ask(example, g, "d3", body="another"))
        with pytest.raises(DecisionConflictError):
            await bandit.decisions.find("d3", "another")
    async with started(opener) as storage:
        bandit = await Learner.load(storage, bandit.log)
        again = [await bandit.decisions.submit(ask(example, g, f"d{i}")) for i in range(20)]
        assert [(kept.event, kept.offset, kept.is_duplicate) for kept in again] == [(k.event, k.offset, True) for k in first]
        assert bandit.ledger.decided == 20


async def test_clients_that_send_one_id_at_once_get_one_decision(opener: Opener) -> None:
    async with started(opener) as storage:
        bandit = await learner_of(storage, PAK)
        g = default_rng(3)
        same = ask(PAK, g, "d1")
        answers = await asyncio.gather(*(bandit.decisions.submit(same) for _ in range(12)))
        assert {(kept.event.arm, kept.offset) for kept in answers} == {(answers[0].event.arm, 2)}
        assert [kept.is_duplicate for kept in answers].count(False) == 1
        assert (bandit.ledger.decided, bandit.versions.committed.arms[answers[0].event.arm].pending) == (1, 1)


def cold(example: Example) -> int:
    """Pulls per arm of the burn-in."""
    policy = example.policy()
    return getattr(policy, "forced_pulls", getattr(policy, "initial_pulls", 0))


@pytest.mark.parametrize("kind", [kind for kind in POLICIES if EXAMPLES[kind][0].forces_new_arms])
async def test_sixteen_concurrent_decisions_on_a_cold_bandit_are_spread_evenly(kind: str, opener: Opener) -> None:
    example = EXAMPLES[kind][0]
    burn_in = {"promptwise": {"forced_pulls": 7}, "auto": {}}.get(
        kind, {"initial_pulls": 7}
    )  # auto takes turns until outcomes come
    form = replace(example, settings={**example.settings, **burn_in})
    g = default_rng(4)
    async with started(opener) as storage:
        bandit = await learner_of(storage, form)
        answers = await asyncio.gather(*(bandit.decisions.submit(ask(form, g, f"d{i}", episode=f"e{i}")) for i in range(16)))
        if kind != "epsilon-greedy":  # which leaves a tenth to chance
            assert sorted(Counter(kept.event.arm for kept in answers).values()) == [5, 5, 6]
    async with started(opener) as storage:  # what is pending is still counted
        bandit = await Learner.load(storage, bandit.log)
        answers += await asyncio.gather(*(bandit.decisions.submit(ask(form, g, f"f{i}", episode=f"f{i}")) for i in range(5)))
        if kind != "epsilon-greedy":
            assert sorted(Counter(kept.event.arm for kept in answers).values()) == [7, 7, 7]


@pytest.mark.parametrize("apart", [1, 2, 3, 5, 8])
async def test_decisions_that_come_a_few_ticks_apart_are_counted_once_each(apart: int) -> None:
    """One that is in the log and not yet answered is pending; it must not also count as on its way."""
    form = replace(GREEDY, settings={"initial_pulls": 8})
    g = default_rng(5)
    bandit = await learner_of(Slow(), form)

    async def late(number: int) -> int:
        await _turns(number * apart)
        return int((await bandit.decisions.submit(ask(form, g, f"d{number}"))).event.arm)

    arms = await asyncio.gather(*(late(number) for number in range(24)))
    assert list(arms) == [0, 1, 2] * 8


async def test_decisions_go_on_with_what_is_ready_while_more_is_prepared(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not ready yet counts as pending; receipts, digests and reports do not wait for it either."""
    gate, preparing = threading.Event(), threading.Event()

    def prepare(policy: Greedy, state: State) -> State:
        preparing.set()
        gate.wait(PATIENCE_S)
        return state

    g, form = default_rng(40), replace(GREEDY, settings={"initial_pulls": 2})
    bandit = await learner_of(storage, form)
    monkeypatch.setattr(Greedy, "prepare", prepare)
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.0)
    first = [(await bandit.decisions.submit(ask(form, g, f"d{i}"))).event.arm for i in range(3)]
    kept = await bandit.outcomes.submit("d1", OutcomeReport(reward=3.0))
    await asyncio.to_thread(preparing.wait, PATIENCE_S)
    assert (kept.offset, bandit.versions.committed.offset) == (5, 5)
    more = [(await bandit.decisions.submit(ask(form, g, f"e{i}"))).event.arm for i in range(3)]
    assert (first, more) == ([0, 1, 2], [0, 1, 2]), "the burn-in counts what it cannot see yet"
    assert (await bandit.report())["arms"]
    gate.set()
    await bandit.versions.wait_until_prepared()
    assert bandit.versions.in_flight == {}
    assert (await bandit.decisions.submit(ask(form, g, "f0"))).event.arm == 1, "what was learned is known now"


async def test_mathematics_that_fails_in_the_background_stops_its_bandit_loudly(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = default_rng(41)
    bandit = await learner_of(storage, GREEDY)

    def fails(policy: Greedy, state: State) -> State:
        raise ArithmeticError("no spectrum")

    monkeypatch.setattr(Greedy, "prepare", fails)
    await bandit.decisions.submit(ask(GREEDY, g, "d0"))
    with contextlib.suppress(StorageDamagedError):
        await bandit.outcomes.submit("d0", OutcomeReport(reward=1.0))
    with pytest.raises(StorageDamagedError, match="no spectrum"):
        await bandit.decisions.submit(ask(GREEDY, g, "d1"))
    assert "offset 3" in str(bandit.versions.fault)


async def test_a_dry_run_logs_nothing(storage: MemoryStorage) -> None:
    bandit = await learner_of(storage, PAK)
    asked = ask(PAK, default_rng(6), "d1")
    preview = await bandit.decisions.preview(asked)
    assert bandit.versions.committed.offset == 1
    kept = await bandit.decisions.submit(asked)
    assert (preview.arm, preview.weights) == (kept.event.arm, kept.event.weights)


async def test_more_open_decisions_than_set_are_refused(storage: MemoryStorage) -> None:
    bandit = await learner_of(storage, options={"max_open": 3})
    g = default_rng(7)
    for i in range(3):
        await bandit.decisions.submit(ask(GREEDY, g, f"d{i}"))
    with pytest.raises(OpenDecisionLimitError, match="3 decisions"):
        await bandit.decisions.submit(ask(GREEDY, g, "d3"))
    await bandit.outcomes.cancel("d1")
    await bandit.decisions.submit(ask(GREEDY, g, "d3"))


async def test_one_request_that_cannot_be_decided_harms_no_other(storage: MemoryStorage, clock: Clock) -> None:
    bandit = await learner_of(storage, PAK)
    await bandit.committer.record(ArmRetired(at=clock(), arm=2), key="retire")
    g = default_rng(8)
    asked = [ask(PAK, g, f"d{i}", allowed={2: None} if i == 3 else {}) for i in range(9)]
    answers = await asyncio.gather(*(bandit.decisions.submit(each) for each in asked), return_exceptions=True)
    assert isinstance(answers[3], InvalidContext)
    assert [type(answer).__name__ for answer in answers].count("Recorded") == 8
    assert bandit.versions.committed.offset == 10


@dataclass(frozen=True, kw_only=True)
class Unsound(Greedy):
    """A policy with a fault."""

    def weights(self, state: State, contexts: Any) -> Weights:
        return Weights(torch.tensor([WRONG["weights"]] * len(contexts), dtype=torch.float64))


WRONG: dict[str, list[float]] = {}


@pytest.mark.parametrize(
    "weights", [[0.5, 0.5, math.nan], [0.5, 0.4, 0.0], [1.5, -0.5, 0.0], [0.0, 0.0, 1.0], [math.inf, 0.0, 0.0], [0.7, 0.7, 0.0]]
)
async def test_weights_that_are_no_distribution_over_the_allowed_arms_are_never_logged(
    storage: MemoryStorage, weights: list[float]
) -> None:
    bandit = await learner_of(storage)
    bandit.versions.policy = Unsound()
    WRONG["weights"] = weights
    with pytest.raises(BanditError, match="no distribution"):
        await bandit.decisions.submit(ask(GREEDY, default_rng(9), "d1", allowed={0: None, 1: None}))
    assert len(await storage.read(bandit.log, after=0, limit=9)) == 1


async def test_a_stop_is_logged_and_has_nothing_to_observe(storage: MemoryStorage) -> None:
    bandit = await learner_of(storage)
    bandit.versions.policy = Unsound()
    WRONG["weights"] = [0.0, 0.0, 0.0]
    kept = await bandit.decisions.submit(ask(GREEDY, default_rng(10), "d1"))
    assert (kept.event.arm, kept.event.propensity, kept.event.price) == (-1, 1.0, 0.0)
    decided, closing = await bandit.outcomes.look_up("d1")
    assert (decided.event, closing) == (kept.event, None)
    with pytest.raises(DecisionWasStopError):
        await bandit.outcomes.submit("d1", OutcomeReport(reward=0.5))
    assert bandit.ledger.open == {}


# -- outcomes ---------------------------------------------------------------------------------------------------------------


async def test_an_outcome_is_learned_once_whatever_is_repeated(opener: Opener) -> None:
    g = default_rng(11)
    async with started(opener) as storage:
        bandit = await learner_of(storage)
        kept = await bandit.decisions.submit(ask(GREEDY, g, "d1"))
        answers = await asyncio.gather(*(bandit.outcomes.submit("d1", OutcomeReport(reward=0.7, body="same")) for _ in range(10)))
        assert {answer.offset for answer in answers} == {3}
        assert [answer.is_duplicate for answer in answers].count(False) == 1
    async with started(opener) as storage:
        bandit = await Learner.load(storage, bandit.log)
        again = await bandit.outcomes.submit("d1", OutcomeReport(reward=0.7, body="same"))
        assert (again.offset, again.is_duplicate, again.event.reward) == (3, True, 0.7)
        with pytest.raises(OutcomeConflictError):
            await bandit.outcomes.submit("d1", OutcomeReport(reward=0.8, body="other"))
        arm = bandit.versions.committed.arms[kept.event.arm]
        assert (arm.outcomes, arm.reward_sum, bandit.versions.committed.offset) == (1, 0.7, 3)
        assert bandit.versions.committed.state.arms[kept.event.arm].pulls == 1


async def test_of_two_different_outcomes_at_once_one_is_learned_and_one_refused(opener: Opener) -> None:
    async with started(opener) as storage:
        bandit = await learner_of(storage)
        await bandit.decisions.submit(ask(GREEDY, default_rng(12), "d1"))
        answers = await asyncio.gather(
            *(bandit.outcomes.submit("d1", OutcomeReport(reward=0.1 * i, body=str(i))) for i in range(5)), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == ["OutcomeConflictError"] * 4 + ["Recorded"]
        assert sum(arm.outcomes for arm in bandit.versions.committed.arms) == 1


async def test_an_outcome_costs_what_it_says_or_the_price_of_its_decision(storage: MemoryStorage) -> None:
    bandit = await learner_of(storage)
    g = default_rng(13)
    await bandit.decisions.submit(ask(GREEDY, g, "d1", allowed={1: 0.07}))
    await bandit.decisions.submit(ask(GREEDY, g, "d2", allowed={1: 0.07}))
    await bandit.decisions.submit(ask(GREEDY, g, "d3", allowed={1: 0.07}))
    costs = [
        (await bandit.outcomes.submit("d1", OutcomeReport(reward=0.5))).event.cost,
        (await bandit.outcomes.submit("d2", OutcomeReport(reward=0.5, cost=0.9))).event.cost,
        (await bandit.outcomes.submit("d3", OutcomeReport(reward=0.5, arm=2))).event.cost,
    ]
    assert costs == [0.07, 0.9, pytest.approx(0.8)], "another arm costs its own price"


async def test_an_overriding_arm_is_learned_without_a_propensity(storage: MemoryStorage) -> None:
    bandit = await learner_of(storage, PAK)
    g = default_rng(14)
    kept = await bandit.decisions.submit(ask(PAK, g, "d1", allowed={0: None}))
    other = await bandit.outcomes.submit("d1", OutcomeReport(reward=0.5, arm=2))
    assert (kept.event.arm, other.event.arm, other.event.propensity) == (0, 2, None)
    await bandit.decisions.submit(ask(PAK, g, "d2", allowed={0: None}))
    same = await bandit.outcomes.submit("d2", OutcomeReport(reward=0.5, arm=0))
    assert same.event.propensity == 1.0, "naming the suggested arm overrides nothing"
    assert [arm.pulls for arm in bandit.versions.committed.state.arms] == [1, 0, 1]
    fresh = await replayed(bandit, storage)
    x = ask(PAK, g, "d3")
    assert close(await bandit.decisions.preview(x), await fresh.decisions.preview(x))


async def test_unknown_decisions_are_named(storage: MemoryStorage) -> None:
    bandit = await learner_of(storage)
    for asked in (
        bandit.outcomes.submit("no", OutcomeReport(reward=0.5)),
        bandit.outcomes.cancel("no"),
        bandit.outcomes.look_up("no"),
    ):
        with pytest.raises(DecisionNotFoundError):
            await asked
    assert await bandit.decisions.find("no", "") is None
    assert bandit.versions.committed.offset == 1


async def test_a_cancelled_decision_takes_no_outcome(opener: Opener) -> None:
    g = default_rng(15)
    async with started(opener) as storage:
        bandit = await learner_of(storage, PAK)
        before = bandit.digest()[1]
        first = await bandit.decisions.preview(ask(PAK, default_rng(16), "x"))
        await bandit.decisions.submit(ask(PAK, g, "d1"))
        await asyncio.gather(*(bandit.outcomes.cancel("d1") for _ in range(3)))
        await bandit.outcomes.cancel("d1")
        with pytest.raises(DecisionCancelledError):
            await bandit.outcomes.submit("d1", outcome(PAK, g, 0))
        assert (bandit.versions.committed.offset, bandit.digest()[1]) == (3, before), "nothing was learned"
        assert close(await bandit.decisions.preview(ask(PAK, default_rng(16), "x")), first), "nothing is pending"
        await bandit.decisions.submit(ask(PAK, g, "d2"))
        await bandit.outcomes.submit("d2", outcome(PAK, g, 0))
        with pytest.raises(OutcomeConflictError):
            await bandit.outcomes.cancel("d2")
        states_ = [type((await bandit.outcomes.look_up(d))[1].event) for d in ("d1", "d2")]  # type: ignore[union-attr]
        assert states_ == [Cancelled, Observed]


# -- expiry -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [None, -0.25])
async def test_a_decision_expires_when_its_time_is_over(opener: Opener, clock: Clock, default: float | None) -> None:
    g = default_rng(17)
    async with started(opener) as storage:
        bandit = await learner_of(storage, PAK, options={"clock": clock}, default_reward=default, timeout_s=60.0)
        arms = []
        for i in range(3):
            arms.append((await bandit.decisions.submit(ask(PAK, g, f"d{i}"))).event.arm)
            clock.advance(20.0)
        assert await bandit.outcomes.expire() == 1
        assert sorted(bandit.ledger.open) == ["d1", "d2"]
        with pytest.raises(DecisionExpiredError):
            await bandit.outcomes.submit("d0", outcome(PAK, g, arms[0]))
        with pytest.raises(DecisionExpiredError):
            await bandit.outcomes.cancel("d0")
        clock.advance(19.0)
        await bandit.outcomes.submit("d1", outcome(PAK, g, arms[1]))  # in the last second
        clock.advance(21.0)
        with pytest.raises(DecisionExpiredError):  # the sweeper has not come by, and need not
            await bandit.outcomes.submit("d2", outcome(PAK, g, arms[2]))
        assert await bandit.outcomes.expire() == 0
        assert sum(arm.pulls for arm in bandit.versions.committed.state.arms) == (1 if default is None else 3)
        closing = (await bandit.outcomes.look_up("d2"))[1]
        assert closing is not None
        assert (closing.event.reward, closing.event.at) == (default, clock.now)
        assert [arm.pending for arm in bandit.versions.committed.arms] == [0, 0, 0]
        assert bandit.versions.committed.state.arms[0].cache is None or bandit.versions.committed.state.arms[0].cache.pending == 0
        live = facts(bandit)
    async with started(opener) as storage:
        assert facts(await Learner.load(storage, bandit.log, clock=clock)) == live


async def test_hundreds_of_overdue_decisions_share_their_commits(opener: Opener, clock: Clock) -> None:
    g = default_rng(18)
    async with started(opener) as storage:
        bandit = await learner_of(storage, options={"clock": clock})
        await asyncio.gather(*(bandit.decisions.submit(ask(GREEDY, g, f"d{i}")) for i in range(300)))
        clock.advance(1000.0)
        assert await bandit.outcomes.expire() == 300
        assert (bandit.ledger.open, bandit.versions.committed.offset) == ({}, 601)


async def test_an_outcome_and_an_expiry_at_once_are_one_of_the_two(opener: Opener, clock: Clock) -> None:
    g = default_rng(19)
    async with started(opener) as storage:
        bandit = await learner_of(storage, options={"clock": clock}, default_reward=0.125, timeout_s=60.0)
        for i in range(20):
            await bandit.decisions.submit(ask(GREEDY, g, f"d{i}"))
        clock.advance(59.9)
        outcomes = [bandit.outcomes.submit(f"d{i}", OutcomeReport(reward=0.5)) for i in range(20)]
        await asyncio.sleep(0)
        clock.advance(1.0)
        await bandit.outcomes.expire()
        answers = await asyncio.gather(*outcomes, return_exceptions=True)
        assert all(isinstance(answer, Recorded | DecisionExpiredError) for answer in answers)
        assert sum(arm.outcomes for arm in bandit.versions.committed.arms) == 20
        assert bandit.versions.committed.offset == 41


# -- arms and references ----------------------------------------------------------------------------------------------------


async def test_an_arm_that_comes_while_outcomes_are_folded_elsewhere_breaks_no_decision(
    storage: MemoryStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger runs ahead of the state while a thread folds; a decision must see both as of one moment."""
    monkeypatch.setattr(pace, "THREAD_ABOVE_S", 0.0)
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    g = default_rng(20)
    asked = 0

    async def deciding() -> None:
        nonlocal asked
        for _ in range(12):
            asked += 1
            kept = await bandit.decisions.submit(ask(PAK, g, f"d{asked}"))
            assert len(kept.event.weights) == len(kept.event.scores["estimate"])
            assert max(kept.event.allowed) < len(kept.event.weights)
            await bandit.outcomes.submit(kept.event.id, outcome(PAK, g, kept.event.arm))
            assert len(bandit.versions.committed.arms) == len(bandit.versions.committed.state.arms)

    async def growing() -> None:
        for i in range(8):
            await bandit.committer.record(
                ArmAdded(at=clock(), name=f"new {i}", price=0.1, metadata={}), key=events.added_key(f"new {i}")
            )

    await asyncio.gather(deciding(), deciding(), growing())
    assert len(bandit.versions.committed.arms) == 11
    monkeypatch.setattr(pace, "THREAD_ABOVE_S", math.inf)
    assert facts(await replayed(bandit, storage)) == facts(bandit)


async def test_what_is_checked_before_it_is_recorded_holds_when_it_is_recorded(opener: Opener, clock: Clock) -> None:
    """Two requests that are fine one by one must not spoil the log together."""
    async with started(opener) as storage:
        bandit = await learner_of(storage, options={"clock": clock})

        def no_more_than_four() -> None:
            if len(bandit.versions.committed.arms) >= 4:
                raise InvalidObservation("arm", "too many")

        answers = await asyncio.gather(
            *(
                bandit.committer.record(
                    ArmAdded(at=clock(), name=f"new {i}", price=0.1, metadata={}), key=f"new {i}", check=no_more_than_four
                )
                for i in range(6)
            ),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in answers].count("Receipt") == 1
        assert len(bandit.versions.committed.arms) == 4


# -- damage -----------------------------------------------------------------------------------------------------------------


def poison(kind: str, clock: Clock) -> bytes:
    good = events.encode(Observed(at=clock(), id="d2", arm=0, reward=0.5, cost=0.1, propensity=1.0, body=""))
    wrong_width = events.vector_bytes(np.zeros(2))
    decided = Decided(
        at=clock(), id="odd", arm=0, propensity=1.0, weights=[1.0], scores={}, allowed=[0], price=0.0, features=wrong_width,
        episode="odd", attempt=1, body="",
    )  # fmt: skip
    return {
        "no JSON": b"\x00\xff poison",
        "no event": b'{"event":"exploded","at":"2026-01-01T00:00:00Z","v":1}',
        "another version": good.replace(b'"v":1', b'"v":9'),
        "no such decision": good.replace(b'"d2"', b'"d9"'),
        "no such arm": good.replace(b'"arm":0', b'"arm":77'),
        "a number too large": good.replace(b'"reward":0.5', b'"reward":1e999'),
        "features of another length": events.encode(decided),
        "features that are no numbers": events.encode(decided).replace(b'"features":"' + b"A" * 10, b'"features":"' + b"A" * 7),
    }[kind]


POISONS = [
    "no JSON",
    "no event",
    "another version",
    "no such decision",
    "no such arm",
    "a number too large",
    "features of another length",
    "features that are no numbers",
]


@pytest.mark.parametrize("kind", POISONS)
async def test_a_poisoned_entry_stops_its_bandit_at_its_offset_and_no_other(opener: Opener, clock: Clock, kind: str) -> None:
    g = default_rng(21)
    async with started(opener) as storage:
        bandit = await learner_of(storage, PAK, options={"clock": clock})
        other = await learner_of(storage, PAK, name="other")
        for i in range(1, 4):
            await bandit.decisions.submit(ask(PAK, g, f"d{i}"))
        await bandit.outcomes.submit("d1", outcome(PAK, g, 0))
        sound = bandit.digest()
        receipt = await storage.append(bandit.log, "poison", poison(kind, clock), Durability.POWER)
        await storage.append(bandit.log, "behind it", events.encode(Cancelled(at=clock(), id="d3")), Durability.POWER)
        answers = await asyncio.gather(
            *(bandit.decisions.submit(ask(PAK, g, f"e{i}")) for i in range(3)),
            bandit.outcomes.submit("d3", outcome(PAK, g, 0)),
            bandit.projection.catch_up(),
            return_exceptions=True,
        )
        assert all(isinstance(answer, StorageDamagedError) for answer in answers)
        place = f"log 'greeter', offset {receipt.offset}"
        assert {str(answer).split(": ")[0] for answer in answers} == {place}
        wrong = {str(answer) for answer in answers}
        assert wrong == {str(bandit.versions.fault)}, "the first thing that was wrong, and not what followed"
        assert bandit.digest() == sound, "nothing half-applied is ever shown"
        log_end = len(await storage.read(bandit.log, after=0, limit=99))
        for request in (
            partial(bandit.decisions.submit, ask(PAK, g, "f")),
            partial(bandit.outcomes.submit, "d2", OutcomeReport(reward=0.1)),
            partial(bandit.outcomes.cancel, "d2"),
        ):
            with pytest.raises(StorageDamagedError, match=place):
                await request()
        assert len(await storage.read(bandit.log, after=0, limit=99)) == log_end, "nothing is written behind the damage"
        with pytest.raises(StorageDamagedError, match=place):
            await replayed(bandit, storage)
        await bandit.projection.close()
        assert await storage.load_snapshots(bandit.log) == []
        await other.decisions.submit(ask(PAK, g, "d1"))
        assert other.versions.fault is None


@pytest.mark.parametrize("first", [b"no event", events.encode(Cancelled(at=Clock()(), id="d1"))])
async def test_a_log_that_does_not_begin_with_its_bandit_is_refused(storage: MemoryStorage, first: bytes) -> None:
    log, _ = await storage.create(Log("1", "greeter"), first)
    with pytest.raises((StorageDamagedError, events.UnreadableEvent)):
        await Learner.load(storage, log)


async def test_a_bandit_refuses_to_run_on_other_random_numbers(storage: MemoryStorage) -> None:
    with pytest.raises(BanditError, match="another NumPy"):
        await learner_of(storage, PAK, fingerprint="0" * 64)


# -- snapshots --------------------------------------------------------------------------------------------------------------


class Blobs(MemoryStorage):
    """A storage whose snapshots are what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: list[tuple[int, bytes]] = []

    async def load_snapshots(self, log: Log) -> list[tuple[int, bytes]]:
        return self.blobs


async def with_snapshot(storage: Blobs, clock: Clock) -> tuple[Learner, bytes]:
    """A bandit whose log goes on behind its snapshot."""
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    clients = Clients(PAK, bandit, clock, seed=22)
    await clients.work(4)
    await bandit.projection.snapshot()
    (_, blob), *_ = await MemoryStorage.load_snapshots(storage, bandit.log)
    await clients.work(3)
    return bandit, blob


def resumed_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of the snapshots that were taken up."""
    taken: list[int] = []
    unpack = snapshots.unpack

    def watched(*values: Any, **options: Any) -> Any:
        found = unpack(*values, **options)
        taken.append(found.ledger.offset)
        return found

    monkeypatch.setattr(snapshots, "unpack", watched)
    return taken


async def test_no_garbled_snapshot_is_ever_believed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Blobs()
    bandit, blob = await with_snapshot(storage, clock)
    live, taken = facts(bandit), resumed_from(monkeypatch)
    storage.blobs = [(9, blob)]
    assert facts(await replayed(bandit, storage)) == live
    assert len(taken) == 1, "the whole one is used"
    positions = [*range(0, 60, 3), *range(60, len(blob), 701)]
    damaged = [blob[:p] + bytes([blob[p] ^ 0x35]) + blob[p + 1 :] for p in positions]
    damaged += [blob[:p] for p in positions] + [b"", blob + b"\0", b"\x93\x01\x02\x03"]
    for each in damaged:
        storage.blobs = [(9, each)]
        assert facts(await replayed(bandit, storage)) == live
    assert len(taken) == 1, "none of the damaged ones is"
    storage.blobs = [(9, damaged[15]), (9, blob)]
    assert facts(await replayed(bandit, storage)) == live
    assert len(taken) == 2, "the older one is used instead"


async def test_a_snapshot_of_another_build_bandit_or_moment_is_passed_over(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Blobs()
    bandit, blob = await with_snapshot(storage, clock)
    live = facts(bandit)
    ledger, state, *_ = snapshots.unpack(bandit.policy, bandit.created, blob)
    other = await learner_of(storage, EXAMPLES["lin-ucb"][0], name="other")
    unfit = [
        snapshots.pack(bandit.policy, state, ledger.pack(), ledger.offset + 1),
        snapshots.pack(bandit.policy, states.add_arm(bandit.policy, state), ledger.pack(), ledger.offset),
        snapshots.pack(other.policy, other.versions.committed.state, other.ledger.pack(), 1),
    ]
    monkeypatch.setattr(snapshots, "BUILD", "torch 0.0")
    unfit.append(snapshots.pack(bandit.policy, state, ledger.pack(), ledger.offset))
    monkeypatch.undo()
    taken = resumed_from(monkeypatch)
    for each in unfit:
        storage.blobs = [(ledger.offset, each)]
        assert facts(await replayed(bandit, storage)) == live
    assert taken == []


async def test_where_the_log_was_trimmed_a_snapshot_of_another_build_has_to_do(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The alternative would be a bandit that cannot be learned any more."""

    class Trimmed(MemoryStorage):
        first = 0

        async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
            if 0 < after < self.first - 1:
                raise LogCompactedError(log.name, first=self.first)
            return await super().read(log, after=after, limit=limit)

    storage, g = Trimmed(), default_rng(24)
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    for i in range(6):
        await bandit.decisions.submit(ask(PAK, g, f"d{i}"))
        await bandit.outcomes.submit(f"d{i}", outcome(PAK, g, 0))
    await bandit.projection.snapshot()
    storage.first = bandit.versions.committed.offset
    await bandit.decisions.submit(ask(PAK, g, "later"))
    monkeypatch.setattr(snapshots, "BUILD", "torch 0.0")
    assert facts(await replayed(bandit, storage)) == facts(bandit)
    assert "another build has to do" in caplog.text
    storage.first = 0
    taken = resumed_from(monkeypatch)
    assert facts(await replayed(bandit, storage)) == facts(bandit)
    assert taken == [], "where the log is whole, it is folded"


async def test_a_snapshot_of_a_future_that_the_log_lost_is_passed_over(clock: Clock) -> None:
    """Else new entries would come at offsets that the snapshot has learned already, and would never be folded."""
    storage, shorter = Blobs(), Blobs()
    bandit, blob = await with_snapshot(storage, clock)
    entries = await storage.read(bandit.log, after=0, limit=999)
    log, _ = await shorter.create(bandit.log, entries[0].payload)
    for entry in entries[1:5]:
        await shorter.append(log, str(entry.offset), entry.payload, Durability.POWER)
    shorter.blobs = [(99, blob)]
    resumed = await Learner.load(shorter, log)
    assert resumed.versions.committed.offset == 5
    await resumed.decisions.submit(ask(PAK, default_rng(23), "new"))
    assert resumed.versions.committed.offset == 6


async def test_snapshots_are_written_as_often_as_set_and_at_the_end(opener: Opener, clock: Clock) -> None:
    async with started(opener) as storage:
        bandit = await learner_of(storage, options={"snapshot_every": 10})
        g = default_rng(24)
        for i in range(25):
            await bandit.decisions.submit(ask(GREEDY, g, f"d{i}"))
        while not (kept := await storage.load_snapshots(bandit.log)) or len(kept) < 2:
            await asyncio.sleep(0)
        assert [offset for offset, _ in kept] == [21, 11]
        await bandit.projection.close()
        assert [offset for offset, _ in await storage.load_snapshots(bandit.log)] == [26, 21]
        await bandit.projection.close()
        never = await learner_of(storage, name="never", options={"snapshot_every": 0})
        await never.decisions.submit(ask(GREEDY, g, "d"))
        assert await storage.load_snapshots(never.log) == []


@pytest.mark.parametrize("threads", [0.0, math.inf])
async def test_a_snapshot_taken_under_traffic_is_of_one_moment(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, threads: float
) -> None:
    monkeypatch.setattr(pace, "THREAD_ABOVE_S", threads)
    storage, g = Slow(), default_rng(25)
    bandit = await learner_of(storage, PAK, options={"clock": clock})

    async def after(turns: int, work: Callable[[], Awaitable[Any]]) -> None:
        await _turns(turns)
        await work()

    for i in range(24):
        deciding = [after(n, partial(bandit.decisions.submit, ask(PAK, g, f"d{i}/{n}"))) for n in range(6)]
        await asyncio.gather(after(i, bandit.projection.snapshot), *deciding)
        (offset, blob), *_ = await storage.load_snapshots(bandit.log)
        ledger, state, *_ = snapshots.unpack(bandit.policy, bandit.created, blob)
        then = await replayed(bandit, storage, use_snapshots=False, until=offset)
        assert (ledger.pack(), states.digest(bandit.policy, state)) == (then.ledger.pack(), then.digest()[1])


# -- failing and cancelled --------------------------------------------------------------------------------------------------


class Failing(MemoryStorage):
    """A storage that fails on demand, before or after the entry is in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = ""

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        if self.fails == "before":
            raise StorageUnavailableError("the disk is full")
        receipt = await super().append(log, key, payload, durability, expected=expected)
        if self.fails == "after":
            raise StorageUnavailableError("the answer was lost")
        return receipt

    async def append_all(self, log: Log, entries: Sequence[tuple[str, bytes]], durability: Durability) -> list[Receipt]:
        now, self.fails = self.fails, "" if self.fails == "after" else self.fails
        receipts = await super().append_all(log, entries, durability)
        self.fails = now
        if self.fails == "after":
            raise StorageUnavailableError("the answer was lost")
        return receipts

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        if self.fails == "reading":
            raise StorageUnavailableError("the disk is gone")
        return await super().read(log, after=after, limit=limit)


@pytest.mark.parametrize("fails", ["before", "after", "reading"])
async def test_a_store_that_fails_leaves_nothing_half_applied_and_a_retry_is_answered(fails: str, clock: Clock) -> None:
    storage, g = Failing(), default_rng(26)
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    for i in range(4):
        await bandit.decisions.submit(ask(PAK, g, f"d{i}"))
    before = facts(bandit)
    storage.fails = fails
    asked = [ask(PAK, g, f"e{i}") for i in range(5)]
    result = outcome(PAK, g, 0)
    answers = await asyncio.gather(
        *(bandit.decisions.submit(each) for each in asked),
        bandit.outcomes.submit("d0", result),
        bandit.outcomes.cancel("d1"),
        return_exceptions=True,
    )
    assert all(isinstance(answer, StorageUnavailableError) for answer in answers)
    assert facts(bandit) == before
    assert (bandit.versions.in_flight == {}) == (fails != "reading"), "who is in the log is pending"
    storage.fails = ""
    await bandit.projection.catch_up()
    assert bandit.versions.in_flight == {}, "nothing is in flight any more"
    retried = await asyncio.gather(*(bandit.decisions.submit(each) for each in asked))
    observed = await bandit.outcomes.submit("d0", result)
    await bandit.outcomes.cancel("d1")
    assert {kept.is_duplicate for kept in [*retried, observed]} == {fails != "before"}
    assert bandit.versions.committed.offset == 12
    assert sum(arm.pending for arm in bandit.versions.committed.arms) == 7
    assert facts(await replayed(bandit, storage)) == facts(bandit)


async def test_what_was_logged_by_a_failed_request_is_learned_before_the_next_is_checked(clock: Clock) -> None:
    storage = Failing()
    bandit = await learner_of(storage, options={"clock": clock})
    added = ArmAdded(at=clock(), name="new", price=0.1, metadata={})
    storage.fails = "after"
    with pytest.raises(StorageUnavailableError):
        await bandit.committer.record(added, key="one")
    storage.fails = ""
    seen: list[int] = []
    await bandit.committer.record(
        ArmRetired(at=clock(), arm=0), key="two", check=lambda: seen.append(len(bandit.versions.committed.arms))
    )
    assert seen == [4]


class Slow(MemoryStorage):
    """A storage that lets the event loop turn a few times before and after every step."""

    async def append(self, log: Log, key: str, payload: bytes, durability: Durability, *, expected: int | None = None) -> Receipt:
        await _turns(3)
        receipt = await super().append(log, key, payload, durability, expected=expected)
        await _turns(3)
        return receipt

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        await _turns(2)
        return await super().read(log, after=after, limit=limit)

    async def find(self, log: Log, key: str) -> Entry | None:
        await _turns(2)
        return await super().find(log, key)


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


Request = Callable[[Learner], Awaitable[Any]]
REQUESTS: dict[str, Request] = {
    "decide": lambda bandit: bandit.decisions.submit(ask(PAK, default_rng(27), "new")),
    "preview": lambda bandit: bandit.decisions.preview(ask(PAK, default_rng(27), "new")),
    "observe": lambda bandit: bandit.outcomes.submit("d1", outcome(PAK, default_rng(27), 0)),
    "cancel": lambda bandit: bandit.outcomes.cancel("d1"),
    "expire": lambda bandit: bandit.outcomes.expire(),
    "catch up": lambda bandit: bandit.projection.catch_up(),
    "record": lambda bandit: bandit.committer.record(
        ArmAdded(at=bandit.created.at, name="new", price=0.0, metadata={}), key="new"
    ),
    "snapshot": lambda bandit: bandit.projection.snapshot(),
}


@pytest.mark.parametrize("threads", [0.0, math.inf])
@pytest.mark.parametrize("what", REQUESTS)
async def test_a_request_that_is_cancelled_at_any_moment_leaves_nothing_half_done(
    what: str, threads: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "THREAD_ABOVE_S", threads)
    cancelled = 0
    for turns in range(40):
        storage, g = Slow(), default_rng(28)
        bandit = await learner_of(storage, PAK, options={"clock": clock})
        await asyncio.gather(*(bandit.decisions.submit(ask(PAK, g, f"d{i}")) for i in range(3)))
        if what == "expire":
            clock.advance(1000.0)
        elif what == "catch up":  # another process wrote
            await storage.append(bandit.log, "else", events.encode(Cancelled(at=clock(), id="d2")), Durability.POWER)
        task = asyncio.ensure_future(REQUESTS[what](bandit))
        await _turns(turns)
        done = not task.cancel()
        await asyncio.wait([task])
        cancelled += not done
        async with asyncio.timeout(PATIENCE_S):
            await bandit.projection.close()  # waits for what goes on
            end = len(await storage.read(bandit.log, after=0, limit=99))
            await bandit.projection.catch_up()
            assert (bandit.versions.committed.offset, bandit.versions.in_flight, bandit.versions.fault) == (end, {}, None)
            assert facts(await replayed(bandit, storage)) == facts(bandit)
            assert facts(await replayed(bandit, storage, use_snapshots=False)) == facts(bandit)
            clock.now = bandit.created.at
            again = await bandit.decisions.submit(ask(PAK, default_rng(27), "new"))
            assert sum(arm.pending for arm in bandit.versions.committed.arms) == len(bandit.ledger.open)
            assert again.event.id == "new"
        if done:
            break
    assert cancelled > 0


async def test_what_a_cancelled_request_has_logged_is_learned_without_anybody_asking(clock: Clock) -> None:
    """Else a decision of a quiet bandit would neither be counted nor expire."""
    storage = Slow()
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    task = bandit.decisions.submit(ask(PAK, default_rng(29), "d1"))
    while await MemoryStorage.find(storage, bandit.log, events.decided_key("d1")) is None:
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while "d1" not in bandit.ledger.open:
            await asyncio.sleep(0)
    assert task.cancelled()


async def test_requests_to_a_deleted_bandit_say_so(opener: Opener, clock: Clock) -> None:
    g = default_rng(30)
    async with started(opener) as storage:
        bandit = await learner_of(storage, PAK, options={"clock": clock})
        for i in range(3):
            await bandit.decisions.submit(ask(PAK, g, f"d{i}"))
        await storage.delete(bandit.log)
        for asked in (
            bandit.decisions.submit(ask(PAK, g, "new")),
            bandit.outcomes.submit("d1", outcome(PAK, g, 0)),
            bandit.outcomes.cancel("d2"),
            bandit.outcomes.look_up("d2"),
        ):
            with pytest.raises(LogNotFoundError):
                await asked
        assert bandit.versions.in_flight == {}
