"""Memory is estimated, and comes back once a bandit is deleted."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from service.engine import events
from service.engine.events import FoldedDecision
from service.engine.memory import held_bytes, release_memory


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
