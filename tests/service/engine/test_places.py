"""The index of places answers as one that looks at every place would."""

from __future__ import annotations

from numpy.random import default_rng

from service.engine.places import PREFIX, Place, PlaceIndex
from service.storage.base import Log
from service.storage.memory import MemoryStorage

LOGS = [Log(f"{number:02}", f"bandit-{number:02}") for number in range(12)]
STEPS = 600


def brute_force(index: PlaceIndex, now: float) -> list[tuple[float, str]]:
    """When, and the id of the log, of every place that is due."""
    places = [(log.id, index.get(log)) for log in LOGS]
    return sorted((place.due, log_id) for log_id, place in places if place and place.due is not None and place.due <= now)


async def test_what_is_due_is_what_a_look_at_all_places_finds() -> None:
    """Two processes on one store, so that a write may find another one's place, which is known from then on."""
    g, storage = default_rng(3), MemoryStorage()
    indices, failed, found = [PlaceIndex(storage), PlaceIndex(storage)], 0, 0
    for step in range(STEPS):
        index, log = indices[g.integers(2)], LOGS[g.integers(len(LOGS))]
        match g.choice(["write", "drop", "refresh", "read", "newer"], p=[0.7, 0.1, 0.1, 0.05, 0.05]):
            case "write":
                due = None if g.random() < 0.2 else float(g.integers(10))  # several are due at once
                failed += not await index.write(log, Place(name=log.name, offset=step, due=due))
            case "drop":
                await index.drop(log)
            case "refresh":
                await index.refresh(log)
            case "read":
                await index.read()
            case "newer":
                known = await storage.find_record(None, PREFIX + log.id)
                await storage.swap_record(None, PREFIX + log.id, b'{"due": "a newer form"}', expected=known)
        for now in (-1.0, 0.0, 4.5, 9.0):
            wanted = brute_force(index, now)
            answered = index.due(now)
            assert [(log.id, log.name) for log in answered] == [(log_id, f"bandit-{log_id}") for _, log_id in wanted], (step, now)
            found += len(answered)
    assert failed > 20
    assert found > STEPS
    await indices[0].read()
    await indices[0].drop_others(LOGS[:3])
    assert {log.id for log in indices[0].due(9.0)} <= {log.id for log in LOGS[:3]}
    assert brute_force(indices[0], 9.0) == [(place.due, log.id) for log in indices[0].due(9.0) if (place := indices[0].get(log))]
