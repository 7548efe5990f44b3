"""The codec of the log: what is written is read back, for ever."""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import events
from service.engine.events import (
    Amended,
    AnyEvent,
    ArmAdded,
    ArmChanged,
    ArmRetired,
    Cancelled,
    Cloned,
    Configured,
    Created,
    Decided,
    Expired,
    Imported,
    Matrix,
    MomentsGiven,
    NewArm,
    NewerEvent,
    Observed,
    Partial,
    ReferenceAdded,
    SessionBegun,
    ShadowCreated,
    ShadowDeleted,
    ShadowPromoted,
    UnreadableEvent,
)
from service.engine.learner import Learner
from service.engine.ledger import ArmRecord
from service.storage.base import Durability, Log
from service.storage.memory import MemoryStorage

DATA = Path(__file__).resolve().parents[2] / "data"
NOW = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)

# -- every event, with anything in it ---------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
times = st.datetimes(timezones=st.just(UTC))
indices = st.integers(0, 999)
objects = st.dictionaries(texts, st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), numbers, texts), max_size=3)


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    rows, columns = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return Matrix(rows, columns, draw(st.binary(min_size=4 * rows * columns, max_size=4 * rows * columns)))


moments = st.builds(MomentsGiven, mean=st.binary(max_size=16), covariance=st.binary(max_size=32), count=indices)
any_event: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(
        Created,
        at=times,
        bandit=texts,
        tenant=texts,
        request=objects,
        policy=texts,
        hyperparameters=objects,
        arms=st.lists(st.builds(NewArm, name=texts, price=numbers, metadata=objects), max_size=3),
        seed=st.integers(0, 2**63 - 1),
        fingerprint=texts,
        dim=indices,
        prompt_embedder=texts,
        prompt_version=texts,
        output_dim=indices,
        output_embedder=texts,
        output_version=texts,
        reward_source=texts,
        default_reward=st.none() | numbers,
        timeout_s=numbers,
    ),
    st.builds(ArmAdded, at=times, name=texts, price=numbers, metadata=objects),
    st.builds(ArmChanged, at=times, arm=indices, price=numbers, metadata=objects),
    st.builds(ArmRetired, at=times, arm=indices),
    st.builds(ReferenceAdded, at=times, outputs=matrices(), prompts=matrices(), moments=st.none() | moments),
    st.builds(ReferenceAdded, at=times, id=st.text(), body=st.text(), outputs=matrices()),
    st.builds(
        Decided,
        at=times,
        id=texts,
        arm=st.integers(-1, 999),
        propensity=numbers,
        weights=st.lists(numbers, max_size=4),
        scores=st.dictionaries(texts, st.lists(st.none() | numbers, max_size=4), max_size=2),
        allowed=st.lists(indices, max_size=4),
        price=numbers,
        features=st.binary(max_size=24),
        episode=texts,
        attempt=indices,
        body=texts,
    ),
    st.builds(
        Observed,
        at=times,
        id=texts,
        arm=indices,
        reward=st.none() | numbers,
        cost=numbers,
        propensity=st.none() | numbers,
        output=matrices(),
        reference=matrices(),
        body=texts,
    ),
    st.builds(Expired, at=times, id=texts, reward=st.none() | numbers),
    st.builds(Cancelled, at=times, id=texts),
)


@settings(deadline=None)
@given(event=any_event)
def test_every_event_comes_back_as_it_was_written(event: AnyEvent) -> None:
    payload = events.encode(event)
    assert events.decode(payload) == event
    assert events.encode(events.decode(payload)) == payload


@settings(deadline=None)
@given(event=any_event, offset=st.integers(1, 2**40))
def test_a_line_of_the_log_is_the_payload_with_its_offset_in_front(event: AnyEvent, offset: int) -> None:
    payload = events.encode(event)
    line = events.line(offset, payload)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == {"offset": offset, **json.loads(payload)}


