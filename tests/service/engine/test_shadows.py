"""Shadows learn what the bandit learns, exactly, on every replica and after every restart; a promotion exchanges two policies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.random import default_rng

from bandits import state as states
from bandits.errors import InvalidContext
from bandits.policies.baselines import EpsilonGreedy
from bandits.registry import POLICIES
from bandits.types import Context, Observation, State, Weights
from service.engine import events, snapshots
from service.engine import projection as folding
from service.engine.decisions import DecisionRequest
from service.engine.errors import ShadowBehindError
from service.engine.events import ArmAdded, ArmRetired, Decided, Observed, ShadowCreated, ShadowDeleted, ShadowPromoted
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.engine.policies import build_for
from service.storage.base import Entry, Log
from service.storage.memory import MemoryStorage
from tests.bandits.examples import EXAMPLES, Example
from tests.service.drivers import GREEDY, PAK, Clients, Clock, ask, learner_of
from tests.service.reenact import reenact, stored
from tests.service.storages import STORAGES, Opener, started

PATIENT: dict[str, Any] = {"shadow_limit_s": 60.0}
"""No shadow is left out because this machine is busy."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def shadow(bandit: Learner, name: str, kind: str, settings: Any = (), *, learns_from: Any = "now") -> int:
    """Create one; the offset of its event, which is the number of its policy."""
    policy = build_for(bandit.created, kind, dict(settings))
    event = ShadowCreated(
        at=bandit.created.at,
        shadow=name,
        policy=kind,
        hyperparameters=dict(settings),
        fingerprint=policy.fingerprint,
        learns_from=learns_from,
    )
    return (await bandit.committer.record(event, key=f"shadow/{name}/{bandit.versions.committed.offset}")).offset


async def promote(bandit: Learner, name: str, promotion: str = "p1") -> int:
    """Exchange the policies; the offset of the event."""
    offset = bandit.ledger.shadows[name].offset
    event = ShadowPromoted(at=bandit.created.at, id=promotion, shadow=name, shadow_offset=offset)
    return (await bandit.committer.record(event, key=events.promoted_key(promotion))).offset


async def settled(bandit: Learner) -> Learner:
    """With everything prepared and every shadow at the end of the log."""
    await bandit.projection.catch_up()
    await bandit.projection.wait_for_shadows()
    await bandit.projection.background.finish()
    return bandit


def facts(bandit: Learner) -> tuple[Any, ...]:
    """Everything that must not depend on how it came about."""
    _, deciding, others = bandit.projection.learned()
    left = deciding.left, {name: (one.left, one.failure) for name, one in others.items()}
    return bandit.digest(), bandit.ledger.pack(), bandit.versions.committed.arms, left


async def logged(bandit: Learner, kind: type[Any]) -> list[Any]:
    entries = await bandit.entries(after=0, limit=10_000)
    return [event for _, payload in entries if isinstance(event := events.decode(payload), kind)]


# -- contract: every policy over every storage -------------------------------------------------------------------------------


EVERYWHERE = ("is-ucb", "promptwise")
TWINS = {kind: forms[0] for kind, forms in EXAMPLES.items()} | {"auto": Example(kind="auto")}
FORMS = [  # every policy in memory, two that learn differently over every storage
    pytest.param(kind, storage, id=f"{kind}-{storage}")
    for kind in POLICIES
    for storage in (sorted(STORAGES) if kind in EVERYWHERE else ["memory"])
]


