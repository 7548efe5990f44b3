"""Private Redis servers on loopback ports that nobody else uses; each is ended by its own process id."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from types import TracebackType

import pytest
from redis import Redis

BINARY = shutil.which("redis-server")
PATIENCE_S = 10.0

needs_redis = pytest.mark.skipif(BINARY is None, reason="there is no redis-server on this machine (apt-get install redis-server)")


def free_port() -> int:
    """A port below those that the system hands out, so that nobody is given it between this look and the server's start; a
    cluster's bus takes the port 10,000 above.
    """
    for port in range(20_000 + os.getpid() % 2_000, 32_000):
        with contextlib.suppress(OSError):
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
            if port not in _taken():
                _taken().add(port)
                return port
    raise AssertionError("there is no free port")


@cache
def _taken() -> set[int]:
    return set()


class RedisServer:
    """A server with flags of its own, in a folder of its own. As a context manager it ends with its block."""

    def __init__(self, *flags: str, folder: Path | None = None, port: int = 0, program: tuple[str, ...] = ()) -> None:
        assert BINARY is not None
        self._own = tempfile.TemporaryDirectory(prefix="nextarm-redis-") if folder is None else None
        self.folder = Path(self._own.name) if self._own else folder
        assert self.folder is not None
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [
            *(BINARY, *program),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
            *("--logfile", "server.log"),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as asking:
                asking.sendall(b"PING\r\n")
                if asking.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                    return
            time.sleep(0.01)
        self.kill()
        raise AssertionError(f"redis-server did not start: {self.log()}")

    def log(self) -> str:
        """What the server wrote."""
        path = (self.folder or Path()) / "server.log"
        return path.read_text() if path.exists() else ""

    def client(self) -> Redis:
        """For looking behind the back of the service."""
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=PATIENCE_S)

    def command(self, *words: str | bytes | int) -> object:
        """One command, by a connection of its own."""
        with self.client() as client:
            found: object = client.execute_command(*words)
            return found

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """As a crash would: no last write, no farewell."""
        if self._process is not None:
            if self._paused:
                self.go_on()
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE_S)
            self._process = None

    def pause(self) -> None:
        """It holds its connections and answers nothing (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def go_on(self) -> None:
        """It answers again, also what was asked meanwhile (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def end(self) -> None:
        """Kill it, and remove its folder if it is its own."""
        self.kill()
        if self._own is not None:
            self._own.cleanup()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()


@cache
def shared() -> RedisServer:
    """The one that tests share which do not disturb it, each under a key prefix of its own. It keeps an append-only file, and
    ends with this process.
    """
    server = RedisServer("--appendonly", "yes", "--appendfsync", "everysec")
    atexit.register(server.end)
    return server
