"""The cost model of scoring: the device that a setting names, and a measured rule when a GPU answers sooner than the CPU.

NEXTARM_DEVICE = cpu | cuda | cuda:1 | auto --> device(name) --> error, or where to compute
per bandit:        costs(card).prefers_gpu(arms, size, batch)     two straight lines, measured once per process

CPU:  call + operations / rate
GPU:  call + device bytes / bandwidth + operations / rate + staged numbers / staging rate
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bandits.errors import FieldError
from bandits.gpu.stack import CPU, Stack, scoring_dtype

SETTING = "NEXTARM_DEVICE"


class InvalidDevice(FieldError):
    """The setting names a device that this machine, or this build of torch, does not have."""


def device(name: str) -> torch.device:
    """What a setting names; `auto` is the first GPU where there is one, else the CPU. `InvalidDevice` says what is wrong.

    >>> device("cpu")
    device(type='cpu')
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CPU
    match = re.fullmatch(r"(?:cuda(?::(\d+))?|auto)", name)
    if match is None:
        raise InvalidDevice(SETTING, f"{name!r} is not a device; set cpu, cuda, cuda:N or auto")
    return _card(name, int(match[1] or 0))


def _card(name: str, index: int) -> torch.device:
    """The GPU of this index, after it has computed something."""
    if not torch.cuda.is_available():
        reason = "this build of torch is for CPUs" if torch.version.cuda is None else "torch sees no GPU (driver, container?)"
        raise InvalidDevice(SETTING, f"{name} asks for a GPU, and {reason}; set cpu or auto, or install a CUDA build of torch")
    count = torch.cuda.device_count()
    if index >= count:
        raise InvalidDevice(SETTING, f"{name}: the last GPU here is cuda:{count - 1}")
    card = torch.device("cuda", index)
    try:
        torch.zeros(1, device=card).add_(1.0)
        torch.cuda.synchronize(card)
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability(card)
        raise InvalidDevice(
            SETTING,
            f"{name} ({torch.cuda.get_device_name(card)}, capability {major}.{minor}) does not compute with this build of torch, "
            f"which is for {', '.join(torch.cuda.get_arch_list())}: {error}",
        ) from error
    return card


def describe(where: torch.device) -> str:
    """A device for logs and tables."""
    if where.type == "cpu":
        return f"CPU, {torch.get_num_threads()} thread(s)"
    about = torch.cuda.get_device_properties(where)
    memory = f"{about.total_memory / 1e9:.0f} GB"
    return f"{about.name}, {memory}, capability {about.major}.{about.minor}, {about.multi_processor_count} multiprocessors"


# -- what a call has to do -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The least work of a call. bytes: through device memory, inputs read once and outputs written once.

    operations: of products, a multiplication and an addition are two.  staged: numbers that the host converts and copies.
    """

    bytes: int
    operations: int
    staged: int


def scoring(*, arms: int, size: int, batch: int, itemsize: int, block: int = 32) -> Workload:
    """Scores of B = batch contexts for m = arms with p = size and q = block columns: W, U, theta and z are read, scores written.

    Products: z W and its product with z, z U, z theta.
    """
    kept = arms * size * (size + block + 1)
    return Workload(
        bytes=itemsize * (kept + batch * size + 2 * batch * arms),
        operations=2 * batch * (kept + arms * size),
        staged=batch * size + 2 * batch * arms,
    )


# -- the rule ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The cost of one `Stack.scores` in seconds, host to host, as straight lines in the work.

    cpu_call, gpu_call: s.  cpu_operation, gpu_operation: s each, of the products.  gpu_byte: s, through device memory.
    gpu_staged: s per number converted and copied on the host.
    """

    cpu_call: float
    cpu_operation: float
    gpu_call: float
    gpu_byte: float
    gpu_operation: float
    gpu_staged: float

    def cpu_s(self, *, arms: int, size: int, batch: int) -> float:
        """On the CPU, in float64."""
        work = scoring(arms=arms, size=size, batch=batch, itemsize=8)
        return self.cpu_call + self.cpu_operation * work.operations

    def gpu_s(self, *, arms: int, size: int, batch: int) -> float:
        """On the GPU, in float32."""
        work = scoring(arms=arms, size=size, batch=batch, itemsize=4)
        on_device = self.gpu_byte * work.bytes + self.gpu_operation * work.operations
        return self.gpu_call + on_device + self.gpu_staged * work.staged

    def prefers_gpu(self, *, arms: int, size: int, batch: int) -> bool:
        """Whether the GPU answers such a batch sooner. The same costs give the same answer."""
        sizes = {"arms": arms, "size": size, "batch": batch}
        return self.gpu_s(**sizes) < self.cpu_s(**sizes)

    def from_batch(self, *, arms: int, size: int, most: int = 4096) -> int:
        """The smallest power of two B <= most from which the GPU answers sooner; 0 = never."""
        batches = [1 << exponent for exponent in range(most.bit_length())]
        wins = [self.prefers_gpu(arms=arms, size=size, batch=batch) for batch in batches]
        later = len(batches) - len(list(itertools.takewhile(bool, reversed(wins))))
        return batches[later] if later < len(batches) else 0


