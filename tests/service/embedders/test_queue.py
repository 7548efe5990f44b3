"""The line in front of the embedders, with embedders that count, block and fail on command."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.embedders import worker
from service.embedders.base import (
    Embedder,
    EmbedderError,
    EmbedderUnavailable,
    EmbeddingFailed,
    InvalidContent,
    QueueClosed,
    QueueFull,
    Spec,
    TextEmbedder,
    UnknownEmbedder,
    Vector,
)
from service.embedders.queue import Counts, EmbeddingQueue

DIM = 3


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text)) % 1_009), 0.5]


@dataclass(eq=False)
class Fake:
    """An embedder that records its batches, waits at a gate, and fails on texts that contain `poison`."""

    name: str = "fake"
    dim: int = DIM
    version: str = "fake 0.7"
    unit_norm: bool = False
    poison: str = "poison"
    batches: list[list[str]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)  # the threads that loaded it
    broken: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    def embed(self, texts: Sequence[str]) -> Vector:
        self.batches.append(list(texts))
        self.entered.release()
        assert self.gate.wait(10)
        for text in texts:
            if self.poison in text:
                raise ValueError(f"cannot read {text!r}")
        return np.array([vector_of(text) for text in texts], dtype=np.float32)

    def load(self, spec: Spec) -> Embedder:
        self.loads.append(threading.current_thread().name)
        if self.broken:
            raise OSError("no such file")
        return self

    async def runs(self) -> None:
        """Return once a forward pass has begun that was not awaited before."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


def spec_of(fake: Fake, **changes: Any) -> Spec:
    facts: dict[str, Any] = {
        "name": fake.name,
        "modality": "text",
        "dim": DIM,
        "unit_norm": False,
        "licence": "",
        "loader": fake.load,
    }
    return Spec(**(facts | changes))


def found(*fakes: Fake) -> Callable[[str], Spec]:
    """These, and no other."""
    specs = {fake.name: spec_of(fake) for fake in fakes}

    def find(name: str) -> Spec:
        if name not in specs:
            raise UnknownEmbedder(name, known=tuple(specs))
        return specs[name]

    return find


Make = Callable[..., EmbeddingQueue]


@pytest.fixture
async def queue_of() -> AsyncIterator[Make]:
    """Fakes and options -> queue. At the end every queue is closed and every gate opened, and no thread is left."""
    made: list[EmbeddingQueue] = []
    fakes: list[Fake] = []

    def make(*embedders: Fake, **options: Any) -> EmbeddingQueue:
        fakes.extend(embedders)
        made.append(EmbeddingQueue(find=found(*embedders), **options))
        return made[-1]

    yield make
    for queue in made:
        queue.close()
    for fake in fakes:
        fake.gate.set()
    for thread in threads():
        thread.join(10)
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("embed-")]


async def turn() -> None:
    """Let every task that can run do so, once."""
    await asyncio.sleep(0)


async def outcome(wanted: Awaitable[object]) -> object:
    try:
        return await wanted
    except EmbedderError as failure:
        return failure


# -- the answer --------------------------------------------------------------------------------------------------------------


async def test_the_vector_of_a_text_is_what_the_embedder_says(queue_of: Make) -> None:
    vector = await queue_of(Fake()).embed("fake", "a tree")
    assert vector.tolist() == vector_of("a tree")
    assert vector.dtype == np.float32


async def test_many_texts_come_back_in_order_whatever_is_known_or_repeated(queue_of: Make) -> None:
    queue = queue_of(Fake(), batch=2)
    await queue.embed("fake", "ccc")
    texts = ["dddd", "a", "ccc", "bb", "a", "eeeee", ""]
    assert (await queue.embed_many("fake", texts)).tolist() == [vector_of(text) for text in texts]


async def test_no_text_needs_no_pass(queue_of: Make) -> None:
    fake = Fake()
    rows = await queue_of(fake).embed_many("fake", [])
    assert rows.shape == (0, DIM)
    assert rows.dtype == np.float32
    assert fake.loads == []


async def test_the_answer_is_the_callers_own(queue_of: Make) -> None:
    queue = queue_of(Fake())
    first, second = await asyncio.gather(queue.embed("fake", "tree"), queue.embed("fake", "tree"))
    rows = await queue.embed_many("fake", ["tree"])
    first[:], rows[:] = 7.0, 8.0
    assert second.tolist() == (await queue.embed("fake", "tree")).tolist() == vector_of("tree")


