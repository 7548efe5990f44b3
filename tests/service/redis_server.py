"""The Redis server that tests share, and the mark of those that need one."""

from __future__ import annotations

import atexit
from functools import cache

import pytest

from tools.processes import EVERYSEC, REDIS_BINARY, RedisServer

needs_redis = pytest.mark.skipif(
    REDIS_BINARY is None, reason="there is no redis-server on this machine (apt-get install redis-server)"
)


@cache
def shared() -> RedisServer:
    """For tests that do not disturb it, each under a key prefix of its own; it ends with this process."""
    server = RedisServer(*EVERYSEC).start()
    atexit.register(server.end)
    return server
