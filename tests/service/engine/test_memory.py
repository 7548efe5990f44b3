"""Memory is estimated, and comes back once a bandit is deleted."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch

from bandits import state as states
from service.engine import events, memory, snapshots
from service.engine.events import FoldedDecision
from service.engine.memory import held_bytes, release_memory, share_heap
from service.storage.memory import MemoryStorage
from tests.bandits.examples import Example
from tests.service.drivers import Clock, learner_of
from tests.service.engine.test_unloading import hosted


def resident_bytes() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


class Circle:
    """Refers to itself, and holds many small tensors, which come from the heap that freed pages stay in."""

    def __init__(self) -> None:
        self.itself = self
        self.tensors = [torch.ones(2_000) for _ in range(10_000)]  # 80 MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and malloc_trim is glibc's")
def test_what_a_circle_of_objects_held_is_given_back_to_the_system() -> None:
    gc.disable()
    try:
        held = Circle()
        last = torch.ones(2_000)  # above the others in the heap, so that its top cannot simply sink
        full = resident_bytes()
        del held
        release_memory()
        assert full - resident_bytes() > 40_000_000
        assert last.sum() == 2_000
    finally:
        gc.enable()


def test_a_decision_as_folding_reads_it_takes_about_what_its_entry_takes() -> None:
    payload = (
        b'{"event":"decided","at":"2026-01-01T00:00:00Z","id":"d","arm":0,"propensity":1.0,"weights":[%s],"scores":{},"price":0.0,'
        b'"features":"","episode":"d","shadows":{}}' % b",".join([b"0.015625"] * 64)
    )
    folded = events.decode_to_fold(payload)
    assert isinstance(folded, FoldedDecision)
    assert len(folded.weights_json) < held_bytes(folded) < len(payload) + 2_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="malloc_trim is glibc's")
async def test_free_pages_are_returned_without_anything_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TRIM_S", 0.01)
    monkeypatch.setattr(memory, "TRIM_SHARE", 1.0)
    async with asyncio.timeout(60), hosted(MemoryStorage(), Clock()):
        held = [torch.ones(2_000) for _ in range(10_000)]  # 80 MB
        last = torch.ones(2_000)  # above the others in the heap
        full = resident_bytes()
        held.clear()
        while full - resident_bytes() < 40_000_000:
            await asyncio.sleep(0.01)
        assert last.sum() == 2_000


def heaps(folder: Path) -> int:
    """Of this process, as malloc_info(3) counts them."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(str(folder / "heaps.xml").encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    return (folder / "heaps.xml").read_text().count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="only GNU's C library has heaps per thread")
def test_threads_share_one_heap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    share_heap()
    before, meet, seen = heaps(tmp_path), threading.Barrier(4), []

    def allocate() -> None:
        held = torch.ones(10_000)
        meet.wait(60)
        seen.append(len(held))

    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(seen), heaps(tmp_path)) == (4, before)


async def test_the_bytes_of_a_state_are_dropped_before_its_snapshot_is_sealed() -> None:
    wide = Example(kind="pak-ucb", settings={"random_features": 200}, dim=4)
    bandit = await learner_of(MemoryStorage(), wide)
    state, ledger = bandit.versions.committed.state, bandit.ledger.pack()
    sums = len(states.pack(bandit.policy, state))
    tracemalloc.start()
    blob = snapshots.pack(bandit.policy, state, ledger, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1_000_000 < sums < len(blob)
    assert peak < 3.5 * sums  # it is 3.0, and with them 4.0
