"""The log as a stream, and the digest that replicas, restarts and replays agree on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bandits import state as states
from bandits.registry import POLICIES, build
from bandits.types import LAYOUT, Observation
from tests.service.http_client import PROMPT, VECTOR, Json, Service, answered, failed, opened, paths

BODIES: dict[str, Json] = {
    "fd-ucb": {"output": {"dim": 3}},
    "is-ucb": {"output": {"embedder": "probabilities", "dim": 3}},
    "promptwise": {"arms": [{"name": "small", "price": 0.01}, {"name": "large", "price": 0.02}]},
    "mixture-ucb": {"output": {"dim": 3}, "policy": {"kind": "mixture-ucb", "bandwidth": 1.5}},
    "mixture-greedy": {"output": {"dim": 3}, "policy": {"kind": "mixture-greedy", "bandwidth": 1.5}},
    "dak-ucb": {"output": {"dim": 3}, "policy": {"kind": "dak-ucb", "output_bandwidth": 0.75}},
}
"""What a bandit of this kind needs beyond a prompt of three numbers."""


async def _play(service: Service, rounds: int, name: str = "b", *, outputs: bool = False) -> None:
    for i in range(rounds):
        decision = await service.decide(name, {"prompt": {"vector": [0.5, i / 7, -1.0]}})
        if i % 5 == 3:
            await service.delete(f"/v1/bandits/{name}/decisions/{decision['id']}")
        elif i % 5 < 3 and decision["arm"]:
            output = {"probabilities" if "is-ucb" in name else "vector": [0.25, 0.5 - i / 64, 0.25 + i / 64]}
            shown = {"output": [output, output]} if outputs else {}
            await service.observe(decision["id"], {"reward": i / 16, **shown}, name=name)


async def test_the_log_is_every_event_in_order(service: Service) -> None:
    await service.create(body=VECTOR)
    await _play(service, 10)
    events = await service.log()
    assert [event["offset"] for event in events] == list(range(1, len(events) + 1))
    assert [event["event"] for event in events].count("decided") == 10
    raw = (await service.get("/v1/bandits/b/log")).text
    assert raw.endswith("\n")
    assert all(line.startswith('{"offset":') for line in raw.splitlines())


@pytest.mark.parametrize(
    ("after", "limit"), [(0, 1), (0, 7), (3, 4), (20, 100), (10, None), (10**9, 5), (0, 10**30), (10**30, None)]
)
async def test_the_log_can_be_read_in_pieces(service: Service, after: int, limit: int | None) -> None:
    await service.create(body=VECTOR)
    await _play(service, 14)
    whole = await service.log()
    query = f"?after={after}" + ("" if limit is None else f"&limit={limit}")
    expected = [event for event in whole if event["offset"] > after][: limit if limit is None or limit < 100 else 100]
    assert await service.log(query=query) == expected


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=-1", "limit=1.5"])
async def test_pieces_that_make_no_sense_are_refused(service: Service, query: str) -> None:
    await service.create()
    response = await service.get(f"/v1/bandits/b/log?{query}")
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == [query.partition("=")[0]]


async def test_fields_and_vectors_are_left_out_as_asked(service: Service) -> None:
    await service.create(body=VECTOR)
    await _play(service, 3)
    whole = await service.log()
    assert await service.log(query="?vectors=1") == whole
    bare = await service.log(query="?vectors=0")
    assert bare == [
        {name: value for name, value in event.items() if name not in ("features", "output", "reference")} for event in whole
    ]
    assert any("features" in event for event in whole)
    some = await service.log(query="?fields=arm,%20reward,features&after=1&limit=2")
    assert some == [
        {name: event[name] for name in ("offset", "event", "arm", "reward", "features") if name in event} for event in whole[1:3]
    ]
    assert await service.log(query="?fields=features&vectors=0&limit=1") == [{"offset": 1, "event": "created"}]
    raw = (await service.get("/v1/bandits/b/log?vectors=0")).text.splitlines()
    stored = (await service.get("/v1/bandits/b/log")).text.splitlines()
    assert raw[0] == stored[0], "what is kept is kept byte for byte"


@pytest.mark.parametrize("query", ["fields=", "fields=,", "fields=arm,nonsense", "vectors=2", "vectors=x"])
async def test_fields_that_no_event_has_are_refused(service: Service, query: str) -> None:
    await service.create()
    refused = await service.get(f"/v1/bandits/b/log?{query}")
    assert failed(refused) == (422, "invalid_request")
    assert paths(refused) == [query.partition("=")[0]]


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("identity", False),
        ("gzip;q=0, *", False),
        ("gzip; q=0.0", False),
        ("br", False),
        ("", False),
    ],
)
async def test_the_log_is_gzip_where_that_is_accepted(service: Service, accepted: str, is_packed: bool) -> None:
    await service.create()
    await service.post("/v1/bandits/b/decisions/batch", {"decisions": [{}] * 600})
    response = await service.ask("GET", "/v1/bandits/b/log", headers={"accept-encoding": accepted})
    assert response.headers.get("content-encoding") == ("gzip" if is_packed else None)
    assert response.headers["vary"] == "accept-encoding"
    plain = await service.ask("GET", "/v1/bandits/b/log", headers={"accept-encoding": "identity"})
    assert response.content == plain.content
    if is_packed:
        assert response.num_bytes_downloaded < plain.num_bytes_downloaded / 4


async def test_a_log_longer_than_a_page_streams_whole(service: Service) -> None:
    await service.create()
    await service.post("/v1/bandits/b/decisions/batch", {"decisions": [{}] * 1024})
    assert [event["offset"] for event in await service.log()] == list(range(1, 1026))
    assert [event["offset"] for event in await service.log(query="?after=7&limit=600")] == list(range(8, 608))


async def test_the_digest_is_that_of_the_sums_alone(service: Service) -> None:
    """Computed from the log by hand: the rewards of each arm, in their order."""
    await service.create()
    for reward in (0.25, 0.5, -1.5, 3.0):
        await service.observe((await service.decide())["id"], {"reward": reward})
    policy = build("greedy", {})
    state = states.start(policy, arms=2)
    for event in await service.log():
        if event["event"] == "observed":
            state = states.fold(policy, state, Observation(arm=event["arm"], reward=event["reward"]))
    shown = answered(await service.get("/v1/bandits/b/digest"))
    assert shown == {"offset": 9, "sha256": hashlib.sha256(states.pack(policy, state)).hexdigest(), "layout": LAYOUT}


async def test_a_pending_decision_moves_the_offset_and_not_the_sums(service: Service) -> None:
    await service.create(body=VECTOR)
    before = answered(await service.get("/v1/bandits/b/digest"))
    decision = await service.decide(body=PROMPT)
    pending = answered(await service.get("/v1/bandits/b/digest"))
    await service.observe(decision["id"])
    after = answered(await service.get("/v1/bandits/b/digest"))
    assert [one["offset"] for one in (before, pending, after)] == [1, 2, 3]
    assert before["sha256"] == pending["sha256"] != after["sha256"]


@pytest.mark.parametrize("kind", POLICIES)
async def test_the_digest_is_the_same_after_a_restart_and_after_a_replay(kind: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    body = {**VECTOR, "policy": {"kind": kind}, **BODIES.get(kind, {})}
    async with opened(store=store, snapshot_every=7) as service:
        await service.create(kind, body)
        if kind == "fd-ucb":
            await service.post(f"/v1/bandits/{kind}/references", {"outputs": [{"vector": [0.5, 0.25, i / 8]} for i in range(9)]})
        await _play(service, 12, kind, outputs="output" in body)
        live = answered(await service.get(f"/v1/bandits/{kind}/digest"))
    async with opened(store=store) as service:
        assert answered(await service.get(f"/v1/bandits/{kind}/digest")) == live
        await _play(service, 3, kind, outputs="output" in body)
        further = answered(await service.get(f"/v1/bandits/{kind}/digest"))
    from service.cli.logs import digests
    from service.settings import Settings

    (replayed,) = await digests(Settings(store=store), kind, quiet=True)
    assert {"offset": replayed.offset, "sha256": replayed.sha256, "layout": LAYOUT} == further
    assert replayed.snapshot_agrees
