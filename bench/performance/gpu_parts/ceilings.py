"""How fast a device moves bytes and multiplies, measured: what nothing on it can beat. Timing for the rest of the bench, too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bandits.gpu.cost_model import Workload


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """bandwidth: bytes/s, the better of copying (read and written) and reading.  float32, float64: operations/s of products."""

    bandwidth: float
    float32: float
    float64: float

    def rate(self, dtype: torch.dtype) -> float:
        """Operations per second of products in this precision."""
        return self.float32 if dtype == torch.float32 else self.float64

    def floor(self, work: Workload, dtype: torch.dtype) -> tuple[float, str]:
        """Seconds that this work takes at least, and which of bytes and products says so."""
        moving, multiplying = work.bytes / self.bandwidth, work.operations / self.rate(dtype)
        return (moving, "bytes") if moving > multiplying else (multiplying, "products")


def seconds_of(device: torch.device, run: Callable[[], object], *, budget: float = 0.2, groups: int = 5) -> float:
    """Seconds of one run: the median of a few groups of runs, each between two events of the stream (two readings of a clock on a
    CPU), so that what is launched ahead counts and the launching does not.
    """
    once = _elapsed(device, run, 1)
    once = min(once, _elapsed(device, run, 1))  # the first makes handles, workspaces and memory
    count = max(1, min(1000, math.ceil(budget / groups / max(once, 1e-7))))
    return float(np.median([_elapsed(device, run, count) / count for _ in range(groups)]))


def _elapsed(device: torch.device, run: Callable[[], object], count: int) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(count):
            run()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(count):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def measured(device: torch.device, *, quick: bool) -> Ceilings:
    """On random numbers: zeros multiply faster than anything real. Several times the caches."""
    on_gpu = device.type == "cuda"
    numbers = 500_000_000 if on_gpu else 16_000_000 if quick else 64_000_000
    side = 8192 if on_gpu else 768 if quick else 1536
    budget = 0.2 if on_gpu or quick else 1.0
    return Ceilings(
        bandwidth=_bandwidth(device, numbers, budget=budget),
        float32=_products(device, side, dtype=torch.float32, budget=budget),
        float64=_products(device, side, dtype=torch.float64, budget=budget),
    )


def _bandwidth(device: torch.device, numbers: int, *, budget: float) -> float:
    """Bytes/s over so many float32."""
    source = _random(device, numbers, dtype=torch.float32)
    target = torch.empty_like(source)
    copying = seconds_of(device, lambda: target.copy_(source), budget=budget)
    reading = seconds_of(device, source.sum, budget=budget)
    return source.nbytes * max(2.0 / copying, 1.0 / reading)


def _products(device: torch.device, side: int, *, dtype: torch.dtype, budget: float) -> float:
    """Operations/s of a square product."""
    a, b = _random(device, side, side, dtype=dtype), _random(device, side, side, dtype=dtype)
    out = torch.empty_like(a)
    return 2.0 * side**3 / seconds_of(device, lambda: torch.mm(a, b, out=out), budget=budget)


def _random(device: torch.device, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(5)).sub_(0.5)