@pytest.mark.parametrize(("kind", "opener"), FORMS, indirect=["opener"])
async def test_a_shadow_of_the_same_policy_knows_what_the_bandit_knows(kind: str, opener: Opener, clock: Clock) -> None:
    """Until it is promoted, while it decides, and after another exchange; live, replayed, and from a snapshot."""
    example = TWINS[kind]
    options = {"clock": clock, "snapshot_every": 9, **PATIENT}
    async with started(opener) as storage:
        bandit = await learner_of(storage, example, options=options)
        number = await shadow(bandit, "twin", kind, example.settings, learns_from="start")
        await settled(bandit)
        clients = Clients(example, bandit, clock, seed=5)
        await clients.work(4)
        live, twin = bandit.projection.learned()[1], bandit.projection.learned()[2]["twin"]
        assert states.digest(twin.policy, twin.state) == states.digest(live.policy, live.state)
        assert (twin.number, twin.left) == (number, 0)
        await promote(bandit, "twin")
        await clients.work(3)
        await promote(bandit, "twin", "p2")
        await clients.work(2)
        await promote(bandit, "twin", "p3")
        await settled(bandit)
        own, twin = bandit.projection.learned()[1], bandit.projection.learned()[2]["twin"]
        assert (own.number, twin.number) == (number, events.FIRST)
        assert states.digest(twin.policy, twin.state) == states.digest(own.policy, own.state)
        g = default_rng(3)
        for t in range(3):
            event = (await bandit.decisions.submit(ask(example, g, f"alone {t}"))).event
            (other,) = event.shadows.values()
            assert (events.decided_by(event), other.policy) == (number, events.FIRST)
            assert np.allclose(other.weights, event.weights, atol=1e-9), "the same policy on the same outcomes"
            await settled(bandit)
        found = facts(bandit)
        assert facts(await settled(await Learner.load(storage, bandit.log, use_snapshots=False))) == found
        assert facts(await settled(await Learner.load(storage, bandit.log))) == found, "from a snapshot"
        await bandit.projection.close()
    async with started(opener) as storage:
        assert facts(await Learner.load(storage, bandit.log)) == found, "after a restart"


# -- a function of the log ---------------------------------------------------------------------------------------------------


class Scene:
    """A bandit with shadows that come, learn from here or from the start, are exchanged and go; outcomes come late or never."""

    def __init__(self, bandit: Learner, clock: Clock) -> None:
        self.bandit, self.clock = bandit, clock
        self.g = default_rng(12)
        self.open: list[tuple[str, int]] = []

    async def play(self, rounds: int) -> None:
        for t in range(rounds):
            self.clock.advance(1.0)
            decided = (await self.bandit.decisions.submit(DecisionRequest(id=f"d{t}", body=f"{t}"))).event
            self.open.append((decided.id, decided.arm))
            await settled(self.bandit)
            while len(self.open) > (1 if t % 4 else 3):
                await self._observe(*self.open.pop(int(self.g.integers(len(self.open)))), t)
            await self._rare(t)
            await settled(self.bandit)

    async def _observe(self, decision: str, arm: int, t: int) -> None:
        is_worse = arm == 1 and t > 20
        reward = (0.1 if is_worse else (0.3, 0.9, 0.5)[arm % 3]) + 0.1 * float(self.g.standard_normal())
        await self.bandit.outcomes.submit(decision, OutcomeReport(reward=reward, body=f"of {decision}"))
        await settled(self.bandit)

    async def _rare(self, t: int) -> None:
        now, record = self.clock(), self.bandit.committer.record
        if t == 4:
            await shadow(self.bandit, "young", "epsilon-greedy", {"epsilon": 0.3})
        elif t == 8:
            await record(ArmAdded(at=now, name="new", price=0.4, metadata={}), key="added")
        elif t == 10:
            await shadow(self.bandit, "forgetful", "greedy", {"forget_half_life": 7, "drift": "detect"}, learns_from="start")
        elif t == 13:
            await record(ArmRetired(at=now, arm=2), key="retired")
        elif t == 15:
            await promote(self.bandit, "forgetful")
        elif t == 20:
            self.clock.advance(200.0)
            await self.bandit.outcomes.expire()
            self.open.clear()
        elif t == 24:
            await promote(self.bandit, "young", "p2")
        elif t == 27:
            await record(ShadowDeleted(at=now, shadow="young"), key="deleted")
        elif t == 29:
            await promote(self.bandit, "forgetful", "p3")


