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

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.balancer import Balancer, needs_nginx
from tests.deploy.files import DEPLOY
from tests.deploy.routers import ADMIN, BANDIT, READER, Acknowledged, Client, check_log
from tests.service.redis_server import needs_redis
from tools.processes import RedisServer, environment, free_port

PATIENCE_S = 180.0
PASSWORD = "of-redis"
DECISIONS, CLIENTS = 200, 4


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
        acknowledged: list[Acknowledged] = []

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

        assert len(acknowledged) == DECISIONS
        log = victim.ask("/v1/bandits/b/log?limit=10000").text
        assert check_log(log, acknowledged) == 1 + 2 * DECISIONS

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
