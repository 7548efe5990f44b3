"""One bandit at work: requests become decisions and outcomes in the log; what the log says is learnt in folding.py.

    decide   wait together ──> Ledger.context ──> policy.weights ──> draw ──> append Decided ──> fold ──> answer
    observe  append Observed (first come closes the decision) ──> fold ──> receipt

A decision is made on the newest state that is ready and waits for no mathematics but its own; where folding is slow its answer
does not wait for that either.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from bandits import draw
from bandits import state as states
from bandits.errors import BanditError, InvalidContext
from bandits.gpu import mirror as placement
from bandits.hyperparameters import declared
from bandits.types import Context, NoReference, Policy, State, Weights, empty
from service.engine import events
from service.engine.batcher import MicroBatcher
from service.engine.commit import LogCommitter
from service.engine.events import AnyEvent, Cancelled, Created, Decided, Expired, Matrix, Observed
from service.engine.executor import AdaptiveExecutor, TaskGroup
from service.engine.ledger import ArmRecord, InconsistentEventError, KnownReference, Ledger, OpenDecision, View
from service.engine.projection import READ_BATCH, LogNewer, Projection, policy_of
from service.storage.base import (
    Durability,
    Log,
    Receipt,
    Storage,
    StorageConflictError,
    StorageDamagedError,
    StorageError,
    StorageUnavailableError,
)

RECORD_TRIES = 100
"""An event that depends on what was learnt is checked again after every event that came in between."""
MICRO_BATCH = 32
"""Requests that wait together are scored together, up to this many: between two batches their pending widths are applied."""
ENOUGH_REWARDS = 100
"""From here on the range of a bandit's rewards says something about their scale."""
SMALL_SHARE = 0.05
"""Of the scale that a policy is set for: rewards that span less of it drown in its optimism."""


class DecisionNotFoundError(Exception):
    """No decision has this id."""


class DecisionConflictError(Exception):
    """The id stands for another request already."""


class ReferenceConflict(Exception):
    """The id stands for other reference material already."""


class OutcomeConflictError(Exception):
    """The decision has another outcome already."""


class DecisionExpiredError(Exception):
    """The decision expired before its outcome came."""


class DecisionCancelledError(Exception):
    """The decision was cancelled before its outcome came."""


class DecisionWasStopError(Exception):
    """The decision was a stop; no arm was played."""


class EpisodeFinishedError(Exception):
    """No further attempt can be made in this episode."""


class OpenDecisionLimitError(Exception):
    """More decisions are open than the bandit keeps."""


@dataclass(frozen=True, kw_only=True)
class DecisionRequest:
    """A validated request for a decision. allowed: arm index -> price for it alone (None = the arm's own); empty = all."""

    id: str
    features: bytes = b""
    allowed: Mapping[int, float | None] = field(default_factory=dict)
    episode: str = ""
    body: str = ""


@dataclass(frozen=True, kw_only=True)
class OutcomeReport:
    """A validated outcome. arm: index where the client overrode the suggestion. source: of the reward; "" = all are posted."""

    reward: float | None
    source: str = ""
    cost: float | None = None
    arm: int | None = None
    output: Matrix = events.EMPTY
    reference: Matrix = events.EMPTY
    body: str = ""


class ReplicaBehindError(Exception):
    """An offset that this process has not learnt in time. offset: the one that was wanted.  reached: the one that was."""

    def __init__(self, offset: int, reached: int) -> None:
        super().__init__(f"offset {offset} is not learnt here yet, {reached} is; try again, or ask another replica")
        self.offset = offset
        self.reached = reached


class OffsetBeyondEndError(Exception):
    """An offset behind the end of the log, which no receipt can have named."""

    def __init__(self, offset: int, end: int) -> None:
        super().__init__(f"the log ends at offset {end}; {offset} is in no receipt of this bandit")


class Recorded(NamedTuple):
    """An event of the log with its offset; repeated = it stood there before this request."""

    event: Any
    offset: int
    is_duplicate: bool


