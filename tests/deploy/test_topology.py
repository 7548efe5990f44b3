"""What docker-compose.yml starts, by hand: a Redis, three replicas, nginx with the repository's configuration; one replica dies.

    clients ──> nginx ──> replica, replica, replica ──> redis-server            each a process of its own on a loopback port

Everything that was acknowledged through nginx stands in the log, once, and every replica has learned the same of it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.balancer import Balancer, needs_nginx
from tests.deploy.files import DEPLOY
from tests.service.redis_server import needs_redis
from tools.processes import RedisServer, environment, free_port

PATIENCE_S = 60.0
PASSWORD, ADMIN, READER = "of-redis", "k-admin", "k-reader"
DECISIONS, CLIENTS = 200, 4
BANDIT = {
    "policy": {"kind": "pak-ucb", "random_features": 32},
    "arms": [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}],
    "prompt": {"embedder": "vector", "dim": 3},
    "seed": 11,
}


class Replica:
    """`nextarm serve` on a port that stays the same when it is started again."""

    def __init__(self, folder: Path, *, store: str, number: int) -> None:
        self.port = free_port()
        self._folder, self._store, self._log = folder, store, folder / f"replica-{number}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {
            "store": self._store,
            "redis_password": PASSWORD,
            "port": str(self.port),
            "durability": "process",
            "api_keys": f"admin:{ADMIN},reader:{READER}",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                cwd=self._folder,
                env=environment(settings),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def until_ready(self) -> Replica:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).status_code == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError(f"a replica did not start: {self._log.read_text()}")

    def ask(self, path: str, *, key: str = ADMIN) -> httpx.Response:
        """Itself, not through nginx."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=PATIENCE_S, trust_env=False)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def ask_to_end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        self.ask_to_end()
        if self._process is not None:
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()


