"""CPU of a call of LiteLLM's router with nextarm, beside one with an idle callback: `python -m tests.integrations.litellm_cpu`.

The environment is that of `make test-integrations`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nextarm import Client

from tools.processes import ROOT, Server, free_port, running

ENVIRONMENTS = ROOT / ".venv-integrations"


@contextmanager
def upstream_and_service(folder: Path) -> Iterator[tuple[Server, str]]:
    """The service, and the URL of a stand-in for the provider."""
    server = Server(folder, store="memory://")
    server.start()
    try:
        server.wait_until_ready()
        with upstream(folder) as url:
            yield server, url
    finally:
        server.end()


@contextmanager
def upstream(folder: Path) -> Iterator[str]:
    """The URL of a stand-in for the provider."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "examples.upstream:app", "--port", str(port), "--log-level", "error"]
    with running(command, port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integrations.litellm_cpu", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--calls", type=int, default=1000, help="of each kind (default: 1000)")
    calls = parser.parse_args().calls
    with (
        tempfile.TemporaryDirectory(prefix="nextarm-litellm-") as folder,
        upstream_and_service(Path(folder)) as (server, upstream),
    ):
        url = f"http://{server.host}:{server.port}"
        with Client(url) as client:
            client.create_bandit("router", policy={"kind": "thompson"}, arms=[{"name": "small"}, {"name": "large"}])
        python = ENVIRONMENTS / "litellm-sdk" / "bin" / "python"
        subprocess.run(
            [python, "tests/integrations/sdk_calls.py", "router", url, upstream, "--cpu", str(calls)], cwd=ROOT, check=True
        )


if __name__ == "__main__":
    main()
