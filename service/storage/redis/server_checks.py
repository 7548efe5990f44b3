"""Checks of a Redis server: whether it can keep the promises of the log, and notices about its set-up.

refused     a replica; older than 6.2; another cluster mode than the URL says; keys that may be evicted
noticed     no append-only file, flushes once a second, WAIT off beside replicas, settings that may not be looked at
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.storage.base import StorageUnavailableError
from service.storage.redis.connection import Command, exchange, parse_info

OLDEST = (6, 2)
"""XTRIM MINID and exclusive ranges came with it."""
IDENTIFIED = {"run_id", "master_replid"}
QUESTIONS: tuple[Command, ...] = ((b"INFO",), (b"CONFIG", b"GET", b"appendfsync"))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the settings say about the server. durable: an acknowledged outcome shall survive the loss of power."""

    place: str
    cluster: bool
    durable: bool
    confirmations: int


async def probe(connection: Any, expected: Expected) -> tuple[str, list[str]]:
    """(identity, notices) of the server; `StorageUnavailableError` where the log is not safe there or cannot be written."""
    return evaluate(await exchange(connection, *QUESTIONS), expected)


def evaluate(answers: Sequence[Any], expected: Expected) -> tuple[str, list[str]]:
    """`probe`, from a server's answers to `QUESTIONS`; errors are values."""
    if isinstance(answers[0], Exception):
        raise answers[0]
    info = parse_info(answers[0])
    refusal = _refusal(info, expected)
    if refusal:
        raise StorageUnavailableError(f"{expected.place} {refusal}")
    config = answers[1]
    forbidden = isinstance(config, Exception)
    flushes = "" if forbidden or len(config) < 2 else bytes(config[1]).decode()
    return identity(info), [f"{expected.place}: {notice}" for notice in _notices(info, flushes, expected)]


def identity(info: Mapping[str, str]) -> str:
    """Of this process of the server and of the history of writes that it continues (replication id)."""
    if not info.keys() >= IDENTIFIED:
        return os.urandom(16).hex()  # unknown: every connection counts as another server
    return f"{info['run_id']} {info['master_replid']}"


def _refusal(info: Mapping[str, str], expected: Expected) -> str:
    version = info.get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"is version {version}; the log needs {OLDEST[0]}.{OLDEST[1]} or later"
    if info.get("role", "master") != "master":
        return "is a replica: it cannot be written"
    clustered = info.get("cluster_enabled", "") == "1"
    if info.get("cluster_enabled") and clustered != expected.cluster:
        return "is a cluster: name it redis+cluster://..." if clustered else "is no cluster: name it redis://..."
    policy = info.get("maxmemory_policy", "")
    if info.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        return f"may drop entries of the log when its memory is full (maxmemory-policy {policy}); set noeviction"
    return ""


def _notices(info: Mapping[str, str], flushes: str, expected: Expected) -> list[str]:
    notices = []
    kept = info.get("aof_enabled")
    if kept is None:
        notices.append("it does not say whether it keeps an append-only file: what survives its end is unknown")
    elif kept == "0":
        notices.append("appendonly is off: acknowledged entries are lost when it ends; set appendonly yes")
    elif not flushes:
        notices.append("CONFIG may not be read: appendfsync, and so what survives the loss of power, is unknown")
    elif expected.durable and flushes != "always":
        notices.append(f"appendfsync is {flushes}: the loss of power may lose the last acknowledged entries")
    if info.get("aof_last_write_status", "ok") != "ok":
        notices.append("its last write to the append-only file failed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys"):  # refused where there is a limit; keys of ours never expire, so volatile policies spare them
        notices.append(f"maxmemory-policy is {policy}: as soon as maxmemory is set, entries could be dropped; set noeviction")
    if info.get("connected_slaves", "0") != "0" and not expected.confirmations:
        notices.append("it has replicas and NEXTARM_REDIS_WAIT is 0: a failover may lose the last acknowledged entries")
    return notices
