"""What a replica folds of events that others wrote does not depend on how many it folds at once."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from bandits.types import Context
from service.engine import events
from service.engine.events import Decided, FoldedDecision
from service.engine.learner import Learner
from service.engine.ledger import Ledger
from service.storage.memory import MemoryStorage
from tests.bandits.examples import EXAMPLES, Example
from tests.service.drivers import Clients, Clock, learner_of

FORMS = {name: EXAMPLES[name][0] for name in ("pak-ucb", "lin-ucb", "thompson", "greedy", "promptwise", "auto")}


async def _written(example: Example, *, rounds: int = 9, **changes: object) -> tuple[MemoryStorage, Clock, Learner]:
    """A bandit under clients that do everything, with some decisions open in the end."""
    storage, clock = MemoryStorage(), Clock()
    writer = await learner_of(storage, example, options={"clock": clock}, **changes)
    clients = Clients(example, writer, clock, seed=4)
    await clients.work(rounds)
    await asyncio.gather(*(clients._decide() for _ in range(3)))
    await writer.projection.catch_up()  # a decision may be answered before it is folded
    assert writer.ledger.open
    return storage, clock, writer


def _scores(bandit: Learner, example: Example) -> list[torch.Tensor]:
    """What it would decide by, open decisions counted as pending."""
    version, _ = bandit.versions.with_in_flight()
    g, arms = np.random.default_rng(8), len(version.state.arms)
    contexts = [Context(allowed=(True,) * arms, features=example.features(g)) for _ in range(4)]
    weights = bandit.policy.weights(bandit.policy.prepare(version.state), contexts)
    return [weights.values, *weights.scores.values()]


@pytest.mark.parametrize("name", FORMS)
async def test_batches_of_any_size_give_one_digest_and_the_same_scores(name: str) -> None:
    example = FORMS[name]
    storage, clock, writer = await _written(example)
    end = writer.versions.committed.offset
    found = []
    for size in (1, 3, end):
        bandit = await Learner.load(storage, writer.log, clock=clock, until=1)
        for last in range(1 + size, end + size, size):
            await bandit.projection.fold_log(min(last, end), at_most=min(last, end))
            await bandit.versions.wait_until_prepared()
        assert bandit.digest() == writer.digest(), size
        assert bandit.ledger.pack() == writer.ledger.pack(), size
        found.append(_scores(bandit, example))
    for one, other in zip(found[0] * 2, found[1] + found[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


async def test_a_decision_as_folding_reads_it_says_what_the_log_says() -> None:
    storage, _, writer = await _written(FORMS["pak-ucb"], signals=["reward", "cost"])
    entries = await storage.read(writer.log, after=0, limit=10_000)
    whole, folded = Ledger(writer.created), Ledger(writer.created)
    decisions = 0
    for entry in entries[1:]:
        event, read = events.decode(entry.payload), events.decode_to_fold(entry.payload)
        whole.apply(entry.offset, event, writer.policy)
        folded.apply(entry.offset, read, writer.policy)
        if not isinstance(event, Decided):
            assert read == event
            continue
        decisions += 1
        assert isinstance(read, FoldedDecision)
        for field in ("at", "id", "arm", "propensity", "weights", "scores", "price", "features", "episode", "estimates"):
            assert getattr(read, field) == getattr(event, field), field
        assert events.weights_of(read, events.FIRST) == event.weights
        assert events.weights_of(read, 7) is None
    assert decisions
    assert whole.pack() == folded.pack()


@pytest.mark.parametrize("field", ["id", "arm", "weights", "scores", "features", "price"])
def test_a_decision_that_lacks_what_is_folded_is_unreadable(field: str) -> None:
    payload = b'{"event":"decided","at":"2026-01-01T00:00:00Z",' + b",".join(
        part
        for part in (
            b'"id":"d"', b'"arm":0', b'"propensity":1.0', b'"weights":[1.0]', b'"scores":{}', b'"price":0.0', b'"features":""',
            b'"episode":"d"',
        )
        if not part.startswith(b'"%s"' % field.encode())
    ) + b"}"  # fmt: skip
    with pytest.raises(events.UnreadableEvent, match=field):
        events.decode_to_fold(payload)
