"""The shared storage when Redis is slow, dead, restarted, emptied, replaced, full, moved, or holds what was never written."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.storage.base import (
    Durability,
    Entry,
    Log,
    LogDamagedError,
    LogNotFoundError,
    LogTruncatedError,
    Receipt,
    StorageDamagedError,
    StorageUnavailableError,
)
from service.storage.redis import notifications as redis_news
from service.storage.redis.address import parse
from service.storage.redis.store import RedisStorage
from tests.service.redis_server import needs_redis, shared
from tools.processes import RedisServer

pytestmark = needs_redis

POWER, PROCESS = Durability.POWER, Durability.PROCESS
PATIENCE_S = 20
"""A test that would wait for ever fails after this."""
TIMEOUT_S = 0.3


@contextlib.asynccontextmanager
async def opened(server: RedisServer | str, **options: Any) -> AsyncIterator[RedisStorage]:
    url = server if isinstance(server, str) else server.url
    storage = RedisStorage(parse(url), **{"timeout_s": 5.0, **options})
    await storage.start()
    try:
        yield storage
    finally:
        await storage.close()


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def storage(prefix: str) -> AsyncIterator[RedisStorage]:
    async with opened(shared(), prefix=prefix) as storage:
        yield storage


@pytest.fixture
async def other(prefix: str) -> AsyncIterator[RedisStorage]:
    """Another replica of the service, as far as Redis can tell."""
    async with opened(shared(), prefix=prefix) as storage:
        yield storage


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that a test may hurt; it keeps nothing by itself."""
    with RedisServer() as server:
        yield server


async def filled(storage: RedisStorage, *, name: str = "greeter", entries: int = 5) -> Log:
    log, _ = await storage.create(Log(f"id of {name}", name), b"created")
    for number in range(2, entries + 1):
        await storage.append(log, f"key {number}", b"payload %d" % number, POWER)
    return log


async def everything(storage: RedisStorage, log: Log) -> list[Entry]:
    return await storage.read(log, after=0, limit=1_000_000)


class Copy:
    """The keys of a log as they are now, to be restored later."""

    def __init__(self, server: RedisServer, prefix: str, *, name: str = "greeter", only: str = "*") -> None:
        self._server = server
        self._kept = {key: server.command("DUMP", key) for key in server.client().scan_iter(f"{prefix}:{{{name}}}:{only}")}

    def restore(self) -> None:
        """Under the running service."""
        for key, kept in self._kept.items():
            assert isinstance(kept, bytes)
            self._server.command("RESTORE", key, 0, kept, "REPLACE")


