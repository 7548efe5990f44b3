"""`nextarm serve` in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.service.http_client import check_answer
from tools import processes

PATIENCE_S = 60.0
"""Nothing waits so long; it keeps a broken test from hanging."""


class Server(processes.Server):
    """A running process, and the lines of its log."""

    @classmethod
    def launch(cls, *, store: str, folder: Path, settings: Mapping[str, str], before: Callable[[], None] | None = None) -> Server:
        """Returns when it listens. before: called in the new process, ahead of everything."""
        number = len(list(folder.glob("server-*.log")))
        server = cls(folder, store=store, name=f"server-{number}", settings=settings, before=before)
        server.start()
        try:
            processes.wait_until(lambda: any('"url"' in line for line in server.lines), "the server listens", PATIENCE_S)
        except processes.ServerFailed:
            server.end()
            raise
        return server

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{self.host}:{self.port}"

    @property
    def lines(self) -> list[str]:
        """Of its log, as far as they are complete."""
        return [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def logged(self) -> list[dict[str, Any]]:
        """The lines as documents."""
        return [json.loads(line) for line in self.lines]

    def client(self) -> httpx.Client:
        """Every answer is checked for what holds for all of them."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, event_hooks={"response": [_checked]})


def wait_until(is_so: Callable[[], bool]) -> None:
    """Returns once it is so; fails where it does not become so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


def _checked(response: httpx.Response) -> None:
    response.read()
    check_answer(response)
