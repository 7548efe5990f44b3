"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect what refers to itself, and have the allocator return free pages, where it is the C library of GNU.

    A deleted bandit is a circle of objects, which waits for a full collection; and glibc keeps freed pages for later, so that a
    process that once held a large bandit would hold its memory for ever. Takes milliseconds to tenths of a second: run it in a
    thread.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
