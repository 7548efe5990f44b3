"""What `auto` decides is a function of the log: to the bit the same after a restart at any offset, however late it prepares."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from numpy.random import Generator, default_rng

from bandits.evidence import posterior as posteriors
from service.engine import events
from service.engine.decisions import DecisionRequest
from service.engine.events import ArmAdded, ArmChanged, ArmRetired, BudgetSet, Configured, Decided
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.storage.base import Log, Storage
from service.storage.memory import MemoryStorage
from tests.bandits.examples import Example
from tests.service.drivers import Clock, learner_of
from tests.service.reenact import reenact, stored
from tests.service.storages import STORAGES, started

DIM = 3
FORMS: dict[str, tuple[Example, dict[str, Any]]] = {
    "prompts": (Example(kind="auto", dim=DIM, settings={"drift": "detect"}), {}),
    "no-prompts": (Example(kind="auto", settings={"drift": "detect"}), {}),
    "forgets": (Example(kind="auto", settings={"forget_half_life": 9}), {"prices_per": "outcome"}),
    "default-reward": (Example(kind="auto", settings={"exploration_floor": 0.3}), {"default_reward": 0.25}),
}
FACTS: dict[str, Any] = {
    "signals": ["reward", "cost", "latency_s"],
    "objective": {"reward": 2.0, "latency_s": -0.1},
    "budget": BudgetSet(signal="cost", per_decision=0.5),
}
MEANS = (0.3, 0.9, 0.5)
PATIENCE_S = 30


class Scene:
    """The clients of one run: decisions with outcomes that come late, in another order or never, and an arm that gets worse."""

    def __init__(self, bandit: Learner, clock: Clock, *, dim: int, rounds: int) -> None:
        self.bandit, self.clock, self.dim, self.rounds = bandit, clock, dim, rounds
        self.g: Generator = default_rng(12)
        self.open: list[tuple[str, int]] = []

    async def play(self) -> None:
        for t in range(self.rounds):
            self.clock.advance(1.0)
            features = events.vector_bytes(self.g.standard_normal(self.dim)) if self.dim else b""
            allowed: dict[int, float | None] = {0: None, 1: None} if t % 7 == 5 else {}
            request = DecisionRequest(id=f"d{t}", features=features, allowed=allowed, body=f"body {t}")
            decided = (await self.bandit.decisions.submit(request)).event
            self.open.append((decided.id, decided.arm))
            await self.bandit.projection.background.finish()
            while len(self.open) > (1 if t % 5 else 3):
                await self._observe(*self.open.pop(int(self.g.integers(len(self.open)))), t)
            await self._rare(t)
            await self.bandit.projection.background.finish()

    async def _observe(self, decision: str, arm: int, t: int) -> None:
        is_worse = arm == 1 and t > self.rounds // 2
        reward = (0.1 if is_worse else MEANS[arm % 3]) + 0.1 * float(self.g.standard_normal())
        signals = {"latency_s": 1.0 + arm} if t % 4 else {}
        cost = 0.2 + 0.5 * arm if t % 3 else None
        await self.bandit.outcomes.submit(
            decision, OutcomeReport(reward=reward, cost=cost, signals=signals, body=f"of {decision}")
        )
        await self.bandit.projection.background.finish()

    async def _rare(self, t: int) -> None:
        now, record = self.clock(), self.bandit.committer.record
        if t == 8:
            await record(ArmAdded(at=now, name="new", price=0.4, metadata={}), key="added")
        elif t == 12:
            await record(ArmRetired(at=now, arm=2), key="retired")
        elif t == 18:
            await record(ArmChanged(at=now, arm=2, price=0.9, metadata={}), key="changed")
        elif t == 20:
            await self.bandit.outcomes.cancel(self.open.pop(0)[0])
        elif t == 24:
            self.clock.advance(200.0)
            await self.bandit.outcomes.expire()
            self.open.clear()
        elif t == 40:
            budget = BudgetSet(signal="latency_s", per_decision=1.3)
            await record(Configured(at=now, objective={"reward": 1.0, "cost": -0.2}, budget=budget), key="configured")


class Run:
    """A run that nothing interrupted: its log and its snapshots, by offset."""

    def __init__(self, payloads: list[bytes], snapshots: dict[int, bytes], bandit: Learner) -> None:
        self.payloads, self.snapshots, self.bandit = payloads, snapshots, bandit

    @property
    def end(self) -> int:
        return len(self.payloads)

    def decisions_after(self, offset: int, count: int = 50) -> int:
        """The offset of the last of so many decisions."""
        for number in range(offset, self.end):
            count -= isinstance(events.decode(self.payloads[number]), Decided)
            if not count:
                return number + 1
        return self.end


async def run_of(form: str, *, rounds: int) -> Run:
    """The run of a form. Every tenth event leaves a snapshot."""
    example, changes = FORMS[form]
    clock, storage = Clock(), MemoryStorage()
    facts = {**FACTS, **changes}
    bandit = await learner_of(storage, example, options={"clock": clock, "snapshot_every": 10}, **facts)
    snapshots: dict[int, bytes] = {}
    save = storage.save_snapshot

    async def keep(log: Log, offset: int, blob: bytes) -> int:
        snapshots[offset] = blob
        return await save(log, offset, blob)

    storage.save_snapshot = keep  # type: ignore[method-assign]
    await Scene(bandit, clock, dim=example.dim, rounds=rounds).play()
    await bandit.projection.background.finish()
    payloads = [payload for _, payload in await bandit.entries(after=0, limit=10_000)]
    return Run(payloads, snapshots, bandit)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """By form: what was run already."""
    return {}


async def known(runs: dict[str, Run], form: str, *, rounds: int = 90) -> Run:
    if form not in runs:
        runs[form] = await run_of(form, rounds=rounds)
    return runs[form]


async def check_restart(run: Run, storage: Storage, offset: int, *, snapshot: int | None, count: int) -> None:
    """A process that starts at this offset writes what the uninterrupted one wrote."""
    clock = Clock()
    log = await stored(storage, Log(f"at {offset} from {snapshot}", "greeter"), run.payloads[:offset])
    if snapshot is not None:
        await storage.save_snapshot(log, snapshot, run.snapshots[snapshot])
    bandit = await Learner.load(storage, log, clock=clock)
    assert bandit.versions.committed.offset == offset
    for number in range(offset, run.decisions_after(offset, count)):
        payload = run.payloads[number]
        assert await reenact(bandit, clock, payload) == payload, f"offset {number + 1} after a restart at {offset}"
    await bandit.projection.background.finish()
    await storage.delete(log)


@pytest.mark.parametrize("form", FORMS)
async def test_a_run_goes_through_what_this_module_compares(runs: dict[str, Run], form: str) -> None:
    run = await known(runs, form)
    found = [events.decode(payload) for payload in run.payloads]
    decided = [event for event in found if isinstance(event, Decided)]
    assert len({event.prepared for event in decided}) >= 6
    assert any(0.0 < (event.propensity or 0.0) < 1.0 for event in decided)
    assert any(event.multipliers.get("cost", 0.0) > 0.0 for event in decided)  # type: ignore[union-attr]
    assert any(event.multipliers.get("latency_s", 0.0) > 0.0 for event in decided)  # type: ignore[union-attr]
    assert len(run.snapshots) >= 8
    assert bool(run.bandit.ledger.alarms) == (FORMS[form][0].settings.get("drift") == "detect")
    assert len({type(event) for event in found}) >= 7


@pytest.mark.parametrize("use_snapshot", [False, True])
@pytest.mark.parametrize("form", ["no-prompts", "forgets", "default-reward"])
async def test_a_restart_at_any_offset_changes_no_decision(runs: dict[str, Run], form: str, use_snapshot: bool) -> None:
    run, storage = await known(runs, form), MemoryStorage()
    for offset in range(1 if not use_snapshot else min(run.snapshots), run.end, 5):
        snapshot = max(at for at in run.snapshots if at <= offset) if use_snapshot else None
        await check_restart(run, storage, offset, snapshot=snapshot, count=50 if offset % 20 == 1 else 4)


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
async def test_a_restart_with_prompts_changes_no_decision(runs: dict[str, Run], storage: str, tmp_path: Path) -> None:
    run = await known(runs, "prompts")
    alarm = run.bandit.ledger.alarms[0].offset
    async with started(STORAGES[storage](tmp_path)) as opened:
        if storage == "memory":
            await check_restart(run, opened, 40, snapshot=None, count=50)
            await check_restart(run, opened, alarm - 1, snapshot=None, count=4)
        await check_restart(run, opened, alarm, snapshot=max(at for at in run.snapshots if at <= alarm), count=4)
        await check_restart(run, opened, 12, snapshot=min(run.snapshots), count=4)


# -- preparing late --------------------------------------------------------------------------------------------------------------


class Gate:
    """Holds back every preparation until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.threads: set[int] = set()
        prepare = posteriors.prepare

        def late(*given: Any, **options: Any) -> Any:
            self.threads.add(threading.get_ident())
            assert self.open.wait(PATIENCE_S)
            return prepare(*given, **options)

        monkeypatch.setattr(posteriors, "prepare", late)