class Learner:
    """See the module."""

    def __init__(
        self,
        storage: Storage,
        log: Log,
        created: Created,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        snapshot_every: int = 10_000,  # events between two snapshots; 0 = none
        max_open: int = 100_000,
        device: str = "cpu",  # where decisions may be scored, as `Settings.where` names it
    ) -> None:
        self.log = log
        self.created = created
        self.policy = policy_of(created)
        self.repeated = 0  # requests that were answered with what stood in the log already
        self._storage = storage
        self._clock = clock
        self._max_open = max_open
        self._background = TaskGroup()
        self._folding = Projection(
            storage,
            log,
            created,
            self._background,
            policy=self.policy,
            snapshot_every=snapshot_every,
            placement=placement.of(self.policy, device=device, batch=MICRO_BATCH),
        )
        self._keeping = LogCommitter(storage, log, self._folding, self._background)
        self._deciding = MicroBatcher(self._decide_batch, limit=MICRO_BATCH, background=self._background)
        self._observing = MicroBatcher(self._observe_batch, limit=READ_BATCH, background=self._background)
        self._recording = asyncio.Lock()
        self._weigh_pace, self._report_pace = AdaptiveExecutor(), AdaptiveExecutor()

    # -- life --------------------------------------------------------------------------------------------------------------

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
        """From the newest snapshot that can be read, and the log after it. Damage stops this bandit and no other.

        until: the last offset to fold; None = all.  each: called with the offset after every batch (progress bars).
        """
        first = await storage.read(log, after=0, limit=1)
        if not first:
            raise StorageDamagedError(f"log {log.name!r}, offset 1", "the log is empty")
        created = events.decode(first[0].payload)
        if not isinstance(created, Created):
            raise StorageDamagedError(f"log {log.name!r}, offset 1", "the first entry does not create a bandit")
        learner = Learner(storage, log, created, **options)
        await learner._folding.load(use_snapshots=use_snapshots, until=until, each=each)
        return learner

    async def close(self) -> None:
        """Finish what was begun and leave a snapshot behind, so that the next start is quick."""
        await self._folding.close()

    async def catch_up(self, at_least: int = 0) -> None:
        """Learn whatever the log holds by now; with `at_least`, return as soon as that offset is learnt."""
        await self._background.run_shielded(self._folding.catch_up(at_least))
        await self._folding.wait_until_current()

    async def refresh(self) -> None:
        """`catch_up` where other processes write to the log, too; where none does, everything is learnt already."""
        if self._storage.shared:
            await self.catch_up()

    async def wait_for_offset(self, offset: int, *, timeout_s: float) -> None:
        """Wait until decisions know everything up to this offset; `Behind` where that takes longer than `timeout_s`,
        `NoSuchOffset` where the log does not hold it.
        """
        if offset > self.offset and offset > (end := await self._storage.end(self.log)):
            raise OffsetBeyondEndError(offset, end)
        try:
            async with asyncio.timeout(timeout_s):
                while self.offset < offset:
                    end = await self._storage.wait(self.log, after=self.offset, timeout_s=timeout_s)
                    if end > self.offset:
                        await self.catch_up(min(end, offset))
                await self._folding.wait_until_prepared()
        except TimeoutError:
            raise ReplicaBehindError(offset, self.offset) from None

    async def snapshot(self) -> None:
        """Write a snapshot of what is learnt by now."""
        await self._folding.snapshot()

    # -- what is known -------------------------------------------------------------------------------------------------------

    def stop(self, damage: StorageDamagedError) -> None:
        """Answer nothing but this damage from now on."""
        self._folding.stop(damage)

    @property
    def damage(self) -> str:
        """Why this bandit answers nothing any more; "" while it is well."""
        return "" if self._folding.damaged is None else str(self._folding.damaged)

    @property
    def is_newer(self) -> bool:
        """Whether this bandit answers nothing any more because a newer version of nextarm wrote into its log."""
        return isinstance(self._folding.damaged, LogNewer)

    @property
    def log_truncated(self) -> str:
        """Why everything must be learnt anew; "" while what was learnt is what the log holds."""
        return "" if self._folding.log_truncated is None else str(self._folding.log_truncated)

    @property
    def preparation_lag(self) -> int:
        """Events that were learnt and that decisions do not know yet."""
        return self.offset - self._folding.scoring.offset

    @property
    def ledger(self) -> Ledger:
        """Arms, open decisions and episodes; ahead of `offset` while a fold is under way."""
        return self._folding.ledger

    @property
    def state(self) -> State:
        """What was learnt up to `offset`."""
        return self._folding.committed.state

    @property
    def offset(self) -> int:
        """The offset up to which everything is learnt."""
        return self._folding.committed.offset

    @property
    def arms(self) -> tuple[ArmRecord, ...]:
        """The arms as of `offset`, as many as `state` has."""
        return self._folding.committed.arms

    async def report(self) -> dict[str, Any]:
        """What the policy tells of the newest state that decisions use."""
        return await self._report_pace.run(self.policy.report, self._folding.scoring.state)

    async def notices(self) -> list[str]:
        """What its owner should know: plain sentences that say what is seen, and the fix. Empty where all is well."""
        return [*self._notices_of_rewards(), *await self._notices_of_arms()]

    def _notices_of_rewards(self) -> list[str]:
        scale, seen = self.policy.reward_scale, self.ledger.reward_range
        if scale is None or seen is None:
            return []
        if scale[0] <= seen[0] and seen[1] <= scale[1]:
            return self._notices_of_small_rewards(scale, seen)
        return [
            f"Rewards from {seen[0]:g} to {seen[1]:g} were learned, and {self.policy.kind} is set for rewards in "
            f"[{scale[0]:g}, {scale[1]:g}]: its optimism is out of scale, and choices can be no better than random. "
            "Post rewards scaled into that range, or create a bandit with prior_mean and exploration on the scale of the rewards."
        ]

    def _notices_of_small_rewards(self, scale: tuple[float, float], seen: tuple[float, float]) -> list[str]:
        """Of rewards that all arms share but for a sliver of the scale. Less exploration than by default asks for less of it.
        (Equal rewards have nothing that could be scaled.)
        """
        count, span = sum(arm.rewards for arm in self.ledger.arms), seen[1] - seen[0]
        (optimism,) = (item for item in declared(type(self.policy)) if item.name in ("exploration", "noise"))
        share = SMALL_SHARE * min(1.0, getattr(self.policy, optimism.name) / optimism.default)
        if count < ENOUGH_REWARDS or not 0.0 < span < share * (scale[1] - scale[0]):
            return []
        return [
            f"The {count} rewards that were learned lie between {seen[0]:g} and {seen[1]:g}, and {self.policy.kind} is set for "
            f"rewards in [{scale[0]:g}, {scale[1]:g}]: their differences are small beside its optimism, and the best arm is "
            f"found late. Post rewards scaled to [{scale[0]:g}, {scale[1]:g}], or create a bandit with prior_mean and a smaller "
            f"{optimism.name} on the scale of the rewards."
        ]

    async def _notices_of_arms(self) -> list[str]:
        state, _, arms = self._folding.scoring
        lost = await self._report_pace.run(self.policy.arms_without_estimate, state)
        return [
            f"The numbers of arm {arms[index].name!r} are not finite any more, so it has no score and is not chosen; where no "
            "arm has one, all are equally likely. Its log holds numbers too large for these hyperparameters: "
            f"create another bandit with {self._remedy()}."
            for index in lost
        ]

    def _remedy(self) -> str:
        """Against numbers that are too large, by what the policy can be set to."""
        given = {item.name: getattr(self.policy, item.name) for item in declared(type(self.policy))}
        ways = ["normalize: true"] if given.get("normalize") is False else []
        ways += ["a larger ridge"] if "ridge" in given else []
        if "output" in self.policy.needs:
            ways.append("outputs (and a reference) that are scaled down")
        return " or ".join(ways or ["rewards that are scaled down"])

    @property
    def takes_reference(self) -> bool:
        """Whether reference material can be posted: the policy keeps a statistic of it."""
        return not isinstance(self.policy.init_reference(), NoReference)

    async def entries(self, *, after: int, limit: int) -> list[tuple[int, bytes]]:
        """(offset, event as it was written) of the log; for streaming it."""
        if limit <= 0:
            return []
        return [(entry.offset, entry.payload) for entry in await self._storage.read(self.log, after=after, limit=limit)]

    def digest(self) -> tuple[int, str]:
        """(offset, sha256 of the packed state)."""
        state, offset, _ = self._folding.committed
        return offset, states.digest(self.policy, state)

    # -- deciding ----------------------------------------------------------------------------------------------------------

    async def decide(self, ask: DecisionRequest) -> Recorded:
        """Choose an arm and log it. The same id again is the same decision."""
        return await self.submit_decision(ask)

    def submit_decision(self, ask: DecisionRequest) -> asyncio.Future[Recorded]:
        """`decide`, for callers with several: it stands in the line when this returns."""
        self._folding.check_sound()
        if len(self.ledger.open) >= self._max_open:
            raise OpenDecisionLimitError(f"{self._max_open} decisions are open")
        return self._deciding.submit(ask)

    async def find_decision(self, decision_id: str, body: str) -> Recorded | None:
        """The decision that has this id already, if any."""
        entry = await self._storage.find(self.log, events.decided_key(decision_id))
        return None if entry is None else self._same_decision(Receipt(entry.offset, entry.payload), body)

    def _same_decision(self, receipt: Receipt, body: str) -> Recorded:
        assert receipt.first is not None
        first = events.decode(receipt.first)
        assert isinstance(first, Decided)
        if first.body != body:
            raise DecisionConflictError(first.id)
        self.repeated += 1
        return Recorded(first, receipt.offset, True)

    async def preview(self, ask: DecisionRequest) -> Decided:
        """What would be decided now; nothing is logged, and for no other decision is it pending."""
        (found,) = await self._choose([ask])
        if isinstance(found, Exception):
            raise found
        return found

    async def _decide_batch(self, asks: Sequence[DecisionRequest]) -> list[Recorded | Exception]:
        """Score what waited, in the order in which it came; log it; learn of it."""
        known = {ask.id: await self._find_duplicate(ask) for ask in asks if self._folding.is_known(ask.id)}
        new = [ask for ask in asks if ask.id not in known]
        chosen = await self._choose_isolating_failures(new) if new else []
        made = [one for one in chosen if isinstance(one, Decided)]
        for decided in made:
            self._folding.track_in_flight(decided)
        entries = [(events.decided_key(decided.id), decided) for decided in made]
        receipts = iter(await self._keeping.commit(entries, Durability.PROCESS) if entries else [])
        answers = iter(
            [
                self._to_result(one, next(receipts), ask) if isinstance(one, Decided) else one
                for ask, one in zip(new, chosen, strict=True)
            ]
        )
        return [known[ask.id] if ask.id in known else next(answers) for ask in asks]

    async def _find_duplicate(self, ask: DecisionRequest) -> Recorded | Exception:
        try:
            # without an entry it is open, and so old that it was trimmed
            return await self.find_decision(ask.id, ask.body) or DecisionConflictError(ask.id)
        except (StorageError, DecisionConflictError) as error:
            return error

    def _to_result(self, decided: Decided, receipt: Receipt | StorageError, ask: DecisionRequest) -> Recorded | Exception:
        if isinstance(receipt, StorageError):
            return receipt
        if receipt.first is None:
            return Recorded(decided, receipt.offset, False)
        try:
            return self._same_decision(receipt, ask.body)
        except DecisionConflictError as error:
            return error

    async def _choose_isolating_failures(self, asks: Sequence[DecisionRequest]) -> Sequence[Decided | Exception]:
        """Together; where that fails, one by one: it is the fault of one of them, and harms no other."""
        try:
            return await self._choose(asks)
        except Exception as error:
            if len(asks) == 1:
                return [error]
        found: list[Decided | Exception] = []
        for ask in asks:
            (one,) = await self._choose_isolating_failures([ask])
            if isinstance(one, Decided):
                self._folding.track_in_flight(one)  # pending for those after it
            found.append(one)
        return found

    async def _choose(self, asks: Sequence[DecisionRequest]) -> list[Decided | Exception]:
        """In order: what was chosen for one is pending for those after it. A failure that is one's own is its result."""
        if any(arm >= len(self._folding.scoring.arms) for ask in asks for arm in ask.allowed):  # an arm is being added
            await self.refresh()
            await self._folding.wait_until_prepared()
        state, _, arms = self._folding.scored()  # one moment for all of it, whatever is folded meanwhile
        view = View.of(arms, self._folding.in_flight())
        found: dict[int, Decided | Exception] = {}
        places, contexts = [], []
        for place, ask in enumerate(asks):
            try:
                contexts.append(self._context(ask, view))
                places.append(place)
            except InvalidContext as error:
                found[place] = error
        if contexts:
            turns = _Turns([asks[place] for place in places], contexts, self._draw)
            weights = await self._weigh(state, turns)
            rows, tables = weights.values.tolist(), {name: table.tolist() for name, table in weights.scores.items()}
            now = self._clock()
            present = view.present()
            shown = msgspec.UNSET if len(present) == len(arms) else present
            for i, place in enumerate(places):
                scores = {name: [_finite(value) for value in table[i]] for name, table in tables.items()}
                found[place] = self._decision(turns, i, rows[i], scores, present=shown, now=now)
        return [found[place] for place in range(len(asks))]

    def _context(self, ask: DecisionRequest, view: View) -> Context:
        features = events.vector_tensor(ask.features) if ask.features else empty()
        return self.ledger.context(view, features=features, allowed=ask.allowed, episode=ask.episode)

    async def _weigh(self, state: State, turns: _Turns) -> Weights:
        """Policies with a quick rule for one alone need not know of any order."""

        def work() -> Weights:
            if len(turns.contexts) > 1:
                return self.policy.weights_in_order(state, turns.contexts, turns.choose)
            weights = self.policy.weights(state, turns.contexts)
            turns.choose(0, weights.values[0].tolist())
            return weights

        if not self.policy.is_prepared(state, turns.contexts):
            return await asyncio.to_thread(work)
        return await self._weigh_pace.run(work, units=len(turns.contexts))

    def _draw(self, ask: DecisionRequest, context: Context, row: Sequence[float]) -> draw.Draw:
        """row: (K,) the weights."""
        _check_distribution(row, context, self.policy)
        return draw.draw(row, f"{self.log.name}/{self.created.seed}/{ask.id}")

    def _decision(
        self,
        turns: _Turns,
        place: int,
        row: list[float],
        scores: dict[str, list[float | None]],
        *,
        present: list[int] | msgspec.UnsetType,
        now: datetime,
    ) -> Decided:
        """row: (K,) the weights."""
        ask, context, (arm, propensity) = turns.asks[place], turns.contexts[place], turns.drawn[place]
        episode = self.ledger.episodes.get(ask.episode)
        return Decided(
            at=now,
            id=ask.id,
            arm=arm,
            propensity=propensity,
            weights=row,
            scores=scores,
            allowed=[k for k, is_allowed in enumerate(context.allowed) if is_allowed],
            price=0.0 if arm < 0 else context.prices[arm],
            features=ask.features,
            episode=ask.episode or ask.id,
            attempt=1 + turns.earlier(place) + (0 if episode is None else episode.made),
            body=ask.body,
            present=present,
        )

    # -- learning ----------------------------------------------------------------------------------------------------------

    async def observe(self, decision_id: str, outcome: OutcomeReport) -> Recorded:
        """Accept an outcome, once. The same body again is answered with the first receipt."""
        return await self.submit_outcome(decision_id, outcome)

    def submit_outcome(self, decision_id: str, outcome: OutcomeReport) -> asyncio.Future[Recorded]:
        """`observe`, for callers with several: it stands in the line when this returns."""
        return self._observing.submit((decision_id, outcome))

    async def _observe_batch(self, outcomes: Sequence[tuple[str, OutcomeReport]]) -> list[Recorded | Exception]:
        """One flush serves all of them."""
        opened = await self._opened([decision_id for decision_id, _ in outcomes])
        made = [
            None if decision is None else self._observed(decision, outcome)
            for decision, (_, outcome) in zip(opened, outcomes, strict=True)
        ]
        entries = [(events.closed_key(event.id), event) for event in made if event is not None]
        receipts = iter(await self._keeping.commit(entries, Durability.POWER) if entries else [])
        return [
            await self._outcome_result(event, None if event is None else next(receipts), decision_id, outcome)
            for event, (decision_id, outcome) in zip(made, outcomes, strict=True)
        ]

    def _observed(self, decision: OpenDecision, outcome: OutcomeReport) -> Observed:
        arm = decision.arm if outcome.arm is None else outcome.arm
        overridden = arm != decision.arm
        price = self.ledger.arms[arm].price if overridden else decision.price
        return Observed(
            at=self._clock(),
            id=decision.id,
            arm=arm,
            reward=outcome.reward,
            source=outcome.source or msgspec.UNSET,
            cost=price if outcome.cost is None else outcome.cost,
            propensity=None if overridden else decision.propensity,
            output=outcome.output,
            reference=outcome.reference,
            body=outcome.body,
        )

    async def _outcome_result(
        self, event: Observed | None, receipt: Receipt | StorageError | None, decision_id: str, outcome: OutcomeReport
    ) -> Recorded | Exception:
        """receipt: None where nothing was open."""
        if isinstance(receipt, StorageError):
            return receipt
        try:
            if event is None or receipt is None:
                closing = await self._closing(decision_id)
                return self._same_outcome(closing.event, closing.offset, outcome.body)
            if receipt.first is not None:
                return self._same_outcome(events.decode(receipt.first), receipt.offset, outcome.body)
        except Exception as error:
            return error
        return Recorded(event, receipt.offset, False)

    async def cancel(self, decision_id: str) -> None:
        """Withdraw an open decision. Cancelling twice is cancelling once."""
        first: AnyEvent | None = None
        if (await self._opened([decision_id]))[0] is not None:
            (receipt,) = await self._close([Cancelled(at=self._clock(), id=decision_id)])
            if isinstance(receipt, StorageError):
                raise receipt
            first = None if receipt.first is None else events.decode(receipt.first)
        else:
            first = (await self._closing(decision_id)).event
        if isinstance(first, Observed):
            raise OutcomeConflictError(decision_id)
        if isinstance(first, Expired):
            raise DecisionExpiredError(decision_id)

    async def expire(self) -> int:
        """Close every decision whose time is over; how many were."""
        due = self.ledger.overdue(self._clock())
        await self._expire(due)
        return len(due)

    async def look_up(self, decision_id: str) -> tuple[Recorded, Recorded | None]:
        """The decision and what closed it, None while it is open."""
        entry = await self._storage.find(self.log, events.decided_key(decision_id))
        if entry is None:
            raise DecisionNotFoundError(decision_id)
        decided = Recorded(events.decode(entry.payload), entry.offset, True)
        if (await self._opened([decision_id]))[0] is not None or decided.event.arm < 0:
            return decided, None
        return decided, await self._closing(decision_id)

    async def _opened(self, decision_ids: Sequence[str]) -> list[OpenDecision | None]:
        """Each decision if it is open and its time is not over; overdue ones are expired here and now."""
        if any(decision_id not in self.ledger.open for decision_id in decision_ids):
            await self.catch_up()
        now = self._clock()
        open_ = [self.ledger.open.get(decision_id) for decision_id in decision_ids]
        overdue = [decision for decision in open_ if decision is not None and self.ledger.is_overdue(decision, now)]
        if not overdue:
            return open_
        await self._expire(overdue)
        return [self.ledger.open.get(decision_id) for decision_id in decision_ids]

    async def _expire(self, due: Sequence[OpenDecision]) -> None:
        now, reward = self._clock(), self.created.default_reward
        for first in range(0, len(due), READ_BATCH):
            closing = [Expired(at=now, id=each.id, reward=reward) for each in due[first : first + READ_BATCH]]
            for receipt in await self._close(closing):
                if isinstance(receipt, StorageError):
                    raise receipt

    async def _close(self, closing: Sequence[Expired | Cancelled]) -> list[Receipt | StorageError]:
        entries = [(events.closed_key(event.id), event) for event in closing]
        return await self._background.run_shielded(self._keeping.commit(entries, Durability.PROCESS))

    async def _closing(self, decision_id: str) -> Recorded:
        entry = await self._storage.find(self.log, events.closed_key(decision_id))
        if entry is not None:
            return Recorded(events.decode(entry.payload), entry.offset, True)
        if await self._storage.find(self.log, events.decided_key(decision_id)) is not None:
            raise DecisionWasStopError(decision_id)  # decided, never opened: it was a stop
        raise DecisionNotFoundError(decision_id)

    def _same_outcome(self, first: AnyEvent, offset: int, body: str) -> Recorded:
        match first:
            case Observed() if first.body == body:
                self.repeated += 1
                return Recorded(first, offset, True)
            case Observed():
                raise OutcomeConflictError(first.id)
            case Expired():
                raise DecisionExpiredError(first.id)
            case Cancelled():
                raise DecisionCancelledError(first.id)
            case _:
                raise InconsistentEventError(f"{type(first).__name__} closes a decision")

    def known_reference(self, reference: str, body: str) -> KnownReference | None:
        """The reference material that was learned under this id, if any; `ReferenceConflict` where its body was another."""
        known = self.ledger.references.get(reference)
        if known is not None and known.body != body:
            raise ReferenceConflict(reference)
        return known

    async def record(self, event: AnyEvent, *, key: str, check: Callable[[], object] = lambda: None) -> Receipt:
        """Append any other event (arms, references) and learn it.

        check: raises where the event cannot follow what was learnt; called when all of it is learnt and nothing else is recorded
        before this event, so that two requests which are fine one by one cannot spoil the log together.
        """

        async def run() -> Receipt:
            async with self._recording:
                for _ in range(RECORD_TRIES):
                    await self._folding.catch_up()
                    check()
                    try:
                        receipt = await self._keeping.append_one(key, event, expected=self.offset)
                    except StorageConflictError:
                        continue
                    await self._folding.catch_up(receipt.offset)
                    await self._folding.wait_until_prepared()
                    return receipt
                raise StorageUnavailableError("the log grows faster than this could be checked against it; try again")

        return await self._background.run_shielded(run())


