"""A Redis server of the bench's own, in a process and a folder of its own, on a loopback port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from bench.faults.ports import free_port
from bench.faults.server import ServerFailed

PATIENCE_S = 30.0
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")


class RedisServer:
    """`redis-server` with these flags; it ends with its block."""

    def __init__(self, folder: Path, *flags: str, name: str = "redis", bind: tuple[str, ...] = (), password: str = "") -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise ServerFailed("there is no redis-server on this machine (apt-get install redis-server)")
        self.folder = folder / name
        self.folder.mkdir()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._password = password
        self._command = [
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1", *bind, "--dir", str(self.folder)),
            *("--logfile", "server.log", "--repl-diskless-sync-delay", "0"),
            *(("--requirepass", password) if password else ()),
            *(() if "--save" in flags else ("--save", "")),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> RedisServer:
        """Returns once it answers and has read what it had kept. flags: further ones, for this time alone."""
        self._process = subprocess.Popen([*self._command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(RedisError):
                if self.command("PING"):
                    return self
            time.sleep(0.01)
        self.end()
        raise ServerFailed(f"redis-server did not start: {(self.folder / 'server.log').read_text()[-800:]}")

    def command(self, *words: Any) -> Any:
        """One command, by a connection of its own."""
        with Redis(port=self.port, password=self._password or None, socket_timeout=PATIENCE_S) as client:
            return client.execute_command(*words)

    def told(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        found = self.command("INFO", section)
        return {str(name): str(value) for name, value in found.items()}

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """As a crash would: no last write, no farewell."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """Whatever its state, it does not outlive the bench."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()
