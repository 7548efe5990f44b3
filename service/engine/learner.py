"""The learner of one bandit: turns requests into decisions and outcomes in its log.

    decide   micro-batch ──> Ledger.context ──> policy.weights ──> draw ──> append Decided ──> fold ──> answer
    observe  append Observed (the first closes the decision) ──> fold ──> receipt

A decision uses the newest prepared version of the projection and waits for no computation but its own; where folding is slow,
its answer does not wait for that either.
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
from bandits.gpu import mirror
from bandits.hyperparameters import declared
from bandits.types import Context, NoReference, Policy, State, Weights, empty
from service.engine import events
from service.engine.batcher import MicroBatcher
from service.engine.commit import LogCommitter
from service.engine.errors import (
    DecisionCancelledError,
    DecisionConflictError,
    DecisionExpiredError,
    DecisionNotFoundError,
    DecisionWasStopError,
    OffsetBeyondEndError,
    OpenDecisionLimitError,
    OutcomeConflictError,
    ReferenceConflictError,
    ReplicaBehindError,
)
from service.engine.events import AnyEvent, Cancelled, Created, Decided, Expired, Matrix, Observed
from service.engine.executor import AdaptiveExecutor, TaskGroup
from service.engine.ledger import ArmRecord, InconsistentEventError, KnownReference, Ledger, OpenDecision, View
from service.engine.projection import READ_BATCH, LogNewerError, Projection, policy_of
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
"""Attempts of a conditional append: the event is checked again after every event that came in between."""
MICRO_BATCH = 32
"""Decisions scored together, at most: between two batches they are added as pending."""
ENOUGH_REWARDS = 100
"""From here on the range of a bandit's rewards says something about their scale."""
SMALL_SHARE = 0.05
"""Of the scale that a policy is set for: rewards that span less of it are drowned by its optimism."""


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


class Recorded(NamedTuple):
    """An event of the log with its offset. is_duplicate: it was in the log before this request."""

    event: Any
    offset: int
    is_duplicate: bool


