"""Several processes over one Redis: what one of them does, all of them learn, once, and in the same order."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from numpy.random import default_rng

from bandits.registry import POLICIES
from service.api.problems import Problem
from service.engine import projection as folding
from service.engine.errors import BanditNotFoundError, OffsetBeyondEndError, OutcomeConflictError
from service.engine.events import ArmAdded, ReferenceAdded, added_key
from service.engine.learner import Learner
from service.engine.outcomes import AmendmentReport, OutcomeReport
from service.engine.repository import BanditRepository
from service.settings import Settings
from service.storage.base import Log, LogTruncatedError, StorageError
from service.storage.redis import notifications as redis_news
from service.storage.redis.address import parse
from service.storage.redis.store import RedisStorage
from tests.bandits.examples import EXAMPLES
from tests.service.drivers import GREEDY, Clients, Clock, ask, learner_of
from tests.service.engine import test_shadows as shadow_scenes
from tests.service.engine.test_function_of_the_log import derived, run_of
from tests.service.engine.test_repository import wanted
from tests.service.event_stream import reading
from tests.service.http_client import ARMS, VECTOR, Service, failed, opened
from tests.service.redis_server import needs_redis, shared
from tests.service.reenact import reenact, stored
from tools.processes import RedisServer

pytestmark = needs_redis
PATIENCE_S = 20


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextlib.asynccontextmanager
async def stores(prefix: str, number: int, url: str = "") -> AsyncIterator[list[RedisStorage]]:
    """As many processes see it."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(number):
            storage = RedisStorage(parse(url or shared().url), prefix=prefix)
            await storage.start()
            stack.push_async_callback(storage.close)
            opened.append(storage)
        yield opened


@contextlib.asynccontextmanager
async def replicas(
    prefix: str, number: int = 2, *, url: str = "", clock: Clock | None = None
) -> AsyncIterator[list[BanditRepository]]:
    """Hosts over one store, as many processes would run them."""
    async with contextlib.AsyncExitStack() as stack:
        hosts = []
        for _ in range(number):
            storage = RedisStorage(parse(url or shared().url), prefix=prefix)
            hosting = BanditRepository(storage, Settings(sweep_s=1000.0), clock=clock or Clock())
            await hosting.start()
            stack.push_async_callback(hosting.close)
            hosts.append(hosting)
        yield hosts


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def known_log(host: BanditRepository, name: str) -> Log | None:
    """The log that has a name as far as a replica knows, loaded or not."""
    learner = host._learners.get(name)
    return host._unloaded.get(name) if learner is None else learner.log


class Balanced:
    """Whichever replica a load balancer picks."""

    def __init__(self, learners: list[Learner], seed: int) -> None:
        self.learners = learners
        self.g = default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learners[int(self.g.integers(len(self.learners)))], name)


def facts(bandit: Learner) -> tuple[Any, ...]:
    return bandit.digest(), bandit.ledger.pack(), bandit.versions.committed.arms


