"""How many files a reader passes to follow one request: `python -m tools.request_path [--verbose]`.

One decision by vector and one outcome go through the application in this process, under `sys.setprofile`. Counted are the files
of service/ and bandits/ whose functions are entered (or resumed after an await) in the thread of the event loop, and how often
control enters a file that it had left before. What runs in worker threads, such as the writer of SQLite, is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from starlette.types import ASGIApp, Message, Scope

from service.api.app import running
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SCOPE = tuple(f"{ROOT / folder}/" for folder in ("service", "bandits"))
DIM, ARMS = 16, 10
WARM_UP = 40
"""Requests before the first that counts: what was never timed runs in a worker thread, where it would not be seen."""
TRIES = 20
"""Of these the path with the most files counts, and the fewest returns: on a busy machine mathematics may run in a worker thread,
where it is not seen, and a commit may take the long way.
"""
BANDIT = {
    "policy": {"kind": "pak-ucb", "random_features": 64},
    "arms": [{"name": f"arm-{index}"} for index in range(ARMS)],
    "prompt": {"embedder": "vector", "dim": DIM},
    "seed": 1,
}
DECISIONS = "/v1/bandits/path/decisions"


@dataclass(frozen=True)
class RequestPath:
    """The functions that one request entered, in order, as (file relative to the root, qualified name)."""

    calls: Sequence[tuple[str, str]]

    @property
    def stays(self) -> list[str]:
        """The files in the order in which control was in them, each stay once.

        >>> RequestPath([("a.py", "f"), ("a.py", "g"), ("b.py", "h"), ("a.py", "f")]).stays
        ['a.py', 'b.py', 'a.py']
        """
        return [file for place, (file, _) in enumerate(self.calls) if not place or self.calls[place - 1][0] != file]

    def within(self, folder: str) -> RequestPath:
        """The part of it in the files of one folder."""
        return RequestPath([call for call in self.calls if call[0].startswith(folder)])

    @property
    def files(self) -> int:
        """How many different files there are."""
        return len(set(self.stays))

    @property
    def returns(self) -> int:
        """How often control entered a file that it had left before."""
        return len(self.stays) - self.files


class Recorder:
    """A context in which every call into `SCOPE` is recorded."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __enter__(self) -> Recorder:
        sys.setprofile(self._record)
        return self

    def __exit__(self, *failure: object) -> None:
        sys.setprofile(None)

    def _record(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SCOPE):
            self.calls.append((str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname))


async def call(app: ASGIApp, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """The status and the JSON answer of one request, without a socket. The server's own protocol is not part of the path."""
    payload = b"" if body is None else json.dumps(body).encode()
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": payload, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload))]
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "root_path": "",
    }
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


async def expect(status: int, app: ASGIApp, method: str, path: str, body: object = None) -> Any:
    """The answer of a request that must have this status."""
    got, answer = await call(app, method, path, body)
    if got != status:
        raise RuntimeError(f"{method} {path}: {got} {answer}")
    return answer


async def measure() -> dict[str, RequestPath]:
    """The path of a decision and of an outcome, on an SQLite store of its own."""
    random = np.random.default_rng(0)
    found: dict[str, list[RequestPath]] = {"decision": [], "outcome": []}

    def asked() -> dict[str, Any]:
        vector = random.standard_normal(DIM).astype("<f4").tobytes()
        return {"prompt": {"vector": base64.b64encode(vector).decode()}}

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(store=f"sqlite:///{folder}/path.db", sweep_s=3600.0)
        async with running(settings) as app:
            await expect(201, app, "PUT", "/v1/bandits/path", BANDIT)
            for number in range(WARM_UP + TRIES):
                with Recorder() as deciding:
                    decided = await expect(201, app, "POST", DECISIONS, asked())
                with Recorder() as observing:
                    await expect(200, app, "PUT", f"{DECISIONS}/{decided['id']}/outcome", {"reward": 0.5})
                if number >= WARM_UP:
                    found["decision"].append(RequestPath(deciding.calls))
                    found["outcome"].append(RequestPath(observing.calls))
    return {name: min(paths, key=lambda path: (-path.files, path.returns)) for name, paths in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per request, and with --verbose the files in order and every call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="the files in order, and every call")
    options = parser.parse_args(arguments)
    for name, path in asyncio.run(measure()).items():
        effects = path.within("service/")
        print(f"{name}: {path.files} files, {path.returns} returns (service/ alone: {effects.files}, {effects.returns})")
        if options.verbose:
            print("  " + "\n  > ".join(path.stays))
            print(*(f"    {file}  {function}" for file, function in path.calls), sep="\n")


if __name__ == "__main__":
    main()
