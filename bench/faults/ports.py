"""Loopback ports that nobody else uses, below those that the system hands out to connections."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import cache
from itertools import chain

FIRST, BEYOND = 12_000, 19_000


def free_port() -> int:
    """A port that nobody listens on, never the same twice; no connection of a client can be given it while its server is down."""
    ports = range(FIRST, BEYOND)
    start = os.getpid() * 37 % (BEYOND - FIRST)
    for port in chain(ports[start:], ports[:start]):
        if port in _taken():
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _taken().add(port)
            return port
    raise OSError(f"there is no free port from {FIRST} to {BEYOND - 1}")


@cache
def _taken() -> set[int]:
    return set()
