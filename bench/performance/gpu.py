"""How near to its ceilings does the stack score, are its answers right, and from which size on is a GPU worth having?

    python -m bench.performance.gpu --quick  a minute; on a machine without a GPU: its CPU part, and what was left out
    python -m bench.performance.gpu --write  a few minutes; also into docs/gpu.md, a card and a CPU each in a place of its own
    python -m bench.performance.gpu --device cpu            the CPU part, on a machine with a GPU

Needs the standard library, numpy, torch and `bandits`, nothing else. Bytes and operations are counted by formula (the function
`scoring`), ceilings are measured on the device first; "reached" is the floor of the binding one over the time. A
launch is timed between events; p50 and p99 are host to host, float64 to float64. The CPU beside a GPU scores in float64 with one
thread, as the service does.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from bandits.gpu import cost_model as devices
from bandits.gpu.stack import CPU, scoring_dtype
from bench.pages import written
from bench.performance.gpu_parts import pages, problems, rates
from bench.performance.gpu_parts.ceilings import Ceilings, measured
from bench.performance.gpu_parts.problems import Agreement
from bench.performance.gpu_parts.rates import Scoring
from bench.performance.load_testing.machine import processor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
ARMS = 20
SIZES, BATCHES = (256, 512, 1024, 2048), (1, 16, 64, 256, 1024, 4096)
QUICK_SIZES, QUICK_BATCHES = (256, 512), (1, 16, 64)
FLOAT64_FROM = 1024
"""p from which a card is measured in float64, too: some multiply as fast in it."""
TARGET = (2048, 1024, 0.6)
"""p and B of 20 arms at which a GPU is to reach this share of the binding ceiling."""


@dataclass
class Report:
    """What was measured on one device, `beside` the CPU where it is a GPU."""

    about: str
    ceilings: Ceilings
    scores: list[Scoring] = field(default_factory=list)
    in_float64: list[Scoring] = field(default_factory=list)
    single: dict[int, float] = field(default_factory=dict)
    beside: dict[tuple[int, int], float] = field(default_factory=dict)
    agreement: list[Agreement] = field(default_factory=list)
    costs: devices.Costs | None = None
    skipped: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """All tables."""
        parts = [self.about, f"Ceilings: {pages.ceilings(self.ceilings)}.", self._target()]
        parts += [f"**Scores, {ARMS} arms**", pages.scores(self.scores, cpu=self.beside)]
        if self.in_float64:
            parts += ["**Scores in float64 on the same card**", pages.scores(self.in_float64, cpu={})]
        single = ", ".join(f"p = {size:,}: {pages.us(seconds)} us" for size, seconds in self.single.items())
        parts += [f"One changed column of one arm, host to host: {single}."]
        parts += ["**Against float64 inverses on the CPU**", pages.agreement(self.agreement)]
        if self.costs is not None:
            parts += ["**From which B on the GPU answers sooner**", pages.crossover(self.costs), f"{pages.rule(self.costs)}."]
            parts += [pages.verdicts(self.costs, self.scores, self.beside, arms=ARMS)]
        parts += [f"Not measured: {'; '.join(self.skipped)}."] if self.skipped else []
        return "\n\n".join(part for part in parts if part)

    def _target(self) -> str:
        size, batch, share = TARGET
        found = [row for row in self.scores if (row.size, row.batch) == (size, batch)]
        if self.costs is None or not found:
            return ""
        verdict = "met" if found[0].reached >= share else "**missed**"
        return f"Target: B = {batch:,}, {ARMS} arms, p = {size:,} at {share:.0%} of the binding ceiling: {verdict}."


def machine(device: torch.device) -> str:
    """What this was measured on."""
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, {devices.describe(device)}; {os.cpu_count()} cores of {processor()}; {versions}{cuda}."


def measure(device: torch.device, *, quick: bool) -> Report:
    """Everything that this device has."""
    on_gpu = device.type == "cuda"
    report = Report(machine(device), measured(device, quick=quick))
    _say(f"{report.about} {pages.ceilings(report.ceilings)}")
    _agree(report, device, quick=quick)
    host = measured(CPU, quick=True) if on_gpu else report.ceilings
    sizes, batches = (QUICK_SIZES, QUICK_BATCHES) if quick else (SIZES, BATCHES)
    budget = 0.1 if quick else 0.3
    for size in sizes:
        cheap = rates.affordable(batches, arms=ARMS, size=size, rate=host.float64, most=0.25 if quick else 0.75)
        ours = batches if on_gpu else cheap
        _rate(report, device, size, ours, budget=budget)
        if on_gpu:
            _beside(report, size, cheap, budget=budget)
        missing = [batch for batch in batches if batch not in cheap]
        if missing:
            report.skipped.append(f"the CPU at p = {size:,}, B = {', '.join(f'{b:,}' for b in missing)} (over its time)")
    if on_gpu:
        report.costs = devices.costs(device)
    else:
        report.skipped.insert(0, "everything on a GPU, captured graphs, pinned copies, and the crossover (no GPU was used)")
    return report


def _agree(report: Report, device: torch.device, *, quick: bool) -> None:
    arms, size = (5, 256) if quick else (5, 512) if device.type == "cpu" else (ARMS, 1024)
    for ridge in (1.0, 0.01):
        truth = problems.problem(arms=arms, size=size, ridge=ridge)
        for dtype in (torch.float32, torch.float64):
            report.agreement += problems.agreements(truth, device=device, dtype=dtype)
    _say(pages.agreement(report.agreement))


def _rate(report: Report, device: torch.device, size: int, batches: Sequence[int], *, budget: float) -> None:
    """Scores of one size, and a change."""
    dtype = scoring_dtype(device)
    most = min(1024, max(batches, default=1))
    with rates.filled(arms=ARMS, size=size, device=device, dtype=dtype, batch=most) as stack:
        found = [rates.scored(stack, batch, ceilings=report.ceilings, budget=budget) for batch in batches]
        report.scores += found
        _say(pages.scores(found, cpu={}))
        report.single[size] = rates.one_change(stack, calls=200)
    if device.type == "cuda" and size >= FLOAT64_FROM:
        with rates.filled(arms=ARMS, size=size, device=device, dtype=torch.float64, batch=most) as stack:
            for batch in (1, 64, 256, 1024):
                report.in_float64.append(rates.scored(stack, batch, ceilings=report.ceilings, budget=budget))


def _beside(report: Report, size: int, batches: Sequence[int], *, budget: float) -> None:
    """The same scores on the CPU."""
    with rates.filled(arms=ARMS, size=size, device=CPU, dtype=torch.float64, batch=1024) as stack:
        for batch in batches:
            report.beside[size, batch] = float(np.median(rates.asked(stack, batch, budget=budget)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.performance.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--write", action="store_true", help="bring docs/gpu.md up to date")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parsed(arguments)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    device = devices.device(chosen.device)
    begin = time.perf_counter()
    report = measure(device, quick=chosen.quick)
    text = report.markdown()
    print(f"{text}\n\n{time.perf_counter() - begin:.0f} s")
    if chosen.write:
        place = "measured gpu card" if device.type == "cuda" else "measured gpu processor"
        PAGE.write_text(written(PAGE.read_text(), {place: text}))
        print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