async def test_two_embedders_do_not_share_their_vectors(queue_of: Make) -> None:
    one, other = Fake(name="one"), Fake(name="other")
    queue = queue_of(one, other)
    for name in ("one", "other", "one"):
        await queue.embed(name, "tree")
    assert (one.batches, other.batches) == ([["tree"]], [["tree"]])
    assert len({*one.loads, *other.loads}) == 2


async def test_names_that_do_not_embed_text_are_refused(queue_of: Make) -> None:
    queue = EmbeddingQueue()
    with pytest.raises(InvalidContent, match="'vector' reads no text; send"):
        await queue.embed("vector", "tree")
    with pytest.raises(UnknownEmbedder, match="'bert'; it must be one of vector, minilm, static, open-clip, imagenet"):
        await queue.warm("bert")
    queue.close()


@pytest.mark.parametrize("options", [{"cache_entries": -1}, {"waiting_limit": 0}, {"batch": 0}])
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        EmbeddingQueue(**options)


# -- one pass for what waits together ----------------------------------------------------------------------------------------


async def test_what_is_asked_in_one_turn_shares_one_pass(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake)
    await asyncio.gather(*(queue.embed("fake", text) for text in "abc"), queue.embed_many("fake", ["d", "e"]))
    assert fake.batches == [["a", "b", "c", "d", "e"]]


async def test_a_lonely_text_waits_for_no_company(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake)
    tasks = [asyncio.create_task(queue.embed("fake", "first"))]
    await fake.runs()
    assert fake.batches == [["first"]]
    fake.gate.set()
    await asyncio.gather(*tasks)


async def test_what_waits_while_a_pass_runs_shares_the_next_ones_up_to_the_batch(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake, batch=32)
    first = asyncio.create_task(queue.embed("fake", "first"))
    await fake.runs()
    texts = [f"text {index}" for index in range(75)]
    others = [asyncio.create_task(queue.embed("fake", text)) for text in texts]
    await turn()
    assert queue.counts()["fake"].waiting == 75
    fake.gate.set()
    rows = await asyncio.gather(first, *others)
    assert fake.batches == [["first"], texts[:32], texts[32:64], texts[64:]]
    assert [row.tolist() for row in rows] == [vector_of(text) for text in ["first", *texts]]


async def test_the_same_text_wanted_twice_at_once_is_embedded_once(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake)
    tasks = [asyncio.create_task(queue.embed("fake", "running"))]
    await fake.runs()
    tasks += [asyncio.create_task(queue.embed("fake", text)) for text in ["running", "waits", "waits"]]
    tasks.append(asyncio.create_task(queue.embed("fake", "waits")))
    await turn()
    fake.gate.set()
    await asyncio.gather(*tasks)
    assert fake.batches == [["running"], ["waits"]]
    assert queue.counts()["fake"] == Counts(cached=0, shared=3, passes=2, embedded=2, refused=0, waiting=0, texts=2)


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=6), max_size=12),
    batch=st.integers(1, 5),
    turns=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_whatever_is_asked_every_text_is_embedded_once_and_every_answer_is_right(
    requests: list[list[str]], batch: int, turns: list[int]
) -> None:
    fake = Fake()

    async def ask() -> list[Vector]:
        queue = EmbeddingQueue(find=found(fake), batch=batch)
        tasks = []
        for texts, count in zip(requests, turns, strict=False):
            tasks.append(asyncio.create_task(queue.embed_many("fake", texts)))
            for _ in range(count):
                await turn()
        rows = await asyncio.gather(*tasks)
        queue.close()
        return rows

    rows = asyncio.run(ask())
    assert [row.tolist() for row in rows] == [[vector_of(text) for text in texts] for texts in requests]
    embedded = [text for texts in fake.batches for text in texts]
    assert sorted(embedded) == sorted({text for texts in requests for text in texts})
    assert all(1 <= len(texts) <= batch for texts in fake.batches)


async def test_a_large_content_is_hashed_apart_and_a_queue_that_closes_meanwhile_says_so(queue_of: Make) -> None:
    large = "x" * (2**20 + 1)
    queue = queue_of(Fake())
    assert (await queue.embed("fake", large)).tolist() == vector_of(large)
    wanted = asyncio.create_task(queue.embed("fake", large + "y"))
    await turn()
    queue.close()
    with pytest.raises(QueueClosed):
        await wanted


# -- the cache ---------------------------------------------------------------------------------------------------------------


async def test_a_known_text_is_answered_without_the_embedder(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake)
    await queue.embed("fake", "tree")
    fake.gate.clear()
    assert (await queue.embed("fake", "tree")).tolist() == vector_of("tree")
    assert (await queue.embed_many("fake", ["tree", "tree"])).tolist() == [vector_of("tree")] * 2
    assert queue.counts()["fake"] == Counts(cached=3, shared=0, passes=1, embedded=1, refused=0, waiting=0, texts=1)