@pytest.mark.parametrize("kind", POLICIES)
async def test_replicas_end_at_the_same_bytes_whichever_was_asked(
    kind: str, prefix: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = EXAMPLES[kind][0]
    options: dict[str, Any] = {"clock": clock, "snapshot_every": 13}
    async with stores(prefix, 3) as (first, second, third):
        one = await learner_of(first, example, options=options)
        two = await Learner.load(second, one.log, **options)
        clients = Clients(example, cast(Learner, Balanced([one, two], seed=8)), clock, seed=9)
        await clients.work(10)
        for bandit in (one, two):
            await bandit.projection.catch_up()
        assert facts(one) == facts(two)
        for batch in (1, 256):
            monkeypatch.setattr(folding, "READ_BATCH", batch)
            assert facts(await Learner.load(third, one.log, use_snapshots=False)) == facts(one)
        assert facts(await Learner.load(third, one.log)) == facts(one), "from a snapshot"


async def test_replicas_agree_to_the_bit_on_shadows_and_promotions(prefix: str, clock: Clock) -> None:
    """Whichever is asked for what, both write what one process wrote: weights of shadows too, and who decides."""
    payloads, g = await shadow_scenes.payloads_of([]), default_rng(5)
    async with stores(prefix, 3) as (first, second, third):
        log = await stored(first, Log("1", "greeter"), payloads[:1])
        options: dict[str, Any] = {"clock": clock, "snapshot_every": 17, **shadow_scenes.PATIENT}
        bandits = [await Learner.load(first, log, **options), await Learner.load(second, log, **options)]
        for payload in payloads[1:]:
            for bandit in bandits:
                await shadow_scenes.settled(bandit)
            assert await reenact(bandits[int(g.integers(2))], clock, payload) == payload
        found = [shadow_scenes.facts(await shadow_scenes.settled(bandit)) for bandit in bandits]
        for use_snapshots in (False, True):
            again = await Learner.load(third, log, use_snapshots=use_snapshots)
            found.append(shadow_scenes.facts(await shadow_scenes.settled(again)))
        assert all(one == found[0] for one in found)


@pytest.mark.parametrize("form", ["prompts", "no-prompts", "forgets"])
async def test_replicas_decide_to_the_bit_as_one_process_does(form: str, prefix: str, clock: Clock) -> None:
    """Signals, a budget and alarms of the drift detector included, whichever replica is asked for what."""
    run, g = await run_of(form, rounds=70 if form == "no-prompts" else 25), default_rng(4)
    assert bool(run.bandit.ledger.alarms) == (form == "no-prompts")
    async with stores(prefix, 2) as (first, second):
        log = await stored(first, Log("1", "greeter"), run.payloads[:1])
        options: dict[str, Any] = {"clock": clock, "snapshot_every": 17}
        bandits = [await Learner.load(first, log, **options), await Learner.load(second, log, **options)]
        for payload in run.payloads[1:]:
            asked = bandits[int(g.integers(2))]
            await asked.projection.catch_up()
            assert await reenact(asked, clock, payload) == payload, f"offset {asked.versions.committed.offset}"
        for bandit in bandits:
            await bandit.projection.catch_up()
            await bandit.projection.background.finish()
            assert bandit.ledger.alarms == run.bandit.ledger.alarms
            assert bandit.ledger.pack() == run.bandit.ledger.pack()
            assert bandit.digest() == run.bandit.digest()
            assert derived(bandit) == derived(run.bandit)


async def test_a_bandit_of_one_replica_is_a_bandit_of_all(prefix: str) -> None:
    async with replicas(prefix, 3) as (one, two, three):
        await one.create(wanted("ours"))
        bandit = await two.get("", "ours")
        assert bandit.log == (await one.get("", "ours")).log
        await until(lambda: "ours" in three._unloaded)
        _, is_new = await three.create(wanted("ours"))
        assert not is_new
        assert (await three.create(wanted("ours", price=9.0)))[1] is False
        await two.delete("", "ours")
        await until(lambda: not one.loaded(None) and not three.loaded(None))
        for host in (one, three):
            with pytest.raises(BanditNotFoundError):
                await host.get("", "ours")
        again, is_new = await three.create(wanted("ours", price=9.0))
        assert is_new
        assert (await one.get("", "ours")).log == again.log


async def test_a_replica_without_news_deletes_and_creates_what_has_the_name_now(prefix: str) -> None:
    async with replicas(prefix, 2) as (one, two):
        for is_deleted in (False, True):
            await one.create(wanted("ours"))
            old = await two.get("", "ours")
            for task in two._tasks:
                task.cancel()
            await one.delete("", "ours")
            new, _ = await one.create(wanted("ours", price=9.0))
            assert new.log != old.log
            if is_deleted:
                await two.delete("", "ours")
                assert await one.storage.logs() == []
            else:
                again, is_new = await two.create(wanted("ours", price=9.0))
                assert (is_new, again.log) == (False, new.log)
                await one.delete("", "ours")
                two._learners.clear()


async def test_replicas_that_create_and_delete_one_name_at_once_agree_in_the_end(prefix: str) -> None:
    g = default_rng(5)
    async with replicas(prefix, 3) as hosts:
        for _ in range(10):
            requests: list[Any] = []
            for host in hosts:
                requests += [host.create(wanted("ours", price=float(g.integers(9)))) for _ in range(2)]
                requests += [host.delete("", "ours"), host.get("", "ours")]
            await asyncio.gather(*(requests[i] for i in g.permutation(len(requests))), return_exceptions=True)
        await hosts[0].create(wanted("ours"))
        (log,) = await hosts[0].storage.logs()
        await until(lambda: all(known_log(host, "ours") == log for host in hosts))
        for host in hosts:
            await host.get("", "ours")
        learner = await hosts[1].get("", "ours")
        await learner.decisions.submit(ask(GREEDY, g, "d1"))
        await until(
            lambda: all(host.loaded("")[0][1].versions.committed.offset == learner.versions.committed.offset for host in hosts)
        )


async def test_an_outcome_is_learned_once_whichever_replicas_it_was_posted_to(prefix: str) -> None:
    g = default_rng(1)
    async with replicas(prefix) as hosts:
        one, _ = await hosts[0].create(wanted())
        two = await hosts[1].get("", "greeter")
        made = await asyncio.gather(*(one.decisions.submit(ask(GREEDY, g, f"d{i}")) for i in range(40)))
        receipts = await asyncio.gather(
            *(
                bandit.outcomes.submit(kept.event.id, OutcomeReport(reward=0.5, body="same"))
                for kept in made
                for bandit in (two, one, two)
            )
        )
        offsets = {kept.event.id: {r.offset for r in receipts if r.event.id == kept.event.id} for kept in made}
        assert all(len(found) == 1 for found in offsets.values())
        assert sum(not receipt.is_duplicate for receipt in receipts) == 40
        with pytest.raises(OutcomeConflictError):
            await one.outcomes.submit("d7", OutcomeReport(reward=0.75, body="other"))
        for bandit in (one, two):
            await bandit.projection.wait_for_offset(81, timeout_s=PATIENCE_S)
            assert sum(arm.outcomes for arm in bandit.versions.committed.arms) == 40
        assert one.digest() == two.digest()


async def test_an_outcome_that_one_replica_acknowledged_can_be_amended_at_the_other(prefix: str, clock: Clock) -> None:
    async with stores(prefix, 2) as (first, second):
        one = await learner_of(first, options={"clock": clock})
        await one.decisions.submit(ask(GREEDY, default_rng(1), "d"))
        two = await Learner.load(second, one.log, clock=clock)  # it follows nothing: what it has read ends here
        await one.outcomes.submit("d", OutcomeReport(reward=1.0))
        assert "d" in two.ledger.open
        assert not (await two.outcomes.amend("d", AmendmentReport(values={"reward": 0.0}))).is_duplicate
        await one.projection.catch_up()
        assert facts(one) == facts(two)


async def test_what_one_replica_acknowledged_the_other_has_learned_when_it_is_asked_for_it(prefix: str) -> None:
    g = default_rng(2)
    async with replicas(prefix) as hosts:
        one, _ = await hosts[0].create(wanted())
        two = await hosts[1].get("", "greeter")
        for number in range(10):
            await one.decisions.submit(ask(GREEDY, g, f"d{number}"))
            receipt = await one.outcomes.submit(f"d{number}", OutcomeReport(reward=number / 10))
            await two.projection.wait_for_offset(receipt.offset, timeout_s=PATIENCE_S)
            assert two.digest() == one.digest()
        with pytest.raises(OffsetBeyondEndError):
            await two.projection.wait_for_offset(receipt.offset + 1, timeout_s=PATIENCE_S)


async def test_a_replica_follows_without_being_asked(prefix: str) -> None:
    g = default_rng(3)
    async with replicas(prefix) as hosts:
        one, _ = await hosts[0].create(wanted())
        two = await hosts[1].get("", "greeter")
        await asyncio.gather(*(one.decisions.submit(ask(GREEDY, g, f"d{i}")) for i in range(100)))
        await until(lambda: two.versions.committed.offset == 101)
        assert hosts[1].lag(two) == 0
        assert sum(arm.pending for arm in two.versions.committed.arms) == 100, "decisions of others are pending here, too"


async def test_arms_that_two_replicas_add_at_once_are_all_there_in_one_order(prefix: str) -> None:
    async with replicas(prefix) as hosts:
        one, _ = await hosts[0].create(wanted())
        two = await hosts[1].get("", "greeter")

        def added(name: str) -> ArmAdded:
            return ArmAdded(at=hosts[0].clock(), name=name, price=0.1, metadata={})

        names = [f"arm {i}" for i in range(5, 13)]
        both = [(bandit, name) for name in names for bandit in (one, two)]
        receipts = await asyncio.gather(*(bandit.committer.record(added(name), key=added_key(name)) for bandit, name in both))
        assert sum(receipt.first is None for receipt in receipts) == 8
        await one.projection.catch_up()
        await two.projection.catch_up()
        assert one.versions.committed.arms == two.versions.committed.arms
        assert (
            len({arm.name for arm in one.versions.committed.arms}) == len(one.versions.committed.arms) == len(wanted().arms) + 8
        )


async def test_what_is_checked_against_the_log_holds_although_another_replica_wrote_meanwhile(prefix: str) -> None:
    """No arm beyond the limit, however many replicas add one at once."""
    async with replicas(prefix, 3) as hosts:
        bandits = [(await hosts[0].create(wanted()))[0], *[await host.get("", "greeter") for host in hosts[1:]]]
        limit = len(wanted().arms) + 2

        async def add(bandit: Learner, name: str) -> bool:
            def check() -> None:
                if len(bandit.ledger.arms) >= limit:
                    raise Problem("invalid_request", "too many arms")

            event = ArmAdded(at=hosts[0].clock(), name=name, price=0.1, metadata={})
            try:
                return (await bandit.committer.record(event, key=added_key(name), check=check)).first is None
            except Problem:
                return False

        done = await asyncio.gather(*(add(bandit, f"{i} of {n}") for n, bandit in enumerate(bandits) for i in range(4)))
        assert sum(done) == 2
        for bandit in bandits:
            await bandit.projection.catch_up()
            assert len(bandit.versions.committed.arms) == limit


async def test_a_reference_is_frozen_by_a_decision_of_another_replica(prefix: str, clock: Clock) -> None:
    example = EXAMPLES["fd-ucb"][0]
    async with stores(prefix, 2) as (first, second):
        one = await learner_of(first, example)
        two = await Learner.load(second, one.log)
        await one.decisions.submit(ask(example, default_rng(4), "d1"))

        def check() -> None:
            if two.ledger.decided:
                raise Problem("reference_frozen", "too late")

        rows = ReferenceAdded(at=clock())
        with pytest.raises(Problem, match="too late"):
            await two.committer.record(rows, key="reference/late", check=check)


async def test_overdue_decisions_expire_once_whichever_replica_looks(prefix: str, clock: Clock) -> None:
    g = default_rng(5)
    async with replicas(prefix, 2, clock=clock) as hosts:
        one, _ = await hosts[0].create(wanted(timeout_s=60.0))
        two = await hosts[1].get("", "greeter")
        for number in range(6):
            await one.decisions.submit(ask(GREEDY, g, f"d{number}"))
        await two.projection.catch_up()
        clock.advance(61.0)
        await asyncio.gather(one.outcomes.expire(), two.outcomes.expire())
        await one.projection.catch_up()
        assert one.versions.committed.offset == 1 + 12
        assert not one.ledger.open


# -- over HTTP --------------------------------------------------------------------------------------------------------------

PROMPT: dict[str, Any] = {"prompt": {"vector": [0.25, -0.5, 2.0]}}


@contextlib.asynccontextmanager
async def two_services(prefix: str) -> AsyncIterator[tuple[Service, Service]]:
    settings: dict[str, Any] = {"store": shared().url, "redis_prefix": prefix}
    async with opened(**settings) as one, opened(**settings) as two:
        yield one, two


async def test_an_episode_goes_on_at_another_replica(prefix: str) -> None:
    body = {
        "policy": {"kind": "promptwise", "max_attempts": 3, "cost_weight": 0.001, "forced_pulls": 0},
        "arms": ARMS,
        "prompt": {"dim": 3},
        "seed": 7,
    }
    async with two_services(prefix) as (one, two):
        await one.create(body=body)
        first = await two.decide(body=PROMPT)
        failure = await one.observe(first["id"], {"reward": 0.0, "next": True})
        assert failure["next"]["attempt"] == 2
        await two.observe(failure["next"]["id"], {"reward": 0.0})
        third = await one.decide(body={"episode": first["episode"]})
        assert third["attempt"] == 3
        await two.observe(third["id"], {"reward": 1.0})
        over = await one.post("/v1/bandits/b/decisions", {"episode": first["episode"]})
        assert failed(over) == (409, "episode_finished")


async def test_a_stream_of_one_replica_has_what_the_other_writes(prefix: str) -> None:
    async with two_services(prefix) as (one, two):
        await one.create(body=VECTOR)
        await two.decide(body={**PROMPT, "id": "d0"})
        async with reading(one) as reader, reading(two, last_event_id="1") as other:
            for service, number in ((two, 1), (one, 2), (two, 3)):
                await service.decide(body={**PROMPT, "id": f"d{number}"})
            assert [event["id"] for event in await reader.events(3)] == ["d1", "d2", "d3"]
            assert [event["id"] for event in await other.events(4)] == ["d0", "d1", "d2", "d3"]
            await two.delete("/v1/bandits/b")
            for stream in (reader, other):
                assert [message["event"] async for message in stream.messages()] == [" end"]


async def test_a_bandit_that_another_replica_has_deleted_can_be_created_before_that_is_known(prefix: str) -> None:
    async with two_services(prefix) as (one, two):
        body, other = VECTOR, VECTOR | {"seed": 11}
        for _ in range(2):
            await one.create(body=body)
            assert (await two.bandit())["offset"] == 1
            await two.client._transport.app.state.services.repository._follower.close()  # type: ignore[attr-defined]
            await one.delete("/v1/bandits/b")
            assert (await two.put("/v1/bandits/b", body)).status_code == 201
            assert (await two.put("/v1/bandits/b", body)).status_code == 200
            await one.delete("/v1/bandits/b")
            await one.create(body=other)
            assert failed(await two.put("/v1/bandits/b", body)) == (409, "bandit_exists")
            assert (await two.put("/v1/bandits/b", other)).status_code == 200
            await two.delete("/v1/bandits/b")


async def test_arms_and_references_posted_to_one_replica_are_known_to_the_other_when_it_is_asked(prefix: str) -> None:
    fd = {"policy": {"kind": "fd-ucb"}, "arms": [{"name": "a"}], "output": {"dim": 2}, "seed": 7}
    async with two_services(prefix) as (one, two):
        await one.create(body=fd)
        assert failed(await two.post("/v1/bandits/b/decisions", {})) == (409, "reference_missing")
        samples = [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0]}, {"vector": [0.5, -0.5]}]
        assert (await one.post("/v1/bandits/b/references", {"outputs": samples})).status_code == 201
        decision = await two.decide()
        assert (await one.put("/v1/bandits/b/arms/new")).status_code == 201
        assert (await two.decide(body={"arms": ["new"]}))["arm"] == "new"
        assert (await one.put("/v1/bandits/b/arms/newer")).status_code == 201
        receipt = await two.observe(decision["id"], {"output": {"vector": [0.5, 0.5]}, "arm": "newer"})
        assert (await two.delete("/v1/bandits/b/arms/newer")).status_code == 204
        headers = {"x-nextarm-min-offset": str(receipt["offset"] + 1)}
        shown = (await one.ask("GET", "/v1/bandits/b", headers=headers)).json()
        assert [(arm["name"], arm["active"], arm["outcomes"]) for arm in shown["arms"]] == [
            ("a", True, 0),
            ("new", True, 0),
            ("newer", False, 1),
        ]


