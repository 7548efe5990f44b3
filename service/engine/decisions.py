"""Decisions of one bandit: requests that wait together are scored, drawn and committed as one micro-batch.

    submit ──> micro-batch ──> Ledger.context ──> Policy.weights ──> draw ──> LogCommitter.commit ──> Recorded

A decision uses the scoring version and waits for no computation but its own; where folding is slow, its answer does not wait for
that either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from torch import Tensor

from bandits import draw
from bandits.errors import InvalidContext
from bandits.objective import COST
from bandits.types import Context, Policy, State, Weights
from service.engine import events
from service.engine.batcher import MicroBatcher
from service.engine.commit import LogCommitter, Recorded
from service.engine.errors import DecisionConflictError, OpenDecisionLimitError
from service.engine.events import Decided, SessionBegun, ShadowWeights
from service.engine.executor import AdaptiveExecutor
from service.engine.ledger import SessionRecord, View
from service.engine.policies import check_distribution, takes_features
from service.engine.projection import Projection
from service.engine.readiness import Versions
from service.engine.retention import REMEMBERED
from service.engine.shadows import LIMIT_S, ShadowScorer
from service.storage.base import Durability, Receipt, StorageError, StorageUnavailableError

_COST = f"signals.{COST}"
"""The score that shows what a call of each arm is expected to cost: with prices per call its price, where it has one."""
LARGEST = 1e308
"""A score beyond it is no number that JSON has."""
MICRO_BATCH = 32
"""Decisions scored together, at most: between two batches they are added as pending."""


@dataclass(frozen=True, kw_only=True)
class DecisionRequest:
    """A validated request for a decision.

    vector: (d,) the features as the policy takes them, where the caller has made a tensor of them already.
    allowed: arm index -> price for it alone (None = the arm's own); empty = all.
    exclude, max_price: what narrows them: names of arms, and the highest price of a call (None = any).
    session: whose decisions get one arm; "" = none.
    """

    id: str
    features: bytes = b""
    vector: Tensor | None = field(default=None, compare=False, repr=False)
    allowed: Mapping[int, float | None] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    max_price: float | None = None
    episode: str = ""
    session: str = ""
    metadata: Mapping[str, Any] | None = None
    body: str = ""


class DecisionMaker:
    """Chooses an arm per request and logs it. clock: the time of events.  max_open: decisions open at a time.
    shadow_limit_s: see `ShadowScorer`.
    """

    def __init__(
        self,
        projection: Projection,
        committer: LogCommitter,
        *,
        clock: Callable[[], datetime],
        max_open: int,
        shadow_limit_s: float = LIMIT_S,
    ) -> None:
        self._storage = projection.storage
        self._log = projection.log
        self._created = projection.created
        self._projection = projection
        self._ledger = projection.ledger
        self._committer = committer
        self._clock = clock
        self._max_open = max_open
        self._draw_prefix = f"{projection.log.name}/{projection.created.seed}/"
        self._batcher = MicroBatcher(self._decide_batch, limit=MICRO_BATCH, background=projection.background)
        self._executor = AdaptiveExecutor()
        self.shadows = ShadowScorer(projection, limit_s=shadow_limit_s)

    @property
    def _versions(self) -> Versions:
        return self._projection.versions

    def submit(self, request: DecisionRequest) -> asyncio.Future[Recorded]:
        """Choose an arm and log it; it is enqueued when this returns. The same id again is the same decision."""
        if self._versions.fault is not None:
            self._versions.check_sound()
        self._ledger.check_ready()
        if len(self._ledger.open) >= self._max_open:
            raise OpenDecisionLimitError(f"{self._max_open} decisions are open")
        return self._batcher.submit(request)

    async def find(self, decision_id: str, body: str) -> Recorded | None:
        """The decision that has this id already, if any; `DecisionConflictError` where its body was another."""
        entry = await self._storage.find(self._log, events.decided_key(decision_id))
        return None if entry is None else self._duplicate(Receipt(entry.offset, entry.payload), body)

    async def preview(self, request: DecisionRequest) -> Decided:
        """The decision that would be made now; it is neither logged nor pending. No shadow is asked, no session counts."""
        self._ledger.check_ready()
        (found,) = await self._choose([replace(request, session="")], ask_shadows=False)
        if isinstance(found, Exception):
            raise found
        return found[0]

    def _duplicate(self, receipt: Receipt, body: str) -> Recorded:
        assert receipt.first is not None
        first = events.decode(receipt.first)
        assert isinstance(first, Decided)
        if first.body != body:
            raise DecisionConflictError(first.id)
        self._committer.duplicates += 1
        return Recorded(first, receipt.offset, True)

    # -- a micro-batch -------------------------------------------------------------------------------------------------------

    async def _decide_batch(self, requests: Sequence[DecisionRequest]) -> list[Recorded | Exception]:
        """Decide a micro-batch in order of arrival: find repeated ids, score and draw the rest, commit what was drawn."""
        results: dict[int, Recorded | Exception] = {}  # by place in the batch, since an id can be there twice
        waiting = list(range(len(requests)))
        while waiting:
            waiting = await self._decide_round(requests, waiting, results)
        return [results[place] for place in range(len(requests))]

    async def _decide_round(
        self, requests: Sequence[DecisionRequest], places: Sequence[int], results: dict[int, Recorded | Exception]
    ) -> list[int]:
        """Decide as many of a micro-batch as there are. Returns the places of the others: their session was begun meanwhile, by a
        decision of this batch or of another replica, and has an arm now.
        """
        new: list[int] = []
        later: list[int] = []
        now = self._clock()
        begun: set[str] = set()
        remains = await self._find_remains([requests[place] for place in places], now)
        for place in places:
            request = requests[place]
            if request.id in remains:
                results[place] = await self._find_duplicate(request) or DecisionConflictError(request.id)
                continue
            if request.id in self._ledger.open or request.id in self._projection.recent_ids:
                known = await self._find_duplicate(request)
                if known is not None:
                    results[place] = known
                    continue
            if not request.session or self._ledger.live.session_ttl_s is None or self._ledger.session(request.session, now):
                new.append(place)
            else:
                (later if request.session in begun else new).append(place)
                begun.add(request.session)
        chosen = await self._choose_isolating_failures([requests[place] for place in new]) if new else []
        made: dict[int, Decided] = {}
        vectors: dict[int, Tensor] = {}
        for place, one in zip(new, chosen, strict=True):
            if isinstance(one, Exception):
                results[place] = one
            else:
                made[place], vectors[place] = one
        later += await self._begin_sessions(made, results)
        for place, decided in made.items():
            self._projection.track_in_flight(decided, vectors[place])
        receipts = await self._committer.commit(list(made.values()), Durability.PROCESS) if made else []
        for (place, decided), receipt in zip(made.items(), receipts, strict=True):
            results[place] = self._to_result(decided, receipt, requests[place])
        return sorted(later)

    async def _begin_sessions(self, made: dict[int, Decided], results: dict[int, Recorded | Exception]) -> list[int]:
        """Let first decisions of sessions have them, in the log, before they are logged themselves. Takes out of `made` what came
        too late, and returns those places, and what failed, which is a result.
        """
        begun: dict[int, SessionBegun] = {}
        for place, decided in made.items():
            if not isinstance(decided.session, str) or decided.sticky or self._ledger.live.session_ttl_s is None:
                continue
            known = self._ledger.session(decided.session, decided.at)
            if known is None or (known.decision, known.arm) != (decided.id, decided.arm):  # else it has the session already
                generation = self._ledger.next_generation(decided.session)
                without = msgspec.structs.replace(decided, features=b"")
                begun[place] = SessionBegun(at=decided.at, session=decided.session, generation=generation, decision=without)
        if not begun:
            return []
        try:
            receipts = await self._committer.commit(list(begun.values()), Durability.PROCESS)
        except BaseException:
            for decided in made.values():
                self._projection.drop_in_flight(decided.id)
            raise
        late = []
        for place, receipt in zip(begun, receipts, strict=True):
            if isinstance(receipt, Receipt) and receipt.first is None:
                continue
            self._projection.drop_in_flight(made.pop(place).id)
            if isinstance(receipt, StorageError):
                results[place] = receipt
            else:
                late.append(place)
        return late

    async def _find_remains(self, requests: Sequence[DecisionRequest], now: datetime) -> set[str]:
        """Ids of which an outcome or a correction is known. Where ids are forgotten (retention.py), the decision's goes first,
        and another decision would take what remains for its own.
        """
        if not self._projection.is_old_enough_to_forget(now):
            return set()
        old = [each.id for each in requests if each.id not in self._ledger.open and not _is_younger(each.id, now - REMEMBERED)]
        known = await asyncio.gather(*map(self._is_closing_known, old))
        return {each for each, is_known in zip(old, known, strict=True) if is_known}

    async def _is_closing_known(self, decision_id: str) -> bool:
        try:
            for key in (events.closed_key(decision_id), events.amended_key(decision_id, 1)):
                if await self._storage.find(self._log, key) is not None:
                    return True
        except StorageUnavailableError:
            raise
        except StorageError:  # it was trimmed, and cannot be read
            return True
        return False

    async def _find_duplicate(self, request: DecisionRequest) -> Recorded | Exception | None:
        """The decision that has this id, or why it cannot be had; None where the id was forgotten (retention.py)."""
        try:
            found = await self.find(request.id, request.body)
        except (StorageError, DecisionConflictError) as error:
            return error
        if found is None and request.id in self._ledger.open:  # it is open, but so old that its id was forgotten
            return DecisionConflictError(request.id)
        return found

    def _to_result(self, decided: Decided, receipt: Receipt | StorageError, request: DecisionRequest) -> Recorded | Exception:
        if isinstance(receipt, StorageError):
            return receipt
        if receipt.first is None:
            return Recorded(decided, receipt.offset, False)
        try:
            return self._duplicate(receipt, request.body)
        except DecisionConflictError as error:
            return error

    async def _choose_isolating_failures(
        self, requests: Sequence[DecisionRequest]
    ) -> Sequence[tuple[Decided, Tensor] | Exception]:
        """Choose for all together, unless different policies decide; if that fails, one by one, so that the failure is the result
        of its cause alone.
        """
        try:
            if len(requests) == 1 or len({self._decides(request).number for request in requests}) == 1:
                return await self._choose(requests)
        except Exception as error:
            if len(requests) == 1:
                return [error]
        found: list[tuple[Decided, Tensor] | Exception] = []
        for request in requests:
            (one,) = await self._choose_isolating_failures([request])
            if not isinstance(one, Exception):
                self._projection.track_in_flight(*one)  # pending for those after it
            found.append(one)
        return found

    def _decides(self, request: DecisionRequest) -> Versions:
        """The policy that decides; in an episode that another one began before it became a shadow, that one."""
        episode = self._ledger.episodes.get(request.episode) if request.episode and self._ledger.promotions else None
        if episode is None or not self._projection.policy.episodic:
            return self._versions
        return self._projection.tracks.get(episode.policy, self._versions)

    async def _choose(
        self, requests: Sequence[DecisionRequest], *, ask_shadows: bool = True
    ) -> list[tuple[Decided, Tensor] | Exception]:
        """Choose in order: each choice is pending for the requests after it. A request without a usable arm fails alone.

        Returns: per request the event with the vector of its features, or why there is none.
        """
        known_arms = len(self._versions.scoring.arms)
        if any(arm >= known_arms for request in requests for arm in request.allowed):  # an arm is being added
            await self._projection.refresh()
            await self._versions.wait_until_prepared()
        vectors = [events.vector_tensor(each.features) if each.vector is None else each.vector for each in requests]
        deciding = self._decides(requests[0])
        (state, _, arms), in_flight = deciding.with_in_flight()  # one version for all, whatever is folded meanwhile
        view = View.of(arms, in_flight)
        present = view.present()
        found: dict[int, tuple[Decided, Tensor] | Exception] = {}
        places, contexts, now = [], [], self._clock()
        ignored: set[int] = set()  # places of requests for which only arms were left that cool down
        for place, request in enumerate(requests):
            try:
                context = self._context(request, deciding.policy, view, vectors[place], now)
            except InvalidContext as error:
                found[place] = error
            else:
                session = self._ledger.session(request.session, now)
                if session is not None and session.arm < len(context.allowed) and context.allowed[session.arm]:
                    found[place] = await self._stay(request, context, session, now), vectors[place]
                    continue
                places.append(place)
                contexts.append(context)
                if self._ledger.live.cooldown is not None and self._ledger.is_cooling(context.allowed.index(True), now):
                    ignored.add(place)
        if contexts:
            shadows = self.shadows.capture(deciding) if ask_shadows and self._ledger.shadows else []
            batch = _DecisionBatch([requests[place] for place in places], contexts, deciding, self._draw_prefix)
            weights = await self._score(state, batch)
            rows, tables = weights.values.tolist(), {name: table.tolist() for name, table in weights.scores.items()}
            batch.prepared = weights.prepared
            if len(contexts) == 1:
                batch.choose(0, rows[0])
            if shadows:
                batch.shadows = await self.shadows.weigh(shadows, batch.contexts, batch.pending)
            now, prices_are_costs = self._clock(), self._ledger.prices_per == "call"
            shown = msgspec.UNSET if len(present) == len(arms) else present
            for i, place in enumerate(places):
                scores = {
                    name: [value if -LARGEST < value < LARGEST else None for value in table[i]] for name, table in tables.items()
                }
                if _COST in scores and prices_are_costs:
                    scores[_COST] = [price or learned for price, learned in zip(contexts[i].prices, scores[_COST], strict=True)]
                event = self._to_event(batch, i, rows[i], scores, present=shown, now=now, is_cooldown_ignored=place in ignored)
                found[place] = event, vectors[place]
        return [found[place] for place in range(len(requests))]

    def _context(self, request: DecisionRequest, policy: Policy, view: View, features: Tensor, now: datetime) -> Context:
        if self._ledger.promotions and not takes_features(policy, features):
            raise InvalidContext("prompt", f"is not one that {policy.kind} can decide on, which decides by now")
        return self._ledger.context(
            view,
            features=features,
            allowed=request.allowed,
            exclude=request.exclude,
            max_price=request.max_price,
            episode=request.episode,
            now=now,
        )

    async def _stay(self, request: DecisionRequest, context: Context, session: SessionRecord, now: datetime) -> Decided:
        """The decision for the arm that a session has."""
        if session.decision == request.id:  # it has chosen this arm, and its process ended before it was logged
            entry = await self._storage.find(self._log, events.session_key(request.session, session.generation))
            begun = None if entry is None else events.decode(entry.payload)
            if isinstance(begun, SessionBegun) and begun.decision.body == request.body:
                return msgspec.structs.replace(begun.decision, features=request.features)
        episode = request.episode or request.id
        arms, number = len(context.allowed), self._versions.number
        is_ignored = self._ledger.live.cooldown is not None and self._ledger.is_cooling(session.arm, now)
        return Decided(
            at=now,
            id=request.id,
            arm=session.arm,
            propensity=None,
            weights=[float(arm == session.arm) for arm in range(arms)],
            scores={},
            allowed=[k for k, is_allowed in enumerate(context.allowed) if is_allowed],
            price=context.prices[session.arm],
            features=request.features,
            episode=episode,
            attempt=1,
            body=request.body,
            timeout_s=msgspec.UNSET if (own := self._ledger.live.timeout_s) == self._created.timeout_s else own,
            policy=msgspec.UNSET if number == events.FIRST else number,
            exclude=list(request.exclude) or msgspec.UNSET,
            max_price=msgspec.UNSET if request.max_price is None else request.max_price,
            cooldown_ignored=is_ignored or msgspec.UNSET,
            session=request.session,
            sticky=True,
            chosen_by=session.decision,
            metadata=msgspec.UNSET if request.metadata is None else dict(request.metadata),
        )

    async def _score(self, state: State, batch: _DecisionBatch) -> Weights:
        """The weights of a batch. Several requests are drawn on the way, row by row; a single one has no order to respect."""
        policy, contexts = batch.policy, batch.contexts
        is_prepared = policy.is_prepared(state, contexts)
        if len(contexts) > 1:
            work = partial(policy.weights_in_order, state, contexts, batch.choose)
        else:
            work = partial(policy.weights, state, contexts)
        if not is_prepared:
            return await asyncio.to_thread(work)
        return await self._executor.run(work, units=len(contexts))

    def _to_event(
        self,
        batch: _DecisionBatch,
        place: int,
        row: list[float],
        scores: dict[str, list[float | None]],
        *,
        present: list[int] | msgspec.UnsetType,
        now: datetime,
        is_cooldown_ignored: bool,
    ) -> Decided:
        """row: (K,) the weights."""
        request, context, (arm, propensity) = batch.requests[place], batch.contexts[place], batch.draws[place]
        episode = self._ledger.episodes.get(request.episode)
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
            prepared=msgspec.UNSET if batch.prepared is None else batch.prepared,
            multipliers=self._ledger.multipliers() or msgspec.UNSET,
            timeout_s=msgspec.UNSET if (own := self._ledger.live.timeout_s) == self._created.timeout_s else own,
            running={spending.budget.signal: spending.running} if (spending := self._ledger.spending) else msgspec.UNSET,
            policy=msgspec.UNSET if batch.number == events.FIRST else batch.number,
            shadows=batch.shadows[place] or msgspec.UNSET,
            exclude=list(request.exclude) or msgspec.UNSET,
            max_price=msgspec.UNSET if request.max_price is None else request.max_price,
            cooldown_ignored=is_cooldown_ignored or msgspec.UNSET,
            session=request.session or msgspec.UNSET,
            metadata=msgspec.UNSET if request.metadata is None else dict(request.metadata),
        )


class _DecisionBatch:
    """A micro-batch of requests with their contexts and the draws made so far.

    A drawn row is pending for the rows after it, and an attempt in its episode. A repeated id gets the draw of its first, and
    counts once.  draw_prefix: of the keys of all draws; the id of the decision follows.
    """

    def __init__(
        self, requests: Sequence[DecisionRequest], contexts: list[Context], deciding: Versions, draw_prefix: str
    ) -> None:
        self.requests = requests
        self.contexts = contexts
        self.policy = deciding.policy
        self.number = deciding.number
        self.draws: list[draw.Draw] = []
        self._drawn: set[str] = set()  # ids
        self.pending: list[int] = []  # per row that was drawn: the arm that is pending for those after it, or `draw.STOP`
        self.prepared: int | None = None  # see `bandits.types.Weights`
        self.shadows: list[dict[str, ShadowWeights]] = [{} for _ in requests]
        self._draw_prefix = draw_prefix

    def choose(self, place: int, row: Sequence[float]) -> int:
        """See `bandits.types.Choose`."""
        request = self.requests[place]
        check_distribution(row, self.contexts[place], self.policy)
        self.draws.append(draw.draw(row, self._draw_prefix + request.id))
        arm = self.draws[place].arm
        if request.id in self._drawn:
            arm = draw.STOP
        self._drawn.add(request.id)
        self.pending.append(arm)
        if arm < 0:
            return arm
        for later in range(place + 1, len(self.requests) if request.episode else 0):
            if self.requests[later].episode == request.episode:
                context = self.contexts[later]
                made = tuple(count + (k == arm) for k, count in enumerate(context.attempts))
                self.contexts[later] = replace(context, attempts=made)
        return arm

    def earlier(self, place: int) -> int:
        """How many other decisions of its episode come before it in the batch."""
        request = self.requests[place]
        if not request.episode:
            return 0
        return len({one.id for one in self.requests[:place] if one.episode == request.episode} - {request.id})


def _is_younger(decision_id: str, than: datetime) -> bool:
    """Whether an id was made after a time: a UUIDv7, as the server makes them, says when."""
    try:
        made = UUID(decision_id)
    except ValueError:
        return False
    return made.version == 7 and (made.int >> 80) > than.timestamp() * 1e3
