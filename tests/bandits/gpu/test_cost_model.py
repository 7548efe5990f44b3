"""Where scores are computed: what the setting may say, and a rule that follows from its constants alone."""

from __future__ import annotations

import pytest
import torch

from bandits.gpu import cost_model as devices
from bandits.gpu.cost_model import CPU_POINTS, GPU_POINTS, Costs, InvalidDevice, Workload, device, fit_costs, scoring
from bandits.gpu.stack import CPU

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

RULE = Costs(
    cpu_call=2e-5, cpu_operation=1e-10, gpu_call=9e-5, gpu_byte=1 / 4e12, gpu_operation=1 / 5e13, gpu_staged=7e-10
)  # 10 GFLOP/s against 50 TFLOP/s and 4 TB/s


def test_the_cpu_is_always_there() -> None:
    assert device("cpu") == CPU
    assert "CPU" in devices.describe(CPU)


@no_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_not_there_is_an_error_that_names_the_setting_and_the_way_out(name: str) -> None:
    with pytest.raises(InvalidDevice, match=rf"^NEXTARM_DEVICE: {name} asks for a GPU.*set cpu or auto") as caught:
        device(name)
    assert caught.value.field == "NEXTARM_DEVICE"


@no_cuda
def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert device("auto") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:0 ", "mps", "cpu:0"])
def test_anything_else_is_not_a_device(name: str) -> None:
    with pytest.raises(InvalidDevice, match="set cpu, cuda, cuda:N or auto"):
        device(name)


def test_the_work_of_a_call_is_counted() -> None:
    """m = 3, p = 10, q = 4, B = 7: W 300, U 120, theta 30 numbers; z 70 and scores 42."""
    work = scoring(arms=3, size=10, batch=7, itemsize=4, block=4)
    assert work == Workload(bytes=4 * (450 + 70 + 42), operations=2 * 7 * (300 + 120 + 30 + 30), staged=70 + 42)


def test_the_work_of_the_design_size_has_the_floors_of_the_design() -> None:
    """20 arms, p = 1,024, float32 at 4.3 TB/s and 55 TFLOP/s: the inverses in 19.5 us, B = 256 in 195 us. Columns add 3 %."""
    work = scoring(arms=20, size=1024, batch=256, itemsize=4, block=0)
    assert (work.bytes - 4 * 256 * 1024) / 4.3e12 == pytest.approx(19.5e-6, rel=0.01)
    assert work.operations / 55e12 == pytest.approx(195e-6, rel=0.01)
    assert scoring(arms=20, size=1024, batch=256, itemsize=4).bytes / work.bytes == pytest.approx(1.03, abs=0.005)


def test_the_rule_is_the_two_lines() -> None:
    sizes = {"arms": 5, "size": 200, "batch": 6}
    numbers = 5 * 200 * (200 + 32 + 1)
    operations = 2 * 6 * (numbers + 5 * 200)
    assert RULE.cpu_s(**sizes) == pytest.approx(2e-5 + 1e-10 * operations, rel=1e-12)
    moved = 4 * (numbers + 6 * 200 + 2 * 6 * 5)
    staged = 6 * 200 + 2 * 6 * 5
    expected = 9e-5 + moved / 4e12 + operations / 5e13 + 7e-10 * staged
    assert RULE.gpu_s(**sizes) == pytest.approx(expected, rel=1e-12)
    assert RULE.prefers_gpu(**sizes) is (RULE.gpu_s(**sizes) < RULE.cpu_s(**sizes))


def test_the_gpu_wins_from_some_size_on_and_the_crossover_is_where_the_lines_meet() -> None:
    assert not RULE.prefers_gpu(arms=2, size=64, batch=1)
    assert RULE.prefers_gpu(arms=20, size=1024, batch=1)
    for arms, size in ((2, 64), (2, 256), (20, 256), (5, 512)):
        first = RULE.from_batch(arms=arms, size=size)
        wins = [RULE.prefers_gpu(arms=arms, size=size, batch=1 << n) for n in range(13)]
        assert first == 1 << wins.index(True)
        assert all(wins[wins.index(True) :])
    slow = Costs(cpu_call=0.0, cpu_operation=1e-12, gpu_call=1.0, gpu_byte=0.0, gpu_operation=1e-12, gpu_staged=0.0)
    assert slow.from_batch(arms=20, size=1024, most=64) == 0
    small_only = Costs(cpu_call=1e-4, cpu_operation=1e-12, gpu_call=0.0, gpu_byte=0.0, gpu_operation=1e-11, gpu_staged=0.0)
    assert small_only.prefers_gpu(arms=2, size=64, batch=1)
    assert small_only.from_batch(arms=2, size=64) == 0  # not from there *on*


def test_fitting_finds_the_constants_again() -> None:
    cpu = [((m, p, b), RULE.cpu_s(arms=m, size=p, batch=b)) for m, p, b in CPU_POINTS]
    gpu = [((m, p, b), RULE.gpu_s(arms=m, size=p, batch=b)) for m, p, b in GPU_POINTS]
    found = fit_costs(cpu=cpu, gpu=gpu)
    for name in ("cpu_call", "cpu_operation", "gpu_call", "gpu_byte", "gpu_operation", "gpu_staged"):
        assert getattr(found, name) == pytest.approx(getattr(RULE, name), rel=1e-6)


def test_a_fit_never_calls_work_less_than_free() -> None:
    """Times that fall with the size, as noise may have it: the call costs something, and nothing is negative."""
    cpu = [((m, p, b), 1e-3 / (1 + n)) for n, (m, p, b) in enumerate(CPU_POINTS)]
    gpu = [((m, p, b), 1e-3 / (1 + n)) for n, (m, p, b) in enumerate(GPU_POINTS)]
    found = fit_costs(cpu=cpu, gpu=gpu)
    values = vars(found).values()
    assert all(value >= 0.0 for value in values)
    assert found.cpu_call > 0.0
    assert found.gpu_call > 0.0


def test_a_call_can_be_timed() -> None:
    assert 0.0 < devices.time_scores(CPU, (2, 16, 3), repeats=2) < 1.0


@cuda
def test_the_rule_of_this_machine_prefers_the_gpu_for_much_work_and_is_measured_once() -> None:
    card = device("cuda")
    rule = devices.costs(card)
    assert rule.prefers_gpu(arms=20, size=1024, batch=1024)
    assert devices.costs(card) is rule