async def test_replicas_whose_clocks_are_an_hour_apart_agree_on_what_is_overdue(prefix: str) -> None:
    """The store's clock counts: neither does the one that is ahead expire what is open, nor the one behind keep what is over."""
    early, late = Clock(), Clock()
    early.advance(3600.0)
    async with replicas(prefix, 1, clock=early) as (one,), replicas(prefix, 1, clock=late) as (two,):
        first, _ = await two.create(wanted(timeout_s=60.0))
        second = await one.get("", "greeter")
        assert abs((one.clock() - two.clock()).total_seconds()) < 5.0
        await first.decisions.submit(ask(GREEDY, default_rng(8), "d1"))
        await second.projection.catch_up()
        assert await second.outcomes.expire() == 0
        early.advance(61.0)
        late.advance(61.0)
        assert await second.outcomes.expire() == 1
        await first.projection.catch_up()
        assert not first.ledger.open


# -- a store that lost what it had acknowledged -----------------------------------------------------------------------------


async def test_a_log_that_lost_its_end_is_learned_again_by_every_replica(prefix: str) -> None:
    """Redis without an append-only file comes back with its last dump: the rest is gone, and no replica goes on with it."""
    g = default_rng(6)
    with RedisServer() as server:
        async with replicas(prefix, 2, url=server.url) as hosts:
            one, _ = await hosts[0].create(wanted())
            two = await hosts[1].get("", "greeter")
            for number in range(5):
                await one.decisions.submit(ask(GREEDY, g, f"d{number}"))
                await one.outcomes.submit(f"d{number}", OutcomeReport(reward=1.0))
            await two.projection.wait_for_offset(11, timeout_s=PATIENCE_S)
            server.command("SAVE")
            for number in range(5, 9):
                await one.decisions.submit(ask(GREEDY, g, f"d{number}"))
                await one.outcomes.submit(f"d{number}", OutcomeReport(reward=0.0))
            await two.projection.wait_for_offset(19, timeout_s=PATIENCE_S)
            server.kill()
            server.start()
            renewed = [await again(host) for host in hosts]
            assert [bandit.versions.committed.offset for bandit in renewed] == [11, 11]
            assert one not in renewed
            assert two not in renewed
            with pytest.raises((LogTruncatedError, StorageError)):
                await one.decisions.submit(ask(GREEDY, g, "late"))
            await renewed[0].decisions.submit(ask(GREEDY, g, "new"))
            receipt = await renewed[1].outcomes.submit("new", OutcomeReport(reward=0.25))
            await renewed[0].projection.wait_for_offset(receipt.offset, timeout_s=PATIENCE_S)
            assert renewed[0].digest() == renewed[1].digest()