async def test_the_least_recently_used_vector_goes_first(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake, cache_entries=3)
    for text in ["a", "b", "c", "a", "d", "a", "c", "d", "b"]:  # d takes the place of b
        await queue.embed("fake", text)
    assert fake.batches == [["a"], ["b"], ["c"], ["d"], ["b"]]
    assert len(queue._cache) == 3


async def test_a_request_larger_than_the_cache_is_answered(queue_of: Make) -> None:
    for entries in (0, 2):
        queue = queue_of(Fake(), cache_entries=entries, batch=3)
        await queue.embed("fake", "a")
        assert (await queue.embed_many("fake", list("abcdefg"))).tolist() == [vector_of(text) for text in "abcdefg"]
        assert len(queue._cache) == entries


async def test_the_cache_keeps_neither_texts_nor_whole_batches(queue_of: Make) -> None:
    queue = queue_of(Fake())
    await queue.embed_many("fake", ["a", "b"])
    assert all(isinstance(key, bytes) and len(key) == 32 for key in queue._cache)
    assert all(vector.base is None for vector in queue._cache.values())


# -- the event loop never blocks ---------------------------------------------------------------------------------------------


async def test_a_busy_embedder_holds_up_neither_the_loop_nor_other_embedders_nor_what_is_known(queue_of: Make) -> None:
    slow, quick = Fake(name="slow"), Fake(name="quick")
    queue = queue_of(slow, quick)
    await queue.embed("slow", "known")
    await slow.runs()
    slow.gate.clear()
    stuck = asyncio.create_task(queue.embed("slow", "new"))
    await slow.runs()
    assert (await queue.embed("quick", "tree")).tolist() == vector_of("tree")
    assert (await queue.embed("slow", "known")).tolist() == vector_of("known")
    assert not stuck.done()
    slow.gate.set()
    assert (await stuck).tolist() == vector_of("new")


async def test_an_embedder_is_loaded_once_in_its_own_thread_at_first_use(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake)
    await turn()
    assert fake.loads == []
    assert not threads()
    for text in "abc":
        await queue.embed("fake", text)
    assert fake.loads == ["embed-fake_0"]
    assert len(threads()) == 1


async def test_an_embedder_can_be_loaded_ahead(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake)
    assert list(await asyncio.gather(queue.warm("fake"), queue.warm("fake"))) == ["fake 0.7", "fake 0.7"]
    assert await queue.warm("fake") == "fake 0.7"
    assert (fake.loads, fake.batches) == (["embed-fake_0"], [])
    await queue.embed("fake", "tree")
    assert len(fake.loads) == 1


async def test_an_embedder_without_weights_has_an_empty_version_and_is_warmed_all_the_same(queue_of: Make) -> None:
    queue = queue_of(Fake(version=""))
    async with asyncio.timeout(10):
        assert await queue.warm("fake") == ""
    assert queue.warming() == []


# -- failures ----------------------------------------------------------------------------------------------------------------


async def test_a_failing_batch_fails_its_own_waiters_only(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake, batch=2)
    texts = ["first", "good", "poison", "better", "best"]
    tasks = [asyncio.create_task(outcome(queue.embed("fake", texts[0])))]
    await fake.runs()
    tasks += [asyncio.create_task(outcome(queue.embed("fake", text))) for text in texts[1:]]
    await turn()
    fake.gate.set()
    first, *rest = await asyncio.gather(*tasks)
    assert fake.batches == [["first"], ["good", "poison"], ["better", "best"]]
    assert isinstance(first, np.ndarray)
    assert [isinstance(one, EmbeddingFailed) for one in rest] == [True, True, False, False]
    assert (await queue.embed("fake", "good")).tolist() == vector_of("good")


async def test_many_texts_fail_with_the_first_batch_that_fails(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake, batch=2)
    many = asyncio.create_task(outcome(queue.embed_many("fake", ["a", "poison", "b", "c", "d"])))
    alone = asyncio.create_task(queue.embed("fake", "d"))
    await fake.runs()
    fake.gate.set()
    assert isinstance(await many, EmbeddingFailed)
    assert (await alone).tolist() == vector_of("d")


