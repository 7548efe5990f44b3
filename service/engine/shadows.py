"""What shadows would have drawn from at a decision, computed in its micro-batch and logged with it.

    capture ──> the shadows as of the moment of the decision ──> weigh ──> weights per row, of those that were quick enough

A decision waits for its shadows for a limited time. One that takes longer is left out of that event, and is not asked again until
it has finished.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from bandits.types import Context, Policy, State
from service.engine.events import ShadowWeights
from service.engine.ledger import View
from service.engine.policies import check_distribution, takes_features
from service.engine.projection import Projection
from service.engine.readiness import Versions
from service.storage.throttling import ThrottledLogger

throttled = ThrottledLogger(logging.getLogger("nextarm.shadows"))

LIMIT_S = 5e-3
"""A decision waits so long for its shadows."""


class Captured(NamedTuple):
    """A shadow as it was when the decision was made. view: what its version says of the arms."""

    name: str
    track: Versions
    policy: Policy
    state: State
    view: View


class ShadowScorer:
    """Asks the shadows of one bandit for their weights. limit_s: after which one is left out."""

    def __init__(self, projection: Projection, *, limit_s: float = LIMIT_S) -> None:
        self._projection = projection
        self.limit_s = limit_s

    def capture(self, deciding: Versions) -> list[Captured]:
        """The shadows that can be asked, as they are now. deciding: the policy that is asked already."""
        found = []
        for name, track in self._projection.shadows().items():
            if track.late is not None and track.late.done():
                track.late = None
            is_out = track.late is not None or track.fault is not None or track.failure
            # one that lacks an arm was not prepared since that was added
            if track is deciding or is_out or len(track.scoring.arms) != len(deciding.scoring.arms):
                continue
            (state, _, arms), in_flight = track.with_in_flight()
            found.append(Captured(name, track, track.policy, state, View.of(arms, in_flight)))
        return found

    async def weigh(
        self, shadows: Sequence[Captured], contexts: Sequence[Context], chosen: Sequence[int]
    ) -> list[dict[str, ShadowWeights]]:
        """Per row the weights of each shadow, by name. chosen: per row the arm that is pending for the rows after it, or -1."""
        found: list[dict[str, ShadowWeights]] = [{} for _ in contexts]
        waiting: dict[asyncio.Task[Rows], Captured] = {}
        for shadow in shadows:
            rows = [row for row, context in enumerate(contexts) if takes_features(shadow.policy, context.features)]
            if not rows:
                continue
            asked = [_as_seen(contexts[row], shadow.view) for row in rows]
            work, pace = partial(_weigh, shadow, rows, asked, [chosen[row] for row in rows]), shadow.track.pace
            if not shadow.policy.is_prepared(shadow.state, asked):
                waiting[self._projection.background.spawn(asyncio.to_thread(work))] = shadow
            elif pace.is_slow(len(rows)):
                waiting[self._projection.background.spawn(pace.run(work, units=len(rows)))] = shadow
            else:
                _add(found, shadow, await pace.run(work, units=len(rows)))
        if waiting:
            done, late = await asyncio.wait(waiting, timeout=self.limit_s)
            for task in done:
                _add(found, waiting[task], task.result())
            for task in late:
                waiting[task].track.late = task
        return [dict(sorted(one.items())) for one in found]  # whichever was quickest


Rows = dict[int, list[float]]
"""Place in the batch -> weights, (K,)."""


def _weigh(shadow: Captured, rows: Sequence[int], contexts: Sequence[Context], chosen: Sequence[int]) -> Rows:
    """The weights of the rows; none where the shadow cannot decide."""
    try:
        shadow.policy.check_ready(shadow.state)
        if len(contexts) == 1:
            found = shadow.policy.weights(shadow.state, contexts)
        else:
            found = shadow.policy.weights_in_order(shadow.state, contexts, lambda place, row: chosen[place])
        weights = found.values.tolist()
        for row, context in zip(weights, contexts, strict=True):
            check_distribution(row, context, shadow.policy)
    except Exception as error:
        throttled.error("a shadow could not decide", shadow=shadow.name, reason=f"{type(error).__name__}: {error}")
        return {}
    return dict(zip(rows, weights, strict=True))


def _as_seen(context: Context, view: View) -> Context:
    """The context of a decision with what the shadow's version knows of open decisions."""
    if (context.pending, context.decided) == (view.pending, view.decided):
        return context
    return replace(context, pending=view.pending, decided=view.decided)


def _add(found: Sequence[dict[str, ShadowWeights]], shadow: Captured, rows: Rows) -> None:
    for place, weights in rows.items():
        found[place][shadow.name] = ShadowWeights(shadow.track.number, weights)
