"""What the routes for OpenAI's clients cost beside the upstream's own answer: `python -m bench.performance.facade`.

Chat completions, whole and as streams of three chunks, one after the other on one connection: to a stand-in for the upstream, and
to the service in front of it, in turns. CPU is that of the service's event loop (/proc/PID/schedstat) until the first byte,
while a stream of the upstream waits after its first piece, and for the whole request with its outcome. A bare decision with its
outcome says how quick the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tools.processes import Server

BODY = {"model": "bandit/router", "messages": [{"role": "user", "content": "Translate this to French: good morning"}]}
Times = tuple[float, float, float]
"""Milliseconds of a request: to its first byte, and CPU of the service until then and in all."""
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


def _chunk(**choice: object) -> bytes:
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


WHOLE = json.dumps(
    {"id": "c", "model": "m", "choices": [{"index": 0, "message": {"content": "Bonjour"}}], "usage": USAGE}
).encode()
PIECES = (
    _chunk(delta={"content": "Bon"}),
    _chunk(delta={"content": "jour"}),
    _chunk(delta={}, finish_reason="stop") + b"data: [DONE]\n\n",
)
GO_ON = threading.Semaphore(0)
"""Released by the client that has seen the first piece of a stream."""
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(WHOLE), WHOLE)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def _upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if b'"stream":true' not in await reader.readexactly(length):
                writer.write(ANSWER)
                continue
            writer.write(STREAM)
            for number, piece in enumerate(PIECES):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                if number == 0:
                    await asyncio.to_thread(GO_ON.acquire)
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        writer.close()


@contextmanager
def upstream() -> Iterator[str]:
    """The URL of the stand-in, in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_upstream, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(server.wait_closed())
        loop.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.performance.facade", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=1000, help="requests of each kind (default: 1000)")
    parser.add_argument("--turns", type=int, default=5, help="turns that they take (default: 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nextarm-facade-") as folder, upstream() as url:
        path = Path(folder) / "upstreams.toml"
        path.write_text(f'[arms.small]\nbase_url = "{url}"\nmodel = "m"\n[arms.large]\nbase_url = "{url}"\nmodel = "m"\n')
        server = Server(Path(folder), store="memory://", settings={"upstreams": str(path)})
        server.start()
        try:
            server.wait_until_ready()
            measure(server, url, rounds=given.rounds // given.turns, turns=given.turns)
        finally:
            server.end()


def measure(server: Server, url: str, *, rounds: int, turns: int) -> None:
    """Print a line for each kind of request."""
    own = f"http://{server.host}:{server.port}/v1"
    with httpx2.Client(trust_env=False, timeout=60.0) as http:
        made = http.put(
            f"{own}/bandits/router", json={"policy": {"kind": "greedy"}, "arms": [{"name": "small"}, {"name": "large"}]}
        )
        made.raise_for_status()

        def cpu_ms() -> float:
            return int(Path(f"/proc/{server.process.pid}/schedstat").read_text().split()[0]) / 1e6

        def chat(base: str, *, stream: bool) -> Times:
            before, began = cpu_ms(), time.perf_counter()
            with http.stream("POST", f"{base}/chat/completions", json={**BODY, "stream": stream}) as response:
                pieces = response.iter_bytes()
                next(pieces)
                first, until_first = time.perf_counter() - began, cpu_ms() - before
                if stream:
                    GO_ON.release()
                for _ in pieces:
                    pass
            return first * 1e3, until_first, cpu_ms() - before

        def bare() -> Times:
            before, began = cpu_ms(), time.perf_counter()
            decided = http.post(f"{own}/bandits/router/decisions", json={}).json()["id"]
            first, until_first = time.perf_counter() - began, cpu_ms() - before
            http.put(f"{own}/bandits/router/decisions/{decided}/outcome", json={"cost": 1.0})
            return first * 1e3, until_first, cpu_ms() - before

        kinds: dict[str, Callable[[], Times]] = {
            "upstream, whole": lambda: chat(url, stream=False),
            "nextarm, whole": lambda: chat(own, stream=False),
            "upstream, stream": lambda: chat(url, stream=True),
            "nextarm, stream": lambda: chat(own, stream=True),
            "decision + outcome": bare,
        }
        found: dict[str, list[Times]] = {name: [] for name in kinds}
        for turn in range(turns + 1):
            for name, kind in kinds.items():
                times = [kind() for _ in range(rounds)]
                found[name] += times if turn else []  # the first turn warms
    print(f"{'':20} {'first byte':>12} {'CPU until it':>14} {'CPU in all':>12}   (ms, medians)")
    for name, times in found.items():
        first, until_first, whole = (statistics.median(values) for values in zip(*times, strict=True))
        print(f"{name:20} {first:12.2f} {until_first:14.2f} {whole:12.2f}")


if __name__ == "__main__":
    main()