async def recovered(storage: RedisStorage) -> None:
    """The store answers again, without being opened again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(StorageUnavailableError):
                return await storage.ping()
            await asyncio.sleep(0.01)


# -- many at once -----------------------------------------------------------------------------------------------------------


async def test_four_replicas_that_append_the_same_ids_get_each_accepted_once(prefix: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(opened(shared(), prefix=prefix)) for _ in range(4)]
        log = await filled(replicas[0], entries=1)

        async def client(number: int, lane: int) -> list[Receipt]:
            order = [(i * 7 + number * 131) % 2000 for i in range(lane, 2000, 16)]
            return [await replicas[number].append(log, f"id {i}", b"%d of %d" % (i, number), POWER) for i in order]

        answers = await asyncio.gather(*(client(number, lane) for number in range(4) for lane in range(16)))
        receipts = [receipt for answer in answers for receipt in answer]
        entries = await everything(replicas[1], log)
    assert len(receipts) == 8000
    assert [entry.offset for entry in entries] == list(range(1, 2002))
    assert sorted(receipt.offset for receipt in receipts if receipt.first is None) == list(range(2, 2002))
    kept = {entry.offset: entry.payload for entry in entries}
    assert all(receipt.first in (None, kept[receipt.offset]) for receipt in receipts)


async def test_what_waits_together_goes_out_together(storage: RedisStorage) -> None:
    log = await filled(storage)
    asked = int(str(shared().client().info("stats")["total_reads_processed"]))
    await asyncio.gather(*(storage.append(log, f"k{i}", b"x", POWER) for i in range(200)))
    assert int(str(shared().client().info("stats")["total_reads_processed"])) - asked < 40


async def test_closing_finishes_what_waits(prefix: str) -> None:
    async with opened(shared(), prefix=prefix) as storage:
        log = await filled(storage)
        appends = [asyncio.create_task(storage.append(log, f"k{i}", b"x", POWER)) for i in range(600)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*appends, return_exceptions=True)
    async with opened(shared(), prefix=prefix) as again:
        assert await again.end(log) == 605
    assert sorted(answer.offset for answer in answers if isinstance(answer, Receipt)) == list(range(6, 606))
    for asked in (storage.append(log, "late", b"x", POWER), storage.ping(), storage.logs()):
        with pytest.raises(StorageUnavailableError, match="closed"):
            await asked


async def test_a_process_has_three_connections_however_many_logs_it_follows(server: RedisServer) -> None:
    async with opened(server) as storage:
        for number in range(40):
            await filled(storage, name=f"log {number}", entries=2)
        waiting = [asyncio.create_task(storage.wait(Log(f"id of log {i}", f"log {i}"), after=2, timeout_s=20)) for i in range(40)]
        await asyncio.sleep(0)
        assert len(server.client().client_list()) - 1 <= 3
        for task in waiting:
            task.cancel()


# -- news of others ---------------------------------------------------------------------------------------------------------


async def news_of(storage: RedisStorage, *names: str) -> dict[str, int]:
    """News, until all of these were named."""
    changes: dict[str, int] = {}
    async with asyncio.timeout(PATIENCE_S):
        while not changes.keys() >= set(names):
            changes |= await storage.wait_for_changes(timeout_s=PATIENCE_S)
    return changes


async def test_a_replica_learns_at_once_what_another_one_appended_created_and_deleted(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_news, "SWEEP_S", 1000.0)  # it learns by a message, not by a comparison
    async with opened(shared(), prefix=prefix) as storage, opened(shared(), prefix=prefix) as other:
        log = await filled(other)
        await news_of(storage, "greeter")
        assert await storage.find_log("greeter") == log
        waiting = asyncio.create_task(storage.wait(log, after=5, timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        assert await storage.end(log) == 5, "who waits was answered the same before: answers keep their order"
        await other.append(log, "next", b"x", POWER)
        assert await waiting == 6
        await storage.wait_for_changes(timeout_s=PATIENCE_S)
        await other.delete(log)
        await news_of(storage, "greeter")
        with pytest.raises(LogNotFoundError):
            await storage.read(log, after=6, limit=1)


async def test_changes_without_a_message_are_found_all_the_same(
    storage: RedisStorage, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_news, "SWEEP_S", 0.05)
    log = await filled(storage)
    async with opened(shared(), prefix=prefix) as follower:
        monkeypatch.setattr(storage._notifications, "_message", lambda topics: (b"PING",))
        await storage.append(log, "unheard", b"x", POWER)
        assert await follower.wait(log, after=5, timeout_s=PATIENCE_S) == 6


# -- a server that dies, sleeps, forgets ------------------------------------------------------------------------------------


async def test_what_was_acknowledged_survives_the_death_of_redis_where_it_keeps_a_file() -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "everysec") as server:
        async with opened(server) as storage:
            log = await filled(storage, entries=1)
            kept: dict[str, int] = {}

            async def client(number: int) -> None:
                with contextlib.suppress(StorageUnavailableError):
                    for i in range(100_000):
                        kept[f"{number}/{i}"] = (await storage.append(log, f"{number}/{i}", b"x" * 300, POWER)).offset

            clients = asyncio.gather(*(client(number) for number in range(16)))
            async with asyncio.timeout(PATIENCE_S):
                while len(kept) < 1000:
                    await asyncio.sleep(0.001)
            await asyncio.to_thread(server.kill)
            await clients
            with pytest.raises(StorageUnavailableError):
                await storage.append(log, "nobody home", b"x", POWER)
            await asyncio.to_thread(server.start)
            await recovered(storage)
            entries = await everything(storage, log)
            assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
            for key, offset in kept.items():
                assert await storage.append(log, key, b"other", POWER) == Receipt(offset, b"x" * 300), "a retry finds the first"


async def lost(storage: RedisStorage, log: Log, *, seen: int, end: int) -> None:
    """Every question about the log says what was lost, until the learner has loaded it again."""
    for asked in (
        lambda: storage.read(log, after=seen, limit=5),
        lambda: storage.append(log, "new", b"x", POWER),
        lambda: storage.wait(log, after=seen, timeout_s=PATIENCE_S),
        lambda: storage.find(log, "key 2"),
        lambda: storage.end(log),
        lambda: storage.save_snapshot(log, seen, b"of what is no more"),
    ):
        with pytest.raises(LogTruncatedError) as raised:
            await asked()
        assert (raised.value.name, raised.value.seen, raised.value.end) == (log.name, seen, end)


async def test_a_server_that_comes_back_empty_is_noticed(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.kill()
        server.start()
        await recovered(storage)
        await lost(storage, log, seen=5, end=0)
        assert [record.levelname for record in caplog.records].count("CRITICAL") == 1, "loudly, and once"
        await storage.resync(log)
        with pytest.raises(LogNotFoundError):
            await storage.read(log, after=0, limit=1)
        assert await storage.logs() == []


async def test_a_server_that_comes_back_without_the_last_entries_is_noticed(server: RedisServer) -> None:
    async with opened(server) as storage, opened(server) as other:
        log = await filled(storage)
        await everything(other, log)
        server.command("SAVE")
        for number in range(6, 10):
            await storage.append(log, f"key {number}", b"to be lost", POWER)
        await storage.wait_for_changes(timeout_s=0)
        server.kill()
        server.start()
        await recovered(other)
        await news_of(storage, "greeter")
        await lost(storage, log, seen=9, end=5)
        await recovered(other)
        assert await other.append(log, "key 6", b"again", POWER) == Receipt(6), "a process that has seen nothing of it goes on"
        await storage.resync(log)
        assert (await everything(storage, log))[-1] == Entry(6, b"again")
        assert await storage.append(log, "key 7", b"again", POWER) == Receipt(7)


async def test_another_history_that_has_grown_past_what_was_seen_is_noticed(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.command("SAVE")
        await storage.append(log, "key 6", b"to be lost", POWER)
        server.kill()
        server.start()
        async with opened(server) as other:
            for number in range(6, 12):
                await other.append(log, f"key {number}", b"another", POWER)
        await recovered(storage)
        with pytest.raises(LogTruncatedError, match="acknowledged entries were lost"):
            await storage.read(log, after=6, limit=10)


async def test_what_rests_on_lost_entries_does_not_come_through_when_the_log_is_loaded_again(
    storage: RedisStorage, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome of a decision that was lost would spoil the log."""
    log = await filled(storage)
    copy = Copy(shared(), prefix)
    await storage.append(log, "decision", b"to be lost", POWER)
    ask = storage._ask

    async def reloaded_meanwhile(*given: Any, **options: Any) -> Any:
        copy.restore()
        await storage.resync(log)
        return await ask(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "_ask", reloaded_meanwhile)
        with pytest.raises(StorageUnavailableError, match="being reloaded"):
            await storage.append(log, "outcome", b"x", POWER)
    assert await storage.end(log) == 5
    assert (await storage.append(log, "outcome", b"x", POWER)).offset == 6


