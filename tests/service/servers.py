"""`nextarm serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.service.http_client import check_answer

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""Nothing waits so long; it keeps a broken test from hanging."""


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXTARM_")}
    return {**kept, "PYTHONPATH": str(ROOT), **{f"NEXTARM_{name.upper()}": value for name, value in settings.items()}}


@dataclass
class Server:
    """A running process; its log lines are collected as they come."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    reader: threading.Thread | None = None

    @staticmethod
    def start(*, store: str, folder: Path, settings: Mapping[str, str], before: Callable[[], None] | None = None) -> Server:
        """Returns when it listens. before: called in the new process, ahead of everything."""
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", "0", "--store", store],
            cwd=folder,
            env=environment(settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        server = Server(process)
        listening = threading.Event()
        server.reader = threading.Thread(target=server._read, args=(listening,), daemon=True)
        server.reader.start()
        listening.wait(PATIENCE_S)
        if not server.url:
            server.end()
            raise AssertionError(f"the server did not start: {''.join(server.lines)}")
        return server

    def _read(self, listening: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"url"' in line and not self.url:
                self.url = json.loads(line)["url"]
                listening.set()
        listening.set()

    def client(self) -> httpx.Client:
        """Every answer is checked for what holds for all of them."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, event_hooks={"response": [_checked]})

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        assert self.reader is not None
        self.reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stderr is not None and not self.process.stderr.closed:
            self.wait()

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Returns once it is so; fails where it does not become so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def _checked(response: httpx.Response) -> None:
    response.read()
    check_answer(response)