class Learner:
    """One bandit in one process: decides, accepts outcomes, and answers what its projection holds.

    clock: the time of events.  snapshot_every: events between two snapshots, 0 = none.  max_open: decisions open at a time.
    device: where decisions may be scored, as `Settings.where` names it.
    """

    def __init__(
        self,
        storage: Storage,
        log: Log,
        created: Created,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        snapshot_every: int = 10_000,
        max_open: int = 100_000,
        device: str = "cpu",
    ) -> None:
        self.log = log
        self.created = created
        self.policy = policy_of(created)
        self.duplicates = 0  # requests answered with an event that was in the log already
        self._storage = storage
        self._clock = clock
        self._max_open = max_open
        self._background = TaskGroup()
        self._projection = Projection(
            storage,
            log,
            created,
            self._background,
            policy=self.policy,
            snapshot_every=snapshot_every,
            mirror=mirror.of(self.policy, device=device, batch=MICRO_BATCH),
        )
        self._committer = LogCommitter(storage, log, self._projection, self._background)
        self._decision_batcher = MicroBatcher(self._decide_batch, limit=MICRO_BATCH, background=self._background)
        self._outcome_batcher = MicroBatcher(self._observe_batch, limit=READ_BATCH, background=self._background)
        self._record_lock = asyncio.Lock()
        self._score_executor, self._report_executor = AdaptiveExecutor(), AdaptiveExecutor()

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
        await learner._projection.load(use_snapshots=use_snapshots, until=until, each=each)
        return learner

    async def close(self) -> None:
        """Wait for background work and write a snapshot, so that the next start is quick."""
        await self._projection.close()

    async def catch_up(self, at_least: int = 0) -> None:
        """Fold the log to its end; with `at_least`, return as soon as that offset is folded."""
        await self._background.run_shielded(self._projection.catch_up(at_least))
        await self._projection.wait_until_current()

    async def refresh(self) -> None:
        """`catch_up` if other processes write to the log, too; else everything is folded already."""
        if self._storage.shared:
            await self.catch_up()

    async def wait_for_offset(self, offset: int, *, timeout_s: float) -> None:
        """Wait until decisions are made from at least this offset.

        Raises `ReplicaBehindError` after `timeout_s`, `OffsetBeyondEndError` if the log ends before the offset.
        """
        if offset > self.offset and offset > (end := await self._storage.end(self.log)):
            raise OffsetBeyondEndError(offset, end)
        try:
            async with asyncio.timeout(timeout_s):
                while self.offset < offset:
                    end = await self._storage.wait(self.log, after=self.offset, timeout_s=timeout_s)
                    if end > self.offset:
                        await self.catch_up(min(end, offset))
                await self._projection.wait_until_prepared()
        except TimeoutError:
            raise ReplicaBehindError(offset, self.offset) from None

    async def snapshot(self) -> None:
        """Write a snapshot at the committed offset."""
        await self._projection.snapshot()

    # -- what is known -------------------------------------------------------------------------------------------------------

    def stop(self, damage: StorageDamagedError) -> None:
        """Refuse every request with this damage from now on."""
        self._projection.stop(damage)

    @property
    def damage(self) -> str:
        """Why this bandit refuses every request; "" while it is sound."""
        return "" if self._projection.damaged is None else str(self._projection.damaged)

    @property
    def is_newer(self) -> bool:
        """Whether this bandit refuses every request because a newer version of nextarm wrote into its log."""
        return isinstance(self._projection.damaged, LogNewerError)

    @property
    def log_truncated(self) -> str:
        """Why the log must be loaded again; "" while the projection matches it."""
        return "" if self._projection.log_truncated is None else str(self._projection.log_truncated)

    @property
    def preparation_lag(self) -> int:
        """Events that are folded but not yet used for scoring."""
        return self.offset - self._projection.scoring.offset

    @property
    def ledger(self) -> Ledger:
        """Arms, open decisions and episodes; ahead of `offset` while a fold is under way."""
        return self._projection.ledger

    @property
    def state(self) -> State:
        """The state folded up to `offset`."""
        return self._projection.committed.state

    @property
    def offset(self) -> int:
        """The offset up to which the log is folded."""
        return self._projection.committed.offset

    @property
    def arms(self) -> tuple[ArmRecord, ...]:
        """The arms as of `offset`, as many as `state` has."""
        return self._projection.committed.arms

    async def report(self) -> dict[str, Any]:
        """The policy's report of the state that decisions use."""
        return await self._report_executor.run(self.policy.report, self._projection.scoring.state)

    async def notices(self) -> list[str]:
        """Sentences for the owner of the bandit: what is wrong, and the fix. Empty where nothing is."""
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
        state, _, arms = self._projection.scoring
        lost = await self._report_executor.run(self.policy.arms_without_estimate, state)
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
        """(offset, payload) of up to `limit` log entries behind `after`."""
        if limit <= 0:
            return []
        return [(entry.offset, entry.payload) for entry in await self._storage.read(self.log, after=after, limit=limit)]

    def digest(self) -> tuple[int, str]:
        """(offset, sha256 of the packed state)."""
        state, offset, _ = self._projection.committed
        return offset, states.digest(self.policy, state)

    # -- deciding ----------------------------------------------------------------------------------------------------------

    async def decide(self, request: DecisionRequest) -> Recorded:
        """Choose an arm and log it. The same id again is the same decision."""
        return await self.submit_decision(request)

    def submit_decision(self, request: DecisionRequest) -> asyncio.Future[Recorded]:
        """`decide` for callers with several requests: it is enqueued when this returns."""
        self._projection.check_sound()
        if len(self.ledger.open) >= self._max_open:
            raise OpenDecisionLimitError(f"{self._max_open} decisions are open")
        return self._decision_batcher.submit(request)

    async def find_decision(self, decision_id: str, body: str) -> Recorded | None:
        """The decision that has this id already, if any."""
        entry = await self._storage.find(self.log, events.decided_key(decision_id))
        return None if entry is None else self._duplicate_decision(Receipt(entry.offset, entry.payload), body)

    def _duplicate_decision(self, receipt: Receipt, body: str) -> Recorded:
        assert receipt.first is not None
        first = events.decode(receipt.first)
        assert isinstance(first, Decided)
        if first.body != body:
            raise DecisionConflictError(first.id)
        self.duplicates += 1
        return Recorded(first, receipt.offset, True)

    async def preview(self, request: DecisionRequest) -> Decided:
        """The decision that would be made now; it is neither logged nor pending."""
        (found,) = await self._choose([request])
        if isinstance(found, Exception):
            raise found
        return found

    async def _decide_batch(self, requests: Sequence[DecisionRequest]) -> list[Recorded | Exception]:
        """Decide a micro-batch in order of arrival: find repeated ids, score and draw the rest, commit what was drawn."""
        results: dict[int, Recorded | Exception] = {}  # by place in the batch, since an id can be there twice
        for place, request in enumerate(requests):
            if self._projection.is_known(request.id):
                results[place] = await self._find_duplicate(request)
        new = [place for place in range(len(requests)) if place not in results]
        chosen = await self._choose_isolating_failures([requests[place] for place in new]) if new else []
        made: list[tuple[int, Decided]] = []
        for place, one in zip(new, chosen, strict=True):
            if isinstance(one, Decided):
                self._projection.track_in_flight(one)
                made.append((place, one))
            else:
                results[place] = one
        entries = [(events.decided_key(decided.id), decided) for _, decided in made]
        receipts = await self._committer.commit(entries, Durability.PROCESS) if entries else []
        for (place, decided), receipt in zip(made, receipts, strict=True):
            results[place] = self._to_result(decided, receipt, requests[place])
        return [results[place] for place in range(len(requests))]

    async def _find_duplicate(self, request: DecisionRequest) -> Recorded | Exception:
        try:
            # without an entry: it is open, but so old that its entry was trimmed
            return await self.find_decision(request.id, request.body) or DecisionConflictError(request.id)
        except (StorageError, DecisionConflictError) as error:
            return error

    def _to_result(self, decided: Decided, receipt: Receipt | StorageError, request: DecisionRequest) -> Recorded | Exception:
        if isinstance(receipt, StorageError):
            return receipt
        if receipt.first is None:
            return Recorded(decided, receipt.offset, False)
        try:
            return self._duplicate_decision(receipt, request.body)
        except DecisionConflictError as error:
            return error

    async def _choose_isolating_failures(self, requests: Sequence[DecisionRequest]) -> Sequence[Decided | Exception]:
        """Choose for all together; if that fails, one by one, so that the failure is the result of its cause alone."""
        try:
            return await self._choose(requests)
        except Exception as error:
            if len(requests) == 1:
                return [error]
        found: list[Decided | Exception] = []
        for request in requests:
            (one,) = await self._choose_isolating_failures([request])
            if isinstance(one, Decided):
                self._projection.track_in_flight(one)  # pending for those after it
            found.append(one)
        return found

    async def _choose(self, requests: Sequence[DecisionRequest]) -> list[Decided | Exception]:
        """Choose in order: each choice is pending for the requests after it. A request without a usable arm fails alone."""
        if any(
            arm >= len(self._projection.scoring.arms) for request in requests for arm in request.allowed
        ):  # an arm is being added
            await self.refresh()
            await self._projection.wait_until_prepared()
        state, _, arms = self._projection.with_in_flight()  # one version for all, whatever is folded meanwhile
        view = View.of(arms, self._projection.in_flight())
        found: dict[int, Decided | Exception] = {}
        places, contexts = [], []
        for place, request in enumerate(requests):
            try:
                contexts.append(self._context(request, view))
                places.append(place)
            except InvalidContext as error:
                found[place] = error
        if contexts:
            batch = _DecisionBatch([requests[place] for place in places], contexts, self._draw)
            weights = await self._score(state, batch)
            rows, tables = weights.values.tolist(), {name: table.tolist() for name, table in weights.scores.items()}
            now = self._clock()
            present = view.present()
            shown = msgspec.UNSET if len(present) == len(arms) else present
            for i, place in enumerate(places):
                scores = {name: [_finite(value) for value in table[i]] for name, table in tables.items()}
                found[place] = self._to_event(batch, i, rows[i], scores, present=shown, now=now)
        return [found[place] for place in range(len(requests))]

    def _context(self, request: DecisionRequest, view: View) -> Context:
        features = events.vector_tensor(request.features) if request.features else empty()
        return self.ledger.context(view, features=features, allowed=request.allowed, episode=request.episode)

    async def _score(self, state: State, batch: _DecisionBatch) -> Weights:
        """The weights of a batch. A single request skips `weights_in_order`: there is no order to respect."""

        def work() -> Weights:
            if len(batch.contexts) > 1:
                return self.policy.weights_in_order(state, batch.contexts, batch.choose)
            weights = self.policy.weights(state, batch.contexts)
            batch.choose(0, weights.values[0].tolist())
            return weights

        if not self.policy.is_prepared(state, batch.contexts):
            return await asyncio.to_thread(work)
        return await self._score_executor.run(work, units=len(batch.contexts))

    def _draw(self, request: DecisionRequest, context: Context, row: Sequence[float]) -> draw.Draw:
        """row: (K,) the weights."""
        _check_distribution(row, context, self.policy)
        return draw.draw(row, f"{self.log.name}/{self.created.seed}/{request.id}")

    def _to_event(
        self,
        batch: _DecisionBatch,
        place: int,
        row: list[float],
        scores: dict[str, list[float | None]],
        *,
        present: list[int] | msgspec.UnsetType,
        now: datetime,
    ) -> Decided:
        """row: (K,) the weights."""
        request, context, (arm, propensity) = batch.requests[place], batch.contexts[place], batch.draws[place]
        episode = self.ledger.episodes.get(request.episode)
        return Decided(
            at=now,
            id=request.id,
            arm=arm,
            propensity=propensity,
            weights=row,
            scores=scores,
            allowed=[k for k, is_allowed in enumerate(context.allowed) if is_allowed],
            price=0.0 if arm < 0 else context.prices[arm],
            features=request.features,
            episode=request.episode or request.id,
            attempt=1 + batch.earlier(place) + (0 if episode is None else episode.made),
            body=request.body,
            present=present,
        )

    # -- learning ----------------------------------------------------------------------------------------------------------

    async def observe(self, decision_id: str, outcome: OutcomeReport) -> Recorded:
        """Accept an outcome, once. The same body again is answered with the first receipt."""
        return await self.submit_outcome(decision_id, outcome)

    def submit_outcome(self, decision_id: str, outcome: OutcomeReport) -> asyncio.Future[Recorded]:
        """`observe` for callers with several outcomes: it is enqueued when this returns."""
        return self._outcome_batcher.submit((decision_id, outcome))

    async def _observe_batch(self, outcomes: Sequence[tuple[str, OutcomeReport]]) -> list[Recorded | Exception]:
        """Accept a micro-batch of outcomes with one flush."""
        opened = await self._still_open([decision_id for decision_id, _ in outcomes])
        made = [
            None if decision is None else self._to_observed(decision, outcome)
            for decision, (_, outcome) in zip(opened, outcomes, strict=True)
        ]
        entries = [(events.closed_key(event.id), event) for event in made if event is not None]
        receipts = iter(await self._committer.commit(entries, Durability.POWER) if entries else [])
        return [
            await self._outcome_result(event, None if event is None else next(receipts), decision_id, outcome)
            for event, (decision_id, outcome) in zip(made, outcomes, strict=True)
        ]

    def _to_observed(self, decision: OpenDecision, outcome: OutcomeReport) -> Observed:
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
                closing = await self._closing_event(decision_id)
                return self._duplicate_outcome(closing.event, closing.offset, outcome.body)
            if receipt.first is not None:
                return self._duplicate_outcome(events.decode(receipt.first), receipt.offset, outcome.body)
        except Exception as error:
            return error
        return Recorded(event, receipt.offset, False)

    async def cancel(self, decision_id: str) -> None:
        """Withdraw an open decision. Cancelling twice is cancelling once."""
        first: AnyEvent | None = None
        if (await self._still_open([decision_id]))[0] is not None:
            (receipt,) = await self._close([Cancelled(at=self._clock(), id=decision_id)])
            if isinstance(receipt, StorageError):
                raise receipt
            first = None if receipt.first is None else events.decode(receipt.first)
        else:
            first = (await self._closing_event(decision_id)).event
        if isinstance(first, Observed):
            raise OutcomeConflictError(decision_id)
        if isinstance(first, Expired):
            raise DecisionExpiredError(decision_id)

    async def expire(self) -> int:
        """Close every overdue decision; returns how many."""
        due = self.ledger.overdue(self._clock())
        await self._expire(due)
        return len(due)

    async def look_up(self, decision_id: str) -> tuple[Recorded, Recorded | None]:
        """The decision and what closed it, None while it is open."""
        entry = await self._storage.find(self.log, events.decided_key(decision_id))
        if entry is None:
            raise DecisionNotFoundError(decision_id)
        decided = Recorded(events.decode(entry.payload), entry.offset, True)
        if (await self._still_open([decision_id]))[0] is not None or decided.event.arm < 0:
            return decided, None
        return decided, await self._closing_event(decision_id)

    async def _still_open(self, decision_ids: Sequence[str]) -> list[OpenDecision | None]:
        """Each decision if it is open and not overdue, else None; overdue ones are expired first."""
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
        return await self._background.run_shielded(self._committer.commit(entries, Durability.PROCESS))

    async def _closing_event(self, decision_id: str) -> Recorded:
        entry = await self._storage.find(self.log, events.closed_key(decision_id))
        if entry is not None:
            return Recorded(events.decode(entry.payload), entry.offset, True)
        if await self._storage.find(self.log, events.decided_key(decision_id)) is not None:
            raise DecisionWasStopError(decision_id)  # decided, never opened: it was a stop
        raise DecisionNotFoundError(decision_id)

    def _duplicate_outcome(self, first: AnyEvent, offset: int, body: str) -> Recorded:
        match first:
            case Observed() if first.body == body:
                self.duplicates += 1
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
        """The reference material that was learned under this id, if any; `ReferenceConflictError` where its body was another."""
        known = self.ledger.references.get(reference)
        if known is not None and known.body != body:
            raise ReferenceConflictError(reference)
        return known

    async def record(self, event: AnyEvent, *, key: str, check: Callable[[], object] = lambda: None) -> Receipt:
        """Append any other event (arms, references) and fold it.

        check: raises if the event cannot follow the log. It runs with everything folded, and the append is conditional on that
        offset, so two requests that are valid one by one cannot make the log inconsistent together.
        """

        async def run() -> Receipt:
            async with self._record_lock:
                for _ in range(RECORD_TRIES):
                    await self._projection.catch_up()
                    check()
                    try:
                        receipt = await self._committer.append_one(key, event, expected=self.offset)
                    except StorageConflictError:
                        continue
                    await self._projection.catch_up(receipt.offset)
                    await self._projection.wait_until_prepared()
                    return receipt
                raise StorageUnavailableError("the log grows faster than this could be checked against it; try again")

        return await self._background.run_shielded(run())