WATCHING = Example(kind="greedy", settings={"drift": "detect"})
AUTO = Example(kind="auto", settings={"drift": "detect"})


@pytest.fixture(scope="module")
def run() -> list[bytes]:
    """The log of a run that nothing interrupted, and its snapshots by offset."""
    return []


async def payloads_of(run: list[bytes]) -> list[bytes]:
    if not run:
        clock = Clock()
        bandit = await learner_of(MemoryStorage(), AUTO, options={"clock": clock, **PATIENT})
        await Scene(bandit, clock).play(34)
        run += [payload for _, payload in await bandit.entries(after=0, limit=10_000)]
    return run


async def test_a_run_goes_through_what_this_module_compares(run: list[bytes]) -> None:
    found = [events.decode(payload) for payload in await payloads_of(run)]
    decided = [event for event in found if isinstance(event, Decided)]
    assert {ShadowCreated, ShadowDeleted, ShadowPromoted} <= {type(event) for event in found}
    assert len({events.decided_by(event) for event in decided}) == 3
    names = [set(() if event.shadows is msgspec.UNSET else event.shadows) for event in decided]
    assert [one in names for one in ({"young", "forgetful"}, {"forgetful"}, set())] == [True, True, True]
    assert any(isinstance(event, Observed) and event.surprises is not msgspec.UNSET for event in found)


@pytest.mark.parametrize("use_snapshot", [False, True])
async def test_a_restart_at_any_offset_changes_no_weight(run: list[bytes], use_snapshot: bool) -> None:
    """What is written after it is written to the bit: weights of the policy that decides, and of every shadow."""
    payloads, storage = await payloads_of(run), MemoryStorage()
    for offset in range(2, len(payloads), 4):
        clock = Clock()
        log = await stored(storage, Log(f"at {offset}", "greeter"), payloads[:offset])
        if use_snapshot:
            before = await settled(await Learner.load(storage, log, clock=clock, until=max(1, offset - 2), **PATIENT))
            await before.projection.snapshot()
        bandit = await settled(await Learner.load(storage, log, clock=clock, **PATIENT))
        for payload in payloads[offset : offset + 4]:
            assert await reenact(bandit, clock, payload) == payload, f"after a restart at {offset}"
            await settled(bandit)
        await storage.delete(log)


