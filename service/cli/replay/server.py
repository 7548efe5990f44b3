"""A private server for one replay: its own process on a free loopback port, its log in memory, stopped when the replay ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

import service
from service.cli.replay.errors import ServerError

PATIENCE = 120.0  # seconds until the first answer; importing torch on a busy machine takes many of them


@contextmanager
def private_server(*, store: str = "memory://") -> Iterator[str]:
    """Start a service, yield its URL, and end the process that was started (and no other), also on SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="nextarm-replay-") as folder, _ending_on_sigterm():
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - this very interpreter, with arguments from this file
                [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(store),
            )
        try:
            _await_ready(url, process, log)
            yield url
        finally:
            _end(process)


def _environment(store: str) -> dict[str, str]:
    """The caller's environment without any setting of a service (keys, limits), and with this very package first on the path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEXTARM_")}
    path = [str(Path(service.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    settings = {"NEXTARM_STORE": store, "NEXTARM_LOG_LEVEL": "warning"}
    return {**inherited, **settings, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    with httpx2.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"the private server ended at once (exit code {process.returncode}): {_last_line(log)}")
            try:
                if client.get(f"{url}/readyz").status_code == httpx2.codes.OK:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
    raise ServerError(f"the private server was not ready after {PATIENCE:.0f} s: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an ordinary exit, so that the private server does not outlive its replay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
