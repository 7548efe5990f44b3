"""The bench of the stack: what it counts, what it compares with, and that it runs where little is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bandits.gpu import cost_model as devices
from bandits.gpu.cost_model import Costs, Workload
from bandits.gpu.stack import CPU, Stack
from bench.pages import written
from bench.performance import gpu
from bench.performance.gpu_parts import pages, problems, rates
from bench.performance.gpu_parts.ceilings import Ceilings, seconds_of

ROOT = Path(__file__).resolve().parents[3]
CEILINGS = Ceilings(bandwidth=4e12, float32=5e13, float64=6e13)
HEAVY = ("rich", "fastapi", "redis", "pydantic", "msgspec", "pytest", "scipy", "sklearn", "matplotlib", "safetensors")


def test_it_needs_nothing_but_numpy_torch_and_the_mathematics() -> None:
    """The machine with the card has no service on it."""
    program = "import sys, bench.performance.gpu; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({*HEAVY, "service"})
    assert {"torch", "numpy", "bandits"} <= loaded


def test_the_floor_is_the_ceiling_that_binds() -> None:
    assert CEILINGS.floor(Workload(bytes=8_000_000, operations=50_000_000, staged=0), torch.float32) == (2e-6, "bytes")
    assert CEILINGS.floor(Workload(bytes=8_000_000, operations=600_000_000, staged=0), torch.float64) == (1e-5, "products")
    assert CEILINGS.rate(torch.float32) == 5e13


def test_time_is_measured_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a run moves on by 3 ms, the first one by a second."""
    now = [7.0]

    def run() -> None:
        now[0] += 0.003 if now[0] > 7.0 else 1.0

    monkeypatch.setattr("bench.performance.gpu_parts.ceilings.time.perf_counter", lambda: now[0])
    assert seconds_of(CPU, run, budget=0.1) == pytest.approx(0.003, rel=1e-9)
    assert now[0] < 8.5


def test_the_problem_is_ridge_regression_and_its_prompts_are_not_all_alike() -> None:
    truth = problems.problem(arms=2, size=24, ridge=0.3, seen=60, queries=40)
    for arm in range(2):
        z = truth.rows[arm].numpy()
        inverse = np.linalg.inv(z.T @ z + 0.3 * np.eye(24))
        np.testing.assert_allclose(truth.inverses[arm].numpy(), inverse, atol=1e-10)
        variance = np.einsum("bi,ij,bj->b", truth.queries.numpy(), inverse, truth.queries.numpy())
        np.testing.assert_allclose(truth.widths[:, arm].numpy(), np.sqrt(variance), rtol=1e-9)
    np.testing.assert_allclose(truth.means.numpy(), truth.queries.numpy() @ truth.thetas.numpy().T, rtol=1e-12)
    strange, known = truth.widths[:10].mean(), truth.widths[10:].mean()
    assert strange > 1.2 * known


def test_float64_agrees_to_rounding_and_float32_to_its_own() -> None:
    truth = problems.problem(arms=3, size=64, ridge=0.01, seen=200, queries=64)
    exact = list(problems.agreements(truth, device=CPU, dtype=torch.float64))
    assert [row.how for row in exact] == ["loaded", "appended"]
    assert all(row.width < 1e-9 and row.mean < 1e-9 and row.lost == 0.0 for row in exact)
    assert all(set(row.equal.values()) == {1.0} for row in exact)
    single = list(problems.agreements(truth, device=CPU, dtype=torch.float32))
    assert all(1e-8 < row.width < 1e-3 for row in single)


def test_a_stack_that_knows_something_else_is_found_out() -> None:
    truth = problems.problem(arms=3, size=32, ridge=0.2, seen=50, queries=64)
    with Stack(arms=3, size=32, ridge=0.2) as stack:
        found = problems._compared(truth, stack, how="blank")
    assert found.width > 0.1
    assert found.mean > 0.5
    assert min(found.equal.values()) < 0.9
    assert found.lost > 0.01


