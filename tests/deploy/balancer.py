"""nginx with the repository's own configuration, rendered for processes on loopback ports; ended by its own process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx
import pytest

from tests.deploy.files import DEPLOY

CONFIG = DEPLOY / "nginx" / "nginx.conf"
SCRIPT = DEPLOY / "nginx" / "balance.sh"
SERVER = "server {address}:{port} max_fails=2 fail_timeout=5s;"
"""A line of the list of replicas, as the script writes it."""
NGINX = shutil.which("nginx") or next(
    (path for path in ("/usr/sbin/nginx", "/usr/local/sbin/nginx") if Path(path).exists()), None
)
PATIENCE_S = 20.0

needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx on this machine (apt-get install nginx-light)")


def rendered(folder: Path, *, port: int) -> str:
    """The configuration with a folder and a port of the test's; nothing else is changed."""
    text = CONFIG.read_text()
    for there, here, times in (
        ("listen 8080;", f"listen 127.0.0.1:{port};", 1),
        ("/tmp/", f"{folder}/", 8),
        ("/dev/stdout", f"{folder}/access.log", 1),
        ("/dev/stderr", f"{folder}/error.log", 1),
    ):
        assert text.count(there) == times, there
        text = text.replace(there, here)
    return text


class Balancer:
    """A running nginx. As a context manager it ends with its block, and its workers with it."""

    def __init__(self, folder: Path, *, port: int, replicas: Sequence[int]) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        config = folder / "nginx.conf"
        config.write_text(rendered(folder, port=port))
        lines = [SERVER.format(address="127.0.0.1", port=number) for number in replicas]
        (folder / "replicas.conf").write_text("\n".join(lines))
        (folder / "trusted.conf").write_text("")
        # Started by root, its workers would run as a user that may not enter this folder; in the container nothing runs as root.
        user = "user root; " if os.geteuid() == 0 else ""
        self.command = [str(NGINX), "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        self.options = ["-g", f"{user}daemon off;"]
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> str:
        """What `nginx -t` says of the configuration; "" where it is fine."""
        done = subprocess.run(
            [*self.command, *self.options, "-t"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        return "" if done.returncode == 0 else done.stderr

    def __enter__(self) -> Balancer:
        self._process = subprocess.Popen([*self.command, *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/balancer/healthz", trust_env=False).status_code == 200:
                    return self
            time.sleep(0.02)
        self.end()
        raise AssertionError(f"nginx did not start: {(self.folder / 'error.log').read_text()}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """SIGTERM to the main process, which ends its workers."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None