async def test_a_load_that_failed_is_tried_again(queue_of: Make) -> None:
    fake = Fake(broken=True)
    queue = queue_of(fake)
    for wanted in (queue.embed("fake", "tree"), queue.warm("fake")):
        with pytest.raises(EmbedderUnavailable, match=r"OSError: no such file; pip install"):
            await wanted
    fake.broken = False
    assert (await queue.embed("fake", "tree")).tolist() == vector_of("tree")


async def test_an_embedder_that_breaks_its_promise_fails(queue_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "wide": np.zeros((1, DIM + 1), dtype=np.float32),
        "long": np.zeros((2, DIM), dtype=np.float32),
        "double": np.zeros((1, DIM), dtype=np.float64),
        "nan": np.full((1, DIM), np.nan, dtype=np.float32),
    }
    monkeypatch.setattr(Fake, "embed", lambda self, texts: answers[texts[0]])
    queue = queue_of(Fake())
    for text, reason in {"wide": r"\(1, 4\)", "long": r"\(2, 3\)", "double": "float64", "nan": "not finite"}.items():
        with pytest.raises(EmbeddingFailed, match=reason):
            await queue.embed("fake", text)


@pytest.mark.parametrize("kind", [StopIteration, MemoryError, BaseException, KeyboardInterrupt])
async def test_whatever_is_raised_reaches_the_waiter_by_its_kind(
    queue_of: Make, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fail(self: Fake, texts: Sequence[str]) -> Vector:
        raise kind

    monkeypatch.setattr(Fake, "embed", fail)
    with pytest.raises(EmbeddingFailed, match=rf"{kind.__name__} at test_queue.py:\d+"):
        await queue_of(Fake()).embed("fake", "tree")


async def test_no_failure_and_no_log_line_repeats_a_prompt(queue_of: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    queue = queue_of(Fake(), waiting_limit=1)
    secret = "my password is " + "poison"
    wanted = [
        queue.embed("fake", secret),
        queue.embed("fake", secret + "\ud800"),
        queue.embed_many("fake", [secret + "2", secret]),
    ]
    failures = await asyncio.gather(*map(outcome, wanted))
    assert [type(failure) for failure in failures] == [EmbeddingFailed, InvalidContent, QueueFull]
    for failure in failures:
        assert isinstance(failure, EmbedderError)
        text = "".join(traceback.format_exception(failure)) + repr(failure) + repr(vars(failure))
        assert "password" not in text
        assert failure.__cause__ is None
        assert failure.__context__ is None
    assert any("a batch of 1 contents failed" in record.getMessage() for record in caplog.records)
    assert not any("password" in record.getMessage() or record.exc_info for record in caplog.records)


async def test_a_text_that_is_not_unicode_harms_no_other(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake)
    good, bad = await asyncio.gather(outcome(queue.embed("fake", "good")), outcome(queue.embed("fake", "bad \udfff")))
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, InvalidContent)
    assert fake.batches == [["good"]]


# -- the waiting line is bounded ---------------------------------------------------------------------------------------------


async def test_a_full_line_refuses_new_texts_and_takes_known_ones(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake, waiting_limit=3)
    tasks = [asyncio.create_task(queue.embed("fake", "runs"))]
    await fake.runs()
    tasks.append(asyncio.create_task(queue.embed_many("fake", ["a", "b"])))
    await turn()
    with pytest.raises(QueueFull, match="2 contents wait for the embedder 'fake'; try again in 1 s, or send vectors") as caught:
        await queue.embed_many("fake", ["c", "d"])
    assert caught.value.retry_after_s == 1
    assert queue.counts()["fake"].waiting == 2
    tasks += [asyncio.create_task(queue.embed("fake", text)) for text in ["c", "a", "runs"]]
    await turn()
    with pytest.raises(QueueFull):
        await queue.embed("fake", "e")
    fake.gate.set()
    await asyncio.gather(*tasks)
    assert queue.counts()["fake"] == Counts(cached=0, shared=2, passes=2, embedded=4, refused=2, waiting=0, texts=4)


async def test_a_request_larger_than_the_queue_is_taken_when_the_queue_is_empty(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake, waiting_limit=2)
    running = asyncio.create_task(queue.embed("fake", "runs"))
    await fake.runs()
    large = asyncio.create_task(queue.embed_many("fake", list("abcde")))
    await turn()
    assert isinstance(await outcome(queue.embed("fake", "f")), QueueFull)
    fake.gate.set()
    assert len(await large) == 5
    await running


async def test_the_time_to_wait_is_what_the_line_should_take(queue_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 50.0, 60.0, 65.0, 70.0, 99.0])  # 50 s to load (not counted), then two texts in 5 s
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    fake = Fake()
    queue = queue_of(fake, waiting_limit=3)
    await queue.embed_many("fake", ["a", "b"])
    await fake.runs()
    fake.gate.clear()
    tasks = [asyncio.create_task(queue.embed("fake", "c"))]
    await fake.runs()
    tasks.append(asyncio.create_task(outcome(queue.embed_many("fake", ["d", "e", "f"]))))  # type: ignore[arg-type]
    await turn()
    with pytest.raises(QueueFull, match="in 8 s") as caught:
        await queue.embed("fake", "g")
    assert caught.value.retry_after_s == 8
    queue.close()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_request_that_went_away_leaves_the_line_unless_another_wants_the_same(queue_of: Make) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake)
    running = asyncio.create_task(queue.embed("fake", "runs"))
    await fake.runs()
    gone = asyncio.create_task(queue.embed_many("fake", ["both", "lone"]))
    stays = asyncio.create_task(queue.embed("fake", "both"))
    await turn()
    gone.cancel()
    running.cancel()
    await asyncio.wait([gone, running])
    assert queue.counts()["fake"].waiting == 1
    fake.gate.set()
    assert (await stays).tolist() == vector_of("both")
    assert fake.batches == [["runs"], ["both"]]
    await queue.embed("fake", "runs")  # its pass had begun: no request waited any more, the vector was kept
    assert len(fake.batches) == 2


