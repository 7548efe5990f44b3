"""The real service in a process of its own, which can be killed at any moment."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
"""A start on a busy machine takes seconds; after this it hangs."""


class Answer(NamedTuple):
    """status: HTTP.  body: the JSON document, {} where there is none."""

    status: int
    body: dict[str, Any]


class ServerFailed(Exception):
    """The service ended by itself, or does not answer."""


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`python -m service serve` on a loopback port over an SQLite store in `folder`."""

    def __init__(self, folder: Path, *, snapshot_every: int) -> None:
        self.port = free_port()
        self.store = f"sqlite:///{folder / 'store.db'}"
        self.log = folder / "server.log"
        settings = {"NEXTARM_STORE": self.store, "NEXTARM_SNAPSHOT_EVERY": str(snapshot_every), "NEXTARM_SWEEP_S": "0.1"}
        self._environment = {**{k: v for k, v in os.environ.items() if not k.startswith("NEXTARM_")}, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start; see `wait_until_ready`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", str(self.port)],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> float:
        """Seconds until `readyz` said 200."""
        started = time.monotonic()
        while time.monotonic() - started < PATIENCE_S:
            assert self._process is not None
            if self._process.poll() is not None:
                raise ServerFailed(f"the service ended by itself, code {self._process.returncode}: {self._last_words()}")
            try:
                if self.ask("GET", "/readyz").status == 200:
                    return time.monotonic() - started
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise ServerFailed(f"the service is not ready after {PATIENCE_S:.0f} s: {self._last_words()}")

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's memory killer would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait for the clean end; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever its state, it does not outlive the bench."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def connect(self) -> http.client.HTTPConnection:
        """A connection of one client."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One request on a connection of its own."""
        connection = self.connect()
        try:
            return ask(connection, method, path, body)
        finally:
            connection.close()

    def events(self, bandit: str) -> list[dict[str, Any]]:
        """The whole log of a bandit."""
        connection = self.connect()
        try:
            connection.request("GET", f"/v1/bandits/{bandit}/log")
            return [json.loads(line) for line in connection.getresponse().read().splitlines()]
        finally:
            connection.close()

    def replayed(self) -> dict[str, tuple[int, str]]:
        """Bandit -> (offset, sha256) by `nextarm digest`, which replays every log from zero beside the running service."""
        command = [sys.executable, "-m", "service", "digest", "--store", self.store, "--quiet"]
        found = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, check=False, text=True)
        if found.returncode != 0:
            raise ServerFailed(f"nextarm digest: code {found.returncode}: {found.stderr[-500:]}")
        lines = [line.split("\t") for line in found.stdout.splitlines()]
        return {bandit: (int(offset), sha256) for bandit, offset, sha256 in lines}

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-800:]


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> Answer:
    """One request; `OSError` or `HTTPException` where the service went away before its answer was complete."""
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
    response = connection.getresponse()
    text = response.read()
    return Answer(response.status, json.loads(text) if text else {})