async def test_a_server_that_comes_back_whole_is_gone_on_with(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.command("SAVE")
        server.kill()
        server.start()
        await recovered(storage)
        assert await storage.append(log, "key 6", b"x", POWER) == Receipt(6)
        assert len(await everything(storage, log)) == 6


async def test_a_server_that_does_not_answer_is_unavailable_in_bounded_time_and_recovers(server: RedisServer) -> None:
    async with opened(server, timeout_s=TIMEOUT_S) as storage:
        log = await filled(storage)
        server.pause()
        started = time.monotonic()
        first = asyncio.gather(
            *(storage.append(log, f"k{i}", b"first", POWER) for i in range(30)),
            *(storage.read(log, after=5, limit=5) for _ in range(5)),
            storage.ping(),
            return_exceptions=True,
        )
        assert all(isinstance(answer, StorageUnavailableError) for answer in await first)
        for _ in range(3):
            with pytest.raises(StorageUnavailableError):
                await storage.append(log, "later", b"x", POWER)
        assert time.monotonic() - started < 8 * TIMEOUT_S
        server.resume()
        await recovered(storage)
        again = await asyncio.gather(*(storage.append(log, f"k{i}", b"again", POWER) for i in range(30)))
    assert sorted(receipt.offset for receipt in again) == list(range(6, 36)), "what was cut off is in the log once, or not at all"
    assert all(receipt.first in (None, b"first") for receipt in again)


async def test_a_server_that_is_not_there_is_refused_at_once(server: RedisServer) -> None:
    server.kill()
    storage = RedisStorage(parse(server.url))
    started = time.monotonic()
    with pytest.raises(StorageUnavailableError, match=f"127.0.0.1:{server.port}"):
        await storage.start()
    assert time.monotonic() - started < 1


async def test_scripts_that_the_server_forgot_are_sent_again(storage: RedisStorage) -> None:
    log = await filled(storage)
    shared().command("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(storage.append(log, f"k{i}", b"x", POWER) for i in range(10)), storage.find(log, "key 2"))
    assert sorted(answer.offset for answer in answers[:10] if answer) == list(range(6, 16))
    assert answers[10] == Entry(2, b"payload 2")


# -- replicas of Redis ------------------------------------------------------------------------------------------------------


async def replicating(primary: RedisServer, replica: RedisServer) -> None:
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    async with asyncio.timeout(PATIENCE_S):
        with primary.client() as client:
            while client.set("asked", "") and not client.wait(1, 100):
                await asyncio.sleep(0.01)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[RedisServer, RedisServer]]:
    fast = ("--repl-diskless-sync", "no")  # else a replica waits up to a second before it takes anything
    with RedisServer(*fast) as primary, RedisServer(*fast) as replica:
        await replicating(primary, replica)
        yield primary, replica


async def test_an_entry_is_acknowledged_when_enough_replicas_have_it(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    async with opened(primary, confirmations=1, timeout_s=2 * TIMEOUT_S) as storage:
        log = await filled(storage)
        assert int(str(replica.client().xlen("nextarm:{greeter}:log"))) == 5
        replica.pause()
        with pytest.raises(StorageUnavailableError, match="0 of 1 replicas"):
            await storage.append(log, "late", b"x", POWER)
        with pytest.raises(StorageUnavailableError, match="0 of 1 replicas"):
            await storage.append(log, "late", b"x", POWER)
        with pytest.raises(StorageUnavailableError, match="0 of 1 replicas"):
            await storage.ping()
        async with opened(primary, timeout_s=5.0) as reader:
            assert (await everything(reader, log))[-1] == Entry(6, b"x")
        replica.resume()
        await recovered(storage)
        assert await storage.append(log, "late", b"y", POWER) == Receipt(6, b"x")


async def test_a_repetition_that_comes_by_another_connection_waits_for_the_replicas_too(
    pair: tuple[RedisServer, RedisServer],
) -> None:
    primary, replica = pair
    async with (
        opened(primary, confirmations=1, timeout_s=2 * TIMEOUT_S) as one,
        opened(primary, confirmations=1, timeout_s=2 * TIMEOUT_S) as two,
    ):
        log = await filled(one)
        await two.append(log, "key 2", b"x", POWER)
        replica.pause()
        with pytest.raises(StorageUnavailableError):
            await one.append(log, "late", b"x", POWER)
        with pytest.raises(StorageUnavailableError, match="0 of 1 replicas"):
            await two.append(log, "late", b"x", POWER)
        replica.resume()


async def test_what_is_found_is_acknowledged_again_only_when_the_replicas_have_it(pair: tuple[RedisServer, RedisServer]) -> None:
    """Who was refused asks again, and is answered from what stands in the log."""
    primary, replica = pair
    async with opened(primary, confirmations=1, timeout_s=2 * TIMEOUT_S) as one, opened(primary, confirmations=1) as two:
        log = await filled(one)
        assert await two.find(log, "key 2") is not None
        replica.pause()
        with pytest.raises(StorageUnavailableError):
            await one.append(log, "late", b"x", POWER)
        with pytest.raises(StorageUnavailableError, match="0 of 1 replicas"):
            await two.find(log, "late")
        assert await two.find(log, "never") is None
        replica.resume()
        await recovered(two)
        assert await two.find(log, "late") == Entry(6, b"x")


async def test_with_too_few_replicas_nothing_is_acknowledged(server: RedisServer) -> None:
    with pytest.raises(StorageUnavailableError, match="0 of 2 replicas"):
        async with opened(server, confirmations=2, timeout_s=TIMEOUT_S):
            pass


async def test_a_replica_is_refused(pair: tuple[RedisServer, RedisServer]) -> None:
    _, replica = pair
    with pytest.raises(StorageUnavailableError, match="is a replica"):
        async with opened(replica):
            pass


async def test_a_primary_that_becomes_a_replica_is_unavailable(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.command("REPLICAOF", "127.0.0.1", 1)
        for _ in range(2):
            with pytest.raises(StorageUnavailableError, match=r"READONLY|is a replica"):
                await storage.append(log, "key 6", b"x", POWER)
        with pytest.raises(StorageUnavailableError):
            await storage.ping()
        server.command("REPLICAOF", "NO", "ONE")
        await recovered(storage)
        assert await storage.append(log, "key 6", b"x", POWER) == Receipt(6)


@contextlib.asynccontextmanager
async def sentinel_that_names(servers: list[RedisServer]) -> AsyncIterator[str]:
    """The URL of a sentinel which names the first of these as the primary, whatever it is asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while asked := await reader.read(4096):
                for word in asked.split(b"*")[1:]:
                    port = b"%d" % servers[0].port
                    named = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)
                    writer.write(named if b"get-master" in word else b"+OK\r\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"redis+sentinel://127.0.0.1:{listening.sockets[0].getsockname()[1]}/greeters"


@pytest.mark.parametrize("confirmations", [0, 1])
async def test_a_replica_that_lagged_and_was_promoted_is_noticed(
    pair: tuple[RedisServer, RedisServer], confirmations: int
) -> None:
    primary, replica = pair
    named = [primary]
    async with sentinel_that_names(named) as url, opened(url, confirmations=confirmations, timeout_s=2 * TIMEOUT_S) as storage:
        log = await filled(storage)
        async with asyncio.timeout(PATIENCE_S):
            while int(str(replica.client().xlen("nextarm:{greeter}:log"))) < 5:
                await asyncio.sleep(0.01)
        replica.command("REPLICAOF", "127.0.0.1", 1)  # it hears nothing more
        acknowledged = 5
        for number in (6, 7):
            with contextlib.suppress(StorageUnavailableError):
                acknowledged = (await storage.append(log, f"key {number}", b"lost", POWER)).offset
        primary.kill()
        replica.command("REPLICAOF", "NO", "ONE")
        named[0] = replica
        async with opened(replica) as survivor:
            end = await survivor.end(log)
            if confirmations:
                assert acknowledged == 5, "what the replica did not have was not acknowledged"
                assert end == 5
                return
            assert (acknowledged, end) == (7, 5), "two acknowledged entries are lost, as documented without WAIT"
            for number in range(6, 9):
                await survivor.append(log, f"new {number}", b"another", POWER)
        await recovered(storage)
        with pytest.raises(LogTruncatedError, match="acknowledged entries were lost"):
            await storage.read(log, after=7, limit=5)
        await storage.resync(log)
        assert await storage.end(log) == 8


async def test_a_failover_by_real_sentinels_is_survived(tmp_path: Path, pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor greeters 127.0.0.1 {primary.port} 1\nsentinel down-after-milliseconds greeters 300\n")
    with RedisServer(folder=tmp_path, program=(str(config), "--sentinel")) as sentinel:
        async with asyncio.timeout(PATIENCE_S):
            while not sentinel.command("SENTINEL", "REPLICAS", "greeters"):
                await asyncio.sleep(0.02)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:1/greeters"
        async with opened(url, confirmations=0, timeout_s=1.0) as storage:
            log = await filled(storage)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with contextlib.suppress(Exception):
                        sentinel.command("SENTINEL", "FAILOVER", "greeters")
                        break
                    await asyncio.sleep(0.05)
                while replica.client().info("replication")["role"] != "master":
                    await asyncio.sleep(0.02)
            primary.kill()
            await recovered(storage)
            assert await storage.append(log, "key 6", b"x", POWER) == Receipt(6)
            assert int(str(replica.client().xlen("nextarm:{greeter}:log"))) == 6


# -- a cluster --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    flags = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    with RedisServer(*flags) as one, RedisServer(*flags) as two:
        one.command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        two.command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        two.command("CLUSTER", "SET-CONFIG-EPOCH", 2)
        one.command("CLUSTER", "MEET", "127.0.0.1", two.port)
        deadline = time.monotonic() + PATIENCE_S
        while any("cluster_known_nodes:2" not in info or "state:ok" not in info for info in map(cluster_info, (one, two))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while any(len(node.command("CLUSTER", "SLOTS")) < 2 for node in (one, two)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield [one, two]


def cluster_info(node: RedisServer) -> str:
    found = node.command("CLUSTER", "INFO")
    return found.decode() if isinstance(found, bytes) else str(found)


@pytest.fixture
async def clustered(cluster: list[RedisServer], prefix: str) -> AsyncIterator[RedisStorage]:
    async with opened(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster[0].port}", prefix=prefix) as storage:
        yield storage


async def test_a_cluster_spreads_logs_and_keeps_each_of_them_whole(
    cluster: list[RedisServer], clustered: RedisStorage, prefix: str
) -> None:
    names = [f"bandit-{number}" for number in range(12)]
    logs = [await filled(clustered, name=name, entries=4) for name in names]
    assert [log.name for log in await clustered.logs()] == sorted(names)
    shares = [len(list(node.client().scan_iter(f"{prefix}:*:log"))) for node in cluster]
    assert min(shares) > 0
    assert sum(shares) == 12
    async with opened(f"redis+cluster://127.0.0.1:{cluster[1].port}", prefix=prefix) as other:
        await asyncio.gather(*(other.append(log, "of the other", b"x", POWER) for log in logs))
        assert (await news_of(clustered, *names)).keys() >= set(names)
        assert [await clustered.end(log) for log in logs] == [5] * 12
        await other.delete(logs[3])
        assert len(await clustered.logs()) == 11


async def test_a_slot_that_moves_to_another_node_is_followed(
    cluster: list[RedisServer], clustered: RedisStorage, prefix: str
) -> None:
    name = next(f"moving-{i}" for i in range(100) if slot_of(cluster[0], f"moving-{i}") < 8192)
    log, slot = await filled(clustered, name=name), slot_of(cluster[0], name)
    source, target = cluster
    source_id, target_id = (node.command("CLUSTER", "MYID") for node in cluster)
    assert isinstance(source_id, bytes)
    assert isinstance(target_id, bytes)
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    assert await clustered.append(log, "while it is announced", b"x", POWER) == Receipt(6)
    keys = source.client().keys(f"{prefix}:{{{name}}}:*")
    assert isinstance(keys, list)
    source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    assert await clustered.append(log, "while it moves", b"x", POWER) == Receipt(7), "asked for where it is"
    assert len(await everything(clustered, log)) == 7
    for node in (target, source):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    assert await clustered.append(log, "when it has moved", b"x", POWER) == Receipt(8)
    assert [entry.offset for entry in await everything(clustered, log)] == list(range(1, 9))
    await clustered.ping()


def slot_of(node: RedisServer, name: str) -> int:
    return int(str(node.command("CLUSTER", "KEYSLOT", f"{{{name}}}")))


async def test_a_cluster_that_is_named_as_a_single_server_is_refused(cluster: list[RedisServer], server: RedisServer) -> None:
    with pytest.raises(StorageUnavailableError, match=r"redis\+cluster://"):
        async with opened(cluster[0]):
            pass
    with pytest.raises(StorageUnavailableError):
        async with opened(f"redis+cluster://127.0.0.1:{server.port}", timeout_s=TIMEOUT_S):
            pass


# -- snapshots and trimming -------------------------------------------------------------------------------------------------


async def test_keys_of_trimmed_entries_stay_until_they_are_forgotten(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage, entries=700)
    for offset in (601, 650):
        await storage.save_snapshot(log, offset, b"x")
    assert await storage.trim(log, before=700, lasting=[300, 600]) == 601
    client, stem = shared().client(), f"{prefix}:{{greeter}}:"
    assert client.xlen(stem + "log") == 100
    assert client.hlen(stem + "keys") == 700
    assert client.llen(stem + "trimmed") == 597
    assert await storage.create(Log("new", "greeter"), b"other") == (log, Receipt(1, b"created"))
    assert await storage.trim(log, before=1, lasting=(), forget=600) == 601
    assert client.llen(stem + "trimmed") == 0
    assert client.hlen(stem + "keys") == 100 + 3
    assert client.hget(stem + "head", "trimmed") == b"2"
    await storage.delete(log)
    assert client.keys(stem + "*") == [f"{stem}deleted:id of greeter".encode()]


async def test_a_key_of_a_trimmed_entry_that_was_removed_is_damage(storage: RedisStorage, prefix: str) -> None:
    """Its decision could be made, or learned, once more."""
    log = await filled(storage, entries=9)
    for offset in (5, 7):
        await storage.save_snapshot(log, offset, b"x")
    await storage.trim(log, before=5, lasting=())
    shared().client().hdel(f"{prefix}:{{greeter}}:keys", "key 3")
    with pytest.raises(LogDamagedError, match="8 keys are there, and its entries have 9"):
        await storage.append(log, "key 10", b"x", POWER)


async def test_a_log_that_an_earlier_version_trimmed_is_served_on(storage: RedisStorage, prefix: str) -> None:
    """Its keys went with their entries."""
    log = await filled(storage, entries=9)
    for offset in (5, 7):
        await storage.save_snapshot(log, offset, b"x")
    await storage.trim(log, before=4, lasting=())
    shared().client().delete(f"{prefix}:{{greeter}}:trimmed")
    shared().client().hdel(f"{prefix}:{{greeter}}:keys", "key 2", "key 3")
    shared().client().hdel(f"{prefix}:{{greeter}}:head", "trimmed")
    assert await storage.find(log, "key 3") is None
    assert await storage.append(log, "key 10", b"x", POWER) == Receipt(10)
    assert await storage.trim(log, before=5, lasting=()) == 5
    assert (await storage.append(log, "key 4", b"x", POWER)).is_trimmed
    assert await storage.append(log, "key 3", b"x", POWER) == Receipt(11)


async def test_a_trimmed_log_whose_snapshots_were_removed_asks_for_one(prefix: str) -> None:
    async with opened(shared(), prefix=prefix) as storage:
        log = await filled(storage, entries=9)
        for offset in (5, 7):
            await storage.save_snapshot(log, offset, b"x")
        await storage.trim(log, before=5, lasting=())
        await storage._notifications._reconcile()
        assert not storage.lacks_snapshot(log)
        shared().command("DEL", f"{prefix}:{{greeter}}:snapshots")
        await storage._notifications._reconcile()
        assert storage.lacks_snapshot(log)
        await storage.save_snapshot(log, 9, b"x")
        assert not storage.lacks_snapshot(log)
        await storage._notifications._reconcile()
        assert not storage.lacks_snapshot(log)


async def test_a_damaged_snapshot_is_left_out(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    await storage.save_snapshot(log, 3, b"older")
    await storage.save_snapshot(log, 5, b"newer")
    shared().client().hset(f"{prefix}:{{greeter}}:snapshots", "5", b"garbage")
    assert await storage.load_snapshots(log) == [(3, b"older")]


# -- what was never written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [{"k": "key 6", "p": "payload", "c": "123"}, {"what": "ever"}, {"k": "a", "p": "b", "x": "1"}])
async def test_a_poisoned_entry_is_named_with_its_offset(storage: RedisStorage, prefix: str, found: dict[str, str]) -> None:
    log, well = await filled(storage), await filled(storage, name="well")
    shared().client().xadd(f"{prefix}:{{greeter}}:log", found, id="6-0")  # type: ignore[arg-type]
    shared().client().hset(f"{prefix}:{{greeter}}:keys", "key 6", "6")
    with pytest.raises(LogDamagedError) as raised:
        await storage.read(log, after=0, limit=100)
    assert raised.value.place == "log 'greeter', offset 6"
    await refused(storage, log, "6 entries are there, and its head counts 5|offset 6")
    assert len(await everything(storage, well)) == 5


async def test_an_entry_that_was_removed_by_hand_is_named(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    await storage.resync(log)
    shared().client().xdel(f"{prefix}:{{greeter}}:log", "3-0")
    with pytest.raises(LogDamagedError, match=r"log 'greeter', offset 3: .*missing"):
        await storage.read(log, after=1, limit=100)
    await refused(storage, log, "4 entries are there, and its head counts 5")


async def refused(storage: RedisStorage, log: Log, reason: str, *, resync: bool = True) -> None:
    """Whatever is asked about the log is answered with its damage; `inspect` says so at once, and a start, too."""
    for ask in (
        lambda: storage.append(log, "key 2", b"payload 2", POWER),
        lambda: storage.append(log, "key 6", b"x", POWER),
        lambda: storage.append_all(log, [("key 2", b"payload 2"), ("key 6", b"x")], POWER),
        lambda: storage.append(log, "key 6", b"x", POWER, expected=5),
        lambda: storage.find(log, "key 2"),
        lambda: storage.read(log, after=5, limit=10),
        lambda: storage.end(log),
        lambda: storage.save_snapshot(log, 5, b"x"),
        lambda: storage.load_snapshots(log),
    ):
        with pytest.raises(LogDamagedError, match=reason):
            await ask()
    assert list(await looked_at(storage, log)) == [log.name]
    if resync:
        await storage.resync(log)
        await refused(storage, log, reason, resync=False)
        async with opened(shared(), prefix=storage._keyspace.prefix.decode()) as again:
            assert log in await again.logs()
            assert await again.find_log(log.name) == log
            with pytest.raises(LogDamagedError):
                await again.read(log, after=0, limit=1)


async def looked_at(storage: RedisStorage, log: Log) -> dict[str, LogDamagedError]:
    """What `inspect` says after the next look at all logs."""
    await storage._notifications._reconcile()
    return await storage.inspect([log])


REMOVED = [
    ("the keys", [("DEL", "keys")], "0 keys are there, and its entries have 5"),
    ("one key", [("HDEL", "keys", "key 3")], "4 keys are there"),
    ("the key of entry 1", [("HDEL", "keys", "created")], "4 keys are there"),
    ("a key by foreign ones", [("HDEL", "keys", "key 3"), ("HSET", "keys", "x", "3", "y", "3")], "6 keys are there"),
    ("the entries", [("DEL", "log")], "0 entries are there, and its head counts 5"),
    ("the last entry", [("XDEL", "log", "5-0")], "4 entries are there"),
    ("the first entries", [("XTRIM", "log", "MINID", "4-0")], "2 entries are there"),
    ("an entry in between", [("XDEL", "log", "3-0")], "4 entries are there"),
    ("the entries and the keys", [("DEL", "log", "keys")], "0 entries are there"),
    ("the head", [("DEL", "head")], "its head is gone"),
    ("the head and the keys", [("DEL", "head", "keys")], "its head is gone"),
    ("the end in the head", [("HDEL", "head", "end")], "its head is garbled"),
    ("the head's end by a later one", [("HSET", "head", "end", "7")], "5 entries are there, and its head counts 7"),
    ("the head's end by no number", [("HSET", "head", "end", "five")], "its head is garbled"),
    ("the name of the keys", [("RENAME", "keys", "elsewhere")], "0 keys are there"),
    ("the name of the entries", [("RENAME", "log", "elsewhere")], "0 entries are there"),
    ("the keys, by what they will be for a while", [("PEXPIRE", "keys", "1")], "0 keys are there"),
    ("the head by garbage", [("SET", "head", "garbage")], "WRONGTYPE"),
    ("the entries by garbage", [("SET", "log", "garbage")], "WRONGTYPE"),
    ("the keys by garbage", [("SET", "keys", "garbage")], "WRONGTYPE"),
    ("the entries by a set", [("DEL", "log"), ("SADD", "log", "garbage")], "WRONGTYPE"),
]


@pytest.mark.parametrize(("commands", "reason"), [row[1:] for row in REMOVED], ids=[row[0] for row in REMOVED])
async def test_nothing_is_accepted_into_a_log_of_which_something_was_removed_or_replaced(
    storage: RedisStorage, prefix: str, commands: list[tuple[str, ...]], reason: str
) -> None:
    log, well = await filled(storage), await filled(storage, name="well")
    keys = {name: f"{prefix}:{{greeter}}:{name}" for name in ("head", "log", "keys", "elsewhere")}
    for command in commands:
        shared().command(*(keys.get(word, word) for word in command))
    await settled(lambda: not shared().client().exists(keys["keys"]) or "PEXPIRE" not in commands[0])
    await refused(storage, log, reason)
    assert await looked_at(storage, well) == {}
    assert await storage.append(well, "key 6", b"x", POWER) == Receipt(6)
    await storage.ping()
    with contextlib.suppress(StorageDamagedError):
        assert await storage.create(Log("another id", "greeter"), b"x") == (log, Receipt(1, b"created"))
    await storage.delete(log)
    assert await storage.logs() == [well]
    assert (await filled(storage)).id == log.id, "the name is free again"


async def settled(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("only", "reason"),
    [("keys", "5 keys are there"), ("log", "5 entries are there"), ("head", "its head counts 5")],
)
async def test_a_part_of_a_log_that_was_restored_from_an_older_copy_is_damage(
    storage: RedisStorage, prefix: str, only: str, reason: str
) -> None:
    log = await filled(storage)
    copy = Copy(shared(), prefix, only=only)
    await storage.append(log, "key 6", b"x", POWER)
    await storage.resync(log)  # by the counts alone
    copy.restore()
    with pytest.raises(LogDamagedError, match=reason):
        await storage.append(log, "key 6", b"x", POWER)
    assert list(await looked_at(storage, log)) == [log.name]


@pytest.mark.parametrize("grown", [0, 1, 2])
async def test_a_log_that_was_restored_from_an_older_copy_is_read_again_from_its_start(
    storage: RedisStorage, other: RedisStorage, prefix: str, grown: int
) -> None:
    """Redis is the same process with the same history: nothing but the entries can tell. Meanwhile it may have grown again."""
    log = await filled(storage)
    copy = Copy(shared(), prefix)
    for number in (6, 7):
        await storage.append(log, f"key {number}", b"to be lost", POWER)
    await storage.save_snapshot(log, 7, b"of what is lost")
    copy.restore()
    async with opened(shared(), prefix=prefix) as third:
        for number in range(6, 6 + grown):
            await third.append(log, f"other {number}", b"another", POWER)
    with pytest.raises(LogTruncatedError):
        await storage.append(log, "key 6", b"to be lost", POWER)
    await lost(storage, log, seen=7, end=5 + grown)
    assert any("were lost" in notice for notice in storage.notices())
    assert not any("were lost" in notice for notice in other.notices()), "it has seen nothing of it"
    await storage.resync(log)
    if grown < 2:
        assert await storage.load_snapshots(log) == []
    assert await storage.append(log, "key 6", b"once more", POWER) == Receipt(6 + grown)


async def test_a_look_at_all_logs_finds_one_that_was_taken_back(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    copy = Copy(shared(), prefix)
    await storage.append(log, "key 6", b"to be lost", POWER)
    copy.restore()
    await storage._notifications._reconcile()
    assert any("were lost" in notice for notice in storage.notices())
    assert "greeter" in await storage.wait_for_changes(timeout_s=PATIENCE_S)


async def test_snapshots_of_entries_that_were_lost_are_not_kept_when_others_take_their_place(
    storage: RedisStorage, prefix: str
) -> None:
    log = await filled(storage)
    copy = Copy(shared(), prefix, only="[hlk]*")
    await storage.append(log, "key 6", b"to be lost", POWER)
    await storage.save_snapshot(log, 6, b"of what is lost")
    copy.restore()
    await storage.resync(log)
    await storage.save_snapshot(log, 5, b"of what is there")
    await storage.append(log, "key 6", b"another", POWER)
    assert await storage.load_snapshots(log) == [(5, b"of what is there")]


async def test_snapshots_that_are_gone_or_garbage_cost_time_and_nothing_else(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    key = f"{prefix}:{{greeter}}:snapshots"
    await storage.save_snapshot(log, 4, b"x")
    shared().command("SET", key, "garbage")
    assert await storage.load_snapshots(log) == []
    await storage.save_snapshot(log, 5, b"y")
    shared().command("HSET", key, "garbage", "garbage")
    assert await storage.load_snapshots(log) == [(5, b"y")]
    assert await storage.append(log, "key 6", b"x", POWER) == Receipt(6)
    shared().command("DEL", key)
    assert await storage.load_snapshots(log) == []


async def test_a_log_that_is_gone_and_was_not_deleted_was_lost(storage: RedisStorage, other: RedisStorage, prefix: str) -> None:
    """All of its keys, or all that Redis holds."""
    log, deleted = await filled(storage), await filled(storage, name="deleted")
    await everything(other, deleted)
    await storage.delete(deleted)
    with pytest.raises(LogNotFoundError):
        await other.append(deleted, "key 6", b"x", POWER)
    assert not any("were lost" in notice for notice in other.notices())
    shared().client().delete(*shared().client().keys(f"{prefix}:{{greeter}}:*"), f"{prefix}:logs")
    await storage._notifications._reconcile()
    assert "greeter" in await storage.wait_for_changes(timeout_s=PATIENCE_S)
    await lost(storage, log, seen=5, end=0)
    assert any("in 1 log(s)" in notice for notice in storage.notices())
    await storage.resync(log)
    with pytest.raises(LogNotFoundError):
        await storage.append(log, "key 6", b"x", POWER)
    assert await storage.create(Log("new", "greeter"), b"created") == (Log("new", "greeter"), Receipt(1))


async def test_everything_removed_under_load_acknowledges_nothing_that_is_not_there(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage, entries=1)
        kept: list[int] = []

        async def client(number: int) -> None:
            with contextlib.suppress(LogNotFoundError, LogTruncatedError):
                for i in range(100_000):
                    receipt = await storage.append(log, f"{number}/{i}", b"x", POWER)
                    kept.append(receipt.offset)

        clients = asyncio.gather(*(client(number) for number in range(8)))
        await settled(lambda: len(kept) > 200)
        server.command("FLUSHALL")
        await clients
        assert sorted(kept) == list(range(2, len(kept) + 2)), "each once, up to the end, and then no more"
        await lost(storage, log, seen=len(kept) + 1, end=0)


async def test_a_running_process_restores_the_register_of_names(storage: RedisStorage, prefix: str) -> None:
    log, other = await filled(storage), await filled(storage, name="other")
    await storage._notifications._reconcile()
    shared().client().hdel(f"{prefix}:logs", "greeter")
    await storage._notifications._reconcile()
    assert await storage.logs() == [log, other]
    shared().client().delete(f"{prefix}:logs")
    await storage._notifications._reconcile()
    assert await storage.logs() == [log, other]


async def test_a_start_without_the_register_of_names_finds_the_logs(prefix: str) -> None:
    prefix = f"{prefix}[*]?"
    async with opened(shared(), prefix=prefix) as storage:
        logs = [await filled(storage, name=name) for name in ("a", "tenant/b", "é")]
    shared().client().delete(f"{prefix}:logs")
    async with opened(shared(), prefix=prefix) as storage:
        assert await storage.logs() == logs
    async with opened(shared(), prefix=prefix.replace("*", "x")) as storage:
        assert await storage.logs() == []


async def test_garbage_for_the_register_of_names_is_no_readiness(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    shared().command("SET", f"{prefix}:logs", "garbage")
    with pytest.raises(StorageDamagedError, match="WRONGTYPE"):
        await storage.ping()
    shared().client().delete(f"{prefix}:logs")
    await storage.ping()
    await settled(lambda: shared().client().exists(f"{prefix}:logs"))
    assert await storage.logs() == [log]


@pytest.mark.parametrize("command", [("SET", "garbage"), ("DEL",), ("SADD", "garbage")])
async def test_news_that_were_removed_or_replaced_are_started_again(
    storage: RedisStorage, other: RedisStorage, prefix: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_news, "SWEEP_S", 0.05)
    log = await filled(storage)
    await other.wait_for_changes(timeout_s=PATIENCE_S)
    word, *rest = command
    shared().command("DEL", f"{prefix}:news")
    shared().command(word, f"{prefix}:news", *rest)
    await storage.append(log, "key 6", b"x", POWER)
    assert await other.wait(log, after=5, timeout_s=PATIENCE_S) == 6
    await settled(lambda: shared().client().type(f"{prefix}:news") != b"string")


async def test_keys_that_name_other_entries_are_damage(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    shared().client().hset(f"{prefix}:{{greeter}}:keys", "key 3", "4")
    for ask in (lambda: storage.append(log, "key 3", b"x", POWER), lambda: storage.find(log, "key 3")):
        with pytest.raises(LogDamagedError, match="under the key of another entry"):
            await ask()


async def test_a_name_whose_creation_was_cut_off_is_not_listed_and_can_be_taken(storage: RedisStorage, prefix: str) -> None:
    shared().client().hset(f"{prefix}:logs", "greeter", "id of nobody")
    assert await storage.logs() == []
    assert await storage.find_log("greeter") is None
    log = await filled(storage)
    assert await storage.logs() == [log]


async def test_a_deletion_that_was_cut_off_has_deleted_the_log(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    shared().client().delete(*shared().client().keys(f"{prefix}:{{greeter}}:*"))
    assert await storage.logs() == []
    await storage.delete(log)
    assert shared().client().hlen(f"{prefix}:logs") == 0


async def test_a_log_that_lost_its_place_in_the_register_returns_to_it(storage: RedisStorage, prefix: str) -> None:
    log = await filled(storage)
    shared().client().delete(f"{prefix}:logs")
    assert (await storage.create(Log("new", "greeter"), b"x"))[0] == log
    assert await storage.logs() == [log]


# -- what is looked at ------------------------------------------------------------------------------------------------------


async def test_full_memory_refuses_and_half_accepts_nothing(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.command("CONFIG", "SET", "maxmemory", 1)
        for asked in (storage.append(log, "key 6", b"x", POWER), storage.create(Log("2", "two"), b"x"), storage.ping()):
            with pytest.raises(StorageUnavailableError, match="OOM"):
                await asked
        assert len(await everything(storage, log)) == 5, "it can still be read"
        assert await storage.find(log, "key 6") is None
        server.command("CONFIG", "SET", "maxmemory", 0)
        await storage.ping()
        assert await storage.append(log, "key 6", b"x", POWER) == Receipt(6)


async def test_a_server_that_wants_more_replicas_than_it_has_refuses(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        for asked in (storage.append(log, "key 6", b"x", POWER), storage.ping()):
            with pytest.raises(StorageUnavailableError, match="NOREPLICAS"):
                await asked
        assert await storage.end(log) == 5


async def test_a_server_that_may_evict_the_log_is_refused() -> None:
    with (
        RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server,
        pytest.raises(StorageUnavailableError, match=r"allkeys-lru.*set noeviction"),
    ):
        async with opened(server):
            pass


async def test_keys_that_may_be_evicted_while_it_runs_are_refused_within_one_look(server: RedisServer) -> None:
    async with opened(server) as storage:
        log = await filled(storage)
        server.command("CONFIG", "SET", "maxmemory", "100mb")
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with pytest.raises(StorageUnavailableError, match="allkeys-lru"):
            await storage._notifications._reconcile()
        for ask in (storage.ping, lambda: storage.append(log, "key 6", b"x", POWER)):
            with pytest.raises(StorageUnavailableError):
                await ask()
        said = ""
        async with asyncio.timeout(PATIENCE_S):
            while "allkeys-lru); set noeviction" not in said:  # what was under way then was cut off
                with pytest.raises(StorageUnavailableError) as refused:
                    await storage.ping()
                said = str(refused.value)
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await recovered(storage)
        assert await storage.append(log, "key 6", b"x", POWER) == Receipt(6)


async def test_an_append_only_file_that_is_switched_off_while_it_runs_is_noticed_within_one_look() -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        async with opened(server) as storage:
            assert storage.notices() == []
            server.command("CONFIG", "SET", "appendfsync", "no")
            await storage._notifications._reconcile()
            assert [notice for notice in storage.notices() if "appendfsync is no" in notice]
            server.command("CONFIG", "SET", "appendonly", "no")
            await storage._notifications._reconcile()
            assert [notice for notice in storage.notices() if "appendonly is off" in notice]


@pytest.mark.parametrize(
    ("flags", "durability", "noticed"),
    [
        ((), POWER, ["appendonly is off"]),
        (("--appendonly", "yes"), POWER, ["appendfsync is everysec"]),
        (("--appendonly", "yes"), PROCESS, []),
        (("--appendonly", "yes", "--appendfsync", "always"), POWER, []),
        (("--appendonly", "yes", "--rename-command", "CONFIG", ""), POWER, ["CONFIG may not be read"]),
        (("--maxmemory-policy", "allkeys-lfu"), POWER, ["appendonly is off", "maxmemory-policy is allkeys-lfu"]),
        (("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"), PROCESS, []),
    ],
)
async def test_what_the_set_up_does_not_promise_is_said(
    flags: tuple[str, ...], durability: Durability, noticed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(*flags) as server:
        async with opened(server, durability=durability) as storage:
            notices = storage.notices()
    assert len(notices) == len(noticed)
    assert all(f"127.0.0.1:{server.port}" in notice and part in notice for notice, part in zip(notices, noticed, strict=True))
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned == notices, "each once in the log"


# -- ways to reach it -------------------------------------------------------------------------------------------------------


async def test_a_password_opens_the_store_and_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cr:et/@"
    with RedisServer("--requirepass", secret, "--appendonly", "yes") as server:
        for url, password in (
            (f"redis://:s3cr%3Aet%2F%40@127.0.0.1:{server.port}", ""),
            (f"redis://127.0.0.1:{server.port}/0", secret),
        ):
            address = parse(url, password=password)
            storage = RedisStorage(address)
            await storage.start()
            log = await filled(storage)
            await storage.delete(log)
            await storage.close()
            assert secret not in repr(address) + str(address) + repr(vars(storage))
        for wrong in ("redis://:wr0ng@", "redis://"):
            with pytest.raises(StorageUnavailableError, match=r"refuses the user name or the password|NOAUTH") as refused:
                await RedisStorage(parse(f"{wrong}127.0.0.1:{server.port}")).start()
            assert "wr0ng" not in str(refused.value)
    assert secret not in caplog.text
    assert "wr0ng" not in caplog.text


async def test_a_unix_socket_reaches_it(tmp_path: Path) -> None:
    with RedisServer("--unixsocket", str(tmp_path / "s")) as _:
        async with opened(f"unix://{tmp_path}/s") as storage:
            assert len(await everything(storage, await filled(storage))) == 5


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
async def test_tls_reaches_it_and_a_stranger_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *request.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    with RedisServer() as server:
        server.command(
            *("CONFIG", "SET", "tls-cert-file", str(certificate), "tls-key-file", str(key), "tls-ca-cert-file", str(certificate)),
            *("tls-auth-clients", "no"),
        )
        port = server.port + 1
        server.command("CONFIG", "SET", "tls-port", port)
        async with opened(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}") as storage:
            assert len(await everything(storage, await filled(storage))) == 5
        with pytest.raises(StorageUnavailableError):
            await RedisStorage(parse(f"rediss://127.0.0.1:{port}")).start()
