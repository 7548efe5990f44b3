"""A store that fails during load: 503 at once, red, nothing half-done; and what was acknowledged is there afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.service.http_client import PROMPT, VECTOR
from tests.service.servers import Server

CLIENTS = 4


def load(server: Server, client_number: int) -> tuple[list[str], list[str], list[httpx.Response]]:
    """Decide and observe until the store refuses: what was acknowledged, and the refusals."""
    decided, observed, refused = [], [], []
    with server.client() as client:
        for i in range(5000):
            name = f"client-{client_number}-{i}"
            response = client.post("/v1/bandits/b/decisions", json={"id": name, **PROMPT})
            if response.status_code != 201:
                refused.append(response)
                break
            decided.append(name)
            response = client.put(f"/v1/bandits/b/decisions/{name}/outcome", json={"reward": i % 4 / 4})
            if response.status_code != 200:
                refused.append(response)
                break
            observed.append(name)
        # once more: it is refused, and does not hang
        refused.append(client.post("/v1/bandits/b/decisions", json={"id": f"{client_number}-after", **PROMPT}))
    return decided, observed, refused


def load_until_it_fails(server: Server) -> tuple[set[str], set[str]]:
    with ThreadPoolExecutor(CLIENTS) as clients:
        results = list(clients.map(lambda number: load(server, number), range(CLIENTS)))
    for _, _, refused in results:
        assert len(refused) == 2, "the store never failed"
        for response in refused:
            assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
            assert int(response.headers["retry-after"]) >= 1
    return {name for result in results for name in result[0]}, {name for result in results for name in result[1]}


def unready(client: httpx.Client) -> str:
    response = client.get("/readyz")
    assert response.status_code == 503
    (reason,) = response.json()["reasons"]
    return str(reason)


def in_the_log(client: httpx.Client) -> tuple[set[str], list[str]]:
    """Ids that were decided, and every id that was observed."""
    events = [httpx.Response(200, content=line).json() for line in client.get("/v1/bandits/b/log").text.splitlines()]
    assert [event["offset"] for event in events] == list(range(1, len(events) + 1))
    return {e["id"] for e in events if e["event"] == "decided"}, [e["id"] for e in events if e["event"] == "observed"]


def test_writes_that_fail_are_refused_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """No file may grow beyond 300 KB: an input/output error in the middle of the load."""
    store = f"sqlite:///{tmp_path}/bandits.db"

    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    server = Server.launch(store=store, folder=tmp_path, settings={}, before=narrow)
    try:
        with server.client() as client:
            assert client.put("/v1/bandits/b", json=VECTOR).status_code == 201
            decided, observed = load_until_it_fails(server)
            assert unready(client).startswith("storage: ")
            assert client.get("/healthz").status_code == 200
            assert client.put("/v1/bandits/c", json=VECTOR).status_code == 503
            shown = client.get("/v1/bandits/b").json()  # reading goes on
            assert shown["decisions"] >= len(decided)
        assert server.stop() == 0
    finally:
        server.end()
    assert len(observed) > 10

    server = Server.launch(store=store, folder=tmp_path, settings={})
    try:
        with server.client() as client:
            kept, learned = in_the_log(client)  # waits for the bandit to be loaded
            assert client.get("/readyz").status_code == 200
            assert decided <= kept
            assert observed <= set(learned)
            assert len(learned) == len(set(learned))
            after = client.get("/v1/bandits/b").json()
            assert after["decisions"] == len(kept)
            assert sum(arm["outcomes"] for arm in after["arms"]) == len(learned)
            assert client.post("/v1/bandits/b/decisions", json=PROMPT).status_code == 201
    finally:
        server.end()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_a_pause_and_no_loss(small_disk: Path, start_server: Callable[..., Server]) -> None:
    server = start_server(store=f"sqlite:///{small_disk}/bandits.db")
    ballast = small_disk / "ballast"
    try:
        with server.client() as client:
            assert client.put("/v1/bandits/b", json=VECTOR).status_code == 201
            ballast.write_bytes(b"." * 400_000)
            decided, observed = load_until_it_fails(server)
            for i in range(3):  # asking is not mending; a checkpoint of the sweep may make room for one write or two
                ready = client.get("/readyz")
                if ready.status_code == 200:
                    response = client.post("/v1/bandits/b/decisions", json={"id": f"room-{i}", **PROMPT})
                    assert response.status_code in (201, 503)
                    decided |= {f"room-{i}"} if response.status_code == 201 else set()
                else:
                    assert ready.json()["reasons"] == ["storage: the disk is full"]
            ballast.unlink()
            assert client.get("/readyz").status_code == 200  # without a restart
            response = client.post("/v1/bandits/b/decisions", json={"id": "again", **PROMPT})
            assert response.status_code == 201
            assert client.put("/v1/bandits/b/decisions/again/outcome", json={"reward": 0.5}).status_code == 200
            kept, learned = in_the_log(client)
            assert decided | {"again"} <= kept
            assert observed | {"again"} <= set(learned)
            assert len(learned) == len(set(learned))
            live = client.get("/v1/bandits/b/digest").json()
        assert server.stop() == 0
        server = start_server(store=f"sqlite:///{small_disk}/bandits.db")
        with server.client() as client:
            assert client.get("/v1/bandits/b/digest").json() == live
    finally:
        server.end()