async def test_a_failure_without_a_waiter_is_not_reported_as_lost(queue_of: Make, caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake)
    gone = [asyncio.create_task(queue.embed("fake", "poison")), asyncio.create_task(queue.warm("fake"))]
    await fake.runs()
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    fake.gate.set()
    await queue.embed("fake", "good")
    del gone
    gc.collect()
    assert [record.name for record in caplog.records if record.name == "asyncio"] == []


# -- closing -----------------------------------------------------------------------------------------------------------------


async def test_close_waits_for_nothing_and_leaves_no_thread_behind(queue_of: Make, caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    fake.gate.clear()
    queue = queue_of(fake)
    tasks = [asyncio.create_task(outcome(queue.embed("fake", "runs")))]
    await fake.runs()
    tasks += [asyncio.create_task(outcome(queue.embed("fake", "waits"))), asyncio.create_task(outcome(queue.warm("fake")))]
    await turn()
    gone = asyncio.create_task(queue.warm("fake"))
    await turn()
    gone.cancel()
    (thread,) = threads()
    queue.close()
    assert thread.is_alive()  # held in its pass by the gate, and yet every waiter gets its answer:
    assert [type(one) for one in await asyncio.gather(*tasks)] == [QueueClosed] * 3
    fake.gate.set()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    await turn()
    assert fake.batches == [["runs"]]
    assert caplog.records == []  # no request took what the pass brought back, and nothing broke


async def test_a_closed_queue_refuses_everything_and_can_be_closed_again(queue_of: Make) -> None:
    fake = Fake()
    queue = queue_of(fake)
    await queue.embed("fake", "tree")
    asked = asyncio.create_task(outcome(queue.embed("fake", "just asked")))
    await turn()
    queue.close()
    queue.close()
    assert isinstance(await asked, QueueClosed)
    await turn()  # what was to begin in this turn does not
    for wanted in (queue.embed("fake", "tree"), queue.embed_many("fake", []), queue.warm("fake")):
        assert isinstance(await outcome(wanted), QueueClosed)
    assert fake.batches == [["tree"]]


def test_a_loop_that_ends_while_a_pass_runs_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    fake.gate.clear()

    async def ask() -> threading.Thread:
        queue = EmbeddingQueue(find=found(fake))
        wanted = asyncio.create_task(outcome(queue.embed("fake", "tree")))
        await fake.runs()
        queue.close()
        assert isinstance(await wanted, QueueClosed)
        return threads()[0]

    thread = asyncio.run(ask())
    fake.gate.set()
    thread.join(10)
    assert not thread.is_alive()
    assert caplog.records == []


# -- with real weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["minilm", "static"])
async def test_real_embedders_answer_through_the_queue(name: str, loaded: Callable[[str], TextEmbedder]) -> None:
    embedder = loaded(name)
    queue = EmbeddingQueue()
    texts = ["Translate this to French: the weather is fine today.", "Implement quicksort in Python."]
    assert await queue.warm(name) == embedder.version
    assert await queue.embed_many(name, texts) == pytest.approx(embedder.embed(texts), abs=1e-6)
    assert queue.counts()[name].passes == 1
    queue.close()
    for thread in threads():
        await asyncio.to_thread(thread.join, 10)
    assert not threads()
