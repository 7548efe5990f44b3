"""The real service in a process of its own, which can be killed or paused at any moment."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.faults.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
"""A start on a busy machine takes seconds; after this it hangs."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Answer(NamedTuple):
    """status: HTTP.  body: the JSON document, {} where there is none."""

    status: int
    body: dict[str, Any]


class ServerFailed(Exception):
    """The service ended by itself, or does not answer."""


class Server:
    """`python -m service serve` on a loopback port, over an SQLite store in `folder` or over any other store.

    settings: name -> value of NEXTARM_* variables.  program: what Python runs.  within: a command that runs the service's.
    before: called in the new process, ahead of everything.
    """

    def __init__(
        self,
        folder: Path,
        *,
        snapshot_every: int = 300,
        store: str = "",
        name: str = "server",
        host: str = "127.0.0.1",
        settings: Mapping[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "service"),
        within: tuple[str, ...] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.port = free_port()
        self.store = store or f"sqlite:///{folder / 'store.db'}"
        self.log = folder / f"{name}.log"
        self.environment = environment(
            {"STORE": self.store, "SNAPSHOT_EVERY": str(snapshot_every), "SWEEP_S": "0.1", **(settings or {})}
        )
        self._command = [*within, sys.executable, *program, "serve", "--host", host, "--port", str(self.port)]
        self._before = before
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    # -- life --------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start; see `wait_until_ready`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                preexec_fn=self._before,  # noqa: PLW1509 (it only sets limits, which takes no lock)
            )

    def wait_until_ready(self, patience_s: float = PATIENCE_S) -> float:
        """Seconds until `readyz` said 200."""
        started = time.monotonic()
        while time.monotonic() - started < patience_s:
            if self.process.poll() is not None:
                raise ServerFailed(f"the service ended by itself, code {self.process.returncode}: {self._last_words()}")
            if self.is_ready():
                return time.monotonic() - started
            time.sleep(0.02)
        raise ServerFailed(f"the service is not ready after {patience_s:.0f} s: {self._last_words()}")

    def is_ready(self) -> bool:
        """Whether `readyz` says 200 now."""
        try:
            return self.ask("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's memory killer would."""
        self.process.kill()
        self.process.wait()
        self._paused = False

    def pause(self) -> None:
        """It keeps its connections and does nothing (SIGSTOP), like a machine that was suspended."""
        self.process.send_signal(signal.SIGSTOP)
        self._paused = True

    def go_on(self) -> None:
        """As if nothing had been (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)
        self._paused = False

    def stop(self) -> int:
        """SIGTERM, and wait for the clean end; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever its state, it does not outlive the bench."""
        if self._process is not None and self._process.poll() is None:
            if self._paused:
                self.go_on()
            self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The last one that was started."""
        assert self._process is not None
        return self._process

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def cpu_s(self) -> float:
        """CPU seconds of the process so far, user and system (proc(5), stat: fields 14 and 15)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    # -- asking ------------------------------------------------------------------------------------------------------------

    def connect(self, timeout_s: float = 30.0) -> http.client.HTTPConnection:
        """A connection of one client."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def ask(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0
    ) -> Answer:
        """One request on a connection of its own."""
        connection = self.connect(timeout_s)
        try:
            return ask(connection, method, path, body, headers=headers)
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
        found = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, check=False, text=True)
        if found.returncode != 0:
            raise ServerFailed(f"nextarm digest: code {found.returncode}: {found.stderr[-500:]}")
        lines = [line.split("\t") for line in found.stdout.splitlines()]
        return {bandit: (int(offset), sha256) for bandit, offset, sha256 in lines}

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-800:]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours without any setting of the service, and these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXTARM_")}
    return {**kept, **{f"NEXTARM_{name}": value for name, value in settings.items()}}


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request; `OSError` or `HTTPException` where the service went away before its answer was complete."""
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {**(headers or {}), **({"Content-Type": "application/json"} if content else {})})
    response = connection.getresponse()
    text = response.read()
    return Answer(response.status, json.loads(text) if text else {})
