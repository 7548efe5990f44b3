"""A bandit of any kind under everything that clients do, without HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from bandits.registry import build
from bandits.types import LAYOUT, Policy
from service.engine import events
from service.engine.decisions import DecisionMaker, DecisionRequest
from service.engine.errors import OutcomeConflictError
from service.engine.events import ArmAdded, ArmChanged, ArmRetired, Created, Matrix, NewArm, ReferenceAdded
from service.engine.learner import Learner
from service.engine.outcomes import OutcomeReport
from service.storage.base import Log, Storage
from tests.bandits.examples import ARMS, EXAMPLES, Example

GREEDY = EXAMPLES["greedy"][0]
PAK = EXAMPLES["pak-ucb"][0]


class Clock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def policy_of(example: Example, *, seed: int = 3) -> Policy:
    """As the service builds it."""
    return build(example.kind, example.settings, dim=example.dim, output_dim=example.output_dim, seed=seed)


def created(example: Example = GREEDY, *, name: str = "greeter", arms: int = ARMS, **changes: Any) -> Created:
    """The first event of its log."""
    facts: dict[str, Any] = {
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "bandit": name,
        "tenant": "",
        "request": {},
        "policy": example.kind,
        "hyperparameters": dict(example.settings),
        "arms": [NewArm(name=f"arm {i}", price=0.2 + 0.3 * i) for i in range(arms)],
        "seed": 3,
        "fingerprint": policy_of(example, seed=changes.get("seed", 3)).fingerprint,
        "dim": example.dim,
        "prompt_embedder": "vector" if example.dim else "",
        "prompt_version": "",
        "output_dim": example.output_dim,
        "output_embedder": "vector" if example.output_dim else "",
        "output_version": "",
        "reward_source": "client",
        "default_reward": None,
        "timeout_s": 100.0,
        "layout": LAYOUT,
    }
    return Created(**{**facts, **changes})


async def learner_of(
    storage: Storage, example: Example = GREEDY, *, options: dict[str, Any] | None = None, **changes: Any
) -> Learner:
    """A new bandit that can decide."""
    event = created(example, **changes)
    log, _ = await storage.create(Log(f"id of {event.bandit}", event.bandit), events.encode(event))
    learner = await Learner.load(storage, log, **(options or {}))
    rows = example.reference(np.random.default_rng(1))
    if learner.takes_reference and len(rows):
        await learner.committer.record(ReferenceAdded(at=event.at, outputs=Matrix.of(rows)), key="reference/1")
    return learner


def ask(example: Example, g: Generator, decision: str, **changes: Any) -> DecisionRequest:
    """A request for a decision."""
    features = events.vector_bytes(example.features(g).numpy()) if example.dim else b""
    return DecisionRequest(**{"id": decision, "features": features, "body": f"body of {decision}", **changes})


def outcome(example: Example, g: Generator, played: int, **changes: Any) -> OutcomeReport:
    """What came of a call of an arm."""
    rows = example.output(g, played)
    facts = {"reward": example.reward(g, played), "body": "body", "output": Matrix.of(rows) if len(rows) else events.EMPTY}
    return OutcomeReport(**{**facts, **changes})


class Clients:
    """Clients that do everything in any order, several at a time; all chance comes from one generator."""

    def __init__(self, example: Example, learner: Learner, clock: Clock, *, seed: int) -> None:
        self.example, self.learner, self.clock = example, learner, clock
        self.g = np.random.default_rng(seed)
        self.made = 0
        self.open: list[tuple[str, int]] = []
        self.kept: dict[str, tuple[int, float]] = {}

    async def work(self, rounds: int) -> None:
        """Decisions and outcomes, with now and then something rarer."""
        rare = (self._add_arm, self._retire_arm, self._change_arm, self._pass_time, self._cancel, self._observe_twice)
        for t in range(rounds):
            await asyncio.gather(*(self._decide() for _ in range(int(self.g.integers(1, 5)))))
            due = [self._take() for _ in range(int(self.g.integers(0, 1 + len(self.open))))]
            await asyncio.gather(*(self._observe(*decision) for decision in due))
            if t % 3 == 2:
                await rare[(t // 3) % len(rare)]()

    def _take(self) -> tuple[str, int]:
        return self.open.pop(int(self.g.integers(len(self.open))))

    async def _decide(self) -> None:
        self.made += 1
        active = [i for i, arm in enumerate(self.learner.ledger.arms) if arm.active]
        some = self.g.random() < 0.25
        allowed = {i: (0.15 if i % 2 else None) for i in active[: len(active) // 2 + 1]} if some else {}
        episode = f"episode {self.made // 3}" if self.learner.policy.episodic or some else ""
        asked = ask(self.example, self.g, f"d{self.made}", allowed=allowed, episode=episode)
        decided = (await self.learner.decisions.submit(asked)).event
        self.kept[decided.id] = (decided.arm, decided.propensity)
        if decided.arm >= 0:
            self.open.append((decided.id, decided.arm))

    async def _observe(self, decision: str, arm: int) -> None:
        changes: dict[str, Any] = {}
        if self.g.random() < 0.2:  # the client called another arm
            arm = int(self.g.integers(ARMS))
            changes = {"arm": arm, "cost": 0.05}
        await self.learner.outcomes.submit(decision, outcome(self.example, self.g, arm, **changes))

    async def _observe_twice(self) -> None:
        if self.open:
            decision, arm = self._take()
            same = outcome(self.example, self.g, arm)
            answers = await asyncio.gather(*(self.learner.outcomes.submit(decision, same) for _ in range(3)))
            assert sorted(kept.is_duplicate for kept in answers) == [False, True, True]
            try:
                await self.learner.outcomes.submit(decision, outcome(self.example, self.g, arm, body="another"))
            except OutcomeConflictError:
                return
            raise AssertionError("another outcome was accepted")

    async def _cancel(self) -> None:
        if self.open:
            await self.learner.outcomes.cancel(self._take()[0])

    async def _pass_time(self) -> None:
        self.clock.advance(101.0)
        await self.learner.outcomes.expire()
        self.open.clear()

    async def _add_arm(self) -> None:
        name = f"added {len(self.learner.versions.committed.arms)}"
        await self.learner.committer.record(
            ArmAdded(at=self.clock(), name=name, price=0.4, metadata={}), key=events.added_key(name)
        )

    async def _change_arm(self) -> None:
        await self.learner.committer.record(
            ArmChanged(at=self.clock(), arm=0, price=0.33, metadata={"n": 1}), key=f"change {self.made}"
        )

    async def _retire_arm(self) -> None:
        last = len(self.learner.versions.committed.arms) - 1
        if last >= ARMS:
            await self.learner.committer.record(ArmRetired(at=self.clock(), arm=last), key=f"retire {self.made}")


class HeldDecisions:
    """Decisions that are asked for from now on wait until they may go on. arrived: released by each of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self.go_on = asyncio.Semaphore(0), asyncio.Event()
        submit = DecisionMaker.submit

        async def waits(decisions: DecisionMaker, ask: DecisionRequest) -> object:
            self.arrived.release()
            await self.go_on.wait()
            return await submit(decisions, ask)

        monkeypatch.setattr(DecisionMaker, "submit", waits)