def derived(bandit: Learner) -> tuple[bytes, str]:
    """Everything that decisions are made of."""
    return bandit.policy.pack_derived(bandit.versions.scoring.state), bandit.digest()[1]


@pytest.mark.parametrize("rounds", [10, 40])
async def test_decisions_go_on_while_a_preparation_is_late(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """After 10 rounds three preparations wait; after 40 more than may, and folds wait, but decisions do not."""
    example, changes = FORMS["prompts"]
    clock, storage, g = Clock(), MemoryStorage(), default_rng(8)
    bandit = await learner_of(storage, example, options={"clock": clock}, **FACTS, **changes)
    gate, reports = Gate(monkeypatch), []
    for t in range(rounds):
        features = events.vector_bytes(g.standard_normal(DIM))
        async with asyncio.timeout(PATIENCE_S / 2):
            decided = (await bandit.decisions.submit(DecisionRequest(id=f"d{t}", features=features))).event
        assert decided.prepared == 0
        report = OutcomeReport(reward=float(g.random()), cost=float(g.random()), signals={"latency_s": float(g.random())})
        reports.append(asyncio.ensure_future(bandit.outcomes.submit(decided.id, report)))
        if rounds == 10:
            async with asyncio.timeout(PATIENCE_S / 2):
                await reports[-1]
    assert threading.get_ident() not in gate.threads, "no preparation is in the way of the event loop"
    gate.open.set()
    await asyncio.gather(*reports)
    await bandit.projection.catch_up()
    await bandit.projection.background.finish()
    asked = DecisionRequest(id="next", features=events.vector_bytes(g.standard_normal(DIM)))
    preview = await bandit.decisions.preview(asked)
    assert preview.prepared == bandit.versions.scoring.state.reference.posterior.count > 0
    for use_snapshots in (False, True):
        again = await Learner.load(storage, bandit.log, clock=clock, use_snapshots=use_snapshots)
        assert derived(again) == derived(bandit)
        assert await again.decisions.preview(asked) == preview
        await bandit.projection.snapshot()
    at_once = await Learner.load(storage, bandit.log, until=1, clock=clock)
    for _ in await bandit.entries(after=1, limit=1_000):  # each event is folded and prepared before the next
        await at_once.projection.fold_log(at_once.versions.committed.offset + 1, at_most=at_once.versions.committed.offset + 1)
        await at_once.projection.background.finish()
    assert derived(at_once) == derived(bandit)


async def test_an_arm_that_comes_back_changes_no_decision_of_a_restarted_process() -> None:
    """While it is retired, all outcomes that count are alike, and there is nothing to prepare."""
    clock, storage = Clock(), MemoryStorage()
    bandit = await learner_of(storage, FORMS["no-prompts"][0], options={"clock": clock}, signals=["reward", "cost"])
    for t in range(12):
        decided = (await bandit.decisions.submit(DecisionRequest(id=f"d{t}"))).event
        if t == 2:
            await bandit.committer.record(ArmRetired(at=clock(), arm=2), key="retired")
        await bandit.outcomes.submit(decided.id, OutcomeReport(reward=1.0 if decided.arm == 2 else 0.5, cost=0.25))
        if t == 3:
            await bandit.committer.record(ArmChanged(at=clock(), arm=2, price=0.8, metadata={}), key="changed")
        await bandit.versions.wait_until_prepared()
        again = await Learner.load(storage, bandit.log, clock=clock)
        asked = DecisionRequest(id="next")
        assert await again.decisions.preview(asked) == await bandit.decisions.preview(asked), f"after {t + 1} outcomes"
        assert derived(again) == derived(bandit)