@settings(deadline=None)
@given(garbage=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_other_bytes_are_refused(garbage: bytes) -> None:
    with pytest.raises(UnreadableEvent):
        events.decode(garbage)


CANCELLED = events.encode(Cancelled(at=NOW, id="d1"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":1', b'"v":2'),
        (b'"v":1', b'"v":"1"'),
        (b'"event":"cancelled"', b'"event":"forgotten"'),
        (b'"event":"cancelled",', b""),
        (b'"id":"d1"', b'"id":7'),
        (b',"id":"d1"', b""),
        (b"2026-03-04T05", b"2026-13-04T05"),
        (b"}", b""),
    ],
)
def test_an_event_of_another_version_or_form_is_refused(old: bytes, new: bytes) -> None:
    assert old in CANCELLED
    with pytest.raises(UnreadableEvent):
        events.decode(CANCELLED.replace(old, new))


@pytest.mark.parametrize(
    "changes",
    [
        [(b'"v":1', b'"v":2')],
        [(b'"v":1', b'"v":2'), (b',"id":"d1"', b"")],
        [(b'"v":1', b'"v":2'), (b'"event":"cancelled"', b'"event":"forgotten"')],
    ],
)
def test_an_unknown_version_is_named(changes: list[tuple[bytes, bytes]]) -> None:
    payload = CANCELLED
    for old, new in changes:
        payload = payload.replace(old, new)
    with pytest.raises(NewerEvent, match=r"newer version of nextarm \(event version 2, this build reads 1\)"):
        events.decode(payload)


def test_an_unknown_kind_of_event_was_written_by_a_newer_version() -> None:
    with pytest.raises(NewerEvent, match=r"newer version of nextarm \(the event 'forgotten'\)"):
        events.decode(CANCELLED.replace(b'"event":"cancelled"', b'"event":"forgotten"'))
    with pytest.raises(UnreadableEvent) as garbled:
        events.decode(CANCELLED.replace(b'"id":"d1"', b'"id":7'))
    assert not isinstance(garbled.value, NewerEvent)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_never_reach_a_log(wrong: float) -> None:
    """The encoder would write null, and the log could not be read again."""
    decided = Decided(
        at=NOW,
        id="d1",
        arm=0,
        propensity=0.5,
        weights=[0.5, 0.5],
        scores={},
        allowed=[0, 1],
        price=0.1,
        features=b"",
        episode="d1",
        attempt=1,
        body="",
    )
    observed = Observed(at=NOW, id="d1", arm=0, reward=0.3, cost=0.2, propensity=0.5, body="")
    cases: list[tuple[AnyEvent, dict[str, object]]] = [
        (decided, {"propensity": wrong}),
        (decided, {"weights": [0.5, wrong]}),
        (decided, {"price": wrong}),
        (observed, {"reward": wrong}),
        (observed, {"cost": wrong}),
        (Expired(at=NOW, id="d1", reward=0.3), {"reward": wrong}),
    ]
    for event, change in cases:
        with pytest.raises(ValueError, match="finite"):
            msgspec.structs.replace(event, **change)


# -- vectors ----------------------------------------------------------------------------------------------------------------


def test_vectors_are_base64_of_little_endian_float32() -> None:
    assert events.vector_bytes(np.array([1.5, -2.0])) == bytes.fromhex("0000c03f 000000c0")
    assert events.vector_bytes(np.array([1.5, -2.0], dtype=">f8")[::-1]) == bytes.fromhex("000000c0 0000c03f")
    payload = events.encode(ReferenceAdded(at=NOW, outputs=Matrix.of(np.array([[1.5, -2.0]]))))
    assert json.loads(payload)["outputs"] == {"rows": 1, "columns": 2, "data": base64.b64encode(b"\0\0\xc0?\0\0\0\xc0").decode()}


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30))
def test_float32_numbers_survive_exactly(values: list[float]) -> None:
    vector = np.array(values)
    assert events.vector_tensor(events.vector_bytes(vector)).tolist() == values
    matrix = Matrix.of(vector.reshape(1, -1)) if values else Matrix.of(np.empty((0, 3)))
    assert matrix.tensor().numpy().tolist() == ([values] if values else [])