def test_ten_bits_are_too_few_for_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TF32 keeps of every factor, in a world of a few well-known prompts, against the 23 bits of float32."""
    monkeypatch.setattr(problems, "SPREAD", 0.03)
    truth = problems.problem(arms=1, size=512, ridge=0.01)

    def cut(x: torch.Tensor, *, bits: int) -> torch.Tensor:
        whole = x.to(torch.float32).contiguous().view(torch.int32)
        dropped = 23 - bits
        return ((whole + (1 << dropped >> 1)) & -(1 << dropped)).view(torch.float32).to(torch.float64)

    def off(bits: int) -> float:
        z, inverse = cut(truth.queries, bits=bits), cut(truth.inverses[0], bits=bits)
        width = ((z @ inverse) * truth.queries).sum(1).clamp_min(0.0).sqrt()
        return float((width / truth.widths[:, 0] - 1.0).abs().max())

    assert off(10) > 5e-3
    assert off(23) < 1e-5


def test_rows_of_the_tables_are_measured() -> None:
    with rates.filled(arms=3, size=16, device=CPU, dtype=torch.float64, batch=8) as stack:
        score = rates.scored(stack, 8, ceilings=CEILINGS, budget=0.01)
        assert rates.one_change(stack, calls=5) > 0.0
    assert score.device_s > 0.0
    assert 0.0 < score.p50_s <= score.p99_s
    assert score.reached == score.floor_s / score.device_s
    for text in (pages.scores([score], cpu={}), pages.scores([score], cpu={(16, 8): 0.5})):
        head, rule, row = text.splitlines()
        assert head.count("|") == rule.count("|") == row.count("|")


def test_what_takes_a_cpu_too_long_is_left_out() -> None:
    assert rates.affordable((1, 16, 64), arms=20, size=256, rate=1e9, most=0.05) == [1, 16]


def test_the_rule_is_held_against_what_was_measured() -> None:
    rule = Costs(cpu_call=1e-5, cpu_operation=1e-10, gpu_call=1e-4, gpu_byte=0.0, gpu_operation=1e-13, gpu_staged=0.0)
    work = Workload(bytes=1, operations=1, staged=1)
    rows = [
        rates.Scoring(size=size, batch=1, work=work, floor_s=1e-6, binds="bytes", device_s=1e-6, p50_s=seconds, p99_s=seconds)
        for size, seconds in ((64, 2e-4), (256, 2e-4), (512, 9e-3))
    ]
    cpu = {(64, 1): 3e-5, (256, 1): 3e-4, (512, 1): 1e-3}
    text = pages.verdicts(rule, rows, cpu, arms=20)
    assert text == "The rule chooses the faster of the two in 2 of 3 rows; not at p = 512, B = 1."
    assert pages.crossover(rule).splitlines()[2].startswith("| 64 | ")


def test_the_page_has_a_place_for_a_card_and_one_for_a_cpu() -> None:
    page = gpu.PAGE.read_text()
    changed = written(page, {"measured gpu card": "a card was here", "measured gpu processor": "a processor was here"})
    assert "a card was here" in changed
    assert "a processor was here" in changed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_runs_its_cpu_part_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(
        "<!-- measured gpu card -->\nof a card\n<!-- /measured gpu card -->\n"
        "<!-- measured gpu processor -->\n<!-- /measured gpu processor -->\n"
    )
    monkeypatch.setattr(gpu, "PAGE", page)
    monkeypatch.setattr(gpu, "QUICK_SIZES", (16,))
    monkeypatch.setattr(gpu, "QUICK_BATCHES", (1, 4))
    monkeypatch.setattr(problems, "problem", partial(problems.problem, seen=20, queries=8))
    gpu.main(["--quick", "--write"])
    text = page.read_text()
    assert "of a card" in text  # what a card once gave stays
    assert "Not measured: everything on a GPU" in text
    assert "Target" not in text
    for row in ("| 16 | 1 |", "| 16 | 4 |", "p = 16: "):
        assert row in text
    assert text.count("| cpu | ") == 8
    assert "Not measured" in capsys.readouterr().out


def test_a_card_is_measured_with_the_cpu_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole course of a card, played by a CPU."""
    build, agree = rates.filled, problems.agreements

    def filled(*, arms: int, size: int, device: torch.device, dtype: torch.dtype, batch: int) -> Stack:
        return build(arms=arms, size=size, device=CPU, dtype=dtype, batch=batch)

    def agreements(truth: problems.Problem, *, device: torch.device, dtype: torch.dtype) -> Iterator[problems.Agreement]:
        return agree(truth, device=CPU, dtype=dtype)

    rule = Costs(cpu_call=1e-5, cpu_operation=1e-10, gpu_call=1e-4, gpu_byte=1e-12, gpu_operation=1e-13, gpu_staged=1e-9)
    monkeypatch.setattr(gpu, "measured", lambda device, quick: CEILINGS)
    monkeypatch.setattr(rates, "filled", filled)
    monkeypatch.setattr(problems, "agreements", agreements)
    monkeypatch.setattr(problems, "problem", partial(problems.problem, seen=20, queries=8))
    monkeypatch.setattr(devices, "describe", lambda device: "a card")
    monkeypatch.setattr(devices, "costs", lambda device: rule)
    for name, value in (("QUICK_SIZES", (16,)), ("QUICK_BATCHES", (1, 4)), ("FLOAT64_FROM", 16), ("TARGET", (16, 4, 0.6))):
        monkeypatch.setattr(gpu, name, value)
    report = gpu.measure(torch.device("cuda", 0), quick=True)
    text = report.markdown()
    assert set(report.beside) == {(16, 1), (16, 4)}
    assert [row.batch for row in report.in_float64] == [1, 64, 256, 1024]
    for part in ("a card", "60% of the binding ceiling: **missed**", "CPU / device", "of 2 rows", "| p | 2 arms |", "GB/s"):
        assert part in text
    assert "Not measured" not in text
    assert report.costs is rule
