"""What every storage promises, whatever it is made of."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.storage.base import Durability, Entry, Log, LogNotFoundError, Receipt, Storage, StorageConflictError, pages
from tests.service.storages import STORAGES, Opener, started

POWER, PROCESS = Durability.POWER, Durability.PROCESS


@pytest.fixture
async def storage(opener: Opener) -> AsyncIterator[Storage]:
    async with started(opener) as storage:
        yield storage


async def a_log(storage: Storage, name: str = "greeter", *, entries: int = 0) -> Log:
    log, _ = await storage.create(Log(f"id of {name}", name), b"created")
    for number in range(2, entries + 1):
        await storage.append(log, f"key {number}", b"payload %d" % number, PROCESS)
    return log


async def everything(storage: Storage, log: Log) -> list[Entry]:
    return await storage.read(log, after=0, limit=1_000_000)


async def test_a_new_log_has_its_first_entry(storage: Storage) -> None:
    log, receipt = await storage.create(Log("7", "greeter"), b"created")
    assert (log, receipt) == (Log("7", "greeter"), Receipt(1))
    assert await everything(storage, log) == [Entry(1, b"created")]
    assert await storage.logs() == [log]


async def test_creating_a_name_again_answers_the_log_that_has_it(storage: Storage) -> None:
    first = await a_log(storage, entries=3)
    again, receipt = await storage.create(Log("another id", first.name), b"other")
    assert again == first
    assert receipt == Receipt(1, b"created")
    assert len(await everything(storage, first)) == 3


async def test_two_that_create_a_name_at_once_get_the_same_log(storage: Storage) -> None:
    answers = await asyncio.gather(*(storage.create(Log(str(i), "greeter"), b"%d" % i) for i in range(7)))
    assert len({log.id for log, _ in answers}) == 1
    winner = answers[0][0]
    assert [receipt.first is None for _, receipt in answers].count(True) == 1
    assert await everything(storage, winner) == [Entry(1, winner.id.encode())]


async def test_offsets_count_from_one_without_a_gap(storage: Storage) -> None:
    log = await a_log(storage)
    offsets = [(await storage.append(log, f"k{i}", b"x", (POWER, PROCESS)[i % 2])).offset for i in range(11)]
    assert offsets == list(range(2, 13))
    assert [entry.offset for entry in await everything(storage, log)] == list(range(1, 13))


async def test_a_key_that_is_taken_is_answered_with_its_first_entry(storage: Storage) -> None:
    log = await a_log(storage, entries=4)
    assert await storage.append(log, "key 3", b"other", POWER) == Receipt(3, b"payload 3")
    assert len(await everything(storage, log)) == 4
    assert await storage.append(log, "key 5", b"next", POWER) == Receipt(5), "a refused entry leaves no gap"


async def test_several_are_accepted_in_order_each_as_if_it_came_alone(storage: Storage) -> None:
    log = await a_log(storage, entries=3)
    asked = [("a", b"one"), ("key 2", b"other"), ("b", b"two"), ("a", b"again")]
    expected = [Receipt(4), Receipt(2, b"payload 2"), Receipt(5), Receipt(4, b"one")]
    assert await storage.append_all(log, asked, POWER) == expected
    assert [entry.payload for entry in await everything(storage, log)][3:] == [b"one", b"two"]
    assert await storage.append_all(log, [], PROCESS) == []


async def test_none_of_several_is_accepted_into_a_log_that_is_gone(storage: Storage) -> None:
    log = await a_log(storage, entries=2)
    await storage.delete(log)
    with pytest.raises(LogNotFoundError):
        await storage.append_all(log, [("a", b"one"), ("b", b"two")], POWER)


async def test_keys_belong_to_their_log(storage: Storage) -> None:
    one, two = await a_log(storage, "one", entries=3), await a_log(storage, "two")
    assert await storage.append(two, "key 3", b"of two", POWER) == Receipt(2)
    assert await storage.find(one, "key 3") == Entry(3, b"payload 3")
    assert await storage.find(two, "key 3") == Entry(2, b"of two")


@pytest.mark.parametrize("limit", [1, 2, 5, 11, 300, 1000])
async def test_a_log_is_read_in_pages_of_any_size(storage: Storage, limit: int) -> None:
    log = await a_log(storage, entries=307)  # more than any storage keeps in memory for its readers
    read: list[Entry] = []
    while page := await storage.read(log, after=len(read), limit=limit):
        assert len(page) <= limit
        read += page
    assert [entry.offset for entry in read] == list(range(1, 308))
    assert [entry.payload for entry in read[1:]] == [b"payload %d" % i for i in range(2, 308)]


async def test_pages_are_the_entries_between_two_offsets(storage: Storage) -> None:
    log = await a_log(storage, entries=23)

    async def offsets(after: int = 0, until: int | None = None) -> list[list[int]]:
        return [[entry.offset for entry in page] async for page in pages(storage, log, after=after, until=until, limit=5)]

    assert [len(page) for page in await offsets()] == [5, 5, 5, 5, 3]
    assert await offsets(after=9, until=16) == [[10, 11, 12, 13, 14], [15, 16]]
    assert [offset for page in await offsets(until=99) for offset in page] == list(range(1, 24))
    assert await offsets(after=23) == await offsets(after=4, until=4) == []


async def test_reading_behind_the_end_finds_nothing(storage: Storage) -> None:
    log = await a_log(storage, entries=3)
    assert await storage.read(log, after=3, limit=5) == []
    assert await storage.read(log, after=300, limit=5) == []


async def test_payloads_come_back_byte_for_byte(storage: Storage) -> None:
    log = await a_log(storage)
    payloads = [b"", bytes(range(256)), "日本".encode(), b"\x00", b"long" * 50_000]
    for i, payload in enumerate(payloads):
        await storage.append(log, f"é/{i}", payload, PROCESS)
    assert [entry.payload for entry in (await everything(storage, log))[1:]] == payloads
    assert await storage.find(log, "é/4") == Entry(6, payloads[4])


async def test_an_entry_is_found_by_its_key(storage: Storage) -> None:
    log = await a_log(storage, entries=3)
    assert await storage.find(log, "key 2") == Entry(2, b"payload 2")
    assert await storage.find(log, "key 9") is None


async def test_a_deleted_log_is_missing(storage: Storage) -> None:
    log, other = await a_log(storage, entries=3), await a_log(storage, "other", entries=3)
    await storage.save_snapshot(log, 3, b"snapshot")
    await storage.delete(log)
    await storage.delete(log)  # does nothing
    assert await storage.logs() == [other]
    for asked in (
        storage.append(log, "key", b"x", POWER),
        storage.read(log, after=0, limit=1),
        storage.find(log, "key 2"),
        storage.end(log),
        storage.wait(log, after=0, timeout_s=20),
        storage.save_snapshot(log, 3, b"x"),
        storage.load_snapshots(log),
    ):
        with pytest.raises(LogNotFoundError):
            await asked
    assert len(await everything(storage, other)) == 3


async def test_a_name_can_be_used_again_and_nothing_of_the_old_log_comes_back(storage: Storage) -> None:
    old = await a_log(storage, entries=5)
    await storage.save_snapshot(old, 5, b"snapshot")
    await storage.delete(old)
    new, receipt = await storage.create(Log("a new id", old.name), b"created again")
    assert receipt == Receipt(1)
    assert await storage.append(new, "key 2", b"x", POWER) == Receipt(2)
    assert await everything(storage, new) == [Entry(1, b"created again"), Entry(2, b"x")]
    assert await storage.load_snapshots(new) == []
    with pytest.raises(LogNotFoundError):
        await storage.append(old, "key 9", b"x", POWER)
    await storage.delete(old)
    assert await storage.logs() == [new], "deleting by an old handle must not touch the new log"


async def test_an_append_that_loses_against_a_delete_is_refused(storage: Storage) -> None:
    log = await a_log(storage)
    answers = await asyncio.gather(
        storage.delete(log), *(storage.append(log, f"{i}", b"x", PROCESS) for i in range(20)), return_exceptions=True
    )
    assert all(isinstance(answer, Receipt | LogNotFoundError) for answer in answers[1:])
    new = await a_log(storage)
    assert await everything(storage, new) == [Entry(1, b"created")]


async def test_the_two_newest_snapshots_are_kept(storage: Storage) -> None:
    log = await a_log(storage, entries=9)
    assert await storage.load_snapshots(log) == []
    for offset in (2, 4, 8):
        await storage.save_snapshot(log, offset, b"as of %d" % offset)
    assert await storage.load_snapshots(log) == [(8, b"as of 8"), (4, b"as of 4")]
    await storage.save_snapshot(log, 8, b"once more")
    assert await storage.load_snapshots(log) == [(8, b"once more"), (4, b"as of 4")]
    await storage.save_snapshot(log, 3, b"late")
    assert await storage.load_snapshots(log) == [(8, b"once more"), (4, b"as of 4")]


async def test_logs_are_listed_by_name(storage: Storage) -> None:
    for name in ("b", "t/a", "a", "é"):
        await a_log(storage, name)
    assert [log.name for log in await storage.logs()] == ["a", "b", "t/a", "é"]


async def test_eight_thousand_repeated_appends_are_accepted_once_each(storage: Storage) -> None:
    log = await a_log(storage)

    async def client(number: int) -> list[Receipt]:
        order = [(i * 7 + number * 131) % 1000 for i in range(1000)]  # every client in another order
        return [await storage.append(log, f"id {i}", b"%d of %d" % (i, number), (PROCESS, POWER)[number % 2]) for i in order]

    receipts = [receipt for answers in await asyncio.gather(*(client(n) for n in range(8))) for receipt in answers]
    entries = await everything(storage, log)
    assert [entry.offset for entry in entries] == list(range(1, 1002))
    assert sorted(receipt.offset for receipt in receipts if receipt.first is None) == list(range(2, 1002))
    kept = {entry.offset: entry.payload for entry in entries}
    assert all(receipt.first in (None, kept[receipt.offset]) for receipt in receipts)
    assert len({entry.payload.split(b" of ")[0] for entry in entries[1:]}) == 1000


@pytest.mark.parametrize("ticks", range(6))
async def test_an_append_that_is_cancelled_is_in_the_log_once_or_not_at_all(storage: Storage, ticks: int) -> None:
    log = await a_log(storage)
    tasks = [asyncio.create_task(storage.append(log, f"k{i}", b"x", (POWER, PROCESS)[i % 2])) for i in range(40)]
    for _ in range(ticks):
        await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, Receipt | asyncio.CancelledError) for answer in answers)
    again = await asyncio.gather(*(storage.append(log, f"k{i}", b"x", POWER) for i in range(40)))
    assert sorted(receipt.offset for receipt in again) == list(range(2, 42)), "each key once, without a gap"
    first = {i: answer.offset for i, answer in enumerate(answers) if isinstance(answer, Receipt)}
    assert all(again[i].offset == offset for i, offset in first.items()), "what was acknowledged stays where it was"
    assert [entry.offset for entry in await everything(storage, log)] == list(range(1, 42))


async def test_a_log_is_found_by_its_name(storage: Storage) -> None:
    log, _ = await a_log(storage, "t/a"), await a_log(storage, "a")
    assert await storage.find_log("t/a") == log
    assert await storage.find_log("t") is None
    await storage.delete(log)
    assert await storage.find_log("t/a") is None
    new, _ = await storage.create(Log("another", "t/a"), b"created again")
    assert await storage.find_log("t/a") == new


async def test_the_end_is_the_last_offset(storage: Storage) -> None:
    log = await a_log(storage)
    assert await storage.end(log) == 1
    await a_log(storage, "other", entries=7)
    await storage.append(log, "key 2", b"x", PROCESS)
    await storage.append(log, "key 2", b"x", PROCESS)
    assert await storage.end(log) == 2


async def test_an_append_that_expects_another_end_is_refused(storage: Storage) -> None:
    log = await a_log(storage, entries=4)
    for wrong in (0, 3, 5):
        with pytest.raises(StorageConflictError) as refused:
            await storage.append(log, "new", b"x", POWER, expected=wrong)
        assert (refused.value.expected, refused.value.end) == (wrong, 4)
    assert await storage.find(log, "new") is None
    assert await storage.append(log, "new", b"x", POWER, expected=4) == Receipt(5)
    assert await storage.append(log, "new", b"y", POWER, expected=4) == Receipt(5, b"x"), "a retry finds its own first entry"
    assert await storage.append(log, "key 3", b"y", POWER, expected=4) == Receipt(3, b"payload 3")


async def test_of_many_that_expect_the_same_end_one_is_accepted(storage: Storage) -> None:
    log = await a_log(storage, entries=3)
    answers = await asyncio.gather(
        *(storage.append(log, f"k{i}", b"x", (POWER, PROCESS)[i % 2], expected=3) for i in range(20)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["Receipt", *["StorageConflictError"] * 19]
    assert await storage.end(log) == 4


async def test_a_waiter_of_a_log_wakes_at_its_next_entry(storage: Storage) -> None:
    log, other = await a_log(storage, entries=3), await a_log(storage, "other")
    assert await storage.wait(log, after=2, timeout_s=20) == 3, "what is there already is not waited for"
    waiting = [asyncio.create_task(storage.wait(log, after=after, timeout_s=20)) for after in (3, 3, 5)]
    await storage.append(other, "key", b"x", PROCESS)
    assert await storage.wait(log, after=3, timeout_s=0.01) == 3, "in vain"
    await storage.append(log, "key 4", b"x", PROCESS)
    assert await asyncio.gather(*waiting[:2]) == [4, 4]
    assert not waiting[2].done()
    await asyncio.gather(*(storage.append(log, f"k{i}", b"x", PROCESS) for i in range(2)))
    assert await waiting[2] == 6


async def heard(storage: Storage, expected: dict[str, int]) -> None:
    """Listen until the last word on each name is what is expected; a name may come more often than needed."""
    changes: dict[str, int] = {}
    async with asyncio.timeout(20):
        while not expected.items() <= changes.items():
            changes |= await storage.wait_for_changes(timeout_s=20)


async def test_news_name_every_log_that_grew_came_or_went(storage: Storage) -> None:
    one, two = await a_log(storage, "one"), await a_log(storage, "two")
    assert set(await storage.wait_for_changes(timeout_s=20)) == {"one", "two"}
    async with asyncio.timeout(20):
        while await storage.wait_for_changes(timeout_s=0.01):
            pass  # silence comes
    waiting = asyncio.create_task(heard(storage, {"two": 2}))
    await asyncio.sleep(0)
    await storage.append(two, "key", b"x", PROCESS)
    await waiting
    await storage.append(two, "key", b"x", PROCESS)
    await storage.append(two, "next", b"x", PROCESS)
    await storage.delete(one)
    await heard(storage, {"one": 0, "two": 3})


async def test_a_resync_forgets_nothing_of_the_log(storage: Storage) -> None:
    log = await a_log(storage, entries=3)
    await storage.resync(log)
    assert len(await everything(storage, log)) == 3
    assert await storage.append(log, "key 4", b"x", PROCESS) == Receipt(4)


async def test_an_inspection_finds_no_fault_with_logs_that_only_this_process_writes(storage: Storage) -> None:
    log, other, gone = [await a_log(storage, name, entries=3) for name in ("one", "two", "gone")]
    await storage.save_snapshot(log, 3, b"snapshot")
    await storage.delete(gone)
    assert await storage.inspect([log, other]) == {}
    await storage.append(log, "later", b"x", POWER)
    assert await storage.inspect([log, other]) == {}
    assert await storage.inspect([]) == {}


async def test_what_was_accepted_is_there_after_a_restart(opener: Opener) -> None:
    async with started(opener) as storage:
        log = await a_log(storage, entries=30)
        await storage.save_snapshot(log, 7, b"snapshot")
        gone = await a_log(storage, "gone", entries=3)
        await storage.delete(gone)
    async with started(opener) as storage:
        assert await storage.logs() == [log]
        assert len(await everything(storage, log)) == 30
        assert await storage.load_snapshots(log) == [(7, b"snapshot")]
        assert await storage.append(log, "key 30", b"other", POWER) == Receipt(30, b"payload 30")
        assert await storage.append(log, "key 31", b"next", POWER) == Receipt(31)


class Model:
    """A model of a storage: the promises once more, in the plainest way."""

    def __init__(self) -> None:
        self.logs: dict[str, list[tuple[str, bytes]]] = {}

    def create(self, name: str, payload: bytes) -> bytes | None:
        if name in self.logs:
            return self.logs[name][0][1]
        self.logs[name] = [("created", payload)]
        return None

    def append(self, name: str, key: str, payload: bytes) -> Receipt | None:
        if name not in self.logs:
            return None
        for i, (taken, first) in enumerate(self.logs[name], start=1):
            if taken == key:
                return Receipt(i, first)
        self.logs[name].append((key, payload))
        return Receipt(len(self.logs[name]))


names, keys = st.sampled_from(["a", "b"]), st.sampled_from(["w", "x", "y", "z"])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("create"), names, st.binary(max_size=4)),
        st.tuples(st.just("append"), names, keys, st.binary(max_size=4)),
        st.tuples(st.just("append all"), names, st.lists(st.tuples(keys, st.binary(max_size=4)), max_size=4)),
        st.tuples(st.just("delete"), names),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", sorted(STORAGES))
@settings(max_examples=40, deadline=None)
@given(operations=operations)
def test_any_sequence_of_operations_gives_what_the_promises_say(kind: str, operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(STORAGES[kind](Path(folder)), operations))


async def _play(opener: Opener, operations: list[tuple[Any, ...]]) -> None:
    model, handles = Model(), {"a": Log("never", "a"), "b": Log("never", "b")}
    storage = opener()
    await storage.start()
    for number, (what, *values) in enumerate(operations):
        if what == "create":
            name, payload = values
            handles[name], receipt = await storage.create(Log(f"{number}", name), payload)
            assert receipt == Receipt(1, model.create(name, payload))
        elif what == "append":
            name, key, payload = values
            expected = model.append(name, key, payload)
            try:
                assert await storage.append(handles[name], key, payload, PROCESS) == expected
            except LogNotFoundError:
                assert expected is None
        elif what == "append all":
            name, several = values
            receipts = [model.append(name, key, payload) for key, payload in several]
            try:
                assert await storage.append_all(handles[name], several, PROCESS) == receipts
            except LogNotFoundError:
                assert receipts == [] or receipts[0] is None
        elif what == "delete":
            (name,) = values
            await storage.delete(handles[name])
            model.logs.pop(name, None)
        else:
            await storage.close()
            storage = opener()
            await storage.start()
    for name, entries in model.logs.items():
        expected_entries = [Entry(i, payload) for i, (_, payload) in enumerate(entries, start=1)]
        assert await everything(storage, handles[name]) == expected_entries
    assert [log.name for log in await storage.logs()] == sorted(model.logs)
    await storage.close()


async def test_a_record_is_replaced_only_if_it_is_what_was_expected(opener: Opener) -> None:
    async with started(opener) as storage:
        log, other = await a_log(storage), await a_log(storage, "other")
        for owner in (log, None):
            assert await storage.find_record(owner, "a") is None
            assert not await storage.swap_record(owner, "a", b"new", expected=b"old")
            assert await storage.swap_record(owner, "a", b"one", expected=None)
            assert not await storage.swap_record(owner, "a", b"two", expected=None)
            assert await storage.swap_record(owner, "a", b"", expected=b"one"), "an empty one is one"
            assert not await storage.swap_record(owner, "a", b"three", expected=None)
            assert await storage.swap_record(owner, "b/\u00e4", b"x" * 10_000, expected=None)
            assert await storage.records(owner) == {"a": b"", "b/\u00e4": b"x" * 10_000}
            assert await storage.swap_record(owner, "a", None, expected=b"")
            assert await storage.swap_record(owner, "a", None, expected=None), "what is not there stays so"
        assert await storage.records(other) == {}
        swapped = await asyncio.gather(*(storage.swap_record(log, "c", b"%d" % i, expected=None) for i in range(8)))
        assert swapped.count(True) == 1
        won = await storage.find_record(log, "c")
        assert won == b"%d" % swapped.index(True)
    async with started(opener) as storage:
        assert set(await storage.records(log)) == {"b/\u00e4", "c"}
        assert set(await storage.records(None)) == {"b/\u00e4"}


async def test_records_are_deleted_with_their_log(storage: Storage) -> None:
    log = await a_log(storage)
    await storage.swap_record(log, "a", b"one", expected=None)
    await storage.swap_record(None, "a", b"of the store", expected=None)
    await storage.delete(log)
    with pytest.raises(LogNotFoundError):
        await storage.swap_record(log, "a", b"two", expected=b"one")
    with pytest.raises(LogNotFoundError):
        await storage.records(log)
    again, _ = await storage.create(Log("another id", log.name), b"created")
    assert await storage.records(again) == {}
    assert await storage.records(None) == {"a": b"of the store"}
