"""The learner of one bandit: its log, what was derived from it, and the parts that write to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from bandits import state as states
from bandits.gpu import mirror
from bandits.types import Policy
from service.engine import events
from service.engine.commit import LogCommitter
from service.engine.decisions import MICRO_BATCH, DecisionMaker
from service.engine.demand import Demand
from service.engine.errors import ReferenceConflictError
from service.engine.events import Created
from service.engine.executor import AdaptiveExecutor, TaskGroup
from service.engine.health import Check, Status, Subject, calibration, examine, gain, notices, worst
from service.engine.imports import HistoryImporter
from service.engine.ledger import KnownReference
from service.engine.memory import held_bytes
from service.engine.notices import notices_of_arms, notices_of_rewards, notices_of_shadows
from service.engine.outcomes import OutcomeRecorder
from service.engine.policies import Learned, policy_of, takes_reference
from service.engine.projection import Projection
from service.engine.readiness import Versions
from service.engine.retention import Retention
from service.engine.shadows import LIMIT_S
from service.storage.base import Entry, Log, Storage, StorageDamagedError


class Judgement(NamedTuple):
    """What is wrong with a bandit, in short. status: the worst of its checks.  failing: names of those that are not `ok`."""

    status: Status
    failing: list[str]
    notices: list[str]


class Learner:
    """One bandit in one process.

    projection, ledger, versions: what was folded from its log.
    decisions, outcomes, imports: accept requests.  committer: appends any other event.
    demand: whether it is asked for in this process.
    clone_fault: why the copy of another log cannot be completed; "" = nothing is in its way.

    clock: the time of events.  snapshot_every: events between two snapshots, 0 = none.  max_open: decisions open at a time.
    keep_events: see `Retention`.
    device: where decisions may be scored, as `Settings.where` names it.  shadow_limit_s: see `ShadowScorer`.
    """

    def __init__(
        self,
        storage: Storage,
        log: Log,
        created: Created,
        *,
        clock: Callable[[], datetime] = events.utc_now,
        snapshot_every: int = 10_000,
        max_open: int = 100_000,
        keep_events: int = 0,
        device: str = "cpu",
        shadow_limit_s: float = LIMIT_S,
    ) -> None:
        self.log = log
        self.created = created
        self.clock = clock
        policy = policy_of(created)
        self.projection = Projection(
            storage,
            log,
            created,
            TaskGroup(),
            policy=policy,
            snapshot_every=snapshot_every,
            mirror_of=partial(mirror.of, device=device, batch=MICRO_BATCH),
            retention=Retention(storage, log, created, keep_events=keep_events, clock=clock) if keep_events else None,
        )
        self.ledger = self.projection.ledger
        self.committer = LogCommitter(self.projection)
        self.decisions = DecisionMaker(
            self.projection, self.committer, clock=clock, max_open=max_open, shadow_limit_s=shadow_limit_s
        )
        self.outcomes = OutcomeRecorder(self.projection, self.committer, clock=clock)
        self.imports = HistoryImporter(self.projection, self.committer)
        self.demand = Demand()
        self.clone_fault = ""
        self._judged: tuple[tuple[int, int, int], Judgement] | None = None
        self._storage = storage
        self._executor = AdaptiveExecutor()

    @property
    def versions(self) -> Versions:
        """Of the policy that decides."""
        return self.projection.versions

    @property
    def takes_reference(self) -> bool:
        """Whether the policy compares with reference material."""
        return takes_reference(self.policy)

    @property
    def policy(self) -> Policy:
        """With the hyperparameters of now."""
        return self.projection.policy

    @staticmethod
    async def load(
        storage: Storage,
        log: Log,
        *,
        use_snapshots: bool = True,
        until: int | None = None,
        each: Callable[[int], object] = lambda offset: None,
        **options: Any,
    ) -> Learner:
        """The learner of a log, from its newest usable snapshot and the entries behind it. Damage stops this bandit only.

        until: the last offset to fold; None = all.  each: called with the offset after every batch (progress bars).
        """
        first = await storage.read(log, after=0, limit=1)
        if not first:
            raise StorageDamagedError(f"log {log.name!r}, offset 1", "the log is empty")
        created = events.decode(first[0].payload)
        if not isinstance(created, Created):
            raise StorageDamagedError(f"log {log.name!r}, offset 1", "the first entry does not create a bandit")
        learner = Learner(storage, log, created, **options)
        await learner.projection.load(use_snapshots=use_snapshots, until=until, each=each)
        return learner

    async def report(self) -> dict[str, Any]:
        """The policy's report of the state that decisions use, with gain and calibration where they are known."""
        report = await self._executor.run(self.policy.report, self.versions.scoring.state)
        subject = Subject(policy=self.policy, ledger=self.ledger, report=report)
        judged = {"gain": gain(subject), "calibration": calibration(subject)}
        return report | {name: value for name, value in judged.items() if value is not None}

    async def report_of(self, shadow: Versions) -> dict[str, Any]:
        """The report of a shadow's policy."""
        return await self._executor.run(shadow.policy.report, shadow.scoring.state)

    async def health(self, now: datetime) -> list[Check]:
        """What is looked at to say whether the bandit does well, and the fixes."""
        state = self.versions.scoring.state
        report = await self._executor.run(self.policy.report, state)
        lost = await self._executor.run(self.policy.arms_without_estimate, state)
        return examine(Subject(policy=self.policy, ledger=self.ledger, report=report, lost=lost, now=now))

    async def notices(self) -> list[str]:
        """Sentences for the owner of the bandit: what is wrong, and the fix. Empty where nothing is."""
        state, _, arms = self.versions.scoring
        lost = await self._executor.run(self.policy.arms_without_estimate, state)
        seen = notices(Subject(policy=self.policy, ledger=self.ledger, now=self.clock()))
        if self.clone_fault:
            seen.append(f"This clone cannot be completed ({self.clone_fault}): delete it.")
        shadows = {name: track.failure for name, track in self.projection.shadows().items()}
        return [
            *notices_of_rewards(self.policy, self.ledger),
            *notices_of_arms(self.policy, arms, lost),
            *seen,
            *notices_of_shadows(self.ledger, shadows),
        ]

    async def judge(self, now: datetime) -> Judgement:
        """The status of its health, and its notices. Kept until its log or the minute is another one: a list asks often, and the
        report of a policy can take tens of milliseconds.
        """
        key = (self.versions.committed.offset, self.versions.scoring.offset, int(now.timestamp() // 60))
        if self._judged is None or self._judged[0] != key:
            checks, noticed = await self.health(now), await self.notices()
            failing = [check.name for check in checks if check.status != "ok"]
            self._judged = key, Judgement(worst(checks), failing, noticed)
        return self._judged[1]

    async def entries(self, *, after: int, limit: int) -> list[tuple[int, bytes]]:
        """(offset, payload) of up to `limit` log entries behind `after`."""
        if limit <= 0:
            return []
        return [(entry.offset, entry.payload) for entry in await self._storage.read(self.log, after=after, limit=limit)]

    async def find(self, key: str) -> Entry | None:
        """The entry under a key of the log, if there is one."""
        return await self._storage.find(self.log, key)

    def cooling_until(self, index: int) -> datetime | None:
        """Until when an arm is left out of decisions after errors; None where it is not."""
        is_cooling = self.ledger.live.cooldown is not None and self.ledger.is_cooling(index, self.clock())
        return self.ledger.arms[index].cooling_until if is_cooling else None

    def held_bytes(self) -> int:
        """Estimated bytes of memory: the states of its policies with what is derived from them, and the ledger."""
        tracks = self.projection.tracks.values()
        states = [(track.policy, track.committed.state, track.scoring.state) for track in tracks]
        return held_bytes(self.ledger, self.projection.recent_ids, self.created, *states)

    def digest(self) -> tuple[int, str]:
        """(offset, sha256 of the packed state; with shadows, sha256 of theirs and of this, by name)."""
        return digest_of(*self.projection.learned())

    def known_reference(self, reference: str, body: str) -> KnownReference | None:
        """The reference material that was learned under this id, if any; `ReferenceConflictError` where its body was another."""
        known = self.ledger.references.get(reference)
        if known is not None and known.body != body:
            raise ReferenceConflictError(reference)
        return known


def digest_of(offset: int, deciding: Learned, shadows: Mapping[str, Learned]) -> tuple[int, str]:
    """(offset, digest) of what was learned at one moment (`Projection.learned`)."""
    digest = states.digest(deciding.policy, deciding.state)
    if not shadows:
        return offset, digest
    lines = [digest, *(f"{name} {states.digest(one.policy, one.state)}" for name, one in sorted(shadows.items()))]
    return offset, hashlib.sha256("\n".join(lines).encode()).hexdigest()