async def again(host: BanditRepository) -> Learner:
    """The bandit, once the host has noticed and rebuilt; what it raises meanwhile is a 503."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                bandit = await host.get("", "greeter")
                await bandit.projection.catch_up()
            except StorageError:
                await asyncio.sleep(0.01)
            else:
                if bandit.versions.committed.offset <= 11:
                    return bandit
                await asyncio.sleep(0.01)


async def test_a_bandit_that_redis_lost_entirely_is_gone_and_can_be_created_again(prefix: str) -> None:
    g = default_rng(7)
    with RedisServer() as server:
        async with replicas(prefix, 1, url=server.url) as (host,):
            bandit, _ = await host.create(wanted())
            await bandit.decisions.submit(ask(GREEDY, g, "d1"))
            server.kill()
            server.start()
            with pytest.raises(StorageError):
                await bandit.decisions.submit(ask(GREEDY, g, "d2"))
            await until(lambda: not host.loaded(None))
            with pytest.raises(BanditNotFoundError):
                await host.get("", "greeter")
            again, is_new = await host.create(wanted())
            assert is_new
            assert (await again.decisions.submit(ask(GREEDY, g, "d1"))).offset == 2


async def test_replicas_notice_by_themselves_that_redis_lost_everything(prefix: str) -> None:
    """No request reaches the store: what they answer from memory is of a log that is no more."""
    with RedisServer() as server:
        async with replicas(prefix, 2, url=server.url) as hosts:
            await hosts[0].create(wanted())
            await hosts[1].get("", "greeter")
            server.kill()
            server.start()
            await until(lambda: not any(host.loaded(None) for host in hosts))
            for host in hosts:
                with pytest.raises(BanditNotFoundError):
                    await host.get("", "greeter")


# -- a store that other programs write to ------------------------------------------------------------------------------------


def redis_keys(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}:{{b}}:{name}" for name in names]


@pytest.mark.parametrize("names", [("keys",), ("log",), ("head",), ("log", "keys"), ("head", "keys")], ids=" and ".join)
async def test_a_bandit_whose_keys_were_removed_answers_503_and_is_listed_as_damaged_by_everybody(
    prefix: str, names: tuple[str, ...]
) -> None:
    """No second acknowledgment, nothing learned twice, and a restart says the same."""
    async with two_services(prefix) as (one, two):
        await one.create(body=VECTOR)
        decision = await one.decide(body={"id": "d1", **PROMPT})
        outcome = f"/v1/bandits/b/decisions/{decision['id']}/outcome"
        assert (await one.put(outcome, {"reward": 1.0})).status_code == 200
        await two.decide(body={"id": "d2", **PROMPT})
        shared().client().delete(*redis_keys(prefix, *names))
        for service in (one, two):
            for answer in (
                await service.post("/v1/bandits/b/decisions", {"id": "d1", **PROMPT}),
                await service.put(outcome, {"reward": 1.0}),
                await service.put("/v1/bandits/b/decisions/d2/outcome", {"reward": 1.0}),
            ):
                assert failed(answer) == (503, "storage_unavailable")
            assert await damaged(service) == ["b"]
    async with two_services(prefix) as (one, _):
        assert failed(await one.post("/v1/bandits/b/decisions", PROMPT)) == (503, "storage_unavailable")
        assert await damaged(one) == ["b"]
        assert (await one.delete("/v1/bandits/b")).status_code == 204
        await one.create(body=VECTOR)
        assert await damaged(one) == []


@pytest.mark.parametrize("names", [("keys",), ("log",), ("head",)], ids=" and ".join)
async def test_an_idle_replica_lists_a_damaged_bandit_within_one_look(
    prefix: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_news, "SWEEP_S", 0.05)
    async with two_services(prefix) as (one, two):
        await one.create(body=VECTOR)
        await one.decide(body=PROMPT)
        await two.decide(body=PROMPT)
        shared().client().delete(*redis_keys(prefix, *names))
        async with asyncio.timeout(PATIENCE_S):
            while [await damaged(service) for service in (one, two)] != [["b"], ["b"]]:
                await asyncio.sleep(0.01)


async def test_a_trimmed_bandit_whose_snapshots_were_removed_is_there_after_a_restart(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else stands for what was trimmed: the running service writes one at once."""
    monkeypatch.setattr(redis_news, "SWEEP_S", 0.05)
    settings: dict[str, Any] = {
        "store": shared().url,
        "redis_prefix": prefix,
        "redis_keep_events": 1,
        "snapshot_every": 10,
        "sweep_s": 0.02,
    }
    (snapshots,) = redis_keys(prefix, "snapshots")
    async with opened(**settings) as one:
        await one.create(body=VECTOR | {"amend_until_s": 0})
        for _ in range(40):
            await one.decide(body=PROMPT)
        await until(lambda: int(shared().client().hget(redis_keys(prefix, "head")[0], "floor") or 1) > 1)
        shared().client().delete(snapshots)
        await until(lambda: shared().client().exists(snapshots))
    async with opened(**settings) as again:
        assert (await again.decide(body=PROMPT))["offset"] == 42
        assert await damaged(again) == []


async def test_replicas_say_in_readyz_that_redis_was_emptied_under_them(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_news, "SWEEP_S", 0.05)
    with RedisServer() as server:
        settings: dict[str, Any] = {"store": server.url, "redis_prefix": prefix}
        async with opened(**settings) as one:
            await one.create(body=VECTOR)
            await one.decide(body=PROMPT)
            server.command("FLUSHDB")
            async with asyncio.timeout(PATIENCE_S):
                while not any("were lost" in notice for notice in (await one.get("/readyz")).json()["notices"]):
                    await asyncio.sleep(0.01)
            assert failed(await one.post("/v1/bandits/b/decisions", PROMPT)) == (404, "bandit_not_found")
            await one.create(body=VECTOR)
            assert (await one.decide(body=PROMPT))["offset"] == 2


async def damaged(service: Service) -> list[str]:
    """Names of the bandits that `readyz` lists as damaged."""
    answer = (await service.get("/readyz")).json()
    return [line.split(":")[0] for line in answer["damaged"]]
