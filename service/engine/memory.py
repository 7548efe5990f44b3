"""Memory of this process: what an object holds, how much freed memory is kept, and how it is returned to the operating system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from types import FunctionType, MethodType, ModuleType

import msgspec
import torch

SAMPLED = 64
"""Items of a container that are measured; the others are taken to be like them."""
TENSOR_BYTES = 400
"""Of a tensor beside its numbers: the object, its storage, and what the allocator adds."""
RAW_BYTES = 80
"""Of a part of a message that is not decoded, beside its text. `sys.getsizeof` answers an address for one."""
TRIM_S, TRIM_SHARE = 60.0, 1e-3
"""Between two times that free pages are returned, and the share of the time that it may take: what folds, batches and snapshots
need passes, and is 15 MB with a few bandits.
"""
M_ARENA_MAX = -8
"""Of `mallopt`: how many heaps there may be."""
_PLAIN = (bool, int, float, str, bytes, datetime)
_SHARED = (type, ModuleType, FunctionType, MethodType)


def held_bytes(*roots: object) -> int:
    """Estimated bytes of what these objects hold: tensors by their storage, each once, the rest as Python keeps it.

    Of large containers a sample is measured, so it takes milliseconds however much there is.
    """
    return round(_bytes_of(roots, set()))


def _bytes_of(value: object, seen: set[int]) -> float:
    if value is None or isinstance(value, _SHARED) or id(value) in seen:
        return 0.0
    if isinstance(value, _PLAIN):
        return sys.getsizeof(value)
    seen.add(id(value))
    if isinstance(value, msgspec.Raw):
        return float(RAW_BYTES + len(value))
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        is_new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return TENSOR_BYTES + storage.nbytes() * is_new
    own = float(sys.getsizeof(value))
    if isinstance(value, Mapping):
        return own + _bytes_of_items((part for pair in value.items() for part in pair), 2 * len(value), seen)
    if isinstance(value, list | tuple | set | frozenset | deque):
        own += _bytes_of_items(iter(value), len(value), seen)
    parts = [getattr(value, name, None) for name in getattr(value, "__struct_fields__", ())]
    if (attributes := getattr(value, "__dict__", None)) is not None:
        own += sys.getsizeof(attributes)
        parts += attributes.values()
    return own + sum(_bytes_of(part, seen) for part in parts)


def _bytes_of_items(items: Iterable[object], count: int, seen: set[int]) -> float:
    """Of the first `SAMPLED`, times how many there are."""
    measured = [_bytes_of(item, seen) for item in islice(items, 2 * SAMPLED)]
    return sum(measured) * count / len(measured) if measured else 0.0


def release_memory() -> None:
    """Collect what refers to itself, then `trim_heap`.

    A bandit that is deleted or unloaded is a circle of objects, which waits for a full collection. Takes milliseconds to tenths
    of a second: run it in a thread.
    """
    gc.collect()
    trim_heap()


def share_heap() -> None:
    """Let every thread allocate from one heap, where the C library is GNU's and `MALLOC_ARENA_MAX` does not say otherwise.

    Else each of the first threads, up to eight per core, has a heap of its own, and each keeps as many free pages as the largest
    fold, batch or snapshot that ran in it once needed. Python threads take turns anyway. Call it before threads are started.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(M_ARENA_MAX, 1)


def trim_heap() -> float:
    """Have the allocator return free pages, where it is the C library of GNU. Returns the CPU seconds that it took.

    It keeps them for later, so that a process that once held a large bandit, or packed one, would hold that memory for ever.
    Takes 3 to 5 ms for 30 MB, without the GIL: run it in a thread.
    """
    began = time.thread_time()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
    return time.thread_time() - began


async def keep_trimmed() -> None:
    """`trim_heap` every `TRIM_S`, or more rarely where it takes more than `TRIM_SHARE` of the time; until it is cancelled."""
    wait_s = TRIM_S
    while True:
        await asyncio.sleep(wait_s)
        wait_s = max(TRIM_S, await asyncio.to_thread(trim_heap) / TRIM_SHARE)
