"""Processes that tests and benches start: the service, a redis-server, and any command that listens on a loopback port.

Each listens on 127.0.0.1, keeps its log in a folder, and is ended by its own process id.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120.0
"""A start on a busy machine takes seconds; after this it hangs."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
FIRST_PORT, BEYOND_PORTS, BUS = 12_000, 19_000, 10_000
"""Below the ports that the system hands out to connections, also after a Redis cluster has added `BUS` for its bus."""
REDIS_BINARY = shutil.which("redis-server")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")


class ServerFailed(Exception):
    """A process ended by itself, or does not answer."""


class Answer(NamedTuple):
    """An answer of the service. status: HTTP.  body: the JSON document, {} where there is none."""

    status: int
    body: dict[str, Any]


def wait_until(is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Seconds until then; `ServerFailed` where it takes longer than `patience_s`. what: as it is after "not after 60 s"."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > patience_s:
            raise ServerFailed(f"not after {patience_s:.0f} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


# -- ports -----------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A loopback port that is not in use, nor is the one `BUS` above it; never the same twice in a process."""
    ports = range(FIRST_PORT, BEYOND_PORTS)
    start = os.getpid() * 37 % len(ports)
    for port in chain(ports[start:], ports[:start]):
        if port not in _taken() and _is_free(port) and _is_free(port + BUS):
            _taken().add(port)
            return port
    raise OSError(f"there is no free port from {FIRST_PORT} to {BEYOND_PORTS - 1}")


def is_listening(port: int) -> bool:
    """Whether a connection to the port is accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@cache
def _taken() -> set[int]:
    return set()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -- any command -----------------------------------------------------------------------------------------------------------


@contextmanager
def running(command: Sequence[str], *, port: int, folder: Path) -> Iterator[int]:
    """The pid of a command that listens on `port`; it ends with the block.

    Raises: ServerFailed, with the last line of its log, if it does not listen in time.
    """
    log = folder / f"{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        until = time.monotonic() + PATIENCE_S
        while not is_listening(port):
            if process.poll() is not None or time.monotonic() > until:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise ServerFailed(f"{Path(command[1]).name}: {lines[-1][:200] if lines else 'it said nothing'}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S / 4)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- the service -----------------------------------------------------------------------------------------------------------


class Server:
    """`python -m service serve` in a process that can be killed, paused and started again on the same port.

    Args:
        folder: where its log is written, and its store unless `store` names another.
        store: URL; "" is an SQLite file in `folder`.
        settings: values of NEXTARM_* variables by name, in any case.
        program: what Python runs.
        within: a command that runs the service's, such as one that enters a network namespace.
        before: called in the new process before anything else.
    """

    def __init__(
        self,
        folder: Path,
        *,
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
        self.store = store or f"sqlite:///{folder.resolve() / 'store.db'}"
        self.log = folder.resolve() / f"{name}.log"
        self.environment = environment({**(settings or {}), "STORE": self.store})
        self._command = [*within, sys.executable, *program, "serve", "--host", host, "--port", str(self.port)]
        self._before = before
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    # -- life --------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the process; `wait_until_ready` waits for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=self._before,  # noqa: PLW1509 (it only sets limits, which takes no lock)
            )

    def wait_until_ready(self, patience_s: float = PATIENCE_S) -> float:
        """Seconds until `readyz` said 200."""
        return wait_until(self._is_ready_or_ended, "the service is ready", patience_s)

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
        """SIGSTOP: it keeps its connections and does nothing, like a suspended machine."""
        self.process.send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self.process.send_signal(signal.SIGCONT)
        self._paused = False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Kill it if it runs, also while it is paused."""
        if self.running:
            if self._paused:
                self.resume()
            self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The one that was started last."""
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

    def _is_ready_or_ended(self) -> bool:
        if self.process.poll() is not None:
            last_words = self.log.read_text(errors="replace")[-800:]
            raise ServerFailed(f"the service ended by itself, code {self.process.returncode}: {last_words}")
        return self.is_ready()

    # -- requests ----------------------------------------------------------------------------------------------------------

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


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours with this project on the path and without any setting of the service but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXTARM_")}
    return {**kept, "PYTHONPATH": str(ROOT), **{f"NEXTARM_{name.upper()}": value for name, value in settings.items()}}


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


# -- Redis -----------------------------------------------------------------------------------------------------------------


class RedisServer:
    """`redis-server` with flags of its own; as a context manager it starts and ends with its block.

    Args:
        folder: where it writes, created if missing; None is a temporary one.
        program: arguments before the flags, such as a configuration file.
        bind: addresses beside 127.0.0.1.
    """

    def __init__(
        self,
        *flags: str,
        folder: Path | None = None,
        program: tuple[str, ...] = (),
        bind: tuple[str, ...] = (),
        password: str = "",
    ) -> None:
        if REDIS_BINARY is None:
            raise ServerFailed("there is no redis-server on this machine (apt-get install redis-server)")
        self._temporary = tempfile.TemporaryDirectory(prefix="nextarm-redis-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or "")
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._password = password
        self._command = [
            *(REDIS_BINARY, *program),
            *("--port", str(self.port), "--bind", "127.0.0.1", *bind, "--dir", str(self.folder), "--logfile", "server.log"),
            *(("--requirepass", password) if password else ()),
            *(() if "--save" in flags else ("--save", "")),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    def start(self, *flags: str) -> RedisServer:
        """Returns once it answers and has loaded what it kept. flags: further ones, for this start only."""
        self._process = subprocess.Popen([*self._command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S / 4
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 10.0) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                    return self
            time.sleep(0.01)
        self.kill()
        raise ServerFailed(f"redis-server did not start: {self.log()[-800:]}")

    def log(self) -> str:
        """What the server wrote."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self) -> Redis:
        """A client that bypasses the service."""
        return Redis(host="127.0.0.1", port=self.port, password=self._password or None, socket_timeout=PATIENCE_S / 4)

    def command(self, *words: str | bytes | int) -> Any:
        """One command, on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*words)

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        return {str(name): str(value) for name, value in self.command("INFO", section).items()}

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as a crash would; nothing happens where it does not run."""
        if self._process is not None:
            if self._paused:
                self.resume()
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT: it answers again, also what was asked meanwhile."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def end(self) -> None:
        """Kill it, and remove its folder if that is temporary."""
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> RedisServer:
        return self if self._process is not None else self.start()

    def __exit__(self, *failure: object) -> None:
        self.end()