def test_a_tensor_from_the_log_can_be_changed_without_changing_the_event() -> None:
    matrix = Matrix.of(np.ones((2, 3)))
    matrix.tensor().zero_()
    assert matrix.tensor().sum() == 6.0


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (1, 1), (-1, -1), (0, 1), (-2, 1)])
def test_a_matrix_whose_bytes_are_not_its_shape_is_refused(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match="float32"):
        Matrix(rows, columns, b"\0" * 8)
    good = events.encode(ReferenceAdded(at=NOW, outputs=Matrix(1, 2, b"\0" * 8)))
    with pytest.raises(UnreadableEvent, match="float32"):
        events.decode(good.replace(b'"rows":1,"columns":2', f'"rows":{rows},"columns":{columns}'.encode()))


# -- the released format ----------------------------------------------------------------------------------------------------


def released(name: str) -> list[bytes]:
    """The payloads of a log that a release wrote."""
    lines = (DATA / name).read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        assert line.startswith(b'{"offset":%d,' % number)
    return [b"{" + line.split(b",", 1)[1] for line in lines]


async def folded(name: str) -> Learner:
    storage = MemoryStorage()
    payloads = released(name)
    log, _ = await storage.create(Log("1", "acme/greeter"), payloads[0])
    for number, payload in enumerate(payloads[1:], start=2):
        await storage.append(log, str(number), payload, Durability.POWER)
    return await Learner.load(storage, log)


RELEASED = ["log-v1.ndjson", "log-v1-stop.ndjson", "log-v1-moments.ndjson"]


def test_the_released_logs_hold_every_kind_of_event() -> None:
    found = {type(events.decode(payload)) for name in RELEASED for payload in released(name)}
    shadows = {ShadowCreated, ShadowDeleted, ShadowPromoted}
    younger = {Configured, Partial, Amended, Imported, Cloned, SessionBegun} | shadows  # than these logs
    assert found == set(AnyEvent.__args__) - younger


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_log_would_be_written_the_same_way_today(name: str) -> None:
    for payload in released(name):
        assert events.encode(events.decode(payload)) == payload
        assert not re.search(rb"[\x00-\x1f]", payload)


async def test_the_released_log_folds_to_the_same_state_for_ever() -> None:
    """Its numbers are dyadic, so that sums are exact on every machine."""
    learner = await folded("log-v1.ndjson")
    assert learner.digest() == (21, "361bcb20c5a9dea87d525fbb25354786cdc72d21dbccfc7a3c6e2006c22ae288")
    assert learner.versions.committed.arms == (
        ArmRecord("small", 0.25, {"tier": ["a", 1, None]}, True, 6, 3, 2, 0.25, 0.75, 2),
        ArmRecord("größer", 0.75, {"note": "dearer"}, True, 3, 2, 0, 1.0, 0.5, 2),
        ArmRecord("new/€", 2.5, {}, False, 0, 0, 0, 0.0, 0.0, 0),
    )
    ledger = learner.ledger
    assert (sorted(ledger.open), ledger.decided, ledger.referenced) == (["d7", "d8"], 9, 4)
    assert list(ledger.recent) == [0, 1, 0, 1, 2, 0, 1, 0, 0]
    assert (ledger.episodes["e1"].attempts, ledger.episodes["e1"].made) == ({0: 1}, 2)


async def test_a_released_log_with_a_stop_and_an_expiry_that_is_learned() -> None:
    learner = await folded("log-v1-stop.ndjson")
    assert learner.digest() == (4, "ffd2d896e65d1bba420716e43cf3792afda79ed7a0d9ffdec2d86cdd581286f5")
    assert [(arm.pulls, arm.outcomes, arm.reward_sum, arm.cost_sum) for arm in learner.versions.committed.arms] == [
        (0, 0, 0.0, 0.0),
        (1, 1, 0.125, 0.25),
    ]
    assert not learner.ledger.open


async def test_a_released_log_with_moments() -> None:
    learner = await folded("log-v1-moments.ndjson")
    assert learner.digest() == (2, "f098f3fafe7f4297645b84817af6e3a2fd6a6372741a481b51866bf4af2cb5a9")
    assert learner.ledger.referenced == 40
