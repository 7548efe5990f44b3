"""The image and both compose files in real containers (`make test-containers`): faults under load, and what is left afterwards.

One stack of replicas serves all tests of it, in their order; each leaves it healthy.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.containers.record import say
from tests.deploy.files import ROOT
from tests.deploy.routers import ADMIN, BANDIT, READER, Acknowledged, Client, check_log
from tools.containers import Engine, Project
from tools.processes import free_port, wait_until

ROUTERS = 3
PATIENCE_S = 240.0
KEYS = {
    "NEXTARM_API_KEYS": f"admin:{ADMIN},reader:{READER}",
    "NEXTARM_ALLOW_ANONYMOUS": "0",
    "NEXTARM_METRICS_KEY": READER,
    "NEXTARM_REDIS_PASSWORD": "of-redis",
}
OTHERS = [f"other-{number}" for number in range(12)]


class Stack(Project):
    """docker-compose.yml, and the routers' side of it."""

    def __init__(self, engine: Engine) -> None:
        ports = {"NEXTARM_PUBLISHED_PORT": str(free_port()), "PROMETHEUS_PORT": str(free_port())}
        super().__init__(engine, ROOT / "docker-compose.yml", KEYS | ports)
        self.url = f"http://127.0.0.1:{ports['NEXTARM_PUBLISHED_PORT']}"
        self.prometheus = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}"
        self.acknowledged: list[Acknowledged] = []
        self.repeated = 0
        self._number = 0
        self._lock = threading.Lock()

    def next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def replicas(self) -> dict[str, str]:
        """Container -> address, as the load balancer sees it."""
        return {container: self.address(container, "_replicas") for container in self.containers("nextarm")}

    def ask(self, address: str, path: str) -> httpx.Response:
        """A replica itself, not through nginx."""
        headers = {"authorization": f"Bearer {ADMIN}"}
        return httpx.get(f"http://{address}:8000{path}", headers=headers, timeout=60.0, trust_env=False)

    def answered_by(self, container: str = "") -> dict[str, set[str]]:
        """Bandit -> the replicas that nginx has had answers from, since `mark`."""
        found: dict[str, set[str]] = defaultdict(set)
        for line in self.logs("nginx")[self._read :]:
            match = re.search(r'"uri":"/v1/bandits/([^/"]+).*"replica":"([^"]*)"', line)
            if match is not None:
                found[match[1]].add(match[2].split(", ")[-1].partition(":")[0])
        return found

    _read = 0

    def mark(self) -> None:
        self._read = len(self.logs("nginx"))

    def place(self, client: Client) -> dict[str, str]:
        """Bandit -> the one replica that answers for it."""
        self.mark()
        for _ in range(4):
            for name in OTHERS:
                client.send("GET", f"/v1/bandits/{name}", None)
        found = self.answered_by()
        assert all(len(found[name]) == 1 for name in OTHERS), found
        return {name: next(iter(found[name])) for name in OTHERS}

    def wait_until_healthy(self, count: int) -> None:
        def is_so() -> bool:
            found = self.containers("nextarm")
            return len(found) == count and all(self.health(container) == "healthy" for container in found)

        wait_until(is_so, f"{count} replicas are healthy", PATIENCE_S)

    def check(self, count: int) -> int:
        """The number of events: replicas have one digest, what was acknowledged is there, and nothing is there twice."""
        last = max(answer.observed for answer in self.acknowledged)
        digests = [self.ask(address, f"/v1/bandits/b/digest?min_offset={last}").json() for address in self.replicas().values()]
        assert len(digests) == count
        assert all(digest == digests[0] for digest in digests), digests
        text = self.ask(next(iter(self.replicas().values())), "/v1/bandits/b/log?limit=100000").text
        length = check_log(text, self.acknowledged)
        assert digests[0]["offset"] == length
        return length

    @contextmanager
    def load(self, what: str) -> Iterator[None]:
        """Routers that work until the block ends; it begins and ends while requests are answered."""
        stop = threading.Event()
        failures: list[BaseException] = []
        clients = [Client(self.url) for _ in range(ROUTERS)]
        before = len(self.acknowledged)

        def work(client: Client) -> None:
            try:
                while not stop.is_set():
                    self.acknowledged.append(client.round(self.next_number()))
            except BaseException as failure:
                failures.append(failure)

        def wait_for_more(count: int) -> None:
            goal = len(self.acknowledged) + count
            wait_until(lambda: bool(failures) or len(self.acknowledged) >= goal, f"{count} more rounds", PATIENCE_S)

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        try:
            wait_for_more(30)
            yield
            wait_for_more(30)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            for client in clients:
                client.client.close()
        assert not failures, failures
        repeated = sum(client.repeated for client in clients)
        say(
            f"{what}: {len(self.acknowledged) - before} decisions and their outcomes acknowledged "
            f"in {time.monotonic() - began:.0f} s, repeated requests: {repeated}"
        )