CPU_POINTS = ((2, 64, 1), (2, 128, 4), (4, 256, 1), (4, 256, 16), (2, 512, 8), (4, 512, 32))
GPU_POINTS = ((2, 64, 1), (20, 512, 1), (20, 1024, 1), (10, 1024, 64), (20, 1024, 256), (2, 128, 1024), (4, 1024, 1024))
"""(m, p, B) that tell the terms apart: calls that do nothing, reading, products, staging."""


@functools.cache
def costs(card: torch.device) -> Costs:
    """The rule of this machine, measured at the first call: about a tenth of a second of the CPU, and a second of the GPU."""
    return fit_costs(
        cpu=[(sizes, time_scores(CPU, sizes)) for sizes in CPU_POINTS],
        gpu=[(sizes, time_scores(card, sizes)) for sizes in GPU_POINTS],
    )


Point = tuple[tuple[int, int, int], float]
"""(m, p, B) and the seconds it took."""


def fit_costs(*, cpu: Sequence[Point], gpu: Sequence[Point]) -> Costs:
    """The lines through measured seconds: least squares of the relative error, no cost below zero."""
    on_cpu = [scoring(arms=m, size=p, batch=b, itemsize=8) for (m, p, b), _ in cpu]
    on_gpu = [scoring(arms=m, size=p, batch=b, itemsize=4) for (m, p, b), _ in gpu]
    cpu_call, cpu_operation = _line([[1.0, w.operations] for w in on_cpu], [s for _, s in cpu])
    gpu_call, gpu_byte, gpu_operation, gpu_staged = _line(
        [[1.0, w.bytes, w.operations, w.staged] for w in on_gpu], [s for _, s in gpu]
    )
    return Costs(
        cpu_call=cpu_call,
        cpu_operation=cpu_operation,
        gpu_call=gpu_call,
        gpu_byte=gpu_byte,
        gpu_operation=gpu_operation,
        gpu_staged=gpu_staged,
    )


def _line(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Non-negative coefficients c of least |rows c / seconds - 1|: of all subsets of columns, the best whose solution has no
    negative one. There are at most 2^4.
    """
    relative = np.asarray(rows) / np.asarray(seconds)[:, None]
    scale = relative.max(axis=0)
    matrix, ones = relative / scale, np.ones(len(rows))
    best, least = np.zeros(len(scale)), np.inf
    for mask in itertools.product((False, True), repeat=len(scale)):
        chosen = np.flatnonzero(mask)
        found = np.zeros(len(scale))
        if len(chosen):
            found[chosen] = np.linalg.lstsq(matrix[:, chosen], ones, rcond=None)[0]
        miss = float(np.square(matrix @ found - ones).sum())
        if (found >= 0.0).all() and miss < least:
            best, least = found, miss
    return tuple((best / scale).tolist())


def time_scores(where: torch.device, sizes: tuple[int, int, int], *, repeats: int = 7) -> float:
    """Seconds of `Stack.scores`, host to host, for (m, p, B), after two calls that are not counted.

    The fastest of them: what other programs take from this machine meanwhile is not what a call costs.
    """
    arms, size, batch = sizes
    rng = np.random.default_rng(0)
    inverse = torch.from_numpy(rng.standard_normal((size, size)))
    z, theta = torch.from_numpy(rng.standard_normal((batch, size))), torch.from_numpy(rng.standard_normal(size))
    with Stack(arms=arms, size=size, ridge=1.0, device=where, dtype=scoring_dtype(where), batch=batch) as stack:
        for arm in range(arms):
            stack.load(arm, inverse=inverse, theta=theta)
        seconds = []
        for _ in range(2 + repeats):
            begin = time.perf_counter()
            stack.scores(z)
            seconds.append(time.perf_counter() - begin)
    return min(seconds[2:])