class Client:
    """Decides and reports through nginx; what is refused by 503, or answered by half, it sends again, as it was."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=PATIENCE_S, trust_env=False
        )
        self.repeated = 0

    def send(self, method: str, path: str, body: Any, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                response = self.client.request(method, path, json=body, headers=headers)
            except (
                httpx.RemoteProtocolError
            ):  # the replica died between the head of its answer and the rest: nothing is acknowledged
                self.repeated += 1
                continue
            if response.status_code != 503:
                assert response.status_code in (200, 201), response.text
                found: dict[str, Any] = response.json()
                return found
            assert response.headers["content-type"] == "application/problem+json"
            self.repeated += 1
            time.sleep(0.05)
        raise AssertionError("it was refused for too long")

    def round(self, number: int) -> tuple[str, int, str, int, float]:
        """(id, offset of the decision, arm, offset of the outcome, reward), all of them acknowledged."""
        name, reward = f"d{number}", (number % 17) / 17
        vector = [number % 5 - 2.0, number % 3 / 3, 1.0]
        decision = self.send("POST", "/v1/bandits/b/decisions", {"id": name, "prompt": {"vector": vector}})
        receipt = self.send("PUT", f"/v1/bandits/b/decisions/{name}/outcome", {"reward": reward})
        return name, decision["offset"], decision["arm"], receipt["offset"], reward


@contextlib.contextmanager
def topology(folder: Path) -> Iterator[tuple[Balancer, list[Replica]]]:
    """Everything runs; what was started here is ended here, by its id."""
    redis_folder = folder / "redis"
    redis_folder.mkdir()
    config = redis_folder / "redis.conf"
    # Only what Docker provides is left out: the folder of the volume, and the addresses.
    lines = (DEPLOY / "redis.conf").read_text().splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith(("dir ", "bind ", "port "))) + "\n")
    with (
        RedisServer("--requirepass", PASSWORD, folder=redis_folder, program=(str(config),)) as redis,
        contextlib.ExitStack() as stack,
    ):
        replicas = [Replica(folder, store=redis.url, number=number) for number in range(3)]
        for replica in replicas:
            stack.callback(replica.end)
            replica.start()
        for replica in replicas:
            stack.callback(replica.ask_to_end)  # all of them first, then each is waited for
        for replica in replicas:
            replica.until_ready()
        port = free_port()
        yield stack.enter_context(Balancer(folder, port=port, replicas=[replica.port for replica in replicas])), replicas


def answered_by(folder: Path) -> Counter[str]:
    """How many answers nginx has had from each replica."""
    lines = [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]
    return Counter(line["replica"].split(", ")[-1] for line in lines if line["replica"])


@needs_nginx
@needs_redis
def test_what_was_acknowledged_through_nginx_survives_the_death_of_a_replica(tmp_path: Path) -> None:
    with topology(tmp_path) as (balancer, replicas), contextlib.ExitStack() as stack:
        clients = [Client(balancer.url) for _ in range(CLIENTS)]
        for client in clients:
            stack.callback(client.client.close)
        clients[0].send("PUT", "/v1/bandits/b", BANDIT)
        acknowledged: list[tuple[str, int, str, int, float]] = []

        def work(number: int) -> None:
            for n in range(number, DECISIONS, CLIENTS):
                acknowledged.append(clients[number].round(n))  # noqa: PERF401 (it is watched while it grows)

        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(work, number) for number in range(CLIENTS)]
            while len(acknowledged) < DECISIONS // 3:
                for future in working:
                    if future.done():
                        future.result()
                time.sleep(0.005)
            ((serving, _),) = answered_by(tmp_path).most_common(1)  # a bandit is asked of one replica
            victim = next(replica for replica in replicas if serving.endswith(f":{replica.port}"))
            victim.kill()
            for future in working:
                future.result(PATIENCE_S)
        assert set(answered_by(tmp_path)) > {serving}, "another one has taken over"

        # a client that reported through one replica decides by another one, from a state that has learned it
        last = max(offset for *_, offset, _ in acknowledged)
        fresh = {"x-nextarm-min-offset": str(last)}
        assert clients[0].send(
            "POST", "/v1/bandits/b/decisions", {"prompt": {"vector": [1, 2, 3]}, "dry_run": True}, headers=fresh
        )

        victim.start()
        victim.until_ready()
        digests = [replica.ask(f"/v1/bandits/b/digest?min_offset={last}").json() for replica in replicas]
        assert digests[0]["offset"] == 1 + 2 * DECISIONS
        assert digests[0] == digests[1] == digests[2]

        log = [json.loads(line) for line in victim.ask("/v1/bandits/b/log?limit=10000").text.splitlines()]
        assert [event["offset"] for event in log] == list(range(1, 2 + 2 * DECISIONS)), "nothing is there twice"
        by_offset = {event["offset"]: event for event in log}
        assert len(acknowledged) == DECISIONS
        for name, decided, arm, observed, reward in acknowledged:
            assert (by_offset[decided]["event"], by_offset[decided]["id"]) == ("decided", name)
            assert BANDIT["arms"][by_offset[decided]["arm"]]["name"] == arm  # type: ignore[index]
            assert (by_offset[observed]["event"], by_offset[observed]["id"]) == ("observed", name)
            assert by_offset[observed]["reward"] == reward

        for replica in replicas:
            outcomes = counted(replica, "nextarm_outcomes_total")
            assert sum(outcomes.values()) == DECISIONS, "every replica reports the whole log"
            assert sum(counted(replica, "nextarm_bandits_damaged").values()) == 0
            assert sum(counted(replica, "nextarm_store_notices").values()) == 0, replica.ask("/readyz").text
            assert replica.ask("/metrics", key="nobody").status_code == 401


def counted(replica: Replica, name: str) -> dict[str, float]:
    """A metric as Prometheus would scrape it, by a reader's key: {labels: value}."""
    response = replica.ask("/metrics", key=READER)
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {str(sample.labels): sample.value for family in families for sample in family.samples if sample.name == name}