@pytest.fixture(scope="module")
def stack(engine: Engine, image: str) -> Iterator[Stack]:
    with Stack(engine) as stack:
        say(f"three replicas, Redis and nginx healthy after {stack.up():.0f} s")
        client = Client(stack.url)
        client.send("PUT", "/v1/bandits/b", BANDIT)
        for name in OTHERS:
            client.send("PUT", f"/v1/bandits/{name}", BANDIT)
        yield stack
        client.client.close()


def check_unprivileged(project: Project, container: str) -> None:
    """Not root, without rights, on a file system that cannot be written."""
    engine = project.engine
    status = engine.docker("exec", container, "cat", "/proc/1/status")
    (user,) = re.findall(r"^Uid:\s+(\d+)", status, flags=re.MULTILINE)
    assert int(user) != 0
    assert re.findall(r"^Cap(?:Eff|Bnd):\s+(\w+)", status, flags=re.MULTILINE) == ["0" * 16] * 2
    assert re.findall(r"^NoNewPrivs:\s+(\d)", status, flags=re.MULTILINE) == ["1"]
    (root,) = re.findall(r"^\S+ / \S+ (\S+)", engine.docker("exec", container, "cat", "/proc/mounts"), flags=re.MULTILINE)
    assert "ro" in root.split(",")


def test_one_process_keeps_its_volume(engine: Engine, image: str) -> None:
    port = free_port()
    environment = {"NEXTARM_PUBLISHED_PORT": str(port), **KEYS}
    with Project(engine, ROOT / "docker-compose.single.yml", environment) as single:
        said = f"one process healthy after {single.up():.0f} s"
        (container,) = single.containers("nextarm")
        check_unprivileged(single, container)
        client = Client(f"http://127.0.0.1:{port}")
        client.send("PUT", "/v1/bandits/b", BANDIT)
        acknowledged = [client.round(number) for number in range(20)]
        text = {"policy": {"kind": "lin-ucb"}, "arms": [{"name": "a"}], "prompt": {"embedder": "minilm"}}
        client.send("PUT", "/v1/bandits/text", text)
        client.send("POST", "/v1/bandits/text/decisions", {"prompt": "the weights are in the image"})
        digest = client.send("GET", "/v1/bandits/b/digest", None)

        single.kill(container)  # it is started again
        wait_until(lambda: single.health(container) == "healthy" and bool(single.containers("nextarm")), "healthy", PATIENCE_S)
        assert client.send("GET", "/v1/bandits/b/digest", None) == digest
        single.compose("down", "--timeout", "30")
        single.up()
        assert client.send("GET", "/v1/bandits/b/digest", None) == digest
        log = client.client.get("/v1/bandits/b/log?limit=1000").text
        assert check_log(log, acknowledged) == 1 + 2 * len(acknowledged)
        client.client.close()
    say(f"{said}; killed, taken down and up again: the same digest")


def test_everything_is_healthy_and_nothing_has_rights(stack: Stack) -> None:
    for service, count in (("redis", 1), ("nextarm", 3), ("nginx", 1)):
        containers = stack.containers(service)
        assert len(containers) == count
        for container in containers:
            assert stack.health(container) == "healthy"
            check_unprivileged(stack, container)
    assert httpx.get(f"{stack.url}/v1/bandits", trust_env=False).status_code == 401, "keys are asked for"


def test_requests_for_one_bandit_are_answered_by_one_replica(stack: Stack) -> None:
    client = Client(stack.url)
    places = stack.place(client)
    client.client.close()
    assert len(set(places.values())) > 1, places
    assert set(places.values()) <= set(stack.replicas().values())
    say(f"{len(OTHERS)} bandits, each answered by one replica: {len(set(places.values()))} of 3 replicas have some")


def test_a_replica_that_is_killed_under_load_loses_nothing_and_comes_back(stack: Stack) -> None:
    stack.mark()
    with stack.load("a replica killed"):
        (serving,) = stack.answered_by()["b"]
        victim = next(container for container, address in stack.replicas().items() if address == serving)
        stack.kill(victim)
        wait_until(lambda: len(stack.answered_by()["b"]) > 1, "another replica answers", PATIENCE_S)
    stack.wait_until_healthy(3)
    say(f"afterwards {stack.check(3)} events, three digests equal")


