"""The script that keeps nginx to the replicas of the moment, with a real nginx; only what the name server says is the test's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.deploy.balancer import NGINX, SCRIPT, SERVER, needs_nginx, rendered
from tests.deploy.files import ROOT, document
from tools.processes import free_port, wait_until

ALPINE = "Server:\t\t127.0.0.11\nAddress:\t127.0.0.11:53\n\nNon-authoritative answer:\n{lines}\n"
OLDER = "Server:    10.96.0.10\nAddress 1: 10.96.0.10 kube-dns.kube-system.svc.cluster.local\n\n{lines}\n"
"""What two builds of busybox print around the addresses."""


class Replica(ThreadingHTTPServer):
    """A replica that answers with its address and the client's, as nginx says it."""

    daemon_threads = True

    class Handler(BaseHTTPRequestHandler):  # of HTTP/1.0: no connection outlives its request, or the end of the server
        def do_GET(self) -> None:
            body = f"{self.connection.getsockname()[0]} {self.headers['x-forwarded-for']}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, port), self.Handler)


class Names:
    """What the name server says: a program in place of nslookup prints it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self._answer = folder / "answer.txt"
        (self.folder / "nslookup").write_text(f'#!/bin/sh\n[ "$*" = "-type=a nextarm" ] && cat {self._answer}\n')
        (self.folder / "nslookup").chmod(0o755)
        (self.folder / "nginx").symlink_to(str(NGINX))

    def say(self, *addresses: str, around: str = ALPINE) -> None:
        line = "Address 1: {} x" if around is OLDER else "Address: {}"
        lines = "\n".join(f"Name:\tnextarm\n{line.format(address)}" for address in addresses)
        written = self._answer.with_suffix(".new")
        written.write_text(around.format(lines=lines) if addresses else "")
        written.rename(self._answer)


@contextmanager
def balanced(folder: Path, names: Names, *, port: int, trusted: str = "") -> Iterator[httpx.Client]:
    """A client of the nginx that the script starts, over replicas on `port` of loopback addresses."""
    here = free_port()
    config = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(user + rendered(folder, port=here))
    text = SCRIPT.read_text()
    for there, own, times in (
        ("/tmp/", f"{folder}/", 2),
        ("/etc/nginx/", f"{folder}/", 1),
        ("/dev/stderr", f"{folder}/e.log", 2),
    ):
        assert text.count(there) == times, there
        text = text.replace(there, own)
    script = folder / "balance.sh"
    script.write_text(text)
    environment = {
        "PATH": f"{names.folder}:{os.environ['PATH']}",
        "REPLICAS": f"nextarm:{port}",
        "TRUSTED_PROXIES": trusted,
    }
    process = subprocess.Popen(["sh", str(script)], env=environment, start_new_session=True)
    try:
        none_kept = httpx.Limits(max_keepalive_connections=0)  # an idle connection closes when nginx reads its list again
        with httpx.Client(base_url=f"http://127.0.0.1:{here}", trust_env=False, timeout=30.0, limits=none_kept) as client:
            wait_until(lambda: serves(client), "nginx answers")
            yield client
    finally:
        process.terminate()
        process.wait(30.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the loop beside it, which otherwise ends with the container


def serves(client: httpx.Client) -> bool:
    try:
        return client.get("/balancer/healthz").status_code == 200
    except httpx.TransportError:
        return False


def placed(client: httpx.Client, *, bandits: int = 30, times: int = 2) -> dict[str, str]:
    """Bandit -> the address of the one replica that is asked."""
    found = {}
    for number in range(bandits):
        asked = Counter(client.get(f"/v1/bandits/b{number}").text.split()[0] for _ in range(times))
        assert len(asked) == 1, asked
        found[f"b{number}"] = next(iter(asked))
    return found


def place_over(client: httpx.Client, addresses: Sequence[str]) -> dict[str, str]:
    """The places of bandits, once these replicas are asked and no others."""
    wait_until(
        lambda: {client.get(f"/v1/bandits/b{n}").text.split()[0] for n in range(30)} == set(addresses), f"asked: {addresses}"
    )
    return placed(client)


@needs_nginx
def test_replicas_that_come_and_go_are_noticed_and_other_bandits_stay(tmp_path: Path) -> None:
    port = free_port()
    one, two, three = replicas = [Replica(f"127.0.0.{number}", port) for number in (1, 2, 3)]
    for replica in replicas:
        threading.Thread(target=replica.serve_forever, args=(0.01,), daemon=True).start()
    first, second, third = (str(replica.server_address[0]) for replica in replicas)
    names = Names(tmp_path)
    names.say()
    try:
        with balanced(tmp_path, names, port=port) as client:
            response = client.get("/v1/bandits/b0")
            assert (response.status_code, response.json()["code"]) == (503, "replica_unavailable"), "there is none yet"

            names.say(second, first)
            at_two = place_over(client, [first, second])

            names.say(third, first, second, around=OLDER)
            at_three = place_over(client, [first, second, third])
            moved = {name for name in at_two if at_two[name] != at_three[name]}
            assert {at_three[name] for name in moved} == {third}, "a bandit moves to the new replica or not at all"
            assert len(moved) < 20

            names.say()  # the name server is away
            one.shutdown()
            one.server_close()
            assert set(placed(client, times=1).values()) == {second, third}, "who does not listen is passed over"

            names.say(second, third)
            left = place_over(client, [second, third])
            assert all(left[name] == at_three[name] for name in left if at_three[name] != first), "others stay"
    finally:
        for replica in (two, three):
            replica.shutdown()
            replica.server_close()


@needs_nginx
@pytest.mark.parametrize(("trusted", "seen"), [("", "127.0.0.1"), ("10.0.0.0/8,127.0.0.0/8", "203.0.113.9")])
def test_a_client_s_address_is_that_of_a_trusted_proxy_s_header(trusted: str, seen: str, tmp_path: Path) -> None:
    port = free_port()
    replica = Replica("127.0.0.1", port)
    threading.Thread(target=replica.serve_forever, args=(0.01,), daemon=True).start()
    names = Names(tmp_path)
    names.say("127.0.0.1")
    try:
        with balanced(tmp_path, names, port=port, trusted=trusted) as client:
            answer = client.get("/v1/bandits/b", headers={"x-forwarded-for": "198.51.100.7, 203.0.113.9"}).text
    finally:
        replica.shutdown()
        replica.server_close()
    assert answer == f"127.0.0.1 {seen}"


def test_the_list_is_written_as_the_other_tests_write_it() -> None:
    assert SERVER.format(address="$address", port="$port") in SCRIPT.read_text()


def test_the_container_starts_nginx_by_the_script_and_names_the_replicas() -> None:
    services = document(ROOT / "docker-compose.yml")["services"]
    nginx = services["nginx"]
    mounted = dict(mount.split(":")[:2] for mount in nginx["volumes"])
    (path,) = [inside for outside, inside in mounted.items() if outside.endswith("balance.sh")]
    assert nginx["command"] == ["sh", path]
    name, port = nginx["environment"]["REPLICAS"].split(":")
    assert set(services[name]["networks"]) & set(nginx["networks"])
    assert f":{port}/" in " ".join(services[name]["healthcheck"]["test"])
