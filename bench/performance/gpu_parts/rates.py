"""The stack against the ceilings: scores in batches on one device in one precision, and one change of one arm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bandits.gpu.cost_model import Workload, scoring
from bandits.gpu.device_buffers import DeviceBuffers
from bandits.gpu.stack import Stack
from bench.performance.gpu_parts.ceilings import Ceilings, seconds_of

BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """One batch of B at p = size, beside the least that the machine's ceilings allow.

    device_s: a launch, by events.  p50_s, p99_s: host to host, one thread asking, waiting included.
    """

    size: int
    batch: int
    work: Workload
    floor_s: float
    binds: str
    device_s: float
    p50_s: float
    p99_s: float

    @property
    def reached(self) -> float:
        """Share of the binding ceiling."""
        return self.floor_s / self.device_s


def filled(*, arms: int, size: int, device: torch.device, dtype: torch.dtype, batch: int) -> Stack:
    """A stack whose every arm holds a dense positive matrix and a theta."""
    rng = np.random.default_rng(size)
    half = rng.standard_normal((size, 8))
    inverse = torch.from_numpy(0.05 * np.eye(size) + half @ half.T / size)
    stack = Stack(arms=arms, size=size, ridge=1.0, device=device, dtype=dtype, batch=batch, block=BLOCK)
    for arm in range(arms):
        stack.load(arm, inverse=inverse, theta=torch.from_numpy(rng.standard_normal(size)))
    stack.wait()
    return stack


def prompts(batch: int, size: int) -> Tensor:
    """(B, p) float64 rows of length about one, as lifted features have."""
    return torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, size)) / np.sqrt(size))


def asked(stack: Stack, batch: int, *, budget: float) -> np.ndarray:
    """Seconds of calls of `Stack.scores`, one after the other, two not counted."""
    z = prompts(batch, stack.size)
    stack.scores(z)
    seconds: list[float] = []
    end = time.perf_counter() + budget
    while len(seconds) < 4 or (time.perf_counter() < end and len(seconds) < 2000):
        begin = time.perf_counter()
        stack.scores(z)
        seconds.append(time.perf_counter() - begin)
    return np.array(seconds[1:])


def scored(stack: Stack, batch: int, *, ceilings: Ceilings, budget: float) -> Scoring:
    """One row of the table of scores. What is over a launch is several launches."""
    rows = min(batch, stack.batch)

    def on_device(buffers: DeviceBuffers) -> float:
        return seconds_of(buffers.device, buffers.program(rows), budget=budget, groups=3)

    seconds = asked(stack, batch, budget=budget)  # first: the features now on the device are random numbers
    device_s = stack.on_queue(on_device).result() * (batch // rows)
    work = scoring(arms=stack.arms, size=stack.size, batch=batch, itemsize=stack.dtype.itemsize, block=BLOCK)
    floor_s, binds = ceilings.floor(work, stack.dtype)
    return Scoring(
        size=stack.size,
        batch=batch,
        work=work,
        floor_s=floor_s,
        binds=binds,
        device_s=device_s,
        p50_s=float(np.quantile(seconds, 0.5)),
        p99_s=float(np.quantile(seconds, 0.99)),
    )


def one_change(stack: Stack, *, calls: int) -> float:
    """Seconds until one column of one arm is in its width, host to host: the median."""
    columns = 1e-3 * prompts(calls + 2, stack.size)
    seconds: list[float] = []
    for index in range(calls + 2):
        begin = time.perf_counter()
        stack.append(index % stack.arms, columns[index : index + 1]).result()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[2:]))


def affordable(batches: Sequence[int], *, arms: int, size: int, rate: float, most: float) -> list[int]:
    """Those of the batches that take a CPU of this many operations per second no longer than `most` seconds."""
    return [b for b in batches if scoring(arms=arms, size=size, batch=b, itemsize=8).operations / rate <= most]