def test_redis_that_is_killed_under_load_keeps_everything(stack: Stack) -> None:
    (redis,) = stack.containers("redis")
    with stack.load("Redis killed"):
        began = time.monotonic()
        stack.kill(redis)
        wait_until(lambda: stack.health(redis) == "healthy", "Redis is healthy", PATIENCE_S)
        back_s = time.monotonic() - began
    stack.wait_until_healthy(3)
    say(f"Redis was back after {back_s:.0f} s; afterwards {stack.check(3)} events, three digests equal")


def test_a_replica_that_is_added_takes_its_share_and_no_more(stack: Stack) -> None:
    client = Client(stack.url)
    before, known = stack.place(client), set(stack.replicas().values())
    with stack.load("a fourth replica"):
        stack.up("--no-recreate", "--scale", "nextarm=4")
        (added,) = set(stack.replicas().values()) - known

        def has_its_share() -> bool:
            for name in OTHERS:
                client.send("GET", f"/v1/bandits/{name}", None)
            return any(added in addresses for addresses in stack.answered_by().values())

        wait_until(has_its_share, "the fourth replica answers for some bandit", PATIENCE_S)
    after = stack.place(client)
    client.client.close()
    moved = {name for name in OTHERS if after[name] != before[name]}
    assert {after[name] for name in moved} <= {added}
    say(f"{len(moved)} of {len(OTHERS)} bandits moved to it; afterwards {stack.check(4)} events, four digests equal")


def test_an_upgrade_one_after_the_other_loses_nothing(stack: Stack) -> None:
    """As docs/deploying.md says: new replicas come first, and old ones leave afterwards."""
    old = stack.containers("nextarm")
    before = stack.engine.inspect(old[0])["Image"]
    seconds = stack.engine.build("--build-arg", "REVISION=upgraded")
    with stack.load("an upgrade"):
        stack.up("--no-deps", "--no-recreate", "--scale", f"nextarm={len(old) + 3}", "nextarm")
        for container in old:
            stack.engine.docker("stop", container, timeout_s=60.0)
            stack.engine.docker("rm", container)
    stack.wait_until_healthy(3)
    assert all(stack.engine.inspect(container)["Image"] != before for container in stack.containers("nextarm"))
    say(
        f"{len(old)} replicas replaced by 3 of an image that was rebuilt in {seconds:.0f} s; "
        f"afterwards {stack.check(3)} events, digests equal"
    )


def test_prometheus_scrapes_every_replica_and_reads_the_rules(stack: Stack, missing: list[str]) -> None:
    if any(name.startswith("prom/prometheus") for name in missing):
        pytest.skip("there is no image of Prometheus")
    stack.up("--no-recreate", "--no-deps", "prometheus")
    (container,) = stack.containers("prometheus")
    check_unprivileged(stack, container)
    for words in (("rules", "/etc/prometheus/rules.yml"), ("config", "/etc/prometheus/prometheus.yml")):
        assert "SUCCESS" in stack.engine.docker("exec", container, "promtool", "check", *words)

    def asked(path: str) -> dict[str, object]:
        found: dict[str, object] = httpx.get(f"{stack.prometheus}/api/v1/{path}", trust_env=False).json()["data"]
        return found

    def are_scraped() -> bool:
        targets = asked("targets")["activeTargets"]
        assert isinstance(targets, list)
        healthy = {target["labels"]["instance"] for target in targets if target["health"] == "up"}
        return healthy == {f"{address}:8000" for address in stack.replicas().values()}

    wait_until(are_scraped, "three replicas are scraped", PATIENCE_S)
    groups = asked("rules")["groups"]
    assert isinstance(groups, list)
    rules = [rule for group in groups for rule in group["rules"]]
    assert all(rule["state"] != "firing" for rule in rules), "of a healthy stack"
    result = json.dumps(asked("query?query=max%20by%20(bandit)%20(nextarm_offset)"))
    assert '"bandit": "b"' in result
    without = [name for name in missing if name.startswith("grafana")]
    say(
        f"Prometheus scrapes 3 replicas, {len(rules)} rules, none fires" + (f"; not run: {', '.join(without)}" if without else "")
    )


def test_volumes_are_kept_over_down_and_up(stack: Stack) -> None:
    before = stack.check(3)
    stack.compose("down", "--timeout", "60")
    assert not stack.containers("nextarm")
    say(f"down, and up again in {stack.up():.0f} s")
    assert stack.check(3) == before
    with stack.load("after down and up"):
        pass
    stack.check(3)
