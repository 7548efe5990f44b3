"""The two versions of a bandit's state that requests read, and how one becomes the other.

    fold ──> committed   (state, offset, arms): for receipts, digests, snapshots
                 └─ prepare ──> scoring   the same with its derived caches: for decisions

Each is replaced by one assignment, so readers take no lock. Where preparing is quick, `scoring` is `committed`. Where it is slow
(the spectra of a Frechet distance take seconds), decisions use the newest prepared version, and those it lacks count as pending.
Of a policy that prepares rarely, any folded version can be scored on what was prepared before, and `scoring` is `committed`, too.

Invariant: a decision is pending exactly once. It is in `in_flight` from before its append until `scoring` holds it, and counted
by `scoring` from then on; `_folded_in_flight` says at which offset it moves from one to the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from bandits import state as states
from bandits.gpu.mirror import DeviceMirror
from bandits.types import Policy, State
from service.engine.errors import damage_at
from service.engine.events import FIRST, Decided
from service.engine.executor import BACKGROUND_POOL, DECAY, SLOW_DECAY, AdaptiveExecutor, TaskGroup
from service.engine.ledger import ArmRecord
from service.storage.base import Log, LogCompactedError, LogTruncatedError, StorageDamagedError

logger = logging.getLogger("nextarm.folding")

WAIT_BELOW_S = 0.25
"""A receipt waits until `scoring` holds its event if preparing is known to take less; at most `PATIENCE_S` if that was wrong."""
PATIENCE_S = 5.0


class Version(NamedTuple):
    """An immutable version of a bandit: its state, the offset up to which that is folded, and the arms at that offset."""

    state: State
    offset: int
    arms: tuple[ArmRecord, ...]


class InFlight(NamedTuple):
    """A decision that `scoring` lacks. features: (d,) its vector."""

    decided: Decided
    features: Tensor


class InFlightState(NamedTuple):
    """A scoring state with the decisions in flight added. base: the version it extends; ids: of the decisions added."""

    base: Version
    ids: frozenset[str]
    state: State


class Versions:
    """The committed and the scoring version of one policy of a bandit.

    number: of the policy.  left, failure: see `Learned`.
    pace: of its weights, while it is a shadow.  late: the computation of them that a decision did not wait for.
    committed: the newest folded version.  scoring: the newest prepared version, which decisions use.
    in_flight: the decisions that `scoring` lacks, by id.
    policy: with the hyperparameters of now; the projection replaces it.  mirror: where it is scored on a device.
    fault: why neither changes any more: a damaged log stops the bandit; one that was truncated or trimmed is loaded again.
    """

    def __init__(
        self,
        policy: Policy,
        log: Log,
        background: TaskGroup,
        start: Version,
        *,
        number: int = FIRST,
        mirror: DeviceMirror | None = None,
    ) -> None:
        self.number = number
        self.left = 0
        self.failure = ""
        self.mirror = mirror
        self.pace = AdaptiveExecutor()
        self.late: asyncio.Task[Any] | None = None
        self.committed = self.scoring = start
        self.in_flight: dict[str, InFlight] = {}
        self.fault: StorageDamagedError | LogTruncatedError | LogCompactedError | None = None
        self.is_closing = False
        self.policy = policy
        self._log = log
        self._background = background
        # only what is derived from outputs takes long now and then: spectra, mixtures
        self._executor = AdaptiveExecutor(
            BACKGROUND_POOL, decay=SLOW_DECAY if "output" in policy.needs else DECAY, bursty=policy.prepares_rarely
        )
        self._preparing: asyncio.Task[None] | None = None
        self._in_flight_state: InFlightState | None = None
        self._folded_in_flight: deque[tuple[int, str]] = deque()  # (offset, id) of those in flight that `committed` holds

    @property
    def preparation_lag(self) -> int:
        """Events that are folded but not yet used for scoring."""
        return self.committed.offset - self.scoring.offset

    def check_sound(self) -> None:
        """Raise what stopped this bandit, if anything did."""
        if self.fault is not None:
            raise self.fault.with_traceback(None)  # else it grows with every request

    def stop(self, fault: StorageDamagedError | LogTruncatedError | LogCompactedError) -> None:
        """Refuse every request with this fault from now on; the first one is kept. Other bandits are not affected."""
        if self.fault is not None:
            return
        self.fault = fault
        if isinstance(fault, StorageDamagedError):
            logger.critical("this bandit stops: its log cannot be folded", extra={"bandit": self._log.name, "damage": str(fault)})

    # -- decisions in flight -------------------------------------------------------------------------------------------------

    def track_in_flight(self, decided: Decided, features: Tensor) -> None:
        """Count a decision as pending from now on, before it is in the log."""
        self.in_flight[decided.id] = InFlight(decided, features)

    def drop_in_flight(self, decision_id: str) -> None:
        """Stop counting a decision that was refused and will not be in the log."""
        self.in_flight.pop(decision_id, None)

    def with_in_flight(self) -> tuple[Version, Counter[int]]:
        """`scoring` with the decisions in flight added as pending, as if they had been folded; and arm -> how many those are.

        The state is cached between calls, and extended by what is new. Where folding is quick there are no decisions in flight.
        """
        if not self.in_flight:
            self._in_flight_state = None
            return self.scoring, Counter()
        cached = self._in_flight_state
        if cached is None or cached.base is not self.scoring or not cached.ids <= self.in_flight.keys():
            cached = InFlightState(self.scoring, frozenset(), self.scoring.state)
        waiting: dict[int, list[Tensor]] = {}
        for decision_id, (decided, features) in self.in_flight.items():
            # an arm that `scoring` lacks is one of a decision by another policy
            if 0 <= decided.arm < len(cached.state.arms) and decision_id not in cached.ids:
                waiting.setdefault(decided.arm, []).append(features)
        state = cached.state
        for arm, several in waiting.items():
            state = states.with_arm(state, arm, self.policy.add_pending_many(state.arms[arm], several))
        self._in_flight_state = InFlightState(self.scoring, frozenset(self.in_flight), state)
        return self.scoring._replace(state=state), Counter(one.decided.arm for one in self.in_flight.values())

    # -- committed -> scoring ------------------------------------------------------------------------------------------------

    def restart(self, version: Version) -> None:
        """Begin with a version that was loaded; nothing of it is prepared yet."""
        self.committed = self.scoring = version

    def commit(self, version: Version, decided: Iterable[tuple[int, str]]) -> None:
        """Replace `committed`; `schedule_prepare` has to follow. decided: (offset, id) of the decisions new in it."""
        state = version.state
        if state is not self.committed.state:  # `scoring` may have been prepared again while this was folded
            version = version._replace(state=replace(state, cache=self.scoring.state.cache))
        self.committed = version
        self._folded_in_flight.extend(decided)

    async def wait_until_current(self) -> None:
        """Wait until `scoring` has reached what is committed now, if preparing is known to be quick.

        So a client that has its receipt finds its outcome in the next decision.
        """
        offset = self.committed.offset
        while self._preparing is not None and self.scoring.offset < offset and self._executor.peak_s < WAIT_BELOW_S:
            done, _ = await asyncio.wait([self._preparing], timeout=PATIENCE_S)
            if not done:
                return

    def start_preparing(self) -> None:
        """Prepare in the background what `restart` began with."""
        self._preparing = self._background.spawn(
            self._prepare_behind() if self.policy.prepares_rarely else self._prepare_in_background()
        )

    async def wait_until_prepared(self) -> None:
        """Wait until `scoring` has reached what is committed now, however long that takes."""
        offset = self.committed.offset
        while self.scoring.offset < offset and not self.is_closing:
            self.check_sound()
            await self.schedule_prepare()
            if self._preparing is not None:
                await asyncio.wait([self._preparing])

    async def schedule_prepare(self) -> None:
        """Prepare the newest version: inline where that is quick, else in the background, one at a time."""
        if self.policy.prepares_rarely:  # what is folded can be scored at once, on what was prepared before
            self._publish_scoring(self.committed, self.committed.state)
            if self._preparing is None and self.policy.has_to_prepare(self.committed.state):
                self._preparing = self._background.spawn(self._prepare_behind())
            return
        if self._preparing is not None:
            return
        if _is_same_statistics(self.committed.state, self.scoring.state):  # the derived cache is still valid
            self._publish_scoring(self.committed, replace(self.committed.state, cache=self.scoring.state.cache))
        elif self._executor.is_slow():
            self._preparing = self._background.spawn(self._prepare_in_background())
        else:
            await self.prepare()

    async def _prepare_behind(self) -> None:
        """Prepare, while newer versions are published, and give what was prepared to the newest one."""
        policy = self.policy
        try:
            while policy.has_to_prepare(self.committed.state) and not self.is_closing:
                due = self.committed
                prepared = await self._executor.run(policy.prepare, due.state)
                newest = self.committed
                state = prepared if newest is due else replace(newest.state, cache=prepared.cache)
                self._publish_scoring(newest, state if policy.has_to_prepare(state) else policy.prepare(state))
        except Exception as error:
            self.stop(damage_at(self._log, self.committed.offset, error))  # the next request reports it
        finally:
            self._preparing = None

    async def _prepare_in_background(self) -> None:
        try:
            await self.prepare()
        except StorageDamagedError:
            return  # the next request reports it
        finally:
            self._preparing = None
        if self.scoring.offset < self.committed.offset and not self.is_closing:
            await self.schedule_prepare()

    async def prepare(self) -> None:
        """Derive the caches of `committed`, which is then `scoring`."""
        committed = self.committed
        work = self.policy.prepare if self.mirror is None else self._prepare_with_mirror
        try:
            state = await self._executor.run(work, committed.state)
        except Exception as error:
            damage = damage_at(self._log, committed.offset, error)
            self.stop(damage)
            raise damage from error
        if self.mirror is not None and self.mirror.broken:
            about = {"bandit": self._log.name, "device": str(self.mirror.device), "reason": self.mirror.broken}
            logger.warning("a device failed: this bandit scores on the CPU until the next start", extra=about)
            self.mirror = None
        self._publish_scoring(committed, state)

    def _prepare_with_mirror(self, state: State) -> State:
        """The prepared state, with the device mirror synced with it."""
        state = self.policy.prepare(state)
        if self.mirror is None:
            return state
        self.mirror.sync(state.arms)
        return replace(state, cache=self.mirror)

    def _publish_scoring(self, prepared: Version, state: State) -> None:
        """Replace `scoring`, and drop from `in_flight` what it counts from now on. There is no await in between: another task
        would find these decisions pending twice or not at all.
        """
        self.scoring = prepared._replace(state=state)
        newest = self.committed
        self.committed = self.scoring if newest is prepared else newest._replace(state=replace(newest.state, cache=state.cache))
        while self._folded_in_flight and self._folded_in_flight[0][0] <= self.scoring.offset:
            self.in_flight.pop(self._folded_in_flight.popleft()[1], None)


def _is_same_statistics(one: State, other: State) -> bool:
    """Whether two states hold the same statistics, so that what was derived from one holds for the other."""
    return (
        one.reference is other.reference
        and len(one.arms) == len(other.arms)
        and all(a is b for a, b in zip(one.arms, other.arms, strict=True))
    )