class _Turns:
    """Requests that are decided together, in order, and what was drawn for each so far.

    A row is pending for the rows after it, and an attempt in its episode. A repeated id is drawn for like its first, and counts
    once.
    """

    def __init__(
        self,
        asks: Sequence[DecisionRequest],
        contexts: list[Context],
        drawing: Callable[[DecisionRequest, Context, Sequence[float]], draw.Draw],
    ) -> None:
        self.asks = asks
        self.contexts = contexts
        self.drawn: list[draw.Draw] = []
        self._drawing = drawing

    def choose(self, place: int, row: Sequence[float]) -> int:
        """See `bandits.types.Choose`."""
        ask = self.asks[place]
        self.drawn.append(self._drawing(ask, self.contexts[place], row))
        arm = self.drawn[place].arm
        if arm < 0 or any(earlier.id == ask.id for earlier in self.asks[:place]):
            return draw.STOP
        for later in range(place + 1, len(self.asks) if ask.episode else 0):
            if self.asks[later].episode == ask.episode:
                context = self.contexts[later]
                made = tuple(count + (k == arm) for k, count in enumerate(context.attempts))
                self.contexts[later] = replace(context, attempts=made)
        return arm

    def earlier(self, place: int) -> int:
        """How many other decisions of its episode come before it."""
        ask = self.asks[place]
        return len({one.id for one in self.asks[:place] if ask.episode and one.episode == ask.episode} - {ask.id})


def body_digest(*parts: Any) -> str:
    """A short fingerprint of a request's content, for telling a repeated request from another one."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _check_distribution(row: Sequence[float], context: Context, policy: Policy) -> None:
    """Nothing else may reach the log: a NaN there could never be read back."""
    total = sum(row)
    sound = abs(total - 1.0) < 1e-9 or total == 0.0
    if not sound or min(row) < 0.0 or any(weight and not ok for weight, ok in zip(row, context.allowed, strict=True)):
        raise BanditError(f"{policy.kind} gave weights that are no distribution over the allowed arms")


def _finite(value: float) -> float | None:
    return value if -1e308 < value < 1e308 else None
