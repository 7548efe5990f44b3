"""Logs that a release wrote, one per policy and option that changes what is summed: every later build folds them alike.

They are read for ever and never written again; `recorded_logs.py` records those of new policies and options.
"""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from bandits import state as states
from bandits.registry import POLICIES as KINDS
from service.engine import events
from tests.service.recorded_logs import BLOCKS, DATA, POLICIES, arithmetic, learner_of, payloads_of

DIGESTS = json.loads((DATA / "digests.json").read_text())
every_log = pytest.mark.parametrize("name", DIGESTS)


def payloads(name: str) -> list[bytes]:
    return payloads_of((DATA / f"{name}.ndjson").read_bytes())


def test_every_policy_has_a_recorded_log() -> None:
    assert set(POLICIES) == set(DIGESTS), "python -m tests.service.recorded_logs records what is missing"
    assert {policy["kind"] for policy in POLICIES.values()} == set(KINDS)


@every_log
async def test_a_recorded_log_folds_to_the_recorded_state(name: str) -> None:
    """To the bit where this machine rounds as the one that recorded it did; else within rounding: products of matrices,
    cosines and logarithms differ in their last digits.
    """
    wanted = DIGESTS[name]
    learner = await learner_of(payloads(name))
    offset, sha256 = learner.digest()
    assert offset == wanted["offset"]
    if arithmetic() == wanted["arithmetic"]:
        assert sha256 == wanted["sha256"]
    packed = (DATA / f"{name}.safetensors").read_bytes()
    now, then = (safetensors.torch.load(data) for data in (states.pack(learner.policy, learner.versions.committed.state), packed))
    assert now.keys() == then.keys()
    for key, tensor in then.items():
        scale = float(tensor.nan_to_num().abs().max()) if tensor.numel() else 0.0
        torch.testing.assert_close(now[key], tensor, rtol=1e-9, atol=1e-9 * scale, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", BLOCKS)
async def test_a_log_that_was_recorded_for_the_blocks_of_its_sums_has_them(name: str) -> None:
    learner = await learner_of(payloads(name))
    state = learner.versions.committed.state
    assert (learner.created.layout, state.layout) == (2, 2)
    packed = safetensors.torch.load(states.pack(learner.policy, state))
    held = [len(tensor) for key, tensor in packed.items() if key.endswith("held")]
    assert any(held)
    assert max(held) < 32
    imported = [event.arm for payload in payloads(name) if isinstance(event := events.decode(payload), events.Imported)]
    assert min(imported.count(0), imported.count(1)) > 64


@every_log
async def test_a_bandit_goes_on_from_a_recorded_log(name: str) -> None:
    learner = await learner_of(payloads(name))
    assert learner.versions.fault is None
    assert await learner.outcomes.expire() == 1, "the last decision was left open"
    assert learner.versions.committed.offset == DIGESTS[name]["offset"] + 1
    assert len((await learner.report())["arms"]) == 3


@every_log
def test_a_recorded_log_would_be_written_the_same_way_today(name: str) -> None:
    for payload in payloads(name):
        assert events.encode(events.decode(payload)) == payload