async def test_every_replay_ends_at_the_same_bytes(run: list[bytes], opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = await payloads_of(run)
    async with started(opener) as storage:
        log = await stored(storage, Log("1", "greeter"), payloads)
        found = []
        for batch in (1, 7, 256):
            monkeypatch.setattr(folding, "READ_BATCH", batch)
            bandit = await settled(await Learner.load(storage, log, use_snapshots=False, **PATIENT))
            found.append(facts(bandit))
        await bandit.projection.snapshot()
        found.append(facts(await Learner.load(storage, log, **PATIENT)))
    assert all(one == found[0] for one in found)


# -- what a shadow knows -----------------------------------------------------------------------------------------------------


async def test_from_the_start_is_as_from_the_first_offset(clock: Clock, opener: Opener) -> None:
    """Weights and digest of a shadow that was there from offset 2, and of one that learned the log later."""
    g = default_rng(2)
    async with started(opener) as storage:
        bandit = await learner_of(storage, PAK, options={"clock": clock, "snapshot_every": 7, **PATIENT})
        assert await shadow(bandit, "early", "lin-ucb", {"ridge": 0.5}) == 2
        for t in range(9):
            decided = (await bandit.decisions.submit(ask(PAK, g, f"d{t}"))).event
            if t % 3:
                await bandit.outcomes.submit(decided.id, OutcomeReport(reward=0.1 * t, body="b"))
        await bandit.outcomes.cancel("d3")
        await shadow(bandit, "late", "lin-ucb", {"ridge": 0.5}, learns_from="start")
        await settled(bandit)
        for t in range(4):
            event = (await bandit.decisions.submit(ask(PAK, g, f"e{t}"))).event
            assert np.allclose(event.shadows["early"].weights, event.shadows["late"].weights, atol=1e-9)
            await bandit.outcomes.submit(event.id, OutcomeReport(reward=0.2 * t, body="b"))
        asked, tracks = Context(allowed=(True,) * 3, features=PAK.features(g)), bandit.projection.shadows()
        await bandit.projection.background.finish()
        scores = [tracks[name].policy.weights(tracks[name].scoring.state, [asked]).scores for name in ("early", "late")]
        for name, table in scores[0].items():
            assert np.allclose(table, scores[1][name], atol=1e-9), f"{name}: what is open narrows both alike"
        early, late = (bandit.projection.learned()[2][name] for name in ("early", "late"))
        assert states.digest(early.policy, early.state) == states.digest(late.policy, late.state)
        assert sum(arm.pulls for arm in late.state.arms) == bandit.ledger.outcomes == 10
        assert bandit.ledger.shadows["early"].outcomes == bandit.ledger.shadows["late"].outcomes == 0


async def test_a_promoted_policy_knows_what_an_independent_replay_does(clock: Clock) -> None:
    """Its sums are those of the outcomes since its creation, folded here; its weights those of a bandit of that policy."""
    g, storage = default_rng(4), MemoryStorage()
    bandit = await learner_of(storage, GREEDY, options={"clock": clock, **PATIENT})
    rewards: list[tuple[int, float]] = []
    for t in range(30):
        if t == 8:
            await shadow(bandit, "calm", "epsilon-greedy", {"epsilon": 0.25})
        if t == 20:
            await promote(bandit, "calm")
        event = (await bandit.decisions.submit(ask(GREEDY, g, f"d{t}"))).event
        reward = float(g.random())
        await bandit.outcomes.submit(event.id, OutcomeReport(reward=reward, body="b"))
        rewards += [(event.arm, reward)] * (t >= 8)
    policy = build_for(bandit.created, "epsilon-greedy", {"epsilon": 0.25})
    state = states.start(policy, arms=3)
    for arm, reward in rewards:
        state = states.fold(policy, state, Observation(arm=arm, reward=reward))
    assert states.digest(bandit.policy, bandit.versions.committed.state) == states.digest(policy, state)
    means = [np.mean([reward for arm, reward in rewards if arm == index]) for index in range(3)]
    weights = np.full(3, 0.25 / 3)
    weights[int(np.argmax(means))] += 0.75
    preview = await bandit.decisions.preview(ask(GREEDY, g, "next"))
    assert preview.weights == pytest.approx(weights)
    assert bandit.digest() != (bandit.digest()[0], states.digest(policy, state)), "the shadow is in the digest"


async def test_an_outcome_that_a_shadow_cannot_learn_is_left_out_and_counted(clock: Clock) -> None:
    """`greedy` needs no prompt; `pak-ucb`, which normalizes, can do nothing with one of zeros, and nothing without."""
    bandit = await learner_of(MemoryStorage(), Example(kind="greedy", dim=2), options={"clock": clock, **PATIENT})
    await shadow(bandit, "pak", "pak-ucb", {"random_features": 4})
    for t, vector in enumerate(([1.0, 0.0], [0.0, 0.0], None, [0.5, 0.5])):
        features = b"" if vector is None else events.vector_bytes(np.array(vector))
        event = (await bandit.decisions.submit(DecisionRequest(id=f"d{t}", features=features))).event
        assert (event.shadows is msgspec.UNSET) == (t in (1, 2))
        if t < 3:
            await bandit.outcomes.submit(f"d{t}", OutcomeReport(reward=0.5, body="b"))
    record, (_, _, others) = bandit.ledger.shadows["pak"], bandit.projection.learned()
    assert (record.decisions, record.left_out, others["pak"].left, others["pak"].failure) == (2, 2, 2, "")
    assert sum(arm.pulls for arm in others["pak"].state.arms) == 1
    await bandit.decisions.submit(DecisionRequest(id="open", features=b""))
    await promote(bandit, "pak")
    await bandit.outcomes.submit("open", OutcomeReport(reward=0.5, body="b"))
    await bandit.outcomes.submit("d3", OutcomeReport(reward=0.5, body="b"))
    assert sum(arm.pulls for arm in bandit.versions.committed.state.arms) == 2, "an open decision without a prompt is left out"
    with pytest.raises(InvalidContext):
        await bandit.decisions.submit(DecisionRequest(id="no prompt"))


async def test_agreement_is_the_mass_that_both_share(clock: Clock) -> None:
    """`one-arm` against `random`: a third of the mass; and what each shadow would have chosen."""
    bandit = await learner_of(MemoryStorage(), Example(kind="random"), options={"clock": clock, **PATIENT})
    await shadow(bandit, "always", "one-arm", {"arm": 2})
    await shadow(bandit, "same", "random")
    for t in range(5):
        await bandit.decisions.submit(DecisionRequest(id=f"d{t}"))
    record = bandit.ledger.shadows["always"]
    assert [record.decisions, record.overlap] == pytest.approx([5, 5 / 3])
    assert record.weights == [0.0, 0.0, 5.0]
    assert bandit.ledger.shadows["same"].overlap == pytest.approx(5.0)


async def test_a_shadow_watches_drift_as_the_policy_that_decides_does(clock: Clock) -> None:
    """The same policy raises its alarms at the same offsets, and takes the sums of its detector along when it is promoted."""
    bandit, g = await learner_of(MemoryStorage(), WATCHING, options={"clock": clock, **PATIENT}), default_rng(7)
    await shadow(bandit, "twin", "greedy", WATCHING.settings)
    for t in range(160):
        if t == 145:
            await promote(bandit, "twin")
        await bandit.decisions.submit(DecisionRequest(id=f"d{t}"))
        reward = (0.9 if t < 60 else 0.1) + 0.05 * float(g.standard_normal())
        await bandit.outcomes.submit(f"d{t}", OutcomeReport(reward=reward, arm=t % 3, body="b"))
    record, arms = bandit.ledger.shadows["twin"], bandit.ledger.arms
    assert record.surprise == [arm.surprise for arm in arms]
    assert record.surprise[0].outcomes > 5, "since before the promotion"
    assert sum(arm.alarms for arm in arms) == 3
    _, own, others = bandit.projection.learned()
    assert states.digest(own.policy, own.state) == states.digest(others["twin"].policy, others["twin"].state)
    assert sum(arm.pulls for arm in own.state.arms) < 145, "each alarm dropped what was known of its arm"


async def test_a_slow_shadow_is_left_out_and_no_decision_waits_for_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    weights = EpsilonGreedy.weights

    def slow(self: EpsilonGreedy, state: State, contexts: Sequence[Context]) -> Weights:
        assert gate.wait(20.0)
        return weights(self, state, contexts)

    monkeypatch.setattr(EpsilonGreedy, "weights", slow)
    bandit = await learner_of(MemoryStorage(), GREEDY, options={"clock": clock})
    await shadow(bandit, "slow", "epsilon-greedy", {"epsilon": 0.25})
    for t in range(3):
        event = (await bandit.decisions.submit(DecisionRequest(id=f"d{t}"))).event
        assert event.shadows is msgspec.UNSET
    assert bandit.ledger.shadows["slow"].left_out == 3
    gate.set()
    await bandit.projection.background.finish()
    bandit.ledger.shadows["slow"].left_out += 97
    assert "Shadow 'slow' is left out of 100 of 100 decisions" in (await bandit.notices())[-1]
    bandit.ledger.shadows["slow"].left_out -= 97
    bandit.decisions.shadows.limit_s = 60.0
    assert "slow" in (await bandit.decisions.submit(DecisionRequest(id="d4"))).event.shadows
    assert bandit.ledger.shadows["slow"].left_out == 3


async def test_a_shadow_that_cannot_be_folded_learns_nothing_more_and_the_bandit_goes_on(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: EpsilonGreedy, state: State, seen: Observation) -> Any:
        raise ArithmeticError("no")

    storage = MemoryStorage()
    bandit = await learner_of(storage, GREEDY, options={"clock": clock, **PATIENT})
    await shadow(bandit, "broken", "epsilon-greedy", {"epsilon": 0.25})
    await bandit.decisions.submit(DecisionRequest(id="d1"))
    monkeypatch.setattr(EpsilonGreedy, "update", broken)
    await bandit.outcomes.submit("d1", OutcomeReport(reward=0.5, body="b"))
    assert "offset 4" in bandit.projection.learned()[2]["broken"].failure
    assert "Shadow 'broken' learns nothing more" in (await bandit.notices())[-1]
    assert (await bandit.decisions.submit(DecisionRequest(id="d2"))).event.shadows is msgspec.UNSET
    for use_snapshots in (False, True):
        again = await Learner.load(storage, bandit.log, use_snapshots=use_snapshots, **PATIENT)
        assert facts(again) == facts(bandit)
        await bandit.projection.snapshot()


class Held(MemoryStorage):
    """Holds back everything that reads a log from its start."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()

    async def read(self, log: Log, *, after: int, limit: int) -> list[Entry]:
        if after == 1:
            await self.go.wait()
        return await super().read(log, after=after, limit=limit)


@pytest.mark.parametrize("promotes", [False, True])
async def test_a_shadow_that_is_behind_holds_up_nothing_but_its_promotion(clock: Clock, promotes: bool) -> None:
    """Decisions go on without it; there is no digest and no snapshot without it; a promotion in the log waits for it."""
    storage = Held()
    bandit = await learner_of(storage, GREEDY, options={"clock": clock, **PATIENT})
    await Clients(GREEDY, bandit, clock, seed=1).work(3)
    storage.go.clear()
    await shadow(bandit, "late", "epsilon-greedy", {"epsilon": 0.25}, learns_from="start")
    event = (await bandit.decisions.submit(DecisionRequest(id="meanwhile"))).event
    await bandit.outcomes.submit("meanwhile", OutcomeReport(reward=0.5, body="b"))
    assert event.shadows is msgspec.UNSET
    with pytest.raises(ShadowBehindError):
        bandit.digest()
    await bandit.projection.snapshot()
    assert not await storage.load_snapshots(bandit.log)
    promotion = asyncio.ensure_future(promote(bandit, "late") if promotes else bandit.projection.wait_for_shadows())
    storage.go.set()
    await promotion
    assert bandit.policy.kind == ("epsilon-greedy" if promotes else "greedy")
    late = next(one for one in bandit.projection.tracks.values() if one.policy.kind == "epsilon-greedy")
    assert sum(arm.pulls for arm in late.committed.state.arms) == bandit.ledger.outcomes > 0
    assert facts(await settled(await Learner.load(storage, bandit.log, **PATIENT))) == facts(await settled(bandit))


async def test_a_shadow_of_this_build_is_no_secret_of_its_snapshot(clock: Clock) -> None:
    """A build that knows of no shadows passes such a snapshot over: its version is a later one."""
    storage = MemoryStorage()
    bandit = await learner_of(storage, GREEDY, options={"clock": clock, **PATIENT})
    versions = []
    for name in ("one", "two"):
        await bandit.projection.snapshot()
        blob = (await storage.load_snapshots(bandit.log))[0][1]
        sealed = msgspec.msgpack.decode(blob, type=snapshots.Sealed)
        versions.append(msgspec.msgpack.decode(sealed.content)["version"])
        await shadow(bandit, name, "epsilon-greedy", {"epsilon": 0.25})
    assert versions == [events.VERSION, snapshots.WITH_SHADOWS]
