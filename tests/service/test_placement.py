"""A bandit that scores on a device decides as one that does not, is the same in its log, and survives the device."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from numpy.random import default_rng

from bandits.gpu import mirror as placements
from bandits.gpu.device_buffers import DeviceBuffers
from bandits.gpu.mirror import DeviceMirror
from bandits.gpu.stack import CPU
from bandits.policies.pak_ucb import PakUcb
from bandits.types import Policy
from service.api.app import running
from service.engine.events import Decided
from service.engine.learner import Learner
from service.settings import InvalidSettings, Settings
from service.storage.memory import MemoryStorage
from tests.bandits.gpu.test_mirror import ALWAYS, drain, fails
from tests.service.drivers import PAK, Clock, ask, learner_of, outcome

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every learner made from now on scores by a stack on the CPU; which scores the stack gave."""
    answered: list[bool] = []
    score = DeviceMirror.score

    def of(policy: Policy, *, device: str, batch: int) -> DeviceMirror:
        assert isinstance(policy, PakUcb)
        size, ridge = policy.regression.size, policy.regression.ridge
        return DeviceMirror(size=size, ridge=ridge, device=CPU, batch=batch, costs=lambda where: ALWAYS, threaded=True)

    def spied(self: DeviceMirror, *values: Any) -> Any:
        drain(self)  # else it may still be warming
        found = score(self, *values)
        answered.append(found is not None)
        return found

    monkeypatch.setattr(placements, "of", of)
    monkeypatch.setattr(DeviceMirror, "score", spied)
    return answered


async def driven(*, breaks: pytest.MonkeyPatch | None = None, rounds: int = 300) -> tuple[Learner, list[Decided]]:
    """Decisions with outcomes that come late or never, cancellations and two more arms."""
    clock, g, storage = Clock(), default_rng(11), MemoryStorage()
    bandit = await learner_of(storage, PAK, options={"clock": clock})
    made: list[Decided] = []
    waiting: list[Decided] = []
    for n in range(rounds):
        if breaks is not None and n == rounds // 2:
            breaks.setattr(DeviceBuffers, "append", fails)
            breaks.setattr(DeviceBuffers, "place", fails)
        decided = (await bandit.decisions.submit(ask(PAK, g, f"d{n}"))).event
        made.append(decided)
        waiting.append(decided)
        while waiting and g.random() < 0.5:
            due = waiting.pop(int(g.integers(len(waiting))))
            if g.random() < 0.1:
                await bandit.outcomes.cancel(due.id)
            else:
                await bandit.outcomes.submit(due.id, outcome(PAK, g, due.arm))
    return bandit, made


async def test_a_few_hundred_decisions_are_the_same(forced: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, ours = await driven()
    assert forced.count(True) > 250
    monkeypatch.undo()
    on_cpu, theirs = await driven()
    assert [(one.arm, one.propensity) for one in ours] == [(one.arm, one.propensity) for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name in one.scores:
            assert one.scores[name] == pytest.approx(other.scores[name], rel=1e-9, abs=1e-9)
    assert on_device.digest() == on_cpu.digest()


async def test_a_device_that_fails_is_logged_once_and_decisions_go_on(
    forced: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="nextarm.folding"), monkeypatch.context() as patched:
        on_device, ours = await driven(breaks=patched)
    assert forced.count(True) > 100
    (said,) = [record for record in caplog.records if "a device failed" in record.message]
    assert (said.bandit, said.device) == ("greeter", "cpu")  # type: ignore[attr-defined]
    assert "out of memory, say" in said.reason  # type: ignore[attr-defined]
    monkeypatch.undo()
    on_cpu, theirs = await driven()
    assert [one.arm for one in ours] == [one.arm for one in theirs]
    assert on_device.digest() == on_cpu.digest()


# -- the setting -------------------------------------------------------------------------------------------------------------


@no_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
async def test_a_gpu_that_is_not_there_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(InvalidSettings, match=rf"^NEXTARM_DEVICE: {name} asks for a GPU"):
        async with running(Settings.load(store="memory://", device=name)):
            pass


@no_cuda
def test_auto_without_a_gpu_is_the_cpu_for_embedders_too() -> None:
    settings = Settings.load(device="auto")
    assert settings.where() == settings.sources().device == "cpu"


def test_embedders_get_the_gpu_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandits.gpu.cost_model.device", lambda name: torch.device(name))
    assert Settings.load(device="cuda:7").sources().device == "cuda:7"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:0\n", "CUDA", ""])
def test_anything_else_is_no_device(name: str) -> None:
    with pytest.raises(InvalidSettings, match="NEXTARM_DEVICE"):
        Settings.load(device=name)