class _DecisionBatch:
    """A micro-batch of requests with their contexts and the draws made so far.

    A drawn row is pending for the rows after it, and an attempt in its episode. A repeated id gets the draw of its first, and
    counts once.
    """

    def __init__(
        self,
        requests: Sequence[DecisionRequest],
        contexts: list[Context],
        draw_arm: Callable[[DecisionRequest, Context, Sequence[float]], draw.Draw],
    ) -> None:
        self.requests = requests
        self.contexts = contexts
        self.draws: list[draw.Draw] = []
        self._draw_arm = draw_arm

    def choose(self, place: int, row: Sequence[float]) -> int:
        """See `bandits.types.Choose`."""
        request = self.requests[place]
        self.draws.append(self._draw_arm(request, self.contexts[place], row))
        arm = self.draws[place].arm
        if arm < 0 or any(earlier.id == request.id for earlier in self.requests[:place]):
            return draw.STOP
        for later in range(place + 1, len(self.requests) if request.episode else 0):
            if self.requests[later].episode == request.episode:
                context = self.contexts[later]
                made = tuple(count + (k == arm) for k, count in enumerate(context.attempts))
                self.contexts[later] = replace(context, attempts=made)
        return arm

    def earlier(self, place: int) -> int:
        """How many other decisions of its episode come before it in the batch."""
        request = self.requests[place]
        return len({one.id for one in self.requests[:place] if request.episode and one.episode == request.episode} - {request.id})


def body_digest(*parts: Any) -> str:
    """A digest of a request's content: a repeated request has the same."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _check_distribution(row: Sequence[float], context: Context, policy: Policy) -> None:
    """Raise unless the row is a distribution over the allowed arms: a NaN in the log could never be read back."""
    total = sum(row)
    sound = abs(total - 1.0) < 1e-9 or total == 0.0
    if not sound or min(row) < 0.0 or any(weight and not ok for weight, ok in zip(row, context.allowed, strict=True)):
        raise BanditError(f"{policy.kind} gave weights that are no distribution over the allowed arms")


def _finite(value: float) -> float | None:
    return value if -1e308 < value < 1e308 else None
